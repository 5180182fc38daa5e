//! Tests of the transports: faults are noticed through each of them. A proxy in front of the small
//! server speaks TLS or WebSocket.

// A measurement or a test that panics has failed.
#![allow(clippy::restriction)]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::{Fault, MESSAGES, VICTIM, measure, start};
use nats_gateway_bench::{Failure, Transport};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tungstenite::{Message, WebSocket};

/// A certificate of 127.0.0.1 that has signed itself, and the file with it.
struct Identity {
    config: Arc<ServerConfig>,
    ca: PathBuf,
}

fn identity(name: &str) -> Identity {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let ca = std::env::temp_dir().join(format!("load-{}-{name}.pem", std::process::id()));
    std::fs::write(&ca, cert.pem()).unwrap();
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())
        .unwrap();
    Identity {
        config: Arc::new(config),
        ca,
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.ca);
    }
}

/// How long one direction is looked at before the other.
const TURN: Duration = Duration::from_millis(1);

/// Accepts, and gives each connection with one to the server behind it to `serve`.
fn proxy(
    behind: SocketAddr,
    serve: impl Fn(TcpStream, TcpStream) + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, serve) = (client.unwrap(), Arc::clone(&serve));
            let server = TcpStream::connect(behind).unwrap();
            server.set_read_timeout(Some(TURN)).unwrap();
            // The thread panics when one side is gone, which closes the other.
            thread::spawn(move || serve(client, server));
        }
    });
    address
}

fn is_nothing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Some bytes of the server, or nothing.
fn read(from: &mut impl Read) -> Vec<u8> {
    let mut piece = vec![0; 65536];
    match from.read(&mut piece) {
        Ok(0) => panic!("the end"),
        Ok(size) => piece.truncate(size),
        Err(error) if is_nothing(&error) => piece.clear(),
        Err(error) => panic!("{error}"),
    }
    piece
}

fn tls_after_info(config: &Arc<ServerConfig>, mut client: TcpStream, mut server: TcpStream) {
    client.write_all(b"INFO {} \r\n").unwrap();
    let session = ServerConnection::new(Arc::clone(config)).unwrap();
    let mut secure = StreamOwned::new(session, client);
    while secure.conn.is_handshaking() {
        secure.conn.complete_io(&mut secure.sock).unwrap();
    }
    secure.sock.set_read_timeout(Some(TURN)).unwrap();
    loop {
        secure.write_all(&read(&mut server)).unwrap();
        secure.flush().unwrap();
        server.write_all(&read(&mut secure)).unwrap();
    }
}

fn relay_frames<S: Read + Write>(mut client: WebSocket<S>, mut server: TcpStream) {
    loop {
        let bytes = read(&mut server);
        if !bytes.is_empty() {
            client.send(Message::binary(bytes)).unwrap();
        }
        match client.read() {
            Ok(message) => server.write_all(&message.into_data()).unwrap(),
            Err(tungstenite::Error::Io(error)) if is_nothing(&error) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn websocket(client: TcpStream, server: TcpStream) {
    let client = tungstenite::accept(client).unwrap();
    client.get_ref().set_read_timeout(Some(TURN)).unwrap();
    relay_frames(client, server);
}

fn secure_websocket(config: &Arc<ServerConfig>, client: TcpStream, server: TcpStream) {
    let session = ServerConnection::new(Arc::clone(config)).unwrap();
    let client = tungstenite::accept(StreamOwned::new(session, client)).unwrap();
    client.get_ref().sock.set_read_timeout(Some(TURN)).unwrap();
    relay_frames(client, server);
}

fn through(fault: Fault, own: &Identity, kind: &str) -> Result<u64, Failure> {
    let config = Arc::clone(&own.config);
    let ca = own.ca.clone();
    let (transport, address) = match kind {
        "tls" => (
            Transport::Tls { ca },
            proxy(start(fault), move |client, server| {
                tls_after_info(&config, client, server)
            }),
        ),
        "ws" => (
            Transport::Ws { compress: false },
            proxy(start(fault), websocket),
        ),
        _ => (
            Transport::Wss {
                ca,
                compress: false,
            },
            proxy(start(fault), move |client, server| {
                secure_websocket(&config, client, server)
            }),
        ),
    };
    let outcome = measure(fault, |flow| {
        flow.address = address;
        flow.transport = transport;
        flow.headers = true;
        // The proxy looks at one direction after the other.
        flow.patience_ms = 5000;
    })?;
    Ok(outcome.delivered)
}

#[test]
fn all_is_well() {
    for kind in ["tls", "ws", "wss"] {
        let own = identity(&format!("well-{kind}"));
        assert_eq!(through(Fault::None, &own, kind).unwrap(), MESSAGES);
    }
}

#[test]
fn faults() {
    for kind in ["tls", "ws", "wss"] {
        let own = identity(&format!("faults-{kind}"));
        let lost = through(Fault::Loses, &own, kind).unwrap_err();
        assert!(
            matches!(
                lost,
                Failure::Missing {
                    expected: VICTIM,
                    ..
                }
            ),
            "{kind}: {lost}"
        );
        let changed = through(Fault::Changes, &own, kind).unwrap_err();
        assert!(
            matches!(changed, Failure::Damaged("payload")),
            "{kind}: {changed}"
        );
    }
}

#[test]
fn a_certificate_that_nobody_trusts() {
    let (own, other) = (identity("own"), identity("other"));
    let config = Arc::clone(&own.config);
    let address = proxy(start(Fault::None), move |client, server| {
        tls_after_info(&config, client, server);
    });
    let refused = measure(Fault::None, |flow| {
        flow.address = address;
        flow.transport = Transport::Tls {
            ca: other.ca.clone(),
        };
    })
    .unwrap_err();
    assert!(matches!(refused, Failure::Io(_)), "{refused}");
}

#[test]
fn a_file_without_certificates() {
    for ca in [PathBuf::from("/nowhere"), PathBuf::from("/dev/null")] {
        let wrong = measure(Fault::None, |flow| {
            flow.transport = Transport::Tls { ca };
        })
        .unwrap_err();
        assert!(matches!(wrong, Failure::BadSpecification(_)), "{wrong}");
    }
}

#[test]
fn a_peer_that_does_not_compress() {
    let address = proxy(start(Fault::None), websocket);
    let refused = measure(Fault::None, |flow| {
        flow.address = address;
        flow.transport = Transport::Ws { compress: true };
    })
    .unwrap_err();
    assert!(
        matches!(&refused, Failure::Refused(text) if text.contains("another compression")),
        "{refused}"
    );
}
