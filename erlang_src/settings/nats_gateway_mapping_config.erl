%% The settings for rules that map subjects. They are the same in the file and on the plugin's page.
-module(nats_gateway_mapping_config).

-export([file_schema/0]).
-export([page_schema/0]).
-export([page_keys/0]).
-export([of_file/1]).
-export([of_page/1]).

-import(nats_gateway_schema, [invalid/2]).

%% Each publish looks at the rules one after the other.
-define(MAX_RULES, 100).

%% The table `mappings' of the file.
-spec file_schema() -> nats_gateway_schema:schema().
file_schema() ->
    #{publish => {rules(publish), []}, subscribe => {rules(subscribe), []}}.

%% The page has no tables.
-spec page_schema() -> nats_gateway_schema:schema().
page_schema() ->
    #{publish_mappings => {rules(publish), []}, subscribe_mappings => {rules(subscribe), []}}.

-spec page_keys() -> [atom()].
page_keys() -> maps:keys(page_schema()).

-spec of_file(#{publish := [binary()], subscribe := [binary()]}) -> nats_gateway_nif:mappings().
of_file(#{publish := Publish, subscribe := Subscribe}) -> mappings(Publish, Subscribe).

-spec of_page(map()) -> nats_gateway_nif:mappings().
of_page(#{publish_mappings := Publish, subscribe_mappings := Subscribe}) ->
    mappings(Publish, Subscribe).

mappings(Publish, Subscribe) -> {iolist_to_binary(Publish), iolist_to_binary(Subscribe)}.

rules(Direction) -> fun(Values, Path) -> rules(Direction, Values, Path) end.

%% The dashboard's form sends an empty entry for an empty field.
rules(Direction, Values, Path) when is_list(Values) ->
    case [Value || Value <- Values, Value =/= <<>>] of
        Texts when length(Texts) > ?MAX_RULES ->
            invalid(Path, [<<"must be at most ">>, integer_to_binary(?MAX_RULES), <<" rules">>]);
        Texts ->
            Numbered = nats_gateway_schema:numbered(Texts),
            {Rules, _} = lists:mapfoldl(
                fun({N, Text}, Seen) -> rule(Direction, N, Text, Seen, Path) end, #{}, Numbered
            ),
            Rules
    end;
rules(_, _, Path) ->
    invalid(Path, <<"must be a list">>).

%% The first rule that matches is used, so a second one for the same subject is a mistake.
rule(Direction, N, Text, Seen, Path) ->
    case is_text(Text) andalso nats_gateway_nif:subject_mapping(Text, Direction) of
        {ok, Source, _} when is_map_key(Source, Seen) ->
            First = integer_to_binary(maps:get(Source, Seen)),
            invalid([N | Path], [<<"has the subject of rule ">>, First]);
        {ok, Source, Rule} ->
            {Rule, Seen#{Source => N}};
        {error, Problem} ->
            invalid([N | Path], Problem);
        false ->
            invalid([N | Path], <<"must be a string">>)
    end.

is_text(Text) -> is_binary(Text) andalso is_list(unicode:characters_to_list(Text)).
