//! Subjects and topics are two spellings of the same names. This is shown for all names over the
//! bytes that matter, up to the lengths that fit into a test run.

#![allow(clippy::restriction)]

use nats_protocol::subject::{plain_topic, write_subject, write_topic};

fn topic(subject: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    assert!(
        write_topic(subject, b"", &mut out),
        "no topic for {}",
        subject.escape_ascii()
    );
    out
}

fn subject(topic: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_subject(topic, b"", &mut out);
    out
}

/// Calls `each` with all sequences of 1 to `most` of the atoms, joined.
fn sequences(atoms: &[&str], most: usize, each: &mut dyn FnMut(&[u8])) {
    fn extend(atoms: &[&str], left: usize, text: &mut Vec<u8>, each: &mut dyn FnMut(&[u8])) {
        for atom in atoms {
            let before = text.len();
            text.extend_from_slice(atom.as_bytes());
            each(text);
            if left > 1 {
                extend(atoms, left - 1, text, each);
            }
            text.truncate(before);
        }
    }
    extend(atoms, most, &mut Vec::new(), each);
}

fn is_legal_token(token: &[u8]) -> bool {
    !token.is_empty()
        && std::str::from_utf8(token).is_ok_and(|text| !text.contains(char::is_whitespace))
        && token
            .iter()
            .all(|&byte| byte > b' ' && byte != 0x7F && byte != b'.')
}

fn is_legal_level(level: &[u8]) -> bool {
    level.iter().all(|byte| !b"/+#\0".contains(byte))
}

/// A token gives a legal level, and the level gives that token.
fn check_token(token: &[u8]) {
    let level = topic(token);
    assert!(
        is_legal_level(&level),
        "{} -> {}",
        token.escape_ascii(),
        level.escape_ascii()
    );
    let again = subject(&level);
    assert!(
        again == token,
        "{} -> {} -> {}",
        token.escape_ascii(),
        level.escape_ascii(),
        again.escape_ascii()
    );
    let mut plain = vec![0; token.len()];
    if plain_topic(token, &mut plain) {
        assert_eq!(plain, level);
    }
}

/// A level gives a legal token, and the token gives that level.
fn check_level(level: &[u8]) {
    let token = subject(level);
    assert!(
        is_legal_token(&token),
        "{} -> {}",
        level.escape_ascii(),
        token.escape_ascii()
    );
    let again = topic(&token);
    assert!(
        again == level,
        "{} -> {} -> {}",
        level.escape_ascii(),
        token.escape_ascii(),
        again.escape_ascii()
    );
}

/// The number of atoms in a row. `cargo test --release` goes further.
const ATOMS: usize = if cfg!(debug_assertions) { 4 } else { 6 };

/// Every character of the codes of escapes, besides those that are special by themselves.
const CODE_CHARACTERS: &[&str] = &["%", "2", "5", "F", "B", "3", "A", "E", "0", "a"];

#[test]
fn all_short_tokens() {
    let atoms = [CODE_CHARACTERS, &["/", "+", "#", "*", ">"]].concat();
    sequences(&atoms, ATOMS, &mut check_token);
}

#[test]
fn all_short_levels() {
    let atoms = [CODE_CHARACTERS, &[".", "*", ">", " ", "\x7F"]].concat();
    check_level(b"");
    sequences(&atoms, ATOMS, &mut check_level);
}

/// Longer names, made of whole escapes and of parts that change their meaning.
const ESCAPES: &[&str] = &[
    "%2F", "%252F", "%25252F", "%2B", "%2523", "%2A", "%253E", "%20", "%2520", "%25", "25", "a",
];

#[test]
fn all_tokens_of_escapes() {
    let atoms = [ESCAPES, &["/", "//", "+", "*"]].concat();
    sequences(&atoms, ATOMS, &mut check_token);
}

#[test]
fn all_levels_of_escapes() {
    let atoms = [ESCAPES, &[".", "*", " ", "\x01"]].concat();
    sequences(&atoms, ATOMS, &mut check_level);
}

/// White space beyond ASCII, whole and in parts, and characters that are no white space (`%C2%A1`,
/// `%E2%82%AC`).
const WIDE: &[&str] = &[
    "%C2%A0",
    "%25C2%A0",
    "%C2",
    "%A0",
    "%C2%25A0",
    "%E3%80%80",
    "%E2%80",
    "%A8",
    "%C2%A1",
    "%E2%82%AC",
    "%25",
    "%20",
    "%2F",
    "a",
];

#[test]
fn white_space_beyond_ascii() {
    sequences(&[WIDE, &["/", "\u{a1}"]].concat(), ATOMS, &mut check_token);
    let blanks = ["\u{a0}", "\u{85}", "\u{2028}", "\u{3000}", ".", "\u{a1}"];
    sequences(&[WIDE, &blanks].concat(), ATOMS, &mut check_level);
    let all = (0x80..=0x10_FFFF).filter_map(char::from_u32);
    for blank in all.filter(|character| character.is_whitespace()) {
        check_level(blank.encode_utf8(&mut [0; 4]).as_bytes());
        check_level(format!("a{blank}b{blank}").as_bytes());
    }
}

/// Only the parts on which a slash depends, but at a length at which runs of each kind meet.
#[test]
fn all_slashes() {
    sequences(&["/", "%2F", "%252F", "a"], 2 * ATOMS, &mut check_token);
    sequences(&[".", "%2F", "%252F", "a"], 2 * ATOMS, &mut check_level);
}

/// Names longer than a block of the vectorised conversion, with the special character at every
/// position around its end.
#[test]
fn names_of_more_than_a_block() {
    let atoms = ["a", ".", "/", "+", "*", "%2F", " ", "\u{e9}", "\0", "\x7F"];
    sequences(&atoms, 2, &mut |middle| {
        for (before, after) in (0..20).flat_map(|n| [(n, 1), (n, 20)]) {
            let name = [&[b'x'].repeat(before), middle, &[b'x'].repeat(after)].concat();
            if is_legal_token(&name) {
                check_token(&name);
            }
            if is_legal_level(&name) {
                check_level(&name);
            }
            let plain = plain_topic(&name, &mut vec![0; name.len()]);
            let special = name.iter().any(|byte| b"/+#*>%\0".contains(byte));
            let empty_token = name.split(|&byte| byte == b'.').any(<[u8]>::is_empty);
            assert_eq!(plain, !special && !empty_token, "{}", name.escape_ascii());
        }
    });
}

#[test]
fn all_single_bytes() {
    for byte in 1..=0x7F_u8 {
        if is_legal_level(&[byte]) {
            check_level(&[byte]);
            check_level(&[b'a', byte, b'a']);
            check_level(format!("%{byte:02X}").as_bytes());
            check_level(format!("a%{byte:02X}").as_bytes());
            check_level(format!("a%25{byte:02X}").as_bytes());
        }
        if is_legal_token(&[byte]) {
            check_token(&[byte]);
            check_token(&[b'a', byte, b'a']);
        }
        check_token(format!("%{byte:02X}").as_bytes());
        check_token(format!("a%{byte:02X}").as_bytes());
        check_token(format!("a%25{byte:02X}").as_bytes());
        check_token(format!("%{byte:02x}a").as_bytes());
    }
}

/// Tokens and levels do not influence each other across a separator.
#[test]
fn names_of_several_tokens() {
    let atoms = [".", "a", "/", "//", "+", "*", ">", "%2F", "%2A", "%20"];
    sequences(&atoms, 5, &mut |name| {
        let tokens: Vec<&[u8]> = name.split(|&byte| byte == b'.').collect();
        if tokens.iter().any(|token| token.is_empty()) {
            return;
        }
        let levels: Vec<Vec<u8>> = tokens.iter().map(|token| topic(token)).collect();
        let whole = topic(name);
        assert_eq!(whole, levels.join(&b'/'));
        assert_eq!(subject(&whole), name);
    });
}

/// Tables of the specification and of nats-server's own mapping.
#[test]
fn examples() {
    for (subject_text, topic_text) in [
        ("t.a", "t/a"),
        ("spBv1//0.x", "spBv1.0/x"),
        ("/.a", "/a"),
        ("a./.b", "a//b"),
        ("a./", "a/"),
        ("/././", "//"),
        ("//", "."),
        ("a//b.c", "a.b/c"),
        ("+", "*"),
        ("#", ">"),
        ("w.+", "w/*"),
        ("a.*", "a/%2A"),
        ("a.>", "a/%3E"),
        ("a.%2A", "a/%252A"),
        ("100%", "100%"),
        ("a%20b", "a b"),
        ("a%2520b", "a%20b"),
        ("a%09%0D%0A%7Fb", "a\t\r\n\x7Fb"),
        ("a/b", "a%2Fb"),
        ("a%2Fb", "a%252Fb"),
        ("a%252Fb", "a%25252Fb"),
        ("a///b", "a.%2Fb"),
        ("%2F//", "%2F."),
        ("%2F/", "%2F%2F"),
        ("%2F", "%2F"),
        ("%2B", "%2B"),
        ("a+b", "a%2Bb"),
        ("a#b", "a%23b"),
        ("a%2Bb", "a%252Bb"),
        ("a%2Ab", "a%2Ab"),
        ("a%2fb", "a%2fb"),
        ("grüße.日本", "grüße/日本"),
        ("$SRV.PING", "$SRV/PING"),
        ("_INBOX.x.y", "_INBOX/x/y"),
    ] {
        assert_eq!(
            topic(subject_text.as_bytes()),
            topic_text.as_bytes(),
            "{subject_text}"
        );
        assert_eq!(
            subject(topic_text.as_bytes()),
            subject_text.as_bytes(),
            "{topic_text}"
        );
    }
}

/// A run of escapes costs time in proportion to its length. If it cost the square of it, each of
/// these would take minutes.
#[test]
fn long_runs_convert_in_linear_time() {
    let start = std::time::Instant::now();
    for atom in ["%2F", "%252F", "%25", "/", ".", "%", "25"] {
        let text = format!("a{}", atom.repeat(100_000));
        let _ = subject(text.as_bytes());
        let _ = write_topic(text.as_bytes(), b"", &mut Vec::new());
    }
    assert!(start.elapsed().as_secs() < 20);
}
