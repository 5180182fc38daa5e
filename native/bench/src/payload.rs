//! The contents of messages: their publisher, their place in the sequence, and a pattern.

use crate::Failure;

/// The bytes that differ from message to message: publisher and sequence number.
pub const STAMP: usize = 16;

/// The headers of a message, if the measurement asks for headers.
pub const HEADERS: [(&str, &str); 2] = [("Trace-Id", "5c3e8f0a9b7d4e21"), ("Kind", "measurement")];

/// A payload that has no stamp yet.
pub fn blank(size: usize) -> Vec<u8> {
    // The number is prime, so that a shift by any power of two is noticed.
    (0..size).map(|at| (at % 251) as u8).collect()
}

/// Writes the stamp into the first bytes of a payload.
pub fn stamp(payload: &mut [u8], publisher: u32, sequence: u64) {
    payload[..4].copy_from_slice(&publisher.to_le_bytes());
    payload[4..8].fill(0);
    payload[8..STAMP].copy_from_slice(&sequence.to_le_bytes());
}

/// The messages of all publishers in the form that one subscriber should get.
pub struct Expected {
    blank: Vec<u8>,
    next: Vec<u64>,
}

impl Expected {
    pub fn new(size: usize, publishers: u32) -> Self {
        Self {
            blank: blank(size),
            next: vec![0; publishers as usize],
        }
    }

    /// Checks a payload; returns its sequence number.
    pub fn check(&mut self, payload: &[u8]) -> Result<u64, Failure> {
        let (publisher, expected, found) = self.place(payload)?;
        if found > expected {
            return Err(Failure::Missing {
                publisher,
                expected,
                found,
            });
        }
        Ok(found)
    }

    /// As `check`, where other subscribers get some of the messages; returns the publisher, too.
    pub fn check_member(&mut self, payload: &[u8]) -> Result<(u32, u64), Failure> {
        let (publisher, _, found) = self.place(payload)?;
        Ok((publisher, found))
    }

    /// The publisher, the sequence number that is next in turn, and the one that has come, which is
    /// not below it.
    fn place(&mut self, payload: &[u8]) -> Result<(u32, u64, u64), Failure> {
        let (stamp, rest) = payload
            .split_first_chunk::<STAMP>()
            .ok_or(Failure::Damaged("size"))?;
        if rest != &self.blank[STAMP..] {
            return Err(Failure::Damaged("payload"));
        }
        let publisher = u32::from_le_bytes([stamp[0], stamp[1], stamp[2], stamp[3]]);
        let mut sequence = [0; 8];
        sequence.copy_from_slice(&stamp[8..]);
        let found = u64::from_le_bytes(sequence);
        let next = self
            .next
            .get_mut(publisher as usize)
            .ok_or(Failure::Damaged("publisher"))?;
        let expected = *next;
        if found < expected {
            return Err(Failure::Again { publisher, found });
        }
        *next = found.saturating_add(1);
        Ok((publisher, expected, found))
    }
}
