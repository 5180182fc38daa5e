-module(nats_gateway_report_times_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_report_times, [new/1, watched/1, is_on/1, next/2, reported/2]).

reports_become_rarer_while_there_is_traffic_test_() ->
    [
        ?_assertEqual([250, 500, 1000, 2000, 4000, 5000, 5000], reports(new(true))),
        ?_assertEqual([250, 500, 1000, 1000, 1000, 1000, 1000], reports(watched(new(false))))
    ].

reports(New) ->
    {Ms, _} = lists:mapfoldl(
        fun(_, {Now, Times}) ->
            {After, NTimes} = next(Now, Times),
            {After, {Now + After, reported(Now + After, NTimes)}}
        end,
        {0, New},
        lists:seq(1, 7)
    ),
    Ms.

who_has_been_quiet_is_looked_for_soon_test() ->
    {_, Times} = next(600, reported(500, element(2, next(0, new(true))))),
    ?assertMatch({250, _}, next(5501, Times)).

is_on_test() ->
    ?assert(is_on(new(true))),
    ?assert(is_on(watched(new(false)))),
    ?assertNot(is_on(new(false))).
