-module(nats_gateway_mqtt_presence_tests).

-include("nats_gateway_mqtt.hrl").
-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_mqtt_presence, [connected/2, disconnect_reason/1, refused/3, will/1]).

presence() ->
    #{
        topic => <<"presence/a">>,
        connected => <<"on">>,
        disconnected => <<"off">>,
        qos => 1,
        retain => true,
        prefix => <<"presence.">>,
        id => 1
    }.

broker() -> #{max_packet => 1000, max_qos => 1, retain_available => true}.

off_test() ->
    ?assertEqual(undefined, will(none)),
    ?assertEqual(none, connected(none, broker())),
    ?assertEqual(0, disconnect_reason(none)),
    ?assertEqual(#{reason_code => 16#9A}, refused(16#9A, #{reason_code => 16#9A}, none)).

on_test() ->
    ?assertEqual({<<"presence/a">>, <<"off">>, 1, true}, will(presence())),
    ?assertEqual(
        #publish{topic = <<"presence/a">>, payload = <<"on">>, qos = 1, retain = true},
        connected(presence(), broker())
    ),
    %% the broker publishes the will
    ?assertEqual(4, disconnect_reason(presence())).

what_the_broker_takes_test() ->
    ?assertMatch(#publish{qos = 0}, connected(presence(), (broker())#{max_qos := 0})),
    ?assertMatch(#publish{retain = false}, connected(presence(), (broker())#{retain_available := false})),
    Size = byte_size(<<"presence/a">>) + byte_size(<<"on">>) + 10,
    ?assertMatch(#publish{}, connected(presence(), (broker())#{max_packet := Size})),
    ?assertEqual(none, connected(presence(), (broker())#{max_packet := Size - 1})).

%% Not more than the broker takes.
size_of_the_packet_test() ->
    Publish = (connected(presence(), broker()))#publish{packet_id = 65535},
    Size = iolist_size(nats_gateway_mqtt_nif:encode([Publish])),
    ?assert(Size =< byte_size(<<"presence/a">>) + byte_size(<<"on">>) + 10).

refusals_test_() ->
    [
        {integer_to_list(Reason, 16), fun() ->
            Details = refused(Reason, #{}, presence()),
            case Setting of
                none -> ?assertEqual(#{}, Details);
                _ -> ?assertNotEqual(nomatch, binary:match(maps:get(hint, Details), Setting))
            end
        end}
     || {Reason, Setting} <- [
            {16#9A, <<"presence.retain">>},
            {16#9B, <<"presence.qos">>},
            {16#87, <<"presence.topic">>},
            {16#90, <<"presence.topic">>},
            {16#95, <<"presence.topic">>},
            {16#86, none},
            {16#88, none}
        ]
    ].
