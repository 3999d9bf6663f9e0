//! The requests of one worker that wait for a place in flight to one cluster.

use std::collections::BTreeMap;

use crate::request::RequestId;
use crate::tier::MAX_PRIORITY;
use crate::time::StoreTime;

/// Priority, the caller's order, and age. The greatest is sent first.
pub type Rank = (u8, u64, u64);

#[derive(Debug, Default)]
pub struct AdmissionQueue {
    waiting: BTreeMap<Rank, (RequestId, StoreTime)>,
    pushed: u64,
}

impl AdmissionQueue {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn best_priority(&self) -> Option<u8> {
        self.waiting.last_key_value().map(|((priority, ..), _)| *priority)
    }

    /// Six bits for each priority: 1 where a request of it waits.
    pub fn priorities(&self) -> u64 {
        let (mut priorities, mut below) = (0, (u8::MAX, 0, 0));
        // Each turn goes to a lower priority.
        while let Some(((priority, ..), _)) = self.waiting.range(..below).next_back() {
            priorities |= 1 << (6 * priority);
            below = (*priority, 0, 0);
        }
        priorities
    }

    pub fn push(&mut self, request: RequestId, priority: u8, order: u64, now: StoreTime) -> Rank {
        self.pushed = self.pushed.wrapping_add(1);
        let rank = (priority.min(MAX_PRIORITY), order, !self.pushed);
        self.waiting.insert(rank, (request, now));
        rank
    }

    pub fn remove(&mut self, rank: Rank) -> Option<RequestId> {
        self.waiting.remove(&rank).map(|(request, _)| request)
    }

    pub fn pop_best(&mut self) -> Option<RequestId> {
        self.waiting.pop_last().map(|(_, (request, _))| request)
    }

    pub fn pop_worst(&mut self) -> Option<RequestId> {
        self.waiting.pop_first().map(|(_, (request, _))| request)
    }

    /// Takes out those that have waited since `since` or longer.
    pub fn pop_waiting_since(&mut self, since: StoreTime) -> Vec<RequestId> {
        let late = |(rank, (_, at)): (&Rank, &(RequestId, StoreTime))| (*at <= since).then_some(*rank);
        let late: Vec<Rank> = self.waiting.iter().filter_map(late).collect();
        late.into_iter().filter_map(|rank| self.remove(rank)).collect()
    }
}
