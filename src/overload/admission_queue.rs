//! The requests of one worker that wait for a place in flight to one cluster.

use std::collections::BTreeMap;

use super::worker::RequestId;
use crate::tier::MAX_PRIORITY;
use crate::time::StoreTime;

/// Where a request stands: by priority, then by its caller's place, then by age. The greatest is sent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    priority: u8,
    place: u64,
    age: u64,
}

/// The requests that wait, in order.
#[derive(Debug, Default)]
pub struct AdmissionQueue {
    waiting: BTreeMap<Rank, (RequestId, StoreTime)>,
    of_priority: [u32; MAX_PRIORITY as usize + 1],
    pushed: u64,
}

impl AdmissionQueue {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The highest priority that waits.
    pub fn best_priority(&self) -> Option<u8> {
        self.waiting.last_key_value().map(|(rank, _)| rank.priority)
    }

    /// The priorities that wait, six bits for each: 1 where a request of it waits.
    pub fn priorities(&self) -> u64 {
        let bits = self.of_priority.iter().zip(0_u32..);
        bits.filter(|(count, _)| **count > 0).fold(0, |all, (_, priority)| all | 1_u64 << (6 * priority))
    }

    /// Adds a request; returns its rank, by which it can be removed.
    pub fn push(&mut self, request: RequestId, priority: u8, place: u64, now: StoreTime) -> Rank {
        let priority = priority.min(MAX_PRIORITY);
        self.pushed = self.pushed.wrapping_add(1);
        let rank = Rank { priority, place, age: u64::MAX.wrapping_sub(self.pushed) };
        self.waiting.insert(rank, (request, now));
        self.count(priority, 1);
        rank
    }

    /// Removes a request.
    pub fn remove(&mut self, rank: Rank) {
        if self.waiting.remove(&rank).is_some() {
            self.count(rank.priority, -1);
        }
    }

    /// Takes out the request that is next.
    pub fn pop_best(&mut self) -> Option<RequestId> {
        let (rank, (request, _)) = self.waiting.pop_last()?;
        self.count(rank.priority, -1);
        Some(request)
    }

    /// Takes out the least important request.
    pub fn pop_worst(&mut self) -> Option<RequestId> {
        let (rank, (request, _)) = self.waiting.pop_first()?;
        self.count(rank.priority, -1);
        Some(request)
    }

    /// Takes out those that have waited since `since` or longer.
    pub fn pop_waiting_since(&mut self, since: StoreTime) -> Vec<RequestId> {
        let late = self.waiting.iter().filter(|(_, (_, at))| *at <= since);
        let late: Vec<_> = late.map(|(rank, (request, _))| (*rank, *request)).collect();
        late.iter().for_each(|(rank, _)| self.remove(*rank));
        late.into_iter().map(|(_, request)| request).collect()
    }

    fn count(&mut self, priority: u8, difference: i32) {
        if let Some(count) = self.of_priority.get_mut(usize::from(priority)) {
            *count = count.saturating_add_signed(difference);
        }
    }
}
