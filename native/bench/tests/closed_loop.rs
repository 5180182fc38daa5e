//! Tests of pairs of clients that have a fixed number of messages under way.

// A measurement or a test that panics has failed.
#![allow(clippy::restriction)]

mod common;

use common::{Fault, MESSAGES, VICTIM, start};
use nats_gateway_bench::closed_loop::{self, ClosedLoop, Outcome};
use nats_gateway_bench::{Failure, Protocol, Transport};

fn measure(fault: Fault, change: impl FnOnce(&mut ClosedLoop)) -> Result<Outcome, Failure> {
    let mut specification = ClosedLoop {
        protocol: Protocol::Nats,
        address: start(fault),
        transport: Transport::Tcp,
        pids: Vec::new(),
        pairs: 1,
        messages: MESSAGES,
        under_way: 50,
        payload: 40,
        requests: false,
        patience_ms: 300,
    };
    change(&mut specification);
    closed_loop::run(&specification)
}

#[test]
fn many_pairs() {
    let outcome = measure(Fault::None, |specification| {
        specification.pairs = 50;
        specification.messages = 101;
        specification.under_way = 7;
        specification.patience_ms = 5000;
    })
    .unwrap();
    assert_eq!(outcome.delivered, 50 * 101);
}

#[test]
fn requests() {
    let outcome = measure(Fault::None, |specification| {
        specification.pairs = 2;
        specification.requests = true;
        specification.patience_ms = 5000;
    })
    .unwrap();
    assert_eq!(outcome.delivered, 2 * MESSAGES);
}

#[test]
fn faults_of_a_message() {
    let lost = measure(Fault::Loses, |_| ()).unwrap_err();
    assert!(
        matches!(
            lost,
            Failure::Missing {
                expected: VICTIM,
                ..
            }
        ),
        "{lost}"
    );
    let last = measure(Fault::LosesTheLast, |_| ()).unwrap_err();
    assert!(
        matches!(last, Failure::Silence { received, .. } if received == MESSAGES - 1),
        "{last}"
    );
    let again = measure(Fault::Repeats, |_| ()).unwrap_err();
    assert!(matches!(again, Failure::Again { .. }), "{again}");
    let changed = measure(Fault::Changes, |_| ()).unwrap_err();
    assert!(matches!(changed, Failure::Damaged("payload")), "{changed}");
    let renamed = measure(Fault::Renames, |_| ()).unwrap_err();
    assert!(matches!(renamed, Failure::Damaged("name")), "{renamed}");
    let closed = measure(Fault::Closes, |_| ()).unwrap_err();
    assert!(matches!(closed, Failure::Io(_)), "{closed}");
}

#[test]
fn specifications_without_sense() {
    for change in [
        (|specification: &mut ClosedLoop| specification.payload = 15) as fn(&mut ClosedLoop),
        |specification| specification.messages = 0,
        |specification| specification.pairs = 0,
        |specification| specification.under_way = 0,
    ] {
        let wrong = measure(Fault::None, change).unwrap_err();
        assert!(matches!(wrong, Failure::BadSpecification(_)), "{wrong}");
    }
}
