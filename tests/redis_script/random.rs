//! Random buckets, limits, times and fields.

use std::collections::HashMap;

use harness::random::{Random, number_from_env, seed_from_env};

use super::*;

struct Caller {
    take: Take,
    now_us: u64,
    stored: Stored,
}

fn any_limit(random: &mut Random) -> Limit {
    let rates = [1, 278, 333_333, 999_999, 1_000_000, 1_000_001, 999_999_999_999, MAX_REFILL_MICRO_PER_SEC];
    let rate = match random.one_in(2) {
        true => random.choose(&rates),
        false => random.of_any_size(MAX_REFILL_MICRO_PER_SEC),
    };
    let capacity = match random.below(20) {
        0 => 0,
        1 => MAX_CAPACITY,
        2..12 => 1 + random.below(4) as u32,
        _ => random.of_any_size(MAX_CAPACITY.into()) as u32,
    };
    limit(capacity, rate)
}

/// The next instant: near the one before, near the next token, near a border of seconds, or far away.
fn any_time(random: &mut Random, caller: &Caller) -> u64 {
    let now_us = caller.now_us;
    let rate = caller.take.limit.refill_micro_per_sec().max(1);
    let due_us = caller.stored.bucket.map_or(now_us, |bucket| {
        let missing = PICO_PER_TOKEN.saturating_sub(bucket.tokens_pico);
        bucket.refilled_at_us.saturating_add(missing.div_ceil(rate))
    });
    let next_us = match random.below(100) {
        0..20 => now_us,
        20..35 => now_us + random.below(3),
        35..60 => due_us.saturating_add(random.below(5)).saturating_sub(2),
        60..70 => now_us + random.of_any_size(SECOND),
        70..75 => now_us + random.of_any_size(YEAR),
        75..80 => (now_us / SECOND + 1) * SECOND - random.below(2),
        80..83 => any_date(random),
        83..87 => now_us - 1 - random.below(3),
        87..89 => now_us - SECOND - random.below(3),
        89..90 => now_us - YEAR,
        90..92 => now_us - random.of_any_size(YEAR),
        _ => now_us + random.of_any_size(3600 * SECOND),
    };
    if (YEAR_2024..YEAR_2200).contains(&next_us) { next_us } else { YEAR_2024 + random.below(YEAR) }
}

fn any_date(random: &mut Random) -> u64 {
    YEAR_2024 + random.below(YEAR_2200 - YEAR_2024)
}

/// `units` of one in 10^`digits` as text, in one of its forms.
fn any_text(random: &mut Random, units: u64, digits: u32) -> String {
    match random.one_in(2) {
        true => decimal(units, digits).trim_end_matches('0').to_owned(),
        false => format!("0{}", decimal(units, digits)),
    }
}

/// Fields that an operator or another program may write.
fn any_fields(random: &mut Random) -> Stored {
    let tokens_pico = random.of_any_size(u64::from(MAX_CAPACITY) * PICO_PER_TOKEN);
    let refilled_at_us = any_date(random);
    let mut fields = (any_text(random, tokens_pico, 12), any_text(random, refilled_at_us, 6));
    let garbage = random.below(6);
    match garbage {
        0 => fields.0 = "garbage".to_owned(),
        1 => fields.1 = "-1".to_owned(),
        2 => fields.0 += "e1",
        _ => {}
    }
    // At most ten digits before the point are read.
    let is_bucket = garbage > 2 && !fields.1.starts_with('0');
    Stored { fields, bucket: is_bucket.then_some(Bucket { tokens_pico, refilled_at_us }) }
}

#[test]
fn lua_decides_like_rust_at_random() {
    const CALLERS: u64 = 500;
    const BATCH: u64 = 2_000;
    let operations = number_from_env("BUCKET_OPERATIONS", 200_000);
    let mut random = Random::new(seed_from_env("BUCKET_SEED"));
    let mut lua = LuaBucket::start();
    let mut caller = |number| Caller {
        take: take_of(&format!("caller:{number}"), any_limit(&mut random)),
        now_us: any_date(&mut random),
        stored: Stored::nothing(),
    };
    let mut callers: Vec<Caller> = (0..CALLERS).map(&mut caller).collect();
    let mut outcomes: HashMap<(bool, bool), u64> = HashMap::new();
    let mut done = 0;
    while done < operations {
        let mut wanted = Vec::new();
        for _ in 0..BATCH.min(operations - done) {
            let caller = &mut callers[random.below(CALLERS) as usize];
            let mut changed = 0;
            if random.one_in(50) {
                caller.stored = any_fields(&mut random);
                changed = lua.push_fields(&caller.take.key, caller.stored.bytes());
            }
            if random.one_in(20) {
                caller.take.limit = any_limit(&mut random);
            }
            caller.now_us = any_time(&mut random, caller);
            lua.push(&caller.take, caller.now_us);
            let before = caller.stored.bucket;
            let (expected, verdict) = caller.stored.take(&caller.take, lua.sequence, caller.now_us);
            let stepped_back = before.is_some_and(|bucket| caller.now_us < bucket.refilled_at_us);
            *outcomes.entry((verdict.outcome == Outcome::Admitted, stepped_back)).or_default() += 1;
            wanted.push((changed, before, caller.take.limit, expected));
        }
        lua.send();
        for (changed, before, limit, expected) in wanted {
            lua.skip(changed);
            let seen = lua.result();
            done += 1;
            assert_eq!(seen, expected, "operation {done}: {before:?} under {limit:?}");
        }
    }
    println!("{done} operations, by (admitted, stepped back): {outcomes:?}");
    assert_eq!(outcomes.len(), 4, "not every kind of outcome occurred: {outcomes:?}");
}
