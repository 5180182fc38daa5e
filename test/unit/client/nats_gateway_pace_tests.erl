-module(nats_gateway_pace_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_pace, [new/0, next/2, collected/3, heard/1]).

%% What becomes of deliveries at these times, in microseconds.
decisions(Times, Pace) -> lists:mapfoldl(fun nats_gateway_pace:next/2, Pace, Times).

collects(Times) ->
    {Decisions, _} = decisions(Times, new()),
    [Time || {Time, collect} <- lists:zip(Times, Decisions)].

%% More than four in the moment before.
many_in_a_moment_test_() ->
    [
        ?_assertEqual(Collected, collects(Times))
     || {Times, Collected} <- [
            {[5, 6, 7, 8, 1006, 1007], []},
            {[5, 6, 7, 8, 9, 1005, 1006, 1007, 1000000], [1006, 1007, 1000000]},
            {[5, 6, 7, 8, 9, 2005], [2005]},
            %% that was not the moment before
            {[5, 6, 7, 8, 9, 2006], []},
            %% the clock of the VM may start below zero
            {[-3000000, -2999999, -2999998, -2999997, -2999996, -2998999], [-2998999]}
        ]
    ].

slow_stream_test() ->
    ?assertEqual([], collects([N * 300 || N <- lists:seq(1, 1000)])).

%% Twenty in a moment came before, and one at 1000000.
collecting() ->
    Before = [1000000 - 1010 + 50 * N || N <- lists:seq(0, 19)],
    {Decisions, Pace} = decisions(Before ++ [1000000], new()),
    ?assertEqual(collect, lists:last(Decisions)),
    Pace.

%% At least half as many as before: 19 a millisecond.
goes_on_while_as_many_come_test_() ->
    [
        ?_assertMatch({Decision, _}, next(1000001 + Took, collected(Count, 1000000 + Took, collecting())))
     || {Count, Took, Decision} <- [
            {10, 1000, collect},
            {9, 1000, at_once},
            {19, 2000, collect},
            {18, 2000, at_once},
            {1000, 1100, collect}
        ]
    ].

ends_when_there_are_few_test_() ->
    [
        ?_assertMatch({at_once, _}, next(1001001, collected(Count, 1001000, collecting())))
     || Count <- [1, 3]
    ].

ends_when_the_client_says_something_test() ->
    ?assertMatch({at_once, _}, next(1, heard(collecting()))).

%% A publisher that waits for its four messages gets on with them all the time, except in moments that become rare.
a_publisher_that_waits_is_held_back_rarely_test() ->
    Held = held_back(0, 10000000, new(), []),
    Rests = [Later - Earlier || {Earlier, Later} <- lists:zip(lists:droplast(Held), tl(Held))],
    ?assert(length(Held) < 15, Held),
    ?assertEqual(lists:sort(Rests), Rests),
    ?assert(lists:all(fun(Rest) -> Rest >= 50000 end, Rests), Rests),
    ?assert(lists:max(Rests) < 1700000, Rests).

%% The times at which its messages were collected: four come each 200 microseconds, or when those before have been sent.
held_back(Now, Until, _, Held) when Now > Until ->
    lists:reverse(Held);
held_back(Now, Until, Pace, Held) ->
    case decisions([Now, Now + 1, Now + 2, Now + 3], Pace) of
        {[at_once, at_once, at_once, at_once], NPace} ->
            held_back(Now + 200, Until, NPace, Held);
        {Decisions, NPace} ->
            Count = length([collect || collect <- Decisions]),
            Sent = Now + 1500,
            held_back(Sent + 200, Until, collected(Count, Sent, NPace), [Now | Held])
    end.

%% What a rest has been followed by does not count when collecting is worth it again.
rests_are_short_again_test() ->
    Rest = fun(Now, Pace) ->
        Before = [Now - 1010 + 50 * N || N <- lists:seq(0, 19)],
        {Decisions, Collecting} = decisions(Before ++ [Now], Pace),
        ?assertEqual(collect, lists:last(Decisions)),
        Collecting
    end,
    Once = collected(4, 1001000, Rest(1000000, new())),
    Twice = collected(4, 2001000, Rest(2000000, Once)),
    ?assertMatch({at_once, {resting, _, _}}, next(2100999, Twice)),
    Worth = collected(19, 3001000, Rest(3000000, Twice)),
    Again = collected(4, 3002000, Worth),
    ?assertMatch({at_once, {resting, _, _}}, next(3051999, Again)),
    ?assertMatch({at_once, {counting, 3052000, 1, _}}, next(3052000, Again)).

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
