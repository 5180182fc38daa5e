%% The locks of a runtime that counts them (lcnt). Loaded into the node.
-module(locks).

-export([are_counted/0, start/0, stop/0]).

-spec are_counted() -> boolean().
are_counted() -> erlang:system_info(lock_counting).

%% From now on.
-spec start() -> ok.
start() ->
    _ = erts_debug:lcnt_clear(),
    ok.

%% Of each kind of lock: how often it was taken, how often somebody else had it, and how long was waited for it.
-spec stop() -> [{Name :: atom(), Tries, Collisions, WaitedNs}] when
    Tries :: non_neg_integer(), Collisions :: non_neg_integer(), WaitedNs :: non_neg_integer().
stop() ->
    Locks = proplists:get_value(locks, erts_debug:lcnt_collect()),
    Kinds = lists:foldl(
        fun({Name, _, _, Places}, Acc) ->
            lists:foldl(fun(Place, Sums) -> add(Name, Place, Sums) end, Acc, Places)
        end,
        #{},
        Locks
    ),
    [{Name, Tries, Collisions, Ns} || {Name, {Tries, Collisions, Ns}} <- maps:to_list(Kinds)].

add(Name, Place, Kinds) ->
    {Tries, Collisions, {Seconds, Ns, _}} = element(2, Place),
    {T, C, N} = maps:get(Name, Kinds, {0, 0, 0}),
    Kinds#{Name => {T + Tries, C + Collisions, N + Seconds * 1000000000 + Ns}}.
