//! When to stop sending to Redis, and for how long: counts the failures since Redis last worked.

use std::time::Duration;

use super::failure::Scope;
use crate::time::StoreTime;

/// Failures in a row that open the breaker.
pub const MAX_FAILURES: u32 = 3;

/// Error replies of one shard in a row, with no token given in between, that open it too.
pub const MAX_SHARD_ERRORS: u32 = 32;

/// For so long after the last token, which another node may have given, the error replies of a node count as those of a
/// shard.
const TOKEN_GAP: Duration = Duration::from_millis(100);

/// After so long without a failure, pauses are short again.
const QUIET_TIME: Duration = Duration::from_secs(10);

/// The first pause of an open breaker; each following one is twice as long, up to the last. After a failover, each node
/// that is not the master may cost one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// The counts of one session.
#[derive(Debug)]
pub struct Breaker {
    /// Lost connections and missed deadlines since the last reply in time.
    silences: u32,
    timed_out_at: StoreTime,
    /// Error replies since the last verdict: of Redis as a whole, and of a shard.
    errors: u32,
    shard_errors: u32,
    /// When a token was last given.
    token_at: StoreTime,
    /// Whether no token was given since the last pause began.
    is_open: bool,
    /// Pauses since the first failure.
    pauses: u32,
    closed_at: StoreTime,
    random: u64,
}

impl Breaker {
    /// A closed one. `seed` spreads the pauses of different workers.
    pub fn new(seed: u64) -> Self {
        Self {
            silences: 0,
            timed_out_at: StoreTime::default(),
            errors: 0,
            shard_errors: 0,
            token_at: StoreTime::default(),
            is_open: false,
            pauses: 0,
            closed_at: StoreTime::default(),
            random: seed | 1,
        }
    }

    /// Counts a lost connection.
    pub fn record_loss(&mut self) {
        self.silences += 1;
    }

    /// Counts missed deadlines. Those of one quarter of the time that a command may take count once: they have one
    /// cause.
    pub fn record_timeout(&mut self, timeout: Duration, now: StoreTime) {
        if self.silences == 0 || now.since(self.timed_out_at) >= timeout / 4 {
            self.silences += 1;
            self.timed_out_at = now;
        }
    }

    /// Counts an error reply to a command that takes a token.
    pub fn record_error(&mut self, scope: Scope, now: StoreTime) {
        match scope {
            Scope::Node if now.since(self.token_at) < TOKEN_GAP => self.shard_errors += 1,
            Scope::Node | Scope::Whole => self.errors += 1,
            Scope::Shard => self.shard_errors += 1,
            Scope::Key => {}
        }
    }

    /// Redis has replied in time to a command that takes no token. A replica or a full Redis still does that, so the
    /// counts of errors stay.
    pub fn record_reply(&mut self) {
        self.silences = 0;
    }

    /// Redis has replied to a command that takes a token, which shows that it works: the breaker closes.
    pub fn record_token(&mut self, now: StoreTime) {
        if std::mem::take(&mut self.is_open) {
            self.closed_at = now;
        }
        self.token_at = now;
        self.silences = 0;
        self.errors = 0;
        self.shard_errors = 0;
    }

    /// Whether enough commands have failed.
    pub fn must_open(&self) -> bool {
        self.silences >= MAX_FAILURES || self.errors >= MAX_FAILURES || self.shard_errors >= MAX_SHARD_ERRORS
    }

    /// How long to send nothing from now on: longer after each pause that no token followed.
    pub fn open(&mut self, now: StoreTime) -> Duration {
        if !std::mem::replace(&mut self.is_open, true) && now.since(self.closed_at) > QUIET_TIME {
            self.pauses = 0;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.pauses.min(16)).min(LAST_PAUSE);
        self.pauses = self.pauses.saturating_add(1);
        // A quarter of the longest pause is less than a second.
        let jitter_us = u64::from((pause / 4).subsec_micros());
        pause * 3 / 4 + Duration::from_micros(self.next_random() % jitter_us)
    }

    /// Xorshift: spreads pauses, no more.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
