//! The shipped containers in a real container engine.
//!
//! `cargo xtask test containers` copies the sources to a folder, installs Compose, builds replacements for images
//! that are not available, starts this program, and removes what it leaves. The program may edit files in that folder.
//!
//! Chapters run one after the other, because they use the same ports. Load goes to published loopback ports.

mod clients;
mod compose;
mod connections;
mod development;
mod drain;
mod monitoring;
mod production;
mod valkey;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

type Chapter = fn(&mut Progress);

const CHAPTERS: [(&str, Chapter); 3] =
    [("development", development::run), ("production", production::run), ("valkey", valkey::run)];

/// Prints each step that has passed, with its duration.
pub(crate) struct Progress {
    /// The copy of the sources.
    folder: PathBuf,
    last_step: Instant,
}

impl Progress {
    /// Replaces texts in a file of the folder, each of which must occur once; returns the former content.
    #[track_caller]
    pub(crate) fn edit(&self, file: &str, changes: &[(&str, &str)]) -> String {
        let path = self.folder.join(file);
        let before = fs::read_to_string(&path).expect(file);
        let changed = changes.iter().fold(before.clone(), |text, (from, to)| {
            assert_eq!(text.matches(from).count(), 1, "{from} in {file}");
            text.replace(from, to)
        });
        fs::write(path, changed).expect("written");
        before
    }

    /// Prints a step that has just passed.
    pub(crate) fn passed(&mut self, what: impl std::fmt::Display) {
        eprintln!("    {:5.1} s  {what}", self.last_step.elapsed().as_secs_f64());
        self.last_step = Instant::now();
    }
}

fn main() {
    let start = Instant::now();
    let folder = std::env::var_os("CONTAINERS_FOLDER").expect("`cargo xtask test containers` starts this");
    let only: Vec<String> = std::env::args().skip(1).collect();
    let mut progress = Progress { folder: folder.into(), last_step: Instant::now() };
    let mut run = 0;
    for (name, chapter) in CHAPTERS {
        if only.is_empty() || only.iter().any(|only| name == only) {
            eprintln!("{name}:");
            chapter(&mut progress);
            run += 1;
        }
    }
    assert!(run > 0, "no chapter has one of the names {only:?}");
    eprintln!("{run} chapters passed in {} s", start.elapsed().as_secs());
}
