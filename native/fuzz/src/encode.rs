use nats_protocol::encode::{
    Frames, MAX_CONTROL_LINE, Message, REFERENCE_THRESHOLD, write_raw_subject,
};
use nats_protocol::headers::build;
use nats_protocol::subject::{write_reply, write_subject};
use nats_protocol::{Op, Settings, Step, Subscribe, decode};

use crate::input::Input;
use crate::readers::{check_text, read_frames};

/// How often a field is repeated, so that a short input gets beyond limits.
const REPETITIONS: [usize; 4] = [1, 20, 200, 1000];

#[derive(Clone, Copy)]
enum Reply {
    None,
    /// A subject as a NATS client wrote it.
    Raw,
    /// A response topic without and with Correlation Data.
    Topic,
    Correlated,
}

#[derive(Clone, Copy)]
enum Headers {
    None,
    /// A block as a NATS client wrote it.
    Raw,
    /// A block made of MQTT properties.
    Built,
}

/// Deliveries: five choices, mountpoint `|` topic `|` reply `|` Correlation Data `|` headers `|`
/// sids with blanks between them `|` payload.
///
/// A client's reader gets exactly those frames. The only exceptions are frames whose control line
/// would be too long for it; these are counted.
pub fn encode(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind_of_reply = input.choose(&[Reply::None, Reply::Raw, Reply::Topic, Reply::Correlated]);
    let kind_of_headers = input.choose(&[Headers::None, Headers::Raw, Headers::Built]);
    let [of_topic, of_reply, of_payload] = [(); 3].map(|()| input.choose(&REPETITIONS));
    let mountpoint = input.field();
    let topic = [mountpoint, &input.field().repeat(of_topic)].concat();
    let (response, data) = (input.field().repeat(of_reply), input.field());
    let block = input.field();
    let sids: Vec<&[u8]> = input.field().split(|&byte| byte == b' ').collect();
    let payload = input.rest().repeat(of_payload);

    let mut subject = Vec::new();
    write_subject(&topic, mountpoint, &mut subject);
    let mut reply = Vec::new();
    match kind_of_reply {
        Reply::None => {}
        Reply::Raw => write_raw_subject(&response, &mut reply),
        Reply::Topic => write_reply(&response, None, mountpoint, &mut reply),
        Reply::Correlated => write_reply(&response, Some(data), mountpoint, &mut reply),
    }
    if !matches!(kind_of_reply, Reply::Raw) {
        check_text(&reply);
    }
    let mut headers = Vec::new();
    match kind_of_headers {
        Headers::None => {}
        Headers::Raw => headers.extend_from_slice(block),
        Headers::Built => build(pairs(block).into_iter(), Some(data), &mut headers),
    }
    let message = Message {
        subject: &subject,
        reply: &reply,
        headers: &headers,
        payload: &payload,
    };
    deliver(&message, &sids);
}

fn pairs(block: &[u8]) -> Vec<(&[u8], &[u8])> {
    let pair = |line: &'_ [u8]| {
        line.iter()
            .position(|&byte| byte == b'=')
            .unwrap_or(line.len())
    };
    block
        .split(|&byte| byte == b';')
        .map(|line| line.split_at(pair(line)))
        .collect()
}

fn deliver(message: &Message<'_>, sids: &[&[u8]]) {
    let mut frames = Frames::with_capacity(0);
    let mut expected = Vec::new();
    let mut too_long = 0;
    for sid in sids.iter().filter(|sid| is_sid(sid)) {
        frames.push(message, sid, ());
        if line_size(message, sid, b"") > MAX_CONTROL_LINE {
            too_long += 1;
        } else if line_size(message, sid, message.reply) > MAX_CONTROL_LINE {
            expected.push((sid, &b""[..]));
        } else {
            expected.push((sid, message.reply));
        }
    }
    assert_eq!(frames.too_long(), too_long);
    let written = whole(&frames, message.payload);
    assert_eq!(written.len(), frames.size());
    let read = read_frames(&written);
    assert_eq!(read.len(), expected.len());
    for (frame, (sid, reply)) in read.iter().zip(expected) {
        assert_eq!(frame.subject, message.subject);
        assert_eq!(&frame.sid, sid);
        assert_eq!(frame.reply.as_deref().unwrap_or_default(), reply);
        assert_eq!(frame.headers.is_some(), !message.headers.is_empty());
        assert_eq!(
            frame.headers.as_deref().unwrap_or_default(),
            message.headers
        );
        assert_eq!(frame.payload, message.payload);
    }
}

/// Whether a SUB can have this sid.
fn is_sid(text: &[u8]) -> bool {
    let line = [b"SUB a ", text, b"\r\n"].concat();
    matches!(
        decode(&line, &Settings::default()),
        Ok(Step::Op { op: Op::Sub(Subscribe { sid, queue: None, .. }), .. }) if sid == text
    )
}

fn line_size(message: &Message<'_>, sid: &[u8], reply: &[u8]) -> usize {
    let total = message.headers.len() + message.payload.len();
    let mut fields = vec![message.subject.len(), sid.len(), total.to_string().len()];
    if !reply.is_empty() {
        fields.push(reply.len());
    }
    if !message.headers.is_empty() {
        fields.push(message.headers.len().to_string().len());
    }
    fields.iter().sum::<usize>() + fields.len() - 1
}

/// The bytes that the socket gets.
fn whole(frames: &Frames<()>, payload: &[u8]) -> Vec<u8> {
    let (buffer, references) = frames.parts();
    assert!(references.is_empty() || payload.len() >= REFERENCE_THRESHOLD);
    let mut out = Vec::new();
    let mut start = 0;
    for &(end, ()) in references {
        out.extend_from_slice(&buffer[start..end]);
        out.extend_from_slice(payload);
        start = end;
    }
    out.extend_from_slice(&buffer[start..]);
    out
}
