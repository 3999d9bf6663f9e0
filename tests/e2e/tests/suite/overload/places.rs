//! Places in flight: every request gives its place back, however it ends, and workers share them fairly.

use std::time::{Duration, Instant};

use e2e::client::{Connection, Request};
use e2e::envoy::Envoy;
use e2e::setup::Setup;
use e2e::upstream::{Answer, Upstream, refusing};
use e2e::{load, wait};
use loadgen::upstream::Shape;
use serde_json::{Value, json};

use super::{CAPACITY, is_shed, told};
use crate::support::{ONE_PER_HOUR, limited_upstream, tier, two_tiers};

/// The limit before anything is known of an upstream.
const INITIAL_LIMIT: f64 = 20.0;

/// How many requests wait. A queue has room for sixteen in each worker at least.
const WAITING: usize = 10;

/// What workers share about places. Each is zero when no request is in flight and none waits.
const SHARED: [&str; 2] = ["rate_limiter_cluster_in_flight_state", "rate_limiter_cluster_queue_state"];

fn config() -> Value {
    let mut config = two_tiers(CAPACITY, CAPACITY);
    config["tiers"]["free"]["priority"] = json!(1);
    config["health"] = json!({"mode": "auto"});
    config
}

fn setup(upstream: &Upstream) -> Setup {
    Setup::new().config(&config()).cluster("upstream", upstream.address()).routes(&json!([
        {"match": {"prefix": "/short"}, "route": {"cluster": "upstream", "timeout": "0.3s"}},
        {"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "20s"}},
    ]))
}

/// An upstream that never answers what begins with `/hangs` and `/short`.
fn hanging() -> Upstream {
    Upstream::start(|request| match request.target.as_str() {
        "/hangs" | "/short" => Answer::Late(Duration::from_secs(60), Box::new(Answer::ok("late"))),
        "/resets" => Answer::Reset,
        "/breaks" => Answer::BreakOff,
        _ => Answer::ok("ok"),
    })
}

/// Starts Envoy and lets the upstream answer, so that its limit does not grow because nothing is known of it.
fn start(setup: Setup) -> Envoy {
    let envoy = setup.start();
    load::burst(envoy.address(), 4, 100, &Request::get("/").key("pro"));
    envoy
}

/// Requests in flight and waiting, as `GET /system/health` tells them.
fn counts(envoy: &Envoy) -> (u64, u64) {
    let told = told(envoy);
    let of = |field: &str| told["clusters"]["upstream"][field].as_u64().unwrap_or_default();
    (of("in_flight"), of("waiting"))
}

/// Sends as many requests that hang as may be in flight, and some more, until some wait.
#[track_caller]
fn open_and_wait(envoy: &Envoy) -> Vec<Connection> {
    let limit = told(envoy)["clusters"]["upstream"]["limit"].as_f64().unwrap_or(INITIAL_LIMIT);
    let connections = open(envoy, "/hangs", limit.ceil() as usize + WAITING);
    let waits = wait::poll(Duration::from_secs(5), || (counts(envoy).1 > 0).then_some(()));
    assert!(waits.is_some(), "some wait: {}", told(envoy));
    connections
}

#[track_caller]
fn await_counts(envoy: &Envoy, wanted: (u64, u64)) {
    let mut last = (0, 0);
    let reached = wait::poll(Duration::from_secs(5), || {
        last = counts(envoy);
        (last == wanted).then_some(())
    });
    assert!(reached.is_some(), "(in flight, waiting) should become {wanted:?}, is {last:?}");
}

#[track_caller]
fn assert_nothing_is_left_over(envoy: &Envoy, after: &str) {
    eprintln!("after {after}");
    await_counts(envoy, (0, 0));
    for name in SHARED {
        let values =
            || -> Vec<f64> { envoy.scrape().named(name).iter().map(|sample| sample.value).collect() };
        let mut last = Vec::new();
        let reached = wait::poll(Duration::from_secs(5), || {
            last = values();
            (!last.is_empty() && last.iter().all(|value| *value == 0.0)).then_some(())
        });
        assert!(reached.is_some(), "{name} after {after}: {last:?}");
    }
}

/// Opens so many connections with one request each, of a caller of the more important tier.
fn open(envoy: &Envoy, target: &str, copies: usize) -> Vec<Connection> {
    let request = Request::get(target).key("pro").encode();
    (0..copies)
        .map(|_| {
            let mut connection = envoy.connect();
            connection.write(&request).expect("a request written");
            connection
        })
        .collect()
}

#[test]
fn a_request_gives_its_place_back_however_it_ends() {
    let upstream = hanging();
    let envoy = start(setup(&upstream));

    for target in ["/", "/breaks", "/resets", "/short"] {
        for mut connection in open(&envoy, target, 10) {
            // What breaks off is no complete response.
            let _ = connection.read("GET");
        }
        assert_nothing_is_left_over(&envoy, target);
    }

    let connections = open_and_wait(&envoy);
    connections.into_iter().for_each(Connection::reset);
    assert_nothing_is_left_over(&envoy, "clients that left, in flight and waiting");

    let mut connections = open_and_wait(&envoy);
    // A second in the queue is the longest; then they are shed.
    let mut shed = Vec::new();
    wait::until("those that wait are shed", || {
        connections.iter_mut().for_each(|connection| connection.read_timeout(Duration::from_millis(5)));
        shed.extend(connections.iter_mut().filter_map(|connection| connection.read("GET").ok()));
        (counts(&envoy) == ((connections.len() - shed.len()) as u64, 0)).then_some(())
    });
    for response in &shed {
        assert!(is_shed(response) && response.one("x-envoy-ratelimited") == "true", "{response:#?}");
    }
    assert!(!shed.is_empty());
    drop(connections);
    assert_nothing_is_left_over(&envoy, "a wait of a second");
}

#[test]
fn a_request_that_envoy_answers_while_it_waits_leaves_nothing_behind() {
    let upstream = hanging();
    let envoy = start(setup(&upstream).hcm(&json!({"stream_idle_timeout": "0.4s"})));
    let mut connections = open_and_wait(&envoy);
    for connection in &mut connections {
        let response = connection.read("GET").expect("an answer of Envoy's");
        assert!([408, 504].contains(&response.status) && !is_shed(&response), "{response:#?}");
    }
    assert_nothing_is_left_over(&envoy, "local replies of Envoy");
}

#[test]
fn an_upstream_that_refuses_all_connections_leaves_nothing_behind() {
    let envoy = Setup::new().config(&config()).upstream(refusing()).start();
    let tally = load::burst(envoy.address(), 60, 20, &Request::get("/"));
    assert_eq!(load::count(&tally, 503), 1_200, "{tally:?}");
    assert_nothing_is_left_over(&envoy, "a cluster without a host");
}

#[test]
fn slow_uploads_do_not_keep_others_from_the_upstream() {
    let upstream = hanging();
    let envoy = start(setup(&upstream));
    let upload = "POST /upload HTTP/1.1\r\nhost: e2e\r\ncontent-length: 5\r\n\r\nab";
    let mut connections: Vec<Connection> = (0..30)
        .map(|_| {
            let mut connection = envoy.connect();
            connection.write(upload.as_bytes()).expect("half an upload written");
            connection
        })
        .collect();
    wait::until("an answer beside slow uploads", || {
        (envoy.send(&Request::get("/")).status == 200).then_some(())
    });
    for connection in &mut connections {
        connection.write(b"cde").expect("the rest of an upload written");
        assert_eq!(connection.read("POST").expect("an answer").status, 200);
    }
    assert_nothing_is_left_over(&envoy, "slow uploads");
}

/// Connections to different workers, one each.
fn one_connection_to_each_worker(envoy: &Envoy, workers: usize) -> Vec<Connection> {
    let mut found: Vec<Connection> = Vec::new();
    let mut before = envoy.connections_by_worker();
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut seen = vec![false; workers];
    while found.len() < workers && Instant::now() < deadline {
        let mut connection = envoy.connect();
        assert_eq!(connection.send(&Request::get("/")).status, 200);
        let now = envoy.connections_by_worker();
        let worker = (0..workers).find(|worker| now.get(*worker) > before.get(*worker));
        before = now;
        if let Some(worker) = worker.filter(|worker| !seen[*worker]) {
            seen[worker] = true;
            found.push(connection);
        }
    }
    assert_eq!(found.len(), workers, "a connection to each worker");
    found
}

/// One connection to each of four workers, of which one has many more: none starves.
#[test]
fn few_connections_on_many_workers_are_served_beside_many() {
    const WORKERS: usize = 4;
    let upstream = limited_upstream(Shape { slots: 2, service_ms: 20, queue: None });
    let envoy = Setup::new().config(&config()).workers(4).upstream(upstream.address()).quiet().start();
    let few = one_connection_to_each_worker(&envoy, WORKERS);
    let ((), _) = load::during(envoy.address(), 60, Duration::ZERO, &Request::get("/"), || {
        std::thread::sleep(Duration::from_secs(2));
        let (mut served, mut shed) = (Vec::new(), Vec::new());
        std::thread::scope(|scope| {
            let senders: Vec<_> = few
                .into_iter()
                .map(|mut connection| {
                    scope.spawn(move || {
                        let end = Instant::now() + Duration::from_secs(6);
                        let (mut served, mut shed) = (0, 0);
                        while Instant::now() < end {
                            match connection.send(&Request::get("/").key("pro")).status {
                                200 => served += 1,
                                _ => shed += 1,
                            }
                        }
                        (served, shed)
                    })
                })
                .collect();
            for sender in senders {
                let (of_served, of_shed) = sender.join().expect("no panic");
                served.push(of_served);
                shed.push(of_shed);
            }
        });
        eprintln!("served {served:?}, shed {shed:?}");
        assert!(
            served.iter().all(|count| *count >= 10),
            "each worker's connection: {served:?}, shed {shed:?}"
        );
        assert!(shed.iter().sum::<i32>() * 20 <= served.iter().sum(), "served {served:?}, shed {shed:?}");
    });
}

#[test]
fn an_envoy_in_front_that_retries_sends_a_shed_request_once() {
    let upstream = hanging();
    let envoy = start(setup(&upstream));
    let front = Setup::without_filter().cluster("limiter", envoy.address()).routes(&json!([{
        "match": {"prefix": "/"},
        "route": {
            "cluster": "limiter",
            "timeout": "20s",
            "retry_policy": {"retry_on": "5xx", "num_retries": 3, "retry_back_off": {"base_interval": "0.01s"}},
        },
    }]));
    let front = front.start();
    let pressing = Request::get("/short").key("pro");
    let ((), _) = load::during(envoy.address(), 200, Duration::ZERO, &pressing, || {
        wait::until("a queue", || (counts(&envoy).1 > WAITING as u64).then_some(()));
        let mut shed = 0;
        wait::until("five are shed", || {
            shed += u32::from(is_shed(&front.send(&Request::get("/"))));
            (shed == 5).then_some(())
        });
        // Only these requests are of this tier.
        let labels = [("tier", "free"), ("status", "shed")];
        envoy.await_metric("rate_limiter_requests_total", &labels, f64::from(shed));
        std::thread::sleep(Duration::from_millis(1_500));
        let counted = envoy.metric("rate_limiter_requests_total", &labels);
        assert_eq!(counted, Some(f64::from(shed)), "each was sent once");
    });
    // The control: what is no shed response is sent again.
    wait::until("places are free", || (counts(&envoy).0 == 0).then_some(()));
    let before = upstream.targets().len();
    front.send(&Request::get("/resets"));
    assert_eq!(upstream.targets().len() - before, 4, "a reset is tried four times");
}

#[test]
fn the_order_of_tiers_is_their_priority() {
    let mut config = json!({
        "tiers": {"free": tier(CAPACITY, ONE_PER_HOUR), "enterprise": tier(CAPACITY, ONE_PER_HOUR)},
        "api_keys": {"e": {"tier": "enterprise", "id": "e"}},
    });
    config["health"] = json!({"mode": "auto"});
    let upstream = limited_upstream(Shape { slots: 2, service_ms: 20, queue: None });
    let envoy = Setup::new().config(&config).workers(4).upstream(upstream.address()).quiet().start();
    let ((), _) = load::during(envoy.address(), 80, Duration::ZERO, &Request::get("/"), || {
        std::thread::sleep(Duration::from_secs(2));
        // A client of its own for each request, so that each worker is met.
        let mut took: Vec<Duration> = (0..80)
            .map(|_| {
                let began = Instant::now();
                let response = envoy.send(&Request::get("/").key("e"));
                assert_eq!(response.status, 200, "{response:#?}");
                began.elapsed()
            })
            .collect();
        took.sort();
        let median = took[took.len() / 2];
        eprintln!("median {median:?}, longest {:?}", took[took.len() - 1]);
        assert!(median < Duration::from_millis(200), "enterprise requests wait: {took:?}");
    });
}
