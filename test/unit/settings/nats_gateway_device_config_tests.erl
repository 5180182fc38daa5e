-module(nats_gateway_device_config_tests).

-include_lib("eunit/include/eunit.hrl").

rules(Texts) ->
    case nats_gateway_schema:check(nats_gateway_device_config:file_schema(), #{<<"rules">> => Texts}) of
        {ok, #{rules := Rules}} -> Rules;
        {error, Text} -> Text
    end.

set(Key, Value) ->
    case nats_gateway_schema:check(nats_gateway_device_config:file_schema(), #{Key => Value}) of
        {ok, Settings} -> maps:get(binary_to_existing_atom(Key), Settings);
        {error, _} -> error
    end.

a_rule_test_() ->
    [
        ?_assertEqual([], rules([])),
        ?_assertEqual(
            [#{
                subject => [<<"dev">>, one, <<"get">>],
                command => [<<"cmd/">>, 1],
                answer => [<<"cmd/">>, 1, <<"/reply">>]
            }],
            rules([<<"dev.*.get -> cmd/${1} -> cmd/${1}/reply">>])
        ),
        ?_assertEqual(
            [#{
                subject => [one, rest],
                command => [1, <<"/">>, id, <<"/">>, 2],
                answer => [<<"r/">>, id]
            }],
            rules([<<"*.>->${1}/${id}/${2}->r/${id}">>])
        ),
        %% The topic of the subject is what counts, with its encoding.
        ?_assertMatch([#{subject := [<<"a.b">>, <<>>]}], rules([<<"a//b./ -> c -> r">>])),
        %% Blanks within a topic are part of it.
        ?_assertMatch([#{command := [<<"my cmd">>]}], rules([<<"a -> my cmd -> r">>]))
    ].

a_wrong_rule_is_refused_with_its_place_and_reason_test_() ->
    Form = <<"rules[2]: must be \"SUBJECT -> COMMAND TOPIC -> ANSWER TOPIC\", such as "
        "\"dev.*.get -> cmd/${1} -> cmd/${1}/reply\"">>,
    Subject = <<"rules[2]: must have a subject such as dev.*.get or dev.>">>,
    [
        {binary_to_list(iolist_to_binary(io_lib:format("~p", [Rule]))),
            ?_assertEqual(Expected, rules([<<"ok -> c -> r">>, Rule]))}
     || {Rule, Expected} <- [
            {1, Form},
            {<<"a">>, Form},
            {<<"a -> c">>, Form},
            {<<"a -> c -> r -> x">>, Form},
            {<<"a ->  -> r">>, Form},
            {<<"a..b -> c -> r">>, Subject},
            {<<".a -> c -> r">>, Subject},
            {<<"a. -> c -> r">>, Subject},
            {<<"a.>.b -> c -> r">>, Subject},
            {<<"a b -> c -> r">>, Subject},
            {<<"a.", 0, " -> c -> r">>, Subject},
            {<<"$SYS.a -> c -> r">>, <<"rules[2]: must have a subject that does not begin with $">>},
            {<<"a -> $SYS/c -> r">>, <<"rules[2]: must have a command topic that does not begin with $">>},
            {<<"a -> c -> $share/g/r">>, <<"rules[2]: must have an answer topic that does not begin with $">>},
            {<<"a -> c/+ -> r">>, <<"rules[2]: must have a command topic without wildcards">>},
            {<<"a -> c -> r/#">>, <<"rules[2]: must have an answer topic without wildcards">>},
            {<<"a -> c -> r", 255>>, <<"rules[2]: must have an answer topic without wildcards">>},
            {<<"a -> c -> c">>, <<"rules[2]: must have an answer topic that is not the command topic">>},
            {<<"a -> c/${id} -> r">>, <<"rules[2]: must have ${id} in both topics, or in neither">>},
            {<<"a -> c -> r/${id}">>, <<"rules[2]: must have ${id} in both topics, or in neither">>},
            {<<"a -> c/${1} -> r">>, <<"rules[2]: knows ${id} and no other ${...} in a command topic">>},
            {<<"a.* -> c -> r/${2}">>, <<"rules[2]: knows ${1}, ${id} and no other ${...} in an answer topic">>},
            {<<"a.* -> c/${0} -> r">>, <<"rules[2]: knows ${1}, ${id} and no other ${...} in a command topic">>},
            {<<"a.* -> c/${1 -> r">>, <<"rules[2]: knows ${1}, ${id} and no other ${...} in a command topic">>},
            {<<"ok -> d -> e">>, <<"rules[2]: has the subject of rule 1">>}
        ]
    ].

limits_test_() ->
    Rules = fun(N) ->
        [<<"a.", (integer_to_binary(I))/binary, " -> c -> r">> || I <- lists:seq(1, N)]
    end,
    [
        ?_assertEqual(100, length(rules(Rules(100)))),
        ?_assertEqual(<<"rules: must be at most 100 rules">>, rules(Rules(101))),
        ?_assertEqual(<<"rules: must be a list">>, rules(<<"a -> c -> r">>))
    ] ++
        [
            ?_assertEqual({Key, Value, Expected}, {Key, Value, set(Key, Value)})
         || {Key, Value, Expected} <- [
                {<<"timeout">>, 0, error},
                {<<"timeout">>, 1, 1},
                {<<"timeout">>, <<"1h">>, 3600000},
                {<<"timeout">>, 3600001, error},
                {<<"idle_timeout">>, 0, 0},
                {<<"idle_timeout">>, <<"1d">>, 86400000},
                {<<"idle_timeout">>, 86400001, error},
                {<<"max_requests">>, 0, error},
                {<<"max_requests">>, 1, 1},
                {<<"max_requests">>, 65536, 65536},
                {<<"max_requests">>, 65537, error}
            ]
        ].
