//! Bytes of the broker to packet terms.
//!
//! Framing is done here, because the builder of `mqtt-protocol-core` copies every packet into a
//! buffer of its own; the packets themselves are parsed by the crate.

use crate::atoms;
use crate::encode::is_topic_name;
use mqtt_protocol_core::mqtt::Arc;
use mqtt_protocol_core::mqtt::packet::v5_0::{
    Connack, Disconnect, Pingresp, Puback, Publish, Suback, Unsuback,
};
use mqtt_protocol_core::mqtt::packet::{
    DecodeResult, FixedHeader, PacketType, Property, VariableByteInteger,
};
use mqtt_protocol_core::mqtt::result_code::MqttError;
use rustler::types::tuple::make_tuple;
use rustler::{Binary, Encoder, Env, NewBinary, Term};

/// One call takes no more than this many packets, and starts no packet after this many bytes:
/// about half a millisecond of small packets, or of payloads to copy.
const MAX_PACKETS: usize = 1024;
const MAX_BYTES: usize = 256 * 1024;

/// A packet whose properties take more than this (13 000 of them in 64 KiB, each an allocation)
/// is left to a dirty scheduler.
const MAX_HEAD: usize = 16 * 1024;

/// Payloads from this size on refer to the chunk. Smaller ones refer to a copy of the chunk's next
/// bytes, which many of them share, and so keep no more than 64 times their own size alive.
const REFERENCE_FROM: usize = 1024;
const SLAB: usize = 4096;

/// Longest binary that the VM keeps on a process heap: copied for what a reference costs.
const ON_HEAP: usize = 64;

/// What one packet costs besides its bytes, in bytes; for the account with the scheduler.
const PACKET_COST: usize = 256;

#[rustler::nif(name = "decode_bounded")]
fn decode_bounded<'a>(env: Env<'a>, bytes: Binary<'a>, max_packet_size: usize) -> Term<'a> {
    decode(env, bytes, max_packet_size, MAX_HEAD)
}

#[rustler::nif(name = "decode_long", schedule = "DirtyCpu")]
fn decode_long<'a>(env: Env<'a>, bytes: Binary<'a>, max_packet_size: usize) -> Term<'a> {
    decode(env, bytes, max_packet_size, usize::MAX)
}

fn decode<'a>(
    env: Env<'a>,
    bytes: Binary<'a>,
    max_packet_size: usize,
    max_head: usize,
) -> Term<'a> {
    let input = bytes.as_slice();
    let mut payloads = Payloads {
        env,
        chunk: bytes,
        slab: None,
    };
    let mut packets: Vec<Term<'a>> = Vec::new();
    let mut at = 0;
    let mut copied = 0;
    let need = loop {
        let rest = &input[at..];
        if rest.is_empty() {
            // The smallest packet.
            break 2;
        }
        if packets.len() == MAX_PACKETS || copied >= MAX_BYTES {
            break 0;
        }
        let frame = match frame(rest, max_packet_size) {
            Ok(Framed::Packet(frame)) => frame,
            Ok(Framed::Need(total)) => break total,
            Err(fault) => return failed(env, fault, packets),
        };
        if frame.head > max_head {
            if packets.is_empty() {
                return atoms::long().encode(env);
            }
            break 0;
        }
        match packet(at, &frame, &mut payloads) {
            Ok(packet) => packets.push(packet),
            Err(fault) => return failed(env, fault, packets),
        }
        let payload = frame.size - frame.start - frame.head;
        copied += frame.head + if payload < REFERENCE_FROM { payload } else { 0 };
        at += frame.size;
    };
    let percent = (copied + packets.len() * PACKET_COST) * 50 / MAX_BYTES;
    rustler::schedule::consume_timeslice(env, percent.clamp(1, 100) as i32);
    match bytes.make_subbinary(at, input.len() - at) {
        Ok(rest) => (atoms::ok(), packets, rest, need).encode(env),
        Err(_) => failed(env, Fault::Malformed, packets),
    }
}

fn failed<'a>(env: Env<'a>, fault: Fault, packets: Vec<Term<'a>>) -> Term<'a> {
    (atoms::error(), fault, packets).encode(env)
}

/// What ends a connection.
#[derive(Clone, Copy)]
enum Fault {
    Malformed,
    TooLarge,
    Unexpected,
}

impl Encoder for Fault {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            Fault::Malformed => atoms::malformed_packet(),
            Fault::TooLarge => atoms::packet_too_large(),
            Fault::Unexpected => atoms::unexpected_packet(),
        }
        .encode(env)
    }
}

/// Where a packet lies in the bytes it begins.
struct Frame {
    /// Length of the fixed header.
    start: usize,
    /// Length of what must be parsed after it: everything but the payload of a PUBLISH.
    head: usize,
    /// Length of the whole packet.
    size: usize,
}

enum Framed {
    Packet(Frame),
    /// Not complete: what the whole must have, as far as is known.
    Need(usize),
}

fn frame(bytes: &[u8], max_packet_size: usize) -> Result<Framed, Fault> {
    let (length, used) = match VariableByteInteger::decode_stream(&bytes[1..]) {
        DecodeResult::Ok(length, used) => (length.to_u32() as usize, used),
        DecodeResult::Incomplete => return Ok(Framed::Need(bytes.len() + 1)),
        DecodeResult::Err(_) => return Err(Fault::Malformed),
    };
    let start = 1 + used;
    let size = start + length;
    if size > max_packet_size {
        return Err(Fault::TooLarge);
    }
    let Some(body) = bytes.get(start..size) else {
        return Ok(Framed::Need(size));
    };
    let head = if bytes[0] >> 4 == PacketType::Publish.as_u8() {
        publish_head(bytes[0], body).ok_or(Fault::Malformed)?
    } else {
        length
    };
    Ok(Framed::Packet(Frame { start, head, size }))
}

/// The crate takes a PUBLISH only with its payload, in an `Arc` of its own. It is given the part
/// before the payload, whose length follows from topic, packet id and property length.
fn publish_head(first: u8, body: &[u8]) -> Option<usize> {
    let topic = usize::from(u16::from_be_bytes([*body.first()?, *body.get(1)?]));
    let packet_id = if first & 0b0110 == 0 { 0 } else { 2 };
    let at = 2 + topic + packet_id;
    match VariableByteInteger::decode_stream(body.get(at..)?) {
        DecodeResult::Ok(length, used) => {
            let head = at + used + length.to_u32() as usize;
            (head <= body.len()).then_some(head)
        }
        _ => None,
    }
}

fn packet<'a>(at: usize, frame: &Frame, payloads: &mut Payloads<'a>) -> Result<Term<'a>, Fault> {
    let env = payloads.env;
    let input = payloads.chunk.as_slice();
    let start = at + frame.start;
    let first = input[at];
    let body = &input[start..start + frame.head];
    if first >> 4 == PacketType::Publish.as_u8() {
        let payload = payloads.part(start + frame.head, at + frame.size)?;
        return publish(env, first & 0x0f, body, payload);
    }
    // The reserved bits of the first byte are part of the value.
    match FixedHeader::try_from(first).map_err(|_| Fault::Malformed)? {
        FixedHeader::Puback => {
            let puback = exact(body, Puback::parse)?;
            let reason = puback.reason_code().map_or(0, |code| code as u8);
            Ok((atoms::puback(), puback.packet_id(), reason).encode(env))
        }
        FixedHeader::Pingresp => {
            exact(body, Pingresp::parse)?;
            Ok(atoms::pingresp().encode(env))
        }
        FixedHeader::Suback => {
            let suback = exact(body, Suback::parse)?;
            let reasons: Vec<u8> = suback.reason_codes().iter().map(|c| *c as u8).collect();
            Ok((atoms::suback(), suback.packet_id(), integers(&reasons)).encode(env))
        }
        FixedHeader::Unsuback => {
            let unsuback = exact(body, Unsuback::parse)?;
            let reasons: Vec<u8> = unsuback.reason_codes().iter().map(|c| *c as u8).collect();
            Ok((atoms::unsuback(), unsuback.packet_id(), integers(&reasons)).encode(env))
        }
        FixedHeader::Connack => {
            let connack = exact(body, Connack::parse)?;
            let reason = connack.reason_code() as u8;
            let properties = properties(env, connack.props())?;
            Ok((
                atoms::connack(),
                connack.session_present(),
                reason,
                properties,
            )
                .encode(env))
        }
        FixedHeader::Disconnect => {
            let disconnect = exact(body, Disconnect::parse)?;
            let reason = disconnect.reason_code().map_or(0, |code| code as u8);
            let properties = match disconnect.props() {
                Some(properties_of) => properties(env, properties_of)?,
                None => Term::map_new(env),
            };
            Ok((atoms::disconnect(), reason, properties).encode(env))
        }
        // PUBREC, PUBREL and PUBCOMP belong to QoS 2 and AUTH to enhanced authentication, of
        // which a client of this codec starts neither; the rest is a client's to send.
        _ => Err(Fault::Unexpected),
    }
}

/// Lists of bytes are lists of integers here, never binaries.
fn integers(bytes: &[u8]) -> Vec<u32> {
    bytes.iter().map(|byte| u32::from(*byte)).collect()
}

fn exact<T>(
    body: &[u8],
    parse: impl FnOnce(&[u8]) -> Result<(T, usize), MqttError>,
) -> Result<T, Fault> {
    match parse(body) {
        Ok((packet, used)) if used == body.len() => Ok(packet),
        _ => Err(Fault::Malformed),
    }
}

/// Payloads of one chunk as terms.
struct Payloads<'a> {
    env: Env<'a>,
    chunk: Binary<'a>,
    /// Copy of the bytes from this offset on.
    slab: Option<(usize, Binary<'a>)>,
}

impl<'a> Payloads<'a> {
    fn part(&mut self, start: usize, end: usize) -> Result<Term<'a>, Fault> {
        let length = end - start;
        let input = self.chunk.as_slice();
        if length <= ON_HEAP {
            return Ok(binary(self.env, &input[start..end]));
        }
        let part = if length >= REFERENCE_FROM || input.len() <= SLAB {
            self.chunk.make_subbinary(start, length)
        } else {
            let (offset, slab) = match self.slab {
                Some((offset, slab)) if end <= offset + slab.len() => (offset, slab),
                _ => {
                    let copy = &input[start..input.len().min(start + SLAB)];
                    let slab = NewBinary::from_slice(self.env, copy).into();
                    *self.slab.insert((start, slab))
                }
            };
            slab.make_subbinary(start - offset, length)
        };
        part.map(|part| part.to_term(self.env))
            .map_err(|_| Fault::Malformed)
    }
}

fn binary<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    NewBinary::from_slice(env, bytes).into()
}

fn publish<'a>(env: Env<'a>, flags: u8, head: &[u8], payload: Term<'a>) -> Result<Term<'a>, Fault> {
    let Ok((publish, _)) = Publish::parse(flags, Arc::from(head)) else {
        return unreadable(env, flags, head);
    };
    // No topic alias is ever offered to the broker, so the name must be there.
    if publish.topic_name().is_empty() || publish.packet_id() == Some(0) {
        return Err(Fault::Malformed);
    }
    let undefined = atoms::undefined().encode(env);
    let mut response_topic = undefined;
    let mut correlation_data = undefined;
    let mut content_type = undefined;
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
            // One that nobody may publish to (3.3.2.3.5) is none.
            Property::ResponseTopic(topic) if is_topic_name(topic.val()) => {
                response_topic = binary(env, topic.val().as_bytes());
            }
            Property::CorrelationData(data) => correlation_data = binary(env, data.val()),
            Property::ContentType(name) => content_type = binary(env, name.val().as_bytes()),
            _ => {}
        }
    }
    let packet_id = match publish.packet_id() {
        Some(id) => id.encode(env),
        None => undefined,
    };
    Ok(make_tuple(
        env,
        &[
            atoms::publish().encode(env),
            binary(env, publish.topic_name().as_bytes()),
            payload,
            (publish.qos() as u8).encode(env),
            publish.retain().encode(env),
            packet_id,
            response_topic,
            correlation_data,
            content_type,
            user_properties.encode(env),
            subscription_ids.encode(env),
        ],
    ))
}

/// Some brokers pass on what a client wrote without a look at it, text that is not UTF-8 above
/// all. That must not end the connection of everyone who is subscribed: where the packet ends is
/// known, so it alone is lost.
fn unreadable<'a>(env: Env<'a>, flags: u8, head: &[u8]) -> Result<Term<'a>, Fault> {
    let packet_id = match (flags >> 1) & 0b11 {
        0 => atoms::undefined().encode(env),
        1 | 2 => {
            let topic = head
                .first_chunk()
                .map_or(0, |length| u16::from_be_bytes(*length));
            let id = head
                .get(2 + usize::from(topic)..)
                .and_then(|rest| rest.first_chunk());
            match id.map(|id| u16::from_be_bytes(*id)) {
                Some(id) if id > 0 => id.encode(env),
                _ => return Err(Fault::Malformed),
            }
        }
        _ => return Err(Fault::Malformed),
    };
    Ok((atoms::unreadable(), packet_id).encode(env))
}

/// What a host needs to know of CONNACK and DISCONNECT.
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
