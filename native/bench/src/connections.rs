//! Many connections that do nothing.

use std::io::BufRead;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::connection::{Connection, Login, Protocol};
use crate::transport::{Connector, Transport};

/// What to open.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connections {
    /// The protocol of the connections.
    pub protocol: Protocol,
    /// The peer's address.
    pub address: SocketAddr,
    /// How the bytes travel.
    #[serde(default)]
    pub transport: Transport,
    /// Each connection has one subscription.
    #[serde(default)]
    pub subscribe: bool,
    /// The number of connections that are opened at the same time.
    #[serde(default = "eight")]
    pub at_once: usize,
}

fn eight() -> usize {
    8
}

/// The report of one step.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Connections that are open now.
    pub connections: usize,
    /// Connections per second, logged in and subscribed.
    pub connected_per_second: f64,
}

/// Opens connections until there are as many as each line says, and reports. Keeps them open until
/// the end of the input.
pub fn run(
    specification: &Connections,
    steps: impl BufRead,
    mut report: impl FnMut(&Outcome),
) -> Result<(), Failure> {
    let connector = Connector::new(
        specification.protocol,
        specification.address,
        &specification.transport,
    )?;
    let mut open = Vec::new();
    for step in steps.lines() {
        let target = step?
            .trim()
            .parse()
            .map_err(|_| Failure::BadSpecification("a step is a number of connections"))?;
        let first = open.len();
        let began = Instant::now();
        open.extend(connect(specification, &connector, first, target)?);
        report(&Outcome {
            connections: open.len(),
            connected_per_second: (open.len() - first) as f64 / began.elapsed().as_secs_f64(),
        });
    }
    Ok(())
}

fn connect(
    specification: &Connections,
    connector: &Connector,
    first: usize,
    target: usize,
) -> Result<Vec<Connection>, Failure> {
    open_side_by_side(specification.at_once, first..target, |number| {
        connect_one(specification, connector, number)
    })
}

/// Opens one for each number, so many at the same time.
pub(crate) fn open_side_by_side<T: Send>(
    at_once: usize,
    numbers: Range<usize>,
    open: impl Fn(usize) -> Result<T, Failure> + Sync,
) -> Result<Vec<T>, Failure> {
    let next = AtomicUsize::new(numbers.start);
    let open_some = || {
        let mut some = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= numbers.end {
                return Ok(some);
            }
            some.push(open(number)?);
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(open_some)).collect();
        let mut all = Vec::new();
        for thread in threads {
            let some: Result<Vec<_>, Failure> = thread
                .join()
                .unwrap_or(Err(Failure::BadSpecification("a thread panicked")));
            all.extend(some?);
        }
        Ok(all)
    })
}

fn connect_one(
    specification: &Connections,
    connector: &Connector,
    number: usize,
) -> Result<Connection, Failure> {
    let run = std::process::id();
    let login = Login {
        id: &format!("load-{run}-{number}"),
        verbose: false,
        keep_alive: 0,
    };
    let mut connection = Connection::open(connector, &login)?;
    if specification.subscribe {
        connection.subscribe(&[format!("load.{run}.c{number}")], None)?;
    }
    connection.inbox.forget_buffers();
    Ok(connection)
}
