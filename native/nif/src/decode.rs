//! `decode_chunk/3`: turns bytes of a client into operations.

use nats_protocol::subject;
use nats_protocol::subject::mapping::{Mapped, map};
use nats_protocol::{Op, Phase, Publish, Settings, Step, Subscribe, decode};
use rustler::types::atom::Atom;
use rustler::types::tuple::{get_tuple, make_tuple};
use rustler::{Binary, Encoder, Env, Error, NewBinary, NifResult, Term};

use crate::consume;
use crate::mapping::random;
use crate::terms::{Chunk, atoms, binary, connect, optional_part, reason};

/// The work of one call, in bytes that are read or copied: some 60 small operations. One call for
/// the whole chunk would be cheaper by itself. But the terms of hundreds of operations outlive
/// several garbage collections while the first ones are published, and each collection copies them.
const MAX_WORK: usize = 24 * 1024;

/// The cost of an operation besides its bytes, in bytes: its terms, and their share of the next
/// garbage collection.
const WORK_PER_OP: usize = 192;

/// The bytes of rules that are passed over in the time of a byte of work.
const RULES_PER_WORK: usize = 4;

#[rustler::nif]
fn decode_chunk<'a>(
    env: Env<'a>,
    bytes: Binary<'a>,
    referenced: usize,
    settings: Term<'a>,
) -> NifResult<Term<'a>> {
    let (_decoder, max_control_line, max_payload, phase, headers, mountpoint, mappings): (
        Atom,
        usize,
        usize,
        Atom,
        bool,
        Binary<'a>,
        (Binary<'a>, Binary<'a>),
    ) = settings.decode()?;
    let phase = if phase == atoms::open() {
        Phase::Open
    } else if phase == atoms::connect_only() {
        Phase::ConnectOnly
    } else {
        return Err(Error::BadArg);
    };
    let settings = Settings {
        max_control_line,
        max_payload,
        phase,
        headers,
    };
    let mut terms = Terms {
        env,
        chunk: Chunk::new(env, bytes, referenced),
        mountpoint: mountpoint.as_slice(),
        maps: !(mappings.0.is_empty() && mappings.1.is_empty()),
        publish_rules: mappings.0.as_slice(),
        subscribe_rules: mappings.1.as_slice(),
        scratch: Vec::new(),
        mapped: Vec::new(),
    };
    let rules = mappings.0.len().max(mappings.1.len());
    let work_per_op = WORK_PER_OP.saturating_add(rules / RULES_PER_WORK);
    let mut rest = bytes.as_slice();
    let mut ops = Vec::new();
    let mut work = 0_usize;
    let end = loop {
        if work >= MAX_WORK {
            break Ok(0);
        }
        match decode(rest, &settings) {
            Ok(Step::Op { op, used }) => {
                rest = rest.get(used..).unwrap_or_default();
                work = work.saturating_add(work_per_op).saturating_add(touched(
                    &op,
                    used,
                    &terms.chunk,
                ));
                match op {
                    Op::Ping => ops.push(atoms::ping().to_term(env)),
                    Op::Pong => ops.push(atoms::pong().to_term(env)),
                    Op::Pub(message) => {
                        let publish = terms.publish(&message)?;
                        ops.push(if terms.maps {
                            terms.map_publish(publish, message.subject)?
                        } else {
                            publish
                        });
                    }
                    Op::Sub(subscription) => ops.push(terms.subscribe(&subscription)),
                    Op::Unsub { sid, max } => {
                        ops.push((atoms::unsub(), binary(env, sid), max).encode(env));
                    }
                    Op::Connect(fields) => {
                        ops.push((atoms::connect(), connect(env, &fields)?).encode(env));
                        break Ok(0);
                    }
                    Op::Ignored => {}
                }
            }
            Ok(Step::Need(bytes)) => break Ok(bytes),
            Err(error) => break Err(error),
        }
    };
    consume(env, work);
    match end {
        Ok(0) => Ok((atoms::ok(), ops, terms.chunk.rest(rest)?, 0).encode(env)),
        // The rest may wait for a long time.
        Ok(need) => Ok((atoms::ok(), ops, terms.chunk.part(rest)?, need).encode(env)),
        Err(error) => Ok((atoms::error(), reason(error), ops).encode(env)),
    }
}

/// The bytes of an operation that are read or copied.
fn touched(op: &Op<'_>, used: usize, chunk: &Chunk<'_>) -> usize {
    match op {
        Op::Pub(message) if chunk.refers(message.payload.len()) => {
            used.saturating_sub(message.payload.len())
        }
        _ => used,
    }
}

/// What the operations of one call share when they become terms.
struct Terms<'a> {
    env: Env<'a>,
    chunk: Chunk<'a>,
    mountpoint: &'a [u8],
    /// Whether there are any rules.
    maps: bool,
    publish_rules: &'a [u8],
    subscribe_rules: &'a [u8],
    scratch: Vec<u8>,
    /// The subject that the current one is mapped to.
    mapped: Vec<u8>,
}

impl<'a> Terms<'a> {
    fn publish(&mut self, message: &Publish<'_>) -> NifResult<Term<'a>> {
        let topic = topic(
            self.env,
            message.subject,
            self.mountpoint,
            &mut self.scratch,
        );
        let reply_topic = match message.reply {
            Some(reply) => self.reply_topic(reply),
            None => atoms::undefined().to_term(self.env),
        };
        Ok((
            atoms::publish(),
            self.chunk.part(message.subject)?,
            topic,
            optional_part(self.env, &mut self.chunk, message.reply)?,
            reply_topic,
            optional_part(self.env, &mut self.chunk, message.headers)?,
            self.chunk.part(message.payload)?,
        )
            .encode(self.env))
    }

    /// The same publish with the subject and topic that a rule has for its subject. A message that
    /// a rule loses has an empty subject, which has no topic.
    #[cold]
    #[inline(never)]
    fn map_publish(&mut self, publish: Term<'a>, subject: &[u8]) -> NifResult<Term<'a>> {
        self.mapped.clear();
        match map(self.publish_rules, subject, random, &mut self.mapped) {
            Mapped::Unchanged => Ok(publish),
            Mapped::To { .. } | Mapped::Nowhere => {
                let topic = topic(self.env, &self.mapped, self.mountpoint, &mut self.scratch);
                let mut fields = get_tuple(publish)?;
                if let [_, its_subject, its_topic, ..] = fields.as_mut_slice() {
                    *its_subject = binary(self.env, &self.mapped);
                    *its_topic = topic;
                }
                Ok(make_tuple(self.env, &fields))
            }
        }
    }

    fn reply_topic(&mut self, reply: &[u8]) -> Term<'a> {
        if let Some(term) = correlated_topic(self.env, reply, self.mountpoint) {
            return term;
        }
        if let Some(term) = plain_topic(self.env, reply, self.mountpoint) {
            return term;
        }
        self.scratch.clear();
        if subject::write_reply_topic(reply, self.mountpoint, &mut self.scratch)
            && !self.scratch.is_empty()
        {
            binary(self.env, &self.scratch)
        } else {
            atoms::invalid().to_term(self.env)
        }
    }

    fn subscribe(&mut self, subscription: &Subscribe<'_>) -> Term<'a> {
        let undefined = atoms::undefined().to_term(self.env);
        let invalid = atoms::invalid().to_term(self.env);
        let inverse = if self.maps {
            self.map_subscription(subscription.subject)
        } else {
            None
        };
        let subject = match inverse {
            Some(_) => self.mapped.as_slice(),
            None => subscription.subject,
        };
        // Wildcards of the client must not lead to names of the broker, such as `$share`.
        let is_reserved = inverse.is_some() && subject.starts_with(b"$");
        self.scratch.clear();
        let mut filter = invalid;
        if !is_reserved
            && subject::write_filter(subject, self.mountpoint, &mut self.scratch)
            && !self.scratch.is_empty()
        {
            filter = binary(self.env, &self.scratch);
        }
        let share_name = match subscription.queue.map(subject::share_name) {
            None => undefined,
            Some(Some(name)) => binary(self.env, &name),
            Some(None) => {
                filter = invalid;
                undefined
            }
        };
        // These terms stay as long as the subscription. The encoder for as many terms is left to PUB,
        // where it is inlined.
        make_tuple(
            self.env,
            &[
                atoms::sub().to_term(self.env),
                binary(self.env, subscription.subject),
                filter,
                subscription
                    .queue
                    .map_or(undefined, |queue| binary(self.env, queue)),
                share_name,
                binary(self.env, subscription.sid),
                inverse.map_or(undefined, |inverse| binary(self.env, inverse)),
            ],
        )
    }

    /// Keeps the subject that a rule has for that of a subscription, and returns the inverse.
    #[cold]
    #[inline(never)]
    fn map_subscription(&mut self, subject: &[u8]) -> Option<&'a [u8]> {
        self.mapped.clear();
        match map(self.subscribe_rules, subject, random, &mut self.mapped) {
            Mapped::To { inverse } => Some(inverse),
            Mapped::Unchanged | Mapped::Nowhere => None,
        }
    }
}

/// The mounted topic of a published subject, as `topic/2` returns it. The token `/` alone would be
/// a topic without any byte, which MQTT does not have (4.7.3). With a mountpoint, it is a topic.
pub fn topic<'a>(
    env: Env<'a>,
    subject: &[u8],
    mountpoint: &[u8],
    scratch: &mut Vec<u8>,
) -> Term<'a> {
    if let Some(term) = correlated_topic(env, subject, mountpoint) {
        return term;
    }
    if let Some(term) = plain_topic(env, subject, mountpoint) {
        return term;
    }
    scratch.clear();
    if subject::write_topic(subject, mountpoint, scratch) && !scratch.is_empty() {
        binary(env, scratch)
    } else {
        atoms::invalid().to_term(env)
    }
}

/// The common case, which is written to its final place. If it turns out to be another case, the
/// garbage collector has one more small binary.
fn plain_topic<'a>(env: Env<'a>, subject: &[u8], mountpoint: &[u8]) -> Option<Term<'a>> {
    let size = mountpoint.len().saturating_add(subject.len());
    if size > subject::MAX_TOPIC {
        return None;
    }
    let mut topic = NewBinary::new(env, size);
    let (front, back) = topic
        .as_mut_slice()
        .split_at_mut_checked(mountpoint.len())?;
    front.copy_from_slice(mountpoint);
    subject::plain_topic(subject, back).then(|| topic.into())
}

fn correlated_topic<'a>(env: Env<'a>, subject: &[u8], mountpoint: &[u8]) -> Option<Term<'a>> {
    let (topic, data) = subject::correlation(subject)?;
    let mounted = [mountpoint, &topic].concat();
    (1..=subject::MAX_TOPIC)
        .contains(&mounted.len())
        .then(|| (binary(env, &mounted), binary(env, &data)).encode(env))
}
