//! WebSocket framing of the server's side (RFC 6455 section 5, docs/protocol.md section 9).
//!
//! For NATS over WebSocket, the messages and frames are one stream of bytes, and it does not matter
//! where they begin and end. So a data frame is passed on piece by piece as it arrives, whatever
//! its size. Only headers and control frames, 139 bytes at most, wait until they are complete. The
//! decoder remembers only a [`Position`] from one piece to the next.
//!
//! ```
//! use nats_protocol::websocket::{Frame, Position, Settings, Step, decode};
//!
//! // PING CR LF, masked with the key 1 2 3 4.
//! let bytes = b"\x82\x86\x01\x02\x03\x04QKMC\x0C\x08";
//! let mut position = Position::default();
//! let Ok(Step::Frame { frame: Frame::Data(data), used }) =
//!     decode(bytes, &mut position, &Settings::default())
//! else {
//!     unreachable!();
//! };
//! let mut payload = [0; 6];
//! data.payload.unmask(&mut payload);
//! assert_eq!((&payload, used, data.ends_message), (b"PING\r\n", 12, true));
//! ```

use thiserror::Error;

/// Longest payload of a control frame.
pub const MAX_CONTROL: usize = 125;

/// Longest header that a server writes. Client frames have a masking key in addition.
pub const MAX_SERVER_HEADER: usize = 10;

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const RSV2_AND_3: u8 = 0x30;
const MASKED: u8 = 0x80;
const KEY: usize = 4;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// The settings that were agreed with the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Most bytes of payload in one data frame.
    pub max_frame: u64,
    /// Whether messages may be compressed (permessage-deflate, RFC 7692).
    pub deflate: bool,
}

impl Default for Settings {
    /// No limit, no compression.
    fn default() -> Self {
        Self {
            max_frame: u64::MAX,
            deflate: false,
        }
    }
}

/// Where in the stream of frames the next byte is. The default is its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Bytes of payload that the current data frame still has.
    pub remaining: u64,
    /// The masking key of the current data frame, turned so that its first byte is for the next
    /// byte of payload.
    pub key: [u8; KEY],
    /// The message whose frames are under way.
    pub message: Message,
    /// Whether the current data frame is the last of its message.
    pub last_frame: bool,
}

/// The kind of a message. Text and binary are the same here, because both hold bytes of the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Message {
    /// There is no message: the next data frame begins one.
    #[default]
    None,
    /// Its payload is not compressed.
    Plain,
    /// Its payload is compressed.
    Deflated,
}

/// What the front of the bytes holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A control frame, or some of a data frame.
    Frame {
        /// The frame.
        frame: Frame<'a>,
        /// Its size in bytes, with the header if that is part of it.
        used: usize,
    },
    /// There must be at least this many bytes in all before another attempt can yield more.
    Need(usize),
}

/// A control frame, or some of a data frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A piece of a data frame.
    Data(Data<'a>),
    /// A ping, to be answered by a pong with the same payload.
    Ping(Payload<'a>),
    /// A pong, which needs no answer.
    Pong,
    /// The close frame. The client sends nothing after it.
    Close(Payload<'a>),
}

/// The part of a data frame that has arrived. It can be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data<'a> {
    /// Bytes of the stream, or of their compressed form.
    pub payload: Payload<'a>,
    /// Whether they are compressed.
    pub deflated: bool,
    /// Whether their message ends with them.
    pub ends_message: bool,
}

/// Bytes in the form in which the client masked them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload<'a> {
    masked: &'a [u8],
    key: [u8; KEY],
}

/// The errors that end a connection while its frames are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum FrameError {
    /// A frame of a client without a masking key.
    #[error("mask bit missing")]
    NotMasked,
    /// RSV2, RSV3, or an RSV1 that does not begin a compressed message.
    #[error("reserved bit set")]
    ReservedBit,
    /// An opcode that RFC 6455 does not define.
    #[error("unknown opcode {0}")]
    UnknownOpcode(u8),
    /// A control frame that would need an extended length.
    #[error("control frame length bigger than maximum allowed of {MAX_CONTROL} bytes")]
    ControlTooLong,
    /// A control frame without FIN.
    #[error("control frame does not have final bit set")]
    ControlFragmented,
    /// Text or binary while the message before it lacks its last frame.
    #[error("new message started before final frame for previous message was received")]
    MessageUnfinished,
    /// A continuation without a message.
    #[error("invalid continuation frame")]
    NothingToContinue,
    /// A length of more than 63 bits.
    #[error("invalid frame length")]
    InvalidLength,
    /// A data frame longer than [`Settings::max_frame`].
    #[error("frame too large")]
    FrameTooLarge,
}

impl FrameError {
    /// The status code of the close frame for this error (RFC 6455 section 7.4.1).
    #[must_use]
    pub const fn close_code(self) -> u16 {
        match self {
            Self::FrameTooLarge => 1009,
            _ => 1002,
        }
    }
}

/// Decodes the front of `input`, and moves `position` accordingly.
///
/// # Errors
///
/// Any breach of the framing is reported as soon as the first two bytes of a header, or its length,
/// show it.
pub fn decode<'a>(
    input: &'a [u8],
    position: &mut Position,
    settings: &Settings,
) -> Result<Step<'a>, FrameError> {
    if position.remaining > 0 {
        return Ok(if input.is_empty() {
            Step::Need(1)
        } else {
            data(input, 0, position)
        });
    }
    let Some((&[first, second], after)) = input.split_first_chunk() else {
        return Ok(Step::Need(2));
    };
    if second & MASKED == 0 {
        return Err(FrameError::NotMasked);
    }
    if first & RSV2_AND_3 != 0 {
        return Err(FrameError::ReservedBit);
    }
    let opcode = first & 0x0F;
    let short_length = second & !MASKED;
    match opcode {
        CONTINUATION | TEXT | BINARY => {
            let message = begin(first, opcode, position.message, settings)?;
            // A wrong length is refused without waiting for the key behind it.
            let Some((length, after)) = long_length(short_length, after) else {
                return Ok(Step::Need(header_size(short_length).saturating_sub(KEY)));
            };
            if length > u64::MAX >> 1 {
                return Err(FrameError::InvalidLength);
            }
            if length > settings.max_frame {
                return Err(FrameError::FrameTooLarge);
            }
            let Some((&key, payload)) = after.split_first_chunk() else {
                return Ok(Step::Need(header_size(short_length)));
            };
            *position = Position {
                remaining: length,
                key,
                message,
                last_frame: first & FIN != 0,
            };
            Ok(data(
                payload,
                input.len().saturating_sub(payload.len()),
                position,
            ))
        }
        CLOSE | PING | PONG => {
            let length = usize::from(short_length);
            if length > MAX_CONTROL {
                return Err(FrameError::ControlTooLong);
            }
            if first & FIN == 0 {
                return Err(FrameError::ControlFragmented);
            }
            if first & RSV1 != 0 {
                return Err(FrameError::ReservedBit);
            }
            let size = header_size(short_length).saturating_add(length);
            let payload = after
                .split_first_chunk()
                .and_then(|(&key, rest)| Some((key, rest.get(..length)?)));
            let Some((key, masked)) = payload else {
                return Ok(Step::Need(size));
            };
            let payload = Payload { masked, key };
            let frame = match opcode {
                CLOSE => Frame::Close(payload),
                PING => Frame::Ping(payload),
                _ => Frame::Pong,
            };
            Ok(Step::Frame { frame, used: size })
        }
        _ => Err(FrameError::UnknownOpcode(opcode)),
    }
}

/// The message that a data frame belongs to.
fn begin(
    first: u8,
    opcode: u8,
    before: Message,
    settings: &Settings,
) -> Result<Message, FrameError> {
    let deflated = first & RSV1 != 0;
    match (opcode, before) {
        (CONTINUATION, Message::None) => Err(FrameError::NothingToContinue),
        (CONTINUATION, _) if deflated => Err(FrameError::NothingToContinue),
        (CONTINUATION, message) => Ok(message),
        (_, Message::None) if deflated && !settings.deflate => Err(FrameError::ReservedBit),
        (_, Message::None) if deflated => Ok(Message::Deflated),
        (_, Message::None) => Ok(Message::Plain),
        _ => Err(FrameError::MessageUnfinished),
    }
}

/// Size of a client's header.
const fn header_size(short_length: u8) -> usize {
    match short_length {
        126 => 2 + 2 + KEY,
        127 => 2 + 8 + KEY,
        _ => 2 + KEY,
    }
}

/// The length, and the bytes after it. As in nats-server, a length is accepted even if a shorter
/// form could hold it.
fn long_length(short_length: u8, after: &[u8]) -> Option<(u64, &[u8])> {
    match short_length {
        126 => {
            let (&bytes, rest) = after.split_first_chunk()?;
            Some((u16::from_be_bytes(bytes).into(), rest))
        }
        127 => {
            let (&bytes, rest) = after.split_first_chunk()?;
            Some((u64::from_be_bytes(bytes), rest))
        }
        short => Some((short.into(), after)),
    }
}

/// Takes as much of the current data frame as has arrived, after `header` bytes.
fn data<'a>(input: &'a [u8], header: usize, position: &mut Position) -> Step<'a> {
    let remaining = usize::try_from(position.remaining).unwrap_or(usize::MAX);
    let masked = input.get(..remaining).unwrap_or(input);
    let payload = Payload {
        masked,
        key: position.key,
    };
    position.remaining = position.remaining.saturating_sub(masked.len() as u64);
    position.key.rotate_left(masked.len() % KEY);
    let deflated = position.message == Message::Deflated;
    let ends_message = position.last_frame && position.remaining == 0;
    if ends_message {
        position.message = Message::None;
    }
    Step::Frame {
        frame: Frame::Data(Data {
            payload,
            deflated,
            ends_message,
        }),
        used: header.saturating_add(masked.len()),
    }
}

/// Bytes that are unmasked in one go: a multiple of the key, and of every vector register.
const BLOCK: usize = 32;

impl Payload<'_> {
    /// Its size in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.masked.len()
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.masked.is_empty()
    }

    /// Writes the unmasked bytes to `out`, up to the shorter length of both.
    pub fn unmask(&self, out: &mut [u8]) {
        let mut key = [0; BLOCK];
        for (byte, of_key) in key.iter_mut().zip(self.key.iter().cycle()) {
            *byte = *of_key;
        }
        let size = self.len().min(out.len());
        let (Some(masked), Some(out)) = (self.masked.get(..size), out.get_mut(..size)) else {
            return;
        };
        let (masked_blocks, masked_end) = masked.as_chunks::<BLOCK>();
        let (blocks, end) = out.as_chunks_mut::<BLOCK>();
        for (block, masked) in blocks.iter_mut().zip(masked_blocks) {
            for ((byte, masked), of_key) in block.iter_mut().zip(masked).zip(&key) {
                *byte = masked ^ of_key;
            }
        }
        for ((byte, masked), of_key) in end.iter_mut().zip(masked_end).zip(&key) {
            *byte = masked ^ of_key;
        }
    }
}

/// A frame that a server sends. There is one frame in each message, and none is masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerFrame {
    /// Bytes of the stream. Several clients do not accept text frames.
    Binary,
    /// The same, compressed.
    Deflated,
    /// Answer to a ping.
    Pong,
    /// The last frame.
    Close,
}

/// The header of a frame, and the header's size. `length` bytes of payload follow it unchanged.
#[must_use]
pub fn header(frame: ServerFrame, length: u64) -> ([u8; MAX_SERVER_HEADER], usize) {
    let first = FIN
        | match frame {
            ServerFrame::Binary => BINARY,
            ServerFrame::Deflated => BINARY | RSV1,
            ServerFrame::Pong => PONG,
            ServerFrame::Close => CLOSE,
        };
    let [a, b, c, d, e, f, g, h] = length.to_be_bytes();
    if length < 126 {
        ([first, h, 0, 0, 0, 0, 0, 0, 0, 0], 2)
    } else if length <= u64::from(u16::MAX) {
        ([first, 126, g, h, 0, 0, 0, 0, 0, 0], 4)
    } else {
        ([first, 127, a, b, c, d, e, f, g, h], 10)
    }
}
