%% Many filters, and which of them match a name, without a look at each of them.
%%
%% They are kept in a tree by the levels that they begin with. A few filters with a common
%% beginning are a list, whose members are matched one by one: so a long filter costs no more memory
%% than its text, and the tree is only as deep as there are filters to be told apart.
-module(nats_gateway_filters).

-export([new/1]).
-export([count/1]).
-export([add/2]).
-export([remove/2]).
-export([matching/2]).
-export([first/2]).

-export_type([filters/0]).

%% Patterns of NATS (`a.*.>') that match subjects, or filters of MQTT (`a/+/#') that match topics.
-type kind() :: subject | topic.

-record(filters, {
    kind :: kind(),
    tree = [] :: tree()
}).

-opaque filters() :: #filters{}.

-type tree() ::
    [binary()]
    | {Count :: pos_integer(), #{level() => tree()}}.

%% `none': what has no further level.
-type level() :: binary() | none.

%% Filters that are matched one by one.
-define(FEW, 16).

-spec new(kind()) -> filters().
new(Kind) -> #filters{kind = Kind}.

-spec count(filters()) -> non_neg_integer().
count(#filters{tree = Tree}) -> number(Tree).

number({Count, _}) -> Count;
number(Few) -> length(Few).

%% It must not be among them.
-spec add(Filter :: binary(), filters()) -> filters().
add(Filter, Filters = #filters{kind = Kind, tree = Tree}) ->
    Filters#filters{tree = insert(Filter, 0, Kind, Tree)}.

insert(Filter, At, Kind, {Count, Branches}) ->
    {Level, Next} = level(Filter, At, Kind),
    Branch = insert(Filter, Next, Kind, maps:get(Level, Branches, [])),
    {Count + 1, Branches#{own(Level) => Branch}};
insert(Filter, _, _, Few) when length(Few) < ?FEW ->
    [Filter | Few];
insert(Filter, At, Kind, Few) ->
    lists:foldl(fun(F, Tree) -> insert(F, At, Kind, Tree) end, {0, #{}}, [Filter | Few]).

%% A level outlives the filter that it was first seen in.
own(none) -> none;
own(Level) -> binary:copy(Level).

%% It must be among them.
-spec remove(Filter :: binary(), filters()) -> filters().
remove(Filter, Filters = #filters{kind = Kind, tree = Tree}) ->
    Filters#filters{tree = delete(Filter, 0, Kind, Tree)}.

delete(Filter, _, _, {Count, _} = Tree) when Count =< ?FEW div 2 ->
    lists:delete(Filter, list(Tree));
delete(Filter, At, Kind, {Count, Branches}) ->
    {Level, Next} = level(Filter, At, Kind),
    case delete(Filter, Next, Kind, maps:get(Level, Branches)) of
        [] -> {Count - 1, maps:remove(Level, Branches)};
        Branch -> {Count - 1, Branches#{Level := Branch}}
    end;
delete(Filter, _, _, Few) ->
    lists:delete(Filter, Few).

list({_, Branches}) -> lists:flatmap(fun list/1, maps:values(Branches));
list(Few) -> Few.

%% Those that match the name, in no order.
-spec matching(Name :: binary(), filters()) -> [Filter :: binary()].
matching(Name, Filters) -> find(Name, -1, Filters).

%% Any one that matches it.
-spec first(Name :: binary(), filters()) -> undefined | (Filter :: binary()).
first(Name, Filters) ->
    case find(Name, 1, Filters) of
        [Filter] -> Filter;
        [] -> undefined
    end.

find(Name, Limit, #filters{kind = Kind, tree = Tree}) -> find([{Tree, 0}], Name, Kind, Limit, []).

find(_, _, _, 0, Found) ->
    Found;
find([], _, _, _, Found) ->
    Found;
find([{{_, Branches}, At} | Trees], Name, Kind, Limit, Found) ->
    {Level, Next} = level(Name, At, Kind),
    Below = [
        {maps:get(L, Branches), Next}
     || L <- lists:usort([Level | wildcards(Kind)]), is_map_key(L, Branches)
    ],
    find(Below ++ Trees, Name, Kind, Limit, Found);
find([{[], _} | Trees], Name, Kind, Limit, Found) ->
    find(Trees, Name, Kind, Limit, Found);
find([{[Filter | Few], At} | Trees], Name, Kind, Limit, Found) ->
    case matches(Kind, Filter, Name) of
        true -> find([{Few, At} | Trees], Name, Kind, Limit - 1, [Filter | Found]);
        false -> find([{Few, At} | Trees], Name, Kind, Limit, Found)
    end.

matches(subject, Filter, Name) -> Filter =:= Name orelse nats_gateway_nif:subject_matches(Filter, Name);
matches(topic, Filter, Name) -> nats_gateway_nif:topic_matches(Filter, Name).

wildcards(subject) -> [<<"*">>, <<">">>];
wildcards(topic) -> [<<"+">>, <<"#">>].

%% The level that begins there, and where the next one does.
level(Text, At, _) when At > byte_size(Text) ->
    {none, At};
level(Text, At, Kind) ->
    Size = byte_size(Text),
    case binary:match(Text, separator(Kind), [{scope, {At, Size - At}}]) of
        {End, 1} -> {binary:part(Text, At, End - At), End + 1};
        nomatch -> {binary:part(Text, At, Size - At), Size + 1}
    end.

separator(subject) -> <<".">>;
separator(topic) -> <<"/">>.
