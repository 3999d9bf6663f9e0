//! What an Envoy can do by its version, and how a shipped bootstrap has to be for it.

/// The field that Envoys before 1.39 refuse, as the shipped bootstraps have it.
const WATCH_MODIFY: &str = ", watch_modify: true";

/// The version in what `envoy --version` prints: `<path>  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL`.
pub fn version(printed: &str) -> Option<&str> {
    printed.split("version: ").nth(1)?.split('/').nth(1)
}

/// Whether this Envoy can watch for files that are written in place, and not for those moved alone.
///
/// `None` for what is no version.
pub fn follows_writing_in_place(version: &str) -> Option<bool> {
    let mut numbers = version.split('.').map(str::parse::<u32>);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((major, minor) >= (1, 39))
}

/// A shipped bootstrap as an Envoy takes it that follows moved files alone.
pub fn for_moved_files_alone(bootstrap: &str) -> String {
    bootstrap.replace(WATCH_MODIFY, "")
}
