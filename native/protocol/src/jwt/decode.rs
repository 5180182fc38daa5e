//! Checks a token by itself: its form, its signature, its kind, and the claims that must be
//! well-formed.

use data_encoding::BASE64URL_NOPAD;
use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::claims::{
    Account, Claims, Operator, Permission, Permissions, Token, User, UserLimits, nullable,
};
use super::error::JwtError;
use super::hours::time_zone;
use crate::nkey::{Role, role, verify};

/// Reads a token.
///
/// # Errors
///
/// The error is the first thing that is wrong with the token. As long as the signature is not
/// verified, only the parts that are needed to find the issuer are read.
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
    /// Takes the claims that were elsewhere in version 1, and drops those that version 1 did not
    /// have.
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

/// nats-server does not know this claim. If it cannot be read, it might be a denial, so it is an
/// error.
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

/// The rule of the tools for a subject: no blank and no empty token.
fn is_subject(subject: &str) -> bool {
    !subject.contains(' ') && subject.split('.').all(|token| !token.is_empty())
}

#[derive(Deserialize)]
struct Header {
    typ: String,
    alg: String,
}

/// The claims that all tokens have. The part `nats` depends on the kind of the token.
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
    /// Only in version 1, like the next two.
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

fn base64(text: &str) -> Result<Vec<u8>, JwtError> {
    BASE64URL_NOPAD
        .decode(text.as_bytes())
        .map_err(|_| JwtError::Malformed)
}

fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JwtError> {
    serde_json::from_slice(bytes).map_err(|_| JwtError::Malformed)
}
