//! The claims of tokens, and the forms in which they may be written.

use std::collections::BTreeMap;

use serde::de::Deserializer;
use serde::{Deserialize, Serialize};

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
    /// Seconds of Unix time; 0 means never.
    pub expires: i64,
    /// Seconds of Unix time; 0 means always.
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
    /// Whether accounts must be signed with one of those keys, not with its own key.
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
    /// Users (or `*`) with a time (seconds of Unix time): their tokens that were issued up to then
    /// are void.
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
    /// Whether every user must sign the nonce.
    #[serde(deserialize_with = "nullable")]
    pub disallow_bearer: bool,
}

/// A key with which an account signs users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningKey {
    /// Public key.
    pub key: String,
    /// What all its users may do. This replaces the limits in their tokens.
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
    /// The permissions beside `nats`, which EMQX's own gateway reads. They allow no more than those
    /// in `nats` do.
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
    /// Networks (CIDR) from which the user may log in. If there are none, all are allowed.
    #[serde(deserialize_with = "networks")]
    pub src: Vec<String>,
    /// Times of the day at which the user may be connected. If there are none, all are allowed.
    #[serde(deserialize_with = "nullable")]
    pub times: Vec<TimeRange>,
    /// IANA name of the time zone of these times. If it is empty, the server's time zone is used.
    #[serde(deserialize_with = "nullable")]
    pub times_location: String,
    /// Subscriptions.
    #[serde(deserialize_with = "nullable")]
    pub subs: i64,
    /// Bytes in all. The gateway does not use it.
    #[serde(deserialize_with = "nullable")]
    pub data: i64,
    /// Bytes of one message.
    #[serde(deserialize_with = "nullable")]
    pub payload: i64,
    /// Whether the token alone is enough, without a signature of the nonce.
    #[serde(deserialize_with = "nullable")]
    pub bearer_token: bool,
    /// `STANDARD`, `WEBSOCKET`, …; if there are none, all are allowed.
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

/// If there are no allowed subjects, all are allowed, except the denied ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Permission {
    /// Subjects with wildcards.
    #[serde(deserialize_with = "nullable")]
    pub allow: Vec<String>,
    /// Subjects with wildcards. They have precedence.
    #[serde(deserialize_with = "nullable")]
    pub deny: Vec<String>,
}

/// How many responses to one request are allowed, and for how long after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ResponsePermission {
    /// 0 means the default, and a negative number means no limit.
    #[serde(deserialize_with = "nullable")]
    pub max: i64,
    /// Nanoseconds; 0 means the default, and a negative number means no limit.
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
pub(super) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
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
