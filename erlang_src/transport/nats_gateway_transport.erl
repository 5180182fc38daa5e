%% The byte streams of the clients, and the stream from the standalone gateway to its broker. A
%% socket is tagged with its transport.
-module(nats_gateway_transport).

-export([listen/2]).
-export([accept/1]).
-export([connect/3]).
-export([from_esockd/1]).
-export([from_ranch/1]).
-export([from_proxy/2]).
-export([controlling_process/2]).
-export([peek/2]).
-export([secure/3]).
-export([is_secured/1]).
-export([peercert/1]).
-export([tls/1]).
-export([recv/2]).
-export([activate/1]).
-export([activate/2]).
-export([replenish/2]).
-export([max_active_n/0]).
-export([max_chunk/0]).
-export([keep_alive/2]).
-export([has_left/1]).
-export([widen/1]).
-export([deactivate/1]).
-export([classify/2]).
-export([acknowledge/1]).
-export([send/2]).
-export([pending/1]).
-export([taken/1]).
-export([split/2]).
-export([peername/1]).
-export([sockname/1]).
-export([getstat/1]).
-export([linger_close/1]).
-export([linger_close/2]).
-export([close/1]).
-export([abort/1]).

-export_type([listen_socket/0, socket/0, tls/0]).

-opaque listen_socket() :: {tcp, gen_tcp:socket()}.
-opaque socket() ::
    {tcp, gen_tcp:socket()}
    %% behind a proxy: the bytes go over the port, and the client is the one that the proxy has
    %% named
    | {proxied, gen_tcp:socket(), nats_gateway_proxy:client()}
    %% TLS over a socket of another kind
    | {ssl, ssl:sslsocket(), Under :: socket()}.

%% What was agreed: "1.3" for example, and the cipher suite by the name that IANA has for it.
-type tls() :: #{version := binary(), cipher_suite := binary()}.

%% With the default of 1460 bytes, every chunk would be one segment, and nothing could be batched.
-define(READ_BUFFER, 65536).
%% The socket sends this many chunks to the mailbox before it has to be activated again.
-define(ACTIVE_N, 32).
%% How long a closing socket still reads. Unread input would turn the close into a reset, and the
%% client would lose a last -ERR.
-define(LINGER_MS, 500).
%% A close waits for bytes that are still to be sent, as long as some of them leave within
%% LINGER_MS. It waits at most this long, which is less than the time that supervisors allow.
-define(FLUSH_MS, 4000).
-define(FLUSH_POLL_MS, 10).
%% The values of Linux.
-define(IPPROTO_TCP, 6).
-define(TCP_QUICKACK, 12).
-define(TCP_INFO, 11).
-define(TCP_KEEPIDLE, 4).
-define(TCP_KEEPINTVL, 5).
-define(TCP_KEEPCNT, 6).
-define(TCP_ESTABLISHED, 1).
-define(SOL_SOCKET, 1).
-define(SO_RCVLOWAT, 18).
%% The most that Linux keeps for a sender before it has sent it (tcp_wmem).
-define(WIDE, 4194304).
%% A send would wait if this many bytes were in the socket's queue. It is the largest number that
%% the driver takes. The connection limits what waits, and must never wait itself.
-define(WATERMARK, 16#7FFFFFFF).

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
        %% A client that has sent FIN still gets the answers to its last requests.
        {exit_on_close, false},
        {high_watermark, ?WATERMARK}
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

%% Connects to a broker. As with clients, a send never waits: `pending/1' tells what the broker has
%% not taken yet.
-spec connect(
    {inet:hostname() | inet:ip_address(), inet:port_number()},
    none | [ssl:tls_client_option()],
    timeout()
) -> {ok, socket()} | {error, timeout | inet:posix() | {tls_alert, term()} | {options, term()}}.
connect({Address, Port}, Tls, Timeout) ->
    Deadline = erlang:monotonic_time(millisecond) + Timeout,
    Options = [
        binary,
        {packet, raw},
        {active, false},
        {nodelay, true},
        {keepalive, true},
        {buffer, ?READ_BUFFER},
        {high_watermark, ?WATERMARK}
    ],
    case connect(Address, Port, Options, Deadline, families(Address)) of
        {ok, Socket} when Tls =:= none ->
            {ok, {tcp, Socket}};
        {ok, Socket} ->
            case ssl:connect(Socket, Tls, left(Deadline)) of
                {ok, Ssl} ->
                    {ok, {ssl, Ssl, {tcp, Socket}}};
                {error, Reason} ->
                    gen_tcp:close(Socket),
                    {error, Reason}
            end;
        {error, Reason} ->
            {error, Reason}
    end.

%% A name may have addresses of both kinds or of one. The reason of a failure belongs to a kind that
%% the name has, mostly to the first one.
families(Address) when tuple_size(Address) =:= 8 -> [inet6];
families(Address) when tuple_size(Address) =:= 4 -> [inet];
families(Name) ->
    case inet:parse_strict_address(Name) of
        {ok, Address} -> families(Address);
        {error, _} -> [inet, inet6]
    end.

connect(Address, Port, Options, Deadline, [Family]) ->
    gen_tcp:connect(Address, Port, [Family | Options], left(Deadline));
connect(Address, Port, Options, Deadline, [Family | Families]) ->
    case gen_tcp:connect(Address, Port, [Family | Options], left(Deadline)) of
        {ok, Socket} ->
            {ok, Socket};
        {error, Reason} ->
            case connect(Address, Port, Options, Deadline, Families) of
                {error, nxdomain} -> {error, Reason};
                Result -> Result
            end
    end.

left(Deadline) -> max(1, Deadline - erlang:monotonic_time(millisecond)).

%% Takes over a socket from esockd's acceptor, after the acceptor's message has come.
-spec from_esockd(gen_tcp:socket()) -> {ok, socket()}.
from_esockd(Port) ->
    {ok, Port} = esockd_transport:wait(Port),
    {ok, {tcp, Port}}.

%% Takes over a socket from ranch.
-spec from_ranch(atom()) -> {ok, socket()}.
from_ranch(Ref) ->
    {ok, Port} = ranch:handshake(Ref),
    {ok, {tcp, Port}}.

%% Reads the PROXY header at the beginning of a socket, which must not be active. The bytes behind
%% the header stay in the socket.
-spec from_proxy(socket(), timeout()) ->
    {ok, socket()}
    | {error, timeout | closed | inet:posix() | no_proxy_header | bad_proxy_header}.
from_proxy({tcp, Port}, Timeout) ->
    from_proxy(Port, <<>>, erlang:monotonic_time(millisecond) + Timeout).

from_proxy(Port, Bytes, Deadline) ->
    Left = max(0, Deadline - erlang:monotonic_time(millisecond)),
    case gen_tcp:recv(Port, 0, Left) of
        {ok, More} ->
            All = <<Bytes/binary, More/binary>>,
            case nats_gateway_proxy:parse(All) of
                more -> from_proxy(Port, All, Deadline);
                {ok, Client, Rest} -> proxied(Client, Port, unrecv(Port, Rest));
                {error, Reason} -> {error, Reason}
            end;
        {error, Reason} ->
            {error, Reason}
    end.

proxied(nobody, Port, ok) -> {ok, {tcp, Port}};
proxied(Client, Port, ok) -> {ok, {proxied, Port, Client}};
proxied(_, _, {error, Reason}) -> {error, Reason}.

%% The driver would take an empty binary for the end of the input.
unrecv(_, <<>>) -> ok;
unrecv(Port, Bytes) -> gen_tcp:unrecv(Port, Bytes).

-spec controlling_process(socket(), pid()) -> ok | {error, term()}.
controlling_process({ssl, Ssl, _}, Pid) -> ssl:controlling_process(Ssl, Pid);
controlling_process(Socket, Pid) -> gen_tcp:controlling_process(port(Socket), Pid).

%% The first byte of the input, which stays in the socket. The socket must not be active.
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

%% Does the server's side of a TLS handshake. The socket is closed if it fails.
-spec secure(socket(), [ssl:tls_server_option()], timeout()) ->
    {ok, socket()} | {error, timeout | closed | {tls_alert, term()} | term()}.
secure(Socket, Options, Timeout) ->
    Port = port(Socket),
    %% Otherwise OTP's TLS would wait for ever for the end of a port that outlives the client's FIN.
    _ = inet:setopts(Port, [{exit_on_close, true}]),
    case ssl:handshake(Port, Options, Timeout) of
        {ok, Ssl} ->
            forget_handshake(Port),
            {ok, {ssl, Ssl, Socket}};
        {error, Reason} ->
            {error, Reason}
    end.

%% A handshake leaves behind several times the memory that the connection needs from now on. OTP
%% gives each connection a supervisor, which would keep its share for ever.
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
is_secured({ssl, _, _}) -> true;
is_secured(_) -> false.

%% The client's certificate in DER, or what a proxy says about it.
-spec peercert(socket()) -> nossl | nats_gateway_certificate:peercert().
peercert({ssl, Ssl, _}) ->
    case ssl:peercert(Ssl) of
        {ok, Der} -> Der;
        {error, _} -> undefined
    end;
peercert({proxied, _, #{peercert := Peercert}}) ->
    Peercert;
peercert({tcp, _}) ->
    nossl.

-spec tls(socket()) -> {ok, tls()} | none.
tls({ssl, Ssl, _}) ->
    case ssl:connection_information(Ssl, [protocol, selected_cipher_suite]) of
        {ok, [{protocol, Protocol}, {selected_cipher_suite, Suite}]} ->
            <<"tlsv", Version/binary>> = atom_to_binary(Protocol),
            {ok, #{version => Version, cipher_suite => list_to_binary(ssl:suite_to_str(Suite))}};
        _ ->
            none
    end;
tls(_) ->
    none.

%% The next chunks come as messages; `passive' tells when to activate again.
-spec activate(socket()) -> ok | {error, term()}.
activate(Socket) -> activate(?ACTIVE_N, Socket).

%% The same with another number of chunks.
-spec activate(pos_integer(), socket()) -> ok | {error, term()}.
activate(Count, {ssl, Ssl, _}) -> ssl:setopts(Ssl, [{active, Count}]);
activate(Count, Socket) -> inet:setopts(port(Socket), [{active, Count}]).

%% Lets a socket that is active send so many chunks more. A socket that becomes passive leaves the
%% poll set of the schedulers, and for its next ten chunks or so a thread more has to wake up. With TLS
%% another process reads the socket.
-spec replenish(pos_integer(), socket()) -> ok | has_no_use | {error, inet:posix()}.
replenish(_, {ssl, _, _}) -> has_no_use;
replenish(Count, Socket) -> inet:setopts(port(Socket), [{active, Count}]).

%% Messages in the mailbox have already been read from the socket, and nothing else limits their
%% number.
-spec max_active_n() -> pos_integer().
max_active_n() -> ?ACTIVE_N.

%% The most bytes that a message of an active TCP socket has.
-spec max_chunk() -> pos_integer().
max_chunk() -> ?READ_BUFFER.

%% The kernel probes a peer that has been silent for `Idle' seconds, and again every `Interval'
%% seconds, until `Count' probes had no answer. On other systems than Linux, the system's own
%% numbers hold.
-spec keep_alive(socket(), {Idle :: pos_integer(), Interval :: pos_integer(), Count :: pos_integer()}) ->
    ok | {error, inet:posix()}.
keep_alive(Socket, {Idle, Interval, Count}) ->
    Numbers =
        case os:type() of
            {unix, linux} ->
                [
                    {raw, ?IPPROTO_TCP, Option, <<Value:32/native>>}
                 || {Option, Value} <- [
                        {?TCP_KEEPIDLE, Idle}, {?TCP_KEEPINTVL, Interval}, {?TCP_KEEPCNT, Count}
                    ]
                ];
            _ ->
                []
        end,
    inet:setopts(port(Socket), [{keepalive, true} | Numbers]).

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

%% Whether the other side has ended the connection, even if its last bytes are not read yet. Only
%% Linux can tell; other systems return `false'.
-spec has_left(socket()) -> boolean().
has_left(Socket) ->
    os:type() =:= {unix, linux} andalso
        case inet:getopts(port(Socket), [{raw, ?IPPROTO_TCP, ?TCP_INFO, 1}]) of
            {ok, [{raw, _, _, <<State>>}]} -> State =/= ?TCP_ESTABLISHED;
            _ -> false
        end.

%% Lets the kernel take all that the other side has sent, even if nobody reads it for a while,
%% because the end of the connection comes behind it. The kernel makes room for a low watermark of
%% the input, up to its own limits (tcp_rmem), and keeps the room when the watermark is gone. The
%% other side learns of the room when something is read. This works only on Linux.
-spec widen(socket()) -> ok.
widen(Socket) ->
    _ = os:type() =:= {unix, linux} andalso lists:foreach(low_watermark(port(Socket)), [?WIDE, 1]),
    ok.

%% Each value has a call of its own, because the options of one call are not set in order.
low_watermark(Port) ->
    fun(Bytes) ->
        inet:setopts(Port, [{raw, ?SOL_SOCKET, ?SO_RCVLOWAT, <<Bytes:32/native>>}])
    end.

%% Acknowledges at once what has arrived. A peer without TCP_NODELAY (Mosquitto by default) holds a
%% small packet back until the one before it is acknowledged, and the kernel delays that by 40 ms.
%% Without this, a request with its PUBACK and its answer took 44 ms; with it, it takes 0.4 ms. The
%% option lasts until the next segment is sent.
-spec acknowledge(socket()) -> ok.
acknowledge(Socket) ->
    _ = os:type() =:= {unix, linux} andalso
        inet:setopts(port(Socket), [{raw, ?IPPROTO_TCP, ?TCP_QUICKACK, <<1:32/native>>}]),
    ok.

-spec send(socket(), iodata()) -> ok | {error, timeout | closed | tls_alert | inet:posix()}.
send({ssl, Ssl, _}, Data) ->
    case ssl:send(Ssl, Data) of
        ok -> ok;
        {error, Reason} -> {error, tls_reason(Reason)}
    end;
send(Socket, Data) ->
    gen_tcp:send(port(Socket), Data).

%% The bytes that were sent but have not left the socket, and the octets that have left it.
-spec pending(socket()) ->
    {ok, Pending :: non_neg_integer(), Gone :: integer()} | {error, inet:posix()}.
pending(Socket) ->
    case inet:getstat(port(Socket), [send_oct, send_pend]) of
        {ok, Stat} ->
            Pending = proplists:get_value(send_pend, Stat),
            {ok, Pending, proplists:get_value(send_oct, Stat) - Pending};
        {error, Reason} ->
            {error, Reason}
    end.

%% The bytes that have not left the socket, the bytes that the peer has not acknowledged (these
%% included), and the bytes that it has acknowledged. If the system cannot tell, bytes that have
%% left the socket count as acknowledged.
-spec taken(socket()) ->
    {ok, Pending :: non_neg_integer(), Behind :: non_neg_integer(), Taken :: integer()}
    | {error, inet:posix()}.
taken(Socket) ->
    case pending(Socket) of
        {ok, Pending, Gone} ->
            Taken = acknowledged(port(Socket), Gone),
            {ok, Pending, Pending + max(0, Gone - Taken), Taken};
        {error, Reason} ->
            {error, Reason}
    end.

acknowledged(Port, Otherwise) ->
    case os:type() =:= {unix, linux} andalso inet:getopts(Port, [{raw, ?IPPROTO_TCP, ?TCP_INFO, 128}]) of
        %% tcpi_bytes_acked in the kernel's struct tcp_info
        {ok, [{raw, _, _, <<_:120/binary, Acknowledged:64/unsigned-native>>}]} -> Acknowledged;
        _ -> Otherwise
    end.

%% Splits data that is longer than this many bytes into the first bytes and the rest.
-spec split(erlang:iovec(), pos_integer()) -> {erlang:iovec(), erlang:iovec()}.
split(Parts, Size) -> split(Parts, Size, []).

split([Part | Parts], Left, Front) when byte_size(Part) < Left ->
    split(Parts, Left - byte_size(Part), [Part | Front]);
split([Part | Parts], Left, Front) ->
    <<Last:Left/binary, More/binary>> = Part,
    {lists:reverse(Front, [Last]), [More | Parts]}.

tls_reason({tls_alert, _}) -> tls_alert;
tls_reason(Reason) when is_atom(Reason) -> Reason;
tls_reason(_) -> tls_error.

-spec peername(socket()) -> {ok, {inet:ip_address(), inet:port_number()}} | {error, term()}.
peername({tcp, Socket}) -> inet:peername(Socket);
peername({proxied, _, #{peername := Peername}}) -> {ok, Peername};
peername({ssl, _, Under}) -> peername(Under).

-spec sockname(socket()) -> {ok, {inet:ip_address(), inet:port_number()}} | {error, term()}.
sockname({tcp, Socket}) -> inet:sockname(Socket);
sockname({proxied, _, #{sockname := Sockname}}) -> {ok, Sockname};
sockname({ssl, _, Under}) -> sockname(Under).

%% Counts what went over the network, including what TLS adds.
-spec getstat(socket()) ->
    {ok, #{octets_received | octets_sent | reads | writes => integer()}} | {error, term()}.
getstat(Socket) ->
    case inet:getstat(port(Socket), [recv_oct, send_oct, recv_cnt, send_cnt]) of
        {ok, Stat} ->
            {ok, #{
                octets_received => proplists:get_value(recv_oct, Stat),
                octets_sent => proplists:get_value(send_oct, Stat),
                reads => proplists:get_value(recv_cnt, Stat),
                writes => proplists:get_value(send_cnt, Stat)
            }};
        {error, Reason} ->
            {error, Reason}
    end.

-spec linger_close(socket()) -> ok.
linger_close(Socket) -> linger_close(Socket, ?LINGER_MS).

%% The same, but waits longer for the other side.
-spec linger_close(socket(), Milliseconds :: pos_integer()) -> ok.
linger_close(Socket, Ms) ->
    case is_flushed(Socket, Ms) of
        true ->
            _ = shutdown_write(Socket),
            _ = deactivate(Socket),
            discard(Socket, erlang:monotonic_time(millisecond) + Ms),
            close_now(Socket);
        false ->
            abort(Socket)
    end.

%% The driver's own close would wait for minutes for a client that does not read.
is_flushed(Socket, Ms) ->
    case pending(Socket) of
        {ok, 0, _} ->
            true;
        {ok, _, Gone} ->
            Now = erlang:monotonic_time(millisecond),
            is_flushed(Socket, Ms, Gone, Now + Ms, Now + max(Ms, ?FLUSH_MS));
        {error, _} ->
            true
    end.

is_flushed(Socket, Ms, Gone, Stuck, Deadline) ->
    timer:sleep(?FLUSH_POLL_MS),
    Now = erlang:monotonic_time(millisecond),
    case pending(Socket) of
        {ok, 0, _} -> true;
        {ok, _, _} when Now >= Deadline -> false;
        {ok, _, Gone} when Now >= Stuck -> false;
        {ok, _, Gone} -> is_flushed(Socket, Ms, Gone, Stuck, Deadline);
        {ok, _, More} -> is_flushed(Socket, Ms, More, Now + Ms, Deadline);
        {error, _} -> true
    end.

shutdown_write({ssl, Ssl, _}) -> ssl:shutdown(Ssl, write);
shutdown_write(Socket) -> gen_tcp:shutdown(port(Socket), write).

%% Messages that have already arrived stay in the mailbox.
-spec deactivate(socket()) -> ok | {error, term()}.
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

%% Reads what has arrived, at least one byte. The socket must not be active.
-spec recv(socket(), timeout()) ->
    {ok, binary()} | {error, timeout | closed | tls_alert | tls_error | inet:posix()}.
recv({ssl, Ssl, _}, Timeout) ->
    case ssl:recv(Ssl, 0, Timeout) of
        {ok, Bytes} -> {ok, Bytes};
        {error, Reason} -> {error, tls_reason(Reason)}
    end;
recv(Socket, Timeout) ->
    gen_tcp:recv(port(Socket), 0, Timeout).

%% Closes the socket. What was sent before still arrives, if the client reads.
-spec close(socket()) -> ok.
close(Socket) ->
    case is_flushed(Socket, ?LINGER_MS) of
        true -> close_now(Socket);
        false -> abort(Socket)
    end.

%% Closes the socket and drops what waits to be sent.
-spec abort(socket()) -> ok.
abort(Socket) ->
    Port = port(Socket),
    _ = inet:setopts(Port, [{linger, {true, 0}}]),
    %% TLS in OTP 27 would wait 5 s for the other side, which does not read.
    gen_tcp:close(Port).

close_now({ssl, Ssl, _}) ->
    _ = ssl:close(Ssl),
    ok;
close_now(Socket) ->
    gen_tcp:close(port(Socket)).

%% The port that the bytes go over.
port({tcp, Port}) -> Port;
port({proxied, Port, _}) -> Port;
port({ssl, _, Under}) -> port(Under).
