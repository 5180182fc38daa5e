%% Which packet a broker may have hung up on.
-module(nats_gateway_suspects_tests).

-include("nats_gateway_mqtt.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(SUSPECTS, nats_gateway_suspects).

publish(Topic) -> #publish{topic = Topic}.

subscribe(Filter) -> #subscribe{filters = [{Filter, 0, false, 0}]}.

suspect(Kind, Topic) -> {nats_gateway_hangups:packet(Kind, Topic), Topic}.

sent(Packets, Suspects) -> ?SUSPECTS:sent([{Packet, none} || Packet <- Packets], Suspects).

one_or_many_test_() ->
    Unsubscribe = #unsubscribe{filters = [<<"a">>]},
    [
        ?_assertEqual(
            Expected,
            ?SUSPECTS:blame(closed, lists:foldl(fun sent/2, ?SUSPECTS:new(false), Batches))
        )
     || {Batches, Expected} <- [
            {[], none},
            {[[]], none},
            {[[Unsubscribe]], none},
            {[[publish(<<"a">>)]], {closed, suspect(publish, <<"a">>)}},
            {[[Unsubscribe, subscribe(<<"a">>)]], {closed, suspect(subscribe, <<"a">>)}},
            {
                [[#subscribe{filters = [{<<"a">>, 1, false, 2, true}]}]],
                {closed, suspect(subscribe, <<"a">>)}
            },
            {[[publish(<<"a">>), publish(<<"b">>)]], {closed, unknown}},
            {[[publish(<<"a">>)], [publish(<<"b">>)]], {closed, unknown}},
            {[[publish(<<"a">>)], [Unsubscribe]], {closed, suspect(publish, <<"a">>)}}
        ]
    ].

settled_test() ->
    One = sent([publish(<<"a">>)], ?SUSPECTS:new(false)),
    ?assertEqual({blamed, suspect(publish, <<"a">>)}, ?SUSPECTS:blame(blamed, One)),
    ?assertEqual(none, ?SUSPECTS:blame(blamed, ?SUSPECTS:settled(One))),
    Many = sent([publish(<<"a">>), publish(<<"b">>)], One),
    ?assertEqual(none, ?SUSPECTS:blame(closed, ?SUSPECTS:settled(Many))).

%% The eldest that has no answer.
watched_test() ->
    New = ?SUSPECTS:new(true),
    ?assert(?SUSPECTS:is_watched(New)),
    ?assertNot(?SUSPECTS:is_watched(?SUSPECTS:new(false))),
    ?assertEqual(none, ?SUSPECTS:blame(closed, New)),
    [A, B] = [publish(<<"a">>), subscribe(<<"b">>)],
    Marked = ?SUSPECTS:marked(B, 2, ?SUSPECTS:marked(A, 1, New)),
    ?assertEqual({closed_again, suspect(publish, <<"a">>)}, ?SUSPECTS:blame(closed, Marked)),
    ?assertEqual({blamed, suspect(publish, <<"a">>)}, ?SUSPECTS:blame(blamed, Marked)),
    ?assertNot(?SUSPECTS:is_harmless(A, Marked)),
    One = ?SUSPECTS:answered(1, Marked),
    ?assert(?SUSPECTS:is_harmless(A, One)),
    ?assertNot(?SUSPECTS:is_harmless(B, One)),
    ?assert(?SUSPECTS:is_harmless(#unsubscribe{filters = [<<"b">>]}, One)),
    ?assertEqual({closed_again, suspect(subscribe, <<"b">>)}, ?SUSPECTS:blame(closed, One)),
    %% a barrier changes nothing
    ?assertEqual(One, ?SUSPECTS:settled(One)),
    ?assertEqual(none, ?SUSPECTS:blame(closed, ?SUSPECTS:answered(2, One))).

%% So many topics are not kept: the client is as any other then.
bounded_test() ->
    Marked = lists:foldl(
        fun(N, Acc) -> ?SUSPECTS:marked(publish(integer_to_binary(N)), N, Acc) end,
        ?SUSPECTS:new(true),
        lists:seq(1, 1001)
    ),
    Most = ?SUSPECTS:answered(1000, Marked),
    ?assert(?SUSPECTS:is_watched(Most)),
    All = ?SUSPECTS:answered(1001, Most),
    ?assertNot(?SUSPECTS:is_watched(All)),
    ?assertEqual({closed, unknown}, ?SUSPECTS:blame(closed, All)).

label_test_() ->
    [
        ?_assertEqual(Label, ?SUSPECTS:label(Topic))
     || {Topic, Label} <- [
            {<<"a/b">>, <<"a/b">>},
            {binary:copy(<<"a">>, 129), binary:copy(<<"a">>, 128)},
            %% no half of a character
            {binary:copy(<<"€"/utf8>>, 50), binary:copy(<<"€"/utf8>>, 42)}
        ]
    ].
