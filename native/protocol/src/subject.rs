//! NATS subjects and MQTT topics: conversion, matching, quoting.
//!
//! # The bijection
//!
//! Tokens of a subject are joined by `.`, levels of a topic by `/`, and every token has exactly
//! one level. Plain names are the same on both sides. For the rest:
//!
//! | token | level | |
//! |---|---|---|
//! | `/` | (empty) | an MQTT level may be empty, a token may not |
//! | `+`, `#` | `*`, `>` | each side's wildcards are the other's plain text |
//! | `*`, `>` | `%2A`, `%3E` | published; in a subscription they are the wildcards `+`, `#` |
//! | `a//b` | `a.b` | a dot within a level |
//! | `a/b`, `a+b`, `a#b` | `a%2Fb`, `a%2Bb`, `a%23b` | within a longer token |
//! | `a%20b` | `a b` | also TAB, CR, LF, every other ASCII control character and DEL |
//! | `a%C2%A0b` | `a\u{A0}b` | whatever else Unicode calls white space: async-nats splits there |
//!
//! A run of slashes is as many dots as it has pairs, and one `%2F` if one is left over.
//!
//! Percent sequences stay what they are, except where they would read as one of the above. There, a
//! `25` is inserted after the (first) `%`, so that with `C` the codes of blanks and control
//! characters, written by the NATS side, and `D` = `2F 2B 23` and, as a whole token, `2A 3E`,
//! written by the MQTT side:
//!
//! | token | level |
//! |---|---|
//! | `%20`, `%2520`, `%252520` | ` `, `%20`, `%2520` (C) |
//! | `/`, `%2F`, `%252F` in a longer token | `%2F`, `%252F`, `%25252F` (D) |
//!
//! Sequences of D are plain text, on both sides, where the other side cannot mean them:
//!
//! * `2F` followed by a slash in the token, which is a dot or another `%2F` in the level: `/` and
//!   `//` after it would have been a longer run;
//! * `2F`, `2B` and `23` as the whole token, and `2A` and `3E` as a part of one.
//!
//! The conversion is a bijection between the subjects without white space and control characters,
//! and the topics. A raw one in a subject passes to the topic as it is, and comes back
//! percent-encoded. NUL, and text that is not UTF-8, has no topic.
//!
//! # Correlated reply subjects
//!
//! The reply subject of an MQTT 5 request with Correlation Data has to bring both back:
//! `_MQTT.t<topic>.c<data>`, base64url without padding, the topic without the mountpoint. No state
//! is kept, so any connection on any node can answer. See [`write_reply`] and [`correlation`].

use data_encoding::BASE64URL_NOPAD;
use memchr::{memchr, memchr2};

use crate::{hex_digits, percent};

/// Most bytes of an MQTT topic or filter, mountpoint included (MQTT 5, 1.5.4).
pub const MAX_TOPIC: usize = 65_535;

/// The most bytes of a correlated reply subject. Clients take control lines of 4096 bytes, in which
/// a subject and a sid need room, too. Instead of a longer one the plain reply subject is used.
pub const MAX_CORRELATED_REPLY: usize = 2048;

/// First token of correlated reply subjects.
const CORRELATED: &[u8] = b"_MQTT.";

// Constant first letters keep the tokens from being empty, `*` or `>`.
const TOPIC_MARK: u8 = b't';
const DATA_MARK: u8 = b'c';

/// Which way a name is converted.
#[derive(Clone, Copy)]
enum To {
    Topic,
    Subject,
}

impl To {
    const fn separator(self) -> u8 {
        match self {
            Self::Topic => b'.',
            Self::Subject => b'/',
        }
    }

    const fn other_separator(self) -> u8 {
        match self {
            Self::Topic => b'/',
            Self::Subject => b'.',
        }
    }

    /// Whether a byte needs a closer look. Without short circuits, for the sake of
    /// [`convert_blocks`].
    #[inline(always)]
    const fn is_special(self, byte: u8) -> bool {
        match self {
            Self::Topic => {
                (byte == b'/')
                    | (byte == b'+')
                    | (byte == b'#')
                    | (byte == b'*')
                    | (byte == b'>')
                    | (byte == b'%')
                    | (byte == 0)
            }
            Self::Subject => {
                (byte <= b' ')
                    | (byte == b'.')
                    | (byte == b'*')
                    | (byte == b'>')
                    | (byte == b'%')
                    | (byte == 0x7F)
            }
        }
    }

    const fn byte_map(self) -> ByteMap {
        let mut map = [(0, 0); 256];
        let mut byte = 0_u8;
        loop {
            let mut entry = (byte, byte & NOT_ASCII);
            if byte == self.separator() {
                entry = (self.other_separator(), SEPARATOR);
            } else if self.is_special(byte) {
                entry.1 |= SPECIAL;
            }
            #[allow(clippy::indexing_slicing, reason = "256 elements, one for each byte")]
            {
                map[byte as usize] = entry;
            }
            match byte.checked_add(1) {
                Some(next) => byte = next,
                None => return map,
            }
        }
    }
}

/// For each byte the one that it becomes, and what it may mean.
type ByteMap = [(u8, u8); 256];

// Bits of what a byte may mean.
const SEPARATOR: u8 = 1;
const SPECIAL: u8 = SEPARATOR << 1;
const NOT_ASCII: u8 = 0x80;

static TO_TOPIC: ByteMap = To::Topic.byte_map();
static TO_SUBJECT: ByteMap = To::Subject.byte_map();

/// Bytes that are converted at once: a vector register on every 64-bit machine.
const BLOCK: usize = 16;

/// Converts names that need no closer look: plain UTF-8 without empty tokens or levels. `out` is as
/// long as `name`, and holds nothing of use on `false`.
#[inline(always)]
fn convert_plain(to: To, name: &[u8], out: &mut [u8]) -> bool {
    let (Some(first), Some(last)) = (name.first(), name.last()) else {
        return false;
    };
    // An empty token, like one between two separators in a row.
    if *first == to.separator() || *last == to.separator() {
        return false;
    }
    let seen = if name.len() <= BLOCK {
        convert_bytes(to, name, out)
    } else {
        convert_blocks(to, name, out)
    };
    seen & SPECIAL == 0 && (seen & NOT_ASCII == 0 || is_plain_text(to, name))
}

/// What the bytes alone don't tell.
#[cold]
fn is_plain_text(to: To, name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok_and(|text| match to {
        To::Topic => true,
        To::Subject => !text.contains(char::is_whitespace),
    })
}

/// Converts each byte, and returns what all of them together may mean.
#[inline(always)]
fn convert_bytes(to: To, name: &[u8], out: &mut [u8]) -> u8 {
    let map = match to {
        To::Topic => &TO_TOPIC,
        To::Subject => &TO_SUBJECT,
    };
    let mut seen = 0;
    let mut previous = 0;
    for (converted, &byte) in out.iter_mut().zip(name) {
        let (mapped, class) = map.get(usize::from(byte)).copied().unwrap_or_default();
        *converted = mapped;
        seen |= class | ((previous & class & SEPARATOR) << 1);
        previous = class;
    }
    seen
}

/// The same as [`convert_bytes`] in less than half the time, for names longer than a block.
#[inline(always)]
fn convert_blocks(to: To, name: &[u8], out: &mut [u8]) -> u8 {
    let (Some((last, bytes)), Some((_, followers))) = (name.split_last(), name.split_first())
    else {
        return 0;
    };
    let Some((last_out, out)) = out.split_last_mut() else {
        return 0;
    };
    let mut seen = [0; BLOCK];
    let blocks = bytes.as_chunks().0.iter().zip(followers.as_chunks().0);
    for ((block, next), converted) in blocks.zip(out.as_chunks_mut().0) {
        convert_block(to, block, next, converted, &mut seen);
    }
    // The rest is converted together with some bytes before it, which are converted twice.
    if let (Some(block), Some(next), Some(converted)) = (
        bytes.last_chunk(),
        followers.last_chunk(),
        out.last_chunk_mut(),
    ) {
        convert_block(to, block, next, converted, &mut seen);
    }
    // The last byte has no follower, and is no separator.
    *last_out = *last;
    let last = (last & NOT_ASCII) | (u8::from(to.is_special(*last)) << 1);
    seen.iter().fold(last, |all, bits| all | bits)
}

/// A loop over arrays, of which the compiler makes vector instructions. `next` is the block one
/// byte further on.
#[inline(always)]
fn convert_block(
    to: To,
    block: &[u8; BLOCK],
    next: &[u8; BLOCK],
    converted: &mut [u8; BLOCK],
    seen: &mut [u8; BLOCK],
) {
    // `.` and `/` differ in their lowest bit only.
    for (((converted, seen), &byte), &next) in converted.iter_mut().zip(seen).zip(block).zip(next) {
        let separator = byte == to.separator();
        let special = to.is_special(byte) | (separator & (next == to.separator()));
        *converted = byte ^ u8::from(separator);
        *seen |= (byte & NOT_ASCII) | (u8::from(special) << 1);
    }
}

/// Writes the topic of a subject that needs nothing but `/` for `.`. `out` must have exactly the
/// size of the subject. On `false`, [`write_topic`] has to do it.
#[inline]
#[must_use]
pub fn plain_topic(subject: &[u8], out: &mut [u8]) -> bool {
    subject.len() == out.len() && convert_plain(To::Topic, subject, out)
}

/// Appends the mounted topic that a message on this subject goes to. `false`, and nothing of use
/// appended, if no topic can hold it: an empty token, NUL, not UTF-8, or too long.
#[must_use]
pub fn write_topic(subject: &[u8], mountpoint: &[u8], out: &mut Vec<u8>) -> bool {
    write_levels(subject, mountpoint, Wildcards::Literal, out)
}

/// Appends the mounted topic filter of a subscription. `false`, and nothing of use appended, if
/// the subject is not valid (`>` before the last token, an empty token) or no filter can hold it.
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

/// Appends the subject of a mounted topic. Whatever the topic is, the subject is not empty, has
/// no empty token, blank or control character and is UTF-8: what no legal topic holds (NUL, bytes
/// that are not UTF-8) is percent-encoded one way. A topic outside of the mountpoint is taken as
/// a whole.
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

/// `%`, any number of `25`, and a code that one side decodes.
struct Escape {
    /// How many `25` there are.
    depth: usize,
    code: char,
    kind: EscapeKind,
    /// Length of the whole sequence.
    len: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum EscapeKind {
    /// White space or control character.
    Control,
    Slash,
    /// `+` or `#`.
    MqttWildcard,
    /// `*` or `>`.
    NatsWildcard,
}

/// The escape that `bytes` begins with.
fn escape(bytes: &[u8]) -> Option<Escape> {
    let mut rest = bytes.strip_prefix(b"%")?;
    let mut depth = 0_usize;
    while let Some(deeper) = rest.strip_prefix(b"25") {
        rest = deeper;
        depth = depth.saturating_add(1);
    }
    let (code, len) = escaped_char(rest)?;
    let kind = match code {
        '\x01'..='\x20' | '\x7F' => EscapeKind::Control,
        '/' => EscapeKind::Slash,
        '+' | '#' => EscapeKind::MqttWildcard,
        '*' | '>' => EscapeKind::NatsWildcard,
        _ if !code.is_ascii() && code.is_whitespace() => EscapeKind::Control,
        _ => return None,
    };
    Some(Escape {
        depth,
        code,
        kind,
        len: depth
            .saturating_mul(2)
            .saturating_add(len)
            .saturating_add(1),
    })
}

/// The character of `XX`, `XX%XX` or `XX%XX%XX`, and the length of that.
fn escaped_char(text: &[u8]) -> Option<(char, usize)> {
    let mut bytes = [0; 3];
    let (first, mut rest) = escaped_byte(text)?;
    // White space beyond ASCII takes two bytes or three.
    let size = match first {
        0..0x80 => 1,
        0xC2 => 2,
        0xE1..=0xE3 => 3,
        _ => return None,
    };
    for (index, byte) in bytes.get_mut(..size)?.iter_mut().enumerate() {
        (*byte, rest) = match index {
            0 => (first, rest),
            _ => escaped_byte(rest.strip_prefix(b"%")?)?,
        };
    }
    let code = std::str::from_utf8(bytes.get(..size)?)
        .ok()?
        .chars()
        .next()?;
    Some((code, text.len().saturating_sub(rest.len())))
}

/// The byte of `XX`, and what follows.
fn escaped_byte(text: &[u8]) -> Option<(u8, &[u8])> {
    let [high, low, rest @ ..] = text else {
        return None;
    };
    Some(((hex(*high)? << 4) | hex(*low)?, rest))
}

/// Size of the white space beyond ASCII that `text` begins with.
pub(crate) fn wide_blank(text: &[u8]) -> Option<usize> {
    let size = match text.first()? {
        0xC2 => 2,
        0xE1..=0xE3 => 3,
        _ => return None,
    };
    let first = std::str::from_utf8(text.get(..size)?).ok()?;
    first.contains(char::is_whitespace).then_some(size)
}

/// Appends the blank of this size at the front of `text`, and returns what follows.
pub(crate) fn write_wide_blank<'a>(text: &'a [u8], size: usize, out: &mut Vec<u8>) -> &'a [u8] {
    let (blank, after) = text.split_at_checked(size).unwrap_or((text, &[]));
    for &byte in blank {
        percent(byte, out);
    }
    after
}

/// Value of an upper-case hexadecimal digit.
fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit.wrapping_sub(b'0')),
        b'A'..=b'F' => Some(digit.wrapping_sub(b'A').wrapping_add(10)),
        _ => None,
    }
}

fn write_escape(depth: usize, code: char, out: &mut Vec<u8>) {
    out.push(b'%');
    for _ in 0..depth {
        out.extend_from_slice(b"25");
    }
    let mut buffer = [0; 4];
    for (index, &byte) in code.encode_utf8(&mut buffer).as_bytes().iter().enumerate() {
        if index > 0 {
            out.push(b'%');
        }
        out.extend_from_slice(&hex_digits(byte));
    }
}

/// Towards the side that wrote the sequence it loses one `25`, or is decoded in the end.
fn write_shallower(escape: &Escape, out: &mut Vec<u8>) {
    match escape.depth.checked_sub(1) {
        Some(depth) => write_escape(depth, escape.code, out),
        None => {
            let mut buffer = [0; 4];
            out.extend_from_slice(escape.code.encode_utf8(&mut buffer).as_bytes());
        }
    }
}

fn write_deeper(escape: &Escape, out: &mut Vec<u8>) {
    write_escape(escape.depth.saturating_add(1), escape.code, out);
}

/// Appends the level of a token that is not a wildcard of a subscription.
fn write_level(token: &[u8], out: &mut Vec<u8>) {
    match token {
        b"/" => return,
        b"+" => return out.push(b'*'),
        b"#" => return out.push(b'>'),
        b"*" => return out.extend_from_slice(b"%2A"),
        b">" => return out.extend_from_slice(b"%3E"),
        _ => {}
    }
    let mut rest = token;
    while let [byte, after @ ..] = rest {
        rest = match *byte {
            b'/' => {
                let run = rest.iter().take_while(|&&byte| byte == b'/').count();
                out.resize(out.len().saturating_add(run / 2), b'.');
                if run % 2 == 1 {
                    percent(b'/', out);
                }
                rest.get(run..).unwrap_or_default()
            }
            b'+' | b'#' => {
                percent(*byte, out);
                after
            }
            b'%' => {
                let Some(escape) = escape(rest) else {
                    out.push(b'%');
                    rest = after;
                    continue;
                };
                let (text, after) = rest.split_at_checked(escape.len).unwrap_or((rest, &[]));
                let whole = text.len() == token.len();
                match escape.kind {
                    EscapeKind::Control => write_shallower(&escape, out),
                    EscapeKind::Slash if !whole && !after.starts_with(b"/") => {
                        write_deeper(&escape, out);
                    }
                    EscapeKind::MqttWildcard if !whole => write_deeper(&escape, out),
                    EscapeKind::NatsWildcard if whole => write_deeper(&escape, out),
                    _ => out.extend_from_slice(text),
                }
                after
            }
            _ => {
                out.push(*byte);
                after
            }
        };
    }
}

/// Appends the token of a level.
fn write_token(level: &[u8], out: &mut Vec<u8>) {
    match level {
        b"" => return out.push(b'/'),
        b"*" => return out.push(b'+'),
        b">" => return out.push(b'#'),
        _ => {}
    }
    let mut rest = level;
    while let [byte, after @ ..] = rest {
        rest = match *byte {
            b'.' => {
                out.extend_from_slice(b"//");
                after
            }
            0x00..=0x20 | 0x7F => {
                percent(*byte, out);
                after
            }
            b'%' => {
                let Some(escape) = escape(rest) else {
                    out.push(b'%');
                    rest = after;
                    continue;
                };
                let (text, after) = rest.split_at_checked(escape.len).unwrap_or((rest, &[]));
                let whole = text.len() == level.len();
                if text == SLASH && !whole {
                    rest = write_slashes(rest, out);
                    continue;
                }
                match escape.kind {
                    EscapeKind::Control => write_deeper(&escape, out),
                    EscapeKind::Slash if !whole && !slash_follows(after) => {
                        write_shallower(&escape, out);
                    }
                    EscapeKind::MqttWildcard if !whole => write_shallower(&escape, out),
                    EscapeKind::NatsWildcard if whole => write_shallower(&escape, out),
                    _ => out.extend_from_slice(text),
                }
                after
            }
            _ => match wide_blank(rest) {
                Some(size) => write_wide_blank(rest, size, out),
                None => {
                    out.push(*byte);
                    after
                }
            },
        };
    }
}

/// Appends the canonical subject. Of all subjects that stand for the same topic or filter it is the
/// one that deliveries have: raw white space and control characters are percent-encoded. Rules
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

/// Appends the canonical subject that subscribers get for a publish to this subject. It is another
/// one for a correlated reply subject, which stands for the response topic of the request.
pub fn write_published(subject: &[u8], out: &mut Vec<u8>) {
    match correlation(subject) {
        Some((topic, _)) => write_subject(&topic, b"", out),
        None => write_canonical(subject, out),
    }
}

/// The sequence that is a slash in the token, unless a slash follows there.
const SLASH: &[u8] = b"%2F";

/// Whether the token of this end of a level, which follows a sequence, begins with a slash.
fn slash_follows(level: &[u8]) -> bool {
    let (run, after) = slash_run(level);
    let dot = after.first() == Some(&b'.');
    // The last of a run of %2F is a slash if it does not precede a dot, which is two, and before
    // it every second one.
    if run % 2 == 0 { dot } else { !dot }
}

/// Appends the part of a token that a run of `%2F` at the front of `level` becomes, and returns
/// what follows. A run is converted as a whole, since what its first becomes depends on its end.
fn write_slashes<'a>(level: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
    let (run, after) = slash_run(level);
    let mut slash = slash_follows(level);
    for _ in 0..run {
        out.extend_from_slice(if slash { b"/" } else { SLASH });
        slash = !slash;
    }
    after
}

/// Counts the `%2F` at the front.
fn slash_run(mut level: &[u8]) -> (usize, &[u8]) {
    let mut run = 0_usize;
    while let Some(after) = level.strip_prefix(SLASH) {
        level = after;
        run = run.saturating_add(1);
    }
    (run, level)
}

/// Appends the topic of a reply subject, if the topic stands for exactly that subject. Otherwise
/// the result is `false`, with nothing of use appended: the answer would go to another subject.
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

/// Appends the reply subject of an MQTT request: one that brings the Correlation Data back if
/// there is any and it is not too long ([`MAX_CORRELATED_REPLY`]), else the subject of the
/// response topic.
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

/// Whether a client may publish to it (MQTT 5, 4.7).
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

/// The MQTT share name of a queue group. A name that MQTT allows stays as it is; `/`, `+`, `#`,
/// control characters and bytes that are not UTF-8 are percent-encoded, and a sequence that would
/// read as one of these gets a `25` inserted, so that no two groups share a name. `None` for an
/// empty name, and beyond [`MAX_TOPIC`] bytes.
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

/// Whether a percent sign followed by this could come out of [`share_name`] for another name.
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

/// Whether a NATS subscription takes a message: `*` is any token, a final `>` one or more. A
/// subject with an empty token matches nothing, as in nats-server.
#[must_use]
pub fn subject_matches(pattern: &[u8], subject: &[u8]) -> bool {
    if subject.split(|&byte| byte == b'.').any(<[u8]>::is_empty) {
        return false;
    }
    let mut patterns = pattern.split(|&byte| byte == b'.').peekable();
    let mut tokens = subject.split(|&byte| byte == b'.');
    while let Some(pattern) = patterns.next() {
        let Some(token) = tokens.next() else {
            return false;
        };
        match pattern {
            b">" if patterns.peek().is_none() => return true,
            b"*" => {}
            _ if pattern == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// Whether an MQTT subscription takes a message (MQTT 5, 4.7): `+` is any level, `#` the parent
/// and any number of levels, and neither sees a first level that begins with `$`.
#[must_use]
pub fn topic_matches(filter: &[u8], topic: &[u8]) -> bool {
    if topic.first() == Some(&b'$') && matches!(filter.first(), Some(b'+' | b'#')) {
        return false;
    }
    let mut levels = topic.split(|&byte| byte == b'/');
    for pattern in filter.split(|&byte| byte == b'/') {
        if pattern == b"#" {
            return true;
        }
        match levels.next() {
            Some(level) if pattern == b"+" || pattern == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// nats-server's check of published subjects for pedantic clients: no empty token, and none that
/// is a wildcard.
#[must_use]
pub fn is_valid_publish_subject(subject: &[u8]) -> bool {
    subject
        .split(|&byte| byte == b'.')
        .all(|token| !matches!(token, b"" | b"*" | b">"))
}

/// A name in quotes, as nats-server writes it in `-ERR` texts: Go's `%q`.
#[must_use]
pub fn quote(text: &[u8]) -> Vec<u8> {
    let mut out = String::with_capacity(text.len().saturating_add(2));
    out.push('"');
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            quote_character(character, &mut out);
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out.push('"');
    out.into_bytes()
}

fn quote_character(character: char, out: &mut String) {
    match character {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0C' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0B' => out.push_str("\\v"),
        ' '..='~' => out.push(character),
        '\0'..='\x7F' => out.push_str(&format!("\\x{:02x}", u32::from(character))),
        _ if is_printable(character) => out.push(character),
        '\u{80}'..='\u{FFFF}' => out.push_str(&format!("\\u{:04x}", u32::from(character))),
        _ => out.push_str(&format!("\\U{:08x}", u32::from(character))),
    }
}

/// Letters, marks, numbers, punctuation and symbols. The standard library knows, but only tells
/// through `escape_debug`, which also escapes a combining mark that begins a text.
fn is_printable(character: char) -> bool {
    let text: String = ['a', character].into_iter().collect();
    text.escape_debug().eq(text.chars())
}
