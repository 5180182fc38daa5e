use nats_protocol::subject::mapping::{Compiled, Direction, Mapped, compile, invert, map};
use nats_protocol::subject::{MAX_TOPIC, subject_matches};

use crate::input::Input;

/// Before what is appended, to see that it stays.
const EARLIER: &[u8] = b"earlier";

/// Rules that map subjects: direction `0` publish or `1` subscribe, rule `|` subject `|` a digit that
/// decides about weights and random numbers, then bytes that are taken for compiled rules.
pub fn mapping(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let direction = input.choose(&[Direction::Publish, Direction::Subscribe]);
    let rule = input.field();
    let subject = input.field();
    let random = input.choose(&[0, 33, 66, 99, 1_000_003]);
    if let Ok(text) = std::str::from_utf8(rule) {
        match compile(text, direction) {
            Ok(compiled) => as_rule(text, direction, &compiled, subject, random),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    as_bytes(input.rest(), subject, random);
}

/// What the rules make of the subject. Only a subject that is mapped appends something.
fn mapped<'r>(rules: &'r [u8], subject: &[u8], random: u64) -> (Mapped<'r>, Vec<u8>) {
    let mut out = EARLIER.to_vec();
    let mapped = map(rules, subject, || random, &mut out);
    let appended = out.split_off(EARLIER.len());
    assert_eq!(out, EARLIER);
    assert!(appended.len() <= MAX_TOPIC);
    assert!(matches!(mapped, Mapped::To { .. }) || appended.is_empty());
    (mapped, appended)
}

fn inverted(inverse: &[u8], subject: &[u8]) -> Option<Vec<u8>> {
    let mut out = EARLIER.to_vec();
    let is_inverted = invert(inverse, subject, &mut out);
    let appended = out.split_off(EARLIER.len());
    assert_eq!(out, EARLIER);
    assert!(is_inverted || appended.is_empty());
    is_inverted.then_some(appended)
}

fn as_rule(text: &str, direction: Direction, compiled: &Compiled, subject: &[u8], random: u64) {
    let Compiled { source, rule } = compiled;
    let (mapped_to, name) = mapped(rule, subject, random);
    let first_is_wildcard = source.starts_with('*') || source == ">";
    let is_reserved = subject.starts_with(b"_MQTT.")
        || first_is_wildcard && subject.first().is_some_and(|byte| b"$_".contains(byte));
    let tokens: Vec<&[u8]> = subject.split(|&byte| byte == b'.').collect();
    // A filter stands for more than one subject.
    let is_filter = tokens.iter().any(|token| matches!(*token, b"*" | b">"));
    let has_empty_token = tokens.iter().any(|token| token.is_empty());
    let matches = !is_reserved && subject_matches(source.as_bytes(), subject);
    match mapped_to {
        Mapped::To { inverse } => {
            assert!(!is_reserved && (matches || is_filter || has_empty_token));
            // Only what `>` stands for may have empty tokens.
            let before_rest = source.split('.').filter(|&token| token != ">").count();
            assert!(
                !tokens
                    .iter()
                    .take(before_rest)
                    .any(|token| token.is_empty())
            );
            assert_eq!(inverse.is_empty(), direction == Direction::Publish);
            let breaks_a_line = |name: &[u8]| name.iter().any(u8::is_ascii_whitespace);
            assert!(breaks_a_line(subject) || !breaks_a_line(&name));
            if direction == Direction::Subscribe {
                assert_eq!(inverted(inverse, &name).as_deref(), Some(subject));
            }
        }
        Mapped::Unchanged => assert!(!matches || is_filter || text.contains('%')),
        Mapped::Nowhere => {
            assert!(text.contains('%') || (subject.len() + 1) * text.len() > MAX_TOPIC)
        }
    }
    // What holds for subscriptions holds for publishes, too, but for the inverse.
    if direction == Direction::Subscribe {
        let published = compile(text, Direction::Publish).expect("a rule");
        assert_eq!(&published.source, source);
        assert_eq!(mapped(&published.rule, subject, random).1, name);
    }
    // The first rule that matches counts.
    let twice = [rule.as_slice(), rule].concat();
    if mapped_to != Mapped::Unchanged {
        assert_eq!(mapped(&twice, subject, random), (mapped_to, name));
    }
}

/// Rules come from the settings, but not always in one piece: bytes that are none do no harm.
fn as_bytes(rules: &[u8], subject: &[u8], random: u64) {
    if let (Mapped::To { inverse }, name) = mapped(rules, subject, random) {
        let _ = inverted(inverse, &name);
    }
    let _ = inverted(rules, subject);
}
