rustler::atoms! {
    ok,
    error,
    undefined,

    // packets
    connect,
    connack,
    publish,
    puback,
    pubrec,
    pubrel,
    pubcomp,
    subscribe,
    suback,
    unsubscribe,
    unsuback,
    pingreq,
    pingresp,
    disconnect,
    unreadable,

    // CONNACK properties
    assigned_client_identifier,
    maximum_packet_size,
    maximum_qos,
    reason_string,
    receive_maximum,
    retain_available,
    server_keep_alive,
    shared_subscription_available,
    subscription_identifier_available,
    topic_alias_maximum,
    wildcard_subscription_available,

    // decode
    long,
    malformed_packet,
    packet_too_large,
    unexpected_packet,
    old_version,
}
