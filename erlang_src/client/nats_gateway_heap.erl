%% Sets the sizes of a connection process's heap so that garbage collections are rare and cheap.
-module(nats_gateway_heap).

-export([new/0]).
-export([is_large/1]).
-export([enlarge/1]).
-export([shrink/1]).
-export([make_room/2]).

-export_type([heap/0]).

%% With much traffic, most data that a garbage collection copies would be dead by the next one. A
%% heap of 256 KiB makes collections rare.
-define(LARGE_WORDS, 32768).

-record(heap, {
    is_large = false :: boolean(),
    %% the bytes of binaries that the process may refer to before it is collected
    room = 0 :: non_neg_integer()
}).

-opaque heap() :: #heap{}.

-spec new() -> heap().
new() -> #heap{}.

-spec is_large(heap()) -> boolean().
is_large(#heap{is_large = IsLarge}) -> IsLarge.

-spec enlarge(heap()) -> heap().
enlarge(Heap) ->
    _ = process_flag(min_heap_size, ?LARGE_WORDS),
    Heap#heap{is_large = true}.

%% The next garbage collection gives the memory back.
-spec shrink(heap()) -> heap().
shrink(_) ->
    {min_heap_size, Words} = erlang:system_info(min_heap_size),
    _ = process_flag(min_heap_size, Words),
    new().

%% If old data refers to more bytes of binaries than there is room for, every garbage collection is
%% one of the whole heap, and it costs the more, the more subscriptions there are.
-spec make_room(Held :: non_neg_integer(), heap()) -> heap().
make_room(Held, Heap = #heap{room = Room}) when Held >= Room ->
    {min_bin_vheap_size, Least} = erlang:system_info(min_bin_vheap_size),
    WordSize = erlang:system_info(wordsize),
    NRoom = max(Least * WordSize, 2 * Held),
    _ = process_flag(min_bin_vheap_size, NRoom div WordSize),
    Heap#heap{room = NRoom};
make_room(_, Heap) ->
    Heap.
