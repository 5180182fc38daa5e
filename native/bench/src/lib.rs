//! A load generator for NATS and MQTT that counts and checks every message.
//!
//! It costs little in comparison with what it measures. Messages are written in prebuilt batches,
//! in which only sequence numbers change, and are read in large pieces. A measurement fails if a
//! single message is missing, comes twice, comes out of order, or has changed.

// A measurement or a test that panics has failed.
#![allow(clippy::restriction)]

pub mod closed_loop;
mod connection;
pub mod connections;
pub mod crowd;
pub mod flow;
mod mqtt;
mod nats;
mod payload;
pub mod round_trip;
mod transport;

use std::fs;
use std::io;
use std::time::Duration;

pub use connection::Protocol;
pub use transport::Transport;

/// Why a measurement does not count.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The socket failed, or the peer has closed it.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer has broken the protocol, or has sent an error.
    #[error("the peer sent {0:?}")]
    Refused(String),
    /// Messages before this one are missing.
    #[error("message {expected} of publisher {publisher} is missing: {found} came")]
    Missing {
        /// Its publisher.
        publisher: u32,
        /// The sequence number that was expected.
        expected: u64,
        /// The sequence number that came.
        found: u64,
    },
    /// A message came twice, or too late.
    #[error("message {found} of publisher {publisher} came again or too late")]
    Again {
        /// Its publisher.
        publisher: u32,
        /// The sequence number that came.
        found: u64,
    },
    /// A message with other bytes than were published.
    #[error("message {0} is damaged")]
    Damaged(&'static str),
    /// Nothing more came.
    #[error("{received} of {expected} {what} came, then nothing for {patience:?}")]
    Silence {
        /// Messages or acknowledgements.
        what: &'static str,
        /// The number that came.
        received: u64,
        /// The number that should have come.
        expected: u64,
        /// The time that was waited.
        patience: Duration,
    },
    /// Some of the clients that came at once were not served in time.
    #[error("{served} of {expected} clients were served within {patience:?}")]
    Unserved {
        /// Clients that were logged in and subscribed.
        served: usize,
        /// Clients that came.
        expected: usize,
        /// The time that was waited.
        patience: Duration,
    },
    /// The measurement asked for makes no sense.
    #[error("{0}")]
    BadSpecification(&'static str),
}

/// The processor time of a process and of its kernel work, in seconds.
pub fn cpu_seconds(pid: &str) -> io::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program is in parentheses, and may contain any characters.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 = fields
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    // The unit of this file is the same on every Linux, whatever the kernel's own clock is.
    const TICKS_PER_SECOND: f64 = 100.0;
    Ok(ticks as f64 / TICKS_PER_SECOND)
}
