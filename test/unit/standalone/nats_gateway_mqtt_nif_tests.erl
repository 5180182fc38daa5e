%% The MQTT 5 codec, percent coding and TOML.
-module(nats_gateway_mqtt_nif_tests).

-include("nats_gateway_mqtt.hrl").
-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_mqtt_nif, [
    decode/2, encode/1, is_string/1, is_topic/1, quote/1, unquote/1, toml/1
]).

-define(MAX, 268435460).

publish(Topic, Payload) ->
    #publish{topic = Topic, payload = Payload}.

rich(Payload) ->
    #publish{
        topic = <<"t/é"/utf8>>,
        payload = Payload,
        qos = 1,
        retain = true,
        packet_id = 65535,
        response_topic = <<"r/t">>,
        correlation_data = <<0, 255>>,
        content_type = <<"text/plain">>,
        user_properties = [{<<"A">>, <<"1">>}, {<<"a">>, <<>>}, {<<>>, <<"2">>}, {<<"A">>, <<"1">>}],
        subscription_ids = []
    }.

bytes(Packets) -> iolist_to_binary(encode(Packets)).

%% -------------------------------------------------------------------------------------------
%% Encoding, byte for byte

encode_test_() ->
    Cases = [
        {pingreq, <<16#C0, 0>>},
        {#puback{packet_id = 258, reason = 0}, <<16#40, 2, 1, 2>>},
        {#puback{packet_id = 1, reason = 16#10}, <<16#40, 3, 0, 1, 16#10>>},
        {#pubrel{packet_id = 258}, <<16#62, 2, 1, 2>>},
        {#disconnect{reason = 0}, <<16#E0, 1, 0>>},
        {#disconnect{reason = 16#82}, <<16#E0, 1, 16#82>>},
        {publish(<<"a/b">>, <<"xyz">>), <<16#30, 9, 0, 3, "a/b", 0, "xyz">>},
        {publish(<<"a">>, <<>>), <<16#30, 4, 0, 1, "a", 0>>},
        {
            #publish{
                topic = <<"a">>,
                payload = <<"x">>,
                qos = 1,
                retain = true,
                packet_id = 7,
                response_topic = <<"r">>,
                correlation_data = <<"c">>,
                content_type = <<"t">>,
                user_properties = [{<<"k">>, <<"v">>}],
                subscription_ids = []
            },
            <<16#33, 26, 0, 1, "a", 0, 7, 19, 8, 0, 1, "r", 9, 0, 1, "c", 3, 0, 1, "t", 38, 0, 1,
                "k", 0, 1, "v", "x">>
        },
        %% for 258 seconds
        {
            #publish{topic = <<"a">>, payload = <<"x">>, retain = {true, 258, undefined}},
            <<16#31, 10, 0, 1, "a", 5, 2, 0, 0, 1, 2, "x">>
        },
        {
            #connect{client_id = <<"id">>, keepalive = 60},
            <<16#10, 15, 0, 4, "MQTT", 5, 2, 0, 60, 0, 0, 2, "id">>
        },
        {
            #connect{
                client_id = <<>>,
                username = <<"u">>,
                password = <<0, 1>>,
                keepalive = 0,
                receive_maximum = 20,
                maximum_packet_size = 65536
            },
            <<16#10, 28, 0, 4, "MQTT", 5, 16#C2, 0, 0, 8, 33, 0, 20, 39, 0, 1, 0, 0, 0, 0, 0, 1,
                "u", 0, 2, 0, 1>>
        },
        {
            #connect{client_id = <<>>, keepalive = 0, will = {<<"t">>, <<>>, 0, false}},
            <<16#10, 19, 0, 4, "MQTT", 5, 2#00000110, 0, 0, 0, 0, 0, 0, 0, 1, "t", 0, 0>>
        },
        {
            #connect{
                client_id = <<>>, username = <<"u">>, keepalive = 0, will = {<<"t">>, <<0>>, 1, true}
            },
            <<16#10, 23, 0, 4, "MQTT", 5, 2#10101110, 0, 0, 0, 0, 0, 0, 0, 1, "t", 0, 1, 0, 0, 1, "u">>
        },
        {
            #connect{client_id = <<>>, username = <<>>, password = <<"token">>, keepalive = 0},
            <<16#10, 22, 0, 4, "MQTT", 5, 16#C2, 0, 0, 0, 0, 0, 0, 0, 0, 5, "token">>
        },
        {
            #subscribe{
                packet_id = 1,
                subscription_id = 300,
                filters = [{<<"a/+">>, 1, true, 2}, {<<"#">>, 0, false, 0}]
            },
            <<16#82, 16, 0, 1, 3, 11, 16#AC, 2, 0, 3, "a/+", 2#100101, 0, 1, "#", 0>>
        },
        {
            #subscribe{packet_id = 1, subscription_id = undefined, filters = [{<<"$share/g/a">>, 0, false, 1}]},
            <<16#82, 16, 0, 1, 0, 0, 10, "$share/g/a", 2#010000>>
        },
        %% messages keep their retain flag
        {
            #subscribe{packet_id = 1, filters = [{<<"a">>, 1, false, 2, true}]},
            <<16#82, 7, 0, 1, 0, 0, 1, "a", 2#101001>>
        },
        {#unsubscribe{packet_id = 1, filters = [<<"a">>, <<"b/#">>]}, <<16#A2, 11, 0, 1, 0, 0, 1, "a", 0, 3, "b/#">>}
    ],
    [?_assertEqual(Bytes, bytes([Packet])) || {Packet, Bytes} <- Cases] ++
        [?_assertEqual(<<<<B/binary>> || {_, B} <- Cases>>, bytes([P || {P, _} <- Cases]))].

encode_nothing_test() -> ?assertEqual(<<>>, bytes([])).

%% Every width of the remaining length, and both ways to pass a payload.
encode_lengths_test_() ->
    [
        ?_assertMatch({ok, [#publish{topic = <<"t">>, payload = Payload}], <<>>, 2},
            decode(bytes([publish(<<"t">>, Payload)]), ?MAX))
     || Size <- [0, 1, 122, 123, 124, 4095, 4096, 16378, 16379, 16380, 2097145, 2097147, 3000000],
        Payload <- [binary:copy(<<"x">>, Size)]
    ].

encode_references_test() ->
    Payload = binary:copy(<<"x">>, 4096),
    [_, Part, _] = encode([publish(<<"t">>, Payload), publish(<<"t">>, <<"y">>)]),
    ?assertEqual(Payload, Part).

bad_packets_test_() ->
    Publish = publish(<<"t">>, <<>>),
    Long = binary:copy(<<"a">>, 65536),
    [
        ?_assertError(badarg, encode([Packet]))
     || Packet <- [
            ping,
            <<>>,
            {},
            {pingreq},
            {nonsense, 1},
            {publish},
            #puback{packet_id = 0, reason = 0},
            #puback{packet_id = 65536, reason = 0},
            #puback{packet_id = 1, reason = 1},
            #puback{packet_id = 1, reason = 256},
            #disconnect{reason = 1},
            #unsubscribe{packet_id = 1, filters = []},
            #unsubscribe{packet_id = 1, filters = <<"a">>},
            #unsubscribe{packet_id = 1, filters = [<<"$share/a">>]},
            #subscribe{packet_id = 1, subscription_id = 1, filters = []},
            #subscribe{packet_id = 0, subscription_id = 1, filters = [{<<"a">>, 0, false, 0}]},
            #subscribe{packet_id = 1, subscription_id = 0, filters = [{<<"a">>, 0, false, 0}]},
            #subscribe{packet_id = 1, subscription_id = 268435456, filters = [{<<"a">>, 0, false, 0}]},
            #subscribe{packet_id = 1, subscription_id = 1, filters = [{<<"a">>, 3, false, 0}]},
            #subscribe{packet_id = 1, subscription_id = 1, filters = [{<<"a">>, 0, false, 3}]},
            #subscribe{packet_id = 1, subscription_id = 1, filters = [{<<"a">>, 0, 1, 0}]},
            #connect{client_id = <<"id">>, password = <<"password alone">>, keepalive = 0},
            #connect{client_id = <<"id">>, keepalive = 65536},
            #connect{client_id = <<"id">>, keepalive = 0, receive_maximum = 0},
            #connect{client_id = <<"id">>, keepalive = 0, maximum_packet_size = 0},
            #connect{client_id = <<"id">>, username = Long, keepalive = 0},
            #connect{client_id = <<"id">>, keepalive = 0, will = {<<>>, <<>>, 0, false}},
            #connect{client_id = <<"id">>, keepalive = 0, will = {<<"a/#">>, <<>>, 0, false}},
            #connect{client_id = <<"id">>, keepalive = 0, will = {<<"a">>, <<>>, 3, false}},
            #connect{client_id = <<"id">>, keepalive = 0, will = {<<"a">>, <<>>, 0, undefined}},
            #connect{client_id = <<"id">>, keepalive = 0, will = {<<"a">>, Long, 0, false}},
            #connect{client_id = <<"id">>, keepalive = 0, will = {<<"a">>, <<>>, 0}},
            #connect{client_id = <<"id">>, keepalive = 0, will = none},
            #connect{client_id = <<"id">>, username = <<>>, password = Long, keepalive = 0},
            setelement(2, Publish, <<>>),
            setelement(2, Publish, <<"a/+">>),
            setelement(2, Publish, <<"#">>),
            setelement(2, Publish, <<0>>),
            setelement(2, Publish, <<255>>),
            setelement(2, Publish, Long),
            setelement(2, Publish, undefined),
            setelement(3, Publish, undefined),
            setelement(3, Publish, ["iodata"]),
            %% a packet identifier with QoS 0, and none with QoS 1
            setelement(6, Publish, 1),
            setelement(4, Publish, 1),
            setelement(4, setelement(6, Publish, 1), 3),
            setelement(5, Publish, 1),
            setelement(5, Publish, {true, 1}),
            setelement(5, Publish, {1, 1, 1}),
            setelement(5, Publish, {true, 1 bsl 32, undefined}),
            setelement(5, Publish, {true, -1, undefined}),
            setelement(5, Publish, {true, undefined, 2}),
            setelement(7, Publish, <<1>>),
            setelement(7, Publish, <<>>),
            setelement(7, Publish, <<"a/+">>),
            setelement(8, Publish, Long),
            setelement(9, Publish, <<"a\tb">>),
            setelement(10, Publish, [{<<"a">>}]),
            setelement(10, Publish, [{<<"a">>, <<"\n">>}]),
            setelement(10, Publish, [{<<"a">>, <<"b">>} | tail]),
            setelement(10, Publish, undefined),
            setelement(11, Publish, [1])
        ]
    ] ++ [?_assertError(badarg, encode(Bad)) || Bad <- [pingreq, [pingreq | pingreq], #{}]].

%% -------------------------------------------------------------------------------------------
%% Decoding

decode_test_() ->
    Cases = [
        {<<16#D0, 0>>, pingresp},
        {<<16#40, 2, 1, 2>>, #puback{packet_id = 258, reason = 0}},
        {<<16#40, 3, 0, 1, 16#10>>, #puback{packet_id = 1, reason = 16#10}},
        {<<16#40, 4, 0, 1, 16#87, 0>>, #puback{packet_id = 1, reason = 16#87}},
        {<<16#40, 9, 0, 1, 16#97, 5, 31, 0, 2, "no">>, #puback{packet_id = 1, reason = 16#97}},
        {<<16#90, 5, 0, 1, 0, 1, 16#87>>, #suback{packet_id = 1, reasons = [1, 16#87]}},
        {<<16#B0, 5, 0, 1, 0, 0, 16#11>>, #unsuback{packet_id = 1, reasons = [0, 16#11]}},
        {<<16#E0, 0>>, #disconnect{reason = 0}},
        {<<16#E0, 1, 16#8E>>, #disconnect{reason = 16#8E}},
        {<<16#E0, 7, 16#98, 5, 31, 0, 2, "no">>,
            #disconnect{reason = 16#98, properties = #{reason_string => <<"no">>}}},
        {<<16#20, 3, 0, 0, 0>>, #connack{session_present = false, reason = 0, properties = #{}}},
        {<<16#20, 3, 1, 16#87, 0>>, #connack{session_present = true, reason = 16#87, properties = #{}}},
        {
            <<16#20, 37, 0, 0, 34, 33, 0, 20, 34, 0, 7, 36, 0, 37, 0, 39, 0, 0, 255, 255, 18, 0, 2, "id",
                40, 0, 41, 1, 42, 0, 19, 0, 30, 17, 0, 0, 0, 0>>,
            #connack{session_present = false, reason = 0, properties = #{
                receive_maximum => 20,
                topic_alias_maximum => 7,
                maximum_qos => 0,
                retain_available => false,
                maximum_packet_size => 65535,
                assigned_client_identifier => <<"id">>,
                wildcard_subscription_available => false,
                subscription_identifier_available => true,
                shared_subscription_available => false,
                server_keep_alive => 30
            }}
        },
        {<<16#30, 8, 0, 1, "t", 2, 11, 5, "xy">>, setelement(11, publish(<<"t">>, <<"xy">>), [5])},
        {
            <<16#30, 14, 0, 1, "t", 10, 11, 5, 11, 16#80, 1, 2, 0, 0, 0, 9>>,
            (publish(<<"t">>, <<>>))#publish{retain = {false, 9, undefined}, subscription_ids = [5, 128]}
        },
        {<<16#31, 6, 0, 1, "t", 2, 1, 1>>, (publish(<<"t">>, <<>>))#publish{retain = {true, undefined, 1}}},
        {<<16#50, 2, 1, 2>>, #pubrec{packet_id = 258, reason = 0}},
        {<<16#50, 3, 0, 1, 16#87>>, #pubrec{packet_id = 1, reason = 16#87}},
        {<<16#70, 2, 1, 2>>, #pubcomp{packet_id = 258}},
        {<<16#70, 3, 0, 1, 16#92>>, #pubcomp{packet_id = 1}}
    ],
    [?_assertEqual({ok, [Packet], <<>>, 2}, decode(Bytes, ?MAX)) || {Bytes, Packet} <- Cases] ++
        [
            ?_assertEqual(
                {ok, [P || {_, P} <- Cases], <<>>, 2},
                decode(<<<<B/binary>> || {B, _} <- Cases>>, ?MAX)
            )
        ].

round_trip_test() ->
    Properties = [{true, 0, undefined}, {false, 1, 0}, {true, 16#FFFFFFFF, 1}, {false, undefined, 1}],
    Packets = [publish(<<"t">>, <<"p">>), rich(<<>>)] ++
        [(rich(<<"r">>))#publish{retain = Retain} || Retain <- Properties] ++
        [#puback{packet_id = 9, reason = 16#10}, rich(<<0:16000>>)],
    ?assertEqual({ok, Packets, <<>>, 2}, decode(bytes(Packets), ?MAX)).

%% However the stream is cut, the same packets come out, and `Need' is what is needed.
every_split_test() ->
    Packets = [publish(<<"t">>, <<"p">>), rich(<<"abc">>), #puback{packet_id = 9, reason = 0}, rich(<<0:1600>>)],
    Bytes = bytes(Packets),
    [
        begin
            <<Head:At/binary, Tail/binary>> = Bytes,
            {ok, First, Rest, Need} = decode(Head, ?MAX),
            ?assert(Need > byte_size(Rest)),
            {ok, Then, <<>>, 2} = decode(<<Rest/binary, Tail/binary>>, ?MAX),
            ?assertEqual(Packets, First ++ Then)
        end
     || At <- lists:seq(0, byte_size(Bytes) - 1)
    ].

need_test_() ->
    [
        ?_assertMatch({ok, [], Bytes, Need}, decode(Bytes, ?MAX))
     || {Bytes, Need} <- [
            {<<>>, 2},
            {<<16#30>>, 2},
            {<<16#30, 16#FF>>, 3},
            {<<16#30, 16#FF, 16#FF, 16#FF>>, 5},
            {<<16#30, 5>>, 7},
            {<<16#30, 16#80, 1, 0>>, 131},
            {<<16#30, 16#FF, 16#FF, 16#FF, 16#7F, 0>>, 268435460}
        ]
    ].

%% Known from the fixed header, before a byte of it is kept.
max_packet_size_test_() ->
    Bytes = bytes([publish(<<"t">>, <<"0123456789">>)]),
    Size = byte_size(Bytes),
    [
        ?_assertMatch({ok, [_], <<>>, 2}, decode(Bytes, Size)),
        ?_assertEqual({error, packet_too_large, []}, decode(Bytes, Size - 1)),
        ?_assertEqual({error, packet_too_large, []}, decode(binary:part(Bytes, 0, 2), Size - 1)),
        ?_assertEqual({error, packet_too_large, [pingresp]},
            decode(<<16#D0, 0, Bytes/binary>>, Size - 1))
    ].

malformed_test_() ->
    [
        ?_assertEqual({error, malformed_packet, [pingresp]}, decode(<<16#D0, 0, B/binary>>, ?MAX))
     || B <- [
            <<16#30, 16#FF, 16#FF, 16#FF, 16#FF, 1>>,
            <<16#30, 0>>,
            <<16#30, 1, 0>>,
            <<16#30, 2, 0, 1>>,
            <<16#30, 3, 0, 1, "t">>,
            <<16#30, 4, 0, 1, "t", 1>>,
            <<16#32, 5, 0, 1, "t", 0, 1>>,
            <<16#32, 6, 0, 1, "t", 0, 0, 0>>,
            <<16#36, 6, 0, 1, "t", 0, 1, 0>>,
            %% no topic, and no alias was offered
            <<16#30, 3, 0, 0, 0>>,
            <<16#30, 6, 0, 0, 3, 35, 0, 1>>,
            %% reserved bits
            <<16#D1, 0>>,
            <<16#41, 2, 0, 1>>,
            <<0, 0>>,
            <<16#40, 1, 0>>,
            <<16#40, 2, 0, 0>>,
            <<16#40, 3, 0, 1, 1>>,
            <<16#90, 3, 0, 1, 0>>,
            <<16#90, 2, 0, 1>>,
            <<16#20, 3, 0, 3, 0>>,
            <<16#20, 6, 0, 0, 3, 33, 0, 0>>,
            <<16#E0, 1, 1>>
        ]
    ].

%% A CONNACK of MQTT 3.1 or 3.1.1, whether it accepts or refuses.
old_version_test_() ->
    [
        ?_assertEqual({error, old_version, [pingresp]}, decode(<<16#D0, 0, 16#20, 2, 0, Code>>, ?MAX))
     || Code <- [0, 1, 5]
    ].

unexpected_test_() ->
    [
        ?_assertEqual({error, unexpected_packet, []}, decode(Bytes, ?MAX))
     || Bytes <- [
            bytes([pingreq]),
            bytes([#connect{client_id = <<>>, keepalive = 0}]),
            bytes([#subscribe{packet_id = 1, subscription_id = 1, filters = [{<<"a">>, 0, false, 0}]}]),
            <<16#62, 2, 0, 1>>,
            <<16#F0, 0>>
        ]
    ].

%% A response topic that nobody could publish to.
bad_response_topic_test_() ->
    [
        ?_assertEqual(
            {ok, [publish(<<"t">>, <<>>)], <<>>, 2},
            decode(<<16#30, (7 + Size), 0, 1, "t", (3 + Size), 8, 0, Size, Topic/binary>>, ?MAX)
        )
     || Topic <- [<<>>, <<"+">>, <<"a/#">>], Size <- [byte_size(Topic)]
    ].

%% Text that is not UTF-8, a property that is none: one message is lost, not the connection.
unreadable_test_() ->
    [
        ?_assertEqual(
            {ok, [pingresp, #unreadable{packet_id = Id}, pingresp], <<>>, 2},
            decode(<<16#D0, 0, Bytes/binary, 16#D0, 0>>, ?MAX)
        )
     || {Bytes, Id} <- [
            {<<16#30, 5, 0, 1, 255, 0, "p">>, undefined},
            {<<16#32, 7, 0, 1, 255, 0, 9, 0, "p">>, 9},
            {<<16#30, 11, 0, 1, "t", 7, 38, 0, 1, "a", 0, 1, 255>>, undefined},
            {<<16#30, 6, 0, 1, "t", 2, 99, 0>>, undefined},
            {<<16#32, 10, 0, 1, "t", 1, 2, 4, 11, 1, 11, 0>>, 258}
        ]
    ].

%% Bounded work: the rest is for another call.
many_packets_test() ->
    Packets = [publish(<<"t">>, integer_to_binary(N)) || N <- lists:seq(1, 5000)],
    Bytes = bytes(Packets),
    {ok, First, Rest, 0} = decode(Bytes, ?MAX),
    ?assert(length(First) < 5000),
    ?assertEqual(Packets, First ++ decode_all(Rest)).

decode_all(Bytes) ->
    case decode(Bytes, ?MAX) of
        {ok, Packets, Rest, 0} -> Packets ++ decode_all(Rest);
        {ok, Packets, <<>>, 2} -> Packets
    end.

%% More properties than a normal scheduler is held for, alone and between others.
long_packet_test() ->
    Pairs = [{integer_to_binary(N), <<"v">>} || N <- lists:seq(1, 20000)],
    Long = setelement(10, publish(<<"t">>, <<"p">>), Pairs),
    ?assertEqual({ok, [Long], <<>>, 2}, decode(bytes([Long]), ?MAX)),
    Packets = [publish(<<"a">>, <<>>), Long, publish(<<"b">>, <<>>)],
    ?assertEqual(Packets, decode_all(bytes(Packets))),
    ?assertEqual({error, packet_too_large, []}, decode(bytes([Long]), 1000)).

%% What a payload keeps alive.
references_test_() ->
    Kept = fun(Size, Count) ->
        Payload = binary:copy(<<"x">>, Size),
        Bytes = bytes([publish(<<"t">>, Payload) || _ <- lists:seq(1, Count)]),
        {ok, Packets, _, _} = decode(Bytes, ?MAX),
        ?assertEqual([Payload], lists:usort([element(3, Packet) || Packet <- Packets])),
        {lists:max([binary:referenced_byte_size(element(3, P)) || P <- Packets]), byte_size(Bytes)}
    end,
    [
        %% A copy on the heap; OTP 27 counts the bits of those.
        ?_assertMatch({Size, _} when Size =:= 64; Size =:= 8 * 64, Kept(64, 100)),
        ?_assertMatch({4096, _}, Kept(65, 100)),
        ?_assertMatch({4096, _}, Kept(1023, 100)),
        ?_test(begin
            {All, All} = Kept(1024, 60)
        end)
    ].

%% Not more than 64 times its own size, in whichever call the chunk is decoded; the rest neither.
behind_a_large_payload_test_() ->
    [
        ?_test(begin
            Payloads = [binary:copy(<<"p">>, Size) || Size <- [Before | lists:duplicate(30, Kept)]],
            Messages = bytes([publish(<<"t">>, Payload) || Payload <- Payloads]),
            Unfinished = binary:part(bytes([publish(<<"t">>, binary:copy(<<"u">>, 5000))]), 0, Cut),
            {Packets, Rest} = decode_cut(<<Messages/binary, Unfinished/binary>>),
            Parts = [Rest | [element(3, Packet) || Packet <- Packets]],
            ?assertEqual([Unfinished | Payloads], Parts),
            [
                ?assert(binary:referenced_byte_size(Part) =< max(8 * 64, 64 * byte_size(Part)))
             || Part <- Parts
            ]
        end)
     || Kept <- [64, 65, 1023, 1024, 4096, 4097, 20000], Before <- [0, 100000, 1048576],
        Cut <- [1, 70, 4000]
    ].

decode_cut(Bytes) ->
    case decode(Bytes, ?MAX) of
        {ok, Packets, Rest, 0} ->
            {More, Left} = decode_cut(Rest),
            {Packets ++ More, Left};
        {ok, Packets, Rest, _} ->
            {Packets, Rest}
    end.

%% Nothing that comes over the wire raises or crashes.
random_bytes_test_() ->
    {timeout, 60, fun() ->
        _ = rand:seed(exsss, {1, 2, 3}),
        [survives(rand:bytes(rand:uniform(64))) || _ <- lists:seq(1, 50000)]
    end}.

mutations_test_() ->
    {timeout, 60, fun() ->
        _ = rand:seed(exsss, {4, 5, 6}),
        Packets = <<
            (bytes([publish(<<"t">>, <<"p">>), rich(<<"abc">>), #puback{packet_id = 9, reason = 16#10}]))/binary,
            16#90, 5, 0, 1, 0, 1, 16#87,
            16#20, 16, 0, 0, 13, 33, 0, 20, 39, 0, 0, 255, 255, 18, 0, 2, "id",
            16#E0, 7, 16#98, 5, 31, 0, 2, "no"
        >>,
        [survives(mutated(rand:uniform(4), Packets)) || _ <- lists:seq(1, 50000)]
    end}.

mutated(0, Bytes) ->
    Bytes;
mutated(N, Bytes) ->
    At = rand:uniform(byte_size(Bytes)) - 1,
    <<Head:At/binary, _, Tail/binary>> = Bytes,
    mutated(N - 1, <<Head/binary, (rand:uniform(256) - 1), Tail/binary>>).

survives(Bytes) ->
    case decode(Bytes, 100000) of
        {ok, _, Rest, Need} -> ?assert(Need =:= 0 orelse Need > byte_size(Rest));
        {error, Reason, _} -> ?assert(is_atom(Reason))
    end.

bad_arguments_test_() ->
    [
        ?_assertError(badarg, decode("list", 1)),
        ?_assertError(badarg, decode(<<1:4>>, 1)),
        ?_assertError(badarg, decode(<<>>, -1)),
        ?_assertError(badarg, decode(<<>>, infinity)),
        ?_assertError(badarg, quote("list")),
        ?_assertError(badarg, unquote(undefined)),
        ?_assertError(badarg, is_string(undefined)),
        ?_assertError(badarg, toml([]))
    ].

%% -------------------------------------------------------------------------------------------
%% Strings

is_string_test_() ->
    True = [<<>>, <<"a b~">>, <<"é"/utf8>>, <<"日本"/utf8>>, <<16#A0/utf8>>, <<16#10000/utf8>>],
    False =
        [<<255>>, <<16#C3>>, <<16#ED, 16#A0, 16#80>>] ++
            [
                <<"a", Code/utf8, "b">>
             || Code <-
                    lists:seq(0, 31) ++
                        lists:seq(16#7F, 16#9F) ++ [16#FDD0, 16#FDEF, 16#FFFE, 16#FFFF, 16#10FFFF]
            ],
    [?_assert(is_string(Text)) || Text <- [binary:copy(<<"a">>, 65535) | True]] ++
        [?_assertNot(is_string(Text)) || Text <- [binary:copy(<<"a">>, 65536) | False]].

is_topic_test_() ->
    [?_assert(is_topic(Text)) || Text <- [<<"a">>, <<"/">>, <<"$a/*/>">>, <<"é"/utf8>>]] ++
        [?_assertNot(is_topic(Text)) || Text <- [<<>>, <<"+">>, <<"a/#">>, <<"a", 1>>, <<255>>]].

quote_test_() ->
    All = list_to_binary(lists:seq(0, 255)),
    [
        ?_assertEqual(<<"NATS/1.0%0D%0AA: b%25%0D%0A">>, quote(<<"NATS/1.0\r\nA: b%\r\n">>)),
        ?_assertEqual(All, unquote(quote(All))),
        ?_assert(is_string(quote(All))),
        ?_assertEqual(<<>>, quote(<<>>)),
        %% what is no code stays
        ?_assertEqual(<<"%", "%4", "%zz", "A">>, unquote(<<"%%4%zz%41">>))
    ].

%% -------------------------------------------------------------------------------------------
%% TOML

toml_test() ->
    Text =
        <<"# comment\n"
        "name = \"g\\u00e9\"\n"
        "port = 4222\n"
        "negative = -1\n"
        "ratio = 0.5\n"
        "flag = true\n"
        "when = 2026-01-02T03:04:05Z\n"
        "list = [1, \"a\", [true], {x = 1}]\n"
        "[upstream]\n"
        "url = 'mqtt://127.0.0.1'\n"
        "[listeners.tcp.default]\n"
        "bind = \"0.0.0.0:4222\"\n"
        "[[array]]\n"
        "a = 1\n"
        "[[array]]\n"
        "a = 2\n">>,
    ?assertEqual(
        {ok, #{
            <<"name">> => <<"gé"/utf8>>,
            <<"port">> => 4222,
            <<"negative">> => -1,
            <<"ratio">> => 0.5,
            <<"flag">> => true,
            <<"when">> => <<"2026-01-02T03:04:05Z">>,
            <<"list">> => [1, <<"a">>, [true], #{<<"x">> => 1}],
            <<"upstream">> => #{<<"url">> => <<"mqtt://127.0.0.1">>},
            <<"listeners">> => #{
                <<"tcp">> => #{<<"default">> => #{<<"bind">> => <<"0.0.0.0:4222">>}}
            },
            <<"array">> => [#{<<"a">> => 1}, #{<<"a">> => 2}]
        }},
        toml(Text)
    ).

toml_numbers_test_() ->
    [
        ?_assertEqual({ok, #{<<"a">> => Number}}, toml(<<"a = ", Text/binary>>))
     || {Text, Number} <- [
            {<<"9223372036854775807">>, 9223372036854775807},
            {<<"0xff">>, 255},
            {<<"1_000">>, 1000},
            {<<"1e3">>, 1000.0}
        ]
    ].

toml_empty_test() -> ?assertEqual({ok, #{}}, toml(<<>>)).

%% The line, and none of the text in it: it may hold a password.
toml_error_test_() ->
    [
        ?_test(begin
            {error, Error} = toml(Text),
            Prefix = <<"line ", (integer_to_binary(Line))/binary, ": ">>,
            ?assertEqual(byte_size(Prefix), binary:longest_common_prefix([Error, Prefix])),
            ?assertEqual(nomatch, binary:match(Error, <<"secret">>))
        end)
     || {Text, Line} <- [
            {<<"a = \n">>, 1},
            {<<"a = 1\n\n[upstream\n">>, 3},
            {<<"[upstream]\npassword = \"secret\npassword = 1\n">>, 2},
            {<<"[upstream]\npassword = secret\n">>, 2},
            {<<"a = 1\nb = 2\na = 'secret'\n">>, 3},
            {<<"a = 1\nb = \"", 255, "\"\n">>, 2},
            {<<"a = 9223372036854775808\n">>, 1}
        ]
    ].

%% Neither infinity nor NaN is a float of the VM.
toml_not_a_float_test_() ->
    [
        ?_assertMatch({error, <<"line 2: ", _/binary>>}, toml(<<"b = 1\na = ", Text/binary>>))
     || Text <- [<<"inf">>, <<"-inf">>, <<"nan">>, <<"[nan]">>]
    ].

toml_deep_test() ->
    Deep = [<<"a = ">>, binary:copy(<<"[">>, 100000), binary:copy(<<"]">>, 100000)],
    ?assertMatch({error, _}, toml(iolist_to_binary(Deep))).
