use nats_protocol::subject::{
    correlation, is_valid_publish_subject, plain_topic, quote, share_name, subject_matches,
    topic_matches, write_canonical, write_filter, write_published, write_reply, write_reply_topic,
    write_subject, write_topic,
};

use crate::input::Input;

/// Subjects, topics and queue groups: mountpoint `|` name `|` pattern `|` queue group.
///
/// The name is used as a topic and as a subject.
pub fn names(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mountpoint = input.field();
    let name = input.field();
    let pattern = input.field();
    let queue = input.field();
    as_topic(name, mountpoint);
    as_subject(name, mountpoint);
    matches_alike(pattern, name);
    as_reply(name, queue);
    as_queue(queue, name);
    assert!(std::str::from_utf8(&quote(name)).is_ok());
}

fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

fn topic_of(subject: &[u8], mountpoint: &[u8]) -> Option<Vec<u8>> {
    let mut topic = Vec::new();
    write_topic(subject, mountpoint, &mut topic).then_some(topic)
}

fn subject_of(topic: &[u8], mountpoint: &[u8]) -> Vec<u8> {
    written(|out| write_subject(topic, mountpoint, out))
}

fn is_topic(name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok() && !name.iter().any(|byte| b"+#\0".contains(byte))
}

fn has_empty_token(subject: &[u8]) -> bool {
    subject.split(|&byte| byte == b'.').any(<[u8]>::is_empty)
}

/// Every topic to which an MQTT client publishes has a subject that breaks no line, and every legal
/// topic comes back from its subject.
fn as_topic(topic: &[u8], mountpoint: &[u8]) {
    let mounted = [mountpoint, topic].concat();
    let subject = subject_of(&mounted, mountpoint);
    assert!(!has_empty_token(&subject));
    let text = std::str::from_utf8(&subject).expect("UTF-8");
    assert!(!text.contains(|c: char| c.is_whitespace() || c.is_ascii_control()));
    if is_topic(topic) {
        assert_eq!(topic_of(&subject, mountpoint), Some(mounted));
        assert_eq!(written(|out| write_canonical(&subject, out)), subject);
    }
}

/// Every subject that has a topic comes back in its canonical spelling, which has the same topic.
fn as_subject(subject: &[u8], mountpoint: &[u8]) {
    let canonical = written(|out| write_canonical(subject, out));
    assert_eq!(written(|out| write_canonical(&canonical, out)), canonical);
    let has_topic =
        std::str::from_utf8(subject).is_ok() && !subject.contains(&0) && !has_empty_token(subject);
    let topic = topic_of(subject, mountpoint);
    assert_eq!(topic.is_some(), has_topic);
    let Some(topic) = topic else {
        return;
    };
    assert!(topic.strip_prefix(mountpoint).is_some_and(is_topic));
    assert_eq!(subject_of(&topic, mountpoint), canonical);
    assert_eq!(topic_of(&canonical, mountpoint), Some(topic));
    let text = String::from_utf8_lossy(subject);
    let is_canonical = !text.contains(|c: char| c.is_whitespace() || c.is_ascii_control());
    assert_eq!(canonical == subject, is_canonical);
    let mut reply_topic = Vec::new();
    assert_eq!(
        write_reply_topic(subject, mountpoint, &mut reply_topic),
        is_canonical
    );
    let mut plain = vec![0; subject.len()];
    if plain_topic(subject, &mut plain) {
        assert_eq!(topic_of(subject, b""), Some(plain));
    }
    let _ = is_valid_publish_subject(subject);
}

/// A subscription gets the same messages on both sides, except for two rules of MQTT: `#` matches
/// the parent, too, and wildcards do not match names that begin with `$`.
fn matches_alike(pattern: &[u8], subject: &[u8]) {
    let mut filter = Vec::new();
    if !write_filter(pattern, b"", &mut filter) {
        return;
    }
    let Some(topic) = topic_of(subject, b"") else {
        return;
    };
    let canonical = |name| written(|out| write_canonical(name, out));
    let (pattern, subject) = (canonical(pattern), canonical(subject));
    let hidden = topic.starts_with(b"$") && matches!(filter.first(), Some(b'+' | b'#'));
    let of_parent = pattern
        .strip_suffix(b".>")
        .is_some_and(|parent| subject_matches(parent, &subject));
    assert_eq!(
        topic_matches(&filter, &topic),
        !hidden && (of_parent || subject_matches(&pattern, &subject))
    );
}

/// Response topic and Correlation Data come back from one subject, and from no other subject.
fn as_reply(name: &[u8], data: &[u8]) {
    if let Some((topic, data)) = correlation(name) {
        assert_eq!(
            written(|out| write_reply(&topic, Some(&data), b"", out)),
            name
        );
    }
    let reply = written(|out| write_reply(name, Some(data), b"", out));
    assert!(!has_empty_token(&reply));
    let published = written(|out| write_published(&reply, out));
    match correlation(&reply) {
        Some((topic, read)) if topic == name => {
            assert_eq!(read, data);
            assert!(reply.iter().all(u8::is_ascii_graphic));
            assert_eq!(published, subject_of(name, b""));
        }
        // It is not a topic, is too long, or reads as such a reply itself.
        _ => assert_eq!(reply, subject_of(name, b"")),
    }
}

/// Share names are legal, and no two groups have the same share name.
fn as_queue(queue: &[u8], other: &[u8]) {
    let Some(name) = share_name(queue) else {
        return assert!(queue.is_empty());
    };
    assert!(std::str::from_utf8(&name).is_ok());
    assert!(!name.iter().any(|byte| b"/+#\0".contains(byte)));
    assert_eq!(share_name(other).as_ref() == Some(&name), other == queue);
    assert!(name == queue || share_name(&name).as_ref() != Some(&name));
}
