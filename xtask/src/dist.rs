//! `cargo xtask dist`: what a release consists of. The same source gives the same bytes.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::filter::{self, Toolchain};
use crate::{step, workspace};

/// The largest filter we ship.
const SIZE_LIMIT_KIB: usize = 400;

pub(crate) fn run() -> Result<()> {
    let wasm = fs::read(filter::build(Toolchain::find()?)?)?;
    let size_kib = wasm.len().div_ceil(1024);
    ensure!(
        size_kib <= SIZE_LIMIT_KIB,
        "the filter is {size_kib} KiB; more than {SIZE_LIMIT_KIB} KiB is not for release"
    );

    let directory = workspace::target().join("dist");
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(&directory)?;

    let name = "dynamic_rate_limiter.wasm";
    let checksum = format!("{}  {name}\n", sha256(&wasm));
    fs::write(directory.join(name), &wasm)?;
    fs::write(directory.join(format!("{name}.sha256")), &checksum)?;
    write_image(&directory.join("oci"), &wasm)?;

    step(format!("{}:", workspace::shown(&directory)));
    println!("{name}  {} bytes ({size_kib} KiB of at most {SIZE_LIMIT_KIB})", wasm.len());
    println!("{name}.sha256  {checksum}", checksum = sha256(&wasm));
    println!("oci/  an OCI image layout, for `crane push`, `skopeo copy oci:…` and the like");
    Ok(())
}

/// Writes an OCI image layout: one layer with `plugin.wasm` at its root, which is where Istio and
/// Envoy Gateway look in a plain image.
fn write_image(directory: &Path, wasm: &[u8]) -> Result<()> {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let blob = |media_type: &str, content: &[u8]| -> Result<Value> {
        let digest = sha256(content);
        fs::write(blobs.join(&digest), content)?;
        Ok(json!({
            "mediaType": media_type,
            "digest": format!("sha256:{digest}"),
            "size": content.len(),
        }))
    };

    let tar = tar_of("plugin.wasm", wasm)?;
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    std::io::Write::write_all(&mut gzip, &tar)?;
    let layer = blob("application/vnd.oci.image.layer.v1.tar+gzip", &gzip.finish()?)?;

    let config = json!({
        "architecture": "wasm",
        "os": "wasip1",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&tar))]},
    });
    let config = blob("application/vnd.oci.image.config.v1+json", &serde_json::to_vec(&config)?)?;

    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config,
        "layers": [layer],
        "annotations": {
            "org.opencontainers.image.title": "dynamic-rate-limiter",
            "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
        },
    });
    let manifest = blob(media_type, &serde_json::to_vec(&manifest)?)?;

    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(directory.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

/// A tar archive of one file that belongs to nobody and has no date.
fn tar_of(name: &str, content: &[u8]) -> Result<Vec<u8>> {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, name, content)?;
    Ok(archive.into_inner()?)
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}
