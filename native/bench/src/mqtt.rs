//! The client's side of MQTT 5. The library builds packets. Packets that come by the thousand are
//! read in place.

use mqtt_protocol_core::mqtt::packet::v5_0::{Connect, Publish, Subscribe};
use mqtt_protocol_core::mqtt::packet::{
    Properties, PropertiesParse, Property, Qos, ResponseTopic, SubEntry, SubOpts, UserProperty,
};
use mqtt_protocol_core::mqtt::result_code::MqttError;

use crate::Failure;
use crate::connection::{Frame, Login, Message, Outgoing, Received};
use crate::payload::HEADERS;

/// The spelling of MQTT for a name of NATS, plain or with wildcards.
pub fn topic(subject: &str) -> String {
    subject
        .split('.')
        .map(|token| match token {
            "*" => "+",
            ">" => "#",
            _ => token,
        })
        .collect::<Vec<_>>()
        .join("/")
}

pub fn connect(login: &Login<'_>) -> Vec<u8> {
    let packet = || -> Result<_, MqttError> {
        Connect::builder()
            .client_id(login.id)?
            .clean_start(true)
            .keep_alive(login.keep_alive)
            .build()
    };
    packet().expect("a valid client id").to_continuous_buffer()
}

pub fn subscribe(subjects: &[String], group: Option<&str>) -> Vec<u8> {
    let share = group.map_or(String::new(), |group| format!("$share/{group}/"));
    let entries = subjects
        .iter()
        .map(|subject| {
            SubEntry::new(
                format!("{share}{}", topic(subject)),
                SubOpts::new().set_qos(Qos::AtMostOnce),
            )
        })
        .collect::<Result<Vec<_>, _>>()
        .expect("valid topic filters");
    Subscribe::builder()
        .packet_id(1)
        .entries(entries)
        .build()
        .expect("not too many entries")
        .to_continuous_buffer()
}

fn user_properties() -> Vec<Property> {
    HEADERS
        .iter()
        .map(|(name, value)| {
            Property::UserProperty(UserProperty::new(*name, *value).expect("valid text"))
        })
        .collect()
}

pub fn publish(message: &Outgoing<'_>) -> Frame {
    let topic_name = topic(message.name);
    let mut properties = Properties::new();
    if let Some(reply) = message.reply {
        properties.push(ResponseTopic::new(topic(reply)).expect("valid name").into());
    }
    if message.headers {
        properties.extend(user_properties());
    }
    let mut builder = Publish::builder()
        .topic_name(&*topic_name)
        .expect("valid name")
        .props(properties)
        .payload(message.payload.to_vec());
    if message.acknowledged {
        builder = builder.qos(Qos::AtLeastOnce).packet_id(1_u16);
    }
    let bytes = builder
        .build()
        .expect("valid packet")
        .to_continuous_buffer();
    let length_size = bytes[1..].iter().take_while(|byte| **byte >= 0x80).count() + 1;
    Frame {
        payload: bytes.len() - message.payload.len(),
        packet_id: message
            .acknowledged
            .then_some(1 + length_size + 2 + topic_name.len()),
        bytes,
    }
}

pub fn headers() -> Vec<u8> {
    user_properties()
        .iter()
        .flat_map(Property::to_continuous_buffer)
        .collect()
}

/// The Response Topic of a request.
pub fn response_topic(message: &Message<'_>) -> Option<String> {
    let (properties, _) = Properties::parse(message.headers).ok()?;
    properties.iter().find_map(|property| match property {
        Property::ResponseTopic(topic) => Some(topic.val().to_owned()),
        _ => None,
    })
}

pub fn parse(bytes: &[u8]) -> Result<Option<(Received<'_>, usize)>, Failure> {
    let [first, rest @ ..] = bytes else {
        return Ok(None);
    };
    let Some((length, length_size)) = variable_integer(rest) else {
        return Ok(None);
    };
    let begin = 1 + length_size;
    let Some(body) = bytes.get(begin..begin + length) else {
        return Ok(None);
    };
    let received = match first >> 4 {
        2 if body.get(1) == Some(&0) => Received::Connected,
        3 => Received::Message(message(*first, body).ok_or_else(|| refused(*first, body))?),
        4 => Received::Acknowledged,
        9 if body.last().is_some_and(|code| *code < 0x80) => Received::Subscribed,
        13 => Received::Barrier,
        _ => return Err(refused(*first, body)),
    };
    Ok(Some((received, begin + length)))
}

fn message(first: u8, body: &[u8]) -> Option<Message<'_>> {
    let (size, rest) = body.split_first_chunk()?;
    let (name, rest) = rest.split_at_checked(u16::from_be_bytes(*size).into())?;
    let with_id = first & 0b110 != 0;
    let rest = rest.get(if with_id { 2 } else { 0 }..)?;
    let (length, length_size) = variable_integer(rest)?;
    let (headers, payload) = rest.split_at_checked(length_size + length)?;
    Some(Message {
        name,
        reply: &[],
        headers,
        payload,
    })
}

fn variable_integer(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * at);
        if *byte < 0x80 {
            return Some((value, at + 1));
        }
    }
    None
}

fn refused(first: u8, body: &[u8]) -> Failure {
    let shown = &body[..body.len().min(16)];
    Failure::Refused(format!("packet {first:#04x} {shown:02x?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing(
        reply: Option<&'static str>,
        headers: bool,
        acknowledged: bool,
    ) -> Outgoing<'static> {
        Outgoing {
            name: "a.b",
            reply,
            headers,
            acknowledged,
            payload: &[7; 300],
        }
    }

    #[test]
    fn frames_are_parsed_at_every_split() {
        for (reply, headers, acknowledged) in [
            (None, false, false),
            (None, false, true),
            (Some("_INBOX.x"), true, false),
            (Some("_INBOX.x"), true, true),
        ] {
            let frame = publish(&outgoing(reply, headers, acknowledged));
            for end in 0..frame.bytes.len() {
                assert!(matches!(parse(&frame.bytes[..end]), Ok(None)));
            }
            let Ok(Some((Received::Message(message), used))) = parse(&frame.bytes) else {
                panic!("not a message");
            };
            assert_eq!(
                (message.name, message.payload),
                (&b"a/b"[..], &[7; 300][..])
            );
            assert_eq!(used, frame.bytes.len());
            assert_eq!(frame.payload, used - 300);
            assert_eq!(
                response_topic(&message).as_deref(),
                reply.map(|_| "_INBOX/x")
            );
            assert_eq!(message.headers.ends_with(&super::headers()), headers);
            let id = frame
                .packet_id
                .map(|at| [frame.bytes[at], frame.bytes[at + 1]]);
            assert_eq!(id, acknowledged.then_some([0, 1]));
        }
    }

    #[test]
    fn refusals() {
        for packet in [
            &[0x20, 3, 0, 0x87, 0][..],
            &[0x90, 4, 0, 1, 0, 0x87],
            &[0xE0, 0],
        ] {
            assert!(matches!(parse(packet), Err(Failure::Refused(_))));
        }
    }
}
