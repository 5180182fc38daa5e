//! Sends messages from publishers to subscribers as fast as possible.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};
use std::{io, thread};

use serde::{Deserialize, Serialize};

use crate::connection::{Connection, Inbox, Login, Message, Outgoing, Protocol, Received};
use crate::payload::{Expected, STAMP, blank, stamp};
use crate::transport::{Connector, Transport, Writer};
use crate::{Failure, cpu_seconds};

/// What to measure. Every subscriber gets every message, unless they are a queue group.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// The protocol of the connections.
    pub protocol: Protocol,
    /// The peer's address.
    pub address: SocketAddr,
    /// How the bytes travel.
    #[serde(default)]
    pub transport: Transport,
    /// The peer's processes. Their processor time is reported.
    #[serde(default)]
    pub pids: Vec<u32>,
    /// Connections that publish.
    #[serde(default = "one")]
    pub publishers: u32,
    /// Connections that subscribe to all that is published.
    #[serde(default)]
    pub subscribers: u32,
    /// Messages of each publisher.
    pub messages: u64,
    /// Bytes of each payload.
    pub payload: usize,
    /// Two headers (NATS) or user properties (MQTT) with each message.
    #[serde(default)]
    pub headers: bool,
    /// Whether the peer acknowledges each message (verbose, QoS 1).
    #[serde(default)]
    pub acknowledged: bool,
    /// The names to which the messages go, in turn.
    #[serde(default = "one")]
    pub subjects: u32,
    /// Subscriptions of each subscriber: 1 (a wildcard if there are more subjects), or more than
    /// subjects.
    #[serde(default = "one")]
    pub subscriptions: u32,
    /// Whether each subscription has a wildcard of its own.
    #[serde(default)]
    pub wildcards: bool,
    /// Whether the subscribers are a queue group (a shared subscription): each message goes to one
    /// of them.
    #[serde(default)]
    pub queue: bool,
    /// The most messages of one write. If it is absent, a write has about 64 KiB.
    #[serde(default)]
    pub per_write: Option<usize>,
    /// How long to wait for messages that do not come.
    #[serde(default = "patience")]
    pub patience_ms: u64,
}

fn one() -> u32 {
    1
}

fn patience() -> u64 {
    10_000
}

/// The result. All messages have arrived as they should.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Time from the first byte until the last publisher knows that the peer has handled
    /// everything.
    pub publish_seconds: f64,
    /// Time from the first byte until the last subscriber has the last message.
    pub deliver_seconds: f64,
    /// Messages that publishers sent.
    pub published: u64,
    /// Messages that subscribers got, each checked.
    pub delivered: u64,
    /// Published messages per second of `publish_seconds`.
    pub published_per_second: f64,
    /// Delivered messages per second of `deliver_seconds`.
    pub delivered_per_second: f64,
    /// Processor time of the peer.
    pub peer_cpu_seconds: f64,
    /// Processor time of the generator.
    pub own_cpu_seconds: f64,
}

/// The most messages under way. That is enough for neither side to wait for the other, but less
/// than what makes a peer close a slow subscriber.
const WINDOW: u64 = 8192;
const WINDOW_BYTES: usize = 8 * 1024 * 1024;

/// A write has about this many bytes, if messages are not larger.
const WRITE: usize = 64 * 1024;

/// A publisher whose window is full looks again after this time.
const PAUSE: Duration = Duration::from_micros(500);

struct Shared<'a> {
    flow: &'a Flow,
    names: Vec<String>,
    /// Names in the spelling of the protocol.
    wire_names: Vec<Vec<u8>>,
    headers: Vec<u8>,
    window: u64,
    start: Barrier,
    published: AtomicU64,
    /// Messages that each subscriber has got.
    received: Vec<AtomicU64>,
    /// Of a queue group: the messages that a member has got, of each publisher.
    taken: Mutex<Vec<Vec<bool>>>,
    failed: AtomicBool,
    failure: Mutex<Option<Failure>>,
}

/// Measures once.
pub fn run(flow: &Flow) -> Result<Outcome, Failure> {
    check(flow)?;
    let run = std::process::id();
    let named = |last: &str| -> Vec<String> {
        (0..flow.subjects.max(flow.subscriptions))
            .map(|number| format!("load.{run}.s{number}{last}"))
            .collect()
    };
    let names = named(if flow.wildcards { ".m" } else { "" });
    let own_wildcards = named(".*");
    let wildcard = [format!("load.{run}.*")];
    let subscribed = match (flow.subjects, flow.subscriptions) {
        _ if flow.wildcards => &own_wildcards[..],
        (1, 1) => &names[..],
        (_, 1) => &wildcard,
        _ => &names,
    };
    let connector = Connector::new(flow.protocol, flow.address, &flow.transport)?;
    let open = |id: &str, verbose| {
        Connection::open(
            &connector,
            &Login {
                id,
                verbose,
                keep_alive: 0,
            },
        )
    };
    let group = flow.queue.then_some("load");
    let mut subscribers = Vec::new();
    for number in 0..flow.subscribers {
        let mut connection = open(&format!("load-{run}-s{number}"), false)?;
        connection.subscribe(subscribed, group)?;
        subscribers.push(connection);
    }
    let publishers = (0..flow.publishers)
        .map(|number| open(&format!("load-{run}-p{number}"), flow.acknowledged))
        .collect::<Result<Vec<_>, _>>()?;
    let published_names = names[..flow.subjects as usize].to_vec();
    let threads = flow.subscribers + 2 * flow.publishers + 1;
    let shared = Shared {
        flow,
        wire_names: published_names
            .iter()
            .map(|name| flow.protocol.name(name).into_bytes())
            .collect(),
        names: published_names,
        headers: if flow.headers {
            flow.protocol.headers()
        } else {
            Vec::new()
        },
        window: WINDOW.min((WINDOW_BYTES / flow.payload) as u64).max(4),
        start: Barrier::new(threads as usize),
        published: AtomicU64::new(0),
        received: subscribers.iter().map(|_| AtomicU64::new(0)).collect(),
        taken: Mutex::new(if flow.queue {
            vec![vec![false; flow.messages as usize]; flow.publishers as usize]
        } else {
            Vec::new()
        }),
        failed: AtomicBool::new(false),
        failure: Mutex::new(None),
    };
    let cpu = cpu(flow)?;
    let (began, published, delivered) = transfer(&shared, publishers, subscribers)?;
    if let Some(failure) = shared.failure.into_inner().unwrap_or(None) {
        return Err(failure);
    }
    let peer_and_own = cpu_since(flow, cpu)?;
    let publish_seconds = (published - began).as_secs_f64();
    let deliver_seconds = (delivered - began).as_secs_f64();
    let published = u64::from(flow.publishers) * flow.messages;
    let delivered = if flow.queue {
        published
    } else {
        u64::from(flow.subscribers) * published
    };
    Ok(Outcome {
        publish_seconds,
        deliver_seconds,
        published,
        delivered,
        published_per_second: published as f64 / publish_seconds,
        delivered_per_second: delivered as f64 / deliver_seconds,
        peer_cpu_seconds: peer_and_own.0,
        own_cpu_seconds: peer_and_own.1,
    })
}

fn check(flow: &Flow) -> Result<(), Failure> {
    let wrong = if flow.payload < STAMP {
        "a payload has at least 16 bytes, which make it unique"
    } else if flow.queue && flow.subscribers == 0 {
        "a queue group without members"
    } else if flow.publishers == 0 || flow.messages == 0 || flow.subjects == 0 {
        "nothing to publish"
    } else if flow.wildcards && flow.subscriptions < flow.subjects {
        "fewer wildcards than subjects"
    } else if flow.subscriptions == 0
        || flow.subscriptions > 1 && flow.subscriptions < flow.subjects
    {
        "subscriptions that leave out some subjects"
    } else if flow
        .per_write
        .is_some_and(|count| count % flow.subjects as usize != 0)
    {
        "a write that does not name all subjects equally often"
    } else {
        return Ok(());
    };
    Err(Failure::BadSpecification(wrong))
}

fn cpu(flow: &Flow) -> io::Result<(f64, f64)> {
    let mut peer = 0.0;
    for pid in &flow.pids {
        peer += cpu_seconds(&pid.to_string())?;
    }
    Ok((peer, cpu_seconds("self")?))
}

fn cpu_since(flow: &Flow, before: (f64, f64)) -> io::Result<(f64, f64)> {
    let (peer, own) = cpu(flow)?;
    Ok((peer - before.0, own - before.1))
}

/// The times of the start, of the last publish, and of the last arrival.
fn transfer(
    shared: &Shared<'_>,
    publishers: Vec<Connection>,
    subscribers: Vec<Connection>,
) -> Result<(Instant, Instant, Instant), Failure> {
    thread::scope(|scope| {
        let receiving: Vec<_> = subscribers
            .into_iter()
            .enumerate()
            .map(|(index, mut connection)| {
                scope.spawn(move || {
                    shared.start.wait();
                    shared.note(subscriber(&mut connection, index, shared))
                })
            })
            .collect();
        let mut publishing = Vec::new();
        for (number, connection) in (0..).zip(publishers) {
            let (mut inbox, writer) = connection.split();
            scope.spawn(move || {
                let batch = Batch::new(number, shared);
                shared.start.wait();
                shared.note(publisher(batch, writer, shared).map(|()| Instant::now()))
            });
            publishing.push(scope.spawn(move || {
                shared.start.wait();
                shared.note(acknowledgements(&mut inbox, shared))
            }));
        }
        shared.start.wait();
        let began = Instant::now();
        let latest = |threads: Vec<thread::ScopedJoinHandle<'_, Option<Instant>>>| {
            threads
                .into_iter()
                .filter_map(|thread| thread.join().ok().flatten())
                .fold(began, Instant::max)
        };
        let published = latest(publishing);
        Ok((began, published, latest(receiving)))
    })
}

impl Shared<'_> {
    /// Keeps the first failure, and ends the other threads. The connection is still open, so that
    /// other threads do not take its end for a failure of the peer.
    fn note(&self, result: Result<Instant, Failure>) -> Option<Instant> {
        match result {
            Ok(instant) => Some(instant),
            Err(failure) => {
                if !self.failed.swap(true, Ordering::Relaxed)
                    && let Ok(mut first) = self.failure.lock()
                {
                    *first = Some(failure);
                }
                None
            }
        }
    }

    fn aborted(&self) -> Result<(), Failure> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(Failure::BadSpecification("another connection has failed"));
        }
        Ok(())
    }

    /// Messages that are not under way any more.
    fn arrived(&self) -> u64 {
        let received = self
            .received
            .iter()
            .map(|received| received.load(Ordering::Relaxed));
        if self.flow.queue {
            received.sum()
        } else {
            received.min().unwrap_or(u64::MAX)
        }
    }

    /// Notes that a member of the queue group has got a message, which no other may have.
    fn take(&self, publisher: u32, sequence: u64) -> Result<(), Failure> {
        let again = || Failure::Again {
            publisher,
            found: sequence,
        };
        let mut taken = self.taken.lock().map_err(|_| again())?;
        let place = taken
            .get_mut(publisher as usize)
            .and_then(|taken| taken.get_mut(sequence as usize))
            .ok_or(Failure::Damaged("sequence number"))?;
        if std::mem::replace(place, true) {
            return Err(again());
        }
        Ok(())
    }

    fn silence(&self, what: &'static str, received: u64, expected: u64) -> Failure {
        Failure::Silence {
            what,
            received,
            expected,
            patience: self.patience(),
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(self.flow.patience_ms)
    }
}

/// The messages of one write.
struct Batch {
    publisher: u32,
    bytes: Vec<u8>,
    places: Vec<Place>,
}

struct Place {
    frame: Range<usize>,
    payload: usize,
    packet_id: Option<usize>,
}

impl Batch {
    fn new(publisher: u32, shared: &Shared<'_>) -> Self {
        let flow = shared.flow;
        let payload = blank(flow.payload);
        let frames: Vec<_> = shared
            .names
            .iter()
            .map(|name| {
                flow.protocol.frame(&Outgoing {
                    name,
                    reply: None,
                    headers: flow.headers,
                    acknowledged: flow.acknowledged,
                    payload: &payload,
                })
            })
            .collect();
        let mut batch = Self {
            publisher,
            bytes: Vec::new(),
            places: Vec::new(),
        };
        // Each name comes equally often, so that the next write begins with the first again.
        while batch.places.is_empty()
            || batch.places.len() < flow.per_write.unwrap_or(usize::MAX)
                && batch.bytes.len() + frames[0].bytes.len() <= WRITE
        {
            for frame in &frames {
                let start = batch.bytes.len();
                batch.bytes.extend_from_slice(&frame.bytes);
                batch.places.push(Place {
                    frame: start..batch.bytes.len(),
                    payload: start + frame.payload,
                    packet_id: frame.packet_id.map(|at| start + at),
                });
            }
        }
        batch
    }

    /// The bytes of the next messages (at most `limit` messages), and the number of messages.
    fn next(&mut self, first: u64, limit: u64) -> (&[u8], u64) {
        let mut count = 0;
        let mut end = 0;
        for (place, sequence) in self.places.iter().zip(first..first.saturating_add(limit)) {
            stamp(
                &mut self.bytes[place.payload..][..STAMP],
                self.publisher,
                sequence,
            );
            if let Some(at) = place.packet_id {
                let id = (sequence % 0xFFFF + 1) as u16;
                self.bytes[at..at + 2].copy_from_slice(&id.to_be_bytes());
            }
            count += 1;
            end = place.frame.end;
        }
        (&self.bytes[..end], count)
    }
}

fn publisher(mut batch: Batch, mut writer: Writer, shared: &Shared<'_>) -> Result<(), Failure> {
    let flow = shared.flow;
    let mut sent = 0;
    while sent < flow.messages {
        let size = (batch.places.len() as u64).min(flow.messages - sent);
        // One batch may always be under way, whatever its size.
        let room = shared.window.max(size);
        while shared.published.load(Ordering::Relaxed) + size
            > shared.arrived().saturating_add(room)
        {
            shared.aborted()?;
            thread::sleep(PAUSE);
        }
        let (bytes, count) = batch.next(sent, size);
        shared.published.fetch_add(count, Ordering::Relaxed);
        writer.write_all(bytes)?;
        sent += count;
    }
    Ok(writer.write_all(flow.protocol.barrier())?)
}

/// Reads the peer's answers to a publisher, up to the answer to the barrier.
fn acknowledgements(inbox: &mut Inbox, shared: &Shared<'_>) -> Result<Instant, Failure> {
    let expected = if shared.flow.acknowledged {
        shared.flow.messages
    } else {
        0
    };
    let mut acknowledged = 0;
    loop {
        while let Some((received, used)) = inbox.next()? {
            match received {
                Received::Acknowledged => acknowledged += 1,
                Received::Barrier if acknowledged == expected => return Ok(Instant::now()),
                Received::Barrier => {
                    return Err(shared.silence("acknowledgements", acknowledged, expected));
                }
                Received::Message(_) => {
                    return Err(Failure::Refused("a message to a publisher".to_owned()));
                }
                _ => {}
            }
            inbox.consume(used);
        }
        if !inbox.fill()? {
            shared.aborted()?;
        }
    }
}

fn subscriber(
    connection: &mut Connection,
    index: usize,
    shared: &Shared<'_>,
) -> Result<Instant, Failure> {
    let flow = shared.flow;
    let total = u64::from(flow.publishers) * flow.messages;
    let mut expected = Expected::new(flow.payload, flow.publishers);
    let mut received = 0;
    let mut heard = Instant::now();
    let mut complete = Instant::now();
    let mut arrived_before = 0;
    // A member of a queue group waits until all have come to any member.
    loop {
        let before = received;
        let mut ping = false;
        while let Some((event, used)) = connection.inbox.next()? {
            match event {
                Received::Message(message) => {
                    verify(&message, &mut expected, shared)?;
                    received += 1;
                }
                Received::Ping => ping = true,
                _ => {}
            }
            connection.inbox.consume(used);
        }
        if received > before {
            shared.received[index].store(received, Ordering::Relaxed);
            complete = Instant::now();
        }
        if ping {
            connection.send(b"PONG\r\n")?;
        }
        let arrived = if flow.queue {
            shared.arrived()
        } else {
            received
        };
        if arrived == total {
            break;
        }
        if arrived > arrived_before {
            arrived_before = arrived;
            heard = Instant::now();
        }
        if connection.inbox.fill()? {
            heard = Instant::now();
        } else {
            shared.aborted()?;
            if heard.elapsed() > shared.patience() {
                return Err(shared.silence("messages", arrived, total));
            }
        }
    }
    // A message that came twice would come before the answer.
    connection.barrier()?;
    Ok(complete)
}

fn verify(
    message: &Message<'_>,
    expected: &mut Expected,
    shared: &Shared<'_>,
) -> Result<(), Failure> {
    let sequence = if shared.flow.queue {
        let (publisher, sequence) = expected.check_member(message.payload)?;
        shared.take(publisher, sequence)?;
        sequence
    } else {
        expected.check(message.payload)?
    };
    let names = &shared.wire_names;
    if message.name != names[(sequence % names.len() as u64) as usize] {
        return Err(Failure::Damaged("name"));
    }
    if !message.headers.ends_with(&shared.headers) {
        return Err(Failure::Damaged("headers"));
    }
    Ok(())
}
