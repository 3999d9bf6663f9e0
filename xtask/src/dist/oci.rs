//! The filter as OCI image layouts, in the two formats that Istio and Envoy Gateway read.
//!
//! Both read only the manifest's layers. If the media type of the last layer is a gzipped tar, they read `plugin.wasm`
//! from it; else they require exactly two layers, one of which is the module itself with its own media type. They do
//! not read an index, so each format is an image by itself.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};

use super::{description, sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const TAR_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const WASM_CONFIG: &str = "application/vnd.module.wasm.config.v1+json";
const WASM_LAYER: &str = "application/vnd.module.wasm.content.layer.v1+wasm";

/// The required name of the file in the tar layer.
const PLUGIN: &str = "plugin.wasm";

/// Writes a plain image with one layer, a tar with the module. Every registry and every tool supports it.
pub(super) fn write_image(directory: &Path, wasm: &[u8]) -> Result<()> {
    let layout = Layout::create(directory)?;
    let tar = tar_of(PLUGIN, wasm)?;
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    gzip.write_all(&tar)?;
    let layer = layout.blob(TAR_LAYER, &gzip.finish()?)?;
    let config = json!({
        "architecture": "wasm",
        "os": "wasip1",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&tar))]},
    });
    let config = layout.json_blob(IMAGE_CONFIG, &config)?;
    let variant = json!({"module.wasm.image/variant": "compat"});
    layout.finish(json!({"config": config, "layers": [layer], "annotations": variant}))
}

/// Writes a wasm artifact: the module itself, and a description for its loader.
pub(super) fn write_artifact(directory: &Path, wasm: &[u8]) -> Result<()> {
    let layout = Layout::create(directory)?;
    let description = json!({
        "type": "envoy_proxy",
        "abiVersions": ["v0-2.1"],
        "config": {"root_ids": ["rate_limiter", "redis_bridge"]},
    });
    let titled = |mut blob: Value, title: &str| {
        blob["annotations"] = json!({"org.opencontainers.image.title": title});
        blob
    };
    let description = titled(layout.json_blob(WASM_CONFIG, &description)?, "runtime-config.json");
    let module = titled(layout.blob(WASM_LAYER, wasm)?, PLUGIN);
    let (config, layers) = (layout.json_blob(EMPTY, &json!({}))?, [description, module]);
    layout.finish(json!({"artifactType": WASM_CONFIG, "config": config, "layers": layers}))
}

struct Layout<'a> {
    directory: &'a Path,
}

impl<'a> Layout<'a> {
    fn create(directory: &'a Path) -> Result<Self> {
        fs::create_dir_all(directory.join("blobs/sha256"))?;
        Ok(Self { directory })
    }

    /// Writes a blob; returns its descriptor.
    fn blob(&self, media_type: &str, content: &[u8]) -> Result<Value> {
        let digest = sha256(content);
        fs::write(self.directory.join("blobs/sha256").join(&digest), content)?;
        Ok(json!({
            "mediaType": media_type,
            "digest": format!("sha256:{digest}"),
            "size": content.len(),
        }))
    }

    fn json_blob(&self, media_type: &str, content: &Value) -> Result<Value> {
        self.blob(media_type, &serde_json::to_vec(content)?)
    }

    fn finish(&self, mut manifest: Value) -> Result<()> {
        manifest["schemaVersion"] = 2.into();
        manifest["mediaType"] = MANIFEST.into();
        let annotations = [
            ("title", "dynamic-rate-limiter"),
            ("description", &description()?),
            ("version", env!("CARGO_PKG_VERSION")),
            ("licenses", env!("CARGO_PKG_LICENSE")),
        ];
        for (name, value) in annotations {
            manifest["annotations"][format!("org.opencontainers.image.{name}")] = value.into();
        }
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [self.json_blob(MANIFEST, &manifest)?],
        });
        fs::write(self.directory.join("index.json"), serde_json::to_vec(&index)?)?;
        fs::write(self.directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(())
    }
}

/// A tar archive of one file without an owner and a date.
fn tar_of(name: &str, content: &[u8]) -> Result<Vec<u8>> {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, name, content)?;
    Ok(archive.into_inner()?)
}

/// Reads a layout as Istio and Envoy Gateway read an image; returns the module that they would load. All metadata must
/// be correct: each digest, each size, the content of the layer; and there must be no other blobs.
pub(super) fn load(directory: &Path) -> Result<Vec<u8>> {
    let index: Value = serde_json::from_slice(&fs::read(directory.join("index.json"))?)?;
    let manifests = list(&index, "manifests")?;
    ensure!(manifests.len() == 1, "index.json lists {} manifests, wanted one", manifests.len());
    let mut reader = Reader { directory, seen: HashSet::new() };
    let manifest: Value = serde_json::from_slice(&reader.blob(&manifests[0], &[MANIFEST])?)?;
    let config = reader.blob(&manifest["config"], &[IMAGE_CONFIG, EMPTY])?;

    let layers = list(&manifest, "layers")?;
    let wasm = match layers.as_slice() {
        [layer] => {
            let compressed = reader.blob(layer, &[TAR_LAYER])?;
            let config: Value = serde_json::from_slice(&config)?;
            unpack(&compressed, &config["rootfs"]["diff_ids"])?
        }
        [description, module] => {
            serde_json::from_slice::<Value>(&reader.blob(description, &[WASM_CONFIG])?)?;
            reader.blob(module, &[WASM_LAYER])?
        }
        _ => anyhow::bail!("the manifest lists {} layers, wanted one or two", layers.len()),
    };
    let blobs = fs::read_dir(directory.join("blobs/sha256"))?.count();
    ensure!(blobs == reader.seen.len(), "{blobs} blobs, of which {} are referred to", reader.seen.len());
    Ok(wasm)
}

fn unpack(compressed: &[u8], diff_ids: &Value) -> Result<Vec<u8>> {
    let mut tar = Vec::new();
    GzDecoder::new(compressed).read_to_end(&mut tar).context("the layer is not gzip")?;
    let found = json!([format!("sha256:{}", sha256(&tar))]);
    ensure!(*diff_ids == found, "the config has diff_ids {diff_ids}, the layer unpacks to {found}");
    let mut archive = tar::Archive::new(tar.as_slice());
    let mut entries = archive.entries()?;
    let mut entry = entries.next().context("the layer is an empty archive")??;
    ensure!(entry.path()?.as_os_str() == PLUGIN, "the layer contains {:?}, wanted {PLUGIN}", entry.path()?);
    let mut wasm = Vec::new();
    entry.read_to_end(&mut wasm)?;
    Ok(wasm)
}

fn list(value: &Value, name: &str) -> Result<Vec<Value>> {
    value[name].as_array().cloned().with_context(|| format!("no list `{name}` in {value}"))
}

struct Reader<'a> {
    directory: &'a Path,
    seen: HashSet<String>,
}

impl Reader<'_> {
    /// The blob of a descriptor, which must have one of these media types.
    fn blob(&mut self, descriptor: &Value, media_types: &[&str]) -> Result<Vec<u8>> {
        let media_type = descriptor["mediaType"].as_str().unwrap_or_default();
        ensure!(
            media_types.contains(&media_type),
            "found `{media_type}`, wanted {}",
            media_types.join(" or ")
        );
        let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
        let digest = digest.with_context(|| format!("no SHA-256 in {descriptor}"))?;
        let content = fs::read(self.directory.join("blobs/sha256").join(digest))
            .with_context(|| format!("no blob {digest}"))?;
        let (found, size) = (sha256(&content), content.len());
        ensure!(found == digest, "blob {digest} has the SHA-256 {found}");
        ensure!(descriptor["size"] == size, "blob {digest} has {size} bytes, not {}", descriptor["size"]);
        self.seen.insert(digest.to_owned());
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use super::super::files_in;
    use super::*;

    const WASM: &[u8] = b"\0asm\x01\0\0\0 and so on";

    type Write = fn(&Path, &[u8]) -> Result<()>;
    const FORMS: [(&str, Write); 2] = [("image", write_image), ("artifact", write_artifact)];

    fn written(write: Write) -> tempfile::TempDir {
        let layout = tempfile::tempdir().expect("a temporary directory");
        write(layout.path(), WASM).expect("a layout");
        layout
    }

    #[test]
    fn both_formats_contain_the_same_module_and_are_reproducible() {
        for (form, write) in FORMS {
            let (first, second) = (written(write), written(write));
            assert_eq!(load(first.path()).expect(form), WASM, "{form}");
            let [first, second] = [first, second].map(|layout| files_in(layout.path()).expect("files"));
            assert_eq!(first, second, "{form}");
        }
    }

    #[test]
    fn the_manifests_have_the_media_types_that_istio_and_envoy_gateway_distinguish() {
        let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
        let [config, module] = ["config.v1+json", "content.layer.v1+wasm"]
            .map(|kind| format!("application/vnd.module.wasm.{kind}"));
        let forms: [(Write, &[&str]); 2] = [(write_image, &[tar]), (write_artifact, &[&config, &module])];
        for (write, expected) in forms {
            let files = files_in(written(write).path()).expect("files");
            let mut documents = files.values().filter_map(|file| serde_json::from_slice::<Value>(file).ok());
            let manifest = documents.find(|document| document["layers"].is_array()).expect("a manifest");
            let layers = list(&manifest, "layers").expect("layers");
            assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
            assert_eq!(layers.iter().map(|layer| &layer["mediaType"]).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn any_changed_missing_or_additional_file_of_a_layout_is_detected() {
        for (form, write) in FORMS {
            let layout = written(write);
            let path = |file: &Path| layout.path().join(file);
            for (file, content) in files_in(layout.path()).expect("files") {
                // Its only field is the version of the format.
                if file.as_os_str() == "oci-layout" {
                    continue;
                }
                let mut changed = content.clone();
                changed[content.len() - 3.min(content.len())] ^= 1;
                fs::write(path(&file), changed).expect("written");
                assert!(load(layout.path()).is_err(), "{form}: {} with one bit changed", file.display());
                fs::remove_file(path(&file)).expect("removed");
                assert!(load(layout.path()).is_err(), "{form}: without {}", file.display());
                fs::write(path(&file), content).expect("written");
            }
            assert_eq!(load(layout.path()).expect("restored"), WASM, "{form}");
            fs::write(layout.path().join("blobs/sha256/0"), "").expect("written");
            let error = load(layout.path()).expect_err(form).to_string();
            assert!(error.contains("of which"), "{error}");
        }
    }
}
