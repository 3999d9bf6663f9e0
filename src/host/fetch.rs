//! Documents on their way from the cluster that serves them.

use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::types::{BufferType, MapType, Status};

use crate::config::{ConfigSource, KEY_DOCUMENT, TIER_DOCUMENT};
use crate::documents::{Fetched, MAX_DOCUMENT_BYTES};
use crate::shown::{Shown, quoted};

/// How long a document may take at most; no longer than until the next fetch, which another worker may make.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A call for each document.
pub(super) struct Fetch {
    tiers: Option<Call>,
    api_keys: Option<Call>,
}

enum Call {
    Waiting(u32),
    Answered(Result<Vec<u8>, String>),
}

impl Fetch {
    /// Sends the requests for the documents.
    pub(super) fn start(source: &ConfigSource) -> Self {
        // Names that a control plane gives to clusters may have characters that no host has.
        let is_of_host = |char: &char| char.is_ascii_alphanumeric() || matches!(char, '-' | '.' | '_');
        let host: String =
            source.cluster.chars().map(|char| if is_of_host(&char) { char } else { '-' }).collect();
        let timeout = TIMEOUT.min(Duration::from_secs(source.ttl_seconds.into()));
        let call = |path: &String| {
            let headers = vec![(":method", "GET"), (":path", path.as_str()), (":authority", host.as_str())];
            let called = hostcalls::dispatch_http_call(&source.cluster, headers, None, vec![], timeout);
            match called {
                Ok(token) => Call::Waiting(token),
                Err(Status::BadArgument) => {
                    Call::Answered(Err(format!("there is no cluster {} in Envoy", quoted(&source.cluster))))
                }
                Err(_) => Call::Answered(Err("the request could not be sent".to_owned())),
            }
        };
        Self { tiers: source.tiers.as_ref().map(call), api_keys: source.api_keys.as_ref().map(call) }
    }

    /// Takes in an answer; false where it is to no call of this fetch.
    pub(super) fn take_answer(&mut self, token: u32, headers: usize, body_size: usize) -> bool {
        let is_it = |call: &&mut Call| matches!(call, Call::Waiting(waiting) if *waiting == token);
        let call = [&mut self.tiers, &mut self.api_keys].into_iter().flatten().find(is_it);
        let is_ours = call.is_some();
        if let Some(call) = call {
            *call = Call::Answered(document(headers, body_size));
        }
        is_ours
    }

    /// Whether every call is answered.
    pub(super) fn is_complete(&self) -> bool {
        let mut calls = [&self.tiers, &self.api_keys].into_iter().flatten();
        calls.all(|call| matches!(call, Call::Answered(_)))
    }

    /// What was fetched.
    pub(super) fn into_fetched(self) -> Fetched {
        let answer = |call: Option<Call>, name| match call? {
            Call::Answered(answer) => Some(answer.map_err(|reason| format!("{name}: {reason}"))),
            Call::Waiting(_) => None,
        };
        Fetched { tiers: answer(self.tiers, TIER_DOCUMENT), api_keys: answer(self.api_keys, KEY_DOCUMENT) }
    }
}

/// The document in the response that has just come, or what is wrong with it.
fn document(headers: usize, body_size: usize) -> Result<Vec<u8>, String> {
    // A response that broke off half way has no headers any more, and asking for one would trap.
    if headers == 0 {
        return Err("found a response that broke off, wanted a whole one".to_owned());
    }
    let status = hostcalls::get_map_value_bytes(MapType::HttpCallResponseHeaders, ":status").ok().flatten();
    match status.as_deref() {
        Some(b"200") => {
            // One byte over the bound is enough to know that it is too long.
            let size = body_size.min(MAX_DOCUMENT_BYTES + 1);
            let body = hostcalls::get_buffer(BufferType::HttpCallResponseBody, 0, size);
            Ok(body.ok().flatten().unwrap_or_default())
        }
        Some(status) => Err(format!("found status {}, wanted 200", Shown(&String::from_utf8_lossy(status)))),
        None => Err("found no response, wanted status 200".to_owned()),
    }
}
