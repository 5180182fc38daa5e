//! The packets that an MQTT 5 broker sends to its client.
//!
//! Framing is done here, because the builder of `mqtt-protocol-core` copies every packet into a
//! buffer of its own. The packets themselves are parsed by that crate. This crate does no I/O and
//! keeps no state, and no input makes it panic.

use mqtt_protocol_core::mqtt::Arc;
use mqtt_protocol_core::mqtt::packet::v5_0::{
    Connack, Disconnect, Pingresp, Puback, Pubcomp, Publish, Pubrec, Suback, Unsuback,
};
use mqtt_protocol_core::mqtt::packet::{DecodeResult, FixedHeader, VariableByteInteger};
use mqtt_protocol_core::mqtt::result_code::MqttError;

/// Bytes of the smallest packet.
pub const MIN_PACKET: usize = 2;

/// What the front of the bytes holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A complete packet.
    Frame(Frame<'a>),
    /// The beginning of a packet. Another attempt needs at least this many bytes in all.
    Need(usize),
}

/// A complete packet, not parsed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    first: u8,
    /// The bytes that have to be parsed: all after the fixed header, without the payload of a
    /// PUBLISH.
    pub head: &'a [u8],
    /// The payload of a PUBLISH.
    pub payload: &'a [u8],
    /// Size of the whole packet in bytes. It ends with the payload.
    pub size: usize,
}

/// A packet of a broker. Packet identifiers are never 0.
#[derive(Debug)]
pub enum Packet {
    /// A message without its payload.
    Publish(Box<Publish>),
    /// A PUBLISH that cannot be parsed, although its end is known.
    Unreadable {
        /// The packet identifier, if the quality of service is above 0, because the broker waits
        /// for an answer.
        packet_id: Option<u16>,
    },
    /// The answer to a PUBLISH.
    Puback {
        /// Which.
        packet_id: u16,
        /// Reason code.
        reason: u8,
    },
    /// The first answer to a PUBLISH with QoS 2.
    Pubrec {
        /// Which.
        packet_id: u16,
        /// Reason code.
        reason: u8,
    },
    /// The answer to a PUBREL.
    Pubcomp {
        /// Which.
        packet_id: u16,
    },
    /// The answer to a SUBSCRIBE.
    Suback {
        /// Which.
        packet_id: u16,
        /// A reason code for each filter, in order.
        reasons: Vec<u8>,
    },
    /// The answer to an UNSUBSCRIBE.
    Unsuback {
        /// Which.
        packet_id: u16,
        /// A reason code for each filter, in order.
        reasons: Vec<u8>,
    },
    /// The answer to CONNECT.
    Connack(Connack),
    /// The answer to a PINGREQ.
    Pingresp,
    /// The broker closes the connection.
    Disconnect(Disconnect),
}

/// The errors that end a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The packet is not MQTT 5.
    Malformed,
    /// A packet larger than the limit.
    TooLarge,
    /// A packet that no broker has a reason to send.
    Unexpected,
    /// The answer to CONNECT of a broker that speaks an older version of MQTT.
    OldVersion,
}

/// Before MQTT 5, a CONNACK has two bytes. Since then it has at least three.
const OLD_CONNACK: usize = 2;

/// Finds the first packet of `input`.
///
/// # Errors
///
/// A packet beyond `max_packet_size` is reported as soon as its length is known. A PUBLISH whose
/// payload has no beginning is reported when the packet is complete.
#[inline]
pub fn frame(input: &[u8], max_packet_size: usize) -> Result<Step<'_>, Fault> {
    let Some((&first, after)) = input.split_first() else {
        return Ok(Step::Need(MIN_PACKET));
    };
    let (length, length_size) = match VariableByteInteger::decode_stream(after) {
        DecodeResult::Ok(length, used) => (to_usize(length), used),
        DecodeResult::Incomplete => return Ok(Step::Need(input.len().saturating_add(1))),
        DecodeResult::Err(_) => return Err(Fault::Malformed),
    };
    let size = length.saturating_add(length_size).saturating_add(1);
    if size > max_packet_size {
        return Err(Fault::TooLarge);
    }
    let Some(body) = after.get(length_size..size.saturating_sub(1)) else {
        return Ok(Step::Need(size));
    };
    let head = if is_publish(first) {
        publish_head(first, body).ok_or(Fault::Malformed)?
    } else {
        body.len()
    };
    let (head, payload) = body.split_at_checked(head).ok_or(Fault::Malformed)?;
    Ok(Step::Frame(Frame {
        first,
        head,
        payload,
        size,
    }))
}

impl Frame<'_> {
    /// Parses the packet.
    ///
    /// # Errors
    ///
    /// The packet is not valid in MQTT 5, or a broker may not send it.
    #[inline]
    pub fn packet(&self) -> Result<Packet, Fault> {
        if is_publish(self.first) {
            publish(self.first & 0x0F, self.head)
        } else {
            answer(self.first, self.head)
        }
    }
}

const fn is_publish(first: u8) -> bool {
    first >> 4 == 3
}

fn to_usize(length: VariableByteInteger) -> usize {
    usize::try_from(length.to_u32()).unwrap_or(usize::MAX)
}

/// The crate takes a PUBLISH only with its payload, in an `Arc` of its own. So it gets the part
/// before the payload. The length of that part follows from topic, packet identifier and property
/// length.
fn publish_head(first: u8, body: &[u8]) -> Option<usize> {
    let topic = usize::from(u16::from_be_bytes(*body.first_chunk()?));
    let packet_id = if quality(first) == 0 { 0 } else { 2 };
    let at = topic.saturating_add(packet_id).saturating_add(2);
    match VariableByteInteger::decode_stream(body.get(at..)?) {
        DecodeResult::Ok(length, used) => {
            Some(at.saturating_add(used).saturating_add(to_usize(length)))
        }
        _ => None,
    }
}

/// Quality of service.
const fn quality(flags: u8) -> u8 {
    (flags >> 1) & 0b11
}

#[inline]
fn publish(flags: u8, head: &[u8]) -> Result<Packet, Fault> {
    let Ok((publish, _)) = Publish::parse(flags, Arc::from(head)) else {
        return unreadable(flags, head);
    };
    // The gateway offers the broker no topic aliases, so the topic name must be there.
    if publish.topic_name().is_empty() || publish.packet_id() == Some(0) {
        return Err(Fault::Malformed);
    }
    Ok(Packet::Publish(Box::new(publish)))
}

/// Some brokers pass on what a client wrote without checking it, above all text that is not UTF-8.
/// That must not end the connections of all subscribers. The end of the packet is known, so only
/// this packet is lost.
fn unreadable(flags: u8, head: &[u8]) -> Result<Packet, Fault> {
    let packet_id = match quality(flags) {
        0 => None,
        1 | 2 => Some(publish_id(head).ok_or(Fault::Malformed)?),
        _ => return Err(Fault::Malformed),
    };
    Ok(Packet::Unreadable { packet_id })
}

/// The packet identifier, which follows the topic.
fn publish_id(head: &[u8]) -> Option<u16> {
    let (&topic, rest) = head.split_first_chunk()?;
    let id = rest.get(usize::from(u16::from_be_bytes(topic))..)?;
    Some(u16::from_be_bytes(*id.first_chunk()?)).filter(|&id| id > 0)
}

fn answer(first: u8, body: &[u8]) -> Result<Packet, Fault> {
    // The reserved bits of the first byte are part of the value.
    Ok(
        match FixedHeader::try_from(first).map_err(|_| Fault::Malformed)? {
            FixedHeader::Puback => {
                let puback = exact(body, Puback::parse)?;
                Packet::Puback {
                    packet_id: puback.packet_id(),
                    reason: puback.reason_code().map_or(0, |code| code as u8),
                }
            }
            FixedHeader::Pubrec => {
                let pubrec = exact(body, Pubrec::parse)?;
                Packet::Pubrec {
                    packet_id: pubrec.packet_id(),
                    reason: pubrec.reason_code().map_or(0, |code| code as u8),
                }
            }
            FixedHeader::Pubcomp => Packet::Pubcomp {
                packet_id: exact(body, Pubcomp::parse)?.packet_id(),
            },
            FixedHeader::Pingresp => {
                exact(body, Pingresp::parse)?;
                Packet::Pingresp
            }
            FixedHeader::Suback => {
                let suback = exact(body, Suback::parse)?;
                Packet::Suback {
                    packet_id: suback.packet_id(),
                    reasons: suback.reason_codes().iter().map(|&c| c as u8).collect(),
                }
            }
            FixedHeader::Unsuback => {
                let unsuback = exact(body, Unsuback::parse)?;
                Packet::Unsuback {
                    packet_id: unsuback.packet_id(),
                    reasons: unsuback.reason_codes().iter().map(|&c| c as u8).collect(),
                }
            }
            FixedHeader::Connack if body.len() == OLD_CONNACK => return Err(Fault::OldVersion),
            FixedHeader::Connack => Packet::Connack(exact(body, Connack::parse)?),
            FixedHeader::Disconnect => Packet::Disconnect(exact(body, Disconnect::parse)?),
            // A client of this codec subscribes with QoS 1 at most, so that no PUBREL comes, and uses
            // no enhanced authentication (AUTH). All other packets are sent only by clients.
            _ => return Err(Fault::Unexpected),
        },
    )
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
