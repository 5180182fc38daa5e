%% Counts the bytes that were sent over a socket and have not left it yet. It is meant for a process
%% that never waits for the socket: a send of `nats_gateway_transport' returns at once, even if the
%% other side does not read.
-module(nats_gateway_backlog).

-export([new/0]).
-export([sent/3]).
-export([look/2]).
-export([bytes/1]).

-export_type([backlog/0]).

-record(backlog, {
    %% bytes that were sent since the socket was last asked
    unchecked = 0 :: non_neg_integer(),
    bytes = 0 :: non_neg_integer(),
    %% octets that had left the socket, and when that last became more (milliseconds)
    gone = 0 :: integer(),
    since = 0 :: integer()
}).

-opaque backlog() :: #backlog{}.

%% The socket is asked each time that this many bytes were sent.
-define(CHECK_BYTES, 65536).

%% How long a socket may stand still while bytes wait in it. The default is the same for clients.
-define(DEADLINE_MS, 10000).

-spec new() -> backlog().
new() -> #backlog{}.

%% The bytes that wait in the socket, as far as they are known.
-spec bytes(backlog()) -> non_neg_integer().
bytes(#backlog{bytes = Bytes}) -> Bytes.

%% To be called after a send, with the number of bytes.
-spec sent(non_neg_integer(), nats_gateway_transport:socket(), backlog()) ->
    {ok, backlog()} | {error, timeout | inet:posix()}.
sent(Size, _, Backlog = #backlog{unchecked = Unchecked}) when Unchecked + Size < ?CHECK_BYTES ->
    {ok, Backlog#backlog{unchecked = Unchecked + Size}};
sent(_, Socket, Backlog) ->
    look(Socket, Backlog).

%% To be called once a second while something waits. `timeout': the other side has taken nothing for
%% too long.
-spec look(nats_gateway_transport:socket(), backlog()) ->
    {ok, backlog()} | {error, timeout | inet:posix()}.
look(Socket, #backlog{bytes = Before, gone = Gone, since = Since}) ->
    Now = erlang:monotonic_time(millisecond),
    case nats_gateway_transport:pending(Socket) of
        {ok, Bytes, Gone} when Bytes > 0, Before > 0, Now - Since >= ?DEADLINE_MS ->
            {error, timeout};
        {ok, Bytes, Gone} when Bytes > 0, Before > 0 ->
            {ok, #backlog{bytes = Bytes, gone = Gone, since = Since}};
        {ok, Bytes, More} ->
            {ok, #backlog{bytes = Bytes, gone = More, since = Now}};
        {error, Reason} ->
            {error, Reason}
    end.
