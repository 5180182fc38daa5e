//! Very many connections on one thread: they come all at once, and then only answer heartbeats.

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use crate::connection::{Connection, Login, Outgoing, Protocol, Received};
use crate::payload::{Expected, STAMP, blank, stamp};
use crate::transport::{Connector, Transport};
use crate::{Failure, mqtt, nats};

/// What to open. All connections are over TCP, and have one subscription each.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crowd {
    /// The protocol of the connections.
    pub protocol: Protocol,
    /// The peer's address.
    pub address: SocketAddr,
    /// The most connections that are not served yet. Others wait in the generator.
    pub at_once: usize,
    /// The number of source addresses, from 127.0.0.2 on, which are used in turn: each has ports of
    /// its own. With 0 the kernel chooses the address.
    #[serde(default)]
    pub sources: u8,
    /// MQTT: seconds between the PINGREQ of each client. NATS's heartbeats are the server's.
    #[serde(default)]
    pub keep_alive: u16,
    /// Whether a client that is already there exchanges messages with itself all the time. Its
    /// longest wait is reported.
    #[serde(default)]
    pub watch: bool,
    /// How long to wait until all are served.
    #[serde(default = "patience")]
    pub patience_ms: u64,
}

fn patience() -> u64 {
    60_000
}

/// The report of one step.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Connections that are served now.
    pub connections: usize,
    /// Seconds until the last was logged in and subscribed.
    pub served_seconds: f64,
    /// Connections per second of that time.
    pub connected_per_second: f64,
    /// How often a client had to begin again, because it was refused or cut off.
    pub retries: u64,
    /// The longest that the watching client waited for its message in this time.
    pub longest_pause_ms: Option<f64>,
    /// Heartbeats that were answered since the first step.
    pub heartbeats: u64,
}

/// Opens connections until there are as many as each line says, and reports. Keeps them open, and
/// answers their heartbeats, until the end of the input.
pub fn run(
    specification: &Crowd,
    steps: impl BufRead + Send + 'static,
    mut report: impl FnMut(&Outcome),
) -> Result<(), Failure> {
    if specification.at_once == 0 {
        return Err(Failure::BadSpecification("no connection at once"));
    }
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for step in steps.lines() {
            let step = step.ok().and_then(|step| step.trim().parse().ok());
            if sender.send(step).is_err() || step.is_none() {
                return;
            }
        }
    });
    let watch = Watch::default();
    thread::scope(|scope| {
        let watching = specification.watch.then(|| {
            scope.spawn(|| {
                let watched = watch.run(specification);
                watch.done.store(true, Ordering::Relaxed);
                watched
            })
        });
        let served = Members::new(specification)
            .and_then(|members| members.run(&receiver, &watch, &mut report));
        watch.done.store(true, Ordering::Relaxed);
        match watching.map(thread::ScopedJoinHandle::join) {
            None => served,
            Some(Ok(watched)) => served.and(watched),
            Some(Err(_)) => Err(Failure::BadSpecification("the watching client panicked")),
        }
    })
}

// --- The client that is already there --------------------------------------------------------------

#[derive(Default)]
struct Watch {
    done: AtomicBool,
    /// Messages that have come.
    count: AtomicU64,
    /// Microseconds.
    longest: AtomicU64,
}

/// Between two messages.
const PAUSE: Duration = Duration::from_millis(5);

impl Watch {
    fn run(&self, specification: &Crowd) -> Result<(), Failure> {
        let Crowd {
            protocol, address, ..
        } = *specification;
        let connector = Connector::new(protocol, address, &Transport::Tcp)?;
        let run = std::process::id();
        let mut connection = Connection::open(
            &connector,
            &Login {
                id: &format!("load-{run}-watch"),
                verbose: false,
                keep_alive: 0,
            },
        )?;
        let subject = format!("load.{run}.watch");
        connection.subscribe(std::slice::from_ref(&subject), None)?;
        let mut frame = protocol.frame(&Outgoing {
            name: &subject,
            reply: None,
            headers: false,
            acknowledged: false,
            payload: &blank(STAMP),
        });
        let mut expected = Expected::new(STAMP, 1);
        let patience = Duration::from_millis(specification.patience_ms);
        for sequence in 0.. {
            if self.done.load(Ordering::Relaxed) {
                return Ok(());
            }
            stamp(&mut frame.bytes[frame.payload..][..STAMP], 0, sequence);
            let began = Instant::now();
            connection.send(&frame.bytes)?;
            let mut came = false;
            while !came {
                let mut ping = false;
                while let Some((received, used)) = connection.inbox.next()? {
                    match received {
                        Received::Message(message) => {
                            expected.check(message.payload)?;
                            came = true;
                        }
                        Received::Ping => ping = true,
                        _ => {}
                    }
                    connection.inbox.consume(used);
                }
                if ping {
                    connection.send(b"PONG\r\n")?;
                }
                if !came && !connection.inbox.fill()? && began.elapsed() > patience {
                    return Err(Failure::Silence {
                        what: "messages of the watching client",
                        received: 0,
                        expected: 1,
                        patience,
                    });
                }
            }
            let waited = began.elapsed().as_micros() as u64;
            self.longest.fetch_max(waited, Ordering::Relaxed);
            self.count.fetch_add(1, Ordering::Relaxed);
            thread::sleep(PAUSE);
        }
        Ok(())
    }
}

// --- The others ------------------------------------------------------------------------------------

struct Member {
    stream: TcpStream,
    state: State,
    /// Bytes of an item that is not complete yet.
    pending: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Connecting,
    LoggingIn,
    Served,
    Lost,
}

struct Members<'a> {
    specification: &'a Crowd,
    poll: Poll,
    all: Vec<Member>,
    served: usize,
    retries: u64,
    heartbeats: u64,
    /// Clients that begin again, and since when they know that they have to.
    again: Vec<(usize, Instant)>,
    /// Why the last of them has to.
    cut_off: Option<Failure>,
    /// When the last PINGREQ was sent, and which client is the next.
    pinged: Instant,
    next_to_ping: usize,
    piece: Vec<u8>,
}

/// How long to wait for an event before looking at other things.
const TURN: Duration = Duration::from_millis(50);

/// A client that was refused begins again after this time.
const AGAIN: Duration = Duration::from_millis(100);

impl<'a> Members<'a> {
    fn new(specification: &'a Crowd) -> Result<Self, Failure> {
        Ok(Self {
            specification,
            poll: Poll::new()?,
            all: Vec::new(),
            served: 0,
            retries: 0,
            heartbeats: 0,
            again: Vec::new(),
            cut_off: None,
            pinged: Instant::now(),
            next_to_ping: 0,
            piece: vec![0; 64 * 1024],
        })
    }

    fn run(
        mut self,
        steps: &Receiver<Option<usize>>,
        watch: &Watch,
        report: &mut impl FnMut(&Outcome),
    ) -> Result<(), Failure> {
        // The first step begins when the watching client is there.
        let until = Instant::now() + Duration::from_millis(self.specification.patience_ms);
        while self.specification.watch
            && watch.count.load(Ordering::Relaxed) == 0
            && !watch.done.load(Ordering::Relaxed)
            && Instant::now() < until
        {
            thread::sleep(PAUSE);
        }
        loop {
            match steps.try_recv() {
                Ok(Some(target)) => {
                    watch.longest.store(0, Ordering::Relaxed);
                    let outcome = self.open(target, watch)?;
                    report(&outcome);
                }
                Ok(None) => {
                    return Err(Failure::BadSpecification(
                        "a step is a number of connections",
                    ));
                }
                Err(TryRecvError::Empty) => self.turn()?,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }

    fn open(&mut self, target: usize, watch: &Watch) -> Result<Outcome, Failure> {
        let patience = Duration::from_millis(self.specification.patience_ms);
        let first = self.all.len();
        let retries = self.retries;
        let began = Instant::now();
        while self.served < target {
            while self.all.len() < target
                && self.all.len() - self.served < self.specification.at_once
            {
                let number = self.all.len();
                let member = self.connect(number)?;
                self.all.push(member);
            }
            self.turn()?;
            if began.elapsed() > patience {
                // A refusal says more than the time.
                if let Some(refused @ Failure::Refused(_)) = self.cut_off.take() {
                    return Err(refused);
                }
                return Err(Failure::Unserved {
                    served: self.served,
                    expected: target,
                    patience,
                });
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let longest = self.specification.watch.then(|| {
            // The message that is under way may be the one that waits the longest.
            let before = watch.count.load(Ordering::Relaxed);
            while watch.count.load(Ordering::Relaxed) == before
                && !watch.done.load(Ordering::Relaxed)
            {
                thread::sleep(PAUSE);
            }
            watch.longest.load(Ordering::Relaxed) as f64 / 1000.0
        });
        Ok(Outcome {
            connections: self.served,
            served_seconds: seconds,
            connected_per_second: self.all.len().saturating_sub(first) as f64 / seconds,
            retries: self.retries - retries,
            longest_pause_ms: longest,
            heartbeats: self.heartbeats,
        })
    }

    fn connect(&self, number: usize) -> Result<Member, Failure> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        if self.specification.sources > 0 {
            let last = 2 + number % usize::from(self.specification.sources);
            let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last as u8));
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&self.specification.address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(EINPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let mut stream = TcpStream::from_std(socket.into());
        self.poll.registry().register(
            &mut stream,
            Token(number),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        Ok(Member {
            stream,
            state: State::Connecting,
            pending: Vec::new(),
        })
    }

    /// Handles what has come, and what is due.
    fn turn(&mut self) -> Result<(), Failure> {
        let mut events = Events::with_capacity(1024);
        match self.poll.poll(&mut events, Some(TURN)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            polled => polled?,
        }
        for event in &events {
            let number = event.token().0;
            if let Err(failure) = self.handle(number) {
                self.lose(number, failure);
            }
        }
        self.begin_again()?;
        self.ping();
        Ok(())
    }

    /// A client that was refused or cut off begins again, as clients do.
    fn lose(&mut self, number: usize, failure: Failure) {
        let member = &mut self.all[number];
        if member.state == State::Lost {
            return;
        }
        if member.state == State::Served {
            self.served -= 1;
        }
        member.state = State::Lost;
        // There are no events any more, whatever this says.
        let _ = self.poll.registry().deregister(&mut member.stream);
        self.cut_off = Some(failure);
        self.again.push((number, Instant::now()));
    }

    fn begin_again(&mut self) -> Result<(), Failure> {
        let (ready, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.again)
            .into_iter()
            .partition(|(_, since)| since.elapsed() >= AGAIN);
        self.again = waiting;
        for (number, _) in ready {
            self.retries += 1;
            self.all[number] = self.connect(number)?;
        }
        Ok(())
    }

    fn handle(&mut self, number: usize) -> Result<(), Failure> {
        let member = &mut self.all[number];
        if member.state == State::Lost {
            return Ok(());
        }
        if member.state == State::Connecting {
            if let Some(error) = member.stream.take_error()? {
                return Err(error.into());
            }
            match member.stream.peer_addr() {
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(()),
                connected => connected?,
            };
            // This is less than any socket takes at once.
            member
                .stream
                .write_all(&login(self.specification, number))?;
            member.state = State::LoggingIn;
        }
        loop {
            match member.stream.read(&mut self.piece) {
                Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
                Ok(size) => member.pending.extend_from_slice(&self.piece[..size]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        let mut done = 0;
        while let Some((received, used)) =
            self.specification.protocol.parse(&member.pending[done..])?
        {
            match received {
                Received::Barrier if member.state == State::LoggingIn => {
                    member.state = State::Served;
                    self.served += 1;
                }
                Received::Barrier => self.heartbeats += 1,
                Received::Ping => {
                    member.stream.write_all(b"PONG\r\n")?;
                    self.heartbeats += 1;
                }
                _ => {}
            }
            done += used;
        }
        member.pending.drain(..done);
        if member.pending.is_empty() {
            member.pending = Vec::new();
        }
        Ok(())
    }

    /// MQTT's heartbeats: each client in its turn, evenly over the time.
    fn ping(&mut self) {
        let interval = f64::from(self.specification.keep_alive);
        if self.specification.protocol != Protocol::Mqtt || interval == 0.0 || self.all.is_empty() {
            return;
        }
        let due = self.all.len() as f64 * self.pinged.elapsed().as_secs_f64() / interval;
        if due < 1.0 {
            return;
        }
        self.pinged = Instant::now();
        for _ in 0..(due as usize).min(self.all.len()) {
            self.next_to_ping = (self.next_to_ping + 1) % self.all.len();
            let member = &mut self.all[self.next_to_ping];
            if member.state == State::Served
                && let Err(error) = member.stream.write_all(Protocol::Mqtt.barrier())
            {
                self.lose(self.next_to_ping, error.into());
            }
        }
    }
}

/// What the kernel says of a connection that has begun (Linux).
const EINPROGRESS: i32 = 115;

fn login(specification: &Crowd, number: usize) -> Vec<u8> {
    let run = std::process::id();
    let subject = [format!("load.{run}.c{number}")];
    let login = Login {
        id: &format!("load-{run}-{number}"),
        verbose: false,
        keep_alive: specification.keep_alive,
    };
    let protocol = specification.protocol;
    let mut bytes = match protocol {
        Protocol::Nats => [nats::connect(&login), nats::subscribe(&subject, None)].concat(),
        Protocol::Mqtt => [mqtt::connect(&login), mqtt::subscribe(&subject, None)].concat(),
    };
    bytes.extend_from_slice(protocol.barrier());
    bytes
}
