//! A worker's conversation with Redis, under a virtual clock and with a Redis in memory: case by case. At random it is in
//! `tests/simulation`, and as the target `session` in `tests/fuzz`.

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

/// How long a command has for its reply here.
const TIMEOUT: u64 = 20 * MS;

/// How many commands are on the wire at a time.
const WINDOW: usize = 125;

/// How long a probe has that has to connect first.
const CONNECT_TIMEOUT: u64 = SECOND;

/// An answer, or why there is none.
type Told = (u32, Result<Answer, FailureKind>);

/// A session with its Redis, and what these tests want to know of it.
struct Talk(FakeSession);

impl Deref for Talk {
    type Target = FakeSession;

    fn deref(&self) -> &FakeSession {
        &self.0
    }
}

impl DerefMut for Talk {
    fn deref_mut(&mut self) -> &mut FakeSession {
        &mut self.0
    }
}

impl Talk {
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

    fn answers(&mut self) -> Vec<Told> {
        let mut told = Vec::new();
        while let Some((id, answer)) = self.next_reply() {
            if let Ok(answer) = &answer {
                assert!(is_of(id, answer), "{answer:?} is not the answer to {id}");
                assert!(!matches!(answer, Answer::Taken(taken) if !taken.admitted), "{id} has a token");
            }
            told.push((id, answer.map_err(|failure| failure.reason)));
        }
        told
    }

    /// Who was answered, and how it went.
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

    /// Waits for the next probe and returns how long that took, in milliseconds.
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
fn answers_come_in_the_order_of_the_commands_each_to_whoever_asked() {
    let mut talk = Talk::new();
    for id in 0..30 {
        talk.send(id, [take, get, set][id as usize % 3](id));
    }
    let turn = talk.flush();
    assert!(turn.has_opened && !turn.has_closed);
    assert_eq!(words(&turn).len(), 30, "one message for all of them");
    // Byte by byte, as a network may have it.
    let replies = talk.stream.take_replies();
    for byte in replies {
        talk.receive(&[byte]);
    }
    let answers = talk.answers();
    assert_eq!(answers.iter().map(|(id, _)| *id).collect::<Vec<_>>(), (0..30).collect::<Vec<_>>());
    assert!(answers.iter().all(|(_, answer)| answer.is_ok()), "{answers:?}");
    assert_eq!(talk.next_event(), Some(Event::Connected));
    assert_eq!(talk.next_event(), None);
    assert!(!talk.is_waiting() && !talk.wants_turn());
}

#[test]
fn what_is_not_there_and_what_is_not_written_over_are_answers_too() {
    let mut talk = Talk::new();
    talk.send(1, Command::Get("nothing".into()));
    talk.send(2, Command::Set("s".into(), "NORMAL", Overwrite::Never));
    talk.send(3, Command::Set("s".into(), "DEGRADED", Overwrite::Never));
    let turn = talk.flush();
    assert_eq!(words(&turn), ["GET nothing", "SET s NORMAL NX", "SET s DEGRADED NX"]);
    talk.deliver();
    let replies: Vec<_> = std::iter::from_fn(|| talk.next_reply()).collect();
    assert_eq!(replies, [(1, Ok(Answer::Text(None))), (2, Ok(Answer::Done)), (3, Ok(Answer::Done))]);
    assert_eq!(talk.redis.strings["s"], b"NORMAL");
}

#[test]
fn gives_up_at_the_very_microsecond_of_the_deadline() {
    let mut talk = Talk::new();
    talk.send(1, take(1));
    talk.flush();
    talk.pass(5 * MS);
    talk.send(2, take(2));
    talk.flush();
    talk.pass(15 * MS - 1);
    assert_eq!(talk.outcomes(), [], "a tick early");
    talk.pass(1);
    assert_eq!(talk.outcomes(), [(1, Err(FailureKind::Timeout))], "on time");
    talk.pass(5 * MS);
    assert_eq!(talk.outcomes(), [(2, Err(FailureKind::Timeout))]);
    talk.pass(TIMEOUT);
    assert_eq!(talk.outcomes(), [], "nobody is told twice");
    assert!(talk.session.is_accepting(), "what is answered once is one failure, however long it takes");
}

#[test]
fn a_busy_worker_reads_what_lies_in_its_socket_before_it_gives_up() {
    // (how late the first tick comes, whether the time until then is charged to Redis)
    let tick_us = ReplyClock::new(Duration::from_micros(TIMEOUT)).interval().as_micros() as u64;
    let resolution_us = TIMER_RESOLUTION.as_micros() as u64;
    for (first_tick_us, is_charged) in [
        (tick_us, true),
        (tick_us + resolution_us, true),
        (tick_us + resolution_us + 1, false),
        (TIMEOUT, false),
        (SECOND, false),
    ] {
        let mut talk = Talk::new();
        talk.send(1, take(1));
        talk.flush();
        talk.stall(first_tick_us);
        assert_eq!(talk.outcomes(), [], "{first_tick_us} µs: no reply could have been read");
        let charged_us = if is_charged { first_tick_us } else { TIMEOUT / u64::from(MAX_TURNS) };
        talk.pass(TIMEOUT - charged_us - 1);
        assert_eq!(talk.outcomes(), [], "{first_tick_us} µs: a tick early");
        talk.pass(1);
        assert_eq!(talk.outcomes(), [(1, Err(FailureKind::Timeout))], "{first_tick_us} µs");
    }
    let mut talk = Talk::new();
    for id in 1..=5 {
        talk.send(id, take(id));
        talk.flush();
        talk.stall(10 * TIMEOUT);
        talk.deliver();
        assert_eq!(talk.outcomes(), [(id, Ok(()))]);
    }
    assert!(talk.session.is_accepting());
}

#[test]
fn a_worker_that_is_busy_for_good_gives_up_after_so_many_turns() {
    for (timeout_us, late_us) in [(TIMEOUT, 50 * MS), (TIMEOUT, 7 * MS), (SECOND, 600 * MS)] {
        let mut talk = Talk::new();
        talk.0 = FakeSession::new(Credentials::default(), timeout_us, 7);
        talk.send(1, take(1));
        talk.flush();
        for turn in 1..MAX_TURNS {
            talk.stall(late_us);
            assert_eq!(talk.outcomes(), [], "turn {turn}");
        }
        talk.stall(late_us);
        assert_eq!(talk.outcomes(), [(1, Err(FailureKind::Timeout))], "{timeout_us} µs, {late_us} µs late");
    }
}

#[test]
fn a_probe_does_not_fail_because_its_worker_is_busy() {
    let mut talk = Talk::new();
    talk.break_the_connection();
    talk.wait_for_probe();
    for _ in 0..2 {
        talk.stall(2 * CONNECT_TIMEOUT);
        talk.deliver();
        talk.flush();
    }
    talk.deliver();
    assert!(talk.session.is_accepting());
}

#[test]
fn what_may_take_a_second_takes_no_longer_in_a_busy_worker_but_for_the_turns_of_a_request() {
    // (how long each turn takes, how many turns there are before it is given up)
    let cases = [(50 * MS, 20), (7 * MS, 143), (2 * SECOND, MAX_TURNS)];
    for (late_us, turns) in cases {
        let mut talk = Talk::new();
        talk.break_the_connection();
        talk.wait_for_probe();
        for turn in 1..turns {
            talk.stall(late_us);
            assert!(!talk.wants_turn(), "{late_us} µs late: the probe, turn {turn}");
        }
        talk.stall(late_us);
        assert!(talk.take_turn().has_closed, "{late_us} µs late: the probe has no answer");

        let mut talk = Talk::new();
        talk.send_within(1, set(1), SECOND).expect("sent");
        talk.flush();
        for turn in 1..turns {
            talk.stall(late_us);
            assert_eq!(talk.outcomes(), [], "{late_us} µs late: a change of health, turn {turn}");
        }
        talk.stall(late_us);
        assert_eq!(talk.outcomes(), [(1, Err(FailureKind::Timeout))], "{late_us} µs late");
    }
}

#[test]
fn a_late_reply_is_thrown_away_and_never_given_to_another() {
    let mut talk = Talk::new();
    talk.send(1, take(1));
    talk.send(2, get(2));
    talk.flush();
    talk.pass(TIMEOUT);
    assert_eq!(talk.outcomes(), [(1, Err(FailureKind::Timeout)), (2, Err(FailureKind::Timeout))]);
    talk.send(3, get(3));
    talk.send(4, take(4));
    talk.flush();
    assert!(talk.is_waiting());
    talk.deliver();
    assert_eq!(talk.outcomes(), [(3, Ok(())), (4, Ok(()))]);
    assert!(!talk.is_waiting() && !talk.wants_turn(), "the stream is in step, and stays");
}

#[test]
fn a_redis_that_does_not_know_the_script_is_given_it_within_the_same_request() {
    let mut talk = Talk::new();
    talk.redis.knows_script = false;
    talk.send(1, take(1));
    talk.send(2, get(2));
    talk.send(3, take(3));
    assert_eq!(
        words(&talk.flush()),
        [
            "EVALSHA <sha1> 1 bucket:1 2 1 1000 1 1 1",
            "GET text:2",
            "EVALSHA <sha1> 1 bucket:3 4 1 1000 2 1 1"
        ]
    );
    talk.deliver();
    assert_eq!(talk.outcomes(), [(2, Ok(()))]);
    let again = talk.flush();
    assert_eq!(
        words(&again),
        ["EVAL <take> 1 bucket:1 2 1 1000 3 1 1", "EVAL <take> 1 bucket:3 4 1 1000 4 1 1"],
        "with numbers of their own"
    );
    assert!(!again.has_opened && !again.has_closed);
    talk.deliver();
    assert_eq!(talk.outcomes(), [(1, Ok(())), (3, Ok(()))]);
    talk.send(5, take(5));
    assert_eq!(words(&talk.flush()), ["EVALSHA <sha1> 1 bucket:5 6 1 1000 5 1 1"], "known from now on");
}

#[test]
fn the_script_is_given_once_and_within_the_deadline_that_there_was() {
    let noscript = b"-NOSCRIPT No matching script. Please use EVAL.\r\n";
    let mut talk = Talk::new();
    talk.redis.knows_script = false;
    talk.send(1, take(1));
    talk.flush();
    talk.pass(15 * MS);
    talk.deliver();
    talk.flush();
    talk.stream.replies.clear();
    talk.pass(5 * MS - 1);
    assert_eq!(talk.outcomes(), [], "a tick early");
    talk.pass(1);
    assert_eq!(
        talk.outcomes(),
        [(1, Err(FailureKind::Timeout))],
        "the second command has no time of its own"
    );

    let mut talk = Talk::new();
    talk.send(1, take(1));
    talk.flush();
    talk.receive(noscript);
    assert_eq!(words(&talk.take_turn()).len(), 1);
    talk.receive(noscript);
    assert_eq!(
        talk.outcomes(),
        [(1, Err(FailureKind::Error))],
        "who does not know what he is told is not told again"
    );
    assert!(!talk.wants_turn());

    let mut talk = Talk::new();
    talk.send(1, take(1));
    talk.flush();
    talk.pass(TIMEOUT);
    assert_eq!(talk.outcomes(), [(1, Err(FailureKind::Timeout))]);
    talk.receive(noscript);
    assert!(!talk.wants_turn(), "nobody takes a token for somebody who has gone");
}

#[test]
fn the_breaker_opens_after_three_failures_in_a_row() {
    type Fail = fn(&mut Talk, u32);
    fn refuse(talk: &mut Talk, id: u32, error: &'static str) {
        talk.redis.error = Some(error);
        talk.send(id, take(id));
        talk.exchange();
        talk.redis.error = None;
    }
    let cases: [(&str, FailureKind, Fail); 9] = [
        ("no reply", FailureKind::Timeout, |talk, id| {
            talk.send(id, take(id));
            talk.flush();
            talk.pass(TIMEOUT);
        }),
        ("connection lost", FailureKind::Disconnected, |talk, id| {
            talk.send(id, take(id));
            talk.flush();
            talk.hang_up();
        }),
        ("garbage", FailureKind::Protocol, |talk, id| {
            talk.send(id, take(id));
            talk.flush();
            talk.receive(b"HTTP/1.1 200 OK\r\n\r\n");
        }),
        ("LOADING", FailureKind::Loading, |talk, id| {
            refuse(talk, id, "LOADING Redis is loading the dataset in memory")
        }),
        ("READONLY", FailureKind::ReadOnly, |talk, id| {
            refuse(talk, id, "READONLY You can't write against a read only replica.")
        }),
        ("OOM", FailureKind::OutOfMemory, |talk, id| {
            refuse(talk, id, "OOM command not allowed when used memory > 'maxmemory'.")
        }),
        ("NOAUTH", FailureKind::Auth, |talk, id| refuse(talk, id, "NOAUTH Authentication required.")),
        ("NOPERM", FailureKind::Auth, |talk, id| refuse(talk, id, "NOPERM this user has no permissions")),
        ("ERR", FailureKind::Error, |talk, id| refuse(talk, id, "ERR unknown command 'EVALSHA'")),
    ];
    for (what, reason, fail) in cases {
        let mut talk = Talk::new();
        let fail = |talk: &mut Talk, id: u32, is_asked: bool| {
            fail(talk, id);
            assert_eq!(talk.outcomes(), [(id, Err(reason))], "{what}");
            assert_eq!(talk.session.is_accepting(), is_asked, "{what}, failure {id}");
        };
        fail(&mut talk, 1, true);
        fail(&mut talk, 2, true);
        talk.send(50, take(50));
        talk.exchange();
        assert_eq!(talk.outcomes(), [(50, Ok(()))], "{what}: counting begins anew");
        assert_eq!(talk.next_event(), Some(Event::Connected), "{what}");
        fail(&mut talk, 3, true);
        fail(&mut talk, 4, true);
        fail(&mut talk, 5, false);
        talk.flush();
        assert!(!talk.stream.is_open(), "{what}: nothing more comes from there");
        assert!(
            matches!(talk.next_event(), Some(Event::Lost(failure)) if failure.reason == reason),
            "{what}"
        );
        assert_eq!(talk.declined(), Some(Declined::BreakerOpen), "{what}");
        assert!(!talk.wants_turn() && !talk.is_waiting(), "{what}: it is not asked");
    }
}

#[test]
fn when_the_breaker_opens_everybody_who_waits_is_told_at_once() {
    let mut talk = Talk::new();
    for id in 1..=3 {
        talk.send(id, take(id));
        talk.flush();
        talk.pass(5 * MS);
    }
    talk.pass(5 * MS);
    talk.send(4, get(4));
    talk.send(5, set(5));
    assert_eq!(talk.outcomes(), [(1, Err(FailureKind::Timeout))]);
    talk.pass(5 * MS);
    talk.pass(5 * MS);
    let timed_out = [2, 3, 4, 5].map(|id| (id, Err(FailureKind::Timeout)));
    assert_eq!(talk.outcomes(), timed_out, "the last two had time left, and nobody to wait for");
    assert_eq!(talk.declined(), Some(Declined::BreakerOpen));
    let turn = talk.take_turn();
    assert_eq!(turn, Turn { has_closed: true, ..Turn::default() }, "what was to go out does not");
}

#[test]
fn the_time_of_a_command_begins_when_it_is_sent() {
    let mut talk = Talk::new();
    talk.send(1, take(1));
    talk.pass(10 * TIMEOUT);
    assert_eq!(talk.outcomes(), [], "Redis has not been asked");
    talk.flush();
    talk.pass(TIMEOUT - 1);
    assert_eq!(talk.outcomes(), []);
    talk.pass(1);
    assert_eq!(talk.outcomes(), [(1, Err(FailureKind::Timeout))]);
}

#[test]
fn an_error_about_one_key_is_nobody_elses_trouble() {
    let mut talk = Talk::new();
    talk.redis.of_another_type.insert("bucket:1".to_owned());
    for _ in 0..50 {
        talk.send(1, take(1));
        talk.exchange();
        assert_eq!(talk.outcomes(), [(1, Err(FailureKind::Error))]);
        assert!(talk.session.is_accepting());
    }
    talk.send(2, take(2));
    talk.exchange();
    assert_eq!(talk.outcomes(), [(2, Ok(()))]);
}

#[test]
fn a_shard_that_is_ill_is_the_trouble_of_its_callers_until_nobody_else_is_served() {
    let errors = [
        ("MOVED 1234 10.0.0.1:6379", FailureKind::Moved),
        ("CLUSTERDOWN Hash slot not served", FailureKind::Moved),
        ("upstream failure", FailureKind::Disconnected),
        ("no upstream host", FailureKind::Disconnected),
    ];
    for (error, reason) in errors {
        let mut talk = Talk::new();
        let refused = |talk: &mut Talk| {
            talk.redis.error = Some(error);
            talk.send(1, take(1));
            talk.exchange();
            talk.redis.error = None;
            assert_eq!(talk.outcomes(), [(1, Err(reason))]);
        };
        for _ in 0..10 * MAX_SHARD_REFUSALS {
            refused(&mut talk);
            talk.send(2, take(0));
            talk.exchange();
            assert_eq!(talk.next_reply().map(|(id, _)| id), Some(2));
            assert!(talk.session.is_accepting(), "{error}: others are served");
        }
        for count in 1..=MAX_SHARD_REFUSALS {
            refused(&mut talk);
            assert_eq!(talk.session.is_accepting(), count < MAX_SHARD_REFUSALS, "{error}: {count} in a row");
        }
    }
}

#[test]
fn a_replica_that_can_be_read_does_not_look_well_for_that() {
    let mut talk = Talk::new();
    for id in 1..=MAX_FAILURES {
        talk.send(id, get(id));
        talk.exchange();
        talk.redis.error = Some("READONLY You can't write against a read only replica.");
        talk.send(id, take(id));
        talk.exchange();
        talk.redis.error = None;
        assert_eq!(talk.outcomes(), [(id, Ok(())), (id, Err(FailureKind::ReadOnly))]);
    }
    assert!(!talk.session.is_accepting(), "what is read in between does not count");
}

#[test]
fn an_open_breaker_probes_again_and_again_with_jittered_pauses_of_at_most_two_seconds() {
    let mut first_pauses = Vec::new();
    for seed in 0..50 {
        let mut talk = Talk::new();
        talk.0 = FakeSession::new(Credentials::default(), TIMEOUT, seed);
        talk.break_the_connection();
        for attempt in 0..8_u32 {
            let longest_ms = (100 << attempt).min(2_000);
            let pause_ms = talk.wait_for_probe();
            assert!(
                (longest_ms * 3 / 4..=longest_ms).contains(&pause_ms),
                "pause {attempt}: {pause_ms} ms of {longest_ms} ms"
            );
            if attempt == 0 {
                first_pauses.push(pause_ms);
            }
            assert_eq!(talk.declined(), Some(Declined::BreakerOpen), "nobody waits for a probe");
            talk.hang_up();
            assert_eq!(talk.declined(), Some(Declined::BreakerOpen));
        }
        assert_eq!(talk.outcomes(), []);
        assert_eq!(talk.next_event().map(|event| matches!(event, Event::Lost(_))), Some(true));
        assert_eq!(talk.next_event(), None, "that it is still lost is no news");
    }
    first_pauses.sort_unstable();
    first_pauses.dedup();
    assert!(first_pauses.len() > 10, "workers do not probe all at once: {first_pauses:?}");
}

#[test]
fn a_probe_may_connect_first_and_has_to_be_quick_after_that() {
    // (how long the first and the second answer take, whether that is good enough)
    let cases = [
        (0, 0, true),
        (CONNECT_TIMEOUT - 1, TIMEOUT - 1, true),
        (CONNECT_TIMEOUT, 0, false),
        (0, TIMEOUT, false),
        (CONNECT_TIMEOUT - 1, TIMEOUT, false),
    ];
    for (connect_us, answer_us, is_well) in cases {
        let what = format!("{connect_us} and {answer_us} µs");
        let mut talk = Talk::new();
        talk.break_the_connection();
        talk.next_event();
        talk.wait_for_probe();
        talk.pass(connect_us);
        talk.deliver();
        if !talk.flush().has_closed {
            assert!(!talk.session.is_accepting(), "{what}: one answer is not enough");
            talk.pass(answer_us);
            talk.deliver();
        }
        assert_eq!(talk.session.is_accepting(), is_well, "{what}");
        assert_eq!(talk.next_event(), is_well.then_some(Event::Connected), "{what}");
        assert_eq!(talk.outcomes(), [], "{what}: nobody asked");
        if is_well {
            talk.send(50, take(50));
            let turn = talk.flush();
            assert!(!turn.has_opened && !turn.has_closed, "{what}: the probe's stream is a good one");
            talk.deliver();
            assert_eq!(talk.outcomes(), [(50, Ok(()))], "{what}");
        }
    }
}

#[test]
fn a_probe_takes_a_token_from_a_bucket_of_its_own_and_teaches_the_script() {
    let mut talk = Talk::new();
    talk.break_the_connection();
    talk.redis.take_commands();
    talk.redis.knows_script = false;
    talk.wait_for_probe();
    talk.exchange();
    assert!(talk.session.is_accepting());
    let commands = talk.redis.take_commands();
    let probe = "1 #probe 10 1000000000000 1000";
    assert_eq!(
        commands.iter().map(|command| command.rsplitn(4, ' ').last().map(str::to_owned)).collect::<Vec<_>>(),
        ["EVALSHA <sha1>", "EVAL <take>", "EVALSHA <sha1>"].map(|start| Some(format!("{start} {probe}")))
    );
}

#[test]
fn a_probe_that_is_refused_finds_out_that_redis_is_not_well() {
    for error in ["READONLY replica", "LOADING", "OOM", "MOVED 1 a:1", "WRONGTYPE bucket", "ERR"] {
        let mut talk = Talk::new();
        talk.break_the_connection();
        talk.redis.error = Some(error);
        talk.wait_for_probe();
        talk.exchange();
        assert!(!talk.session.is_accepting(), "{error}");
        talk.redis.error = None;
        talk.wait_for_probe();
        talk.exchange();
        assert!(talk.session.is_accepting(), "{error}: and then that it is");
    }
}

#[test]
fn pauses_are_short_again_after_ten_quiet_seconds_and_not_before() {
    for (quiet_us, is_short) in [(SECOND, false), (10 * SECOND, false), (10 * SECOND + 1, true)] {
        let mut talk = Talk::new();
        talk.break_the_connection();
        for _ in 0..5 {
            talk.wait_for_probe();
            talk.hang_up();
        }
        talk.wait_for_probe();
        talk.exchange();
        assert!(talk.session.is_accepting());
        talk.pass(quiet_us);
        talk.break_the_connection();
        assert_eq!(talk.wait_for_probe() <= 100, is_short, "after {quiet_us} µs");
    }
}

#[test]
fn the_password_is_the_first_thing_said_on_each_new_stream() {
    let text = |text: &str| Some(text.as_bytes().to_vec());
    let cases = [(None, "AUTH canary-password"), (Some("limiter"), "AUTH limiter canary-password")];
    for (user, wanted) in cases {
        let credentials = Credentials { username: user.and_then(text), password: text("canary-password") };
        assert!(!format!("{credentials:?}").contains("canary"), "{credentials:?}");
        let mut talk = Talk::with(credentials);
        talk.redis.password = Some((user, "canary-password"));
        for id in 0..3 {
            talk.send(id, take(id));
            let turn = talk.flush();
            assert!(turn.has_opened);
            assert_eq!(words(&turn)[0], wanted);
            assert_eq!(words(&turn).len(), 2);
            talk.deliver();
            talk.send(10 + id, get(10 + id));
            assert_eq!(words(&talk.flush()), [format!("GET text:{}", 10 + id)], "and said once");
            talk.deliver();
            assert_eq!(talk.outcomes(), [(id, Ok(())), (10 + id, Ok(()))]);
            talk.hang_up();
        }
        talk.break_the_connection();
        talk.redis.take_commands();
        talk.wait_for_probe();
        talk.exchange();
        assert_eq!(talk.redis.take_commands()[0], wanted, "on a probe's stream too");
        assert!(talk.session.is_accepting());
    }
    let mut talk = Talk::with(Credentials { username: text("alone"), password: None });
    talk.send(1, take(1));
    assert_eq!(words(&talk.flush()).len(), 1, "a user without a password is nobody");
}

#[test]
fn a_wrong_password_opens_the_breaker_at_once() {
    let credentials = Credentials { username: None, password: Some(b"wrong".to_vec()) };
    let mut talk = Talk::with(credentials);
    talk.redis.password = Some((None, "right"));
    for id in 1..=5 {
        talk.send(id, take(id));
    }
    talk.flush();
    talk.deliver();
    assert_eq!(talk.outcomes(), [1, 2, 3, 4, 5].map(|id| (id, Err(FailureKind::Auth))));
    assert_eq!(talk.declined(), Some(Declined::BreakerOpen));
    let Some(Event::Lost(failure)) = talk.next_event() else { panic!("no news of it") };
    assert!(failure.detail.contains("WRONGPASS"), "{failure:?}");
    assert!(talk.take_turn().has_closed);
    talk.redis.password = Some((None, "wrong"));
    talk.wait_for_probe();
    talk.exchange();
    assert!(talk.session.is_accepting(), "until it is right");
}

#[test]
fn a_stream_out_of_step_is_closed_and_everybody_who_waits_is_answered_once() {
    let taken = |sequence: u32, tokens: &str| {
        let text = format!("{sequence} 1 {tokens}.000000000000 1700000000.000000");
        redis::bulk(text.as_bytes())
    };
    let first = taken(1, "1");
    // (what comes instead of the first answer, the commands that are waiting)
    let cases: [(&str, Vec<u8>); 15] = [
        ("a number", b":1\r\n".to_vec()),
        ("OK", b"+OK\r\n".to_vec()),
        ("nothing there", b"$-1\r\n".to_vec()),
        ("the answer to the next command", taken(2, "2")),
        ("an answer to nobody's command", taken(77, "1")),
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
        let mut talk = Talk::new();
        for id in 1..=3 {
            talk.send(id, take(id));
        }
        talk.send(4, get(4));
        talk.send(5, set(5));
        talk.flush();
        let rest = talk.stream.take_replies();
        talk.receive(&[bytes.as_slice(), &rest].concat());
        let all = [1, 2, 3, 4, 5].map(|id| (id, Err(FailureKind::Protocol)));
        assert_eq!(talk.outcomes(), all, "{what}");
        assert_eq!(
            talk.take_turn(),
            Turn { has_closed: true, ..Turn::default() },
            "{what}: the stream is closed"
        );
        talk.receive(&first);
        talk.close("late");
        assert_eq!(talk.outcomes(), [], "{what}: and nothing that comes after is taken in");
        assert!(!talk.wants_turn(), "{what}");
        talk.send(6, take(6));
        let turn = talk.flush();
        assert!(turn.has_opened && words(&turn).len() == 1, "{what}: the next command opens another");
        talk.deliver();
        assert_eq!(talk.outcomes(), [(6, Ok(()))], "{what}");
    }
}

#[test]
fn each_kind_of_command_has_its_own_kind_of_answer() {
    let taken = redis::bulk(b"1 1 1.000000000000 1700000000.000000");
    let kinds: [&[u8]; 5] = [&taken, b"$1\r\n1\r\n", b"$-1\r\n", b"+OK\r\n", b":1\r\n"];
    // Which of the kinds above answers the command.
    let cases: [(&str, Command, [bool; 5]); 3] = [
        ("take", take(1), [true, false, false, false, false]),
        ("get", get(1), [true, true, true, false, false]),
        ("set", set(1), [false, false, true, true, false]),
    ];
    for (what, command, fits) in cases {
        for (kind, fits) in kinds.into_iter().zip(fits) {
            let mut talk = Talk::new();
            talk.send(1, command.clone());
            talk.flush();
            talk.receive(kind);
            let (id, answer) = talk.next_reply().expect("an answer");
            let failure = answer.err().map(|failure| failure.reason);
            let kind = String::from_utf8_lossy(kind);
            assert_eq!((id, failure), (1, (!fits).then_some(FailureKind::Protocol)), "{what}: {kind:?}");
            assert_eq!(talk.take_turn().has_closed, !fits, "{what}: {kind:?}");
        }
    }
}

#[test]
fn a_reply_that_nobody_asked_for_closes_the_stream() {
    let mut talk = Talk::new();
    talk.send(1, take(1));
    talk.exchange();
    assert_eq!(talk.outcomes(), [(1, Ok(()))]);
    talk.receive(b"+OK\r\n");
    assert!(talk.take_turn().has_closed);
    // A reply doubled: the first is good, and what follows it is not to be trusted.
    talk.send(2, get(2));
    talk.flush();
    let reply = talk.stream.replies.pop_front().expect("a reply");
    talk.receive(&[reply.as_slice(), &reply].concat());
    assert_eq!(talk.outcomes(), [(2, Ok(()))]);
    assert!(talk.take_turn().has_closed);
}

#[test]
fn nothing_is_taken_in_from_a_stream_that_is_to_be_closed() {
    let mut talk = Talk::new();
    talk.send(1, take(1));
    talk.send(2, get(2));
    talk.flush();
    let replies = talk.stream.take_replies();
    talk.receive(b"*0\r\n");
    assert_eq!(talk.outcomes(), [(1, Err(FailureKind::Protocol)), (2, Err(FailureKind::Protocol))]);
    // The owner of the stream has not closed it yet, and a command is asked for the next one.
    talk.send(3, take(3));
    talk.send(4, get(4));
    talk.receive(&replies);
    talk.receive(b"*0\r\n");
    talk.close("the old one");
    assert_eq!(talk.outcomes(), [], "what was said there is not for those who ask now");
    let turn = talk.flush();
    assert!(turn.has_opened);
    assert_eq!(words(&turn).len(), 2);
    talk.deliver();
    assert_eq!(talk.outcomes(), [(3, Ok(())), (4, Ok(()))]);
    // A reply that broke off half way belongs to the stream that it came on.
    talk.send(5, take(5));
    talk.flush();
    talk.receive(b"$40\r\nhalf");
    talk.hang_up();
    assert_eq!(talk.outcomes(), [(5, Err(FailureKind::Disconnected))]);
    talk.send(6, take(6));
    talk.exchange();
    assert_eq!(talk.outcomes(), [(6, Ok(()))]);
}

#[test]
fn a_stream_that_closes_while_nobody_waits_is_no_failure() {
    let mut talk = Talk::new();
    for id in 0..10 * MAX_FAILURES {
        talk.send(id, take(id));
        assert!(talk.flush().has_opened, "the command opens another");
        talk.deliver();
        assert_eq!(talk.outcomes(), [(id, Ok(()))]);
        talk.hang_up();
        talk.pass(SECOND);
        assert!(talk.session.is_accepting() && !talk.wants_turn());
    }
    assert_eq!(talk.next_event(), Some(Event::Connected));
    assert_eq!(talk.next_event(), None);
    for id in 1..MAX_FAILURES {
        talk.send(100 + id, take(100 + id));
        talk.flush();
        talk.hang_up();
        assert_eq!(talk.outcomes(), [(100 + id, Err(FailureKind::Disconnected))]);
        assert!(talk.session.is_accepting(), "failure {id} is no more than that");
    }
    talk.close("twice");
    talk.receive(b"*0\r\n");
    assert!(talk.session.is_accepting() && !talk.wants_turn(), "there is none to close");
}

#[test]
fn a_stream_that_cannot_be_opened_fails_those_who_wait_for_it() {
    let mut talk = Talk::new();
    for id in 1..=3 {
        talk.send(id, take(id));
        talk.send(10 + id, get(10 + id));
        assert!(talk.take_turn().has_opened);
        talk.close("there is no cluster");
        assert_eq!(talk.outcomes(), [id, 10 + id].map(|id| (id, Err(FailureKind::Disconnected))));
        assert!(!talk.wants_turn(), "there is none to close");
    }
    let Some(Event::Lost(failure)) = talk.next_event() else { panic!("no news of it") };
    assert_eq!(failure.detail, "there is no cluster");
}

#[test]
fn what_is_beyond_the_window_waits_and_goes_out_in_order_as_replies_come() {
    let mut talk = Talk::with(Credentials { username: None, password: Some(b"secret".to_vec()) });
    talk.redis.password = Some((None, "secret"));
    talk.send_many(0..2 * WINDOW + 1);
    assert_eq!(words(&talk.flush()).len(), WINDOW, "AUTH is one of them");
    let reply = talk.stream.replies.pop_front().expect("a reply");
    talk.receive(&reply);
    assert_eq!(words(&talk.flush()).len(), 1, "one for each that is answered");
    talk.exchange();
    let answered = talk.outcomes();
    assert_eq!(answered, (0..2 * WINDOW as u32 + 1).map(|id| (id, Ok(()))).collect::<Vec<_>>());
    assert!(!talk.is_waiting());

    // A Redis that has forgotten the script is given it for each of a window, no more.
    let mut talk = Talk::new();
    talk.redis.knows_script = false;
    talk.send_many(0..3 * WINDOW);
    talk.exchange();
    assert_eq!(talk.outcomes().len(), 3 * WINDOW);
}

#[test]
fn the_window_grows_with_the_timeout_within_its_bounds() {
    let windows = [MS, 2_720, 20 * MS, 100 * MS, 163_840, 10 * SECOND].map(Duration::from_micros).map(window);
    assert_eq!(windows, [16, 17, WINDOW, 625, 1_024, 1_024]);
}

#[test]
fn commands_about_health_do_not_wait() {
    let mut talk = Talk::new();
    talk.send_many(0..2 * WINDOW);
    talk.flush();
    talk.send(1_000, get(1_000));
    talk.send(1_001, set(1_001));
    assert_eq!(words(&talk.flush()), ["GET text:1000", "SET set:1001 DEGRADED"]);
    talk.exchange();
    assert_eq!(talk.outcomes().len(), 2 * WINDOW + 2);
}

#[test]
fn however_many_wait_none_is_late_while_redis_answers_what_it_has() {
    let mut talk = Talk::new();
    let windows = 20;
    talk.send_many(0..windows * WINDOW);
    for _ in 0..windows {
        talk.flush();
        talk.pass(TIMEOUT - 1);
        talk.deliver();
    }
    let outcomes = talk.outcomes();
    assert_eq!(outcomes.len(), windows * WINDOW);
    assert!(outcomes.iter().all(|(_, outcome)| outcome.is_ok()));
}

#[test]
fn what_waits_is_given_up_at_once_when_redis_does_not_answer() {
    let mut talk = Talk::new();
    talk.send_many(0..3 * WINDOW);
    talk.flush();
    talk.pass(5 * MS);
    let reply = talk.stream.replies.pop_front().expect("a reply");
    talk.receive(&reply);
    assert_eq!(talk.outcomes(), [(0, Ok(()))]);
    talk.flush();
    talk.pass(15 * MS);
    let late = talk.outcomes();
    assert_eq!(late.len(), WINDOW - 1, "the time of what was sent first is over");
    talk.pass(5 * MS - 1);
    assert_eq!(talk.outcomes(), [], "a tick early");
    talk.pass(1);
    let late: Vec<_> = (WINDOW as u32..3 * WINDOW as u32).map(|id| (id, Err(FailureKind::Timeout))).collect();
    assert_eq!(talk.outcomes(), late, "what was handed over last, and all that waits");
    assert!(talk.session.is_accepting(), "these are two failures");

    // What is asked now waits behind what Redis still owes, for as long as any other.
    let began_us = talk.now_us;
    talk.send(1, take(1));
    talk.pass(TIMEOUT - 1);
    assert_eq!(talk.outcomes(), []);
    talk.pass(1);
    assert_eq!(talk.outcomes(), [(1, Err(FailureKind::Timeout))]);
    assert_eq!(talk.now_us - began_us, TIMEOUT);
    assert_eq!(talk.next_event(), Some(Event::Connected));
    assert!(matches!(talk.next_event(), Some(Event::Lost(_))), "the third failure");
}

#[test]
fn a_busy_worker_does_not_give_up_what_waits() {
    let mut talk = Talk::new();
    talk.send_many(0..4 * WINDOW);
    for _ in 0..4 {
        talk.flush();
        talk.stall(10 * TIMEOUT);
        talk.deliver();
    }
    let outcomes = talk.outcomes();
    assert_eq!(outcomes.len(), 4 * WINDOW);
    assert!(outcomes.iter().all(|(_, outcome)| outcome.is_ok()));
    // The turn that sends comes late; the time of what waits begins with it.
    talk.send_many(0..2 * WINDOW);
    talk.pass(TIMEOUT);
    talk.flush();
    talk.pass(TIMEOUT - 1);
    assert_eq!(talk.outcomes(), []);
    talk.pass(1);
    assert_eq!(talk.outcomes().len(), 2 * WINDOW);
}

#[test]
fn what_waits_fails_with_its_connection() {
    let mut talk = Talk::new();
    talk.send_many(0..3 * WINDOW);
    talk.flush();
    talk.hang_up();
    let lost: Vec<_> = (0..3 * WINDOW as u32).map(|id| (id, Err(FailureKind::Disconnected))).collect();
    assert_eq!(talk.outcomes(), lost);
    talk.send(1, take(1));
    assert_eq!(words(&talk.flush()).len(), 1, "nothing else is left of it");
}

#[test]
fn a_command_that_is_cancelled_while_it_waits_is_never_sent_nor_answered() {
    let mut talk = Talk::new();
    let commands = talk.send_many(0..2 * WINDOW);
    assert!(!talk.cancel(commands[0]), "the first is on the wire, and stays there");
    (WINDOW..2 * WINDOW - 1).for_each(|id| assert!(talk.cancel(commands[id])));
    talk.exchange();
    let answered: Vec<_> = talk.outcomes().into_iter().map(|(id, _)| id as usize).collect();
    assert_eq!(answered, (0..WINDOW).chain([2 * WINDOW - 1]).collect::<Vec<_>>());
    assert!(!talk.redis.buckets.contains_key(&format!("bucket:{WINDOW}")));
    talk.cancel(commands[0]);
    assert!(!talk.is_waiting() && !talk.session.has_output());
}

#[test]
fn no_more_commands_are_taken_than_may_wait() {
    let mut talk = Talk::new();
    let commands = talk.send_many(100..100 + MAX_COMMANDS);
    assert_eq!(talk.declined(), Some(Declined::QueueFull));
    assert!(talk.session.is_accepting(), "that is no failure");
    talk.cancel(commands[MAX_COMMANDS - 1]);
    assert_eq!(talk.declined(), None, "there is room for one");
    assert_eq!(talk.declined(), Some(Declined::QueueFull));
    for _ in 0..MAX_COMMANDS.div_ceil(WINDOW) {
        talk.session.flush();
        while let Some(SessionOutput::Stream(action)) = talk.session.poll_output() {
            let is_last = matches!(action, StreamAction::Send(_));
            talk.carry_out(action);
            if is_last {
                break;
            }
        }
        talk.deliver();
    }
    assert!(
        !talk.is_waiting() && talk.session.has_output(),
        "replies that nobody has polled keep their place"
    );
    assert_eq!(talk.declined(), Some(Declined::QueueFull));
    assert!(talk.outcomes().iter().all(|(_, outcome)| outcome.is_ok()));
    assert_eq!(talk.declined(), None);
}

#[test]
fn what_is_shown_of_an_error_is_short_and_printable() {
    let mut talk = Talk::new();
    talk.send(1, take(1));
    talk.flush();
    let error = [b"-ERR \x1b[2J\xff\n", "é".repeat(1_000).as_bytes(), b"\r\n"].concat();
    talk.receive(&error);
    let Some((1, Err(failure))) = talk.next_reply() else { panic!("no failure") };
    assert!(failure.detail.starts_with("ERR .[2J..."), "{}", failure.detail);
    assert!(failure.detail.len() <= 120 && failure.detail.is_ascii());
}

#[test]
fn a_session_that_is_left_alone_does_nothing() {
    let mut talk = Talk::new();
    for _ in 0..100 {
        talk.pass(SECOND);
    }
    assert!(!talk.wants_turn() && !talk.is_waiting());
    assert_eq!(talk.next_event(), None);
}
