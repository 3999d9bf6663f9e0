//! `cargo xtask check-config`: checks configuration with the filter's own code, before an Envoy loads it.
//!
//! It accepts exactly what the filter accepts, with the same error messages; no rule for tiers is implemented here. No
//! key and no token is printed, except for those that `--new` generates.

mod document;
mod envoy;
mod secrets;

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use dynamic_rate_limiter::config::{Config, ConfigSource, Documents, Environment, KeySummary, PluginConfig};
use dynamic_rate_limiter::tier::Tier;
use serde_json::json;

use document::{Checked, Kind};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Plugin configurations, tier documents, key documents (JSON); Envoy configurations, WasmPlugins,
    /// EnvoyExtensionPolicies (YAML). Files that are given together must match: keys must name existing tiers
    #[arg(required_unless_present_any = ["hash", "new"])]
    files: Vec<PathBuf>,
    /// The kind of the files; by default it is detected from their content
    #[arg(long = "as", value_name = "KIND")]
    kind: Option<Kind>,
    /// Read API keys or admin tokens from the standard input, one a line, and print the hash of each
    #[arg(long, conflicts_with_all = ["files", "kind", "new"])]
    hash: bool,
    /// Generate N new API keys; print each with its hash
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "1")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1000), conflicts_with_all = ["files", "kind"])]
    new: Option<u16>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.hash {
        return secrets::hash_input();
    }
    if let Some(count) = options.new {
        return secrets::generate(count);
    }
    let mut found = Vec::new();
    for path in &options.files {
        let name = path.display().to_string();
        match fs::read(path) {
            Ok(bytes) => found.extend(read(&name, &bytes, options.kind)),
            Err(error) => found.push(Found { name, what: Err(format!("cannot read it: {error}")) }),
        }
    }
    join(&mut found);

    for Found { name, what } in &found {
        match what {
            Ok(checked) => println!("{name}: {checked}"),
            Err(message) => eprintln!("{name}: {message}"),
        }
    }
    let wrong = found.iter().filter(|found| found.what.is_err()).count();
    ensure!(wrong == 0, "{wrong} of {} wrong", found.len());
    Ok(())
}

struct Found {
    name: String,
    what: Result<Checked, String>,
}

/// Checks the content of one file by itself. A YAML file may contain several plugin configurations.
fn read(name: &str, bytes: &[u8], kind: Option<Kind>) -> Vec<Found> {
    let is_yaml = [".yaml", ".yml"].iter().any(|extension| name.ends_with(extension));
    let one = |what| vec![Found { name: name.to_owned(), what }];
    match kind {
        Some(Kind::Yaml) => {}
        None if is_yaml => {}
        _ => return one(document::check(bytes, kind)),
    }
    match envoy::plugins(bytes) {
        Err(message) => one(Err(message)),
        Ok(plugins) => plugins
            .into_iter()
            .map(|(filter, configuration)| Found {
                name: format!("{name} ({filter})"),
                what: configuration.and_then(|bytes| document::check(&bytes, Some(Kind::PluginConfig))),
            })
            .collect(),
    }
}

/// Checks each pair of documents for a match. A mismatch is an error of the document that names a tier.
fn join(found: &mut [Found]) {
    let mismatch = |one: &Found| {
        let checked = one.what.as_ref().ok()?;
        found.iter().find_map(|other| {
            let message = fits(checked, other.what.as_ref().ok()?).err()?;
            Some(format!("{message} (with {})", other.name))
        })
    };
    let mismatches: Vec<_> = found.iter().map(mismatch).collect();
    for (found, mismatch) in found.iter_mut().zip(mismatches) {
        if let Some(message) = mismatch {
            found.what = Err(message);
        }
    }
}

/// Whether every tier that `checked` names is defined in `beside`.
fn fits(checked: &Checked, beside: &Checked) -> Result<(), String> {
    let (plugin, documents) = match (checked, beside) {
        (Checked::ApiKeys { entries, .. }, Checked::Tiers(tiers)) => {
            let documents = Documents { tiers: Some(tiers.clone()), keys: Some(KeySummary::of(entries)) };
            (plugin_that_fetches_all(tiers)?, documents)
        }
        (Checked::ApiKeys { entries, .. }, Checked::PluginConfig(plugin))
            if fetches(plugin, |source| &source.api_keys) && !fetches(plugin, |source| &source.tiers) =>
        {
            (plugin.clone(), Documents { tiers: None, keys: Some(KeySummary::of(entries)) })
        }
        (Checked::PluginConfig(plugin), Checked::Tiers(tiers)) if fetches(plugin, |source| &source.tiers) => {
            (plugin.clone(), Documents { tiers: Some(tiers.clone()), keys: None })
        }
        _ => return Ok(()),
    };
    Config::new(&plugin, &documents).map(|_| ())
}

fn fetches(plugin: &PluginConfig, document: impl Fn(&ConfigSource) -> &Option<String>) -> bool {
    plugin.settings.config_source.as_ref().is_some_and(|source| document(source).is_some())
}

/// A plugin configuration that fetches both documents, with a default tier of `tiers`.
fn plugin_that_fetches_all(tiers: &[Tier]) -> Result<PluginConfig, String> {
    let first = tiers.first().map(|tier| tier.name.as_str());
    let source = json!({"cluster": "any", "tiers": "/tiers", "api_keys": "/api_keys"});
    let plugin = json!({"default_tier": first, "config_source": source}).to_string();
    PluginConfig::parse(plugin.as_bytes(), &Environment::default())
}

#[cfg(test)]
mod tests;
