use mqtt_packets::{Fault, Packet, Step, frame};
use mqtt_protocol_core::mqtt::packet::v5_0::Publish;
use mqtt_protocol_core::mqtt::packet::{
    ContentType, CorrelationData, Properties, Property, Qos, ResponseTopic, UserProperty,
};

use crate::input::{Input, pieces};

/// Packets of a broker: a choice of the largest packet, `0` and sizes of the pieces `|` the bytes,
/// or `1` and a message: topic `|` response topic `|` Correlation Data `|` Content Type `|` name of
/// a user property `|` its value `|` payload.
///
/// The result does not depend on the pieces, and a message that was written can be read again.
pub fn mqtt(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let max_packet_size = input.choose(&[268_435_460, 2, 20, 200]);
    if input.choose(&[true, false]) {
        let sizes = input.field();
        let stream = input.rest();
        let whole = read([stream], max_packet_size);
        assert_eq!(read(pieces(stream, sizes), max_packet_size), whole);
        assert_eq!(read(stream.chunks(1), max_packet_size), whole);
    } else {
        let fields = [(); 6].map(|()| input.field());
        if let Some(publish) = built(fields, input.rest()) {
            written(&publish, input.rest());
        }
    }
}

type Outcome = (Vec<String>, Result<usize, Fault>);

/// Packets as text, and what is left over.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, max_packet_size: usize) -> Outcome {
    let mut packets = Vec::new();
    let mut pending = Vec::new();
    let mut need = 0;
    for piece in pieces {
        pending.extend_from_slice(piece);
        while pending.len() >= need {
            match frame(&pending, max_packet_size) {
                Ok(Step::Frame(frame)) => {
                    assert!((2..=pending.len().min(max_packet_size)).contains(&frame.size));
                    assert!(frame.head.len() + frame.payload.len() + 2 <= frame.size);
                    match frame.packet() {
                        Ok(packet) => packets.push(format!("{packet:?} {:?}", frame.payload)),
                        Err(fault) => return (packets, Err(fault)),
                    }
                    let size = frame.size;
                    pending.drain(..size);
                    need = 0;
                }
                Ok(Step::Need(bytes)) => {
                    assert!(bytes > pending.len());
                    need = bytes;
                }
                Err(fault) => return (packets, Err(fault)),
            }
        }
    }
    (packets, Ok(pending.len()))
}

/// The message in the form that a broker writes, if a broker can write it.
fn built(fields: [&[u8]; 6], payload: &[u8]) -> Option<Publish> {
    let [topic, response, data, content_type, name, value] = fields;
    let text = |bytes| std::str::from_utf8(bytes).ok();
    let mut properties = Properties::new();
    if !response.is_empty() {
        properties.push(ResponseTopic::new(text(response)?).ok()?.into());
    }
    if !data.is_empty() {
        properties.push(CorrelationData::new(data.to_vec()).ok()?.into());
    }
    if !content_type.is_empty() {
        properties.push(ContentType::new(text(content_type)?).ok()?.into());
    }
    let pair = UserProperty::new(text(name)?, text(value)?).ok()?;
    properties.push(Property::UserProperty(pair));
    Publish::builder()
        .topic_name(text(topic)?)
        .ok()?
        .qos(Qos::AtLeastOnce)
        .packet_id(u16::from_be_bytes([1, 2]))
        .props(properties)
        .payload(payload)
        .build()
        .ok()
}

fn written(publish: &Publish, payload: &[u8]) {
    let bytes = publish.to_continuous_buffer();
    let Ok(Step::Frame(frame)) = frame(&bytes, bytes.len()) else {
        panic!("no frame in {bytes:?}");
    };
    assert_eq!((frame.size, frame.payload), (bytes.len(), payload));
    match frame.packet() {
        Ok(Packet::Publish(read)) => {
            assert_eq!(read.topic_name(), publish.topic_name());
            assert_eq!(read.packet_id(), publish.packet_id());
            assert_eq!(read.qos(), publish.qos());
            assert_eq!(read.props(), publish.props());
        }
        // An empty topic means an alias, which the client has not offered.
        Err(Fault::Malformed) => assert!(publish.topic_name().is_empty()),
        other => panic!("{other:?}"),
    }
}
