//! Faults of Redis under load: three Envoys, each with another policy, on one Redis, over a connection with fault
//! injection.
//!
//! Each bucket in Redis is half full, so a response shows who has decided it: at most half the capacity remains if it
//! was Redis, more if it was the Envoy's own bucket.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use e2e::envoy::Envoy;
use e2e::load::{self, Exchange};
use e2e::prometheus::Scrape;
use e2e::redis::Redis;
use e2e::wait;
use e2e::wire::{Fault, Wire};
use serde_json::json;

use super::{
    CONNECTED, FAILURES, FALLBACKS, RECOVERY, REQUESTS, await_redis, client_capacity, client_request,
    clients, health_report, redis_setup, total,
};

mod cases;

const POLICIES: [&str; 3] = ["local", "allow", "deny"];

/// To each Envoy. Each connection is another client, so a bucket is used on one connection only.
const CONNECTIONS: usize = 4;
const CLIENTS: usize = CONNECTIONS * POLICIES.len();
const PAUSE: Duration = Duration::from_millis(8);

const TIMEOUT_MS: u64 = 100;
const TIMEOUT: Duration = Duration::from_millis(TIMEOUT_MS);

const TICK: Duration = Duration::from_millis(10);

/// The delay that two shared cores and a debug build of this test may add to 99 of 100 responses.
const USUAL_DELAY: Duration = Duration::from_millis(50);
/// The delay that they may add to a single response.
const WORST_DELAY: Duration = Duration::from_millis(250);

/// After this time, three failures in a row have opened the breaker of every worker with requests.
const OPENING: Duration = Duration::from_millis(1_200);

/// How many responses may be as late as a timeout because the machine is busy.
const STRAY: usize = 3;

struct Case {
    name: &'static str,
    /// The failures are counted as one of these.
    reasons: &'static [&'static str],
    injection: Injection,
}

/// A fault, and how it ends. The breaker opens, unless good replies arrive in between.
enum Injection {
    /// What happens to replies.
    Replies(Fault),
    /// A command to Redis, and the one that ends its effect.
    Command(&'static [&'static str], &'static [&'static str]),
    Other(fn(&mut World), fn(&mut World)),
    /// It ends by itself; good replies arrive in between.
    Passing(fn(&mut World)),
}

struct World {
    redis: Redis,
    wire: Wire,
    envoys: [Envoy; POLICIES.len()],
    /// Requests sent so far, to each Envoy.
    sent: [usize; POLICIES.len()],
    /// When each client sent its last request, if Redis decided it.
    by_redis: Arc<Mutex<Vec<Option<Instant>>>>,
}

struct Marks {
    injected: Instant,
    healed: Instant,
    recovered: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decided {
    Redis { remaining: u64 },
    ByPolicy,
}

#[test]
fn faults_of_the_connection() {
    assert_survives(Redis::start(), cases::CONNECTION);
}

#[test]
fn faults_of_time() {
    assert_survives(Redis::start(), cases::TIME);
}

#[test]
fn faults_of_replies() {
    assert_survives(Redis::start(), cases::REPLIES);
}

#[test]
fn refusals_of_redis() {
    assert_survives(Redis::start(), cases::REFUSALS);
}

#[test]
fn refusals_of_a_cluster() {
    let node = Redis::start_node();
    node.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    wait::until("a cluster of one", || {
        node.command(&["CLUSTER", "INFO"]).text().contains("cluster_state:ok").then_some(())
    });
    assert_survives(node, cases::CLUSTER);
}

/// Checks for every fault that the policy decides in time, that it is reported and counted, and that Redis recovers.
#[track_caller]
fn assert_survives(redis: Redis, cases: &[Case]) {
    let _alone = wait::alone();
    let mut world = World::start(redis);
    let mut all = Vec::new();
    for case in cases {
        let began = Instant::now();
        let errors = world.run(case);
        eprintln!("{}: {:.1?}, {errors:#?}", case.name, began.elapsed());
        all.extend(errors.into_iter().map(|error| format!("{}: {error}", case.name)));
    }
    assert!(all.is_empty(), "{} errors\n{}", all.len(), all.join("\n"));
}

impl Injection {
    fn inject(&self, world: &mut World) {
        match self {
            Self::Replies(fault) => world.wire.fault(fault.clone()),
            Self::Command(begin, _) => drop(world.redis.command(begin)),
            Self::Other(begin, _) | Self::Passing(begin) => begin(world),
        }
    }

    fn heal(&self, world: &mut World) {
        match self {
            Self::Replies(_) => world.wire.fault(Fault::None),
            Self::Command(_, end) => drop(world.redis.command(end)),
            Self::Other(_, end) => end(world),
            Self::Passing(_) => {}
        }
    }

    fn opens(&self) -> bool {
        !matches!(self, Self::Passing(_))
    }
}

impl World {
    fn start(redis: Redis) -> Self {
        let wire = Wire::start(redis.address());
        let setup = |policy| redis_setup(clients(CLIENTS), TIMEOUT_MS, policy, wire.address()).quiet();
        let envoys = POLICIES.map(|policy| setup(policy).start());
        let by_redis = Arc::new(Mutex::new(vec![None; CLIENTS]));
        let mut world = Self { redis, wire, envoys, sent: [0; POLICIES.len()], by_redis };
        for client in 0..CLIENTS {
            let half = format!("{}.0", client_capacity(client) / 2);
            let bucket = format!("rate_limit:client-{client}");
            let now = format!("{:.6}", wait::unix_now());
            world.redis.command(&["HSET", &bucket, "tokens", &half, "last_refill", &now]);
        }
        // Requests from the first moment on, as for Envoys that start under load.
        let ((), exchanges) = world.observe(|_| std::thread::sleep(Duration::from_millis(500)));
        assert!(exchanges.iter().any(|exchange| matches!(decided(exchange), Ok(Decided::Redis { .. }))));
        for (index, envoy) in world.envoys.iter().enumerate() {
            await_redis(envoy, "connected");
            // A worker reports its counts a little later.
            assert_eq!(world.await_counts(index), None);
        }
        world
    }

    /// Lets every client send requests while `work` runs.
    fn observe<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> (T, Vec<Exchange>) {
        let addresses: Vec<_> = self.envoys.iter().map(Envoy::address).collect();
        let by_redis = Arc::clone(&self.by_redis);
        let request = |client: usize, before: &[Exchange]| {
            let last = before.last().filter(|last| matches!(decided(last), Ok(Decided::Redis { .. })));
            by_redis.lock().expect("no panic with the lock")[client] = last.map(|last| last.sent);
            client_request(client)
        };
        let (result, exchanges) = load::observe(&addresses, CLIENTS, PAUSE, request, || work(&mut *self));
        for exchange in &exchanges {
            self.sent[exchange.connection % POLICIES.len()] += 1;
        }
        (result, exchanges)
    }

    /// Returns what was wrong.
    fn run(&mut self, case: &Case) -> Vec<String> {
        let before: Vec<_> = self.envoys.iter().map(Envoy::scrape).collect();
        let ((), calm) = self.observe(|_| std::thread::sleep(Duration::from_millis(250)));
        let mut errors = Vec::new();
        let (marks, exchanges) = self.observe(|world| {
            let injected = Instant::now();
            case.injection.inject(world);
            if case.injection.opens() {
                std::thread::sleep(OPENING.saturating_sub(injected.elapsed()));
                errors.extend(world.check_reports("disconnected"));
                std::thread::sleep(Duration::from_millis(400));
            }
            case.injection.heal(world);
            let healed = Instant::now();
            errors.extend(world.await_recovery(healed));
            let recovered = Instant::now();
            std::thread::sleep(Duration::from_millis(300));
            Marks { injected, healed, recovered }
        });
        for (index, policy) in POLICIES.iter().enumerate() {
            let mine = |exchange: &&Exchange| exchange.connection % POLICIES.len() == index;
            let calm: Vec<_> = calm.iter().filter(mine).collect();
            let during: Vec<_> = exchanges.iter().filter(mine).collect();
            let all = [calm.as_slice(), &during].concat();
            let mut found = check_responses(&all);
            found.extend(check_times(case, &marks, &calm, &during));
            found.extend(check_recovery(&marks, &during));
            found.extend(self.check_counts(case, index, &before[index], &all));
            errors.extend(found.into_iter().map(|error| format!("{policy}: {error}")));
        }
        errors
    }

    /// Waits until `/health` and the gauge report this state; returns what does not.
    fn check_reports(&self, state: &str) -> Vec<String> {
        let status = if state == "connected" { "healthy" } else { "degraded" };
        let wanted = json!({"status": status, "redis": state, "health": "NORMAL"});
        let gauge = if state == "connected" { 1.0 } else { 0.0 };
        let mut errors = Vec::new();
        for (envoy, policy) in self.envoys.iter().zip(POLICIES) {
            let is_reported = || (health_report(envoy) == wanted).then_some(());
            if wait::poll(RECOVERY, is_reported).is_none() {
                let report = health_report(envoy);
                errors.push(format!("{policy}: /health reports {report} instead of {wanted}"));
            }
            let is_in_gauge = || (envoy.metric(CONNECTED, &[]) == Some(gauge)).then_some(());
            if wait::poll(Duration::from_secs(3), is_in_gauge).is_none() {
                errors.push(format!("{policy}: {CONNECTED} is {:?}", envoy.metric(CONNECTED, &[])));
            }
        }
        errors
    }

    /// Waits until Redis has decided the last request of every client, and so on every worker.
    fn await_recovery(&self, healed: Instant) -> Vec<String> {
        let is_new = |last: &Option<Instant>| last.is_some_and(|sent| sent > healed);
        let recovered = wait::poll(RECOVERY, || {
            self.by_redis.lock().expect("no panic with the lock").iter().all(is_new).then_some(())
        });
        if recovered.is_none() {
            return vec![format!(
                "Redis does not decide everything {:.1?} after the fault",
                healed.elapsed()
            )];
        }
        self.check_reports("connected")
    }

    /// Waits until every request to this Envoy is counted; returns what is wrong if that does not happen.
    fn await_counts(&self, index: usize) -> Option<String> {
        let (envoy, sent) = (&self.envoys[index], self.sent[index]);
        let counted = wait::poll(wait::SOON, || (total(envoy, REQUESTS) == sent as f64).then_some(()));
        counted.is_none().then(|| format!("{} requests counted, {sent} sent", total(envoy, REQUESTS)))
    }

    fn check_counts(
        &self,
        case: &Case,
        index: usize,
        before: &Scrape,
        exchanges: &[&Exchange],
    ) -> Vec<String> {
        let (envoy, policy) = (&self.envoys[index], POLICIES[index]);
        if let Some(error) = self.await_counts(index) {
            return vec![error];
        }
        let after = envoy.scrape();
        let by_policy = number_by_policy(exchanges);
        let mut errors = Vec::new();
        let mut expect = |what: &str, found: f64, wanted: usize| {
            if found != wanted as f64 {
                errors.push(format!("{what} grew by {found}, {wanted} by the responses"));
            }
        };
        for name in POLICIES {
            let fallbacks = |scrape: &Scrape| scrape.value(FALLBACKS, &[("policy", name)]).unwrap_or(0.0);
            let wanted = if name == policy { by_policy } else { 0 };
            expect(&format!("fallbacks {name}"), fallbacks(&after) - fallbacks(before), wanted);
        }
        let blocked = |scrape: &Scrape| -> f64 {
            let of_a_tier = scrape.named(REQUESTS).into_iter();
            of_a_tier.filter(|sample| sample.labels["status"] == "blocked").map(|sample| sample.value).sum()
        };
        let wanted = if policy == "deny" { by_policy } else { 0 };
        expect("blocked", blocked(&after) - blocked(before), wanted);
        let failures_before = failures(before);
        let mut grown = failures(&after);
        grown.retain(|reason, count| *count > failures_before.get(reason).copied().unwrap_or(0.0));
        if case.reasons.is_empty() {
            if by_policy > STRAY {
                errors
                    .push(format!("{by_policy} responses by policy, although Redis was healthy; {grown:?}"));
            }
        } else if !case.reasons.iter().any(|reason| grown.contains_key(reason)) {
            errors.push(format!("failures are counted as {grown:?}, not {:?}", case.reasons));
        }
        errors
    }
}

/// The number of store failures by reason.
fn failures(scrape: &Scrape) -> BTreeMap<&str, f64> {
    let samples = scrape.named(FAILURES).into_iter();
    samples.map(|sample| (sample.labels["reason"].as_str(), sample.value)).collect()
}

/// Who has decided a response, or what is wrong with it: it is of neither Redis nor the policy of the client's Envoy.
fn decided(exchange: &Exchange) -> Result<Decided, String> {
    let client = exchange.connection;
    let response = exchange.answer.as_ref().map_err(|error| format!("client {client}: {error}"))?;
    let value = |name: &str| response.all(name).concat();
    let capacity = client_capacity(client);
    let remaining = value("x-ratelimit-remaining").parse().unwrap_or(u64::MAX);
    let has_own_limit = response.status == 200 && value("x-ratelimit-limit") == capacity.to_string();
    let has_no_limit = !response.has("x-ratelimit-limit") && !response.has("x-ratelimit-remaining");
    // No client sends enough requests to reach the range of the next lower client.
    let is_of_redis = has_own_limit && (capacity / 2 - 50_000..=capacity / 2).contains(&remaining);
    let is_of_policy = match POLICIES[client % POLICIES.len()] {
        "local" => has_own_limit && (capacity - 50_000 + 1..capacity).contains(&remaining),
        "allow" => response.status == 200 && has_no_limit,
        _ => {
            let is_denial = value("content-type") == "text/plain" && value("retry-after") == "1";
            response.status == 503 && has_no_limit && is_denial
        }
    };
    let is_own = value("x-ratelimit-tier") == format!("client-{client}");
    match is_own && value("x-system-health") == "NORMAL" {
        true if is_of_redis => Ok(Decided::Redis { remaining }),
        true if is_of_policy => Ok(Decided::ByPolicy),
        _ => Err(format!("client {client} got {response:?}")),
    }
}

fn number_by_policy(exchanges: &[&Exchange]) -> usize {
    exchanges.iter().filter(|exchange| decided(exchange) == Ok(Decided::ByPolicy)).count()
}

/// Checks that every response is allowed by the policy, and that each reply of Redis went to its own request: the
/// remaining tokens fall by one for each request, and by at most one for each command that timed out in between.
fn check_responses(exchanges: &[&Exchange]) -> Vec<String> {
    let mut errors = Vec::new();
    for client in 0..CLIENTS {
        let (mut last, mut timed_out) = (None, 0);
        for exchange in exchanges.iter().filter(|exchange| exchange.connection == client) {
            match decided(exchange) {
                Err(error) => errors.push(error),
                Ok(Decided::ByPolicy) => timed_out += 1,
                Ok(Decided::Redis { remaining }) => {
                    if let Some(last) = last
                        && !(remaining + 1..=remaining + 1 + timed_out).contains(&last)
                    {
                        errors.push(format!(
                            "client {client}: {last} left, then {remaining}, with {timed_out} given up in between"
                        ));
                    }
                    (last, timed_out) = (Some(remaining), 0);
                }
            }
        }
    }
    errors.truncate(5);
    errors
}

fn check_times(case: &Case, marks: &Marks, calm: &[&Exchange], during: &[&Exchange]) -> Vec<String> {
    let mut errors = Vec::new();
    let delays_of = |exchanges: &[&Exchange]| exchanges.iter().map(|exchange| exchange.delay()).collect();
    let (usual, _) = load::p99_and_longest(delays_of(calm));
    let (p99, worst) = load::p99_and_longest(delays_of(during));
    if p99 > TIMEOUT + TICK + usual + USUAL_DELAY {
        errors.push(format!("99 of 100 responses took up to {p99:?}, {usual:?} without a fault"));
    }
    if worst > TIMEOUT + TICK + usual + WORST_DELAY {
        errors.push(format!("a response took {worst:?}, {usual:?} without a fault"));
    }
    if case.injection.opens() {
        let from = marks.injected + OPENING;
        let open: Vec<_> =
            during.iter().filter(|e| e.sent > from && e.sent + e.took < marks.healed).copied().collect();
        let waited = open.iter().filter(|exchange| exchange.delay() >= TIMEOUT).count();
        if open.len() < 20 {
            errors.push(format!("only {} responses while the breaker was open", open.len()));
        }
        if waited > STRAY {
            errors.push(format!("{waited} of {} waited while the breaker was open", open.len()));
        }
        let by_redis = |e: &&&Exchange| matches!(decided(e), Ok(Decided::Redis { .. }));
        if open.iter().filter(by_redis).count() > 0 {
            errors.push("Redis has decided during the fault".to_owned());
        }
    }
    errors
}

/// Checks that Redis decides all requests after the recovery, except for a few that the busy machine delays.
fn check_recovery(marks: &Marks, during: &[&Exchange]) -> Vec<String> {
    let after: Vec<_> = during.iter().copied().filter(|e| e.sent > marks.recovered).collect();
    let by_policy = number_by_policy(&after);
    if after.len() < 20 {
        return vec![format!("only {} responses after the fault", after.len())];
    }
    if by_policy > STRAY {
        return vec![format!("{by_policy} of {} decided by policy after the fault", after.len())];
    }
    Vec::new()
}
