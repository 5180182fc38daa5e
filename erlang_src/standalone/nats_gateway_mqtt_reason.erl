%% What the reason codes of MQTT 5 (2.4) mean for a NATS client, and their names in the log.
%%
%% A client gets only texts of nats-server, and only those that it survives. If a message was
%% refused, the client gets a permission violation, whatever the reason was. The log has the reason.
-module(nats_gateway_mqtt_reason).

-export([connack/1]).
-export([puback/1]).
-export([suback/1]).
-export([disconnect/1]).
-export([is_blame/1]).
-export([is_noted/1]).
-export([name/1]).

-define(SUCCESS, 16#00).
-define(NO_MATCHING_SUBSCRIBERS, 16#10).
-define(UNSPECIFIED_ERROR, 16#80).
-define(MALFORMED_PACKET, 16#81).
-define(PROTOCOL_ERROR, 16#82).
-define(IMPLEMENTATION_SPECIFIC_ERROR, 16#83).
-define(UNSUPPORTED_PROTOCOL_VERSION, 16#84).
-define(CLIENT_IDENTIFIER_NOT_VALID, 16#85).
-define(BAD_USER_NAME_OR_PASSWORD, 16#86).
-define(NOT_AUTHORIZED, 16#87).
-define(SERVER_UNAVAILABLE, 16#88).
-define(SERVER_BUSY, 16#89).
-define(BANNED, 16#8A).
-define(SERVER_SHUTTING_DOWN, 16#8B).
-define(BAD_AUTHENTICATION_METHOD, 16#8C).
-define(KEEP_ALIVE_TIMEOUT, 16#8D).
-define(SESSION_TAKEN_OVER, 16#8E).
-define(TOPIC_FILTER_INVALID, 16#8F).
-define(TOPIC_NAME_INVALID, 16#90).
-define(PACKET_IDENTIFIER_IN_USE, 16#91).
-define(RECEIVE_MAXIMUM_EXCEEDED, 16#93).
-define(TOPIC_ALIAS_INVALID, 16#94).
-define(PACKET_TOO_LARGE, 16#95).
-define(MESSAGE_RATE_TOO_HIGH, 16#96).
-define(QUOTA_EXCEEDED, 16#97).
-define(ADMINISTRATIVE_ACTION, 16#98).
-define(PAYLOAD_FORMAT_INVALID, 16#99).
-define(RETAIN_NOT_SUPPORTED, 16#9A).
-define(QOS_NOT_SUPPORTED, 16#9B).
-define(USE_ANOTHER_SERVER, 16#9C).
-define(SERVER_MOVED, 16#9D).
-define(SHARED_SUBSCRIPTIONS_NOT_SUPPORTED, 16#9E).
-define(CONNECTION_RATE_EXCEEDED, 16#9F).
-define(MAXIMUM_CONNECT_TIME, 16#A0).
-define(SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED, 16#A1).
-define(WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED, 16#A2).

%% A refusal that will pass is not the client's fault.
-spec connack(byte()) -> ok | authorization_violation | upstream_lost.
connack(?SUCCESS) -> ok;
connack(?CLIENT_IDENTIFIER_NOT_VALID) -> authorization_violation;
connack(?BAD_USER_NAME_OR_PASSWORD) -> authorization_violation;
connack(?NOT_AUTHORIZED) -> authorization_violation;
connack(?BANNED) -> authorization_violation;
connack(?BAD_AUTHENTICATION_METHOD) -> authorization_violation;
connack(_) -> upstream_lost.

-spec puback(byte()) -> ok | nats_gateway_host:rejection().
puback(?NO_MATCHING_SUBSCRIBERS) -> no_responders;
puback(Reason) when Reason >= ?UNSPECIFIED_ERROR -> denied;
puback(_) -> ok.

-spec suback(byte()) -> ok | nats_gateway_host:refusal().
suback(?TOPIC_FILTER_INVALID) -> invalid_subject;
suback(?QUOTA_EXCEEDED) -> subscriptions_exceeded;
suback(Reason) when Reason >= ?UNSPECIFIED_ERROR -> denied;
suback(_) -> ok.

-spec disconnect(byte()) -> nats_gateway_host:close_reason().
disconnect(?NOT_AUTHORIZED) -> authorization_violation;
disconnect(?MAXIMUM_CONNECT_TIME) -> user_authentication_expired;
disconnect(?SESSION_TAKEN_OVER) -> kicked;
disconnect(?ADMINISTRATIVE_ACTION) -> kicked;
disconnect(_) -> upstream_lost.

%% Whether the reason of a DISCONNECT says that the last packet was at fault.
-spec is_blame(byte()) -> boolean().
is_blame(Reason) ->
    lists:member(Reason, [
        ?MALFORMED_PACKET,
        ?PROTOCOL_ERROR,
        ?IMPLEMENTATION_SPECIFIC_ERROR,
        ?TOPIC_FILTER_INVALID,
        ?TOPIC_NAME_INVALID,
        ?PACKET_TOO_LARGE,
        ?PAYLOAD_FORMAT_INVALID,
        ?RETAIN_NOT_SUPPORTED,
        ?QOS_NOT_SUPPORTED,
        ?SHARED_SUBSCRIPTIONS_NOT_SUPPORTED,
        ?SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED,
        ?WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED
    ]).

%% Whether the reason of a PUBACK or SUBACK is logged, because the client is not told enough. A
%% missing permission needs no further explanation.
-spec is_noted(byte()) -> boolean().
is_noted(?NOT_AUTHORIZED) -> false;
is_noted(Reason) -> Reason >= ?UNSPECIFIED_ERROR.

-spec name(byte()) -> atom() | byte().
name(?SUCCESS) -> success;
name(?NO_MATCHING_SUBSCRIBERS) -> no_matching_subscribers;
name(?UNSPECIFIED_ERROR) -> unspecified_error;
name(?MALFORMED_PACKET) -> malformed_packet;
name(?PROTOCOL_ERROR) -> protocol_error;
name(?IMPLEMENTATION_SPECIFIC_ERROR) -> implementation_specific_error;
name(?UNSUPPORTED_PROTOCOL_VERSION) -> unsupported_protocol_version;
name(?CLIENT_IDENTIFIER_NOT_VALID) -> client_identifier_not_valid;
name(?BAD_USER_NAME_OR_PASSWORD) -> bad_user_name_or_password;
name(?NOT_AUTHORIZED) -> not_authorized;
name(?SERVER_UNAVAILABLE) -> server_unavailable;
name(?SERVER_BUSY) -> server_busy;
name(?BANNED) -> banned;
name(?SERVER_SHUTTING_DOWN) -> server_shutting_down;
name(?BAD_AUTHENTICATION_METHOD) -> bad_authentication_method;
name(?KEEP_ALIVE_TIMEOUT) -> keep_alive_timeout;
name(?SESSION_TAKEN_OVER) -> session_taken_over;
name(?TOPIC_FILTER_INVALID) -> topic_filter_invalid;
name(?TOPIC_NAME_INVALID) -> topic_name_invalid;
name(?PACKET_IDENTIFIER_IN_USE) -> packet_identifier_in_use;
name(?RECEIVE_MAXIMUM_EXCEEDED) -> receive_maximum_exceeded;
name(?TOPIC_ALIAS_INVALID) -> topic_alias_invalid;
name(?PACKET_TOO_LARGE) -> packet_too_large;
name(?MESSAGE_RATE_TOO_HIGH) -> message_rate_too_high;
name(?QUOTA_EXCEEDED) -> quota_exceeded;
name(?ADMINISTRATIVE_ACTION) -> administrative_action;
name(?PAYLOAD_FORMAT_INVALID) -> payload_format_invalid;
name(?RETAIN_NOT_SUPPORTED) -> retain_not_supported;
name(?QOS_NOT_SUPPORTED) -> qos_not_supported;
name(?USE_ANOTHER_SERVER) -> use_another_server;
name(?SERVER_MOVED) -> server_moved;
name(?SHARED_SUBSCRIPTIONS_NOT_SUPPORTED) -> shared_subscriptions_not_supported;
name(?CONNECTION_RATE_EXCEEDED) -> connection_rate_exceeded;
name(?MAXIMUM_CONNECT_TIME) -> maximum_connect_time;
name(?SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED) -> subscription_identifiers_not_supported;
name(?WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED) -> wildcard_subscriptions_not_supported;
name(Reason) -> Reason.
