//! The NATS client protocol as nats-server speaks it, and its translation to MQTT topics.
//!
//! This crate does no I/O, keeps no state and looks at no clock, and no input makes it panic. The
//! rules are those of `docs/protocol.md` in the repository, whose sections the documentation cites.
//!
//! # Grammar
//!
//! A control line is `OP blanks ARGS [CR] LF`. Operation names are accepted in any letter case; a
//! blank is a run of SP and TAB, and blanks around the arguments are ignored.
//!
//! ```text
//! CONNECT {json}                          blank before the JSON optional
//! PUB  subject [reply] #bytes             then the payload and exactly CR LF
//! HPUB subject [reply] #header #total     then header block, payload and exactly CR LF
//! SUB  subject [queue] sid
//! UNSUB sid [max]
//! PING | PONG | +OK                       the rest of the line is ignored
//! INFO {json}                             ignored
//! -ERR text                               closes the connection
//! ```
//!
//! Sizes are 1 to 9 decimal digits. Towards the client, fields are separated by exactly one space
//! and lines end in CR LF, because the official clients require it:
//!
//! ```text
//! MSG  subject sid [reply] #bytes CR LF payload CR LF
//! HMSG subject sid [reply] #header #total CR LF header payload CR LF
//! INFO {json} SP CR LF
//! ```
//!
//! # Example
//!
//! ```
//! use nats_protocol::{Op, Settings, Step, decode};
//!
//! let bytes = b"PUB a.b 2\r\nhi\r\nPING\r\n";
//! let Ok(Step::Op { op: Op::Pub(message), used }) = decode(bytes, &Settings::default()) else {
//!     unreachable!();
//! };
//! assert_eq!((message.subject, message.payload, used), (&b"a.b"[..], &b"hi"[..], 15));
//! ```

pub mod connect;
mod decode;
pub mod encode;
mod error;
pub mod headers;
pub mod jwt;
pub mod nkey;
mod op;
pub mod publish_properties;
pub mod subject;
pub mod websocket;

pub use decode::{MAX_IGNORED_BYTES, MAX_SIZE_DIGITS, Step, decode};
pub use error::DecodeError;
pub use op::{Op, Publish, Subscribe};

/// What a decoder must know about the server and the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Most bytes of arguments, counted after the blanks that follow the operation and without
    /// the line end. Below 4096, logins of official clients with a JWT fail.
    pub max_control_line: usize,
    /// Most bytes of header block and payload together.
    pub max_payload: usize,
    /// Which operations are accepted.
    pub phase: Phase,
    /// Whether the client's CONNECT announced headers, without which HPUB is refused.
    pub headers: bool,
}

impl Default for Settings {
    /// The defaults of nats-server for a client that announced headers.
    fn default() -> Self {
        Self {
            max_control_line: 4096,
            max_payload: 1_048_576,
            phase: Phase::Open,
            headers: true,
        }
    }
}

/// How far the login of a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Authentication is required and has not succeeded yet: only CONNECT is accepted.
    ConnectOnly,
    /// Every operation is accepted.
    Open,
}

/// SP and TAB separate arguments.
#[inline]
pub(crate) const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Upper-case hexadecimal digits.
pub(crate) fn hex_digits(byte: u8) -> [u8; 2] {
    let digit = |nibble: u8| match nibble {
        0..=9 => b'0'.wrapping_add(nibble),
        _ => b'A'.wrapping_sub(10).wrapping_add(nibble),
    };
    [digit(byte >> 4), digit(byte & 0xF)]
}

/// Appends `%XX`.
pub(crate) fn percent(byte: u8, out: &mut Vec<u8>) {
    out.push(b'%');
    out.extend_from_slice(&hex_digits(byte));
}
