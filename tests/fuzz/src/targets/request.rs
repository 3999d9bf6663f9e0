//! Requests, as lines of raw bytes: `METHOD path`, then `header: value`, an empty line between two requests. A line
//! `wait: N` advances the clock by microseconds before the request, `from:` is Envoy's `source.address`, `body:` the
//! body.
//!
//! The first byte chooses the configuration. No bucket admits more than it may, health changes only with the right
//! token, and each network gets at most five responses a minute that its token is wrong.

use std::collections::HashMap;

use dynamic_rate_limiter::admission::Decision;
use dynamic_rate_limiter::generation::Role;
use dynamic_rate_limiter::identity::Network;
use dynamic_rate_limiter::limiter::{Limiter, LimiterOutput};
use dynamic_rate_limiter::login_throttle::{MAX_WRONG_TOKENS, WINDOW};
use dynamic_rate_limiter::request::DecisionStart;
use dynamic_rate_limiter::store::SharedData;
use dynamic_rate_limiter::time::StoreTime;

use super::check_headers;
use harness::{FakeData, FakeRequest, SECOND, TOKEN, decide, limiter};

pub(super) const WORDS: &str = "\
    GET /\n|POST /system/health\n|GET /system/health\n|GET /health\n|OPTIONS /\n|PUT |HEAD |CONNECT |\
    x-api-key: |x-admin-token: |x-admin-token: the admin token\n|origin: |\
    access-control-request-method: |from: 192.0.2.1:1\n|from: [2001:db8::1]:1\n|from: |wait: 1000000\n|\
    wait: 60000000\n|wait: |body: {\"status\":\"DEGRADED\"}\n|body: {\"status\":\"NORMAL\"}\n|\n\n|?|\
    /open|/metrics|//|%2f|pro|blocked|unlimited|\u{fffd}";

const CONFIGURATIONS: [&str; 4] = [
    r#"{"api_keys": {"pro": "pro", "free": "free"}}"#,
    r#"{"tiers": {"free": {"base": {"capacity": 2, "refill_rate": 0.5}, "degraded": {"capacity": 0}},
        "blocked": {"base": {"capacity": 0, "refill_rate": 0}}, "unlimited": {"unlimited": true}},
        "api_keys": {"blocked": "blocked", "unlimited": "unlimited", "pro": "free"}, "ipv6_prefix": 48,
        "store": {"max_buckets": 4}, "exempt_paths": ["/metrics", "/open*"], "exempt_preflight": true}"#,
    r#"{"admin": {"health_path": null, "system_health_path": "/"}, "ipv6_prefix": 128, "exempt_paths": ["/*"]}"#,
    r#"{"store": {"kind": "redis", "cluster": "redis"}, "api_keys": {"pro": "pro"}}"#,
];

/// The header names that the limiter may read.
const NAMES: [&str; 5] =
    ["x-api-key", "x-admin-token", "origin", "access-control-request-method", "content-length"];

pub(super) fn check(bytes: &[u8]) {
    let (chosen, text) = bytes.split_first().map_or((0, bytes), |(first, rest)| (usize::from(*first), rest));
    let data = FakeData::at(SECOND);
    let mut world = World {
        limiter: limiter(&data, CONFIGURATIONS[chosen % CONFIGURATIONS.len()]),
        forbidden: HashMap::new(),
        admitted: HashMap::new(),
        request_id: 0,
    };
    let mut lines: Vec<&[u8]> = Vec::new();
    for line in text.split(|byte| *byte == b'\n').chain([&b""[..]]) {
        match line {
            b"" if lines.is_empty() => {}
            b"" => world.serve(&std::mem::take(&mut lines), &data),
            _ => lines.push(line),
        }
    }
    world.settle(&data);
}

struct World {
    limiter: Limiter,
    /// The times of responses to each network that its token is wrong.
    forbidden: HashMap<String, Vec<StoreTime>>,
    /// Tokens from the bucket of each caller without a known key since the clock last advanced.
    admitted: HashMap<String, u32>,
    request_id: u32,
}

impl World {
    fn serve(&mut self, lines: &[&[u8]], data: &FakeData) {
        let mut request = FakeRequest::get("/");
        let mut body = Vec::new();
        let mut words = lines[0].splitn(2, |byte| *byte == b' ');
        request.method = words.next().unwrap_or_default().to_vec();
        request.path = words.next().unwrap_or_default().to_vec();
        for line in &lines[1..] {
            let at = line.windows(2).position(|pair| pair == b": ").unwrap_or(line.len());
            let (name, value) = (&line[..at], line.get(at + 2..).unwrap_or_default());
            match name {
                b"wait" => {
                    let us = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
                    if let Some(us @ 1..) = us {
                        data.advance(us.min(u64::MAX >> 8));
                        self.admitted.clear();
                    }
                }
                b"from" => request.source = value.to_vec(),
                b"body" => body = value.to_vec(),
                _ => {
                    if let Some(known) = NAMES.iter().find(|known| known.as_bytes() == name) {
                        request.headers.push((known, value.to_vec()));
                    }
                }
            }
        }
        self.request_id += 1;
        let start = DecisionStart { id: self.request_id, at: data.now() };
        let decision = decide(&mut self.limiter, data, &request, start);
        self.look_at(decision, &request, &body, start, data);
        if self.request_id.is_multiple_of(3) {
            self.settle(data);
        }
    }

    fn look_at(
        &mut self,
        decision: Decision,
        request: &FakeRequest,
        body: &[u8],
        start: DecisionStart,
        data: &FakeData,
    ) {
        let prefix = self.limiter.config().settings.ipv6_prefix;
        let network = Network::of_source(&request.source, prefix).to_string();
        let header = |name| request.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value);
        check_headers(&decision, self.limiter.wall_clock());
        match decision {
            Decision::Admitted(answer) => {
                if let (Some(verdict), None) = (answer.verdict, header("x-api-key")) {
                    let admitted = self.admitted.entry(network).or_default();
                    *admitted += 1;
                    let most = answer.tier.normal.capacity();
                    assert!(*admitted <= most && verdict.capacity <= most, "{admitted} at once, of {most}");
                }
            }
            Decision::Replied(reply) => {
                assert!(matches!(reply.status, 200 | 403 | 405 | 429), "{reply:?}");
                serde_json::from_str::<serde_json::Value>(&reply.body).expect("the answer is JSON");
                if reply.status == 403 && header("x-admin-token").is_some() {
                    let times = self.forbidden.entry(network).or_default();
                    times.push(start.at);
                    let within = times.iter().filter(|at| at.after(WINDOW) > start.at).count();
                    assert!(within <= MAX_WRONG_TOKENS, "{within} guesses in a minute");
                }
            }
            Decision::AwaitsBody(pending) => {
                assert_eq!(header("x-admin-token").map(Vec::as_slice), Some(TOKEN.as_bytes()));
                assert_eq!(request.method, b"POST");
                match self.limiter.change_health(&pending, body, data, start) {
                    Decision::Replied(reply) => {
                        assert!(matches!(reply.status, 200 | 400 | 413 | 500), "{reply:?}")
                    }
                    Decision::AwaitsRedis(_) => {}
                    other => panic!("{other:?}"),
                }
            }
            _ => {}
        }
    }

    /// Redis never replies here, so requests that wait for it are decided without it.
    fn settle(&mut self, data: &FakeData) {
        data.advance(SECOND);
        self.admitted.clear();
        self.limiter.flush();
        self.poll(data);
        self.limiter.handle_timeout(data.now(), Role::Newest, data);
        self.poll(data);
    }

    fn poll(&mut self, data: &FakeData) {
        while let Some(output) = self.limiter.poll_output(data.now(), data) {
            let LimiterOutput::Decided(request_id, decision) = output else { continue };
            assert!((1..=self.request_id).contains(&request_id));
            check_headers(&decision, self.limiter.wall_clock());
            match decision {
                Decision::Admitted(_) | Decision::Rejected(_) => {}
                Decision::Replied(reply) => assert_eq!(reply.status, 500),
                other => panic!("{other:?}"),
            }
        }
    }
}
