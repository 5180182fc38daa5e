//! A small server that loses, repeats, swaps or changes one of many messages.

// Each test uses a part of it.
#![allow(dead_code)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use nats_gateway_bench::flow::{Flow, Outcome};
use nats_gateway_bench::{Failure, Protocol, Transport, flow};
use nats_protocol::{Op, Settings, Step, decode};

pub const MESSAGES: u64 = 2000;
/// The message to which the fault happens, counted among all messages that the server has got.
pub const VICTIM: u64 = 1500;

#[derive(Clone, Copy, PartialEq)]
pub enum Fault {
    None,
    Loses,
    LosesTheLast,
    Repeats,
    RepeatsTheLast,
    Swaps,
    /// Two members of a queue group get the same message.
    GivesToTwo,
    Changes,
    Renames,
    DropsHeaders,
    AcknowledgesOneLess,
    Refuses,
    Closes,
}

struct Subscriber {
    stream: TcpStream,
    subject: String,
    in_group: bool,
}

#[derive(Default)]
struct Server {
    subscribers: Vec<Subscriber>,
    count: u64,
    kept: Vec<u8>,
}

pub fn start(fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = Arc::new(Mutex::new(Server::default()));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let server = Arc::clone(&server);
            // The thread ends when the generator closes the connection, or with the test.
            thread::spawn(move || serve(stream?, fault, &server));
        }
    });
    address
}

fn serve(mut stream: TcpStream, fault: Fault, server: &Mutex<Server>) -> io::Result<()> {
    stream.write_all(b"INFO {} \r\n")?;
    let mut pending = Vec::new();
    let mut verbose = false;
    let mut piece = vec![0; 65536];
    loop {
        let size = stream.read(&mut piece)?;
        if size == 0 {
            return Ok(());
        }
        pending.extend_from_slice(&piece[..size]);
        let mut done = 0;
        while let Ok(Step::Op { op, used }) = decode(&pending[done..], &Settings::default()) {
            match op {
                Op::Connect(fields) => verbose = fields.verbose.unwrap(),
                Op::Ping => stream.write_all(b"PONG\r\n")?,
                Op::Sub(sub) => {
                    let subject = String::from_utf8(sub.subject.to_vec()).unwrap();
                    let mut server = server.lock().unwrap();
                    server.subscribers.push(Subscriber {
                        stream: stream.try_clone()?,
                        subject,
                        in_group: sub.queue.is_some(),
                    });
                }
                Op::Pub(message) => {
                    let number = publish(&message, fault, &mut server.lock().unwrap())?;
                    if verbose && !(fault == Fault::AcknowledgesOneLess && number == VICTIM) {
                        stream.write_all(b"+OK\r\n")?;
                    }
                    if fault == Fault::Refuses && number == VICTIM {
                        stream.write_all(b"-ERR 'Permissions Violation'\r\n")?;
                    }
                }
                _ => {}
            }
            done += used;
        }
        pending.drain(..done);
    }
}

fn publish(
    message: &nats_protocol::Publish<'_>,
    fault: Fault,
    server: &mut Server,
) -> io::Result<u64> {
    let number = server.count;
    server.count += 1;
    let subject = String::from_utf8_lossy(message.subject);
    let mut name = subject.clone().into_owned();
    let mut payload = message.payload.to_vec();
    let mut headers = message.headers.unwrap_or_default();
    if number == VICTIM {
        match fault {
            Fault::Changes => *payload.last_mut().unwrap() ^= 1,
            Fault::Renames => name.push('x'),
            Fault::DropsHeaders => headers = &[],
            _ => {}
        }
    }
    let reply = message.reply.map_or(String::new(), |reply| {
        format!("{} ", String::from_utf8_lossy(reply))
    });
    let mut frame = if headers.is_empty() {
        format!("MSG {name} 1 {reply}{}\r\n", payload.len()).into_bytes()
    } else {
        let total = headers.len() + payload.len();
        format!("HMSG {name} 1 {reply}{} {total}\r\n", headers.len()).into_bytes()
    };
    frame.extend_from_slice(headers);
    frame.extend_from_slice(&payload);
    frame.extend_from_slice(b"\r\n");
    let last = number == MESSAGES - 1;
    let bytes = match fault {
        Fault::Loses if number == VICTIM => Vec::new(),
        Fault::LosesTheLast if last => Vec::new(),
        Fault::Repeats if number == VICTIM => frame.repeat(2),
        Fault::RepeatsTheLast if last => frame.repeat(2),
        Fault::Swaps if number == VICTIM => {
            server.kept = frame;
            Vec::new()
        }
        Fault::Swaps if number == VICTIM + 1 => [frame, std::mem::take(&mut server.kept)].concat(),
        Fault::Closes if number == VICTIM => {
            for subscriber in &server.subscribers {
                subscriber.stream.shutdown(std::net::Shutdown::Both)?;
            }
            Vec::new()
        }
        _ => frame,
    };
    let members = server.subscribers.iter().filter(|one| one.in_group).count();
    let mut member = 0;
    for subscriber in &mut server.subscribers {
        let wanted = match subscriber.subject.strip_suffix('*') {
            Some(prefix) => subject.starts_with(prefix),
            None => subscriber.subject == *subject,
        };
        let chosen = !subscriber.in_group
            || member == number as usize % members
            || fault == Fault::GivesToTwo && number == VICTIM;
        member += usize::from(subscriber.in_group);
        if wanted && chosen {
            subscriber.stream.write_all(&bytes)?;
        }
    }
    Ok(number)
}

pub fn measure(fault: Fault, change: impl FnOnce(&mut Flow)) -> Result<Outcome, Failure> {
    let mut specification = Flow {
        protocol: Protocol::Nats,
        address: start(fault),
        transport: Transport::Tcp,
        pids: Vec::new(),
        publishers: 1,
        subscribers: 1,
        messages: MESSAGES,
        payload: 40,
        headers: false,
        acknowledged: false,
        subjects: 1,
        subscriptions: 1,
        wildcards: false,
        queue: false,
        per_write: None,
        patience_ms: 300,
    };
    change(&mut specification);
    flow::run(&specification)
}
