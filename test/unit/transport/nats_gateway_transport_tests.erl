-module(nats_gateway_transport_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_transport, [send/2, pending/1, abort/1]).

%% More than the buffers of both sides of a connection hold.
-define(BYTES, 50000000).

%% A socket of the gateway's, and the client's.
connected() ->
    {ok, Listen} = nats_gateway_transport:listen({{127, 0, 0, 1}, 0}, #{}),
    {tcp, ListenSocket} = Listen,
    {ok, Port} = inet:port(ListenSocket),
    {ok, Client} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}]),
    {ok, Socket} = nats_gateway_transport:accept(Listen),
    ok = gen_tcp:close(ListenSocket),
    {Socket, Client}.

milliseconds(Fun) ->
    {Micros, _} = timer:tc(Fun),
    Micros div 1000.

%% What a reader gets until the connection ends.
read(Client) -> read(Client, 0).

read(Client, Bytes) ->
    case gen_tcp:recv(Client, 0, 10000) of
        {ok, Data} -> read(Client, Bytes + byte_size(Data));
        {error, Reason} -> {Bytes, Reason}
    end.

a_send_never_waits_for_the_client_test() ->
    {Socket, Client} = connected(),
    ?assertMatch({ok, 0, _}, pending(Socket)),
    ?assert(milliseconds(fun() -> ok = send(Socket, binary:copy(<<0>>, ?BYTES)) end) < 5000),
    {ok, Pending, Gone} = pending(Socket),
    ?assertEqual(?BYTES, Pending + Gone),
    ?assert(Pending > ?BYTES div 2),
    ok = abort(Socket),
    ok = gen_tcp:close(Client).

a_client_that_does_not_read_does_not_hold_up_a_close_test_() ->
    [
        {timeout, 30, fun() ->
            {Socket, Client} = connected(),
            ok = send(Socket, binary:copy(<<0>>, ?BYTES)),
            %% The driver's own close would wait for three minutes.
            Took = milliseconds(fun() -> ok = Close(Socket) end),
            ?assert(Took < Longest),
            {Bytes, _} = read(Client),
            ?assert(Bytes < ?BYTES),
            ok = gen_tcp:close(Client)
        end}
     || {Close, Longest} <- [
            {fun nats_gateway_transport:close/1, 4500},
            {fun nats_gateway_transport:linger_close/1, 4500},
            {fun nats_gateway_transport:abort/1, 1000}
        ]
    ].

%% The end of what a client has sent is behind all of it. The kernel takes no more than it has room for.
the_end_is_seen_behind_what_is_not_read_test_() ->
    case os:type() of
        {unix, linux} ->
            {timeout, 30, fun() ->
                {Socket = {tcp, Port}, Client} = connected(),
                Chunk = binary:copy(<<0>>, 65536),
                Sender = spawn(fun() ->
                    receive
                        go -> ok
                    end,
                    ok = gen_tcp:send(Client, binary:copy(Chunk, 40)),
                    ok = gen_tcp:close(Client)
                end),
                ok = gen_tcp:controlling_process(Client, Sender),
                Sender ! go,
                timer:sleep(500),
                ?assertNot(nats_gateway_transport:has_left(Socket)),
                ok = nats_gateway_transport:widen(Socket),
                {ok, _} = gen_tcp:recv(Port, 1, 1000),
                ok = wait_until(fun() -> nats_gateway_transport:has_left(Socket) end),
                %% A single byte is still told of.
                {ok, _} = gen_tcp:recv(Port, 40 * 65536 - 2, 5000),
                ok = nats_gateway_transport:activate(1, Socket),
                receive
                    {tcp, Port, <<0>>} -> ok
                after 1000 -> ?assert(false)
                end,
                ok = abort(Socket)
            end};
        _ ->
            []
    end.

a_wide_socket_tells_of_a_byte_test() ->
    {Socket = {tcp, Port}, Client} = connected(),
    ok = nats_gateway_transport:widen(Socket),
    ok = nats_gateway_transport:activate(1, Socket),
    ok = gen_tcp:send(Client, <<1>>),
    receive
        {tcp, Port, <<1>>} -> ok
    after 5000 -> ?assert(false)
    end,
    ok = abort(Socket),
    ok = gen_tcp:close(Client).

wait_until(Fun) -> wait_until(Fun, 500).

wait_until(Fun, Times) when Times > 0 ->
    case Fun() of
        true ->
            ok;
        false ->
            timer:sleep(10),
            wait_until(Fun, Times - 1)
    end.

%% OTP's own close of TLS waits for 5 s since OTP 27.
a_client_that_does_not_read_does_not_hold_up_an_abort_of_tls_test_() ->
    {timeout, 30, fun() ->
        {ok, _} = application:ensure_all_started(ssl),
        Key = [{key, {namedCurve, secp256r1}}, {digest, sha256}],
        Chain = #{root => Key, intermediates => [], peer => Key},
        #{server_config := Options} = public_key:pkix_test_data(#{
            server_chain => Chain, client_chain => Chain
        }),
        {Socket, Client} = connected(),
        Peer = spawn_link(fun() ->
            receive
                go -> ok
            end,
            {ok, _} = ssl:connect(Client, [{verify, verify_none}, {active, false}]),
            timer:sleep(infinity)
        end),
        ok = gen_tcp:controlling_process(Client, Peer),
        Peer ! go,
        {ok, Secured = {ssl, _, {tcp, Port}}} = nats_gateway_transport:secure(Socket, Options, 10000),
        {connected, Tls} = erlang:port_info(Port, connected),
        Monitor = monitor(process, Tls),
        ok = send(Secured, binary:copy(<<0>>, ?BYTES)),
        Owner = spawn(fun() ->
            receive
                go -> ok
            end
        end),
        ok = nats_gateway_transport:controlling_process(Secured, Owner),
        ?assert(milliseconds(fun() -> ok = abort(Secured) end) < 1000),
        %% Its processes end with that of the client.
        Owner ! go,
        receive
            {'DOWN', Monitor, process, Tls, _} -> ok
        after 5000 -> ?assert(false)
        end,
        true = unlink(Peer),
        exit(Peer, kill)
    end}.

what_was_sent_before_a_close_arrives_test_() ->
    [
        {timeout, 30, fun() ->
            {Socket, Client} = connected(),
            ok = send(Socket, binary:copy(<<0>>, ?BYTES)),
            Test = self(),
            Reader = spawn_link(fun() ->
                receive
                    go -> Test ! {self(), read(Client)}
                end
            end),
            ok = gen_tcp:controlling_process(Client, Reader),
            Reader ! go,
            ok = Close(Socket),
            receive
                {Reader, Read} -> ?assertEqual({?BYTES, closed}, Read)
            end
        end}
     || Close <- [fun nats_gateway_transport:close/1, fun nats_gateway_transport:linger_close/1]
    ].

%% A broker whose name has addresses of one kind only, and addresses as they are written in a URL.
brokers_of_either_family_test_() ->
    {setup,
        fun() ->
            Lookup = inet_db:res_option(lookup),
            ok = inet_db:add_host({0, 0, 0, 0, 0, 0, 0, 1}, ["only-v6.test"]),
            ok = inet_db:add_host({127, 0, 0, 1}, ["only-v4.test"]),
            ok = inet_db:set_lookup([file]),
            Lookup
        end,
        fun(Lookup) ->
            ok = inet_db:set_lookup(Lookup),
            ok = inet_db:del_host({0, 0, 0, 0, 0, 0, 0, 1}),
            ok = inet_db:del_host({127, 0, 0, 1})
        end,
        [
            ?_assertEqual(ok, reached({0, 0, 0, 0, 0, 0, 0, 1}, "only-v6.test")),
            ?_assertEqual(ok, reached({0, 0, 0, 0, 0, 0, 0, 1}, "::1")),
            ?_assertEqual(ok, reached({127, 0, 0, 1}, "only-v4.test")),
            ?_assertEqual(ok, reached({127, 0, 0, 1}, "127.0.0.1")),
            ?_assertEqual(ok, reached({127, 0, 0, 1}, {127, 0, 0, 1})),
            ?_assertEqual({error, nxdomain}, reached({127, 0, 0, 1}, "none.test")),
            ?_assertEqual({error, econnrefused}, reached(nobody, "only-v4.test")),
            ?_assertEqual({error, econnrefused}, reached(nobody, "only-v6.test"))
        ]}.

reached(Listening, Name) ->
    Address =
        case Listening of
            nobody -> {127, 0, 0, 1};
            _ -> Listening
        end,
    {ok, Listen = {tcp, ListenSocket}} = nats_gateway_transport:listen({Address, 0}, #{}),
    {ok, Port} = inet:port(ListenSocket),
    Listening =/= nobody orelse gen_tcp:close(ListenSocket),
    case nats_gateway_transport:connect({Name, Port}, none, 5000) of
        {ok, Socket} ->
            {ok, Accepted} = nats_gateway_transport:accept(Listen),
            [ok = abort(S) || S <- [Socket, Accepted]],
            gen_tcp:close(ListenSocket);
        Error ->
            Error
    end.
