//! The shipped containers, run by a real engine, as a user runs them.
//!
//! `cargo xtask test containers` copies the sources to a folder, gets Compose, makes stand-ins for the images
//! that cannot be had, starts this program there, and takes everything away that it has left. So files may be
//! edited here, as a user edits them.
//!
//! Chapters run one after the other, since they use the same ports. Load goes to published ports of the
//! loopback.

mod clients;
mod compose;
mod connections;
mod development;
mod drain;
mod monitoring;
mod production;
mod valkey;

use std::path::PathBuf;
use std::time::Instant;

type Chapter = fn(&mut Story);

const CHAPTERS: [(&str, Chapter); 3] =
    [("development", development::run), ("production", production::run), ("valkey", valkey::run)];

/// Says what is seen, with the time that it took.
pub(crate) struct Story {
    /// The copy of the sources.
    folder: PathBuf,
    last: Instant,
}

impl Story {
    /// To be called after it was seen.
    pub(crate) fn seen(&mut self, what: impl std::fmt::Display) {
        eprintln!("    {:5.1} s  {what}", self.last.elapsed().as_secs_f64());
        self.last = Instant::now();
    }
}

fn main() {
    let start = Instant::now();
    let folder = std::env::var_os("CONTAINERS_FOLDER").expect("`cargo xtask test containers` starts this");
    let only: Vec<String> = std::env::args().skip(1).collect();
    let mut story = Story { folder: folder.into(), last: Instant::now() };
    let mut run = 0;
    for (name, chapter) in CHAPTERS {
        if only.is_empty() || only.iter().any(|only| name == only) {
            eprintln!("{name}:");
            chapter(&mut story);
            run += 1;
        }
    }
    assert!(run > 0, "no chapter has a name of {only:?}");
    eprintln!("{run} chapters passed in {} s", start.elapsed().as_secs());
}
