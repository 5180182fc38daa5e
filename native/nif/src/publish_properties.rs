//! `publish_properties/2` and `show_properties/2`: headers that stand for properties of a PUBLISH.

use nats_protocol::publish_properties::{Problem, show, take};
use rustler::types::tuple::make_tuple;
use rustler::{Binary, Encoder, Env, NifResult, Term};

use crate::terms::{atoms, binary, for_each};
use crate::{WORK_PER_PAIR, consume};

#[rustler::nif]
fn publish_properties<'a>(env: Env<'a>, block: Binary<'a>, payload: Binary<'a>) -> Term<'a> {
    consume(env, block.len());
    let properties = match take(&block, &payload) {
        Ok(Some(properties)) => properties,
        Ok(None) => return atoms::none().to_term(env),
        Err((header, problem)) => {
            let problem = match problem {
                Problem::Value => atoms::value(),
                Problem::Repeated => atoms::repeated(),
                Problem::Payload => atoms::payload(),
            };
            let name = binary(env, header.name().as_bytes());
            return (atoms::refused(), name, problem).encode(env);
        }
    };
    let undefined = atoms::undefined().to_term(env);
    let number = |value: Option<u32>| value.map_or(undefined, |value| value.encode(env));
    if properties.payload_format.is_some() {
        // All of the payload was checked.
        consume(env, payload.len());
    }
    make_tuple(
        env,
        &[
            atoms::properties().to_term(env),
            properties.retain.unwrap_or(false).encode(env),
            number(properties.qos.map(u32::from)),
            number(properties.expiry),
            number(properties.payload_format.map(u32::from)),
            properties
                .response_topic
                .map_or(undefined, |topic| binary(env, topic.as_bytes())),
            if properties.rest.is_empty() {
                undefined
            } else {
                binary(env, &properties.rest)
            },
        ],
    )
}

#[rustler::nif]
fn show_properties<'a>(env: Env<'a>, block: Binary<'a>, shown: Term<'a>) -> NifResult<Term<'a>> {
    let mut pairs: Vec<(Binary<'a>, Binary<'a>)> = Vec::new();
    for_each(shown, |pair| {
        pairs.push(pair.decode()?);
        Ok(())
    })?;
    let mut out =
        Vec::with_capacity((block.len()).saturating_add(pairs.len().saturating_mul(WORK_PER_PAIR)));
    show(
        &block,
        pairs
            .iter()
            .map(|(name, value)| (name.as_slice(), value.as_slice())),
        &mut out,
    );
    consume(env, out.len());
    Ok(binary(env, &out))
}
