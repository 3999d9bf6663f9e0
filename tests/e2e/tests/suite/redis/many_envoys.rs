//! Three Envoys with two workers each, one Redis, one bucket: exactly as many requests are admitted as there are
//! tokens, also on the first use of a bucket.

use e2e::redis::Redis;
use e2e::wait;

use super::{assert_no_failures, await_counted, long_timeout_setup, whole_tokens};
use crate::exactness::{Identity, assert_exact};

#[track_caller]
fn assert_exact_across_three_envoys(identity: Identity) {
    let _alone = wait::alone();
    let redis = Redis::start();
    let envoys = [(); 3].map(|()| long_timeout_setup(identity.config(), &redis).trusted_hops(1).start());
    let answered = assert_exact(&envoys, 2, identity, |bucket| {
        assert_eq!(whole_tokens(&redis, bucket), 0, "left in {bucket}");
    });
    for envoy in &envoys {
        await_counted(envoy, answered);
        assert_no_failures(envoy);
    }
}

#[test]
fn one_key_admits_exactly_capacity_across_three_envoys() {
    assert_exact_across_three_envoys(Identity::Key);
}

#[test]
fn one_address_admits_exactly_capacity_across_three_envoys() {
    assert_exact_across_three_envoys(Identity::Address);
}
