//! Rules that map subjects to others: see `nats_protocol::subject::mapping`.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use nats_protocol::subject::mapping::{Direction, compile, invert};
use nats_protocol::subject::{write_subject, write_topic};
use rustler::types::atom::Atom;
use rustler::{Binary, Encoder, Env, Error, NifResult, Term};

use crate::terms::{atoms, binary};
use crate::text;

#[rustler::nif]
fn subject_mapping<'a>(env: Env<'a>, rule: Term<'a>, direction: Atom) -> NifResult<Term<'a>> {
    let direction = if direction == atoms::publish_claims() {
        Direction::Publish
    } else if direction == atoms::subscribe() {
        Direction::Subscribe
    } else {
        return Err(Error::BadArg);
    };
    Ok(match compile(text(rule)?, direction) {
        Ok(compiled) => (
            atoms::ok(),
            binary(env, compiled.source.as_bytes()),
            binary(env, &compiled.rule),
        )
            .encode(env),
        Err(error) => (atoms::error(), binary(env, error.to_string().as_bytes())).encode(env),
    })
}

#[rustler::nif]
fn topic_seen<'a>(
    env: Env<'a>,
    topic: Binary<'a>,
    inverse: Binary<'a>,
    mountpoint: Binary<'a>,
) -> Term<'a> {
    let mut subject = Vec::with_capacity(topic.len());
    write_subject(&topic, &mountpoint, &mut subject);
    let mut seen = Vec::with_capacity(topic.len());
    let mut out = Vec::with_capacity(topic.len());
    if invert(&inverse, &subject, &mut seen) && write_topic(&seen, &mountpoint, &mut out) {
        binary(env, &out)
    } else {
        topic.into()
    }
}

/// A number that nobody needs to be unable to guess. The standard library's keys for hash tables
/// come from the system once for each thread, and are others each time.
pub fn random() -> u64 {
    RandomState::new().hash_one(0)
}
