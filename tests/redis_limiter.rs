//! Several Envoys with one Redis: exact limits, the deny cache, shared health, and outages of Redis.
//!
//! Each Envoy has its own shared data and clock; Redis is in memory. The bytes between them are the real protocol.
//! Random cases are in `tests/simulation`.

mod common;

use std::time::Duration;

use common::fake_stream::FakeStream;
use common::redis::ModelRedis;
use common::{FakeData, FakeRequest, SECOND, TOKEN};
use dynamic_rate_limiter::admission::{Decision, Screening};
use dynamic_rate_limiter::bucket::{Outcome, Verdict};
use dynamic_rate_limiter::config::{Environment, PluginConfig};
use dynamic_rate_limiter::documents::Fetched;
use dynamic_rate_limiter::generation::Role;
use dynamic_rate_limiter::headers::{HeaderValues, write_headers};
use dynamic_rate_limiter::health::Health;
use dynamic_rate_limiter::health_sync::POLL_INTERVAL;
use dynamic_rate_limiter::limiter::{Limiter, LimiterOutput};
use dynamic_rate_limiter::metrics::Sample;
use dynamic_rate_limiter::redis_limiter::RedisLimiter;
use dynamic_rate_limiter::request::{RequestId, RequestStart};
use dynamic_rate_limiter::store::SharedData;
use dynamic_rate_limiter::store::redis::outbox::StreamAction;
use dynamic_rate_limiter::time::{StoreTime, UnixTime, WallClock};

const MS: u64 = 1_000;

const POLL_US: u64 = POLL_INTERVAL.as_micros() as u64;

/// The default timeout of a request that waits for Redis.
const TIMEOUT: u64 = 20 * MS;

const STORE: &str = r#""store": {"kind": "redis", "cluster": "redis"}"#;

/// A tier of one token, refilled in ten seconds.
const SLOW: &str =
    r#""default_tier": "slow", "tiers": {"slow": {"base": {"capacity": 1, "refill_rate": 0.1}}}"#;

fn config(rest: &str) -> String {
    let comma = if rest.is_empty() { "" } else { ", " };
    format!("{{{STORE}{comma}{rest}}}")
}

/// A worker, and its stream to Redis.
struct Worker {
    limiter: Limiter,
    stream: FakeStream,
    commands: usize,
}

struct Envoy {
    data: FakeData,
    workers: Vec<Worker>,
}

/// Envoys and their Redis. A worker's name is the number of its Envoy and its own.
struct World {
    redis: ModelRedis,
    envoys: Vec<Envoy>,
    last_ticket: RequestId,
    /// Whether connections are refused.
    is_down: bool,
    /// Whether replies are held back.
    is_frozen: bool,
}

type Name = (usize, usize);

impl World {
    /// This number of Envoys, with this number of workers each.
    fn new(envoys: usize, workers: usize, json: &str) -> Self {
        let mut world = Self {
            redis: ModelRedis::at(1_700_000_000 * SECOND),
            envoys: Vec::new(),
            last_ticket: 0,
            is_down: false,
            is_frozen: false,
        };
        for envoy in 0..envoys {
            let data = FakeData::at((1 + 1_000 * envoy as u64) * SECOND);
            let workers = (0..workers).map(|worker| Worker::new(&data, json, worker as u64 + 1)).collect();
            world.envoys.push(Envoy { data, workers });
        }
        world
    }

    fn worker(&mut self, (envoy, worker): Name) -> (&mut Worker, &FakeData, &mut ModelRedis) {
        let envoy = &mut self.envoys[envoy];
        (&mut envoy.workers[worker], &envoy.data, &mut self.redis)
    }

    fn names(&self) -> Vec<Name> {
        let workers = |envoy: usize| (0..self.envoys[envoy].workers.len()).map(move |worker| (envoy, worker));
        (0..self.envoys.len()).flat_map(workers).collect()
    }

    fn advance(&mut self, us: u64) {
        self.redis.now_us += us;
        self.envoys.iter().for_each(|envoy| envoy.data.advance(us));
    }

    /// Advances the time, with a tick of every worker each millisecond, as while a request waits.
    fn run(&mut self, us: u64) -> Vec<(RequestId, Decision)> {
        let mut decisions = Vec::new();
        let mut left_us = us;
        while left_us > 0 {
            let step_us = left_us.min(MS);
            left_us -= step_us;
            self.advance(step_us);
            for name in self.names() {
                decisions.extend(self.tick(name));
            }
        }
        decisions
    }

    fn tick(&mut self, name: Name) -> Vec<(RequestId, Decision)> {
        let (worker, data, _) = self.worker(name);
        worker.limiter.handle_timeout(data.now(), Role::Newest, data);
        self.exchange(name)
    }

    /// Exchanges commands and replies until there are no more; returns the decisions.
    fn exchange(&mut self, name: Name) -> Vec<(RequestId, Decision)> {
        let (is_down, is_frozen) = (self.is_down, self.is_frozen);
        let (worker, data, redis) = self.worker(name);
        let mut decisions = Vec::new();
        loop {
            match worker.limiter.poll_output(data.now(), data) {
                Some(LimiterOutput::Decided(id, decision)) => decisions.push((id, decision)),
                Some(LimiterOutput::Stream(StreamAction::Open)) if is_down => {
                    worker.stream.close();
                    worker.limiter.handle_close("refused", data.now());
                }
                Some(LimiterOutput::Stream(action)) => {
                    worker.commands += worker.stream.carry_out(action, redis);
                }
                None if worker.limiter.redis().is_some_and(RedisLimiter::has_output) => {
                    worker.limiter.flush();
                }
                None if !is_frozen && !worker.stream.replies.is_empty() => {
                    worker.limiter.handle_input(&worker.stream.take_replies(), data.now());
                }
                None => return decisions,
            }
        }
    }

    /// The immediate decision about a request.
    fn decide(&mut self, name: Name, request: &FakeRequest) -> (RequestId, Decision) {
        self.last_ticket += 1;
        let request_id = self.last_ticket;
        let (worker, data, _) = self.worker(name);
        let arrival = RequestStart { id: request_id, at: data.now() };
        // Tests publish documents themselves; no request waits for them.
        (request_id, worker.limiter.decider(data).decide(request, arrival, false))
    }

    /// The final decision about a request.
    fn decide_with_redis(&mut self, name: Name, request: &FakeRequest) -> Decision {
        match self.decide(name, request) {
            (request_id, Decision::AwaitsRedis(_)) => only(self.exchange(name), request_id),
            (_, decision) => decision,
        }
    }

    /// Whole tokens left; nothing for a refusal.
    fn remaining(&mut self, name: Name, request: &FakeRequest) -> Option<u32> {
        match self.decide_with_redis(name, request) {
            Decision::Admitted(answer) => Some(verdict(&answer).remaining),
            Decision::Refused(_) => None,
            other => panic!("neither admitted nor refused: {other:?}"),
        }
    }

    /// Starts a change of health.
    fn start_post(&mut self, name: Name, body: &str) -> (RequestId, Decision) {
        let request = FakeRequest::post("/system/health").with("x-admin-token", TOKEN);
        let (request_id, decision) = self.decide(name, &request);
        let Decision::AwaitsBody(pending) = decision else { panic!("the token is good: {decision:?}") };
        let (worker, data, _) = self.worker(name);
        let arrival = RequestStart { id: request_id, at: data.now() };
        (request_id, worker.limiter.change_health(&pending, body.as_bytes(), data, arrival))
    }

    fn post(&mut self, name: Name, health: &str) -> (u32, String) {
        match self.start_post(name, &format!(r#"{{"status": "{health}"}}"#)) {
            (request_id, Decision::AwaitsRedis(_)) => replied(only(self.exchange(name), request_id)),
            (_, decision) => replied(decision),
        }
    }

    fn get(&mut self, name: Name, path: &str) -> String {
        replied(self.decide_with_redis(name, &FakeRequest::get(path))).1
    }

    /// The health that a worker's next request sees.
    fn health(&mut self, name: Name) -> Health {
        let body = self.get(name, "/system/health");
        let found =
            [Health::Normal, Health::Degraded].into_iter().find(|health| body.contains(health.name()));
        found.unwrap_or_else(|| panic!("no health: {body}"))
    }

    /// Closes the connection of every worker, and refuses new ones.
    fn go_down(&mut self) {
        self.is_down = true;
        for name in self.names() {
            let (worker, data, _) = self.worker(name);
            worker.hang_up(data.now());
        }
    }

    /// The sum of a counter's samples since the last call.
    fn counted(&mut self, name: Name, counter: &str) -> u64 {
        let samples = self.worker(name).0.limiter.drain_metrics();
        let count = |sample: Sample| match sample {
            Sample::Count(name, count) if name.ends_with(counter) => Some(count),
            _ => None,
        };
        samples.into_iter().filter_map(count).sum()
    }
}

impl Worker {
    fn new(data: &FakeData, json: &str, random: u64) -> Self {
        let environment = Environment { admin_token: Some(TOKEN.into()), ..Environment::default() };
        let plugin = PluginConfig::parse(json.as_bytes(), &environment).expect("a good configuration");
        let mut limiter = Limiter::new(plugin, data, (random << 32, 0x5eed)).expect("a limiter");
        let unix = UnixTime::from_micros(1_700_000_000 * SECOND);
        limiter.set_wall_clock(WallClock::new(unix, data.now()));
        Self { limiter, stream: FakeStream::default(), commands: 0 }
    }

    fn hang_up(&mut self, now: StoreTime) {
        if self.stream.is_open() {
            self.stream.close();
            self.limiter.handle_close("reset by peer", now);
        }
    }
}

fn only(mut decisions: Vec<(RequestId, Decision)>, request_id: RequestId) -> Decision {
    let found = decisions.iter().position(|(decided, _)| *decided == request_id);
    decisions.swap_remove(found.expect("a decision about the request")).1
}

fn verdict(answer: &HeaderValues) -> Verdict {
    answer.verdict.expect("a verdict of a bucket")
}

fn replied(decision: Decision) -> (u32, String) {
    match decision {
        Decision::Replied(reply) => (reply.status, reply.body),
        other => panic!("not replied: {other:?}"),
    }
}

fn keyed(key: &str) -> FakeRequest {
    FakeRequest::get("/").with("x-api-key", key)
}

/// The value of a response header.
fn header(world: &mut World, name: Name, decision: &Decision, wanted: &str) -> Option<String> {
    let (Decision::Admitted(answer) | Decision::Refused(answer) | Decision::Unavailable(answer)) = decision
    else {
        panic!("no headers: {decision:?}");
    };
    let limiter = &world.worker(name).0.limiter;
    let mut found = None;
    write_headers(
        answer,
        limiter.config().settings.headers,
        limiter.wall_clock(),
        Duration::ZERO,
        |name, value| {
            if name == wanted {
                found = Some(String::from_utf8_lossy(value).into_owned());
            }
        },
    );
    found
}

#[test]
fn the_command_names_bucket_limit_and_expiry() {
    let json = r#""api_keys": {"plain": "pro", "named": {"tier": "late", "id": "acme"}}, "default_tier": "free",
        "tiers": {"free": {"base": {"capacity": 5, "refill_rate": 0.25}, "ttl": 1},
                  "pro": {"base": {"capacity": 15, "refill_rate": 2}, "burst": {"capacity": 25},
                          "degraded": {"capacity": 3, "refill_rate": 0.01}, "ttl": 60},
                  "late": {"base": {"capacity": 10, "refill_rate": 1.000001}, "ttl": 120}}"#;
    let mut world = World::new(1, 1, &config(json));
    world.redis.knows_script = true;
    let mut command = |request: &FakeRequest| {
        world.decide_with_redis((0, 0), request);
        world.redis.take_commands().join(", ")
    };
    let from = |source: &str| FakeRequest::get("/").from(source);
    let cases = [
        (keyed("named"), "rate_limit:acme 10 1000001 120000 1 10 1000001"),
        (keyed("plain"), "rate_limit:a116c9ed46d62077 25 2000000 60000 2 3 10000"),
        (from("192.0.2.7:4711"), "rate_limit:192.0.2.7 5 250000 1000 3 5 250000"),
        (from("[::ffff:192.0.2.8]:1"), "rate_limit:192.0.2.8 5 250000 1000 4 5 250000"),
        (from("[2001:db8::1]:80"), "rate_limit:2001:db8::/64 5 250000 1000 5 5 250000"),
        (from("@"), "rate_limit:unknown 5 250000 1000 6 5 250000"),
    ];
    for (request, wanted) in cases {
        assert_eq!(command(&request), format!("EVALSHA <sha1> 1 {wanted}"));
    }
}

#[test]
fn the_reset_header_follows_the_clock_of_the_envoy_and_not_that_of_redis() {
    for redis_us in [1_700_000_000 * SECOND - 3_600 * SECOND, 1_700_000_000 * SECOND + 3_600 * SECOND] {
        let mut world = World::new(1, 1, &config(SLOW));
        world.redis.now_us = redis_us;
        for what in ["admitted", "refused by Redis", "refused by the deny cache"] {
            let decision = world.decide_with_redis((0, 0), &FakeRequest::get("/"));
            assert_eq!(matches!(decision, Decision::Admitted(_)), what == "admitted");
            let reset = header(&mut world, (0, 0), &decision, "x-ratelimit-reset");
            assert_eq!(reset.as_deref(), Some("1700000010"), "{what}");
        }
    }
}

#[test]
fn namespace_and_prefix_keep_limiters_on_one_redis_apart() {
    // (configuration, prefix of buckets, key of the health)
    let cases = [
        ("", "rate_limit:", "system:health:status"),
        (r#", "namespace": "default""#, "rate_limit:", "system:health:status"),
        (r#", "namespace": "other""#, "rate_limit:other/", "system:health:other:status"),
        (r#", "namespace": "default", "#, "rl/", "system:health:status"),
        (r#", "namespace": "a-b_C", "#, "rl/a-b_C/", "system:health:a-b_C:status"),
    ];
    for (rest, prefix, health_key) in cases {
        let store = match rest.strip_suffix(", ") {
            Some(rest) => format!(
                r#"{{"store": {{"kind": "redis", "cluster": "redis", "key_prefix": "rl/"}}, "api_keys": {{"k": {{"tier": "pro", "id": "pro"}}}}{rest}}}"#
            ),
            None => config(&format!(r#""api_keys": {{"k": {{"tier": "pro", "id": "pro"}}}}{rest}"#)),
        };
        let mut world = World::new(1, 1, &store);
        world.redis.knows_script = true;
        world.decide_with_redis((0, 0), &keyed("k"));
        world.post((0, 0), "DEGRADED");
        world.run(POLL_US);
        let key = format!("{prefix}pro");
        assert_eq!(world.redis.buckets.keys().collect::<Vec<_>>(), [&key]);
        assert_eq!(world.redis.strings.get(health_key).map(Vec::as_slice), Some(&b"DEGRADED"[..]), "{rest}");
        let commands = world.redis.take_commands();
        assert!(commands.contains(&format!("GET {health_key}")), "{commands:?}");
        // Probes have their own bucket.
        world.go_down();
        world.run(2 * SECOND);
        world.is_down = false;
        world.run(3 * SECOND);
        let mut keys: Vec<_> = world.redis.buckets.keys().cloned().collect();
        keys.sort();
        assert_eq!(keys, [format!("{prefix}#probe"), key]);
    }
}

#[test]
fn no_byte_of_a_key_or_token_is_ever_sent() {
    let json = r#""api_keys": {"canary-plain": "pro", "canary-named": {"tier": "pro", "id": "acme"}}"#;
    let mut world = World::new(2, 2, &config(json));
    let keys = ["canary-plain", "canary-named", "canary-unknown", "canary canary\r\n$6\r\ncanary", "canary"];
    for name in world.names() {
        for key in keys {
            for _ in 0..30 {
                world.decide_with_redis(name, &keyed(key));
                world.decide_with_redis(
                    name,
                    &FakeRequest::get("/canary?canary=canary").with("x-api-key", key),
                );
            }
        }
        world.post(name, "DEGRADED");
        let guess = FakeRequest::post("/system/health").with("x-admin-token", "canary");
        assert_eq!(replied(world.decide_with_redis(name, &guess)).0, 403);
        world.start_post(name, r#"{"status": "canary"}"#);
        world.run(SECOND);
    }
    world.go_down();
    world.run(5 * SECOND);
    world.is_down = false;
    world.run(5 * SECOND);
    assert!(world.redis.commands.len() > 100, "{}", world.redis.commands.len());
    for word in world.redis.commands.iter().flatten() {
        let text = String::from_utf8_lossy(word);
        assert!(!text.contains("canary") && !text.contains(TOKEN), "{text}");
    }
    for envoy in &world.envoys {
        for key in envoy.data.keys() {
            let (value, _) = envoy.data.get(&key).expect("a value");
            let text = format!("{key}={}", String::from_utf8_lossy(&value));
            assert!(!text.contains("canary") && !text.contains(TOKEN), "{text}");
        }
    }
}

#[test]
fn unlimited_and_blocked_tiers_and_exempt_paths_send_no_command() {
    let json = r#""default_tier": "blocked", "api_keys": {"open": "open"}, "exempt_paths": ["/metrics"],
        "tiers": {"blocked": {"base": {"capacity": 0, "refill_rate": 0}}, "open": {"unlimited": true}}"#;
    let mut world = World::new(1, 1, &config(json));
    for _ in 0..10 {
        assert!(
            matches!(world.decide((0, 0), &keyed("open")).1, Decision::Admitted(answer) if answer.verdict.is_none())
        );
        assert!(matches!(world.decide((0, 0), &keyed("other")).1, Decision::Refused(_)));
        assert!(matches!(world.decide((0, 0), &FakeRequest::get("/metrics")).1, Decision::Exempt));
        assert!(matches!(world.decide((0, 0), &FakeRequest::get("/health")).1, Decision::Replied(_)));
        world.exchange((0, 0));
    }
    assert_eq!(world.redis.take_commands(), [""; 0]);
}

#[test]
fn the_deny_cache_refuses_a_caller_for_a_second_at_most() {
    let mut world = World::new(1, 2, &config(SLOW));
    let (name, get) = ((0, 0), FakeRequest::get("/"));
    assert_eq!(world.remaining(name, &get), Some(0));
    assert_eq!(world.remaining(name, &get), None);
    let sent = world.redis.commands.len();
    for (later_us, wait_us, retry_after) in
        [(0, 10 * SECOND, "10"), (1, 9_999_999, "10"), (999_998, 9_000_001, "10")]
    {
        world.advance(later_us);
        let (_, decision) = world.decide(name, &get);
        let Decision::Refused(answer) = &decision else { panic!("{decision:?}") };
        let wanted = Verdict { outcome: Outcome::Refused, capacity: 1, remaining: 0, wait_us };
        assert_eq!(verdict(answer), wanted);
        assert_eq!(header(&mut world, name, &decision, "retry-after").as_deref(), Some(retry_after));
        assert_eq!(header(&mut world, name, &decision, "x-ratelimit-remaining").as_deref(), Some("0"));
        assert_eq!(header(&mut world, name, &decision, "x-ratelimit-reset").as_deref(), Some("1700000010"));
    }
    assert_eq!(world.redis.commands.len(), sent, "no command was sent");
    assert_eq!(world.counted(name, "requests_total.tier.slow.status.limited"), 4);

    world.advance(1);
    let (request_id, decision) = world.decide(name, &get);
    assert!(
        matches!(decision, Decision::AwaitsRedis(_)),
        "after a second one request waits for Redis: {decision:?}"
    );
    for _ in 0..5 {
        let (_, decision) = world.decide(name, &get);
        assert!(matches!(decision, Decision::Refused(_)), "and the others are refused: {decision:?}");
    }
    world.advance(MS);
    let decision = only(world.exchange(name), request_id);
    let Decision::Refused(answer) = &decision else { panic!("{decision:?}") };
    assert_eq!(verdict(answer).wait_us, 8_999_000);
    assert_eq!(header(&mut world, name, &decision, "retry-after").as_deref(), Some("9"));
    assert!(matches!(world.decide(name, &get).1, Decision::Refused(_)));
    assert_eq!(world.redis.commands.len(), sent + 1);

    let other = FakeRequest::get("/").from("192.0.2.99:1");
    assert_eq!(world.remaining(name, &other), Some(0), "another caller is not refused");
    assert!(
        matches!(world.decide((0, 1), &get).1, Decision::AwaitsRedis(_)),
        "another worker waits for Redis"
    );
}

#[test]
fn the_deny_cache_ends_at_the_microsecond_at_which_a_token_is_due() {
    let tier = r#""default_tier": "t", "tiers": {"t": {"base": {"capacity": 1, "refill_rate": 3}}}"#;
    let mut world = World::new(1, 1, &config(tier));
    let (name, get) = ((0, 0), FakeRequest::get("/"));
    assert_eq!(world.remaining(name, &get), Some(0));
    assert_eq!(world.remaining(name, &get), None);
    world.advance(333_333);
    assert!(matches!(world.decide(name, &get).1, Decision::Refused(_)), "a tick early");
    world.advance(1);
    let (first, second) = (world.decide(name, &get), world.decide(name, &get));
    assert!(
        matches!((first.1, second.1), (Decision::AwaitsRedis(_), Decision::AwaitsRedis(_))),
        "all wait for Redis again"
    );
    let decisions = world.exchange(name);
    assert!(matches!(decisions[0].1, Decision::Admitted(_)), "{decisions:?}");
    assert!(matches!(decisions[1].1, Decision::Refused(_)), "{decisions:?}");
}

#[test]
fn the_deny_cache_forgets_a_caller_whose_reply_does_not_come() {
    let mut world = World::new(1, 1, &config(SLOW));
    let (name, get) = ((0, 0), FakeRequest::get("/"));
    world.remaining(name, &get);
    assert_eq!(world.remaining(name, &get), None);
    world.advance(SECOND);
    let (request_id, _) = world.decide(name, &get);
    assert!(matches!(world.decide(name, &get).1, Decision::Refused(_)));
    world.is_frozen = true;
    let decisions = world.run(TIMEOUT + 5 * MS);
    assert!(matches!(only(decisions, request_id), Decision::Admitted(_)), "by this Envoy's own bucket");
    assert!(
        matches!(world.decide(name, &get).1, Decision::AwaitsRedis(_)),
        "and the next request waits for Redis"
    );
}

#[test]
fn a_change_of_health_or_documents_clears_the_deny_cache() {
    const TIERS: &str = r#"{"slow": {"base": {"capacity": 1, "refill_rate": 0.1}}}"#;
    let json = format!(r#"{SLOW}, "config_source": {{"cluster": "files", "tiers": "/tiers.json"}}"#);
    type Change = fn(&mut World);
    let cases: [(&str, Change); 4] = [
        ("set through this worker", |world| drop(world.post((0, 0), "DEGRADED"))),
        ("set through another worker", |world| drop(world.post((0, 1), "DEGRADED"))),
        ("set through another Envoy", |world| {
            world.post((1, 0), "DEGRADED");
            world.run(2 * POLL_US);
        }),
        ("documents", |world| {
            let (worker, data, _) = world.worker((0, 1));
            let fetched = Fetched { tiers: Some(Ok(TIERS.into())), api_keys: None };
            worker.limiter.begin_publication(fetched, data);
            worker.limiter.publish(data);
        }),
    ];
    for (what, change) in cases {
        let mut world = World::new(2, 2, &config(&json));
        let (name, get) = ((0, 0), FakeRequest::get("/"));
        world.remaining(name, &get);
        assert_eq!(world.remaining(name, &get), None);
        assert!(matches!(world.decide(name, &get).1, Decision::Refused(_)), "{what}: in the deny cache");
        change(&mut world);
        let (request_id, decision) = world.decide(name, &get);
        assert!(matches!(decision, Decision::AwaitsRedis(_)), "{what}: not in the deny cache: {decision:?}");
        let decision = only(world.exchange(name), request_id);
        assert!(matches!(decision, Decision::Refused(_)), "{what}: still empty: {decision:?}");
        assert!(
            matches!(world.decide(name, &get).1, Decision::Refused(_)),
            "{what}: in the deny cache again"
        );
    }
}

#[test]
fn a_reply_to_a_command_before_a_change_is_not_cached_after_it() {
    let mut world = World::new(1, 2, &config(SLOW));
    let (name, get) = ((0, 0), FakeRequest::get("/"));
    world.remaining(name, &get);
    world.is_frozen = true;
    let (request_id, decision) = world.decide(name, &get);
    assert!(matches!(decision, Decision::AwaitsRedis(_)));
    world.exchange(name);
    world.is_frozen = false;
    world.post((0, 1), "DEGRADED");
    // Its next request sees the change.
    assert_eq!(world.health(name), Health::Degraded);
    assert!(matches!(only(world.exchange(name), request_id), Decision::Refused(_)));
    assert!(
        matches!(world.decide(name, &get).1, Decision::AwaitsRedis(_)),
        "the refusal before the change is not cached"
    );
}

#[test]
fn health_that_an_operator_sets_in_redis_applies_and_other_values_are_ignored() {
    let mut world = World::new(2, 1, &config(""));
    let cases: [(&[u8], Health); 9] = [
        (b"DEGRADED", Health::Degraded),
        (b"degraded", Health::Degraded),
        (b"", Health::Degraded),
        (b"NORMAL\n", Health::Degraded),
        (b"\xff\xfe", Health::Degraded),
        (b"NORMAL", Health::Normal),
        (b"OFFLINE", Health::Normal),
        (&[b'x'; 4_000], Health::Normal),
        (b"DEGRADED", Health::Degraded),
    ];
    for (text, health) in cases {
        world.redis.strings.insert("system:health:status".to_owned(), text.to_vec());
        world.run(SECOND);
        for name in world.names() {
            assert_eq!(world.health(name), health, "{:?}", String::from_utf8_lossy(text));
        }
    }
}

#[test]
fn one_worker_of_each_envoy_polls_health_and_another_takes_over() {
    let mut world = World::new(2, 3, &config(""));
    world.run(10 * SECOND);
    let polls = |world: &World| -> Vec<Vec<usize>> {
        let workers = |envoy: &Envoy| envoy.workers.iter().map(|worker| worker.commands).collect();
        world.envoys.iter().map(workers).collect()
    };
    for mut envoy in polls(&world) {
        envoy.sort_unstable();
        assert_eq!(&envoy[..2], [0, 0], "one polls, the others send nothing");
        // It also probes until Redis is healthy.
        assert!((38..=44).contains(&envoy[2]), "four times a second: {envoy:?}");
    }
    // That worker of the first Envoy stops.
    let gone = polls(&world)[0].iter().position(|polls| *polls > 0).expect("one polls");
    let left: Vec<Name> = world.names().into_iter().filter(|name| *name != (0, gone)).collect();
    let pass = |world: &mut World, us: u64| {
        for _ in 0..us / (5 * MS) {
            world.advance(5 * MS);
            left.iter().for_each(|name| drop(world.tick(*name)));
        }
    };
    world.redis.strings.insert("system:health:status".to_owned(), b"DEGRADED".to_vec());
    pass(&mut world, SECOND);
    assert_eq!(world.health((0, (gone + 1) % 3)), Health::Degraded, "another has taken over within a second");
    pass(&mut world, 10 * SECOND);
    let polling = polls(&world)[0].iter().filter(|polls| **polls > 0).count();
    assert_eq!(polling, 2, "one besides the one that is gone: {:?}", polls(&world));
}

#[test]
fn a_change_of_health_applies_when_redis_has_stored_it() {
    let mut world = World::new(1, 2, &config(""));
    world.is_frozen = true;
    let (request_id, decision) = world.start_post((0, 0), r#"{"status":"DEGRADED"}"#);
    assert!(matches!(decision, Decision::AwaitsRedis(_)), "{decision:?}");
    world.exchange((0, 0));
    assert_eq!(world.redis.strings["system:health:status"], b"DEGRADED");
    world.advance(999 * MS);
    world.tick((0, 0));
    assert_eq!(world.health((0, 1)), Health::Normal, "the change is not confirmed yet");
    world.is_frozen = false;
    let (status, body) = replied(only(world.exchange((0, 0)), request_id));
    assert_eq!(status, 200);
    assert!(body.contains(r#""previous_status":"NORMAL","new_status":"DEGRADED""#), "{body}");
    assert_eq!(world.health((0, 1)), Health::Degraded);
    assert_eq!(world.counted((0, 0), "admin_requests_total.result.ok"), 1);
}

#[test]
fn a_change_that_redis_does_not_store_is_an_error_and_changes_nothing() {
    type Fail = fn(&mut World) -> (RequestId, Vec<(RequestId, Decision)>);
    const DEGRADED: &str = r#"{"status":"DEGRADED"}"#;
    let cases: [(&str, Fail); 5] = [
        ("refused by Redis", |world| {
            world.redis.error = Some("READONLY You can't write against a read only replica.");
            let (request_id, _) = world.start_post((0, 0), DEGRADED);
            (request_id, world.exchange((0, 0)))
        }),
        ("no connection", |world| {
            world.is_down = true;
            let (request_id, _) = world.start_post((0, 0), DEGRADED);
            (request_id, world.exchange((0, 0)))
        }),
        ("connection lost", |world| {
            world.is_frozen = true;
            let (request_id, _) = world.start_post((0, 0), DEGRADED);
            world.exchange((0, 0));
            world.go_down();
            (request_id, world.exchange((0, 0)))
        }),
        ("no answer", |world| {
            world.is_frozen = true;
            let (request_id, _) = world.start_post((0, 0), DEGRADED);
            world.exchange((0, 0));
            (request_id, world.run(SECOND))
        }),
        ("known to be lost", |world| {
            world.is_down = true;
            for _ in 0..3 {
                world.decide_with_redis((0, 0), &FakeRequest::get("/"));
            }
            let (request_id, decision) = world.start_post((0, 0), DEGRADED);
            (request_id, vec![(request_id, decision)])
        }),
    ];
    for (what, fail) in cases {
        let mut world = World::new(1, 2, &config(""));
        let (request_id, decisions) = fail(&mut world);
        let answer = replied(only(decisions, request_id));
        assert_eq!(answer, (500, r#"{"detail":"Failed to update health"}"#.to_owned()), "{what}");
        for name in world.names() {
            assert_eq!(world.health(name), Health::Normal, "{what}");
        }
        assert_eq!(world.counted((0, 0), "admin_requests_total.result.failed"), 1, "{what}");
    }
    let mut world = World::new(1, 1, &config(""));
    assert_eq!(replied(world.start_post((0, 0), "{}").1).0, 400);
    world.exchange((0, 0));
    assert_eq!(world.redis.take_commands(), [""; 0], "an invalid change is not sent");
}

#[test]
fn an_envoy_restores_the_health_that_redis_has_lost() {
    let mut world = World::new(2, 2, &config(""));
    world.run(SECOND);
    world.post((0, 0), "DEGRADED");
    world.run(SECOND);
    world.redis.strings.clear();
    world.redis.take_commands();
    world.run(SECOND);
    for name in world.names() {
        assert_eq!(world.health(name), Health::Degraded, "the known health stays");
    }
    assert_eq!(world.redis.strings["system:health:status"], b"DEGRADED");
    let written = world.redis.take_commands().into_iter().filter(|command| command.starts_with("SET"));
    let written: Vec<String> = written.collect();
    assert!(!written.is_empty());
    assert!(written.iter().all(|command| command == "SET system:health:status DEGRADED NX"), "{written:?}");

    // A new Envoy knows no health, and restores none.
    let mut world = World::new(1, 1, &config(""));
    world.run(SECOND);
    assert!(!world.redis.take_commands().iter().any(|command| command.starts_with("SET")));
    assert!(world.redis.strings.is_empty());
}

#[test]
fn restoring_a_missing_health_does_not_overwrite_a_newer_one() {
    let mut world = World::new(2, 1, &config(""));
    world.post((0, 0), "DEGRADED");
    world.run(SECOND);
    world.redis.strings.clear();
    // The first Envoy finds none; before it restores its own, another Envoy sets a new one.
    world.is_frozen = true;
    world.advance(POLL_US);
    world.tick((0, 0));
    world.is_frozen = false;
    world.post((1, 0), "NORMAL");
    world.run(SECOND);
    assert_eq!(world.redis.strings["system:health:status"], b"NORMAL");
    for name in world.names() {
        assert_eq!(world.health(name), Health::Normal);
    }
}

#[test]
fn a_health_read_before_a_change_does_not_undo_it() {
    let mut world = World::new(1, 2, &config(""));
    world.redis.strings.insert("system:health:status".to_owned(), b"NORMAL".to_vec());
    world.run(SECOND);
    let polls = world.envoys[0].workers.iter().position(|worker| worker.commands > 0).expect("one polls");
    // The reply with the old health is in flight while the other worker sets a new one.
    world.is_frozen = true;
    world.advance(POLL_US);
    world.tick((0, polls));
    assert_eq!(world.envoys[0].workers[polls].stream.replies.len(), 1);
    world.is_frozen = false;
    assert_eq!(world.post((0, 1 - polls), "DEGRADED").0, 200);
    world.exchange((0, polls));
    for name in world.names() {
        assert_eq!(world.health(name), Health::Degraded);
    }
    world.run(SECOND);
    assert_eq!(world.health((0, 0)), Health::Degraded);
    assert_eq!(world.redis.strings["system:health:status"], b"DEGRADED");
}

#[test]
fn the_health_check_reports_the_state_of_redis() {
    let mut world = World::new(1, 2, &config(""));
    let reported = |world: &mut World| {
        let [first, second] = [0, 1].map(|worker| world.get((0, worker), "/health"));
        assert_eq!(first, second, "workers report the same");
        first
    };
    let connected = r#"{"status":"healthy","redis":"connected","health":"NORMAL"}"#;
    let disconnected = r#"{"status":"degraded","redis":"disconnected","health":"NORMAL"}"#;
    assert_eq!(reported(&mut world), disconnected, "before the first reply");
    world.run(POLL_US + 5 * MS);
    assert_eq!(reported(&mut world), connected, "connected without a request");
    let level = |level| Sample::Level("rate_limiter_redis_connected".to_owned(), level);
    assert!(world.worker((0, 0)).0.limiter.drain_metrics().contains(&level(1)));
    for worker in 0..2 {
        world.decide_with_redis((0, worker), &FakeRequest::get("/"));
    }
    world.go_down();
    assert_eq!(reported(&mut world), connected, "a closed stream is no failure");
    for worker in 0..2 {
        (0..3).for_each(|_| drop(world.decide_with_redis((0, worker), &FakeRequest::get("/"))));
    }
    assert_eq!(reported(&mut world), disconnected);
    assert!(world.worker((0, 0)).0.limiter.drain_metrics().contains(&level(0)));
    world.is_down = false;
    world.run(3 * SECOND);
    assert_eq!(reported(&mut world), connected, "by itself");
    world.post((0, 0), "DEGRADED");
    assert_eq!(reported(&mut world), connected.replace("NORMAL", "DEGRADED"));
    let head = FakeRequest { method: "HEAD".into(), ..FakeRequest::get("/health") };
    assert_eq!(replied(world.decide_with_redis((0, 0), &head)).0, 200);
}

#[test]
fn a_read_only_redis_is_not_reported_as_connected() {
    let mut world = World::new(1, 3, &config(""));
    world.redis.is_replica = true;
    let decide_all = |world: &mut World| {
        for name in world.names() {
            world.decide_with_redis(name, &FakeRequest::get("/"));
        }
    };
    (0..5).for_each(|_| decide_all(&mut world));
    for _ in 0..20 {
        world.run(POLL_US);
        let reported = world.get((0, 0), "/health");
        assert!(reported.contains(r#""redis":"disconnected""#), "by a worker that only polls: {reported}");
    }
    world.redis.is_replica = false;
    world.run(5 * SECOND);
    assert!(world.get((0, 0), "/health").contains(r#""redis":"connected""#));
}

#[test]
fn at_a_recheck_one_request_waits_for_a_place_and_then_for_redis() {
    let mut world = World::new(1, 1, &config(SLOW));
    let (name, get) = ((0, 0), FakeRequest::get("/"));
    world.remaining(name, &get);
    assert_eq!(world.remaining(name, &get), None);
    world.advance(SECOND);
    let (worker, data, _) = world.worker(name);
    let start = |id, later_us| {
        let at = data.now().after(Duration::from_micros(later_us));
        RequestStart { id, at }
    };
    let mut decider = worker.limiter.decider(data);
    let Screening::Limited(limited) = decider.screen(&get, data.now(), false) else {
        panic!("it has a bucket")
    };
    assert!(decider.refuse_if_empty(&limited, start(101, 0)).is_none(), "it waits for a place");
    for id in [102, 103] {
        let refused = decider.refuse_if_empty(&limited, start(id, 1));
        assert!(matches!(refused, Some(Decision::Refused(_))), "{refused:?}");
    }
    let decision = decider.charge(&limited, start(104, MS));
    assert!(matches!(decision, Decision::Refused(_)), "{decision:?}");
    let decision = decider.charge(&limited, start(101, 2 * MS));
    assert!(matches!(decision, Decision::AwaitsRedis(_)), "it has its place: {decision:?}");
}
