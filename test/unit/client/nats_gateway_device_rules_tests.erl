-module(nats_gateway_device_rules_tests).

-include_lib("eunit/include/eunit.hrl").

rules(Texts) ->
    {ok, #{rules := Rules}} =
        nats_gateway_schema:check(nats_gateway_device_config:file_schema(), #{<<"rules">> => Texts}),
    Rules.

route(Subject, Texts) -> route(Subject, <<>>, Texts).

route(Subject, Mountpoint, Texts) ->
    Topic = nats_gateway_nif:topic(Subject, Mountpoint),
    nats_gateway_device_rules:route(Topic, Mountpoint, rules(Texts)).

topics(Subject, Text) ->
    case route(Subject, [Text]) of
        #{command := Command, answer := Answer, filter := Filter} -> {Command, Answer, Filter};
        Other -> Other
    end.

a_request_becomes_two_topics_test_() ->
    [
        ?_assertEqual({Subject, Expected}, {Subject, topics(Subject, Rule)})
     || {Rule, Subject, Expected} <- [
            {<<"dev.*.get -> cmd/${1} -> cmd/${1}/reply">>, <<"dev.a.get">>,
                {<<"cmd/a">>, <<"cmd/a/reply">>, <<"cmd/a/reply">>}},
            {<<"dev.*.get -> cmd/${1} -> cmd/${1}/reply">>, <<"dev.a.set">>, none},
            {<<"dev.*.get -> cmd/${1} -> cmd/${1}/reply">>, <<"dev.a">>, none},
            {<<"dev.*.get -> cmd/${1} -> cmd/${1}/reply">>, <<"dev.a.get.x">>, none},
            {<<"*.*.> -> ${2}/${1}/${3} -> r">>, <<"a.b.c.d">>, {<<"b/a/c/d">>, <<"r">>, <<"r">>}},
            %% `dev.>' does not match `dev'.
            {<<"dev.> -> c/${1} -> r">>, <<"dev">>, none},
            {<<"dev.> -> c/${1} -> r">>, <<"dev.x">>, {<<"c/x">>, <<"r">>, <<"r">>}},
            %% The values are levels of the topic.
            {<<"dev.*.get -> cmd/${1} -> cmd/${1}/reply">>, <<"dev.a//b.get">>,
                {<<"cmd/a.b">>, <<"cmd/a.b/reply">>, <<"cmd/a.b/reply">>}},
            {<<"dev.* -> cmd/${1} -> r">>, <<"dev.a+b">>, {<<"cmd/a%2Bb">>, <<"r">>, <<"r">>}},
            %% Neither side of a rule reaches what belongs to the broker.
            {<<"> -> cmd/${1} -> r">>, <<"$SYS.x">>, none},
            {<<"dev.> -> ${1} -> r">>, <<"dev.$SYS.x">>, no_topic},
            {<<"dev.* -> c -> ${1}/r">>, <<"dev.$share">>, no_topic},
            {<<"dev.* -> ${1} -> same">>, <<"dev.same">>, no_topic}
        ]
    ].

the_first_rule_counts_test() ->
    Rules = [<<"a.b -> first -> r">>, <<"a.* -> second -> r">>],
    ?assertMatch(#{command := <<"first">>}, route(<<"a.b">>, Rules)),
    ?assertMatch(#{command := <<"second">>}, route(<<"a.c">>, Rules)).

the_mountpoint_is_a_prefix_test() ->
    ?assertEqual(
        #{command => <<"m/c/x">>, answer => <<"m/r/x">>, filter => <<"m/r/x">>},
        route(<<"a.x">>, <<"m/">>, [<<"a.* -> c/${1} -> r/${1}">>])
    ).

each_request_has_an_id_of_its_own_test() ->
    Rule = [<<"a.* -> c/${1}/${id} -> r/${1}/re-${id}/x">>],
    Route = #{command := <<"c/d/", Id/binary>>, answer := Answer, filter := Filter} = route(<<"a.d">>, Rule),
    ?assertEqual(24, byte_size(Id)),
    ?assertEqual(<<"r/d/re-", Id/binary, "/x">>, Answer),
    ?assertEqual(<<"r/d/+/x">>, Filter),
    ?assertNotEqual(Route, route(<<"a.d">>, Rule)).

the_longest_topic_test() ->
    Fits = binary:copy(<<"x">>, 65535 - 2),
    ?assertMatch({<<"c/", Fits/binary>>, _, _}, topics(<<"a.", Fits/binary>>, <<"a.* -> c/${1} -> r">>)),
    ?assertEqual(no_topic, topics(<<"a.", Fits/binary>>, <<"a.* -> c/x${1} -> r">>)).
