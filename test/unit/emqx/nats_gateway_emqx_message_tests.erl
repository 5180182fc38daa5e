%% NATS in EMQX's messages, and back.
-module(nats_gateway_emqx_message_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_emqx_message, [properties/5, reply/1, headers/1]).

-define(CONSTANT, #{protocol => nats, properties => #{}}).

properties_test_() ->
    Expected = fun(Properties, More) ->
        maps:merge(#{protocol => nats, properties => Properties}, More)
    end,
    [
        ?_assertEqual(Headers, properties(?CONSTANT, Correlation, ReplyTo, ReplyTopic, undefined))
     || {Correlation, ReplyTo, ReplyTopic, Headers} <- [
            {undefined, undefined, undefined, ?CONSTANT},
            {undefined, <<"r.s">>, <<"r/s">>, Expected(#{'Response-Topic' => <<"r/s">>}, #{})},
            {undefined, <<"r">>, {<<"t">>, <<"c">>},
                Expected(#{'Response-Topic' => <<"t">>, 'Correlation-Data' => <<"c">>}, #{})},
            %% an answer
            {<<"c">>, undefined, undefined, Expected(#{'Correlation-Data' => <<"c">>}, #{})},
            %% an answer that is a request
            {<<"c">>, <<"r">>, <<"t">>,
                Expected(#{'Response-Topic' => <<"t">>, 'Correlation-Data' => <<"c">>}, #{})},
            %% both with data: the subject itself has it
            {<<"c">>, <<"r">>, {<<"t">>, <<"d">>},
                Expected(#{'Correlation-Data' => <<"c">>}, #{reply_to => <<"r">>})},
            %% no topic stands for the subject
            {undefined, <<"r..s">>, invalid, Expected(#{}, #{reply_to => <<"r..s">>})}
        ]
    ].

%% Whatever goes out as properties comes in again.
reply_test_() ->
    [
        ?_assertEqual(Reply, reply(properties(?CONSTANT, undefined, Subject, Topic, undefined)))
     || {Subject, Topic, Reply} <- [
            {undefined, undefined, undefined},
            {<<"r">>, <<"t">>, {topic, <<"t">>, undefined}},
            {<<"r">>, {<<"t">>, <<"c">>}, {topic, <<"t">>, <<"c">>}},
            {<<"r">>, invalid, {subject, <<"r">>}}
        ]
    ].

-define(EXACT, <<"NATS/1.0\r\nFoo: a\r\nFoo: b\r\n\r\n">>).
-define(OTHER, <<"NATS/1.0\r\nFoo:a\r\n\r\n">>).

headers_test_() ->
    Of = fun(Block) -> properties(?CONSTANT, undefined, undefined, undefined, Block) end,
    [
        ?_assertMatch(
            #{properties := #{'User-Property' := [{<<"Foo">>, <<"a">>}, {<<"Foo">>, <<"b">>}]}},
            Of(?EXACT)
        ),
        ?_assertEqual(
            {properties, [{<<"Foo">>, <<"a">>}, {<<"Foo">>, <<"b">>}], undefined},
            headers(Of(?EXACT))
        ),
        %% Towards MQTT it is the same, towards NATS it is the block that was sent.
        ?_assertMatch(#{properties := #{'User-Property' := [{<<"Foo">>, <<"a">>}]}}, Of(?OTHER)),
        ?_assertEqual(?OTHER, headers(Of(?OTHER))),
        ?_assertMatch(
            #{properties := #{'Content-Type' := <<"x/y">>}},
            Of(<<"NATS/1.0\r\nContent-Type: x/y\r\n\r\n">>)
        ),
        ?_assertEqual(undefined, headers(?CONSTANT)),
        ?_assertEqual(undefined, headers(#{})),
        ?_assertEqual(
            {properties, [], <<"x/y">>}, headers(#{properties => #{'Content-Type' => <<"x/y">>}})
        )
    ].

%% Who publishes over REST or from a rule may give anything as a property.
properties_that_are_no_text_test_() ->
    Of = fun(Pairs) -> headers(#{properties => #{'User-Property' => Pairs}}) end,
    [
        ?_assertEqual({properties, [{<<"k">>, Text}], undefined}, Of([{<<"k">>, Value}]))
     || {Value, Text} <- [
            {<<"text">>, <<"text">>},
            {1, <<"1">>},
            {-7, <<"-7">>},
            {1.5, <<"1.5">>},
            {true, <<"true">>},
            {null, <<"null">>},
            {word, <<"word">>}
        ]
    ] ++
        [
            ?_assertEqual(
                {properties, [{<<"a">>, <<"b">>}, {<<"c">>, <<"d">>}], undefined},
                Of([{<<"a">>, <<"b">>}, Pair, {<<"c">>, <<"d">>}])
            )
         || Pair <- [
                {<<"k">>, #{<<"nested">> => 1}},
                {<<"k">>, [1, 2]},
                {<<"k">>, {tuple}},
                {<<"k">>, undefined},
                {#{}, <<"v">>},
                pair,
                {<<"k">>, <<"v">>, more}
            ]
        ] ++
        [
            ?_assertEqual({properties, [{<<"1">>, <<"2">>}], undefined}, Of([{1, 2}])),
            ?_assertEqual({properties, [{<<"a">>, <<"1">>}], undefined}, Of(#{<<"a">> => 1})),
            ?_assertEqual({properties, [], undefined}, Of(none)),
            ?_assertEqual({properties, [{<<"a">>, <<"b">>}], undefined}, Of([{<<"a">>, <<"b">>} | x])),
            ?_assertEqual(
                {properties, [], <<"1">>}, headers(#{properties => #{'Content-Type' => 1}})
            ),
            ?_assertEqual(
                {properties, [], undefined}, headers(#{properties => #{'Content-Type' => [1]}})
            ),
            ?_assertEqual(undefined, headers(#{properties => none})),
            ?_assertEqual(undefined, headers(#{nats_gateway_header_block => 1})),
            ?_assertEqual(undefined, reply(#{properties => #{'Response-Topic' => 1}})),
            ?_assertEqual(undefined, reply(#{properties => none})),
            ?_assertEqual(
                {topic, <<"r">>, <<"1">>},
                reply(#{properties => #{'Response-Topic' => <<"r">>, 'Correlation-Data' => 1}})
            ),
            ?_assertEqual(
                {topic, <<"r">>, undefined},
                reply(#{properties => #{'Response-Topic' => <<"r">>, 'Correlation-Data' => #{}}})
            )
        ].

messages_of_the_built_in_gateway_test() ->
    Headers = #{reply_to => <<"r.s">>, nats_headers => #{<<"k">> => <<"v">>}},
    ?assertEqual({subject, <<"r.s">>}, reply(Headers)),
    ?assertEqual({properties, [{<<"k">>, <<"v">>}], undefined}, headers(Headers)),
    ?assertEqual(undefined, reply(#{reply_to => undefined})),
    ?assertEqual(undefined, headers(#{nats_headers => #{}})).
