-module(nats_gateway_rtt_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_rtt, [new/1, connected/2, pinged/2, ponged/2, nanoseconds/1]).

ns(Native) -> erlang:convert_time_unit(Native, native, nanosecond).

from_info_to_connect_test() ->
    New = new(-1000),
    ?assertEqual(unknown, nanoseconds(New)),
    Connected = connected(-400, New),
    ?assertEqual(ns(600), nanoseconds(Connected)),
    %% Another CONNECT answers nothing.
    ?assertEqual(Connected, connected(9000, Connected)).

from_ping_to_pong_test() ->
    Pinged = pinged(100, connected(60, new(0))),
    %% Until the answer comes, it is the one before.
    ?assertEqual(ns(60), nanoseconds(Pinged)),
    ?assertEqual(Pinged, connected(150, Pinged)),
    Ponged = ponged(175, Pinged),
    ?assertEqual(ns(75), nanoseconds(Ponged)),
    %% Nobody has asked for this one.
    ?assertEqual(Ponged, ponged(9000, Ponged)).

it_takes_some_time_test() -> ?assert(nanoseconds(connected(5, new(5))) > 0).

%% A client that sends no CONNECT at all.
a_pong_before_connect_test() -> ?assertEqual(ns(8), nanoseconds(ponged(8, new(0)))).
