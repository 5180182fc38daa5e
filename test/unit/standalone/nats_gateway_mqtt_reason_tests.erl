-module(nats_gateway_mqtt_reason_tests).

-include_lib("eunit/include/eunit.hrl").

-define(REASON, nats_gateway_mqtt_reason).

%% Each code of MQTT 5: its name, and what a client is told of it in CONNACK, PUBACK, SUBACK and
%% DISCONNECT; whether a packet is to blame for the latter.
table() ->
    [
        {16#00, success, ok, ok, ok, lost, false},
        {16#10, no_matching_subscribers, lost, no_responders, ok, lost, false},
        {16#80, unspecified_error, lost, denied, denied, lost, false},
        {16#81, malformed_packet, lost, denied, denied, lost, true},
        {16#82, protocol_error, lost, denied, denied, lost, true},
        {16#83, implementation_specific_error, lost, denied, denied, lost, true},
        {16#84, unsupported_protocol_version, lost, denied, denied, lost, false},
        {16#85, client_identifier_not_valid, auth, denied, denied, lost, false},
        {16#86, bad_user_name_or_password, auth, denied, denied, lost, false},
        {16#87, not_authorized, auth, denied, denied, auth, false},
        {16#88, server_unavailable, lost, denied, denied, lost, false},
        {16#89, server_busy, lost, denied, denied, lost, false},
        {16#8A, banned, auth, denied, denied, lost, false},
        {16#8B, server_shutting_down, lost, denied, denied, lost, false},
        {16#8C, bad_authentication_method, auth, denied, denied, lost, false},
        {16#8D, keep_alive_timeout, lost, denied, denied, lost, false},
        {16#8E, session_taken_over, lost, denied, denied, kicked, false},
        {16#8F, topic_filter_invalid, lost, denied, invalid, lost, true},
        {16#90, topic_name_invalid, lost, denied, denied, lost, true},
        {16#91, packet_identifier_in_use, lost, denied, denied, lost, false},
        {16#93, receive_maximum_exceeded, lost, denied, denied, lost, false},
        {16#94, topic_alias_invalid, lost, denied, denied, lost, false},
        {16#95, packet_too_large, lost, denied, denied, lost, true},
        {16#96, message_rate_too_high, lost, denied, denied, lost, false},
        {16#97, quota_exceeded, lost, denied, exceeded, lost, false},
        {16#98, administrative_action, lost, denied, denied, kicked, false},
        {16#99, payload_format_invalid, lost, denied, denied, lost, true},
        {16#9A, retain_not_supported, lost, denied, denied, lost, true},
        {16#9B, qos_not_supported, lost, denied, denied, lost, true},
        {16#9C, use_another_server, lost, denied, denied, lost, false},
        {16#9D, server_moved, lost, denied, denied, lost, false},
        {16#9E, shared_subscriptions_not_supported, lost, denied, denied, lost, true},
        {16#9F, connection_rate_exceeded, lost, denied, denied, lost, false},
        {16#A0, maximum_connect_time, lost, denied, denied, expired, false},
        {16#A1, subscription_identifiers_not_supported, lost, denied, denied, lost, true},
        {16#A2, wildcard_subscriptions_not_supported, lost, denied, denied, lost, true}
    ].

word(auth) -> authorization_violation;
word(lost) -> upstream_lost;
word(expired) -> user_authentication_expired;
word(exceeded) -> subscriptions_exceeded;
word(invalid) -> invalid_subject;
word(Word) -> Word.

each_code_test_() ->
    [
        {atom_to_list(Name), fun() ->
            ?assertEqual(Name, ?REASON:name(Code)),
            ?assertEqual(word(Connack), ?REASON:connack(Code)),
            ?assertEqual(word(Puback), ?REASON:puback(Code)),
            ?assertEqual(word(Suback), ?REASON:suback(Code)),
            ?assertEqual(word(Disconnect), ?REASON:disconnect(Code)),
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
