//! One token to one level and back: the table and the rules of the bijection in the parent module.

use crate::{hex_digits, percent};

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

/// The byte of `XX`, and the rest.
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

/// Appends the blank of this size at the front of `text`, and returns the rest.
pub(crate) fn write_wide_blank<'a>(text: &'a [u8], size: usize, out: &mut Vec<u8>) -> &'a [u8] {
    let (blank, after) = text.split_at_checked(size).unwrap_or((text, &[]));
    for &byte in blank {
        percent(byte, out);
    }
    after
}

/// Value of an upper-case hexadecimal digit.
pub(super) fn hex(digit: u8) -> Option<u8> {
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

/// For the side that wrote the sequence, it loses one `25`, or is decoded if there is none left.
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
pub(super) fn write_level(token: &[u8], out: &mut Vec<u8>) {
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
pub(super) fn write_token(level: &[u8], out: &mut Vec<u8>) {
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

/// This sequence becomes a slash in the token, unless a slash follows there.
const SLASH: &[u8] = b"%2F";

/// Whether the token begins with a slash that the rest of a level after a sequence becomes.
fn slash_follows(level: &[u8]) -> bool {
    let (run, after) = slash_run(level);
    let dot = after.first() == Some(&b'.');
    // The last of a run of %2F is a slash if it does not precede a dot, which is two, and before
    // it every second one.
    if run % 2 == 0 { dot } else { !dot }
}

/// Appends the part of a token that a run of `%2F` at the front of `level` becomes, and returns the
/// rest. A run is converted as a whole, because the result for its first sequence depends on its
/// end.
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
