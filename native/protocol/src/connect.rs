//! The JSON of CONNECT and INFO (docs/protocol.md sections 2 and 3).

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

/// The fields of a CONNECT. A field that is absent or null keeps its earlier value or its default.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Connect {
    /// Whether the server answers each operation with `+OK`; nats-server's default is true.
    pub verbose: Option<bool>,
    /// Whether the subjects of published messages are checked; the default is true.
    pub pedantic: Option<bool>,
    /// Whether this connection gets its own messages; the default is true.
    pub echo: Option<bool>,
    /// Whether the client can take HMSG and send HPUB.
    pub headers: Option<bool>,
    /// Whether the client wants a 503 for requests without subscribers.
    pub no_responders: Option<bool>,
    /// 1 if the client can take an INFO at any time.
    pub protocol: Option<i64>,
    /// User name.
    pub user: Option<String>,
    /// Password.
    pub pass: Option<String>,
    /// Token.
    pub auth_token: Option<String>,
    /// The name that the client gives itself.
    pub name: Option<String>,
    /// Language of the client library.
    pub lang: Option<String>,
    /// Version of the client library.
    pub version: Option<String>,
    /// Whether the client wants TLS; nats-server ignores it.
    pub tls_required: Option<bool>,
    /// User JWT.
    pub jwt: Option<String>,
    /// Public NKey.
    pub nkey: Option<String>,
    /// Signature of INFO's nonce.
    pub sig: Option<String>,
    /// Refused by nats-server.
    pub account: Option<String>,
    /// Refused by nats-server.
    pub new_account: Option<bool>,
}

/// Leaves out the fields that a log must not show.
impl fmt::Debug for Connect {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Connect")
            .field("verbose", &self.verbose)
            .field("pedantic", &self.pedantic)
            .field("echo", &self.echo)
            .field("headers", &self.headers)
            .field("no_responders", &self.no_responders)
            .field("protocol", &self.protocol)
            .field("name", &self.name)
            .field("lang", &self.lang)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl Connect {
    /// Reads the argument of CONNECT. `None` if it is anything but an object of the right types,
    /// or `null`.
    ///
    /// This imitates Go's reader in all that clients could notice. Keys match in any letter case,
    /// and the last of several wins. Null counts as absent. Bytes that are not UTF-8, and escapes
    /// of half a surrogate pair (`JSON.stringify` writes them), become U+FFFD.
    #[must_use]
    pub fn from_json(json: &[u8]) -> Option<Self> {
        serde_json::from_str(&well_formed(json)?).ok()
    }
}

impl<'de> Deserialize<'de> for Connect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ConnectVisitor)
    }
}

struct ConnectVisitor;

impl<'de> Visitor<'de> for ConnectVisitor {
    type Value = Connect;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object or null")
    }

    fn visit_unit<E>(self) -> Result<Connect, E> {
        Ok(Connect::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Connect, A::Error> {
        let mut connect = Connect::default();
        while let Some(Text(key)) = map.next_key()? {
            match fold(&key).as_str() {
                "verbose" => set(&mut connect.verbose, map.next_value()?),
                "pedantic" => set(&mut connect.pedantic, map.next_value()?),
                "echo" => set(&mut connect.echo, map.next_value()?),
                "headers" => set(&mut connect.headers, map.next_value()?),
                "no_responders" => set(&mut connect.no_responders, map.next_value()?),
                "protocol" => set(&mut connect.protocol, map.next_value()?),
                "user" => set_text(&mut connect.user, map.next_value()?),
                "pass" => set_text(&mut connect.pass, map.next_value()?),
                "auth_token" => set_text(&mut connect.auth_token, map.next_value()?),
                "name" => set_text(&mut connect.name, map.next_value()?),
                "lang" => set_text(&mut connect.lang, map.next_value()?),
                "version" => set_text(&mut connect.version, map.next_value()?),
                "tls_required" => set(&mut connect.tls_required, map.next_value()?),
                "jwt" => set_text(&mut connect.jwt, map.next_value()?),
                "nkey" => set_text(&mut connect.nkey, map.next_value()?),
                "sig" => set_text(&mut connect.sig, map.next_value()?),
                "account" => set_text(&mut connect.account, map.next_value()?),
                "new_account" => set(&mut connect.new_account, map.next_value()?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(connect)
    }
}

/// A string as Go reads it.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // serde_json reads a string with half pairs as bytes, but not as text.
        deserializer.deserialize_bytes(TextVisitor)
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = Text;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_str<E>(self, text: &str) -> Result<Text, E> {
        Ok(Text(text.to_owned()))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Text, E> {
        let mut bytes = bytes.to_vec();
        let mut at = 0_usize;
        // Half a pair has three bytes, like U+FFFD. Everything else was UTF-8 already.
        while let Some([first, second, third]) =
            bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut)
        {
            if *first == 0xED && *second >= 0xA0 {
                (*first, *second, *third) = (0xEF, 0xBF, 0xBD);
            }
            at = at.saturating_add(1);
        }
        Ok(Text(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

fn set_text(field: &mut Option<String>, value: Option<Text>) {
    set(field, value.map(|Text(text)| text));
}

/// In Go a null leaves the field as it is, even if an earlier duplicate has set it.
fn set<T>(field: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *field = value;
    }
}

/// Go folds keys by Unicode's simple folding. In it, two other characters are ASCII letters.
fn fold(key: &str) -> String {
    key.chars()
        .map(|character| match character {
            '\u{17F}' => 's',
            '\u{212A}' => 'k',
            other => other.to_ascii_lowercase(),
        })
        .collect()
}

/// The text of well-formed JSON. Strings are read as bytes, and serde_json does not report raw
/// control characters in bytes.
fn well_formed(json: &[u8]) -> Option<Cow<'_, str>> {
    let json = String::from_utf8_lossy(json);
    serde_json::from_str::<IgnoredAny>(&json).ok()?;
    Some(json)
}

/// Whether this is a JSON object or `null`. Nothing else is checked in an INFO from a client.
pub(crate) fn is_object(json: &[u8]) -> bool {
    well_formed(json).is_some_and(|json| serde_json::from_str::<Object>(&json).is_ok())
}

struct Object;

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object or null")
    }

    fn visit_unit<E>(self) -> Result<Object, E> {
        Ok(Object)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        while map.next_entry::<Text, IgnoredAny>()?.is_some() {}
        Ok(Object)
    }
}

/// What a server says about itself. Only fields with a value are written, because async-nats
/// rejects `null`.
///
/// nats-core needs `server_id`, `version`, `go`, `host`, `port` and `headers`, nats.js a `version`
/// of three numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Info<'a> {
    /// Unique name of the server process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_id: Option<&'a str>,
    /// Configured name of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<&'a str>,
    /// Server version, three numbers and perhaps a suffix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<&'a str>,
    /// 1: asynchronous INFO and echo are supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<u32>,
    /// Go version, or another text in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub go: Option<&'a str>,
    /// Address the server listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<&'a str>,
    /// Port the server listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Whether headers are supported. Without it, clients send neither headers nor `no_responders`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<bool>,
    /// Whether CONNECT must hold credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_required: Option<bool>,
    /// Whether the client must start TLS now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_required: Option<bool>,
    /// Whether the client must show a certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_verify: Option<bool>,
    /// Whether the client may start TLS now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_available: Option<bool>,
    /// Most bytes of header block and payload together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_payload: Option<u64>,
    /// Number of the connection; jnats reads 31 bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<u64>,
    /// Address of the client as the server sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ip: Option<&'a str>,
    /// The text that an NKey or JWT login signs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonce: Option<&'a str>,
    /// Whether the server is about to close its connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ldm: Option<bool>,
}

impl Info<'_> {
    /// Appends the INFO line: `INFO {json} \r\n`, with the space before the line end that
    /// nats-server writes.
    pub fn write_line(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"INFO ");
        let start = out.len();
        // Strings, numbers and booleans cannot fail to serialise. If a later field can, an empty
        // object is still a legal line.
        if serde_json::to_writer(&mut *out, self).is_err() {
            out.truncate(start);
            out.extend_from_slice(b"{}");
        }
        out.extend_from_slice(b" \r\n");
    }
}
