//! Tests of the crowd of connections on one thread.

// A measurement or a test that panics has failed.
#![allow(clippy::restriction)]

mod common;

use std::io::{Cursor, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use common::{Fault, start};
use nats_gateway_bench::crowd::{self, Crowd, Outcome};
use nats_gateway_bench::{Failure, Protocol};

fn open(address: SocketAddr, steps: &str, watch: bool) -> Result<Vec<Outcome>, Failure> {
    let specification = Crowd {
        protocol: Protocol::Nats,
        address,
        at_once: 50,
        sources: 3,
        keep_alive: 0,
        watch,
        patience_ms: 2000,
    };
    let mut outcomes = Vec::new();
    let steps = Cursor::new(steps.to_owned());
    crowd::run(&specification, steps, |outcome| {
        outcomes.push(outcome.clone());
    })?;
    Ok(outcomes)
}

#[test]
fn steps() {
    let outcomes = open(start(Fault::None), "100\n150\n", true).unwrap();
    let counts: Vec<_> = outcomes.iter().map(|one| one.connections).collect();
    assert_eq!(counts, [100, 150]);
    assert!(outcomes.iter().all(|one| one.retries == 0));
    assert!(outcomes.iter().all(|one| one.longest_pause_ms > Some(0.0)));
}

fn pipe() -> (std::io::PipeWriter, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    (writer, reader)
}

/// Serves nobody at first: every other connection is closed at once.
fn refuses_every_other() -> SocketAddr {
    let behind = start(Fault::None);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for (client, number) in listener.incoming().zip(0..) {
            let mut client = client.unwrap();
            if number % 2 == 0 {
                continue;
            }
            let mut server = std::net::TcpStream::connect(behind).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut from, &mut to));
            thread::spawn(move || std::io::copy(&mut server, &mut client));
        }
    });
    address
}

#[test]
fn refused_clients_begin_again() {
    let outcomes = open(refuses_every_other(), "20\n", false).unwrap();
    assert_eq!(outcomes[0].connections, 20);
    assert!(outcomes[0].retries >= 10, "{:?}", outcomes[0]);
}

#[test]
fn a_server_that_says_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            thread::spawn(move || client.read_to_end(&mut Vec::new()));
        }
    });
    let silence = open(address, "3\n", false).unwrap_err();
    assert!(
        matches!(
            silence,
            Failure::Unserved {
                served: 0,
                expected: 3,
                ..
            }
        ),
        "{silence}"
    );
}

#[test]
fn steps_without_sense() {
    let wrong = open(start(Fault::None), "many\n", false).unwrap_err();
    assert!(matches!(wrong, Failure::BadSpecification(_)), "{wrong}");
}

#[test]
fn heartbeats_are_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        client.write_all(b"INFO {} \r\n").unwrap();
        let mut heard = String::new();
        let mut piece = [0; 1024];
        while !heard.contains("PING\r\n") {
            let size = client.read(&mut piece).unwrap();
            heard.push_str(std::str::from_utf8(&piece[..size]).unwrap());
        }
        client.write_all(b"PONG\r\nPING\r\n").unwrap();
        let size = client.read(&mut piece).unwrap();
        piece[..size].to_vec()
    });
    let (mut writer, reader) = pipe();
    let specification = Crowd {
        protocol: Protocol::Nats,
        address,
        at_once: 1,
        sources: 0,
        keep_alive: 0,
        watch: false,
        patience_ms: 2000,
    };
    let crowd =
        thread::spawn(move || crowd::run(&specification, std::io::BufReader::new(reader), |_| ()));
    writer.write_all(b"1\n").unwrap();
    assert_eq!(server.join().unwrap(), b"PONG\r\n");
    drop(writer);
    // The server is gone: the client begins again until the steps end.
    crowd.join().unwrap().unwrap();
}
