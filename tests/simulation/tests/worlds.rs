//! A few worlds in which every event occurs, and tests of the oracle.

use dynamic_rate_limiter::limit::Limit;
use simulation::oracle::{Oracle, Said};
use simulation::report::Totals;

#[test]
fn in_a_few_worlds_every_event_occurs_and_every_check_holds() {
    let (mut totals, mut client) = (Totals::default(), None);
    for index in 0..100 {
        let seed = simulation::world_seed(4, index);
        simulation::run(seed, &mut client, &mut totals)
            .unwrap_or_else(|found| panic!("seed {seed}: {found}"));
    }
    println!("{totals}");
    assert_eq!(totals.missing(), [""; 0]);
}

#[test]
fn the_seed_determines_the_world() {
    let run = |seed| {
        let mut totals = Totals::default();
        simulation::run(seed, &mut None, &mut totals).expect("nothing wrong");
        totals.to_string()
    };
    for seed in 0..8 {
        assert_eq!(run(seed), run(seed));
    }
}

fn said(admitted: bool, left_pico: u64, wait_us: u64) -> Said {
    let left = (left_pico / 1_000_000_000_000) as u32;
    Said { admitted, left_pico: Some(left_pico), left, wait_us: Some(wait_us) }
}

#[test]
fn the_oracle_accepts_only_the_right_decision() {
    let limit = Limit::new(1, 1_000_000).expect("a limit in range");
    // One token, given at 0; the next is due a second later, to the microsecond.
    let cases = [
        (999_999, said(false, 999_999_000_000, 1), true),
        (999_999, said(true, 0, 1_000_000), false),
        (999_999, said(false, 999_999_000_001, 1), false),
        (999_999, said(false, 999_999_000_000, 2), false),
        (1_000_000, said(true, 0, 1_000_000), true),
        (1_000_000, said(false, 1_000_000_000_000, 0), false),
        (1_000_000, said(true, 1, 1_000_000), false),
    ];
    for (now_us, second, is_right) in cases {
        let mut oracle = Oracle::new(1, 1);
        assert_eq!(oracle.local(0, limit, (0, 0), said(true, 0, 1_000_000)), Ok(()));
        assert_eq!(oracle.local(0, limit, (now_us, 1), second).is_ok(), is_right, "{now_us} {second:?}");
    }
}

#[test]
fn the_oracle_bounds_the_tokens_that_a_redis_without_its_data_returns() {
    let limit = Limit::new(2, 1_000_000).expect("a limit in range");
    let mut oracle = Oracle::new(1, 1);
    let take = |oracle: &mut Oracle, left: u64| {
        let said = Said { wait_us: None, ..said(true, left * 1_000_000_000_000, 0) };
        oracle.redis(0, limit, (0, 0), (false, 2_000_000), said)
    };
    assert_eq!(take(&mut oracle, 1), Ok(()));
    oracle.replicate();
    assert_eq!(take(&mut oracle, 0), Ok(()));
    oracle.fail_over(0);
    assert_eq!(oracle.forgiven, 1);
    assert_eq!(take(&mut oracle, 0), Ok(()), "the token that the replica had not heard of");
    assert!(take(&mut oracle, 0).is_err(), "and not another one");
    oracle.lose_all(0);
    assert_eq!(take(&mut oracle, 1), Ok(()));
}
