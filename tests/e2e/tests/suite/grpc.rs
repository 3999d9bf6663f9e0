//! gRPC callers are refused in gRPC's own words.

use e2e::client::Request;
use e2e::http2;
use e2e::setup::Setup;

use crate::support::{assert_headers_complete, two_tiers};

#[test]
fn a_call_is_admitted_and_then_refused_with_resource_exhausted() {
    let envoy = Setup::new().config(&two_tiers(1, 7)).http2_upstream(http2::grpc_server()).start();
    let call = http2::grpc_call("/demo.Greeter/Hello");
    let admitted = http2::send(envoy.address(), &call);
    assert_eq!((admitted.status, admitted.one("grpc-status").as_str()), (200, "0"));
    assert_headers_complete(&admitted, "free", 1, "NORMAL");

    for content_type in ["application/grpc", "application/grpc+proto"] {
        let call = Request::post("/demo.Greeter/Hello", [0_u8; 5])
            .header("content-type", content_type)
            .header("te", "trailers");
        let refused = http2::send(envoy.address(), &call);
        assert_eq!(refused.status, 200, "{content_type}");
        assert_eq!(refused.one("grpc-status"), "8", "{content_type}");
        for (name, value) in [
            ("x-ratelimit-limit", "1"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-tier", "free"),
            ("x-system-health", "NORMAL"),
        ] {
            assert_eq!(refused.one(name), value, "{name} for {content_type}");
        }
        assert!(refused.number("retry-after") >= 1);
        assert!(refused.number("x-ratelimit-reset") > 1_600_000_000);
    }
}

#[test]
fn other_content_types_are_refused_with_429() {
    let envoy = Setup::new().config(&two_tiers(1, 7)).start();
    envoy.send(&Request::get("/"));
    for content_type in ["application/json", "application/grp", "application/grpc-web", "text/plain", "grpc"]
    {
        let request = Request::post("/", "{}").header("content-type", content_type);
        let refused = envoy.send(&request);
        assert_eq!(refused.status, 429, "{content_type}");
        assert!(!refused.has("grpc-status"), "{content_type}");
    }
}
