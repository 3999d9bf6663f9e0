//! Places in flight: every request returns its place, however it ends, and workers share the places fairly.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use e2e::client::{Connection, Request, Response};
use e2e::envoy::Envoy;
use e2e::setup::Setup;
use e2e::upstream::{Answer, Upstream, refusing};
use e2e::{http2, load, wait};
use loadgen::upstream::Shape;
use serde_json::{Value, json};

use super::{CAPACITY, is_shed, system_health};
use crate::support::{ONE_PER_HOUR, await_that, await_that_within, limited_upstream, route, tier, two_tiers};

/// The limit before the first response of an upstream.
const INITIAL_LIMIT: f64 = 9.0;

/// How many requests wait. The queues of all workers have room for at least eighteen.
const WAITING: usize = 10;

/// How soon places are taken and returned.
const SHORTLY: Duration = Duration::from_secs(5);

/// The gauges with which workers share places. Each is zero when no request is in flight or waiting.
const SHARED: [&str; 2] = ["rate_limiter_cluster_in_flight_state", "rate_limiter_cluster_queue_state"];

fn config() -> Value {
    let mut config = two_tiers(CAPACITY, CAPACITY);
    config["tiers"]["free"]["priority"] = json!(1);
    config["health"] = json!({"mode": "auto"});
    config
}

fn setup(upstream: &Upstream) -> Setup {
    let routes = json!([route("/short", "upstream", "0.3s"), route("/", "upstream", "20s")]);
    Setup::new().config(&config()).cluster("upstream", upstream.address()).routes(&routes)
}

/// An upstream that does not answer `/hangs` and `/short`.
fn hanging() -> Upstream {
    Upstream::start(|request| match request.target.as_str() {
        "/hangs" | "/short" => Answer::Late(Duration::from_secs(60), Box::new(Answer::ok("late"))),
        "/resets" => Answer::Reset,
        "/breaks" => Answer::BreakOff,
        _ => Answer::ok("ok"),
    })
}

/// Starts Envoy and sends some requests, so that the limit is based on responses of the upstream.
fn start(setup: Setup) -> Envoy {
    let envoy = setup.start();
    load::burst(envoy.address(), 4, 100, &Request::get("/").key("pro"));
    envoy
}

/// Requests in flight and waiting, as `GET /system/health` reports them.
fn in_flight_and_waiting(envoy: &Envoy) -> (u64, u64) {
    let report = system_health(envoy);
    let of = |field: &str| report["clusters"]["upstream"][field].as_u64().unwrap_or_default();
    (of("in_flight"), of("waiting"))
}

/// How many requests may be in flight.
fn limit(envoy: &Envoy) -> usize {
    let limit = &system_health(envoy)["clusters"]["upstream"]["limit"];
    limit.as_f64().unwrap_or(INITIAL_LIMIT).ceil() as usize
}

/// Sends more requests that hang than may be in flight, until some wait.
#[track_caller]
fn open_and_wait(envoy: &Envoy) -> Vec<Connection> {
    let limit = limit(envoy);
    let connections = open(envoy, &Request::get("/hangs").key("pro").encode(), limit + WAITING);
    let state = || (in_flight_and_waiting(envoy), system_health(envoy));
    wait::for_value(SHORTLY, "requests wait", state, |((_, waiting), _)| *waiting > 0);
    connections
}

#[track_caller]
fn await_counts(envoy: &Envoy, wanted: (u64, u64)) {
    let what = format!("(in flight, waiting) are {wanted:?}");
    wait::for_value(SHORTLY, &what, || in_flight_and_waiting(envoy), |last| *last == wanted);
}

#[track_caller]
fn assert_all_places_returned(envoy: &Envoy, after: &str) {
    eprintln!("after {after}");
    await_counts(envoy, (0, 0));
    for name in SHARED {
        let values =
            || -> Vec<f64> { envoy.scrape().named(name).iter().map(|sample| sample.value).collect() };
        wait::for_value(SHORTLY, &format!("{name} is zero after {after}"), values, |values| {
            !values.is_empty() && values.iter().all(|value| *value == 0.0)
        });
    }
}

/// Opens `copies` connections and sends this request, or a part of it, on each.
fn open(envoy: &Envoy, request: &[u8], copies: usize) -> Vec<Connection> {
    let open_one = |_| {
        let mut connection = envoy.connect();
        connection.write(request).expect("a request written");
        connection
    };
    (0..copies).map(open_one).collect()
}

#[test]
fn a_request_returns_its_place_however_it_ends() {
    let upstream = hanging();
    let envoy = start(setup(&upstream));

    for target in ["/", "/breaks", "/resets", "/short"] {
        for mut connection in open(&envoy, &Request::get(target).key("pro").encode(), 10) {
            // An aborted response is an error here.
            let _ = connection.read("GET");
        }
        assert_all_places_returned(&envoy, target);
    }

    let connections = open_and_wait(&envoy);
    connections.into_iter().for_each(Connection::reset);
    assert_all_places_returned(&envoy, "clients that disconnected, in flight and waiting");

    let mut connections = open_and_wait(&envoy);
    // Requests are shed after a second in the queue.
    let mut shed = Vec::new();
    await_that("the waiting requests are shed", || {
        connections.iter_mut().for_each(|connection| connection.read_timeout(Duration::from_millis(5)));
        shed.extend(connections.iter_mut().filter_map(|connection| connection.read("GET").ok()));
        in_flight_and_waiting(&envoy) == ((connections.len() - shed.len()) as u64, 0)
    });
    for response in &shed {
        assert!(is_shed(response) && response.one("x-envoy-ratelimited") == "true", "{response:#?}");
    }
    assert!(!shed.is_empty());
    drop(connections);
    assert_all_places_returned(&envoy, "a wait of a second");
}

#[test]
fn a_request_that_envoy_answers_while_it_waits_holds_no_place_afterwards() {
    let upstream = hanging();
    let envoy = start(setup(&upstream).hcm(&json!({"stream_idle_timeout": "0.4s"})));
    let mut connections = open_and_wait(&envoy);
    for connection in &mut connections {
        let response = connection.read("GET").expect("a response of Envoy's");
        assert!([408, 504].contains(&response.status) && !is_shed(&response), "{response:#?}");
    }
    assert_all_places_returned(&envoy, "local replies of Envoy");
}

#[test]
fn an_upstream_that_refuses_all_connections_leaves_no_place_taken() {
    let envoy = Setup::new().config(&config()).upstream(refusing()).start();
    let counts = load::burst(envoy.address(), 60, 20, &Request::get("/"));
    assert_eq!(load::count(&counts, 503), 1_200, "{counts:?}");
    assert_all_places_returned(&envoy, "a cluster without a host");
}

#[test]
fn slow_uploads_do_not_block_other_requests() {
    let upstream = hanging();
    let envoy = start(setup(&upstream));
    let upload = "POST /upload HTTP/1.1\r\nhost: e2e\r\ncontent-length: 5\r\n\r\nab";
    let limit = limit(&envoy);
    // The queue of each worker has room for those beyond the limit.
    let mut connections = open(&envoy, upload.as_bytes(), limit + 6);
    await_that("a response beside slow uploads", || envoy.send(&Request::get("/")).status == 200);
    for connection in &mut connections {
        connection.write(b"cde").expect("the rest of an upload written");
        assert_eq!(connection.read("POST").expect("an answer").status, 200);
    }
    assert_all_places_returned(&envoy, "slow uploads");
}

/// Opens the given number of connections to each worker.
#[track_caller]
fn connections_to_workers<const WORKERS: usize>(
    envoy: &Envoy,
    wanted: [usize; WORKERS],
) -> [Vec<Connection>; WORKERS] {
    let mut found = wanted.map(|_| Vec::new());
    let mut before = envoy.connections_by_worker();
    assert_eq!(before.len(), WORKERS, "workers");
    await_that_within(Duration::from_secs(60), "connections to each worker", || {
        // The kernel chooses the worker of a connection; surplus connections are closed.
        let mut connection = envoy.connect();
        assert_eq!(connection.send(&Request::get("/")).status, 200);
        let now = envoy.connections_by_worker();
        let worker = (0..WORKERS).find(|worker| now[*worker] > before[*worker]).expect("its worker");
        before = now;
        if found[worker].len() < wanted[worker] {
            found[worker].push(connection);
        }
        found.iter().map(Vec::len).eq(wanted)
    });
    found
}

/// One worker has most connections and always a queue; three workers have one connection each. All callers are of one
/// tier.
#[test]
fn a_worker_with_one_connection_does_not_starve_beside_a_busy_one() {
    const SERVED: usize = 400;
    let upstream = limited_upstream(Shape { slots: 2, service_ms: 20, queue: None });
    let envoy = Setup::new().config(&config()).workers(4).upstream(upstream.address()).quiet().start();
    let connections = connections_to_workers(&envoy, [30, 1, 1, 1]);
    let served: [AtomicUsize; 4] = Default::default();
    let shed: [AtomicUsize; 4] = Default::default();
    let total = || served.iter().map(|count| count.load(Ordering::Relaxed)).sum::<usize>();
    let end = Instant::now() + Duration::from_secs(60);
    std::thread::scope(|scope| {
        for (worker, connections) in connections.into_iter().enumerate() {
            for mut connection in connections {
                let (served, shed, total) = (&served[worker], &shed[worker], &total);
                scope.spawn(move || {
                    while total() < SERVED && Instant::now() < end {
                        let is_served = connection.send(&Request::get("/")).status == 200;
                        if is_served { served } else { shed }.fetch_add(1, Ordering::Relaxed);
                        if !is_served {
                            std::thread::sleep(Duration::from_millis(50));
                        }
                    }
                });
            }
        }
    });
    let [busy, others @ ..] = served.map(AtomicUsize::into_inner);
    let report = system_health(&envoy);
    assert!(busy + others.iter().sum::<usize>() >= SERVED, "served {busy} and {others:?}: {report}");
    assert!(shed[0].load(Ordering::Relaxed) > 0, "the busy worker is overloaded: {report}");
    // Measured: a quarter to a third, each at least a twentieth; a twelfth if places are not left to others.
    let (all, least) = (others.iter().sum::<usize>(), others.iter().min().copied().unwrap_or_default());
    assert!(
        all * 20 >= SERVED * 3 && least * 50 >= SERVED,
        "served {busy} and {others:?}, shed {shed:?}: {report}"
    );
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
    let overloading = Request::get("/short").key("pro");
    let ((), _) = load::during(envoy.address(), 200, Duration::from_millis(200), &overloading, || {
        await_that("a queue", || in_flight_and_waiting(&envoy).1 > WAITING as u64);
        let mut shed = 0;
        await_that("five are shed", || {
            shed += u32::from(is_shed(&front.send(&Request::get("/"))));
            shed == 5
        });
        // Only these requests are of this tier.
        let labels = [("tier", "free"), ("status", "shed")];
        envoy.await_metric("rate_limiter_requests_total", &labels, f64::from(shed));
        std::thread::sleep(Duration::from_millis(1_500));
        let counted = envoy.metric("rate_limiter_requests_total", &labels);
        assert_eq!(counted, Some(f64::from(shed)), "each was sent once");
    });
    // The control: a response that is not shed is retried.
    await_that("places are free", || in_flight_and_waiting(&envoy).0 == 0);
    let before = upstream.targets().len();
    front.send(&Request::get("/resets"));
    assert_eq!(upstream.targets().len() - before, 4, "a reset is tried four times");
}

/// An upstream that answers a request when the test releases it, and `/` at once.
#[derive(Clone, Default)]
struct Held(Arc<Mutex<HeldRequests>>);

#[derive(Default)]
struct HeldRequests {
    arrived: Vec<String>,
    held: Vec<(String, Sender<()>)>,
}

impl Held {
    fn upstream(&self) -> Upstream {
        let requests = self.clone();
        Upstream::start(move |request| {
            if request.target != "/" {
                let (release, is_released) = channel();
                let mut requests = requests.lock();
                requests.arrived.push(request.target.clone());
                requests.held.push((request.target.clone(), release));
                drop(requests);
                let _ = is_released.recv();
            }
            Answer::ok("ok")
        })
    }

    fn lock(&self) -> MutexGuard<'_, HeldRequests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases the oldest held request with this target.
    fn release(&self, target: &str) {
        let held = &mut self.lock().held;
        let oldest = held.iter().position(|(held, _)| held == target);
        oldest.map(|oldest| held.remove(oldest));
    }
}

/// One worker holds all places and has a queue; a request of a more important tier waits in another worker.
#[test]
fn the_next_place_goes_to_the_most_important_tier_in_any_worker() {
    const TIMES: usize = 10;
    const ENTERPRISE: u64 = 8;
    let held = Held::default();
    let upstream = held.upstream();
    // Priorities have their defaults.
    let config = json!({
        "tiers": {"free": tier(CAPACITY, ONE_PER_HOUR), "enterprise": tier(CAPACITY, ONE_PER_HOUR)},
        "api_keys": {"e": {"tier": "enterprise", "id": "e"}},
        "health": {"mode": "auto"},
    });
    let setup = Setup::new().config(&config).workers(2).cluster("upstream", upstream.address());
    let envoy = start(setup.routes(&json!([route("/", "upstream", "0s")])));
    let [busy, mut other] = connections_to_workers(&envoy, [60, 1]);
    let enterprise = &mut other[0];
    enterprise.read_timeout(Duration::from_millis(5));
    let gauge = |name: &str| envoy.scrape().named(name).iter().map(|sample| sample.value as u64).sum::<u64>();
    let waits = || gauge(SHARED[1]) >> (6 * ENTERPRISE) & 63 > 0;
    let all_have_arrived = || (gauge(SHARED[0]) as u32) as usize == held.lock().held.len();
    let is_over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ends = load::SetOnDrop(is_over);
        for mut connection in busy {
            let held = &held;
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    connection.write(&Request::get("/free").encode()).expect("a request written");
                    connection.read_timeout(Duration::from_millis(100));
                    while connection.read("GET").is_err() {
                        if is_over.load(Ordering::Relaxed) {
                            return held.release("/free");
                        }
                    }
                }
            });
        }
        let mut try_once = || {
            await_that("a queue", || gauge(SHARED[1]) > 0);
            enterprise.write(&Request::get("/enterprise").key("e").encode()).expect("a request written");
            let mut answer = None;
            let mut is_answered = || {
                answer = answer.take().or_else(|| enterprise.read("GET").ok());
                answer.is_some()
            };
            await_that("it waits, and all requests with places are at the upstream", || {
                // If the limit has just grown, it is sent at once.
                let is_sent = held.lock().held.iter().any(|(target, _)| target == "/enterprise");
                waits() && all_have_arrived() || is_sent || is_answered()
            });
            let before = held.lock().arrived.len();
            let next = wait::until("another request has a place", || {
                // If the limit has just fallen, more than one request must end first.
                held.release("/free");
                held.lock().arrived.get(before).cloned()
            });
            let is_next = next == "/enterprise";
            assert!(is_next || !waits() || is_answered(), "{next} took the place: {}", system_health(&envoy));
            await_that("its answer", || {
                held.release("/enterprise");
                is_answered()
            });
            is_next.then_some(())
        };
        for time in 0..TIMES {
            wait::until(&format!("the next place, for the {time}th time"), &mut try_once);
        }
    });
}

#[test]
fn places_of_a_trapped_vm_are_returned() {
    let upstream = hanging();
    let envoy = start(setup(&upstream).traps());
    let [mut trapped, other] = connections_to_workers(&envoy, [5, 3]);
    let mut last = trapped.pop().expect("five");
    let hangs = Request::get("/hangs").key("pro").encode();
    let mut hanging: Vec<Connection> = trapped.into_iter().chain(other).collect();
    for connection in &mut hanging {
        connection.write(&hangs).expect("a request written");
    }
    await_counts(&envoy, (7, 0));
    // The request that traps loses its own place, too.
    assert_eq!(last.send(&Request::post("/", "traps")).status, 503);
    await_that("a new VM", || {
        let before = envoy.connections_by_worker();
        let status = envoy.send(&Request::get("/")).status;
        status == 200 && envoy.connections_by_worker()[0] > before[0]
    });
    await_counts(&envoy, (3, 0));
    drop(hanging);
    assert_all_places_returned(&envoy, "a trap");

    // The limit is unchanged, and as many requests as before have a place.
    let connections = open_and_wait(&envoy);
    drop(connections);
    assert_all_places_returned(&envoy, "the same number of requests again");
}

/// Several times as many event streams, WebSockets and bidirectional gRPC streams as the limit, open at once.
#[test]
fn a_stream_holds_no_place_after_its_response_headers() {
    const STREAMS: usize = 100;
    let upstream = Upstream::start(|request| match request.target.as_str() {
        "/events" => Answer::Stream,
        "/socket" => Answer::WebSocket,
        _ => Answer::ok("ok"),
    });
    let setup =
        Setup::new().config(&config()).hcm(&json!({"upgrade_configs": [{"upgrade_type": "websocket"}]}));
    let setup = setup.cluster("upstream", upstream.address()).http2_cluster("grpc", http2::grpc_server());
    let routes = json!([route("/demo.Greeter", "grpc", "0s"), route("/", "upstream", "0s")]);
    let envoy = start(setup.routes(&routes));
    let assert_serves_beside = |what: &str, cluster: &str, other: &dyn Fn() -> Response| {
        assert!(envoy.stat("http.main.downstream_rq_active") >= STREAMS as u64, "{what} are open");
        assert_all_places_returned(&envoy, &format!("the response headers of {what}"));
        // A worker reports only the clusters that it has sent requests to.
        let limit = wait::until("a limit", || system_health(&envoy)["clusters"][cluster]["limit"].as_f64());
        assert!(limit * 2.0 < STREAMS as f64, "{STREAMS} are more than the limit: {limit}");
        assert_eq!(other().status, 200, "beside {what}");
    };

    let socket =
        Request::get("/socket").key("pro").header("connection", "upgrade").header("upgrade", "websocket");
    for (what, request, status) in
        [("event streams", Request::get("/events").key("pro"), 200), ("WebSockets", socket, 101)]
    {
        let start_one = |_| {
            let mut connection = envoy.connect();
            assert_eq!(connection.start_stream(&request), status, "{what}");
            connection
        };
        let streams: Vec<Connection> = (0..STREAMS).map(start_one).collect();
        assert_serves_beside(what, "upstream", &|| envoy.send(&Request::get("/")));
        drop(streams);
    }

    let (statuses, ()) = http2::with_streams(
        envoy.address(),
        &http2::grpc_call(http2::GRPC_STREAM).key("pro"),
        STREAMS,
        || {
            assert_serves_beside("gRPC streams", "grpc", &|| {
                http2::send(envoy.address(), &http2::grpc_call("/demo.Greeter/Hello"))
            });
        },
    );
    assert_eq!(statuses, vec![200; STREAMS]);
}
