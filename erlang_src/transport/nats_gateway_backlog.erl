%% What was sent over a socket and has not left it yet, of a process that never waits for the socket:
%% a send to one of `nats_gateway_transport' returns at once, however slow the other side reads.
-module(nats_gateway_backlog).

-export([new/0]).
-export([sent/3]).
-export([look/2]).
-export([bytes/1]).

-export_type([backlog/0]).

-record(backlog, {
    %% sent since the socket was asked
    unchecked = 0 :: non_neg_integer(),
    bytes = 0 :: non_neg_integer(),
    %% octets that had left the socket, and when that was not so yet: milliseconds
    gone = 0 :: integer(),
    since = 0 :: integer()
}).

-opaque backlog() :: #backlog{}.

%% The socket is asked whenever so much was sent.
-define(CHECK_BYTES, 65536).

%% For so long nothing at all may leave a socket in which something waits: the default of clients.
-define(DEADLINE_MS, 10000).

-spec new() -> backlog().
new() -> #backlog{}.

%% What waits in the socket, as far as it is known.
-spec bytes(backlog()) -> non_neg_integer().
bytes(#backlog{bytes = Bytes}) -> Bytes.

%% So many bytes were sent.
-spec sent(non_neg_integer(), nats_gateway_transport:socket(), backlog()) ->
    {ok, backlog()} | {error, timeout | inet:posix()}.
sent(Size, _, Backlog = #backlog{unchecked = Unchecked}) when Unchecked + Size < ?CHECK_BYTES ->
    {ok, Backlog#backlog{unchecked = Unchecked + Size}};
sent(_, Socket, Backlog) ->
    look(Socket, Backlog).

%% `timeout': the other side has taken nothing for too long. To be called once a second while
%% something waits.
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
