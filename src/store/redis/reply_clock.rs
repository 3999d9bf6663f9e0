//! How much time Redis has had to reply, as seen by a worker that may be too busy to read replies.
//!
//! A reply reaches the limiter when the worker's event loop gets round to reading it. A worker with hundreds of busy
//! connections spends tens of milliseconds in one turn of that loop, and a reply then lies unread although Redis sent
//! it at once. So the time between two checks is charged to Redis in full only if the second check came when it was
//! due, which shows that the loop had nothing else to do. A check that came late is charged as one turn.

/// How many turns of the event loop a round trip takes at most, with a margin.
///
/// Each hop inside Envoy waits for the next turn: the message is written, the connection may have to be made, and on
/// the way to a Redis Cluster there is an internal connection in between. About 3 for a TCP connection that is open,
/// and about 8 for a Redis Cluster.
pub const MAX_TURNS: u64 = 16;

/// How late a check may be in a worker that is idle, in microseconds.
///
/// Envoy's timers follow the kernel's coarse clock, which moves every 4 ms on most kernels (`CONFIG_HZ=250`), and count
/// whole milliseconds. Where that clock moves every 10 ms, an idle worker looks busy and waits for [`MAX_TURNS`].
pub const TIMER_RESOLUTION_US: u64 = 5_000;

/// Shortest and longest time between two checks, in microseconds.
const INTERVAL_US: (u64, u64) = (1_000, 10_000);

/// The clock of one session.
#[derive(Debug)]
pub struct ReplyClock {
    timeout_us: u64,
    checked_us: u64,
    /// Time that has passed and was not charged to Redis.
    withheld_us: u64,
}

impl ReplyClock {
    /// A clock for commands that may take `timeout_us`.
    pub fn new(timeout_us: u64) -> Self {
        Self { timeout_us, checked_us: 0, withheld_us: 0 }
    }

    /// How often to call [`ReplyClock::check`] while Redis owes a reply, in whole milliseconds as microseconds.
    pub fn interval_us(&self) -> u64 {
        let (shortest, longest) = INTERVAL_US;
        (self.turn_us() / 1_000 * 1_000).clamp(shortest, longest)
    }

    /// Redis owes no reply until now.
    pub fn start(&mut self, now_us: u64) {
        self.checked_us = now_us;
    }

    /// What this clock shows.
    pub fn at(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.withheld_us)
    }

    /// Charges the time since the last check, or since the start; returns what this clock shows now.
    pub fn check(&mut self, now_us: u64) -> u64 {
        let passed_us = now_us.saturating_sub(self.checked_us);
        self.checked_us = now_us;
        if passed_us > self.interval_us() + TIMER_RESOLUTION_US {
            self.withheld_us += passed_us.saturating_sub(self.turn_us());
        }
        self.at(now_us)
    }

    /// What a late check is charged as.
    fn turn_us(&self) -> u64 {
        self.timeout_us / MAX_TURNS
    }
}
