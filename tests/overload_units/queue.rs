//! Who is sent first, and who leaves the queue.

use super::*;

#[test]
fn the_most_important_is_sent_first_then_the_greater_place_then_the_older() {
    let mut queue = AdmissionQueue::default();
    for (id, priority, order) in [(1, 2, 9), (2, 8, 1), (3, 8, 5), (4, 8, 5), (5, 200, 0)] {
        queue.push(id, priority, order, at(0));
    }
    assert_eq!(queue.pop_worst(), Some(1));
    let order: Vec<_> = std::iter::from_fn(|| queue.pop_best()).collect();
    assert_eq!(order, [5, 3, 4, 2]);
    assert_eq!((queue.len(), queue.priorities()), (0, 0));
}

#[test]
fn a_request_leaves_the_queue_exactly_at_its_deadline() {
    let mut queue = AdmissionQueue::default();
    let rank = queue.push(1, 9, 0, at(10));
    assert_eq!(queue.priorities(), 1 << 54);
    assert_eq!(queue.pop_waiting_since(at(9)), Vec::<RequestId>::new());
    assert_eq!(queue.pop_waiting_since(at(10)), [1]);
    assert_eq!(queue.remove(rank), None);
}
