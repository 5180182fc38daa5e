%% The language that describes settings: which keys a table has, the kind of each value, and its
%% default. It is used for the file, the page and EMQX's settings.
%%
%% An error names the setting by its path. It never holds the value, which may be a secret.
-module(nats_gateway_schema).

-export([check/2]).
-export([table/3]).
-export([value/3]).
-export([valid/1]).
-export([invalid/2]).
-export([numbered/1]).

-export_type([schema/0, kind/0, path/0]).

-type kind() ::
    string
    | boolean
    | {duration, Min :: 0 | 1}
    | {duration, Min :: 0 | 1, Max :: pos_integer()}
    | {bytes, Min :: non_neg_integer(), Max :: pos_integer()}
    | {integer, Min :: integer(), Max :: pos_integer()}
    %% 0 means no limit
    | {limit, Max :: pos_integer()}
    | address
    | url
    | {one_of, [atom()]}
    %% a list of at least one of these names
    | {some_of, [atom()]}
    %% an absolute path of a URL
    | path
    %% HTTP names of a cookie and of a header; <<>> means none
    | token
    | header
    | {table, schema()}
    %% a table of tables with any names, all with this schema
    | {named, schema()}
    | {list, kind()}
    %% a table whose key `type' chooses the schema
    | {by_type, #{atom() => schema()}}
    %% a kind that only some settings have: the function returns the value, or calls `invalid/2'
    | fun((Value :: term(), path()) -> term()).

%% The default `required' means that the setting must be there, `undefined' that it has no default.
-type schema() :: #{atom() => {kind(), Default :: term()}}.

%% The last key comes first. A number is a position in a list.
-type path() :: [binary() | pos_integer()].

%% Reads the settings of a schema from tables with binary keys. Absent settings get their defaults.
-spec check(schema(), map()) -> {ok, map()} | {error, Text :: binary()}.
check(Schema, Tables) -> valid(fun() -> table(Schema, Tables, []) end).

%% Calls a function that may call `invalid/2'.
-spec valid(fun(() -> Result)) -> {ok, Result} | {error, Text :: binary()}.
valid(Fun) ->
    try
        {ok, Fun()}
    catch
        throw:{invalid, Path, Problem} ->
            {error, iolist_to_binary([path(Path), <<": ">>, Problem])}
    end.

-spec invalid(path(), iodata()) -> no_return().
invalid(Path, Problem) -> throw({invalid, Path, Problem}).

path([]) -> <<"the file">>;
path([Key]) -> Key;
path([N | Path]) when is_integer(N) -> [path(Path), $[, integer_to_binary(N), $]];
path([Key | Path]) -> [path(Path), $., Key].

-spec numbered([Element]) -> [{pos_integer(), Element}].
numbered(List) -> lists:zip(lists:seq(1, length(List)), List).

%% -------------------------------------------------------------------------------------------
%% Tables and lists

-spec table(schema(), term(), path()) -> map().
table(Schema, Values, Path) when is_map(Values) ->
    Names = maps:from_list([{atom_to_binary(Name), Name} || Name <- maps:keys(Schema)]),
    case [Key || Key <- lists:sort(maps:keys(Values)), not is_map_key(Key, Names)] of
        [] ->
            maps:map(
                fun(Name, {Kind, Default}) ->
                    Key = atom_to_binary(Name),
                    case Values of
                        #{Key := Value} -> value(Kind, Value, [Key | Path]);
                        #{} -> default(Kind, Default, [Key | Path])
                    end
                end,
                Schema
            );
        [Key | _] ->
            invalid([Key | Path], [<<"unknown key; known here: ">>, known(Schema)])
    end;
table(_, _, Path) ->
    invalid(Path, <<"must be a table">>).

known(Schema) ->
    lists:join(<<", ">>, lists:sort([atom_to_binary(Name) || Name <- maps:keys(Schema)])).

default(_, required, Path) -> invalid(Path, <<"is missing">>);
default(Kind = {table, _}, Default, Path) -> value(Kind, Default, Path);
default(_, Default, _) -> Default.

named(Schema, Value, Path) when is_map(Value) ->
    maps:map(fun(Name, Entry) -> table(Schema, Entry, [Name | Path]) end, Value);
named(_, _, Path) ->
    invalid(Path, <<"must be a table of named tables">>).

list(Kind, Values, Path) when is_list(Values) ->
    [value(Kind, Value, [N | Path]) || {N, Value} <- numbered(Values)];
list(_, _, Path) ->
    invalid(Path, <<"must be a list">>).

by_type(Schemas, Value, Path) when is_map(Value) ->
    Types = lists:sort(maps:keys(Schemas)),
    Type = value({one_of, Types}, maps:get(<<"type">>, Value, none), [<<"type">> | Path]),
    Table = table(maps:get(Type, Schemas), maps:remove(<<"type">>, Value), Path),
    Table#{type => Type};
by_type(_, _, Path) ->
    invalid(Path, <<"must be a table">>).

%% -------------------------------------------------------------------------------------------
%% Values

-spec value(kind(), term(), path()) -> term().
value(Kind, Value, Path) when is_function(Kind, 2) -> Kind(Value, Path);
value({table, Schema}, Value, Path) -> table(Schema, Value, Path);
value({named, Schema}, Value, Path) -> named(Schema, Value, Path);
value({list, Kind}, Values, Path) -> list(Kind, Values, Path);
value({by_type, Schemas}, Value, Path) -> by_type(Schemas, Value, Path);
value({duration, Min}, Value, Path) -> duration(Min, Value, Path);
value({duration, Min, Max}, Value, Path) -> duration(Min, Max, Value, Path);
value({bytes, Min, Max}, Value, Path) -> size(Min, Max, Value, Path);
value({integer, Min, Max}, Value, Path) -> integer(Min, Max, Value, Path);
value({limit, Max}, Value, Path) -> limit(Max, Value, Path);
value({one_of, Names}, Value, Path) -> one_of(Names, Value, Path);
value({some_of, Names}, Values, Path) -> some_of(Names, Values, Path);
value(string, Value, Path) -> string(Value, Path);
value(boolean, Value, Path) -> boolean(Value, Path);
value(address, Value, Path) -> address(Value, Path);
value(url, Value, Path) -> url(Value, Path);
value(path, Value, Path) -> url_path(Value, Path);
value(token, Value, Path) -> token(Value, Path);
value(header, Value, Path) -> header(Value, Path).

string(Value, Path) ->
    case is_binary(Value) andalso binary:match(Value, <<0>>) =:= nomatch of
        true -> Value;
        false -> invalid(Path, <<"must be a string">>)
    end.

boolean(Value, _) when is_boolean(Value) -> Value;
boolean(_, Path) -> invalid(Path, <<"must be true or false">>).

duration(Min, Value, Path) ->
    case milliseconds(Value) of
        0 when Min =:= 0 -> infinity;
        %% the longest time that all timers of the runtime take
        Ms when is_integer(Ms), Ms >= 1, Ms =< 16#FFFFFFFF -> Ms;
        _ when Min =:= 0 -> invalid(Path, <<"must be a duration such as \"30s\"; 0 is never">>);
        _ -> invalid(Path, <<"must be a duration such as \"30s\", at least 1 ms">>)
    end.

duration(Min, Max, Value, Path) ->
    case milliseconds(Value) of
        Ms when is_integer(Ms), Ms >= Min, Ms =< Max ->
            Ms;
        _ ->
            invalid(Path, [
                <<"must be a duration such as \"1s\", ">>, from_to(Min, Max), <<" ms">>
            ])
    end.

size(Min, Max, Value, Path) ->
    case bytes(Value) of
        Bytes when is_integer(Bytes), Bytes >= Min, Bytes =< Max ->
            Bytes;
        _ ->
            invalid(Path, [
                <<"must be a size ">>,
                from_to(Min, Max),
                <<" bytes, such as 1048576 or \"1MB\"">>
            ])
    end.

integer(Min, Max, Value, _) when is_integer(Value), Value >= Min, Value =< Max ->
    Value;
integer(Min, Max, _, Path) ->
    invalid(Path, [<<"must be an integer ">>, from_to(Min, Max)]).

from_to(Min, Max) -> [<<"from ">>, integer_to_binary(Min), <<" to ">>, integer_to_binary(Max)].

limit(_, 0, _) ->
    infinity;
limit(Max, Value, _) when is_integer(Value), Value >= 1, Value =< Max ->
    Value;
limit(Max, _, Path) ->
    invalid(Path, [<<"must be an integer from 0 (no limit) to ">>, integer_to_binary(Max)]).

one_of(Names, Value, Path) ->
    case [Name || Name <- Names, atom_to_binary(Name) =:= Value] of
        [Name] -> Name;
        [] -> invalid(Path, [<<"must be one of ">>, joined(Names)])
    end.

some_of(Names, Values, Path) when is_list(Values), Values =/= [] ->
    Chosen = [one_of(Names, Value, Path) || Value <- Values],
    [Name || Name <- Names, lists:member(Name, Chosen)];
some_of(Names, _, Path) ->
    invalid(Path, [<<"must be a list of some of ">>, joined(Names)]).

joined(Names) -> lists:join(<<", ">>, [atom_to_binary(Name) || Name <- Names]).

address(Value, Path) ->
    case parse_address(Value) of
        {ok, Address} ->
            Address;
        error ->
            invalid(Path, <<"must be a port, or an address such as \"127.0.0.1:4222\"">>)
    end.

url(Value, Path) ->
    case parse_url(Value) of
        {ok, Url} -> Url;
        error -> invalid(Path, <<
                "must be a URL such as \"mqtt://127.0.0.1:1883\" or \"mqtts://broker.example:8883\""
            >>)
    end.

url_path(Value, Path) ->
    case is_binary(Value) andalso re:run(Value, <<"\\A/[^?#\\s]*\\z">>, [{capture, none}]) of
        match -> Value;
        _ -> invalid(Path, <<"must be a path such as \"/nats\"">>)
    end.

token(<<>>, _) ->
    undefined;
token(Value, Path) ->
    Token = <<"\\A[!#$%&'*+.^_`|~0-9A-Za-z-]+\\z">>,
    case is_binary(Value) andalso re:run(Value, Token, [{capture, none}]) of
        match -> Value;
        _ -> invalid(Path, <<"must be a name without blanks and separators">>)
    end.

header(<<>>, _) -> undefined;
header(Value, Path) -> string:lowercase(token(Value, Path)).

%% -------------------------------------------------------------------------------------------
%% Units and addresses

%% An integer is in milliseconds. A string has units: "1m30s".
milliseconds(Ms) when is_integer(Ms) -> Ms;
milliseconds(Text) when is_binary(Text) ->
    units(Text, [
        {<<"ms">>, 1}, {<<"s">>, 1000}, {<<"m">>, 60000}, {<<"h">>, 3600000}, {<<"d">>, 86400000}
    ]);
milliseconds(_) ->
    error.

bytes(Bytes) when is_integer(Bytes) -> Bytes;
bytes(Text) when is_binary(Text) ->
    case re:run(Text, <<"^[0-9]{1,12}$">>, [{capture, none}]) of
        match ->
            binary_to_integer(Text);
        nomatch ->
            units(Text, [
                {<<"B">>, 1}, {<<"KB">>, 1024}, {<<"MB">>, 1048576}, {<<"GB">>, 1073741824}
            ])
    end;
bytes(_) ->
    error.

units(Text, Units) ->
    case re:run(Text, <<"^(?:\\s*([0-9]{1,12})\\s*([a-zA-Z]+))+\\s*$">>, [{capture, none}]) of
        match ->
            {match, Parts} = re:run(Text, <<"([0-9]+)\\s*([a-zA-Z]+)">>, [
                global, {capture, all_but_first, binary}
            ]),
            sum(Parts, Units, 0);
        nomatch ->
            error
    end.

sum([], _, Total) ->
    Total;
sum([[Number, Unit] | Parts], Units, Total) ->
    case [Factor || {Name, Factor} <- Units, string:equal(Name, Unit, true)] of
        [Factor] -> sum(Parts, Units, Total + binary_to_integer(Number) * Factor);
        [] -> error
    end.

parse_address(Port) when is_integer(Port), Port >= 0, Port =< 65535 -> {ok, {{0, 0, 0, 0}, Port}};
parse_address(Text) when is_binary(Text) ->
    case host_port(Text) of
        {ok, Host, Port} ->
            case inet:parse_strict_address(Host) of
                {ok, Address} -> {ok, {Address, Port}};
                {error, _} -> error
            end;
        error ->
            error
    end;
parse_address(_) ->
    error.

parse_url(<<"mqtt://", Rest/binary>>) -> parse_url(tcp, Rest);
parse_url(<<"mqtts://", Rest/binary>>) -> parse_url(ssl, Rest);
parse_url(_) -> error.

parse_url(Scheme, Rest) ->
    case host_port(hd(binary:split(Rest, <<"/">>))) of
        {ok, Host, Port} -> {ok, {Scheme, Host, Port}};
        error -> error
    end.

%% Parses `host:port' and `[v6]:port'.
host_port(Text) ->
    case
        re:run(Text, <<"^(?:\\[([0-9a-fA-F:.]+)\\]|([^:\\[\\]\\s@]+)):([0-9]{1,5})$">>, [
            {capture, all_but_first, list}
        ])
    of
        {match, [V6, Name, Digits]} ->
            case list_to_integer(Digits) of
                Port when Port =< 65535 -> {ok, V6 ++ Name, Port};
                _ -> error
            end;
        nomatch ->
            error
    end.
