//! Imports go down through the layers of `ARCHITECTURE.md`, and never in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The modules of `src/`, top layer first. A module imports from its own layer and from those below it.
const LAYERS: [(&str, &[&str]); 8] = [
    ("Envoy's ABI", &["host"]),
    ("decides about a request", &["admission", "limiter", "requests"]),
    (
        "surrounds a decision",
        &["admin", "callers", "documents", "health_change", "in_force", "measured_health", "redis_limiter"],
    ),
    (
        "what workers and Envoys share, what answers say",
        &[
            "charge",
            "control",
            "generation",
            "health_sync",
            "login_throttle",
            "metrics",
            "overload",
            "headers",
            "request",
        ],
    ),
    ("where buckets live", &["store"]),
    ("checked configuration", &["config"]),
    ("limits and their arithmetic", &["bucket", "limit", "tier"]),
    (
        "nouns",
        &["codec", "credentials", "health", "id_map", "identity", "json", "record_key", "shown", "time"],
    ),
];

/// Pairs of a module and a module that it imports, with a file that does.
fn imports() -> BTreeMap<(String, String), String> {
    let mut imports = BTreeMap::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let source = folders[0].clone();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let file = path.strip_prefix(&source).expect("below src").display().to_string();
            let module = file.split(['/', '.']).next().expect("a name").to_owned();
            if !file.ends_with(".rs") || module == "lib" {
                continue;
            }
            let text = fs::read_to_string(&path).expect("a source file");
            for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
                for import in line.split("crate::").skip(1) {
                    let end =
                        import.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(import.len());
                    let imported = import[..end].to_owned();
                    if imported != module {
                        imports.insert((module.clone(), imported), file.clone());
                    }
                }
            }
        }
    }
    imports
}

fn layer(module: &str) -> usize {
    let layer = LAYERS.iter().position(|(_, modules)| modules.contains(&module));
    layer.unwrap_or_else(|| panic!("tests/layers.rs has no layer for src/{module}"))
}

#[test]
fn imports_never_go_up() {
    let upward: Vec<_> = imports().into_iter().filter(|((from, to), _)| layer(to) < layer(from)).collect();
    assert_eq!(upward, [], "these files import from a layer above their own");
}

#[test]
fn imports_never_form_a_circle() {
    let imports: BTreeSet<_> = imports().into_keys().collect();
    let mut left: BTreeSet<&String> = imports.iter().flat_map(|(from, to)| [from, to]).collect();
    // Removes modules that import none of the remaining ones, until only circles remain.
    loop {
        let is_used =
            |module: &&String| imports.iter().any(|(from, to)| from == *module && left.contains(to));
        let circles: BTreeSet<_> = left.iter().copied().filter(is_used).collect();
        if circles.len() == left.len() {
            break;
        }
        left = circles;
    }
    assert!(left.is_empty(), "these modules import each other in a circle: {left:?}");
}

#[test]
fn only_the_host_imports_the_host() {
    for ((module, imported), file) in imports() {
        assert!(imported != "host" || module == "host", "{file} imports the host");
    }
}
