//! The state of requests from arrival to end.

use dynamic_rate_limiter::admin::PendingChange;
use dynamic_rate_limiter::identity::Network;
use dynamic_rate_limiter::requests::{Arrived, RequestState, Requests};
use dynamic_rate_limiter::store::redis::command::CommandId;
use dynamic_rate_limiter::time::StoreTime;

/// How long a body may take, in microseconds.
const BODY_TIMEOUT_US: u64 = 10_000_000;

fn change() -> PendingChange {
    PendingChange { network: Network::of_source(b"192.0.2.1:1", 64) }
}

fn at(at_us: u64) -> Arrived {
    Arrived { at: StoreTime::from_micros(at_us), has_body: true }
}

#[test]
fn a_request_is_in_one_state_at_a_time_and_ends_once() {
    let mut requests = Requests::default();
    requests.wait_for_documents(1, at(10));
    requests.wait_for_redis(1, at(10), CommandId(5));
    assert!(matches!(requests.state(1), Some(RequestState::WaitsForRedis(CommandId(5)))));
    assert_eq!(requests.oldest_waiting_for_documents(10), [0_u32; 0], "it does not wait for both");
    let ended = requests.end(1).expect("a request that has not ended");
    assert_eq!(ended.arrived, at(10), "the arrival does not change");
    assert!(requests.end(1).is_none() && requests.state(1).is_none());
}

#[test]
fn requests_that_wait_for_documents_are_listed_oldest_first_up_to_a_bound() {
    let mut requests = Requests::default();
    for id in [3, 1, 2] {
        requests.wait_for_documents(id, at(0));
    }
    requests.wait_for_redis(4, at(0), CommandId(1));
    assert_eq!(requests.oldest_waiting_for_documents(2), [1, 2]);
    assert_eq!(requests.oldest_waiting_for_documents(9), [1, 2, 3]);
}

#[test]
fn a_body_has_ten_seconds_unless_it_has_arrived_or_the_request_has_ended() {
    let mut requests = Requests::default();
    for id in [1, 2, 3] {
        requests.wait_for_body(id, at(id.into()), change()).expect("room");
        requests.keep_body(id, b"{".to_vec());
    }
    requests.end(2);
    assert_eq!(
        requests.end_without_body(StoreTime::from_micros(BODY_TIMEOUT_US)),
        None,
        "one microsecond early"
    );
    assert_eq!(
        requests.end_without_body(StoreTime::from_micros(BODY_TIMEOUT_US + 1)),
        Some(1),
        "just in time"
    );
    assert_eq!(
        requests.end_without_body(StoreTime::from_micros(BODY_TIMEOUT_US + 2)),
        None,
        "the second has ended"
    );
    let ended = requests.end(3).expect("the third waits");
    assert!(matches!(ended.state, RequestState::WaitsForBody(_, body) if body == b"{"));
    assert_eq!(requests.end_without_body(StoreTime::MAX), None);
}
