-module(nats_gateway_emqx_down_tests).

-include_lib("eunit/include/eunit.hrl").

all_have_ended_test() ->
    Monitors = [element(2, spawn_monitor(fun() -> ok end)) || _ <- [1, 2]],
    ok = nats_gateway_emqx_down:await(Monitors, 5000),
    ?assertEqual(nothing, receive {'DOWN', _, process, _, _} -> 'DOWN' after 0 -> nothing end).

%% The one that stays costs the deadline once, and sends nothing later.
one_stays_test() ->
    {Stays, First} = spawn_monitor(fun() -> receive stop -> ok end end),
    {_, Second} = spawn_monitor(fun() -> ok end),
    Third = monitor(process, Stays),
    {Us, ok} = timer:tc(fun() -> nats_gateway_emqx_down:await([First, Second, Third], 50) end),
    ?assert(Us >= 50000),
    Last = monitor(process, Stays),
    Stays ! stop,
    receive {'DOWN', Last, process, Stays, _} -> ok end,
    ?assertEqual(nothing, receive {'DOWN', _, process, _, _} -> 'DOWN' after 0 -> nothing end).
