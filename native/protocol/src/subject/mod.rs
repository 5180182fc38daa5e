//! NATS subjects and MQTT topics: conversion, matching, quoting.
//!
//! # The bijection
//!
//! Tokens of a subject are joined by `.`, levels of a topic by `/`, and every token has exactly
//! one level. Plain names are the same on both sides. For the rest:
//!
//! | token | level | |
//! |---|---|---|
//! | `/` | (empty) | an MQTT level may be empty, a token may not |
//! | `+`, `#` | `*`, `>` | each side's wildcards are the other's plain text |
//! | `*`, `>` | `%2A`, `%3E` | published; in a subscription they are the wildcards `+`, `#` |
//! | `a//b` | `a.b` | a dot within a level |
//! | `a/b`, `a+b`, `a#b` | `a%2Fb`, `a%2Bb`, `a%23b` | within a longer token |
//! | `a%20b` | `a b` | also TAB, CR, LF, every other ASCII control character and DEL |
//! | `a%C2%A0b` | `a\u{A0}b` | whatever else Unicode calls white space: async-nats splits there |
//!
//! A run of slashes is as many dots as it has pairs, and one `%2F` if one is left over.
//!
//! Percent sequences stay unchanged, unless they would read as one of the above. In that case, a
//! `25` is inserted after the (first) `%`. In the table, `C` stands for the codes of blanks and
//! control characters, which the NATS side writes. `D` stands for the codes that the MQTT side
//! writes: `2F 2B 23` and, as a whole token, `2A 3E`.
//!
//! | token | level |
//! |---|---|
//! | `%20`, `%2520`, `%252520` | ` `, `%20`, `%2520` (C) |
//! | `/`, `%2F`, `%252F` in a longer token | `%2F`, `%252F`, `%25252F` (D) |
//!
//! Sequences of D are plain text, on both sides, if the other side cannot mean them:
//!
//! * `2F` followed by a slash in the token, which is a dot or another `%2F` in the level: `/` and
//!   `//` after it would have been a longer run;
//! * `2F`, `2B` and `23` as the whole token, and `2A` and `3E` as a part of one.
//!
//! The conversion is a bijection between the subjects without white space and control characters,
//! and the topics. A raw white space or control character in a subject passes to the topic
//! unchanged, and comes back percent-encoded. NUL, and text that is not UTF-8, has no topic.
//!
//! # Correlated reply subjects
//!
//! The reply subject of an MQTT 5 request with Correlation Data must hold both the Response Topic
//! and the data: `_MQTT.t<topic>.c<data>`, base64url without padding, the topic without the
//! mountpoint. No state is kept, so any connection on any node can answer. See [`write_reply`] and
//! [`correlation`].

mod convert;
mod escape;
pub mod mapping;
mod matching;
mod plain;
mod quote;
mod reply;
mod share;

pub use convert::{
    plain_topic, write_canonical, write_filter, write_published, write_subject, write_topic,
};
pub(crate) use escape::{wide_blank, write_wide_blank};
pub use matching::{is_valid_publish_subject, subject_matches, topic_matches};
pub use quote::quote;
pub use reply::{MAX_CORRELATED_REPLY, correlation, write_reply, write_reply_topic};
pub use share::share_name;

/// Most bytes of an MQTT topic or filter, mountpoint included (MQTT 5, 1.5.4).
pub const MAX_TOPIC: usize = 65_535;
