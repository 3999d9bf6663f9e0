//! Callers who do not wait for each other: the load of `bench/loadgen`, in a thread beside the test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use loadgen::callers;
use loadgen::plan::Plan;
use loadgen::report::Outcome;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// How soon a crowd disperses.
const LOOK: Duration = Duration::from_millis(50);

/// A load that runs until its plan is over, or until it is told to end.
#[derive(Debug)]
pub struct Crowd {
    stop: Arc<AtomicBool>,
    started: std::time::Instant,
    thread: JoinHandle<Vec<Outcome>>,
}

impl Crowd {
    pub fn gather(to: SocketAddr, plan: Plan) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let started = std::time::Instant::now();
        let thread = std::thread::spawn(move || runtime.block_on(ask(to, plan, started, &stopped)));
        Self { stop, started, thread }
    }

    /// How long it has been asking.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ends, if the plan is not over yet; gives what became of all that has been answered.
    pub fn disperse(self) -> Vec<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic in the load")
    }
}

async fn ask(to: SocketAddr, plan: Plan, started: std::time::Instant, stop: &AtomicBool) -> Vec<Outcome> {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move { callers::ask(to, &plan, Instant::from_std(started), sender).await });
    let mut outcomes = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match timeout(LOOK, receiver.recv()).await {
            Ok(Some(outcome)) => outcomes.push(outcome),
            Ok(None) => break,
            Err(_) => {}
        }
    }
    outcomes
}
