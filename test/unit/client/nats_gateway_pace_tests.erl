-module(nats_gateway_pace_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_pace, [new/0, next/2, collected/2, heard/1]).

%% What becomes of deliveries at these times, in microseconds.
decisions(Times, Pace) -> lists:mapfoldl(fun nats_gateway_pace:next/2, Pace, Times).

first_of_a_moment_test() ->
    ?assertMatch({[at_once, at_once, at_once, at_once], _}, decisions([0, 1, 2, 1000], new())).

many_in_a_moment_test() ->
    {Decisions, _} = decisions([5, 6, 7, 1005, 1005, 2000, 1000000], new()),
    ?assertEqual(
        [at_once, at_once, at_once, at_once, collect, collect, collect], Decisions
    ).

%% The clock of the VM may start below zero.
negative_time_test() ->
    ?assertMatch(
        {[at_once, at_once, at_once, at_once, collect], _},
        decisions([-3000000, -2999999, -2999998, -2999997, -2999996], new())
    ).

slow_stream_test() ->
    {Decisions, _} = decisions([N * 300 || N <- lists:seq(1, 1000)], new()),
    ?assertEqual([], [collect || collect <- Decisions]).

collecting() ->
    {_, Pace} = decisions([1, 1, 1, 1, 1], new()),
    Pace.

goes_on_while_there_are_many_test() ->
    ?assertMatch({collect, _}, next(9999999, collected(4, collecting()))).

ends_when_there_are_few_test_() ->
    [
        ?_assertMatch({at_once, _}, next(1, collected(Count, collecting())))
     || Count <- [0, 1, 3]
    ].

ends_when_the_client_says_something_test() ->
    ?assertMatch({at_once, _}, next(1, heard(collecting()))).

%% A client that answers each message, however fast.
request_reply_test() ->
    lists:foldl(
        fun(Now, Pace) ->
            {Decision, NPace} = next(Now, Pace),
            ?assertEqual(at_once, Decision),
            heard(NPace)
        end,
        new(),
        lists:seq(1, 100)
    ).
