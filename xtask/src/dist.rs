//! `cargo xtask dist`: the files of a release. They are reproducible, and `--verify` proves it.

mod oci;
mod sbom;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::filter::{self, Toolchain};
use crate::{step, validators, workspace};

const SIZE_LIMIT_KIB: usize = 512;

const NAME: &str = "dynamic_rate_limiter";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Build everything a second time, from scratch and in another directory, and compare every byte
    #[arg(long)]
    pub(crate) verify: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let toolchain = Toolchain::find()?;
    let wasm = fs::read(filter::build(toolchain)?)?;
    let size_kib = wasm.len().div_ceil(1024);
    ensure!(size_kib <= SIZE_LIMIT_KIB, "the filter is {size_kib} KiB; the limit is {SIZE_LIMIT_KIB} KiB");
    let directory = workspace::target().join("dist");
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    let files = pack(toolchain, workspace::root(), &wasm)?;
    for (path, content) in &files {
        workspace::write(&directory.join(path), content)?;
    }
    if options.verify {
        verify(toolchain, &files)?;
    }

    step(format!("{}:", workspace::shown(&directory)));
    println!("{NAME}.wasm  {} bytes ({size_kib} KiB of at most {SIZE_LIMIT_KIB})", wasm.len());
    println!("{NAME}.wasm.sha256  {}", sha256(&wasm));
    println!("{NAME}.cdx.json  a CycloneDX SBOM");
    println!("oci/  an OCI image layout of a plain image: `crane push`, `skopeo copy oci:…` and the like");
    println!("oci-artifact/  the same as a wasm artifact, for registries that take any media type");
    Ok(())
}

/// Checks that the SBOM is valid by CycloneDX's schema, and that the schema rejects an invalid one.
pub(crate) fn check_sbom() -> Result<()> {
    let sbom = workspace::target().join("dist").join(format!("{NAME}.cdx.json"));
    validators::check_sbom(&sbom)?;
    let broken = tempfile::Builder::new().suffix(".json").tempfile()?;
    let text = fs::read_to_string(&sbom)?.replacen("\"purl\"", "\"pearl\"", 1);
    fs::write(broken.path(), text)?;
    ensure!(
        validators::check_sbom(broken.path()).is_err(),
        "the schema accepts an SBOM with an unknown field"
    );
    step("the SBOM is valid CycloneDX");
    Ok(())
}

/// The content of files by their paths.
type Files = BTreeMap<String, Vec<u8>>;

/// All files of a release; the images are read back.
fn pack(toolchain: Toolchain, root: &Path, wasm: &[u8]) -> Result<Files> {
    let sbom = sbom::document(toolchain, root, wasm).context("the SBOM")?;
    let mut files = Files::from([
        (format!("{NAME}.wasm"), wasm.to_vec()),
        (format!("{NAME}.wasm.sha256"), format!("{}  {NAME}.wasm\n", sha256(wasm)).into_bytes()),
        (format!("{NAME}.cdx.json"), format!("{sbom:#}\n").into_bytes()),
    ]);
    for (form, layout) in [("oci", oci::image(wasm)?), ("oci-artifact", oci::artifact(wasm)?)] {
        let loaded = oci::load(layout.clone()).with_context(|| format!("reading {form} back"))?;
        ensure!(loaded == wasm, "{form} contains another module than {NAME}.wasm");
        files.extend(layout.into_iter().map(|(path, content)| (format!("{form}/{path}"), content)));
    }
    Ok(files)
}

/// Builds and packs a copy of the sources in a new directory, and compares the files.
fn verify(toolchain: Toolchain, files: &Files) -> Result<()> {
    let elsewhere = tempfile::Builder::new().prefix("dist-").tempdir()?;
    step(format!("building again, from scratch, in {}", elsewhere.path().display()));
    let sources = elsewhere.path().join("sources");
    workspace::copy_sources(&sources)?;
    let wasm = filter::build_at(toolchain, &sources, filter::LIMITER)?;
    let differing = differences(files, &pack(toolchain, &sources, &wasm)?);
    ensure!(
        differing.is_empty(),
        "not reproducible; a second build in another directory differs in\n  {}",
        differing.join("\n  ")
    );
    step(format!("both builds have the same {} files, byte for byte", files.len()));
    Ok(())
}

/// The files that are missing in one release, or differ.
fn differences(first: &Files, second: &Files) -> Vec<String> {
    let names: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let difference = |name: &String| match (first.get(name), second.get(name)) {
        (Some(one), Some(other)) => (one != other).then(|| {
            let same = one.iter().zip(other).take_while(|(one, other)| one == other).count();
            format!("{} and {} bytes, the same up to byte {same}", one.len(), other.len())
        }),
        (Some(_), None) => Some("not in the second".to_owned()),
        (None, _) => Some("not in the first".to_owned()),
    };
    let named = |name: &String| Some(format!("{name}: {}", difference(name)?));
    names.into_iter().filter_map(named).collect()
}

fn description() -> Result<String> {
    let manifest: toml::Table = toml::from_str(include_str!("../../Cargo.toml"))?;
    let description = manifest["package"].get("description").and_then(toml::Value::as_str);
    Ok(description.context("the filter's Cargo.toml has no description")?.to_owned())
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_between_two_releases_is_named() {
        let files = |files: [(&str, &str); 3]| -> Files {
            files.into_iter().map(|(path, content)| (path.to_owned(), content.into())).collect()
        };
        let first = files([("a", "same"), ("b/c", "one"), ("b/d", "gone")]);
        let second = files([("a", "same"), ("b/c", "ore"), ("e", "new")]);
        assert_eq!(
            differences(&first, &second),
            ["b/c: 3 and 3 bytes, the same up to byte 1", "b/d: not in the second", "e: not in the first"]
        );
        assert_eq!(differences(&first, &first), [] as [&str; 0]);
    }
}
