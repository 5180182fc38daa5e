//! Writes MSG and HMSG frames (docs/protocol.md section 1, delivery side).
//!
//! The official clients split exactly this form: one space between fields, no trailing space, CR
//! LF, upper case.

use bytes::{BufMut, BytesMut};

use crate::percent;
use crate::subject::{wide_blank, write_wide_blank};

const CRLF: &[u8] = b"\r\n";

/// Payloads of at least this many bytes are referenced, not copied into the buffer of a batch. For
/// smaller ones, one copy is cheaper than two more elements of the vector that the socket writes.
pub const REFERENCE_THRESHOLD: usize = 4096;

/// The same limit for a payload that is in many frames. Then the data that waits for a slow client
/// holds the payload only once. Below the limit a reference takes about as much memory as a copy,
/// and copies are faster.
pub const SHARED_REFERENCE_THRESHOLD: usize = 512;

/// The most bytes of the arguments of a frame. They are counted as nats-server counts those of an
/// operation: without what precedes and follows them. jnats closes the connection at one byte more.
pub const MAX_CONTROL_LINE: usize = 4096;

/// Room for the sizes and the blanks of a control line, whatever they are.
const SIZES: usize = 2 * 20 + 4;

/// A message in the form that all its receivers get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message<'a> {
    /// The subject, free of blanks and line ends (see [`crate::subject::write_subject`]).
    pub subject: &'a [u8],
    /// The reply subject. If it is empty, there is none.
    pub reply: &'a [u8],
    /// The header block. If it is empty, there is none, and the frame is a MSG.
    pub headers: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The reply subject, if the control line has room for it. `None` if the line is too long even
    /// without it.
    fn fitting_reply(&self, sid: &[u8]) -> Option<&'a [u8]> {
        let names = self.subject.len().saturating_add(sid.len());
        if names.saturating_add(self.reply.len()).saturating_add(SIZES) <= MAX_CONTROL_LINE {
            return Some(self.reply);
        }
        let payload = digits(self.headers.len().saturating_add(self.payload.len()));
        let headers = if self.headers.is_empty() {
            0
        } else {
            digits(self.headers.len()).saturating_add(1)
        };
        let line = names
            .saturating_add(headers)
            .saturating_add(payload)
            .saturating_add(2);
        if line > MAX_CONTROL_LINE {
            return None;
        }
        if line.saturating_add(self.reply.len()).saturating_add(1) > MAX_CONTROL_LINE {
            return Some(&[]);
        }
        Some(self.reply)
    }
}

/// A batch of frames: small ones are in one buffer, and large payloads are referenced. `R` is the
/// caller's reference to a payload.
#[derive(Debug)]
pub struct Frames<R> {
    buffer: BytesMut,
    references: Vec<(usize, R)>,
    referenced: usize,
    too_long: usize,
}

impl<R> Frames<R> {
    /// An empty batch with room for `bytes` bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            buffer: BytesMut::with_capacity(bytes),
            references: Vec::new(),
            referenced: 0,
            too_long: 0,
        }
    }

    /// Appends the frame of one message for one subscription. `reference` stands for the payload if
    /// the payload has [`REFERENCE_THRESHOLD`] bytes or more.
    ///
    /// If the control line is too long, the reply subject is left out. If that is not enough, there
    /// is no frame, see [`Frames::too_long`].
    pub fn push(&mut self, message: &Message<'_>, sid: &[u8], reference: R) {
        self.append(message, sid, reference, REFERENCE_THRESHOLD);
    }

    /// The same for one of many subscriptions: the limit is [`SHARED_REFERENCE_THRESHOLD`].
    pub fn push_shared(&mut self, message: &Message<'_>, sid: &[u8], reference: R) {
        self.append(message, sid, reference, SHARED_REFERENCE_THRESHOLD);
    }

    fn append(&mut self, message: &Message<'_>, sid: &[u8], reference: R, threshold: usize) {
        let Some(reply) = message.fitting_reply(sid) else {
            self.too_long = self.too_long.saturating_add(1);
            return;
        };
        let Message {
            subject,
            headers,
            payload,
            ..
        } = *message;
        let out = &mut self.buffer;
        out.put_slice(if headers.is_empty() {
            b"MSG "
        } else {
            b"HMSG "
        });
        out.put_slice(subject);
        out.put_u8(b' ');
        out.put_slice(sid);
        out.put_u8(b' ');
        if !reply.is_empty() {
            out.put_slice(reply);
            out.put_u8(b' ');
        }
        if !headers.is_empty() {
            write_number(headers.len(), out);
            out.put_u8(b' ');
        }
        write_number(headers.len().saturating_add(payload.len()), out);
        out.put_slice(CRLF);
        out.put_slice(headers);
        if payload.len() < threshold {
            out.put_slice(payload);
        } else {
            self.references.push((out.len(), reference));
            self.referenced = self.referenced.saturating_add(payload.len());
        }
        out.put_slice(CRLF);
    }

    /// The buffer, and the referenced payloads with the offsets in the buffer that they belong
    /// to, in ascending order.
    #[must_use]
    pub fn parts(&self) -> (&[u8], &[(usize, R)]) {
        (&self.buffer, &self.references)
    }

    /// The number of frames that were left out, because their control line would be longer than
    /// [`MAX_CONTROL_LINE`].
    #[must_use]
    pub fn too_long(&self) -> usize {
        self.too_long
    }

    /// Size of all frames in bytes, referenced payloads included.
    #[must_use]
    pub fn size(&self) -> usize {
        self.buffer.len().saturating_add(self.referenced)
    }
}

/// Appends a reply subject that did not come from a topic. It stays unchanged, except that it
/// cannot break the control line: characters that a client may take for white space are
/// percent-encoded.
pub fn write_raw_subject(subject: &[u8], out: &mut Vec<u8>) {
    let mut rest = subject;
    while let [byte, after @ ..] = rest {
        rest = match (*byte, wide_blank(rest)) {
            (b' ' | 0x09..=0x0D, _) => {
                percent(*byte, out);
                after
            }
            (_, Some(size)) => write_wide_blank(rest, size, out),
            _ => {
                out.push(*byte);
                after
            }
        };
    }
}

/// The number of decimal digits.
fn digits(number: usize) -> usize {
    let more = number.checked_ilog10().unwrap_or_default();
    usize::try_from(more).unwrap_or_default().saturating_add(1)
}

fn write_number(number: usize, out: &mut BytesMut) {
    // usize::MAX has 20 digits.
    let mut digits = [b'0'; 20];
    let mut value = number;
    let mut used = 0_usize;
    for digit in digits.iter_mut().rev() {
        *digit = b'0'.wrapping_add(u8::try_from(value % 10).unwrap_or_default());
        value /= 10;
        used = used.saturating_add(1);
        if value == 0 {
            break;
        }
    }
    out.put_slice(
        digits
            .get(digits.len().saturating_sub(used)..)
            .unwrap_or_default(),
    );
}
