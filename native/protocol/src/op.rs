//! The operations of a client.

use crate::connect::Connect;

/// One operation, which borrows from the bytes that it was decoded from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// `CONNECT {json}`
    Connect(Box<Connect>),
    /// `PING`
    Ping,
    /// `PONG`
    Pong,
    /// `PUB subject [reply] #bytes` or `HPUB subject [reply] #header #total`
    Pub(Publish<'a>),
    /// `SUB subject [queue] sid`
    Sub(Subscribe<'a>),
    /// `UNSUB sid [max]`
    Unsub {
        /// The subscription, spelt as in its SUB.
        sid: &'a [u8],
        /// The number of messages after which it ends, counted from its SUB; 0 means at once.
        max: u32,
    },
    /// `+OK` and `INFO {json}`, which are legal and have no effect.
    Ignored,
}

/// A published message. Subjects are any run of bytes without blanks and are not checked, as in
/// nats-server (docs/protocol.md section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// The destination.
    pub subject: &'a [u8],
    /// The subject for an answer.
    pub reply: Option<&'a [u8]>,
    /// The header block with its last CR LF, not validated; `None` for PUB and for an HPUB
    /// whose header size is 0.
    pub headers: Option<&'a [u8]>,
    /// The bytes after the header block.
    pub payload: &'a [u8],
}

/// A subscription. The subject is not checked, see [`crate::subject::filter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// The subject, which may hold wildcards.
    pub subject: &'a [u8],
    /// The queue group: any run of bytes without blanks.
    pub queue: Option<&'a [u8]>,
    /// Any run of bytes without blanks, echoed in MSG as it was sent.
    pub sid: &'a [u8],
}
