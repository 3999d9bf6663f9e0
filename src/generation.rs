//! Which configuration of a plugin acts on what all workers share.
//!
//! Envoy keeps the root context of a replaced configuration, and calls its ticks, until the last of its
//! requests ends. An event stream or a WebSocket can last for days. So several generations of one plugin may
//! live in one VM, and in VMs of different code. All of them answer their own requests. Only the newest one
//! polls, fetches, takes leases and writes records that do not belong to a request.
//!
//! The newest generation is the one that Envoy configured last, and the VM of Envoy's main thread knows it:
//! it is given each configuration, in order, and no request holds an old one there. A worker's VM cannot
//! know: where a configuration returns while a request still holds its root context, Envoy uses that root
//! context again and calls nothing. A VM cannot find out whether it is the main thread's, but one that has served
//! a request is not. So a VM that has never served a request writes a claim for its newest generation into
//! shared data and renews it at each tick; all generations obey it. A worker that has served no request yet
//! is configured in the same order, a moment later, and claims the same.
//!
//! A claim that is not renewed expires. Then each VM goes by its own order.

use std::time::Duration;

use crate::record_key::record_key;
use crate::store::{SharedData, update};
use crate::time::StoreTime;

/// A claim that was not renewed for so long is void: three ticks.
pub const CLAIM_TTL: Duration = Duration::from_secs(3);

/// A claim that is younger than this is not renewed.
const RENEW_AFTER: Duration = Duration::from_millis(500);

/// What a generation may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It acts on shared state.
    Newest,
    /// It answers its own requests and does nothing else.
    Superseded,
}

/// What a claim changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// This generation is the first of its plugin in this Envoy.
    First,
    /// This generation replaces another one.
    Replaced,
    /// Nothing.
    Unchanged,
}

/// One configuration of a plugin in one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Generation {
    root: u32,
    claim_key: String,
    fingerprint: u64,
    configured_at: StoreTime,
}

/// The generations that live in one VM, in the order in which Envoy configured them.
#[derive(Debug, Default)]
pub struct Generations {
    alive: Vec<Generation>,
    serves_requests: bool,
}

/// Names one configuration of one plugin.
#[derive(Clone, Copy, Debug)]
pub struct PluginIdentity<'a> {
    /// The plugin's name in Envoy's configuration.
    pub name: &'a [u8],
    /// The limiter's namespace.
    pub namespace: &'a str,
    /// Differs between configurations. Zero stands for none.
    pub fingerprint: u64,
}

impl Generations {
    /// An empty VM.
    pub const fn new() -> Self {
        Self { alive: Vec::new(), serves_requests: false }
    }

    /// Adds the generation of this root context: Envoy has just configured it.
    pub fn add(&mut self, root: u32, identity: PluginIdentity<'_>, now: StoreTime) {
        self.alive.retain(|generation| generation.root != root);
        let name: String = identity.name.iter().map(|byte| format!("{byte:02x}")).collect();
        self.alive.push(Generation {
            root,
            claim_key: record_key(identity.namespace, &format!("generation/{name}")),
            fingerprint: identity.fingerprint,
            configured_at: now,
        });
    }

    /// Removes the generation of this root context: Envoy has deleted it.
    ///
    /// Its claim ends, so that nothing acts for a plugin that no listener has any more. A generation of the
    /// plugin that is left in this VM claims at its next tick.
    pub fn remove(&mut self, root: u32, data: &impl SharedData) {
        let Some(index) = self.alive.iter().position(|generation| generation.root == root) else {
            return;
        };
        let removed = self.alive.remove(index);
        if self.serves_requests {
            return;
        }
        // Where every attempt loses its race, the claim expires.
        let _ = update(data, &removed.claim_key, |stored, _| {
            let claim = stored.and_then(Claim::decode);
            let is_own = claim.is_some_and(|claim| claim.fingerprint == removed.fingerprint);
            ((), is_own.then(|| Claim::NONE.encode()))
        });
    }

    /// Notes that this VM serves requests. It is not the main thread's.
    pub fn note_request(&mut self) {
        self.serves_requests = true;
    }

    /// What the generation of this root context may do now.
    pub fn role(&self, root: u32, data: &impl SharedData) -> Role {
        let Some(generation) = self.alive.iter().find(|generation| generation.root == root) else {
            return Role::Superseded;
        };
        let stored = data.get(&generation.claim_key);
        let claim = stored.and_then(|(bytes, _)| Claim::decode(&bytes));
        let is_newest = match claim.filter(|claim| !claim.is_expired(data.now())) {
            Some(claim) => claim.fingerprint == generation.fingerprint,
            None => self.is_last(generation),
        };
        if is_newest { Role::Newest } else { Role::Superseded }
    }

    /// Claims for the generation of this root context that it is the newest, or renews that, if this VM can
    /// know.
    pub fn claim(&self, root: u32, data: &impl SharedData) -> Claimed {
        let own = self.alive.iter().find(|generation| generation.root == root);
        let Some(own) = own.filter(|own| !self.serves_requests && self.is_last(own)) else {
            return Claimed::Unchanged;
        };
        let updated = update(data, &own.claim_key, |stored, now| {
            let claim = stored.and_then(Claim::decode);
            let next = claim.map_or(Some(own.claim(now)), |claim| own.claim_after(claim, now));
            let claimed = match (next, claim) {
                (Some(_), None) => Claimed::First,
                (Some(next), Some(claim)) if next.fingerprint != claim.fingerprint => Claimed::Replaced,
                _ => Claimed::Unchanged,
            };
            (claimed, next.map(Claim::encode))
        });
        updated.map_or(Claimed::Unchanged, |updated| updated.value)
    }

    /// Whether no other generation of its plugin was configured later in this VM.
    fn is_last(&self, generation: &Generation) -> bool {
        let last = self.alive.iter().rfind(|other| other.claim_key == generation.claim_key);
        last.is_some_and(|last| last.root == generation.root)
    }
}

impl Generation {
    fn claim(&self, now: StoreTime) -> Claim {
        Claim { fingerprint: self.fingerprint, configured_at: self.configured_at, renewed_at: now }
    }

    /// The claim that replaces `claim`; `None` if that one stays.
    fn claim_after(&self, claim: Claim, now: StoreTime) -> Option<Claim> {
        let next = self.claim(now);
        if claim.fingerprint == self.fingerprint {
            // The main thread configures a generation before a worker that lags does.
            let configured_at = claim.configured_at.min(self.configured_at);
            let is_due = now >= claim.renewed_at.after(RENEW_AFTER);
            return is_due.then_some(Claim { configured_at, ..next });
        }
        let is_later = self.configured_at > claim.configured_at;
        (is_later || claim.is_expired(now)).then_some(next)
    }
}

/// Which generation of a plugin is the newest: a record in shared data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    fingerprint: u64,
    configured_at: StoreTime,
    renewed_at: StoreTime,
}

impl Claim {
    /// No listener has the plugin. Does not expire.
    const NONE: Self =
        Self { fingerprint: 0, configured_at: StoreTime::from_micros(0), renewed_at: StoreTime::MAX };

    fn is_expired(&self, now: StoreTime) -> bool {
        now >= self.renewed_at.after(CLAIM_TTL)
    }

    fn encode(self) -> Vec<u8> {
        let numbers = [self.fingerprint, self.configured_at.as_micros(), self.renewed_at.as_micros()];
        numbers.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (fingerprint, rest) = bytes.split_first_chunk()?;
        let (configured_at, rest) = rest.split_first_chunk()?;
        Some(Self {
            fingerprint: u64::from_le_bytes(*fingerprint),
            configured_at: StoreTime::from_micros(u64::from_le_bytes(*configured_at)),
            renewed_at: StoreTime::from_micros(u64::from_le_bytes(rest.try_into().ok()?)),
        })
    }
}
