%% What a client has still to take: whether it is a slow consumer, and whether anybody is there.
%%
%% A socket takes all that it is given, so that the connection never waits for a client while messages
%% pile up for it. So the connection asks the socket from time to time how much waits there. This
%% value keeps what was found, and judges it; it has no socket itself.
-module(nats_gateway_outbox).

-export([new/0]).
-export([mute/1]).
-export([is_mute/1]).
-export([sent/2]).
-export([judge/5]).
-export([watch/2]).
-export([look/2]).
-export([keep_pong/2]).
-export([take_pong/1]).
-export([drop_pong/1]).
-export([look_ms/1]).

-export_type([outbox/0]).

%% What waits is looked at whenever so much was sent.
-define(CHECK_BYTES, 65536).
%% What a message in the mailbox counts besides its bytes.
-define(MESSAGE_OVERHEAD, 256).
%% Times that a client is found stuck within its send timeout.
-define(LOOKS, 4).

-record(outbox, {
    %% nobody takes what is sent any more; what the client sent before still counts
    mute = false :: boolean(),
    %% bytes sent since the socket was asked what waits there
    unchecked = 0 :: non_neg_integer(),
    %% messages handled until then, and the bytes that one of them became of late
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

%% Nobody takes what is sent any more.
-spec mute(outbox()) -> outbox().
mute(Outbox) -> Outbox#outbox{mute = true}.

-spec is_mute(outbox()) -> boolean().
is_mute(#outbox{mute = Mute}) -> Mute.

%% `check': the socket is to be asked what waits.
-spec sent(Bytes :: non_neg_integer(), outbox()) -> {ok | check, outbox()}.
sent(Bytes, Outbox = #outbox{unchecked = Unchecked}) when Unchecked + Bytes < ?CHECK_BYTES ->
    {ok, Outbox#outbox{unchecked = Unchecked + Bytes}};
sent(Bytes, Outbox = #outbox{unchecked = Unchecked}) ->
    {check, Outbox#outbox{unchecked = Unchecked + Bytes}}.

%% nats-server's bound of what may wait for a client, in the socket or before it: `Waiting' bytes. What
%% is in the mailbox will become such bytes. It is taken to be like what was handled since the last look.
-spec judge(
    Waiting :: non_neg_integer(),
    Mailbox :: non_neg_integer(),
    Handled :: non_neg_integer(),
    MaxPending :: non_neg_integer() | infinity,
    outbox()
) -> {ok | slow_consumer, outbox()}.
judge(Waiting, Mailbox, Handled, MaxPending, Outbox) ->
    NOutbox = #outbox{each = Each} = measured(Handled, Outbox),
    case Waiting + Mailbox * (Each + ?MESSAGE_OVERHEAD) > MaxPending of
        true -> {slow_consumer, NOutbox};
        false -> {ok, NOutbox}
    end.

measured(Handled, Outbox = #outbox{handled = Handled}) ->
    Outbox#outbox{unchecked = 0};
measured(Handled, Outbox = #outbox{unchecked = Bytes, handled = Before}) ->
    Outbox#outbox{unchecked = 0, handled = Handled, each = Bytes div max(1, Handled - Before)}.

%% Something waits: from now on the connection looks whether some of it leaves.
-spec watch(Octets :: integer(), outbox()) -> outbox().
watch(Octets, Outbox) -> Outbox#outbox{stuck = {Octets, 0}}.

%% nats-server's write deadline. `moves': some of it has left since the last look.
-spec look(Octets :: integer(), outbox()) -> slow_consumer | {stuck | moves, outbox()}.
look(Octets, #outbox{stuck = {Octets, Times}}) when Times + 1 >= ?LOOKS -> slow_consumer;
look(Octets, Outbox = #outbox{stuck = {Octets, Times}}) ->
    {stuck, Outbox#outbox{stuck = {Octets, Times + 1}}};
look(Octets, Outbox) ->
    {moves, watch(Octets, Outbox)}.

%% When to look again.
-spec look_ms(SendTimeout :: infinity | pos_integer()) -> infinity | pos_integer().
look_ms(SendTimeout) -> max(1, SendTimeout div ?LOOKS).

%% Only the latest ping of a WebSocket has to be answered.
-spec keep_pong(iodata(), outbox()) -> outbox().
keep_pong(Pong, Outbox) -> Outbox#outbox{pong = Pong}.

-spec take_pong(outbox()) -> none | {ok, iodata()}.
take_pong(#outbox{pong = none}) -> none;
take_pong(#outbox{pong = Pong}) -> {ok, Pong}.

-spec drop_pong(outbox()) -> outbox().
drop_pong(Outbox) -> Outbox#outbox{pong = none}.
