//! When to fetch next, and what was found wrong last: shared by all workers.

use std::time::Duration;

use super::published::{Fingerprint, SourceRecords};
use super::{DocumentFailure, PerDocument, fingerprint};
use crate::codec::{Reader, Writer};
use crate::store::{SharedData, update};
use crate::time::StoreTime;

/// How soon to try again after a failure, where that is sooner than usual.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// The first time while a document has neither been applied nor rejected yet, and requests may wait for it. Each time is
/// twice as long as the one before.
const FIRST_RETRY_WAIT: Duration = Duration::from_millis(100);

/// How long a worker that publishes keeps others from fetching, if it is not heard of again.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a claim lasts while documents are missing: longer than a fetch.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(6);

/// How often `busy_until` is set.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(1);

/// The record of fetches and of what was found wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Schedule {
    due_at: StoreTime,
    /// Until when a worker is busy with what was fetched.
    busy_until: StoreTime,
    outage: PerDocument<Outage>,
    /// What is known of texts that are not in force.
    pub(super) known_wrong: KnownWrong,
}

/// Fetches in a row in which a document could not be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outage {
    fetches: u32,
    /// Fingerprints of the last two reasons that were reported: two endpoints of a cluster may fail in two ways.
    reported: [Fingerprint; 2],
}

/// Fingerprints of texts that are known to be wrong, so that they are not parsed again; 0 stands for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KnownWrong {
    /// The tier document that was last found wrong by itself.
    pub(super) tiers: Fingerprint,
    /// The same of the key document.
    pub(super) keys: Fingerprint,
    /// The documents that were last found not to fit each other or the plugin configuration.
    pub(super) together: Fingerprint,
}

/// Claims the next fetch for this worker, if one has been due for `grace`; no other worker gets it for the source's
/// period. Where documents are missing, a claim without a result does not last so long: its worker may have been
/// superseded.
pub fn claim_fetch(
    data: &impl SharedData,
    records: &SourceRecords,
    grace: Duration,
    is_missing: bool,
) -> bool {
    let claimed = update(data, &records.schedule(), |stored, now| {
        let schedule = stored.and_then(Schedule::decode).unwrap_or_default();
        // A due time further off than the period was set when the period was longer.
        let is_due = now >= schedule.due_at.after(grace) || schedule.due_at > now.after(records.period);
        let is_lost = schedule.due_at > now.after(RETRY_WAIT)
            && now.after(records.period) >= schedule.due_at.after(CLAIM_TIMEOUT);
        let may_claim = (is_due || is_missing && is_lost) && now >= schedule.busy_until;
        let next = Schedule { due_at: now.after(records.period), ..schedule };
        (may_claim, may_claim.then(|| next.encode()))
    });
    claimed.is_ok_and(|updated| updated.value)
}

/// Gives a claim back that leads to no publication: a fetch is due again.
pub fn release_fetch(data: &impl SharedData, records: &SourceRecords) {
    Schedule::change(data, records, |schedule, now| {
        Some(Schedule { due_at: now, busy_until: StoreTime::default(), ..schedule })
    });
}

impl Schedule {
    pub(super) fn read(data: &impl SharedData, records: &SourceRecords) -> Self {
        let stored = data.get(&records.schedule());
        stored.and_then(|(bytes, _)| Self::decode(&bytes)).unwrap_or_default()
    }

    /// Keeps others from fetching while this worker publishes. Written once a second at most.
    pub(super) fn keep_busy(data: &impl SharedData, records: &SourceRecords) {
        Self::change(data, records, |schedule, now| {
            let is_short = schedule.busy_until < now.after(BUSY_TIMEOUT - RENEWAL_INTERVAL);
            is_short.then_some(Schedule { busy_until: now.after(BUSY_TIMEOUT), ..schedule })
        });
    }

    /// Notes what became of a fetch. Returns what is to be reported of its failures.
    ///
    /// Documents that cannot be reached are tried again soon, and the first such failure is passed over in silence:
    /// while Envoy starts, the first fetch may well come before the listener that answers it.
    pub(super) fn finish(
        data: &impl SharedData,
        records: &SourceRecords,
        failures: PerDocument<Option<DocumentFailure>>,
        known_wrong: KnownWrong,
        is_missing: bool,
    ) -> Option<String> {
        let mut complaint = None;
        Self::change(data, records, |schedule, now| {
            let mut next = Schedule { busy_until: StoreTime::default(), known_wrong, ..schedule };
            let PerDocument { tiers, keys } = &mut next.outage;
            let reasons = [tiers.note(&failures.tiers), keys.note(&failures.keys)];
            let most = tiers.fetches.max(keys.fetches);
            if most > 0 {
                let first = FIRST_RETRY_WAIT.saturating_mul(1 << (most - 1).min(8)).min(RETRY_WAIT);
                let retry = if is_missing { first } else { RETRY_WAIT };
                next.due_at = schedule.due_at.min(now.after(retry));
            }
            complaint = reasons.into_iter().flatten().reduce(|tiers, keys| format!("{tiers}; {keys}"));
            (next != schedule).then_some(next)
        });
        complaint
    }

    fn change(
        data: &impl SharedData,
        records: &SourceRecords,
        mut change: impl FnMut(Self, StoreTime) -> Option<Self>,
    ) {
        // Where even this write loses every race, a complaint is left out or made twice.
        let _ = update(data, &records.schedule(), |stored, now| {
            let schedule = stored.and_then(Self::decode).unwrap_or_default();
            ((), change(schedule, now).map(Self::encode))
        });
    }

    fn encode(self) -> Vec<u8> {
        let KnownWrong { tiers, keys, together } = self.known_wrong;
        let mut record = Writer::default();
        record.u64(self.due_at.as_micros()).u64(self.busy_until.as_micros());
        for Outage { fetches, reported: [last, before] } in [self.outage.tiers, self.outage.keys] {
            record.u32(fetches).u64(last).u64(before);
        }
        record.u64(tiers).u64(keys).u64(together).u64(version());
        record.into_bytes()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut record = Reader::new(bytes);
        let (due_at, busy_until) = (record.u64()?, record.u64()?);
        let mut outage = || Some(Outage { fetches: record.u32()?, reported: [record.u64()?, record.u64()?] });
        let outage = PerDocument { tiers: outage()?, keys: outage()? };
        let mut schedule = Self {
            due_at: StoreTime::from_micros(due_at),
            busy_until: StoreTime::from_micros(busy_until),
            outage,
            known_wrong: KnownWrong { tiers: record.u64()?, keys: record.u64()?, together: record.u64()? },
        };
        if record.u64()? != version() {
            schedule.known_wrong = KnownWrong::default();
        }
        Some(schedule)
    }
}

impl Outage {
    /// Notes what became of a fetch of the document. Returns what is to be reported.
    fn note(&mut self, failure: &Option<DocumentFailure>) -> Option<String> {
        let before = std::mem::take(self);
        match failure {
            None => None,
            Some(DocumentFailure::Wrong(_, reason)) => reason.clone(),
            Some(DocumentFailure::Unreachable(reason)) => {
                let found = fingerprint(&[reason.as_bytes()]);
                self.fetches = before.fetches.saturating_add(1);
                let is_new = self.fetches > 1 && !before.reported.contains(&found);
                self.reported = if is_new { [found, before.reported[0]] } else { before.reported };
                is_new.then(|| reason.clone())
            }
        }
    }
}

/// What one version of the filter rejects may be good for another.
fn version() -> Fingerprint {
    fingerprint(&[env!("CARGO_PKG_VERSION").as_bytes()])
}
