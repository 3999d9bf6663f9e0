//! Header maps: any bytes, several values, and when each map can be read.

use crate::abi::{self, Map, shown};
use crate::{Check, Next};

pub(crate) fn run(check: &Check) -> Option<Next> {
    let get = |name: &str| shown(&abi::header(Map::Request, name));
    let listed = |names: &[&str]| {
        let values: Vec<_> = names.iter().map(|name| format!("{name} {}", get(name))).collect();
        Next::Answer(values.join("; "))
    };
    Some(match check.name.as_str() {
        "missing" => Next::Answer(get("x-missing")),
        "of_a_request" => listed(&["x-two", "X-TWO", "x-bytes", "x-empty"]),
        "pseudo" => listed(&[":method", ":path", ":status"]),
        "count_and_end" => Next::Answer(format!(
            "headers more than four: {}; end of stream: {}",
            check.headers > 4,
            check.end_of_stream
        )),
        "not_there_yet" => Next::Answer(format!(
            "response: {}; HTTP call: {}; set on the response: {}",
            shown(&abi::header(Map::Response, ":status")),
            shown(&abi::header(Map::HttpCallResponse, ":status")),
            abi::replace_header(Map::Response, "x-early", b"early"),
        )),
        "replaced" | "added" | "status_replaced" | "request_in_response" | "replaced_where_none_was" => {
            Next::Pass
        }
        _ => return None,
    })
}

/// Checks at the headers of the response.
pub(crate) fn on_response(name: &str) {
    let set = |name: &str, value: &str| {
        abi::replace_header(Map::Response, name, value.as_bytes());
    };
    match name {
        "replaced" => {
            let first = shown(&abi::header(Map::Response, "x-twice"));
            set("X-Twice", "ours");
            set("x-probe", &format!("was {first}"));
        }
        "replaced_where_none_was" => set("x-fresh", "ours"),
        "added" => {
            abi::add_header(Map::Response, "x-twice", b"ours");
        }
        "status_replaced" => {
            let status = shown(&abi::header(Map::Response, ":status"));
            set("x-probe", &format!("was {status}"));
            set(":status", "203");
        }
        "request_in_response" => set("x-probe", &shown(&abi::header(Map::Request, ":path"))),
        _ => {}
    }
}
