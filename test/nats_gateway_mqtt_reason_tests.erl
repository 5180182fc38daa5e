-module(nats_gateway_mqtt_reason_tests).

-include_lib("eunit/include/eunit.hrl").

-define(REASON, nats_gateway_mqtt_reason).

%% Each code of MQTT 5: its name, and what a client is told of it in CONNACK, PUBACK, SUBACK and
%% DISCONNECT; whether a packet is to blame for the latter.
table() ->
    [
        {16#00, success, ok, ok, ok, upstream_lost, false},
        {16#10, no_matching_subscribers, upstream_lost, no_responders, ok, upstream_lost, false},
        {16#80, unspecified_error, upstream_lost, denied, denied, upstream_lost, false},
        {16#81, malformed_packet, upstream_lost, denied, denied, upstream_lost, true},
        {16#82, protocol_error, upstream_lost, denied, denied, upstream_lost, true},
        {16#83, implementation_specific_error, upstream_lost, denied, denied, upstream_lost, true},
        {16#84, unsupported_protocol_version, upstream_lost, denied, denied, upstream_lost, false},
        {16#85, client_identifier_not_valid, authorization_violation, denied, denied, upstream_lost, false},
        {16#86, bad_user_name_or_password, authorization_violation, denied, denied, upstream_lost, false},
        {16#87, not_authorized, authorization_violation, denied, denied, authorization_violation, false},
        {16#88, server_unavailable, upstream_lost, denied, denied, upstream_lost, false},
        {16#89, server_busy, upstream_lost, denied, denied, upstream_lost, false},
        {16#8A, banned, authorization_violation, denied, denied, upstream_lost, false},
        {16#8B, server_shutting_down, upstream_lost, denied, denied, upstream_lost, false},
        {16#8C, bad_authentication_method, authorization_violation, denied, denied, upstream_lost, false},
        {16#8D, keep_alive_timeout, upstream_lost, denied, denied, upstream_lost, false},
        {16#8E, session_taken_over, upstream_lost, denied, denied, kicked, false},
        {16#8F, topic_filter_invalid, upstream_lost, denied, invalid_subject, upstream_lost, true},
        {16#90, topic_name_invalid, upstream_lost, denied, denied, upstream_lost, true},
        {16#91, packet_identifier_in_use, upstream_lost, denied, denied, upstream_lost, false},
        {16#93, receive_maximum_exceeded, upstream_lost, denied, denied, upstream_lost, false},
        {16#94, topic_alias_invalid, upstream_lost, denied, denied, upstream_lost, false},
        {16#95, packet_too_large, upstream_lost, denied, denied, upstream_lost, true},
        {16#96, message_rate_too_high, upstream_lost, denied, denied, upstream_lost, false},
        {16#97, quota_exceeded, upstream_lost, denied, subscriptions_exceeded, upstream_lost, false},
        {16#98, administrative_action, upstream_lost, denied, denied, kicked, false},
        {16#99, payload_format_invalid, upstream_lost, denied, denied, upstream_lost, true},
        {16#9A, retain_not_supported, upstream_lost, denied, denied, upstream_lost, true},
        {16#9B, qos_not_supported, upstream_lost, denied, denied, upstream_lost, true},
        {16#9C, use_another_server, upstream_lost, denied, denied, upstream_lost, false},
        {16#9D, server_moved, upstream_lost, denied, denied, upstream_lost, false},
        {16#9E, shared_subscriptions_not_supported, upstream_lost, denied, denied, upstream_lost, true},
        {16#9F, connection_rate_exceeded, upstream_lost, denied, denied, upstream_lost, false},
        {16#A0, maximum_connect_time, upstream_lost, denied, denied, user_authentication_expired, false},
        {16#A1, subscription_identifiers_not_supported, upstream_lost, denied, denied, upstream_lost, true},
        {16#A2, wildcard_subscriptions_not_supported, upstream_lost, denied, denied, upstream_lost, true}
    ].

each_code_test_() ->
    [
        {atom_to_list(Name), fun() ->
            ?assertEqual(Name, ?REASON:name(Code)),
            ?assertEqual(Connack, ?REASON:connack(Code)),
            ?assertEqual(Puback, ?REASON:puback(Code)),
            ?assertEqual(Suback, ?REASON:suback(Code)),
            ?assertEqual(Disconnect, ?REASON:disconnect(Code)),
            ?assertEqual(Blame, ?REASON:is_blame(Code)),
            ?assertEqual(Code >= 16#80 andalso Name =/= not_authorized, ?REASON:is_noted(Code))
        end}
     || {Code, Name, Connack, Puback, Suback, Disconnect, Blame} <- table()
    ].

%% Every byte has an answer; what MQTT does not know keeps its number.
other_codes_test() ->
    Known = [element(1, Row) || Row <- table()],
    [
        begin
            ?assertEqual(Code, ?REASON:name(Code)),
            Refused = Code >= 16#80,
            ?assertEqual(upstream_lost, ?REASON:connack(Code)),
            ?assertEqual(Refused, ?REASON:puback(Code) =:= denied),
            ?assertEqual(Refused, ?REASON:suback(Code) =:= denied),
            ?assertEqual(upstream_lost, ?REASON:disconnect(Code)),
            ?assertNot(?REASON:is_blame(Code))
        end
     || Code <- lists:seq(0, 255), not lists:member(Code, Known)
    ].
