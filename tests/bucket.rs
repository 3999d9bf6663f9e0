//! The token bucket: its boundaries, and its definition as a property.

use dynamic_rate_limiter::bucket::{Bucket, Outcome, PICO_PER_TOKEN, Verdict, take, time_to_fill_us};
use dynamic_rate_limiter::limit::{Limit, MAX_CAPACITY, MAX_REFILL_MICRO_PER_SEC};
use harness::{IntervalOracle, SECOND, limit};
use proptest::prelude::*;

/// Takes a token as a store does: a changed bucket replaces the stored one.
fn take_stored(stored: &mut Option<Bucket>, limit: Limit, now_us: u64) -> Verdict {
    let (verdict, changed) = take(*stored, limit, now_us);
    *stored = changed.or(*stored);
    verdict
}

#[test]
fn a_capacity_of_zero_rejects_for_ever() {
    let blocked = limit(0, 0);
    assert_eq!(take(None, blocked, 0).0.outcome, Outcome::Rejected);
    assert_eq!(take(None, blocked, u64::MAX).0.wait_us, u64::MAX);
    assert_eq!(take(None, limit(0, 5), 0).0.outcome, Outcome::Rejected);
}

/// Every combination of a small domain with all boundaries, compared with the definition in wider numbers.
#[test]
fn every_case_of_a_small_domain_is_as_defined() {
    const TOKEN: u64 = PICO_PER_TOKEN;
    const FASTEST: u64 = MAX_REFILL_MICRO_PER_SEC;
    let capacities = [0, 1, 2, 3, 10, MAX_CAPACITY - 1, MAX_CAPACITY];
    let rates = [1, 2, 7, 333_333, 999_999, 1_000_000, 1_000_001, FASTEST - 1, FASTEST];
    let near = |value: u64| [value.saturating_sub(1), value, value.saturating_add(1)];
    let mut cases = 0_u64;
    for limit in capacities.into_iter().flat_map(|capacity| rates.map(|rate| limit(capacity, rate))) {
        let (full, rate) = (u64::from(limit.capacity()) * TOKEN, limit.refill_micro_per_sec());
        let full_us = full.div_ceil(rate);
        assert_eq!(time_to_fill_us(limit), full_us);
        // Also more than the capacity, as after it was reduced, and more than any capacity.
        let one_less = full.saturating_sub(TOKEN);
        let tokens = [0, TOKEN / 2, TOKEN, 2 * TOKEN, one_less, full, full.saturating_mul(2), u64::MAX];
        let due_us = TOKEN.div_ceil(rate);
        // Also the last times after which the gain fits into 64 bits.
        let elapsed = [0, 1, due_us / 2, due_us, 2 * due_us, full_us, u64::MAX / rate, u64::MAX];
        for refilled_at_us in [0, 1, SECOND, u64::MAX - 1, u64::MAX] {
            assert_as_defined(None, limit, refilled_at_us);
            for tokens_pico in tokens.into_iter().flat_map(near) {
                let stored = Some(Bucket { tokens_pico, refilled_at_us });
                for elapsed_us in elapsed.into_iter().flat_map(near) {
                    assert_as_defined(stored, limit, refilled_at_us.saturating_add(elapsed_us));
                    assert_as_defined(stored, limit, refilled_at_us.saturating_sub(elapsed_us));
                    cases += 2;
                }
            }
        }
    }
    println!("{cases} cases");
    assert!(cases > 200_000, "{cases}");
}

/// The definition, in numbers that cannot overflow. A new bucket is full.
fn assert_as_defined(stored: Option<Bucket>, limit: Limit, now_us: u64) {
    let token = u128::from(PICO_PER_TOKEN);
    let capacity = u128::from(limit.capacity()) * token;
    let rate = u128::from(limit.refill_micro_per_sec());
    let available = stored.map_or(capacity, |bucket| {
        let elapsed_us = u128::from(now_us.saturating_sub(bucket.refilled_at_us));
        (u128::from(bucket.tokens_pico) + elapsed_us * rate).min(capacity)
    });
    let has_stepped_back = stored.is_some_and(|bucket| now_us < bucket.refilled_at_us);
    let case = format!("{stored:?} {limit:?} at {now_us}");

    let (verdict, changed) = take(stored, limit, now_us);
    assert_eq!(verdict.capacity, limit.capacity(), "{case}");
    assert_eq!(verdict.outcome == Outcome::Admitted, available >= token, "{case}");
    let left = if available >= token { available - token } else { available };
    assert_eq!(u128::from(verdict.remaining), left / token, "{case}");
    let target = if available >= token { capacity } else { token };
    let wait_us = u128::from(verdict.wait_us);
    assert!(left + wait_us * rate >= target, "{case}: the wait is too short");
    assert!(wait_us == 0 || left + (wait_us - 1) * rate < target, "{case}: the wait is too long");
    // A rejection writes nothing.
    assert_eq!(changed.is_some(), available >= token || has_stepped_back, "{case}: {changed:?}");
    if let Some(bucket) = changed {
        assert_eq!((u128::from(bucket.tokens_pico), bucket.refilled_at_us), (left, now_us), "{case}");
    }
    // A rejected request does not delay the next token.
    if available < token && limit.capacity() > 0 && now_us < u64::MAX / 2 {
        let at = now_us.saturating_add(verdict.wait_us);
        assert_eq!(take(changed.or(stored), limit, at).0.outcome, Outcome::Admitted, "{case}: late");
    }
}

fn any_limit() -> impl Strategy<Value = Limit> {
    let rate = prop_oneof![1..10_u64, 1..5_000_000_u64, 1..=MAX_REFILL_MICRO_PER_SEC];
    let capacity = prop_oneof![1..5_u32, 1..60_u32];
    (capacity, rate).prop_map(|(capacity, rate)| limit(capacity, rate))
}

/// A step of a clock, mostly forward, and around the time that one token takes.
fn any_step() -> impl Strategy<Value = (bool, u32, u32)> {
    (prop::bool::weighted(0.95), 0..20_u32, 0..=u32::MAX)
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

    /// Safety and liveness at once: while the clock runs forward, a request is admitted exactly when the definition
    /// allows it. With any steps of the clock: never more than the definition allows for the time that the clock gained,
    /// and never a longer wait than the time of one token.
    #[test]
    fn admits_exactly_what_the_definition_allows_and_no_more_when_the_clock_steps_back(
        limit in any_limit(), steps in prop::collection::vec(any_step(), 1..200), may_step_back in any::<bool>(),
    ) {
        let mut oracle = IntervalOracle::new(limit);
        let mut stored = None;
        let mut now_us = 1_000 * SECOND;
        let token_us = PICO_PER_TOKEN.div_ceil(limit.refill_micro_per_sec());
        for (forward, scale, amount) in steps {
            now_us = stepped(now_us, limit, (forward || !may_step_back, scale, amount));
            let verdict = take_stored(&mut stored, limit, now_us);
            let allowed = oracle.may_admit(now_us);
            match verdict.outcome {
                Outcome::Admitted => {
                    prop_assert!(allowed, "at {}", now_us);
                    oracle.admit();
                }
                Outcome::Rejected => {
                    prop_assert!(may_step_back || !allowed, "at {}", now_us);
                    prop_assert!((1..=token_us).contains(&verdict.wait_us), "at {}", now_us);
                }
            }
        }
    }

    /// The same over the whole domain, with limits that change from request to request.
    #[test]
    fn every_request_is_as_defined(
        requests in prop::collection::vec((any_limit(), any_step()), 1..100),
        tokens_pico in any::<Option<u64>>(),
        start_us in any::<u64>(),
    ) {
        let mut stored = tokens_pico.map(|tokens_pico| Bucket { tokens_pico, refilled_at_us: start_us });
        let mut now_us = start_us;
        for (limit, step) in requests {
            now_us = stepped(now_us, limit, step);
            assert_as_defined(stored, limit, now_us);
            take_stored(&mut stored, limit, now_us);
        }
    }
}
