-module(nats_gateway_mapping_config_tests).

-include_lib("eunit/include/eunit.hrl").

file(Settings) ->
    case nats_gateway_schema:check(nats_gateway_mapping_config:file_schema(), Settings) of
        {ok, Known} -> nats_gateway_mapping_config:of_file(Known);
        {error, Text} -> Text
    end.

page(Settings) ->
    case nats_gateway_schema:check(nats_gateway_mapping_config:page_schema(), Settings) of
        {ok, Known} -> nats_gateway_mapping_config:of_page(Known);
        {error, Text} -> Text
    end.

rule(Text, Direction) ->
    {ok, _, Rule} = nats_gateway_nif:subject_mapping(Text, Direction),
    Rule.

rules(Count) -> [<<"a", (integer_to_binary(N))/binary, " -> b">> || N <- lists:seq(1, Count)].

nothing_is_mapped_unless_it_is_said_test() ->
    ?assertEqual({<<>>, <<>>}, file(#{})),
    ?assertEqual({<<>>, <<>>}, page(#{})),
    ?assertEqual({<<>>, <<>>}, page(#{<<"publish_mappings">> => [<<>>]})),
    ?assertMatch(#{mappings := {<<>>, <<>>}}, nats_gateway_file:defaults()).

file_and_page_have_the_same_rules_test() ->
    A = <<"a.* -> b.$1">>,
    B = <<"c.> -> d.>">>,
    Expected = {
        <<(rule(A, publish))/binary, (rule(B, publish))/binary>>, rule(A, subscribe)
    },
    ?assertEqual(Expected, file(#{<<"publish">> => [A, B], <<"subscribe">> => [A]})),
    Page = #{<<"publish_mappings">> => [A, <<>>, B], <<"subscribe_mappings">> => [A]},
    ?assertEqual(Expected, page(Page)).

the_number_of_rules_is_limited_test_() ->
    [
        ?_assertMatch({Rules, <<>>} when byte_size(Rules) > 0, file(#{<<"publish">> => rules(100)})),
        ?_assertEqual(
            <<"publish: must be at most 100 rules">>, file(#{<<"publish">> => rules(101)})
        ),
        ?_assertEqual(
            <<"subscribe_mappings: must be at most 100 rules">>,
            page(#{<<"subscribe_mappings">> => rules(101)})
        )
    ].

a_wrong_rule_is_refused_with_its_place_and_reason_test_() ->
    Good = <<"ok -> x">>,
    [
        ?_assertEqual(
            <<"publish[2]: must be \"SUBJECT -> SUBJECT\", such as "
                "\"a.* -> fleet.{{wildcard(1)}}.x\"">>,
            file(#{<<"publish">> => [Good, <<"a">>]})
        ),
        ?_assertEqual(
            <<"subscribe[2]: must be reversible for subscriptions: one subject after the arrow, with "
                "each wildcard exactly once, and no function but wildcard">>,
            file(#{<<"subscribe">> => [Good, <<"a.* -> b.{{partition(3,1)}}">>]})
        ),
        ?_assertEqual(
            <<"publish_mappings[3]: has the subject of rule 2">>,
            page(#{<<"publish_mappings">> => [Good, <<"a.* -> b.$1">>, <<"a.* -> c.$1">>]})
        ),
        ?_assertEqual(<<"publish[1]: must be a string">>, file(#{<<"publish">> => [1]})),
        ?_assertEqual(<<"publish[1]: must be a string">>, file(#{<<"publish">> => [<<255>>]})),
        ?_assertEqual(<<"publish: must be a list">>, file(#{<<"publish">> => Good})),
        ?_assertEqual(
            <<"publish[1]: must have at most 1024 bytes">>,
            file(#{<<"publish">> => [<<(binary:copy(<<"a">>, 1020))/binary, " -> b">>]})
        ),
        ?_assertMatch(
            {<<_, _/binary>>, <<>>},
            file(#{<<"publish">> => [<<(binary:copy(<<"a">>, 1019))/binary, " -> b">>]})
        ),
        ?_assertEqual(
            <<"other: unknown key; known here: publish, subscribe">>, file(#{<<"other">> => []})
        )
    ].
