//! The rules of docs/protocol.md section 1, one by one.

#![allow(clippy::restriction)]

mod common;

use common::{drain, error, one, small};
use nats_protocol::{
    DecodeError, MAX_IGNORED_BYTES, Op, Phase, Publish, Settings, Step, Subscribe, decode,
};

fn publish<'a>(
    subject: &'a str,
    reply: Option<&'a str>,
    headers: Option<&'a str>,
    payload: &'a str,
) -> Op<'a> {
    Op::Pub(Publish {
        subject: subject.as_bytes(),
        reply: reply.map(str::as_bytes),
        headers: headers.map(str::as_bytes),
        payload: payload.as_bytes(),
    })
}

fn subscribe<'a>(subject: &'a str, queue: Option<&'a str>, sid: &'a str) -> Op<'a> {
    Op::Sub(Subscribe {
        subject: subject.as_bytes(),
        queue: queue.map(str::as_bytes),
        sid: sid.as_bytes(),
    })
}

#[test]
fn any_letter_case() {
    for name in ["PING", "ping", "PiNg"] {
        assert_eq!(one(format!("{name}\r\n").as_bytes()), Op::Ping);
    }
    assert_eq!(one(b"pong\r\n"), Op::Pong);
    assert_eq!(one(b"+ok\r\n"), Op::Ignored);
    assert_eq!(one(b"sUb a 1\r\n"), subscribe("a", None, "1"));
    assert_eq!(one(b"unSUB 1\r\n"), Op::Unsub { sid: b"1", max: 0 });
    assert_eq!(one(b"pub a 1\r\nx\r\n"), publish("a", None, None, "x"));
    assert_eq!(
        one(b"hpub a 1 2\r\nxy\r\n"),
        publish("a", None, Some("x"), "y")
    );
    assert!(matches!(one(b"connect {}\r\n"), Op::Connect(_)));
    assert_eq!(one(b"info {}\r\n"), Op::Ignored);
    assert_eq!(error(b"-err x\r\n", &small()), DecodeError::ClientError);
}

/// nats.py depends on this: it writes two spaces if the optional argument is not given.
#[test]
fn blanks_are_runs_of_spaces_and_tabs() {
    assert_eq!(one(b"SUB a  1\r\n"), subscribe("a", None, "1"));
    assert_eq!(one(b"SUB \t a\tq \t1 \r\n"), subscribe("a", Some("q"), "1"));
    assert_eq!(
        one(b"PUB a  5\r\nhello\r\n"),
        publish("a", None, None, "hello")
    );
    assert_eq!(
        one(b"PUB\ta\tr\t5\t\r\nhello\r\n"),
        publish("a", Some("r"), None, "hello")
    );
    assert_eq!(
        one(b"PUB a r  5\r\nhello\r\n"),
        publish("a", Some("r"), None, "hello")
    );
    assert_eq!(
        one(b"HPUB a  1 2\r\nxy\r\n"),
        publish("a", None, Some("x"), "y")
    );
    assert_eq!(
        one(b"HPUB  a  r\t1\t 2 \r\nxy\r\n"),
        publish("a", Some("r"), Some("x"), "y")
    );
    assert_eq!(one(b"UNSUB 1 \r\n"), Op::Unsub { sid: b"1", max: 0 });
    assert_eq!(one(b"UNSUB  1\t 7 \r\n"), Op::Unsub { sid: b"1", max: 7 });
}

#[test]
fn line_ends() {
    assert_eq!(one(b"PING\n"), Op::Ping);
    assert_eq!(one(b"SUB a 1\n"), subscribe("a", None, "1"));
    assert_eq!(one(b"PUB a 1\nx\r\n"), publish("a", None, None, "x"));
    assert_eq!(one(b"PUB a b 1\nx\r\n"), publish("a", Some("b"), None, "x"));
    // A second CR is part of the size, and of no sid.
    assert_eq!(error(b"PUB a 1\r\r\nx\r\n", &small()), DecodeError::BadSize);
    assert_eq!(one(b"SUB a 1\r\r\n"), subscribe("a", None, "1"));
    assert_eq!(one(b"SUB a 1\r2\r\n"), subscribe("a", Some("1"), "2"));
}

#[test]
fn what_follows_ping_is_skipped() {
    for line in ["PING x y\r\n", "PINGxyz\r\n", "ping\t\n", "PING\rx\n"] {
        assert_eq!(one(line.as_bytes()), Op::Ping, "{line:?}");
    }
    assert_eq!(one(b"PONGS\n"), Op::Pong);
    assert_eq!(one(b"+OKAY then\r\n"), Op::Ignored);
}

#[test]
fn the_first_wrong_byte_of_a_name_is_an_error() {
    for line in [
        "PX", "PUX", "PUBX", "PIX", "PINX", "POX", "PONX", "SX", "SUX", "SUBX", "UX", "UNX",
        "UNSX", "UNSUX", "UNSUBX", "HX", "HPX", "HPUX", "HPUBX", "CX", "CONNECX", "IX", "INFX",
        "+X", "+OX", "-X", "-EX", "-ERX", "-ERRX", "HM", // A blank has to follow.
        "PUB\r", "SUB\r", "UNSUB\r", "HPUB\r", "-ERR\r", "PUB\n", "SUB\n",
    ] {
        let (beginning, _) = line.as_bytes().split_at(line.len() - 1);
        assert_eq!(
            decode(beginning, &small()),
            Ok(Step::Need(line.len())),
            "{line:?}"
        );
        for more in ["", "\n", " a 1\r\n"] {
            let input = format!("{line}{more}");
            let found = error(input.as_bytes(), &small());
            assert_eq!(found, DecodeError::UnknownOperation, "{input:?}");
        }
    }
    let first = b"PpHhSsUuCcIi+-";
    for byte in (0..=255).filter(|byte| !first.contains(byte)) {
        for input in [
            &[byte][..],
            &[byte, b'\n'],
            &[byte, b'I', b'N', b'G', b'\n'],
        ] {
            assert_eq!(
                error(input, &small()),
                DecodeError::UnknownOperation,
                "{byte}"
            );
        }
    }
    for line in [
        "MSG a 1 0\r\n\r\n",
        "HMSG a 1 0 0\r\n\r\n",
        "RS+ a\r\n",
        "LS+ a\r\n",
        "A+ a\r\n",
    ] {
        assert_eq!(
            error(line.as_bytes(), &small()),
            DecodeError::UnknownOperation,
            "{line:?}"
        );
    }
}

#[test]
fn blanks_after_connect_and_info_are_optional() {
    assert!(matches!(one(b"CONNECT{}\r\n"), Op::Connect(_)));
    assert!(matches!(one(b"CONNECT \t {} \r\n"), Op::Connect(_)));
    assert_eq!(one(b"INFO{}\r\n"), Op::Ignored);
    assert_eq!(one(b"INFO null\r\n"), Op::Ignored);
    for bad in [
        "INFO\r\n",
        "INFO x\r\n",
        "INFO []\r\n",
        "INFO {\r\n",
        "INFO {} x\r\n",
        "INFO {\"a\u{1}\":1}\r\n",
    ] {
        assert_eq!(
            error(bad.as_bytes(), &small()),
            DecodeError::BadInfo,
            "{bad:?}"
        );
    }
    for bad in ["CONNECT\r\n", "CONNECT \r\n", "CONNECTX\r\n"] {
        assert_eq!(
            error(bad.as_bytes(), &small()),
            DecodeError::BadConnect,
            "{bad:?}"
        );
    }
}

#[test]
fn argument_counts() {
    for line in [
        "PUB \r\n",
        "PUB a\r\n",
        "PUB  1 \r\n",
        "PUB a b c 1\r\n",
        "PUB a  b c x\r\n",
        "HPUB \r\n",
        "HPUB a\r\n",
        "HPUB 1 2\r\n",
        "HPUB a b c 1 2\r\n",
        "HPUB a\tb c 1 2\r\n",
        "SUB \r\n",
        "SUB a\r\n",
        "SUB a b c d\r\n",
        "UNSUB \r\n",
        "UNSUB 1 2 3\r\n",
        "UNSUB a b c d\r\n",
    ] {
        assert_eq!(
            error(line.as_bytes(), &small()),
            DecodeError::ArgumentCount,
            "{line:?}"
        );
    }
    // Numbers are names like others.
    assert_eq!(
        one(b"PUB 1 2 1\r\nx\r\n"),
        publish("1", Some("2"), None, "x")
    );
    assert_eq!(one(b"SUB 1 2 3\r\n"), subscribe("1", Some("2"), "3"));
    assert_eq!(
        one(b"HPUB 1 2 0 1\r\nx\r\n"),
        publish("1", Some("2"), None, "x")
    );
}

#[test]
fn sids_and_names_are_any_bytes() {
    let digits = "7".repeat(300);
    assert_eq!(one(b"SUB a 2>&1\r\n"), subscribe("a", None, "2>&1"));
    assert_eq!(
        one(format!("SUB a {digits}\r\n").as_bytes()),
        subscribe("a", None, &digits)
    );
    let Op::Pub(message) = one(b"PUB \x01\xFF.\x7F \x00/ 1\r\nx\r\n") else {
        panic!("no publish");
    };
    assert_eq!(message.subject, b"\x01\xFF.\x7F");
    assert_eq!(message.reply, Some(&b"\x00/"[..]));
    // nats-server accepts a lone CR as a byte of a published subject.
    let Op::Pub(message) = one(b"PUB a\rb 1\r\nx\r\n") else {
        panic!("no publish");
    };
    assert_eq!(message.subject, b"a\rb");
}

#[test]
fn sizes_are_one_to_nine_digits() {
    let large = Settings {
        max_payload: 999_999_999,
        ..Settings::default()
    };
    for size in [
        "-1",
        "+1",
        "0x1",
        "1.0",
        "1e1",
        "x",
        "1x",
        "\u{661}",
        "0000000001",
        "1234567890",
    ] {
        for line in [
            format!("PUB a {size}\r\n"),
            format!("PUB a b {size}\r\n"),
            format!("PUB a\t{size}\r\n"),
            format!("HPUB a 0 {size}\r\n"),
            format!("HPUB a {size} 5\r\n"),
        ] {
            assert_eq!(
                error(line.as_bytes(), &large),
                DecodeError::BadSize,
                "{line:?}"
            );
        }
    }
    for (size, bytes) in [
        ("0", 0),
        ("5", 5),
        ("005", 5),
        ("000000005", 5),
        ("999999999", 999_999_999),
    ] {
        let line = format!("PUB a {size}\r\n");
        let need = line.len() + bytes + 1;
        assert_eq!(
            decode(line.as_bytes(), &large),
            Ok(Step::Need(need)),
            "{line:?}"
        );
    }
    assert_eq!(one(b"PUB a 0\r\n\r\n"), publish("a", None, None, ""));
}

#[test]
fn payload_limit_at_the_control_line() {
    let settings = small();
    for (line, allowed) in [
        ("PUB a 0\r\n", true),
        ("PUB a 99\r\n", true),
        ("PUB a 100\r\n", true),
        ("PUB a 101\r\n", false),
        ("PUB a 999999999\r\n", false),
        ("PUB  a 101\r\n", false),
        ("HPUB a 12 100\r\n", true),
        ("HPUB a 100 100\r\n", true),
        ("HPUB a 12 101\r\n", false),
    ] {
        match decode(line.as_bytes(), &settings) {
            Ok(Step::Need(_)) if allowed => {}
            Err(DecodeError::PayloadTooLarge) if !allowed => {}
            other => panic!("{line:?}: {other:?}"),
        }
    }
    let nothing = Settings {
        max_payload: 0,
        ..settings
    };
    assert!(matches!(
        decode(b"PUB a 0\r\n\r\n", &nothing),
        Ok(Step::Op { .. })
    ));
    assert_eq!(
        error(b"PUB a 1\r\n", &nothing),
        DecodeError::PayloadTooLarge
    );
}

#[test]
fn payload_terminator() {
    for input in [
        "PUB a 2\r\nhi\n",
        "PUB a 2\r\nhi\n\r\n",
        "PUB a 2\r\nhi\rx",
        "PUB a 2\r\nhi\r\r\n",
        "PUB a 2\r\nhello\r\n",
        "PUB a 0\r\nx",
        "PUB a 0\n\n",
        "HPUB a 1 2\r\nhi ",
    ] {
        assert_eq!(
            error(input.as_bytes(), &small()),
            DecodeError::PayloadTerminator {
                valid_subject: true
            },
            "{input:?}"
        );
    }
    assert_eq!(
        error(b"PUB a.* 0\r\nx", &small()),
        DecodeError::PayloadTerminator {
            valid_subject: false
        }
    );
    // If a payload is too short, the following bytes count as part of it.
    assert_eq!(
        one(b"PUB a 6\r\nhi\r\nhi\r\n"),
        publish("a", None, None, "hi\r\nhi")
    );
}

#[test]
fn headers() {
    assert_eq!(
        one(b"HPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"),
        publish("a", None, Some("NATS/1.0\r\n\r\n"), "hi")
    );
    // It is delivered as a plain MSG.
    assert_eq!(one(b"HPUB a 0 2\r\nhi\r\n"), publish("a", None, None, "hi"));
    assert_eq!(one(b"HPUB a 0 0\r\n\r\n"), publish("a", None, None, ""));
    assert_eq!(
        one(b"HPUB a 2 2\r\nhi\r\n"),
        publish("a", None, Some("hi"), "")
    );
    assert_eq!(
        error(b"HPUB a 3 2\r\n", &small()),
        DecodeError::HeaderSizeBeyondTotal
    );
    assert_eq!(
        error(b"HPUB a 1 0\r\n", &small()),
        DecodeError::HeaderSizeBeyondTotal
    );
    let without = Settings {
        headers: false,
        ..small()
    };
    assert_eq!(
        error(b"HPUB a 1 2\r\n", &without),
        DecodeError::HeadersNotSupported
    );
    assert_eq!(
        error(b"HPUB x\r\n", &without),
        DecodeError::HeadersNotSupported
    );
    assert_eq!(decode(b"HPUB a 1 2\r", &without), Ok(Step::Need(12)));
}

#[test]
fn unsub_max() {
    for (text, max) in [
        ("1", 1),
        ("0", 0),
        ("007", 7),
        ("999999999", 999_999_999),
        ("1000000000", 0),
        ("-1", 0),
        ("x", 0),
        ("1x", 0),
    ] {
        let line = format!("UNSUB s {text}\r\n");
        assert_eq!(
            one(line.as_bytes()),
            Op::Unsub { sid: b"s", max },
            "{line:?}"
        );
    }
}

/// The arguments of a line with this many bytes between the blanks after the name and the line
/// end.
fn lines(arguments: usize) -> Vec<String> {
    let fill = |front: &str, back: &str| {
        let middle = arguments - front.len() - back.len();
        format!("{front}{}{back}", "x".repeat(middle))
    };
    vec![
        format!("PUB {}", fill("", " 1")),
        format!("PUB \t  {}", fill("a ", " 1")),
        format!("PUB {}", fill("", "  1 ")),
        format!("HPUB {}", fill("", " 0 1")),
        format!("SUB {}", fill("a ", "")),
        format!("UNSUB {}", fill("", "")),
        format!("CONNECT {}", fill("{\"name\":\"", "\"}")),
        format!("CONNECT{}", fill("{\"name\":\"", "\"}")),
        format!("INFO {}", fill("{\"name\":\"", "\"}")),
    ]
}

#[test]
fn control_line_limit() {
    let limit = small().max_control_line;
    for line in lines(limit) {
        for end in ["\r\n", "\n"] {
            let input = format!("{line}{end}");
            let outcome = decode(input.as_bytes(), &small());
            assert!(outcome.is_ok(), "{input:?}: {outcome:?}");
        }
        for partial in [line.clone(), format!("{line}\r")] {
            let need = Ok(Step::Need(partial.len() + 1));
            assert_eq!(decode(partial.as_bytes(), &small()), need, "{partial:?}");
        }
    }
    for line in lines(limit + 1) {
        for end in ["\r\n", "\n", "\r", ""] {
            let input = format!("{line}{end}");
            let found = error(input.as_bytes(), &small());
            assert_eq!(found, DecodeError::ControlLineTooLong, "{input:?}");
        }
    }
    let without_end = format!("-ERR {}", "x".repeat(limit + 1));
    assert_eq!(
        error(without_end.as_bytes(), &small()),
        DecodeError::ControlLineTooLong
    );
    // This error comes before other errors in the line.
    let wrong = format!("PUB {} x\r\n", "a ".repeat(limit));
    assert_eq!(
        error(wrong.as_bytes(), &small()),
        DecodeError::ControlLineTooLong
    );
}

#[test]
fn ignored_bytes_are_bounded() {
    // The name and the blanks after it do not count.
    let input = format!("PUB {}a 1\r\nx\r\n", " ".repeat(9000));
    assert_eq!(one(input.as_bytes()), publish("a", None, None, "x"));
    let input = format!("PING{}\r\n", "x".repeat(9000));
    assert_eq!(one(input.as_bytes()), Op::Ping);
    for name in ["PING", "PONG", "+OK"] {
        let most = format!("{name}{}", " ".repeat(MAX_IGNORED_BYTES - 1));
        assert_eq!(
            decode(most.as_bytes(), &small()),
            Ok(Step::Need(most.len() + 1))
        );
        assert!(matches!(
            decode(format!("{most}\n").as_bytes(), &small()),
            Ok(Step::Op { .. })
        ));
        for more in [" ", " \n"] {
            let input = format!("{most}{more}");
            assert_eq!(
                error(input.as_bytes(), &small()),
                DecodeError::TooManyIgnoredBytes
            );
        }
    }
    for name in ["PUB", "HPUB", "SUB", "UNSUB", "CONNECT", "INFO", "-ERR"] {
        let most = format!("{name}{}", "\t".repeat(MAX_IGNORED_BYTES));
        assert_eq!(
            decode(most.as_bytes(), &small()),
            Ok(Step::Need(most.len() + 1))
        );
        let input = format!("{most} ");
        assert_eq!(
            error(input.as_bytes(), &small()),
            DecodeError::TooManyIgnoredBytes
        );
    }
}

#[test]
fn only_connect_before_login() {
    let settings = Settings {
        phase: Phase::ConnectOnly,
        ..small()
    };
    for byte in 0..=255_u8 {
        let input = [byte];
        let outcome = decode(&input, &settings);
        if byte.eq_ignore_ascii_case(&b'c') {
            assert_eq!(outcome, Ok(Step::Need(2)));
        } else {
            assert_eq!(outcome, Err(DecodeError::ConnectExpected));
        }
    }
    assert_eq!(error(b"CX", &settings), DecodeError::UnknownOperation);
    assert_eq!(decode(b"", &settings), Ok(Step::Need(1)));
    let (ops, end) = drain(b"connect {}\r\nPING\r\n", &settings);
    assert_eq!((ops.len(), end), (1, Err(DecodeError::ConnectExpected)));
}
