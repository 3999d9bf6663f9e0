//! Callers of an open-loop load: each request is sent when it is due, independent of earlier responses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::plan::{Arrival, ClientPolicy, Plan};
use crate::report::{Fate, Outcome};

type Http = Client<HttpConnector, Empty<Bytes>>;

/// Sends all requests of the plan, and each outcome to the channel when it is known.
///
/// Returns after the last request was sent; the channel ends after the last outcome.
pub async fn run(to: SocketAddr, plan: &Plan, started: Instant, outcomes: mpsc::UnboundedSender<Outcome>) {
    let client = Arc::new(Caller::new(to, plan.client));
    for arrival in plan.arrivals() {
        let due = started + arrival.at;
        sleep_until(due).await;
        let late = due.elapsed();
        let (client, outcomes) = (Arc::clone(&client), outcomes.clone());
        tokio::spawn(async move {
            let fate = client.send(&arrival, due).await;
            // The receiver is dropped if the load is stopped early.
            let _ = outcomes.send(Outcome { arrival, fate, took: due.elapsed(), late });
        });
    }
}

struct Caller {
    http: Http,
    uri: Uri,
    policy: ClientPolicy,
}

/// The result of one try, and `retry-after`.
type Answer = (Fate, Option<Duration>);

impl Caller {
    fn new(to: SocketAddr, policy: ClientPolicy) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let http = Client::builder(TokioExecutor::new()).build(connector);
        // An address and a port are always a URI.
        let uri = format!("http://{to}/work").parse().unwrap_or_default();
        Self { http, uri, policy }
    }

    /// Tries as often as the policy allows; returns the result of the last try.
    async fn send(&self, arrival: &Arrival, due: Instant) -> Fate {
        let deadline = due + Duration::from_millis(self.policy.deadline_ms);
        let mut tries = 0;
        loop {
            let until = deadline.min(Instant::now() + Duration::from_millis(self.policy.timeout_ms));
            let answer = timeout_at(until, self.try_once(arrival)).await;
            let (fate, retry_after) = answer.unwrap_or((Fate::TimedOut, None));
            tries += 1;
            let pause = back_off(self.policy.back_off_ms, tries).max(retry_after.unwrap_or_default());
            if !fate.is_worth_a_retry() || tries > self.policy.retries || Instant::now() + pause >= deadline {
                return fate;
            }
            sleep(pause).await;
        }
    }

    async fn try_once(&self, arrival: &Arrival) -> Answer {
        let (name, value) = arrival.identity();
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.uri.clone();
        if let Ok(value) = value.parse() {
            request.headers_mut().insert(name, value);
        }
        let Ok(response) = self.http.request(request).await else {
            return (Fate::Broken, None);
        };
        let status = response.status();
        let seconds =
            response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after = seconds.map(Duration::from_secs);
        // A connection can be used again once the body is read.
        if response.into_body().collect().await.is_err() {
            return (Fate::Broken, None);
        }
        (fate(status, retry_after.is_some()), retry_after)
    }
}

fn fate(status: StatusCode, has_retry_after: bool) -> Fate {
    match status {
        _ if status.is_success() => Fate::Served,
        StatusCode::TOO_MANY_REQUESTS => Fate::Limited,
        StatusCode::SERVICE_UNAVAILABLE if has_retry_after => Fate::Shed,
        StatusCode::GATEWAY_TIMEOUT => Fate::TimedOut,
        _ => Fate::Error,
    }
}

fn back_off(first_ms: u64, tries: u32) -> Duration {
    let doubled = first_ms as f64 * f64::from(2_u32.saturating_pow(tries - 1));
    Duration::from_secs_f64(doubled / 1_000.0 * (0.5 + fastrand::f64()))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::run;
    use crate::plan::{ClientPolicy, Plan};
    use crate::report::{Fate, Report, percentile};
    use crate::upstream::{Condition, Shape, Upstream};

    const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    fn report_of(plan: &Plan, upstream: &Upstream) -> Report {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (sender, mut receiver) = mpsc::unbounded_channel();
            let mut report = Report::new("test", *plan);
            tokio::join!(run(upstream.address(), plan, Instant::now(), sender), async {
                while let Some(outcome) = receiver.recv().await {
                    report.add(&outcome);
                }
            });
            report
        })
    }

    /// One second at half, one at five times and two at half of a capacity of fifty.
    fn plan() -> Plan {
        let client = ClientPolicy { timeout_ms: 400, deadline_ms: 800, retries: 0, back_off_ms: 100 };
        Plan { capacity: 50.0, before: 1, overload: 1, after: 2, times: 5.0, normal: 0.5, seed: 1, client }
    }

    #[test]
    fn an_upstream_serves_its_capacity_and_refuses_requests_beyond_its_queue() {
        let shape = Shape { slots: 5, service_ms: 100, queue: Some(5) };
        let report = report_of(&plan(), &Upstream::start(shape, ANY_PORT).expect("an upstream"));
        let all = report.during(0..plan().seconds());
        assert_eq!(all.fates.iter().flatten().sum::<u32>() as usize, plan().arrivals().len());
        let served = all.sum(Fate::Served);
        assert!((60..=170).contains(&served), "about 125 of 325 requests in four seconds: {served}");
        assert!(all.sum(Fate::Error) > 50, "the others are refused at once");
        assert!(percentile(&report.usual_ms, 0.5).expect("some are served") >= 20.0);
    }

    #[test]
    fn a_condition_can_be_changed() {
        let shape = Shape { slots: 50, service_ms: 10, queue: Some(50) };
        let upstream = Upstream::start(shape, ANY_PORT).expect("an upstream");
        upstream.set(Condition { slowdown: 1.0, failing: 1.0 });
        let normal = Plan { overload: 0, after: 0, ..plan() };
        let report = report_of(&normal, &upstream);
        let second = &report.seconds[0];
        assert_eq!(second.sum(Fate::Error) as usize, normal.arrivals().len());
    }
}
