//! Helpers that several test files need.

#![allow(dead_code, reason = "not every test file needs everything")]

use nats_protocol::{DecodeError, Op, Phase, Settings, Step, decode};

/// Small limits, so that tests can cross them.
pub fn small() -> Settings {
    Settings {
        max_control_line: 64,
        max_payload: 100,
        phase: Phase::Open,
        headers: true,
    }
}

/// All operations of complete input, and how it ends. The end is what is needed after the last
/// operation, counted from the start of the rest, or the error.
pub type Outcome = (Vec<String>, Result<(usize, usize), DecodeError>);

/// Operations as text, because they borrow from the input.
pub fn show(op: &Op<'_>) -> String {
    format!("{op:?}")
}

/// Decodes all operations that are there.
pub fn drain(input: &[u8], settings: &Settings) -> Outcome {
    let mut ops = Vec::new();
    let mut rest = input;
    loop {
        match decode(rest, settings) {
            Ok(Step::Op { op, used }) => {
                assert!(used > 0 && used <= rest.len());
                ops.push(show(&op));
                rest = &rest[used..];
            }
            Ok(Step::Need(need)) => {
                assert!(need > rest.len(), "{need} needed of {}", rest.len());
                return (ops, Ok((rest.len(), need)));
            }
            Err(error) => return (ops, Err(error)),
        }
    }
}

/// Decodes reads as a connection does. The decoder is called again only when as many bytes are
/// there as it asked for.
pub fn feed<'a>(reads: impl IntoIterator<Item = &'a [u8]>, settings: &Settings) -> Outcome {
    let mut ops = Vec::new();
    let mut pending = Vec::new();
    let mut need = 1;
    for read in reads {
        pending.extend_from_slice(read);
        if pending.len() < need {
            continue;
        }
        let (more, end) = drain(&pending, settings);
        ops.extend(more);
        match end {
            Ok((left, bytes)) => {
                pending.drain(..pending.len() - left);
                need = bytes;
            }
            Err(error) => return (ops, Err(error)),
        }
    }
    (ops, Ok((pending.len(), need)))
}

/// The only operation of the input.
pub fn one(input: &[u8]) -> Op<'_> {
    match decode(input, &Settings::default()) {
        Ok(Step::Op { op, used }) if used == input.len() => op,
        other => panic!("{}: {other:?}", input.escape_ascii()),
    }
}

/// The error with which the input ends at once.
pub fn error(input: &[u8], settings: &Settings) -> DecodeError {
    match decode(input, settings) {
        Err(error) => error,
        other => panic!("{}: {other:?}", input.escape_ascii()),
    }
}

/// A frame in the form that a client reads.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub subject: Vec<u8>,
    pub sid: Vec<u8>,
    pub reply: Option<Vec<u8>>,
    pub headers: Option<Vec<u8>>,
    pub payload: Vec<u8>,
}

/// The text has nothing that a client could not read.
pub fn check_text(subject: &[u8]) {
    let text = std::str::from_utf8(subject).expect("UTF-8");
    assert!(!text.chars().any(|c| c.is_ascii_control()), "{text:?}");
}

/// Reads frames as strictly as all official clients together: single spaces, CR LF, upper case, no
/// control characters and only UTF-8 in the subject, exact sizes. Sids, and reply subjects of NATS
/// clients, are as their senders wrote them.
pub fn read_frames(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let end = bytes
            .windows(2)
            .position(|two| two == b"\r\n")
            .expect("a line end");
        let line = &bytes[..end];
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        assert!(fields.iter().all(|field| !field.is_empty()), "{line:?}");
        let (subject, sid, reply, header_size, total) = match fields[..] {
            [b"MSG", subject, sid, total] => (subject, sid, None, None, total),
            [b"MSG", subject, sid, reply, total] => (subject, sid, Some(reply), None, total),
            [b"HMSG", subject, sid, header, total] => (subject, sid, None, Some(header), total),
            [b"HMSG", subject, sid, reply, header, total] => {
                (subject, sid, Some(reply), Some(header), total)
            }
            _ => panic!("{line:?}"),
        };
        check_text(subject);
        let size = |text: &[u8]| -> usize {
            let text = std::str::from_utf8(text).expect("a size");
            text.parse().expect("a size")
        };
        let (total, header_size) = (size(total), header_size.map(size));
        let content = &bytes[end + 2..end + 2 + total];
        assert_eq!(&bytes[end + 2 + total..end + 4 + total], b"\r\n");
        let (headers, payload) = content.split_at(header_size.unwrap_or(0));
        frames.push(Frame {
            subject: subject.into(),
            sid: sid.into(),
            reply: reply.map(Into::into),
            headers: header_size.map(|_| headers.to_vec()),
            payload: payload.to_vec(),
        });
        bytes = &bytes[end + 4 + total..];
    }
    frames
}

/// Reads a header block as strictly as all official clients together (except jnats, which needs
/// ASCII): UTF-8, a legal status, legal names, at least one colon, no folded lines, and no
/// characters that a client takes for the end of a line or trims.
pub fn read_headers(block: &[u8]) -> (Option<String>, Vec<(String, String)>) {
    assert!(block.len() <= 65_536);
    let text = std::str::from_utf8(block).expect("UTF-8");
    let text = text
        .strip_suffix("\r\n\r\n")
        .expect("an empty line at the end");
    let mut lines = text.split("\r\n");
    let version = lines.next().expect("a version line");
    let status = version.strip_prefix("NATS/1.0").expect("the version");
    let status = (!status.is_empty()).then(|| {
        let status = status.strip_prefix(' ').expect("a space before the status");
        let code: u16 = status[..3].parse().expect("three digits");
        assert!((100..1000).contains(&code), "{status}");
        assert!(
            status.len() == 3 || status[3..].starts_with(' '),
            "{status}"
        );
        status.to_owned()
    });
    let pairs = lines
        .map(|line| {
            let (name, value) = line.split_once(": ").expect("a name and a value");
            assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b':'));
            assert!(
                value
                    .chars()
                    .all(|c| !c.is_control() && !"\u{2028}\u{2029}".contains(c)),
                "{value:?}"
            );
            assert_eq!(value.trim(), value);
            (name.to_owned(), value.to_owned())
        })
        .collect();
    (status, pairs)
}
