//! Planned stops lose no request; a limiter that is killed costs at most what it held.

use std::time::{Duration, Instant};

use crate::Story;
use crate::clients::{Clients, assert_all_served};
use crate::compose::{Compose, docker, inspect, text};
use crate::production::{CLIENTS, request};

/// How long the load goes on before and after what is done.
const AROUND: Duration = Duration::from_secs(2);

pub(crate) fn run(compose: &Compose, story: &mut Story) {
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
    story.seen(format!("`docker stop` of one limiter of three, none of {count} requests lost"));

    killed_limiter_costs_what_it_held(compose, story);

    let ids = || compose.run(&["ps", "--quiet", "limiter"]).lines().map(str::to_owned).collect::<Vec<_>>();
    let before = ids();
    let (_, count) = under_load(|| compose.run_script("deploy/compose/replace-limiters"));
    let after = ids();
    assert_eq!(after.len(), before.len());
    assert!(after.iter().all(|id| !before.contains(id)), "{before:?} {after:?}");
    story.seen(format!("all three limiters replaced one by one, none of {count} requests lost"));

    let (_, count) = under_load(|| {
        compose.run(&["up", "--detach", "--no-recreate", "--scale", "limiter=5"]);
        compose.await_healthy("limiter", 5);
        compose.run(&["up", "--detach", "--no-recreate", "--scale", "limiter=3"]);
        compose.await_healthy("limiter", 3);
    });
    story.seen(format!("five limiters and three again, none of {count} requests lost"));
}

/// What was done, and how many requests were served meanwhile; none may be lost.
#[track_caller]
fn under_load<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let load = Clients::start(CLIENTS, Duration::ZERO, &request());
    std::thread::sleep(AROUND);
    let done = work();
    std::thread::sleep(AROUND);
    (done, assert_all_served(&load.stop()))
}

fn killed_limiter_costs_what_it_held(compose: &Compose, story: &mut Story) {
    let load = Clients::start(CLIENTS, Duration::ZERO, &request());
    std::thread::sleep(AROUND);
    let killed = compose.names("limiter").remove(0);
    docker(&["kill", &killed]);
    let gone = Instant::now();
    std::thread::sleep(Duration::from_secs(5));
    let exchanges = load.stop();
    let lost: Vec<_> = exchanges.iter().filter(|exchange| !exchange.is_served()).collect();
    let later: Vec<_> = lost.iter().filter(|exchange| exchange.sent > gone).collect();
    assert!(later.is_empty(), "lost, and sent after it was killed: {later:?}");
    // A client has one request on its way, and a third of them go to each limiter.
    assert!(lost.len() <= CLIENTS, "{} of {} requests lost", lost.len(), exchanges.len());
    let slowest = exchanges
        .iter()
        .filter(|exchange| exchange.sent > gone)
        .map(|exchange| exchange.done - exchange.sent);
    let slowest = slowest.max().unwrap_or_default();
    docker(&["start", &killed]);
    compose.await_healthy("limiter", 3);
    assert_eq!(text(&inspect(&killed)["State"]["Status"]), "running");
    story.seen(format!(
        "`docker kill` of one limiter of three: {} of {} requests lost, none that was sent after it; the slowest \
         of those took {slowest:.1?}",
        lost.len(),
        exchanges.len()
    ));
}
