//! gRPC calls are refused with a gRPC status.

use crate::support::{assert_headers_complete, two_tiers};
use crate::{Host, Request, Setup};

/// A call with an empty message.
fn call(content_type: &str) -> Request {
    Request::post("/demo.Greeter/Hello", [0_u8; 5])
        .header("content-type", content_type)
        .header("te", "trailers")
}

pub fn a_call_is_admitted_and_then_refused_with_resource_exhausted(host: &dyn Host) {
    let mut gateway = host.start(&Setup { is_grpc: true, ..Setup::new().config(&two_tiers(1, 7)) });
    let admitted = gateway.send(&call("application/grpc"));
    assert_eq!((admitted.status, admitted.one("grpc-status").as_str()), (200, "0"));
    assert_headers_complete(&admitted, "free", 1, "NORMAL");

    for content_type in ["application/grpc", "application/grpc+proto"] {
        let refused = gateway.send(&call(content_type));
        assert_eq!(refused.status, 200, "{content_type}");
        assert_eq!(refused.one("grpc-status"), "8", "{content_type}");
        assert_headers_complete(&refused, "free", 1, "NORMAL");
    }
}

pub fn other_content_types_are_refused_with_429(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(1, 7)));
    gateway.send(&Request::get("/"));
    for content_type in ["application/json", "application/grp", "application/grpc-web", "text/plain", "grpc"]
    {
        let request = Request::post("/", "{}").header("content-type", content_type);
        let refused = gateway.send(&request);
        assert_eq!(refused.status, 429, "{content_type}");
        assert!(!refused.has("grpc-status"), "{content_type}");
    }
}

pub fn an_endpoint_answers_with_the_grpc_status_of_its_http_status(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(1, 7)));
    let request = Request::post("/system/health", "{}").header("content-type", "application/grpc");
    let refused = gateway.send(&request);
    assert_eq!((refused.status, refused.one("grpc-status").as_str()), (200, "7"), "PERMISSION_DENIED");
}
