//! The commands that wait in the worker while enough others are on the wire.
//!
//! The time of a command begins when it is sent, so a command that waits has no deadline of its own. All of them are
//! given up at once when none was sent for as long as a command may take: then Redis does not answer.

use std::collections::BTreeMap;
use std::time::Duration;

use super::command::CommandId;
use super::reply_clock::ReplyTime;
use super::script::Take;

/// The commands of a worker on the wire take Redis at most one part in so many of `timeout_ms`. So several workers can
/// fill the wire, and each command is still answered in time.
const ON_WIRE_SHARE: u32 = 8;

/// What a command takes in Redis at most, on a machine that is not fast.
const MAX_COMMAND_TIME: Duration = Duration::from_micros(20);

/// Fewest and most commands on the wire, whatever the timeout: enough for a message worth sending, and some 200 KB.
const ON_WIRE: (usize, usize) = (16, 1_024);

/// Most commands on the wire, where each may take `timeout`. At the default, with a round trip of 1 ms: over 100,000 a
/// second; with the longest that the timeout allows, 6,250 a second.
pub fn max_on_wire(timeout: Duration) -> usize {
    let (least, most) = ON_WIRE;
    let commands = timeout.as_micros() / (MAX_COMMAND_TIME * ON_WIRE_SHARE).as_micros();
    usize::try_from(commands).unwrap_or(most).clamp(least, most)
}

#[derive(Debug)]
pub(super) struct Queued {
    pub take: Take,
    /// How long Redis may take.
    pub timeout: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// In the order in which they were sent. A map, because clients leave from the middle of it, thousands at a time.
    waiting: BTreeMap<CommandId, Queued>,
    /// When a command was last handed over, or the first of these began to wait.
    moved_at: ReplyTime,
}

impl Queue {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The last in the queue.
    pub fn push(&mut self, id: CommandId, queued: Queued, at: ReplyTime) {
        if self.waiting.is_empty() {
            self.moved_at = at;
        }
        self.waiting.insert(id, queued);
    }

    /// The first in the queue, which is handed over now.
    pub fn pop(&mut self, at: ReplyTime) -> Option<(CommandId, Queued)> {
        let first = self.waiting.pop_first()?;
        self.moved_at = at;
        Some(first)
    }

    /// Takes out one whose request has ended; `None` where it does not wait here.
    pub fn remove(&mut self, id: CommandId) -> Option<Queued> {
        self.waiting.remove(&id)
    }

    /// Updates `moved_at` at a check of the reply clock. A check may withhold time: then the clock shows less than
    /// `moved_at`, and `moved_at` follows it. While a command that was handed over is not sent yet, the queue cannot
    /// move: then its time begins now.
    pub fn check(&mut self, reply_time: ReplyTime, is_all_sent: bool) {
        self.moved_at = if is_all_sent { self.moved_at.min(reply_time) } else { reply_time };
    }

    /// Whether no command was handed over for as long as the first may take.
    pub fn is_stuck(&self, at: ReplyTime) -> bool {
        let first = self.waiting.first_key_value();
        first.is_some_and(|(_, queued)| at.since(self.moved_at) >= queued.timeout)
    }

    /// All that wait, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = CommandId> {
        std::mem::take(&mut self.waiting).into_keys()
    }
}
