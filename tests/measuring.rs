//! Measured health in the limiter: what it makes of the upstream, whose word wins, and who is turned away.

mod common;

use common::{ARRIVAL, FakeData, FakeRequest, SECOND, TOKEN, limiter};
use dynamic_rate_limiter::generation::Role;
use dynamic_rate_limiter::health::Health;
use dynamic_rate_limiter::limiter::{Decision, Limiter};
use dynamic_rate_limiter::load::{Load, Response};
use dynamic_rate_limiter::metrics::Sample;
use dynamic_rate_limiter::request::Arrival;
use dynamic_rate_limiter::store::SharedData;
use serde_json::{Value, json};

/// How often workers hand in with a window of two seconds, in microseconds.
const HAND_IN_US: u64 = 50_000;

const LOAD_KEY: &str = "rate_limiter/default/load";

/// Two seconds of window, one to turn, two to turn back; no bucket is ever empty.
fn auto() -> Value {
    let tier =
        |priority| json!({"base": {"capacity": 1_000_000, "refill_rate": 100_000}, "priority": priority});
    json!({
        "tiers": {"free": tier(2), "enterprise": tier(8)},
        "api_keys": {"enterprise": "enterprise"},
        "health": {
            "mode": "auto", "window_seconds": 2, "min_requests": 20,
            "degrade_after_seconds": 1, "recover_after_seconds": 2
        },
    })
}

/// One Envoy: workers on one shared data, and an upstream that does so much a second and fails the rest at once.
struct Envoy {
    data: FakeData,
    workers: Vec<Limiter>,
    capacity: u64,
    turns: u64,
    shed: Vec<(String, u64)>,
    failed: Vec<String>,
}

impl Envoy {
    fn start(config: &Value) -> Self {
        let data = FakeData::at(SECOND);
        let workers = (0..2).map(|_| limiter(&data, &config.to_string())).collect();
        Self { data, workers, capacity: u64::MAX, turns: 0, shed: Vec::new(), failed: Vec::new() }
    }

    /// Lets that many seconds pass, in each of which so many callers of each tier send one request.
    fn run(&mut self, seconds: u64, free: u64, enterprise: u64) {
        let steps = SECOND / HAND_IN_US;
        for step in 0..seconds * steps {
            let share =
                |callers: u64| (callers * (step % steps + 1) / steps) - callers * (step % steps) / steps;
            let mut served = 0;
            for turn in 0..share(enterprise) + share(free) {
                let is_enterprise = turn < share(enterprise);
                let may_serve = served < self.capacity / steps;
                served += u64::from(self.send(is_enterprise, may_serve));
            }
            self.data.advance(HAND_IN_US);
            for worker in &mut self.workers {
                worker.measure(self.data.now_us(), Role::Newest, &self.data);
            }
        }
    }

    /// Whether the upstream got it. Every worker has its share of requests.
    fn send(&mut self, is_enterprise: bool, may_serve: bool) -> bool {
        self.turns += 1;
        let (tier, request) = match is_enterprise {
            true => ("enterprise", FakeRequest::get("/").with("x-api-key", "enterprise")),
            false => {
                let n = self.turns % 1_000;
                ("free", FakeRequest::get("/").from(&format!("198.18.{}.{}:1", n / 250, n % 250)))
            }
        };
        let worker = &mut self.workers[self.turns as usize % 2];
        let arrival = Arrival { ticket: 1, at_us: self.data.now_us() };
        match worker.decide(&request, &self.data, arrival) {
            Decision::Admitted(_) => {
                // What it cannot do it refuses at once.
                let response =
                    if may_serve { Response::Good(Some(10_000)) } else { Response::Failed(Some(1_000)) };
                worker.tally().expect("health is measured").answered(response);
                if !may_serve {
                    self.failed.push(tier.to_owned());
                }
                true
            }
            Decision::Shed(answer, seconds) => {
                assert_eq!((answer.health, answer.verdict), (Health::Degraded, None));
                self.shed.push((answer.tier.name.clone(), seconds));
                false
            }
            other => panic!("{other:?}"),
        }
    }

    fn post(&mut self, status: &str) -> (u32, Value) {
        let request = FakeRequest::post("/system/health").with("x-admin-token", TOKEN);
        let Decision::AwaitsBody(pending) = self.workers[0].decide(&request, &self.data, ARRIVAL) else {
            panic!("the token was not accepted");
        };
        let body = json!({ "status": status }).to_string();
        match self.workers[0].change_health(&pending, body.as_bytes(), &self.data, ARRIVAL) {
            Decision::Replied(reply) => (reply.status, serde_json::from_str(&reply.body).expect("JSON")),
            other => panic!("{other:?}"),
        }
    }

    /// What each worker shows, which is the same.
    fn shown(&mut self) -> Value {
        let request = FakeRequest::get("/system/health");
        let shown: Vec<Value> = self
            .workers
            .iter_mut()
            .map(|worker| match worker.decide(&request, &self.data, ARRIVAL) {
                Decision::Replied(reply) => serde_json::from_str(&reply.body).expect("JSON"),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(shown[0], shown[1]);
        shown[0].clone()
    }

    fn health(&mut self) -> String {
        self.shown()["health"].as_str().expect("a health").to_owned()
    }
}

#[test]
fn errors_turn_health_and_their_end_turns_it_back() {
    let mut envoy = Envoy::start(&auto());
    envoy.run(4, 100, 20);
    assert_eq!(envoy.health(), "NORMAL");
    envoy.capacity = 0;
    envoy.run(4, 100, 20);
    let shown = envoy.shown();
    assert_eq!((&shown["health"], &shown["mode"]), (&json!("DEGRADED"), &json!("auto")));
    assert_eq!(shown["reason"]["bound"], "error_ratio");
    assert_eq!(shown["signals"]["error_ratio"], 1.0);
    assert_eq!(shown["signals"]["in_flight"], 0.0);
    envoy.capacity = u64::MAX;
    envoy.run(6, 100, 20);
    let shown = envoy.shown();
    assert_eq!(
        (&shown["health"], &shown["reason"], &shown["severity"]),
        (&json!("NORMAL"), &json!(null), &json!(0.0))
    );
    let counts: Vec<_> = envoy.workers.iter_mut().flat_map(|worker| worker.metrics.drain()).collect();
    for reason in ["error_ratio", "recovered"] {
        let name = format!("rate_limiter_health_transitions_total.reason.{reason}");
        let told: Vec<_> = counts
            .iter()
            .filter(|sample| matches!(sample, Sample::Count(known, 1) if *known == name))
            .collect();
        assert_eq!(told.len(), 1, "{reason}: by one worker, once");
    }
}

#[test]
fn an_operators_word_wins_until_it_is_given_back() {
    let mut envoy = Envoy::start(&auto());
    envoy.capacity = 0;
    envoy.run(4, 100, 20);
    assert_eq!(envoy.health(), "DEGRADED");
    let (status, reply) = envoy.post("NORMAL");
    assert_eq!(
        (status, &reply["previous_status"], &reply["new_status"]),
        (200, &json!("AUTO"), &json!("NORMAL"))
    );
    envoy.shed.clear();
    envoy.run(4, 100, 20);
    let shown = envoy.shown();
    assert_eq!(
        (&shown["health"], &shown["mode"], &shown["severity"]),
        (&json!("NORMAL"), &json!("manual"), &json!(0.0))
    );
    assert!(envoy.shed.is_empty(), "nobody is turned away while an operator says NORMAL");

    let (status, reply) = envoy.post("AUTO");
    assert_eq!(
        (status, &reply["previous_status"], &reply["new_status"]),
        (200, &json!("NORMAL"), &json!("AUTO"))
    );
    assert_eq!(envoy.health(), "DEGRADED", "what is measured holds at once");
    envoy.post("DEGRADED");
    envoy.capacity = u64::MAX;
    envoy.run(12, 100, 20);
    assert_eq!(envoy.health(), "DEGRADED", "however well the upstream is");
    envoy.post("AUTO");
    assert_eq!(envoy.health(), "NORMAL");
}

#[test]
fn where_health_is_told_it_is_not_measured() {
    let mut config = auto();
    config["health"]["mode"] = json!("manual");
    let mut envoy = Envoy::start(&config);
    assert!(envoy.workers[0].tally().is_none());
    let (status, reply) = envoy.post("AUTO");
    assert_eq!(status, 400);
    assert_eq!(reply["detail"], "body.status: found \"AUTO\", wanted \"NORMAL\" or \"DEGRADED\"");
    let shown = envoy.shown();
    assert_eq!(shown.as_object().expect("an object").len(), 2, "{shown}");
    envoy.workers[0].measure(envoy.data.now_us(), Role::Newest, &envoy.data);
    assert!(!envoy.data.keys().iter().any(|key| key == LOAD_KEY));
}

#[test]
fn the_least_important_are_turned_away_first() {
    let mut envoy = Envoy::start(&auto());
    envoy.capacity = 200;
    envoy.run(4, 100, 40);
    envoy.run(6, 1_000, 40);
    assert_eq!(envoy.health(), "DEGRADED");
    assert!(envoy.shown()["severity"].as_f64().is_some_and(|severity| severity > 0.5), "{}", envoy.shown());

    envoy.shed.clear();
    envoy.failed.clear();
    envoy.run(10, 1_000, 40);
    let of_free = envoy.shed.iter().filter(|(tier, _)| tier == "free").count();
    assert_eq!(of_free, envoy.shed.len(), "nobody else is shed");
    assert!((6_000..9_500).contains(&of_free), "{of_free} of 10,000, where the upstream does 1,600 of them");
    let waits: Vec<u64> = envoy.shed.iter().map(|(_, seconds)| *seconds).collect();
    assert!(waits.iter().all(|seconds| (3..=10).contains(seconds)));
    assert!((3..=10).all(|wait| waits.contains(&wait)), "jitter");
    let failed = envoy.failed.iter().filter(|tier| *tier == "enterprise").count();
    assert_eq!(failed, 0, "enterprise callers are served");

    envoy.run(8, 100, 40);
    envoy.shed.clear();
    envoy.run(4, 100, 40);
    assert_eq!((envoy.health().as_str(), envoy.shed.len()), ("NORMAL", 0));
}

#[test]
fn a_shed_request_leaves_the_bucket_as_it_was() {
    let mut config = auto();
    config["tiers"]["free"]["base"] = json!({"capacity": 1_000_000, "refill_rate": 0.000_001});
    let mut envoy = Envoy::start(&config);
    envoy.capacity = 100;
    envoy.run(10, 1_000, 20);
    let (mut shed, mut remaining) = (0, None);
    for _ in 0..2_000 {
        let caller = FakeRequest::get("/").from("198.18.0.1:1");
        envoy.data.advance(SECOND / 4);
        let arrival = Arrival { ticket: 1, at_us: envoy.data.now_us() };
        match envoy.workers[0].decide(&caller, &envoy.data, arrival) {
            Decision::Admitted(answer) => {
                let left = answer.verdict.expect("a bucket").remaining;
                assert!(remaining.is_none_or(|before| before == left + 1), "{remaining:?}, now {left}");
                remaining = Some(left);
            }
            Decision::Shed(..) => shed += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(shed > 0 && remaining.is_some(), "its turn comes and goes: shed {shed} times");
}

#[test]
fn what_was_measured_survives_a_reload_and_ends_with_measuring() {
    let mut envoy = Envoy::start(&auto());
    envoy.capacity = 0;
    envoy.run(4, 100, 20);
    let mut other = auto();
    other["health"]["window_seconds"] = json!(4);
    envoy.workers = (0..2).map(|_| limiter(&envoy.data, &other.to_string())).collect();
    envoy.run(1, 100, 20);
    assert_eq!(envoy.health(), "DEGRADED");

    other["health"]["mode"] = json!("manual");
    envoy.workers = (0..2).map(|_| limiter(&envoy.data, &other.to_string())).collect();
    assert_eq!(envoy.health(), "DEGRADED", "a configuration that is only tried changes nothing");
    envoy.workers[0].measure(envoy.data.now_us(), Role::Newest, &envoy.data);
    assert_eq!(envoy.health(), "NORMAL");
}

#[test]
fn the_record_is_bounded_and_anything_else_in_its_place_is_written_over() {
    let mut envoy = Envoy::start(&auto());
    envoy.run(30, 100, 20);
    let record = envoy.data.get(LOAD_KEY).expect("a record").0;
    assert!(record.len() < 16 * 1024, "{} bytes", record.len());
    let load = Load::decode(&record).expect("a load");
    assert_eq!(load.encode(), record);
    for length in 0..record.len() {
        assert!(Load::decode(&record[..length]).is_none(), "{length} bytes");
    }
    for garbage in [&b""[..], b"\xff", &[0; 20_000], &[0xff; 20_000]] {
        envoy.data.put(LOAD_KEY, garbage);
        assert_eq!(envoy.shown()["signals"]["requests"], 0);
        envoy.run(1, 100, 20);
        assert!(envoy.shown()["signals"]["requests"].as_u64().is_some_and(|requests| requests > 50));
    }
}

#[test]
fn requests_whose_clients_leave_are_in_flight_no_more() {
    let mut envoy = Envoy::start(&auto());
    for turn in 0..3 {
        let request = FakeRequest::get("/").with("x-api-key", "enterprise");
        let worker = &mut envoy.workers[0];
        assert!(matches!(worker.decide(&request, &envoy.data, ARRIVAL), Decision::Admitted(_)));
        let tally = worker.tally().expect("health is measured");
        match turn {
            0 => tally.answered(Response::Good(None)),
            1 => tally.abandoned(SECOND),
            _ => tally.withdrawn(),
        }
    }
    envoy.run(3, 0, 0);
    assert_eq!(envoy.shown()["signals"]["in_flight"], 0.0);
}
