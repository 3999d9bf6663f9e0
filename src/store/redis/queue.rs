//! What waits inside the worker because enough commands are on the wire.
//!
//! The time of a command begins when it is handed over, so what waits has no deadline of its own. All of it is given up
//! at once when nothing was handed over for as long as a command may take: then Redis does not answer.

use std::collections::BTreeMap;

use super::script::Take;

/// A worker may have so many commands on the wire that Redis needs so large a part of `timeout_ms` to carry them out.
/// Several workers can do that at a time, and each command is still answered in time.
const WINDOW_SHARE: u64 = 8;

/// What a command takes in Redis at most, on a machine that is not fast, in microseconds.
const COMMAND_US: u64 = 20;

/// Least and most on the wire, whatever the timeout: enough to fill a message; a message of some 200 KB.
const WINDOW: (usize, usize) = (16, 1_024);

/// Names a command of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommandId(pub u64);

/// Most commands on the wire, where each may take `timeout_us`. At the default, with a round trip of 1 ms: over 100,000 a
/// second; with the longest that the timeout allows, 6,250 a second.
pub fn window(timeout_us: u64) -> usize {
    let (least, most) = WINDOW;
    usize::try_from(timeout_us / (WINDOW_SHARE * COMMAND_US)).unwrap_or(most).clamp(least, most)
}

/// A command that waits, and who asks.
#[derive(Debug)]
pub struct Queued<T> {
    /// Who asks.
    pub asker: T,
    /// What for.
    pub take: Take,
    /// How long Redis may take, in microseconds.
    pub timeout_us: u64,
}

/// The queue; `T` is what the owner wants back with an answer.
#[derive(Debug)]
pub struct Queue<T> {
    /// In the order in which they were asked. A map, because clients leave from the middle of it, thousands at a time.
    waiting: BTreeMap<CommandId, Queued<T>>,
    /// When a command was last handed over, or the first of these began to wait, on the session's clock.
    moved_us: u64,
}

impl<T> Queue<T> {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The last in the queue.
    pub fn push(&mut self, id: CommandId, queued: Queued<T>, at_us: u64) {
        if self.waiting.is_empty() {
            self.moved_us = at_us;
        }
        self.waiting.insert(id, queued);
    }

    /// The first in the queue, which is handed over now.
    pub fn pop(&mut self, at_us: u64) -> Option<Queued<T>> {
        let (_, queued) = self.waiting.pop_first()?;
        self.moved_us = at_us;
        Some(queued)
    }

    /// Takes out one whose request has ended; `None` where it does not wait here.
    pub fn remove(&mut self, id: CommandId) -> Option<Queued<T>> {
        self.waiting.remove(&id)
    }

    /// Notes a check of the session's clock. The queue moved then at the latest, for time that was withheld from Redis has
    /// not passed; and where what was handed over has not been sent yet, it could not have moved before.
    pub fn check(&mut self, charged_us: u64, is_all_sent: bool) {
        self.moved_us = if is_all_sent { self.moved_us.min(charged_us) } else { charged_us };
    }

    /// Whether Redis has let nothing be handed over for as long as the first may take.
    pub fn is_stuck(&self, at_us: u64) -> bool {
        let first = self.waiting.first_key_value();
        first.is_some_and(|(_, queued)| at_us.saturating_sub(self.moved_us) >= queued.timeout_us)
    }

    /// All that wait, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        std::mem::take(&mut self.waiting).into_values().map(|queued| queued.asker)
    }
}

/// With nothing in it.
impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), moved_us: 0 }
    }
}
