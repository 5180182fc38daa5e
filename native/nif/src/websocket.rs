//! `websocket_decode/3` and `websocket_header/2`: turn a client's WebSocket frames into bytes of
//! its stream, and make the headers of the frames to the client.

use nats_protocol::websocket::{
    Data, Frame, Message, Payload, Position, ServerFrame, Settings, Step, decode, header,
};
use rustler::types::atom::Atom;
use rustler::{Binary, Encoder, Env, Error, NewBinary, NifResult, Term};

use crate::consume;
use crate::terms::{atoms, binary};

/// The work of one call, in bytes that are read: a quarter of a millisecond.
const MAX_WORK: usize = 256 * 1024;

/// The cost of a frame besides its bytes, in bytes.
const WORK_PER_FRAME: usize = 16;

/// The additional cost of a ping and of a piece of a compressed message, in bytes: each becomes a
/// term of its own.
const WORK_PER_TERM: usize = 80;

#[rustler::nif]
fn websocket_decode<'a>(
    env: Env<'a>,
    bytes: Binary<'a>,
    settings: (u64, bool),
    position: (u64, u32, Atom, bool),
) -> NifResult<Term<'a>> {
    let settings = Settings {
        max_frame: settings.0,
        deflate: settings.1,
    };
    let mut position = Position {
        remaining: position.0,
        key: position.1.to_be_bytes(),
        message: message(position.2)?,
        last_frame: position.3,
    };
    let input = bytes.as_slice();
    let (mut rest, beyond) = input.split_at_checked(MAX_WORK).unwrap_or((input, &[]));
    let mut parts = Parts::new(env);
    let mut pings = Vec::new();
    let mut work = 0_usize;
    let next = loop {
        let left = rest.len().saturating_add(beyond.len());
        if work >= MAX_WORK && left > 0 {
            break go_on(env, &bytes, left, position)?;
        }
        match decode(rest, &mut position, &settings) {
            Ok(Step::Frame { frame, used }) => {
                rest = rest.get(used..).unwrap_or_default();
                work = work.saturating_add(WORK_PER_FRAME).saturating_add(used);
                match frame {
                    Frame::Data(data) => {
                        if data.deflated {
                            work = work.saturating_add(WORK_PER_TERM);
                        }
                        parts.push(&data);
                    }
                    Frame::Ping(payload) => {
                        work = work.saturating_add(WORK_PER_TERM);
                        pings.push(clear(env, &[payload], payload.len()));
                    }
                    Frame::Pong => {}
                    Frame::Close(payload) => {
                        let payload = clear(env, &[payload], payload.len());
                        break (atoms::close(), payload).encode(env);
                    }
                }
            }
            Ok(Step::Need(need)) => {
                break if beyond.is_empty() {
                    // The rest of a whole chunk is small enough to be copied.
                    (
                        atoms::more(),
                        binary(env, rest),
                        need,
                        encode(env, position),
                    )
                        .encode(env)
                } else {
                    go_on(env, &bytes, left, position)?
                };
            }
            Err(error) => {
                let text = binary(env, error.to_string().as_bytes());
                break (atoms::error(), error.close_code(), text).encode(env);
            }
        }
    };
    consume(env, work);
    Ok((parts.finish(), pings, next).encode(env))
}

/// Returns the last `left` bytes, so that the caller calls again at once.
fn go_on<'a>(
    env: Env<'a>,
    bytes: &Binary<'a>,
    left: usize,
    position: Position,
) -> NifResult<Term<'a>> {
    let start = bytes.len().saturating_sub(left);
    let rest = bytes.make_subbinary(start, left)?;
    Ok((atoms::more(), rest, 0, encode(env, position)).encode(env))
}

fn message(atom: Atom) -> NifResult<Message> {
    if atom == atoms::none() {
        Ok(Message::None)
    } else if atom == atoms::plain() {
        Ok(Message::Plain)
    } else if atom == atoms::deflated() {
        Ok(Message::Deflated)
    } else {
        Err(Error::BadArg)
    }
}

fn encode(env: Env<'_>, position: Position) -> Term<'_> {
    let message = match position.message {
        Message::None => atoms::none(),
        Message::Plain => atoms::plain(),
        Message::Deflated => atoms::deflated(),
    };
    let key = u32::from_be_bytes(position.key);
    (position.remaining, key, message, position.last_frame).encode(env)
}

/// Makes one binary of each run of the stream, whatever the number of its frames.
struct Parts<'a, 'b> {
    env: Env<'a>,
    done: Vec<Term<'a>>,
    run: Vec<Payload<'b>>,
    run_size: usize,
}

impl<'a, 'b> Parts<'a, 'b> {
    fn new(env: Env<'a>) -> Self {
        Self {
            env,
            done: Vec::new(),
            run: Vec::new(),
            run_size: 0,
        }
    }

    fn push(&mut self, data: &Data<'b>) {
        let size = data.payload.len();
        if !data.deflated {
            self.run.push(data.payload);
            self.run_size = self.run_size.saturating_add(size);
        } else if size > 0 || data.ends_message {
            self.end_run();
            let payload = clear(self.env, &[data.payload], size);
            self.done
                .push((atoms::deflated(), payload, data.ends_message).encode(self.env));
        }
    }

    fn end_run(&mut self) {
        if self.run_size > 0 {
            self.done.push(clear(self.env, &self.run, self.run_size));
        }
        self.run.clear();
        self.run_size = 0;
    }

    fn finish(mut self) -> Vec<Term<'a>> {
        self.end_run();
        self.done
    }
}

/// A binary with the unmasked payloads one after the other, `size` bytes in all.
fn clear<'a>(env: Env<'a>, payloads: &[Payload<'_>], size: usize) -> Term<'a> {
    let mut clear = NewBinary::new(env, size);
    let mut left = clear.as_mut_slice();
    for payload in payloads {
        payload.unmask(left);
        left = left.get_mut(payload.len()..).unwrap_or_default();
    }
    clear.into()
}

#[rustler::nif]
fn websocket_header(env: Env<'_>, frame: Atom, length: u64) -> NifResult<Term<'_>> {
    let frame = if frame == atoms::binary() {
        ServerFrame::Binary
    } else if frame == atoms::deflated() {
        ServerFrame::Deflated
    } else if frame == atoms::pong() {
        ServerFrame::Pong
    } else if frame == atoms::close() {
        ServerFrame::Close
    } else {
        return Err(Error::BadArg);
    };
    let (bytes, size) = header(frame, length);
    Ok(binary(env, bytes.get(..size).unwrap_or_default()))
}
