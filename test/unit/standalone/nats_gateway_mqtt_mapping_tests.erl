%% Messages between NATS and MQTT 5, without a broker.
-module(nats_gateway_mqtt_mapping_tests).

-include("nats_gateway.hrl").
-include("nats_gateway_mqtt.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(MAPPING, nats_gateway_mqtt_mapping).
-define(SECRET, <<"secret of this gateway">>).

pub() -> #pub{subject = <<"a.b">>, topic = <<"a/b">>, payload = <<"hi">>}.

publish(Pub) -> publish(Pub, trust).

publish(Pub, Strings) -> ?MAPPING:publish(Pub, 0, Strings, ?SECRET).

%% The reply and headers that a NATS client gets.
message(Packet) -> message(Packet, ?SECRET).

message(Packet = #publish{topic = Topic, payload = Payload}, Secret) ->
    Key = {undefined, <<"#">>},
    #delivery{key = Key, topic = Topic, payload = Payload, reply = Reply, headers = Headers} =
        ?MAPPING:delivery(Packet, Key, Secret),
    {Reply, Headers}.

plain_test() ->
    ?assertEqual(#publish{topic = <<"a/b">>, payload = <<"hi">>}, publish(pub())),
    ?assertEqual({undefined, undefined}, message(publish(pub()))).

quality_of_service_test() ->
    #publish{qos = 1, packet_id = undefined} = ?MAPPING:publish(pub(), 1, trust, ?SECRET).

reply_test_() ->
    [
        ?_assertEqual({Reply, undefined}, message(publish(Pub)))
     || {Pub, Reply} <- [
            {(pub())#pub{reply_to = <<"r.1">>, reply_topic = <<"r/1">>}, {topic, <<"r/1">>, undefined}},
            {(pub())#pub{reply_to = <<"_MQTT.x">>, reply_topic = {<<"r">>, <<"c">>}},
                {topic, <<"r">>, <<"c">>}},
            %% no topic stands for it
            {(pub())#pub{reply_to = <<"a..b">>, reply_topic = invalid}, {subject, <<"a..b">>}},
            %% no MQTT string either
            {(pub())#pub{reply_to = <<255>>, reply_topic = invalid}, undefined}
        ]
    ].

%% A message has one Correlation Data, and that of an answer comes first.
answer_with_a_reply_test() ->
    Answer = (pub())#pub{topic = {<<"r">>, <<"c">>}, reply_to = <<"_MQTT.x">>, reply_topic = {<<"s">>, <<"d">>}},
    #publish{topic = <<"r">>, correlation_data = <<"c">>, response_topic = undefined} =
        publish(Answer),
    Plain = Answer#pub{reply_to = <<"s">>, reply_topic = <<"s">>},
    #publish{topic = <<"r">>, correlation_data = <<"c">>, response_topic = <<"s">>} = publish(Plain).

%% Each block arrives byte for byte.
blocks() ->
    [
        <<"NATS/1.0\r\n\r\n">>,
        <<"NATS/1.0\r\nA: b\r\n\r\n">>,
        <<"NATS/1.0\r\nA:b\r\nA:  c\r\na: d \r\n\r\n">>,
        <<"NATS/1.0 503\r\n\r\n">>,
        <<"NATS/1.0 100 Idle Heartbeat\r\nX: 1\r\n\r\n">>,
        <<"NATS/1.0\r\nNats-Reply-To: me\r\nNats-Header-Block: x\r\n\r\n">>,
        <<"NATS/1.0\r\nA: ", 255, 0, "\r\n\r\n">>,
        <<"NATS/1.0\r\nContent-Type: text/plain\r\n\r\n">>,
        <<"NATS/1.0\r\nB: ", (binary:copy(<<"x">>, 70000))/binary, "\r\n\r\n">>,
        <<"no block at all">>
    ].

header_block_test_() ->
    [
        fun() ->
            Packet = publish((pub())#pub{headers = Block}, check),
            {undefined, Headers} = message(Packet),
            ?assertEqual(Block, block(Headers)),
            %% and MQTT takes it
            _ = nats_gateway_mqtt_nif:encode([Packet])
        end
     || Block <- blocks()
    ].

block(Block) when is_binary(Block) -> Block;
block(Properties) ->
    Data = nats_gateway_nif:encode(
        [#message{topic = <<"t">>, sids = [<<"1">>], headers = Properties, payload = <<>>}], <<>>
    ),
    [_, Frame] = binary:split(iolist_to_binary(element(1, Data)), <<"\r\n">>),
    binary:part(Frame, 0, byte_size(Frame) - 2).

%% The same properties of another gateway, or of any MQTT client, are a block only if they look like one.
header_block_of_another_test_() ->
    [
        ?_assertEqual(
            Expected,
            message(publish((pub())#pub{headers = Block}, check), <<"another secret">>)
        )
     || {Block, Expected} <- [
            {<<"NATS/1.0\r\nA:  b\r\n\r\n">>, {undefined, <<"NATS/1.0\r\nA:  b\r\n\r\n">>}},
            {<<"no block at all">>, {undefined, undefined}}
        ]
    ].

%% It goes into a control line.
forged_reply_subject_test_() ->
    [
        ?_assertEqual({Expected, undefined}, message(Packet))
     || {Value, Expected} <- [
            {<<"a.b">>, {subject, <<"a.b">>}},
            {<<>>, undefined},
            {<<"a b">>, undefined},
            {<<"a\tb">>, undefined},
            {<<"a\r\nPUB">>, undefined}
        ],
        Packet <- [#publish{topic = <<"t">>, user_properties = [{<<"Nats-Reply-To">>, Value}]}]
    ].

%% What the codec would refuse. The rest of a message is as it was.
bad_topics_test_() ->
    Size = fun(N) -> binary:copy(<<"c">>, N) end,
    [
        ?_assertEqual(Expected, ?MAPPING:without_bad_topics(Pub))
     || {Topic, Carried} <- [
            {invalid, invalid},
            {<<"a/b">>, <<"a/b">>},
            {<<"a", 0>>, invalid},
            {{<<"a">>, Size(65535)}, {<<"a">>, Size(65535)}},
            {{<<"a">>, Size(65536)}, invalid},
            {{<<"a", 0>>, <<>>}, invalid}
        ],
        {Pub, Expected} <- [
            {(pub())#pub{topic = Topic}, (pub())#pub{topic = Carried}},
            {(pub())#pub{reply_to = <<"r">>, reply_topic = Topic},
                (pub())#pub{reply_to = <<"r">>, reply_topic = Carried}}
        ]
    ].

%% The exact size decides.
fits_test_() ->
    [
        {integer_to_list(PayloadSize), fun() ->
            Pub = (pub())#pub{payload = binary:copy(<<"x">>, PayloadSize), headers = Block},
            Packet = publish(Pub),
            Size = iolist_size(nats_gateway_mqtt_nif:encode([Packet])),
            ?assert(?MAPPING:fits(Packet, Block, Size + 64)),
            ?assert(?MAPPING:fits(Packet, Block, Size)),
            ?assertNot(?MAPPING:fits(Packet, Block, Size - 1))
        end}
     || PayloadSize <- [0, 1, 1000], Block <- [undefined, <<"NATS/1.0\r\nA: b\r\n\r\n">>]
    ].
