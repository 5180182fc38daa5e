%% Collects the bytes of a broker until they are whole packets.
%%
%% A packet that is larger than allowed is not kept: its bytes are dropped as they arrive.
-module(nats_gateway_mqtt_input).

-export([new/1]).
-export([max_size/1]).
-export([feed/2]).
-export([keep/3]).
-export([skip/3]).
-export([behind/2]).
-export([large/1]).

-export_type([input/0]).

-record(input, {
    %% the largest packet that is allowed
    max_size :: pos_integer(),
    %% the beginning of a packet, latest fragment first, its size, and the bytes that it needs
    fragments = [] :: [binary()],
    size = 0 :: non_neg_integer(),
    need = 0 :: non_neg_integer(),
    %% how many bytes of a packet that is too large are still to come
    skip = 0 :: non_neg_integer()
}).

-opaque input() :: #input{}.

-spec new(MaxSize :: pos_integer()) -> input().
new(MaxSize) -> #input{max_size = MaxSize}.

-spec max_size(input()) -> pos_integer().
max_size(#input{max_size = MaxSize}) -> MaxSize.

%% The bytes that can be decoded now, if there are enough of them.
-spec feed(binary(), input()) -> {bytes, binary(), input()} | {more, input()}.
feed(Bytes, Input = #input{skip = Skip}) when Skip >= byte_size(Bytes), Skip > 0 ->
    {more, Input#input{skip = Skip - byte_size(Bytes)}};
feed(Bytes, Input = #input{skip = Skip}) when Skip > 0 ->
    {bytes, binary:part(Bytes, Skip, byte_size(Bytes) - Skip), Input#input{skip = 0}};
feed(Bytes, Input = #input{size = 0}) ->
    {bytes, Bytes, Input};
feed(Bytes, Input = #input{fragments = Fragments, size = Size, need = Need}) ->
    NFragments = [Bytes | Fragments],
    case Size + byte_size(Bytes) of
        NSize when NSize < Need ->
            {more, Input#input{fragments = NFragments, size = NSize}};
        _ ->
            Joined = iolist_to_binary(lists:reverse(NFragments)),
            {bytes, Joined, Input#input{fragments = [], size = 0}}
    end.

%% Keeps the beginning of a packet. `Need' is the size that it must have before it is decoded again.
-spec keep(binary(), Need :: non_neg_integer(), input()) -> input().
keep(<<>>, _, Input) -> Input;
keep(Rest, Need, Input) -> Input#input{fragments = [Rest], size = byte_size(Rest), need = Need}.

%% Drops a packet of that size at the front.
-spec skip(Size :: pos_integer(), binary(), input()) -> {bytes, binary(), input()} | {more, input()}.
skip(Size, Bytes, Input) ->
    case Bytes of
        <<_:Size/binary, Rest/binary>> -> {bytes, Rest, Input};
        _ -> {more, Input#input{skip = Size - byte_size(Bytes)}}
    end.

%% The bytes after so many packets.
-spec behind(Count :: non_neg_integer(), binary()) -> binary().
behind(0, Bytes) ->
    Bytes;
behind(Count, Bytes) ->
    {Size, _} = packet_size(Bytes),
    <<_:Size/binary, Rest/binary>> = Bytes,
    behind(Count - 1, Rest).

%% Describes the packet at the front, which is too large. `more' means that its topic has not
%% arrived completely.
-spec large(binary()) ->
    {publish, Topic :: binary(), Size :: pos_integer(), Acknowledged :: none | 0..65535}
    | more
    | other.
large(Bytes) ->
    {Size, Body} = packet_size(Bytes),
    case {Bytes, Body} of
        {<<3:4, _:1, QoS:2, _:1, _/binary>>, <<Length:16, Topic:Length/binary, Id:16, _/binary>>} ->
            Acknowledged =
                case QoS of
                    0 -> none;
                    _ -> Id
                end,
            {publish, Topic, Size, Acknowledged};
        {<<3:4, _:4, _/binary>>, _} ->
            more;
        _ ->
            other
    end.

packet_size(<<_, Bytes/binary>>) -> packet_size(Bytes, 0, 1).

packet_size(<<1:1, Digit:7, Bytes/binary>>, Length, Factor) ->
    packet_size(Bytes, Length + Digit * Factor, Factor * 128);
packet_size(<<0:1, Digit:7, Bytes/binary>>, Length, Factor) ->
    Size = Length + Digit * Factor,
    {1 + length_size(Factor) + Size, Bytes}.

length_size(1) -> 1;
length_size(Factor) -> 1 + length_size(Factor div 128).
