%% MQTT 5 packets as `nats_gateway_mqtt_nif' makes and takes them.

%% `packet_id' is `undefined' exactly if QoS is 0. A client sends no subscription identifiers.
-record(publish, {
    topic :: binary(),
    payload = <<>> :: binary(),
    qos = 0 :: nats_gateway_mqtt_nif:qos(),
    %% The flag, or a tuple if there is a Message Expiry Interval (seconds) or a Payload Format
    %% Indicator: so a message without them is no larger.
    retain = false ::
        boolean()
        | {boolean(), Expiry :: undefined | 0..16#FFFFFFFF, PayloadFormat :: undefined | 0..1},
    packet_id :: undefined | nats_gateway_mqtt_nif:packet_id(),
    response_topic :: undefined | binary(),
    correlation_data :: undefined | binary(),
    content_type :: undefined | binary(),
    user_properties = [] :: [{binary(), binary()}],
    subscription_ids = [] :: [pos_integer()]
}).

%% Each packet has one filter.
-record(subscribe, {
    packet_id :: undefined | nats_gateway_mqtt_nif:packet_id(),
    subscription_id :: undefined | pos_integer(),
    filters :: [
        {Filter :: binary(), nats_gateway_mqtt_nif:qos(), NoLocal :: boolean(), RetainHandling :: 0..2}
        | {
            Filter :: binary(),
            nats_gateway_mqtt_nif:qos(),
            NoLocal :: boolean(),
            RetainHandling :: 0..2,
            RetainAsPublished :: boolean()
        }
    ]
}).

-record(unsubscribe, {
    packet_id :: undefined | nats_gateway_mqtt_nif:packet_id(),
    filters :: [binary()]
}).

-record(connect, {
    client_id :: binary(),
    username :: undefined | binary(),
    password :: undefined | binary(),
    %% seconds
    keepalive :: 0..65535,
    receive_maximum :: undefined | 1..65535,
    maximum_packet_size :: undefined | pos_integer(),
    will ::
        undefined
        | {Topic :: binary(), Payload :: binary(), nats_gateway_mqtt_nif:qos(), Retain :: boolean()}
}).

-record(connack, {
    session_present :: boolean(),
    reason :: byte(),
    properties :: nats_gateway_mqtt_nif:properties()
}).

-record(puback, {
    packet_id :: nats_gateway_mqtt_nif:packet_id(),
    reason = 0 :: byte()
}).

%% The answers to a PUBLISH with QoS 2, and what the client sends between them.
-record(pubrec, {
    packet_id :: nats_gateway_mqtt_nif:packet_id(),
    reason = 0 :: byte()
}).

-record(pubrel, {
    packet_id :: nats_gateway_mqtt_nif:packet_id()
}).

-record(pubcomp, {
    packet_id :: nats_gateway_mqtt_nif:packet_id()
}).

-record(suback, {
    packet_id :: nats_gateway_mqtt_nif:packet_id(),
    reasons :: [byte()]
}).

-record(unsuback, {
    packet_id :: nats_gateway_mqtt_nif:packet_id(),
    reasons :: [byte()]
}).

%% A client sends no properties.
-record(disconnect, {
    reason :: byte(),
    properties = #{} :: nats_gateway_mqtt_nif:properties()
}).

%% A PUBLISH that cannot be read. The rest of the connection is readable.
-record(unreadable, {
    packet_id :: undefined | nats_gateway_mqtt_nif:packet_id()
}).
