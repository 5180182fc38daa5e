//! From the text of a rule to its bytes.

use super::tag;
use crate::subject::MAX_TOPIC;

/// The most bytes that the text of a rule may have.
pub const MAX_RULE: usize = 1024;

/// What a list of rules is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The subjects that clients publish to.
    Publish,
    /// The subjects that clients subscribe to. What a rule does can be undone, so that the client
    /// sees the names that it asked for.
    Subscribe,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The subject before the arrow. In a list, no second rule can have the same.
    pub source: String,
    /// Its part of a list.
    pub rule: Vec<u8>,
}

/// Why a text is no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum MappingError {
    #[error("must be \"SUBJECT -> SUBJECT\", such as \"a.* -> fleet.{{{{wildcard(1)}}}}.x\"")]
    Form,
    #[error("must have at most 1024 bytes")]
    TooLong,
    #[error("must have a subject such as a.* or a.> before the arrow")]
    Source,
    #[error("must have a subject after the arrow, without * (use {{{{wildcard(n)}}}})")]
    Destination,
    #[error("must have a last > on both sides of the arrow, or on neither")]
    Rest,
    #[error(
        "must have no other functions than wildcard, partition, split, splitfromleft, \
         splitfromright, slicefromleft, slicefromright, left, right and random"
    )]
    Function,
    #[error("must give each function in {{{{}}}} the arguments that it takes")]
    Arguments,
    #[error("must not use a wildcard that the subject before the arrow does not have")]
    Wildcard,
    #[error("must have weights such as \"a -> b 80%, c 20%\", from 1% to 100% and 100% in all")]
    Weights,
    #[error("must not name a subject twice after the arrow")]
    Twice,
    #[error(
        "must be reversible for subscriptions: one subject after the arrow, with each wildcard \
         exactly once, and no function but wildcard"
    )]
    Irreversible,
    #[error(
        "must not begin with $, _INBOX or _MQTT on either side of the arrow, because it is for \
         subscriptions"
    )]
    ReservedSubscription,
    #[error("must not begin with _MQTT on either side of the arrow")]
    Reserved,
}

/// A token of a destination.
#[derive(PartialEq, Eq)]
enum Part<'t> {
    Literal(&'t str),
    Rest,
    /// The number of a wildcard. 0 stands for the first token, as in nats-server.
    Wildcard(usize),
    Partition(u32, Vec<usize>),
    Random(u32),
    Split(usize, &'t str),
    Cut(u8, usize, u32),
}

/// Compiles the text of one rule.
pub fn compile(text: &str, direction: Direction) -> Result<Compiled, MappingError> {
    if text.len() > MAX_RULE {
        return Err(MappingError::TooLong);
    }
    let (source, destinations) = text.split_once("->").ok_or(MappingError::Form)?;
    let (source, destinations) = (source.trim(), destinations.trim());
    if source.is_empty() || destinations.is_empty() || destinations.contains("->") {
        return Err(MappingError::Form);
    }
    let tokens = source_tokens(source)?;
    let weighted = weights(destinations)?;
    for name in [source]
        .into_iter()
        .chain(weighted.iter().map(|&(name, _)| name))
    {
        check_name(name, direction)?;
    }
    let mut body = Vec::new();
    push_pattern(&mut body, source);
    let total: u32 = weighted.iter().map(|&(_, weight)| weight).sum();
    let loses = total < 100 && weighted.iter().any(|&(name, _)| name == source);
    body.push(u8::from(loses));
    let mut sum = 0_u32;
    for (index, &(name, weight)) in weighted.iter().enumerate() {
        let others = weighted.get(..index).unwrap_or_default();
        if others.iter().any(|&(other, _)| other == name) {
            return Err(MappingError::Twice);
        }
        let parts = destination_parts(name, &tokens)?;
        sum = sum.saturating_add(weight);
        body.push(u8::try_from(sum).map_err(|_| MappingError::Weights)?);
        push_block(&mut body, &pieces(&parts, &tokens));
        if direction == Direction::Subscribe {
            if weighted.len() > 1 || weight < 100 {
                return Err(MappingError::Irreversible);
            }
            body.push(0);
            push_block(&mut body, &inverse(&parts, &tokens)?);
        }
    }
    let mut rule = Vec::new();
    push_block(&mut rule, &body);
    Ok(Compiled {
        source: source.to_owned(),
        rule,
    })
}

fn source_tokens(source: &str) -> Result<Vec<&str>, MappingError> {
    let tokens: Vec<&str> = source.split('.').collect();
    let last = tokens.len().saturating_sub(1);
    let valid = tokens
        .iter()
        .enumerate()
        .all(|(index, &token)| is_token(token) && (token != ">" || index == last));
    if valid {
        Ok(tokens)
    } else {
        Err(MappingError::Source)
    }
}

fn is_token(token: &str) -> bool {
    !token.is_empty()
        && token.len() <= MAX_TOPIC
        && !token.contains(|c: char| c.is_whitespace() || c.is_control())
}

/// The names that a rule cannot be about.
fn check_name(name: &str, direction: Direction) -> Result<(), MappingError> {
    let first = name.split('.').next().unwrap_or_default();
    match direction {
        Direction::Publish if first == "_MQTT" => Err(MappingError::Reserved),
        Direction::Subscribe
            if matches!(first, "_MQTT" | "_INBOX")
                || first.starts_with('$') && wildcard_number(first).is_none() =>
        {
            Err(MappingError::ReservedSubscription)
        }
        _ => Ok(()),
    }
}

/// The subjects after the arrow with their weights. A comma within a function separates nothing.
fn weights(text: &str) -> Result<Vec<(&str, u32)>, MappingError> {
    let mut entries = Vec::new();
    let mut start = 0;
    let mut depth = 0_usize;
    for (at, character) in text.char_indices() {
        match character {
            '{' => depth = depth.saturating_add(1),
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                entries.push(text.get(start..at).unwrap_or_default().trim());
                start = at.saturating_add(1);
            }
            _ => {}
        }
    }
    entries.push(text.get(start..).unwrap_or_default().trim());
    if let [entry] = entries[..]
        && !entry.ends_with('%')
    {
        return Ok(vec![(entry, 100)]);
    }
    let weighted = entries
        .into_iter()
        .map(weighted)
        .collect::<Option<Vec<_>>>()
        .ok_or(MappingError::Weights)?;
    match weighted.iter().map(|&(_, weight)| weight).sum::<u32>() {
        0..=100 => Ok(weighted),
        _ => Err(MappingError::Weights),
    }
}

fn weighted(entry: &str) -> Option<(&str, u32)> {
    let (name, weight) = entry.strip_suffix('%')?.rsplit_once(char::is_whitespace)?;
    let weight = number(weight)?;
    (1..=100).contains(&weight).then_some((name.trim(), weight))
}

fn destination_parts<'t>(name: &'t str, source: &[&str]) -> Result<Vec<Part<'t>>, MappingError> {
    let wildcards = source.iter().filter(|&&token| token == "*").count();
    let tokens: Vec<&str> = name.split('.').collect();
    let last = tokens.len().saturating_sub(1);
    let mut parts = Vec::with_capacity(tokens.len());
    for (index, &token) in tokens.iter().enumerate() {
        parts.push(match token {
            ">" if index == last => Part::Rest,
            "*" | ">" => return Err(MappingError::Destination),
            _ => part(token, wildcards)?,
        });
    }
    let ends_in_rest = |is_rest: bool| is_rest == (source.last() == Some(&">"));
    if ends_in_rest(parts.last() == Some(&Part::Rest)) {
        Ok(parts)
    } else {
        Err(MappingError::Rest)
    }
}

/// The number in `$1`. Other tokens that begin with `$` are plain.
fn wildcard_number(token: &str) -> Option<usize> {
    let digits = token.strip_prefix('$')?;
    number(digits).and_then(|number| usize::try_from(number).ok())
}

fn number(digits: &str) -> Option<u32> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

fn part(token: &str, wildcards: usize) -> Result<Part<'_>, MappingError> {
    if let Some(index) = wildcard_number(token) {
        return Ok(Part::Wildcard(in_range(index, wildcards)?));
    }
    let Some(call) = token
        .strip_prefix("{{")
        .and_then(|rest| rest.strip_suffix("}}"))
    else {
        return if is_token(token) {
            Ok(Part::Literal(token))
        } else {
            Err(MappingError::Destination)
        };
    };
    let (name, arguments) = call
        .trim()
        .strip_suffix(')')
        .and_then(|call| call.split_once('('))
        .ok_or(MappingError::Function)?;
    let arguments: Vec<&str> = arguments.split(',').collect();
    function(name.trim(), &arguments, wildcards)
}

fn function<'t>(
    name: &str,
    arguments: &[&'t str],
    wildcards: usize,
) -> Result<Part<'t>, MappingError> {
    let cut = match name.to_ascii_lowercase().as_str() {
        "wildcard" => {
            return match arguments {
                [index] => Ok(Part::Wildcard(wildcard(index, wildcards)?)),
                _ => Err(MappingError::Arguments),
            };
        }
        "partition" => {
            let (count, tokens) = arguments.split_first().ok_or(MappingError::Arguments)?;
            let tokens = tokens
                .iter()
                .map(|index| wildcard(index, wildcards))
                .collect::<Result<Vec<_>, _>>()?;
            return match u8::try_from(tokens.len()) {
                Ok(_) => Ok(Part::Partition(quantity(count)?, tokens)),
                Err(_) => Err(MappingError::Arguments),
            };
        }
        "random" => {
            return match arguments {
                [max] => Ok(Part::Random(quantity(max)?)),
                _ => Err(MappingError::Arguments),
            };
        }
        "split" => {
            return match arguments {
                [index, delimiter] => split(wildcard(index, wildcards)?, delimiter.trim_start()),
                _ => Err(MappingError::Arguments),
            };
        }
        "splitfromleft" => tag::SPLIT_FROM_LEFT,
        "splitfromright" => tag::SPLIT_FROM_RIGHT,
        "slicefromleft" => tag::SLICE_FROM_LEFT,
        "slicefromright" => tag::SLICE_FROM_RIGHT,
        "left" => tag::LEFT,
        "right" => tag::RIGHT,
        _ => return Err(MappingError::Function),
    };
    match arguments {
        [index, size] => Ok(Part::Cut(cut, wildcard(index, wildcards)?, quantity(size)?)),
        _ => Err(MappingError::Arguments),
    }
}

fn split(index: usize, delimiter: &str) -> Result<Part<'_>, MappingError> {
    if is_token(delimiter) && delimiter.len() <= usize::from(u8::MAX) {
        Ok(Part::Split(index, delimiter))
    } else {
        Err(MappingError::Arguments)
    }
}

fn wildcard(argument: &str, wildcards: usize) -> Result<usize, MappingError> {
    let index = number(argument.trim()).ok_or(MappingError::Arguments)?;
    in_range(usize::try_from(index).unwrap_or(usize::MAX), wildcards)
}

/// A subject without wildcards has none with a number, and not even a token 0.
fn in_range(index: usize, wildcards: usize) -> Result<usize, MappingError> {
    if wildcards > 0 && index <= wildcards {
        Ok(index)
    } else {
        Err(MappingError::Wildcard)
    }
}

/// A number of 31 bits.
fn quantity(argument: &str) -> Result<u32, MappingError> {
    number(argument.trim())
        .filter(|&number| i32::try_from(number).is_ok())
        .ok_or(MappingError::Arguments)
}

/// The token of the source that has this wildcard.
fn place(wildcard: usize, source: &[&str]) -> u16 {
    let place = match wildcard.checked_sub(1) {
        None => Some(0),
        Some(skipped) => source
            .iter()
            .enumerate()
            .filter(|&(_, &token)| token == "*")
            .nth(skipped)
            .map(|(place, _)| place),
    };
    place
        .and_then(|place| u16::try_from(place).ok())
        .unwrap_or(u16::MAX)
}

fn pieces(parts: &[Part<'_>], source: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut literal = String::new();
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            literal.push('.');
        }
        if let Part::Literal(text) = part {
            literal.push_str(text);
            continue;
        }
        push_literal(&mut out, &mut literal);
        match part {
            Part::Literal(_) => {}
            Part::Rest => push_token(&mut out, tag::REST, last_place(source.len())),
            &Part::Wildcard(index) => push_token(&mut out, tag::TOKEN, place(index, source)),
            Part::Partition(count, indexes) => {
                out.push(tag::PARTITION);
                out.extend_from_slice(&count.to_be_bytes());
                out.push(u8::try_from(indexes.len()).unwrap_or(u8::MAX));
                for &index in indexes {
                    out.extend_from_slice(&place(index, source).to_be_bytes());
                }
            }
            Part::Random(max) => {
                out.push(tag::RANDOM);
                out.extend_from_slice(&max.to_be_bytes());
            }
            &Part::Split(index, delimiter) => {
                push_token(&mut out, tag::SPLIT, place(index, source));
                out.push(u8::try_from(delimiter.len()).unwrap_or(u8::MAX));
                out.extend_from_slice(delimiter.as_bytes());
            }
            &Part::Cut(tag, index, size) => {
                push_token(&mut out, tag, place(index, source));
                out.extend_from_slice(&size.to_be_bytes());
            }
        }
    }
    push_literal(&mut out, &mut literal);
    out
}

/// From the destination back to the source.
fn inverse(parts: &[Part<'_>], source: &[&str]) -> Result<Vec<u8>, MappingError> {
    let wildcards = source.iter().filter(|&&token| token == "*").count();
    let mut pattern = Vec::with_capacity(parts.len());
    let mut places = vec![None; wildcards];
    for (at, part) in parts.iter().enumerate() {
        pattern.push(match part {
            Part::Literal(text) => *text,
            Part::Rest => ">",
            Part::Wildcard(index) => {
                let place = index.checked_sub(1).and_then(|index| places.get_mut(index));
                match place {
                    Some(place @ None) => *place = Some(at),
                    _ => return Err(MappingError::Irreversible),
                }
                "*"
            }
            _ => return Err(MappingError::Irreversible),
        });
    }
    let mut places = places.into_iter();
    let mut back = Vec::with_capacity(source.len());
    for &token in source {
        back.push(match token {
            "*" => {
                let at = places.next().flatten().ok_or(MappingError::Irreversible)?;
                // The wildcards of the pattern count from 1.
                let before = pattern.get(..=at).unwrap_or_default();
                Part::Wildcard(before.iter().filter(|&&token| token == "*").count())
            }
            ">" => Part::Rest,
            _ => Part::Literal(token),
        });
    }
    let mut out = Vec::new();
    push_pattern(&mut out, &pattern.join("."));
    push_block(&mut out, &pieces(&back, &pattern));
    Ok(out)
}

fn last_place(tokens: usize) -> u16 {
    u16::try_from(tokens.saturating_sub(1)).unwrap_or(u16::MAX)
}

fn push_token(out: &mut Vec<u8>, tag: u8, place: u16) {
    out.push(tag);
    out.extend_from_slice(&place.to_be_bytes());
}

fn push_literal(out: &mut Vec<u8>, literal: &mut String) {
    if !literal.is_empty() {
        out.push(tag::LITERAL);
        push_text(out, literal);
        literal.clear();
    }
}

fn push_pattern(out: &mut Vec<u8>, pattern: &str) {
    let mut literal = 0_usize;
    for token in pattern.split('.') {
        if matches!(token, "*" | ">") {
            break;
        }
        literal = literal.saturating_add(token.len()).saturating_add(1);
    }
    let size = u16::try_from(literal.min(pattern.len())).unwrap_or(u16::MAX);
    out.extend_from_slice(&size.to_be_bytes());
    push_text(out, pattern);
}

/// A rule is short enough for the two bytes of a size.
fn push_text(out: &mut Vec<u8>, text: &str) {
    let size = u16::try_from(text.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn push_block(out: &mut Vec<u8>, block: &[u8]) {
    let size = u32::try_from(block.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(block);
}
