//! Header blocks and MQTT 5 properties (docs/protocol.md section 6).

#![allow(clippy::restriction)]

mod common;

use common::read_headers;
use nats_protocol::headers::{MAX_BLOCK, MAX_HEADERS, Properties, build, build_ascii};

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn built(pairs: &[(&[u8], &[u8])], content_type: Option<&[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    build(pairs.iter().copied(), content_type, &mut out);
    out
}

fn of_text(pairs: Pairs<'_>, content_type: Option<&str>) -> String {
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(n, v)| (n.as_bytes(), v.as_bytes()))
        .collect();
    String::from_utf8(built(&pairs, content_type.map(str::as_bytes))).expect("UTF-8")
}

/// Blocks that come back from MQTT byte for byte.
#[test]
fn exact_blocks() {
    for (block, pairs, content_type) in [
        ("NATS/1.0\r\nA: b\r\n\r\n", &[("A", "b")][..], None),
        (
            "NATS/1.0\r\na: 1\r\nA: 2\r\na: 1\r\n\r\n",
            &[("a", "1"), ("A", "2"), ("a", "1")],
            None,
        ),
        ("NATS/1.0\r\nA: \r\n\r\n", &[("A", "")], None),
        ("NATS/1.0\r\nA: b: c  d\r\n\r\n", &[("A", "b: c  d")], None),
        ("NATS/1.0\r\nA: 100%25\r\n\r\n", &[("A", "100%25")], None),
        (
            "NATS/1.0\r\nA: 20 \u{b0}C\r\n\r\n",
            &[("A", "20 \u{b0}C")],
            None,
        ),
        (
            "NATS/1.0\r\nX: y\r\nContent-Type: text/plain\r\ncontent-type: x\r\n\r\n",
            &[
                ("X", "y"),
                ("Content-Type", "text/plain"),
                ("content-type", "x"),
            ],
            Some("text/plain"),
        ),
        (
            "NATS/1.0\r\ncontent-type: x\r\n\r\n",
            &[("content-type", "x")],
            Some("x"),
        ),
        (
            "NATS/1.0\r\nContent-Type: \r\n\r\n",
            &[("Content-Type", "")],
            Some(""),
        ),
        ("NATS/1.0 503\r\n\r\n", &[("Nats-Status", "503")], None),
        (
            "NATS/1.0 100 Idle  Heartbeat\r\nNats-Last-Consumer: 7\r\n\r\n",
            &[
                ("Nats-Status", "100 Idle  Heartbeat"),
                ("Nats-Last-Consumer", "7"),
            ],
            None,
        ),
        (
            "NATS/1.0 503\r\nNats-Status: 404\r\n\r\n",
            &[("Nats-Status", "503"), ("Nats-Status", "404")],
            None,
        ),
    ] {
        let properties = Properties::of(block.as_bytes());
        assert_eq!(properties.pairs, pairs, "{block:?}");
        assert_eq!(properties.content_type, content_type, "{block:?}");
        assert!(properties.exact, "{block:?}");
        assert_eq!(of_text(pairs, content_type), block);
    }
}

/// Blocks of which MQTT subscribers see a part, but which must also be carried themselves.
#[test]
fn inexact_blocks() {
    for (block, pairs) in [
        // The form that Java writes.
        ("NATS/1.0\r\nA:b\r\n\r\n", &[("A", "b")][..]),
        ("NATS/1.0\r\nA:\r\n\r\n", &[("A", "")]),
        ("NATS/1.0\r\nA: \t b \r\n\r\n", &[("A", "b")]),
        ("NATS/1.0\r\n\r\n", &[]),
        ("NATS/1.0 \r\nA: b\r\n\r\n", &[("A", "b")]),
        ("NATS/1.0  503\r\n\r\n", &[("Nats-Status", "503")]),
        ("NATS/1.0503\r\n\r\n", &[("Nats-Status", "503")]),
        ("NATS/1.0 50\r\nA: b\r\n\r\n", &[("A", "b")]),
        ("NATS/1.0 5033\r\nA: b\r\n\r\n", &[("A", "b")]),
        ("NATS/1.0 099\r\nA: b\r\n\r\n", &[("A", "b")]),
        ("NATS/1.0 OK\r\nA: b\r\n\r\n", &[("A", "b")]),
        // This would come back as a status line.
        (
            "NATS/1.0\r\nNats-Status: 503\r\n\r\n",
            &[("Nats-Status", "503")],
        ),
        (
            "NATS/1.0\r\nA: b\r\n folded\r\nC: d\r\n\r\n",
            &[("A", "b"), ("C", "d")],
        ),
        ("NATS/1.0\r\nno colon\r\nC: d\r\n\r\n", &[("C", "d")]),
        ("NATS/1.0\r\n: d\r\n\r\n", &[("", "d")]),
        ("NATS/1.0\r\nA B: d\r\n\r\n", &[("A B", "d")]),
        ("NATS/1.0\r\nA: \u{a0}b\r\n\r\n", &[("A", "\u{a0}b")]),
        ("NATS/1.0\r\nA: b\u{2028}c\r\n\r\n", &[("A", "b\u{2028}c")]),
        ("NATS/1.0\r\nA: b\tc\r\n\r\n", &[("A", "b\tc")]),
        ("NATS/1.0\r\nA: b\nC: d\r\n\r\n", &[("A", "b\nC: d")]),
        ("NATS/1.0\r\nA: b\r\n\r\nC: d\r\n\r\n", &[("A", "b")]),
        ("NATS/1.0\r\nA: b\r\n", &[("A", "b")]),
        ("NATS/1.0\r\nA: b", &[("A", "b")]),
        ("NATS/1.0", &[]),
        ("NATS/1.0\r\nA: b\0\r\nC: d\r\n\r\n", &[("C", "d")]),
        ("NATS/1.0\r\nA\0: b\r\nC: d\r\n\r\n", &[("C", "d")]),
        ("", &[]),
        ("garbage", &[]),
        ("NATS/2.0\r\nA: b\r\n\r\n", &[]),
    ] {
        let properties = Properties::of(block.as_bytes());
        assert_eq!(properties.pairs, pairs, "{block:?}");
        assert!(!properties.exact, "{block:?}");
    }
    let properties = Properties::of(b"NATS/1.0\r\nA: \xFF\r\nC\xFF: d\r\nE: f\r\n\r\n");
    assert_eq!(
        (properties.pairs, properties.exact),
        (vec![("E", "f")], false)
    );
}

#[test]
fn strings_that_are_too_long_for_mqtt() {
    for (size, kept) in [(65_400, true), (65_535, false), (65_536, false)] {
        let block = format!("NATS/1.0\r\nA: b\r\nC: {}\r\n\r\n", "x".repeat(size));
        let properties = Properties::of(block.as_bytes());
        assert_eq!(properties.exact, kept, "{size}");
        assert_eq!(properties.pairs.first(), Some(&("A", "b")));
    }
}

#[test]
fn headers_are_bounded() {
    for (headers, exact) in [
        (MAX_HEADERS, true),
        (MAX_HEADERS + 1, false),
        (100_000, false),
    ] {
        let block = format!("NATS/1.0\r\n{}\r\n", "A: b\r\n".repeat(headers));
        let properties = Properties::of(block.as_bytes());
        assert_eq!(
            (properties.pairs.len(), properties.exact),
            (MAX_HEADERS, exact),
            "{headers}"
        );
    }
}

#[test]
fn nothing_makes_no_block() {
    assert_eq!(of_text(&[], None), "");
    assert_eq!(of_text(&[], Some("")), "");
    assert_eq!(
        of_text(&[], Some("a/b")),
        "NATS/1.0\r\nContent-Type: a/b\r\n\r\n"
    );
}

#[test]
fn content_type_is_not_repeated() {
    assert_eq!(
        of_text(&[("A", "b")], Some("x")),
        "NATS/1.0\r\nA: b\r\nContent-Type: x\r\n\r\n"
    );
    assert_eq!(
        of_text(&[("CONTENT-type", "y"), ("A", "b")], Some("x")),
        "NATS/1.0\r\nCONTENT-type: y\r\nA: b\r\n\r\n"
    );
}

#[test]
fn status_property() {
    for (value, first) in [
        ("503", "NATS/1.0 503\r\n"),
        ("503 No Responders", "NATS/1.0 503 No Responders\r\n"),
        ("503 a\r\nB: c", "NATS/1.0 503 a%0D%0AB: c\r\n"),
        ("503 \u{e9}", "NATS/1.0 503 \u{e9}\r\n"),
        ("999", "NATS/1.0 999\r\n"),
        ("099", "NATS/1.0\r\nNats-Status: 099\r\n"),
        ("50", "NATS/1.0\r\nNats-Status: 50\r\n"),
        ("5035", "NATS/1.0\r\nNats-Status: 5035\r\n"),
        ("503\tx", "NATS/1.0\r\nNats-Status: 503%09x\r\n"),
        ("503 ", "NATS/1.0\r\nNats-Status: 503%20\r\n"),
        (" 503", "NATS/1.0\r\nNats-Status: %20503\r\n"),
        ("", "NATS/1.0\r\nNats-Status: \r\n"),
    ] {
        assert_eq!(
            of_text(&[("Nats-Status", value)], None),
            format!("{first}\r\n"),
            "{value:?}"
        );
    }
    // This is done only for the first property, under exactly this name.
    for pairs in [
        [("A", "b"), ("Nats-Status", "503")],
        [("nats-status", "503"), ("A", "b")],
    ] {
        assert!(of_text(&pairs, None).starts_with("NATS/1.0\r\n"));
    }
}

#[test]
fn dangerous_text_is_encoded() {
    for (name, value, line) in [
        ("A", "b\r\nC: d", "A: b%0D%0AC: d"),
        ("A", "b\nC: d", "A: b%0AC: d"),
        ("A", " b ", "A: %20b%20"),
        ("A", "\t \u{7f}", "A: %09%20%7F"),
        ("A", "  ", "A: %20%20"),
        ("A", "a b\tc", "A: a b%09c"),
        ("A", "Z\u{fc}rich \u{1F600}", "A: Z\u{fc}rich \u{1F600}"),
        // No client may end a line or trim at these characters.
        (
            "A",
            "a\u{85}\u{2028}\u{2029}\u{9f}\u{7f}\nb\u{e9}",
            "A: a%C2%85%E2%80%A8%E2%80%A9%C2%9F%7F%0Ab\u{e9}",
        ),
        (
            "A",
            "\u{feff}\u{a0} \u{e9}\u{a0}\u{e9}\t\u{3000}",
            "A: %EF%BB%BF%C2%A0%20\u{e9}\u{a0}\u{e9}%09%E3%80%80",
        ),
        ("A", "\u{a0}\u{3000}", "A: %C2%A0%E3%80%80"),
        ("A", "\0", "A: %00"),
        ("A", "%0D%zz", "A: %0D%zz"),
        ("", "b", "%: b"),
        ("A B", "c", "A%20B: c"),
        ("A:B", "c", "A%3AB: c"),
        (" A", "c", "%20A: c"),
        ("A\r\nB", "c", "A%0D%0AB: c"),
        ("\u{e9}", "c", "%C3%A9: c"),
        ("A%", "c", "A%: c"),
    ] {
        let block = of_text(&[(name, value)], None);
        assert_eq!(
            block,
            format!("NATS/1.0\r\n{line}\r\n\r\n"),
            "{name:?} {value:?}"
        );
    }
    assert_eq!(
        built(&[(b"\xFF", b"\xFE")], Some(b"\xFD\r\n")),
        b"NATS/1.0\r\n%FF: %FE\r\nContent-Type: %FD%0D%0A\r\n\r\n"
    );
}

#[test]
fn blocks_are_bounded() {
    let around = "NATS/1.0\r\nA: \r\n\r\n".len();
    for (size, fits) in [
        (MAX_BLOCK - around, true),
        (MAX_BLOCK - around + 1, false),
        (10 * MAX_BLOCK, false),
    ] {
        let value = "x".repeat(size);
        let block = of_text(&[("A", &value), ("B", "c")], None);
        let (_, pairs) = read_headers(block.as_bytes());
        let expected = if fits { "A" } else { "B" };
        assert_eq!(
            pairs.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            [expected],
            "{size}"
        );
    }
    // Encoded text counts in its encoded form.
    let value = "\r".repeat(MAX_BLOCK / 2);
    assert_eq!(of_text(&[("A", &value)], None), "NATS/1.0\r\n\r\n");
    let status = format!("503 {}", "\u{e9}".repeat(MAX_BLOCK / 2));
    assert_eq!(
        of_text(&[("Nats-Status", &status)], None),
        "NATS/1.0\r\n\r\n"
    );
    let many = vec![("Name", "value"); 100_000];
    let block = of_text(&many, None);
    assert!(block.len() <= MAX_BLOCK && block.len() > MAX_BLOCK - 20);
    read_headers(block.as_bytes());
}

/// For jnats, which needs ASCII.
#[test]
fn values_in_ascii() {
    let pairs: [(&[u8], &[u8]); 3] = [
        ("\u{e9}".as_bytes(), "Z\u{fc}rich".as_bytes()),
        (b"A", b" plain "),
        (b"B", b"\xFF\xC3"),
    ];
    let mut out = Vec::new();
    build_ascii(pairs.into_iter(), Some("\u{b0}C".as_bytes()), &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "NATS/1.0\r\n%C3%A9: Z%C3%BCrich\r\nA: %20plain%20\r\nB: %FF%C3\r\nContent-Type: %C2%B0C\r\n\r\n"
    );
    let mut out = Vec::new();
    build_ascii(
        [(&b"Nats-Status"[..], "503 \u{e9}".as_bytes())].into_iter(),
        None,
        &mut out,
    );
    assert_eq!(out, b"NATS/1.0 503 %C3%A9\r\n\r\n");
}
