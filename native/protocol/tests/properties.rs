//! Properties that must hold for every input.

#![allow(clippy::restriction)]

mod common;

use common::{check_text, drain, feed, read_frames, read_headers, show};
use nats_protocol::encode::{
    Frames, MAX_CONTROL_LINE, Message, REFERENCE_THRESHOLD, write_raw_subject,
};
use nats_protocol::headers::{Properties, build};
use nats_protocol::subject::{
    correlation, is_valid_publish_subject, plain_topic, quote, share_name, subject_matches,
    topic_matches, write_canonical, write_filter, write_published, write_reply, write_reply_topic,
    write_subject, write_topic,
};
use nats_protocol::{Op, Phase, Publish, Settings, Subscribe};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..most)
}

fn settings() -> impl Strategy<Value = Settings> {
    (0..200_usize, 0..200_usize, any::<bool>(), any::<bool>()).prop_map(
        |(max_control_line, max_payload, open, headers)| Settings {
            max_control_line,
            max_payload,
            phase: if open {
                Phase::Open
            } else {
                Phase::ConnectOnly
            },
            headers,
        },
    )
}

/// Input that gets further into the decoder than random bytes.
fn nearly_operations() -> impl Strategy<Value = Vec<u8>> {
    let words: Vec<&[u8]> = vec![
        b"PUB",
        b"HPUB ",
        b"SUB ",
        b"UNSUB ",
        b"PING",
        b"pong",
        b"CONNECT ",
        b"INFO",
        b"+OK",
        b"-ERR",
        b"{}",
        b"{\"user\":\"x\"}",
        b"a.b",
        b"reply",
        b" ",
        b"\t",
        b"  ",
        b"0",
        b"2",
        b"12",
        b"999999999",
        b"\r\n",
        b"\n",
        b"\r",
        b"NATS/1.0\r\n\r\n",
        b"hi",
        b"\xFF",
        b"\0",
        b"PUB a 2\r\nhi\r\n",
        b"HPUB a 2 2\r\nhi\r\n",
    ];
    vec(select(words), 0..20).prop_map(|words| words.concat())
}

/// Pieces that have a meaning in a name, and others.
fn name(pieces: &'static [&'static str]) -> impl Strategy<Value = String> {
    vec(
        prop_oneof![4 => select(pieces).prop_map(str::to_owned), 1 => "\\PC{0,12}"],
        1..12,
    )
    .prop_map(|pieces| pieces.concat())
}

fn any_topic() -> impl Strategy<Value = String> {
    name(&[
        "/",
        "/",
        ".",
        "*",
        ">",
        "a",
        "sensors",
        "building7",
        "%",
        "25",
        "2F",
        "2B",
        "2A",
        "%2F",
        "%252F",
        "%2B",
        "%2A",
        "%3E",
        "%20",
        " ",
        "\t",
        "\r\n",
        "\x7F",
        "$SYS",
        "\u{a0}",
        "%C2%A0",
        "\u{3000}",
        "grün",
        "日本語",
    ])
    .prop_map(|topic| topic.replace(['+', '#', '\0'], ""))
    .prop_filter("a topic is not empty", |topic| !topic.is_empty())
}

const SUBJECT_PIECES: &[&str] = &[
    ".",
    ".",
    "/",
    "//",
    "*",
    ">",
    "+",
    "#",
    "a",
    "sensors",
    "building7",
    "%",
    "25",
    "2F",
    "%2F",
    "%252F",
    "%2B",
    "%2A",
    "%3E",
    "%20",
    "%2520",
    "$SRV",
    "grün",
    "日本語",
];

fn has_no_empty_token(subject: &str) -> bool {
    !subject.split('.').any(str::is_empty)
}

fn any_subject() -> impl Strategy<Value = String> {
    name(SUBJECT_PIECES)
        .prop_map(|subject| {
            subject.replace(|c: char| c.is_whitespace() || c.is_ascii_control(), "")
        })
        .prop_filter("no empty tokens", |subject| has_no_empty_token(subject))
}

/// Also has characters that pass to topics unchanged and come back encoded.
fn any_spelling() -> impl Strategy<Value = String> {
    vec(
        prop_oneof![
            3 => select(SUBJECT_PIECES),
            1 => select(&["\u{a0}", "\u{3000}", "\x01", "\x7F", "\x0B", "%01", "%E3%80%80"][..]),
        ],
        1..12,
    )
    .prop_map(|pieces| pieces.concat())
    .prop_filter("no empty tokens", |subject| has_no_empty_token(subject))
}

/// Blanks between arguments.
fn blanks() -> impl Strategy<Value = String> {
    "[ \t]{1,3}".boxed()
}

fn word() -> impl Strategy<Value = Vec<u8>> {
    vec(
        any::<u8>().prop_filter("a word", |byte| !b" \t\r\n".contains(byte)),
        1..40,
    )
}

/// A line of an operation, and the operation as text.
fn operation() -> impl Strategy<Value = (Vec<u8>, String)> {
    let line_end = select(vec!["\n", "\r\n"]);
    let publish = (
        word(),
        proptest::option::of(word()),
        proptest::option::of(bytes(30)),
        bytes(300),
        [blanks(), blanks(), blanks(), blanks()],
        "[ \t]{0,2}",
        line_end.clone(),
        any::<bool>(),
    )
        .prop_map(
            |(subject, reply, headers, payload, blanks, trailing, end, lower)| {
                let header_size = headers.as_ref().map(Vec::len);
                let total = header_size.unwrap_or(0) + payload.len();
                let mut line = if header_size.is_some() { "HPUB" } else { "PUB" }.to_owned();
                if lower {
                    line.make_ascii_lowercase();
                }
                let mut line = line.into_bytes();
                let mut blanks = blanks.iter();
                let mut field = |text: &[u8]| {
                    line.extend_from_slice(blanks.next().expect("enough").as_bytes());
                    line.extend_from_slice(text);
                };
                field(&subject);
                if let Some(reply) = &reply {
                    field(reply);
                }
                if let Some(size) = header_size {
                    field(size.to_string().as_bytes());
                }
                line.extend_from_slice(b" ");
                line.extend_from_slice(total.to_string().as_bytes());
                line.extend_from_slice(trailing.as_bytes());
                line.extend_from_slice(end.as_bytes());
                line.extend_from_slice(headers.as_deref().unwrap_or_default());
                line.extend_from_slice(&payload);
                line.extend_from_slice(b"\r\n");
                let op = Op::Pub(Publish {
                    subject: &subject,
                    reply: reply.as_deref(),
                    headers: headers.as_deref().filter(|headers| !headers.is_empty()),
                    payload: &payload,
                });
                (line, show(&op))
            },
        );
    let subscribe = (
        word(),
        proptest::option::of(word()),
        word(),
        blanks(),
        line_end.clone(),
    )
        .prop_map(|(subject, queue, sid, blanks, end)| {
            let fields = [Some(subject.clone()), queue.clone(), Some(sid.clone())];
            let mut line = b"SUB".to_vec();
            for field in fields.into_iter().flatten() {
                line.extend_from_slice(blanks.as_bytes());
                line.extend_from_slice(&field);
            }
            line.extend_from_slice(end.as_bytes());
            let op = Subscribe {
                subject: &subject,
                queue: queue.as_deref(),
                sid: &sid,
            };
            (line, show(&Op::Sub(op)))
        });
    let unsubscribe =
        (word(), 0..1_000_000_000_u32, blanks(), line_end).prop_map(|(sid, max, blanks, end)| {
            let rest = format!("{blanks}{max}{end}");
            let op = Op::Unsub { sid: &sid, max };
            ([b"UNSUB ", &sid[..], rest.as_bytes()].concat(), show(&op))
        });
    let ping = Just((b"PING\r\n".to_vec(), show(&Op::Ping)));
    prop_oneof![4 => publish, 1 => subscribe, 1 => unsubscribe, 1 => ping]
}

/// Cuts the input at these places.
fn cut<'a>(input: &'a [u8], places: &[Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = places.iter().map(|at| at.index(input.len() + 1)).collect();
    places.extend([0, input.len()]);
    places.sort_unstable();
    places
        .windows(2)
        .map(|ends| &input[ends[0]..ends[1]])
        .collect()
}

/// Undoes a share name, as another program would.
fn queue_of(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = name;
    while let Some((&byte, after)) = rest.split_first() {
        let mut code = after;
        while code.starts_with(b"25") {
            code = &code[2..];
        }
        let value = code
            .get(..2)
            .filter(|code| code.iter().all(|c| matches!(c, b'0'..=b'9' | b'A'..=b'F')))
            .and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok())
            .filter(|&value| matches!(value, b'/' | b'+' | b'#' | 0..=0x1F | 0x7F..));
        match value {
            Some(value) if byte == b'%' && code.len() == after.len() => {
                out.push(value);
                rest = &after[2..];
            }
            Some(_) if byte == b'%' => {
                out.push(b'%');
                rest = &after[2..];
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Also: the size that is used or needed makes sense (asserted in `drain`).
    #[test]
    fn decoding_never_panics(input in bytes(300), settings in settings()) {
        let _ = drain(&input, &settings);
    }

    #[test]
    fn decoding_does_not_depend_on_cuts(
        input in nearly_operations(),
        settings in settings(),
        places in vec(any::<Index>(), 0..8),
    ) {
        prop_assert_eq!(feed(cut(&input, &places), &settings), drain(&input, &settings));
    }

    #[test]
    fn operations_are_decoded_as_written(
        operations in vec(operation(), 0..8),
        places in vec(any::<Index>(), 0..8),
    ) {
        let (lines, expected): (Vec<_>, Vec<_>) = operations.into_iter().unzip();
        let input = lines.concat();
        let (ops, end) = feed(cut(&input, &places), &Settings::default());
        prop_assert_eq!(ops, expected);
        prop_assert_eq!(end, Ok((0, 1)));
    }

    #[test]
    fn names_never_panic(one in bytes(80), two in bytes(20)) {
        let mut out = Vec::new();
        let _ = write_topic(&one, &two, &mut out);
        let _ = write_filter(&one, &two, &mut out);
        let _ = write_reply_topic(&one, &two, &mut out);
        let _ = correlation(&one);
        let _ = subject_matches(&two, &one);
        let _ = topic_matches(&two, &one);
        let _ = is_valid_publish_subject(&one);
        write_canonical(&one, &mut out);
        write_published(&one, &mut out);
        prop_assert!(quote(&one).is_ascii() || std::str::from_utf8(&quote(&one)).is_ok());
        write_subject(&one, &two, &mut out);
    }

    #[test]
    fn every_topic_comes_back(topic in any_topic(), mountpoint in "[a-z/]{0,8}") {
        let mounted = format!("{mountpoint}{topic}");
        let mut subject = Vec::new();
        write_subject(mounted.as_bytes(), mountpoint.as_bytes(), &mut subject);
        prop_assert!(!subject.split(|&byte| byte == b'.').any(<[u8]>::is_empty));
        let mut back = Vec::new();
        prop_assert!(write_topic(&subject, mountpoint.as_bytes(), &mut back));
        prop_assert_eq!(String::from_utf8_lossy(&back), mounted);
    }

    #[test]
    fn every_subject_comes_back(subject in any_subject(), mountpoint in "[a-z/]{0,8}") {
        let mut topic = Vec::new();
        prop_assert!(write_topic(subject.as_bytes(), mountpoint.as_bytes(), &mut topic));
        prop_assert!(!topic[mountpoint.len()..].iter().any(|byte| b"+#\0".contains(byte)));
        prop_assert!(std::str::from_utf8(&topic).is_ok());
        let mut back = Vec::new();
        write_subject(&topic, mountpoint.as_bytes(), &mut back);
        prop_assert_eq!(String::from_utf8_lossy(&back), &subject[..]);
        prop_assert!(write_reply_topic(subject.as_bytes(), mountpoint.as_bytes(), &mut topic));
    }

    /// All spellings of a topic or filter have one in common, which is the one of deliveries.
    #[test]
    fn canonical_subjects(subject in any_spelling()) {
        let written = |write: fn(&[u8], &mut Vec<u8>), subject: &[u8]| {
            let mut out = Vec::new();
            write(subject, &mut out);
            out
        };
        let canonical = written(write_canonical, subject.as_bytes());
        prop_assert_eq!(&written(write_canonical, &canonical), &canonical);
        prop_assert_eq!(&written(write_published, subject.as_bytes()), &canonical);
        let (mut of_subject, mut of_canonical) = (Vec::new(), Vec::new());
        prop_assert!(write_topic(subject.as_bytes(), b"", &mut of_subject));
        prop_assert!(write_topic(&canonical, b"", &mut of_canonical));
        prop_assert_eq!(&of_subject, &of_canonical);
        let mut delivered = Vec::new();
        write_subject(&of_subject, b"", &mut delivered);
        prop_assert_eq!(&delivered, &canonical);
        let (mut of_subject, mut of_canonical) = (Vec::new(), Vec::new());
        prop_assert_eq!(
            write_filter(subject.as_bytes(), b"", &mut of_subject),
            write_filter(&canonical, b"", &mut of_canonical)
        );
        prop_assert_eq!(of_subject, of_canonical);
    }

    #[test]
    fn subjects_that_deliveries_have_are_canonical(subject in any_subject()) {
        let mut canonical = Vec::new();
        write_canonical(subject.as_bytes(), &mut canonical);
        prop_assert_eq!(String::from_utf8_lossy(&canonical), subject);
    }

    /// The vectorised conversion, the one for short names and the thorough one give the same
    /// result.
    #[test]
    fn plain_names_convert_alike(subject in any_subject(), prefix in "[a-z]{0,40}") {
        for subject in [format!("{prefix}{subject}"), format!("{prefix}..{subject}")] {
            let mut plain = vec![0; subject.len()];
            if plain_topic(subject.as_bytes(), &mut plain) {
                let mut topic = Vec::new();
                prop_assert!(write_topic(subject.as_bytes(), b"", &mut topic));
                prop_assert_eq!(topic, plain);
            }
        }
    }

    #[test]
    fn names_of_letters_are_plain(
        tokens in vec("[a-zA-Z0-9_$!-)<=?@^~,;:äß日]{1,9}", 1..9),
    ) {
        let tokens = tokens.join(".").replace(['#', '%'], "x");
        let mut topic = vec![0; tokens.len()];
        prop_assert!(plain_topic(tokens.as_bytes(), &mut topic));
        prop_assert_eq!(String::from_utf8(topic).expect("UTF-8"), tokens.replace('.', "/"));
    }

    #[test]
    fn share_names_are_legal_and_reversible(
        queue in prop_oneof![bytes(40), any_subject().prop_map(String::into_bytes)],
    ) {
        prop_assume!(!queue.is_empty());
        let name = share_name(&queue).expect("short");
        prop_assert!(std::str::from_utf8(&name).is_ok());
        prop_assert!(!name.iter().any(|byte| b"/+#\0".contains(byte)));
        prop_assert_eq!(queue_of(&name), queue);
    }

    #[test]
    fn correlated_replies_come_back(topic in any_topic(), data in bytes(200)) {
        let mut subject = Vec::new();
        write_reply(topic.as_bytes(), Some(&data), b"", &mut subject);
        prop_assert!(subject.iter().all(u8::is_ascii_graphic));
        let (mut published, mut plain) = (Vec::new(), Vec::new());
        write_published(&subject, &mut published);
        write_subject(topic.as_bytes(), b"", &mut plain);
        prop_assert_eq!(published, plain);
        prop_assert_eq!(correlation(&subject), Some((topic.into_bytes(), data)));
    }

    /// No two subjects stand for the same request.
    #[test]
    fn correlated_replies_are_canonical(
        text in "_MQTT\\.t[A-Za-z0-9_-]{1,12}\\.c[A-Za-z0-9_-]{0,12}",
    ) {
        if let Some((topic, data)) = correlation(text.as_bytes()) {
            let mut subject = Vec::new();
            write_reply(&topic, Some(&data), b"", &mut subject);
            prop_assert_eq!(String::from_utf8(subject).expect("ASCII"), text);
        }
    }

    /// Whatever MQTT clients send, a frame stays one frame, and its fields are the given ones.
    #[test]
    fn nothing_breaks_a_frame(
        topic in prop_oneof![bytes(60), any_topic().prop_map(String::into_bytes)],
        response in proptest::option::of((bytes(60), proptest::option::of(bytes(60)))),
        properties in vec((bytes(20), bytes(40)), 0..4),
        content_type in proptest::option::of(bytes(20)),
        sids in vec("[!-~]{1,9}", 1..4),
        payload in bytes(100),
    ) {
        let mut subject = Vec::new();
        write_subject(&topic, b"m/", &mut subject);
        let mut reply = Vec::new();
        if let Some((topic, data)) = &response {
            write_reply(topic, data.as_deref(), b"m/", &mut reply);
        }
        let mut headers = Vec::new();
        build(
            properties.iter().map(|(name, value)| (&name[..], &value[..])),
            content_type.as_deref(),
            &mut headers,
        );
        let message =
            Message { subject: &subject, reply: &reply, headers: &headers, payload: &payload };
        let mut frames = Frames::with_capacity(0);
        for sid in &sids {
            frames.push(&message, sid.as_bytes(), ());
        }
        let (buffer, references) = frames.parts();
        prop_assert!(references.is_empty());
        prop_assert_eq!(frames.size(), buffer.len());
        check_text(&reply);
        let read = read_frames(buffer);
        prop_assert_eq!(read.len(), sids.len());
        for (frame, sid) in read.iter().zip(&sids) {
            prop_assert_eq!(&frame.subject, &subject);
            prop_assert_eq!(&frame.sid, sid.as_bytes());
            prop_assert_eq!(frame.reply.is_some(), response.is_some());
            prop_assert_eq!(frame.reply.as_deref().unwrap_or_default(), &reply);
            prop_assert_eq!(frame.headers.as_deref().unwrap_or_default(), &headers);
            prop_assert_eq!(frame.headers.is_some(), !headers.is_empty());
            prop_assert_eq!(&frame.payload, &payload);
        }
        if !headers.is_empty() {
            let (status, pairs) = read_headers(&headers);
            let status = usize::from(status.is_some());
            let content_type = pairs.len() + status - properties.len();
            prop_assert!(content_type <= 1);
        }
    }

    /// A reply subject from anywhere becomes one field. If it was one field before, it stays
    /// unchanged.
    #[test]
    fn raw_replies_stay_one_field(reply in bytes(60), legal in word()) {
        let mut out = Vec::new();
        write_raw_subject(&reply, &mut out);
        prop_assert!(!String::from_utf8_lossy(&out).contains(char::is_whitespace));
        out.clear();
        // Bytes that are not UTF-8 may by chance be a part of such a character.
        let legal = String::from_utf8_lossy(&legal).replace(char::is_whitespace, "");
        write_raw_subject(legal.as_bytes(), &mut out);
        prop_assert_eq!(out, legal.as_bytes());
    }

    /// Large payloads are referenced at their places, small ones copied.
    #[test]
    fn referenced_payloads_fit_in(
        sizes in vec(
            select(vec![0, 1, REFERENCE_THRESHOLD - 1, REFERENCE_THRESHOLD, 10_000]),
            0..6,
        ),
    ) {
        let payloads: Vec<Vec<u8>> =
            sizes.iter().enumerate().map(|(n, &size)| vec![b'a' + n as u8; size]).collect();
        let mut frames = Frames::with_capacity(16);
        for (index, payload) in payloads.iter().enumerate() {
            let message = Message { subject: b"s", payload, ..Message::default() };
            frames.push(&message, b"1", index);
        }
        let (buffer, references) = frames.parts();
        let expected: Vec<usize> =
            (0..sizes.len()).filter(|&n| sizes[n] >= REFERENCE_THRESHOLD).collect();
        prop_assert_eq!(references.iter().map(|&(_, n)| n).collect::<Vec<_>>(), expected);
        let mut whole = Vec::new();
        let mut start = 0;
        for &(end, index) in references {
            whole.extend_from_slice(&buffer[start..end]);
            whole.extend_from_slice(&payloads[index]);
            start = end;
        }
        whole.extend_from_slice(&buffer[start..]);
        prop_assert_eq!(whole.len(), frames.size());
        let read: Vec<Vec<u8>> = read_frames(&whole).into_iter().map(|f| f.payload).collect();
        prop_assert_eq!(read, payloads);
    }

    /// No client gets a longer line than it has room for. If necessary, the reply subject is left
    /// out.
    #[test]
    fn control_lines_are_bounded(
        subject in prop_oneof![4070..4100_usize, 1..5000_usize],
        reply in prop_oneof![Just(0), 0..30_usize, 0..5000_usize],
        headers in prop_oneof![Just(0), 12..2000_usize],
        payload in prop_oneof![0..12_usize, 0..2000_usize],
        sid in "[1-9][0-9]{0,9}",
    ) {
        let (subject, reply) = (vec![b's'; subject], vec![b'r'; reply]);
        let (headers, payload) = (vec![b'h'; headers], vec![b'p'; payload]);
        let line = |reply: &[u8]| {
            let sizes = [headers.len(), headers.len() + payload.len()].map(|n| n.to_string());
            let sizes = if headers.is_empty() { &sizes[1..] } else { &sizes[..] };
            let mut fields = vec![String::from_utf8_lossy(&subject).into_owned(), sid.clone()];
            if !reply.is_empty() {
                fields.push(String::from_utf8_lossy(reply).into_owned());
            }
            fields.extend_from_slice(sizes);
            fields.join(" ").len()
        };
        let message =
            Message { subject: &subject, reply: &reply, headers: &headers, payload: &payload };
        let mut frames = Frames::with_capacity(0);
        frames.push(&message, sid.as_bytes(), ());
        let read = read_frames(frames.parts().0);
        if line(b"") > MAX_CONTROL_LINE {
            prop_assert!(read.is_empty());
            prop_assert_eq!(frames.too_long(), 1);
        } else {
            let fits = line(&reply) <= MAX_CONTROL_LINE && !reply.is_empty();
            prop_assert_eq!(read.len(), 1);
            prop_assert_eq!(&read[0].reply, &fits.then(|| reply.clone()));
            prop_assert_eq!(&read[0].payload, &payload);
            prop_assert_eq!(frames.too_long(), 0);
        }
    }

    /// The properties of a block hold only what MQTT can hold, and `exact` is right.
    #[test]
    fn header_blocks(
        lines in vec(
            prop_oneof![
                "[A-Za-z-]{1,8}: [ -~]{0,12}".prop_map(String::into_bytes),
                "(Content-Type|content-type): ?[a-z/]{0,9}".prop_map(String::into_bytes),
                "Nats-Status: [0-9]{2,4}".prop_map(String::into_bytes),
                bytes(20),
            ],
            0..6,
        ),
        status in select(vec!["", " 503", " 503 No Responders", " 50", "\t100 x", " x"]),
        end in select(vec!["\r\n", "", "\r\n\r\n"]),
    ) {
        let mut block = format!("NATS/1.0{status}\r\n").into_bytes();
        for line in &lines {
            block.extend_from_slice(line);
            block.extend_from_slice(b"\r\n");
        }
        block.extend_from_slice(end.as_bytes());
        let properties = Properties::of(&block);
        let mut again = Vec::new();
        build(
            properties.pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())),
            properties.content_type.map(str::as_bytes),
            &mut again,
        );
        prop_assert_eq!(again == block, properties.exact);
        for (name, value) in &properties.pairs {
            prop_assert!(!name.contains('\0') && !value.contains('\0'));
        }
        if !again.is_empty() {
            read_headers(&again);
        }
    }

    #[test]
    fn header_blocks_never_panic(block in bytes(100)) {
        let _ = Properties::of(&block);
    }
}
