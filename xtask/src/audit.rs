//! `cargo xtask audit`: checks the dependency tree with `cargo deny` and the rules in `deny.toml`.
//!
//! Licences, bans and sources are checked offline. Advisories are in a git repository on GitHub; if it cannot be
//! reached they are not checked, and a message says so.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{output_of, run};
use crate::tools::on_path;
use crate::{step, workspace};

/// The version that is installed if there is none.
const CARGO_DENY: &str = "0.20.2";

/// RustSec's advisory database; cargo-deny's default.
const ADVISORIES: &str = "https://github.com/rustsec/advisory-db";

pub(crate) fn run_checks() -> Result<()> {
    let cargo_deny = cargo_deny()?;
    let check = |what: &[&str]| {
        let mut command = Command::new(&cargo_deny);
        command.current_dir(workspace::root());
        run(command.args(["--workspace", "--locked", "check"]).args(what))
    };
    step("bans, licences, sources");
    check(&["bans", "licenses", "sources"])?;
    if output_of(Command::new("git").args(["ls-remote", ADVISORIES, "HEAD"])).is_ok() {
        step("advisories and yanked versions");
        return check(&["advisories"]);
    }
    step(format!(
        "advisories were NOT checked: {ADVISORIES} cannot be reached; \
         `cargo xtask audit` on a machine that has git and can reach GitHub checks them"
    ));
    Ok(())
}

/// `cargo-deny`: the one on PATH, else built under target/tools.
fn cargo_deny() -> Result<PathBuf> {
    if let Some(binary) = on_path("cargo-deny") {
        step(format!("cargo-deny from PATH: {}", workspace::shown(&binary)));
        return Ok(binary);
    }
    let root = workspace::target().join("tools/cargo-deny");
    let binary = root.join("bin/cargo-deny");
    let is_wanted = |printed: String| printed.trim_end().ends_with(&format!(" {CARGO_DENY}"));
    if output_of(Command::new(&binary).arg("--version")).is_ok_and(is_wanted) {
        return Ok(binary);
    }
    step(format!("building cargo-deny {CARGO_DENY}, once; this takes some minutes"));
    let mut install = workspace::cargo();
    install.args(["install", "--locked", "--version", &format!("={CARGO_DENY}"), "--root"]).arg(&root);
    run(install.arg("cargo-deny")).context("no `cargo-deny` on PATH, and it could not be built")?;
    Ok(binary)
}
