//! Which request is sent first.

use super::*;

#[test]
fn the_most_important_is_sent_first_then_the_greater_place_then_the_older() {
    let rank = |(id, priority, order)| {
        let request =
            PlaceRequest { id, cluster: ClusterId(0), priority, order, caller: 1, completes_later: false };
        request.rank()
    };
    let mut waiting: Vec<Rank> = [(1, 2, 9), (2, 8, 1), (3, 8, 5), (4, 8, 5), (5, 200, 0)].map(rank).to_vec();
    waiting.sort();
    let worst_first: Vec<RequestId> = waiting.into_iter().map(|(.., id)| id.0).collect();
    assert_eq!(worst_first, [1, 2, 4, 3, 5]);
}

#[test]
fn callers_of_a_min_share_come_among_the_others_of_their_priority() {
    let tier = Tier {
        name: "free".to_owned(),
        normal: Limit::PROBE,
        degraded: Limit::PROBE,
        ttl_seconds: 60,
        unlimited: false,
        priority: 2,
        min_share_milli: 100,
    };
    let orders: Vec<u64> = (0..10_000).map(|caller| rotating_order(&caller, at(0))).collect();
    let chosen: Vec<u64> = orders.into_iter().filter(|order| tier.is_in_min_share(*order)).collect();
    assert!((900..1_100).contains(&chosen.len()), "{}", chosen.len());
    let first_half = chosen.iter().filter(|order| **order > u64::MAX / 2).count();
    assert!((400..600).contains(&(first_half * 1_000 / chosen.len())), "{first_half} of {}", chosen.len());
    assert!(!Tier { min_share_milli: 0, ..tier }.is_in_min_share(u64::MAX));
}
