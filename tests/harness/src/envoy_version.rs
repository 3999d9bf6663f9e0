//! Differences between versions of Envoy that concern the shipped bootstraps.

/// A field of the shipped bootstraps that Envoy rejects before 1.39.
const WATCH_MODIFY: &str = ", watch_modify: true";

/// The version in the output of `envoy --version`: `<path>  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL`.
pub fn version(printed: &str) -> Option<&str> {
    printed.split("version: ").nth(1)?.split('/').nth(1)
}

/// Whether this Envoy can watch files that are written in place, not only moved files. `None` for an invalid version.
pub fn follows_writing_in_place(version: &str) -> Option<bool> {
    let mut numbers = version.split('.').map(str::parse::<u32>);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((major, minor) >= (1, 39))
}

/// A shipped bootstrap for an Envoy that detects only moved files.
pub fn for_moved_files_alone(bootstrap: &str) -> String {
    bootstrap.replace(WATCH_MODIFY, "")
}
