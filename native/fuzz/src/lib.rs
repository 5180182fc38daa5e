//! What must hold of every input: a function over any bytes for each part of the native code that
//! reads what others wrote. `make fuzz` looks for bytes that one of them panics at, and
//! `tests/corpus.rs` replays those that were worth keeping.
//!
//! Inputs are text where that is possible, with fields that end in `|`; see [`input::Input`].

mod connect;
mod decode;
mod encode;
mod headers;
pub mod input;
mod jwt;
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
pub use mqtt::mqtt;
pub use names::names;
pub use websocket::websocket;

/// Panics at bytes that something does not hold of.
pub type Target = fn(&[u8]);

/// All of them, under the names of their folders in `corpus/`.
pub const TARGETS: [(&str, Target); 8] = [
    ("connect", connect),
    ("decode", decode),
    ("encode", encode),
    ("headers", headers),
    ("jwt", jwt),
    ("mqtt", mqtt),
    ("names", names),
    ("websocket", websocket),
];
