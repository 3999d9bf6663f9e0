//! The token bucket: its boundaries, and its definition as a property.

mod common;

use common::{IntervalOracle, SECOND, limit};
use dynamic_rate_limiter::bucket::{Bucket, Outcome, PICO_PER_TOKEN, Verdict, take, time_to_fill_us};
use dynamic_rate_limiter::tier::{Limit, MAX_CAPACITY, MAX_REFILL_MICRO_PER_SEC};
use proptest::prelude::*;

/// Takes a token as a store does: a changed bucket replaces the stored one.
fn take_stored(stored: &mut Option<Bucket>, limit: Limit, now_us: u64) -> Verdict {
    let (verdict, changed) = take(*stored, limit, now_us);
    *stored = changed.or(*stored);
    verdict
}

#[test]
fn a_new_bucket_is_full_and_the_first_request_leaves_capacity_minus_one() {
    let (verdict, stored) = take(None, limit(10, 1_000_000), 5 * SECOND);
    assert_eq!(verdict, Verdict { outcome: Outcome::Admitted, capacity: 10, remaining: 9, wait_us: SECOND });
    assert_eq!(stored, Some(Bucket { tokens_pico: 9 * PICO_PER_TOKEN, refilled_at_us: 5 * SECOND }));
}

#[test]
fn refuses_until_the_microsecond_at_which_the_next_token_is_due() {
    // (capacity, millionths of a token per second, microseconds until an empty bucket holds a token)
    let cases = [
        (1, 1_000_000, SECOND),
        (10, 1_000_000, SECOND),
        (2, 500_000, 2 * SECOND),
        (3, 3_000_000, 333_334),
        (7, 7_000_000, 142_858),
        (1, 1, 1_000_000 * SECOND),
        (1, 278, 3_597_122_303),
        (5, 999_999, 1_000_002),
        (MAX_CAPACITY, MAX_REFILL_MICRO_PER_SEC, 1),
    ];
    for (capacity, rate, due_us) in cases {
        let limit = limit(capacity, rate);
        let empty = Some(Bucket { tokens_pico: 0, refilled_at_us: 1000 });
        let at = |us: u64| take(empty, limit, us).0;
        assert_eq!(at(1000).outcome, Outcome::Refused, "{limit:?} at once");
        assert_eq!(at(1000).wait_us, due_us, "{limit:?}: the wait of a refusal");
        assert_eq!(at(1000 + due_us - 1).outcome, Outcome::Refused, "{limit:?} one tick early");
        assert_eq!(at(1000 + due_us - 1).wait_us, 1, "{limit:?} one tick early");
        assert_eq!(at(1000 + due_us).outcome, Outcome::Admitted, "{limit:?} on time");
        assert_eq!(at(1000 + due_us + 1).outcome, Outcome::Admitted, "{limit:?} one tick late");
    }
}

#[test]
fn is_full_at_the_microsecond_that_an_admission_announced() {
    for (capacity, rate) in [(10, 1_000_000), (3, 7), (1, 1), (10_000_000, 999_999_999_999)] {
        let limit = limit(capacity, rate);
        let mut stored = None;
        let wait_us = take_stored(&mut stored, limit, 0).wait_us;
        let remaining = |us| take(stored, limit, us).0.remaining;
        // The request takes a token, so a full bucket has one less than its capacity.
        assert_eq!(remaining(wait_us), capacity - 1, "{limit:?}");
        assert!(remaining(wait_us - 1) < capacity, "{limit:?}");
        assert!(
            stored
                .is_some_and(|b| b.tokens_pico + (wait_us - 1) * rate < u64::from(capacity) * PICO_PER_TOKEN)
        );
    }
}

#[test]
fn refusals_change_nothing() {
    let limit = limit(1, 300_000);
    let mut stored = None;
    take_stored(&mut stored, limit, 0);
    let emptied = stored;
    for us in 0..3_333_334 {
        if us % 1_111 == 0 {
            assert_eq!(take_stored(&mut stored, limit, us).outcome, Outcome::Refused, "at {us}");
        }
    }
    assert_eq!(stored, emptied);
    assert_eq!(take_stored(&mut stored, limit, 3_333_334).outcome, Outcome::Admitted);
}

#[test]
fn a_request_every_microsecond_gains_and_loses_nothing() {
    // 0.7 tokens a microsecond: no call ever finds a whole number of tokens to add.
    let limit = limit(3, 700_000_000_000);
    let mut stored = None;
    let admitted =
        (0..1_000_000_u64).filter(|us| take_stored(&mut stored, limit, *us).outcome == Outcome::Admitted);
    assert_eq!(admitted.count(), 3 + 699_999);
}

#[test]
fn a_smaller_capacity_drops_tokens_above_it_and_a_larger_one_fills_at_the_rate() {
    let (burst, degraded) = (limit(10, 1_000_000), limit(2, 500_000));
    let mut stored = None;
    assert_eq!(take_stored(&mut stored, burst, 0).remaining, 9);
    assert_eq!(
        take_stored(&mut stored, degraded, 0).remaining,
        1,
        "nine tokens become two, and one is taken"
    );
    assert_eq!(take_stored(&mut stored, burst, 0).remaining, 0, "the tokens above do not come back");
    assert_eq!(take_stored(&mut stored, burst, 0).outcome, Outcome::Refused);
    assert_eq!(take_stored(&mut stored, burst, 10 * SECOND).remaining, 9, "it fills at its rate");
}

#[test]
fn a_clock_that_steps_back_mints_nothing_and_blocks_no_caller() {
    let limit = limit(2, 1_000_000);
    let mut stored = None;
    let hour = 3600 * SECOND;
    take_stored(&mut stored, limit, hour);
    take_stored(&mut stored, limit, hour);
    assert_eq!(take_stored(&mut stored, limit, hour).outcome, Outcome::Refused);
    let stepped = take_stored(&mut stored, limit, 0);
    assert_eq!(
        (stepped.outcome, stepped.wait_us),
        (Outcome::Refused, SECOND),
        "no token, and no hour to wait"
    );
    assert_eq!(take_stored(&mut stored, limit, SECOND - 1).outcome, Outcome::Refused);
    assert_eq!(take_stored(&mut stored, limit, SECOND).outcome, Outcome::Admitted);
}

#[test]
fn the_largest_numbers_do_not_overflow() {
    let largest = limit(MAX_CAPACITY, MAX_REFILL_MICRO_PER_SEC);
    let slowest = limit(MAX_CAPACITY, 1);
    for limit in [largest, slowest] {
        let full = take(None, limit, 0).1;
        for now_us in [0, 1, SECOND, u64::MAX / 2, u64::MAX] {
            let verdict = take(full, limit, now_us).0;
            assert_eq!(verdict.outcome, Outcome::Admitted);
            assert!(verdict.remaining < MAX_CAPACITY);
        }
        let empty = Some(Bucket { tokens_pico: 0, refilled_at_us: 0 });
        assert_eq!(take(empty, limit, u64::MAX).0.remaining, MAX_CAPACITY - 1);
        let strange = Some(Bucket { tokens_pico: u64::MAX, refilled_at_us: u64::MAX });
        assert_eq!(take(strange, limit, 0).0.remaining, MAX_CAPACITY - 1);
    }
    assert_eq!(time_to_fill_us(slowest), u64::from(MAX_CAPACITY) * PICO_PER_TOKEN);
}

#[test]
fn a_capacity_of_zero_refuses_for_ever() {
    let blocked = limit(0, 0);
    assert_eq!(take(None, blocked, 0).0.outcome, Outcome::Refused);
    assert_eq!(take(None, blocked, u64::MAX).0.wait_us, u64::MAX);
    assert_eq!(take(None, limit(0, 5), 0).0.outcome, Outcome::Refused);
}

/// Every combination of a small domain with all boundaries, compared with the definition in wider numbers.
#[test]
fn every_case_of_a_small_domain_is_as_defined() {
    let capacities = [0, 1, 2, 3, 7, MAX_CAPACITY - 1, MAX_CAPACITY];
    let rates = [
        1,
        2,
        3,
        333_333,
        999_999,
        1_000_000,
        1_000_001,
        MAX_REFILL_MICRO_PER_SEC - 1,
        MAX_REFILL_MICRO_PER_SEC,
    ];
    let near = |value: u64| [value.saturating_sub(1), value, value.saturating_add(1)];
    let mut cases = 0_u64;
    for (capacity, rate) in capacities.into_iter().flat_map(|capacity| rates.map(|rate| (capacity, rate))) {
        let limit = limit(capacity, rate);
        let full = u64::from(capacity) * PICO_PER_TOKEN;
        // Also more than the capacity, as after it was reduced, and more than any capacity.
        let tokens = [
            0,
            PICO_PER_TOKEN / 2,
            PICO_PER_TOKEN,
            2 * PICO_PER_TOKEN,
            full,
            full.saturating_mul(2),
            u64::MAX,
        ];
        let due_us = PICO_PER_TOKEN.div_ceil(rate);
        let elapsed = [0, 1, due_us / 2, due_us, 2 * due_us, time_to_fill_us(limit), u64::MAX];
        for tokens_pico in tokens.into_iter().flat_map(near) {
            for elapsed_us in elapsed.into_iter().flat_map(near) {
                for refilled_at_us in [0, 1, SECOND, u64::MAX - 1, u64::MAX] {
                    for now_us in
                        [refilled_at_us.saturating_add(elapsed_us), refilled_at_us.saturating_sub(elapsed_us)]
                    {
                        assert_as_defined(Bucket { tokens_pico, refilled_at_us }, limit, now_us);
                        cases += 1;
                    }
                }
            }
        }
    }
    println!("{cases} cases");
    assert!(cases > 200_000, "{cases}");
}

/// The definition, in numbers that cannot overflow.
fn assert_as_defined(stored: Bucket, limit: Limit, now_us: u64) {
    let token = u128::from(PICO_PER_TOKEN);
    let capacity = u128::from(limit.capacity()) * token;
    let rate = u128::from(limit.refill_micro_per_sec());
    let elapsed_us = u128::from(now_us.saturating_sub(stored.refilled_at_us));
    let available = (u128::from(stored.tokens_pico) + elapsed_us * rate).min(capacity);
    let case = format!("{stored:?} {limit:?} at {now_us}");

    let (verdict, changed) = take(Some(stored), limit, now_us);
    assert_eq!(verdict.outcome == Outcome::Admitted, available >= token, "{case}");
    let left = if available >= token { available - token } else { available };
    assert_eq!(u128::from(verdict.remaining), left / token, "{case}");
    let target = if available >= token { capacity } else { token };
    let wait_us = u128::from(verdict.wait_us);
    assert!(left + wait_us * rate >= target, "{case}: the wait is too short");
    assert!(wait_us == 0 || left + (wait_us - 1) * rate < target, "{case}: the wait is too long");
    match changed {
        Some(bucket) => {
            assert_eq!((u128::from(bucket.tokens_pico), bucket.refilled_at_us), (left, now_us), "{case}");
        }
        None => {
            assert!(
                available < token && now_us >= stored.refilled_at_us,
                "{case}: an admission is not written"
            )
        }
    }
    // A refused request does not delay the next token.
    if available < token && limit.capacity() > 0 && now_us < u64::MAX / 2 {
        let after = changed.unwrap_or(stored);
        let at = now_us.saturating_add(verdict.wait_us);
        assert_eq!(take(Some(after), limit, at).0.outcome, Outcome::Admitted, "{case}: late");
    }
}

fn any_limit() -> impl Strategy<Value = Limit> {
    let rate = prop_oneof![1..10_u64, 1..5_000_000_u64, 1..=MAX_REFILL_MICRO_PER_SEC];
    let capacity = prop_oneof![1..5_u32, 1..60_u32];
    (capacity, rate).prop_map(|(capacity, rate)| limit(capacity, rate))
}

/// Steps of a clock, mostly forward, and around the time that one token takes.
fn any_steps() -> impl Strategy<Value = Vec<(bool, u32, u32)>> {
    prop::collection::vec((prop::bool::weighted(0.95), 0..20_u32, 0..=u32::MAX), 1..200)
}

fn stepped(now_us: u64, limit: Limit, (forward, scale, amount): (bool, u32, u32)) -> u64 {
    let token_us = PICO_PER_TOKEN / limit.refill_micro_per_sec();
    let step = match scale {
        0..8 => 0,
        8..12 => u64::from(amount % 3),
        12..18 => token_us.saturating_add(u64::from(amount % 5)).saturating_sub(2),
        _ => u64::from(amount),
    };
    if forward { now_us.saturating_add(step) } else { now_us.saturating_sub(step) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Safety and liveness at once: admitted exactly when the definition allows it.
    #[test]
    fn admits_exactly_what_the_definition_allows(limit in any_limit(), steps in any_steps()) {
        let mut oracle = IntervalOracle::new(limit);
        let mut stored = None;
        let mut now_us = 1_000 * SECOND;
        for (_, scale, amount) in steps {
            now_us = stepped(now_us, limit, (true, scale, amount));
            let verdict = take_stored(&mut stored, limit, now_us);
            let allowed = oracle.may_admit(now_us);
            prop_assert_eq!(verdict.outcome == Outcome::Admitted, allowed, "at {}", now_us);
            if allowed {
                oracle.admit();
            }
        }
    }

    /// With any steps of the clock: never more than the definition allows for the time that the clock gained, and
    /// never a longer wait than the time of one token.
    #[test]
    fn a_stepping_clock_mints_nothing_and_blocks_no_caller(limit in any_limit(), steps in any_steps()) {
        let mut oracle = IntervalOracle::new(limit);
        let mut stored = None;
        let mut now_us = 1_000 * SECOND;
        let token_us = PICO_PER_TOKEN.div_ceil(limit.refill_micro_per_sec());
        for step in steps {
            now_us = stepped(now_us, limit, step);
            let verdict = take_stored(&mut stored, limit, now_us);
            let allowed = oracle.may_admit(now_us);
            if verdict.outcome == Outcome::Admitted {
                prop_assert!(allowed, "at {}", now_us);
                oracle.admit();
            } else {
                prop_assert!(verdict.wait_us <= token_us);
            }
        }
    }

    /// Limits that change from request to request: the same integers as plain arithmetic in 128 bits.
    #[test]
    fn follows_changing_limits_in_exact_arithmetic(
        requests in prop::collection::vec((any_limit(), (prop::bool::weighted(0.9), 0..20_u32, 0..=u32::MAX)), 1..100),
    ) {
        let mut stored = None;
        let mut model: Option<(u128, u64)> = None;
        let mut now_us = 1_000 * SECOND;
        for (limit, step) in requests {
            now_us = stepped(now_us, limit, step);
            let full = u128::from(limit.capacity()) * u128::from(PICO_PER_TOKEN);
            let (tokens, last_us) = model.unwrap_or((full, now_us));
            let gained = u128::from(now_us.saturating_sub(last_us)) * u128::from(limit.refill_micro_per_sec());
            let available = (tokens + gained).min(full);
            let admitted = available >= u128::from(PICO_PER_TOKEN);
            let left = if admitted { available - u128::from(PICO_PER_TOKEN) } else { available };

            let verdict = take_stored(&mut stored, limit, now_us);
            prop_assert_eq!(verdict.outcome == Outcome::Admitted, admitted);
            prop_assert_eq!(u128::from(verdict.remaining), left / u128::from(PICO_PER_TOKEN));
            // A refusal keeps the older state, which gives the same tokens while the limit stays.
            if admitted || now_us < last_us {
                model = Some((left, now_us));
            }
        }
    }

    /// Refused until exactly `wait_us` later.
    #[test]
    fn a_refusal_announces_the_first_microsecond_that_is_not_refused(
        limit in any_limit(), tokens_pico in 0..PICO_PER_TOKEN, now_us in 0..u64::MAX / 4,
    ) {
        let stored = Some(Bucket { tokens_pico, refilled_at_us: now_us });
        let wait_us = take(stored, limit, now_us).0.wait_us;
        prop_assert!(wait_us > 0);
        prop_assert_eq!(take(stored, limit, now_us + wait_us - 1).0.outcome, Outcome::Refused);
        prop_assert_eq!(take(stored, limit, now_us + wait_us).0.outcome, Outcome::Admitted);
    }
}
