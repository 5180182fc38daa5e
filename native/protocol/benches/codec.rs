//! Measures the time per operation in both directions, with topic conversion.

#![allow(clippy::restriction)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nats_protocol::encode::{Frames, Message};
use nats_protocol::subject::{plain_topic, write_subject};
use nats_protocol::websocket::{
    Frame, Position, ServerFrame, Settings as FrameSettings, Step as FrameStep,
    decode as decode_frame, header,
};
use nats_protocol::{Op, Settings, Step, decode};

const SUBJECT: &str = "sensors.building7.room12";
const TOPIC: &[u8] = b"sensors/building7/room12";

/// Operations in one buffer, as a read under load brings them.
const OPS: usize = 64;

/// The size of a read if the socket's buffer has its default size.
const READ: usize = 1460;

/// Decodes all operations and converts their subjects; returns the rest and what it waits for.
fn drain<'a>(mut bytes: &'a [u8], settings: &Settings, topic: &mut [u8]) -> (&'a [u8], usize) {
    loop {
        match decode(bytes, settings) {
            Ok(Step::Op { op, used }) => {
                if let Op::Pub(message) = &op {
                    let topic = &mut topic[..message.subject.len()];
                    assert!(plain_topic(message.subject, topic));
                    black_box(&*topic);
                }
                black_box(&op);
                bytes = &bytes[used..];
            }
            Ok(Step::Need(size)) => return (bytes, size),
            Err(error) => panic!("{error}"),
        }
    }
}

fn line(subject_and_reply: &str, size: usize) -> String {
    format!("PUB {subject_and_reply} {size}\r\n{}\r\n", "x".repeat(size))
}

fn decoding(criterion: &mut Criterion) {
    let settings = Settings::default();
    let mut topic = [0; 256];
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(OPS as u64));
    let with_reply = format!("{SUBJECT} _INBOX.A1b2C3d4E5f6G7h8I9j0K1.x");
    for (name, line) in [
        ("PUB of 16 B", line(SUBJECT, 16)),
        ("PUB of 128 B", line(SUBJECT, 128)),
        ("PUB of 4 KiB", line(SUBJECT, 4096)),
        ("request of 128 B", line(&with_reply, 128)),
    ] {
        let bytes = line.repeat(OPS);
        group.bench_function(format!("{OPS} x {name}"), |bencher| {
            bencher.iter(|| drain(black_box(bytes.as_bytes()), &settings, &mut topic));
        });
    }
    group.finish();
}

/// A large payload in small reads: they are kept until there are as many bytes as the decoder
/// asked for, then joined.
fn fragments(criterion: &mut Criterion) {
    let settings = Settings::default();
    let mut topic = [0; 256];
    let bytes = line(SUBJECT, 1024 * 1024).into_bytes();
    let mut group = criterion.benchmark_group("fragments");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function(format!("1 MiB in reads of {READ} B"), |bencher| {
        bencher.iter(|| {
            let mut pending: Vec<&[u8]> = Vec::new();
            let (mut received, mut waiting, mut needed) = (0, 0, 1);
            for read in black_box(&bytes).chunks(READ) {
                pending.push(read);
                received += read.len();
                waiting += read.len();
                if waiting >= needed {
                    let joined = pending.concat();
                    let (rest, need) = drain(&joined, &settings, &mut topic);
                    (waiting, needed) = (rest.len(), need);
                    pending = vec![&bytes[received - waiting..received]];
                }
            }
            assert_eq!(waiting, 0);
        });
    });
    group.finish();
}

/// Frames of 64 KiB of the stream, as one read brings them.
fn websocket(criterion: &mut Criterion) {
    const STREAM: usize = 64 * 1024;
    let mut group = criterion.benchmark_group("websocket");
    group.throughput(Throughput::Bytes(STREAM as u64));
    for (name, size) in [("64 B", 64), ("1 KiB", 1024), ("64 KiB", STREAM)] {
        let mut bytes = Vec::new();
        for _ in 0..STREAM / size {
            let (mut header, header_size) = header(ServerFrame::Binary, size as u64);
            header[1] |= 0x80;
            bytes.extend_from_slice(&header[..header_size]);
            bytes.extend_from_slice(&[1, 2, 3, 4]);
            bytes.resize(bytes.len() + size, b'x');
        }
        let mut stream = vec![0; STREAM];
        group.bench_function(format!("frames of {name}"), |bencher| {
            bencher.iter(|| {
                let (mut rest, mut written) = (black_box(&bytes[..]), 0);
                let mut position = Position::default();
                while let Ok(FrameStep::Frame { frame, used }) =
                    decode_frame(rest, &mut position, &FrameSettings::default())
                {
                    if let Frame::Data(data) = frame {
                        data.payload.unmask(&mut stream[written..]);
                        written += data.payload.len();
                    }
                    rest = &rest[used..];
                }
                assert_eq!(written, STREAM);
            });
        });
    }
    group.finish();
}

fn encoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Elements(OPS as u64));
    for (name, size) in [("16 B", 16), ("128 B", 128), ("4 KiB", 4096)] {
        let payload = vec![b'x'; size];
        group.bench_function(format!("{OPS} x MSG of {name}"), |bencher| {
            bencher.iter(|| {
                let mut frames = Frames::with_capacity(OPS * 256);
                let mut subject = Vec::new();
                for _ in 0..OPS {
                    subject.clear();
                    write_subject(black_box(TOPIC), b"", &mut subject);
                    let message = Message {
                        subject: &subject,
                        payload: &payload,
                        ..Message::default()
                    };
                    frames.push(&message, b"17", ());
                }
                black_box(frames.size())
            });
        });
    }
    group.finish();
}

fn configuration() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .without_plots()
}

criterion_group! { name = codec; config = configuration(); targets = decoding, fragments, websocket, encoding }
criterion_main!(codec);
