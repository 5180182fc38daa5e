-module(nats_gateway_probe_tests).

-include("nats_gateway_mqtt.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(PROBE, nats_gateway_probe).

available() ->
    #{
        maximum_qos => 2,
        wildcard_subscription_available => true,
        shared_subscription_available => true,
        subscription_identifier_available => true
    }.

%% The filters below a mountpoint, and a message that both plain ones and the group match.
packets_test() ->
    {Packets, Probe} = ?PROBE:start(<<"m/">>, available()),
    [
        #subscribe{packet_id = 1, subscription_id = 1, filters = [{Topic, 0, false, 2}]},
        #subscribe{packet_id = 2, subscription_id = 2, filters = [{Wildcard, 0, false, 2}]},
        #subscribe{packet_id = 3, subscription_id = 3, filters = [{Shared, 0, false, 2}]},
        #publish{topic = Topic, payload = <<>>, qos = 1, packet_id = 4},
        pingreq
    ] = Packets,
    ?assertMatch(<<"m/nats_gateway/probe/", _:16/binary>>, Topic),
    ?assertEqual(<<Topic/binary, "/#">>, Wildcard),
    ?assertEqual(<<"$share/nats_gateway/", Topic/binary>>, Shared),
    ?assertEqual([Topic, Wildcard, Shared], ?PROBE:filters(Probe)),
    ?assert(iolist_size(nats_gateway_mqtt_nif:encode(Packets)) > 0).

%% What the broker has not is not asked for.
unavailable_test() ->
    {Packets, _} = ?PROBE:start(<<>>, #{
        maximum_qos => 0,
        wildcard_subscription_available => false,
        shared_subscription_available => false,
        subscription_identifier_available => false
    }),
    ?assertMatch(
        [
            #subscribe{packet_id = 1, subscription_id = undefined, filters = [_]},
            #publish{
                payload = <<>>,
                qos = 0,
                retain = false,
                packet_id = undefined,
                response_topic = undefined,
                correlation_data = undefined,
                content_type = undefined,
                user_properties = [],
                subscription_ids = []
            },
            pingreq
        ],
        Packets
    ).

%% Answers and copies in every order: the end is where all are there.
every_order_test_() ->
    [
        ?_assertEqual({done, [pong_overtakes || comes_before(ping, copies, Order)]}, run(Order))
     || Order <- orders([suback, puback, ping, copies])
    ].

comes_before(One, Other, [One | Rest]) -> lists:member(Other, Rest);
comes_before(One, Other, [_ | Rest]) -> comes_before(One, Other, Rest).

orders([]) -> [[]];
orders(List) -> [[Head | Tail] || Head <- List, Tail <- orders(List -- [Head])].

run(Order) ->
    {[#subscribe{filters = [{Topic, _, _, _}]} | _], Probe} = ?PROBE:start(<<>>, available()),
    Packets = lists:append([packets(Kind, Topic) || Kind <- Order]),
    {Last, Done} = lists:foldl(
        fun(Packet, {State, Acc}) ->
            ?assertNotEqual(done, State),
            ?PROBE:packet(Packet, Acc)
        end,
        {more, Probe},
        Packets
    ),
    {Last, ?PROBE:quirks(Done)}.

packets(suback, _) -> [#suback{packet_id = Id, reasons = [0]} || Id <- [1, 2, 3]];
packets(puback, _) -> [#puback{packet_id = 4, reason = 0}];
packets(ping, _) -> [pingresp];
packets(copies, Topic) -> [copy(Topic, [Id]) || Id <- [1, 2, 3]].

copy(Topic, Ids) ->
    #publish{topic = Topic, payload = <<>>, subscription_ids = Ids}.

%% What a broker answers, and what is made of it.
quirks_test_() ->
    All = [0, 0, 0],
    [
        ?_assertEqual(Expected, outcome(Subacks, Puback, Copies))
     || {Expected, Subacks, Puback, Copies} <- [
            {{done, []}, All, 0, [[1], [2], [3]]},
            {{done, []}, All, 0, [[1, 2], [3]]},
            {{done, []}, All, 0, [[3, 2, 1]]},
            {{done, [puback_lies]}, All, 16#10, [[1], [2], [3]]},
            {{late, [no_identifiers]}, All, 0, [[], [], []]},
            {{late, [no_identifiers]}, All, 0, [[]]},
            {{late, [no_shared_identifiers]}, All, 0, [[1], [2], []]},
            {{late, [no_shared_identifiers]}, All, 0, [[1, 2], []]},
            {{late, [merges]}, All, 0, [[1], [3]]},
            {{late, [merges]}, All, 0, [[2], [3]]},
            {{late, [puback_lies, merges]}, All, 16#10, [[2], [3]]},
            %% one that has not come yet; nothing can be told of it
            {{late, inconclusive}, All, 0, []},
            {{late, inconclusive}, All, 16#10, []},
            %% what is denied is not missed
            {{done, []}, [0, 16#87, 0], 0, [[1], [3]]},
            {{done, []}, [0, 0, 16#9E], 0, [[1], [2]]},
            {{done, inconclusive}, [16#87, 16#87, 16#87], 16#87, []}
        ]
    ].

outcome(Subacks, Puback, Copies) ->
    {[#subscribe{filters = [{Topic, _, _, _}]} | _], Probe} = ?PROBE:start(<<>>, available()),
    Packets =
        [#suback{packet_id = Id, reasons = [Reason]} || {Id, Reason} <- lists:zip([1, 2, 3], Subacks)] ++
            [copy(Topic, Ids) || Ids <- Copies] ++ [#puback{packet_id = 4, reason = Puback}, pingresp],
    {Last, Done} = lists:foldl(
        fun(Packet, {_, Acc}) -> ?PROBE:packet(Packet, Acc) end, {more, Probe}, Packets
    ),
    {Last, ?PROBE:quirks(Done)}.
