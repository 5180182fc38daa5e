%% A set of many topic filters. It finds the filters that match a topic without comparing each of
%% them.
%%
%% The filters are in a tree by their first levels. A few filters with the same first levels are a
%% list, and are compared one by one. So a long filter takes no more memory than its text, and the
%% tree is only as deep as it must be to separate the filters.
-module(nats_gateway_filters).

-export([new/0]).
-export([count/1]).
-export([add/2]).
-export([remove/2]).
-export([matching/2]).
-export([has_wildcard/1]).
-export([beyond/1]).
-export([is_beyond/2]).

-export_type([filters/0, beyond/0]).

-opaque filters() :: tree().

-type tree() ::
    [binary()]
    | {Count :: pos_integer(), #{level() => tree()}}.

%% `none' stands for a filter that has no further level.
-type level() :: binary() | none.

%% MQTT's `foo/#' matches `foo', but NATS's `foo.>' does not match `foo'. So a topic must have more
%% than the parent of the filter, which is `foo' here:
-type beyond() ::
    any
    %% more bytes than this, if the filter has no `+', so that the size of the parent is fixed
    | {bytes, non_neg_integer()}
    %% more levels than this, if it has a `+'
    | {levels, non_neg_integer()}.

%% The number of filters that are compared one by one.
-define(FEW, 16).

-spec new() -> filters().
new() -> [].

-spec count(filters()) -> non_neg_integer().
count({Count, _}) -> Count;
count(Few) -> length(Few).

%% The filter must not be in the set.
-spec add(Filter :: binary(), filters()) -> filters().
add(Filter, Tree) -> insert(Filter, 0, Tree).

insert(Filter, At, {Count, Branches}) ->
    {Level, Next} = level(Filter, At),
    Branch = insert(Filter, Next, maps:get(Level, Branches, [])),
    {Count + 1, Branches#{copy_level(Level) => Branch}};
insert(Filter, _, Few) when length(Few) < ?FEW ->
    [Filter | Few];
insert(Filter, At, Few) ->
    lists:foldl(fun(F, Tree) -> insert(F, At, Tree) end, {0, #{}}, [Filter | Few]).

%% A level may be kept longer than the filter of which it is a part, so it is copied.
copy_level(none) -> none;
copy_level(Level) -> binary:copy(Level).

%% The filter must be in the set.
-spec remove(Filter :: binary(), filters()) -> filters().
remove(Filter, Tree) -> delete(Filter, 0, Tree).

delete(Filter, _, {Count, _} = Tree) when Count =< ?FEW div 2 ->
    lists:delete(Filter, to_list(Tree));
delete(Filter, At, {Count, Branches}) ->
    {Level, Next} = level(Filter, At),
    case delete(Filter, Next, maps:get(Level, Branches)) of
        [] -> {Count - 1, maps:remove(Level, Branches)};
        Branch -> {Count - 1, Branches#{Level := Branch}}
    end;
delete(Filter, _, Few) ->
    lists:delete(Filter, Few).

to_list({_, Branches}) -> lists:flatmap(fun to_list/1, maps:values(Branches));
to_list(Few) -> Few.

%% The filters that match the topic, in no order.
-spec matching(Topic :: binary(), filters()) -> [Filter :: binary()].
matching(Topic, Tree) -> find([{Tree, 0}], Topic, []).

find([], _, Found) ->
    Found;
find([{{_, Branches}, At} | Trees], Topic, Found) ->
    {Level, Next} = level(Topic, At),
    Below = [
        {maps:get(L, Branches), Next}
     || L <- lists:usort([Level, <<"+">>, <<"#">>]), is_map_key(L, Branches)
    ],
    find(Below ++ Trees, Topic, Found);
find([{Few, _} | Trees], Topic, Found) ->
    Matching = [Filter || Filter <- Few, nats_gateway_nif:topic_matches(Filter, Topic)],
    find(Trees, Topic, Matching ++ Found).

%% The level that begins at this place, and the place where the next one begins.
level(Text, At) when At > byte_size(Text) ->
    {none, At};
level(Text, At) ->
    Size = byte_size(Text),
    case binary:match(Text, <<"/">>, [{scope, {At, Size - At}}]) of
        {End, 1} -> {binary:part(Text, At, End - At), End + 1};
        nomatch -> {binary:part(Text, At, Size - At), Size + 1}
    end.

-spec has_wildcard(Filter :: binary()) -> boolean().
has_wildcard(<<C, _/binary>>) when C =:= $+; C =:= $# -> true;
has_wildcard(<<_, Rest/binary>>) -> has_wildcard(Rest);
has_wildcard(<<>>) -> false.

-spec beyond(Filter :: binary()) -> beyond().
beyond(Filter) ->
    ParentSize = byte_size(Filter) - 2,
    case Filter of
        <<Parent:ParentSize/binary, "/#">> when ParentSize >= 0 ->
            case binary:match(Parent, <<"+">>) of
                nomatch -> {bytes, ParentSize};
                _ -> {levels, count_levels(Parent)}
            end;
        _ ->
            any
    end.

%% Whether a topic that matches the filter in MQTT matches it in NATS as well.
-spec is_beyond(Topic :: binary(), beyond()) -> boolean().
is_beyond(_, any) -> true;
is_beyond(Topic, {bytes, N}) -> byte_size(Topic) > N;
is_beyond(Topic, {levels, N}) -> count_levels(Topic) > N.

count_levels(Topic) -> length(binary:matches(Topic, <<"/">>)) + 1.
