//! Arbitrary bytes as input of the limiter's functions.
//!
//! All input from an operator, a client or Redis is bytes. Each target takes such bytes and panics if a property does
//! not hold. libFuzzer mutates the inputs of the corpus, and keeps those that reach new parts of the limiter.

pub mod targets;

use std::path::{Path, PathBuf};

use targets::Target;

use harness::random::Random;

/// The folders of a target's inputs. What a search keeps goes to the first.
pub fn corpus(target: Target) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![folder.join("corpus").join(target.name)];
    if target.name == "plugin" {
        folders.push(folder.join("../config/bad"));
    }
    folders
}

/// The shipped documents, in the form that a target takes.
pub fn shipped(target: Target) -> Option<Vec<u8>> {
    let [tiers, api_keys] = ["tiers", "api_keys"].map(|name| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../config/{name}.json"));
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    });
    match target.name {
        "plugin" => Some([b"{\"tiers\":", &tiers[..], b",\"api_keys\":", &api_keys, b"}"].concat()),
        "documents" => Some([tiers, api_keys].join(&0)),
        _ => None,
    }
}
