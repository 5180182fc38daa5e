//! Queue groups and MQTT share names.

use super::MAX_TOPIC;
use super::escape::hex;
use crate::percent;

/// The MQTT share name of a queue group. A name that MQTT allows stays unchanged. `/`, `+`, `#`,
/// control characters and bytes that are not UTF-8 are percent-encoded. If a sequence would read as
/// one of these, a `25` is inserted into it, so that no two groups share a name. The result is
/// `None` for an empty name, and beyond [`MAX_TOPIC`] bytes.
#[must_use]
pub fn share_name(queue: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(queue.len());
    for chunk in queue.utf8_chunks() {
        let mut rest = chunk.valid().as_bytes();
        while let [byte, after @ ..] = rest {
            match *byte {
                b'/' | b'+' | b'#' | 0x00..=0x1F | 0x7F => percent(*byte, &mut out),
                b'%' if reads_as_encoded(after) => out.extend_from_slice(b"%25"),
                _ => out.push(*byte),
            }
            rest = after;
        }
        for &byte in chunk.invalid() {
            percent(byte, &mut out);
        }
    }
    (!out.is_empty() && out.len() <= MAX_TOPIC).then_some(out)
}

/// Whether a percent sign followed by `after` could also come from [`share_name`] for another name.
fn reads_as_encoded(mut after: &[u8]) -> bool {
    while let Some(deeper) = after.strip_prefix(b"25") {
        after = deeper;
    }
    let code = match *after {
        [high, low, ..] => hex(high).zip(hex(low)).map(|(high, low)| (high << 4) | low),
        _ => None,
    };
    matches!(code, Some(b'/' | b'+' | b'#' | 0x00..=0x1F | 0x7F..))
}
