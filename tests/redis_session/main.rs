//! A worker's session with Redis, under a virtual clock and with a Redis in memory. Random sessions are in
//! `tests/simulation` and in the target `session` of `tests/fuzz`.

mod breaker;
mod credentials;
mod probes;
mod queue;
mod replies;
mod script;
mod streams;
mod timeouts;

use std::time::Duration;

use dynamic_rate_limiter::bucket::PICO_PER_TOKEN;
use dynamic_rate_limiter::credentials::Credentials;
use dynamic_rate_limiter::store::redis::breaker::{MAX_FAILURES, MAX_SHARD_ERRORS};
use dynamic_rate_limiter::store::redis::command::{
    Command, CommandId, Declined, Event, Overwrite, ReplyValue,
};
use dynamic_rate_limiter::store::redis::failure::FailureKind;
use dynamic_rate_limiter::store::redis::outbox::StreamAction;
use dynamic_rate_limiter::store::redis::queue::max_on_wire;
use dynamic_rate_limiter::store::redis::reply_clock::{MAX_TURNS, ReplyClock, TIMER_RESOLUTION};
use dynamic_rate_limiter::store::redis::session::{MAX_COMMANDS, SessionOutput};
use harness::SECOND;
use harness::fake_redis::{self, READ_ONLY, parse_commands, shown};
use harness::fake_stream::{FakeSession, Outcome, Turn, get, set, take};

const MS: u64 = 1_000;

/// The timeout of a command in these tests.
const TIMEOUT: u64 = 20 * MS;

/// Commands in flight at a time.
const MAX_ON_WIRE: u32 = 125;

/// The timeout of a probe that has to connect first.
const CONNECT_TIMEOUT: u64 = SECOND;

fn session() -> FakeSession {
    FakeSession::new(Credentials::default(), TIMEOUT, 7)
}

/// A session, and a Redis that asks for these credentials.
fn session_with(username: Option<&'static str>, password: &'static str) -> FakeSession {
    let credentials = Credentials { username: username.map(Into::into), password: Some(password.into()) };
    let mut test = FakeSession::new(credentials, TIMEOUT, 7);
    test.redis.password = Some((username, password));
    test
}

/// Takes as many tokens, each from a bucket of its own.
fn send_many(test: &mut FakeSession, ids: std::ops::Range<u32>) -> Vec<CommandId> {
    ids.map(|id| test.send(id, take(id))).collect()
}

/// Why no command is accepted.
fn declined(test: &mut FakeSession) -> Option<Declined> {
    test.try_send(99, take(99)).err()
}

/// The commands of a turn, as text.
fn words(turn: &Turn) -> Vec<String> {
    parse_commands(&turn.sent).iter().map(shown).collect()
}

fn ok(ids: impl IntoIterator<Item = u32>) -> Vec<Outcome> {
    ids.into_iter().map(|id| (id, Ok(()))).collect()
}

fn failed(reason: FailureKind, ids: impl IntoIterator<Item = u32>) -> Vec<Outcome> {
    ids.into_iter().map(|id| (id, Err(reason))).collect()
}

/// Asserts that these commands time out after this time, and no microsecond earlier.
#[track_caller]
fn assert_timeout(test: &mut FakeSession, after_us: u64, ids: impl IntoIterator<Item = u32>) {
    test.pass(after_us - 1);
    assert_eq!(test.outcomes(), [], "a tick early, at {} µs", test.now_us);
    test.pass(1);
    assert_eq!(test.outcomes(), failed(FailureKind::Timeout, ids), "on time, at {} µs", test.now_us);
}

/// Asserts that the first command, which is sent again after this reply, times out when it would have without that.
#[track_caller]
fn assert_sent_again_within_the_deadline(test: &mut FakeSession) {
    test.start(1, take(1));
    test.pass(15 * MS);
    test.deliver();
    test.flush();
    test.stream.replies.clear();
    // The second command has no timeout of its own.
    assert_timeout(test, 5 * MS, [1]);
}

/// Opens the breaker by losing the connection.
fn break_the_connection(test: &mut FakeSession) {
    for id in 0..MAX_FAILURES {
        test.start(id, take(id));
        test.hang_up();
        assert_eq!(test.outcomes(), failed(FailureKind::Disconnected, [id]));
    }
    assert!(!test.session.is_accepting());
}

/// Waits for the next probe; returns the time in milliseconds.
fn wait_for_probe(test: &mut FakeSession) -> u64 {
    for ms in 1..=10_000 {
        test.pass(MS);
        if test.wants_turn() {
            let turn = test.flush();
            assert!(turn.has_opened && !turn.sent.is_empty(), "a probe needs a stream");
            return ms;
        }
    }
    panic!("no probe within ten seconds");
}

/// The next probe, which succeeds.
fn recover(test: &mut FakeSession) {
    wait_for_probe(test);
    test.exchange();
    assert!(test.session.is_accepting(), "the probe succeeds");
}
