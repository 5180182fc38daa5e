%% The byte streams a client may come over. A socket is tagged with its transport.
-module(nats_gateway_transport).

-export([listen/2]).
-export([accept/1]).
-export([from_esockd/1]).
-export([controlling_process/2]).
-export([peek/2]).
-export([secure/3]).
-export([is_secured/1]).
-export([peercert/1]).
-export([activate/1]).
-export([classify/2]).
-export([send/2]).
-export([peername/1]).
-export([sockname/1]).
-export([getstat/1]).
-export([linger_close/1]).
-export([close/1]).

-ignore_xref([{esockd_transport, wait, 1}, {esockd_transport, peername, 1}]).
-ignore_xref([{esockd_transport, sockname, 1}, {esockd_transport, peercert, 1}]).

-export_type([listen_socket/0, socket/0]).

-opaque listen_socket() :: {tcp, gen_tcp:socket()}.
-opaque socket() ::
    {tcp, gen_tcp:socket()}
    %% behind a proxy: the bytes come over the port, the client's address is known to esockd
    | {proxied, gen_tcp:socket(), Wrapper :: tuple()}
    %% over the one it was before
    | {ssl, ssl:sslsocket(), Under :: socket()}.

%% The default of 1460 bytes caps every chunk at one segment: nothing to batch (design section 5).
-define(READ_BUFFER, 65536).
%% Chunks in the mailbox before the socket waits to be activated again.
-define(ACTIVE_N, 32).
%% What a closing socket still reads, so that unread input does not turn the close into a reset
%% that takes a last -ERR with it.
-define(LINGER_MS, 500).

-spec listen({inet:ip_address(), inet:port_number()}, #{backlog => pos_integer()}) ->
    {ok, listen_socket()} | {error, inet:posix()}.
listen({Address, Port}, Options) ->
    Result = gen_tcp:listen(Port, [
        binary,
        {ip, Address},
        {packet, raw},
        {active, false},
        {reuseaddr, true},
        {nodelay, true},
        {backlog, maps:get(backlog, Options, 1024)},
        {buffer, ?READ_BUFFER},
        %% After the client's FIN its last requests are still answered.
        {exit_on_close, false},
        {send_timeout, maps:get(send_timeout, Options, 10000)},
        {send_timeout_close, true}
        | family(Address)
    ]),
    case Result of
        {ok, Socket} -> {ok, {tcp, Socket}};
        {error, Reason} -> {error, Reason}
    end.

family(Address) when tuple_size(Address) =:= 8 -> [inet6];
family(_) -> [inet].

-spec accept(listen_socket()) -> {ok, socket()} | {error, closed | inet:posix()}.
accept({tcp, ListenSocket}) ->
    case gen_tcp:accept(ListenSocket) of
        {ok, Socket} -> {ok, {tcp, Socket}};
        {error, Reason} -> {error, Reason}
    end.

%% A socket that EMQX's acceptor made: its message is waited for, then what it says is to be done
%% first (reading the PROXY header).
-spec from_esockd(gen_tcp:socket()) -> {ok, socket()} | {error, term()}.
from_esockd(Port) ->
    case esockd_transport:wait(Port) of
        {ok, Port} -> {ok, {tcp, Port}};
        {ok, Wrapper} -> {ok, {proxied, Port, Wrapper}};
        {error, Reason} -> {error, Reason}
    end.

-spec controlling_process(socket(), pid()) -> ok | {error, term()}.
controlling_process({ssl, Ssl, _}, Pid) -> ssl:controlling_process(Ssl, Pid);
controlling_process(Socket, Pid) -> gen_tcp:controlling_process(port(Socket), Pid).

%% The first byte of what is to be read, which stays there. For a socket that is not active.
-spec peek(socket(), timeout()) -> {ok, byte()} | {error, timeout | closed | inet:posix()}.
peek(Socket, Timeout) ->
    Port = port(Socket),
    case gen_tcp:recv(Port, 1, Timeout) of
        {ok, <<Byte>>} ->
            case gen_tcp:unrecv(Port, <<Byte>>) of
                ok -> {ok, Byte};
                {error, Reason} -> {error, Reason}
            end;
        {error, Reason} ->
            {error, Reason}
    end.

%% The server's side of a TLS handshake. A socket for which it fails is closed.
-spec secure(socket(), [ssl:tls_server_option()], timeout()) ->
    {ok, socket()} | {error, timeout | closed | {tls_alert, term()} | term()}.
secure(Socket, Options, Timeout) ->
    Port = port(Socket),
    %% OTP's TLS waits for ever for the end of a port that outlives the client's FIN.
    _ = inet:setopts(Port, [{exit_on_close, true}]),
    case ssl:handshake(Port, Options, Timeout) of
        {ok, Ssl} ->
            forget_handshake(Port),
            {ok, {ssl, Ssl, Socket}};
        {error, Reason} ->
            {error, Reason}
    end.

%% What a handshake leaves behind is several times what the connection needs from now on; the
%% supervisor that OTP gives each connection would keep its share for ever.
forget_handshake(Port) ->
    case erlang:port_info(Port, connected) of
        {connected, Pid} ->
            lists:foreach(fun erlang:garbage_collect/1, [Pid | linked(Pid)]);
        undefined ->
            ok
    end.

linked(Pid) ->
    case erlang:process_info(Pid, links) of
        {links, Links} -> lists:filter(fun is_pid/1, Links);
        undefined -> []
    end.

-spec is_secured(socket()) -> boolean().
is_secured(Socket) -> element(1, Socket) =:= ssl.

%% The certificate that the client has shown, in DER, or what a proxy tells of it.
-spec peercert(socket()) -> nossl | nats_gateway_certificate:peercert().
peercert({ssl, Ssl, _}) ->
    case ssl:peercert(Ssl) of
        {ok, Der} -> Der;
        {error, _} -> undefined
    end;
peercert({proxied, _, Wrapper}) ->
    case esockd_transport:peercert(Wrapper) of
        [] -> nossl;
        Fields -> Fields
    end;
peercert({tcp, _}) ->
    nossl.

%% The next chunks come as messages; `passive' tells when to activate again.
-spec activate(socket()) -> ok | {error, term()}.
activate({ssl, Ssl, _}) -> ssl:setopts(Ssl, [{active, ?ACTIVE_N}]);
activate(Socket) -> inet:setopts(port(Socket), [{active, ?ACTIVE_N}]).

-spec classify(Message :: term(), socket()) ->
    {data, binary()} | passive | closed | {error, term()} | other.
classify({tcp, Socket, Data}, {tcp, Socket}) -> {data, Data};
classify({tcp_passive, Socket}, {tcp, Socket}) -> passive;
classify({tcp_closed, Socket}, {tcp, Socket}) -> closed;
classify({tcp_error, Socket, Reason}, {tcp, Socket}) -> {error, Reason};
classify({ssl, Ssl, Data}, {ssl, Ssl, _}) -> {data, Data};
classify({ssl_passive, Ssl}, {ssl, Ssl, _}) -> passive;
classify({ssl_closed, Ssl}, {ssl, Ssl, _}) -> closed;
classify({ssl_error, Ssl, Reason}, {ssl, Ssl, _}) -> {error, tls_reason(Reason)};
classify(Message, {proxied, Socket, _}) -> classify(Message, {tcp, Socket});
classify(_, _) -> other.

-spec send(socket(), iodata()) -> ok | {error, timeout | closed | tls_alert | inet:posix()}.
send({ssl, Ssl, _}, Data) ->
    case ssl:send(Ssl, Data) of
        ok -> ok;
        {error, Reason} -> {error, tls_reason(Reason)}
    end;
send(Socket, Data) ->
    gen_tcp:send(port(Socket), Data).

tls_reason({tls_alert, _}) -> tls_alert;
tls_reason(Reason) when is_atom(Reason) -> Reason;
tls_reason(_) -> tls_error.

-spec peername(socket()) -> {ok, {inet:ip_address(), inet:port_number()}} | {error, term()}.
peername({tcp, Socket}) -> inet:peername(Socket);
peername({proxied, _, Wrapper}) -> esockd_transport:peername(Wrapper);
peername({ssl, _, Under}) -> peername(Under).

-spec sockname(socket()) -> {ok, {inet:ip_address(), inet:port_number()}} | {error, term()}.
sockname({tcp, Socket}) -> inet:sockname(Socket);
sockname({proxied, _, Wrapper}) -> esockd_transport:sockname(Wrapper);
sockname({ssl, _, Under}) -> sockname(Under).

%% What went over the network, with TLS's own share.
-spec getstat(socket()) -> {ok, #{octets_received | octets_sent => integer()}} | {error, term()}.
getstat(Socket) ->
    case inet:getstat(port(Socket), [recv_oct, send_oct]) of
        {ok, Stat} ->
            {ok, #{
                octets_received => proplists:get_value(recv_oct, Stat),
                octets_sent => proplists:get_value(send_oct, Stat)
            }};
        {error, Reason} ->
            {error, Reason}
    end.

-spec linger_close(socket()) -> ok.
linger_close(Socket) ->
    _ = shutdown_write(Socket),
    _ = deactivate(Socket),
    discard(Socket, erlang:monotonic_time(millisecond) + ?LINGER_MS),
    close(Socket).

shutdown_write({ssl, Ssl, _}) -> ssl:shutdown(Ssl, write);
shutdown_write(Socket) -> gen_tcp:shutdown(port(Socket), write).

deactivate({ssl, Ssl, _}) -> ssl:setopts(Ssl, [{active, false}]);
deactivate(Socket) -> inet:setopts(port(Socket), [{active, false}]).

discard(Socket, Deadline) ->
    case max(0, Deadline - erlang:monotonic_time(millisecond)) of
        0 ->
            ok;
        Left ->
            case recv(Socket, Left) of
                {ok, _} -> discard(Socket, Deadline);
                {error, _} -> ok
            end
    end.

recv({ssl, Ssl, _}, Timeout) -> ssl:recv(Ssl, 0, Timeout);
recv(Socket, Timeout) -> gen_tcp:recv(port(Socket), 0, Timeout).

-spec close(socket()) -> ok.
close({ssl, Ssl, _}) ->
    _ = ssl:close(Ssl),
    ok;
close(Socket) ->
    gen_tcp:close(port(Socket)).

%% What the bytes go over.
port({tcp, Port}) -> Port;
port({proxied, Port, _}) -> Port;
port({ssl, _, Under}) -> port(Under).
