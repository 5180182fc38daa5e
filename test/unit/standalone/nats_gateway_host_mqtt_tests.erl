%% The standalone host against a scripted broker, for what a real one does not do. With a real one:
%% nats_gateway_host_mqtt_mosquitto_tests.
-module(nats_gateway_host_mqtt_tests).

-include("nats_gateway.hrl").
-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_host_mqtt_driver, [
    all_events/1, await/2, await/4, await_any/1, call/2, client/1, client/3,
    deadline/0, delivered/1, deliveries/2, driver/1, events/1, login_as/1, pub/2, pub/3,
    publish/2, publish/3, request/3, requests/0, socket/1, stop/1, subscribe/2,
    subscribe/3, unsubscribe_key/2, upstream/1
]).
-import(nats_gateway_scripted_broker, [listen/0, packet/1, free_port/0]).

-define(HOST, nats_gateway_host_mqtt).
-define(CLIENT, nats_gateway_mqtt_client).
-define(DRIVER, nats_gateway_host_mqtt_driver).
-define(WAIT, 5000).

%% Whether the broker is there is one question for all who come, and those who have not logged in
%% have no connection to it.
who_is_there_costs_the_broker_one_connection_test() ->
    {ok, Server} = nats_gateway_upstream:start_link(),
    {Listen, Port} = listen(),
    Prepare = fun() -> {ok, _} = ?HOST:prepare(client(Port)) end,
    Clients = [spawn_monitor(Prepare) || _ <- lists:seq(1, 300)],
    [
        receive
            {'DOWN', Ref, process, _, Reason} -> ?assertEqual(normal, Reason)
        end
     || {_, Ref} <- Clients
    ],
    {ok, Probe} = gen_tcp:accept(Listen, ?WAIT),
    ?assertEqual({error, closed}, gen_tcp:recv(Probe, 0, ?WAIT)),
    ?assertEqual({error, timeout}, gen_tcp:accept(Listen, 0)),
    ok = gen_tcp:close(Listen),
    ok = gen_server:stop(Server).

without_a_broker_nobody_is_greeted_test() ->
    {ok, Server} = nats_gateway_upstream:start_link(),
    Port = free_port(),
    ?assertEqual({error, upstream_lost}, ?HOST:prepare(client(Port))),
    ?assertEqual({error, upstream_lost}, ?HOST:connect(client(Port))),
    ok = gen_server:stop(Server).

no_upstream_test() ->
    Client = client(free_port()),
    {Microseconds, Outcome} = timer:tc(fun() -> login_as(Client) end),
    ?assertEqual({error, upstream_lost}, Outcome),
    ?assert(Microseconds < 1000000).

silent_upstream_test() ->
    {Listen, Port} = listen(),
    {Microseconds, Outcome} = timer:tc(fun() -> login_as(impatient(Port)) end),
    ?assertEqual({refused, upstream_lost}, Outcome),
    ?assert(Microseconds > 200000 andalso Microseconds < 1000000),
    ok = gen_tcp:close(Listen).

refusals_test_() ->
    [
        {integer_to_list(Reason, 16),
            ?_assertEqual({refused, Expected}, answered(<<16#20, 3, 0, Reason, 0>>))}
     || {Reason, Expected} <- [
            {16#80, upstream_lost},
            {16#84, upstream_lost},
            {16#85, authorization_violation},
            {16#86, authorization_violation},
            {16#87, authorization_violation},
            {16#88, upstream_lost},
            {16#89, upstream_lost},
            {16#8A, authorization_violation},
            {16#8C, authorization_violation},
            {16#97, upstream_lost},
            {16#9C, upstream_lost},
            {16#9D, upstream_lost},
            {16#9F, upstream_lost}
        ]
    ].

no_connack_test_() ->
    [
        ?_assertEqual({refused, upstream_lost}, answered(Bytes))
     || Bytes <- [
            %% a broker of MQTT 3.1.1 refuses the version
            <<16#20, 2, 0, 1>>,
            <<"HTTP/1.1 400 Bad Request\r\n\r\n">>,
            <<16#D0, 0>>,
            <<16#40, 2, 0, 1>>,
            <<16#E0, 1, 16#82>>,
            close
        ]
    ].

answered(Bytes) ->
    {Listen, Port} = listen(),
    Pid = spawn_link(fun() -> driver(client(Port)) end),
    {ok, Socket} = gen_tcp:accept(Listen, ?WAIT),
    <<16#10, _/binary>> = packet(Socket),
    case Bytes of
        close -> ok = gen_tcp:close(Socket);
        _ -> ok = gen_tcp:send(Socket, Bytes)
    end,
    Outcome = call(Pid, outcome),
    ?assertEqual([], events(Pid)),
    ok = stop(Pid),
    ok = gen_tcp:close(Listen),
    Outcome.

%% Who has shown the gateway a password or a signature has a name for the broker, and no more.
connect_packet_of_a_login_test_() ->
    Identity = #{
        method => jwt,
        username => <<"UKEY">>,
        nkey => <<"UKEY">>,
        name => <<"ann">>,
        account => <<"AKEY">>,
        max_payload => infinity,
        expires => {5, user_authentication_expired}
    },
    Sent = fun(Override) ->
        Client = fun(Port) ->
            Config = #{clientinfo_override => maps:merge(#{clientid => <<"id">>}, Override)},
            Fields = #{user => <<"u">>, pass => <<"p">>, auth_token => <<"t">>, jwt => <<"j">>},
            (client(Port, Config, Fields))#{login => Identity}
        end,
        {Pid, Socket, <<16#10, _, Connect/binary>>} = fake(Client, <<>>),
        ok = over(Pid, Socket),
        <<0, 4, "MQTT", 5, Flags, _:16, 0, 0, 2, "id", Credentials/binary>> = Connect,
        {Flags, Credentials}
    end,
    [
        ?_assertEqual({16#82, <<0, 4, "UKEY">>}, Sent(#{})),
        ?_assertEqual(
            {16#C2, <<0, 8, "AKEY-ann", 0, 3, "jwt">>},
            Sent(#{
                username => <<"${Login.account}-${Login.name}">>, password => <<"${Login.method}">>
            })
        ),
        ?_assertEqual(
            {16#C2, <<0, 2, "gw", 0, 1, "p">>},
            Sent(#{username => <<"gw">>, password => <<"${Packet.pass}">>})
        ),
        %% what is no text, and what is not there
        ?_assertEqual(
            {16#82, <<0, 1, "x">>}, Sent(#{username => <<"x${Login.expires}${Login.rules}">>})
        )
    ].

%% What the client gave is what the broker gets.
connect_packet_test_() ->
    Name = <<0, 4, "MQTT", 5>>,
    Sent = fun(Override, Fields) ->
        Client = fun(Port) ->
            Ids = #{clientid => <<"id">>},
            client(Port, #{clientinfo_override => maps:merge(Ids, Override)}, Fields)
        end,
        {Pid, Socket, <<16#10, _, Connect/binary>>} = fake(Client, <<>>),
        ok = over(Pid, Socket),
        Connect
    end,
    %% What the broker does not send because of a Maximum Packet Size is lost without a trace.
    Properties = <<0>>,
    [
        ?_assertEqual(
            <<Name/binary, 2, 60:16, Properties/binary, 0, 2, "id">>,
            Sent(#{}, #{})
        ),
        ?_assertEqual(
            <<Name/binary, 16#C2, 60:16, Properties/binary, 0, 2, "id", 0, 1, "u", 0, 1, "p">>,
            Sent(#{}, #{user => <<"u">>, pass => <<"p">>, auth_token => <<"t">>})
        ),
        ?_assertEqual(
            <<Name/binary, 16#82, 60:16, Properties/binary, 0, 2, "id", 0, 1, "u">>,
            Sent(#{}, #{user => <<"u">>})
        ),
        ?_assertEqual(
            <<Name/binary, 16#C2, 60:16, Properties/binary, 0, 2, "id", 0, 0, 0, 1, "t">>,
            Sent(#{}, #{auth_token => <<"t">>})
        ),
        ?_assertEqual(
            <<Name/binary, 16#82, 60:16, Properties/binary, 0, 2, "id", 0, 1, "t">>,
            Sent(
                #{username => <<"${Packet.auth_token}">>, password => <<>>},
                #{auth_token => <<"t">>}
            )
        ),
        ?_assertEqual(
            <<Name/binary, 16#82, 60:16, Properties/binary, 0, 1, "n", 0, 6, "true-1">>,
            Sent(
                #{
                    clientid => <<"${Packet.name}">>,
                    username => <<"${Packet.verbose}-${Packet.protocol}">>
                },
                #{name => <<"n">>, verbose => true, protocol => 1}
            )
        )
    ].

disconnected_test_() ->
    [
        {integer_to_list(Reason, 16), fun() ->
            {Pid, Socket} = connected(<<>>),
            ok = gen_tcp:send(Socket, <<16#E0, 1, Reason>>),
            ?assertEqual([{close, Expected}], await(Pid, {close, Expected})),
            ok = gen_tcp:close(Socket),
            closed_for_good(Pid)
        end}
     || {Reason, Expected} <- [
            {0, upstream_lost},
            {16#82, upstream_lost},
            {16#87, authorization_violation},
            {16#8B, upstream_lost},
            {16#8E, kicked},
            {16#98, kicked},
            {16#A0, user_authentication_expired}
        ]
    ].

%% Whoever notices first, there is one event.
closed_test() ->
    {Pid, Socket} = connected(<<>>),
    ok = gen_tcp:close(Socket),
    ?assertEqual([{close, upstream_lost}], await(Pid, {close, upstream_lost})),
    closed_for_good(Pid).

closed_for_good(Pid) ->
    Key = {undefined, <<"a">>},
    ?assertEqual({stop, upstream_lost}, publish(Pid, [pub(<<"a">>, <<>>)])),
    ?assertEqual({stop, upstream_lost}, subscribe(Pid, Key)),
    ?assertEqual(ok, unsubscribe_key(Pid, Key)),
    ?assertEqual(wait, call(Pid, fun ?DRIVER:barrier_call/1)),
    timer:sleep(50),
    ?assertEqual([], events(Pid)),
    ?assertEqual(ok, stop(Pid)).

%% A callback that can't say that the connection is gone.
lost_while_unsubscribing_test() ->
    lost_in(fun(Pid) -> unsubscribe_key(Pid, {undefined, <<"a">>}) end).

lost_at_a_barrier_test() ->
    lost_in(fun(Pid) -> wait = call(Pid, fun ?DRIVER:barrier_call/1) end).

lost_in(Act) ->
    {Pid, Socket} = connected(<<>>),
    ok = subscribe(Pid, {undefined, <<"a">>}),
    %% The process must not see the end of the connection before it acts.
    ok = call(Pid, fun(Host) -> {inet:setopts(socket(Host), [{active, false}]), Host} end),
    ok = inet:setopts(Socket, [{linger, {true, 0}}]),
    ok = gen_tcp:close(Socket),
    timer:sleep(50),
    _ = Act(Pid),
    ?assertEqual([{close, upstream_lost}], await(Pid, {close, upstream_lost})),
    timer:sleep(20),
    ?assertEqual([], events(Pid)).

%% A publish finds the end of the connection while the broker's last message waits in the mailbox.
heard_before_a_send_fails_test() ->
    {Pid, Socket} = connected(<<>>),
    ok = subscribe(Pid, {undefined, <<"a">>}),
    Acts = fun(Host) ->
        ok = gen_tcp:send(Socket, <<16#30, 7, 0, 1, "a", 2, 11, 1, "1">>),
        timer:sleep(50),
        ok = inet:setopts(Socket, [{linger, {true, 0}}]),
        ok = gen_tcp:close(Socket),
        timer:sleep(50),
        {error, _} = gen_tcp:send(socket(Host), <<16#C0, 0>>),
        Options = #{confirm => false, no_responders => false},
        {ok, [], NHost} = ?HOST:publish([pub(<<"b">>, <<>>)], Options, Host),
        {ok, [], NHost} = ?HOST:publish([pub(<<"b">>, <<>>)], Options, NHost),
        {ok, NHost}
    end,
    ok = call(Pid, Acts),
    ?assertMatch([{deliver, [_]}, {close, upstream_lost}], await(Pid, {close, upstream_lost})),
    closed_for_good(Pid).

%% The broker is told what is wrong with it.
protocol_errors_test_() ->
    [
        ?_test(begin
            {Pid, Socket} = connected(<<>>),
            ok = gen_tcp:send(Socket, Bytes),
            ?assertEqual([{close, upstream_lost}], await(Pid, {close, upstream_lost})),
            ?assertEqual(<<16#E0, 1, Reason>>, packet(Socket)),
            ?assertEqual({error, closed}, gen_tcp:recv(Socket, 0, ?WAIT))
        end)
     || {Bytes, Reason} <- [
            {<<16#30, 0>>, 16#81},
            {<<16#40, 16#FF, 16#FF, 16#FF, 16#7F>>, 16#95},
            {<<16#20, 3, 0, 0, 0>>, 16#82},
            {<<16#50, 2, 0, 1>>, 16#82},
            {<<16#34, 6, 0, 1, "t", 0, 1, 0>>, 16#82}
        ]
    ].

%% Broken into single bytes, and several packets at once.
chunks_test() ->
    {Pid, Socket} = connected(<<>>),
    Key = {undefined, <<"t">>},
    ok = subscribe(Pid, Key),
    <<16#82, _, Id:16, 2, 11, 1, _/binary>> = packet(Socket),
    Publish = fun(Payload) -> <<16#30, 7, 0, 1, "t", 2, 11, 1, Payload>> end,
    Stream = <<16#90, 4, Id:16, 0, 0, (Publish($a))/binary, (Publish($b))/binary>>,
    [
        begin
            ok = gen_tcp:send(Socket, <<Byte>>),
            timer:sleep(2)
        end
     || <<Byte>> <= Stream
    ],
    Expected = [{Key, <<"t">>, undefined, undefined, <<Byte>>} || Byte <- "ab"],
    ?assertEqual(Expected, deliveries(2, Pid)),
    ok = gen_tcp:send(Socket, [Publish($a), Publish($b)]),
    %% one run of deliveries for a chunk
    ?assertEqual([{deliver, Expected}], await_any(Pid)),
    ok = over(Pid, Socket).

%% A message that is larger than what is taken costs no connection and no other message, at every
%% split of its bytes. It is acknowledged and counted.
too_large_test_() ->
    [{integer_to_list(QoS), fun() -> too_large(QoS) end} || QoS <- [0, 1]].

too_large(QoS) ->
    Client = fun(Port) ->
        client(Port, #{upstream => (upstream(Port))#{max_packet_size => 1024}}, #{})
    end,
    {Pid, Socket, _} = fake(Client, <<>>),
    Key = {undefined, <<"t">>},
    ok = subscribe(Pid, Key),
    <<16#82, _/binary>> = packet(Socket),
    Small = <<16#30, 7, 0, 1, "t", 2, 11, 1, "1">>,
    Id = [<<7:16>> || QoS > 0],
    Publish = fun(Payload) ->
        Body = iolist_to_binary([<<0, 1, "t">>, Id, <<2, 11, 1>>, Payload]),
        Size = byte_size(Body),
        <<3:4, 0:1, QoS:2, 0:1, 1:1, (Size rem 128):7, (Size div 128), Body/binary>>
    end,
    Head = iolist_size(Publish(<<>>)) - 3,
    %% the largest one, and one byte more
    Fits = Publish(binary:copy(<<"x">>, 1024 - Head - 3)),
    1024 = byte_size(Fits),
    Large = Publish(binary:copy(<<"x">>, 1024 - Head - 2)),
    ok = gen_tcp:send(Socket, Fits),
    [_] = deliveries(1, Pid),
    QoS =:= 0 orelse ?assertEqual(<<16#40, 2, 7:16>>, packet(Socket)),
    Stream = <<Small/binary, Large/binary, Small/binary>>,
    Cuts = lists:seq(0, 40) ++ lists:seq(byte_size(Stream) - 20, byte_size(Stream)),
    [
        begin
            <<Before:Cut/binary, After/binary>> = Stream,
            Events = call(Pid, fun(Host) ->
                {First, One} = feed(Before, Host),
                {Second, Two} = feed(After, One),
                {First ++ Second, Two}
            end),
            ?assertEqual([1], [Count || {undeliverable, Count} <- Events]),
            ?assertEqual([<<"1">>, <<"1">>], [P || #delivery{payload = P} <- delivered(Events)]),
            QoS =:= 0 orelse ?assertEqual(<<16#40, 2, 7:16>>, packet(Socket))
        end
     || Cut <- Cuts
    ],
    ok = over(Pid, Socket).

feed(<<>>, Host) ->
    {[], Host};
feed(Bytes, Host) ->
    ?HOST:handle_info({tcp, socket(Host), Bytes}, Host).

%% A copy with all identifiers: one delivery each. Unknown ones are dropped.
several_identifiers_test() ->
    {Pid, Socket} = connected(<<>>),
    Keys = [{undefined, <<"t">>}, {undefined, <<"+">>}, {<<"g">>, <<"t">>}],
    [ok = subscribe(Pid, Key) || Key <- Keys],
    [_, _, _] = [packet(Socket) || _ <- Keys],
    ok = gen_tcp:send(Socket, [
        <<16#30, 13, 0, 1, "t", 8, 11, 1, 11, 9, 11, 3, 11, 1, "1">>,
        <<16#30, 7, 0, 1, "t", 2, 11, 9, "2">>,
        <<16#30, 7, 0, 1, "t", 2, 11, 2, "3">>
    ]),
    [K1, K2, K3] = Keys,
    ?assertEqual(
        [{<<"1">>, K1}, {<<"1">>, K3}, {<<"3">>, K2}],
        [{P, K} || {K, _, _, _, P} <- deliveries(3, Pid)]
    ),
    ok = over(Pid, Socket).

no_identifiers_test() ->
    {Pid, Socket} = connected(<<41, 0>>),
    Keys = [
        {undefined, <<"t/#">>}, {undefined, <<"t/+">>}, {<<"g">>, <<"t/a">>}, {<<"g">>, <<"u">>}
    ],
    [ok = subscribe(Pid, Key) || Key <- Keys],
    ?assertMatch([<<16#82, _, _:16, 0, _/binary>> | _], [packet(Socket) || _ <- Keys]),
    ok = gen_tcp:send(Socket, [
        <<16#30, 7, 0, 3, "t/a", 0, "1">>, <<16#30, 5, 0, 1, "u", 0, "2">>,
        <<16#30, 5, 0, 1, "x", 0, "3">>, <<16#30, 5, 0, 1, "t", 0, "4">>
    ]),
    ?assertEqual(
        [
            {<<"1">>, {undefined, <<"t/#">>}},
            {<<"1">>, {undefined, <<"t/+">>}},
            {<<"2">>, {<<"g">>, <<"u">>}},
            {<<"4">>, {undefined, <<"t/#">>}}
        ],
        lists:sort([{P, K} || {K, _, _, _, P} <- deliveries(4, Pid)])
    ),
    ok = over(Pid, Socket).

unavailable_test() ->
    {Pid, Socket} = connected(<<40, 0, 42, 0>>),
    Confirm = #{confirm => true, no_local => false},
    [
        ?assertEqual(denied, subscribe(Pid, Key, Options))
     || Key <- [{undefined, <<"a/#">>}, {undefined, <<"+">>}, {<<"g">>, <<"a">>}],
        Options <- [Confirm, Confirm#{confirm := false}]
    ],
    ok = subscribe(Pid, {undefined, <<"a">>}),
    ?assertMatch(<<16#82, _, _:16, 2, 11, 1, 0, 1, "a", _>>, packet(Socket)),
    ok = over(Pid, Socket).

%% A filter that would be read as a shared one.
share_filter_test() ->
    {Pid, Socket} = connected(<<>>),
    ?assertEqual(denied, subscribe(Pid, {undefined, <<"$share/g/a">>})),
    ok = over(Pid, Socket).

acknowledged_test() ->
    {Pid, Socket} = connected(<<>>),
    ok = subscribe(Pid, {undefined, <<"t">>}),
    <<16#82, _/binary>> = packet(Socket),
    ok = gen_tcp:send(Socket, [
        <<16#32, 9, 0, 1, "t", 0, 7, 2, 11, 1, "1">>,
        %% what can't be read is acknowledged, too, and what nobody wants any more
        <<16#32, 9, 0, 1, 255, 0, 8, 2, 11, 1, "2">>,
        <<16#30, 7, 0, 1, 255, 2, 11, 1, "3">>,
        <<16#32, 9, 0, 1, "t", 0, 9, 2, 11, 5, "4">>
    ]),
    ?assertEqual([<<16#40, 2, 0, Id>> || Id <- [7, 8, 9]], [packet(Socket) || _ <- [1, 2, 3]]),
    ?assertMatch([{_, _, _, _, <<"1">>}], deliveries(1, Pid)),
    ok = over(Pid, Socket).

%% What waits behind the Receive Maximum keeps its order, whatever its QoS, and so does what
%% comes after it.
receive_maximum_test() ->
    {Pid, Socket} = connected(<<33, 1:16>>),
    Self = self(),
    spawn_link(fun() ->
        Pubs = [
            request(<<"a">>, <<"r">>, <<"1">>),
            pub(<<"a">>, <<"2">>),
            request(<<"a">>, <<"r">>, <<"3">>),
            pub(<<"a">>, <<"4">>)
        ],
        Self ! {published, publish(Pid, Pubs, requests())}
    end),
    <<16#32, _, 0, 1, "a", First:16, _:5/binary, "1">> = packet(Socket),
    <<16#30, _, 0, 1, "a", 0, "2">> = packet(Socket),
    ok = unsubscribe_key(Pid, {undefined, <<"x">>}),
    ?assertEqual({error, timeout}, gen_tcp:recv(Socket, 0, 50)),
    ok = gen_tcp:send(Socket, <<16#40, 3, First:16, 16#10>>),
    <<16#32, _, 0, 1, "a", Second:16, _:5/binary, "3">> = packet(Socket),
    <<16#30, _, 0, 1, "a", 0, "4">> = packet(Socket),
    receive
        {published, Outcome} -> ?assertEqual(ok, Outcome)
    after ?WAIT -> error(not_published)
    end,
    ?assertEqual([{publish_rejected, <<"a">>, <<"r">>, no_responders}], events(Pid)),
    ok = gen_tcp:send(Socket, <<16#40, 2, Second:16>>),
    %% a stray one
    ok = gen_tcp:send(Socket, <<16#40, 2, 16#FFFF:16>>),
    timer:sleep(20),
    ?assertEqual([], events(Pid)),
    ok = over(Pid, Socket).

confirmations_test() ->
    {Pid, Socket} = connected(<<33, 2:16>>),
    Self = self(),
    Options = #{confirm => true, no_responders => true},
    spawn_link(fun() ->
        Pubs = [
            pub(<<"a">>, <<"1">>),
            #pub{subject = <<"a..b">>, topic = invalid, reply_to = <<"r">>, reply_topic = <<"r">>, payload = <<>>},
            pub(<<"a">>, <<"3">>),
            request(<<"a">>, <<"r">>, <<"4">>)
        ],
        Self ! {published, publish(Pid, Pubs, Options)}
    end),
    <<16#32, _, 0, 1, "a", A:16, 0, "1">> = packet(Socket),
    <<16#32, _, 0, 1, "a", B:16, 0, "3">> = packet(Socket),
    %% not in order, to see that each answer finds its message
    ok = gen_tcp:send(Socket, <<16#40, 3, B:16, 16#97>>),
    <<16#32, _, 0, 1, "a", C:16, _/binary>> = packet(Socket),
    ok = gen_tcp:send(Socket, <<16#40, 3, C:16, 16#10, 16#40, 3, A:16, 16#10>>),
    receive
        {published, Outcome} ->
            ?assertEqual(
                {published, [{2, no_responders}, {3, denied}, {4, no_responders}]}, Outcome
            )
    after ?WAIT -> error(not_published)
    end,
    ok = over(Pid, Socket).

%% Nothing is known of messages to such a broker.
maximum_qos_test() ->
    {Pid, Socket} = connected(<<36, 0>>),
    Options = #{confirm => true, no_responders => true},
    ok = publish(Pid, [pub(<<"a">>, <<"1">>), request(<<"a">>, <<"r">>, <<"2">>)], Options),
    <<16#30, _, 0, 1, "a", 0, "1">> = packet(Socket),
    <<16#30, _, 0, 1, "a", 4, 8, 0, 1, "r", "2">> = packet(Socket),
    ok = over(Pid, Socket).

%% Headers decide about QoS and retain, and wrong ones leave the rest of the batch alone.
publish_properties_test() ->
    {Pid, Socket} = with_properties(<<>>),
    Options = #{confirm => false, no_responders => false},
    Pubs = [
        pub(<<"a">>, <<"1">>, block(<<"Mqtt-Retain: true">>)),
        pub(<<"a">>, <<"2">>, block(<<"Mqtt-Qos: 3">>)),
        pub(<<"a">>, <<"3">>, block(<<"Mqtt-Expiry: 258\r\nMqtt-Payload-Format: 1\r\nA: b">>)),
        pub(<<"a">>, <<"4">>, block(<<"Mqtt-Qos: 2">>)),
        pub(<<"a">>, <<"5">>, block(<<"Mqtt-Qos: 1">>)),
        pub(<<"a">>, <<"6">>)
    ],
    ?assertEqual({rejected, [{2, {property, <<"Mqtt-Qos">>, value}}]}, publish(Pid, Pubs, Options)),
    <<16#31, _, 0, 1, "a", 0, "1">> = packet(Socket),
    <<16#30, _, 0, 1, "a", 14, 2, 258:32, 1, 1, 38, 0, 1, "A", 0, 1, "b", "3">> = packet(Socket),
    <<16#34, _, 0, 1, "a", 1:16, 0, "4">> = packet(Socket),
    <<16#32, _, 0, 1, "a", 2:16, 0, "5">> = packet(Socket),
    <<16#30, _, 0, 1, "a", 0, "6">> = packet(Socket),
    Denied = {publish_rejected, <<"a">>, undefined, denied},
    ok = gen_tcp:send(Socket, <<16#50, 3, 1:16, 16#87>>),
    ?assertEqual([Denied], await(Pid, Denied)),
    ok = gen_tcp:send(Socket, <<16#40, 3, 2:16, 16#99>>),
    ?assertEqual([Denied], await(Pid, Denied)),
    ok = over(Pid, Socket).

%% The header of a verbose client has precedence, and +OK waits for the end of QoS 2.
publish_properties_verbose_test() ->
    {Pid, Socket} = with_properties(<<>>),
    Options = #{confirm => true, no_responders => true},
    Request = request(<<"a">>, <<"r">>, <<"2">>),
    ok = call(Pid, fun(Host) ->
        {wait, NHost} = ?HOST:publish(
            [
                pub(<<"a">>, <<"1">>, block(<<"Mqtt-Qos: 0">>)),
                Request#pub{headers = block(<<"Mqtt-Qos: 2">>)},
                pub(<<"a">>, <<"3">>, block(<<"Mqtt-Retain: true">>))
            ],
            Options,
            Host
        ),
        {ok, NHost}
    end),
    <<16#30, _, 0, 1, "a", 0, "1">> = packet(Socket),
    <<16#34, _, 0, 1, "a", 1:16, 4, 8, 0, 1, "r", "2">> = packet(Socket),
    <<16#33, _, 0, 1, "a", 2:16, 0, "3">> = packet(Socket),
    ok = gen_tcp:send(Socket, <<16#40, 2, 2:16, 16#50, 3, 1:16, 16#10>>),
    <<16#62, 2, 1:16>> = packet(Socket),
    ?assertEqual([], ?DRIVER:events(Pid)),
    ok = gen_tcp:send(Socket, <<16#70, 2, 1:16>>),
    [{published, [{2, no_responders}]}] = await(Pid, {published, [{2, no_responders}]}),
    ok = over(Pid, Socket).

%% What the broker's CONNACK rules out is refused before anything is sent.
publish_properties_the_broker_lacks_test_() ->
    [
        ?_test(begin
            {Pid, Socket} = with_properties(Connack),
            Options = #{confirm => false, no_responders => false},
            Pubs = [pub(<<"a">>, <<"1">>, block(Header)), pub(<<"a">>, <<"2">>)],
            ?assertEqual({rejected, [{1, {property, Name, Demand}}]}, publish(Pid, Pubs, Options)),
            <<16#30, _, 0, 1, "a", 0, "2">> = packet(Socket),
            ok = over(Pid, Socket)
        end)
     || {Connack, Header, Name, Demand} <- [
            {<<37, 0>>, <<"Mqtt-Retain: true">>, <<"Mqtt-Retain">>, not_retained},
            {<<36, 1>>, <<"Mqtt-Qos: 2">>, <<"Mqtt-Qos">>, {max_qos, 1}},
            {<<36, 0>>, <<"Mqtt-Qos: 1">>, <<"Mqtt-Qos">>, {max_qos, 0}}
        ]
    ].

%% Off means that the headers are headers.
publish_properties_off_test() ->
    {Pid, Socket} = connected(<<>>),
    ok = publish(Pid, [pub(<<"a">>, <<"1">>, block(<<"Mqtt-Qos: 3">>))]),
    <<16#30, _, 0, 1, "a", 14, 38, 0, 8, "Mqtt-Qos", 0, 1, "3", "1">> = packet(Socket),
    ok = over(Pid, Socket).

%% With the properties, too, no packet is larger than the broker takes.
publish_properties_packet_size_test() ->
    {Pid, Socket} = with_properties(<<39, 100:32>>),
    Header = block(<<"Mqtt-Expiry: 1\r\nMqtt-Payload-Format: 1">>),
    Fits = binary:copy(<<"x">>, 87),
    Options = #{confirm => false, no_responders => false},
    ?assertEqual(
        {rejected, [{1, denied}]},
        publish(Pid, [pub(<<"a">>, <<Fits/binary, "x">>, Header), pub(<<"a">>, Fits, Header)], Options)
    ),
    <<16#30, 98, 0, 1, "a", 7, 2, 1:32, 1, 1, Fits/binary>> = packet(Socket),
    ok = over(Pid, Socket).

show_properties_test() ->
    {Pid, Socket} = with_properties(<<>>),
    ok = subscribe(Pid, {undefined, <<"t">>}),
    _ = packet(Socket),
    ok = gen_tcp:send(Socket, [
        <<16#31, 14, 0, 1, "t", 9, 11, 1, 2, 60:32, 1, 1, "1">>,
        <<16#30, 21, 0, 1, "t", 16, 11, 1, 38, 0, 8, "mqtt-qos", 0, 1, "2", "2">>,
        <<16#32, 9, 0, 1, "t", 7:16, 2, 11, 1, "3">>
    ]),
    [One, Two, Three] = deliveries(3, Pid),
    Pairs = [{<<"Mqtt-Retain">>, <<"true">>}, {<<"Mqtt-Qos">>, <<"0">>},
        {<<"Mqtt-Expiry">>, <<"60">>}, {<<"Mqtt-Payload-Format">>, <<"1">>}],
    ?assertMatch({_, _, _, {properties, Pairs, undefined}, <<"1">>}, One),
    ?assertMatch({_, _, _, undefined, <<"2">>}, Two),
    ?assertMatch({_, _, _, {properties, [{<<"Mqtt-Qos">>, <<"1">>}], undefined}, <<"3">>}, Three),
    <<16#40, 2, 7:16>> = packet(Socket),
    ok = over(Pid, Socket).

with_properties(Connack) ->
    Settings = #{publish_properties => true, show_properties => true},
    {Pid, Socket, _} = fake(fun(Port) -> ?DRIVER:client(Port, Settings, #{}) end, Connack),
    {Pid, Socket}.

block(Lines) -> <<"NATS/1.0\r\n", Lines/binary, "\r\n\r\n">>.

maximum_packet_size_test() ->
    {Pid, Socket} = connected(<<39, 100:32>>),
    Fits = binary:copy(<<"x">>, 94),
    Large = binary:copy(<<"x">>, 95),
    Options = #{confirm => false, no_responders => false},
    {rejected, [{1, denied}]} =
        publish(Pid, [pub(<<"a">>, Large), pub(<<"a">>, Fits), pub(<<"a">>, <<>>)], Options),
    <<16#30, 98, 0, 1, "a", 0, Fits/binary>> = packet(Socket),
    <<16#30, 4, 0, 1, "a", 0>> = packet(Socket),
    ?assertEqual({rejected, [{1, denied}]}, publish(Pid, [pub(<<"a">>, Large)], #{
        confirm => true, no_responders => false
    })),
    ok = over(Pid, Socket).

%% A payload that fits whatever the subjects are. It is known to the next client before its login.
max_payload_follows_the_broker_test_() ->
    [
        ?_test(begin
            {ok, Server} = nats_gateway_upstream:start_link(),
            {Listen, Port} = listen(),
            Client = client(Port),
            Pid = spawn_link(fun() -> driver(Client) end),
            {ok, Socket} = gen_tcp:accept(Listen, ?WAIT),
            <<16#10, _/binary>> = packet(Socket),
            Size = byte_size(Properties),
            ok = gen_tcp:send(Socket, <<16#20, (3 + Size), 0, 0, Size, Properties/binary>>),
            {ok, Session} = call(Pid, outcome),
            ?assertEqual(Expected, maps:get(max_payload, Session, none)),
            {ok, Prepared} = ?HOST:prepare(Client),
            ?assertEqual(Expected, maps:get(max_payload, Prepared, none)),
            ok = gen_tcp:close(Listen),
            ok = over(Pid, Socket),
            ok = gen_server:stop(Server)
        end)
     || {Properties, Expected} <- [
            {<<>>, none},
            {<<39, 1048576:32>>, 1048576 - 4160},
            {<<39, 8320:32>>, 4160},
            {<<39, 100:32>>, 50},
            {<<39, 1:32>>, 1}
        ]
    ].

%% A larger packet would end the connection.
maximum_packet_size_of_a_subscription_test_() ->
    [
        ?_test(maximum_packet_size_of_a_subscription(Properties))
     %% with wildcards, and without
     || Properties <- [<<39, 100:32>>, <<39, 100:32, 40, 0>>]
    ].

maximum_packet_size_of_a_subscription(Properties) ->
    {Pid, Socket} = connected(Properties),
    Filter = fun(Size) -> binary:copy(<<"x">>, Size) end,
    denied = subscribe(Pid, {undefined, Filter(85)}),
    denied = subscribe(Pid, {<<"g">>, Filter(85 - byte_size(<<"$share/g/">>))}),
    Fits = Filter(84),
    ok = subscribe(Pid, {undefined, Fits}),
    <<16#82, _, _:16, 2, 11, 1, 0, 84, Fits:84/binary, _>> = packet(Socket),
    Shared = <<"$share/g/", (Filter(75))/binary>>,
    ok = subscribe(Pid, {<<"g">>, Filter(75)}),
    <<16#82, _, _:16, 2, 11, 2, 0, 84, Shared:84/binary, _>> = packet(Socket),
    ok = over(Pid, Socket).

%% The answer to a subscription that is not wanted any more changes nothing.
late_refusal_test() ->
    {Pid, Socket} = connected(<<>>),
    Key = {undefined, <<"a">>},
    ok = subscribe(Pid, Key),
    <<16#82, _, First:16, 2, 11, 1, _/binary>> = packet(Socket),
    ok = unsubscribe_key(Pid, Key),
    <<16#A2, _, Second:16, _/binary>> = packet(Socket),
    ok = subscribe(Pid, Key),
    <<16#82, _, Third:16, 2, 11, 2, _/binary>> = packet(Socket),
    ok = gen_tcp:send(Socket, [
        <<16#90, 4, First:16, 0, 16#87>>,
        <<16#B0, 4, Second:16, 0, 0>>,
        <<16#90, 4, Third:16, 0, 0>>,
        <<16#30, 7, 0, 1, "a", 2, 11, 1, "1">>, <<16#30, 7, 0, 1, "a", 2, 11, 2, "2">>
    ]),
    ?assertMatch(
        [{unsubscribed, Key}, {deliver, [{Key, _, _, _, <<"2">>}]}],
        await(Pid, fun(Event) -> element(1, Event) =:= deliver end, [], deadline())
    ),
    ok = over(Pid, Socket).

%% What a shared filter matches comes for it from the SUBACK on.
joined_test() ->
    {Pid, Socket} = connected(<<>>),
    Keys = [{<<"g">>, <<"a">>}, {<<"g">>, <<"b">>}, {undefined, <<"c">>}],
    Ids = [
        begin
            ok = subscribe(Pid, Key),
            <<16#82, _, Id:16, _/binary>> = packet(Socket),
            Id
        end
     || Key <- Keys
    ],
    ok = gen_tcp:send(Socket, [
        [<<16#90, 4, Id:16, 0, Reason>> || {Id, Reason} <- lists:zip(Ids, [0, 16#87, 0])],
        <<16#30, 7, 0, 1, "a", 2, 11, 1, "1">>
    ]),
    ?assertMatch(
        [{joined, {<<"g">>, <<"a">>}}, {subscribe_rejected, {<<"g">>, <<"b">>}, denied}, {deliver, [_]}],
        await_all(Pid, [])
    ),
    ok = over(Pid, Socket).

await_all(Pid, Acc) ->
    case Acc ++ all_events(Pid) of
        Events = [_, _, _ | _] ->
            Events;
        Events ->
            timer:sleep(1),
            await_all(Pid, Events)
    end.

%% What the broker may have sent by now is asked for, also where this client has sent nothing.
a_barrier_for_all_asks_the_broker_test() ->
    {Pid, Socket} = connected(<<>>),
    now = call(Pid, fun ?DRIVER:barrier_call/1),
    wait = call(Pid, fun(Host) -> ?HOST:barrier(all, Host) end),
    <<16#C0, 0>> = packet(Socket),
    ok = gen_tcp:send(Socket, <<16#D0, 0>>),
    [barrier] = await(Pid, barrier),
    ok = over(Pid, Socket).

%% A barrier waits for the answers that are missing, too.
barrier_test() ->
    {Pid, Socket} = connected(<<>>),
    ok = subscribe(Pid, {undefined, <<"a">>}),
    <<16#82, _, Id:16, _/binary>> = packet(Socket),
    wait = call(Pid, fun ?DRIVER:barrier_call/1),
    <<16#C0, 0>> = packet(Socket),
    ok = gen_tcp:send(Socket, <<16#D0, 0>>),
    timer:sleep(20),
    ?assertEqual([], events(Pid)),
    ok = gen_tcp:send(Socket, <<16#30, 7, 0, 1, "a", 2, 11, 1, "1", 16#90, 4, Id:16, 0, 0>>),
    ?assertMatch([{deliver, [_]}, barrier], await(Pid, barrier)),
    ok = over(Pid, Socket).

%% Something is said and heard within every keepalive interval.
keepalive_test_() ->
    {timeout, 10, fun() ->
        {Pid, Socket} = connected(<<19, 1:16>>),
        [
            begin
                {Microseconds, <<16#C0, 0>>} = timer:tc(fun() -> packet(Socket) end),
                ?assert(Microseconds < 1000000),
                ok = gen_tcp:send(Socket, <<16#D0, 0>>)
            end
         || _ <- [1, 2, 3]
        ],
        ?assertEqual([], events(Pid)),
        %% now the broker is silent
        <<16#C0, 0>> = packet(Socket),
        {Silence, [{close, upstream_lost}]} =
            timer:tc(fun() -> await(Pid, {close, upstream_lost}) end),
        ?assert(Silence < 1500000),
        timer:sleep(700),
        ?assertEqual([], events(Pid)),
        ok = gen_tcp:close(Socket)
    end}.

%% Nobody waits for a broker that does not read: not who publishes, whose input is held up until it
%% reads on, and not who ends.
stuck_upstream_test_() ->
    Payload = binary:copy(<<"x">>, 16777216),
    {timeout, 60, fun() ->
        {Pid, Socket} = connected(<<>>),
        ?assertEqual(now, call(Pid, fun ready_call/1)),
        {Published, ok} = timer:tc(fun() -> publish(Pid, [pub(<<"a">>, Payload)]) end),
        ?assert(Published < 1000000),
        ?assertEqual(wait, call(Pid, fun ready_call/1)),
        ok = read(Socket, byte_size(Payload)),
        [ready] = await(Pid, ready),
        ?assertEqual(now, call(Pid, fun ready_call/1)),

        ok = publish(Pid, [pub(<<"a">>, Payload)]),
        {Ended, ok} = timer:tc(fun() -> stop(Pid) end),
        ?assert(Ended < 1000000),
        ok = gen_tcp:close(Socket)
    end}.

%% A broker that writes before it reads on, as a process for each connection does: much in both
%% directions at once must not end with each waiting for the other.
both_directions_test_() ->
    [
        {atom_to_list(Kind), {timeout, 60, fun() -> both_directions(Kind) end}}
     || Kind <- [tcp, tls]
    ].

-define(BOTH_WAYS, 16 * 1048576).

both_directions(Kind) ->
    {Listen, Port} = listen(),
    Certified = certified(Kind),
    Broker = spawn_link(fun() -> writes_first(accept(Certified, Listen)) end),
    Upstream = (upstream(Port))#{tls := upstream_tls(Kind), connect_timeout := 20000},
    {Pid, Monitor} = spawn_monitor(fun() ->
        {wait, Host} = ?HOST:connect(client(Port, #{upstream => Upstream}, #{})),
        flood(binary:copy(<<"x">>, 10000), ?BOTH_WAYS, until(connected, Host))
    end),
    receive
        {'DOWN', Monitor, process, Pid, Reason} -> ?assertEqual(normal, Reason)
    after 40000 -> error({waiting, process_info(Pid, current_stacktrace)})
    end,
    unlink(Broker),
    exit(Broker, kill),
    ok = gen_tcp:close(Listen).

%% Publishes whenever the host takes it.
flood(_, Left, Host) when Left =< 0 ->
    ok = ?HOST:disconnect(normal, Host);
flood(Payload, Left, Host) ->
    case ?HOST:ready(Host) of
        ok ->
            {ok, [], NHost} =
                ?HOST:publish([pub(<<"a">>, Payload)], #{confirm => false, no_responders => false}, Host),
            flood(Payload, Left - byte_size(Payload), NHost);
        {wait, NHost} ->
            flood(Payload, Left, until(ready, NHost))
    end.

until(Event, Host) ->
    receive
        Message ->
            case ?HOST:handle_info(Message, Host) of
                ignore -> until(Event, Host);
                {[Event], NHost} -> NHost;
                {[{Event, _}], NHost} -> NHost;
                {[], NHost} -> until(Event, NHost)
            end
    after 5000 -> error({missing, Event})
    end.

certified(tcp) ->
    none;
certified(tls) ->
    Own = [{digest, sha256}, {key, {rsa, 2048, 65537}}],
    #{server_config := Config} = public_key:pkix_test_data(#{
        server_chain => #{root => Own, intermediates => [], peer => Own},
        client_chain => #{root => Own, intermediates => [], peer => Own}
    }),
    Config.

accept(none, Listen) ->
    {ok, Socket} = gen_tcp:accept(Listen, ?WAIT),
    {gen_tcp, Socket};
accept(Certified, Listen) ->
    {ok, Socket} = gen_tcp:accept(Listen, ?WAIT),
    {ok, Ssl} = ssl:handshake(Socket, Certified, 20000),
    {ssl, Ssl}.

upstream_tls(tcp) -> none;
upstream_tls(tls) -> [{verify, verify_none}].

%% Four times what it reads, before it reads on.
writes_first({Transport, Socket}) ->
    {ok, _} = Transport:recv(Socket, 0, ?WAIT),
    ok = Transport:send(Socket, <<16#20, 3, 0, 0, 0>>),
    %% to a topic that nobody has subscribed to
    Copy = <<16#30, 16#83, 16#80, 1, 0, 1, "b", 0, (binary:copy(<<"y">>, 16384 - 1))/binary>>,
    writes_first(Transport, Socket, Copy).

writes_first(Transport, Socket, Copy) ->
    case Transport:recv(Socket, 0, 30000) of
        {ok, Bytes} ->
            Copies = 1 + 4 * byte_size(Bytes) div byte_size(Copy),
            _ = Transport:send(Socket, lists:duplicate(Copies, Copy)),
            writes_first(Transport, Socket, Copy);
        {error, _} ->
            ok
    end.

%% If nothing leaves the socket for the time that a write may take, the broker is given up.
dead_upstream_test_() ->
    {timeout, 60, fun() ->
        {Pid, Socket} = connected(<<>>),
        ok = publish(Pid, [pub(<<"a">>, binary:copy(<<"x">>, 16777216))]),
        ?assertEqual(wait, call(Pid, fun ready_call/1)),
        Lost = {close, upstream_lost},
        Deadline = erlang:monotonic_time(millisecond) + 30000,
        ?assertEqual([Lost], await(Pid, fun(Event) -> Event =:= Lost end, [], Deadline)),
        ok = gen_tcp:close(Socket)
    end}.

read(_, Left) when Left =< 0 ->
    ok;
read(Socket, Left) ->
    {ok, Bytes} = gen_tcp:recv(Socket, 0, ?WAIT),
    read(Socket, Left - byte_size(Bytes)).

ready_call(Host) ->
    case ?HOST:ready(Host) of
        ok -> {now, Host};
        {wait, NHost} -> {wait, NHost}
    end.

%% Messages that are not the host's, and those of an earlier connection.
foreign_messages_test() ->
    {Pid, Socket} = connected(<<>>),
    Own = call(Pid, fun(Host) -> {socket(Host), Host} end),
    Ignored = fun(Message) ->
        call(Pid, fun(Host) -> {?HOST:handle_info(Message, Host), Host} end)
    end,
    Messages = [
        hello,
        {tcp, Socket, <<"x">>},
        {tcp_closed, Socket},
        {tcp_passive, Socket},
        {?HOST, make_ref(), timeout},
        {?CLIENT, make_ref(), timeout},
        {?CLIENT, undefined, broken},
        {?CLIENT, {tcp, Socket}, broken}
    ],
    [?assertEqual(ignore, Ignored(Message)) || Message <- Messages],
    ok = gen_tcp:send(Socket, <<16#E0, 0>>),
    [{close, upstream_lost}] = await(Pid, {close, upstream_lost}),
    [
        ?assertEqual(ignore, Ignored(Message))
     || Message <- [{tcp, Own, <<"x">>}, {tcp_closed, Own}, {?CLIENT, {tcp, Own}, broken} | Messages]
    ],
    ok = gen_tcp:close(Socket).

impatient(Port) ->
    Upstream = (upstream(Port))#{connect_timeout => 300},
    client(Port, #{upstream => Upstream}, #{}).

connected(Properties) ->
    {Pid, Socket, _} = fake(fun ?DRIVER:client/1, Properties),
    {Pid, Socket}.

%% A client that is logged in, the broker's socket, and the CONNECT.
fake(Client, Properties) ->
    {Listen, Port} = listen(),
    Pid = spawn_link(fun() -> driver(Client(Port)) end),
    {ok, Socket} = gen_tcp:accept(Listen, ?WAIT),
    ok = gen_tcp:close(Listen),
    Connect = packet(Socket),
    Size = byte_size(Properties),
    ok = gen_tcp:send(Socket, <<16#20, (3 + Size), 0, 0, Size, Properties/binary>>),
    {ok, _} = call(Pid, outcome),
    {Pid, Socket, Connect}.

%% Nothing but the end is left to say.
over(Pid, Socket) ->
    ?assertEqual([], events(Pid)),
    ok = stop(Pid),
    ?assertEqual(<<16#E0, 1, 0>>, packet(Socket)),
    ?assertEqual({error, closed}, gen_tcp:recv(Socket, 0, ?WAIT)),
    gen_tcp:close(Socket).
