//! NATS JWTs: what an operator says about an account, and an account about a user
//! (docs/protocol.md section 7).
//!
//! [`decode`] checks a token by itself: its form, the signature of its issuer, and that this kind
//! of issuer may issue this kind of token. The caller decides whom to trust, and what holds now.
//!
//! A limit of -1 is no limit. A limit that is absent is 0, as in nats-server: the tools write all
//! of them.
//!
//! Tokens of version 1 (until 2020) are read as nats-server reads them: kind, tags and account
//! stand beside `nats`, only the claims are signed, and an absent limit of a user is no limit.

use std::collections::BTreeMap;
use std::net::IpAddr;

use data_encoding::BASE64URL_NOPAD;
use ipnet::IpNet;
use jiff::civil::{Date, Time};
use jiff::tz::{Offset, TimeZone};
use jiff::{Timestamp, Zoned};
use serde::de::{DeserializeOwned, Deserializer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::nkey::{Role, role, verify};

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum JwtError {
    /// Not three parts of base64 (URL alphabet, no padding), or a part is not the JSON it should
    /// be.
    #[error("not a NATS JWT")]
    Malformed,
    /// A header other than `{"typ":"JWT","alg":"ed25519-nkey"}`; version 1 had `ed25519`.
    #[error("the header must be of type JWT and algorithm ed25519-nkey")]
    Algorithm,
    /// Neither version 1 nor 2.
    #[error("only JWTs of versions 1 and 2 are supported")]
    Version,
    /// `nats.type` (`type` in version 1) is not operator, account or user.
    #[error("neither an operator, account nor user JWT")]
    Kind,
    /// `iss` is not a key of a role that may issue this.
    #[error("the issuer may not issue such a JWT")]
    Issuer,
    /// `sub` is not a key of the token's kind.
    #[error("the subject is not the public key of what the JWT is for")]
    Subject,
    /// Not signed by `iss`.
    #[error("the signature is not the issuer's")]
    Signature,
    /// A permission has text that is not a subject.
    #[error("a permission is not a valid subject")]
    Permission,
    /// The claim `permissions` beside `nats` cannot be read.
    #[error(
        "the claim permissions may have pub and sub (or publish and subscribe), with lists allow and deny"
    )]
    OuterPermissions,
    /// An entry of `src` is not a network.
    #[error("a source network is not valid")]
    Network,
    /// A time of day is not `HH:MM:SS`, or its time zone is unknown.
    #[error("a time range or its location is not valid")]
    Times,
}

/// A token that its issuer has signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Public key of the issuer.
    pub issuer: String,
    /// Public key of the subject of the token.
    pub subject: String,
    /// The name of the subject, for people.
    pub name: String,
    /// Seconds of Unix time.
    pub issued_at: i64,
    /// Seconds of Unix time; 0 is never.
    pub expires: i64,
    /// Seconds of Unix time; 0 is always.
    pub not_before: i64,
    /// Claims that depend on the kind of the token.
    pub claims: Claims,
}

/// The claims about the subject of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claims {
    /// The root of trust.
    Operator(Operator),
    /// An account, to which users belong.
    Account(Box<Account>),
    /// A user, who logs in.
    User(Box<User>),
}

/// The claims about an operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Operator {
    /// Other keys with which it signs accounts.
    #[serde(deserialize_with = "nullable")]
    pub signing_keys: Vec<String>,
    /// Accounts must be signed with one of those, not with its own key.
    #[serde(deserialize_with = "nullable")]
    pub strict_signing_key_usage: bool,
}

/// The claims about an account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Account {
    /// Other keys with which it signs users.
    #[serde(deserialize_with = "nullable")]
    pub signing_keys: Vec<SigningKey>,
    /// Users (or `*`) with a time (seconds of Unix time): tokens issued up to then are void.
    #[serde(deserialize_with = "nullable")]
    pub revocations: BTreeMap<String, i64>,
    /// The permissions of users that have none of their own.
    #[serde(deserialize_with = "nullable")]
    pub default_permissions: Permissions,
    /// `name:value`, for templates.
    #[serde(deserialize_with = "nullable")]
    pub tags: Vec<String>,
    /// Limits of each of its connections, or of all of them together.
    #[serde(deserialize_with = "nullable")]
    pub limits: AccountLimits,
}

/// The limits of an account that matter to its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AccountLimits {
    /// Subscriptions.
    #[serde(deserialize_with = "nullable")]
    pub subs: i64,
    /// Bytes of one message.
    #[serde(deserialize_with = "nullable")]
    pub payload: i64,
    /// Connections of all its users at the same time.
    #[serde(rename = "conn", deserialize_with = "nullable")]
    pub connections: i64,
    /// Every user must sign the nonce.
    #[serde(deserialize_with = "nullable")]
    pub disallow_bearer: bool,
}

/// A key with which an account signs users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningKey {
    /// Public key.
    pub key: String,
    /// What all its users may do. It takes the place of the limits in their tokens.
    pub template: Option<UserLimits>,
}

/// The claims about a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct User {
    /// The account, if the issuer is one of its signing keys.
    #[serde(deserialize_with = "nullable")]
    pub issuer_account: String,
    /// `name:value`, for templates.
    #[serde(deserialize_with = "nullable")]
    pub tags: Vec<String>,
    /// What this user may do.
    #[serde(flatten)]
    pub limits: UserLimits,
    /// Permissions beside `nats`, which EMQX's own gateway reads. They allow no more than `nats`
    /// does.
    #[serde(skip)]
    pub outer_permissions: Permissions,
}

/// What a user may do, and from where and when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct UserLimits {
    /// Subjects.
    #[serde(flatten)]
    pub permissions: Permissions,
    /// Networks (CIDR) from which the user may log in; without any, all.
    #[serde(deserialize_with = "networks")]
    pub src: Vec<String>,
    /// Times of the day at which the user may be connected; without any, all.
    #[serde(deserialize_with = "nullable")]
    pub times: Vec<TimeRange>,
    /// IANA name of the time zone of these times; empty is the server's.
    #[serde(deserialize_with = "nullable")]
    pub times_location: String,
    /// Subscriptions.
    #[serde(deserialize_with = "nullable")]
    pub subs: i64,
    /// Bytes in all. Nothing reads it.
    #[serde(deserialize_with = "nullable")]
    pub data: i64,
    /// Bytes of one message.
    #[serde(deserialize_with = "nullable")]
    pub payload: i64,
    /// The token alone is enough, without a signature of the nonce.
    #[serde(deserialize_with = "nullable")]
    pub bearer_token: bool,
    /// `STANDARD`, `WEBSOCKET`, …; without any, all.
    #[serde(deserialize_with = "nullable")]
    pub allowed_connection_types: Vec<String>,
}

/// Subjects to publish and to subscribe to. The long names are those of EMQX's own gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Permissions {
    /// Publish.
    #[serde(rename = "pub", alias = "publish", deserialize_with = "nullable")]
    pub publish: Permission,
    /// Subscribe; `subject queue` is for that queue group.
    #[serde(rename = "sub", alias = "subscribe", deserialize_with = "nullable")]
    pub subscribe: Permission,
    /// Publishing to the reply subjects of received messages.
    pub resp: Option<ResponsePermission>,
}

/// Without allowed subjects all are allowed, except the denied ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Permission {
    /// Subjects with wildcards.
    #[serde(deserialize_with = "nullable")]
    pub allow: Vec<String>,
    /// Subjects with wildcards. These win.
    #[serde(deserialize_with = "nullable")]
    pub deny: Vec<String>,
}

/// How many responses to one request, and how long after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ResponsePermission {
    /// 0 is the default, a negative number is no limit.
    #[serde(deserialize_with = "nullable")]
    pub max: i64,
    /// Nanoseconds; 0 is the default, a negative number is no limit.
    #[serde(deserialize_with = "nullable")]
    pub ttl: i64,
}

/// Two times, `HH:MM:SS`. A range that ends before it begins ends on the next day.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct TimeRange {
    /// First second.
    #[serde(deserialize_with = "nullable")]
    pub start: String,
    /// Second after the last.
    #[serde(deserialize_with = "nullable")]
    pub end: String,
}

/// Reads a token.
///
/// # Errors
///
/// The first thing that is wrong with the token. Of an unsigned token only that is read which is
/// needed to find out its issuer.
pub fn decode(token: &str) -> Result<Token, JwtError> {
    let mut parts = token.split('.');
    let (Some(header), Some(claims), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(JwtError::Malformed);
    };
    let header: Header = json(&base64(header)?)?;
    let algorithm = header.alg.to_ascii_lowercase();
    if !header.typ.eq_ignore_ascii_case("JWT")
        || !matches!(algorithm.as_str(), "ed25519-nkey" | "ed25519")
    {
        return Err(JwtError::Algorithm);
    }
    let signature = base64(signature)?;
    let encoded = claims;
    let claims = base64(encoded)?;
    let envelope: Envelope<Kind> = json(&claims)?;
    let (version, kind) = if envelope.r#type.is_empty() {
        (envelope.nats.version, envelope.nats.r#type.as_str())
    } else {
        (1, envelope.r#type.as_str())
    };
    let signed = if version < 2 {
        encoded
    } else {
        token.rsplit_once('.').map_or("", |(signed, _)| signed)
    };
    if !verify(&envelope.iss, signed.as_bytes(), &signature) {
        return Err(JwtError::Signature);
    }
    if !(1..=2).contains(&version) {
        return Err(JwtError::Version);
    }
    let (issuers, subject): (&[Role], Role) = match kind {
        "operator" => (&[Role::Operator], Role::Operator),
        "account" => (&[Role::Operator, Role::Account], Role::Account),
        "user" => (&[Role::Account], Role::User),
        _ => return Err(JwtError::Kind),
    };
    if !role(&envelope.iss).is_some_and(|role| issuers.contains(&role)) {
        return Err(JwtError::Issuer);
    }
    if role(&envelope.sub) != Some(subject) {
        return Err(JwtError::Subject);
    }
    let claims = match subject {
        Role::Operator => {
            let mut operator = json::<Envelope<Operator>>(&claims)?.nats;
            // Version 1 had no such claim.
            operator.strict_signing_key_usage &= version > 1;
            Claims::Operator(operator)
        }
        Role::Account => {
            let mut account = json::<Envelope<Account>>(&claims)?.nats;
            if version == 1 {
                account.migrate(&envelope)?;
            }
            account.validate()?;
            Claims::Account(Box::new(account))
        }
        Role::User | Role::Other => {
            let mut user = json::<Envelope<User>>(&claims)?.nats;
            if version == 1 {
                let stated = json::<Envelope<StatedLimits>>(&claims)?.nats;
                user.migrate(&envelope, &stated);
            }
            user.outer_permissions = outer_permissions(&claims)?;
            user.outer_permissions.validate()?;
            user.limits.validate()?;
            Claims::User(Box::new(user))
        }
    };
    Ok(Token {
        issuer: envelope.iss,
        subject: envelope.sub,
        name: envelope.name,
        issued_at: envelope.iat,
        expires: envelope.exp,
        not_before: envelope.nbf,
        claims,
    })
}

impl Account {
    /// Takes what stood elsewhere in version 1, and drops what version 1 did not have.
    fn migrate(&mut self, envelope: &Envelope<Kind>) -> Result<(), JwtError> {
        if self.signing_keys.iter().any(|key| key.template.is_some()) {
            return Err(JwtError::Malformed);
        }
        self.tags.clone_from(&envelope.tags);
        self.default_permissions = Permissions::default();
        Ok(())
    }

    fn validate(&self) -> Result<(), JwtError> {
        // The subjects of a template are checked when it is filled in.
        self.default_permissions.validate()
    }
}

impl User {
    /// The same for a user, and the limits of version 1.
    fn migrate(&mut self, envelope: &Envelope<Kind>, stated: &StatedLimits) {
        self.issuer_account.clone_from(&envelope.issuer_account);
        self.tags.clone_from(&envelope.tags);
        self.limits.allowed_connection_types.clear();
        self.limits.subs = stated.subs.unwrap_or(NO_LIMIT);
        self.limits.data = stated.data.unwrap_or(NO_LIMIT);
        self.limits.payload = stated.payload.unwrap_or(NO_LIMIT);
    }
}

impl UserLimits {
    fn validate(&self) -> Result<(), JwtError> {
        self.permissions.validate()?;
        for network in &self.src {
            network
                .parse::<IpNet>()
                .map_err(|_| JwtError::Network)
                .map(drop)?;
        }
        for range in &self.times {
            range.parse()?;
        }
        time_zone(&self.times_location, 0).map(drop)
    }
}

impl Permissions {
    fn validate(&self) -> Result<(), JwtError> {
        let publish = self.publish.allow.iter().chain(&self.publish.deny);
        let mut subscribe = self.subscribe.allow.iter().chain(&self.subscribe.deny);
        let valid = publish.into_iter().all(|subject| is_subject(subject))
            && subscribe.all(|entry| match entry.split_once(' ') {
                Some((subject, queue)) => is_subject(subject) && is_subject(queue),
                None => is_subject(entry),
            });
        valid.then_some(()).ok_or(JwtError::Permission)
    }
}

/// nats-server does not know this claim. What cannot be read might be a denial, so it is an error.
fn outer_permissions(claims: &[u8]) -> Result<Permissions, JwtError> {
    #[derive(Deserialize)]
    struct Outer {
        #[serde(default)]
        permissions: Value,
    }
    let mut read = Permissions::default();
    for (key, value) in object(json::<Outer>(claims)?.permissions)? {
        let permission = match key.as_str() {
            "pub" | "publish" => &mut read.publish,
            "sub" | "subscribe" => &mut read.subscribe,
            _ => return Err(JwtError::OuterPermissions),
        };
        if *permission != Permission::default() {
            return Err(JwtError::OuterPermissions);
        }
        for (key, value) in object(value)? {
            let subjects = match key.as_str() {
                "allow" => &mut permission.allow,
                "deny" => &mut permission.deny,
                _ => return Err(JwtError::OuterPermissions),
            };
            let listed: Option<Vec<String>> =
                serde_json::from_value(value).map_err(|_| JwtError::OuterPermissions)?;
            *subjects = listed.unwrap_or_default();
        }
    }
    Ok(read)
}

fn object(value: Value) -> Result<Map<String, Value>, JwtError> {
    match value {
        Value::Null => Ok(Map::new()),
        Value::Object(map) => Ok(map),
        _ => Err(JwtError::OuterPermissions),
    }
}

/// The tools' rule for a subject: no blank and no empty token.
fn is_subject(subject: &str) -> bool {
    !subject.contains(' ') && subject.split('.').all(|token| !token.is_empty())
}

/// Whether an address is in one of the networks. Without networks every address is. Text that is no
/// network holds no address.
#[must_use]
pub fn is_source_allowed<'a>(mut src: impl Iterator<Item = &'a str>, address: IpAddr) -> bool {
    let address = address.to_canonical();
    let Some(first) = src.next() else {
        return true;
    };
    std::iter::once(first)
        .chain(src)
        .filter_map(|network| network.parse::<IpNet>().ok())
        .any(|network| network.contains(&address))
}

/// Whether a user may be connected now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hours {
    /// There is no limit of time.
    Always,
    /// Yes, for this many milliseconds.
    For(i64),
    /// No.
    Closed,
}

/// Looks for the range that holds `now`, in milliseconds of Unix time. `offset` is for an empty
/// location: the seconds that the clock of the server is ahead of UTC.
#[must_use]
pub fn hours(times: &[TimeRange], location: &str, offset: i32, now: i64) -> Hours {
    if times.is_empty() {
        return Hours::Always;
    }
    let (Ok(zone), Ok(now)) = (
        time_zone(location, offset),
        Timestamp::from_millisecond(now),
    ) else {
        return Hours::Closed;
    };
    let now = now.to_zoned(zone);
    times
        .iter()
        .filter_map(|range| range.remaining(&now))
        .max()
        .map_or(Hours::Closed, Hours::For)
}

impl TimeRange {
    fn parse(&self) -> Result<(Time, Time), JwtError> {
        let time = |text: &str| Time::strptime("%H:%M:%S", text).map_err(|_| JwtError::Times);
        Ok((time(&self.start)?, time(&self.end)?))
    }

    /// Milliseconds until the end of the range that began today or yesterday.
    fn remaining(&self, now: &Zoned) -> Option<i64> {
        let (start, end) = self.parse().ok()?;
        let today = now.date();
        [Some(today), today.yesterday().ok()]
            .into_iter()
            .flatten()
            .find_map(|day| {
                let last = if start > end {
                    day.tomorrow().ok()?
                } else {
                    day
                };
                let instant = |date: Date, time: Time| {
                    let zoned = date.to_datetime(time).to_zoned(now.time_zone().clone());
                    zoned.ok().map(|zoned| zoned.timestamp().as_millisecond())
                };
                let current = now.timestamp().as_millisecond();
                let left = instant(last, end)?.saturating_sub(current);
                (instant(day, start)? <= current && left > 0).then_some(left)
            })
    }
}

fn time_zone(location: &str, offset: i32) -> Result<TimeZone, JwtError> {
    if location.is_empty() {
        Offset::from_seconds(offset)
            .map(Offset::to_time_zone)
            .map_err(|_| JwtError::Times)
    } else {
        TimeZone::get(location).map_err(|_| JwtError::Times)
    }
}

#[derive(Deserialize)]
struct Header {
    typ: String,
    alg: String,
}

/// The claims that all tokens have; `nats` is what depends on the kind.
#[derive(Deserialize)]
#[serde(bound(deserialize = "N: Default + Deserialize<'de>"))]
struct Envelope<N> {
    #[serde(default, deserialize_with = "nullable")]
    iss: String,
    #[serde(default, deserialize_with = "nullable")]
    sub: String,
    #[serde(default, deserialize_with = "nullable")]
    name: String,
    #[serde(default, deserialize_with = "nullable")]
    iat: i64,
    #[serde(default, deserialize_with = "nullable")]
    exp: i64,
    #[serde(default, deserialize_with = "nullable")]
    nbf: i64,
    /// In version 1 only, as the next two.
    #[serde(default, deserialize_with = "nullable")]
    r#type: String,
    #[serde(default, deserialize_with = "nullable")]
    tags: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    issuer_account: String,
    #[serde(default, deserialize_with = "nullable")]
    nats: N,
}

const NO_LIMIT: i64 = -1;

/// The limits that a user's token has.
#[derive(Default, Deserialize)]
#[serde(default)]
struct StatedLimits {
    subs: Option<i64>,
    data: Option<i64>,
    payload: Option<i64>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Kind {
    #[serde(deserialize_with = "nullable")]
    r#type: String,
    #[serde(deserialize_with = "nullable")]
    version: i64,
}

impl<'de> Deserialize<'de> for SigningKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Entry {
            Key(String),
            Scope {
                kind: Scope,
                key: String,
                #[serde(default)]
                template: Box<UserLimits>,
            },
        }
        #[derive(Deserialize)]
        enum Scope {
            #[serde(rename = "user_scope")]
            User,
        }
        Ok(match Entry::deserialize(deserializer)? {
            Entry::Key(key) => Self {
                key,
                template: None,
            },
            Entry::Scope {
                kind: Scope::User,
                key,
                template,
            } => Self {
                key,
                template: Some(*template),
            },
        })
    }
}

/// Go reads null as the zero value.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A list, or one string with commas.
fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum List {
        List(Vec<String>),
        Text(String),
    }
    Ok(match Option::deserialize(deserializer)? {
        None => Vec::new(),
        Some(List::List(list)) => list,
        Some(List::Text(text)) => text
            .split(',')
            .map(str::trim)
            .filter(|network| !network.is_empty())
            .map(str::to_owned)
            .collect(),
    })
}

fn base64(text: &str) -> Result<Vec<u8>, JwtError> {
    BASE64URL_NOPAD
        .decode(text.as_bytes())
        .map_err(|_| JwtError::Malformed)
}

fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JwtError> {
    serde_json::from_slice(bytes).map_err(|_| JwtError::Malformed)
}

#[cfg(test)]
#[allow(clippy::restriction)]
mod tests {
    use super::*;
    use nkeys::KeyPair;
    use proptest::prelude::*;
    use serde_json::json;

    fn token(issuer: &KeyPair, claims: &Value) -> String {
        token_with(
            issuer,
            &json!({"typ": "JWT", "alg": "ed25519-nkey"}),
            claims,
        )
    }

    fn token_with(issuer: &KeyPair, header: &Value, claims: &Value) -> String {
        let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = issuer.sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))
    }

    fn user_claims(issuer: &KeyPair, subject: &KeyPair, nats: Value) -> Value {
        let mut claims = json!({
            "iss": issuer.public_key(), "sub": subject.public_key(), "name": "u", "iat": 1,
            "nats": {"type": "user", "version": 2},
        });
        let target = claims["nats"].as_object_mut().unwrap();
        target.extend(nats.as_object().unwrap().clone());
        claims
    }

    fn user(nats: Value) -> Result<Token, JwtError> {
        let account = KeyPair::new_account();
        decode(&token(
            &account,
            &user_claims(&account, &KeyPair::new_user(), nats),
        ))
    }

    fn limits(nats: Value) -> UserLimits {
        match user(nats).unwrap().claims {
            Claims::User(user) => user.limits,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn user_claims_are_read() {
        let account = KeyPair::new_account();
        let pair = KeyPair::new_user();
        let mut claims = user_claims(
            &account,
            &pair,
            json!({
                "issuer_account": "A…", "tags": ["a:b"], "subs": 3, "data": -1, "payload": 4,
                "pub": {"allow": ["a.>"], "deny": ["a.b"]}, "sub": {"allow": ["s q.*"]},
                "resp": {"max": 2, "ttl": 1_000_000_000}, "src": "10.0.0.0/8, ::1/128",
                "times": [{"start": "01:00:00", "end": "02:00:00"}],
                "times_location": "Europe/Berlin", "bearer_token": true,
                "allowed_connection_types": ["STANDARD"],
            }),
        );
        claims["exp"] = json!(7);
        claims["nbf"] = json!(6);
        let token = decode(&token(&account, &claims)).unwrap();
        assert_eq!(token.issuer, account.public_key());
        assert_eq!(token.subject, pair.public_key());
        assert_eq!(
            (token.issued_at, token.expires, token.not_before),
            (1, 7, 6)
        );
        let Claims::User(user) = token.claims else {
            panic!("not a user")
        };
        assert_eq!(user.issuer_account, "A…");
        assert_eq!(user.tags, ["a:b"]);
        assert_eq!(
            user.limits,
            UserLimits {
                permissions: Permissions {
                    publish: Permission {
                        allow: vec!["a.>".into()],
                        deny: vec!["a.b".into()],
                    },
                    subscribe: Permission {
                        allow: vec!["s q.*".into()],
                        deny: vec![],
                    },
                    resp: Some(ResponsePermission {
                        max: 2,
                        ttl: 1_000_000_000,
                    }),
                },
                src: vec!["10.0.0.0/8".into(), "::1/128".into()],
                times: vec![TimeRange {
                    start: "01:00:00".into(),
                    end: "02:00:00".into(),
                }],
                times_location: "Europe/Berlin".into(),
                subs: 3,
                data: -1,
                payload: 4,
                bearer_token: true,
                allowed_connection_types: vec!["STANDARD".into()],
            }
        );
    }

    #[test]
    fn absent_and_null_are_zero() {
        let nothing = UserLimits::default();
        assert_eq!(limits(json!({})), nothing);
        assert_eq!(
            limits(
                json!({"pub": null, "sub": {"allow": null}, "resp": null, "src": null,
                "times": null, "times_location": null, "subs": null, "payload": null,
                "bearer_token": null, "allowed_connection_types": null})
            ),
            nothing
        );
    }

    #[test]
    fn what_a_permission_must_look_like() {
        for list in [json!([""]), json!(["a..b"]), json!([".a"]), json!(["a."])] {
            for key in ["allow", "deny"] {
                for direction in ["pub", "sub"] {
                    let permission = json!({direction: {key: list}});
                    assert_eq!(user(permission).unwrap_err(), JwtError::Permission);
                }
            }
        }
        assert_eq!(
            user(json!({"pub": {"allow": ["a q"]}})).unwrap_err(),
            JwtError::Permission
        );
        assert_eq!(
            user(json!({"sub": {"allow": ["a b c"]}})).unwrap_err(),
            JwtError::Permission
        );
        assert_eq!(
            limits(json!({"sub": {"deny": ["a.* q.>"]}}))
                .permissions
                .subscribe
                .deny,
            ["a.* q.>"]
        );
    }

    fn with_permissions(permissions: &Value, nats: Value) -> Result<User, JwtError> {
        let account = KeyPair::new_account();
        let mut claims = user_claims(&account, &KeyPair::new_user(), nats);
        claims["permissions"] = permissions.clone();
        decode(&token(&account, &claims)).map(|token| match token.claims {
            Claims::User(user) => *user,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn permissions_beside_nats_are_read() {
        let read = |permissions| {
            with_permissions(&permissions, json!({"pub": {"allow": ["n"]}}))
                .map(|user| (user.outer_permissions, user.limits.permissions))
        };
        let inner = Permissions {
            publish: Permission {
                allow: vec!["n".into()],
                deny: vec![],
            },
            ..Permissions::default()
        };
        let outer = Permissions {
            publish: Permission {
                allow: vec!["a.>".into()],
                deny: vec!["a.b".into()],
            },
            subscribe: Permission {
                allow: vec![],
                deny: vec!["s q".into()],
            },
            resp: None,
        };
        for (publish, subscribe) in [("pub", "subscribe"), ("publish", "sub")] {
            assert_eq!(
                read(json!({
                    publish: {"allow": ["a.>"], "deny": ["a.b"]}, subscribe: {"deny": ["s q"]},
                })),
                Ok((outer.clone(), inner.clone()))
            );
        }
        for nothing in [
            json!(null),
            json!({}),
            json!({"pub": null}),
            json!({"sub": {"allow": null}, "publish": {}}),
        ] {
            assert_eq!(read(nothing), Ok((Permissions::default(), inner.clone())));
        }
    }

    #[test]
    fn permissions_beside_nats_that_cannot_be_read_are_an_error() {
        let read = |permissions| with_permissions(&permissions, json!({})).map(drop);
        for wrong in [
            json!([]),
            json!("a.>"),
            json!(true),
            json!([{"allow": ["a"]}]),
            json!({"all": {"deny": ["a"]}}),
            json!({"resp": {"max": 1}}),
            json!({"pub": ["a"]}),
            json!({"pub": "a"}),
            json!({"pub": {"allow": "a"}}),
            json!({"pub": {"allow": {"a": true}}}),
            json!({"pub": {"allow": [42]}}),
            json!({"pub": {"Allow": ["a"]}}),
            json!({"pub": {"allow": ["a"]}, "publish": {"allow": ["b"]}}),
        ] {
            let error = read(wrong.clone());
            assert_eq!(error, Err(JwtError::OuterPermissions), "{wrong}");
        }
        for wrong in [
            json!({"pub": {"deny": [""]}}),
            json!({"publish": {"allow": ["a q"]}}),
        ] {
            assert_eq!(read(wrong), Err(JwtError::Permission));
        }
    }

    #[test]
    fn long_names_within_nats_are_the_same_permissions() {
        let read = limits(json!({"publish": {"deny": ["a"]}, "subscribe": {"allow": ["b"]}}));
        assert_eq!(read.permissions.publish.deny, ["a"]);
        assert_eq!(read.permissions.subscribe.allow, ["b"]);
        let both = user(json!({"publish": {"deny": ["a"]}, "pub": {"deny": ["b"]}}));
        assert_eq!(both.unwrap_err(), JwtError::Malformed);
    }

    #[test]
    fn what_limits_must_look_like() {
        for src in [json!(["10.0.0.0"]), json!(["10.0.0.0/33"]), json!("x/8")] {
            assert_eq!(user(json!({"src": src})).unwrap_err(), JwtError::Network);
        }
        for (start, end) in [("", "01:00:00"), ("01:00:00", "24:00:00"), ("1am", "2am")] {
            let times = json!({"times": [{"start": start, "end": end}]});
            assert_eq!(user(times).unwrap_err(), JwtError::Times);
        }
        assert_eq!(
            user(json!({"times_location": "Europe/Nowhere"})).unwrap_err(),
            JwtError::Times
        );
    }

    #[test]
    fn account_and_operator_claims_are_read() {
        let operator = KeyPair::new_operator();
        let account = KeyPair::new_account();
        let claims = json!({
            "iss": operator.public_key(), "sub": account.public_key(), "name": "acc",
            "nats": {
                "type": "account", "version": 2, "tags": ["t:1"],
                "limits": {"subs": 5, "payload": -1, "disallow_bearer": true, "conn": 7},
                "signing_keys": ["AKEY", {
                    "kind": "user_scope", "key": "ASCOPED", "role": "r",
                    "template": {"pub": {"allow": ["{{name()}}.>"]}, "subs": -1, "payload": 9},
                }],
                "revocations": {"*": 5, "UX": 6},
                "default_permissions": {"pub": {"deny": ["x"]}, "sub": {}},
            },
        });
        let Claims::Account(read) = decode(&token(&operator, &claims)).unwrap().claims else {
            panic!("not an account")
        };
        assert_eq!(
            (
                read.limits.subs,
                read.limits.payload,
                read.limits.connections,
                read.limits.disallow_bearer
            ),
            (5, -1, 7, true)
        );
        assert_eq!(
            read.revocations,
            BTreeMap::from([("*".into(), 5), ("UX".into(), 6)])
        );
        assert_eq!(read.default_permissions.publish.deny, ["x"]);
        let [plain, scoped] = &read.signing_keys[..] else {
            panic!("{:?}", read.signing_keys)
        };
        assert_eq!((plain.key.as_str(), &plain.template), ("AKEY", &None));
        assert_eq!(scoped.key, "ASCOPED");
        let template = scoped.template.as_ref().unwrap();
        assert_eq!(template.permissions.publish.allow, ["{{name()}}.>"]);
        assert_eq!((template.subs, template.payload), (-1, 9));

        let claims = json!({
            "iss": operator.public_key(), "sub": operator.public_key(),
            "nats": {"type": "operator", "version": 2, "signing_keys": ["OKEY"],
                "strict_signing_key_usage": true},
        });
        assert_eq!(
            decode(&token(&operator, &claims)).unwrap().claims,
            Claims::Operator(Operator {
                signing_keys: vec!["OKEY".into()],
                strict_signing_key_usage: true,
            })
        );
    }

    #[test]
    fn another_header_is_not_taken() {
        let account = KeyPair::new_account();
        let claims = user_claims(&account, &KeyPair::new_user(), json!({}));
        for header in [
            json!({"typ": "JWT", "alg": "none"}),
            json!({"typ": "JWT", "alg": "HS256"}),
            json!({"typ": "JWT", "alg": "ed25519-"}),
            json!({"typ": "JWS", "alg": "ed25519-nkey"}),
        ] {
            assert_eq!(
                decode(&token_with(&account, &header, &claims)).unwrap_err(),
                JwtError::Algorithm
            );
        }
        let header = json!({"typ": "jwt", "alg": "ED25519-NKEY"});
        assert!(decode(&token_with(&account, &header, &claims)).is_ok());
    }

    #[test]
    fn who_may_issue_what_about_whom() {
        let pairs = [
            KeyPair::new_operator(),
            KeyPair::new_account(),
            KeyPair::new_user(),
        ];
        for (kind, issuers, subject) in [
            ("operator", &[0][..], 0),
            ("account", &[0, 1], 1),
            ("user", &[1], 2),
        ] {
            for (by, issuer) in pairs.iter().enumerate() {
                for (about, whom) in pairs.iter().enumerate() {
                    let claims = json!({
                        "iss": issuer.public_key(), "sub": whom.public_key(),
                        "nats": {"type": kind, "version": 2},
                    });
                    let expected = match (issuers.contains(&by), about == subject) {
                        (false, _) => Some(JwtError::Issuer),
                        (true, false) => Some(JwtError::Subject),
                        (true, true) => None,
                    };
                    assert_eq!(decode(&token(issuer, &claims)).err(), expected, "{kind}");
                }
            }
        }
    }

    #[test]
    fn kind_and_version_are_known_ones() {
        let account = KeyPair::new_account();
        let with = |nats: Value| {
            let mut claims = user_claims(&account, &KeyPair::new_user(), json!({}));
            claims["nats"] = nats;
            decode(&token(&account, &claims)).unwrap_err()
        };
        // Signed as in version 2, which is none.
        assert_eq!(with(json!({"type": "user"})), JwtError::Signature);
        assert_eq!(
            with(json!({"type": "user", "version": 1})),
            JwtError::Signature
        );
        assert_eq!(
            with(json!({"type": "user", "version": 3})),
            JwtError::Version
        );
        assert_eq!(
            with(json!({"type": "activation", "version": 2})),
            JwtError::Kind
        );
        assert_eq!(with(json!({"version": 2})), JwtError::Kind);
        assert_eq!(with(json!("user")), JwtError::Malformed);
    }

    /// Of version 1: only the claims are signed.
    fn old_token(issuer: &KeyPair, claims: &Value) -> String {
        let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let header = encode(&json!({"typ": "jwt", "alg": "ed25519"}));
        let claims = encode(claims);
        let signature = issuer.sign(claims.as_bytes()).unwrap();
        format!("{header}.{claims}.{}", BASE64URL_NOPAD.encode(&signature))
    }

    fn old_claims(kind: &str, issuer: &KeyPair, subject: &KeyPair, nats: Value) -> Value {
        json!({
            "iss": issuer.public_key(), "sub": subject.public_key(), "name": "n", "iat": 1,
            "type": kind, "tags": ["t:1"], "nats": nats,
        })
    }

    #[test]
    fn users_of_version_1() {
        let (account, subject) = (KeyPair::new_account(), KeyPair::new_user());
        let read = |nats: Value| {
            let mut claims = old_claims("user", &account, &subject, nats);
            claims["issuer_account"] = json!("A…");
            match decode(&old_token(&account, &claims)).unwrap().claims {
                Claims::User(user) => *user,
                other => panic!("{other:?}"),
            }
        };
        let user = read(json!({
            "pub": {"allow": ["a"]}, "src": "10.0.0.0/8", "bearer_token": true, "subs": 3, "max": 7,
            "issuer_account": "B…", "tags": ["b:1"], "allowed_connection_types": ["MQTT"],
        }));
        assert_eq!(user.issuer_account, "A…");
        assert_eq!(user.tags, ["t:1"]);
        assert_eq!(user.limits.permissions.publish.allow, ["a"]);
        assert_eq!(user.limits.src, ["10.0.0.0/8"]);
        assert!(user.limits.bearer_token && user.limits.allowed_connection_types.is_empty());
        assert_eq!(
            (user.limits.subs, user.limits.data, user.limits.payload),
            (3, -1, -1)
        );
        let bare = read(json!({"subs": null, "data": 0, "payload": 5})).limits;
        assert_eq!((bare.subs, bare.data, bare.payload), (-1, 0, 5));
    }

    #[test]
    fn accounts_and_operators_of_version_1() {
        let operator = KeyPair::new_operator();
        let account = |nats: Value| {
            let claims = old_claims("account", &operator, &KeyPair::new_account(), nats);
            decode(&old_token(&operator, &claims)).map(|token| token.claims)
        };
        let Ok(Claims::Account(read)) = account(json!({
            "limits": {"subs": 3, "conn": -1, "payload": 4}, "signing_keys": ["AKEY"], "revocations": {"U": 5},
            "default_permissions": {"pub": {"deny": ["x"]}},
        })) else {
            panic!("no account");
        };
        assert_eq!(read.tags, ["t:1"]);
        assert_eq!((read.limits.subs, read.limits.connections), (3, -1));
        assert_eq!(read.signing_keys[0].key, "AKEY");
        assert_eq!(read.revocations["U"], 5);
        assert_eq!(read.default_permissions, Permissions::default());
        let scoped = json!({"signing_keys": [{"kind": "user_scope", "key": "A", "template": {}}]});
        assert_eq!(account(scoped).unwrap_err(), JwtError::Malformed);
        let nats = json!({"signing_keys": ["OKEY"], "strict_signing_key_usage": true});
        let claims = old_claims("operator", &operator, &operator, nats);
        let expected = Operator {
            signing_keys: vec!["OKEY".to_owned()],
            strict_signing_key_usage: false,
        };
        assert_eq!(
            decode(&old_token(&operator, &claims)).unwrap().claims,
            Claims::Operator(expected)
        );
        let bare =
            json!({"iss": operator.public_key(), "sub": operator.public_key(), "type": "operator"});
        assert!(decode(&old_token(&operator, &bare)).is_ok());
    }

    /// What is signed and in which algorithm, by version.
    #[test]
    fn versions_are_told_apart() {
        let (account, subject) = (KeyPair::new_account(), KeyPair::new_user());
        let old = old_claims("user", &account, &subject, json!({}));
        let new = user_claims(&account, &subject, json!({}));
        let error = |token: String| decode(&token).err();
        assert_eq!(error(token(&account, &old)), Some(JwtError::Signature));
        assert_eq!(error(old_token(&account, &new)), Some(JwtError::Signature));
        let header = json!({"typ": "JWT", "alg": "ed25519"});
        assert_eq!(error(token_with(&account, &header, &new)), None);
        let mut between = new.clone();
        between["nats"]["version"] = json!(1);
        assert_eq!(error(old_token(&account, &between)), None);
        between["nats"]["version"] = json!(0);
        assert_eq!(
            error(old_token(&account, &between)),
            Some(JwtError::Version)
        );
        between["nats"]["version"] = json!(3);
        assert_eq!(error(token(&account, &between)), Some(JwtError::Version));
        // Whatever `nats` says of it.
        let mut both = old.clone();
        both["nats"] = json!({"type": "account", "version": 3});
        assert_eq!(error(old_token(&account, &both)), None);
        both["type"] = json!("cluster");
        assert_eq!(error(old_token(&account, &both)), Some(JwtError::Kind));
    }

    #[test]
    fn a_signature_is_the_issuers() {
        let account = KeyPair::new_account();
        let claims = user_claims(&account, &KeyPair::new_user(), json!({}));
        let good = token(&account, &claims);
        assert!(decode(&good).is_ok());
        assert_eq!(
            decode(&token(&KeyPair::new_account(), &claims)).unwrap_err(),
            JwtError::Signature
        );
        let (signed, signature) = good.rsplit_once('.').unwrap();
        assert_eq!(
            decode(&format!("{signed}.")).unwrap_err(),
            JwtError::Signature
        );
        assert_eq!(decode(signed).unwrap_err(), JwtError::Malformed);
        assert_eq!(
            decode(&format!("{good}.x")).unwrap_err(),
            JwtError::Malformed
        );
        assert_eq!(
            decode(&format!("{signed}.{signature}=")).unwrap_err(),
            JwtError::Malformed
        );
    }

    #[test]
    fn sources() {
        let allowed = |src: &[&str], address: &str| {
            is_source_allowed(src.iter().copied(), address.parse().unwrap())
        };
        assert!(allowed(&[], "10.0.0.1"));
        assert!(allowed(&["10.0.0.0/8"], "10.255.255.255"));
        assert!(!allowed(&["10.0.0.0/8"], "11.0.0.0"));
        assert!(allowed(&["10.0.0.1/32"], "10.0.0.1"));
        assert!(!allowed(&["10.0.0.1/32"], "10.0.0.2"));
        assert!(allowed(&["0.0.0.0/0"], "255.255.255.255"));
        assert!(!allowed(&["0.0.0.0/0"], "::1"));
        assert!(allowed(&["192.168.0.0/16", "::1/128"], "::1"));
        assert!(allowed(&["10.0.0.0/8"], "::ffff:10.1.2.3"));
        assert!(!allowed(&["nonsense"], "10.0.0.1"));
    }

    const HOUR: i64 = 3_600_000;

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn range(start: &str, end: &str) -> TimeRange {
        TimeRange {
            start: start.into(),
            end: end.into(),
        }
    }

    #[test]
    fn hours_of_the_day() {
        let day = [range("09:00:00", "17:00:00")];
        let open = |now: &str| hours(&day, "", 0, at(now));
        assert_eq!(hours(&[], "", 0, 0), Hours::Always);
        assert_eq!(open("2024-05-01T08:59:59.999Z"), Hours::Closed);
        assert_eq!(open("2024-05-01T09:00:00Z"), Hours::For(8 * HOUR));
        assert_eq!(open("2024-05-01T16:59:59.999Z"), Hours::For(1));
        assert_eq!(open("2024-05-01T17:00:00Z"), Hours::Closed);
        let two = [range("09:00:00", "10:00:00"), range("09:30:00", "12:00:00")];
        assert_eq!(
            hours(&two, "", 0, at("2024-05-01T09:45:00Z")),
            Hours::For(9 * HOUR / 4)
        );
    }

    #[test]
    fn hours_over_midnight() {
        let night = [range("22:00:00", "04:00:00")];
        let open = |now: &str| hours(&night, "", 0, at(now));
        assert_eq!(open("2024-05-01T21:59:59Z"), Hours::Closed);
        assert_eq!(open("2024-05-01T22:00:00Z"), Hours::For(6 * HOUR));
        assert_eq!(open("2024-05-02T03:00:00Z"), Hours::For(HOUR));
        assert_eq!(open("2024-05-02T04:00:00Z"), Hours::Closed);
    }

    #[test]
    fn hours_of_a_place() {
        let day = [range("09:00:00", "10:00:00")];
        assert_eq!(
            hours(&day, "Europe/Berlin", 0, at("2024-07-01T07:30:00Z")),
            Hours::For(HOUR / 2)
        );
        assert_eq!(
            hours(&day, "Europe/Berlin", 0, at("2024-01-01T07:30:00Z")),
            Hours::Closed
        );
        assert_eq!(
            hours(&day, "", 7200, at("2024-01-01T07:30:00Z")),
            Hours::For(HOUR / 2)
        );
        assert_eq!(
            hours(&day, "Nowhere", 0, at("2024-01-01T09:30:00Z")),
            Hours::Closed
        );
        // The night in which 02:00 to 03:00 does not exist.
        let gap = [range("01:00:00", "04:00:00")];
        assert_eq!(
            hours(&gap, "Europe/Berlin", 0, at("2024-03-31T00:00:00Z")),
            Hours::For(2 * HOUR)
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in any::<String>()) {
            prop_assert!(decode(&text).is_err());
        }

        #[test]
        fn a_changed_token_is_refused(position in any::<prop::sample::Index>(), byte in 0x20_u8..0x7F) {
            let account = KeyPair::new_account();
            let good = token(&account, &user_claims(&account, &KeyPair::new_user(), json!({})));
            let at = position.index(good.len());
            let mut changed = good.clone().into_bytes();
            prop_assume!(changed[at] != byte);
            changed[at] = byte;
            prop_assert!(decode(std::str::from_utf8(&changed).unwrap()).is_err());
        }

        #[test]
        fn signed_nonsense_is_read_or_refused(claims in nonsense(4), nats in nonsense(3)) {
            let account = KeyPair::new_account();
            let _ = decode(&token(&account, &claims));
            let mut whole = user_claims(&account, &KeyPair::new_user(), json!({}));
            let fields = whole["nats"].as_object_mut().unwrap();
            if let Value::Object(more) = nats {
                for (key, value) in more {
                    fields.entry(key).or_insert(value);
                }
            }
            let _ = decode(&token(&account, &whole));
        }

        #[test]
        fn any_time_is_looked_up(
            now in any::<i64>(), offset in any::<i32>(), start in any::<String>(),
            location in any::<String>(),
        ) {
            let times = [range(&start, "10:00:00"), range("09:00:00", "10:00:00")];
            let _ = hours(&times, &location, offset, now);
            let _ = hours(&times[1..], "", offset, now);
        }
    }

    /// JSON with the keys that mean something.
    fn nonsense(depth: u32) -> impl Strategy<Value = Value> {
        let key = prop::sample::select(vec![
            "iss",
            "sub",
            "nats",
            "type",
            "version",
            "permissions",
            "publish",
            "pub",
            "allow",
            "deny",
            "resp",
            "max",
            "ttl",
            "src",
            "times",
            "start",
            "end",
            "times_location",
            "subs",
            "payload",
            "tags",
            "signing_keys",
            "kind",
            "key",
            "template",
            "limits",
            "revocations",
            "exp",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(depth, 24, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }
}
