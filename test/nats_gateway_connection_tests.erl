%% The process of a client, where it matters what its socket and its timers do. What it says to
%% clients is in test/wire.
-module(nats_gateway_connection_tests).

-behaviour(nats_gateway_host).

-include_lib("eunit/include/eunit.hrl").

-export([connect/1, publish/3, subscribe/3, unsubscribe/2, barrier/2, handle_info/2, disconnect/2]).

-define(WAIT, 10000).

%% -------------------------------------------------------------------------------------------
%% A host that tells the test what it was given

connect(#{config := #{test := Test}}) ->
    {ok, #{mountpoint => <<>>, clientid => <<"c">>}, Test}.

publish(Pubs, _, Test) ->
    Test ! {?MODULE, [element(tuple_size(Pub), Pub) || Pub <- Pubs]},
    {ok, [], Test}.

subscribe(_, _, Test) -> {ok, Test}.
unsubscribe(_, Test) -> Test.
barrier(_, Test) -> {ok, Test}.
handle_info(_, _) -> ignore.
disconnect(_, _) -> ok.

%% -------------------------------------------------------------------------------------------

%% The process, the port that it owns, and the client's.
connected(Options) -> connected(Options, #{}).

connected(Options, Settings) ->
    {ok, Listen} = nats_gateway_transport:listen({{127, 0, 0, 1}, 0}, #{}),
    {tcp, ListenSocket} = Listen,
    {ok, ListenPort} = inet:port(ListenSocket),
    {ok, Client} = gen_tcp:connect({127, 0, 0, 1}, ListenPort, [binary, {active, false}]),
    {ok, Socket = {tcp, Port}} = nats_gateway_transport:accept(Listen),
    ok = gen_tcp:close(ListenSocket),
    Config = maps:merge(nats_gateway_config:defaults(), Settings#{test => self()}),
    ok = persistent_term:put(
        ?MODULE, maps:merge(#{host => ?MODULE, config => Config, listener => test}, Options)
    ),
    {ok, Pid} = nats_gateway_connection:start_link(Socket, ?MODULE),
    true = unlink(Pid),
    ok = nats_gateway_connection:hand_over(Socket, Pid),
    {Pid, Port, Client}.

greeted(Client) ->
    {ok, <<"INFO ", _/binary>>} = gen_tcp:recv(Client, 0, ?WAIT),
    ok = gen_tcp:send(Client, <<"CONNECT {\"verbose\":true}\r\n">>),
    {ok, <<"+OK\r\n">>} = gen_tcp:recv(Client, 0, ?WAIT).

published() ->
    receive
        {?MODULE, Payloads} -> Payloads
    after ?WAIT -> nothing
    end.

ended(Monitor) ->
    receive
        {'DOWN', Monitor, process, _, Reason} -> Reason
    after ?WAIT -> still_there
    end.

%% -------------------------------------------------------------------------------------------
%% A client that is gone: nothing can be sent, while what it sent before is still to come

gone() ->
    {Pid, Port, Client} = connected(#{}),
    greeted(Client),
    %% Its owner is told nothing of it.
    ok = gen_tcp:close(Port),
    ok = gen_tcp:close(Client),
    Pid ! {tcp, Port, <<"PING\r\nPUB a 1\r\n1\r\nPU">>},
    ?assertEqual([<<"1">>], published()),
    {Pid, Port, monitor(process, Pid)}.

a_client_that_is_gone_ends_with_its_input_test() ->
    {Pid, Port, Monitor} = gone(),
    Pid ! {tcp, Port, <<"B a 1\r\n2\r\nPING\r\n">>},
    ?assertEqual([<<"2">>], published()),
    Pid ! {tcp_closed, Port},
    ?assertEqual({shutdown, client_closed}, ended(Monitor)).

%% Nobody is there who would send on.
a_client_that_is_gone_ends_when_more_input_is_asked_for_test() ->
    {Pid, Port, Monitor} = gone(),
    Pid ! {tcp_passive, Port},
    ?assertEqual({shutdown, client_closed}, ended(Monitor)).

a_client_that_is_gone_ends_anyway_test_() ->
    {timeout, 30, fun() ->
        {_, _, Monitor} = gone(),
        ?assertEqual({shutdown, client_closed}, ended(Monitor))
    end}.

%% -------------------------------------------------------------------------------------------
%% The memory of compression

%% Again and again, for a host that wants no reports, and long after the time for a CONNECT.
streams_are_closed_when_there_is_no_traffic_test_() ->
    {timeout, 60, fun() ->
        Settings = #{compress => true, max_frame_size => infinity, handshake_timeout => ?WAIT},
        {Pid, _, Client} = connected(#{websocket => Settings}, #{idle_timeout => 500}),
        1 = erlang:trace(Pid, true, [call]),
        _ = [erlang:trace_pattern({zlib, F, '_'}, true, []) || F <- [open, close]],
        ok = gen_tcp:send(Client, [
            <<"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n">>,
            <<"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n">>,
            <<"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n">>
        ]),
        %% INFO is compressed.
        ?assertEqual([open], zlib(1)),
        ok = gen_tcp:send(Client, deflated(<<"CONNECT {\"verbose\":false}\r\n">>)),
        ?assertEqual([open, close, close], zlib(3)),
        ok = gen_tcp:send(Client, deflated(<<"PUB a 1\r\n1\r\n">>)),
        ?assertEqual([<<"1">>], published()),
        ?assertEqual([open, close], zlib(2)),
        _ = [erlang:trace_pattern({zlib, F, '_'}, false, []) || F <- [open, close]],
        Monitor = monitor(process, Pid),
        ok = gen_tcp:close(Client),
        ?assertEqual({shutdown, client_closed}, ended(Monitor))
    end}.

zlib(0) ->
    [];
zlib(Count) ->
    receive
        {trace, _, call, {zlib, Function, _}} -> [Function | zlib(Count - 1)]
    after ?WAIT -> [nothing]
    end.

deflated(Data) ->
    Z = zlib:open(),
    ok = zlib:deflateInit(Z, default, deflated, -15, 8, default),
    Flushed = iolist_to_binary(zlib:deflate(Z, Data, sync)),
    ok = zlib:close(Z),
    Size = byte_size(Flushed) - 4,
    [<<16#C2, 1:1, Size:7, 0:32>>, binary:part(Flushed, 0, Size)].
