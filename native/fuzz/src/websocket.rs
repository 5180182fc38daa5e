use nats_protocol::websocket::{
    Data, Frame, FrameError, MAX_CONTROL, Payload, Position, ServerFrame, Settings, Step, decode,
    header,
};

use crate::input::{Input, pieces};

/// Frames of a client: two choices of settings, `0` and sizes of the pieces `|` the bytes, or `1`
/// and frames to write.
///
/// The result does not depend on the pieces, and frames that a client has written can be read
/// again.
pub fn websocket(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let settings = Settings {
        deflate: input.choose(&[true, false]),
        max_frame: input.choose(&[u64::MAX, 0, 1, 125, 126, 65_535]),
    };
    if input.choose(&[true, false]) {
        let sizes = input.field();
        let stream = input.rest();
        let whole = read([stream], &settings);
        assert_eq!(read(pieces(stream, sizes), &settings), whole);
        assert_eq!(read(stream.chunks(1), &settings), whole);
    } else {
        written(&input.fields());
    }
}

/// What has arrived, whatever the pieces were: runs of one message are joined.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    runs: Vec<Run>,
    error: Option<FrameError>,
}

#[derive(Debug, PartialEq, Eq)]
enum Run {
    Data {
        bytes: Vec<u8>,
        deflated: bool,
        ends: bool,
    },
    Control(&'static str, Vec<u8>),
}

fn clear(payload: Payload<'_>) -> Vec<u8> {
    let mut out = vec![0; payload.len()];
    payload.unmask(&mut out);
    out
}

fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, settings: &Settings) -> Read {
    let mut found = Read::default();
    let mut position = Position::default();
    let mut pending = Vec::new();
    let mut need = 0;
    for piece in pieces {
        pending.extend_from_slice(piece);
        while pending.len() >= need {
            match decode(&pending, &mut position, settings) {
                Ok(Step::Frame { frame, used }) => {
                    assert!(used > 0 && used <= pending.len());
                    found.push(frame);
                    pending.drain(..used);
                    need = 0;
                }
                Ok(Step::Need(bytes)) => {
                    assert!(bytes > pending.len());
                    need = bytes;
                }
                Err(error) => {
                    found.error = Some(error);
                    return found;
                }
            }
        }
    }
    found
}

impl Read {
    fn push(&mut self, frame: Frame<'_>) {
        match frame {
            Frame::Data(data) => self.push_data(data),
            Frame::Ping(payload) => self.runs.push(Run::Control("ping", clear(payload))),
            Frame::Pong => self.runs.push(Run::Control("pong", Vec::new())),
            Frame::Close(payload) => self.runs.push(Run::Control("close", clear(payload))),
        }
    }

    fn push_data(&mut self, data: Data<'_>) {
        let (more, now_ends) = (clear(data.payload), data.ends_message);
        match self.runs.last_mut() {
            Some(Run::Data {
                bytes,
                deflated,
                ends: ends @ false,
            }) => {
                assert_eq!(*deflated, data.deflated);
                bytes.extend_from_slice(&more);
                *ends = now_ends;
            }
            // A piece without anything does not count.
            _ if more.is_empty() && !now_ends => {}
            _ => self.runs.push(Run::Data {
                bytes: more,
                deflated: data.deflated,
                ends: now_ends,
            }),
        }
    }
}

/// Fields are frames: `d` and data, `f` and data of a message that goes on, `z` and data of a
/// compressed message, `p` and a ping, `o` and a pong. Upper case writes a length longer than
/// necessary.
fn written(fields: &[&[u8]]) {
    let mut stream = Vec::new();
    let (mut data, mut pings) = (Vec::new(), Vec::new());
    let mut open = false;
    for field in fields {
        let Some((&kind, payload)) = field.split_first() else {
            continue;
        };
        let long = kind.is_ascii_uppercase();
        let continued = if open { 0 } else { 2 };
        match kind.to_ascii_lowercase() {
            b'p' | b'o' if payload.len() > MAX_CONTROL => continue,
            b'p' => {
                write(0x89, payload, false, &mut stream);
                pings.push(payload.to_vec());
                continue;
            }
            b'o' => {
                write(0x8A, payload, false, &mut stream);
                continue;
            }
            b'd' => write(0x80 | continued, payload, long, &mut stream),
            b'f' => write(continued, payload, long, &mut stream),
            b'z' if !open => write(0xC2, payload, long, &mut stream),
            _ => continue,
        }
        open = kind.eq_ignore_ascii_case(&b'f');
        data.extend_from_slice(payload);
    }
    let settings = Settings {
        deflate: true,
        ..Settings::default()
    };
    let found = read([&stream[..]], &settings);
    assert_eq!(found.error, None);
    let mut found_data = Vec::new();
    let mut found_pings = Vec::new();
    for run in found.runs {
        match run {
            Run::Data { bytes, .. } => found_data.extend_from_slice(&bytes),
            Run::Control("ping", payload) => found_pings.push(payload),
            Run::Control(..) => {}
        }
    }
    assert_eq!((found_data, found_pings), (data, pings));
}

/// A client's frame.
fn write(first: u8, payload: &[u8], long: bool, out: &mut Vec<u8>) {
    let key = [first, 0xFF, 0, payload.first().copied().unwrap_or(7)];
    let length = payload.len() as u64;
    // The header of a server differs only in its mask bit.
    let (mut bytes, size) = header(ServerFrame::Binary, length);
    let mut size = size;
    if long {
        bytes = [0; 10];
        bytes[1] = 127;
        bytes[2..].copy_from_slice(&length.to_be_bytes());
        size = 10;
    }
    bytes[0] = first;
    bytes[1] |= 0x80;
    out.extend_from_slice(&bytes[..size]);
    out.extend_from_slice(&key);
    out.extend(
        payload
            .iter()
            .zip(key.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
}
