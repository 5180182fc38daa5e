-module(nats_gateway_heartbeat_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_heartbeat, [
    new/0, start/2, heard/2, was_heard/1, wait_to_hear/1, due_ms/3, ping_sent/3, is_taking/3
]).

a_ping_is_due_when_nothing_was_heard_test() ->
    Started = start(1000, new()),
    ?assertEqual(50, due_ms(1050, 100, Started)),
    ?assertEqual(0, due_ms(1100, 100, Started)),
    ?assertEqual(40, due_ms(1100, 100, heard(1040, Started))).

heard_is_what_came_since_test() ->
    ?assertNot(was_heard(new())),
    ?assert(was_heard(heard(1, new()))),
    ?assertNot(was_heard(wait_to_hear(heard(1, new())))),
    ?assertNot(was_heard(ping_sent(0, 0, heard(1, new())))).

%% It has not come to the PING yet.
who_still_reads_is_there_test() ->
    ?assertMatch({true, _}, is_taking(10, 0, ping_sent(0, 0, new()))),
    {true, Taking} = is_taking(0, 5, ping_sent(10, 0, new())),
    ?assertEqual(false, is_taking(0, 5, Taking)),
    ?assertEqual(false, is_taking(0, 5, ping_sent(0, 0, new()))).
