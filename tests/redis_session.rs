//! A worker's session with Redis, under a virtual clock and with a Redis in memory. Random sessions are in
//! `tests/simulation` and in the target `session` of `tests/fuzz`.

mod common;

use common::fake_stream::{FakeSession, Turn, get, is_of, set, take};
use common::{SECOND, redis};
use dynamic_rate_limiter::config::Credentials;
use dynamic_rate_limiter::store::redis::breaker::{MAX_FAILURES, MAX_SHARD_REFUSALS};
use dynamic_rate_limiter::store::redis::command::{Answer, Command, Declined, Event, Overwrite};
use dynamic_rate_limiter::store::redis::failure::FailureKind;
use dynamic_rate_limiter::store::redis::outbox::StreamAction;
use dynamic_rate_limiter::store::redis::queue::{CommandId, window};
use dynamic_rate_limiter::store::redis::reply_clock::{MAX_TURNS, ReplyClock, TIMER_RESOLUTION};
use dynamic_rate_limiter::store::redis::session::{MAX_COMMANDS, SessionOutput};
use redis::{parse_commands, shown};
use std::ops::{Deref, DerefMut};
use std::time::Duration;

const MS: u64 = 1_000;

/// The timeout of a command in these tests.
const TIMEOUT: u64 = 20 * MS;

/// Commands in flight at a time.
const WINDOW: usize = 125;

/// The timeout of a probe that has to connect first.
const CONNECT_TIMEOUT: u64 = SECOND;

/// The answer to a command, or the failure.
type Outcome = (u32, Result<Answer, FailureKind>);

/// A session with its Redis.
struct TestSession(FakeSession);

impl Deref for TestSession {
    type Target = FakeSession;

    fn deref(&self) -> &FakeSession {
        &self.0
    }
}

impl DerefMut for TestSession {
    fn deref_mut(&mut self) -> &mut FakeSession {
        &mut self.0
    }
}

impl TestSession {
    fn new() -> Self {
        Self::with(Credentials::default())
    }

    fn with(credentials: Credentials) -> Self {
        Self(FakeSession::new(credentials, TIMEOUT, 7))
    }

    fn send(&mut self, id: u32, command: Command) -> CommandId {
        self.0.send(id, command).unwrap_or_else(|why| panic!("{id}: {why:?}"))
    }

    /// Takes as many tokens, each from a bucket of its own.
    fn send_many(&mut self, ids: std::ops::Range<usize>) -> Vec<CommandId> {
        ids.map(|id| self.send(id as u32, take(id as u32))).collect()
    }

    fn answers(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        while let Some((id, answer)) = self.next_reply() {
            if let Ok(answer) = &answer {
                assert!(is_of(id, answer), "{answer:?} is not the answer to {id}");
                assert!(!matches!(answer, Answer::Taken(taken) if !taken.admitted), "{id} has a token");
            }
            outcomes.push((id, answer.map_err(|failure| failure.reason)));
        }
        outcomes
    }

    /// The outcome of each command, without the answer.
    fn outcomes(&mut self) -> Vec<(u32, Result<(), FailureKind>)> {
        self.answers().into_iter().map(|(id, answer)| (id, answer.map(|_| ()))).collect()
    }

    /// Opens the breaker by losing the connection.
    fn break_the_connection(&mut self) {
        for id in 0..MAX_FAILURES {
            self.send(id, take(id));
            self.flush();
            self.hang_up();
            assert_eq!(self.outcomes(), [(id, Err(FailureKind::Disconnected))]);
        }
        assert!(!self.session.is_accepting());
    }

    /// Waits for the next probe; returns the time in milliseconds.
    fn wait_for_probe(&mut self) -> u64 {
        for ms in 1..=10_000 {
            self.pass(MS);
            if self.wants_turn() {
                let turn = self.flush();
                assert!(turn.has_opened && !turn.sent.is_empty(), "a probe needs a stream");
                return ms;
            }
        }
        panic!("no probe within ten seconds");
    }

    fn declined(&mut self) -> Option<Declined> {
        self.0.send(99, take(99)).err()
    }
}

fn words(turn: &Turn) -> Vec<String> {
    parse_commands(&turn.sent).iter().map(shown).collect()
}

#[test]
fn answers_come_in_the_order_of_the_commands() {
    let mut test = TestSession::new();
    for id in 0..30 {
        test.send(id, [take, get, set][id as usize % 3](id));
    }
    let turn = test.flush();
    assert!(turn.has_opened && !turn.has_closed);
    assert_eq!(words(&turn).len(), 30, "one message for all of them");
    // Byte by byte, as a network may deliver it.
    let replies = test.stream.take_replies();
    for byte in replies {
        test.receive(&[byte]);
    }
    let answers = test.answers();
    assert_eq!(answers.iter().map(|(id, _)| *id).collect::<Vec<_>>(), (0..30).collect::<Vec<_>>());
    assert!(answers.iter().all(|(_, answer)| answer.is_ok()), "{answers:?}");
    assert_eq!(test.next_event(), Some(Event::Connected));
    assert_eq!(test.next_event(), None);
    assert!(!test.is_waiting() && !test.wants_turn());
}

#[test]
fn a_missing_value_and_a_value_that_is_not_overwritten_are_answers() {
    let mut test = TestSession::new();
    test.send(1, Command::Get("nothing".into()));
    test.send(2, Command::Set("s".into(), "NORMAL", Overwrite::Never));
    test.send(3, Command::Set("s".into(), "DEGRADED", Overwrite::Never));
    let turn = test.flush();
    assert_eq!(words(&turn), ["GET nothing", "SET s NORMAL NX", "SET s DEGRADED NX"]);
    test.deliver();
    let replies: Vec<_> = std::iter::from_fn(|| test.next_reply()).collect();
    assert_eq!(replies, [(1, Ok(Answer::Text(None))), (2, Ok(Answer::Done)), (3, Ok(Answer::Done))]);
    assert_eq!(test.redis.strings["s"], b"NORMAL");
}

#[test]
fn a_command_fails_at_the_microsecond_of_its_deadline() {
    let mut test = TestSession::new();
    test.send(1, take(1));
    test.flush();
    test.pass(5 * MS);
    test.send(2, take(2));
    test.flush();
    test.pass(15 * MS - 1);
    assert_eq!(test.outcomes(), [], "a tick early");
    test.pass(1);
    assert_eq!(test.outcomes(), [(1, Err(FailureKind::Timeout))], "on time");
    test.pass(5 * MS);
    assert_eq!(test.outcomes(), [(2, Err(FailureKind::Timeout))]);
    test.pass(TIMEOUT);
    assert_eq!(test.outcomes(), [], "each command fails once");
    assert!(test.session.is_accepting(), "two timeouts without a reply between them are too few");
}

#[test]
fn a_busy_worker_reads_its_socket_before_commands_time_out() {
    // (time of the first tick, whether the time until then is charged to Redis)
    let tick_us = ReplyClock::new(Duration::from_micros(TIMEOUT)).interval().as_micros() as u64;
    let resolution_us = TIMER_RESOLUTION.as_micros() as u64;
    for (first_tick_us, is_charged) in [
        (tick_us, true),
        (tick_us + resolution_us, true),
        (tick_us + resolution_us + 1, false),
        (TIMEOUT, false),
        (SECOND, false),
    ] {
        let mut test = TestSession::new();
        test.send(1, take(1));
        test.flush();
        test.stall(first_tick_us);
        assert_eq!(test.outcomes(), [], "{first_tick_us} µs: no reply could be read");
        let charged_us = if is_charged { first_tick_us } else { TIMEOUT / u64::from(MAX_TURNS) };
        test.pass(TIMEOUT - charged_us - 1);
        assert_eq!(test.outcomes(), [], "{first_tick_us} µs: a tick early");
        test.pass(1);
        assert_eq!(test.outcomes(), [(1, Err(FailureKind::Timeout))], "{first_tick_us} µs");
    }
    let mut test = TestSession::new();
    for id in 1..=5 {
        test.send(id, take(id));
        test.flush();
        test.stall(10 * TIMEOUT);
        test.deliver();
        assert_eq!(test.outcomes(), [(id, Ok(()))]);
    }
    assert!(test.session.is_accepting());
}

#[test]
fn in_a_worker_that_stays_busy_commands_time_out_after_a_number_of_turns() {
    for (timeout_us, late_us) in [(TIMEOUT, 50 * MS), (TIMEOUT, 7 * MS), (SECOND, 600 * MS)] {
        let mut test = TestSession::new();
        test.0 = FakeSession::new(Credentials::default(), timeout_us, 7);
        test.send(1, take(1));
        test.flush();
        for turn in 1..MAX_TURNS {
            test.stall(late_us);
            assert_eq!(test.outcomes(), [], "turn {turn}");
        }
        test.stall(late_us);
        assert_eq!(test.outcomes(), [(1, Err(FailureKind::Timeout))], "{timeout_us} µs, {late_us} µs late");
    }
}

#[test]
fn a_probe_does_not_fail_because_its_worker_is_busy() {
    let mut test = TestSession::new();
    test.break_the_connection();
    test.wait_for_probe();
    for _ in 0..2 {
        test.stall(2 * CONNECT_TIMEOUT);
        test.deliver();
        test.flush();
    }
    test.deliver();
    assert!(test.session.is_accepting());
}

#[test]
fn in_a_busy_worker_long_timeouts_are_exceeded_only_by_the_turns_of_a_request() {
    // (duration of each turn, turns until the timeout)
    let cases = [(50 * MS, 20), (7 * MS, 143), (2 * SECOND, MAX_TURNS)];
    for (late_us, turns) in cases {
        let mut test = TestSession::new();
        test.break_the_connection();
        test.wait_for_probe();
        for turn in 1..turns {
            test.stall(late_us);
            assert!(!test.wants_turn(), "{late_us} µs late: the probe, turn {turn}");
        }
        test.stall(late_us);
        assert!(test.take_turn().has_closed, "{late_us} µs late: the probe times out");

        let mut test = TestSession::new();
        test.send_within(1, set(1), SECOND).expect("sent");
        test.flush();
        for turn in 1..turns {
            test.stall(late_us);
            assert_eq!(test.outcomes(), [], "{late_us} µs late: a change of health, turn {turn}");
        }
        test.stall(late_us);
        assert_eq!(test.outcomes(), [(1, Err(FailureKind::Timeout))], "{late_us} µs late");
    }
}

#[test]
fn a_late_reply_is_dropped_and_never_given_to_another_command() {
    let mut test = TestSession::new();
    test.send(1, take(1));
    test.send(2, get(2));
    test.flush();
    test.pass(TIMEOUT);
    assert_eq!(test.outcomes(), [(1, Err(FailureKind::Timeout)), (2, Err(FailureKind::Timeout))]);
    test.send(3, get(3));
    test.send(4, take(4));
    test.flush();
    assert!(test.is_waiting());
    test.deliver();
    assert_eq!(test.outcomes(), [(3, Ok(())), (4, Ok(()))]);
    assert!(!test.is_waiting() && !test.wants_turn(), "the stream is in step, and stays open");
}

#[test]
fn a_redis_without_the_script_receives_it_within_the_same_request() {
    let mut test = TestSession::new();
    test.redis.knows_script = false;
    test.send(1, take(1));
    test.send(2, get(2));
    test.send(3, take(3));
    assert_eq!(
        words(&test.flush()),
        [
            "EVALSHA <sha1> 1 bucket:1 2 1 1000 1 1 1",
            "GET text:2",
            "EVALSHA <sha1> 1 bucket:3 4 1 1000 2 1 1"
        ]
    );
    test.deliver();
    assert_eq!(test.outcomes(), [(2, Ok(()))]);
    let again = test.flush();
    assert_eq!(
        words(&again),
        ["EVAL <take> 1 bucket:1 2 1 1000 3 1 1", "EVAL <take> 1 bucket:3 4 1 1000 4 1 1"],
        "with new sequence numbers"
    );
    assert!(!again.has_opened && !again.has_closed);
    test.deliver();
    assert_eq!(test.outcomes(), [(1, Ok(())), (3, Ok(()))]);
    test.send(5, take(5));
    assert_eq!(words(&test.flush()), ["EVALSHA <sha1> 1 bucket:5 6 1 1000 5 1 1"], "known from now on");
}

#[test]
fn the_script_is_sent_once_and_within_the_original_deadline() {
    let noscript = b"-NOSCRIPT No matching script. Please use EVAL.\r\n";
    let mut test = TestSession::new();
    test.redis.knows_script = false;
    test.send(1, take(1));
    test.flush();
    test.pass(15 * MS);
    test.deliver();
    test.flush();
    test.stream.replies.clear();
    test.pass(5 * MS - 1);
    assert_eq!(test.outcomes(), [], "a tick early");
    test.pass(1);
    assert_eq!(
        test.outcomes(),
        [(1, Err(FailureKind::Timeout))],
        "the second command has no timeout of its own"
    );

    let mut test = TestSession::new();
    test.send(1, take(1));
    test.flush();
    test.receive(noscript);
    assert_eq!(words(&test.take_turn()).len(), 1);
    test.receive(noscript);
    assert_eq!(test.outcomes(), [(1, Err(FailureKind::Error))], "the script is sent once only");
    assert!(!test.wants_turn());

    let mut test = TestSession::new();
    test.send(1, take(1));
    test.flush();
    test.pass(TIMEOUT);
    assert_eq!(test.outcomes(), [(1, Err(FailureKind::Timeout))]);
    test.receive(noscript);
    assert!(!test.wants_turn(), "no token is taken for a command that has timed out");
}

#[test]
fn the_breaker_opens_after_three_failures_in_a_row() {
    type Fail = fn(&mut TestSession, u32);
    fn refuse(test: &mut TestSession, id: u32, error: &'static str) {
        test.redis.error = Some(error);
        test.send(id, take(id));
        test.exchange();
        test.redis.error = None;
    }
    let cases: [(&str, FailureKind, Fail); 9] = [
        ("no reply", FailureKind::Timeout, |test, id| {
            test.send(id, take(id));
            test.flush();
            test.pass(TIMEOUT);
        }),
        ("connection lost", FailureKind::Disconnected, |test, id| {
            test.send(id, take(id));
            test.flush();
            test.hang_up();
        }),
        ("garbage", FailureKind::Protocol, |test, id| {
            test.send(id, take(id));
            test.flush();
            test.receive(b"HTTP/1.1 200 OK\r\n\r\n");
        }),
        ("LOADING", FailureKind::Loading, |test, id| {
            refuse(test, id, "LOADING Redis is loading the dataset in memory")
        }),
        ("READONLY", FailureKind::ReadOnly, |test, id| {
            refuse(test, id, "READONLY You can't write against a read only replica.")
        }),
        ("OOM", FailureKind::OutOfMemory, |test, id| {
            refuse(test, id, "OOM command not allowed when used memory > 'maxmemory'.")
        }),
        ("NOAUTH", FailureKind::Auth, |test, id| refuse(test, id, "NOAUTH Authentication required.")),
        ("NOPERM", FailureKind::Auth, |test, id| refuse(test, id, "NOPERM this user has no permissions")),
        ("ERR", FailureKind::Error, |test, id| refuse(test, id, "ERR unknown command 'EVALSHA'")),
    ];
    for (what, reason, fail) in cases {
        let mut test = TestSession::new();
        let fail = |test: &mut TestSession, id: u32, is_accepting: bool| {
            fail(test, id);
            assert_eq!(test.outcomes(), [(id, Err(reason))], "{what}");
            assert_eq!(test.session.is_accepting(), is_accepting, "{what}, failure {id}");
        };
        fail(&mut test, 1, true);
        fail(&mut test, 2, true);
        test.send(50, take(50));
        test.exchange();
        assert_eq!(test.outcomes(), [(50, Ok(()))], "{what}: the count restarts");
        assert_eq!(test.next_event(), Some(Event::Connected), "{what}");
        fail(&mut test, 3, true);
        fail(&mut test, 4, true);
        fail(&mut test, 5, false);
        test.flush();
        assert!(!test.stream.is_open(), "{what}: the stream is closed");
        assert!(
            matches!(test.next_event(), Some(Event::Lost(failure)) if failure.reason == reason),
            "{what}"
        );
        assert_eq!(test.declined(), Some(Declined::BreakerOpen), "{what}");
        assert!(!test.wants_turn() && !test.is_waiting(), "{what}: no command is sent");
    }
}

#[test]
fn when_the_breaker_opens_all_waiting_commands_fail_at_once() {
    let mut test = TestSession::new();
    for id in 1..=3 {
        test.send(id, take(id));
        test.flush();
        test.pass(5 * MS);
    }
    test.pass(5 * MS);
    test.send(4, get(4));
    test.send(5, set(5));
    assert_eq!(test.outcomes(), [(1, Err(FailureKind::Timeout))]);
    test.pass(5 * MS);
    test.pass(5 * MS);
    let timed_out = [2, 3, 4, 5].map(|id| (id, Err(FailureKind::Timeout)));
    assert_eq!(test.outcomes(), timed_out, "the last two fail before their deadline");
    assert_eq!(test.declined(), Some(Declined::BreakerOpen));
    let turn = test.take_turn();
    assert_eq!(turn, Turn { has_closed: true, ..Turn::default() }, "unsent commands are not sent");
}

#[test]
fn the_timeout_of_a_command_begins_when_it_is_sent() {
    let mut test = TestSession::new();
    test.send(1, take(1));
    test.pass(10 * TIMEOUT);
    assert_eq!(test.outcomes(), [], "the command is not sent yet");
    test.flush();
    test.pass(TIMEOUT - 1);
    assert_eq!(test.outcomes(), []);
    test.pass(1);
    assert_eq!(test.outcomes(), [(1, Err(FailureKind::Timeout))]);
}

#[test]
fn an_error_about_one_key_does_not_affect_other_keys() {
    let mut test = TestSession::new();
    test.redis.of_another_type.insert("bucket:1".to_owned());
    for _ in 0..50 {
        test.send(1, take(1));
        test.exchange();
        assert_eq!(test.outcomes(), [(1, Err(FailureKind::Error))]);
        assert!(test.session.is_accepting());
    }
    test.send(2, take(2));
    test.exchange();
    assert_eq!(test.outcomes(), [(2, Ok(()))]);
}

#[test]
fn an_unhealthy_shard_opens_the_breaker_only_when_no_other_shard_responds() {
    let errors = [
        ("MOVED 1234 10.0.0.1:6379", FailureKind::Moved),
        ("CLUSTERDOWN Hash slot not served", FailureKind::Moved),
        ("upstream failure", FailureKind::Disconnected),
        ("no upstream host", FailureKind::Disconnected),
    ];
    for (error, reason) in errors {
        let mut test = TestSession::new();
        let refused = |test: &mut TestSession| {
            test.redis.error = Some(error);
            test.send(1, take(1));
            test.exchange();
            test.redis.error = None;
            assert_eq!(test.outcomes(), [(1, Err(reason))]);
        };
        for _ in 0..10 * MAX_SHARD_REFUSALS {
            refused(&mut test);
            test.send(2, take(0));
            test.exchange();
            assert_eq!(test.next_reply().map(|(id, _)| id), Some(2));
            assert!(test.session.is_accepting(), "{error}: others are served");
        }
        for count in 1..=MAX_SHARD_REFUSALS {
            refused(&mut test);
            assert_eq!(test.session.is_accepting(), count < MAX_SHARD_REFUSALS, "{error}: {count} in a row");
        }
    }
}

#[test]
fn successful_reads_from_a_replica_do_not_reset_the_failure_count() {
    let mut test = TestSession::new();
    for id in 1..=MAX_FAILURES {
        test.send(id, get(id));
        test.exchange();
        test.redis.error = Some("READONLY You can't write against a read only replica.");
        test.send(id, take(id));
        test.exchange();
        test.redis.error = None;
        assert_eq!(test.outcomes(), [(id, Ok(())), (id, Err(FailureKind::ReadOnly))]);
    }
    assert!(!test.session.is_accepting(), "reads in between do not count");
}

#[test]
fn an_open_breaker_probes_with_jittered_pauses_of_at_most_two_seconds() {
    let mut first_pauses = Vec::new();
    for seed in 0..50 {
        let mut test = TestSession::new();
        test.0 = FakeSession::new(Credentials::default(), TIMEOUT, seed);
        test.break_the_connection();
        for attempt in 0..8_u32 {
            let longest_ms = (100 << attempt).min(2_000);
            let pause_ms = test.wait_for_probe();
            assert!(
                (longest_ms * 3 / 4..=longest_ms).contains(&pause_ms),
                "pause {attempt}: {pause_ms} ms of {longest_ms} ms"
            );
            if attempt == 0 {
                first_pauses.push(pause_ms);
            }
            assert_eq!(test.declined(), Some(Declined::BreakerOpen), "no command waits for a probe");
            test.hang_up();
            assert_eq!(test.declined(), Some(Declined::BreakerOpen));
        }
        assert_eq!(test.outcomes(), []);
        assert_eq!(test.next_event().map(|event| matches!(event, Event::Lost(_))), Some(true));
        assert_eq!(test.next_event(), None, "a repeated loss is no event");
    }
    first_pauses.sort_unstable();
    first_pauses.dedup();
    assert!(first_pauses.len() > 10, "workers probe at different times: {first_pauses:?}");
}

#[test]
fn a_probe_has_a_long_timeout_to_connect_and_then_a_short_one() {
    // (time of the first and of the second reply, whether Redis is then healthy)
    let cases = [
        (0, 0, true),
        (CONNECT_TIMEOUT - 1, TIMEOUT - 1, true),
        (CONNECT_TIMEOUT, 0, false),
        (0, TIMEOUT, false),
        (CONNECT_TIMEOUT - 1, TIMEOUT, false),
    ];
    for (connect_us, answer_us, is_healthy) in cases {
        let what = format!("{connect_us} and {answer_us} µs");
        let mut test = TestSession::new();
        test.break_the_connection();
        test.next_event();
        test.wait_for_probe();
        test.pass(connect_us);
        test.deliver();
        if !test.flush().has_closed {
            assert!(!test.session.is_accepting(), "{what}: one reply is not enough");
            test.pass(answer_us);
            test.deliver();
        }
        assert_eq!(test.session.is_accepting(), is_healthy, "{what}");
        assert_eq!(test.next_event(), is_healthy.then_some(Event::Connected), "{what}");
        assert_eq!(test.outcomes(), [], "{what}: no command was sent");
        if is_healthy {
            test.send(50, take(50));
            let turn = test.flush();
            assert!(!turn.has_opened && !turn.has_closed, "{what}: the probe's stream is used");
            test.deliver();
            assert_eq!(test.outcomes(), [(50, Ok(()))], "{what}");
        }
    }
}

#[test]
fn a_probe_takes_a_token_from_its_own_bucket_and_loads_the_script() {
    let mut test = TestSession::new();
    test.break_the_connection();
    test.redis.take_commands();
    test.redis.knows_script = false;
    test.wait_for_probe();
    test.exchange();
    assert!(test.session.is_accepting());
    let commands = test.redis.take_commands();
    let probe = "1 #probe 10 1000000000000 1000";
    assert_eq!(
        commands.iter().map(|command| command.rsplitn(4, ' ').last().map(str::to_owned)).collect::<Vec<_>>(),
        ["EVALSHA <sha1>", "EVAL <take>", "EVALSHA <sha1>"].map(|start| Some(format!("{start} {probe}")))
    );
}

#[test]
fn a_refused_probe_keeps_the_breaker_open() {
    for error in ["READONLY replica", "LOADING", "OOM", "MOVED 1 a:1", "WRONGTYPE bucket", "ERR"] {
        let mut test = TestSession::new();
        test.break_the_connection();
        test.redis.error = Some(error);
        test.wait_for_probe();
        test.exchange();
        assert!(!test.session.is_accepting(), "{error}");
        test.redis.error = None;
        test.wait_for_probe();
        test.exchange();
        assert!(test.session.is_accepting(), "{error}: the next probe succeeds");
    }
}

#[test]
fn pauses_are_short_again_after_ten_seconds_without_failures() {
    for (quiet_us, is_short) in [(SECOND, false), (10 * SECOND, false), (10 * SECOND + 1, true)] {
        let mut test = TestSession::new();
        test.break_the_connection();
        for _ in 0..5 {
            test.wait_for_probe();
            test.hang_up();
        }
        test.wait_for_probe();
        test.exchange();
        assert!(test.session.is_accepting());
        test.pass(quiet_us);
        test.break_the_connection();
        assert_eq!(test.wait_for_probe() <= 100, is_short, "after {quiet_us} µs");
    }
}

#[test]
fn each_new_stream_begins_with_the_password() {
    let text = |text: &str| Some(text.as_bytes().to_vec());
    let cases = [(None, "AUTH canary-password"), (Some("limiter"), "AUTH limiter canary-password")];
    for (user, wanted) in cases {
        let credentials = Credentials { username: user.and_then(text), password: text("canary-password") };
        assert!(!format!("{credentials:?}").contains("canary"), "{credentials:?}");
        let mut test = TestSession::with(credentials);
        test.redis.password = Some((user, "canary-password"));
        for id in 0..3 {
            test.send(id, take(id));
            let turn = test.flush();
            assert!(turn.has_opened);
            assert_eq!(words(&turn)[0], wanted);
            assert_eq!(words(&turn).len(), 2);
            test.deliver();
            test.send(10 + id, get(10 + id));
            assert_eq!(words(&test.flush()), [format!("GET text:{}", 10 + id)], "and sent once");
            test.deliver();
            assert_eq!(test.outcomes(), [(id, Ok(())), (10 + id, Ok(()))]);
            test.hang_up();
        }
        test.break_the_connection();
        test.redis.take_commands();
        test.wait_for_probe();
        test.exchange();
        assert_eq!(test.redis.take_commands()[0], wanted, "on a probe's stream too");
        assert!(test.session.is_accepting());
    }
    let mut test = TestSession::with(Credentials { username: text("alone"), password: None });
    test.send(1, take(1));
    assert_eq!(words(&test.flush()).len(), 1, "a user without a password is ignored");
}

#[test]
fn a_wrong_password_opens_the_breaker_at_once() {
    let credentials = Credentials { username: None, password: Some(b"wrong".to_vec()) };
    let mut test = TestSession::with(credentials);
    test.redis.password = Some((None, "right"));
    for id in 1..=5 {
        test.send(id, take(id));
    }
    test.flush();
    test.deliver();
    assert_eq!(test.outcomes(), [1, 2, 3, 4, 5].map(|id| (id, Err(FailureKind::Auth))));
    assert_eq!(test.declined(), Some(Declined::BreakerOpen));
    let Some(Event::Lost(failure)) = test.next_event() else { panic!("no event") };
    assert!(failure.detail.contains("WRONGPASS"), "{failure:?}");
    assert!(test.take_turn().has_closed);
    test.redis.password = Some((None, "wrong"));
    test.wait_for_probe();
    test.exchange();
    assert!(test.session.is_accepting(), "when the password is right");
}

#[test]
fn a_stream_out_of_step_is_closed_and_each_waiting_command_fails_once() {
    let taken = |sequence: u32, tokens: &str| {
        let text = format!("{sequence} 1 {tokens}.000000000000 1700000000.000000");
        redis::bulk(text.as_bytes())
    };
    let first = taken(1, "1");
    // (bytes in place of the first reply)
    let cases: [(&str, Vec<u8>); 15] = [
        ("a number", b":1\r\n".to_vec()),
        ("OK", b"+OK\r\n".to_vec()),
        ("a missing value", b"$-1\r\n".to_vec()),
        ("the answer to the next command", taken(2, "2")),
        ("an answer to no command", taken(77, "1")),
        ("another text", b"$5\r\nhello\r\n".to_vec()),
        ("an empty text", b"$0\r\n\r\n".to_vec()),
        ("half an answer as a whole one", b"$4\r\n1 1 \r\n".to_vec()),
        ("an array", b"*1\r\n+OK\r\n".to_vec()),
        ("RESP3", b"_\r\n".to_vec()),
        ("a push", b">2\r\n+invalidate\r\n*0\r\n".to_vec()),
        ("HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("a text beyond bounds", b"$999999999\r\n".to_vec()),
        ("a line without end", vec![b'+'; 5_000]),
        ("a zero byte", b"\0".to_vec()),
    ];
    for (what, bytes) in cases {
        let mut test = TestSession::new();
        for id in 1..=3 {
            test.send(id, take(id));
        }
        test.send(4, get(4));
        test.send(5, set(5));
        test.flush();
        let rest = test.stream.take_replies();
        test.receive(&[bytes.as_slice(), &rest].concat());
        let all = [1, 2, 3, 4, 5].map(|id| (id, Err(FailureKind::Protocol)));
        assert_eq!(test.outcomes(), all, "{what}");
        assert_eq!(
            test.take_turn(),
            Turn { has_closed: true, ..Turn::default() },
            "{what}: the stream is closed"
        );
        test.receive(&first);
        test.close("late");
        assert_eq!(test.outcomes(), [], "{what}: later replies are ignored");
        assert!(!test.wants_turn(), "{what}");
        test.send(6, take(6));
        let turn = test.flush();
        assert!(turn.has_opened && words(&turn).len() == 1, "{what}: the next command opens another");
        test.deliver();
        assert_eq!(test.outcomes(), [(6, Ok(()))], "{what}");
    }
}

#[test]
fn each_kind_of_command_accepts_its_own_kinds_of_answers() {
    let taken = redis::bulk(b"1 1 1.000000000000 1700000000.000000");
    let kinds: [&[u8]; 5] = [&taken, b"$1\r\n1\r\n", b"$-1\r\n", b"+OK\r\n", b":1\r\n"];
    // The kinds above that the command accepts.
    let cases: [(&str, Command, [bool; 5]); 3] = [
        ("take", take(1), [true, false, false, false, false]),
        ("get", get(1), [true, true, true, false, false]),
        ("set", set(1), [false, false, true, true, false]),
    ];
    for (what, command, fits) in cases {
        for (kind, fits) in kinds.into_iter().zip(fits) {
            let mut test = TestSession::new();
            test.send(1, command.clone());
            test.flush();
            test.receive(kind);
            let (id, answer) = test.next_reply().expect("an answer");
            let failure = answer.err().map(|failure| failure.reason);
            let kind = String::from_utf8_lossy(kind);
            assert_eq!((id, failure), (1, (!fits).then_some(FailureKind::Protocol)), "{what}: {kind:?}");
            assert_eq!(test.take_turn().has_closed, !fits, "{what}: {kind:?}");
        }
    }
}

#[test]
fn an_unexpected_reply_closes_the_stream() {
    let mut test = TestSession::new();
    test.send(1, take(1));
    test.exchange();
    assert_eq!(test.outcomes(), [(1, Ok(()))]);
    test.receive(b"+OK\r\n");
    assert!(test.take_turn().has_closed);
    // A doubled reply: the first one is valid, and the second one closes the stream.
    test.send(2, get(2));
    test.flush();
    let reply = test.stream.replies.pop_front().expect("a reply");
    test.receive(&[reply.as_slice(), &reply].concat());
    assert_eq!(test.outcomes(), [(2, Ok(()))]);
    assert!(test.take_turn().has_closed);
}

#[test]
fn replies_on_a_stream_that_will_be_closed_are_ignored() {
    let mut test = TestSession::new();
    test.send(1, take(1));
    test.send(2, get(2));
    test.flush();
    let replies = test.stream.take_replies();
    test.receive(b"*0\r\n");
    assert_eq!(test.outcomes(), [(1, Err(FailureKind::Protocol)), (2, Err(FailureKind::Protocol))]);
    // The owner of the stream has not closed it yet, and new commands wait for the next one.
    test.send(3, take(3));
    test.send(4, get(4));
    test.receive(&replies);
    test.receive(b"*0\r\n");
    test.close("the old one");
    assert_eq!(test.outcomes(), [], "its replies are not for the new commands");
    let turn = test.flush();
    assert!(turn.has_opened);
    assert_eq!(words(&turn).len(), 2);
    test.deliver();
    assert_eq!(test.outcomes(), [(3, Ok(())), (4, Ok(()))]);
    // An incomplete reply is dropped with its stream.
    test.send(5, take(5));
    test.flush();
    test.receive(b"$40\r\nhalf");
    test.hang_up();
    assert_eq!(test.outcomes(), [(5, Err(FailureKind::Disconnected))]);
    test.send(6, take(6));
    test.exchange();
    assert_eq!(test.outcomes(), [(6, Ok(()))]);
}

#[test]
fn a_stream_that_closes_while_no_command_waits_is_no_failure() {
    let mut test = TestSession::new();
    for id in 0..10 * MAX_FAILURES {
        test.send(id, take(id));
        assert!(test.flush().has_opened, "the command opens another");
        test.deliver();
        assert_eq!(test.outcomes(), [(id, Ok(()))]);
        test.hang_up();
        test.pass(SECOND);
        assert!(test.session.is_accepting() && !test.wants_turn());
    }
    assert_eq!(test.next_event(), Some(Event::Connected));
    assert_eq!(test.next_event(), None);
    for id in 1..MAX_FAILURES {
        test.send(100 + id, take(100 + id));
        test.flush();
        test.hang_up();
        assert_eq!(test.outcomes(), [(100 + id, Err(FailureKind::Disconnected))]);
        assert!(test.session.is_accepting(), "failure {id} is too few");
    }
    test.close("twice");
    test.receive(b"*0\r\n");
    assert!(test.session.is_accepting() && !test.wants_turn(), "there is no stream to close");
}

#[test]
fn a_stream_that_cannot_be_opened_fails_the_commands_that_wait_for_it() {
    let mut test = TestSession::new();
    for id in 1..=3 {
        test.send(id, take(id));
        test.send(10 + id, get(10 + id));
        assert!(test.take_turn().has_opened);
        test.close("there is no cluster");
        assert_eq!(test.outcomes(), [id, 10 + id].map(|id| (id, Err(FailureKind::Disconnected))));
        assert!(!test.wants_turn(), "there is no stream to close");
    }
    let Some(Event::Lost(failure)) = test.next_event() else { panic!("no event") };
    assert_eq!(failure.detail, "there is no cluster");
}

#[test]
fn commands_beyond_the_window_wait_and_are_sent_in_order_as_replies_come() {
    let mut test = TestSession::with(Credentials { username: None, password: Some(b"secret".to_vec()) });
    test.redis.password = Some((None, "secret"));
    test.send_many(0..2 * WINDOW + 1);
    assert_eq!(words(&test.flush()).len(), WINDOW, "AUTH is one of them");
    let reply = test.stream.replies.pop_front().expect("a reply");
    test.receive(&reply);
    assert_eq!(words(&test.flush()).len(), 1, "one for each reply");
    test.exchange();
    let answered = test.outcomes();
    assert_eq!(answered, (0..2 * WINDOW as u32 + 1).map(|id| (id, Ok(()))).collect::<Vec<_>>());
    assert!(!test.is_waiting());

    // A Redis without the script receives it once for each command of a window.
    let mut test = TestSession::new();
    test.redis.knows_script = false;
    test.send_many(0..3 * WINDOW);
    test.exchange();
    assert_eq!(test.outcomes().len(), 3 * WINDOW);
}

#[test]
fn the_window_grows_with_the_timeout_within_its_bounds() {
    let windows = [MS, 2_720, 20 * MS, 100 * MS, 163_840, 10 * SECOND].map(Duration::from_micros).map(window);
    assert_eq!(windows, [16, 17, WINDOW, 625, 1_024, 1_024]);
}

#[test]
fn commands_about_health_do_not_wait() {
    let mut test = TestSession::new();
    test.send_many(0..2 * WINDOW);
    test.flush();
    test.send(1_000, get(1_000));
    test.send(1_001, set(1_001));
    assert_eq!(words(&test.flush()), ["GET text:1000", "SET set:1001 DEGRADED"]);
    test.exchange();
    assert_eq!(test.outcomes().len(), 2 * WINDOW + 2);
}

#[test]
fn no_queued_command_times_out_while_redis_replies_to_each_window() {
    let mut test = TestSession::new();
    let windows = 20;
    test.send_many(0..windows * WINDOW);
    for _ in 0..windows {
        test.flush();
        test.pass(TIMEOUT - 1);
        test.deliver();
    }
    let outcomes = test.outcomes();
    assert_eq!(outcomes.len(), windows * WINDOW);
    assert!(outcomes.iter().all(|(_, outcome)| outcome.is_ok()));
}

#[test]
fn queued_commands_fail_together_when_redis_does_not_reply() {
    let mut test = TestSession::new();
    test.send_many(0..3 * WINDOW);
    test.flush();
    test.pass(5 * MS);
    let reply = test.stream.replies.pop_front().expect("a reply");
    test.receive(&reply);
    assert_eq!(test.outcomes(), [(0, Ok(()))]);
    test.flush();
    test.pass(15 * MS);
    let late = test.outcomes();
    assert_eq!(late.len(), WINDOW - 1, "the deadline of the first commands has passed");
    test.pass(5 * MS - 1);
    assert_eq!(test.outcomes(), [], "a tick early");
    test.pass(1);
    let late: Vec<_> = (WINDOW as u32..3 * WINDOW as u32).map(|id| (id, Err(FailureKind::Timeout))).collect();
    assert_eq!(test.outcomes(), late, "the command sent last, and all queued ones");
    assert!(test.session.is_accepting(), "these are two failures");

    // A new command waits behind the outstanding replies, with the usual timeout.
    let began_us = test.now_us;
    test.send(1, take(1));
    test.pass(TIMEOUT - 1);
    assert_eq!(test.outcomes(), []);
    test.pass(1);
    assert_eq!(test.outcomes(), [(1, Err(FailureKind::Timeout))]);
    assert_eq!(test.now_us - began_us, TIMEOUT);
    assert_eq!(test.next_event(), Some(Event::Connected));
    assert!(matches!(test.next_event(), Some(Event::Lost(_))), "the third failure");
}

#[test]
fn in_a_busy_worker_queued_commands_do_not_time_out() {
    let mut test = TestSession::new();
    test.send_many(0..4 * WINDOW);
    for _ in 0..4 {
        test.flush();
        test.stall(10 * TIMEOUT);
        test.deliver();
    }
    let outcomes = test.outcomes();
    assert_eq!(outcomes.len(), 4 * WINDOW);
    assert!(outcomes.iter().all(|(_, outcome)| outcome.is_ok()));
    // The turn that sends comes late; the timeout of queued commands begins with it.
    test.send_many(0..2 * WINDOW);
    test.pass(TIMEOUT);
    test.flush();
    test.pass(TIMEOUT - 1);
    assert_eq!(test.outcomes(), []);
    test.pass(1);
    assert_eq!(test.outcomes().len(), 2 * WINDOW);
}

#[test]
fn queued_commands_fail_when_the_connection_is_lost() {
    let mut test = TestSession::new();
    test.send_many(0..3 * WINDOW);
    test.flush();
    test.hang_up();
    let lost: Vec<_> = (0..3 * WINDOW as u32).map(|id| (id, Err(FailureKind::Disconnected))).collect();
    assert_eq!(test.outcomes(), lost);
    test.send(1, take(1));
    assert_eq!(words(&test.flush()).len(), 1, "no earlier command is left");
}

#[test]
fn a_queued_command_that_is_cancelled_is_never_sent_nor_answered() {
    let mut test = TestSession::new();
    let commands = test.send_many(0..2 * WINDOW);
    assert!(!test.cancel(commands[0]), "the first is in flight, and cannot be cancelled");
    (WINDOW..2 * WINDOW - 1).for_each(|id| assert!(test.cancel(commands[id])));
    test.exchange();
    let answered: Vec<_> = test.outcomes().into_iter().map(|(id, _)| id as usize).collect();
    assert_eq!(answered, (0..WINDOW).chain([2 * WINDOW - 1]).collect::<Vec<_>>());
    assert!(!test.redis.buckets.contains_key(&format!("bucket:{WINDOW}")));
    test.cancel(commands[0]);
    assert!(!test.is_waiting() && !test.session.has_output());
}

#[test]
fn the_number_of_waiting_commands_is_bounded() {
    let mut test = TestSession::new();
    let commands = test.send_many(100..100 + MAX_COMMANDS);
    assert_eq!(test.declined(), Some(Declined::QueueFull));
    assert!(test.session.is_accepting(), "that is no failure");
    test.cancel(commands[MAX_COMMANDS - 1]);
    assert_eq!(test.declined(), None, "there is room for one");
    assert_eq!(test.declined(), Some(Declined::QueueFull));
    for _ in 0..MAX_COMMANDS.div_ceil(WINDOW) {
        test.session.flush();
        while let Some(SessionOutput::Stream(action)) = test.session.poll_output() {
            let is_last = matches!(action, StreamAction::Send(_));
            test.carry_out(action);
            if is_last {
                break;
            }
        }
        test.deliver();
    }
    assert!(!test.is_waiting() && test.session.has_output(), "replies that were not polled keep their place");
    assert_eq!(test.declined(), Some(Declined::QueueFull));
    assert!(test.outcomes().iter().all(|(_, outcome)| outcome.is_ok()));
    assert_eq!(test.declined(), None);
}

#[test]
fn the_detail_of_an_error_is_short_and_printable() {
    let mut test = TestSession::new();
    test.send(1, take(1));
    test.flush();
    let error = [b"-ERR \x1b[2J\xff\n", "é".repeat(1_000).as_bytes(), b"\r\n"].concat();
    test.receive(&error);
    let Some((1, Err(failure))) = test.next_reply() else { panic!("no failure") };
    assert!(failure.detail.starts_with("ERR .[2J..."), "{}", failure.detail);
    assert!(failure.detail.len() <= 120 && failure.detail.is_ascii());
}

#[test]
fn an_idle_session_does_nothing() {
    let mut test = TestSession::new();
    for _ in 0..100 {
        test.pass(SECOND);
    }
    assert!(!test.wants_turn() && !test.is_waiting());
    assert_eq!(test.next_event(), None);
}
