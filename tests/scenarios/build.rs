//! Writes the macro `scenarios`, which passes the list of all scenarios by subject to a macro of the caller. A scenario is
//! a function `pub fn name(host: &dyn Host)` in `src`, its subject the module.

use std::path::PathBuf;
use std::{env, fs};

/// If there are fewer, this program no longer finds them.
const FEWEST: usize = 80;

fn main() {
    println!("cargo::rerun-if-changed=src");
    let files = fs::read_dir("src").expect("the sources");
    let mut paths: Vec<_> = files.map(|file| file.expect("a source").path()).collect();
    paths.sort();
    let (mut list, mut number) = (String::new(), 0);
    for path in paths {
        let text = fs::read_to_string(&path).expect("a source");
        let names: Vec<_> = text.split("\npub fn ").skip(1).filter_map(scenario).collect();
        if !names.is_empty() {
            let subject = path.file_stem().expect("a name").to_string_lossy();
            list += &format!("{subject} {{ {} }}\n", names.join("\n"));
            number += names.len();
        }
    }
    assert!(number >= FEWEST, "found {number} scenarios");
    let text =
        format!("#[macro_export] macro_rules! scenarios {{ ($with:ident) => {{ $with! {{ {list} }} }} }}");
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(folder.join("scenarios.rs"), text).expect("the list written");
}

/// The name of the function whose declaration follows `pub fn `, if it is a scenario.
fn scenario(declaration: &str) -> Option<&str> {
    let (name, rest) = declaration.split_once('(')?;
    let (parameters, _) = rest.split_once(')')?;
    (parameters.trim().trim_end_matches(',') == "host: &dyn Host").then_some(name)
}
