use nats_protocol::{Phase, Settings};

use crate::input::{Input, pieces};
use crate::readers::{drain, feed};

/// Operations of a client: four choices of settings, sizes of the pieces that the bytes come in
/// `|` the bytes.
///
/// The operations, the rest and the error depend neither on the pieces nor on the letter case of an
/// operation's name, although a PUB in upper case takes a shorter path.
pub fn decode(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let settings = Settings {
        max_control_line: input.choose(&[4096, 0, 1, 16, 64]),
        max_payload: input.choose(&[1_048_576, 0, 1, 100]),
        phase: input.choose(&[Phase::Open, Phase::ConnectOnly]),
        headers: input.choose(&[true, false]),
    };
    let sizes = input.field();
    let stream = input.rest();
    let whole = drain(stream, &settings);
    assert_eq!(feed(pieces(stream, sizes), &settings), whole);
    assert_eq!(feed(stream.chunks(1), &settings), whole);
    assert_eq!(drain(&in_other_case(stream), &settings), whole);
}

/// Every name has at least three bytes, so the first three are changed.
fn in_other_case(stream: &[u8]) -> Vec<u8> {
    let mut stream = stream.to_vec();
    for byte in stream
        .iter_mut()
        .take(3)
        .filter(|byte| byte.is_ascii_alphabetic())
    {
        *byte ^= 0x20;
    }
    stream
}
