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
