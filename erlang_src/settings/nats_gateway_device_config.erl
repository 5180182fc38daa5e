%% The settings for devices that answer on a topic of their own, because they do not know MQTT 5's
%% Response Topic. They are the same in the file and on the plugin's page.
-module(nats_gateway_device_config).

-export([file_schema/0]).
-export([page_schema/0]).
-export([page_keys/0]).
-export([of_page/1]).

-export_type([devices/0, rule/0, level/0, template/0]).

-import(nats_gateway_schema, [invalid/2]).

%% Times are in milliseconds.
-type devices() :: #{
    rules := [rule()],
    %% how long a request waits for its answers
    timeout := pos_integer(),
    %% how long an answer topic stays subscribed after the last request
    idle_timeout := non_neg_integer(),
    %% requests of one client that wait for their first answer
    max_requests := pos_integer()
}.

-type rule() :: #{subject := [level()], command := template(), answer := template()}.

%% The levels of the topic that stands for the subject of a request. `one' is a `*', and `rest' a
%% last `>'.
-type level() :: binary() | one | rest.

%% The number of a wildcard stands for what that wildcard matches.
-type template() :: [binary() | pos_integer() | id].

-define(MAX_RULES, 100).
-define(MAX_TIMEOUT_MS, 3600000).
-define(MAX_IDLE_MS, 86400000).
-define(MAX_REQUESTS, 65536).
-define(MAX_TOPIC, 65535).

-define(FORM, <<
    "must be \"SUBJECT -> COMMAND TOPIC -> ANSWER TOPIC\", such as "
    "\"dev.*.get -> cmd/${1} -> cmd/${1}/reply\""
>>).

%% The table `devices' of the file.
-spec file_schema() -> nats_gateway_schema:schema().
file_schema() ->
    #{
        rules => {fun rules/2, []},
        timeout => {{duration, 1, ?MAX_TIMEOUT_MS}, 5000},
        idle_timeout => {{duration, 0, ?MAX_IDLE_MS}, 60000},
        max_requests => {{integer, 1, ?MAX_REQUESTS}, 1000}
    }.

%% The page has no tables.
-spec page_schema() -> nats_gateway_schema:schema().
page_schema() -> maps:from_list([{on_page(Key), Spec} || {Key, Spec} <- maps:to_list(file_schema())]).

-spec page_keys() -> [atom()].
page_keys() -> maps:keys(page_schema()).

-spec of_page(Settings :: map()) -> devices().
of_page(Settings) ->
    maps:from_list([{Key, maps:get(on_page(Key), Settings)} || Key <- maps:keys(file_schema())]).

on_page(rules) -> device_rules;
on_page(timeout) -> device_timeout;
on_page(idle_timeout) -> device_idle_timeout;
on_page(max_requests) -> device_max_requests.

%% -------------------------------------------------------------------------------------------
%% Rules

%% The dashboard's form sends an empty entry for an empty field.
rules(Values, Path) when is_list(Values) ->
    case [Value || Value <- Values, Value =/= <<>>] of
        Texts when length(Texts) > ?MAX_RULES ->
            invalid(Path, [<<"must be at most ">>, integer_to_binary(?MAX_RULES), <<" rules">>]);
        Texts ->
            Rules = [rule(Text, [N | Path]) || {N, Text} <- nats_gateway_schema:numbered(Texts)],
            ok = distinct(Rules, 1, #{}, Path),
            Rules
    end;
rules(_, Path) ->
    invalid(Path, <<"must be a list">>).

%% The first rule that matches is used, so a second one for the same subject is a mistake.
distinct([], _, _, _) ->
    ok;
distinct([#{subject := Subject} | Rules], N, Seen, Path) ->
    case Seen of
        #{Subject := First} ->
            invalid([N | Path], [<<"has the subject of rule ">>, integer_to_binary(First)]);
        #{} ->
            distinct(Rules, N + 1, Seen#{Subject => N}, Path)
    end.

rule(Text, Path) when is_binary(Text) ->
    case [string:trim(Part) || Part <- binary:split(Text, <<"->">>, [global])] of
        [Subject, Command, Answer] when Subject =/= <<>>, Command =/= <<>>, Answer =/= <<>> ->
            rule(subject(Subject, Path), Command, Answer, Path);
        _ ->
            invalid(Path, ?FORM)
    end;
rule(_, Path) ->
    invalid(Path, ?FORM).

rule(Levels, Command, Answer, Path) ->
    Wildcards = length([Level || Level <- Levels, is_atom(Level)]),
    OfCommand = template(Command, Wildcards, <<"a command topic">>, Path),
    OfAnswer = template(Answer, Wildcards, <<"an answer topic">>, Path),
    HasId = lists:member(id, OfCommand),
    if
        OfCommand =:= OfAnswer ->
            invalid(Path, <<"must have an answer topic that is not the command topic">>);
        true ->
            case lists:member(id, OfAnswer) of
                HasId -> #{subject => Levels, command => OfCommand, answer => OfAnswer};
                _ -> invalid(Path, <<"must have ${id} in both topics, or in neither">>)
            end
    end.

%% Names that begin with `$' are the broker's.
subject(<<"$", _/binary>>, Path) ->
    invalid(Path, <<"must have a subject that does not begin with $">>);
subject(Subject, Path) ->
    Tokens = binary:split(Subject, <<".">>, [global]),
    Valid =
        not lists:member(<<>>, Tokens) andalso not lists:member(<<">">>, lists:droplast(Tokens)) andalso
            binary:match(Subject, [<<" ">>, <<"\t">>, <<"\r">>, <<"\n">>]) =:= nomatch,
    case Valid andalso nats_gateway_nif:filter(Subject, <<>>) of
        Filter when is_binary(Filter) ->
            [level(Level) || Level <- binary:split(Filter, <<"/">>, [global])];
        _ ->
            invalid(Path, <<"must have a subject such as dev.*.get or dev.>">>)
    end.

level(<<"+">>) -> one;
level(<<"#">>) -> rest;
level(Level) -> Level.

template(Text, Wildcards, What, Path) ->
    Template = parts(Text, Wildcards, What, Path),
    Literal = iolist_to_binary([Part || Part <- Template, is_binary(Part)]),
    Wrong = binary:match(Literal, [<<"+">>, <<"#">>, <<0>>]) =/= nomatch,
    IsTopic = is_list(unicode:characters_to_list(Text)) andalso byte_size(Text) =< ?MAX_TOPIC,
    if
        Wrong; not IsTopic ->
            invalid(Path, [<<"must have ">>, What, <<" without wildcards">>]);
        true ->
            case Template of
                [<<"$", _/binary>> | _] ->
                    invalid(Path, [<<"must have ">>, What, <<" that does not begin with $">>]);
                _ ->
                    Template
            end
    end.

parts(Text, Wildcards, What, Path) ->
    case binary:split(Text, <<"${">>) of
        [Literal] ->
            [Literal || Literal =/= <<>>];
        [Literal, Rest] ->
            Unknown = [
                <<"knows ">>,
                [[<<"${">>, integer_to_binary(N), <<"}, ">>] || N <- lists:seq(1, Wildcards)],
                <<"${id} and no other ${...} in ">>,
                What
            ],
            case binary:split(Rest, <<"}">>) of
                [Name, More] ->
                    case [Known || {Known, Its} <- names(Wildcards), Its =:= Name] of
                        [Known] ->
                            [Literal || Literal =/= <<>>] ++
                                [Known | parts(More, Wildcards, What, Path)];
                        [] ->
                            invalid(Path, Unknown)
                    end;
                [_] ->
                    invalid(Path, Unknown)
            end
    end.

names(Wildcards) ->
    [{id, <<"id">>} | [{N, integer_to_binary(N)} || N <- lists:seq(1, Wildcards)]].
