//! Reads TOML text into a map.

use crate::atoms;
use rustler::types::map::map_new;
use rustler::{Binary, Encoder, Env, NewBinary, Term};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A file may have any size, so this runs on a dirty scheduler.
#[rustler::nif(name = "toml", schedule = "DirtyCpu")]
fn toml<'a>(env: Env<'a>, text: Binary<'a>) -> Term<'a> {
    match parse(env, text.as_slice()) {
        Ok(map) => (atoms::ok(), map).encode(env),
        Err(error) => (atoms::error(), string(env, &error)).encode(env),
    }
}

/// What is wrong, and where.
type Fault = (String, Range<usize>);

/// The crate's own error text is not used, because it quotes the line, and the line may hold a
/// password.
fn parse<'a>(env: Env<'a>, bytes: &[u8]) -> Result<Term<'a>, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        located(bytes, "not UTF-8".to_owned(), at)
    })?;
    DeTable::parse(text)
        .map_err(|error| (error.message().to_owned(), error.span().unwrap_or_default()))
        .and_then(|table| map(env, table.get_ref()))
        .map_err(|(problem, span)| located(bytes, problem, span.start))
}

fn located(bytes: &[u8], problem: String, at: usize) -> String {
    let lines_before = bytes.iter().take(at).filter(|byte| **byte == b'\n').count();
    format!("line {}: {problem}", lines_before.saturating_add(1))
}

fn map<'a>(env: Env<'a>, table: &DeTable<'_>) -> Result<Term<'a>, Fault> {
    let mut map = map_new(env);
    for (key, item) in table {
        let name = string(env, key.get_ref());
        let item = value(env, item)?;
        map = map
            .map_put(name, item)
            .map_err(|_| ("bad key".to_owned(), key.span()))?;
    }
    Ok(map)
}

fn value<'a>(env: Env<'a>, item: &Spanned<DeValue<'_>>) -> Result<Term<'a>, Fault> {
    let fault = |problem: &str| (problem.to_owned(), item.span());
    match item.get_ref() {
        DeValue::String(text) => Ok(string(env, text)),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map(|number| number.encode(env))
            .map_err(|_| fault("integer out of range")),
        // The VM has no infinity and no NaN.
        DeValue::Float(number) => match number.as_str().parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number.encode(env)),
            _ => Err(fault("float out of range")),
        },
        DeValue::Boolean(flag) => Ok(flag.encode(env)),
        DeValue::Datetime(time) => Ok(string(env, &time.to_string())),
        DeValue::Array(items) => items
            .iter()
            .map(|item| value(env, item))
            .collect::<Result<Vec<Term<'a>>, Fault>>()
            .map(|items| items.encode(env)),
        DeValue::Table(table) => map(env, table),
    }
}

fn string<'a>(env: Env<'a>, text: &str) -> Term<'a> {
    NewBinary::from_slice(env, text.as_bytes()).into()
}
