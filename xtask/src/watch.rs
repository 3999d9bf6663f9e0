//! `cargo xtask watch`: a running limiter on one screen, from the stats of its Envoy.
//!
//! In reading order: `stats` parses Envoy's stats, `board` computes rates, `screen` draws them. These three use no
//! terminal and no clock; this file has the loop and the terminal.

mod board;
mod screen;
mod stats;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::{IsTerminal, Write, stdout};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use dynamic_rate_limiter::config::parse_tier_document;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, KeyCode, KeyEvent, KeyModifiers};

use crate::process::{interrupted, pause};
use crate::{http, step, workspace};
use board::Board;
use stats::Sample;

/// How often the stats are read.
const REFRESH: Duration = Duration::from_millis(500);

/// Without a screen, one of this many samples is printed.
const SAMPLES_PER_LINE: u32 = 4;

/// The limiter's stats with Envoy's own names, which do not depend on the bootstrap's `stats_tags`.
const STATS: &str = "/stats?filter=rate_limiter_";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Envoy's admin endpoint
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9901")]
    admin: String,
    /// The limiter's tiers, for the capacities of buckets; by default the repository's `config/tiers.json`
    #[arg(long, value_name = "FILE")]
    tiers: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let admin = options.admin.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    let admin = admin.with_context(|| format!("--admin: found {:?}, wanted HOST:PORT", options.admin))?;
    let tiers = options.tiers.clone().unwrap_or_else(|| workspace::root().join("config/tiers.json"));
    let text = fs::read(&tiers).with_context(|| format!("--tiers: cannot read {}", tiers.display()))?;
    parse_tier_document(&text)
        .map_err(Error::msg)
        .with_context(|| format!("--tiers: {}", tiers.display()))?;
    let watched = Watched { admin, tiers };
    let first = watched.sample(Duration::ZERO)?;
    ensure!(
        first.is_limiter,
        "the Envoy at {admin} has no stats of the rate limiter: is the filter in its chain, does `stats_matcher` leave \
         them out, and has there been a request?"
    );
    watched.watch(|_| Ok(()))
}

pub(crate) struct Watched {
    pub(crate) admin: SocketAddr,
    /// The tiers that the limiter is configured with.
    pub(crate) tiers: PathBuf,
}

impl Watched {
    /// Shows the limiter until Ctrl-C, or `q` in a terminal. `on_sample` is called at every sample; it may add a notice,
    /// and its error ends the watch.
    pub(crate) fn watch(&self, mut on_sample: impl FnMut(&mut Vec<String>) -> Result<()>) -> Result<()> {
        let start = Instant::now();
        let mut board = Board::new(self.admin);
        // Returns the number of older notices.
        let take_sample = |board: &mut Board| {
            let known = board.notices.len();
            on_sample(&mut board.notices)?;
            match self.sample(start.elapsed()) {
                // The tiers are read at every sample, because saving that file reloads it.
                Ok(sample) => board.add(sample, &fs::read(&self.tiers).unwrap_or_default()),
                Err(error) => board.error = Some(format!("{error:#}")),
            }
            Ok(known)
        };
        if !stdout().is_terminal() {
            return in_lines(&mut board, take_sample);
        }
        let shown = ratatui::try_init()
            .context("this terminal cannot be drawn on; `| cat` gives lines instead")
            .and_then(|mut terminal| on_screen(&mut terminal, &mut board, take_sample));
        // ratatui's hook does this after a panic.
        ratatui::restore();
        shown
    }

    fn sample(&self, at: Duration) -> Result<Sample> {
        let response = http::get(self.admin, STATS, &[])
            .with_context(|| format!("no answer from Envoy's admin endpoint {}", self.admin))?;
        let status = response.status();
        ensure!(status == 200, "{} answers {status}, wanted Envoy's stats", self.admin);
        Ok(Sample::parse(at, response.body()))
    }
}

fn on_screen(
    terminal: &mut DefaultTerminal,
    board: &mut Board,
    mut take_sample: impl FnMut(&mut Board) -> Result<usize>,
) -> Result<()> {
    loop {
        take_sample(board)?;
        let end = Instant::now() + REFRESH;
        while !interrupted() && Instant::now() < end {
            terminal.draw(|frame| screen::draw(board, frame))?;
            // A signal ends the wait early, on some systems with an error.
            let has_event = event::poll(end.saturating_duration_since(Instant::now())).unwrap_or(false);
            let event = if has_event { Some(event::read()?) } else { None };
            if event.and_then(|event| event.as_key_event()).is_some_and(quits) {
                return Ok(());
            }
        }
        if interrupted() {
            return Ok(());
        }
    }
}

fn in_lines(board: &mut Board, mut take_sample: impl FnMut(&mut Board) -> Result<usize>) -> Result<()> {
    for n in 0.. {
        let known = take_sample(board)?;
        board.notices[known..].iter().for_each(step);
        let is_due = n % SAMPLES_PER_LINE == 0;
        // The reader may have closed the pipe, as `head` does.
        if is_due && writeln!(stdout(), "{}", screen::line(board)).is_err() || pause(REFRESH).is_err() {
            break;
        }
    }
    Ok(())
}

/// On a terminal in raw mode, Ctrl-C is a key like any other.
fn quits(key: KeyEvent) -> bool {
    let is_ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.code == KeyCode::Char('q') || is_ctrl_c
}
