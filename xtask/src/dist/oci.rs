//! The filter as OCI image layouts, in the two formats that Istio and Envoy Gateway read.
//!
//! Both read only the manifest's layers. If the media type of the last layer is a gzipped tar, they read `plugin.wasm`
//! from it; else they require exactly two layers, one of which is the module itself with its own media type. They do
//! not read an index, so each format is an image by itself.

use std::io::{Read, Write};

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};

use super::{Files, description, sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const TAR_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const WASM_CONFIG: &str = "application/vnd.module.wasm.config.v1+json";
const WASM_LAYER: &str = "application/vnd.module.wasm.content.layer.v1+wasm";

const INDEX: &str = "index.json";
const VERSION: &str = "oci-layout";
const BLOBS: &str = "blobs/sha256/";

/// The required name of the file in the tar layer.
const PLUGIN: &str = "plugin.wasm";

/// A plain image with one layer, a tar with the module. Every registry and every tool supports it.
pub(super) fn image(wasm: &[u8]) -> Result<Files> {
    let mut layout = Layout::default();
    let tar = tar_of(PLUGIN, wasm)?;
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    gzip.write_all(&tar)?;
    let layer = layout.blob(TAR_LAYER, gzip.finish()?);
    let config = json!({
        "architecture": "wasm",
        "os": "wasip1",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&tar))]},
    });
    let config = layout.blob(IMAGE_CONFIG, config.to_string());
    let variant = json!({"module.wasm.image/variant": "compat"});
    layout.finish(json!({"config": config, "layers": [layer], "annotations": variant}))
}

/// A wasm artifact: the module itself, and a description for its loader.
pub(super) fn artifact(wasm: &[u8]) -> Result<Files> {
    let mut layout = Layout::default();
    let description = json!({
        "type": "envoy_proxy",
        "abiVersions": ["v0-2.1"],
        "config": {"root_ids": ["rate_limiter", "redis_bridge"]},
    });
    let titled = |mut blob: Value, title: &str| {
        blob["annotations"] = json!({"org.opencontainers.image.title": title});
        blob
    };
    let description = titled(layout.blob(WASM_CONFIG, description.to_string()), "runtime-config.json");
    let module = titled(layout.blob(WASM_LAYER, wasm), PLUGIN);
    let (config, layers) = (layout.blob(EMPTY, "{}"), [description, module]);
    layout.finish(json!({"artifactType": WASM_CONFIG, "config": config, "layers": layers}))
}

#[derive(Default)]
struct Layout(Files);

impl Layout {
    /// Adds a blob; returns its descriptor.
    fn blob(&mut self, media_type: &str, content: impl Into<Vec<u8>>) -> Value {
        let content = content.into();
        let digest = sha256(&content);
        let descriptor = json!({
            "mediaType": media_type,
            "digest": format!("sha256:{digest}"),
            "size": content.len(),
        });
        self.0.insert([BLOBS, &digest].concat(), content);
        descriptor
    }

    fn finish(mut self, mut manifest: Value) -> Result<Files> {
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
            "manifests": [self.blob(MANIFEST, manifest.to_string())],
        });
        self.0.insert(INDEX.to_owned(), index.to_string().into());
        self.0.insert(VERSION.to_owned(), r#"{"imageLayoutVersion":"1.0.0"}"#.into());
        Ok(self.0)
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
/// be correct: each digest, each size, the content of the layer; and there must be no other files.
pub(super) fn load(mut layout: Files) -> Result<Vec<u8>> {
    let index: Value = serde_json::from_slice(&layout.remove(INDEX).context("no index.json")?)?;
    layout.remove(VERSION).context("no oci-layout")?;
    let manifests = list(&index, "manifests")?;
    ensure!(manifests.len() == 1, "index.json lists {} manifests, wanted one", manifests.len());
    let manifest: Value = serde_json::from_slice(&take_blob(&mut layout, &manifests[0], &[MANIFEST])?)?;
    let config = take_blob(&mut layout, &manifest["config"], &[IMAGE_CONFIG, EMPTY])?;

    let layers = list(&manifest, "layers")?;
    let wasm = match layers.as_slice() {
        [layer] => {
            let compressed = take_blob(&mut layout, layer, &[TAR_LAYER])?;
            let config: Value = serde_json::from_slice(&config)?;
            unpack(&compressed, &config["rootfs"]["diff_ids"])?
        }
        [description, module] => {
            let description = take_blob(&mut layout, description, &[WASM_CONFIG])?;
            serde_json::from_slice::<Value>(&description)?;
            take_blob(&mut layout, module, &[WASM_LAYER])?
        }
        _ => anyhow::bail!("the manifest lists {} layers, wanted one or two", layers.len()),
    };
    ensure!(layout.is_empty(), "nothing refers to {:?}", layout.keys());
    Ok(wasm)
}

/// The blob of a descriptor, which must have one of these media types.
fn take_blob(layout: &mut Files, descriptor: &Value, media_types: &[&str]) -> Result<Vec<u8>> {
    let media_type = descriptor["mediaType"].as_str().unwrap_or_default();
    ensure!(media_types.contains(&media_type), "found `{media_type}`, wanted {}", media_types.join(" or "));
    let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
    let digest = digest.with_context(|| format!("no SHA-256 in {descriptor}"))?;
    let content = layout.remove(&[BLOBS, digest].concat()).with_context(|| format!("no blob {digest}"))?;
    let (found, size) = (sha256(&content), content.len());
    ensure!(found == digest, "blob {digest} has the SHA-256 {found}");
    ensure!(descriptor["size"] == size, "blob {digest} has {size} bytes, not {}", descriptor["size"]);
    Ok(content)
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

#[cfg(test)]
mod tests {
    use super::*;

    const WASM: &[u8] = b"\0asm\x01\0\0\0 and so on";

    type Pack = fn(&[u8]) -> Result<Files>;
    const FORMS: [(&str, Pack); 2] = [("image", image), ("artifact", artifact)];

    #[test]
    fn both_formats_contain_the_same_module_and_are_reproducible() {
        for (form, pack) in FORMS {
            let layout = pack(WASM).expect(form);
            assert_eq!(layout, pack(WASM).expect(form), "{form}");
            assert_eq!(load(layout).expect(form), WASM, "{form}");
        }
    }

    #[test]
    fn the_manifests_have_the_media_types_that_istio_and_envoy_gateway_distinguish() {
        let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
        let [config, module] = ["config.v1+json", "content.layer.v1+wasm"]
            .map(|kind| format!("application/vnd.module.wasm.{kind}"));
        let forms: [(Pack, &[&str]); 2] = [(image, &[tar]), (artifact, &[&config, &module])];
        for (pack, expected) in forms {
            let layout = pack(WASM).expect("a layout");
            let mut documents = layout.values().filter_map(|file| serde_json::from_slice::<Value>(file).ok());
            let manifest = documents.find(|document| document["layers"].is_array()).expect("a manifest");
            let layers = list(&manifest, "layers").expect("layers");
            assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
            assert_eq!(layers.iter().map(|layer| &layer["mediaType"]).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn any_changed_missing_or_additional_file_of_a_layout_is_detected() {
        for (form, pack) in FORMS {
            let layout = pack(WASM).expect(form);
            for (path, content) in &layout {
                let mut without = layout.clone();
                without.remove(path);
                load(without).expect_err(&format!("{form}: without {path}"));
                // The only field of the other file is the version of the format.
                if path != VERSION {
                    let mut changed = layout.clone();
                    changed.get_mut(path).expect("a file")[content.len() - 3.min(content.len())] ^= 1;
                    load(changed).expect_err(&format!("{form}: {path} with one bit changed"));
                }
            }
            let mut more = layout.clone();
            more.insert([BLOBS, "0"].concat(), Vec::new());
            let error = load(more).expect_err(form).to_string();
            assert!(error.contains("nothing refers to"), "{error}");
        }
    }
}
