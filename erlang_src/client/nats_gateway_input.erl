%% The input of a client. This value has the bytes that are not decoded yet, knows whether the
%% socket is active, and how the input has ended.
-module(nats_gateway_input).

-export([new/0]).
-export([add/2]).
-export([is_enough/1]).
-export([bytes/1]).
-export([keep/3]).
-export([drop/1]).
-export([finish/2]).
-export([finish/3]).
-export([ended/1]).
-export([farewell/1]).
-export([size/1]).
-export([need/1]).
-export([pause/1]).
-export([resume/2]).
-export([arrived/1]).
-export([replenish/2]).
-export([left/1]).
-export([is_paused/1]).
-export([widen/1]).
-export([is_wide/1]).
-export([is_timed/1]).
-export([time/2]).

-export_type([input/0]).

-record(input, {
    %% newest first, joined once when `need' bytes are there
    chunks = [] :: [binary()],
    size = 0 :: non_neg_integer(),
    need = 1 :: non_neg_integer() | infinity,
    %% How the input has ended, which is mostly with the client's FIN. Operations before it are
    %% still answered.
    ended = false :: false | nats_gateway_channel:input(),
    %% the last frame for a WebSocket, once it is known
    farewell = none :: none | iodata(),
    %% the socket has delivered all chunks that it may, until it is activated again
    paused = false :: boolean(),
    %% how many it may still deliver
    left = 0 :: non_neg_integer(),
    %% whether the kernel may keep much input that is not read yet
    wide = false :: boolean(),
    %% whether the next call of the decoder is timed
    is_timed = false :: boolean()
}).

-opaque input() :: #input{}.

-spec new() -> input().
new() -> #input{}.

-spec add(binary(), input()) -> input().
add(Data, Input = #input{chunks = Chunks, size = Size}) ->
    Input#input{chunks = [Data | Chunks], size = Size + byte_size(Data)}.

%% Whether there are enough bytes to decode.
-spec is_enough(input()) -> boolean().
is_enough(#input{size = Size, need = Need}) -> Size > 0 andalso Size >= Need.

-spec bytes(input()) -> binary().
bytes(#input{chunks = [Chunk]}) -> Chunk;
bytes(#input{chunks = Chunks}) -> iolist_to_binary(lists:reverse(Chunks)).

%% Keeps the bytes that decoding has left, and the number of bytes that it needs to go on.
-spec keep(Rest :: binary(), Need :: non_neg_integer(), input()) -> input().
keep(Rest, Need, Input) ->
    Size = byte_size(Rest),
    Input#input{chunks = [Rest || Size > 0], size = Size, need = Need}.

%% Nothing that follows an error is decoded.
-spec drop(input()) -> input().
drop(Input) -> Input#input{chunks = [], size = 0, need = infinity}.

%% Only the first end counts.
-spec finish(nats_gateway_channel:input(), input()) -> input().
finish(How, Input = #input{ended = false}) -> Input#input{ended = How};
finish(_, Input) -> Input.

-spec finish(nats_gateway_channel:input(), Farewell :: iodata(), input()) -> input().
finish(How, Farewell, Input) -> (finish(How, Input))#input{farewell = Farewell}.

-spec ended(input()) -> false | nats_gateway_channel:input().
ended(#input{ended = Ended}) -> Ended.

-spec farewell(input()) -> none | iodata().
farewell(#input{farewell = Farewell}) -> Farewell.

-spec size(input()) -> non_neg_integer().
size(#input{size = Size}) -> Size.

-spec need(input()) -> non_neg_integer() | infinity.
need(#input{need = Need}) -> Need.

-spec pause(input()) -> input().
pause(Input) -> Input#input{paused = true, left = 0}.

%% The socket delivers so many chunks.
-spec resume(pos_integer(), input()) -> input().
resume(Chunks, Input) -> Input#input{paused = false, left = Chunks}.

%% The socket has delivered a chunk.
-spec arrived(input()) -> input().
arrived(Input = #input{left = Left}) -> Input#input{left = max(0, Left - 1)}.

%% The socket delivers so many chunks more.
-spec replenish(pos_integer(), input()) -> input().
replenish(Chunks, Input = #input{left = Left}) -> Input#input{left = Left + Chunks}.

-spec left(input()) -> non_neg_integer().
left(#input{left = Left}) -> Left.

-spec is_paused(input()) -> boolean().
is_paused(#input{paused = Paused}) -> Paused.

-spec widen(input()) -> input().
widen(Input) -> Input#input{wide = true}.

-spec is_wide(input()) -> boolean().
is_wide(#input{wide = Wide}) -> Wide.

-spec is_timed(input()) -> boolean().
is_timed(#input{is_timed = IsTimed}) -> IsTimed.

%% Whether the next call of the decoder is timed, from now on.
-spec time(boolean(), input()) -> input().
time(IsTimed, Input) -> Input#input{is_timed = IsTimed}.
