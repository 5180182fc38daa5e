//! Headers with which a NATS client sets properties of the PUBLISH, and those that tell the properties
//! of a delivery (docs/retained.md).
//!
//! The names are compared without their letter case, and each may be there once. A block is searched
//! to its end, however long it is, because the rest of the block goes on to subscribers.

use memchr::memmem;

use crate::headers::{line, trim};
use crate::is_blank;

/// Most bytes of an MQTT string.
const MAX_STRING: usize = 65_535;

const FORMAT_BYTES: u8 = 0;
const FORMAT_UTF8: u8 = 1;

const VERSION_LINE: &[u8] = b"NATS/1.0\r\n";
const CRLF: &[u8] = b"\r\n";

/// The prefix of all names.
const PREFIX: &[u8] = b"Mqtt-";

/// A header that stands for a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// `true` or `false`: whether the broker keeps the message for later subscribers.
    Retain,
    /// 0, 1 or 2: the quality of service.
    Qos,
    /// The Message Expiry Interval.
    Expiry,
    /// 0 or 1, or `utf-8`: the Payload Format Indicator.
    PayloadFormat,
    /// The Response Topic.
    ResponseTopic,
}

impl Header {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Retain,
        Self::Qos,
        Self::Expiry,
        Self::PayloadFormat,
        Self::ResponseTopic,
    ];

    /// Its name, as the gateway writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retain => "Mqtt-Retain",
            Self::Qos => "Mqtt-Qos",
            Self::Expiry => "Mqtt-Expiry",
            Self::PayloadFormat => "Mqtt-Payload-Format",
            Self::ResponseTopic => "Mqtt-Response-Topic",
        }
    }

    /// The header with this name, in any letter case.
    #[must_use]
    pub fn of(name: &[u8]) -> Option<Self> {
        let prefix = name.get(..PREFIX.len())?;
        if !prefix.eq_ignore_ascii_case(PREFIX) {
            return None;
        }
        Self::ALL
            .into_iter()
            .find(|header| name.eq_ignore_ascii_case(header.name().as_bytes()))
    }
}

/// The reason for which a message must not be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The value is not one of those that are allowed.
    Value,
    /// The header is there more than once.
    Repeated,
    /// The payload is said to be UTF-8 and is not.
    Payload,
}

/// What the headers of a publish ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishProperties<'a> {
    /// Whether the message is to be retained.
    pub retain: Option<bool>,
    /// 0 to 2.
    pub qos: Option<u8>,
    /// Seconds, at least 1.
    pub expiry: Option<u32>,
    /// 0 or 1.
    pub payload_format: Option<u8>,
    /// A topic that can be published to, without the mountpoint.
    pub response_topic: Option<&'a str>,
    /// The block without these headers, or nothing if nothing else was in it.
    pub rest: Vec<u8>,
}

/// Takes the headers out of a block. The result is `None` if it has none of them.
///
/// # Errors
///
/// The first header that cannot be followed.
pub fn take<'a>(
    block: &'a [u8],
    payload: &[u8],
) -> Result<Option<PublishProperties<'a>>, (Header, Problem)> {
    let mut taken = PublishProperties::default();
    let mut found = false;
    let mut others = false;
    let mut kept = 0;
    each_line(block, |start, end, header| {
        let Some((header, value)) = header else {
            others = true;
            return Ok(());
        };
        found = true;
        taken
            .rest
            .extend_from_slice(block.get(kept..start).unwrap_or_default());
        kept = end;
        taken
            .set(header, value)
            .map_err(|problem| (header, problem))
    })?;
    if !found {
        return Ok(None);
    }
    if taken.payload_format == Some(FORMAT_UTF8) && std::str::from_utf8(payload).is_err() {
        return Err((Header::PayloadFormat, Problem::Payload));
    }
    taken
        .rest
        .extend_from_slice(block.get(kept..).unwrap_or_default());
    if !others && taken.rest.starts_with(VERSION_LINE) {
        taken.rest.clear();
    }
    Ok(Some(taken))
}

impl<'a> PublishProperties<'a> {
    fn set(&mut self, header: Header, value: &'a [u8]) -> Result<(), Problem> {
        match header {
            Header::Retain => once(&mut self.retain, flag(value)),
            Header::Qos => once(&mut self.qos, quality(value)),
            Header::Expiry => once(&mut self.expiry, seconds(value)),
            Header::PayloadFormat => once(&mut self.payload_format, format(value)),
            Header::ResponseTopic => once(&mut self.response_topic, topic(value)),
        }
    }
}

fn once<T>(property: &mut Option<T>, value: Option<T>) -> Result<(), Problem> {
    let value = value.ok_or(Problem::Value)?;
    match property.replace(value) {
        None => Ok(()),
        Some(_) => Err(Problem::Repeated),
    }
}

/// Writes a block that has the headers `shown`, and no others of these names. They follow the headers
/// of `block`. If there is nothing to change, the bytes stay as they are.
pub fn show<'p>(
    block: &[u8],
    shown: impl Iterator<Item = (&'p [u8], &'p [u8])>,
    out: &mut Vec<u8>,
) {
    let mut kept = 0;
    let body = each_line(block, |start, end, header| {
        if header.is_some() {
            out.extend_from_slice(block.get(kept..start).unwrap_or_default());
            kept = end;
        }
        Ok::<(), ()>(())
    })
    .unwrap_or_default();
    out.extend_from_slice(block.get(kept..body).unwrap_or_default());
    for (name, value) in shown {
        for part in [name, b": ", value, CRLF] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(block.get(body..).unwrap_or_default());
}

/// Calls a function for each line behind the first one, with its place and, if it is one of these
/// headers, that and its value. Returns where the empty line begins that ends the block.
fn each_line<'a, E>(
    block: &'a [u8],
    mut visit: impl FnMut(usize, usize, Option<(Header, &'a [u8])>) -> Result<(), E>,
) -> Result<usize, E> {
    let (first, mut rest) = line(block);
    let mut start = block.len().saturating_sub(rest.len());
    // Without a line end there is nothing behind the first line.
    if memmem::find(block, CRLF) != Some(first.len()) {
        return Ok(block.len());
    }
    let mut last = None;
    while !rest.is_empty() {
        let (text, next) = line(rest);
        if text.is_empty() {
            break;
        }
        let end = block.len().saturating_sub(next.len());
        // A line that begins with a blank continues the one before it.
        let found = if text.first().copied().is_some_and(is_blank) {
            last.map(|header| (header, text))
        } else {
            header(text)
        };
        last = found.map(|(header, _)| header);
        visit(start, end, found)?;
        (start, rest) = (end, next);
    }
    Ok(start)
}

fn header(text: &[u8]) -> Option<(Header, &[u8])> {
    let colon = memchr::memchr(b':', text)?;
    let (name, value) = text.split_at_checked(colon)?;
    Some((Header::of(name)?, trim(value.get(1..).unwrap_or_default())))
}

fn flag(value: &[u8]) -> Option<bool> {
    if value.eq_ignore_ascii_case(b"true") {
        Some(true)
    } else if value.eq_ignore_ascii_case(b"false") {
        Some(false)
    } else {
        None
    }
}

fn quality(value: &[u8]) -> Option<u8> {
    match value {
        [digit @ b'0'..=b'2'] => Some(digit.saturating_sub(b'0')),
        _ => None,
    }
}

fn format(value: &[u8]) -> Option<u8> {
    match value {
        b"0" => Some(FORMAT_BYTES),
        b"1" => Some(FORMAT_UTF8),
        _ if value.eq_ignore_ascii_case(b"utf-8") => Some(FORMAT_UTF8),
        _ => None,
    }
}

/// Seconds as a number, or parts such as `1h30m0s`, the form in which Go writes a duration. Each unit
/// is smaller than the one before it. MQTT has no fractions of a second.
fn seconds(value: &[u8]) -> Option<u32> {
    let mut total = 0_u64;
    let mut rest = value;
    let mut last = u64::MAX;
    loop {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, unit) = rest.split_at_checked(digits)?;
        let number: u64 = std::str::from_utf8(number).ok()?.parse().ok()?;
        let (unit, next) = match unit {
            [] if last == u64::MAX => (1, unit),
            [b's', next @ ..] => (1, next),
            [b'm', next @ ..] => (60, next),
            [b'h', next @ ..] => (3600, next),
            [b'd', next @ ..] => (86_400, next),
            _ => return None,
        };
        if unit >= last {
            return None;
        }
        last = unit;
        total = total.checked_add(number.checked_mul(unit)?)?;
        if next.is_empty() {
            break;
        }
        rest = next;
    }
    u32::try_from(total).ok().filter(|&seconds| seconds > 0)
}

/// A topic that every broker takes: see `is_string` of `nats_gateway_mqtt_nif`.
fn topic(value: &[u8]) -> Option<&str> {
    let topic = std::str::from_utf8(value).ok()?;
    let allowed = |character: char| {
        let code = u32::from(character);
        !character.is_control()
            && !matches!(character, '+' | '#')
            && !(0xFDD0..=0xFDEF).contains(&code)
            && code & 0xFFFE != 0xFFFE
    };
    (!topic.is_empty() && topic.len() <= MAX_STRING && topic.chars().all(allowed)).then_some(topic)
}
