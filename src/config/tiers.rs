//! The tier document.

use super::{NAME_WANTED, is_name};
use crate::json::{Field, Json};
use crate::limit::{Limit, MAX_CAPACITY, MAX_REFILL_MICRO_PER_SEC};
use crate::tier::{MAX_PRIORITY, MAX_TTL_SECONDS, Tier};

const MAX_REFILL_PER_SEC: u32 = (MAX_REFILL_MICRO_PER_SEC / 1_000_000) as u32;
const DEFAULT_TTL_SECONDS: u32 = 60;

/// What errors call the tier document, in the plugin configuration and by itself.
pub const TIER_DOCUMENT: &str = "tiers";

/// Most tiers: each has metrics of its own, and every worker puts all of them into force at once.
pub const MAX_TIERS: usize = 1_024;

/// Reads the text of a tier document at once.
pub fn parse_tier_document(text: &[u8]) -> Result<Vec<Tier>, String> {
    let json = Json::parse(text).map_err(|error| format!("{TIER_DOCUMENT}: {error}"))?;
    parse_tiers(&json.root(TIER_DOCUMENT))
}

/// Reads a tier document: an object of tiers by name, at least one.
pub fn parse_tiers(document: &Field) -> Result<Vec<Tier>, String> {
    let tiers = parse_tier_members(document)?;
    check_count(tiers.len())?;
    Ok(tiers)
}

/// Reads some members of a tier document.
///
/// Names of tiers are shown in errors. So what reads as API keys, served here by mistake, is rejected first.
pub fn parse_tier_members(document: &Field) -> Result<Vec<Tier>, String> {
    if document.any_member(|field| field.is_text() || field.has("tier") || field.has("id")) {
        return Err(document.error("what reads as API keys", "tiers, each with \"base\" or \"unlimited\""));
    }
    document.members()?.iter().map(|(name, field)| tier(name, field)).collect()
}

/// Whether there may be so many tiers.
pub fn check_count(tiers: usize) -> Result<(), String> {
    match tiers {
        1..=MAX_TIERS => Ok(()),
        0 => Err(format!("{TIER_DOCUMENT}: found no tier, wanted at least one")),
        _ => Err(format!("{TIER_DOCUMENT}: found {tiers} tiers, wanted at most {MAX_TIERS}")),
    }
}

/// The tiers that hold where the configuration names none.
pub fn built_in_tiers() -> Vec<Tier> {
    let limit = Limit::new;
    let tier = |name: &str, normal: Option<Limit>, degraded: Option<Limit>, ttl_seconds| {
        Some(Tier {
            name: name.to_owned(),
            normal: normal?,
            degraded: degraded?,
            ttl_seconds,
            unlimited: false,
            priority: default_priority(name),
            min_share_milli: 0,
        })
    };
    [
        tier("free", limit(10, 1_000_000), limit(2, 500_000), 30),
        tier("pro", limit(25, 2_000_000), limit(15, 2_000_000), 60),
        tier("enterprise", limit(50, 5_000_000), limit(30, 5_000_000), 120),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn tier(name: &str, field: &Field) -> Result<Tier, String> {
    if !is_name(name) {
        return Err(field.error("this name of a tier", NAME_WANTED));
    }
    let fields = field.fields(&["base", "burst", "degraded", "ttl", "unlimited", "priority", "min_share"])?;
    let unlimited = super::flag(&fields, "unlimited", false)?;
    let ttl_seconds = match fields.get("ttl") {
        Some(ttl) => ttl.whole(1, MAX_TTL_SECONDS)?,
        None => DEFAULT_TTL_SECONDS,
    };
    let base = match fields.get("base") {
        Some(base) => UncheckedLimit::of_base(&base)?,
        None if unlimited => UncheckedLimit { capacity: 0, refill_micro_per_sec: 0 },
        None => {
            let wanted = "{\"capacity\": …, \"refill_rate\": …}, or \"unlimited\": true in the tier";
            return Err(fields.need("base", wanted).err().unwrap_or_default());
        }
    };
    let normal = match fields.get("burst") {
        Some(burst) => base.with(&burst, &["capacity"])?,
        None => base,
    };
    let degraded = match fields.get("degraded") {
        Some(degraded) => base.with(&degraded, &["capacity", "refill_rate"])?,
        None => base,
    };
    Ok(Tier {
        name: name.to_owned(),
        normal: normal.checked(field, "base")?,
        degraded: degraded.checked(field, "degraded")?,
        ttl_seconds,
        unlimited,
        priority: match fields.get("priority") {
            Some(priority) => u8::try_from(priority.whole(0, MAX_PRIORITY.into())?).unwrap_or(MAX_PRIORITY),
            None => default_priority(name),
        },
        min_share_milli: match fields.get("min_share") {
            Some(share) => min_share_milli(&share)?,
            None => 0,
        },
    })
}

/// The priority of a tier that names none: the built-in ones in their order, and any other beside `pro`.
fn default_priority(name: &str) -> u8 {
    match name {
        "free" => 2,
        "enterprise" => 8,
        _ => 5,
    }
}

/// A share from 0 to 1 in thousandths, rounded up: no tier loses by it.
fn min_share_milli(field: &Field) -> Result<u16, String> {
    let wanted = |_| field.wanted("a share from 0 to 1");
    let millionths = field.millionths(1).map_err(wanted)?;
    Ok(u16::try_from(millionths.div_ceil(1_000)).unwrap_or(1_000))
}

/// Capacity and refill rate, each in range, not yet checked against each other.
#[derive(Clone, Copy)]
struct UncheckedLimit {
    capacity: u32,
    refill_micro_per_sec: u64,
}

impl UncheckedLimit {
    fn of_base(field: &Field) -> Result<Self, String> {
        let fields = field.fields(&["capacity", "refill_rate"])?;
        let capacity = fields.need("capacity", "a whole number of tokens")?;
        let refill_rate = fields.need("refill_rate", "a number of tokens per second")?;
        Ok(Self {
            capacity: capacity.whole(0, MAX_CAPACITY)?,
            refill_micro_per_sec: refill_rate.millionths(MAX_REFILL_PER_SEC)?,
        })
    }

    /// This limit with what `field` says instead.
    fn with(self, field: &Field, known: &[&str]) -> Result<Self, String> {
        let fields = field.fields(known)?;
        Ok(Self {
            capacity: match fields.get("capacity") {
                Some(capacity) => capacity.whole(0, MAX_CAPACITY)?,
                None => self.capacity,
            },
            refill_micro_per_sec: match fields.get("refill_rate") {
                Some(refill_rate) => refill_rate.millionths(MAX_REFILL_PER_SEC)?,
                None => self.refill_micro_per_sec,
            },
        })
    }

    fn checked(self, tier: &Field, part: &str) -> Result<Limit, String> {
        Limit::new(self.capacity, self.refill_micro_per_sec).ok_or_else(|| {
            let (path, capacity) = (tier.path(), self.capacity);
            format!("{path}.{part}.refill_rate: found 0 with a capacity of {capacity}, wanted more than 0")
        })
    }
}
