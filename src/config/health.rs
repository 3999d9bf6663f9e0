//! The field `health`: whether operators set health or it is measured, and its thresholds.

use crate::json::{Field, Fields};

/// Bounds of the upstream's health, and what follows from breaking them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HealthThresholds {
    /// How far back the signals reach, in seconds: 1 to 300.
    pub window_seconds: u32,
    /// Fewer responses than this in a window decide nothing: 1 to 1,000,000.
    pub min_requests: u32,
    /// The share of server errors that is too much: above 0, to 1.
    pub error_ratio: f64,
    /// The time to response headers that is too much, in milliseconds: 1 to 600,000. `None`: no bound.
    pub latency_ms: Option<u32>,
    /// The multiple of the usual time that is too much: above 1, to 1,000. `None`: no threshold.
    pub latency_ratio: Option<f64>,
    /// How long a bound must have been broken, in seconds: 1 to 3,600.
    pub degrade_after_seconds: u32,
    /// How long all bounds must have held, in seconds: 1 to 86,400.
    pub recover_after_seconds: u32,
    /// Whether requests beyond the in-flight limit are queued and shed.
    pub shed: bool,
}

impl Default for HealthThresholds {
    fn default() -> Self {
        Self {
            window_seconds: 10,
            min_requests: 50,
            error_ratio: 0.2,
            latency_ms: Some(500),
            latency_ratio: Some(3.0),
            degrade_after_seconds: 2,
            recover_after_seconds: 10,
            shed: true,
        }
    }
}

/// Reads the field; `None` where health is not measured, which is the default.
pub(super) fn parse_health(field: Option<Field>) -> Result<Option<HealthThresholds>, String> {
    let Some(field) = field else { return Ok(None) };
    let fields = field.fields(&[
        "mode",
        "window_seconds",
        "min_requests",
        "error_ratio",
        "latency_ms",
        "latency_ratio",
        "degrade_after_seconds",
        "recover_after_seconds",
        "shed",
    ])?;
    let thresholds = thresholds(&fields)?;
    let mode = fields.get("mode");
    match mode.as_ref().map_or(Some("manual"), Field::as_text) {
        Some("auto") => Ok(Some(thresholds)),
        Some("manual") => Ok(None),
        _ => Err(mode.map_or_else(String::new, |mode| mode.wanted("\"manual\" or \"auto\""))),
    }
}

fn thresholds(fields: &Fields) -> Result<HealthThresholds, String> {
    let default = HealthThresholds::default();
    let whole = |name, most, default| fields.get(name).map_or(Ok(default), |field| field.whole(1, most));
    Ok(HealthThresholds {
        window_seconds: whole("window_seconds", 300, default.window_seconds)?,
        min_requests: whole("min_requests", 1_000_000, default.min_requests)?,
        error_ratio: match fields.get("error_ratio") {
            Some(field) => above(&field, 0, 1)?,
            None => default.error_ratio,
        },
        latency_ms: match fields.get("latency_ms") {
            Some(field) if field.is_null() => None,
            Some(field) => Some(field.whole(1, 600_000)?),
            None => default.latency_ms,
        },
        latency_ratio: match fields.get("latency_ratio") {
            Some(field) if field.is_null() => None,
            Some(field) => Some(above(&field, 1, 1_000)?),
            None => default.latency_ratio,
        },
        degrade_after_seconds: whole("degrade_after_seconds", 3_600, default.degrade_after_seconds)?,
        recover_after_seconds: whole("recover_after_seconds", 86_400, default.recover_after_seconds)?,
        shed: super::flag(fields, "shed", default.shed)?,
    })
}

/// A number over `least`, up to `most`.
fn above(field: &Field, least: u32, most: u32) -> Result<f64, String> {
    let wanted = || field.wanted(format_args!("a number over {least}, up to {most}"));
    let number = field.millionths(most).map_err(|_| wanted())? as f64 / 1e6;
    if number > f64::from(least) { Ok(number) } else { Err(wanted()) }
}
