%% The byte streams a client may come over. A socket is tagged with its transport.
-module(nats_gateway_transport).

-export([listen/2]).
-export([accept/1]).
-export([from_esockd/1]).
-export([controlling_process/2]).
-export([activate/1]).
-export([classify/2]).
-export([send/2]).
-export([peername/1]).
-export([sockname/1]).
-export([getstat/1]).
-export([linger_close/1]).
-export([close/1]).

-ignore_xref([{esockd_transport, wait, 1}, {esockd_transport, peername, 1}]).
-ignore_xref([{esockd_transport, sockname, 1}]).

-export_type([listen_socket/0, socket/0]).

-opaque listen_socket() :: {tcp, gen_tcp:socket()}.
-opaque socket() ::
    {tcp, gen_tcp:socket()}
    %% behind a proxy: the bytes come over the port, the client's address is known to esockd
    | {proxied, gen_tcp:socket(), Wrapper :: tuple()}.

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
controlling_process({tcp, Socket}, Pid) -> gen_tcp:controlling_process(Socket, Pid).

%% The next chunks come as messages; `passive' tells when to activate again.
-spec activate(socket()) -> ok | {error, term()}.
activate(Socket) -> inet:setopts(port(Socket), [{active, ?ACTIVE_N}]).

-spec classify(Message :: term(), socket()) ->
    {data, binary()} | passive | closed | {error, term()} | other.
classify({tcp, Socket, Data}, {tcp, Socket}) -> {data, Data};
classify({tcp_passive, Socket}, {tcp, Socket}) -> passive;
classify({tcp_closed, Socket}, {tcp, Socket}) -> closed;
classify({tcp_error, Socket, Reason}, {tcp, Socket}) -> {error, Reason};
classify(Message, {proxied, Socket, _}) -> classify(Message, {tcp, Socket});
classify(_, _) -> other.

-spec send(socket(), iodata()) -> ok | {error, timeout | closed | inet:posix()}.
send(Socket, Data) -> gen_tcp:send(port(Socket), Data).

-spec peername(socket()) -> {ok, {inet:ip_address(), inet:port_number()}} | {error, term()}.
peername({tcp, Socket}) -> inet:peername(Socket);
peername({proxied, _, Wrapper}) -> esockd_transport:peername(Wrapper).

-spec sockname(socket()) -> {ok, {inet:ip_address(), inet:port_number()}} | {error, term()}.
sockname({tcp, Socket}) -> inet:sockname(Socket);
sockname({proxied, _, Wrapper}) -> esockd_transport:sockname(Wrapper).

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
    Port = port(Socket),
    _ = gen_tcp:shutdown(Port, write),
    _ = inet:setopts(Port, [{active, false}]),
    discard(Port, erlang:monotonic_time(millisecond) + ?LINGER_MS),
    gen_tcp:close(Port).

discard(Socket, Deadline) ->
    case max(0, Deadline - erlang:monotonic_time(millisecond)) of
        0 ->
            ok;
        Left ->
            case gen_tcp:recv(Socket, 0, Left) of
                {ok, _} -> discard(Socket, Deadline);
                {error, _} -> ok
            end
    end.

-spec close(socket()) -> ok.
close(Socket) -> gen_tcp:close(port(Socket)).

%% What the bytes go over.
port({tcp, Port}) -> Port;
port({proxied, Port, _}) -> Port.
