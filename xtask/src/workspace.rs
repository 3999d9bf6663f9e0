//! Paths of the workspace, and the cargo that runs this program.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// Entries of the repository's root that are not part of the sources.
const NOT_SOURCES: [&str; 2] = ["target", ".git"];

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
    let is_ours = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_ours)) {
        command.env_remove(name);
    }
}

/// Writes a file, and creates its folder if there is none.
pub(crate) fn write(file: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(file, content).with_context(|| format!("cannot write {}", file.display()))
}

/// Makes a folder a copy of the sources. An older copy is changed where it differs: cargo uses the age of files to decide
/// what to build.
pub(crate) fn copy_sources(to: &Path) -> Result<()> {
    copy_changed(root(), to, &NOT_SOURCES)
}

fn copy_changed(from: &Path, to: &Path, except: &[&str]) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(to)? {
        let (old, source) = entry.map(|entry| (entry.path(), from.join(entry.file_name())))?;
        if old.is_dir() && !source.is_dir() {
            fs::remove_dir_all(old)?;
        } else if old.is_file() && !source.is_file() {
            fs::remove_file(old)?;
        }
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, copy) = (entry.path(), to.join(entry.file_name()));
        if except.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if source.is_dir() {
            copy_changed(&source, &copy, &[])?;
        } else if !fs::read(&copy).is_ok_and(|old| fs::read(&source).is_ok_and(|new| old == new)) {
            // With its permissions: some files are programs.
            fs::copy(&source, &copy).with_context(|| format!("cannot copy {}", source.display()))?;
        }
    }
    Ok(())
}
