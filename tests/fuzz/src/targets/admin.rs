//! The body of a change of health is accepted if a lenient parser finds exactly that in it, and else rejected with JSON.

use dynamic_rate_limiter::admin::{MAX_BODY_BYTES, requested_health};
use dynamic_rate_limiter::config::HealthThresholds;
use serde_json::Value;

pub(super) const WORDS: &str = "\
    status|NORMAL|DEGRADED|AUTO|normal|null|{\"status\":\"NORMAL\"}|\\u0000|\\ud800|\\/|[|{";

pub(super) fn check(body: &[u8]) {
    check_where(body, None, &["NORMAL", "DEGRADED"]);
    check_where(body, Some(HealthThresholds::default()), &["NORMAL", "DEGRADED", "AUTO"]);
}

fn check_where(body: &[u8], thresholds: Option<HealthThresholds>, words: &[&str]) {
    let read: Option<Value> = serde_json::from_slice(body).ok();
    match requested_health(body, thresholds) {
        Ok(health) => {
            assert!(body.len() <= MAX_BODY_BYTES);
            assert!(words.contains(&health.name()));
            assert_eq!(read, Some(serde_json::json!({ "status": health.name() })));
        }
        Err(reply) => {
            let is_long = body.len() > MAX_BODY_BYTES;
            assert_eq!(reply.status, if is_long { 413 } else { 400 });
            let detail: Value = serde_json::from_str(&reply.body).expect("the answer is JSON");
            assert!(detail["detail"].as_str().is_some_and(|text| !text.is_empty()), "{}", reply.body);
            assert!(reply.body.len() < 4096, "{} bytes", reply.body.len());
            // Only a duplicate member is accepted by a lenient parser and rejected here.
            let names = body.windows(6).filter(|bytes| bytes == b"status").count();
            let is_plain = !body.contains(&b'\\') && names == 1;
            let is_wanted =
                |read: &Value| words.iter().any(|word| *read == serde_json::json!({ "status": word }));
            assert!(is_long || !is_plain || !read.as_ref().is_some_and(is_wanted), "{}", reply.body);
        }
    }
}
