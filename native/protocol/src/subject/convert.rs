//! Converts whole names: subjects to topics and filters, and back.

use memchr::memchr;

use super::MAX_TOPIC;
use super::escape::{write_level, write_token};
use super::plain::{To, convert_plain};
use super::reply::correlation;
use crate::percent;

/// Writes the topic of a subject in which only `.` has to become `/`. `out` must have exactly the
/// size of the subject. If the result is `false`, [`write_topic`] has to do it.
#[inline]
#[must_use]
pub fn plain_topic(subject: &[u8], out: &mut [u8]) -> bool {
    subject.len() == out.len() && convert_plain(To::Topic, subject, out)
}

/// Appends the mounted topic for messages on this subject. If no topic can hold the subject, the
/// result is `false` and nothing useful is appended: an empty token, NUL, not UTF-8, or too long.
#[must_use]
pub fn write_topic(subject: &[u8], mountpoint: &[u8], out: &mut Vec<u8>) -> bool {
    write_levels(subject, mountpoint, Wildcards::Literal, out)
}

/// Appends the mounted topic filter of a subscription. The result is `false`, and nothing useful is
/// appended, if the subject is not valid (`>` before the last token, an empty token) or no filter
/// can hold it.
#[must_use]
pub fn write_filter(subject: &[u8], mountpoint: &[u8], out: &mut Vec<u8>) -> bool {
    write_levels(subject, mountpoint, Wildcards::Match, out)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wildcards {
    Literal,
    Match,
}

fn write_levels(
    subject: &[u8],
    mountpoint: &[u8],
    wildcards: Wildcards,
    out: &mut Vec<u8>,
) -> bool {
    if std::str::from_utf8(subject).is_err() || memchr(0, subject).is_some() {
        return false;
    }
    let start = out.len();
    out.extend_from_slice(mountpoint);
    let mut tokens = subject.split(|&byte| byte == b'.').peekable();
    while let Some(token) = tokens.next() {
        match (token, wildcards) {
            (b"", _) => return false,
            (b"*", Wildcards::Match) => out.push(b'+'),
            (b">", Wildcards::Match) if tokens.peek().is_none() => out.push(b'#'),
            (b">", Wildcards::Match) => return false,
            _ => write_level(token, out),
        }
        if tokens.peek().is_some() {
            out.push(b'/');
        }
    }
    out.len().saturating_sub(start) <= MAX_TOPIC
}

/// Appends the subject of a mounted topic. Whatever the topic is, the subject is UTF-8, not empty,
/// and has no empty token, blank or control character. Bytes that no legal topic has (NUL, bytes
/// that are not UTF-8) are percent-encoded, which cannot be reversed. A topic outside of the
/// mountpoint is converted as a whole.
pub fn write_subject(topic: &[u8], mountpoint: &[u8], out: &mut Vec<u8>) {
    let topic = topic.strip_prefix(mountpoint).unwrap_or(topic);
    let start = out.len();
    out.resize(start.saturating_add(topic.len()), 0);
    if out
        .get_mut(start..)
        .is_some_and(|plain| convert_plain(To::Subject, topic, plain))
    {
        return;
    }
    out.truncate(start);
    match std::str::from_utf8(topic) {
        Ok(_) => write_tokens(topic, out),
        Err(_) => write_tokens(&encode_invalid(topic), out),
    }
}

fn write_tokens(topic: &[u8], out: &mut Vec<u8>) {
    for (index, level) in topic.split(|&byte| byte == b'/').enumerate() {
        if index > 0 {
            out.push(b'.');
        }
        write_token(level, out);
    }
}

/// Percent-encodes the bytes that are not UTF-8.
fn encode_invalid(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.extend_from_slice(chunk.valid().as_bytes());
        for &byte in chunk.invalid() {
            percent(byte, &mut out);
        }
    }
    out
}

/// Appends the canonical subject. Of all subjects that stand for the same topic or filter, it is
/// the one that deliveries have: raw white space and control characters are percent-encoded. Rules
/// about subjects compare canonical subjects.
pub fn write_canonical(subject: &[u8], out: &mut Vec<u8>) {
    let mut level = Vec::new();
    for (index, token) in subject.split(|&byte| byte == b'.').enumerate() {
        if index > 0 {
            out.push(b'.');
        }
        match token {
            b"" | b"*" | b">" => out.extend_from_slice(token),
            _ => {
                level.clear();
                write_level(token, &mut level);
                write_token(&level, out);
            }
        }
    }
}

/// Appends the canonical subject that subscribers get for a publish to this subject. It differs for
/// a correlated reply subject, which stands for the response topic of the request.
pub fn write_published(subject: &[u8], out: &mut Vec<u8>) {
    match correlation(subject) {
        Some((topic, _)) => write_subject(&topic, b"", out),
        None => write_canonical(subject, out),
    }
}
