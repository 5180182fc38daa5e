-module(nats_gateway_client_events_tests).

-include_lib("eunit/include/eunit.hrl").

-define(EVENTS, nats_gateway_client_events).
-define(SCOPE, nats_gateway_servers).

key(Filter) -> {undefined, Filter}.

watchable_test_() ->
    [
        ?_assertEqual(Expected, ?EVENTS:is_watchable(Key, Mountpoint))
     || {Key, Mountpoint, Expected} <- [
            {key(<<"$SYS/ACCOUNT/#">>), <<>>, true},
            {key(<<"$SYS/ACCOUNT/+/CONNECT">>), <<>>, true},
            {key(<<"m/$SYS/ACCOUNT/#">>), <<"m/">>, true},
            {key(<<"$SYS/ACCOUNT/#">>), <<"m/">>, false},
            {key(<<"$SYS/ACCOUNT">>), <<>>, false},
            {key(<<"$SYS/#">>), <<>>, false},
            {key(<<"#">>), <<>>, false},
            {{<<"q">>, <<"$SYS/ACCOUNT/#">>}, <<>>, false}
        ]
    ].

facts() ->
    #{
        client_id => 7,
        config => #{server_id => <<"N1">>, server_name => <<"edge">>},
        host => {127, 0, 0, 1},
        description => #{
            peername => {{10, 0, 0, 9}, 4000},
            transport => wss,
            user => <<>>,
            account => <<"$G">>,
            name => <<"a \"b\"">>,
            tags => []
        }
    }.

%% Nobody has to be asked, not even what the event would hold.
nobody_watches_test() ->
    NoFacts = fun() -> error(asked) end,
    ok = ?EVENTS:connected(NoFacts),
    ok = ?EVENTS:disconnected(client_closed, true, NoFacts, NoFacts),
    with_scope(fun() ->
        ok = ?EVENTS:connected(NoFacts),
        ok = ?EVENTS:disconnected(client_closed, true, NoFacts, NoFacts)
    end).

watching_test() ->
    with_scope(fun() ->
        Watcher = watcher(),
        ok = ?EVENTS:connected(fun facts/0),
        {<<"$SYS.ACCOUNT.$G.CONNECT">>, Connect} = event(Watcher),
        ?assertMatch(
            #{
                <<"type">> := <<"io.nats.server.advisory.v1.client_connect">>,
                <<"id">> := <<_:22/binary>>,
                <<"server">> := #{<<"id">> := <<"N1">>, <<"name">> := <<"edge">>, <<"host">> := <<"127.0.0.1">>},
                <<"client">> := #{
                    <<"id">> := 7,
                    <<"acc">> := <<"$G">>,
                    <<"host">> := <<"10.0.0.9">>,
                    <<"name">> := <<"a \"b\"">>,
                    <<"kind">> := <<"Client">>,
                    <<"client_type">> := <<"websocket">>
                }
            },
            Connect
        ),
        #{<<"client">> := Client} = Connect,
        ?assertEqual(#{}, maps:with([<<"user">>, <<"tags">>, <<"stop">>, <<"rtt">>], Client)),
        Figures = fun() -> #{messages_received => 3, octets_sent => 9, rtt => 5} end,
        ok = ?EVENTS:disconnected({shutdown, stale_connection}, true, Figures, fun facts/0),
        ?assertMatch(
            {<<"$SYS.ACCOUNT.$G.DISCONNECT">>, #{
                <<"reason">> := <<"Stale Connection">>,
                <<"sent">> := #{<<"msgs">> := 3, <<"bytes">> := 0},
                <<"received">> := #{<<"msgs">> := 0, <<"bytes">> := 9},
                <<"client">> := #{<<"rtt">> := 5, <<"stop">> := _}
            }},
            event(Watcher)
        ),
        %% One that had not logged in has not come either.
        ok = ?EVENTS:disconnected(client_closed, false, Figures, fun facts/0),
        ?assertEqual(nothing, event(Watcher)),
        Watcher ! {stop, self()},
        receive
            stopped -> ok
        end,
        ok = ?EVENTS:connected(fun() -> error(asked) end)
    end).

reasons_test() ->
    with_scope(fun() ->
        Watcher = watcher(),
        lists:foreach(
            fun({Reason, Text}) ->
                ok = ?EVENTS:disconnected(Reason, true, fun() -> #{} end, fun facts/0),
                {_, #{<<"reason">> := Told}} = event(Watcher),
                ?assertEqual({Reason, Text}, {Reason, Told})
            end,
            [
                {{shutdown, client_closed}, <<"Client Closed">>},
                {{shutdown, slow_consumer}, <<"Slow Consumer (Write Deadline)">>},
                {{shutdown, kicked}, <<"Kicked">>},
                {{shutdown, drained}, <<"Server Shutdown">>},
                {{shutdown, user_authentication_expired}, <<"Authentication Expired">>},
                {{shutdown, {error, discarded}}, <<"Duplicate Client ID">>},
                {{shutdown, upstream_lost}, <<"Server Shutdown">>},
                {{badmatch, secret}, <<"Server Shutdown">>}
            ]
        )
    end).

filters_test() ->
    with_scope(fun() ->
        All = key(<<"$SYS/ACCOUNT/#">>),
        Some = key(<<"$SYS/ACCOUNT/+/CONNECT">>),
        Members = fun() -> pg:get_members(?SCOPE, client_events) end,
        W1 = ?EVENTS:watch(All, ?EVENTS:new()),
        ?assertEqual([self()], Members()),
        W2 = ?EVENTS:watch(Some, ?EVENTS:watch(All, W1)),
        ?assertEqual([self()], Members()),
        Matching = fun(Topic, W) -> lists:sort(?EVENTS:matching(Topic, W)) end,
        ?assertEqual([All, Some], Matching(<<"$SYS/ACCOUNT/A/CONNECT">>, W2)),
        ?assertEqual([All], Matching(<<"$SYS/ACCOUNT/A/DISCONNECT">>, W2)),
        ?assert(?EVENTS:is_watched(Some, W2)),
        W3 = ?EVENTS:unwatch(All, W2),
        ?assertEqual([], Matching(<<"$SYS/ACCOUNT/A/DISCONNECT">>, W3)),
        ?assertEqual([self()], Members()),
        W4 = ?EVENTS:unwatch(Some, W3),
        ?assertEqual([], Members()),
        ?assertEqual(?EVENTS:new(), W4),
        ?assertNot(?EVENTS:is_watched(Some, W4)),
        ?assertEqual(W4, ?EVENTS:stop(W4)),
        ?assertEqual(W4, ?EVENTS:stop(?EVENTS:watch(All, W4))),
        ?assertEqual([], Members())
    end).

%% Where nobody may watch there is no scope.
without_a_scope_test() ->
    Watched = ?EVENTS:watch(key(<<"$SYS/ACCOUNT/#">>), ?EVENTS:new()),
    ?assertEqual(?EVENTS:new(), ?EVENTS:stop(Watched)).

with_scope(Test) ->
    {ok, Scope} = pg:start_link(?SCOPE),
    try
        Test()
    after
        true = unlink(Scope),
        gen_server:stop(Scope)
    end.

%% A connection that watches, and passes on what it is told.
watcher() ->
    Test = self(),
    Pid = spawn_link(fun() ->
        Watched = ?EVENTS:watch(key(<<"$SYS/ACCOUNT/#">>), ?EVENTS:new()),
        Test ! ready,
        pass_on(Test, Watched)
    end),
    receive
        ready -> Pid
    end.

pass_on(Test, Watched) ->
    receive
        {stop, From} ->
            _ = ?EVENTS:stop(Watched),
            From ! stopped;
        {'$gen_cast', {client_event, Subject, Payload}} ->
            {ok, Event} = nats_gateway_nif:json_decode(Payload),
            Test ! {event, self(), {Subject, Event}},
            pass_on(Test, Watched)
    end.

event(Watcher) ->
    receive
        {event, Watcher, Event} -> Event
    after 200 -> nothing
    end.
