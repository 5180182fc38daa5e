//! WebSocket framing: every cut, every limit, and frames of another implementation.

#![allow(clippy::restriction)]

use nats_protocol::websocket::{
    Frame, FrameError, MAX_CONTROL, Position, ServerFrame, Settings, Step, decode, header,
};
use proptest::collection::vec;
use proptest::prelude::*;
use std::io::Cursor;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tungstenite::protocol::frame::{Frame as Written, FrameHeader};

const KEY: [u8; 4] = [0x12, 0xF0, 0x00, 0xFF];

/// A client's frame, made by tungstenite.
fn frame(opcode: OpCode, fin: bool, rsv1: bool, key: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        is_final: fin,
        rsv1,
        rsv2: false,
        rsv3: false,
        opcode,
        mask: key,
    };
    let mut bytes = Vec::new();
    Written::from_payload(header, payload.to_vec().into())
        .format(&mut bytes)
        .unwrap();
    bytes
}

fn binary(payload: &[u8]) -> Vec<u8> {
    frame(OpCode::Data(Data::Binary), true, false, Some(KEY), payload)
}

fn data(opcode: Data, fin: bool, payload: &[u8]) -> Vec<u8> {
    frame(OpCode::Data(opcode), fin, false, Some(KEY), payload)
}

fn deflated(opcode: Data, fin: bool, payload: &[u8]) -> Vec<u8> {
    let first = opcode != Data::Continue;
    frame(OpCode::Data(opcode), fin, first, Some(KEY), payload)
}

fn control(opcode: Control, payload: &[u8]) -> Vec<u8> {
    frame(OpCode::Control(opcode), true, false, Some(KEY), payload)
}

/// The result of some bytes, whatever the pieces were.
#[derive(Debug, Default, PartialEq, Eq)]
struct Decoded {
    /// Runs of the stream: its bytes, whether they are compressed, and whether their message ends.
    data: Vec<(Vec<u8>, bool, bool)>,
    controls: Vec<(&'static str, Vec<u8>)>,
    error: Option<FrameError>,
}

impl Decoded {
    fn stream(&self) -> Vec<u8> {
        self.data
            .iter()
            .flat_map(|(bytes, ..)| bytes.clone())
            .collect()
    }

    fn push(&mut self, bytes: &[u8], deflated: bool, ends: bool) {
        match self.data.last_mut() {
            Some((run, same, ended @ false)) if *same == deflated => {
                run.extend_from_slice(bytes);
                *ended = ends;
            }
            _ if bytes.is_empty() && !ends => {}
            _ => self.data.push((bytes.to_vec(), deflated, ends)),
        }
    }
}

/// Feeds the pieces one after the other, and keeps the incomplete part. The decoder is called again
/// only when as many bytes are there as it asked for.
fn feed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, settings: &Settings) -> Decoded {
    let mut decoded = Decoded::default();
    let mut position = Position::default();
    let mut waiting: Vec<u8> = Vec::new();
    let mut needed = 0;
    for piece in pieces {
        waiting.extend_from_slice(piece);
        while waiting.len() >= needed {
            let before = position;
            match decode(&waiting, &mut position, settings) {
                Ok(Step::Frame { frame, used }) => {
                    let clear = |payload: nats_protocol::websocket::Payload<'_>| {
                        let mut clear = vec![0; payload.len()];
                        payload.unmask(&mut clear);
                        clear
                    };
                    match frame {
                        Frame::Data(data) => {
                            decoded.push(&clear(data.payload), data.deflated, data.ends_message);
                        }
                        Frame::Ping(payload) => decoded.controls.push(("ping", clear(payload))),
                        Frame::Pong => decoded.controls.push(("pong", Vec::new())),
                        Frame::Close(payload) => decoded.controls.push(("close", clear(payload))),
                    }
                    assert!(used > 0 && used <= waiting.len());
                    waiting.drain(..used);
                    needed = 0;
                }
                Ok(Step::Need(need)) => {
                    assert!(need > waiting.len(), "{need} needed of {}", waiting.len());
                    assert_eq!(position, before);
                    assert!(waiting.len() < 6 + MAX_CONTROL, "only little ever waits");
                    needed = need;
                }
                Err(error) => {
                    assert_eq!(position, before);
                    decoded.error = Some(error);
                    return decoded;
                }
            }
        }
    }
    decoded
}

fn all(bytes: &[u8], settings: &Settings) -> Decoded {
    feed([bytes], settings)
}

fn plain() -> Settings {
    Settings::default()
}

fn compressing() -> Settings {
    Settings {
        deflate: true,
        ..Settings::default()
    }
}

fn error(bytes: &[u8]) -> Option<FrameError> {
    all(bytes, &plain()).error
}

#[test]
fn kinds_of_frames() {
    let bytes = [
        data(Data::Text, false, b"PI"),
        control(Control::Ping, b"payload"),
        data(Data::Continue, false, b""),
        control(Control::Pong, b"x"),
        data(Data::Continue, true, b"NG\r\n"),
        data(Data::Binary, true, b"PONG\r\n"),
        control(Control::Ping, b""),
        control(Control::Close, b"\x03\xe8bye"),
    ]
    .concat();
    let decoded = all(&bytes, &plain());
    assert_eq!(decoded.stream(), b"PING\r\nPONG\r\n");
    assert_eq!(
        decoded.controls,
        [
            ("ping", b"payload".to_vec()),
            ("pong", vec![]),
            ("ping", vec![]),
            ("close", b"\x03\xe8bye".to_vec()),
        ]
    );
    assert_eq!(decoded.error, None);
}

#[test]
fn messages_of_both_kinds() {
    let bytes = [
        deflated(Data::Binary, false, b"ab"),
        control(Control::Ping, b"p"),
        deflated(Data::Continue, true, b"c"),
        binary(b"plain"),
        deflated(Data::Text, true, b""),
    ]
    .concat();
    assert_eq!(
        all(&bytes, &compressing()).data,
        [
            (b"abc".to_vec(), true, true),
            (b"plain".to_vec(), false, true),
            (vec![], true, true),
        ]
    );
}

/// Every kind of frame and of ending, short enough to be cut everywhere.
fn inputs() -> Vec<Vec<u8>> {
    let unmasked = frame(OpCode::Data(Data::Binary), true, false, None, b"PING\r\n");
    let mut reserved = binary(b"PING\r\n");
    reserved[0] |= 0x10;
    vec![
        binary(b""),
        binary(b"PING\r\n"),
        binary(&[b'x'; 126]),
        binary(&vec![b'y'; 65_536]),
        [binary(b"a"), binary(b"b")].concat(),
        [
            data(Data::Text, false, b"PI"),
            control(Control::Ping, &[b'p'; MAX_CONTROL]),
            data(Data::Continue, true, b"NG\r\n"),
        ]
        .concat(),
        [
            deflated(Data::Binary, false, b"PI"),
            control(Control::Pong, b""),
            deflated(Data::Continue, true, b"NG"),
            binary(b"x"),
        ]
        .concat(),
        control(Control::Close, b""),
        control(Control::Close, b"\x03\xe9"),
        [binary(b"a"), data(Data::Continue, true, b"b")].concat(),
        [data(Data::Binary, false, b"a"), binary(b"b")].concat(),
        [binary(b"a"), unmasked].concat(),
        [binary(b"a"), reserved].concat(),
    ]
}

#[test]
fn every_cut() {
    for input in inputs() {
        let whole = all(&input, &compressing());
        let mut cuts: Vec<usize> = (0..=input.len().min(300)).collect();
        cuts.extend(input.len().saturating_sub(20)..=input.len());
        for cut in cuts {
            let (front, back) = input.split_at(cut);
            assert_eq!(feed([front, back], &compressing()), whole, "at {cut}");
        }
    }
}

#[test]
fn byte_by_byte() {
    for input in inputs() {
        let whole = all(&input, &compressing());
        assert_eq!(feed(input.chunks(1), &compressing()), whole);
    }
}

#[test]
fn every_form_of_length() {
    for length in [0, 1, 125, 126, 127, 128, 65_535, 65_536, 65_537, 1 << 20] {
        let payload: Vec<u8> = (0..length).map(|i: u32| i.to_le_bytes()[0]).collect();
        let decoded = all(&binary(&payload), &plain());
        assert_eq!(decoded.stream(), payload);
        assert_eq!(decoded.error, None);
    }
    // As in nats-server, a longer form than necessary is accepted.
    assert_eq!(
        all(b"\x82\xfe\x00\x01\x00\x00\x00\x00a", &plain()).stream(),
        b"a"
    );
    let bytes = b"\x82\xff\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00a";
    assert_eq!(all(bytes, &plain()).stream(), b"a");
}

#[test]
fn limit_of_a_frame_is_checked_at_its_length() {
    let limited = |max_frame| Settings {
        max_frame,
        deflate: false,
    };
    for (length, max) in [(0_u64, 0), (1, 1), (125, 125), (126, 126), (65_536, 65_536)] {
        let payload = vec![b'x'; usize::try_from(length).unwrap()];
        let bytes = binary(&payload);
        assert_eq!(all(&bytes, &limited(max)).stream(), payload);
        let above = binary(&[&payload[..], b"x"].concat());
        // The bytes of the length are enough.
        let seen = above.len() - payload.len() - 1 - KEY.len();
        for size in [seen, 1] {
            let decoded = feed(above[..seen].chunks(size), &limited(max));
            assert_eq!(decoded.error, Some(FrameError::FrameTooLarge), "{length}");
        }
        let fewer = all(&above[..seen - 1], &limited(max));
        assert_eq!(fewer.error, None, "{length}");
    }
    // The limit is neither for a message nor for control frames.
    let fragments = [
        data(Data::Binary, false, b"abc"),
        control(Control::Ping, &[0; MAX_CONTROL]),
        data(Data::Continue, true, b"def"),
    ]
    .concat();
    assert_eq!(all(&fragments, &limited(3)).stream(), b"abcdef");
    assert_eq!(FrameError::FrameTooLarge.close_code(), 1009);
}

#[test]
fn largest_length() {
    let largest = b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00a";
    assert_eq!(all(largest, &plain()).stream(), b"a");
    let above = b"\x82\xff\x80\x00\x00\x00\x00\x00\x00\x00";
    assert_eq!(error(above), Some(FrameError::InvalidLength));
    let bytewise = feed(above.chunks(1), &plain());
    assert_eq!(bytewise.error, Some(FrameError::InvalidLength));
}

#[test]
fn breaches_are_seen_in_two_bytes() {
    for (bytes, expected) in [
        (b"\x82\x06", FrameError::NotMasked),
        (b"\x89\x00", FrameError::NotMasked),
        (b"\xc2\x80", FrameError::ReservedBit),
        (b"\xa2\x80", FrameError::ReservedBit),
        (b"\x92\x80", FrameError::ReservedBit),
        (b"\xc9\x80", FrameError::ReservedBit),
        (b"\x99\x80", FrameError::ReservedBit),
        (b"\x09\x80", FrameError::ControlFragmented),
        (b"\x08\x80", FrameError::ControlFragmented),
        (b"\x0a\x80", FrameError::ControlFragmented),
        (b"\x89\xfe", FrameError::ControlTooLong),
        (b"\x8a\xff", FrameError::ControlTooLong),
        (b"\x88\xfe", FrameError::ControlTooLong),
        (b"\x80\x80", FrameError::NothingToContinue),
        (b"\x00\x80", FrameError::NothingToContinue),
    ] {
        assert_eq!(error(bytes), Some(expected), "{}", bytes.escape_ascii());
        assert_eq!(expected.close_code(), 1002);
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        assert_eq!(
            error(&[0x80 | opcode, 0x80]),
            Some(FrameError::UnknownOpcode(opcode))
        );
    }
}

#[test]
fn breaches_within_a_message() {
    let begun = data(Data::Text, false, b"a");
    for (next, expected) in [
        (b"\x82\x80", FrameError::MessageUnfinished),
        (b"\x01\x80", FrameError::MessageUnfinished),
        (b"\xc1\x80", FrameError::MessageUnfinished),
        (b"\xc0\x80", FrameError::NothingToContinue),
    ] {
        let bytes = [&begun[..], next].concat();
        let decoded = all(&bytes, &compressing());
        assert_eq!(decoded.error, Some(expected));
        assert_eq!(decoded.stream(), b"a");
    }
}

#[test]
fn an_unmasked_payload_is_cut_to_what_there_is_room_for() {
    let bytes = binary(b"PING\r\n");
    let step = decode(&bytes, &mut Position::default(), &plain()).unwrap();
    let Step::Frame {
        frame: Frame::Data(data),
        ..
    } = step
    else {
        panic!("{step:?}");
    };
    assert!(!data.payload.is_empty());
    let (mut less, mut more) = ([0; 4], [7; 8]);
    data.payload.unmask(&mut less);
    data.payload.unmask(&mut more);
    assert_eq!((&less, &more), (b"PING", b"PING\r\n\x07\x07"));
}

fn read_header(frame: ServerFrame, length: u64) -> (FrameHeader, u64) {
    let (bytes, size) = header(frame, length);
    let mut cursor = Cursor::new(&bytes[..size]);
    let read = FrameHeader::parse(&mut cursor).unwrap().unwrap();
    assert_eq!(cursor.position(), size as u64);
    read
}

#[test]
fn headers_of_the_server() {
    for (kind, opcode, rsv1) in [
        (ServerFrame::Binary, OpCode::Data(Data::Binary), false),
        (ServerFrame::Deflated, OpCode::Data(Data::Binary), true),
        (ServerFrame::Pong, OpCode::Control(Control::Pong), false),
        (ServerFrame::Close, OpCode::Control(Control::Close), false),
    ] {
        for (length, size) in [
            (0, 2),
            (1, 2),
            (125, 2),
            (126, 4),
            (127, 4),
            (65_535, 4),
            (65_536, 10),
            (u64::MAX >> 1, 10),
        ] {
            assert_eq!(header(kind, length).1, size);
            let (read, read_length) = read_header(kind, length);
            assert_eq!(read_length, length);
            assert_eq!(
                read,
                FrameHeader {
                    is_final: true,
                    rsv1,
                    rsv2: false,
                    rsv3: false,
                    opcode,
                    mask: None,
                }
            );
        }
    }
}

/// Text, binary and their continuations, with control frames between them.
fn traffic() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let piece = (
        vec(any::<u8>(), 0..400),
        any::<[u8; 4]>(),
        any::<bool>(),
        0..4_u8,
    );
    vec(piece, 0..12).prop_map(|pieces| {
        let (mut bytes, mut stream, mut unfinished) = (Vec::new(), Vec::new(), false);
        for (payload, key, fin, between) in pieces {
            let opcode = match (unfinished, between) {
                (true, _) => Data::Continue,
                (false, 0) => Data::Text,
                (false, _) => Data::Binary,
            };
            bytes.extend(frame(OpCode::Data(opcode), fin, false, Some(key), &payload));
            if between > 1 {
                let ping = &payload[..payload.len().min(MAX_CONTROL)];
                bytes.extend(control(Control::Ping, ping));
            }
            stream.extend(payload);
            unfinished = !fin;
        }
        (bytes, stream)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_traffic_in_any_pieces((bytes, stream) in traffic(), size in 1..2000_usize) {
        let whole = all(&bytes, &plain());
        prop_assert_eq!(whole.error, None);
        prop_assert_eq!(whole.stream(), stream);
        prop_assert_eq!(feed(bytes.chunks(size), &plain()), whole);
    }

    #[test]
    fn any_bytes_in_any_pieces(
        bytes in vec(any::<u8>(), 0..400),
        size in 1..50_usize,
        max_frame in 0..200_u64,
        deflate in any::<bool>(),
    ) {
        // Masked and final, more often than by chance.
        let likely: Vec<u8> = bytes.iter().enumerate()
            .map(|(i, byte)| if i % 7 < 2 { byte | 0x80 } else { *byte })
            .collect();
        for input in [bytes, likely] {
            let settings = Settings { max_frame, deflate };
            let whole = all(&input, &settings);
            prop_assert_eq!(feed(input.chunks(size), &settings), whole);
        }
    }

    #[test]
    fn any_position_is_taken(
        bytes in vec(any::<u8>(), 0..100),
        remaining in prop_oneof![0..200_u64, any::<u64>()],
        key in any::<[u8; 4]>(),
        last_frame in any::<bool>(),
    ) {
        let mut position = Position { remaining, key, last_frame, ..Position::default() };
        let _ = decode(&bytes, &mut position, &plain());
        prop_assert!(position.remaining <= remaining || remaining == 0);
    }
}
