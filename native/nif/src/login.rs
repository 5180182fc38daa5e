//! Functions that check a login: NKeys, NATS JWTs and bcrypt. Functions that take long, or as long
//! as a client likes, run on a dirty scheduler.

use std::net::IpAddr;

use nats_protocol::jwt::{
    self, Account, Claims, Hours, JwtError, Operator, Permission, Permissions, TimeRange, Token,
    User, UserLimits,
};
use nats_protocol::nkey::{self, Role};
use rustler::types::atom::Atom;
use rustler::{Binary, Encoder, Env, NifResult, Term};

use crate::consume;
use crate::terms::{atoms, binary, for_each};

/// The work of one Ed25519 verification, in bytes: a tenth of a millisecond.
const WORK_PER_VERIFICATION: usize = crate::WORK_PER_TIMESLICE / 10;

#[rustler::nif]
fn nkey_role(public_key: Binary<'_>) -> Atom {
    match str(&public_key).and_then(nkey::role) {
        Some(Role::Operator) => atoms::operator(),
        Some(Role::Account) => atoms::account(),
        Some(Role::User) => atoms::user(),
        Some(Role::Other) => atoms::other(),
        None => atoms::invalid(),
    }
}

#[rustler::nif]
fn nkey_verify(
    env: Env<'_>,
    public_key: Binary<'_>,
    message: Binary<'_>,
    signature: Binary<'_>,
) -> bool {
    consume(env, WORK_PER_VERIFICATION);
    str(&public_key)
        .zip(str(&signature).and_then(nkey::signature))
        .is_some_and(|(key, signature)| nkey::verify(key, &message, &signature))
}

#[rustler::nif(schedule = "DirtyCpu")]
fn jwt_decode<'a>(env: Env<'a>, token: Binary<'a>) -> NifResult<Term<'a>> {
    let decoded = str(&token).ok_or(JwtError::Malformed);
    match decoded.and_then(jwt::decode) {
        Ok(token) => Ok((atoms::ok(), token_term(env, &token)?).encode(env)),
        Err(error) => Ok((atoms::error(), text(env, &error.to_string())).encode(env)),
    }
}

#[rustler::nif]
fn jwt_source_allowed<'a>(networks: Term<'a>, address: Binary<'a>) -> NifResult<bool> {
    let networks = strings(networks)?;
    let address: Option<IpAddr> = str(&address).and_then(|address| address.parse().ok());
    Ok(match address {
        Some(address) => jwt::is_source_allowed(networks.iter().copied(), address),
        None => networks.is_empty(),
    })
}

#[rustler::nif]
fn jwt_hours<'a>(
    env: Env<'a>,
    times: Term<'a>,
    location: Binary<'a>,
    offset: i32,
    now: i64,
) -> NifResult<Term<'a>> {
    let mut ranges = Vec::new();
    for_each(times, |range| {
        let (start, end): (&str, &str) = range.decode()?;
        ranges.push(TimeRange {
            start: start.to_owned(),
            end: end.to_owned(),
        });
        Ok(())
    })?;
    let location = str(&location).ok_or(rustler::Error::BadArg)?;
    Ok(match jwt::hours(&ranges, location, offset, now) {
        Hours::Always => atoms::infinity().encode(env),
        Hours::For(milliseconds) => milliseconds.encode(env),
        Hours::Closed => atoms::closed().encode(env),
    })
}

#[rustler::nif(schedule = "DirtyCpu")]
fn bcrypt_verify(password: Binary<'_>, hash: Binary<'_>) -> bool {
    str(&hash).is_some_and(|hash| bcrypt::verify(password.as_slice(), hash).unwrap_or(false))
}

#[rustler::nif]
fn bcrypt_cost<'a>(env: Env<'a>, hash: Binary<'a>) -> Term<'a> {
    match str(&hash).map(str::parse::<bcrypt::HashParts>) {
        Some(Ok(parts)) => parts.get_cost().encode(env),
        _ => atoms::invalid().encode(env),
    }
}

fn str<'a>(bytes: &'a Binary<'_>) -> Option<&'a str> {
    std::str::from_utf8(bytes.as_slice()).ok()
}

fn strings(list: Term<'_>) -> NifResult<Vec<&str>> {
    let mut strings = Vec::new();
    for_each(list, |string| {
        strings.push(string.decode()?);
        Ok(())
    })?;
    Ok(strings)
}

fn text<'a>(env: Env<'a>, text: &str) -> Term<'a> {
    binary(env, text.as_bytes())
}

fn texts<'a>(env: Env<'a>, list: &[String]) -> Term<'a> {
    list.iter()
        .map(|entry| text(env, entry))
        .collect::<Vec<Term<'a>>>()
        .encode(env)
}

fn map<'a>(env: Env<'a>, fields: &[(Atom, Term<'a>)]) -> NifResult<Term<'a>> {
    let (keys, values): (Vec<Term<'a>>, Vec<Term<'a>>) = fields
        .iter()
        .map(|(key, value)| (key.to_term(env), *value))
        .unzip();
    Term::map_from_term_arrays(env, &keys, &values)
}

fn token_term<'a>(env: Env<'a>, token: &Token) -> NifResult<Term<'a>> {
    let (kind, claims) = match &token.claims {
        Claims::Operator(operator) => (atoms::operator(), operator_term(env, operator)?),
        Claims::Account(account) => (atoms::account(), account_term(env, account)?),
        Claims::User(user) => (atoms::user(), user_term(env, user)?),
    };
    map(
        env,
        &[
            (atoms::kind(), kind.encode(env)),
            (atoms::issuer(), text(env, &token.issuer)),
            (atoms::subject(), text(env, &token.subject)),
            (atoms::name(), text(env, &token.name)),
            (atoms::issued_at(), token.issued_at.encode(env)),
            (atoms::expires(), token.expires.encode(env)),
            (atoms::not_before(), token.not_before.encode(env)),
            (atoms::claims(), claims),
        ],
    )
}

fn operator_term<'a>(env: Env<'a>, operator: &Operator) -> NifResult<Term<'a>> {
    map(
        env,
        &[
            (atoms::signing_keys(), texts(env, &operator.signing_keys)),
            (
                atoms::strict_signing_key_usage(),
                operator.strict_signing_key_usage.encode(env),
            ),
        ],
    )
}

fn account_term<'a>(env: Env<'a>, account: &Account) -> NifResult<Term<'a>> {
    let signing_keys = account
        .signing_keys
        .iter()
        .map(|key| {
            let template = match &key.template {
                None => atoms::undefined().encode(env),
                Some(limits) => limits_term(env, limits)?,
            };
            Ok((text(env, &key.key), template).encode(env))
        })
        .collect::<NifResult<Vec<Term<'a>>>>()?;
    let revocations: Vec<(Term<'a>, i64)> = account
        .revocations
        .iter()
        .map(|(user, until)| (text(env, user), *until))
        .collect();
    map(
        env,
        &[
            (atoms::signing_keys(), signing_keys.encode(env)),
            (atoms::revocations(), revocations.encode(env)),
            (
                atoms::default_permissions(),
                permissions_term(env, &account.default_permissions)?,
            ),
            (atoms::tags(), texts(env, &account.tags)),
            (atoms::subs(), account.limits.subs.encode(env)),
            (atoms::payload(), account.limits.payload.encode(env)),
            (atoms::connections(), account.limits.connections.encode(env)),
            (
                atoms::disallow_bearer(),
                account.limits.disallow_bearer.encode(env),
            ),
        ],
    )
}

fn user_term<'a>(env: Env<'a>, user: &User) -> NifResult<Term<'a>> {
    map(
        env,
        &[
            (atoms::issuer_account(), text(env, &user.issuer_account)),
            (atoms::tags(), texts(env, &user.tags)),
            (atoms::limits(), limits_term(env, &user.limits)?),
            (
                atoms::outer_permissions(),
                permissions_term(env, &user.outer_permissions)?,
            ),
            // The JWT of a user of a scoped signing key must not state permissions of its own.
            (
                atoms::has_limits(),
                (user.limits != UserLimits::default()).encode(env),
            ),
        ],
    )
}

fn limits_term<'a>(env: Env<'a>, limits: &UserLimits) -> NifResult<Term<'a>> {
    let times: Vec<(Term<'a>, Term<'a>)> = limits
        .times
        .iter()
        .map(|range| (text(env, &range.start), text(env, &range.end)))
        .collect();
    map(
        env,
        &[
            (
                atoms::permissions(),
                permissions_term(env, &limits.permissions)?,
            ),
            (atoms::src(), texts(env, &limits.src)),
            (atoms::times(), times.encode(env)),
            (atoms::times_location(), text(env, &limits.times_location)),
            (atoms::subs(), limits.subs.encode(env)),
            (atoms::payload(), limits.payload.encode(env)),
            (atoms::bearer_token(), limits.bearer_token.encode(env)),
            (
                atoms::allowed_connection_types(),
                texts(env, &limits.allowed_connection_types),
            ),
        ],
    )
}

fn permissions_term<'a>(env: Env<'a>, permissions: &Permissions) -> NifResult<Term<'a>> {
    let one = |permission: &Permission| {
        map(
            env,
            &[
                (atoms::allow(), texts(env, &permission.allow)),
                (atoms::deny(), texts(env, &permission.deny)),
            ],
        )
    };
    let responses = match permissions.resp {
        None => atoms::undefined().encode(env),
        Some(responses) => (responses.max, responses.ttl).encode(env),
    };
    map(
        env,
        &[
            (atoms::publish_claims(), one(&permissions.publish)?),
            (atoms::subscribe(), one(&permissions.subscribe)?),
            (atoms::responses(), responses),
        ],
    )
}
