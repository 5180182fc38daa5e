//! NIFs of the Erlang module `nats_gateway_nif`, whose specifications say what they take and
//! return. Stateless, on normal schedulers; terms that do not fit are `badarg`.

mod decode;
mod encode;
mod terms;

use nats_protocol::connect::Info;
use nats_protocol::headers::Properties;
use nats_protocol::subject;
use rustler::types::atom::Atom;
use rustler::types::map::MapIterator;
use rustler::{Binary, Encoder, Env, Error, NifResult, Term};

use crate::terms::{atoms, binary};

/// Tells the scheduler how much of a time slice, one millisecond, a call took.
///
/// Work is counted in bytes, as what most of it is spent on; callers add an equivalent for what
/// is not. Below one percent there is nothing to tell: the VM charges each call a reduction.
fn consume(env: Env<'_>, work: usize) {
    let percent = work / (WORK_PER_TIMESLICE / 100);
    if percent > 0 {
        rustler::schedule::consume_timeslice(env, i32::try_from(percent.min(100)).unwrap_or(100));
    }
}

/// Bytes that are converted in a millisecond.
const WORK_PER_TIMESLICE: usize = 1024 * 1024;

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
fn share_name<'a>(env: Env<'a>, queue: Binary<'a>) -> Term<'a> {
    optional(env, subject::share_name(&queue).as_deref(), atoms::invalid())
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
    consume(env, block.len());
    let pairs: Vec<(Term<'a>, Term<'a>)> = properties
        .pairs
        .iter()
        .map(|(name, value)| (binary(env, name.as_bytes()), binary(env, value.as_bytes())))
        .collect();
    let content_type =
        optional(env, properties.content_type.map(str::as_bytes), atoms::undefined());
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
            "proto" => info.proto = Some(value.decode()?),
            "git_commit" => info.git_commit = text()?,
            "go" => info.go = text()?,
            "host" => info.host = text()?,
            "port" => info.port = Some(value.decode()?),
            "headers" => info.headers = flag()?,
            "auth_required" => info.auth_required = flag()?,
            "tls_required" => info.tls_required = flag()?,
            "tls_verify" => info.tls_verify = flag()?,
            "tls_available" => info.tls_available = flag()?,
            "max_payload" => info.max_payload = Some(value.decode()?),
            "client_id" => info.client_id = Some(value.decode()?),
            "client_ip" => info.client_ip = text()?,
            "nonce" => info.nonce = text()?,
            "cluster" => info.cluster = text()?,
            "connect_urls" => {
                let mut urls = Vec::new();
                terms::for_each(*value, |url| {
                    urls.push(self::text(url)?);
                    Ok(())
                })?;
                info.connect_urls = Some(urls);
            }
            "ldm" => info.ldm = flag()?,
            "domain" => info.domain = text()?,
            "xkey" => info.xkey = text()?,
            _ => return Err(Error::BadArg),
        }
    }
    let mut line = Vec::new();
    info.write_line(&mut line);
    Ok(binary(env, &line))
}

/// A binary of UTF-8.
fn text(term: Term<'_>) -> NifResult<&str> {
    std::str::from_utf8(Binary::from_term(term)?.as_slice()).map_err(|_| Error::BadArg)
}

rustler::init!("nats_gateway_nif");
