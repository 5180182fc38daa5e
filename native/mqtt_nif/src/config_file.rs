//! TOML text to a map.

use crate::atoms;
use rustler::types::map::map_new;
use rustler::{Binary, Encoder, Env, NewBinary, Term};
use toml::{Table, Value};

/// A file has any size, so it is read on a dirty scheduler.
#[rustler::nif(name = "toml", schedule = "DirtyCpu")]
fn toml<'a>(env: Env<'a>, text: Binary<'a>) -> Term<'a> {
    match parse(text.as_slice()) {
        Ok(table) => (atoms::ok(), map(env, &table)).encode(env),
        Err(error) => (atoms::error(), string(env, &error)).encode(env),
    }
}

fn parse(bytes: &[u8]) -> Result<Table, String> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            return Err(format!(
                "line {}: not UTF-8",
                line(bytes, error.valid_up_to())
            ));
        }
    };
    // The error's own text quotes the line, and the line may hold a password.
    text.parse::<Table>().map_err(|error| match error.span() {
        Some(span) => format!("line {}: {}", line(bytes, span.start), error.message()),
        None => error.message().to_owned(),
    })
}

fn line(bytes: &[u8], at: usize) -> usize {
    1 + bytes.iter().take(at).filter(|byte| **byte == b'\n').count()
}

fn map<'a>(env: Env<'a>, table: &Table) -> Term<'a> {
    let mut map = map_new(env);
    for (key, item) in table {
        // Only what is no map can refuse a key.
        map = map
            .map_put(string(env, key), value(env, item))
            .unwrap_or(map);
    }
    map
}

fn value<'a>(env: Env<'a>, value: &Value) -> Term<'a> {
    match value {
        Value::String(text) => string(env, text),
        Value::Integer(number) => number.encode(env),
        Value::Float(number) => number.encode(env),
        Value::Boolean(flag) => flag.encode(env),
        Value::Datetime(time) => string(env, &time.to_string()),
        Value::Array(items) => {
            let terms: Vec<Term<'a>> = items.iter().map(|item| self::value(env, item)).collect();
            terms.encode(env)
        }
        Value::Table(table) => map(env, table),
    }
}

fn string<'a>(env: Env<'a>, text: &str) -> Term<'a> {
    NewBinary::from_slice(env, text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_its_line_and_nothing_of_its_text() {
        let error = parse(b"[upstream]\npassword = \"secret\npassword = 1\n").unwrap_err();
        assert!(error.starts_with("line 2: "), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn bytes_that_are_not_utf8_are_an_error() {
        assert_eq!(
            parse(b"a = 1\nb = \"\xff\"\n").unwrap_err(),
            "line 2: not UTF-8"
        );
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = format!("a = {}{}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(parse(deep.as_bytes()).is_err());
    }
}
