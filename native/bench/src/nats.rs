//! The client's side of NATS.

use memchr::memchr;

use crate::Failure;
use crate::connection::{Frame, Login, Message, Outgoing, Received};
use crate::payload::HEADERS;

pub fn connect(login: &Login<'_>) -> Vec<u8> {
    format!(
        "CONNECT {{\"verbose\":{},\"pedantic\":false,\"echo\":true,\"headers\":true,\
         \"no_responders\":true,\"protocol\":1,\"lang\":\"rust\",\"version\":\"1.0.0\",\
         \"name\":\"load\"}}\r\n",
        login.verbose
    )
    .into_bytes()
}

pub fn subscribe(subjects: &[String], group: Option<&str>) -> Vec<u8> {
    let group = group.map_or(String::new(), |group| format!("{group} "));
    subjects
        .iter()
        .zip(1..)
        .flat_map(|(subject, sid)| format!("SUB {subject} {group}{sid}\r\n").into_bytes())
        .collect()
}

fn header_block() -> String {
    let lines: String = HEADERS
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    format!("NATS/1.0\r\n{lines}\r\n")
}

pub fn publish(message: &Outgoing<'_>) -> Frame {
    let reply = message
        .reply
        .map_or(String::new(), |reply| format!("{reply} "));
    let size = message.payload.len();
    let mut bytes = if message.headers {
        let block = header_block();
        let total = block.len() + size;
        format!(
            "HPUB {} {reply}{} {total}\r\n{block}",
            message.name,
            block.len()
        )
    } else {
        format!("PUB {} {reply}{size}\r\n", message.name)
    }
    .into_bytes();
    let payload = bytes.len();
    bytes.extend_from_slice(message.payload);
    bytes.extend_from_slice(b"\r\n");
    Frame {
        bytes,
        payload,
        packet_id: None,
    }
}

pub fn headers() -> Vec<u8> {
    header_block().into_bytes()
}

pub fn parse(bytes: &[u8]) -> Result<Option<(Received<'_>, usize)>, Failure> {
    let Some(end) = memchr(b'\n', bytes) else {
        return Ok(None);
    };
    let line = bytes[..end]
        .strip_suffix(b"\r")
        .ok_or_else(|| refused(&bytes[..end]))?;
    let received = match line {
        [b'M', b'S', b'G', b' ', arguments @ ..] => {
            return message(bytes, end + 1, arguments, false);
        }
        [b'H', b'M', b'S', b'G', b' ', arguments @ ..] => {
            return message(bytes, end + 1, arguments, true);
        }
        b"+OK" => Received::Acknowledged,
        b"PONG" => Received::Barrier,
        b"PING" => Received::Ping,
        _ if line.starts_with(b"INFO ") => Received::Other,
        _ => return Err(refused(line)),
    };
    Ok(Some((received, end + 1)))
}

fn message<'a>(
    bytes: &'a [u8],
    begin: usize,
    arguments: &'a [u8],
    with_headers: bool,
) -> Result<Option<(Received<'a>, usize)>, Failure> {
    let mut fields = [&[][..]; 5];
    let mut count = 0;
    for field in arguments.split(|byte| *byte == b' ') {
        *fields.get_mut(count).ok_or_else(|| refused(arguments))? = field;
        count += 1;
    }
    let sizes = if with_headers { 2 } else { 1 };
    let reply = match count.checked_sub(sizes) {
        Some(2) => &[],
        Some(3) => fields[2],
        _ => return Err(refused(arguments)),
    };
    let size = |at: usize| number(fields[at]).ok_or_else(|| refused(arguments));
    let total = size(count - 1)?;
    let header = if with_headers { size(count - 2)? } else { 0 };
    let Some(body) = bytes.get(begin..begin + total + 2) else {
        return Ok(None);
    };
    if header > total || &body[total..] != b"\r\n" {
        return Err(refused(arguments));
    }
    let message = Message {
        name: fields[0],
        reply,
        headers: &body[..header],
        payload: &body[header..total],
    };
    Ok(Some((Received::Message(message), begin + body.len())))
}

fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn refused(line: &[u8]) -> Failure {
    let shown = &line[..line.len().min(200)];
    Failure::Refused(String::from_utf8_lossy(shown).into_owned())
}
