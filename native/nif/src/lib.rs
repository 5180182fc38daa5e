//! The NIFs of the Erlang module `nats_gateway_nif`. Its specifications say what they take and
//! return. They keep no state, and run on normal schedulers unless `login` says otherwise. A term
//! of a wrong type is `badarg`.

mod decode;
mod encode;
mod json;
mod login;
mod mapping;
mod publish_properties;
mod terms;
mod websocket;

use nats_protocol::connect::Info;
use nats_protocol::headers::{MAX_BLOCK, Properties};
use nats_protocol::subject;
use rustler::types::atom::Atom;
use rustler::types::map::MapIterator;
use rustler::{Binary, Encoder, Env, Error, NifResult, Term};

use crate::terms::{atoms, binary};

/// Tells the scheduler how much of a time slice, one millisecond, a call took.
///
/// Work is counted in bytes, because most of it is spent on them. Callers add an equivalent for the
/// rest. Less than one percent is not reported, because the VM charges one reduction for each call.
fn consume(env: Env<'_>, work: usize) {
    let percent = work / (WORK_PER_TIMESLICE / 100);
    if percent > 0 {
        rustler::schedule::consume_timeslice(env, i32::try_from(percent.min(100)).unwrap_or(100));
    }
}

/// The work of a millisecond, measured with small messages on an otherwise idle machine.
const WORK_PER_TIMESLICE: usize = 1024 * 1024;

/// The cost of a header besides its bytes, in bytes.
const WORK_PER_PAIR: usize = 64;

fn optional<'a>(env: Env<'a>, bytes: Option<&[u8]>, otherwise: Atom) -> Term<'a> {
    match bytes {
        Some(bytes) => binary(env, bytes),
        None => otherwise.to_term(env),
    }
}

#[rustler::nif]
fn topic<'a>(env: Env<'a>, subject: Binary<'a>, mountpoint: Binary<'a>) -> Term<'a> {
    decode::topic(env, &subject, &mountpoint, &mut Vec::new())
}

#[rustler::nif]
fn filter<'a>(env: Env<'a>, subject: Binary<'a>, mountpoint: Binary<'a>) -> Term<'a> {
    let mut out = Vec::new();
    let valid = subject::write_filter(&subject, &mountpoint, &mut out);
    optional(env, valid.then_some(&out), atoms::invalid())
}

#[rustler::nif]
fn subject<'a>(env: Env<'a>, topic: Binary<'a>, mountpoint: Binary<'a>) -> Term<'a> {
    let mut out = Vec::new();
    subject::write_subject(&topic, &mountpoint, &mut out);
    binary(env, &out)
}

#[rustler::nif]
fn canonical_subject<'a>(env: Env<'a>, subject: Binary<'a>) -> Term<'a> {
    let mut out = Vec::with_capacity(subject.len());
    subject::write_canonical(&subject, &mut out);
    binary(env, &out)
}

#[rustler::nif]
fn published_subject<'a>(env: Env<'a>, subject: Binary<'a>) -> Term<'a> {
    let mut out = Vec::with_capacity(subject.len());
    subject::write_published(&subject, &mut out);
    binary(env, &out)
}

#[rustler::nif]
fn share_name<'a>(env: Env<'a>, queue: Binary<'a>) -> Term<'a> {
    optional(
        env,
        subject::share_name(&queue).as_deref(),
        atoms::invalid(),
    )
}

#[rustler::nif]
fn subject_matches(pattern: Binary<'_>, subject: Binary<'_>) -> bool {
    subject::subject_matches(&pattern, &subject)
}

#[rustler::nif]
fn topic_matches(filter: Binary<'_>, topic: Binary<'_>) -> bool {
    subject::topic_matches(&filter, &topic)
}

#[rustler::nif]
fn valid_publish_subject(subject: Binary<'_>) -> bool {
    subject::is_valid_publish_subject(&subject)
}

#[rustler::nif]
fn quote<'a>(env: Env<'a>, text: Binary<'a>) -> Term<'a> {
    binary(env, &subject::quote(&text))
}

#[rustler::nif]
fn header_properties<'a>(env: Env<'a>, block: Binary<'a>) -> Term<'a> {
    let properties = Properties::of(&block);
    let size = block.len().min(MAX_BLOCK);
    consume(
        env,
        size.saturating_add(properties.pairs.len().saturating_mul(WORK_PER_PAIR)),
    );
    let pairs: Vec<(Term<'a>, Term<'a>)> = properties
        .pairs
        .iter()
        .map(|(name, value)| (binary(env, name.as_bytes()), binary(env, value.as_bytes())))
        .collect();
    let content_type = optional(
        env,
        properties.content_type.map(str::as_bytes),
        atoms::undefined(),
    );
    (pairs, content_type, properties.exact).encode(env)
}

#[rustler::nif]
fn info<'a>(env: Env<'a>, fields: Term<'a>) -> NifResult<Term<'a>> {
    let fields = MapIterator::new(fields).ok_or(Error::BadArg)?;
    let fields = fields
        .map(|(key, value)| Ok((key.atom_to_string()?, value)))
        .collect::<NifResult<Vec<(String, Term<'a>)>>>()?;
    let mut info = Info::default();
    for (key, value) in &fields {
        let flag = || value.decode::<bool>().map(Some);
        let text = || text(*value).map(Some);
        match key.as_str() {
            "server_id" => info.server_id = text()?,
            "server_name" => info.server_name = text()?,
            "version" => info.version = text()?,
            "proto" => info.proto = Some(number(*value)?),
            "go" => info.go = text()?,
            "host" => info.host = text()?,
            "port" => info.port = Some(number(*value)?),
            "headers" => info.headers = flag()?,
            "auth_required" => info.auth_required = flag()?,
            "tls_required" => info.tls_required = flag()?,
            "tls_verify" => info.tls_verify = flag()?,
            "tls_available" => info.tls_available = flag()?,
            "max_payload" => info.max_payload = Some(number(*value)?),
            "client_id" => info.client_id = Some(number(*value)?),
            "client_ip" => info.client_ip = text()?,
            "nonce" => info.nonce = text()?,
            "ldm" => info.ldm = flag()?,
            _ => return Err(Error::BadArg),
        }
    }
    let mut line = Vec::new();
    info.write_line(&mut line);
    Ok(binary(env, &line))
}

#[rustler::nif]
fn json<'a>(env: Env<'a>, term: Term<'a>) -> NifResult<Term<'a>> {
    let text = json::value(term)?.to_string();
    consume(env, text.len());
    Ok(binary(env, text.as_bytes()))
}

#[rustler::nif]
fn json_decode<'a>(env: Env<'a>, text: Binary<'a>) -> Term<'a> {
    consume(env, text.len());
    match json::term(env, text.as_slice()) {
        Some(term) => (atoms::ok(), term).encode(env),
        None => atoms::error().to_term(env),
    }
}

/// A number in the range of `T`. rustler's own decoder cuts off bits that a small type cannot hold.
fn number<T: TryFrom<u64>>(term: Term<'_>) -> NifResult<T> {
    T::try_from(term.decode()?).map_err(|_| Error::BadArg)
}

/// A binary of UTF-8.
fn text(term: Term<'_>) -> NifResult<&str> {
    std::str::from_utf8(Binary::from_term(term)?.as_slice()).map_err(|_| Error::BadArg)
}

rustler::init!("nats_gateway_nif");
