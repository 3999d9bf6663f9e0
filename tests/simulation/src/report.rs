//! Counts of events over all worlds, and the last events of a world, which a failure prints.

use std::fmt;

macro_rules! happenings {
    ($($group:literal: { $($name:ident $text:literal,)* })*) => {
        /// A counted event. Every one has to occur, so that no check is vacuous.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Happening { $($($name,)*)* }

        impl Happening {
            /// All, with their groups and texts.
            pub const ALL: &[(Happening, &str, &str)] = &[$($((Happening::$name, $group, $text),)*)*];
        }
    };
}

happenings! {
    "decisions": {
        Admitted "admitted",
        RejectedHere "rejected by shared data",
        RejectedThere "rejected by Redis",
        RejectedByDenyCache "rejected by the deny cache",
        FallbackLocal "fallbacks: local",
        FallbackAllow "fallbacks: allow",
        FallbackDeny "fallbacks: deny",
        Busy "turns of an event loop that took long",
        Burst "more requests at once than may be on the wire",
        AtTheInstant "a request within a microsecond of the time of a token",
    }
    "shared data": {
        Interleaved "other workers between a read and its write",
        Conflict "CAS conflicts",
        Eviction "evictions",
    }
    "Redis": {
        Expired "buckets expired",
        NoScript "scripts sent again",
        Fragmented "fragmented deliveries",
    }
    "faults": {
        Frozen "frozen Redis",
        Slow "slow Redis",
        Down "Redis away",
        Error "error replies",
        Garbage "garbage",
        OneOff "replies lost or doubled on an open stream",
        Hole "streams whose bytes are lost",
        Reset "resets",
        ScriptFlush "scripts flushed",
        RestartEmpty "restarts with data lost",
        RestartKept "restarts with data kept",
        Failover "failovers that lose the last writes",
        ClockForward "Redis' clock set forward",
        ClockBack "Redis' clock set back",
        WallClock "wall clocks set",
        Trap "trapped VMs",
        Reload "configurations delivered",
        Documents "documents published",
        BadConfig "bad configurations and documents",
        HealthPost "health posted",
        HealthInRedis "health set in Redis",
    }
}

/// Counts by [`Happening`].
#[derive(Clone, Debug)]
pub struct Totals {
    counts: Vec<u64>,
    /// Requests decided.
    pub operations: u64,
    /// Tokens that Redis returned by losing data.
    pub forgiven: u64,
}

impl Default for Totals {
    fn default() -> Self {
        Self { counts: vec![0; Happening::ALL.len()], operations: 0, forgiven: 0 }
    }
}

impl Totals {
    pub fn add(&mut self, happening: Happening, count: u64) {
        self.counts[happening as usize] += count;
    }

    pub fn count(&self, happening: Happening) -> u64 {
        self.counts[happening as usize]
    }

    /// The events that have not occurred.
    pub fn missing(&self) -> Vec<&'static str> {
        let missing = |(happening, _, text): &(Happening, &str, &'static str)| {
            (self.count(*happening) == 0).then_some(*text)
        };
        Happening::ALL.iter().filter_map(missing).collect()
    }

    pub fn join(&mut self, other: &Totals) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
        self.operations += other.operations;
        self.forgiven += other.forgiven;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = "";
        for (happening, group, text) in Happening::ALL {
            if *group != last {
                writeln!(formatter, "{group}:")?;
                last = group;
            }
            writeln!(formatter, "  {:>12}  {text}", self.count(*happening))?;
        }
        writeln!(formatter, "tokens handed back by a Redis that lost data: {}", self.forgiven)
    }
}

#[derive(Clone, Debug)]
struct Line {
    at_us: u64,
    /// The owner; `None` for an event that concerns all.
    owner: Option<usize>,
    what: What,
}

/// The event of a line.
#[derive(Clone, Copy, Debug)]
pub enum What {
    Decided { envoy: usize, worker: usize, request_id: u32, how: &'static str, admitted: bool, left: u32 },
    Sent { envoy: usize, worker: usize, request_id: u32 },
    Took { admitted: bool, left_pico: u64, redis_us: u64, capacity: u32, rate: u64 },
    Happened(Happening),
    Ended(Happening),
}

/// Longest history that is kept, and most lines of it that are shown.
const KEPT: usize = 20_000;
const SHOWN: usize = 50;

/// The last lines of a world.
#[derive(Debug, Default)]
pub struct History(Vec<Line>);

impl History {
    pub fn note(&mut self, at_us: u64, owner: Option<usize>, what: What) {
        if self.0.len() == KEPT {
            self.0.drain(..KEPT / 2);
        }
        self.0.push(Line { at_us, owner, what });
    }

    /// The last lines about `owner`, and about all owners.
    pub fn shown(&self, owner: Option<usize>) -> String {
        let matters = |line: &&Line| owner.is_none() || line.owner.is_none() || line.owner == owner;
        let mut lines: Vec<&Line> = self.0.iter().rev().filter(matters).take(SHOWN).collect();
        lines.reverse();
        let text = |line: &Line| {
            let what = match line.what {
                What::Decided { envoy, worker, request_id, how, admitted, left } => {
                    let verdict = if admitted { "admitted" } else { "rejected" };
                    format!(
                        "request {request_id} at envoy {envoy}, worker {worker}: {verdict} by {how}, {left} left"
                    )
                }
                What::Sent { envoy, worker, request_id } => {
                    format!("request {request_id} at envoy {envoy}, worker {worker}: waits for Redis")
                }
                What::Took { admitted, left_pico, redis_us, capacity, rate } => {
                    let verdict = if admitted { "gives a token" } else { "gives none" };
                    format!(
                        "Redis at {redis_us} µs {verdict}, {left_pico} units left (limit {capacity}, {rate}e-6/s)"
                    )
                }
                What::Happened(happening) => format!("! {}", Happening::ALL[happening as usize].2),
                What::Ended(happening) => format!("! no more: {}", Happening::ALL[happening as usize].2),
            };
            format!("  {:>12} µs  {what}\n", line.at_us)
        };
        lines.into_iter().map(text).collect()
    }
}
