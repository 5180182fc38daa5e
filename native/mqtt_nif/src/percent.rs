//! Percent coding of byte strings that must travel in an MQTT string.

use percent_encoding::{AsciiSet, CONTROLS, percent_decode, percent_encode};
use rustler::{Binary, Env, NewBinary};

/// The bytes that are encoded: control characters, which MQTT strings should not hold, bytes that
/// are not ASCII, and the percent sign.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// The work of a millisecond, in bytes.
const TIMESLICE: usize = 1024 * 1024;

#[rustler::nif]
fn quote<'a>(env: Env<'a>, bytes: Binary<'a>) -> Binary<'a> {
    account(env, bytes.len());
    let quoted: String = percent_encode(bytes.as_slice(), ENCODED).collect();
    NewBinary::from_slice(env, quoted.as_bytes()).into()
}

#[rustler::nif]
fn unquote<'a>(env: Env<'a>, text: Binary<'a>) -> Binary<'a> {
    account(env, text.len());
    let bytes: Vec<u8> = percent_decode(text.as_slice()).collect();
    NewBinary::from_slice(env, &bytes).into()
}

fn account(env: Env<'_>, bytes: usize) {
    let percent = (bytes.saturating_mul(100) / TIMESLICE).clamp(1, 100);
    rustler::schedule::consume_timeslice(env, percent as i32);
}
