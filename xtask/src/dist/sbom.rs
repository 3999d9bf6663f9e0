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
use serde::Deserialize;
use serde_json::{Value, json};

use super::{description, sha256};
use crate::filter::{LIMITER, TARGET, Toolchain};
use crate::process::output_of;
use crate::workspace;

/// The SBOM of the filter that was built from the sources at `root`.
pub(super) fn document(toolchain: Toolchain, root: &Path, wasm: &[u8]) -> Result<Value> {
    let tree = output_of(workspace::cargo().current_dir(root).args([
        "tree",
        "--locked",
        "--package",
        LIMITER,
        "--target",
        TARGET,
        "--edges",
        "normal,no-proc-macro",
        "--prefix",
        "depth",
        "--no-dedupe",
        "--format",
        "|{p}|{l}|{r}|{f}",
    ]))?;
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let crates = Crates::read(&tree, &lock)?;
    let mut document = crates.document(wasm)?;
    add_runtime(&mut document, toolchain)?;
    check(&document, wasm)?;
    Ok(document)
}

/// A crate in the output of `cargo tree`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Crate {
    name: String,
    version: String,
    license: String,
    repository: String,
    features: String,
}

impl Crate {
    /// Reads `|itoa v1.0.19|MIT OR Apache-2.0|https://…|std`.
    fn read(line: &str) -> Result<Self> {
        let fields: Vec<&str> = line.split('|').collect();
        let ["", package, license, repository, features] = fields[..] else {
            anyhow::bail!("`cargo tree` printed `{line}`, which is not a crate");
        };
        let mut words = package.split(' ');
        let name = words.next().unwrap_or_default();
        let version = words.next().and_then(|version| version.strip_prefix('v'));
        Ok(Self {
            name: name.to_owned(),
            version: version.with_context(|| format!("no version in `{package}`"))?.to_owned(),
            license: license.to_owned(),
            repository: repository.to_owned(),
            features: features.to_owned(),
        })
    }

    /// The package URL of the crate.
    fn purl(&self) -> String {
        format!("pkg:cargo/{}@{}", self.name, self.version)
    }

    fn component(&self, sha256: &str) -> Value {
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

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// The filter and its crates.
#[derive(Debug)]
struct Crates {
    filter: Crate,
    /// Each crate with its dependencies.
    dependencies: BTreeMap<Crate, BTreeSet<String>>,
    checksums: BTreeMap<(String, String), String>,
}

impl Crates {
    /// Parses the output of `cargo tree` with the depth before each crate, and `Cargo.lock`.
    fn read(tree: &str, lock: &str) -> Result<Self> {
        let mut path: Vec<Crate> = Vec::new();
        let mut dependencies = BTreeMap::<Crate, BTreeSet<String>>::new();
        for line in tree.lines().filter(|line| !line.is_empty()) {
            let bar = line.find('|').with_context(|| format!("`cargo tree` printed `{line}`"))?;
            let (depth, package) = line.split_at(bar);
            let depth: usize = depth.parse().with_context(|| format!("no depth in `{line}`"))?;
            ensure!(depth <= path.len(), "`cargo tree` printed `{line}` below nothing");
            path.truncate(depth);
            let package = Crate::read(package)?;
            if let Some(parent) = path.last() {
                dependencies.entry(parent.clone()).or_default().insert(package.purl());
            }
            dependencies.entry(package.clone()).or_default();
            path.push(package);
        }
        let filter = path.first().context("`cargo tree` printed nothing")?.clone();
        let locked = toml::from_str::<Lock>(lock).context("Cargo.lock")?.package;
        let checksum = |locked: Locked| Some(((locked.name, locked.version), locked.checksum?));
        Ok(Self { filter, dependencies, checksums: locked.into_iter().filter_map(checksum).collect() })
    }

    fn document(&self, wasm: &[u8]) -> Result<Value> {
        let mut components = Vec::new();
        for package in self.dependencies.keys().filter(|package| **package != self.filter) {
            let Crate { name, version, .. } = package;
            let checksum = self.checksums.get(&(name.clone(), version.clone()));
            let checksum =
                checksum.with_context(|| format!("no checksum of {name} {version} in Cargo.lock"))?;
            components.push(package.component(checksum));
        }
        let mut filter = self.filter.component(&sha256(wasm));
        filter["description"] = description()?.into();
        let edge = |(package, needs): (&Crate, &BTreeSet<String>)| json!({"ref": package.purl(), "dependsOn": needs});
        Ok(json!({
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {"component": filter},
            "components": components,
            "dependencies": self.dependencies.iter().map(edge).collect::<Vec<_>>(),
        }))
    }
}

/// Adds the libraries of the compiler: the standard library, and the C library that it uses.
fn add_runtime(document: &mut Value, toolchain: Toolchain) -> Result<()> {
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
        let version = output_of(Command::new("dpkg-query").args(query))?;
        runtime.push(json!({
            "type": "library",
            "bom-ref": "wasi-libc",
            "name": "wasi-libc",
            "version": version,
            "description": "The C library under the standard library, from Debian",
        }));
    }
    let references: Vec<Value> = runtime.iter().map(|component| component["bom-ref"].clone()).collect();
    let list = |value: &mut Value, added: &[Value]| {
        if let Some(list) = value.as_array_mut() {
            list.extend_from_slice(added);
        }
    };
    list(&mut document["components"], &runtime);
    let filter = document["metadata"]["component"]["bom-ref"].clone();
    for edge in document["dependencies"].as_array_mut().into_iter().flatten() {
        if edge["ref"] == filter {
            list(&mut edge["dependsOn"], &references);
        }
    }
    Ok(())
}

/// Panic messages in the module contain file names, and with them crates: each of these must be listed.
fn check(document: &Value, wasm: &[u8]) -> Result<()> {
    let listed = document["components"].as_array().into_iter().flatten();
    let listed: BTreeSet<String> = listed
        .filter_map(|component| {
            Some(format!("{}-{}", component["name"].as_str()?, component["version"].as_str()?))
        })
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

    fn lock(names: &[(&str, &str)]) -> String {
        let package = |(name, version): &(&str, &str)| {
            format!(
                "[[package]]\nname = \"{name}\"\nversion = \"{version}\"\nchecksum = \"{}\"\n",
                "ab".repeat(32)
            )
        };
        names.iter().map(package).collect()
    }

    fn crates() -> Crates {
        let lock = lock(&[
            ("log", "0.4.1"),
            ("serde", "1.2.3"),
            ("serde_core", "1.2.3"),
            ("wasm", "0.1.0"),
            ("clap", "4.0.0"),
        ]);
        Crates::read(TREE, &lock).expect("a tree")
    }

    #[test]
    fn each_crate_of_the_tree_is_listed_once_with_its_dependencies() {
        let document = crates().document(b"wasm").expect("a document");
        let components = document["components"].as_array().expect("a list");
        let names: Vec<_> =
            components.iter().map(|component| component["purl"].as_str().expect("a purl")).collect();
        assert_eq!(
            names,
            [
                "pkg:cargo/log@0.4.1",
                "pkg:cargo/serde@1.2.3",
                "pkg:cargo/serde_core@1.2.3",
                "pkg:cargo/wasm@0.1.0"
            ]
        );
        let needs = |reference: &str| {
            let edges = document["dependencies"].as_array().expect("a list");
            edges.iter().find(|edge| edge["ref"] == reference).expect("an entry")["dependsOn"].clone()
        };
        assert_eq!(
            needs("pkg:cargo/dynamic-rate-limiter@0.1.0"),
            json!(["pkg:cargo/log@0.4.1", "pkg:cargo/serde@1.2.3", "pkg:cargo/wasm@0.1.0"])
        );
        assert_eq!(needs("pkg:cargo/wasm@0.1.0"), json!(["pkg:cargo/log@0.4.1"]));
        assert_eq!(components[0]["licenses"], json!([{"expression": "MIT OR Apache-2.0"}]));
        let filter = &document["metadata"]["component"];
        assert_eq!(filter["hashes"][0]["content"], sha256(b"wasm"));
        assert!(!document.to_string().contains("somewhere"), "no path of this machine");
    }

    #[test]
    fn a_crate_without_a_checksum_is_an_error_with_its_name() {
        let crates = Crates::read(TREE, &lock(&[("log", "0.4.1")])).expect("a tree");
        let error = crates.document(b"wasm").expect_err("no checksum").to_string();
        assert_eq!(error, "no checksum of serde 1.2.3 in Cargo.lock");
    }

    #[test]
    fn a_crate_in_the_module_must_be_listed() {
        let document = crates().document(b"wasm").expect("a document");
        check(&document, b"\0crates/log-0.4.1/src/lib.rs\0crates/serde-1.2.3/src/a.rs").expect("all listed");
        let error = check(&document, b"\0crates/log-0.4.1/src/lib.rs\0crates/rogue-2.0.0/src/lib.rs");
        assert!(error.expect_err("not listed").to_string().ends_with("rogue-2.0.0"));
        check(&document, b"nothing").expect_err("a module without crate names cannot be checked");
    }
}
