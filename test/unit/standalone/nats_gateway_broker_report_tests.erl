%% What `nats_gateway check' says clients have. test/cli has it with brokers.
-module(nats_gateway_broker_report_tests).

-include_lib("eunit/include/eunit.hrl").

-define(GOOD, #{granted => #{}, probe => [], no_local => true, tells_no_subscribers => true}).

said(Findings) -> said(Findings, #{}).

said(Findings, Settings) ->
    Config = maps:merge(nats_gateway_file:defaults(), Settings),
    iolist_to_binary([[Sentence, $\n] || Sentence <- nats_gateway_broker_report:sentences(Findings, Config)]).

has(Findings, Text) -> ?_assertMatch({match, _}, re:run(said(Findings), Text)).

granted(Granted) -> ?GOOD#{granted := Granted}.

sentences_test_() ->
    [
        has(?GOOD, "INFO has max_payload 1048576, as"),
        has(?GOOD, "Queue groups are available"),
        has(?GOOD, "is answered with 503 at once"),
        has(?GOOD, "At most 4096 messages"),
        has(granted(#{receive_maximum => 1}), "At most 1 messages"),
        has(granted(#{receive_maximum => 65535}), "At most 4096 messages"),
        has(granted(#{shared_subscription_available => false}), "Queue groups are not available"),
        has(granted(#{wildcard_subscription_available => false}), "Wildcards are not available"),
        has(granted(#{maximum_qos => 0}), "takes QoS 0 only"),
        has(granted(#{maximum_qos => 0}), "not answered with 503"),
        has(?GOOD#{tells_no_subscribers := false}, "not answered with 503"),
        has(?GOOD#{probe := [puback_lies]}, "not answered with 503"),
        has(?GOOD#{probe := [merges]}, "is answered with 503"),
        has(?GOOD#{no_local := false}, "echo:false gets its own messages all the same"),
        has(#{granted => #{}, probe => off}, "503 is not known"),
        has(#{granted => #{}, probe => hung_up}, "echo:false works is not known")
    ].

%% As INFO has it: a part of the packet is for the subject and what headers need.
max_payload_test_() ->
    Fits = 1048576 + 4096 + 64,
    [
        has(granted(#{maximum_packet_size => Fits}), "INFO has max_payload 1048576, as"),
        has(granted(#{maximum_packet_size => Fits - 1}), "max_payload 1048575, not the 1048576 of"),
        has(granted(#{maximum_packet_size => Fits - 1}), "packets of 1052735 bytes"),
        has(granted(#{maximum_packet_size => 1000}), "max_payload 500, not")
    ].

publish_properties_test_() ->
    Said = fun(Granted, On) -> said(granted(Granted), #{publish_properties => On}) end,
    [
        ?_assertEqual(nomatch, re:run(Said(#{retain_available => false}, false), "publish_properties")),
        ?_assertMatch({match, _}, re:run(Said(#{}, true), "set all properties")),
        ?_assertMatch(
            {match, _}, re:run(Said(#{retain_available => false}, true), "publish_properties: Mqtt-Retain: true\\.")
        ),
        ?_assertMatch({match, _}, re:run(Said(#{maximum_qos => 1}, true), "publish_properties: Mqtt-Qos: 2\\.")),
        ?_assertMatch(
            {match, _}, re:run(Said(#{maximum_qos => 0}, true), "publish_properties: Mqtt-Qos: 1, Mqtt-Qos: 2\\.")
        )
    ].

retained_test_() ->
    Said = fun(Granted, Retained) -> said(granted(Granted), #{retained_on_subscribe => Retained}) end,
    [
        ?_assertEqual(nomatch, re:run(Said(#{retain_available => false}, false), "retained")),
        ?_assertMatch({match, _}, re:run(Said(#{retain_available => false}, true), "brings nothing")),
        ?_assertMatch({match, _}, re:run(Said(#{}, true), "A SUB brings the retained message"))
    ].
