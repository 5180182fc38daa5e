//! What lies between a socket and the protocol: TLS, WebSocket, compression.

use std::io::{self, Cursor, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use serde::Deserialize;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};

use crate::Failure;
use crate::connection::{ANSWER, Protocol, TICK};

/// How the bytes of the protocol travel.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Transport {
    /// The bytes themselves.
    #[default]
    Tcp,
    /// TLS. NATS begins it after INFO.
    Tls {
        /// The file with the certificate of who has signed the peer's.
        ca: PathBuf,
    },
    /// WebSocket.
    Ws {
        /// permessage-deflate, each message on its own. The measurement fails if the peer does not
        /// agree.
        #[serde(default)]
        compress: bool,
    },
    /// WebSocket over TLS.
    Wss {
        /// The file with the certificate of who has signed the peer's.
        ca: PathBuf,
        /// As with `Ws`.
        #[serde(default)]
        compress: bool,
    },
}

/// Makes connections to one peer.
pub struct Connector {
    pub protocol: Protocol,
    pub address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    tls_first: bool,
    websocket: Option<bool>,
}

impl Connector {
    pub fn new(
        protocol: Protocol,
        address: SocketAddr,
        transport: &Transport,
    ) -> Result<Self, Failure> {
        let (ca, tls_first, websocket) = match transport {
            Transport::Tcp => (None, false, None),
            Transport::Tls { ca } => (Some(ca), protocol == Protocol::Mqtt, None),
            Transport::Ws { compress } => (None, false, Some(*compress)),
            Transport::Wss { ca, compress } => (Some(ca), true, Some(*compress)),
        };
        Ok(Self {
            protocol,
            address,
            tls: ca.map(|ca| client_config(ca)).transpose()?,
            tls_first,
            websocket,
        })
    }

    /// Connects, with all that comes before the protocol.
    pub fn connect(&self) -> Result<(Reader, Writer), Failure> {
        let mut socket = TcpStream::connect(self.address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(ANSWER))?;
        let tls = match &self.tls {
            Some(config) => {
                if !self.tls_first {
                    read_line(&mut socket)?;
                }
                Some(begin_tls(&mut socket, config, self.address)?)
            }
            None => None,
        };
        // A clone would take a second file descriptor.
        let socket = Arc::new(socket);
        let mut reader = Reader {
            socket: Arc::clone(&socket),
            tls: tls.clone(),
            frames: None,
            raw: Vec::new(),
            ready: Cursor::default(),
        };
        let mut writer = Writer {
            socket,
            tls,
            frames: None,
        };
        if let Some(compress) = self.websocket {
            let rest = begin_websocket(&mut reader, &mut writer, self.protocol, compress)?;
            let mut frames = FramesIn::new(compress);
            let mut first = Vec::new();
            frames.take(&rest, &mut first)?;
            reader.ready = Cursor::new(first);
            reader.frames = Some(frames);
            writer.frames = Some(FramesOut::new(compress));
        }
        reader.socket.set_read_timeout(Some(TICK))?;
        Ok((reader, writer))
    }
}

fn client_config(ca: &Path) -> Result<Arc<ClientConfig>, Failure> {
    let bad = |_| Failure::BadSpecification("the file `ca` has no certificate");
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(bad)? {
        roots.add(certificate.map_err(bad)?).map_err(|_| {
            Failure::BadSpecification("a certificate of the file `ca` is not valid")
        })?;
    }
    if roots.is_empty() {
        return Err(Failure::BadSpecification(
            "the file `ca` has no certificate",
        ));
    }
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Each connection has a whole handshake, as those of different clients have.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Reads INFO, and not a byte more: what follows it belongs to TLS.
fn read_line(socket: &mut TcpStream) -> io::Result<()> {
    let mut byte = [0];
    while byte != *b"\n" {
        socket.read_exact(&mut byte)?;
    }
    Ok(())
}

type Tls = Arc<Mutex<ClientConnection>>;

fn begin_tls(
    socket: &mut TcpStream,
    config: &Arc<ClientConfig>,
    address: SocketAddr,
) -> Result<Tls, Failure> {
    let name = ServerName::from(address.ip());
    let mut session = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    // A batch is encrypted in one go.
    session.set_buffer_limit(None);
    while session.is_handshaking() {
        session.complete_io(socket)?;
    }
    Ok(Arc::new(Mutex::new(session)))
}

fn lock(tls: &Tls) -> io::Result<MutexGuard<'_, ClientConnection>> {
    tls.lock()
        .map_err(|_| io::Error::other("another thread has panicked"))
}

/// Asks for a WebSocket; returns the bytes that came after the answer.
fn begin_websocket(
    reader: &mut Reader,
    writer: &mut Writer,
    protocol: Protocol,
    compress: bool,
) -> Result<Vec<u8>, Failure> {
    let (path, subprotocol) = match protocol {
        Protocol::Nats => ("/", ""),
        Protocol::Mqtt => ("/mqtt", "Sec-WebSocket-Protocol: mqtt\r\n"),
    };
    let extension = if compress {
        "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; \
         client_no_context_takeover\r\n"
    } else {
        ""
    };
    writer.write_all(
        format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             {subprotocol}{extension}\r\n"
        )
        .as_bytes(),
    )?;
    let mut answer = Vec::new();
    let end = loop {
        let mut piece = [0; 1024];
        let size = reader.read(&mut piece)?;
        if size == 0 {
            return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
        }
        answer.extend_from_slice(&piece[..size]);
        if let Some(end) = memchr::memmem::find(&answer, b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    if !head.starts_with("http/1.1 101 ") {
        return Err(Failure::Refused(head));
    }
    if head.contains("permessage-deflate") != compress {
        return Err(Failure::Refused(format!("another compression: {head}")));
    }
    Ok(answer.split_off(end))
}

/// The direction from the peer. A read returns bytes of the protocol.
pub struct Reader {
    socket: Arc<TcpStream>,
    tls: Option<Tls>,
    frames: Option<FramesIn>,
    raw: Vec<u8>,
    ready: Cursor<Vec<u8>>,
}

const PIECE: usize = 64 * 1024;

impl Reader {
    /// Gives the memory of an idle connection back.
    pub fn forget_buffers(&mut self) {
        if self.ready.position() == self.ready.get_ref().len() as u64 {
            self.raw = Vec::new();
            self.ready = Cursor::default();
        }
    }

    /// Reads from the socket once. `ready` is empty before, and may be empty afterwards. The result
    /// is false at the end of the stream.
    fn advance(&mut self) -> io::Result<bool> {
        self.raw.resize(PIECE, 0);
        let size = (&*self.socket).read(&mut self.raw)?;
        let mut plain = std::mem::take(self.ready.get_mut());
        plain.clear();
        match &self.tls {
            Some(tls) => decrypt(&mut *lock(tls)?, &self.raw[..size], &mut plain)?,
            None => plain.extend_from_slice(&self.raw[..size]),
        }
        if let Some(frames) = &mut self.frames {
            let mut payload = Vec::with_capacity(plain.len());
            frames.take(&plain, &mut payload)?;
            plain = payload;
        }
        self.ready = Cursor::new(plain);
        Ok(size > 0)
    }
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.tls.is_none() && self.frames.is_none() {
            return (&*self.socket).read(into);
        }
        loop {
            let size = self.ready.read(into)?;
            if size > 0 || !self.advance()? {
                return Ok(size);
            }
        }
    }
}

fn decrypt(session: &mut ClientConnection, mut raw: &[u8], plain: &mut Vec<u8>) -> io::Result<()> {
    loop {
        if !raw.is_empty() {
            session.read_tls(&mut raw)?;
        }
        let state = session.process_new_packets().map_err(io::Error::other)?;
        let begin = plain.len();
        plain.resize(begin + state.plaintext_bytes_to_read(), 0);
        session.reader().read_exact(&mut plain[begin..])?;
        if raw.is_empty() {
            return Ok(());
        }
    }
}

/// The direction to the peer. It may be used by another thread than the reader.
pub struct Writer {
    socket: Arc<TcpStream>,
    tls: Option<Tls>,
    frames: Option<FramesOut>,
}

impl Writer {
    /// Sends all of the bytes; over WebSocket in one frame.
    pub fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.frames {
            Some(frames) => {
                let frame = frames.frame(bytes)?;
                self.write_below(&frame)
            }
            None => self.write_below(bytes),
        }
    }

    fn write_below(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(tls) = &self.tls else {
            return (&*self.socket).write_all(bytes);
        };
        let mut records = Vec::with_capacity(bytes.len() + bytes.len() / 128 + 64);
        let mut session = lock(tls)?;
        session.writer().write_all(bytes)?;
        while session.wants_write() {
            session.write_tls(&mut records)?;
        }
        // The peer may have to send before it takes these.
        drop(session);
        (&*self.socket).write_all(&records)
    }
}

/// What ends each flush of deflate, and is not sent.
const FLUSH_END: [u8; 4] = [0, 0, 0xFF, 0xFF];

/// A client masks its frames. What with does not matter here.
const MASK: [u8; 4] = [0x5A, 0xA5, 0x3C, 0xC3];

struct FramesOut {
    deflate: Option<Compress>,
}

impl FramesOut {
    fn new(compress: bool) -> Self {
        Self {
            deflate: compress.then(|| Compress::new(Compression::fast(), false)),
        }
    }

    fn frame(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let payload = match &mut self.deflate {
            Some(deflate) => deflated(deflate, bytes)?,
            None => bytes.to_vec(),
        };
        let mut frame = Frame::message(payload, OpCode::Data(Data::Binary), true);
        frame.header_mut().mask = Some(MASK);
        frame.header_mut().rsv1 = self.deflate.is_some();
        let mut out = Vec::with_capacity(frame.len());
        frame.format(&mut out).map_err(io::Error::other)?;
        Ok(out)
    }
}

fn deflated(deflate: &mut Compress, bytes: &[u8]) -> io::Result<Vec<u8>> {
    deflate.reset();
    let mut out = Vec::with_capacity(bytes.len() / 2 + 64);
    loop {
        let done = deflate.total_in() as usize;
        deflate.compress_vec(&bytes[done..], &mut out, FlushCompress::Sync)?;
        if deflate.total_in() as usize == bytes.len() && out.len() < out.capacity() {
            break;
        }
        out.reserve(out.capacity());
    }
    if !out.ends_with(&FLUSH_END) {
        return Err(io::Error::other("deflate has not flushed"));
    }
    out.truncate(out.len() - FLUSH_END.len());
    Ok(out)
}

struct FramesIn {
    inflate: Option<Decompress>,
    /// Bytes of a header that is not complete yet.
    head: Vec<u8>,
    /// The frame whose payload is being read, and the bytes of it that are still to come.
    frame: Option<(FrameHeader, u64)>,
    /// Whether the message that is being read is compressed, and its compressed bytes.
    compressed: Option<Vec<u8>>,
}

impl FramesIn {
    fn new(compress: bool) -> Self {
        Self {
            inflate: compress.then(|| Decompress::new(false)),
            head: Vec::new(),
            frame: None,
            compressed: None,
        }
    }

    /// Appends the payloads of these bytes to `out`.
    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let joined;
        let mut rest = bytes;
        if !self.head.is_empty() {
            self.head.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.head);
            rest = &joined;
        }
        loop {
            let (header, left) = match self.frame.take() {
                Some(frame) => frame,
                None => {
                    let mut cursor = Cursor::new(rest);
                    let parsed = FrameHeader::parse(&mut cursor).map_err(io::Error::other)?;
                    let Some((header, length)) = parsed else {
                        self.head = rest.to_vec();
                        return Ok(());
                    };
                    rest = &rest[cursor.position() as usize..];
                    self.begin(&header)?;
                    (header, length)
                }
            };
            let size = left.min(rest.len() as u64) as usize;
            let (payload, behind) = rest.split_at(size);
            rest = behind;
            match (&mut self.compressed, header.opcode) {
                (_, OpCode::Control(_)) => {}
                (Some(compressed), _) => compressed.extend_from_slice(payload),
                (None, _) => out.extend_from_slice(payload),
            }
            if (size as u64) < left {
                self.frame = Some((header, left - size as u64));
                return Ok(());
            }
            if header.is_final && matches!(header.opcode, OpCode::Data(_)) {
                self.end(out)?;
            }
        }
    }

    fn begin(&mut self, header: &FrameHeader) -> io::Result<()> {
        let refused = |what: &str| Err(io::Error::new(ErrorKind::InvalidData, what));
        match header.opcode {
            OpCode::Control(Control::Close) => {
                return Err(io::Error::new(
                    ErrorKind::ConnectionAborted,
                    "a close frame",
                ));
            }
            OpCode::Data(Data::Binary) if header.rsv1 && self.inflate.is_none() => {
                return refused("a compressed message that was not asked for");
            }
            OpCode::Data(Data::Binary) => self.compressed = header.rsv1.then(Vec::new),
            OpCode::Data(Data::Continue) | OpCode::Control(Control::Pong) => {}
            _ => return refused("an unexpected kind of frame"),
        }
        if header.mask.is_some() {
            return refused("a masked frame");
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        if let (Some(mut compressed), Some(inflate)) = (self.compressed.take(), &mut self.inflate) {
            compressed.extend_from_slice(&FLUSH_END);
            inflated(inflate, &compressed, out)?;
        }
        Ok(())
    }
}

fn inflated(inflate: &mut Decompress, compressed: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    inflate.reset(false);
    loop {
        out.reserve(PIECE);
        let done = inflate.total_in() as usize;
        let status = inflate.decompress_vec(&compressed[done..], out, FlushDecompress::Sync)?;
        let all = inflate.total_in() as usize == compressed.len();
        if status == Status::StreamEnd || all && out.len() < out.capacity() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a server sends it.
    fn unmasked(frames: &mut FramesOut, bytes: &[u8]) -> Vec<u8> {
        let masked = frames.frame(bytes).unwrap();
        let mut cursor = Cursor::new(&masked);
        let (mut header, length) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
        let begin = cursor.position() as usize;
        let payload: Vec<u8> = masked[begin..]
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, mask)| byte ^ mask)
            .collect();
        header.mask = None;
        let mut out = Vec::new();
        header.format(length, &mut out).unwrap();
        out.extend(payload);
        out
    }

    #[test]
    fn messages_survive_frames_at_every_split() {
        let messages = [vec![7; 3], Vec::new(), (0..=255).collect(), vec![9; 70_000]];
        for compress in [false, true] {
            let mut frames = FramesOut::new(compress);
            let bytes: Vec<u8> = messages
                .iter()
                .flat_map(|message| unmasked(&mut frames, message))
                .collect();
            for split in (0..bytes.len()).filter(|at| *at < 600 || at % 997 == 0) {
                let mut frames = FramesIn::new(compress);
                let mut out = Vec::new();
                frames.take(&bytes[..split], &mut out).unwrap();
                frames.take(&bytes[split..], &mut out).unwrap();
                assert!(out == messages.concat(), "split at {split}");
            }
        }
    }

    #[test]
    fn compression_makes_messages_smaller_and_incompressible_ones_survive() {
        let mut frames = FramesOut::new(true);
        assert!(frames.frame(&[7; 100_000]).unwrap().len() < 1000);
        let mut state = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(1_000_000)
        .collect();
        let mut out = Vec::new();
        let bytes = unmasked(&mut frames, &noise);
        FramesIn::new(true).take(&bytes, &mut out).unwrap();
        assert!(out == noise);
    }

    #[test]
    fn a_message_of_several_frames_with_a_pong_between_them() {
        let bytes = [&[0x02, 1, b'a'][..], &[0x8A, 0], &[0x80, 1, b'b']].concat();
        let mut out = Vec::new();
        FramesIn::new(false).take(&bytes, &mut out).unwrap();
        assert_eq!(out, b"ab");
    }

    #[test]
    fn frames_that_a_server_does_not_send() {
        for bytes in [
            // A close, a text, a compressed message that was not asked for, a masked one.
            &[0x88, 0][..],
            &[0x81, 1, b'a'],
            &[0xC2, 1, 0],
            &[0x82, 0x81, 0, 0, 0, 0, 1],
        ] {
            let taken = FramesIn::new(false).take(bytes, &mut Vec::new());
            assert!(taken.is_err(), "{bytes:02x?}");
        }
        // Not deflate.
        let broken = FramesIn::new(true).take(&[0xC2, 2, 0xFF, 0xFF], &mut Vec::new());
        assert!(broken.is_err());
    }
}
