//! A load generator for NATS and MQTT that counts and checks every message.
//!
//! It is made to cost little beside what it measures: messages are written in prebuilt batches,
//! of which only sequence numbers change, and read in large pieces. A measurement fails when a
//! single message is missing, comes twice, out of order, or changed.

#![forbid(unsafe_code)]

mod connection;
pub mod connections;
pub mod flow;
mod mqtt;
mod nats;
mod payload;
pub mod round_trip;

use std::fs;
use std::io;
use std::time::Duration;

pub use connection::Protocol;

/// Why a measurement counts for nothing.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The socket, or the peer has closed it.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What the peer has sent is not the protocol, or is an error of it.
    #[error("the peer sent {0:?}")]
    Refused(String),
    /// A message came that is later than the next one.
    #[error("message {expected} of publisher {publisher} is missing: {found} came")]
    Missing {
        /// Who had published it.
        publisher: u32,
        /// Sequence number that would have been next.
        expected: u64,
        /// Sequence number that came.
        found: u64,
    },
    /// A message came that is earlier than the next one.
    #[error("message {found} of publisher {publisher} came again or too late")]
    Again {
        /// Who had published it.
        publisher: u32,
        /// Sequence number that came.
        found: u64,
    },
    /// Not the bytes that were published.
    #[error("message {0} is damaged")]
    Damaged(&'static str),
    /// Nothing came any more.
    #[error("{received} of {expected} {what} came, then nothing for {patience:?}")]
    Silence {
        /// Messages or acknowledgements.
        what: &'static str,
        /// How many came.
        received: u64,
        /// How many should have come.
        expected: u64,
        /// How long was waited.
        patience: Duration,
    },
    /// The measurement asked for makes no sense.
    #[error("{0}")]
    BadSpecification(&'static str),
}

/// Where processes have spent their time, in seconds.
pub fn cpu_seconds(pid: &str) -> io::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program, in parentheses, may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 = fields
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    // The unit of this file on every Linux, whatever the kernel's own clock is.
    const TICKS_PER_SECOND: f64 = 100.0;
    Ok(ticks as f64 / TICKS_PER_SECOND)
}
