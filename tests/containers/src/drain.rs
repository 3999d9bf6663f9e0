//! A planned stop loses no request; a killed limiter loses at most its requests in flight.

use std::time::{Duration, Instant};

use crate::Progress;
use crate::clients::{Clients, assert_all_served};
use crate::compose::{Compose, docker, inspect, text};
use crate::production::{CLIENTS, request};

/// The duration of the load before and after an action.
const AROUND: Duration = Duration::from_secs(2);

pub(crate) fn run(compose: &Compose, progress: &mut Progress) {
    let (_, count) = under_load(|| {
        let stopped = compose.names("limiter").remove(0);
        docker(&["stop", &stopped]);
        let state = &inspect(&stopped)["State"];
        assert_eq!((state["ExitCode"].as_i64(), state["OOMKilled"].as_bool()), (Some(0), Some(false)));
        let logs = docker(&["logs", "--tail", "20", &stopped]);
        docker(&["start", &stopped]);
        compose.await_healthy("limiter", 3);
        logs
    });
    progress.passed(format!("`docker stop` of one limiter of three, none of {count} requests lost"));

    killed_limiter_loses_its_requests_in_flight(compose, progress);

    let ids = || compose.run(&["ps", "--quiet", "limiter"]).lines().map(str::to_owned).collect::<Vec<_>>();
    let before = ids();
    let (_, count) = under_load(|| compose.run_script("deploy/compose/replace-limiters"));
    let after = ids();
    assert_eq!(after.len(), before.len());
    assert!(after.iter().all(|id| !before.contains(id)), "{before:?} {after:?}");
    progress.passed(format!("all three limiters replaced one by one, none of {count} requests lost"));

    let (_, count) = under_load(|| {
        compose.run(&["up", "--detach", "--no-recreate", "--scale", "limiter=5"]);
        compose.await_healthy("limiter", 5);
        compose.run(&["up", "--detach", "--no-recreate", "--scale", "limiter=3"]);
        compose.await_healthy("limiter", 3);
    });
    progress.passed(format!("five limiters and three again, none of {count} requests lost"));
}

/// The result of `work`, and the number of requests served during it; none may be lost.
#[track_caller]
fn under_load<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let load = Clients::start(CLIENTS, Duration::ZERO, &request());
    std::thread::sleep(AROUND);
    let done = work();
    std::thread::sleep(AROUND);
    (done, assert_all_served(&load.stop()))
}

fn killed_limiter_loses_its_requests_in_flight(compose: &Compose, progress: &mut Progress) {
    let load = Clients::start(CLIENTS, Duration::ZERO, &request());
    std::thread::sleep(AROUND);
    let killed = compose.names("limiter").remove(0);
    docker(&["kill", &killed]);
    let gone = Instant::now();
    std::thread::sleep(Duration::from_secs(5));
    let exchanges = load.stop();
    let lost: Vec<_> = exchanges.iter().filter(|exchange| !exchange.is_served()).collect();
    let later: Vec<_> = lost.iter().filter(|exchange| exchange.sent > gone).collect();
    assert!(later.is_empty(), "sent after the kill, and lost: {later:?}");
    // A client has one request in flight, and a third of them go to each limiter.
    assert!(lost.len() <= CLIENTS, "{} of {} requests lost", lost.len(), exchanges.len());
    let slowest = exchanges
        .iter()
        .filter(|exchange| exchange.sent > gone)
        .map(|exchange| exchange.done - exchange.sent);
    let slowest = slowest.max().unwrap_or_default();
    docker(&["start", &killed]);
    compose.await_healthy("limiter", 3);
    assert_eq!(text(&inspect(&killed)["State"]["Status"]), "running");
    progress.passed(format!(
        "`docker kill` of one limiter of three: {} of {} requests lost, none sent after the kill; the slowest \
         of those took {slowest:.1?}",
        lost.len(),
        exchanges.len()
    ));
}
