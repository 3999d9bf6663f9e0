//! A charge: one token, the bucket that it is taken from, and the bucket's limit.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;

use crate::config::KnownCaller;
use crate::health::Health;
use crate::identity::Network;
use crate::limit::Limit;
use crate::tier::Tier;

#[derive(Clone, Debug)]
pub enum BucketOwner {
    /// A caller with a known key.
    Key(Rc<KnownCaller>),
    /// All others, by address.
    Address(Network),
}

impl BucketOwner {
    /// The bucket's name.
    pub fn bucket(&self) -> Cow<'_, str> {
        match self {
            BucketOwner::Key(caller) => Cow::Borrowed(&caller.bucket),
            BucketOwner::Address(network) => Cow::Owned(network.to_string()),
        }
    }
}

/// Hashes what identifies the bucket, without building its name: owners of one bucket have one hash.
impl Hash for BucketOwner {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        match self {
            BucketOwner::Key(caller) => caller.bucket.hash(hasher),
            BucketOwner::Address(network) => network.bytes().hash(hasher),
        }
    }
}

/// One token, and the caller who is charged.
#[derive(Clone, Debug)]
pub struct Charge {
    pub owner: BucketOwner,
    pub tier: Rc<Tier>,
    /// The health that the limit was chosen by.
    pub health: Health,
    pub limit: Limit,
}

impl Charge {
    /// The limit of the same bucket at the other health. A bucket is forgotten only when it is full by both limits.
    pub fn other_limit(&self) -> Limit {
        match self.health {
            Health::Normal => self.tier.degraded,
            Health::Degraded => self.tier.normal,
        }
    }

    /// How long an idle bucket of this tier is kept at least.
    pub fn ttl(&self) -> Duration {
        Duration::from_secs(self.tier.ttl_seconds.into())
    }
}
