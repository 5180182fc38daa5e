//! Rules that map subjects: nats-server's own cases, and what holds for every rule.

#![allow(clippy::restriction, missing_docs, reason = "this is a test")]

use nats_protocol::subject::mapping::{
    Direction, MAX_RULE, Mapped, MappingError, compile, invert, map,
};
use proptest::prelude::*;

fn rules(texts: &[&str], direction: Direction) -> Vec<u8> {
    texts
        .iter()
        .flat_map(|text| {
            compile(text, direction)
                .unwrap_or_else(|error| panic!("{text}: {error}"))
                .rule
        })
        .collect()
}

fn publish(texts: &[&str], subject: &str) -> Option<String> {
    publish_drawing(texts, subject, 0)
}

fn publish_drawing(texts: &[&str], subject: &str, random: u64) -> Option<String> {
    let mut out = Vec::new();
    match map(
        &rules(texts, Direction::Publish),
        subject.as_bytes(),
        || random,
        &mut out,
    ) {
        Mapped::To { inverse } => {
            assert_eq!(inverse, b"");
            Some(String::from_utf8(out).unwrap())
        }
        Mapped::Unchanged => {
            assert_eq!(out, b"");
            Some(subject.to_owned())
        }
        Mapped::Nowhere => {
            assert_eq!(out, b"");
            None
        }
    }
}

fn error(text: &str) -> MappingError {
    compile(text, Direction::Publish).expect_err(text)
}

/// From nats-server's `TestSubjectTransforms` and `TestPlaceHolderIndex`.
#[test]
fn nats_servers_cases() {
    let long = "foo.*.bar.*.baz";
    for (source, destination, subject, mapped) in [
        ("foo", "bar", "foo", "bar"),
        (long, "req.$2.$1", "foo.A.bar.B.baz", "req.B.A"),
        (
            long,
            "req.{{wildcard(2)}}.{{wildcard(1)}}",
            "foo.A.bar.B.baz",
            "req.B.A",
        ),
        ("baz.>", "my.pre.>", "baz.1.2.3", "my.pre.1.2.3"),
        ("baz.>", "foo.bar.>", "baz.1.2.3", "foo.bar.1.2.3"),
        (">", "prefix.>", "foo", "prefix.foo"),
        ("*", "foo.bar.$1", "foo", "foo.bar.foo"),
        ("*", "{{splitfromleft(1,3)}}", "12345", "123.45"),
        ("*", "{{SplitFromRight(1,3)}}", "12345", "12.345"),
        ("*", "{{SliceFromLeft(1,3)}}", "1234567890", "123.456.789.0"),
        (
            "*",
            "{{SliceFromRight(1,3)}}",
            "1234567890",
            "1.234.567.890",
        ),
        ("*", "{{split(1,-)}}", "-abc-def--ghi-", "abc.def.ghi"),
        ("*", "{{split(1,-)}}", "abc-def--ghi-", "abc.def.ghi"),
        (
            "*.*",
            "{{split(2,-)}}.{{splitfromleft(1,2)}}",
            "foo.-abc-def--ghij-",
            "abc.def.ghij.fo.o",
        ),
        ("*", "{{right(1,1)}}", "1234", "4"),
        ("*", "{{right(1,3)}}", "1234", "234"),
        ("*", "{{right(1,6)}}", "1234", "1234"),
        ("*", "{{left(1,1)}}", "1234", "1"),
        ("*", "{{left(1,3)}}", "1234", "123"),
        ("*", "{{left(1,6)}}", "1234", "1234"),
        ("*", "bar.{{partition(0)}}", "baz", "bar.0"),
        ("*", "bar.{{partition(10, 0)}}", "foo", "bar.3"),
        ("*.*", "bar.{{partition(10)}}", "foo.bar", "bar.6"),
        ("*", "bar.{{partition(10)}}", "foo", "bar.3"),
        ("*", "bar.{{partition(10)}}", "baz", "bar.0"),
        ("*", "bar.{{partition(10)}}", "qux", "bar.9"),
        ("*", "bar.{{random(0)}}", "qux", "bar.0"),
        ("foo.bar", "baz.{{partition(10)}}", "foo.bar", "baz.6"),
        ("foo.baz", "qux.{{partition(10)}}", "foo.baz", "qux.4"),
        (
            "test.subject",
            "result.{{partition(5)}}",
            "test.subject",
            "result.0",
        ),
        ("*.*.*", "{{ Partition (10,1,2,3) }}", "a.b.c", "1"),
        ("*", "x.{{partition(2147483647)}}", "foo", "x.703823576"),
        ("foo.*", "foo.$foo", "foo.x", "foo.$foo"),
        ("foo.*.*", "bar.$2", "foo.x.y", "bar.y"),
    ] {
        let rule = format!("{source} -> {destination}");
        if source == ">" || source.starts_with('*') || !subject.starts_with('$') {
            assert_eq!(
                publish(&[&rule], subject).as_deref(),
                Some(mapped),
                "{rule}"
            );
        }
    }
    for (source, destination) in [
        ("foo..", "bar"),
        ("foo.*", "bar.*"),
        ("foo.*", "bar.$2"),
        ("foo.*", "bar.$1.>"),
        ("foo.>", "bar.baz"),
        ("foo.*", "foo.{{wildcard(2)}}"),
        ("foo.*", "foo.{{unimplemented(1)}}"),
        ("foo.*", "foo.{{partition()}}"),
        ("foo.*", "foo.{{random()}}"),
        ("foo.*", "foo.{{wildcard(foo)}}"),
        ("foo.*", "foo.{{wildcard()}}"),
        ("foo.*", "foo.{{wildcard(1,2)}}"),
        ("foo.*", "foo.{{ wildcard5) }}"),
        ("foo.*", "foo.{{splitLeft(2,2}}"),
        ("foo", "bla.{{wildcard(1)}}"),
        ("foo.*", "foo.{{partition(2147483648)}}"),
        ("foo.*", "foo.{{random(2147483648)}}"),
    ] {
        error(&format!("{source} -> {destination}"));
    }
}

#[test]
fn nats_servers_reversible_cases() {
    let rules = rules(&["foo.*.* -> bar.$2.{{Wildcard(1)}}"], Direction::Subscribe);
    let mut mapped = Vec::new();
    let Mapped::To { inverse } = map(&rules, b"foo.b.a", || 0, &mut mapped) else {
        panic!("not mapped");
    };
    assert_eq!(mapped, b"bar.a.b");
    let mut back = Vec::new();
    assert!(invert(inverse, &mapped, &mut back));
    assert_eq!(back, b"foo.b.a");
    for text in [
        "foo.*.* -> bar.$2",
        "foo.*.* -> bar.$1.$2.$1",
        "foo.* -> foo.$foo",
        "foo.* -> bar.$0",
        "foo.* -> bar.{{partition(2,1)}}",
        "foo.* -> bar.{{random(2)}}.$1",
        "foo.* -> bar.{{split(1,-)}}",
        "foo.* -> bar.{{left(1,2)}}",
        "foo -> bar 50%",
        "foo -> bar 50%, baz 50%",
    ] {
        assert_eq!(
            compile(text, Direction::Subscribe),
            Err(MappingError::Irreversible),
            "{text}"
        );
    }
    for text in [
        "$SYS.> -> a.>",
        "a.> -> $share.g.>",
        "_INBOX.> -> a.>",
        "a.> -> _MQTT.>",
    ] {
        assert_eq!(
            compile(text, Direction::Subscribe),
            Err(MappingError::ReservedSubscription),
            "{text}"
        );
    }
}

#[test]
fn wrong_rules_are_told_why() {
    for (text, expected) in [
        ("", MappingError::Form),
        ("a", MappingError::Form),
        ("a -> ", MappingError::Form),
        (" -> a", MappingError::Form),
        ("a -> b -> c", MappingError::Form),
        ("a b -> c", MappingError::Source),
        ("a.>.b -> c", MappingError::Source),
        (".a -> c", MappingError::Source),
        ("a -> b c", MappingError::Destination),
        ("a -> b..c", MappingError::Destination),
        ("a -> *", MappingError::Destination),
        ("a.> -> >.b", MappingError::Destination),
        ("a -> >", MappingError::Rest),
        ("a.* -> {{split(1,)}}", MappingError::Arguments),
        ("a.* -> {{split(1, )}}", MappingError::Arguments),
        ("a.* -> {{split(1)}}", MappingError::Arguments),
        ("a.* -> {{left(1,-1)}}", MappingError::Arguments),
        ("a.* -> {{left(1,1,1)}}", MappingError::Arguments),
        ("a.* -> {{partition(-1)}}", MappingError::Arguments),
        ("a.* -> {{partition(3,2)}}", MappingError::Wildcard),
        ("a -> {{partition(3,0)}}", MappingError::Wildcard),
        ("a -> $1", MappingError::Wildcard),
        ("a -> b, c", MappingError::Weights),
        ("a -> b 50%, c", MappingError::Weights),
        ("a -> b 0%", MappingError::Weights),
        ("a -> b 101%", MappingError::Weights),
        ("a -> b 50%, c 51%", MappingError::Weights),
        ("a -> b +5%", MappingError::Weights),
        ("a -> b 50%, b 50%", MappingError::Twice),
        ("_MQTT.> -> a.>", MappingError::Reserved),
        ("a.> -> _MQTT.>", MappingError::Reserved),
    ] {
        assert_eq!(error(text), expected, "{text}");
        assert!(!expected.to_string().is_empty());
    }
    assert_eq!(
        MappingError::Form.to_string(),
        "must be \"SUBJECT -> SUBJECT\", such as \"a.* -> fleet.{{wildcard(1)}}.x\""
    );
    let rule = |size: usize| format!("{} -> b", "a".repeat(size - 5));
    assert!(compile(&rule(MAX_RULE), Direction::Publish).is_ok());
    assert_eq!(error(&rule(MAX_RULE + 1)), MappingError::TooLong);
}

#[test]
fn the_first_rule_that_matches_counts_once() {
    let texts = ["a.1 -> one", "a.* -> b.$1", "b.* -> c.$1", "a.> -> rest.>"];
    assert_eq!(publish(&texts, "a.1").unwrap(), "one");
    assert_eq!(publish(&texts, "a.2").unwrap(), "b.2");
    assert_eq!(publish(&texts, "b.2").unwrap(), "c.2");
    assert_eq!(publish(&texts, "a.2.3").unwrap(), "rest.2.3");
    assert_eq!(publish(&texts, "a").unwrap(), "a");
    assert_eq!(publish(&texts, "a.").unwrap(), "rest.");
    assert_eq!(publish(&texts, "a.*").unwrap(), "b.*");
    assert_eq!(publish(&texts, "A.2").unwrap(), "A.2");
}

#[test]
fn a_first_wildcard_does_not_stand_for_the_protocols_names() {
    let texts = ["*.* -> pair.$1.$2", "> -> all.>"];
    for subject in [
        "$SYS.x",
        "$JS.API.INFO",
        "$KV.b.k",
        "_INBOX.a",
        "_INBOX.a.b",
        "_R_.x.y.z",
    ] {
        assert_eq!(publish(&texts, subject).unwrap(), subject);
    }
    assert_eq!(publish(&texts, "a.b").unwrap(), "pair.a.b");
    assert_eq!(publish(&texts, "a").unwrap(), "all.a");
    assert_eq!(publish(&["_INBOX.> -> in.>"], "_INBOX.a").unwrap(), "in.a");
    assert_eq!(publish(&["$JS.> -> j.>"], "$JS.API").unwrap(), "j.API");
    let correlated = "_MQTT.tYQ.cYg";
    assert_eq!(publish(&["> -> all.>"], correlated).unwrap(), correlated);
}

#[test]
fn weights_choose_a_destination() {
    let share = |text: &str| -> Vec<(Option<String>, usize)> {
        let mut counts = std::collections::BTreeMap::new();
        for random in 0..100 {
            *counts
                .entry(publish_drawing(&[text], "a.x", random))
                .or_insert(0_usize) += 1;
        }
        counts.into_iter().collect()
    };
    let named = |name: &str, count| (Some(name.to_owned()), count);
    assert_eq!(
        share("a.* -> b.$1 80%, c 20%"),
        [named("b.x", 80), named("c", 20)]
    );
    assert_eq!(
        share("a.* -> b.{{wildcard(1)}} 1%"),
        [named("a.x", 99), named("b.x", 1)]
    );
    assert_eq!(
        share("a.* -> b.{{partition(3, 1)}} 60% , c 40%"),
        [named("b.0", 60), named("c", 40)]
    );
    assert_eq!(
        share("a.x -> a.x 10%, b 30%"),
        [(None, 60), named("a.x", 10), named("b", 30)]
    );
    assert_eq!(share("a.* -> b 100%"), [named("b", 100)]);
    let random = |drawn| publish_drawing(&["a.* -> b.{{random(6)}}"], "a.x", drawn).unwrap();
    assert_eq!([random(0), random(5), random(6)], ["b.0", "b.5", "b.0"]);
}

/// A short rule cannot make the gateway write megabytes.
#[test]
fn a_subject_longer_than_any_topic_goes_nowhere() {
    let rule = format!("a.* -> {}", ["$1"; 330].join("."));
    let subject = |size: usize| format!("a.{}", "x".repeat(size));
    assert_eq!(publish(&[&rule], &subject(197)).unwrap().len(), 65339);
    assert_eq!(publish(&[&rule], &subject(4000)), None);
}

#[test]
fn splits_are_those_of_nats_server() {
    for (token, expected) in [
        ("-", "x."),
        ("--", "x."),
        ("-a", "x.a"),
        ("--a", "x..a"),
        ("a", "x.a"),
        ("a-b--c-", "x.a.b.c"),
        ("a---b", "x.a.b"),
    ] {
        let mapped = publish(&["s.* -> x.{{split(1,-)}}"], &format!("s.{token}"));
        assert_eq!(mapped.as_deref(), Some(expected), "{token}");
    }
    assert_eq!(
        publish(&["s.* -> {{split(1,ab)}}"], "s.1ab2ab").unwrap(),
        "1.2"
    );
}

#[test]
fn a_subscription_is_mapped_if_a_rule_covers_it() {
    let rules = rules(
        &["a.*.* -> fleet.$2.x.$1", "b.> -> c.>", "d.*.> -> e.$1.f.>"],
        Direction::Subscribe,
    );
    for (subject, expected, message, seen) in [
        ("a.*.*", "fleet.*.x.*", "fleet.2.x.1", "a.1.2"),
        ("a.1.*", "fleet.*.x.1", "fleet.2.x.1", "a.1.2"),
        ("a.1.2", "fleet.2.x.1", "fleet.2.x.1", "a.1.2"),
        ("b.>", "c.>", "c.1.2", "b.1.2"),
        ("b.*.>", "c.*.>", "c.1.2", "b.1.2"),
        ("d.*.>", "e.*.f.>", "e.1.f.2.3", "d.1.2.3"),
    ] {
        let mut mapped = Vec::new();
        let Mapped::To { inverse } = map(&rules, subject.as_bytes(), || 0, &mut mapped) else {
            panic!("{subject} is not mapped");
        };
        assert_eq!(String::from_utf8(mapped).unwrap(), expected);
        let mut back = Vec::new();
        assert!(invert(inverse, message.as_bytes(), &mut back));
        assert_eq!(String::from_utf8(back).unwrap(), seen);
        let mut other = b"kept".to_vec();
        assert!(!invert(inverse, b"another", &mut other));
        assert_eq!(other, b"kept");
    }
    for subject in ["a.>", "*.1.2", ">", "a.*", "b", "_INBOX.1.>"] {
        let mut mapped = Vec::new();
        let result = map(&rules, subject.as_bytes(), || 0, &mut mapped);
        assert_eq!((result, mapped.len()), (Mapped::Unchanged, 0), "{subject}");
    }
}

proptest! {
    /// A reversible rule loses nothing, whatever its wildcards stand for.
    #[test]
    fn what_is_mapped_comes_back(
        values in proptest::collection::vec("[a-z0-9*/%+é-]{1,5}", 1..6),
        rest in proptest::option::of("[a-z.]{0,3}[a-z]"),
        seed in any::<u64>(),
    ) {
        let mut order: Vec<usize> = (1..=values.len()).collect();
        order.sort_by_key(|&index| seed.rotate_left(u32::try_from(index).unwrap() * 7) % 97);
        let end = if rest.is_some() { ".>" } else { "" };
        let rule = format!(
            "from.{}{end} -> to.{}{end}",
            vec!["*"; values.len()].join(".x."),
            order.iter().map(|index| format!("{{{{wildcard({index})}}}}")).collect::<Vec<_>>().join(".y."),
        );
        let rest = rest.filter(|rest| !rest.contains("..") && !rest.starts_with('.'));
        prop_assume!(rest.is_some() != end.is_empty());
        let tail = rest.map_or(String::new(), |rest| format!(".{rest}"));
        let subject = format!("from.{}{tail}", values.join(".x."));
        let rules = rules(&[&rule], Direction::Subscribe);
        let mut mapped = Vec::new();
        let Mapped::To { inverse } = map(&rules, subject.as_bytes(), || 0, &mut mapped) else {
            panic!("{rule} does not map {subject}");
        };
        let mut back = Vec::new();
        prop_assert!(invert(inverse, &mapped, &mut back));
        prop_assert_eq!(String::from_utf8(back).unwrap(), subject);
    }

    /// No text and no bytes make it panic.
    #[test]
    fn nothing_panics(
        text in "[a-c$*>{}()1-3,. %]{0,20}( -> [a-c$*>{}()1-3,. %partionsledfmghw]{0,40})?",
        rules in proptest::collection::vec(any::<u8>(), 0..60),
        subject in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut out = Vec::new();
        for direction in [Direction::Publish, Direction::Subscribe] {
            if let Ok(compiled) = compile(&text, direction) {
                let _ = map(&compiled.rule, &subject, || 7, &mut out);
            }
        }
        let _ = map(&rules, &subject, || 7, &mut out);
        let _ = invert(&rules, &subject, &mut out);
    }
}
