//! Where the search starts: small inputs, each of which once led somewhere new, and the files that operators write.

use std::path::{Path, PathBuf};

use crate::targets::Target;

/// The folder of a target's inputs.
pub fn folder(target: Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// All inputs of a target, in the order of their names.
pub fn inputs(target: Target) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut inputs = files(&folder(target));
    match target.name {
        "plugin" => {
            inputs.extend(files(&root.join("tests/config/bad")));
            let [tiers, api_keys] = shipped(&root);
            inputs.push([b"{\"tiers\":", &tiers[..], b",\"api_keys\":", &api_keys, b"}"].concat());
        }
        "documents" => inputs.push(shipped(&root).join(&0)),
        _ => {}
    }
    assert!(!inputs.is_empty(), "{} has no corpus", target.name);
    inputs
}

fn shipped(root: &Path) -> [Vec<u8>; 2] {
    ["tiers", "api_keys"].map(|name| {
        let path = root.join(format!("config/{name}.json"));
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    })
}

fn files(folder: &Path) -> Vec<Vec<u8>> {
    let listed = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = listed.map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a readable file")).collect()
}
