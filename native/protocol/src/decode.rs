//! Decodes one operation from the front of the received bytes (docs/protocol.md section 1).

use memchr::{memchr, memchr2};

use crate::connect::{self, Connect};
use crate::subject::is_valid_publish_subject;
use crate::{DecodeError, Op, Phase, Publish, Settings, Subscribe, is_blank};

/// The most bytes of a line that no other limit counts: blanks after the operation, and the text
/// behind PING, PONG and +OK. nats-server drops them as they arrive. Here they wait for the line
/// end, so they need a limit. nats-server accepts 9000 blanks. A client that sends one byte at a
/// time costs at most this number squared.
pub const MAX_IGNORED_BYTES: usize = 16 * 1024;

/// The most digits of a size. A longer number is not a size, even if it has leading zeros.
pub const MAX_SIZE_DIGITS: usize = 9;

/// The line end of the payload.
const CRLF: &[u8] = b"\r\n";

/// What the front of the bytes holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A complete operation.
    Op {
        /// The operation.
        op: Op<'a>,
        /// Its size in bytes, line end and payload included.
        used: usize,
    },
    /// The beginning of an operation. Another attempt needs at least this many bytes in all. For an
    /// incomplete payload these are the bytes up to the CR behind it, so that a caller can wait
    /// before it joins the fragments.
    Need(usize),
}

type Result<T> = std::result::Result<T, DecodeError>;

/// Decodes the first operation of `input`.
///
/// # Errors
///
/// A breach of the grammar is reported as soon as the bytes that show it have arrived: a wrong
/// operation at its first wrong byte, and a wrong size at the end of the control line.
pub fn decode<'a>(input: &'a [u8], settings: &Settings) -> Result<Step<'a>> {
    let Some(&first) = input.first() else {
        return Ok(Step::Need(1));
    };
    if settings.phase == Phase::ConnectOnly && !first.eq_ignore_ascii_case(&b'C') {
        return Err(DecodeError::ConnectExpected);
    }
    match first {
        b'P' | b'p' => match input.get(1) {
            Some(b'U' | b'u') => publish(input, settings),
            Some(b'I' | b'i') => ignoring_rest(input, b"PING", Op::Ping),
            Some(b'O' | b'o') => ignoring_rest(input, b"PONG", Op::Pong),
            Some(_) => Err(DecodeError::UnknownOperation),
            None => more(input),
        },
        b'H' | b'h' => header_publish(input, settings),
        b'S' | b's' => subscribe(input, settings),
        b'U' | b'u' => unsubscribe(input, settings),
        b'C' | b'c' => with_arguments(
            input,
            b"CONNECT",
            Blank::Optional,
            settings,
            |arguments, used| {
                let connect = Connect::from_json(arguments).ok_or(DecodeError::BadConnect)?;
                Ok(Step::Op {
                    op: Op::Connect(Box::new(connect)),
                    used,
                })
            },
        ),
        b'I' | b'i' => with_arguments(
            input,
            b"INFO",
            Blank::Optional,
            settings,
            |arguments, used| {
                if connect::is_object(arguments) {
                    Ok(Step::Op {
                        op: Op::Ignored,
                        used,
                    })
                } else {
                    Err(DecodeError::BadInfo)
                }
            },
        ),
        b'+' => ignoring_rest(input, b"+OK", Op::Ignored),
        b'-' => with_arguments(input, b"-ERR", Blank::Required, settings, |_, _| {
            Err(DecodeError::ClientError)
        }),
        _ => Err(DecodeError::UnknownOperation),
    }
}

/// The line is not complete. One more byte may change that.
fn more<'a>(input: &[u8]) -> Result<Step<'a>> {
    Ok(Step::Need(input.len().saturating_add(1)))
}

/// The bytes after the name of the operation, or `None` while the name is not complete.
#[inline(always)]
fn after_name<'a>(input: &'a [u8], name: &[u8]) -> Result<Option<&'a [u8]>> {
    match input.strip_prefix(name) {
        Some(rest) => Ok(Some(rest)),
        None => after_other_name(input, name),
    }
}

/// The name is not complete, or not in upper case.
#[cold]
fn after_other_name<'a>(input: &'a [u8], name: &[u8]) -> Result<Option<&'a [u8]>> {
    match input.split_at_checked(name.len()) {
        Some((start, rest)) if start.eq_ignore_ascii_case(name) => Ok(Some(rest)),
        None if name
            .get(..input.len())
            .is_some_and(|part| part.eq_ignore_ascii_case(input)) =>
        {
            Ok(None)
        }
        _ => Err(DecodeError::UnknownOperation),
    }
}

/// An operation whose arguments do not matter.
#[inline]
fn ignoring_rest<'a>(input: &'a [u8], name: &[u8], op: Op<'a>) -> Result<Step<'a>> {
    let Some(rest) = after_name(input, name)? else {
        return more(input);
    };
    match memchr(b'\n', rest.get(..MAX_IGNORED_BYTES).unwrap_or(rest)) {
        Some(end) => {
            let used = name.len().saturating_add(end).saturating_add(1);
            Ok(Step::Op { op, used })
        }
        None if rest.len() >= MAX_IGNORED_BYTES => Err(DecodeError::TooManyIgnoredBytes),
        None => more(input),
    }
}

/// Whether a blank must follow the name of the operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blank {
    Required,
    Optional,
}

/// Finds the arguments of the first line, without blanks before them and without the line end.
/// Passes them to `then` with the size of the whole line.
#[inline]
fn with_arguments<'a>(
    input: &'a [u8],
    name: &[u8],
    blank: Blank,
    settings: &Settings,
    then: impl FnOnce(&'a [u8], usize) -> Result<Step<'a>>,
) -> Result<Step<'a>> {
    let Some(rest) = after_name(input, name)? else {
        return more(input);
    };
    match rest.first() {
        None => return more(input),
        Some(&byte) if blank == Blank::Required && !is_blank(byte) => {
            return Err(DecodeError::UnknownOperation);
        }
        Some(_) => {}
    }
    let arguments = trim_start(rest);
    if rest.len().saturating_sub(arguments.len()) > MAX_IGNORED_BYTES {
        return Err(DecodeError::TooManyIgnoredBytes);
    }
    // Arguments of a legal size end within this window. So a line without an end is not searched
    // any further, however many bytes have been received.
    let limit = settings.max_control_line;
    let window = arguments
        .get(..limit.saturating_add(CRLF.len()))
        .unwrap_or(arguments);
    let end = memchr(b'\n', window);
    let line = window.get(..end.unwrap_or(window.len())).unwrap_or(window);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.len() > limit {
        return Err(DecodeError::ControlLineTooLong);
    }
    let Some(end) = end else {
        return more(input);
    };
    let used = input
        .len()
        .saturating_sub(arguments.len())
        .saturating_add(end)
        .saturating_add(1);
    then(line, used)
}

fn publish<'a>(input: &'a [u8], settings: &Settings) -> Result<Step<'a>> {
    if let Some((head, line_end)) = plain_publish(input, settings) {
        return payload(input, line_end, head, settings);
    }
    with_arguments(
        input,
        b"PUB",
        Blank::Required,
        settings,
        |arguments, line_end| {
            let (rest, total) = last_field(arguments).ok_or(DecodeError::ArgumentCount)?;
            let (subject, reply) = subject_and_reply(rest)?;
            let head = Head {
                subject,
                reply,
                header_size: 0,
                total: size(total).ok_or(DecodeError::BadSize)?,
            };
            payload(input, line_end, head, settings)
        },
    )
}

fn header_publish<'a>(input: &'a [u8], settings: &Settings) -> Result<Step<'a>> {
    with_arguments(
        input,
        b"HPUB",
        Blank::Required,
        settings,
        |arguments, line_end| {
            if !settings.headers {
                return Err(DecodeError::HeadersNotSupported);
            }
            let (rest, total) = last_field(arguments).ok_or(DecodeError::ArgumentCount)?;
            let (rest, header) = last_field(rest).ok_or(DecodeError::ArgumentCount)?;
            let (subject, reply) = subject_and_reply(rest)?;
            let header_size = size(header).ok_or(DecodeError::BadSize)?;
            let total = size(total).ok_or(DecodeError::BadSize)?;
            if header_size > total {
                return Err(DecodeError::HeaderSizeBeyondTotal);
            }
            payload(
                input,
                line_end,
                Head {
                    subject,
                    reply,
                    header_size,
                    total,
                },
                settings,
            )
        },
    )
}

/// Reads the control line of a PUB that is written like those of the official clients: complete,
/// upper case, one space between fields, no control characters. Everything else, legal or not, is
/// `None` and takes the slow path.
#[inline(always)]
fn plain_publish<'a>(input: &'a [u8], settings: &Settings) -> Option<(Head<'a>, usize)> {
    let arguments = input.strip_prefix(b"PUB ")?;
    let (subject, rest) = word(arguments)?;
    let (second, rest) = word(rest.strip_prefix(b" ")?)?;
    let (reply, total, rest) = match rest {
        [b'\r', ..] => (None, second, rest),
        [b' ', rest @ ..] => {
            let (total, rest) = word(rest)?;
            (Some(second), total, rest)
        }
        _ => return None,
    };
    let rest = rest.strip_prefix(CRLF)?;
    let line_end = input.len().checked_sub(rest.len())?;
    let size_of_arguments = arguments
        .len()
        .checked_sub(rest.len())?
        .checked_sub(CRLF.len())?;
    if size_of_arguments > settings.max_control_line {
        return None;
    }
    let head = Head {
        subject,
        reply,
        header_size: 0,
        total: size(total)?,
    };
    Some((head, line_end))
}

/// The text up to the first blank or control character, and the rest.
#[inline(always)]
fn word(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    bytes
        .split_at_checked(word_end(bytes))
        .filter(|(word, _)| !word.is_empty())
}

/// Length of the text up to the first blank or control character. It looks at eight bytes at a
/// time: a call of a vectorised search costs more than the few words that a subject has.
#[inline]
fn word_end(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH_BITS: u64 = 0x80 * ONES;
    let (words, tail) = bytes.as_chunks::<8>();
    let mut end = 0_usize;
    for &word in words {
        let word = u64::from_le_bytes(word);
        // The lowest bit that is left belongs to the first byte below 0x21; a borrow from there
        // can only set higher ones.
        let low = word.wrapping_sub(0x21 * ONES) & !word & HIGH_BITS;
        if low != 0 {
            let within = usize::try_from(low.trailing_zeros() / 8).unwrap_or_default();
            return end.saturating_add(within);
        }
        end = end.saturating_add(8);
    }
    let within = tail.iter().take_while(|&&byte| byte > b' ').count();
    end.saturating_add(within)
}

/// The control line of a PUB or HPUB.
struct Head<'a> {
    subject: &'a [u8],
    reply: Option<&'a [u8]>,
    header_size: usize,
    total: usize,
}

/// Takes the payload that follows the control line, which ends at `line_end`.
#[inline]
fn payload<'a>(
    input: &'a [u8],
    line_end: usize,
    head: Head<'a>,
    settings: &Settings,
) -> Result<Step<'a>> {
    // The check comes before the payload, so that a refused payload is not buffered.
    if head.total > settings.max_payload {
        return Err(DecodeError::PayloadTooLarge);
    }
    let end = line_end.saturating_add(head.total);
    let used = end.saturating_add(CRLF.len());
    let terminator = input.get(end..).unwrap_or_default();
    match terminator {
        [b'\r', b'\n', ..] => {}
        // A wrong byte after the payload is an error as soon as it is there.
        [] => return Ok(Step::Need(end.saturating_add(1))),
        [b'\r'] => return Ok(Step::Need(used)),
        _ => {
            return Err(DecodeError::PayloadTerminator {
                valid_subject: is_valid_publish_subject(head.subject),
            });
        }
    }
    let content = input.get(line_end..end).unwrap_or_default();
    let (headers, payload) = content
        .split_at_checked(head.header_size)
        .unwrap_or((&[], content));
    let op = Op::Pub(Publish {
        subject: head.subject,
        reply: head.reply,
        headers: (!headers.is_empty()).then_some(headers),
        payload,
    });
    Ok(Step::Op { op, used })
}

fn subscribe<'a>(input: &'a [u8], settings: &Settings) -> Result<Step<'a>> {
    with_arguments(
        input,
        b"SUB",
        Blank::Required,
        settings,
        |arguments, used| {
            let subscribe = match fields(arguments)? {
                [Some(subject), Some(sid), None] => Subscribe {
                    subject,
                    queue: None,
                    sid,
                },
                [Some(subject), queue, Some(sid)] => Subscribe {
                    subject,
                    queue,
                    sid,
                },
                _ => return Err(DecodeError::ArgumentCount),
            };
            Ok(Step::Op {
                op: Op::Sub(subscribe),
                used,
            })
        },
    )
}

fn unsubscribe<'a>(input: &'a [u8], settings: &Settings) -> Result<Step<'a>> {
    with_arguments(
        input,
        b"UNSUB",
        Blank::Required,
        settings,
        |arguments, used| {
            let (sid, max) = match fields(arguments)? {
                [Some(sid), None, None] => (sid, 0),
                // nats-server reads -1 if it cannot parse the number, and ends the subscription at
                // once for all values below 1.
                [Some(sid), Some(max), None] => (sid, digits(max).unwrap_or(0)),
                _ => return Err(DecodeError::ArgumentCount),
            };
            Ok(Step::Op {
                op: Op::Unsub { sid, max },
                used,
            })
        },
    )
}

/// Up to three arguments of SUB and UNSUB. In these lines nats-server takes a CR for a blank. That
/// keeps it out of the sid, and so out of MSG lines.
fn fields(arguments: &[u8]) -> Result<[Option<&[u8]>; 3]> {
    let mut found = arguments
        .split(|&byte| is_blank(byte) || byte == b'\r')
        .filter(|field| !field.is_empty());
    let fields = [found.next(), found.next(), found.next()];
    match found.next() {
        None => Ok(fields),
        Some(_) => Err(DecodeError::ArgumentCount),
    }
}

/// Cuts the last argument off: it is a short number, while the subject before it may be long.
#[inline]
fn last_field(arguments: &[u8]) -> Option<(&[u8], &[u8])> {
    let arguments = trim_end(arguments);
    let blank = arguments.iter().rposition(|&byte| is_blank(byte))?;
    let (rest, field) = arguments.split_at_checked(blank)?;
    Some((rest, field.get(1..)?))
}

#[inline]
fn subject_and_reply(arguments: &[u8]) -> Result<(&[u8], Option<&[u8]>)> {
    let arguments = trim_end(arguments);
    if arguments.is_empty() {
        return Err(DecodeError::ArgumentCount);
    }
    let Some((subject, rest)) =
        memchr2(b' ', b'\t', arguments).and_then(|blank| arguments.split_at_checked(blank))
    else {
        return Ok((arguments, None));
    };
    let reply = trim_start(rest);
    if memchr2(b' ', b'\t', reply).is_some() {
        return Err(DecodeError::ArgumentCount);
    }
    Ok((subject, Some(reply)))
}

fn size(field: &[u8]) -> Option<usize> {
    digits(field).and_then(|value| usize::try_from(value).ok())
}

/// A number of 1 to [`MAX_SIZE_DIGITS`] decimal digits.
#[inline]
fn digits(field: &[u8]) -> Option<u32> {
    if field.is_empty() || field.len() > MAX_SIZE_DIGITS {
        return None;
    }
    field.iter().try_fold(0_u32, |value, &byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit <= 9).then(|| value.wrapping_mul(10).wrapping_add(u32::from(digit)))
    })
}

#[inline]
fn trim_start(mut bytes: &[u8]) -> &[u8] {
    while let [byte, rest @ ..] = bytes
        && is_blank(*byte)
    {
        bytes = rest;
    }
    bytes
}

#[inline]
fn trim_end(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., byte] = bytes
        && is_blank(*byte)
    {
        bytes = rest;
    }
    bytes
}
