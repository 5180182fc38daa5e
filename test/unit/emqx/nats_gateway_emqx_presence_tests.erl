%% What is published for clients that cannot do it themselves. Other nodes are not there: their
%% processes are those of this node, and the ends of the processes are told as if they were elsewhere.
-module(nats_gateway_emqx_presence_tests).

-include_lib("eunit/include/eunit.hrl").

-define(PRESENCE, nats_gateway_emqx_presence).

presence_test_() ->
    {foreach,
        fun() ->
            ok = nats_gateway_fake_emqx:load(),
            ok = nats_gateway_fake_emqx:unload([emqx_broker]),
            _ = nats_gateway_fake_emqx:load(emqx_broker, [
                "safe_publish(#{topic := Topic, payload := Payload, from := From}) ->"
                " nats_gateway_emqx_presence_test ! {published, Topic, Payload, From}, []."
            ]),
            {ok, Scope} = pg:start_link(?PRESENCE),
            Scope
        end,
        fun(Scope) ->
            _ = whereis(nats_gateway_emqx_presence_test) =/= undefined andalso
                unregister(nats_gateway_emqx_presence_test),
            true = unlink(Scope),
            ok = gen_server:stop(Scope),
            nats_gateway_fake_emqx:unload()
        end,
        [
            fun comes_and_goes/1,
            fun killed/1,
            fun killed_before_it_is_watched/1,
            fun killed_and_back/1,
            fun node_lost/1,
            fun left_before/1
        ]}.

comes_and_goes(_) ->
    fun() ->
        true = register(nats_gateway_emqx_presence_test, self()),
        Client = client(<<"a">>),
        ?assertEqual({<<"presence/a">>, <<"online">>, <<"c-a">>}, published()),
        ?assertMatch([{gone, #{topic := <<"presence/a">>}}], pg:which_groups(?PRESENCE)),
        leave(Client),
        ?assertEqual({<<"presence/a">>, <<"offline">>, <<"c-a">>}, published()),
        ?assertEqual([], pg:which_groups(?PRESENCE)),
        %% What has no presence needs no scope and publishes nothing.
        ?assertEqual(none, ?PRESENCE:connected(#{config => #{presence => off}}, session(<<"b">>), #{})),
        ok = ?PRESENCE:disconnected(none, #{}),
        ?assertEqual(nothing, published())
    end.

killed(_) ->
    fun() ->
        watched(fun(_) ->
            Client = client_here(<<"a">>),
            kill(Client),
            ?assertEqual({<<"presence/a">>, <<"offline">>, <<"c-a">>}, published(3000)),
            %% Any other end is that of a process which has published itself.
            Other = client_here(<<"b">>),
            exit(Other, crash),
            ?assertEqual(nothing, published(1500))
        end)
    end.

%% The watcher has other work, and learns of the client after its end.
killed_before_it_is_watched(_) ->
    fun() ->
        watched(fun(Watcher) ->
            ok = sys:suspend(Watcher),
            kill(client_here(<<"a">>)),
            ok = sys:resume(Watcher),
            ?assertEqual({<<"presence/a">>, <<"offline">>, <<"c-a">>}, published(3000))
        end)
    end.

killed_and_back(_) ->
    fun() ->
        watched(fun(_) ->
            Client = client_here(<<"a">>),
            kill(Client),
            _ = client_here(<<"a">>),
            ?assertEqual(nothing, published(1500))
        end)
    end.

node_lost(_) ->
    fun() ->
        watched(fun(Watcher) ->
            Client = client_here(<<"a">>),
            lose(Client, Watcher),
            ?assertEqual({<<"presence/a">>, <<"offline">>, <<"c-a">>}, published(3000))
        end)
    end.

%% A client that has said so itself is not said to be gone again.
left_before(_) ->
    fun() ->
        watched(fun(Watcher) ->
            Client = client_here(<<"a">>),
            leave(Client),
            {_, <<"offline">>, _} = published(),
            _ = sys:get_state(Watcher),
            kill(Client),
            ?assertEqual(nothing, published(1500))
        end)
    end.

watched(Test) ->
    true = register(nats_gateway_emqx_presence_test, self()),
    {ok, Watcher} = ?PRESENCE:start_link(),
    try
        Test(Watcher)
    after
        true = unlink(Watcher),
        gen_server:stop(Watcher)
    end.

session(Name) -> #{mountpoint => <<>>, clientid => <<"c-", Name/binary>>, username => undefined}.

client(Name) ->
    {ok, Table} = nats_gateway_schema:check(nats_gateway_presence:page_schema(), #{
        <<"presence_topic">> => <<"presence/${name}">>
    }),
    Client = #{
        connect => #{name => Name},
        listener => 'nats:tcp:default',
        peername => {{127, 0, 0, 1}, 4000},
        config => #{presence => nats_gateway_presence:of_page(Table), server_name => <<"edge">>}
    },
    spawn(fun() ->
        Presence = ?PRESENCE:connected(Client, session(Name), #{}),
        receive
            {leave, From} ->
                ok = ?PRESENCE:disconnected(Presence, #{}),
                From ! left
        end,
        receive
            stop -> ok
        end
    end).

client_here(Name) ->
    Client = client(Name),
    {_, <<"online">>, _} = published(),
    Client.

leave(Client) ->
    Client ! {leave, self()},
    receive
        left -> ok
    end.

kill(Client) ->
    Monitor = monitor(process, Client),
    exit(Client, kill),
    receive
        {'DOWN', Monitor, process, _, killed} -> ok
    end.

%% As when the node of this client is lost.
lose(Client, Watcher) ->
    Clients = element(3, sys:get_state(Watcher)),
    {monitors, Monitors} = process_info(Watcher, monitors),
    true = lists:member({process, Client}, Monitors),
    [Monitor] = [Reference || {Reference, Known} <- maps:to_list(Clients), element(2, Known) =:= Client],
    Watcher ! {'DOWN', Monitor, process, Client, noconnection},
    ok.

published() -> published(1000).

published(Ms) ->
    receive
        {published, Topic, Payload, From} -> {Topic, Payload, From}
    after Ms -> nothing
    end.
