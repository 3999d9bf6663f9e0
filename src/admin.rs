//! The endpoints that the filter answers itself: a request in, a reply or a pending change out.

use std::time::Duration;

use crate::config::{Config, HealthThresholds, MAX_TOKEN_BYTES};
use crate::control::{Control, RedisStatus};
use crate::headers::seconds;
use crate::health::HealthOverride;
use crate::identity::{KeyHash, Network};
use crate::json::Json;
use crate::login_throttle::LoginThrottle;
use crate::metrics::{self, Metrics};
use crate::overload::{ClusterRecord, DegradeReason, OverloadReport};
use crate::request::Request;
use crate::store::{AddressTable, Contended, SharedData};
use crate::time::UnixTime;

/// Longest body of a change, in bytes.
pub const MAX_BODY_BYTES: usize = 1024;

/// How long the body of a change may take.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// A complete answer of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointReply {
    /// HTTP status.
    pub status: u32,
    /// A header besides `content-type`.
    pub header: Option<(&'static str, String)>,
    /// The body: JSON.
    pub body: String,
    /// For the metrics; `None` for what only reads.
    pub result: Option<AdminResult>,
}

impl EndpointReply {
    /// Counts what became of an admin request.
    pub(crate) fn count(&self, metrics: &mut Metrics) {
        let counter = match self.result {
            None => return,
            Some(AdminResult::Ok) => metrics::ADMIN_OK,
            Some(AdminResult::Forbidden) => metrics::ADMIN_FORBIDDEN,
            Some(AdminResult::Invalid) => metrics::ADMIN_INVALID,
            Some(AdminResult::TooLarge) => metrics::ADMIN_TOO_LARGE,
            Some(AdminResult::Throttled) => metrics::ADMIN_THROTTLED,
            Some(AdminResult::Failed) => metrics::ADMIN_FAILED,
        };
        metrics.count(counter, 1);
    }
}

/// What became of an admin request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminResult {
    /// The change was carried out.
    Ok,
    /// The token was wrong or missing.
    Forbidden,
    /// The method or the body was wrong.
    Invalid,
    /// The body was too large.
    TooLarge,
    /// There were too many wrong tokens, or too many changes that wait for their bodies.
    Throttled,
    /// The change could not be stored.
    Failed,
}

/// A change whose token was right and whose body is still to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingChange {
    /// Where it comes from, for the log.
    pub network: Network,
}

/// What an endpoint does with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointDecision {
    /// It answers.
    Reply(EndpointReply),
    /// It waits for the body.
    AwaitBody(PendingChange),
}

/// The health check: always 200 while the filter serves, because it goes on serving whatever else fails.
pub fn health(method: &[u8], config: &Config, control: Control, lacks_documents: bool) -> EndpointReply {
    if !is_read(method) {
        return method_not_allowed("GET, HEAD");
    }
    let (status, redis) = match (&config.settings.redis, control.redis) {
        (None, _) => ("healthy", "not_configured"),
        (Some(_), RedisStatus::Connected) => ("healthy", "connected"),
        (Some(_), RedisStatus::Unknown | RedisStatus::Disconnected) => ("degraded", "disconnected"),
    };
    let (status, documents) = match lacks_documents {
        true => ("degraded", r#","documents":"missing""#),
        false => (status, ""),
    };
    let health = control.health();
    ok(format!(r#"{{"status":"{status}","redis":"{redis}","health":"{health}"{documents}}}"#))
}

/// What `GET /system/health` shows.
#[derive(Clone, Copy, Debug)]
pub struct ShownHealth<'a> {
    /// The control record.
    pub control: Control,
    /// What was measured of the upstreams, if it is.
    pub overload: Option<&'a OverloadReport>,
    /// The wall clock.
    pub unix: UnixTime,
}

/// Shows health, or starts to change it.
pub fn system_health(
    method: &[u8],
    request: &impl Request,
    config: &Config,
    table: &AddressTable,
    shown: ShownHealth,
    data: &impl SharedData,
) -> EndpointDecision {
    if is_read(method) {
        return EndpointDecision::Reply(shown_health(config, shown));
    }
    if method != b"POST" {
        return EndpointDecision::Reply(method_not_allowed("GET, HEAD, POST"));
    }
    let network = config.network(&request.source_address().unwrap_or_default());
    let throttle = LoginThrottle { data, namespace: &config.settings.namespace, table };
    let wait = throttle.wait(network);
    if !wait.is_zero() {
        return EndpointDecision::Reply(throttled(wait));
    }
    let Some(token) = request.header("x-admin-token") else {
        return EndpointDecision::Reply(forbidden());
    };
    if is_admin(&token, config.settings.admin.token) {
        throttle.note_right_token(network);
        return EndpointDecision::AwaitBody(PendingChange { network });
    }
    EndpointDecision::Reply(match throttle.count_wrong_token(network) {
        Ok(Duration::ZERO) => forbidden(),
        Ok(wait) => throttled(wait),
        // A guess that cannot be counted is not answered either.
        Err(Contended) => throttled(Duration::from_secs(1)),
    })
}

/// What a change's body says about health, or the answer to a body that says nothing.
pub fn requested_health(
    body: &[u8],
    thresholds: Option<HealthThresholds>,
) -> Result<HealthOverride, EndpointReply> {
    if body.len() > MAX_BODY_BYTES {
        let detail = format!("the body is over {MAX_BODY_BYTES} bytes");
        return Err(error_reply(413, &detail, AdminResult::TooLarge));
    }
    parse_status(body, thresholds).map_err(|error| error_reply(400, &error, AdminResult::Invalid))
}

/// The answer to a change that was carried out.
pub(crate) fn changed(previous: &str, status: &str, unix: UnixTime) -> EndpointReply {
    let timestamp = timestamp(unix);
    let body = format!(
        "{{\"message\":\"System health updated successfully\",\"previous_status\":\"{previous}\",\
         \"new_status\":\"{status}\",\"timestamp\":{timestamp}}}"
    );
    EndpointReply { result: Some(AdminResult::Ok), ..ok(body) }
}

/// The answer to a change that could not be stored.
pub fn not_stored() -> EndpointReply {
    error_reply(500, "Failed to update health", AdminResult::Failed)
}

/// The answer to a body that does not come.
pub fn body_timed_out() -> EndpointReply {
    let seconds = BODY_TIMEOUT.as_secs();
    let detail = format!(
        "no body came within {seconds} seconds; if one was sent, this plugin's configuration in Envoy lacks \
         allow_on_headers_stop_iteration: true"
    );
    error_reply(408, &detail, AdminResult::Invalid)
}

/// The answer while too many requests wait for their bodies.
pub fn too_many_bodies() -> EndpointReply {
    EndpointReply {
        header: Some(("retry-after", "1".to_owned())),
        ..error_reply(429, "too many changes are waiting for their bodies", AdminResult::Throttled)
    }
}

fn is_read(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD")
}

fn is_admin(token: &[u8], expected: Option<KeyHash>) -> bool {
    let expected = expected.filter(|_| (1..=MAX_TOKEN_BYTES).contains(&token.len()));
    expected.is_some_and(|expected| KeyHash::of(token).matches(expected))
}

fn parse_status(body: &[u8], thresholds: Option<HealthThresholds>) -> Result<HealthOverride, String> {
    let wanted = match thresholds {
        Some(_) => "\"NORMAL\", \"DEGRADED\" or \"AUTO\"",
        None => "\"NORMAL\" or \"DEGRADED\"",
    };
    let json = Json::parse(body)?;
    let fields = json.root("body").fields(&["status"])?;
    let status = fields.need("status", wanted)?;
    let health_override = status.as_text().and_then(HealthOverride::from_name);
    // `AUTO` needs measured health.
    let health_override = health_override
        .filter(|health_override| *health_override != HealthOverride::Auto || thresholds.is_some());
    health_override.ok_or_else(|| status.wanted(wanted))
}

fn shown_health(config: &Config, shown: ShownHealth) -> EndpointReply {
    let ShownHealth { control, overload, unix } = shown;
    let (health, timestamp) = (control.health(), timestamp(unix));
    let measured =
        config.settings.health_thresholds.map(|_| shown_overload(overload, control.health_override));
    let measured = measured.unwrap_or_default();
    ok(format!(r#"{{"health":"{health}","timestamp":{timestamp}{measured}}}"#))
}

/// What is measured, as further members.
fn shown_overload(report: Option<&OverloadReport>, health_override: HealthOverride) -> String {
    let mode = if health_override == HealthOverride::Auto { "auto" } else { "manual" };
    let reason = match report.and_then(|report| report.reason) {
        None => "null",
        Some(DegradeReason::ErrorRatio) => r#""error_ratio""#,
        Some(DegradeReason::Latency) => r#""latency""#,
        Some(DegradeReason::Shed) => r#""shed""#,
    };
    let signals = report.map(|report| report.signals).unwrap_or_default();
    let [requests, error_ratio, slow_ratio, shed_ratio] =
        [signals.requests, signals.error_ratio, signals.slow_ratio, signals.shed_ratio].map(rounded);
    let clusters: Vec<String> =
        report.map(|report| report.clusters.iter().map(shown_cluster).collect()).unwrap_or_default();
    let clusters = clusters.join(",");
    format!(
        ",\"mode\":\"{mode}\",\"reason\":{reason},\"signals\":{{\
         \"requests\":{requests},\"error_ratio\":{error_ratio},\"slow_ratio\":{slow_ratio},\
         \"shed_ratio\":{shed_ratio}}},\"clusters\":{{{clusters}}}"
    )
}

/// `"name":{…}`; the name of what clusters beyond the 32nd share is empty.
fn shown_cluster((name, record): &(Vec<u8>, ClusterRecord)) -> String {
    let name = serde_json::to_string(&String::from_utf8_lossy(name)).unwrap_or_default();
    let (in_flight, waiting, shed) = (record.in_flight(), record.waiting(), record.shed as u64);
    let limit = rounded(record.limit.limit());
    let baseline = record.limit.baseline().map(|baseline| rounded(baseline.as_secs_f64() * 1_000.0));
    let baseline = baseline.unwrap_or_else(|| "null".to_owned());
    format!(
        "{name}:{{\"limit\":{limit},\"baseline_ms\":{baseline},\"in_flight\":{in_flight},\
         \"waiting\":{waiting},\"shed\":{shed}}}"
    )
}

fn ok(body: String) -> EndpointReply {
    EndpointReply { status: 200, header: None, body, result: None }
}

fn error_reply(status: u32, detail: &str, result: AdminResult) -> EndpointReply {
    EndpointReply {
        status,
        header: None,
        body: format!("{{\"detail\":{}}}", serde_json::to_string(detail).unwrap_or_default()),
        result: Some(result),
    }
}

fn forbidden() -> EndpointReply {
    error_reply(403, "Invalid admin token", AdminResult::Forbidden)
}

fn method_not_allowed(allow: &str) -> EndpointReply {
    EndpointReply {
        header: Some(("allow", allow.to_owned())),
        ..error_reply(405, "Method not allowed", AdminResult::Invalid)
    }
}

fn throttled(wait: Duration) -> EndpointReply {
    EndpointReply {
        header: Some(("retry-after", seconds(wait).to_string())),
        ..error_reply(429, "Too many invalid admin tokens", AdminResult::Throttled)
    }
}

/// Unix seconds with three decimals.
fn timestamp(unix: UnixTime) -> String {
    from_thousandths(unix.as_micros() / 1_000)
}

/// A number that is not negative, with three decimals. It keeps the code that formats any number out of the filter.
fn rounded(number: f64) -> String {
    from_thousandths((number * 1_000.0).round() as u64)
}

/// `1.234`: so many thousandths.
fn from_thousandths(thousandths: u64) -> String {
    format!("{}.{:03}", thousandths / 1_000, thousandths % 1_000)
}
