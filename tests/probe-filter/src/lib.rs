//! A filter that checks facts about its host.
//!
//! The limiter relies on facts about Envoy that no specification states. One request checks one fact: the response to
//! `GET /shared_data/insert_if_absent` reports the behaviour of the host. `facts.json` lists the requests and the
//! expected responses, for a real Envoy of any version and for the hostile host of the tests.
//!
//! The filter uses the ABI directly. The SDK panics at an unexpected status, hides the return values of callbacks, and
//! cannot be entered again while it calls the host.
//!
//! [`abi`] has the host's functions, [`callbacks`] the filter's callbacks, [`state`] the state between callbacks.
//! Every other module is a group of `facts.json`.
#![cfg(target_arch = "wasm32")]

mod abi;
mod bodies;
mod callbacks;
mod clocks;
mod contexts;
mod grpc;
mod headers;
mod http_calls;
mod metrics;
mod pauses;
mod plugin;
mod queues;
mod replies;
mod shared_data;
mod state;
mod timers;

/// The next step for a request.
enum Next {
    /// Respond with this text.
    Answer(String),
    Pass,
    /// Pause; with `allow_on_headers_stop_iteration` the body still arrives, and is buffered.
    Pause,
    /// Pause the body too: Envoy's `StopAllIterationAndWatermark`.
    Hold,
}

struct Check {
    id: u32,
    root: u32,
    name: String,
    /// The path's third part, if any.
    argument: String,
    /// The number of headers that the host reports.
    headers: usize,
    /// The host reports that no body follows.
    end_of_stream: bool,
}

/// Runs a check of this group; `None` if it is unknown.
fn run(group: &str, check: &Check) -> Option<Next> {
    match group {
        "shared_data" => shared_data::run(check),
        "clocks" => clocks::run(check),
        "plugin" => plugin::run(check),
        "metrics" => metrics::run(check),
        "headers" => headers::run(check),
        "replies" => replies::run(check),
        "pauses" => pauses::run(check),
        "bodies" => bodies::run(check),
        "queues" => queues::run(check),
        "timers" => timers::run(check),
        "http_calls" => http_calls::run(check),
        "grpc" => grpc::run(check),
        "contexts" => contexts::run(check),
        _ => None,
    }
}
