%% Decides who comes next, so that a key that asks often does not keep others from their turn. There
%% is a queue for each key, and the keys take turns. Keys of several levels take turns on each
%% level.
-module(nats_gateway_turns).

-export([new/1]).
-export([in/3]).
-export([out/1]).
-export([delete/2]).
-export([keys/1]).

-export_type([turns/1, place/0]).

-opaque turns(Item) ::
    {line, gb_trees:tree(integer(), Item)}
    %% a key without items stays here until its turn comes
    | {lines, #{Key :: term() => turns(Item)}, queue:queue(Key :: term())}.

-opaque place() :: {Path :: [term()], integer()}.

%% `Levels' is the number of keys in a path.
-spec new(Levels :: non_neg_integer()) -> turns(_).
new(0) -> {line, gb_trees:empty()};
new(_) -> {lines, #{}, queue:new()}.

%% Adds an item behind all others of the same path.
-spec in(Path :: [term()], Item, turns(Item)) -> {place(), turns(Item)}.
in(Path, Item, Turns) ->
    Number = erlang:unique_integer([monotonic]),
    {{Path, Number}, insert(Path, Number, Item, Turns)}.

insert([], Number, Item, {line, Tree}) ->
    {line, gb_trees:insert(Number, Item, Tree)};
insert([Key | Path], Number, Item, {lines, Lines, Keys}) ->
    case Lines of
        #{Key := Line} ->
            {lines, Lines#{Key := insert(Path, Number, Item, Line)}, Keys};
        #{} ->
            Line = insert(Path, Number, Item, new(length(Path))),
            {lines, Lines#{Key => Line}, queue:in(Key, Keys)}
    end.

-spec out(turns(Item)) -> {Item, turns(Item)} | empty.
out({lines, Lines, Keys}) ->
    case queue:out(Keys) of
        {empty, _} ->
            empty;
        {{value, Key}, NKeys} ->
            case out(maps:get(Key, Lines)) of
                empty -> out({lines, maps:remove(Key, Lines), NKeys});
                {Item, Line} -> {Item, {lines, Lines#{Key := Line}, queue:in(Key, NKeys)}}
            end
    end;
out({line, Tree}) ->
    case gb_trees:is_empty(Tree) of
        true ->
            empty;
        false ->
            {_, Item, NTree} = gb_trees:take_smallest(Tree),
            {Item, {line, NTree}}
    end.

%% Removes an item that has not been taken out yet.
-spec delete(place(), turns(Item)) -> turns(Item).
delete({[], Number}, {line, Tree}) ->
    {line, gb_trees:delete(Number, Tree)};
delete({[Key | Path], Number}, {lines, Lines, Keys}) ->
    #{Key := Line} = Lines,
    {lines, Lines#{Key := delete({Path, Number}, Line)}, Keys}.

%% The number of keys on the first level.
-spec keys(turns(_)) -> non_neg_integer().
keys({lines, Lines, _}) -> map_size(Lines).
