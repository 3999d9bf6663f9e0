//! Identification of callers by key: spec section 2, points 1 and 2.

use e2e::client::Request;
use e2e::setup::Setup;
use e2e::{http2, load};

use crate::support::two_tiers;

#[test]
fn envoy_rejects_a_nul_byte_and_the_filter_still_works() {
    let envoy = Setup::new().config(&two_tiers(2_000, 20)).start();
    assert_eq!(envoy.send(&Request::get("/").key(b"pro\0")).status, 400);
    let counts = load::burst(envoy.address(), 2, 500, &Request::get("/"));
    assert_eq!(load::count(&counts, 200), 1_000, "{counts:?}");
    assert_eq!(envoy.send(&Request::get("/")).remaining(), 999, "each of them was counted");
}

#[test]
fn keys_are_counted_the_same_over_http2() {
    let envoy = Setup::new().config(&two_tiers(10, 20)).start();
    let replies = http2::send_all(
        envoy.address(),
        &[
            Request::get("/").header("x-api-key", "pro"),
            Request::get("/").header("x-api-key", b"\xff\x80"),
            Request::get("/").header("x-api-key", "unknown").header("x-api-key", "pro"),
            Request::get("/").header("x-api-key", "pro").header("x-api-key", "unknown"),
        ],
    );
    let tiers: Vec<_> = replies.iter().map(e2e::client::Response::tier).collect();
    assert_eq!(tiers, ["pro", "free", "free", "pro"]);
}
