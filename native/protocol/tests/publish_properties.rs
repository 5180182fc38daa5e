//! Headers that set properties of a PUBLISH, and headers that tell them. The values are tested in
//! Erlang (`nats_gateway_publish_properties_tests`).

use nats_protocol::publish_properties::{Header, show, take};
use proptest::prelude::*;

fn line() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        3 => Just("Mqtt-Retain"), 3 => Just("mqtt-qos"), 2 => Just("MQTT-EXPIRY"),
        2 => Just("Mqtt-Payload-Format"), 1 => Just("Mqtt-Response-Topic"), 4 => Just("A"),
        1 => Just("Mqtt-Other"), 1 => Just(""), 1 => Just(" "),
    ];
    let value = prop_oneof![
        Just("true"),
        Just("0"),
        Just("1"),
        Just("5m"),
        Just("a/b"),
        Just(""),
        Just("x: y"),
    ];
    let separator = prop_oneof![Just(":"), Just(": "), Just(" no colon "), Just(" :")];
    (name, separator, value)
        .prop_map(|(name, separator, value)| format!("{name}{separator}{value}\r\n"))
}

fn is_property(line: &[u8]) -> bool {
    let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
    line.contains(&b':') && Header::of(name).is_some()
}

fn lines(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    block.split(|&byte| byte == b'\n').skip(1)
}

proptest! {
    /// No header of these names is left, and everything else is, in order.
    #[test]
    fn the_rest_has_none_of_them(lines_in in prop::collection::vec(line(), 0..6), status in "( 503)?") {
        let block = format!("NATS/1.0{status}\r\n{}\r\n", lines_in.concat()).into_bytes();
        let Ok(taken) = take(&block, b"payload") else { return Ok(()) };
        let expected: Vec<String> = lines_in.iter().filter(|line| !is_property(line.as_bytes())).cloned().collect();
        match taken {
            None => prop_assert_eq!(expected.len(), lines_in.len()),
            Some(properties) if properties.rest.is_empty() => {
                prop_assert!(expected.is_empty() && status.is_empty());
            }
            Some(properties) => {
                let rest = format!("NATS/1.0{status}\r\n{}\r\n", expected.concat());
                prop_assert_eq!(properties.rest, rest.into_bytes());
            }
        }
    }

    /// Whatever the bytes are, nothing panics, and showing nothing leaves other headers as they are.
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut block = b"NATS/1.0\r\n".to_vec();
        block.extend(bytes);
        let mut shown = Vec::new();
        show(&block, std::iter::empty(), &mut shown);
        match take(&block, &block) {
            Ok(None) => prop_assert_eq!(&shown, &block),
            Ok(Some(properties)) => prop_assert!(!lines(&properties.rest).any(is_property) || properties.rest.is_empty()),
            Err(_) => prop_assert!(shown.len() < block.len()),
        }
    }
}

#[test]
fn shown_headers_come_last() {
    let mut out = Vec::new();
    let pairs = [(&b"Mqtt-Qos"[..], &b"1"[..])];
    show(
        b"NATS/1.0 100\r\nmqtt-qos:2\r\n 3\r\nA:1\r\n\r\ntail",
        pairs.into_iter(),
        &mut out,
    );
    assert_eq!(out, b"NATS/1.0 100\r\nA:1\r\nMqtt-Qos: 1\r\n\r\ntail");
}
