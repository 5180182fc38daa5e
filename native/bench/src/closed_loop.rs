//! Many pairs of clients, each of which has a fixed number of messages under way.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::connection::{Connection, Frame, Inbox, Login, Outgoing, Protocol, Received};
use crate::connections::open_side_by_side;
use crate::payload::{Expected, STAMP, blank, stamp};
use crate::round_trip::respond;
use crate::transport::{Connector, Transport, Writer};
use crate::{Failure, cpu_seconds};

/// What to measure. A pair is a publisher and its own subscriber; or a requester and its own
/// responder, where the replies are counted.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClosedLoop {
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
    /// Pairs of clients.
    pub pairs: u32,
    /// Messages (requests) of each pair.
    pub messages: u64,
    /// Messages (requests) of each pair that are under way at a time.
    pub under_way: u64,
    /// Bytes of each payload.
    pub payload: usize,
    /// Whether the pairs are requesters and responders.
    #[serde(default)]
    pub requests: bool,
    /// How long to wait for a message that does not come.
    #[serde(default = "patience")]
    pub patience_ms: u64,
}

fn patience() -> u64 {
    20_000
}

/// The result. All messages (replies) have arrived as they should.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Messages (replies) that came, each checked.
    pub delivered: u64,
    /// Messages (replies) per second.
    pub delivered_per_second: f64,
    /// Processor time of the peer.
    pub peer_cpu_seconds: f64,
    /// Processor time of the generator.
    pub own_cpu_seconds: f64,
}

/// Connections that are opened at the same time.
const OPENED_AT_ONCE: usize = 16;

/// A thread of a pair calls little.
const STACK: usize = 256 * 1024;

struct Pair {
    number: u32,
    writer: Writer,
    inbox: Inbox,
    /// The other connection: it answers, or it is only kept open.
    other: Other,
}

enum Other {
    Responder(Connection),
    Publisher(#[allow(dead_code)] Inbox),
}

/// Measures once.
pub fn run(specification: &ClosedLoop) -> Result<Outcome, Failure> {
    if specification.payload < STAMP {
        return Err(Failure::BadSpecification(
            "a payload has at least 16 bytes, which make it unique",
        ));
    }
    if specification.pairs == 0 || specification.messages == 0 || specification.under_way == 0 {
        return Err(Failure::BadSpecification("nothing to publish"));
    }
    let pairs = open_all(specification)?;
    let start = Barrier::new(pairs.len() + 1);
    let failure = Mutex::new(None);
    let failed = AtomicBool::new(false);
    let ended: Mutex<Option<Instant>> = Mutex::new(None);
    let cpu = cpu(specification)?;
    let began = thread::scope(|scope| -> Result<Instant, Failure> {
        for pair in pairs {
            let (start, failure, failed, ended) = (&start, &failure, &failed, &ended);
            let work = move || {
                start.wait();
                match transfer(specification, pair, failed) {
                    Ok(instant) => {
                        if let Ok(mut last) = ended.lock() {
                            *last = last.map_or(Some(instant), |last| Some(instant.max(last)));
                        }
                    }
                    Err(error) => {
                        if !failed.swap(true, Ordering::Relaxed)
                            && let Ok(mut first) = failure.lock()
                        {
                            *first = Some(error);
                        }
                    }
                }
            };
            thread::Builder::new()
                .stack_size(STACK)
                .spawn_scoped(scope, work)
                // The others would wait for it for ever.
                .expect("a thread for each pair");
        }
        start.wait();
        Ok(Instant::now())
    })?;
    if let Some(failure) = failure.into_inner().unwrap_or(None) {
        return Err(failure);
    }
    let ended = ended.into_inner().unwrap_or(None).unwrap_or(began);
    let seconds = (ended - began).as_secs_f64();
    let after = self::cpu(specification)?;
    let delivered = u64::from(specification.pairs) * specification.messages;
    Ok(Outcome {
        delivered,
        delivered_per_second: delivered as f64 / seconds,
        peer_cpu_seconds: after.0 - cpu.0,
        own_cpu_seconds: after.1 - cpu.1,
    })
}

fn cpu(specification: &ClosedLoop) -> Result<(f64, f64), Failure> {
    let mut peer = 0.0;
    for pid in &specification.pids {
        peer += cpu_seconds(&pid.to_string())?;
    }
    Ok((peer, cpu_seconds("self")?))
}

fn open_all(specification: &ClosedLoop) -> Result<Vec<Pair>, Failure> {
    let connector = Connector::new(
        specification.protocol,
        specification.address,
        &specification.transport,
    )?;
    open_side_by_side(OPENED_AT_ONCE, 0..specification.pairs as usize, |number| {
        open(specification, &connector, number as u32)
    })
}

fn open(specification: &ClosedLoop, connector: &Connector, number: u32) -> Result<Pair, Failure> {
    let run = std::process::id();
    let connect = |id: &str| {
        let login = Login {
            id,
            verbose: false,
            keep_alive: 0,
        };
        Connection::open(connector, &login)
    };
    let mut first = connect(&format!("load-{run}-{number}a"))?;
    let mut second = connect(&format!("load-{run}-{number}b"))?;
    second.subscribe(&[subject(number)], None)?;
    if specification.requests {
        first.subscribe(&[inbox(number)], None)?;
        let (inbox, writer) = first.split();
        return Ok(Pair {
            number,
            writer,
            inbox,
            other: Other::Responder(second),
        });
    }
    let (mut unread, writer) = first.split();
    unread.forget_buffers();
    Ok(Pair {
        number,
        writer,
        inbox: second.split().0,
        other: Other::Publisher(unread),
    })
}

fn subject(number: u32) -> String {
    format!("load.{}.p{number}", std::process::id())
}

fn inbox(number: u32) -> String {
    format!("_INBOX.load{}.p{number}", std::process::id())
}

fn transfer(
    specification: &ClosedLoop,
    mut pair: Pair,
    failed: &AtomicBool,
) -> Result<Instant, Failure> {
    let (subject, inbox) = (subject(pair.number), inbox(pair.number));
    let frame = specification.protocol.frame(&Outgoing {
        name: &subject,
        reply: specification.requests.then_some(&inbox),
        headers: false,
        acknowledged: false,
        payload: &blank(specification.payload),
    });
    let name = if specification.requests {
        inbox
    } else {
        subject
    };
    let name = specification.protocol.name(&name).into_bytes();
    let mut exchange = || {
        let (writer, inbox) = (&mut pair.writer, &mut pair.inbox);
        exchange(specification, &frame, &name, writer, inbox, failed)
    };
    match pair.other {
        Other::Responder(responder) => {
            let done = AtomicBool::new(false);
            thread::scope(|scope| {
                let answering = scope.spawn(|| respond(responder, &done));
                let asked = exchange();
                done.store(true, Ordering::Relaxed);
                match answering.join() {
                    Ok(answered) => answered.and(asked),
                    Err(_) => Err(Failure::BadSpecification("the responder panicked")),
                }
            })
        }
        Other::Publisher(_) => exchange(),
    }
}

/// Sends as many messages as have come, so that the same number is always under way.
fn exchange(
    specification: &ClosedLoop,
    frame: &Frame,
    name: &[u8],
    writer: &mut Writer,
    inbox: &mut Inbox,
    failed: &AtomicBool,
) -> Result<Instant, Failure> {
    let total = specification.messages;
    let patience = Duration::from_millis(specification.patience_ms);
    let mut expected = Expected::new(specification.payload, 1);
    let (mut sent, mut received) = (0, 0);
    let mut heard = Instant::now();
    while received < total {
        let end = total.min(received + specification.under_way);
        if sent < end {
            let mut batch = Vec::with_capacity((end - sent) as usize * frame.bytes.len());
            for sequence in sent..end {
                let begin = batch.len() + frame.payload;
                batch.extend_from_slice(&frame.bytes);
                stamp(&mut batch[begin..][..STAMP], 0, sequence);
            }
            writer.write_all(&batch)?;
            sent = end;
        }
        if inbox.fill()? {
            heard = Instant::now();
        } else if failed.load(Ordering::Relaxed) {
            return Err(Failure::BadSpecification("another connection has failed"));
        } else if heard.elapsed() > patience {
            return Err(Failure::Silence {
                what: "messages",
                received,
                expected: total,
                patience,
            });
        }
        while let Some((event, used)) = inbox.next()? {
            if let Received::Message(message) = event {
                expected.check(message.payload)?;
                if message.name != name {
                    return Err(Failure::Damaged("name"));
                }
                received += 1;
            }
            inbox.consume(used);
        }
    }
    Ok(Instant::now())
}
