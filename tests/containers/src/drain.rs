//! A planned stop loses no request; a killed limiter loses at most its requests in flight.

use std::thread;
use std::time::{Duration, Instant};

use crate::Progress;
use crate::clients::{assert_all_served, is_served};
use crate::compose::{Compose, docker, inspect, text};
use crate::production::{CLIENTS, under_load};

/// The duration of the load before and after an action.
const AROUND: Duration = Duration::from_secs(2);

pub(crate) fn run(compose: &Compose, progress: &mut Progress) {
    let count = lost_none(|| {
        let stopped = compose.names("limiter").remove(0);
        docker(&["stop", &stopped]);
        let state = &inspect(&stopped)["State"];
        assert_eq!((state["ExitCode"].as_i64(), state["OOMKilled"].as_bool()), (Some(0), Some(false)));
        docker(&["start", &stopped]);
        compose.await_healthy("limiter", 3);
    });
    progress.passed(format!("`docker stop` of one limiter of three, none of {count} requests lost"));

    killed_limiter_loses_its_requests_in_flight(compose, progress);

    let ids = || compose.run(&["ps", "--quiet", "limiter"]).lines().map(str::to_owned).collect::<Vec<_>>();
    let before = ids();
    let count = lost_none(|| {
        compose.run_script("deploy/compose/replace-limiters");
    });
    let after = ids();
    assert_eq!(after.len(), before.len());
    assert!(after.iter().all(|id| !before.contains(id)), "{before:?} {after:?}");
    progress.passed(format!("all three limiters replaced one by one, none of {count} requests lost"));

    let count = lost_none(|| {
        compose.run(&["up", "--detach", "--no-recreate", "--scale", "limiter=5"]);
        compose.await_healthy("limiter", 5);
        compose.run(&["up", "--detach", "--no-recreate", "--scale", "limiter=3"]);
        compose.await_healthy("limiter", 3);
    });
    progress.passed(format!("five limiters and three again, none of {count} requests lost"));
}

/// The number of requests served during `work`; none may be lost.
#[track_caller]
fn lost_none(work: impl FnOnce()) -> usize {
    let ((), exchanges) = under_load(CLIENTS, || {
        thread::sleep(AROUND);
        work();
        thread::sleep(AROUND);
    });
    assert_all_served(&exchanges)
}

fn killed_limiter_loses_its_requests_in_flight(compose: &Compose, progress: &mut Progress) {
    let ((killed, gone), exchanges) = under_load(CLIENTS, || {
        thread::sleep(AROUND);
        let killed = compose.names("limiter").remove(0);
        docker(&["kill", &killed]);
        let gone = Instant::now();
        thread::sleep(Duration::from_secs(5));
        (killed, gone)
    });
    let lost: Vec<_> = exchanges.iter().filter(|exchange| !is_served(exchange)).collect();
    let later: Vec<_> = lost.iter().filter(|exchange| exchange.sent > gone).collect();
    assert!(later.is_empty(), "sent after the kill, and lost: {later:?}");
    // A client has one request in flight, and a third of them go to each limiter.
    assert!(lost.len() <= CLIENTS, "{} of {} requests lost", lost.len(), exchanges.len());
    let after = exchanges.iter().filter(|exchange| exchange.sent > gone);
    let slowest = after.map(|exchange| exchange.took).max().unwrap_or_default();
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
