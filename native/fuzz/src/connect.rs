use std::fmt;

use nats_protocol::connect::{Connect, Info};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Value, json};

/// The JSON of CONNECT, and INFO of the same text.
///
/// It is read as serde_json reads it, if that agrees with Go. No log shows a credential. An INFO is
/// one line, whatever its fields hold.
pub fn connect(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let connect = Connect::from_json(bytes);
    if let Some(connect) = &connect {
        shows_no_credential(connect);
        assert!(serde_json::from_str::<IgnoredAny>(&text).is_ok());
    }
    // Go accepts a lone surrogate, but serde_json does not.
    if !has_surrogate(&text)
        && let Ok(entries) = serde_json::from_str::<Entries>(&text)
    {
        assert_eq!(connect, expected(&entries.0));
    }
    info(&text);
}

fn has_surrogate(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    [
        "\\ud8", "\\ud9", "\\uda", "\\udb", "\\udc", "\\udd", "\\ude", "\\udf",
    ]
    .iter()
    .any(|escape| text.contains(escape))
}

fn shows_no_credential(connect: &Connect) {
    let secret = Connect {
        verbose: None,
        pedantic: None,
        echo: None,
        headers: None,
        no_responders: None,
        protocol: None,
        name: None,
        lang: None,
        version: None,
        ..connect.clone()
    };
    assert_eq!(format!("{secret:?}"), format!("{:?}", Connect::default()));
}

/// An object with its keys in order, duplicates included.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Entries;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// Reads each field by itself: every value that is not null must have the right type, and the last
/// one counts.
fn expected(entries: &[(String, Value)]) -> Option<Connect> {
    let field = |name: &str| {
        let values = entries
            .iter()
            .filter(|(key, value)| fold(key) == name && !value.is_null());
        values.map(|(_, value)| value).collect::<Vec<_>>()
    };
    Some(Connect {
        verbose: last(&field("verbose"), Value::as_bool)?,
        pedantic: last(&field("pedantic"), Value::as_bool)?,
        echo: last(&field("echo"), Value::as_bool)?,
        headers: last(&field("headers"), Value::as_bool)?,
        no_responders: last(&field("no_responders"), Value::as_bool)?,
        protocol: last(&field("protocol"), Value::as_i64)?,
        user: last(&field("user"), string)?,
        pass: last(&field("pass"), string)?,
        auth_token: last(&field("auth_token"), string)?,
        name: last(&field("name"), string)?,
        lang: last(&field("lang"), string)?,
        version: last(&field("version"), string)?,
        tls_required: last(&field("tls_required"), Value::as_bool)?,
        jwt: last(&field("jwt"), string)?,
        nkey: last(&field("nkey"), string)?,
        sig: last(&field("sig"), string)?,
        account: last(&field("account"), string)?,
        new_account: last(&field("new_account"), Value::as_bool)?,
    })
}

fn last<T>(values: &[&Value], read: impl Fn(&Value) -> Option<T>) -> Option<Option<T>> {
    let values: Option<Vec<T>> = values.iter().map(|value| read(value)).collect();
    Some(values?.pop())
}

fn string(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// Folds keys as Go does when it compares them.
fn fold(key: &str) -> String {
    key.to_ascii_lowercase()
        .replace('\u{17F}', "s")
        .replace('\u{212A}', "k")
}

fn info(text: &str) {
    let info = Info {
        server_name: Some(text),
        nonce: Some(text),
        ..Info::default()
    };
    let mut line = Vec::new();
    info.write_line(&mut line);
    let json = line
        .strip_prefix(b"INFO ")
        .and_then(|rest| rest.strip_suffix(b" \r\n"))
        .expect("an INFO line");
    assert!(json.iter().all(|&byte| byte >= b' '));
    let read: Value = serde_json::from_slice(json).expect("JSON");
    assert_eq!(read, json!({"server_name": text, "nonce": text}));
}
