//! Paths of the workspace, and the cargo that runs this program.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// Entries of the repository's root that are not part of the sources.
const NOT_SOURCES: [&str; 2] = ["target", ".git"];

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    // The manifest's directory is `<root>/xtask`, so it has a parent.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The folder for all generated files.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// The path relative to the repository's root.
pub(crate) fn shown(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(root()).unwrap_or(path).display()
}

/// The `cargo` that runs this program, in the root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    forget_our_package(&mut command);
    command
}

/// Removes the variables that `cargo run` has set for this package. Build scripts that depend on them would otherwise
/// run again on every change between `cargo xtask` and plain `cargo`.
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

/// Copies the sources into a folder, over an older copy if there is one.
pub(crate) fn copy_sources(to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(root())? {
        let entry = entry?;
        if NOT_SOURCES.iter().all(|name| entry.file_name() != *name) {
            copy_changed(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Copies a file or a folder, except for files that are unchanged: cargo uses their age to decide what to build.
fn copy_changed(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_changed(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == content) {
        return Ok(());
    }
    // With its permissions: some files are programs.
    fs::copy(from, to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(())
}
