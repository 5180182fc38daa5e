//! Which subscriptions get a message, and to which subjects a client may publish.

/// Whether a NATS subscription gets a message: `*` matches any token, a final `>` one or more. A
/// subject with an empty token matches nothing, as in nats-server.
#[must_use]
pub fn subject_matches(pattern: &[u8], subject: &[u8]) -> bool {
    if subject.split(|&byte| byte == b'.').any(<[u8]>::is_empty) {
        return false;
    }
    let mut patterns = pattern.split(|&byte| byte == b'.').peekable();
    let mut tokens = subject.split(|&byte| byte == b'.');
    while let Some(pattern) = patterns.next() {
        let Some(token) = tokens.next() else {
            return false;
        };
        match pattern {
            b">" if patterns.peek().is_none() => return true,
            b"*" => {}
            _ if pattern == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// Whether an MQTT subscription gets a message (MQTT 5, 4.7): `+` matches any level, `#` the parent
/// and any number of levels. Neither matches a first level that begins with `$`.
#[must_use]
pub fn topic_matches(filter: &[u8], topic: &[u8]) -> bool {
    if topic.first() == Some(&b'$') && matches!(filter.first(), Some(b'+' | b'#')) {
        return false;
    }
    let mut levels = topic.split(|&byte| byte == b'/');
    for pattern in filter.split(|&byte| byte == b'/') {
        if pattern == b"#" {
            return true;
        }
        match levels.next() {
            Some(level) if pattern == b"+" || pattern == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// nats-server's check of published subjects for pedantic clients: no token is empty or a wildcard.
#[must_use]
pub fn is_valid_publish_subject(subject: &[u8]) -> bool {
    subject
        .split(|&byte| byte == b'.')
        .all(|token| !matches!(token, b"" | b"*" | b">"))
}
