%% Decides by the bytes that a client has not taken yet whether the client is a slow consumer, and
%% whether it is still there.
%%
%% A socket takes all that it is given, so that the connection never waits for a client while
%% messages pile up for it. So the connection asks the socket from time to time how many bytes wait
%% there. This value keeps the answers and judges them. It has no socket itself.
-module(nats_gateway_outbox).

-export([new/0]).
-export([mute/1]).
-export([is_mute/1]).
-export([sent/2]).
-export([judge_pending/5]).
-export([watch_progress/2]).
-export([check_progress/2]).
-export([keep_pong/2]).
-export([take_pong/1]).
-export([drop_pong/1]).
-export([progress_interval/1]).

-export_type([outbox/0]).

%% After this many bytes sent, the socket is asked how many wait.
-define(CHECK_BYTES, 65536).
%% A message in the mailbox counts this many bytes besides its own.
-define(MESSAGE_OVERHEAD, 256).
%% How often progress is checked within the send timeout.
-define(PROGRESS_CHECKS, 4).

-record(outbox, {
    %% nothing more can be sent, but the input that the client sent before still counts
    mute = false :: boolean(),
    %% bytes sent since the socket was asked what waits there
    unchecked = 0 :: non_neg_integer(),
    %% messages handled until then, and the bytes that each of the latest ones became
    handled = 0 :: non_neg_integer(),
    each = 0 :: non_neg_integer(),
    %% the octets that had left the socket when it was last found stuck, and how often in a row
    stuck = {0, 0} :: {Octets :: integer(), Times :: non_neg_integer()},
    %% the answer to the latest ping of a WebSocket, while too much waits to send it
    pong = none :: none | iodata()
}).

-opaque outbox() :: #outbox{}.

-spec new() -> outbox().
new() -> #outbox{}.

%% From now on nothing can be sent.
-spec mute(outbox()) -> outbox().
mute(Outbox) -> Outbox#outbox{mute = true}.

-spec is_mute(outbox()) -> boolean().
is_mute(#outbox{mute = Mute}) -> Mute.

%% With `check' the caller is to ask the socket how many bytes wait.
-spec sent(Bytes :: non_neg_integer(), outbox()) -> {ok | check, outbox()}.
sent(Bytes, Outbox = #outbox{unchecked = Unchecked}) when Unchecked + Bytes < ?CHECK_BYTES ->
    {ok, Outbox#outbox{unchecked = Unchecked + Bytes}};
sent(Bytes, Outbox = #outbox{unchecked = Unchecked}) ->
    {check, Outbox#outbox{unchecked = Unchecked + Bytes}}.

%% nats-server's bound of the bytes that may wait for a client (`max_pending'). `Waiting' are the
%% bytes in the socket or before it. The messages in the mailbox will become such bytes, and each is
%% taken to become as many as the messages did that were handled since the last time, but at most
%% `Most': a mailbox with chunks of a broker's bytes has many of them for one large message.
-spec judge_pending(
    Waiting :: non_neg_integer(),
    {Mailbox :: non_neg_integer(), Most :: pos_integer() | infinity},
    Handled :: non_neg_integer(),
    MaxPending :: non_neg_integer() | infinity,
    outbox()
) -> {ok | slow_consumer, outbox()}.
judge_pending(Waiting, {Mailbox, Most}, Handled, MaxPending, Outbox) ->
    NOutbox = #outbox{each = Each} = measured(Handled, Outbox),
    %% any number is less than `infinity'
    case Waiting + Mailbox * (min(Each, Most) + ?MESSAGE_OVERHEAD) > MaxPending of
        true -> {slow_consumer, NOutbox};
        false -> {ok, NOutbox}
    end.

measured(Handled, Outbox = #outbox{handled = Handled}) ->
    Outbox#outbox{unchecked = 0};
measured(Handled, Outbox = #outbox{unchecked = Bytes, handled = Before}) ->
    Outbox#outbox{unchecked = 0, handled = Handled, each = Bytes div max(1, Handled - Before)}.

%% Bytes wait. From now on the connection checks whether some of them leave.
-spec watch_progress(Octets :: integer(), outbox()) -> outbox().
watch_progress(Octets, Outbox) -> Outbox#outbox{stuck = {Octets, 0}}.

%% nats-server's write deadline. With `moves', some bytes have left since the last check.
-spec check_progress(Octets :: integer(), outbox()) -> slow_consumer | {stuck | moves, outbox()}.
check_progress(Octets, #outbox{stuck = {Octets, Times}}) when Times + 1 >= ?PROGRESS_CHECKS ->
    slow_consumer;
check_progress(Octets, Outbox = #outbox{stuck = {Octets, Times}}) ->
    {stuck, Outbox#outbox{stuck = {Octets, Times + 1}}};
check_progress(Octets, Outbox) ->
    {moves, watch_progress(Octets, Outbox)}.

%% The milliseconds between two checks.
-spec progress_interval(SendTimeout :: pos_integer()) -> pos_integer().
progress_interval(SendTimeout) -> max(1, SendTimeout div ?PROGRESS_CHECKS).

%% Only the latest ping of a WebSocket has to be answered.
-spec keep_pong(iodata(), outbox()) -> outbox().
keep_pong(Pong, Outbox) -> Outbox#outbox{pong = Pong}.

-spec take_pong(outbox()) -> none | {ok, iodata()}.
take_pong(#outbox{pong = none}) -> none;
take_pong(#outbox{pong = Pong}) -> {ok, Pong}.

-spec drop_pong(outbox()) -> outbox().
drop_pong(Outbox) -> Outbox#outbox{pong = none}.
