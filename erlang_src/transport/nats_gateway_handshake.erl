%% What comes between accept and the first operation: a list of steps.
%%
%% `info', `peername' and `{websocket, _}' are steps of the connection itself. The others wait for
%% the client, each in a process of its own that owns the socket meanwhile: the connection answers
%% to everybody else, and takes the step's process with it when it ends.
-module(nats_gateway_handshake).

-export([steps/2]).
-export([start/3]).
-export([stop/1]).

-export_type([step/0, failure/0]).

-type step() ::
    info
    %% who the client is, as far as the socket can tell
    | peername
    %% the PROXY header
    | proxy
    %% TLS
    | secure
    %% whether the first byte comes in time
    | await_first
    %% whether the first byte is that of a TLS handshake
    | sniff
    %% the HTTP request
    | upgrade
    %% frames from here on
    | {websocket, nats_gateway_websocket:agreed()}.

%% The reason, and more of it for the log.
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

%% The first byte of a TLS record that holds a handshake.
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

%% The caller is sent `{Pid, {ok, Socket, MoreSteps} | {error, Failure}}'; it must trap exits.
%% After a failure the socket is closed.
-spec start(Step, nats_gateway_transport:socket(), Settings) ->
    {ok, pid()} | {error, failure()}
when
    Step :: step(),
    Settings ::
        %% of `proxy': how long it may take
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

%% With its socket.
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
        %% as nats-server: it may be somebody who has nothing to say
        {error, timeout} -> {ok, Socket, []};
        {error, Reason} -> {error, failure(Reason)}
    end;
perform(secure, Socket, #{handshake_timeout := Timeout, key := Key}) ->
    Deadline = erlang:monotonic_time(millisecond) + Timeout,
    %% Who does not speak TLS is not told so in TLS.
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
