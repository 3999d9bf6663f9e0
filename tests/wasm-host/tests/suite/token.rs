//! The comparison of the admin token in the compiled filter takes the same instructions for all wrong tokens; and the
//! search for secrets finds secrets.

use harness::random::Random;
use scenarios::Request;
use wasm_host::costs::Cost;
use wasm_host::{Setup, World};

const LENGTH: usize = 32;

/// The cost of a request with `found` if `token` is expected. Each time in a new world, because of the login throttle.
fn cost(token: &[u8], found: &[u8]) -> Cost {
    let mut setup = Setup { log_level: 2, ..Setup::new("{}") };
    setup.environment = vec![("ADMIN_TOKEN".to_owned(), token.to_vec())];
    let mut world = World::start(setup);
    let request = Request::post("/system/health", "").header("x-admin-token", found);
    let mut status = 0;
    let cost = world.cost(0, |world| status = world.get(0, &request).status);
    assert_eq!(status, if token == found { 400 } else { 403 });
    cost
}

#[test]
fn a_wrong_token_costs_the_same_at_any_difference() {
    let mut random = Random::new(1);
    let mut costs = Vec::new();
    for _ in 0..64 {
        let mut token = [0; LENGTH];
        for byte in &mut token {
            *byte = b'!' + random.below(90) as u8;
        }
        for wrong in [0..1, LENGTH / 2..LENGTH / 2 + 1, LENGTH - 1..LENGTH, 0..LENGTH] {
            let mut found = token;
            for byte in &mut found[wrong] {
                *byte = if *byte == b'~' { b'!' } else { *byte + 1 };
            }
            costs.push(cost(&token, &found));
        }
    }
    assert!(costs.iter().all(|cost| *cost == costs[0]), "costs differ: {costs:?}");
}

#[test]
fn a_difference_in_cost_is_detected() {
    let token = [b'a'; LENGTH];
    assert_ne!(
        cost(&token, &[b'b'; LENGTH]),
        cost(&token, &[b'b'; 2 * LENGTH + 60]),
        "two more blocks to hash"
    );
    assert_ne!(cost(&token, &[b'b'; LENGTH]), cost(&token, &token), "a valid token has another response");
}

#[test]
#[should_panic(expected = "a secret in the log")]
fn a_secret_in_the_log_is_found() {
    let world = World::start(Setup::new("{}"));
    world.processes[0].log.borrow_mut().push((0, "token c4nary-oops".to_owned()));
}
