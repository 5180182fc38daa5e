//! `encode/2`: turns deliveries into frames.

use nats_protocol::encode::{Frames, MAX_CONTROL_LINE, Message, write_raw_subject};
use nats_protocol::{headers, subject};
use rustler::types::atom::Atom;
use rustler::{Binary, Encoder, Env, Error, NewBinary, NifResult, Term};

use crate::consume;
use crate::terms::{atoms, binary, for_each};

/// The number of bytes that a delivery is likely to need. If it is too low, that costs a few
/// copies.
const FRAME_GUESS: usize = 256;

/// The work of one call, in bytes that are written: a quarter of a millisecond.
const MAX_WORK: usize = 256 * 1024;

/// The most bytes of the frames of one call, including referenced payloads. The caller checks what
/// waits for the client before it goes on.
const MAX_SIZE: usize = 1024 * 1024;

/// With this many sids a payload counts as one of many frames.
const MANY_SIDS: usize = 8;

/// The cost of a frame besides its bytes, in bytes, because its terms have to be read.
const WORK_PER_FRAME: usize = 128;

#[rustler::nif]
fn encode<'a>(env: Env<'a>, deliveries: Term<'a>, mountpoint: Binary<'a>) -> NifResult<Term<'a>> {
    let guess = deliveries.list_length()?.saturating_mul(FRAME_GUESS);
    let mut batch = Batch {
        frames: Frames::with_capacity(guess.min(MAX_WORK)),
        count: 0,
        malformed: 0,
        unwritten: 0,
        mountpoint: mountpoint.as_slice(),
        scratch: Scratch::default(),
    };
    let mut rest = deliveries;
    while !rest.is_empty_list() && !batch.is_full() {
        let (delivery, others) = rest.list_get_cell()?;
        rest = match batch.push(env, delivery)? {
            Some(unfinished) => others.list_prepend(unfinished),
            None => others,
        };
    }
    consume(env, batch.work());
    let left_out = batch.frames.too_long().saturating_add(batch.malformed);
    let (buffer, references) = batch.frames.parts();
    if references.is_empty() {
        return Ok((binary(env, buffer), left_out, rest).encode(env));
    }
    let flat: Binary<'a> = NewBinary::from_slice(env, buffer).into();
    let mut data = Term::list_new_empty(env);
    let mut end = flat.len();
    for &(start, payload) in references.iter().rev() {
        let after: Term<'a> = flat
            .make_subbinary(start, end.saturating_sub(start))?
            .into();
        data = data.list_prepend(after).list_prepend(payload);
        end = start;
    }
    let first: Term<'a> = flat.make_subbinary(0, end)?.into();
    Ok((data.list_prepend(first), left_out, rest).encode(env))
}

/// The output of this call so far.
struct Batch<'a, 'm> {
    frames: Frames<Term<'a>>,
    count: usize,
    /// The number of frames that were left out because a message was not valid.
    malformed: usize,
    /// The number of bytes that were converted for frames that were too long to be written.
    unwritten: usize,
    mountpoint: &'m [u8],
    scratch: Scratch,
}

impl<'a> Batch<'a, '_> {
    fn is_full(&self) -> bool {
        self.work() >= MAX_WORK || self.frames.size() >= MAX_SIZE
    }

    fn work(&self) -> usize {
        let (buffer, _) = self.frames.parts();
        buffer
            .len()
            .saturating_add(self.count.saturating_mul(WORK_PER_FRAME))
            .saturating_add(self.unwritten)
    }

    /// Writes the frames of a delivery. If that is too much work, the result is a delivery for the
    /// other sids. Anybody can send a message, so a message that cannot be written is left out. The
    /// sids are the caller's own.
    fn push(&mut self, env: Env<'a>, delivery: Term<'a>) -> NifResult<Option<Term<'a>>> {
        let (message, topic, sids, reply, headers, payload): (
            Term<'a>,
            Term<'a>,
            Term<'a>,
            Term<'a>,
            Term<'a>,
            Term<'a>,
        ) = delivery.decode()?;
        let (Ok(topic), Ok(payload)) = (Binary::from_term(topic), Binary::from_term(payload))
        else {
            return self.leave_out(sids);
        };
        if (self.scratch)
            .fill(&topic, reply, headers, self.mountpoint)
            .is_err()
        {
            return self.leave_out(sids);
        }
        let headers_of_message = if headers.is_binary() {
            Binary::from_term(headers)?.as_slice()
        } else {
            &[]
        };
        let push = if has_many(sids)? {
            Frames::push_shared
        } else {
            Frames::push
        };
        let mut sids = sids;
        while !sids.is_empty_list() {
            if self.is_full() {
                let unfinished = (message, topic, sids, reply, headers, payload);
                return Ok(Some(unfinished.encode(env)));
            }
            let (sid, others) = sids.list_get_cell()?;
            let message = self.scratch.message(headers_of_message, &payload);
            push(
                &mut self.frames,
                &message,
                &Binary::from_term(sid)?,
                payload.into(),
            );
            self.count = self.count.saturating_add(1);
            sids = others;
        }
        self.unwritten = self.unwritten.saturating_add(self.scratch.unwritten());
        Ok(None)
    }

    fn leave_out(&mut self, sids: Term<'a>) -> NifResult<Option<Term<'a>>> {
        let count = sids.list_length()?;
        self.malformed = self.malformed.saturating_add(count);
        self.count = self.count.saturating_add(count);
        Ok(None)
    }
}

fn has_many(sids: Term<'_>) -> NifResult<bool> {
    let mut rest = sids;
    for _ in 1..MANY_SIDS {
        if rest.is_empty_list() {
            return Ok(false);
        }
        (_, rest) = rest.list_get_cell()?;
    }
    Ok(!rest.is_empty_list())
}

/// The reply subject as `encode/2` writes it.
#[rustler::nif]
fn reply_subject<'a>(env: Env<'a>, reply: Term<'a>, mountpoint: Binary<'a>) -> NifResult<Term<'a>> {
    let mut scratch = Scratch::default();
    scratch.write_reply(reply, &mountpoint)?;
    Ok(binary(env, &scratch.reply))
}

/// Parts of a message that have to be converted before they are written.
#[derive(Default)]
struct Scratch {
    subject: Vec<u8>,
    reply: Vec<u8>,
    headers: Vec<u8>,
}

impl Scratch {
    fn fill(
        &mut self,
        topic: &[u8],
        reply: Term<'_>,
        headers: Term<'_>,
        mountpoint: &[u8],
    ) -> NifResult<()> {
        self.subject.clear();
        subject::write_subject(topic, mountpoint, &mut self.subject);
        self.reply.clear();
        self.write_reply(reply, mountpoint)?;
        self.headers.clear();
        if !is_undefined(headers) && !headers.is_binary() {
            self.write_headers(headers)?;
        }
        Ok(())
    }

    /// The converted bytes, if they may be too long to be written.
    fn unwritten(&self) -> usize {
        let names = self.subject.len().saturating_add(self.reply.len());
        if names < MAX_CONTROL_LINE {
            return 0;
        }
        names.saturating_add(self.headers.len())
    }

    /// Headers that came as a binary need no conversion.
    fn message<'s>(&'s self, headers: &'s [u8], payload: &'s [u8]) -> Message<'s> {
        Message {
            subject: &self.subject,
            reply: &self.reply,
            headers: if headers.is_empty() {
                &self.headers
            } else {
                headers
            },
            payload,
        }
    }

    fn write_reply(&mut self, reply: Term<'_>, mountpoint: &[u8]) -> NifResult<()> {
        if is_undefined(reply) {
            return Ok(());
        }
        if let Ok((kind, subject)) = reply.decode::<(Atom, Binary<'_>)>() {
            if kind != atoms::subject() {
                return Err(Error::BadArg);
            }
            write_raw_subject(&subject, &mut self.reply);
            return Ok(());
        }
        let (kind, topic, data) = reply.decode::<(Atom, Binary<'_>, Term<'_>)>()?;
        if kind != atoms::topic() {
            return Err(Error::BadArg);
        }
        let data = optional_binary(data)?;
        subject::write_reply(&topic, data, mountpoint, &mut self.reply);
        Ok(())
    }

    fn write_headers<'a>(&mut self, headers: Term<'a>) -> NifResult<()> {
        let (kind, list, content_type) = headers.decode::<(Atom, Term<'a>, Term<'a>)>()?;
        let ascii = kind == atoms::ascii_properties();
        if !ascii && kind != atoms::properties() {
            return Err(Error::BadArg);
        }
        let mut pairs: Vec<(&[u8], &[u8])> = Vec::new();
        for_each(list, |pair| {
            let (name, value): (Binary<'a>, Binary<'a>) = pair.decode()?;
            pairs.push((name.as_slice(), value.as_slice()));
            Ok(())
        })?;
        let content_type = optional_binary(content_type)?;
        let pairs = pairs.into_iter();
        if ascii {
            headers::build_ascii(pairs, content_type, &mut self.headers);
        } else {
            headers::build(pairs, content_type, &mut self.headers);
        }
        Ok(())
    }
}

/// An atom is the same word everywhere, so no call into the VM is needed.
fn is_undefined(term: Term<'_>) -> bool {
    term.as_c_arg() == atoms::undefined().as_c_arg()
}

fn optional_binary(term: Term<'_>) -> NifResult<Option<&[u8]>> {
    if is_undefined(term) {
        return Ok(None);
    }
    Ok(Some(Binary::from_term(term)?.as_slice()))
}
