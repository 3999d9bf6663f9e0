//! The credentials for Redis.

use std::fmt;

/// Sent with `AUTH`.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The user; without one, the password is the default user's.
    pub username: Option<Vec<u8>>,
    /// The password; without one, `AUTH` is not sent.
    pub password: Option<Vec<u8>>,
}

/// Shows nothing of them.
impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Credentials(…)")
    }
}
