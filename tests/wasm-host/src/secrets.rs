//! The secrets of the tests, and the search for them in all outputs of the filter.

use harness::canary;
use harness::fake_redis::parse_command;

use crate::world::World;

pub const ADMIN_TOKEN: &str = "c4nary-admin-token-5d1f";
/// An API key, of tier `pro`.
pub const API_KEY: &str = "c4nary-api-key-91c7";
pub const REDIS_PASSWORD: &str = "c4nary-redis-password-77aa";
pub const REDIS_USER: &str = "c4nary-redis-user-03be";

/// Every test ends with the search, unless it has failed.
impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            canary::assert_none(&canary::search(self.outputs()));
        }
    }
}

impl World {
    /// Log lines, names of stats, shared data, responses, and the commands to Redis except `AUTH`; each with its place.
    fn outputs(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut outputs = Vec::new();
        for process in &self.processes {
            let lines = process.log.borrow();
            outputs.extend(lines.iter().map(|(_, line)| ("the log", line.clone().into_bytes())));
            let names = process.stat_names().into_iter();
            outputs.extend(names.map(|name| ("the name of a stat", name.into_bytes())));
            for (key, value) in process.shared_records() {
                outputs.extend([("a key of shared data", key), ("shared data", value)]);
            }
        }
        for response in self.exchanges.iter().filter_map(|exchange| exchange.response.as_ref()) {
            outputs.push(("a body", response.body.clone()));
            for (name, value) in response.headers.clone() {
                outputs.extend([("a header", name.into_bytes()), ("a header", value)]);
            }
        }
        let mut received = self.redis.received.as_slice();
        while let Some((command, length)) = parse_command(received).filter(|(_, length)| *length > 0) {
            received = &received[length..];
            if command.first().is_none_or(|name| name != b"AUTH") {
                outputs.extend(command.into_iter().map(|word| ("a command to Redis", word)));
            }
        }
        outputs
    }
}
