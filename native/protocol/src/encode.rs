//! MSG and HMSG frames (nats-protocol section 1, delivery side).
//!
//! One space between fields, no trailing space, CR LF, upper case: the official clients split on
//! exactly that.

use crate::percent;
use crate::subject::{wide_blank, write_wide_blank};

const CRLF: &[u8] = b"\r\n";

/// Payloads of at least this many bytes are not copied into the buffer of a batch but referenced.
/// Below it, one copy is cheaper than two more elements of the vector that the socket writes.
pub const REFERENCE_THRESHOLD: usize = 4096;

/// A message as all its receivers get it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message<'a> {
    /// The subject, free of blanks and line ends (see [`crate::subject::write_subject`]).
    pub subject: &'a [u8],
    /// The reply subject; empty is none.
    pub reply: &'a [u8],
    /// The header block; empty is none, and then the frame is a MSG.
    pub headers: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
}

/// A batch of frames: small ones in one buffer, large payloads by reference. `R` is what the
/// caller references a payload by.
#[derive(Debug)]
pub struct Frames<R> {
    buffer: Vec<u8>,
    references: Vec<(usize, R)>,
    referenced: usize,
}

impl<R> Frames<R> {
    /// An empty batch with room for `bytes` bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            buffer: Vec::with_capacity(bytes),
            references: Vec::new(),
            referenced: 0,
        }
    }

    /// Appends the frame of one message for one subscription. `reference` stands for the payload
    /// if that has [`REFERENCE_THRESHOLD`] bytes or more.
    pub fn push(&mut self, message: &Message<'_>, sid: &[u8], reference: R) {
        let Message {
            subject,
            reply,
            headers,
            payload,
        } = *message;
        let out = &mut self.buffer;
        out.extend_from_slice(if headers.is_empty() {
            b"MSG "
        } else {
            b"HMSG "
        });
        out.extend_from_slice(subject);
        out.push(b' ');
        out.extend_from_slice(sid);
        out.push(b' ');
        if !reply.is_empty() {
            out.extend_from_slice(reply);
            out.push(b' ');
        }
        if !headers.is_empty() {
            write_number(headers.len(), out);
            out.push(b' ');
        }
        write_number(headers.len().saturating_add(payload.len()), out);
        out.extend_from_slice(CRLF);
        out.extend_from_slice(headers);
        if payload.len() < REFERENCE_THRESHOLD {
            out.extend_from_slice(payload);
        } else {
            self.references.push((out.len(), reference));
            self.referenced = self.referenced.saturating_add(payload.len());
        }
        out.extend_from_slice(CRLF);
    }

    /// The buffer, and the referenced payloads with the offsets in the buffer that they belong
    /// to, in ascending order.
    #[must_use]
    pub fn parts(&self) -> (&[u8], &[(usize, R)]) {
        (&self.buffer, &self.references)
    }

    /// Size of all frames in bytes, referenced payloads included.
    #[must_use]
    pub fn size(&self) -> usize {
        self.buffer.len().saturating_add(self.referenced)
    }
}

/// Appends a reply subject that did not come from a topic. It stays as it is, except that it
/// cannot break the control line: what a client may take for white space is percent-encoded.
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

fn write_number(number: usize, out: &mut Vec<u8>) {
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
    out.extend_from_slice(
        digits
            .get(digits.len().saturating_sub(used)..)
            .unwrap_or_default(),
    );
}
