//! Tests that the generator notices faults. A small server loses, repeats, swaps or changes one of
//! many messages.

// A measurement or a test that panics has failed.
#![allow(clippy::restriction)]

mod common;

use common::{Fault, MESSAGES, VICTIM, measure};
use nats_gateway_bench::Failure;
use nats_gateway_bench::flow::Flow;

fn failure(fault: Fault) -> Failure {
    measure(fault, |_| ()).expect_err("the fault was not noticed")
}

#[test]
fn all_is_well() {
    let outcome = measure(Fault::None, |_| ()).unwrap();
    assert_eq!((outcome.published, outcome.delivered), (MESSAGES, MESSAGES));
}

#[test]
fn many_of_everything() {
    let outcome = measure(Fault::None, |flow| {
        flow.publishers = 4;
        flow.subscribers = 3;
        flow.subjects = 7;
        flow.headers = true;
        flow.acknowledged = true;
    })
    .unwrap();
    assert_eq!(outcome.published, 4 * MESSAGES);
    assert_eq!(outcome.delivered, 12 * MESSAGES);
}

#[test]
fn small_writes() {
    for count in [1, 2, 3] {
        let outcome = measure(Fault::None, |flow| flow.per_write = Some(count)).unwrap();
        assert_eq!(outcome.delivered, MESSAGES);
    }
}

#[test]
fn wildcards_of_their_own() {
    let outcome = measure(Fault::None, |flow| {
        flow.subjects = 100;
        flow.subscriptions = 300;
        flow.wildcards = true;
    })
    .unwrap();
    assert_eq!(outcome.delivered, MESSAGES);
}

#[test]
fn a_queue_group() {
    let group = |flow: &mut Flow| {
        flow.publishers = 2;
        flow.messages = MESSAGES / 2;
        flow.subscribers = 3;
        flow.queue = true;
    };
    let outcome = measure(Fault::None, group).unwrap();
    assert_eq!((outcome.published, outcome.delivered), (MESSAGES, MESSAGES));
    let lost = measure(Fault::Loses, group).unwrap_err();
    assert!(
        matches!(lost, Failure::Silence { received, expected, .. }
            if received == MESSAGES - 1 && expected == MESSAGES),
        "{lost}"
    );
    let twice = measure(Fault::Repeats, group).unwrap_err();
    assert!(matches!(twice, Failure::Again { .. }), "{twice}");
    let both = measure(Fault::GivesToTwo, group).unwrap_err();
    assert!(matches!(both, Failure::Again { .. }), "{both}");
}

#[test]
fn large_messages() {
    let outcome = measure(Fault::None, |flow| {
        flow.payload = 1_000_000;
        flow.messages = 20;
    })
    .unwrap();
    assert_eq!(outcome.delivered, 20);
}

#[test]
fn a_lost_message() {
    let lost = failure(Fault::Loses);
    assert!(
        matches!(lost, Failure::Missing { expected: VICTIM, found, .. } if found == VICTIM + 1),
        "{lost}"
    );
}

#[test]
fn a_lost_message_at_the_end() {
    let lost = failure(Fault::LosesTheLast);
    assert!(
        matches!(lost, Failure::Silence { received, expected, .. }
            if received == MESSAGES - 1 && expected == MESSAGES),
        "{lost}"
    );
}

#[test]
fn a_message_that_comes_twice() {
    let again = failure(Fault::Repeats);
    assert!(
        matches!(again, Failure::Again { found: VICTIM, .. }),
        "{again}"
    );
}

#[test]
fn the_last_message_comes_twice() {
    let again = failure(Fault::RepeatsTheLast);
    // The second copy comes in one read with the first, or in place of the answer to the barrier.
    assert!(
        matches!(again, Failure::Again { .. } | Failure::Refused(_)),
        "{again}"
    );
}

#[test]
fn two_messages_in_the_wrong_order() {
    let swapped = failure(Fault::Swaps);
    assert!(
        matches!(
            swapped,
            Failure::Missing {
                expected: VICTIM,
                ..
            }
        ),
        "{swapped}"
    );
}

#[test]
fn a_changed_message() {
    let changed = failure(Fault::Changes);
    assert!(matches!(changed, Failure::Damaged("payload")), "{changed}");
}

#[test]
fn a_wrong_subject() {
    let renamed = failure(Fault::Renames);
    assert!(matches!(renamed, Failure::Damaged("name")), "{renamed}");
}

#[test]
fn headers_that_do_not_arrive() {
    let bare = measure(Fault::DropsHeaders, |flow| flow.headers = true).unwrap_err();
    assert!(matches!(bare, Failure::Damaged("headers")), "{bare}");
}

#[test]
fn a_missing_acknowledgement() {
    let short = measure(Fault::AcknowledgesOneLess, |flow| flow.acknowledged = true).unwrap_err();
    assert!(
        matches!(short, Failure::Silence { received, .. } if received == MESSAGES - 1),
        "{short}"
    );
}

#[test]
fn an_error_of_the_server() {
    let refused = failure(Fault::Refuses);
    assert!(matches!(refused, Failure::Refused(_)), "{refused}");
}

#[test]
fn a_closed_connection() {
    let closed = failure(Fault::Closes);
    assert!(matches!(closed, Failure::Io(_)), "{closed}");
}

#[test]
fn specifications_without_sense() {
    for change in [
        (|flow: &mut Flow| flow.payload = 15) as fn(&mut Flow),
        |flow| flow.messages = 0,
        |flow| flow.publishers = 0,
        |flow| (flow.subjects, flow.subscriptions) = (3, 2),
        |flow| (flow.subjects, flow.wildcards) = (2, true),
        |flow| (flow.subscribers, flow.queue) = (0, true),
        |flow| (flow.subjects, flow.per_write) = (3, Some(2)),
    ] {
        let wrong = measure(Fault::None, change).unwrap_err();
        assert!(matches!(wrong, Failure::BadSpecification(_)), "{wrong}");
    }
}
