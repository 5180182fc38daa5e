-module(nats_gateway_permissions_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_permissions, [new/1, filters/1, tracks_replies/1, requested/3]).

-define(ALL, #{allow => all, deny => []}).

rules(Rules) ->
    maps:merge(#{publish => ?ALL, subscribe => ?ALL, allow_responses => undefined}, Rules).

may_publish(Subject, P) -> may_publish(Subject, 0, P).

may_publish(Subject, Now, P) ->
    {Verdict, _} = nats_gateway_permissions:publish(Subject, fun() -> Now end, P),
    Verdict.

may_subscribe(Subject, P) -> may_subscribe(Subject, undefined, P).

may_subscribe(Subject, QueueGroup, P) ->
    {Verdict, _} = nats_gateway_permissions:subscribe(Subject, QueueGroup, P),
    Verdict.

no_rules_no_permissions_test() ->
    ?assertEqual(none, new(rules(#{}))).

publish_test_() ->
    P = new(rules(#{
        publish => #{allow => [<<"a">>, <<"b.*">>, <<"c.>">>], deny => [<<"b.no">>, <<"c.x.*">>]}
    })),
    [
        ?_assertEqual({Subject, Verdict}, {Subject, may_publish(Subject, P)})
     || {Verdict, Subjects} <- [
            {allow, [<<"a">>, <<"b.x">>, <<"c.d.e">>, <<"c.x">>, <<"c.x.y.z">>, <<"b.*">>]},
            {deny, [<<"b">>, <<"b.no">>, <<"b.x.y">>, <<"c">>, <<"c.x.y">>, <<"d">>, <<>>, <<"b.">>]}
        ],
        Subject <- Subjects
    ].

%% An empty list of a JWT that was narrowed down to nothing.
nothing_allowed_test() ->
    P = new(rules(#{publish => #{allow => [], deny => []}})),
    ?assertEqual(deny, may_publish(<<"a">>, P)).

only_denied_test() ->
    P = new(rules(#{publish => #{allow => all, deny => [<<"a">>]}})),
    ?assertEqual(deny, may_publish(<<"a">>, P)),
    ?assertEqual(allow, may_publish(<<"b">>, P)),
    ?assertEqual(allow, may_subscribe(<<"a">>, P)).

%% EMQX's own gateway reads permissions beside those of NATS: what either denies is denied.
outer_rules_test_() ->
    Only = fun(Subjects) -> #{allow => Subjects, deny => []} end,
    P = new(
        rules(#{
            publish => #{allow => [<<"a.>">>, <<"both">>], deny => [<<"a.no">>]},
            subscribe => Only([<<"a.>">>, <<"q g">>]),
            outer => rules(#{
                publish => #{allow => [<<"*.x">>, <<"a.no">>, <<"both">>], deny => [<<"a.b">>]},
                subscribe => #{allow => [<<"a.*">>, <<"q">>], deny => [<<"a.no">>]}
            })
        })
    ),
    [
        [
            ?_assertEqual({Subject, Verdict}, {Subject, may_publish(Subject, P)})
         || {Verdict, Subjects} <- [
                {allow, [<<"a.x">>, <<"both">>]},
                {deny, [<<"b.x">>, <<"a.y">>, <<"a.no">>, <<"a.b">>]}
            ],
            Subject <- Subjects
        ],
        [
            ?_assertEqual({Subject, Verdict}, {Subject, may_subscribe(Subject, Group, P)})
         || {Verdict, Subject, Group} <- [
                {allow, <<"a.x">>, undefined},
                {allow, <<"a.*">>, undefined},
                {allow, <<"q">>, <<"g">>},
                {deny, <<"q">>, undefined},
                {deny, <<"q">>, <<"h">>},
                {deny, <<"a.>">>, undefined},
                {deny, <<"a.no">>, undefined},
                {deny, <<"b">>, undefined}
            ]
        ]
    ].

outer_rules_alone_test() ->
    Outer = rules(#{publish => #{allow => [<<"a">>], deny => []}}),
    P = new(rules(#{outer => Outer})),
    ?assertEqual({allow, deny}, {may_publish(<<"a">>, P), may_publish(<<"b">>, P)}),
    ?assertEqual(none, new(rules(#{outer => rules(#{})}))).

what_outer_rules_deny_is_not_delivered_test() ->
    Outer = rules(#{subscribe => #{allow => all, deny => [<<"a.no">>]}}),
    P = new(rules(#{subscribe => #{allow => [<<"a.>">>], deny => []}, outer => Outer})),
    ?assertNot(filters(P)),
    {allow, Subscribed} = nats_gateway_permissions:subscribe(<<"a.*">>, undefined, P),
    ?assert(filters(Subscribed)),
    ?assert(filters(nats_gateway_permissions:subscribed(P))),
    {deny, Again} = nats_gateway_permissions:deliver(<<"a.no">>, Subscribed),
    ?assertMatch({deny, _}, nats_gateway_permissions:deliver(<<"a.no">>, Again)),
    ?assertMatch({allow, _}, nats_gateway_permissions:deliver(<<"a.yes">>, Again)).

outer_rules_hold_for_answers_test() ->
    P = requested(<<"inbox.1">>, 0, requested(<<"a.1">>, 0, new(rules(#{
        allow_responses => #{max => 1, expires => infinity},
        outer => rules(#{publish => #{allow => [<<"a.*">>], deny => []}})
    })))),
    ?assertEqual({allow, deny}, {may_publish(<<"a.1">>, P), may_publish(<<"inbox.1">>, P)}),
    ?assertEqual(deny, may_publish(<<"a.2">>, P)).

%% What is published goes to a topic, whatever the client calls it.
another_name_of_a_denied_subject_is_denied_test_() ->
    Wide = <<16#3000/utf8>>,
    Deny = [<<"secret.>">>, <<"c%01">>, <<"d%E3%80%80d">>, <<"e", Wide/binary>>],
    Rules = rules(#{publish => #{allow => all, deny => Deny}, subscribe => #{allow => all, deny => Deny}}),
    P = new(Rules),
    Reply = fun(Topic) -> nats_gateway_nif:reply_subject({topic, Topic, <<"id">>}, <<>>) end,
    [
        ?_assertEqual({Subject, Verdict}, {Subject, may_publish(Subject, P)})
     || {Verdict, Subject} <- [
            {deny, Reply(<<"secret/x">>)},
            {allow, Reply(<<"secret">>)},
            {allow, <<"_MQTT.tsecret.c">>},
            {deny, <<"$delayed.5.secret.x">>},
            {deny, <<"$delayed.5.$delayed.5.secret.x">>},
            {deny, Reply(<<"$delayed/5/secret/x">>)},
            {allow, <<"$delayed.5.secret">>},
            {allow, <<"$delayed.5">>},
            {allow, <<"$delayed.secret.x">>},
            {deny, <<"c", 1>>},
            {deny, <<"c%01">>},
            {allow, <<"c%2501">>},
            {deny, <<"d", Wide/binary, "d">>},
            {deny, <<"e", Wide/binary>>},
            {deny, <<"e%E3%80%80">>}
        ]
    ] ++
        [
            ?_assertEqual({Subject, QueueGroup, deny}, {Subject, QueueGroup, may_subscribe(Subject, QueueGroup, P)})
         || QueueGroup <- [undefined, <<"q">>],
            Subject <- [<<"c", 1>>, <<"c%01">>, <<"d", Wide/binary, "d">>, <<"e%E3%80%80">>]
        ].

%% The answer to an MQTT client goes to its response topic, which is what must be allowed.
an_answer_to_mqtt_needs_its_response_topic_test() ->
    P = new(rules(#{publish => #{allow => [<<"resp.>">>], deny => [<<"resp.no">>]}})),
    Reply = fun(Topic) -> nats_gateway_nif:reply_subject({topic, Topic, <<"id">>}, <<>>) end,
    ?assertEqual(allow, may_publish(Reply(<<"resp/1">>), P)),
    ?assertEqual(deny, may_publish(Reply(<<"resp/no">>), P)),
    ?assertEqual(deny, may_publish(Reply(<<"other">>), P)).

%% A delayed message is published twice: as it is called, and at its end.
both_names_of_a_delayed_message_must_be_allowed_test() ->
    P = new(rules(#{publish => #{allow => [<<"$delayed.*.a">>, <<"a">>, <<"$delayed.5.b">>, <<"c">>], deny => []}})),
    ?assertEqual(
        [allow, deny, deny], [may_publish(S, P) || S <- [<<"$delayed.5.a">>, <<"$delayed.5.b">>, <<"$delayed.5.c">>]]
    ).

%% What is remembered is bounded, and right at, and behind, the bound.
verdicts_are_bounded_test() ->
    P = new(rules(#{publish => #{allow => [<<"a.*">>], deny => []}})),
    Ask = fun(N, Acc) ->
        Good = <<"a.", (integer_to_binary(N))/binary>>,
        {allow, One} = nats_gateway_permissions:publish(Good, fun() -> 0 end, Acc),
        {deny, Two} = nats_gateway_permissions:publish(<<"b", Good/binary>>, fun() -> 0 end, One),
        Two
    end,
    Size = fun(Acc) -> erts_debug:flat_size(Acc) end,
    Few = lists:foldl(Ask, P, lists:seq(1, 128)),
    ?assert(Size(Few) > Size(P)),
    Many = lists:foldl(Ask, Few, lists:seq(1, 10000)),
    ?assert(Size(Many) =< Size(Few) + 200),
    ?assertEqual(allow, may_publish(<<"a.10000">>, Many)),
    ?assertEqual(deny, may_publish(<<"ba.10000">>, Many)).

subscribe_test_() ->
    P = new(rules(#{
        subscribe => #{
            allow => [<<"a">>, <<"b.*">>, <<"c.>">>, <<"q v1">>, <<"r">>, <<"r w.*">>],
            deny => [<<"c.no">>, <<"a bad.>">>]
        }
    })),
    [
        ?_assertEqual({Subject, Queue, Verdict}, {Subject, Queue, may_subscribe(Subject, Queue, P)})
     || {Verdict, Subject, Queue} <- [
            {allow, <<"a">>, undefined},
            {allow, <<"a">>, <<"any">>},
            {deny, <<"a">>, <<"bad.x">>},
            {allow, <<"b.*">>, undefined},
            {deny, <<"b.>">>, undefined},
            {deny, <<"*">>, undefined},
            {deny, <<">">>, undefined},
            {allow, <<"c.>">>, undefined},
            {allow, <<"c.*">>, undefined},
            {deny, <<"c.no">>, undefined},
            {deny, <<"c.no">>, <<"g">>},
            {deny, <<"q">>, undefined},
            {allow, <<"q">>, <<"v1">>},
            {deny, <<"q">>, <<"v2">>},
            {allow, <<"r">>, undefined},
            {allow, <<"r">>, <<"w.1">>},
            {deny, <<"r">>, <<"w">>},
            {deny, <<"r">>, <<"v">>}
        ]
    ].

%% A queue entry for another queue does not open what is denied to all.
a_deny_wins_over_queue_entries_test() ->
    P = new(rules(#{subscribe => #{allow => all, deny => [<<"a">>, <<"a v1">>]}})),
    [?assertEqual(deny, may_subscribe(<<"a">>, Q, P)) || Q <- [undefined, <<"v1">>, <<"v2">>]].

deliveries_are_filtered_for_wildcards_only_test() ->
    P = new(rules(#{subscribe => #{allow => all, deny => [<<"a.no">>, <<"q g">>]}})),
    ?assertNot(filters(P)),
    {allow, Literal} = nats_gateway_permissions:subscribe(<<"a.yes">>, undefined, P),
    ?assertNot(filters(Literal)),
    {allow, Wild} = nats_gateway_permissions:subscribe(<<"*.no">>, undefined, Literal),
    ?assert(filters(Wild)),
    {allow, Still} = nats_gateway_permissions:subscribe(<<"b">>, undefined, Wild),
    ?assert(filters(Still)),
    Deliver = fun(Subject) ->
        {Verdict, After} = nats_gateway_permissions:deliver(Subject, Wild),
        %% the same from memory
        {Verdict, _} = nats_gateway_permissions:deliver(Subject, After),
        Verdict
    end,
    ?assertEqual([deny, allow, allow], [Deliver(S) || S <- [<<"a.no">>, <<"b.no">>, <<"q">>]]).

without_denied_subjects_nothing_is_filtered_test() ->
    P = new(rules(#{subscribe => #{allow => [<<">">>], deny => [<<"a g">>]}})),
    {allow, After} = nats_gateway_permissions:subscribe(<<">">>, undefined, P),
    ?assertNot(filters(After)).

%% -------------------------------------------------------------------------------------------
%% Responses

responder(Max, Expires) ->
    new(rules(#{allow_responses => #{max => Max, expires => Expires}})).

%% The verdicts of one answer after the other, at these times.
answers(Subject, Times, P) ->
    {Verdicts, _} = lists:mapfoldl(
        fun(Now, Acc) -> nats_gateway_permissions:publish(Subject, fun() -> Now end, Acc) end, P, Times
    ),
    Verdicts.

who_may_respond_may_do_nothing_else_test() ->
    P = responder(1, 10),
    ?assert(tracks_replies(P)),
    ?assertEqual(deny, may_publish(<<"a">>, P)),
    ?assertEqual([deny], answers(<<"r">>, [0], P)),
    ?assertEqual([allow, deny, deny], answers(<<"r">>, [0, 0, 0], requested(<<"r">>, 0, P))).

responses_are_counted_and_expire_test_() ->
    [
        ?_assertEqual(Verdicts, answers(<<"r">>, Times, requested(<<"r">>, 100, responder(Max, Expires))))
     || {Max, Expires, Times, Verdicts} <- [
            {2, 10, [100, 110, 110], [allow, allow, deny]},
            {2, 10, [111], [deny]},
            {2, 10, [100, 111, 100], [allow, deny, deny]},
            {infinity, 10, [100, 101, 110, 111], [allow, allow, allow, deny]},
            {1, infinity, [1000000, 1000000], [allow, deny]}
        ]
    ].

another_request_counts_anew_test() ->
    P = requested(<<"r">>, 0, responder(1, 10)),
    {allow, Used} = nats_gateway_permissions:publish(<<"r">>, fun() -> 0 end, P),
    ?assertEqual([allow, deny], answers(<<"r">>, [20, 20], requested(<<"r">>, 20, Used))).

what_may_be_published_anyway_is_not_counted_test() ->
    P = new(rules(#{
        publish => #{allow => [<<"_INBOX.>">>], deny => []},
        allow_responses => #{max => 1, expires => 10}
    })),
    ?assertEqual(
        [allow, allow, allow], answers(<<"_INBOX.a">>, [0, 0, 99], requested(<<"_INBOX.a">>, 0, P))
    ).

%% Requests that are never answered take a bounded amount of memory, and the latest are known.
requests_are_bounded_test() ->
    Reply = fun(N) -> <<"r.", (integer_to_binary(N))/binary>> end,
    Ask = fun(N, Acc) -> requested(Reply(N), 0, Acc) end,
    Full = lists:foldl(Ask, responder(1, infinity), lists:seq(1, 4096)),
    ?assertEqual([allow], answers(Reply(1), [0], Full)),
    More = lists:foldl(Ask, Full, lists:seq(4097, 100000)),
    ?assert(erts_debug:flat_size(More) < 2 * erts_debug:flat_size(Full)),
    ?assertEqual([deny], answers(Reply(1), [0], More)),
    [?assertEqual([allow, deny], answers(Reply(N), [0, 0], More)) || N <- [100000, 99000, 98000]].
