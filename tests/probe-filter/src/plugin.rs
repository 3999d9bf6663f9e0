//! The plugin's configuration, environment and properties.

use crate::abi;
use crate::state;
use crate::{Check, Next};

pub(crate) fn run(check: &Check) -> Option<Next> {
    Some(Next::Answer(match check.name.as_str() {
        "configuration" => {
            let configuration = state::configuration(check.root);
            format!("{} bytes: \"{}\"", configuration.len(), configuration.escape_ascii())
        }
        "environment" => ["PROBE_SET", "PROBE_EMPTY", "PROBE_OF_THE_HOST", "PROBE_ABSENT", "PATH"]
            .map(|name| match std::env::var(name) {
                Ok(value) => format!("{name}={value}"),
                Err(_) => format!("no {name}"),
            })
            .join("; "),
        "source_address" => without_port(&abi::shown(&abi::property(&["source", "address"]))),
        "missing_property" => format!(
            "no such name: {}; no such field: {}; no such header: {}",
            abi::shown(&abi::property(&["nonsense"])),
            abi::shown(&abi::property(&["source", "nonsense"])),
            abi::shown(&abi::property(&["request", "headers", "x-missing"])),
        ),
        "names" => ["plugin_name", "plugin_root_id", "plugin_vm_id"]
            .map(|name| format!("{name} {}", abi::shown(&abi::property(&[name]))))
            .join("; "),
        "log_level" => match abi::log_level() {
            Ok(level) => format!("level {level}"),
            Err(status) => status.to_string(),
        },
        _ => return None,
    }))
}

/// Replaces the client's port, which varies; it is 0 if the address came from a header.
fn without_port(address: &str) -> String {
    match address.trim_end_matches('"').rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok_and(|port| port != 0) => format!("{host}:port\""),
        _ => address.to_owned(),
    }
}
