//! Header maps: any bytes, several values, and when each map can be read.

use crate::abi::{self, Map, shown};
use crate::{Check, Next};

pub(crate) fn run(check: &Check) -> Option<Next> {
    let get = |name: &str| shown(&abi::header(Map::Request, name));
    Some(match check.name.as_str() {
        "missing" => Next::Answer(get("x-missing")),
        "of_a_request" => Next::Answer(format!(
            "x-two {}; X-TWO {}; x-bytes {}; x-empty {}",
            get("x-two"),
            get("X-TWO"),
            get("x-bytes"),
            get("x-empty")
        )),
        "pseudo" => Next::Answer(format!(
            ":method {}; :path {}; :status {}",
            get(":method"),
            get(":path"),
            get(":status")
        )),
        "count_and_end" => Next::Answer(format!(
            "{} more than four: {}; end of stream: {}",
            "headers",
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
    let set = |name: &str, value: &str| abi::replace_header(Map::Response, name, value.as_bytes());
    match name {
        "replaced" => {
            let first = shown(&abi::header(Map::Response, "x-twice"));
            set("X-Twice", "ours");
            set("x-probe", &format!("was {first}"));
        }
        "replaced_where_none_was" => {
            set("x-fresh", "ours");
        }
        "added" => {
            abi::add_header(Map::Response, "x-twice", b"ours");
        }
        "status_replaced" => {
            let status = shown(&abi::header(Map::Response, ":status"));
            set("x-probe", &format!("was {status}"));
            set(":status", "203");
        }
        "request_in_response" => {
            let path = shown(&abi::header(Map::Request, ":path"));
            set("x-probe", &path);
        }
        _ => {}
    }
}
