//! Where things are, and the cargo that runs us.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    // The manifest's directory is `<root>/xtask`, so it has a parent.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where everything goes that is made rather than written.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// The path as a person at the repository's root would write it.
pub(crate) fn shown(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(root()).unwrap_or(path).display()
}

/// `cargo`, the one that started us, at the root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    forget_our_package(&mut command);
    command
}

/// Takes out what `cargo run` told us about our own package. Build scripts that watch these
/// variables would otherwise run again on every change between `cargo xtask` and plain `cargo`.
pub(crate) fn forget_our_package(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let ours = name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"));
        if ours {
            command.env_remove(name);
        }
    }
}
