//! How much time Redis has had to reply, measured by a worker that may be too busy to read replies.
//!
//! A reply reaches the limiter when the worker's event loop gets round to reading it. A worker with hundreds of busy
//! connections spends tens of milliseconds in one turn of that loop, and a reply then lies unread although Redis sent
//! it at once. So the time between two checks is counted against Redis in full only if the second check came when it
//! was due, which shows that the loop had nothing else to do. Before a late check, one turn is counted.

use std::time::Duration;

use crate::time::StoreTime;

/// How many turns of the event loop a round trip takes at most, with a margin.
///
/// Each hop inside Envoy waits for the next turn: the message is written, the connection may have to be made, and on
/// the way to a Redis Cluster there is an internal connection in between. About 3 for a TCP connection that is open,
/// and about 8 for a Redis Cluster.
pub const MAX_TURNS: u32 = 16;

/// How late a check may be in a worker that is idle.
///
/// Envoy's timers follow the kernel's coarse clock, which moves every 4 ms on most kernels (`CONFIG_HZ=250`), and count
/// whole milliseconds. Where that clock moves every 10 ms, an idle worker looks busy and waits for [`MAX_TURNS`].
pub const TIMER_RESOLUTION: Duration = Duration::from_millis(5);

/// Shortest and longest time between two checks.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));

/// A moment on a reply clock, which stands still while time is not counted against Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplyTime(StoreTime);

impl ReplyTime {
    /// The time counted since `earlier`.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.since(earlier.0)
    }
}

/// The clock of one session.
#[derive(Debug)]
pub struct ReplyClock {
    /// What is counted before a late check.
    turn: Duration,
    interval: Duration,
    checked_at: StoreTime,
    /// Time that has passed and was not counted.
    withheld: Duration,
}

impl ReplyClock {
    /// A clock for commands that may take `timeout`.
    pub fn new(timeout: Duration) -> Self {
        let turn = timeout / MAX_TURNS;
        let (shortest, longest) = INTERVAL;
        let whole_ms = u64::try_from(turn.as_millis()).unwrap_or(u64::MAX);
        let interval = Duration::from_millis(whole_ms).clamp(shortest, longest);
        Self { turn, interval, checked_at: StoreTime::default(), withheld: Duration::ZERO }
    }

    /// Between two checks while a reply is outstanding, in whole milliseconds.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Starts the clock: no reply was outstanding before `now`.
    pub fn start(&mut self, now: StoreTime) {
        self.checked_at = now;
    }

    /// When the next check is due.
    pub fn next_check(&self) -> StoreTime {
        self.checked_at.after(self.interval)
    }

    /// What this clock shows.
    pub fn at(&self, now: StoreTime) -> ReplyTime {
        ReplyTime(now.before(self.withheld))
    }

    /// Counts the time since the last check, or since the start; returns what this clock shows now.
    pub fn check(&mut self, now: StoreTime) -> ReplyTime {
        let passed = now.since(self.checked_at);
        self.checked_at = now;
        if passed > self.interval + TIMER_RESOLUTION {
            self.withheld = self.withheld.saturating_add(passed.saturating_sub(self.turn));
        }
        self.at(now)
    }
}
