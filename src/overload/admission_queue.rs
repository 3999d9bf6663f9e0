//! The requests of one worker that wait for a place in flight to one cluster.

use std::collections::BTreeMap;

use crate::request::RequestId;
use crate::tier::MAX_PRIORITY;
use crate::time::StoreTime;

/// By priority, then by the caller's place, then by age. The greatest is sent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    priority: u8,
    place: u64,
    age: u64,
}

#[derive(Debug, Default)]
pub struct AdmissionQueue {
    waiting: BTreeMap<Rank, (RequestId, StoreTime)>,
    of_priority: [u32; MAX_PRIORITY as usize + 1],
    pushed: u64,
}

impl AdmissionQueue {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn best_priority(&self) -> Option<u8> {
        self.waiting.last_key_value().map(|(rank, _)| rank.priority)
    }

    /// Six bits for each priority: 1 where a request of it waits.
    pub fn priorities(&self) -> u64 {
        let of_priority = self.of_priority.iter().rev();
        of_priority.fold(0, |all, waiting| all << 6 | u64::from(*waiting > 0))
    }

    pub fn push(&mut self, request: RequestId, priority: u8, place: u64, now: StoreTime) -> Rank {
        self.pushed = self.pushed.wrapping_add(1);
        let rank = Rank { priority: priority.min(MAX_PRIORITY), place, age: !self.pushed };
        self.waiting.insert(rank, (request, now));
        self.count(rank, 1);
        rank
    }

    pub fn remove(&mut self, rank: Rank) -> Option<RequestId> {
        let (request, _) = self.waiting.remove(&rank)?;
        self.count(rank, -1);
        Some(request)
    }

    pub fn pop_best(&mut self) -> Option<RequestId> {
        self.waiting.last_key_value().map(|(rank, _)| *rank).and_then(|rank| self.remove(rank))
    }

    pub fn pop_worst(&mut self) -> Option<RequestId> {
        self.waiting.first_key_value().map(|(rank, _)| *rank).and_then(|rank| self.remove(rank))
    }

    /// Takes out those that have waited since `since` or longer.
    pub fn pop_waiting_since(&mut self, since: StoreTime) -> Vec<RequestId> {
        let late = self.waiting.iter().filter(|(_, (_, at))| *at <= since).map(|(rank, _)| *rank);
        let late: Vec<_> = late.collect();
        late.into_iter().filter_map(|rank| self.remove(rank)).collect()
    }

    fn count(&mut self, rank: Rank, difference: i32) {
        if let Some(count) = self.of_priority.get_mut(usize::from(rank.priority)) {
            *count = count.saturating_add_signed(difference);
        }
    }
}
