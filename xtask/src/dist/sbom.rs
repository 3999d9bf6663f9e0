//! The SBOM of the filter, a CycloneDX document.
//!
//! It lists the crates that cargo resolves for the filter and its target, with their features there: no crates of tools
//! or tests, and no macros or build scripts, which run at build time and are not in the module. It has no date and no
//! serial number, so that it is reproducible.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{description, sha256};
use crate::filter::{LIMITER, TARGET, Toolchain};
use crate::process::output_of;
use crate::workspace;

/// The SBOM of the filter that was built from the sources at `root`.
pub(super) fn document(toolchain: Toolchain, root: &Path, wasm: &[u8]) -> Result<Value> {
    let mut tree = workspace::cargo();
    tree.args(["tree", "--locked", "--package", LIMITER, "--target", TARGET]);
    tree.args("--edges normal,no-proc-macro --prefix depth --no-dedupe --format |{p}|{l}|{r}|{f}".split(' '));
    let tree = output_of(tree.current_dir(root))?;
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let document = document_of(&tree, &lock, wasm, runtime(toolchain)?)?;
    check(&document, wasm)?;
    Ok(document)
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Crate<'a> {
    name: &'a str,
    version: &'a str,
    license: &'a str,
    repository: &'a str,
    features: &'a str,
}

impl<'a> Crate<'a> {
    /// Reads `1|itoa v1.0.19|MIT OR Apache-2.0|https://…|std`; returns the depth and the crate.
    fn read(line: &'a str) -> Option<(usize, Self)> {
        let fields: Vec<&str> = line.split('|').collect();
        let [depth, package, license, repository, features] = fields[..] else { return None };
        let (name, version) = package.split_once(" v")?;
        let version = version.split(' ').next()?;
        Some((depth.parse().ok()?, Self { name, version, license, repository, features }))
    }

    fn purl(self) -> String {
        purl(self.name, self.version)
    }

    fn component(self, sha256: &str) -> Value {
        let mut component = json!({
            "type": "library",
            "bom-ref": self.purl(),
            "name": self.name,
            "version": self.version,
            "scope": "required",
            "hashes": [{"alg": "SHA-256", "content": sha256}],
            // Old crates write `/` where an SPDX expression has `OR`.
            "licenses": [{"expression": self.license.replace('/', " OR ")}],
            "purl": self.purl(),
        });
        if !self.repository.is_empty() {
            component["externalReferences"] = json!([{"type": "vcs", "url": self.repository}]);
        }
        if !self.features.is_empty() {
            component["properties"] = json!([{"name": "cargo:features", "value": self.features}]);
        }
        component
    }
}

fn purl(name: &str, version: &str) -> String {
    format!("pkg:cargo/{name}@{version}")
}

/// Parses the output of `cargo tree` with the depth before each crate; returns each crate with its dependencies, and the
/// first one.
fn crates(tree: &str) -> Result<(BTreeMap<Crate<'_>, BTreeSet<String>>, Crate<'_>)> {
    let mut path: Vec<Crate> = Vec::new();
    let mut dependencies = BTreeMap::<Crate, BTreeSet<String>>::new();
    for line in tree.lines().filter(|line| !line.is_empty()) {
        let (depth, package) = Crate::read(line)
            .with_context(|| format!("`cargo tree` printed `{line}`, which is not a crate"))?;
        ensure!(depth <= path.len(), "`cargo tree` printed `{line}` below nothing");
        path.truncate(depth);
        if let Some(parent) = path.last() {
            dependencies.entry(*parent).or_default().insert(package.purl());
        }
        dependencies.entry(package).or_default();
        path.push(package);
    }
    Ok((dependencies, *path.first().context("`cargo tree` printed nothing")?))
}

/// The checksums in `Cargo.lock`.
fn checksums(lock: &str) -> Result<BTreeMap<String, String>> {
    let lock: toml::Table = toml::from_str(lock).context("Cargo.lock")?;
    let packages = lock.get("package").and_then(toml::Value::as_array).into_iter().flatten();
    let checksum = |package: &toml::Value| {
        let text = |field: &str| package.get(field)?.as_str();
        Some((purl(text("name")?, text("version")?), text("checksum")?.to_owned()))
    };
    Ok(packages.filter_map(checksum).collect())
}

fn document_of(tree: &str, lock: &str, wasm: &[u8], runtime: Vec<Value>) -> Result<Value> {
    let (crates, filter) = crates(tree)?;
    let checksums = checksums(lock)?;
    let mut components = Vec::new();
    for package in crates.keys().filter(|package| **package != filter) {
        let checksum = checksums.get(&package.purl());
        let checksum = checksum
            .with_context(|| format!("no checksum of {} {} in Cargo.lock", package.name, package.version))?;
        components.push(package.component(checksum));
    }
    let edge = |(package, needs): (&Crate, &BTreeSet<String>)| {
        let runtime = runtime.iter().filter(|_| *package == filter);
        let needs = needs.iter().map(|purl| json!(purl));
        let needs: Vec<_> = needs.chain(runtime.map(|library| library["bom-ref"].clone())).collect();
        json!({"ref": package.purl(), "dependsOn": needs})
    };
    let dependencies: Vec<_> = crates.iter().map(edge).collect();
    components.extend(runtime);
    let mut filter = filter.component(&sha256(wasm));
    filter["description"] = description()?.into();
    Ok(json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": filter},
        "components": components,
        "dependencies": dependencies,
    }))
}

fn runtime(toolchain: Toolchain) -> Result<Vec<Value>> {
    let mut runtime = vec![json!({
        "type": "library",
        "bom-ref": "std",
        "name": "std",
        "version": toolchain.rustc_version()?,
        "description": format!("Rust's standard library for {TARGET}"),
        "licenses": [{"expression": "MIT OR Apache-2.0"}],
    })];
    if toolchain == Toolchain::Debian {
        let query = ["--show", "--showformat=${Version}", "wasi-libc"];
        runtime.push(json!({
            "type": "library",
            "bom-ref": "wasi-libc",
            "name": "wasi-libc",
            "version": output_of(Command::new("dpkg-query").args(query))?,
            "description": "The C library under the standard library, from Debian",
        }));
    }
    Ok(runtime)
}

/// Panic messages in the module contain file names, and with them crates: each of these must be listed.
fn check(document: &Value, wasm: &[u8]) -> Result<()> {
    let components = document["components"].as_array().into_iter().flatten();
    let listed: BTreeSet<String> = components
        .filter_map(|one| Some(format!("{}-{}", one["name"].as_str()?, one["version"].as_str()?)))
        .collect();
    let named = crates_named_in(wasm);
    ensure!(!named.is_empty(), "the module names none of its crates");
    let missing: Vec<_> = named.difference(&listed).cloned().collect();
    ensure!(missing.is_empty(), "in the module, but not in the SBOM: {}", missing.join(", "));
    Ok(())
}

/// `NAME-VERSION` of every `crates/NAME-VERSION/src/…` in the module.
fn crates_named_in(wasm: &[u8]) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(wasm);
    let folders = text.split("crates/").skip(1).filter_map(|rest| rest.split_once("/src/"));
    let is_name = |name: &&str| {
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte))
            && name.contains('-')
            && name.len() < 100
    };
    folders.map(|(folder, _)| folder).filter(is_name).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "0|dynamic-rate-limiter v0.1.0 (/somewhere)|MIT||\n\
        1|log v0.4.1|MIT/Apache-2.0|https://example.com/log|\n\
        1|serde v1.2.3|MIT||std\n\
        2|serde_core v1.2.3|MIT||result,std\n\
        1|wasm v0.1.0|Zlib||\n\
        2|log v0.4.1|MIT/Apache-2.0|https://example.com/log|\n";

    fn document(locked: &[&str]) -> Result<Value> {
        let package = |package: &&str| {
            let (name, version) = package.split_once(' ').expect("a version");
            let checksum = "ab".repeat(32);
            format!("[[package]]\nname = {name:?}\nversion = {version:?}\nchecksum = {checksum:?}\n")
        };
        let lock: String = locked.iter().map(package).collect();
        document_of(TREE, &lock, b"wasm", vec![json!({"bom-ref": "std"})])
    }

    const LOCKED: [&str; 5] = ["log 0.4.1", "serde 1.2.3", "serde_core 1.2.3", "wasm 0.1.0", "clap 4.0.0"];

    #[test]
    fn each_crate_of_the_tree_is_listed_once_with_its_dependencies() {
        let document = document(&LOCKED).expect("a document");
        let [log, serde, core, wasm] = ["log@0.4.1", "serde@1.2.3", "serde_core@1.2.3", "wasm@0.1.0"]
            .map(|name| format!("pkg:cargo/{name}"));
        let components = document["components"].as_array().expect("a list");
        let references: Vec<_> = components.iter().map(|component| &component["bom-ref"]).collect();
        assert_eq!(references, [&log, &serde, &core, &wasm, "std"]);
        let filter = "pkg:cargo/dynamic-rate-limiter@0.1.0";
        let dependencies = json!([
            {"ref": filter, "dependsOn": [log, serde, wasm, "std"]},
            {"ref": log, "dependsOn": []},
            {"ref": serde, "dependsOn": [core]},
            {"ref": core, "dependsOn": []},
            {"ref": wasm, "dependsOn": [log]},
        ]);
        assert_eq!(document["dependencies"], dependencies);
        assert_eq!(components[0]["licenses"], json!([{"expression": "MIT OR Apache-2.0"}]));
        let filter = &document["metadata"]["component"];
        assert_eq!(filter["hashes"][0]["content"], sha256(b"wasm"));
        assert!(!document.to_string().contains("somewhere"), "no path of this machine");
    }

    #[test]
    fn a_crate_without_a_checksum_is_an_error_with_its_name() {
        let error = document(&LOCKED[..1]).expect_err("no checksum").to_string();
        assert_eq!(error, "no checksum of serde 1.2.3 in Cargo.lock");
    }

    #[test]
    fn a_crate_in_the_module_must_be_listed() {
        let document = document(&LOCKED).expect("a document");
        check(&document, b"\0crates/log-0.4.1/src/lib.rs\0crates/serde-1.2.3/src/a.rs").expect("all listed");
        let error = check(&document, b"\0crates/log-0.4.1/src/lib.rs\0crates/rogue-2.0.0/src/lib.rs");
        assert!(error.expect_err("not listed").to_string().ends_with("rogue-2.0.0"));
        check(&document, b"nothing").expect_err("a module without crate names cannot be checked");
    }
}
