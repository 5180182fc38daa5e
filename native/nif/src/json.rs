//! Writes Erlang terms as JSON text, and reads them.

use rustler::{Atom, Encoder, Env, Error, MapIterator, NifResult, Term, TermType};
use serde_json::{Map, Number, Value};

use crate::terms::{self, atoms, binary};

/// Terms may nest only this deep, because the conversion is recursive and a scheduler's stack is
/// small.
const MAX_DEPTH: u32 = 32;

/// Maps become objects, lists become arrays, and binaries and atoms become strings. `true`,
/// `false`, `null` and integers stay what they are. Anything else, and a string that is not UTF-8,
/// is `badarg`.
pub fn value(term: Term<'_>) -> NifResult<Value> {
    nested(term, MAX_DEPTH)
}

fn nested(term: Term<'_>, depth: u32) -> NifResult<Value> {
    let depth = depth.checked_sub(1).ok_or(Error::BadArg)?;
    match term.get_type() {
        TermType::Map => object(term, depth),
        TermType::List => array(term, depth),
        TermType::Integer => number(term),
        TermType::Atom => constant(term),
        _ => term.decode::<&str>().map(Value::from),
    }
}

fn object(term: Term<'_>, depth: u32) -> NifResult<Value> {
    let mut members = Map::new();
    for (key, member) in MapIterator::new(term).ok_or(Error::BadArg)? {
        let key = match key.get_type() {
            TermType::Atom => key.atom_to_string()?,
            _ => key.decode::<String>()?,
        };
        members.insert(key, nested(member, depth)?);
    }
    Ok(Value::Object(members))
}

fn array(term: Term<'_>, depth: u32) -> NifResult<Value> {
    let mut elements = Vec::new();
    terms::for_each(term, |element| {
        elements.push(nested(element, depth)?);
        Ok(())
    })?;
    Ok(Value::Array(elements))
}

fn number(term: Term<'_>) -> NifResult<Value> {
    term.decode::<i64>()
        .map(Number::from)
        .or_else(|_| term.decode::<u64>().map(Number::from))
        .map(Value::Number)
}

fn constant(term: Term<'_>) -> NifResult<Value> {
    Ok(
        match term.decode::<Atom>().and(term.atom_to_string())?.as_str() {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            "null" => Value::Null,
            name => Value::from(name),
        },
    )
}

/// What the text holds: the reverse of `value`, with binaries as the keys of maps, and floats. `None`
/// if it is no JSON, or nests too deep.
pub fn term<'a>(env: Env<'a>, text: &[u8]) -> Option<Term<'a>> {
    read(env, &serde_json::from_slice(text).ok()?, MAX_DEPTH)
}

fn read<'a>(env: Env<'a>, value: &Value, depth: u32) -> Option<Term<'a>> {
    let depth = depth.checked_sub(1)?;
    match value {
        Value::Null => Some(atoms::null().to_term(env)),
        Value::Bool(flag) => Some(flag.encode(env)),
        Value::String(text) => Some(binary(env, text.as_bytes())),
        Value::Number(number) => read_number(env, number),
        Value::Array(elements) => {
            let elements: Option<Vec<_>> = elements.iter().map(|e| read(env, e, depth)).collect();
            Some(elements?.encode(env))
        }
        Value::Object(members) => {
            let keys: Vec<_> = members
                .keys()
                .map(|key| binary(env, key.as_bytes()))
                .collect();
            let values: Option<Vec<_>> = members.values().map(|v| read(env, v, depth)).collect();
            Term::map_from_term_arrays(env, &keys, &values?).ok()
        }
    }
}

fn read_number<'a>(env: Env<'a>, number: &Number) -> Option<Term<'a>> {
    if let Some(integer) = number.as_i64() {
        Some(integer.encode(env))
    } else if let Some(integer) = number.as_u64() {
        Some(integer.encode(env))
    } else {
        number.as_f64().map(|float| float.encode(env))
    }
}
