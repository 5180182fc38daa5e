//! Maps subjects to others by rules, as nats-server's `mappings` do.
//!
//! A list of rules is a run of bytes, so that it can be a term that every connection shares.
//! [`compile`] makes one rule of its text, and the list is what its rules are when they follow each
//! other. The first rule that matches counts; no rule maps the result of another.
//!
//! ```text
//! rule:        size 4, then its body: source pattern, what happens to the rest of the weight 1,
//!              destinations
//! destination: weight of this and all before it 1, pieces; the weight is 0 for the inverse, which
//!              is a pattern and pieces
//! pattern:     size of the part before the first wildcard 2, size 2, subject
//! pieces:      size 4, then tag 1 and arguments for each
//! ```

use std::fmt::Write as _;

use super::MAX_TOPIC;

mod compile;

pub use compile::{Compiled, Direction, MAX_RULE, MappingError, compile};

/// Names that begin with these bytes are the protocol's: `$SYS`, `$JS`, `_INBOX`. A wildcard as the
/// first token of a rule does not stand for them.
const RESERVED: [u8; 2] = *b"$_";

/// The subject holds a topic and Correlation Data, so it is not mapped.
const CORRELATED: &[u8] = b"_MQTT.";

/// The tags of pieces. Numbers of tokens count from 0.
mod tag {
    /// size 2, bytes
    pub const LITERAL: u8 = b'=';
    /// token 2
    pub const TOKEN: u8 = b'*';
    /// the first token of the rest 2
    pub const REST: u8 = b'>';
    /// number of partitions 4, number of tokens 1 (0: the whole subject), tokens 2
    pub const PARTITION: u8 = b'p';
    /// max 4
    pub const RANDOM: u8 = b'?';
    /// token 2, size 1, delimiter
    pub const SPLIT: u8 = b's';
    /// The others: token 2, number 4.
    pub const SPLIT_FROM_LEFT: u8 = b'a';
    pub const SPLIT_FROM_RIGHT: u8 = b'z';
    pub const SLICE_FROM_LEFT: u8 = b'A';
    pub const SLICE_FROM_RIGHT: u8 = b'Z';
    pub const LEFT: u8 = b'l';
    pub const RIGHT: u8 = b'r';
}

/// What the rules make of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped<'r> {
    /// It stays as it is.
    Unchanged,
    /// The other subject has been appended. A rule for subscriptions has an inverse for [`invert`].
    To {
        /// Empty for a rule for publishes.
        inverse: &'r [u8],
    },
    /// The message is lost: the weights of the destinations say so, or the subject would be longer
    /// than any topic.
    Nowhere,
}

/// Appends the subject that another one is mapped to. `random` gives numbers for weights and for
/// `{{random(n)}}`.
pub fn map<'r>(
    rules: &'r [u8],
    subject: &[u8],
    mut random: impl FnMut() -> u64,
    out: &mut Vec<u8>,
) -> Mapped<'r> {
    let reserved = subject
        .first()
        .is_some_and(|first| RESERVED.contains(first));
    if reserved && subject.starts_with(CORRELATED) {
        return Mapped::Unchanged;
    }
    let mut rules = Reader(rules);
    while let Some(body) = rules.block() {
        let mut body = Reader(body);
        let Some(pattern) = body.pattern() else { break };
        if !(reserved && pattern.literal.is_empty()) && pattern.covers(subject) {
            return select(body, subject, &mut random, out);
        }
    }
    Mapped::Unchanged
}

/// Chooses a destination by its weight.
fn select<'r>(
    mut body: Reader<'r>,
    subject: &[u8],
    random: &mut impl FnMut() -> u64,
    out: &mut Vec<u8>,
) -> Mapped<'r> {
    let keeps_rest = body.byte() == Some(0);
    let mut drawn = None;
    while let Some(weight) = body.byte() {
        let Some(pieces) = body.block() else { break };
        let chosen =
            weight == 100 || *drawn.get_or_insert_with(|| random() % 100) < u64::from(weight);
        if chosen {
            let start = out.len();
            return if write(pieces, subject, random, out).is_some() {
                let inverse = match body.byte() {
                    Some(0) => body.block().unwrap_or_default(),
                    _ => &[],
                };
                Mapped::To { inverse }
            } else {
                out.truncate(start);
                Mapped::Nowhere
            };
        }
    }
    if keeps_rest {
        Mapped::Unchanged
    } else {
        Mapped::Nowhere
    }
}

/// Appends the subject that a client sees for a message on a subject that its subscription was
/// mapped to. The result is `false`, and nothing is appended, if the inverse is not for such a
/// subject.
#[must_use]
pub fn invert(inverse: &[u8], subject: &[u8], out: &mut Vec<u8>) -> bool {
    let mut inverse = Reader(inverse);
    let start = out.len();
    let written = inverse
        .pattern()
        .filter(|pattern| pattern.covers(subject))
        .and_then(|_| inverse.block())
        .and_then(|pieces| write(pieces, subject, &mut || 0, out));
    if written.is_none() {
        out.truncate(start);
    }
    written.is_some()
}

/// What a rule matches. Most rules differ from a subject before their first wildcard.
#[derive(Clone, Copy)]
struct Pattern<'a> {
    /// The part before the first wildcard.
    literal: &'a [u8],
    /// The tokens from there on.
    wild: &'a [u8],
}

impl Pattern<'_> {
    /// Whether it matches all that a subject stands for, which may have wildcards of its own.
    fn covers(self, subject: &[u8]) -> bool {
        let Some(rest) = subject.strip_prefix(self.literal) else {
            return false;
        };
        if self.wild.is_empty() {
            return rest.is_empty();
        }
        let mut tokens = rest.split(|&byte| byte == b'.');
        for pattern in self.wild.split(|&byte| byte == b'.') {
            let Some(token) = tokens.next() else {
                return false;
            };
            match (pattern, token) {
                (b">", _) => return true,
                (_, b"" | b">") => return false,
                (b"*", _) => {}
                _ if pattern == token => {}
                _ => return false,
            }
        }
        tokens.next().is_none()
    }
}

/// `None` if the pieces are not well-formed, or the subject becomes too long.
fn write(
    pieces: &[u8],
    subject: &[u8],
    random: &mut impl FnMut() -> u64,
    out: &mut Vec<u8>,
) -> Option<()> {
    let start = out.len();
    let mut pieces = Reader(pieces);
    while let Some(tag) = pieces.byte() {
        match tag {
            tag::LITERAL => out.extend_from_slice(pieces.text()?),
            tag::TOKEN => out.extend_from_slice(token(subject, pieces.short()?)),
            tag::REST => out.extend_from_slice(rest(subject, pieces.short()?)),
            tag::PARTITION => write_partition(&mut pieces, subject, out)?,
            tag::RANDOM => {
                let max = u64::from(pieces.long()?);
                write_number(random().checked_rem(max).unwrap_or(0), out);
            }
            tag::SPLIT => {
                let token = token(subject, pieces.short()?);
                let size = usize::from(pieces.byte()?);
                write_split(token, pieces.take(size)?, out);
            }
            _ => {
                let token = token(subject, pieces.short()?);
                let number = usize::try_from(pieces.long()?).ok()?;
                write_part(tag, token, number, out)?;
            }
        }
        if out.len().saturating_sub(start) > MAX_TOPIC {
            return None;
        }
    }
    Some(())
}

fn token(subject: &[u8], index: u16) -> &[u8] {
    subject
        .split(|&byte| byte == b'.')
        .nth(usize::from(index))
        .unwrap_or_default()
}

/// The tokens from this one on.
fn rest(subject: &[u8], index: u16) -> &[u8] {
    subject
        .splitn(usize::from(index).saturating_add(1), |&byte| byte == b'.')
        .nth(usize::from(index))
        .unwrap_or_default()
}

/// The hash is FNV-1a with 32 bits, so that the numbers are those of nats-server.
fn write_partition(pieces: &mut Reader<'_>, subject: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let partitions = pieces.long()?;
    let tokens = pieces.byte()?;
    let mut hash = 0x811C_9DC5_u32;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
    };
    if tokens == 0 {
        add(subject);
    }
    for _ in 0..tokens {
        add(token(subject, pieces.short()?));
    }
    write_number(u64::from(hash.checked_rem(partitions).unwrap_or(0)), out);
    Some(())
}

fn write_number(number: u64, out: &mut Vec<u8>) {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(text, "{number}");
    out.extend_from_slice(text.as_bytes());
}

/// Empty parts are left out. As in nats-server, a token can still become one that is empty, or begins
/// with an empty one: if it begins with two delimiters, or consists of them.
fn write_split(token: &[u8], delimiter: &[u8], out: &mut Vec<u8>) {
    let mut first = true;
    let mut rest = token;
    loop {
        let end = rest
            .windows(delimiter.len().max(1))
            .position(|bytes| bytes == delimiter)
            .unwrap_or(rest.len());
        let (part, after) = rest.split_at_checked(end).unwrap_or((rest, &[]));
        out.extend_from_slice(part);
        let Some(after) = after.strip_prefix(delimiter).filter(|_| !after.is_empty()) else {
            return;
        };
        let is_next_empty = after.is_empty() || after.starts_with(delimiter);
        if !(is_next_empty || first && part.is_empty()) {
            out.push(b'.');
        }
        first = false;
        rest = after;
    }
}

/// A token that is too short is not divided.
fn write_part(tag: u8, token: &[u8], number: usize, out: &mut Vec<u8>) -> Option<()> {
    let right = token.len().saturating_sub(number);
    let (at, size) = match tag {
        _ if number == 0 || number >= token.len() => (0, token.len()),
        tag::LEFT => (0, number),
        tag::RIGHT => (right, number),
        tag::SPLIT_FROM_LEFT => return slices(token, number, token.len(), out),
        tag::SPLIT_FROM_RIGHT => return slices(token, right, token.len(), out),
        tag::SLICE_FROM_LEFT => return slices(token, number, number, out),
        tag::SLICE_FROM_RIGHT => {
            let first = token.len().checked_rem(number).filter(|&first| first > 0);
            return slices(token, first.unwrap_or(number), number, out);
        }
        _ => return None,
    };
    out.extend_from_slice(token.get(at..)?.get(..size)?);
    Some(())
}

fn slices(token: &[u8], first: usize, size: usize, out: &mut Vec<u8>) -> Option<()> {
    let (first, others) = token.split_at_checked(first)?;
    out.extend_from_slice(first);
    for slice in others.chunks(size) {
        out.push(b'.');
        out.extend_from_slice(slice);
    }
    Some(())
}

/// Reads the parts of a rule. `None` is the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, size: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn short(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn long(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn pattern(&mut self) -> Option<Pattern<'a>> {
        let literal = usize::from(self.short()?);
        let (literal, wild) = self.text()?.split_at_checked(literal)?;
        Some(Pattern { literal, wild })
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let size = usize::from(self.short()?);
        self.take(size)
    }

    fn block(&mut self) -> Option<&'a [u8]> {
        let size = usize::try_from(self.long()?).ok()?;
        self.take(size)
    }
}
