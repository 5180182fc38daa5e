//! The header block, and its MQTT 5 properties (docs/protocol.md section 6).
//!
//! ```text
//! NATS/1.0[ code[ description]] CR LF
//! Name: value CR LF ...
//! CR LF
//! ```
//!
//! Towards MQTT each header is a user property. A status line with text is the first of them, under
//! the reserved name [`STATUS_PROPERTY`]. Towards NATS the block is built so that every official
//! client can read it, whatever an MQTT client put into its properties. That encoding cannot be
//! reversed. `%` itself is never changed in either direction.

use memchr::memmem;

use crate::{is_blank, percent};

/// First bytes of every block.
const VERSION: &[u8] = b"NATS/1.0";

const CRLF: &[u8] = b"\r\n";

/// User property that stands for the text of the status line, `503 No Responders`.
pub const STATUS_PROPERTY: &str = "Nats-Status";

/// Header that stands for MQTT 5's Content Type property.
pub const CONTENT_TYPE: &str = "Content-Type";

/// The most bytes of a block that is built or read. nats-core takes blocks of up to 64 KiB. Headers
/// that do not fit are left out.
pub const MAX_BLOCK: usize = 65_536;

/// The most headers of a block that are read. Each becomes several Erlang terms, and ten thousand
/// of them would hold up a scheduler for milliseconds.
pub const MAX_HEADERS: usize = 1000;

/// Most bytes of an MQTT string.
const MAX_STRING: usize = 65_535;

/// A header block, split but not validated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block<'a> {
    /// The text after the version in the first line, without blanks around it; may be empty.
    pub status: &'a [u8],
    /// Names, and values without the blanks around them, in order.
    pub pairs: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Block<'a> {
    /// Splits a block. Lines without a colon and folded lines are skipped. The block ends at the
    /// first empty line, or at [`MAX_HEADERS`] or [`MAX_BLOCK`]. The result is `None` if it does
    /// not start with `NATS/1.0`.
    #[must_use]
    pub fn parse(block: &'a [u8]) -> Option<Self> {
        let block = block.get(..MAX_BLOCK).unwrap_or(block);
        let (first, mut rest) = line(block.strip_prefix(VERSION)?);
        let mut pairs = Vec::new();
        while !rest.is_empty() && pairs.len() < MAX_HEADERS {
            let (header, next) = line(rest);
            rest = next;
            if header.is_empty() {
                break;
            }
            if header.first().copied().is_some_and(is_blank) {
                continue;
            }
            if let Some((name, value)) =
                memchr::memchr(b':', header).and_then(|colon| header.split_at_checked(colon))
            {
                pairs.push((name, trim(value.get(1..).unwrap_or_default())));
            }
        }
        Some(Self {
            status: trim(first),
            pairs,
        })
    }
}

/// The MQTT 5 side of a header block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties<'a> {
    /// User properties in order.
    pub pairs: Vec<(&'a str, &'a str)>,
    /// The value of the first Content-Type header. The header is among the pairs, too.
    pub content_type: Option<&'a str>,
    /// Whether [`build`] makes exactly the same block of these properties again.
    pub exact: bool,
}

impl<'a> Properties<'a> {
    /// The properties of a block. Headers that MQTT cannot hold are left out: text that is not
    /// UTF-8, NUL, more than 65 535 bytes. Bytes that are not a header block have no properties.
    #[must_use]
    pub fn of(block: &'a [u8]) -> Self {
        let Some(parsed) = Block::parse(block) else {
            return Self::default();
        };
        let status = if is_status(parsed.status) {
            text(parsed.status)
        } else {
            None
        };
        let pairs: Vec<(&str, &str)> = status
            .map(|status| (STATUS_PROPERTY, status))
            .into_iter()
            .chain(
                parsed
                    .pairs
                    .iter()
                    .filter_map(|(name, value)| text(name).zip(text(value))),
            )
            .collect();
        let content_type = pairs
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(CONTENT_TYPE))
            .map(|&(_, value)| value);
        let mut again = Vec::with_capacity(block.len());
        build(
            pairs
                .iter()
                .map(|(name, value)| (name.as_bytes(), value.as_bytes())),
            content_type.map(str::as_bytes),
            &mut again,
        );
        let exact = again == block;
        Self {
            pairs,
            content_type,
            exact,
        }
    }
}

/// Appends the header block of MQTT 5 properties, or nothing if there are none.
///
/// Whatever the properties are, the block has one line per pair and is not longer than
/// [`MAX_BLOCK`]: pairs that do not fit are left out. In names, bytes outside 33..126 and `:` are
/// percent-encoded, and the empty name is `%`. In values, control characters, line and paragraph
/// separators, and white space at either end are percent-encoded; if a value is not UTF-8, so is
/// all of it that is not ASCII. A leading [`STATUS_PROPERTY`] of three digits and an optional
/// description becomes the status line.
pub fn build<'p>(
    pairs: impl Iterator<Item = (&'p [u8], &'p [u8])>,
    content_type: Option<&[u8]>,
    out: &mut Vec<u8>,
) {
    build_with(write_text, pairs, content_type, out);
}

/// The same for a client that accepts only ASCII in values: jnats stops reading its connection at
/// any other byte.
pub fn build_ascii<'p>(
    pairs: impl Iterator<Item = (&'p [u8], &'p [u8])>,
    content_type: Option<&[u8]>,
    out: &mut Vec<u8>,
) {
    build_with(write_ascii, pairs, content_type, out);
}

fn build_with<'p>(
    write_value: fn(&[u8], &mut Vec<u8>),
    pairs: impl Iterator<Item = (&'p [u8], &'p [u8])>,
    content_type: Option<&[u8]>,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    let mut pairs = pairs.peekable();
    let mut content_type = content_type.filter(|value| !value.is_empty());
    if pairs.peek().is_none() && content_type.is_none() {
        return;
    }
    out.extend_from_slice(VERSION);
    let is_status_pair =
        |&(name, value): &(&[u8], &[u8])| name == STATUS_PROPERTY.as_bytes() && is_status(value);
    if let Some((_, status)) = pairs.next_if(is_status_pair) {
        let end = out.len();
        out.push(b' ');
        write_value(status, out);
        if out.len().saturating_sub(start) > MAX_BLOCK.saturating_sub(b"\r\n\r\n".len()) {
            out.truncate(end);
        }
    }
    out.extend_from_slice(CRLF);
    for (name, value) in pairs {
        if name.eq_ignore_ascii_case(CONTENT_TYPE.as_bytes()) {
            content_type = None;
        }
        write_pair(name, value, write_value, start, out);
    }
    if let Some(value) = content_type {
        write_pair(CONTENT_TYPE.as_bytes(), value, write_value, start, out);
    }
    out.extend_from_slice(CRLF);
}

/// Appends one header line, unless the block that began at `start` would become too long.
fn write_pair(
    name: &[u8],
    value: &[u8],
    write_value: fn(&[u8], &mut Vec<u8>),
    start: usize,
    out: &mut Vec<u8>,
) {
    let before = out.len();
    let room = MAX_BLOCK
        .saturating_sub(before.saturating_sub(start))
        .saturating_sub(CRLF.len());
    // This also bounds the work for text that is far too long.
    if name.len().saturating_add(value.len()) > room {
        return;
    }
    if name.is_empty() {
        out.push(b'%');
    }
    for &byte in name {
        if byte.is_ascii_graphic() && byte != b':' {
            out.push(byte);
        } else {
            percent(byte, out);
        }
    }
    out.extend_from_slice(b": ");
    write_value(value, out);
    out.extend_from_slice(CRLF);
    if out.len().saturating_sub(before) > room {
        out.truncate(before);
    }
}

fn write_text(value: &[u8], out: &mut Vec<u8>) {
    if value.is_ascii() {
        return write_ascii(value, out);
    }
    let Ok(text) = std::str::from_utf8(value) else {
        return write_ascii(value, out);
    };
    // Some clients trim these characters, or take them for the end of a line.
    let inner = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{FEFF}');
    let (leading, _) = text.split_once(inner).unwrap_or_default();
    let end = leading.len().saturating_add(inner.len());
    for (at, character) in text.char_indices() {
        let within = at >= leading.len() && at < end;
        let is_plain = !character.is_control() && !matches!(character, '\u{2028}' | '\u{2029}');
        let mut bytes = [0; 4];
        let bytes = character.encode_utf8(&mut bytes).as_bytes();
        if within && is_plain {
            out.extend_from_slice(bytes);
        } else {
            bytes.iter().for_each(|&byte| percent(byte, out));
        }
    }
}

fn write_ascii(value: &[u8], out: &mut Vec<u8>) {
    let inner = trim(value);
    let leading = value.iter().take_while(|&&byte| is_blank(byte)).count();
    for (at, &byte) in value.iter().enumerate() {
        let at_end = at < leading || at.saturating_sub(leading) >= inner.len();
        match byte {
            b' ' if !at_end => out.push(byte),
            0x21..=0x7E => out.push(byte),
            _ => percent(byte, out),
        }
    }
}

/// Three digits that are a legal code in every client, then nothing or a description.
fn is_status(text: &[u8]) -> bool {
    match text {
        [b'1'..=b'9', b'0'..=b'9', b'0'..=b'9', rest @ ..] => {
            rest.is_empty() || (rest.first() == Some(&b' ') && trim(text) == text)
        }
        _ => false,
    }
}

/// The text, if MQTT can hold it.
fn text(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > MAX_STRING || memchr::memchr(0, bytes).is_some() {
        return None;
    }
    std::str::from_utf8(bytes).ok()
}

/// The first line without its CR LF, and the rest.
pub(crate) fn line(bytes: &[u8]) -> (&[u8], &[u8]) {
    match memmem::find(bytes, CRLF).and_then(|end| bytes.split_at_checked(end)) {
        Some((line, rest)) => (line, rest.get(CRLF.len()..).unwrap_or_default()),
        None => (bytes, &[]),
    }
}

/// Removes the blanks around a value, as readers do.
pub(crate) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [byte, rest @ ..] = bytes
        && is_blank(*byte)
    {
        bytes = rest;
    }
    while let [rest @ .., byte] = bytes
        && is_blank(*byte)
    {
        bytes = rest;
    }
    bytes
}
