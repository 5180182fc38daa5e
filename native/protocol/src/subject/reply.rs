//! Reply subjects of MQTT requests, with their Correlation Data.

use data_encoding::BASE64URL_NOPAD;
use memchr::{memchr, memchr2};

use super::MAX_TOPIC;
use super::convert::{write_subject, write_topic};

/// The most bytes of a correlated reply subject. Clients take control lines of 4096 bytes, in which
/// a subject and a sid need room, too. If it would be longer, the plain reply subject is used.
pub const MAX_CORRELATED_REPLY: usize = 2048;

/// First token of correlated reply subjects.
const CORRELATED: &[u8] = b"_MQTT.";

// Constant first letters keep the tokens from being empty, `*` or `>`.
const TOPIC_MARK: u8 = b't';
const DATA_MARK: u8 = b'c';

/// Appends the topic of a reply subject, if the topic stands for exactly that subject. Otherwise
/// the result is `false` and nothing useful is appended: the answer would go to another subject.
#[must_use]
pub fn write_reply_topic(reply: &[u8], mountpoint: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    if !write_topic(reply, mountpoint, out) {
        return false;
    }
    let mut back = Vec::with_capacity(reply.len());
    write_subject(out.get(start..).unwrap_or_default(), mountpoint, &mut back);
    back == reply
}

/// Appends the reply subject of an MQTT request. It holds the Correlation Data if there is any and
/// it is not too long ([`MAX_CORRELATED_REPLY`]). Otherwise it is the subject of the response
/// topic.
pub fn write_reply(topic: &[u8], data: Option<&[u8]>, mountpoint: &[u8], out: &mut Vec<u8>) {
    let topic = topic.strip_prefix(mountpoint).unwrap_or(topic);
    if let Some(data) = data
        && is_topic_name(topic)
        && correlated_size(topic, data) <= MAX_CORRELATED_REPLY
    {
        out.extend_from_slice(CORRELATED);
        out.push(TOPIC_MARK);
        out.extend_from_slice(BASE64URL_NOPAD.encode(topic).as_bytes());
        out.extend_from_slice(&[b'.', DATA_MARK]);
        out.extend_from_slice(BASE64URL_NOPAD.encode(data).as_bytes());
    } else {
        write_subject(topic, b"", out);
    }
}

/// The unmounted topic and the Correlation Data of a reply subject that [`write_reply`] made.
/// `None` for all other subjects, which are ordinary ones.
#[inline]
#[must_use]
pub fn correlation(subject: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let text = subject.strip_prefix(CORRELATED)?;
    if subject.len() > MAX_CORRELATED_REPLY {
        return None;
    }
    read_correlation(text)
}

fn read_correlation(text: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (topic, data) = text.split_at_checked(memchr(b'.', text)?)?;
    let topic = decode_base64(topic.strip_prefix(&[TOPIC_MARK])?)?;
    let data = decode_base64(data.strip_prefix(&[b'.', DATA_MARK])?)?;
    is_topic_name(&topic).then_some((topic, data))
}

/// Trailing bits must be zero, so that no two texts stand for the same bytes.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    BASE64URL_NOPAD.decode(text).ok()
}

/// Whether a client may publish to the topic (MQTT 5, 4.7).
fn is_topic_name(topic: &[u8]) -> bool {
    !topic.is_empty()
        && topic.len() <= MAX_TOPIC
        && memchr2(b'+', b'#', topic).is_none()
        && memchr(0, topic).is_none()
        && std::str::from_utf8(topic).is_ok()
}

fn correlated_size(topic: &[u8], data: &[u8]) -> usize {
    let base64 = |bytes: &[u8]| BASE64URL_NOPAD.encode_len(bytes.len());
    // The two marks and the dot between them.
    CORRELATED
        .len()
        .saturating_add(3)
        .saturating_add(base64(topic))
        .saturating_add(base64(data))
}
