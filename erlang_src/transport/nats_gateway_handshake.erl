%% A list of steps leads from accept to the first operation.
%%
%% The connection itself does `info', `peername' and `{websocket, _}'. The other steps wait for the
%% client. Each of them runs in its own process, which owns the socket during the step. So the
%% connection can answer others at any time. When the connection ends, it ends that process.
-module(nats_gateway_handshake).

-export([steps/2]).
-export([start/3]).
-export([stop/1]).

-export_type([step/0, failure/0]).

-type step() ::
    info
    %% who the client is, as far as the socket can tell
    | peername
    %% reads the PROXY header
    | proxy
    %% does the TLS handshake
    | secure
    %% waits for the first byte, for a limited time
    | await_first
    %% checks whether the first byte begins a TLS handshake
    | sniff
    %% reads the HTTP request
    | upgrade
    %% frames follow from here on
    | {websocket, nats_gateway_websocket:agreed()}.

%% The reason, and a detail for the log.
-type failure() :: {
    client_closed
    | handshake_timeout
    | no_proxy_header
    | bad_proxy_header
    | not_tls
    | tls_handshake_failed
    | websocket_refused
    | inet:posix(),
    none | binary()
}.

%% A TLS record that holds a handshake begins with this byte.
-define(TLS_HANDSHAKE, 16#16).

-spec steps(none | nats_gateway_tls:plan(), none | nats_gateway_websocket:settings()) ->
    [step()].
steps(Tls, none) -> steps(Tls);
steps(none, _) -> [upgrade, info];
steps(_, _) -> [secure, upgrade, info].

steps(none) -> [info];
steps(#{mode := handshake_first}) -> [secure, info];
steps(#{mode := auto}) -> [await_first];
steps(#{mode := upgrade} = Plan) -> info_first(Plan).

info_first(#{allow_non_tls := true}) -> [info, sniff];
info_first(#{allow_non_tls := false}) -> [info, secure].

%% Sends `{Pid, {ok, Socket, MoreSteps} | {error, Failure}}' to the caller, which must trap exits.
%% The socket is closed after a failure.
-spec start(Step, nats_gateway_transport:socket(), Settings) ->
    {ok, pid()} | {error, failure()}
when
    Step :: step(),
    Settings ::
        %% for `proxy': how long it may take
        pos_integer() | nats_gateway_tls:plan() | nats_gateway_websocket:settings().
start(Step, Socket, Settings) ->
    Connection = self(),
    Pid = spawn_link(fun() -> wait_for_socket(Step, Socket, Settings, Connection) end),
    case nats_gateway_transport:controlling_process(Socket, Pid) of
        ok ->
            Pid ! {Connection, go},
            {ok, Pid};
        {error, Reason} ->
            stop(Pid),
            {error, failure(Reason)}
    end.

%% Ends the process of a step. Its socket is closed with it.
-spec stop(pid()) -> ok.
stop(Pid) ->
    true = unlink(Pid),
    true = exit(Pid, kill),
    receive
        {'EXIT', Pid, _} -> ok
    after 0 -> ok
    end.

wait_for_socket(Step, Socket, Settings, Connection) ->
    receive
        {Connection, go} -> ok
    end,
    Result =
        case perform(Step, Socket, Settings) of
            {ok, NSocket, Steps} ->
                case nats_gateway_transport:controlling_process(NSocket, Connection) of
                    ok -> {ok, NSocket, Steps};
                    {error, _} -> {error, failure(closed)}
                end;
            {error, Failure} ->
                nats_gateway_transport:linger_close(Socket),
                {error, Failure}
        end,
    true = unlink(Connection),
    Connection ! {self(), Result}.

perform(proxy, Socket, Timeout) ->
    case nats_gateway_transport:from_proxy(Socket, Timeout) of
        {ok, Proxied} -> {ok, Proxied, []};
        {error, timeout} -> {error, {no_proxy_header, <<"within its time">>}};
        {error, Reason} -> {error, failure(Reason)}
    end;
perform(await_first, Socket, Plan = #{handshake_first_wait := Wait}) ->
    case nats_gateway_transport:peek(Socket, Wait) of
        {ok, _} -> {ok, Socket, [secure, info]};
        {error, timeout} -> {ok, Socket, info_first(Plan)};
        {error, Reason} -> {error, failure(Reason)}
    end;
perform(sniff, Socket, #{handshake_timeout := Timeout}) ->
    case nats_gateway_transport:peek(Socket, Timeout) of
        {ok, ?TLS_HANDSHAKE} -> {ok, Socket, [secure]};
        {ok, _} -> {ok, Socket, []};
        %% As in nats-server, this is no error: the client may have nothing to send yet.
        {error, timeout} -> {ok, Socket, []};
        {error, Reason} -> {error, failure(Reason)}
    end;
perform(secure, Socket, #{handshake_timeout := Timeout, key := Key}) ->
    Deadline = erlang:monotonic_time(millisecond) + Timeout,
    %% A client that does not speak TLS is closed without an alert, which it could not read.
    case nats_gateway_transport:peek(Socket, Timeout) of
        {ok, ?TLS_HANDSHAKE} ->
            Left = max(1, Deadline - erlang:monotonic_time(millisecond)),
            case nats_gateway_transport:secure(Socket, nats_gateway_tls:options(Key), Left) of
                {ok, Secured} -> {ok, Secured, []};
                {error, Reason} -> {error, failure(Reason)}
            end;
        {ok, _} ->
            {error, {not_tls, none}};
        {error, Reason} ->
            {error, failure(Reason)}
    end;
perform(upgrade, Socket, Settings = #{handshake_timeout := Timeout}) ->
    Request = nats_gateway_websocket:new(Settings, nats_gateway_transport:is_secured(Socket)),
    upgrade(Socket, Request, erlang:monotonic_time(millisecond) + Timeout).

upgrade(Socket, Request, Deadline) ->
    Left = max(0, Deadline - erlang:monotonic_time(millisecond)),
    case nats_gateway_transport:recv(Socket, Left) of
        {ok, Bytes} ->
            case nats_gateway_websocket:handshake(Bytes, Request) of
                {more, NRequest} ->
                    upgrade(Socket, NRequest, Deadline);
                {upgrade, Response, Agreed} ->
                    case nats_gateway_transport:send(Socket, Response) of
                        ok -> {ok, Socket, [{websocket, Agreed}]};
                        {error, Reason} -> {error, failure(Reason)}
                    end;
                {refuse, Status, Text, Response} ->
                    _ = nats_gateway_transport:send(Socket, Response),
                    Detail = <<(integer_to_binary(Status))/binary, ": ", Text/binary>>,
                    {error, {websocket_refused, Detail}}
            end;
        {error, Reason} ->
            {error, failure(Reason)}
    end.

failure(closed) -> {client_closed, none};
failure(timeout) -> {handshake_timeout, none};
failure(einval) -> {client_closed, none};
failure(econnreset) -> {client_closed, none};
failure({tls_alert, {_, Text}}) -> {tls_handshake_failed, one_line(Text)};
failure(Reason) when is_atom(Reason) -> {Reason, none};
failure(Reason) -> {tls_handshake_failed, one_line(io_lib:format("~0p", [Reason]))}.

one_line(Text) ->
    iolist_to_binary(lists:join($\s, string:lexemes(unicode:characters_to_binary(Text), " \r\n"))).
