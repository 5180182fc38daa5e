//! One connection of either protocol.

use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::transport::{Connector, Reader, Writer};
use crate::{Failure, mqtt, nats};

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// NATS core.
    Nats,
    /// MQTT 5.
    Mqtt,
}

/// Something that the peer has sent.
#[derive(Debug)]
pub enum Received<'a> {
    Message(Message<'a>),
    /// +OK, PUBACK
    Acknowledged,
    /// PONG, PINGRESP: the peer has handled what was sent before.
    Barrier,
    /// CONNACK
    Connected,
    /// SUBACK
    Subscribed,
    /// PING, which needs a PONG
    Ping,
    Other,
}

/// A delivery. Names are spelt as in the protocol.
#[derive(Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub name: &'a [u8],
    /// The reply subject of NATS. MQTT has a Response Topic among its properties.
    pub reply: &'a [u8],
    /// The header block of NATS, or the properties of MQTT with their length.
    pub headers: &'a [u8],
    pub payload: &'a [u8],
}

/// A message to publish.
pub struct Outgoing<'a> {
    /// The name in the spelling of NATS.
    pub name: &'a str,
    pub reply: Option<&'a str>,
    pub headers: bool,
    /// Whether the peer must acknowledge it (MQTT: QoS 1; NATS: the connection is verbose).
    pub acknowledged: bool,
    pub payload: &'a [u8],
}

/// The frame of a message, and the places in it that change.
pub struct Frame {
    pub bytes: Vec<u8>,
    /// Where the payload begins. It ends with the frame, but for the CR LF of NATS.
    pub payload: usize,
    /// Where the two bytes of the packet identifier of MQTT begin.
    pub packet_id: Option<usize>,
}

impl Protocol {
    /// A message as it is published.
    pub fn frame(self, message: &Outgoing<'_>) -> Frame {
        match self {
            Self::Nats => nats::publish(message),
            Self::Mqtt => mqtt::publish(message),
        }
    }

    /// The operation that the peer answers after it has handled all that was sent before: PING,
    /// PINGREQ.
    pub fn barrier(self) -> &'static [u8] {
        match self {
            Self::Nats => b"PING\r\n",
            Self::Mqtt => &[0xC0, 0],
        }
    }

    /// A name of NATS in the spelling of this protocol.
    pub fn name(self, subject: &str) -> String {
        match self {
            Self::Nats => subject.to_owned(),
            Self::Mqtt => mqtt::topic(subject),
        }
    }

    /// Returns the first item in the bytes, and its length. The result is `None` if more bytes are
    /// needed.
    pub fn parse(self, bytes: &[u8]) -> Result<Option<(Received<'_>, usize)>, Failure> {
        match self {
            Self::Nats => nats::parse(bytes),
            Self::Mqtt => mqtt::parse(bytes),
        }
    }

    /// The end of the headers of a message that was published with headers.
    pub fn headers(self) -> Vec<u8> {
        match self {
            Self::Nats => nats::headers(),
            Self::Mqtt => mqtt::headers(),
        }
    }
}

pub struct Login<'a> {
    /// MQTT client id.
    pub id: &'a str,
    /// NATS: the peer answers every operation with +OK.
    pub verbose: bool,
    /// MQTT: seconds of silence that the client promises to end; 0 is none.
    pub keep_alive: u16,
}

/// How long a read may take before its caller looks at other things.
pub const TICK: Duration = Duration::from_millis(100);

const BUFFER: usize = 256 * 1024;

/// The time for answers that should come at once.
pub const ANSWER: Duration = Duration::from_secs(20);

/// What comes from the peer.
pub struct Inbox {
    pub protocol: Protocol,
    reader: Reader,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

pub struct Connection {
    pub inbox: Inbox,
    writer: Writer,
}

impl Connection {
    /// Connects and logs in.
    pub fn open(connector: &Connector, login: &Login<'_>) -> Result<Self, Failure> {
        let (reader, writer) = connector.connect()?;
        let protocol = connector.protocol;
        let mut connection = Self {
            inbox: Inbox {
                protocol,
                reader,
                buffer: Vec::new(),
                start: 0,
                end: 0,
            },
            writer,
        };
        match protocol {
            Protocol::Nats => {
                connection.send(&nats::connect(login))?;
                connection.barrier()?;
            }
            Protocol::Mqtt => {
                connection.send(&mqtt::connect(login))?;
                connection.wait_for("CONNACK", |received| {
                    matches!(received, Received::Connected)
                })?;
            }
        }
        Ok(connection)
    }

    /// Both directions, for two threads.
    pub fn split(self) -> (Inbox, Writer) {
        (self.inbox, self.writer)
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes)
    }

    /// Returns when the peer has handled all that was sent before.
    pub fn barrier(&mut self) -> Result<(), Failure> {
        self.send(self.inbox.protocol.barrier())?;
        self.wait_for("PONG", |received| matches!(received, Received::Barrier))
    }

    /// Subscribes, as a member of a queue group (shared subscription) if there is one, and returns
    /// when the subscriptions are there. Sids count from 1.
    pub fn subscribe(&mut self, subjects: &[String], group: Option<&str>) -> Result<(), Failure> {
        match self.inbox.protocol {
            Protocol::Nats => {
                self.send(&nats::subscribe(subjects, group))?;
                self.barrier()
            }
            Protocol::Mqtt => {
                // Brokers limit the number of filters in a packet.
                for some in subjects.chunks(100) {
                    self.send(&mqtt::subscribe(some, group))?;
                    self.wait_for("SUBACK", |received| {
                        matches!(received, Received::Subscribed)
                    })?;
                }
                Ok(())
            }
        }
    }

    fn wait_for(
        &mut self,
        what: &'static str,
        is_it: impl Fn(&Received<'_>) -> bool,
    ) -> Result<(), Failure> {
        let until = Instant::now() + ANSWER;
        loop {
            while let Some((received, used)) = self.inbox.next()? {
                let found = is_it(&received);
                if let Received::Message(_) = received {
                    return Err(Failure::Refused(format!("a message instead of {what}")));
                }
                self.inbox.consume(used);
                if found {
                    return Ok(());
                }
            }
            if !self.inbox.fill()? && Instant::now() > until {
                return Err(Failure::Silence {
                    what,
                    received: 0,
                    expected: 1,
                    patience: ANSWER,
                });
            }
        }
    }
}

impl Inbox {
    /// The first item that has not been consumed, and its length.
    pub fn next(&self) -> Result<Option<(Received<'_>, usize)>, Failure> {
        self.protocol.parse(&self.buffer[self.start..self.end])
    }

    pub fn consume(&mut self, used: usize) {
        self.start += used;
    }

    /// Reads some more bytes. The result is false if none came for a moment.
    pub fn fill(&mut self) -> Result<bool, Failure> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start > self.buffer.len() / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.is_empty() {
            self.buffer.resize(BUFFER, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        match self.reader.read(&mut self.buffer[self.end..]) {
            Ok(0) => Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
            Ok(size) => {
                self.end += size;
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the memory of an idle connection back.
    pub fn forget_buffers(&mut self) {
        self.reader.forget_buffers();
        self.buffer = Vec::new();
        self.start = 0;
        self.end = 0;
    }
}
