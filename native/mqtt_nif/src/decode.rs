//! Turns bytes of the broker into packet terms.

use crate::atoms;
use crate::encode::is_topic_name;
use mqtt_packets::{Fault, Frame, MIN_PACKET, Packet, Step};
use mqtt_protocol_core::mqtt::packet::Property;
use mqtt_protocol_core::mqtt::packet::v5_0::Publish;
use nats_gateway_beam::{Chunk, binary};
use rustler::types::tuple::make_tuple;
use rustler::{Binary, Encoder, Env, Term};

/// One call takes at most this many packets, and starts no packet after this many bytes. That is
/// about half a millisecond of small packets, or of payloads to copy.
const MAX_PACKETS: usize = 1024;
const MAX_BYTES: usize = 256 * 1024;

/// A packet that has more bytes of properties than this is decoded on a dirty scheduler. 64 KiB can
/// hold 13 000 properties, and each needs an allocation.
const MAX_HEAD: usize = 16 * 1024;

/// The cost of a packet besides its bytes, in bytes, as it is reported to the scheduler.
const PACKET_COST: usize = 256;

#[rustler::nif(name = "decode_bounded")]
fn decode_bounded<'a>(
    env: Env<'a>,
    bytes: Binary<'a>,
    referenced: usize,
    max_packet_size: usize,
) -> Term<'a> {
    let chunk = Chunk::new(env, bytes, referenced);
    decode(env, bytes, chunk, max_packet_size, MAX_HEAD)
}

#[rustler::nif(name = "decode_long", schedule = "DirtyCpu")]
fn decode_long<'a>(
    env: Env<'a>,
    bytes: Binary<'a>,
    referenced: usize,
    max_packet_size: usize,
) -> Term<'a> {
    let chunk = Chunk::new(env, bytes, referenced);
    decode(env, bytes, chunk, max_packet_size, usize::MAX)
}

fn decode<'a>(
    env: Env<'a>,
    bytes: Binary<'a>,
    mut chunk: Chunk<'a>,
    max_packet_size: usize,
    max_head: usize,
) -> Term<'a> {
    let mut input = bytes.as_slice();
    let mut packets: Vec<Term<'a>> = Vec::new();
    let mut copied = 0_usize;
    let need = loop {
        if input.is_empty() {
            break MIN_PACKET;
        }
        if packets.len() == MAX_PACKETS || copied >= MAX_BYTES {
            break 0;
        }
        let frame = match mqtt_packets::frame(input, max_packet_size) {
            Ok(Step::Frame(frame)) => frame,
            Ok(Step::Need(total)) => break total,
            Err(fault) => return failed(env, fault, packets),
        };
        if frame.head.len() > max_head {
            if packets.is_empty() {
                return atoms::long().encode(env);
            }
            break 0;
        }
        input = input.get(frame.size..).unwrap_or_default();
        match packet(env, &frame, &mut chunk) {
            Ok(packet) => packets.push(packet),
            Err(fault) => return failed(env, fault, packets),
        }
        let payload = frame.payload.len();
        let copied_payload = if chunk.refers(payload) { 0 } else { payload };
        copied = copied
            .saturating_add(frame.head.len())
            .saturating_add(copied_payload);
    };
    let cost = copied.saturating_add(packets.len().saturating_mul(PACKET_COST));
    let percent = cost.saturating_mul(50) / MAX_BYTES;
    rustler::schedule::consume_timeslice(env, percent.clamp(1, 100) as i32);
    let rest = match need {
        0 => chunk.rest(input),
        // The rest may wait for a long time.
        _ => chunk.part(input),
    };
    match rest {
        Ok(rest) => (atoms::ok(), packets, rest, need).encode(env),
        Err(_) => failed(env, Fault::Malformed, packets),
    }
}

fn failed<'a>(env: Env<'a>, fault: Fault, packets: Vec<Term<'a>>) -> Term<'a> {
    let fault = match fault {
        Fault::Malformed => atoms::malformed_packet(),
        Fault::TooLarge => atoms::packet_too_large(),
        Fault::Unexpected => atoms::unexpected_packet(),
        Fault::OldVersion => atoms::old_version(),
    };
    (atoms::error(), fault, packets).encode(env)
}

fn packet<'a>(env: Env<'a>, frame: &Frame<'_>, chunk: &mut Chunk<'a>) -> Result<Term<'a>, Fault> {
    Ok(match frame.packet()? {
        Packet::Publish(message) => {
            let payload = chunk.part(frame.payload).map_err(|_| Fault::Malformed)?;
            publish(env, &message, payload)
        }
        Packet::Unreadable { packet_id } => {
            (atoms::unreadable(), id_term(env, packet_id)).encode(env)
        }
        Packet::Puback { packet_id, reason } => (atoms::puback(), packet_id, reason).encode(env),
        Packet::Pubrec { packet_id, reason } => (atoms::pubrec(), packet_id, reason).encode(env),
        Packet::Pubcomp { packet_id } => (atoms::pubcomp(), packet_id).encode(env),
        Packet::Suback { packet_id, reasons } => {
            (atoms::suback(), packet_id, integers(&reasons)).encode(env)
        }
        Packet::Unsuback { packet_id, reasons } => {
            (atoms::unsuback(), packet_id, integers(&reasons)).encode(env)
        }
        Packet::Connack(connack) => {
            let reason = connack.reason_code() as u8;
            let properties = properties(env, connack.props())?;
            (
                atoms::connack(),
                connack.session_present(),
                reason,
                properties,
            )
                .encode(env)
        }
        Packet::Pingresp => atoms::pingresp().encode(env),
        Packet::Disconnect(disconnect) => {
            let reason = disconnect.reason_code().map_or(0, |code| code as u8);
            let properties = match disconnect.props() {
                Some(properties_of) => properties(env, properties_of)?,
                None => Term::map_new(env),
            };
            (atoms::disconnect(), reason, properties).encode(env)
        }
    })
}

fn id_term(env: Env<'_>, packet_id: Option<u16>) -> Term<'_> {
    match packet_id {
        Some(id) => id.encode(env),
        None => atoms::undefined().encode(env),
    }
}

/// In packet terms, lists of bytes are lists of integers, never binaries.
fn integers(bytes: &[u8]) -> Vec<u32> {
    bytes.iter().map(|byte| u32::from(*byte)).collect()
}

fn publish<'a>(env: Env<'a>, publish: &Publish, payload: Term<'a>) -> Term<'a> {
    let undefined = atoms::undefined().encode(env);
    let mut response_topic = undefined;
    let mut correlation_data = undefined;
    let mut content_type = undefined;
    let mut expiry = None;
    let mut payload_format = None;
    let mut user_properties: Vec<Term<'a>> = Vec::new();
    let mut subscription_ids: Vec<u32> = Vec::new();
    for property in publish.props() {
        match property {
            Property::SubscriptionIdentifier(id) => subscription_ids.push(id.val()),
            Property::UserProperty(pair) => {
                let name = binary(env, pair.key().as_bytes());
                let value = binary(env, pair.val().as_bytes());
                user_properties.push(make_tuple(env, &[name, value]));
            }
            // A response topic to which nobody may publish (3.3.2.3.5) counts as absent.
            Property::ResponseTopic(topic) if is_topic_name(topic.val()) => {
                response_topic = binary(env, topic.val().as_bytes());
            }
            Property::CorrelationData(data) => correlation_data = binary(env, data.val()),
            Property::MessageExpiryInterval(seconds) => expiry = Some(seconds.val()),
            Property::PayloadFormatIndicator(format) => payload_format = Some(format.val()),
            Property::ContentType(name) => content_type = binary(env, name.val().as_bytes()),
            _ => {}
        }
    }
    let retain = match (expiry, payload_format) {
        (None, None) => publish.retain().encode(env),
        _ => make_tuple(
            env,
            &[
                publish.retain().encode(env),
                expiry.map_or(undefined, |seconds| seconds.encode(env)),
                payload_format.map_or(undefined, |format| format.encode(env)),
            ],
        ),
    };
    make_tuple(
        env,
        &[
            atoms::publish().encode(env),
            binary(env, publish.topic_name().as_bytes()),
            payload,
            (publish.qos() as u8).encode(env),
            retain,
            id_term(env, publish.packet_id()),
            response_topic,
            correlation_data,
            content_type,
            user_properties.encode(env),
            subscription_ids.encode(env),
        ],
    )
}

/// The properties of CONNACK and DISCONNECT that a host needs.
fn properties<'a>(env: Env<'a>, properties: &[Property]) -> Result<Term<'a>, Fault> {
    let mut map = Term::map_new(env);
    for property in properties {
        let (key, value) = match property {
            Property::AssignedClientIdentifier(p) => (
                atoms::assigned_client_identifier(),
                binary(env, p.val().as_bytes()),
            ),
            Property::MaximumPacketSize(p) => (atoms::maximum_packet_size(), p.val().encode(env)),
            Property::MaximumQos(p) => (atoms::maximum_qos(), p.val().encode(env)),
            Property::ReasonString(p) => (atoms::reason_string(), binary(env, p.val().as_bytes())),
            Property::ReceiveMaximum(p) => (atoms::receive_maximum(), p.val().encode(env)),
            Property::RetainAvailable(p) => (atoms::retain_available(), flag(env, p.val())),
            Property::ServerKeepAlive(p) => (atoms::server_keep_alive(), p.val().encode(env)),
            Property::SharedSubscriptionAvailable(p) => {
                (atoms::shared_subscription_available(), flag(env, p.val()))
            }
            Property::SubscriptionIdentifierAvailable(p) => (
                atoms::subscription_identifier_available(),
                flag(env, p.val()),
            ),
            Property::TopicAliasMaximum(p) => (atoms::topic_alias_maximum(), p.val().encode(env)),
            Property::WildcardSubscriptionAvailable(p) => {
                (atoms::wildcard_subscription_available(), flag(env, p.val()))
            }
            _ => continue,
        };
        map = map.map_put(key, value).map_err(|_| Fault::Malformed)?;
    }
    Ok(map)
}

fn flag(env: Env<'_>, value: u8) -> Term<'_> {
    (value == 1).encode(env)
}
