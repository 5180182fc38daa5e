//! Requests that wait for their replies, one at a time.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::connection::{Connection, Login, Message, Outgoing, Protocol, Received};
use crate::payload::{Expected, STAMP, blank, stamp};
use crate::transport::{Connector, Transport};
use crate::{Failure, mqtt};

/// What to measure. One client sends requests, and another one answers with the payload that it
/// got.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundTrip {
    /// The protocol. With MQTT the reply goes to the request's Response Topic.
    pub protocol: Protocol,
    /// The peer's address.
    pub address: SocketAddr,
    /// How the bytes travel.
    #[serde(default)]
    pub transport: Transport,
    /// The number of requests that count.
    pub requests: u64,
    /// The number of requests before those. They do not count.
    #[serde(default)]
    pub warm_up: u64,
    /// Bytes of each payload.
    pub payload: usize,
    /// How long to wait for a reply.
    #[serde(default = "patience")]
    pub patience_ms: u64,
}

fn patience() -> u64 {
    10_000
}

/// The result, in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Half of the requests are faster.
    pub p50: f64,
    /// 99 % of the requests are faster.
    pub p99: f64,
    /// 99.9 % of the requests are faster.
    pub p999: f64,
}

/// Measures once.
pub fn run(specification: &RoundTrip) -> Result<Outcome, Failure> {
    let RoundTrip {
        protocol,
        address,
        ref transport,
        requests,
        warm_up,
        payload,
        patience_ms,
    } = *specification;
    if payload < STAMP || requests == 0 {
        return Err(Failure::BadSpecification(
            "no request, or one below 16 bytes",
        ));
    }
    let run = std::process::id();
    let service = format!("load.{run}.service");
    let inbox = format!("_INBOX.load{run}.reply");
    let connector = Connector::new(protocol, address, transport)?;
    let open = |id: &str| {
        let login = Login {
            id,
            verbose: false,
            keep_alive: 0,
        };
        Connection::open(&connector, &login)
    };
    let mut requester = open(&format!("load-{run}-requester"))?;
    let mut responder = open(&format!("load-{run}-responder"))?;
    requester.subscribe(std::slice::from_ref(&inbox), None)?;
    responder.subscribe(std::slice::from_ref(&service), None)?;

    let mut request = protocol.frame(&Outgoing {
        name: &service,
        reply: Some(&inbox),
        headers: false,
        acknowledged: false,
        payload: &blank(payload),
    });
    let patience = Duration::from_millis(patience_ms);
    let done = AtomicBool::new(false);
    let mut times = thread::scope(|scope| {
        let answering = scope.spawn(|| respond(responder, &done));
        let mut expected = Expected::new(payload, 1);
        let mut times = Vec::new();
        let mut ask = || -> Result<(), Failure> {
            for sequence in 0..warm_up + requests {
                stamp(&mut request.bytes[request.payload..][..STAMP], 0, sequence);
                let began = Instant::now();
                requester.send(&request.bytes)?;
                receive(
                    &mut requester,
                    || began.elapsed() > patience,
                    |message| expected.check(message.payload).map(|_| ()),
                )?;
                if sequence >= warm_up {
                    times.push(began.elapsed());
                }
            }
            Ok(())
        };
        let asked = ask();
        done.store(true, Ordering::Relaxed);
        match answering.join() {
            Ok(Ok(())) => asked.map(|()| times),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::BadSpecification("the responder panicked")),
        }
    })?;
    times.sort_unstable();
    let percentile = |share: f64| {
        let at = ((times.len() as f64 * share) as usize).min(times.len() - 1);
        times[at].as_secs_f64() * 1e6
    };
    Ok(Outcome {
        p50: percentile(0.5),
        p99: percentile(0.99),
        p999: percentile(0.999),
    })
}

/// Reads one message. If none comes for a moment, `stop` decides whether to end.
fn receive(
    connection: &mut Connection,
    stop: impl Fn() -> bool,
    mut take: impl FnMut(&Message<'_>) -> Result<(), Failure>,
) -> Result<bool, Failure> {
    loop {
        while let Some((received, used)) = connection.inbox.next()? {
            let mut taken = false;
            if let Received::Message(message) = &received {
                take(message)?;
                taken = true;
            }
            connection.inbox.consume(used);
            if taken {
                return Ok(true);
            }
        }
        if !connection.inbox.fill()? && stop() {
            return Ok(false);
        }
    }
}

/// Answers all requests of a read with one write.
pub fn respond(mut connection: Connection, done: &AtomicBool) -> Result<(), Failure> {
    let protocol = connection.inbox.protocol;
    let mut replies = Vec::new();
    loop {
        while let Some((received, used)) = connection.inbox.next()? {
            if let Received::Message(message) = &received {
                let name = match protocol {
                    Protocol::Nats => String::from_utf8_lossy(message.reply).into_owned(),
                    Protocol::Mqtt => mqtt::response_topic(message).unwrap_or_default(),
                };
                if name.is_empty() {
                    return Err(Failure::Damaged("reply"));
                }
                let reply = protocol.frame(&Outgoing {
                    name: &name,
                    reply: None,
                    headers: false,
                    acknowledged: false,
                    payload: message.payload,
                });
                replies.extend_from_slice(&reply.bytes);
            }
            connection.inbox.consume(used);
        }
        if !replies.is_empty() {
            connection.send(&replies)?;
            replies.clear();
        }
        if !connection.inbox.fill()? && done.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
}
