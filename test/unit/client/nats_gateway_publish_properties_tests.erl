%% Headers that set the properties of a PUBLISH, and headers that tell them.
-module(nats_gateway_publish_properties_tests).

-include("nats_gateway.hrl").
-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_publish_properties, [take/3, show/2, error_line/3, status/2]).

-define(LIMITS, #{mountpoint => <<"m/">>, max_qos => 2, retain_available => true}).

pub(Block) -> pub(Block, <<"payload">>).

pub(Block, Payload) ->
    #pub{subject = <<"a">>, topic = <<"m/a">>, headers = Block, payload = Payload}.

block(Lines) -> <<"NATS/1.0\r\n", (<<<<Line/binary, "\r\n">> || Line <- Lines>>)/binary, "\r\n">>.

taken(Line) -> take(pub(block([Line])), block([Line]), ?LIMITS).

%% -------------------------------------------------------------------------------------------
%% Values

values_test_() ->
    Retain = #properties.retain,
    QoS = #properties.qos,
    Expiry = #properties.expiry,
    Format = #properties.payload_format,
    Good = [
        {<<"Mqtt-Retain: true">>, Retain, true},
        {<<"mqtt-retain:TRUE">>, Retain, true},
        {<<"MQTT-RETAIN:  false\t">>, Retain, false},
        {<<"Mqtt-Qos: 0">>, QoS, 0},
        {<<"Mqtt-Qos: 1">>, QoS, 1},
        {<<"mqtt-qOS: 2">>, QoS, 2},
        {<<"Mqtt-Expiry: 1">>, Expiry, 1},
        {<<"Mqtt-Expiry: 4294967295">>, Expiry, 4294967295},
        {<<"Mqtt-Expiry: 90s">>, Expiry, 90},
        {<<"Mqtt-Expiry: 5m">>, Expiry, 300},
        {<<"Mqtt-Expiry: 2h">>, Expiry, 7200},
        {<<"Mqtt-Expiry: 1d">>, Expiry, 86400},
        %% as Go writes durations
        {<<"Mqtt-Expiry: 1h0m30s">>, Expiry, 3630},
        {<<"Mqtt-Expiry: 4294967295s">>, Expiry, 4294967295},
        {<<"Mqtt-Payload-Format: 0">>, Format, 0},
        {<<"Mqtt-Payload-Format: 1">>, Format, 1},
        {<<"Mqtt-Payload-Format: UTF-8">>, Format, 1}
    ],
    [
        {Line,
            ?_test(begin
                {Properties, Pub} = taken(Line),
                ?assertEqual(Value, element(Field, Properties)),
                ?assertEqual(undefined, Pub#pub.headers)
            end)}
     || {Line, Field, Value} <- Good
    ].

wrong_values_test_() ->
    Wrong = [
        {<<"Mqtt-Retain">>, [<<>>, <<"1">>, <<"yes">>, <<"true false">>]},
        {<<"Mqtt-Qos">>, [<<>>, <<"3">>, <<"-1">>, <<"01">>, <<"1.0">>, <<"two">>, <<"256">>]},
        {<<"Mqtt-Expiry">>, [
            <<>>,
            <<"0">>,
            <<"0s">>,
            <<"-1">>,
            <<"4294967296">>,
            <<"4294967296s">>,
            <<"99999999999999999999999">>,
            <<"213503982334602d">>,
            <<"1.5s">>,
            <<"500ms">>,
            <<"s">>,
            <<"1m1h">>,
            <<"1s1s">>,
            <<"1m30">>,
            <<"1 s">>,
            <<"+1">>
        ]},
        {<<"Mqtt-Payload-Format">>, [<<>>, <<"2">>, <<"text">>, <<"utf8">>]},
        {<<"Mqtt-Response-Topic">>, [<<>>, <<"a/+">>, <<"#">>, <<"a\0b">>, <<255>>, binary:copy(<<"r">>, 65536)]}
    ],
    [
        {<<Name/binary, ": ", (binary:part(Value, 0, min(30, byte_size(Value))))/binary>>,
            ?_assertEqual({property, Name, value}, taken(<<Name/binary, ": ", Value/binary>>))}
     || {Name, Values} <- Wrong, Value <- Values
    ].

repeated_test() ->
    Block = block([<<"Mqtt-Qos: 1">>, <<"X: y">>, <<"mqtt-qos: 1">>]),
    ?assertEqual({property, <<"Mqtt-Qos">>, repeated}, take(pub(Block), Block, ?LIMITS)).

continued_test() ->
    Block = block([<<"Mqtt-Qos: 1">>, <<" 2">>]),
    ?assertEqual({property, <<"Mqtt-Qos">>, value}, take(pub(Block), Block, ?LIMITS)).

payload_test() ->
    Block = block([<<"Mqtt-Payload-Format: 1">>]),
    ?assertMatch({#properties{payload_format = 1}, _}, take(pub(Block, <<"\303\274">>), Block, ?LIMITS)),
    ?assertEqual(
        {property, <<"Mqtt-Payload-Format">>, payload}, take(pub(Block, <<255>>), Block, ?LIMITS)
    ),
    Bytes = block([<<"Mqtt-Payload-Format: 0">>]),
    ?assertMatch({#properties{payload_format = 0}, _}, take(pub(Bytes, <<255>>), Bytes, ?LIMITS)).

%% -------------------------------------------------------------------------------------------
%% What is left

rest_test_() ->
    [
        ?_assertMatch({_, #pub{headers = Rest}}, take(pub(Block), Block, ?LIMITS))
     || {Block, Rest} <- [
            {<<"NATS/1.0\r\nMqtt-Qos: 1\r\n\r\n">>, undefined},
            {<<"NATS/1.0\r\nMqtt-Qos: 1\r\nMqtt-Expiry:1\r\n\r\n">>, undefined},
            {<<"NATS/1.0\r\nMqtt-Qos: 1">>, undefined},
            {<<"NATS/1.0\r\nA:1\r\nMqtt-Qos: 1\r\na:  2\r\n\r\n">>, <<"NATS/1.0\r\nA:1\r\na:  2\r\n\r\n">>},
            {<<"NATS/1.0 100 Idle\r\nMqtt-Qos: 1\r\n\r\n">>, <<"NATS/1.0 100 Idle\r\n\r\n">>},
            {<<"NATS/1.0\r\nno colon\r\nMqtt-Qos: 1\r\n\r\n">>, <<"NATS/1.0\r\nno colon\r\n\r\n">>}
        ]
    ].

none_test_() ->
    [
        ?_assertEqual(none, take(pub(Block), Block, ?LIMITS))
     || Block <- [
            <<>>,
            <<"NATS/1.0">>,
            <<"NATS/1.0\r\n\r\n">>,
            block([<<"A: 1">>, <<"Content-Type: text/plain">>]),
            %% other names are other headers
            block([<<"Mqtt-Retained: true">>, <<"Mqtt-Topic: t">>, <<"Mqtt-: 1">>, <<"Mqtt: 1">>, <<"X-Mqtt-Qos: 1">>]),
            %% behind the end of the block
            <<"NATS/1.0\r\nA: 1\r\n\r\nMqtt-Qos: 1\r\n\r\n">>
        ]
    ].

%% However many headers there are, none of these goes on to subscribers.
many_headers_test() ->
    Value = binary:copy(<<"v">>, 100),
    Others = [<<"H", (integer_to_binary(N))/binary, ": ", Value/binary>> || N <- lists:seq(1, 1500)],
    Block = block(Others ++ [<<"Mqtt-Retain: true">>]),
    {#properties{retain = true}, #pub{headers = Rest}} = take(pub(Block), Block, ?LIMITS),
    ?assertEqual(block(Others), Rest).

response_topic_test() ->
    Block = block([<<"Mqtt-Response-Topic: dev/1">>]),
    ?assertMatch(
        {_, #pub{reply_to = <<"dev.1">>, reply_topic = <<"m/dev/1">>}}, take(pub(Block), Block, ?LIMITS)
    ),
    ?assertEqual(
        {property, <<"Mqtt-Response-Topic">>, reply_subject},
        take((pub(Block))#pub{reply_to = <<"r">>, reply_topic = <<"m/r">>}, Block, ?LIMITS)
    ).

%% With the mountpoint it has at most 65535 bytes.
response_topic_length_test() ->
    Line = fun(Size) -> <<"Mqtt-Response-Topic: ", (binary:copy(<<"r">>, Size))/binary>> end,
    ?assertMatch({#properties{}, _}, taken(Line(65533))),
    ?assertEqual({property, <<"Mqtt-Response-Topic">>, too_long}, taken(Line(65534))).

%% -------------------------------------------------------------------------------------------
%% What the broker takes

broker_test_() ->
    Take = fun(Line, Changes) -> take(pub(block([Line])), block([Line]), maps:merge(?LIMITS, Changes)) end,
    [
        ?_assertEqual({property, <<"Mqtt-Qos">>, {max_qos, 1}}, Take(<<"Mqtt-Qos: 2">>, #{max_qos => 1})),
        ?_assertMatch({#properties{qos = 1}, _}, Take(<<"Mqtt-Qos: 1">>, #{max_qos => 1})),
        ?_assertEqual({property, <<"Mqtt-Qos">>, {max_qos, 0}}, Take(<<"Mqtt-Qos: 1">>, #{max_qos => 0})),
        ?_assertMatch({#properties{qos = 0}, _}, Take(<<"Mqtt-Qos: 0">>, #{max_qos => 0})),
        ?_assertEqual(
            {property, <<"Mqtt-Retain">>, not_retained}, Take(<<"Mqtt-Retain: true">>, #{retain_available => false})
        ),
        ?_assertMatch(
            {#properties{retain = false}, _}, Take(<<"Mqtt-Retain: false">>, #{retain_available => false})
        )
    ].

%% -------------------------------------------------------------------------------------------
%% Answers

%% Every client knows the beginning, and a single quote would end the text.
texts_test_() ->
    [
        ?_test(begin
            Line = iolist_to_binary(error_line(<<"a.\"b\"">>, Header, Demand)),
            ?assertMatch(<<"-ERR 'Permissions Violation for Publish to \"a.\\\"b\\\"\", ", _/binary>>, Line),
            ?assertEqual(2, length(binary:matches(Line, <<"'">>))),
            ?assertNotEqual(nomatch, binary:match(Line, <<Header/binary, " must ">>)),
            <<"NATS/1.0 400 Bad ", _/binary>> = Status = status(Header, Demand),
            {[{<<"Nats-Status">>, _}, {Header, _}], _, true} = nats_gateway_nif:header_properties(Status)
        end)
     || {Header, Demand} <- [
            {<<"Mqtt-Retain">>, value},
            {<<"Mqtt-Retain">>, not_retained},
            {<<"Mqtt-Qos">>, value},
            {<<"Mqtt-Qos">>, repeated},
            {<<"Mqtt-Qos">>, {max_qos, 0}},
            {<<"Mqtt-Qos">>, {max_qos, 1}},
            {<<"Mqtt-Expiry">>, value},
            {<<"Mqtt-Payload-Format">>, value},
            {<<"Mqtt-Payload-Format">>, payload},
            {<<"Mqtt-Response-Topic">>, value},
            {<<"Mqtt-Response-Topic">>, reply_subject},
            {<<"Mqtt-Response-Topic">>, too_long}
        ]
    ].

%% -------------------------------------------------------------------------------------------
%% Delivery

facts(Changes) ->
    maps:merge(#{retain => false, qos => 0, expiry => undefined, payload_format => undefined}, Changes).

show_test_() ->
    [
        ?_assertEqual(Shown, show(facts(Facts), Headers))
     || {Facts, Headers, Shown} <- [
            {#{}, undefined, undefined},
            {#{}, block([<<"A:1">>]), block([<<"A:1">>])},
            {#{}, {properties, [{<<"A">>, <<"1">>}], undefined}, {properties, [{<<"A">>, <<"1">>}], undefined}},
            {#{qos => 1}, undefined, {properties, [{<<"Mqtt-Qos">>, <<"1">>}], undefined}},
            {#{retain => true}, undefined,
                {properties, [{<<"Mqtt-Retain">>, <<"true">>}, {<<"Mqtt-Qos">>, <<"0">>}], undefined}},
            {#{expiry => 0, payload_format => 0}, {properties, [{<<"A">>, <<"1">>}], <<"t">>},
                {properties,
                    [{<<"A">>, <<"1">>}, {<<"Mqtt-Expiry">>, <<"0">>}, {<<"Mqtt-Payload-Format">>, <<"0">>}],
                    <<"t">>}},
            {#{qos => 2, expiry => 4294967295}, block([<<"A:1">>]),
                block([<<"A:1">>, <<"Mqtt-Qos: 2">>, <<"Mqtt-Expiry: 4294967295">>])},
            {#{qos => 1}, <<"NATS/1.0 503\r\n\r\n">>, <<"NATS/1.0 503\r\nMqtt-Qos: 1\r\n\r\n">>}
        ]
    ].

%% The publisher's text is no property.
show_hides_test_() ->
    Kept = [{<<"A">>, <<"1">>}, {<<"Mqtt-Topic">>, <<"t">>}],
    Pairs = [{<<"mqtt-retain">>, <<"true">>}, {<<"MQTT-QOS">>, <<"2">>} | Kept],
    [
        ?_assertEqual({properties, Kept, undefined}, show(facts(#{}), {properties, Pairs, undefined})),
        ?_assertEqual(undefined, show(facts(#{}), {properties, [{<<"Mqtt-Expiry">>, <<"1">>}], undefined})),
        ?_assertEqual(
            {properties, [{<<255, "m">>, <<"x">>}, {<<"M", 255>>, <<>>}], undefined},
            show(facts(#{}), {properties, [{<<255, "m">>, <<"x">>}, {<<"M", 255>>, <<>>}], undefined})
        ),
        ?_assertEqual(
            block([<<"A:1">>, <<"Mqtt-Qos: 1">>]),
            show(facts(#{qos => 1}), block([<<"mqtt-qos: 2">>, <<"A:1">>, <<"Mqtt-Response-Topic: x">>]))
        )
    ].
