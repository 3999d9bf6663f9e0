//! The secrets in every scenario, and the search for them in all outputs of the filter.

use crate::world::World;

pub const ADMIN_TOKEN: &str = "canary-admin-token-5d1f";
/// An API key, of tier `pro`.
pub const API_KEY: &str = "canary-api-key-91c7";
pub const REDIS_PASSWORD: &str = "canary-redis-password-77aa";
pub const REDIS_USER: &str = "canary-redis-user-03be";
/// The prefixes of all secrets, here and in the scenarios.
const CANARIES: [&[u8]; 2] = [b"canary-", b"c4nary-"];

/// Every scenario ends with the search, unless it has failed.
impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.search_for_secrets();
        }
    }
}

impl World {
    /// Panics if a secret is in a log line, a stat's name, shared data, a response, or a command to Redis other than
    /// `AUTH`.
    fn search_for_secrets(&self) {
        let search = |place: &str, bytes: &[u8]| {
            let holds = |canary: &&[u8]| bytes.windows(canary.len()).any(|window| window == *canary);
            let found = CANARIES.iter().any(holds);
            assert!(!found, "a secret in {place}: {}", String::from_utf8_lossy(bytes));
        };
        for process in &self.processes {
            for (_, line) in process.log.borrow().iter() {
                search("the log", line.as_bytes());
            }
            for name in process.stat_names() {
                search("the name of a stat", name.as_bytes());
            }
            for (key, value) in process.shared_records() {
                search("a key of shared data", &key);
                search("shared data", &value);
            }
        }
        for response in self.exchanges.iter().filter_map(|exchange| exchange.response.as_ref()) {
            search("a body", &response.body);
            for (name, value) in &response.headers {
                search("a header", name.as_bytes());
                search("a header", value);
            }
        }
        for command in harness::fake_redis::parse_commands(complete_commands(&self.redis.received)) {
            if command.first().is_none_or(|name| name != b"AUTH") {
                for word in command {
                    search("a command to Redis", &word);
                }
            }
        }
    }
}

/// The bytes up to the end of the last complete command.
fn complete_commands(bytes: &[u8]) -> &[u8] {
    let mut length = 0;
    while let Some((_, more)) =
        harness::fake_redis::parse_command(&bytes[length..]).filter(|(_, more)| *more > 0)
    {
        length += more;
        if length == bytes.len() {
            break;
        }
    }
    &bytes[..length]
}
