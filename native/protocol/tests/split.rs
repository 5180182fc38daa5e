//! The way in which the stream is cut into reads must never change what is decoded.

#![allow(clippy::restriction)]

mod common;

use common::{drain, feed, small};
use nats_protocol::Settings;

/// Every operation, in the spellings that matter, and every way to end with an error.
const INPUTS: &[&[u8]] = &[
    b"PING\r\n",
    b"pOnG x y\n",
    b"+OK\r\n",
    b"INFO {\"a\":1} \r\n",
    b"CONNECT {\"verbose\":false,\"name\":\"x y\"}\r\n",
    b"CONNECT{}\n",
    b"SUB a.* 1\r\n",
    b"sub\ta.>  q \t 17 \r\n",
    b"UNSUB 1\r\n",
    b"UNSUB 1 \t5\r\n",
    b"PUB a 0\r\n\r\n",
    b"PUB a.b 5\r\nhello\r\n",
    b"PUB a.b reply.x 5\r\nhello\r\n",
    b"pub  a.b\treply.x  005 \nPING\n\r\n",
    b"PUB a 4\r\n\r\n\r\n\r\n",
    b"HPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
    b"HPUB a b 0 2\r\nhi\r\n",
    b"hPub a b\t12 12\nNATS/1.0\r\n\r\n\r\n",
    b"PUB \xFF\xFE 1\r\n\x00\r\n",
    b"PING\r\nPUX",
    b"PUB a 2\r\nhello\r\n",
    b"PUB a 2\r\nhi\n",
    b"PUB a 2\r\nhi\rx",
    b"PUB a -1\r\n",
    b"PUB a 101\r\n",
    b"PUB a\r\n",
    b"PUB\r\n",
    b"PUB a b c 1\r\n",
    b"HPUB a 5 4\r\n",
    b"HMSG a 1 2\r\n",
    b"-ERR 'x'\r\n",
    b"CONNECT []\r\n",
    b"INFO x\r\n",
    b" PING\r\n",
    b"SUB a.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 1\r\n",
];

#[test]
fn every_cut() {
    for input in INPUTS {
        let whole = drain(input, &small());
        for cut in 0..=input.len() {
            let (front, back) = input.split_at(cut);
            assert_eq!(
                feed([front, back], &small()),
                whole,
                "{} at {cut}",
                input.escape_ascii()
            );
        }
    }
}

#[test]
fn every_pair_of_cuts() {
    for input in INPUTS {
        let whole = drain(input, &small());
        for first in 0..=input.len() {
            for second in first..=input.len() {
                let reads = [&input[..first], &input[first..second], &input[second..]];
                assert_eq!(feed(reads, &small()), whole, "{}", input.escape_ascii());
            }
        }
    }
}

#[test]
fn byte_by_byte() {
    for input in INPUTS {
        assert_eq!(feed(input.chunks(1), &small()), drain(input, &small()));
    }
}

/// An operation does not change because another one follows it in the same read.
#[test]
fn every_operation_after_every_other() {
    for first in INPUTS {
        let (ops, end) = drain(first, &small());
        for second in INPUTS {
            let both = drain(&[*first, *second].concat(), &small());
            match end {
                Ok((0, _)) => {
                    let (more, end) = drain(second, &small());
                    assert_eq!(both, ([&ops[..], &more].concat(), end));
                }
                Ok(_) => unreachable!("every input is complete"),
                Err(_) => assert_eq!(both, (ops.clone(), end)),
            }
        }
    }
}

/// The decoder asks for the number of bytes at which the operation can end, as soon as it is known.
#[test]
fn need_is_exact_for_payloads() {
    let input = b"HPUB a reply 12 20\r\nNATS/1.0\r\n\r\n12345678\r\nPING\r\n";
    let line = b"HPUB a reply 12 20\r\n".len();
    let content = line + 20;
    let needed = |end: usize| drain(&input[..end], &Settings::default());
    assert_eq!(needed(0).1, Ok((0, 1)));
    for end in 1..line {
        assert_eq!(needed(end), (vec![], Ok((end, end + 1))));
    }
    for end in line..=content {
        assert_eq!(needed(end), (vec![], Ok((end, content + 1))));
    }
    assert_eq!(
        needed(content + 1),
        (vec![], Ok((content + 1, content + 2)))
    );
    assert_eq!(needed(content + 2).0.len(), 1);
}
