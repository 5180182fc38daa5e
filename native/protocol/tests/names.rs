//! Mounting, filters, matching, share names, quoting and correlated reply subjects.

#![allow(clippy::restriction)]

use nats_protocol::subject::{
    MAX_CORRELATED_REPLY, MAX_TOPIC, correlation, is_valid_publish_subject, plain_topic, quote,
    share_name, subject_matches, topic_matches, write_filter, write_reply, write_reply_topic,
    write_subject, write_topic,
};

fn written(write: impl FnOnce(&mut Vec<u8>) -> bool) -> Option<String> {
    let mut out = b"kept ".to_vec();
    write(&mut out).then(|| {
        assert!(out.starts_with(b"kept "));
        String::from_utf8(out.split_off(5)).expect("UTF-8")
    })
}

fn topic(subject: &str, mountpoint: &str) -> Option<String> {
    written(|out| write_topic(subject.as_bytes(), mountpoint.as_bytes(), out))
}

fn filter(subject: &str, mountpoint: &str) -> Option<String> {
    written(|out| write_filter(subject.as_bytes(), mountpoint.as_bytes(), out))
}

fn subject(topic: &[u8], mountpoint: &str) -> String {
    let write = |out: &mut Vec<u8>| {
        write_subject(topic, mountpoint.as_bytes(), out);
        true
    };
    written(write).expect("always")
}

#[test]
fn mountpoints_are_raw_prefixes() {
    for mountpoint in ["", "m/", "m", "a/b", "+/x.y "] {
        for (plain_subject, plain_topic) in [("a.b", "a/b"), ("/.x", "/x"), ("a//b", "a.b")] {
            let mounted = format!("{mountpoint}{plain_topic}");
            assert_eq!(topic(plain_subject, mountpoint).as_ref(), Some(&mounted));
            assert_eq!(filter(plain_subject, mountpoint).as_ref(), Some(&mounted));
            assert_eq!(subject(mounted.as_bytes(), mountpoint), plain_subject);
        }
    }
    assert_eq!(subject(b"x/y", "m/"), "x.y");
}

#[test]
fn subjects_without_a_topic() {
    for bad in ["", ".", "a.", ".a", "a..b", "a\0b", "\0"] {
        assert_eq!(topic(bad, ""), None, "{bad:?}");
        assert_eq!(filter(bad, ""), None, "{bad:?}");
    }
    let mut out = Vec::new();
    assert!(!write_topic(b"a.\xFF", b"", &mut out));
    assert!(!write_filter(b"a.\xC3", b"", &mut out));
    assert!(!plain_topic(b"a.\xFF", &mut [0; 3]));
    assert!(!plain_topic(b"a.b.c.d.e.f.g.h.i\xFF", &mut [0; 18]));
}

#[test]
fn topics_are_bounded() {
    for (size, mountpoint, fits) in [
        (MAX_TOPIC, "", true),
        (MAX_TOPIC + 1, "", false),
        (MAX_TOPIC - 2, "m/", true),
        (MAX_TOPIC - 1, "m/", false),
    ] {
        let name = "x".repeat(size);
        assert_eq!(topic(&name, mountpoint).is_some(), fits, "{size}");
        assert_eq!(filter(&name, mountpoint).is_some(), fits, "{size}");
    }
    // The converted topic counts.
    assert!(topic(&"a/b".repeat(MAX_TOPIC / 4), "").is_none());
    assert!(topic(&"//".repeat(MAX_TOPIC), "").is_some());
}

#[test]
fn control_characters_pass_to_topics_and_come_back_encoded() {
    assert_eq!(topic("a\x01\rb", "").as_deref(), Some("a\x01\rb"));
    assert_eq!(subject(b"a\x01\rb", ""), "a%01%0Db");
    assert_eq!(topic("a%01%0Db", "").as_deref(), Some("a\x01\rb"));
}

/// Bytes that no legal topic has cannot do harm either.
#[test]
fn subjects_of_illegal_topics() {
    assert_eq!(subject(b"", ""), "/");
    assert_eq!(subject(b"m/", "m/"), "/");
    assert_eq!(subject(b"a\0b", ""), "a%00b");
    assert_eq!(subject(b"a\xFF/\xC3", ""), "a%FF.%C3");
    assert_eq!(subject(b"\xC3\xA9\xFF", ""), "\u{e9}%FF");
    assert_eq!(subject(b"a/+/#", ""), "a.+.#");
}

#[test]
fn filters() {
    for (subject, expected) in [
        ("*", Some("+")),
        (">", Some("#")),
        ("a.*.>", Some("a/+/#")),
        ("*.*", Some("+/+")),
        ("a.f*o.x>", Some("a/f*o/x>")),
        ("a.+.#", Some("a/*/>")),
        ("a./.b", Some("a//b")),
        ("a.b%20c", Some("a/b c")),
        ("a.b+c", Some("a/b%2Bc")),
        ("a.%2A", Some("a/%252A")),
        ("$SRV.PING.>", Some("$SRV/PING/#")),
        (">.a", None),
        ("a.>.b", None),
        (">.>", None),
        ("a..>", None),
    ] {
        assert_eq!(filter(subject, "").as_deref(), expected, "{subject}");
        let mounted = expected.map(|filter| format!("m/{filter}"));
        assert_eq!(filter(subject, "m/"), mounted, "{subject}");
    }
}

#[test]
fn reply_topics_are_for_exactly_this_subject() {
    for (reply, expected) in [
        ("_INBOX.a.b", Some("m/_INBOX/a/b")),
        ("a b", None),
        ("a%20b", Some("m/a b")),
        ("a*b", Some("m/a*b")),
        ("a.*.>", Some("m/a/%2A/%3E")),
        ("a..b", None),
        ("a\x01", None),
    ] {
        let found = written(|out| write_reply_topic(reply.as_bytes(), b"m/", out));
        assert_eq!(found.as_deref(), expected, "{reply:?}");
    }
    assert!(!write_reply_topic(b"\xFF", b"", &mut Vec::new()));
}

#[test]
fn subject_matching() {
    for (pattern, subject, expected) in [
        ("a.b", "a.b", true),
        ("a.b", "a.c", false),
        ("a.b", "a", false),
        ("a", "a.b", false),
        ("a.*", "a.b", true),
        ("a.*", "a", false),
        ("a.*", "a.b.c", false),
        ("*.b", "a.b", true),
        ("*", "a", true),
        ("a.>", "a.b", true),
        ("a.>", "a.b.c.d", true),
        ("a.>", "a", false),
        (">", "a", true),
        (">", "$SYS.x", true),
        ("*.x", "$X.x", true),
        ("f*", "foo", false),
        ("f*", "f*", true),
        ("a.>.c", "a.b.c", false),
        ("a.b", "a.*", false),
        ("a.*", "a.*", true),
        ("a.>", "a.>", true),
        ("a.*.c", "a..c", false),
        (">", "a..c", false),
        (">", "", false),
        (">", "a.", false),
        ("", "", false),
    ] {
        let found = subject_matches(pattern.as_bytes(), subject.as_bytes());
        assert_eq!(found, expected, "{pattern} {subject}");
    }
}

#[test]
fn topic_matching() {
    for (filter, topic, expected) in [
        ("a/b", "a/b", true),
        ("a/b", "a/B", false),
        ("a/+", "a/b", true),
        ("a/+", "a/", true),
        ("a/+", "a", false),
        ("a/+", "a/b/c", false),
        ("+", "a", true),
        ("+", "/a", false),
        ("+/+", "/a", true),
        ("/+", "/a", true),
        ("a/#", "a", true),
        ("a/#", "a/", true),
        ("a/#", "a/b/c", true),
        ("a/#", "ab", false),
        ("#", "a/b", true),
        ("#", "/", true),
        ("#", "$SYS/x", false),
        ("+/x", "$SYS/x", false),
        ("$SYS/#", "$SYS/x", true),
        ("$SYS/+", "$SYS/x", true),
        ("a/+", "a/$x", true),
        ("a/#", "a/$x", true),
    ] {
        let found = topic_matches(filter.as_bytes(), topic.as_bytes());
        assert_eq!(found, expected, "{filter} {topic}");
    }
}

/// Subscribing and matching agree on both sides, except for the two differences of the protocols:
/// MQTT's `#` matches the parent, and no wildcard in a first level matches `$`.
#[test]
fn conversion_keeps_matches() {
    let tokens = ["a", "/", "+", "#", "a//b", "%2A", "a b"];
    let patterns = ["a", "/", "+", "*", "a//b", "a%20b"];
    for pattern in patterns.iter().flat_map(|p| {
        [
            p.to_string(),
            format!("{p}.*"),
            format!("{p}.>"),
            format!("*.{p}"),
            format!("a.{p}"),
        ]
    }) {
        let filter = filter(&pattern, "").expect("valid");
        for name in tokens
            .iter()
            .flat_map(|t| tokens.iter().map(move |u| format!("{t}.{u}")))
        {
            let name = name.replace(' ', "%20");
            let topic = topic(&name, "").expect("valid");
            assert_eq!(
                subject_matches(pattern.as_bytes(), name.as_bytes()),
                topic_matches(filter.as_bytes(), topic.as_bytes()),
                "{pattern} {name} {filter} {topic}"
            );
        }
    }
}

#[test]
fn publish_subjects() {
    for (subject, valid) in [
        ("a", true),
        ("a.b", true),
        ("a*.b>", true),
        ("/+#", true),
        ("", false),
        (".", false),
        ("a.", false),
        (".a", false),
        ("a..b", false),
        ("*", false),
        ("a.*.b", false),
        ("a.>", false),
        (">", false),
    ] {
        assert_eq!(
            is_valid_publish_subject(subject.as_bytes()),
            valid,
            "{subject:?}"
        );
    }
}

#[test]
fn share_names() {
    for (queue, name) in [
        (&b"workers"[..], "workers"),
        (b"q.a.>", "q.a.>"),
        (b"$share", "$share"),
        (b"q/b+#", "q%2Fb%2B%23"),
        (b"q%2Fb", "q%252Fb"),
        (b"q%252Fb", "q%25252Fb"),
        (b"100%", "100%"),
        (b"%2f%25%zz%2", "%2f%25%zz%2"),
        (b"a\x01\x7F\0", "a%01%7F%00"),
        (b"%00", "%2500"),
        (b"\xFF\xC3\xA9\xC3", "%FF\u{e9}%C3"),
        (b"%FF", "%25FF"),
        (b"%7E", "%7E"),
        (b"%20", "%20"),
    ] {
        let found = share_name(queue);
        assert_eq!(
            found.as_deref(),
            Some(name.as_bytes()),
            "{}",
            queue.escape_ascii()
        );
    }
    assert_eq!(share_name(b""), None);
    assert!(share_name(&[b'x'; MAX_TOPIC]).is_some());
    assert_eq!(share_name(&[b'x'; MAX_TOPIC + 1]), None);
    assert_eq!(share_name(&[b'/'; MAX_TOPIC / 2]), None);
}

#[test]
fn go_quotes() {
    for (text, quoted) in [
        (&b"a.b"[..], r#""a.b""#),
        (b"", r#""""#),
        (b"a\"b\\c", r#""a\"b\\c""#),
        (b"\x07\x08\x0C\n\r\t\x0B", r#""\a\b\f\n\r\t\v""#),
        (b"\0\x01\x1F\x7F", r#""\x00\x01\x1f\x7f""#),
        (b"\xFF\xC3\xED\xA0\x80", r#""\xff\xc3\xed\xa0\x80""#),
        (
            "gr\u{fc}\u{df}e \u{65e5}\u{1F600}".as_bytes(),
            "\"gr\u{fc}\u{df}e \u{65e5}\u{1F600}\"",
        ),
        ("e\u{301}\u{fffd}".as_bytes(), "\"e\u{301}\u{fffd}\""),
        // A mark at the start, a soft hyphen, other spaces, private use, unassigned.
        ("\u{301}".as_bytes(), "\"\u{301}\""),
        (
            "\u{ad}\u{a0}\u{2028}\u{3000}".as_bytes(),
            r#""\u00ad\u00a0\u2028\u3000""#,
        ),
        (
            "\u{85}\u{e000}\u{feff}\u{10ffff}".as_bytes(),
            r#""\u0085\ue000\ufeff\U0010ffff""#,
        ),
    ] {
        let found = quote(text);
        assert_eq!(String::from_utf8_lossy(&found), quoted);
    }
}

fn reply(topic: &str, data: Option<&[u8]>, mountpoint: &str) -> String {
    let mut out = Vec::new();
    write_reply(topic.as_bytes(), data, mountpoint.as_bytes(), &mut out);
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn correlated_replies() {
    assert_eq!(reply("m/r/1", None, "m/"), "r.1");
    assert_eq!(reply("m/r", Some(b"corr"), "m/"), "_MQTT.tcg.cY29ycg");
    assert_eq!(reply("r", Some(b""), ""), "_MQTT.tcg.c");
    for topic in ["r", "r/1", "a b/\u{e9}/*", "/", "$SYS/x", "_MQTT/x"] {
        for data in [&b""[..], b"\0", b"\xFF\xFE", b"123", b"\xFB\xEF\xBE\xFF"] {
            let subject = reply(&format!("m/{topic}"), Some(data), "m/");
            assert!(
                subject.bytes().all(|byte| byte.is_ascii_graphic()),
                "{subject}"
            );
            let found = correlation(subject.as_bytes());
            assert_eq!(
                found,
                Some((topic.as_bytes().to_vec(), data.to_vec())),
                "{subject}"
            );
        }
    }
}

#[test]
fn correlated_replies_are_bounded() {
    let around = "_MQTT.tcg.c".len();
    let most = (MAX_CORRELATED_REPLY - around) / 4 * 3;
    let subject = reply("r", Some(&vec![7; most]), "");
    assert!(subject.len() <= MAX_CORRELATED_REPLY && subject.len() > MAX_CORRELATED_REPLY - 4);
    assert!(correlation(subject.as_bytes()).is_some());
    assert_eq!(reply("r", Some(&vec![7; most + 3]), ""), "r");
    assert_eq!(reply(&"x".repeat(3000), Some(b"1"), ""), "x".repeat(3000));
    let longer = format!("_MQTT.tcg.c{}", "A".repeat(most / 3 * 4 + 4));
    assert_eq!(correlation(longer.as_bytes()), None);
}

/// A subject that only looks like a correlated one is an ordinary subject.
#[test]
fn malformed_correlated_replies() {
    for text in [
        "_MQTT",
        "_MQTT.",
        "_MQTT.x",
        "_MQTT.tcg",
        "_MQTT.tcg.",
        "_MQTT.tcg.x",
        "_MQTT.cg.c",
        "_MQTT.tcg.c.c",
        "_MQTT.tcg.cY29ycg.x",
        "_MQTT.t.cAA",
        "_mqtt.tcg.cAA",
        "_MQTT.tcg.cA",
        "_MQTT.tcg.cAA=",
        "_MQTT.tcg.cA+",
        "_MQTT.tcg.cA/A",
        // Bits that are not part of any byte.
        "_MQTT.tch.cAA",
        "_MQTT.tcg.cAB",
        "_MQTT.tcg.cAAB",
        // Topics "a+", "#", NUL, and one that is not UTF-8.
        "_MQTT.tYSs.cAA",
        "_MQTT.tIw.cAA",
        "_MQTT.tAA.cAA",
        "_MQTT.t_w.cAA",
    ] {
        assert_eq!(correlation(text.as_bytes()), None, "{text}");
    }
    assert!(correlation(b"_MQTT.tcg.cAA").is_some());
    // No client can publish there, so no answer could arrive.
    assert_eq!(reply("a/+", Some(b"x"), ""), "a.+");
    assert_eq!(reply("", Some(b"x"), ""), "/");
}
