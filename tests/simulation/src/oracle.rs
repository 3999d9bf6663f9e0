//! Checks every decision against section 4 of the specification, without the limiter's arithmetic.
//!
//! **One reference bucket for each bucket and store**, in exact integers. The claim is: over *every* interval,
//! admitted ≤ capacity + rate × elapsed. Let `excess` be the largest value, over all intervals that end now, of
//! admitted − rate × elapsed. It obeys `excess ← max(0, excess − rate × elapsed) + 1` at each admission, so one number
//! stands for all intervals, and the claim is `excess ≤ capacity`. With `tokens = capacity − excess` that is a bucket
//! that starts full, refills at `rate` up to `capacity` and must hold a whole token at every admission.
//! Liveness is the other half: a rejection requires less than a whole token. So safety and liveness together
//! mean that the decision is *equal* to the reference's, and so are the remaining tokens, to 10⁻¹² tokens.
//!
//! Elapsed time is the gain of the store's clock since the last admission (or since its last step back).
//! As in the README, it is credited at the rate of the next request.
//!
//! **These bounds are looser:**
//!
//! - Redis that loses data: the reference is reset to the surviving data; the tokens so returned are
//!   counted. Losing all of it makes buckets full, which is one capacity at most.
//! - A bucket that expires in Redis must have been full under every limit of its last request; only then is it new.
//! - Addresses that share a full record of the address table: each still obeys its own reference as an upper bound
//!   (exact safety); the record's `ways` slots are as many buckets, so together they admit at most `ways ×` one bucket;
//!   and a rejection needs one slot to be empty, so that the record as *one* bucket would be empty, too. Holds where the
//!   limit does not change, and such worlds do not change it.
//! - Callers that the deny cache rejects: never while Redis has a token for them, except that changes of Redis from
//!   outside (lost data, a clock set forward, another Envoy's other limits) may stay unknown for [`DENY_US`] and one
//!   command.

use dynamic_rate_limiter::limit::Limit;

/// Units in a token.
const TOKEN: u128 = 1_000_000_000_000;

/// The longest time that the deny cache may reject a caller, in microseconds.
pub const DENY_US: u64 = 1_000_000;

/// The content of one decision.
#[derive(Clone, Copy, Debug)]
pub struct Said {
    pub admitted: bool,
    /// Tokens left, in units of 10⁻¹²; `None` where only whole ones are known.
    pub left_pico: Option<u64>,
    pub left: u32,
    /// Microseconds to wait; `None` if it is unknown.
    pub wait_us: Option<u64>,
}

/// A bucket as in the specification.
#[derive(Clone, Copy, Debug)]
struct Reference {
    tokens: u128,
    at_us: u64,
    /// The time when it is full at the latest, under every limit that its tier had at its last request.
    full_at_us: u64,
    limit: Limit,
}

fn full(limit: Limit) -> u128 {
    u128::from(limit.capacity()) * TOKEN
}

fn rate(limit: Limit) -> u128 {
    u128::from(limit.refill_micro_per_sec())
}

/// Microseconds until `missing` has been gained, rounded up.
fn time_for(missing: u128, limit: Limit) -> u64 {
    missing.div_ceil(rate(limit)) as u64
}

fn available(reference: Option<Reference>, limit: Limit, now_us: u64) -> u128 {
    let Some(Reference { tokens, at_us, .. }) = reference else { return full(limit) };
    full(limit).min(tokens + rate(limit) * u128::from(now_us.saturating_sub(at_us)))
}

/// Addresses that share a record of the table.
#[derive(Clone, Copy, Debug)]
struct SharedRecord {
    /// Slots of the record.
    ways: u32,
    /// Largest admitted − rate × elapsed of all of them together, at the rate of one slot and of all slots.
    excess_of_one: u128,
    excess_of_all: u128,
    at_us: u64,
}

impl SharedRecord {
    fn pass(&mut self, limit: Limit, now_us: u64) {
        let gained = rate(limit) * u128::from(now_us.saturating_sub(self.at_us));
        self.excess_of_one = self.excess_of_one.saturating_sub(gained);
        self.excess_of_all = self.excess_of_all.saturating_sub(gained * u128::from(self.ways));
        self.at_us = self.at_us.max(now_us);
    }
}

#[derive(Debug)]
pub struct Oracle {
    /// By Envoy and owner.
    local: Vec<Option<Reference>>,
    /// Admissions by shared data so far.
    pub admissions: u64,
    /// By Envoy and owner: the number of the last admission, and the reference before it.
    before: Vec<(u64, Option<Reference>)>,
    /// By namespace and owner.
    redis: Vec<Option<Reference>>,
    /// The replica's copy of `redis`.
    replicated: Vec<Option<Reference>>,
    /// The time, on the world's clock, of the last change of a bucket in Redis that the limiters cannot know.
    disturbed_us: Vec<u64>,
    /// By Envoy and owner: its shared record, if any.
    shared_record_of: Vec<Option<usize>>,
    shared_records: Vec<SharedRecord>,
    /// Whole tokens that Redis returned by losing data.
    pub forgiven: u64,
}

impl Oracle {
    /// The initial state, with `local` buckets in shared data and `redis` ones in Redis.
    pub fn new(local: usize, redis: usize) -> Self {
        Self {
            local: vec![None; local],
            admissions: 0,
            before: vec![(0, None); local],
            redis: vec![None; redis],
            replicated: vec![None; redis],
            disturbed_us: vec![0; redis],
            shared_record_of: vec![None; local],
            shared_records: Vec::new(),
            forgiven: 0,
        }
    }

    /// These buckets share one full record of the table, with this number of slots.
    pub fn shared_record(&mut self, members: &[usize], ways: u32) {
        for member in members {
            self.shared_record_of[*member] = Some(self.shared_records.len());
        }
        self.shared_records.push(SharedRecord { ways, excess_of_one: 0, excess_of_all: 0, at_us: 0 });
    }

    /// Checks a decision of a bucket in shared data, at a time of that Envoy's clock. The bucket was read after the
    /// admission of number `read_after`.
    pub fn local(
        &mut self,
        bucket: usize,
        limit: Limit,
        (now_us, read_after): (u64, u64),
        said: Said,
    ) -> Result<(), String> {
        let reference = &mut self.local[bucket];
        match self.before[bucket] {
            // A worker with another limit has changed the bucket after it was read. A rejection writes nothing, so that
            // this one does not see it.
            (number, mut before) if !said.admitted && number > read_after => {
                return compare(&mut before, limit, now_us, now_us, said);
            }
            _ if said.admitted => {
                self.admissions += 1;
                self.before[bucket] = (self.admissions, *reference);
            }
            _ => {}
        }
        // Two workers may have read the clock in one order and written in the other only if the clock was read first.
        let now_us = reference.map_or(now_us, |reference| now_us.max(reference.at_us));
        let Some(shared_record) =
            self.shared_record_of[bucket].map(|shared_record| &mut self.shared_records[shared_record])
        else {
            return compare(reference, limit, now_us, now_us, said);
        };
        shared_record.pass(limit, now_us);
        let there = available(*reference, limit, now_us);
        if !said.admitted {
            let one_is_empty = shared_record.excess_of_one + TOKEN > full(limit);
            return match there < TOKEN || one_is_empty {
                true => Ok(()),
                false => {
                    Err(format!("rejected with {} there, and no slot of its record is empty", shown(there)))
                }
            };
        }
        if there < TOKEN {
            return Err(format!("admitted with {} there", shown(there)));
        }
        shared_record.excess_of_one += TOKEN;
        shared_record.excess_of_all += TOKEN;
        if shared_record.excess_of_all > full(limit) * u128::from(shared_record.ways) {
            return Err(format!("its record has given out more than {} buckets may", shared_record.ways));
        }
        let tokens = there - TOKEN;
        if u128::from(said.left) > tokens / TOKEN {
            return Err(format!("said {} are left, of {}", said.left, shown(tokens)));
        }
        *reference = Some(Reference { tokens, at_us: now_us, full_at_us: 0, limit });
        Ok(())
    }

    /// Checks a decision of Redis, at `redis_us` on its clock and `now_us` on the world's.
    ///
    /// `was_absent`: it had no such bucket. `full_us`: the time until the bucket is full, at either health.
    pub fn redis(
        &mut self,
        bucket: usize,
        limit: Limit,
        (redis_us, now_us): (u64, u64),
        (was_absent, full_us): (bool, u64),
        said: Said,
    ) -> Result<(), String> {
        let reference = &mut self.redis[bucket];
        if was_absent && reference.is_some_and(|reference| redis_us >= reference.full_at_us) {
            *reference = None;
        }
        if reference.is_some_and(|reference| reference.limit != limit) {
            self.disturbed_us[bucket] = now_us;
        }
        compare(reference, limit, redis_us, redis_us + full_us, said)
    }

    /// Checks a rejection by the deny cache. `is_waiting`: another request of this worker waits for Redis.
    pub fn denied(
        &self,
        bucket: usize,
        limit: Limit,
        (redis_us, now_us): (u64, u64),
        is_waiting: bool,
        patience_us: u64,
    ) -> Result<(), String> {
        let there = available(self.redis[bucket], limit, redis_us);
        let disturbed_us = now_us - self.disturbed_us[bucket].min(now_us);
        let may_be_unknown = disturbed_us <= DENY_US + patience_us || is_waiting;
        if there < TOKEN || (self.disturbed_us[bucket] > 0 && may_be_unknown) {
            return Ok(());
        }
        Err(format!("rejected by the deny cache although Redis has {}, for {disturbed_us} µs", shown(there)))
    }

    /// All buckets in Redis may have tokens that the limiters do not know of.
    pub fn disturb_all(&mut self, now_us: u64) {
        self.disturbed_us.fill(now_us.max(1));
    }

    pub fn replicate(&mut self) {
        self.replicated.clone_from(&self.redis);
    }

    /// Redis has lost all data.
    pub fn lose_all(&mut self, now_us: u64) {
        self.replicated.fill(None);
        self.fail_over(now_us);
    }

    /// The replica's data replaces that of Redis.
    pub fn fail_over(&mut self, now_us: u64) {
        for (lost, kept) in self.redis.iter().zip(&self.replicated) {
            let Some(lost) = lost else { continue };
            let before = lost.tokens.min(full(lost.limit));
            let after = kept.map_or(full(lost.limit), |kept| kept.tokens.min(full(lost.limit)));
            self.forgiven += (after.saturating_sub(before) / TOKEN) as u64;
        }
        self.redis.clone_from(&self.replicated);
        self.disturb_all(now_us);
    }
}

/// Compares a decision with the reference, and updates that.
fn compare(
    reference: &mut Option<Reference>,
    limit: Limit,
    now_us: u64,
    full_at_us: u64,
    said: Said,
) -> Result<(), String> {
    let there = available(*reference, limit, now_us);
    match (said.admitted, there >= TOKEN) {
        (true, false) => return Err(format!("admitted with {} there", shown(there))),
        (false, true) => return Err(format!("rejected with {} there", shown(there))),
        _ => {}
    }
    let tokens = if said.admitted { there - TOKEN } else { there };
    let target = if said.admitted { full(limit) } else { TOKEN };
    let wait_us = time_for(target - tokens, limit);
    let is_equal = said.left_pico.is_none_or(|pico| u128::from(pico) == tokens)
        && u128::from(said.left) == tokens / TOKEN
        && said.wait_us.is_none_or(|found_us| found_us == wait_us);
    if !is_equal {
        let (left, pico, found_us) = (said.left, said.left_pico, said.wait_us);
        return Err(format!(
            "said {left} tokens left ({pico:?} units) and {found_us:?} µs to wait, where {} are left and {wait_us} µs",
            shown(tokens)
        ));
    }
    let has_stepped_back = reference.is_some_and(|reference| now_us < reference.at_us);
    match reference {
        Some(reference) if !said.admitted && !has_stepped_back => {
            reference.full_at_us = full_at_us;
            reference.limit = limit;
        }
        _ => *reference = Some(Reference { tokens, at_us: now_us, full_at_us, limit }),
    }
    Ok(())
}

fn shown(tokens: u128) -> String {
    format!("{}.{:012} tokens", tokens / TOKEN, tokens % TOKEN)
}
