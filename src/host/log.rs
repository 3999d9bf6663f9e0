//! The proxy's log: whatever a line holds, it is one line and not too long.

use log::{Level, LevelFilter, Metadata, Record};
use proxy_wasm::hostcalls;
use proxy_wasm::types::LogLevel;

use crate::shown::Line;

/// Takes the place of the SDK's logger, which writes what it is given.
struct ProxyLog;

static PROXY_LOG: ProxyLog = ProxyLog;

/// Sends what is logged, and the message of a panic, to the proxy.
pub(super) fn install() {
    // Fails where it is installed already.
    let _ = log::set_logger(&PROXY_LOG);
    log::set_max_level(LevelFilter::Info);
    std::panic::set_hook(Box::new(|panic| write(LogLevel::Critical, format_args!("{panic}"))));
}

/// Formats no line that Envoy would throw away. The level may change while Envoy runs.
pub(super) fn follow_level() {
    log::set_max_level(match hostcalls::get_log_level() {
        Ok(LogLevel::Trace) => LevelFilter::Trace,
        Ok(LogLevel::Debug) => LevelFilter::Debug,
        Ok(LogLevel::Warn) => LevelFilter::Warn,
        Ok(LogLevel::Error) => LevelFilter::Error,
        Ok(LogLevel::Critical) => LevelFilter::Off,
        Ok(LogLevel::Info) | Err(_) => LevelFilter::Info,
    });
}

impl log::Log for ProxyLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = match record.level() {
                Level::Trace => LogLevel::Trace,
                Level::Debug => LogLevel::Debug,
                Level::Info => LogLevel::Info,
                Level::Warn => LogLevel::Warn,
                Level::Error => LogLevel::Error,
            };
            write(level, *record.args());
        }
    }

    fn flush(&self) {}
}

fn write(level: LogLevel, message: std::fmt::Arguments<'_>) {
    // A line that the proxy does not take is lost; no request depends on it.
    let _ = hostcalls::log(level, Line::of(message).as_str());
}
