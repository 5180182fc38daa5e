//! What must hold for every input. Each part of the native code that reads input of others has one
//! function here, which takes any bytes. `make fuzz` looks for bytes for which one of them panics.
//! `tests/corpus.rs` replays bytes that were worth keeping.
//!
//! Inputs are text where that is possible, with fields that end in `|`; see [`input::Input`].

// A measurement or a test that panics has failed.
#![allow(clippy::restriction)]

mod connect;
mod decode;
mod encode;
mod headers;
pub mod input;
mod jwt;
mod mapping;
mod mqtt;
mod names;
#[path = "../../protocol/tests/common/mod.rs"]
mod readers;
mod websocket;

pub use connect::connect;
pub use decode::decode;
pub use encode::encode;
pub use headers::headers;
pub use jwt::jwt;
pub use mapping::mapping;
pub use mqtt::mqtt;
pub use names::names;
pub use websocket::websocket;

/// Panics if something does not hold for the bytes.
pub type Target = fn(&[u8]);

/// All targets, under the names of their folders in `corpus/`.
pub const TARGETS: [(&str, Target); 9] = [
    ("connect", connect),
    ("decode", decode),
    ("encode", encode),
    ("headers", headers),
    ("jwt", jwt),
    ("mapping", mapping),
    ("mqtt", mqtt),
    ("names", names),
    ("websocket", websocket),
];
