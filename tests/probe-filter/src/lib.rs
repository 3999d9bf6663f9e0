//! A filter that asks its host about itself.
//!
//! The limiter rests on facts about Envoy that no specification states. Here each of them is a question that one
//! request asks: `GET /shared_data/insert_if_absent` is answered with what the host did. `facts.json` holds the
//! questions and the right answers; a real Envoy of any version and the hostile host of the tests are asked the very
//! same.
//!
//! The filter speaks the ABI itself, without the SDK, because the ABI is what it looks at: the SDK panics at a status
//! that it does not expect, hides what a callback returns, and cannot be entered again while it calls the host.
//!
//! [`abi`] are the host's calls, [`callbacks`] what the host calls, [`state`] what is remembered between callbacks;
//! every other module asks about one subject, and is a group of `facts.json`.
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

/// What the host is told to do with a request whose headers have come in.
enum Next {
    /// Answer it with this text.
    Answer(String),
    Pass,
    /// Stop here; with `allow_on_headers_stop_iteration` the body still comes, and is gathered.
    Pause,
    /// Stop here, body and all: Envoy's `StopAllIterationAndWatermark`.
    Hold,
}

struct Ask {
    id: u32,
    root: u32,
    name: String,
    /// The path's third part, if any.
    argument: String,
    /// How many headers there are, as the host says.
    headers: usize,
    /// Whether no body follows, as the host says.
    end_of_stream: bool,
}

/// Asks the host; `None` where there is no such question.
fn ask(group: &str, ask: &Ask) -> Option<Next> {
    match group {
        "shared_data" => shared_data::ask(ask),
        "clocks" => clocks::ask(ask),
        "plugin" => plugin::ask(ask),
        "metrics" => metrics::ask(ask),
        "headers" => headers::ask(ask),
        "replies" => replies::ask(ask),
        "pauses" => pauses::ask(ask),
        "bodies" => bodies::ask(ask),
        "queues" => queues::ask(ask),
        "timers" => timers::ask(ask),
        "http_calls" => http_calls::ask(ask),
        "grpc" => grpc::ask(ask),
        "contexts" => contexts::ask(ask),
        _ => None,
    }
}
