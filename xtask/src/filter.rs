//! Building the filter for wasm32-wasip1.
//!
//! Two toolchains are supported: rustup's with the target installed, and Debian's, which has no compiled standard
//! library for the target, but its source, and builds it once. Each has its own target directory, so that changing
//! between them rebuilds nothing.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{output_of, run};
use crate::{exports, step, tools, workspace};

pub(crate) const TARGET: &str = "wasm32-wasip1";

pub(crate) const LIMITER: &str = "dynamic-rate-limiter";

const DEBIAN_PACKAGES: &[&str] =
    &["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy", "lld-19", "wasi-libc"];

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// The toolchain that compiles the filter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Toolchain {
    /// The toolchain that compiled this program, with the target added by rustup.
    Rustup,
    Debian,
}

impl Toolchain {
    /// The toolchain in `XTASK_WASM_TOOLCHAIN`, else rustup's if it has the target, else Debian's, which is installed
    /// if necessary.
    pub(crate) fn find() -> Result<Self> {
        let toolchain = match env::var("XTASK_WASM_TOOLCHAIN").as_deref() {
            Ok("rustup") => Self::Rustup,
            Ok("debian") => Self::Debian,
            Ok(other) => bail!("XTASK_WASM_TOOLCHAIN is `{other}`; it can be `rustup` or `debian`"),
            Err(_) if has_target() => Self::Rustup,
            Err(_) => Self::Debian,
        };
        match toolchain {
            Self::Rustup if !has_target() => {
                bail!("this toolchain has no {TARGET}; run\n  rustup target add {TARGET}")
            }
            Self::Rustup => step(format!("wasm toolchain: the one in use, with {TARGET}")),
            Self::Debian => {
                step("wasm toolchain: Debian's");
                let other = "either run\n  rustup target add";
                install_debian_compiler().with_context(|| {
                    format!("no toolchain for {TARGET}: {other} {TARGET}\nor install Debian's")
                })?;
            }
        }
        Ok(toolchain)
    }

    /// `cargo build` of the sources at `root` for the target.
    fn cargo_build(self, root: &Path) -> Command {
        let mut command = match self {
            Self::Rustup => workspace::cargo(),
            Self::Debian => Command::new("/usr/bin/cargo"),
        };
        // If `rlib` is among the crate types, cargo silently disables link-time optimisation for all of them.
        // `rustc --crate-type` selects the one that is needed here.
        command.args(["rustc", "--lib", "--crate-type", "cdylib", "--release"]);
        self.set_up(command, root)
    }

    /// Clippy for the target, for code that is compiled only there.
    pub(crate) fn clippy(self) -> Command {
        let mut command = match self {
            Self::Rustup => workspace::cargo(),
            // Not `/usr/bin/cargo clippy`, which would prefer a rustup's `cargo-clippy` on PATH.
            Self::Debian => Command::new("/usr/bin/cargo-clippy"),
        };
        command.arg("clippy");
        self.set_up(command, workspace::root())
    }

    /// The compiler's version: `1.96.0`.
    pub(crate) fn rustc_version(self) -> Result<String> {
        let printed = output_of(self.rustc().arg("--version"))?;
        let version = printed.split(' ').nth(1);
        Ok(version.with_context(|| format!("`{printed}` is no version of rustc"))?.to_owned())
    }

    fn rustc(self) -> Command {
        let mut command = Command::new(match self {
            Self::Rustup => env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()),
            Self::Debian => DEBIAN_RUSTC.into(),
        });
        command.current_dir(workspace::root());
        command
    }

    fn target_dir(self) -> &'static str {
        match self {
            Self::Rustup => "target/wasm-rustup",
            Self::Debian => "target/wasm-debian",
        }
    }

    fn set_up(self, mut command: Command, root: &Path) -> Command {
        let mut rustflags = without_paths(root);
        command.current_dir(root).args(["--target", TARGET, "--target-dir", self.target_dir()]);
        if self == Self::Debian {
            rustflags.extend([
                "-Clink-self-contained=no".into(),
                "-Lnative=/usr/lib/wasm32-wasi".into(),
                "-Ctarget-feature=-crt-static".into(),
            ]);
            workspace::forget_our_package(&mut command);
            command
                .arg("-Zbuild-std=std,panic_abort")
                // `-Zbuild-std` needs a nightly compiler or this variable.
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO", "/usr/bin/cargo")
                .env("RUSTC", DEBIAN_RUSTC)
                .env("CARGO_TARGET_WASM32_WASIP1_LINKER", "wasm-ld-19")
                // Set by rustup and cargo for the other toolchain.
                .env_remove("RUSTUP_TOOLCHAIN")
                .env_remove("LD_LIBRARY_PATH");
        }
        // This variable has precedence, so flags for this machine's own processor are not used.
        command.env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\x1f"));
        command
    }
}

/// Builds the limiter into `target/dynamic_rate_limiter.wasm`, the path in all configurations.
pub(crate) fn build(toolchain: Toolchain) -> Result<PathBuf> {
    build_package(toolchain, LIMITER)
}

/// Builds one package into `target`, without the exports that are not needed.
pub(crate) fn build_package(toolchain: Toolchain, package: &str) -> Result<PathBuf> {
    put(package, &build_at(toolchain, workspace::root(), package)?)
}

/// Builds the probe filter into `target/probe_filter.wasm`, with all its exports.
pub(crate) fn build_probe(toolchain: Toolchain) -> Result<PathBuf> {
    put("probe-filter", &fs::read(compile(toolchain, workspace::root(), "probe-filter")?)?)
}

/// Writes the limiter with a trap at every request's body to `target/trapping_filter.wasm`.
pub(crate) fn make_trapping(limiter: &Path) -> Result<PathBuf> {
    put("trapping-filter", &exports::trapping(&fs::read(limiter)?)?)
}

/// Builds one package of the sources at `root`, and removes the exports that are not needed.
pub(crate) fn build_at(toolchain: Toolchain, root: &Path, package: &str) -> Result<Vec<u8>> {
    let built = compile(toolchain, root, package)?;
    exports::strip(&fs::read(&built)?)
        .with_context(|| format!("{} is not the expected filter", built.display()))
}

/// Builds one package of the sources at `root`; returns the path of the compiled module.
fn compile(toolchain: Toolchain, root: &Path, package: &str) -> Result<PathBuf> {
    step(format!("building {package} (the first time takes a minute or two)"));
    run(toolchain.cargo_build(root).args(["--package", package]))?;
    Ok(module_in(&root.join(toolchain.target_dir()).join(TARGET).join("release"), package))
}

fn module_in(folder: &Path, package: &str) -> PathBuf {
    folder.join(package.replace('-', "_")).with_extension("wasm")
}

fn put(package: &str, wasm: &[u8]) -> Result<PathBuf> {
    let artifact = module_in(&workspace::target(), package);
    replace(&artifact, wasm)?;
    step(format!("{}: {} KiB", workspace::shown(&artifact), wasm.len().div_ceil(1024)));
    Ok(artifact)
}

/// Replaces a file atomically, because an Envoy may read it. An unchanged file is not written.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let partial = path.with_extension("partial");
    workspace::write(&partial, content)?;
    fs::rename(&partial, path)?;
    Ok(())
}

/// Installs Debian's compiler if it is missing or too old for this workspace.
fn install_debian_compiler() -> Result<()> {
    let needed = env!("CARGO_PKG_RUST_VERSION");
    tools::debian_packages(DEBIAN_PACKAGES)?;
    if debian_compiler_is_at_least(needed)? {
        return Ok(());
    }
    tools::install_debian_packages(DEBIAN_PACKAGES)?;
    let is_new = debian_compiler_is_at_least(needed)?;
    ensure!(is_new, "Debian's compiler here is older than Rust {needed}, even with fresh package lists");
    Ok(())
}

/// Compares by major and minor version, as `rust-version` does.
fn debian_compiler_is_at_least(needed: &str) -> Result<bool> {
    Ok(tools::major_and_minor(&Toolchain::Debian.rustc_version()?) >= tools::major_and_minor(needed))
}

/// Whether the compiler that cargo uses has a standard library for the target.
fn has_target() -> bool {
    let mut rustc = Toolchain::Rustup.rustc();
    let libraries = output_of(rustc.args(["--print", "target-libdir", "--target", TARGET]));
    libraries.is_ok_and(|directory| Path::new(directory.trim()).is_dir())
}

/// Flags that remove paths of this machine from panic messages, so that the build is reproducible on every machine.
/// Each folder of the registry's crates has its own flag, because its name depends on the mirror of the registry.
fn without_paths(root: &Path) -> Vec<String> {
    let default = || env::home_dir().unwrap_or_default().join(".cargo");
    let cargo_home = env::var_os("CARGO_HOME").map_or_else(default, PathBuf::from);
    let registries = fs::read_dir(cargo_home.join("registry/src")).into_iter().flatten().flatten();
    let mut registries: Vec<PathBuf> = registries.map(|registry| registry.path()).collect();
    registries.sort();
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let mut flags = vec![remap(&cargo_home, "cargo")];
    flags.extend(registries.iter().map(|registry| remap(registry, "crates")));
    // Last, because the last match applies.
    flags.push(remap(root, "."));
    flags
}
