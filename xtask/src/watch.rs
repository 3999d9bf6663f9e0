//! `cargo xtask watch`: a running limiter on one screen, from what its Envoy counts.
//!
//! In reading order: `stats` reads what Envoy shows, `board` makes figures of it, `screen` draws them. Those three know
//! no terminal and no clock; here are the loop and the terminal.

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

use anyhow::{Context, Result, bail, ensure};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers};

use crate::process::{interrupted, pause};
use crate::{http, step, workspace};
use board::Board;
use stats::{Capacities, Sample};

/// How often Envoy is asked.
const REFRESH: Duration = Duration::from_millis(500);

/// Of the samples without a screen, every so many is a line.
const SAMPLES_PER_LINE: u32 = 4;

/// The limiter's stats as Envoy names them, whether or not its bootstrap makes labels of name parts.
const STATS: &str = "/stats?filter=rate_limiter_";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Envoy's admin endpoint
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9901")]
    admin: String,
    /// The limiter's tiers, for what a full bucket holds
    #[arg(long, value_name = "FILE", default_value = "config/tiers.json")]
    tiers: PathBuf,
}

/// Watches an Envoy that somebody else runs.
pub(crate) fn run(options: &Options) -> Result<()> {
    let admin = options.admin.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    let admin = admin.with_context(|| format!("--admin: found {:?}, wanted HOST:PORT", options.admin))?;
    let watched = Watched { admin, tiers: workspace::root().join(&options.tiers) };
    let first = watched.sample(Duration::ZERO)?;
    ensure!(
        first.is_limiter(),
        "the Envoy at {admin} has no stats of the rate limiter: is the filter in its chain, does `stats_matcher` leave \
         them out, and has there been a request?"
    );
    watch(&watched, |_| Ok(()))
}

/// What is watched.
pub(crate) struct Watched {
    /// Envoy's admin endpoint.
    pub(crate) admin: SocketAddr,
    /// The tiers that the limiter is configured with.
    pub(crate) tiers: PathBuf,
}

impl Watched {
    fn sample(&self, at: Duration) -> Result<Sample> {
        let answer = http::get(self.admin, STATS, &[])
            .with_context(|| format!("no answer from Envoy's admin endpoint {}", self.admin))?;
        ensure!(answer.status == 200, "{} answers {}, wanted Envoy's stats", self.admin, answer.status);
        Ok(Sample::parse(at, &answer.body))
    }

    /// Read at every sample: saving that file is a reload.
    fn capacities(&self) -> Capacities {
        Capacities::parse(&fs::read_to_string(&self.tiers).unwrap_or_default())
    }
}

/// Shows what is watched until Ctrl-C, or `q` where there is a terminal. `look` is called at every sample; it may leave
/// a notice, and its error ends the watch.
pub(crate) fn watch(watched: &Watched, look: impl FnMut(&mut Vec<String>) -> Result<()>) -> Result<()> {
    let watch = Watch { watched, look, start: Instant::now(), board: Board::new(&watched.admin.to_string()) };
    if stdout().is_terminal() { watch.on_screen() } else { watch.in_lines() }
}

struct Watch<'a, L> {
    watched: &'a Watched,
    look: L,
    start: Instant,
    board: Board,
}

impl<L: FnMut(&mut Vec<String>) -> Result<()>> Watch<'_, L> {
    fn on_screen(mut self) -> Result<()> {
        let mut screen = Screen::open()?;
        loop {
            self.look()?;
            screen.terminal.draw(|frame| screen::draw(&self.board, frame))?;
            if is_left(Instant::now() + REFRESH, &mut screen.terminal, &self.board)? {
                return Ok(());
            }
        }
    }

    fn in_lines(mut self) -> Result<()> {
        for n in 0.. {
            let notices = self.look()?;
            notices.iter().for_each(step);
            let is_due = n % SAMPLES_PER_LINE == 0;
            // Whoever read the lines may have read enough, as `head` does.
            if is_due && writeln!(stdout(), "{}", screen::line(&self.board)).is_err() {
                break;
            }
            if pause(REFRESH).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Takes a sample; gives the notices that are new.
    fn look(&mut self) -> Result<Vec<String>> {
        let mut notices = Vec::new();
        (self.look)(&mut notices)?;
        match self.watched.sample(self.start.elapsed()) {
            Ok(sample) => self.board.take(sample, self.watched.capacities()),
            Err(error) => self.board.lost(format!("{error:#}")),
        }
        self.board.notices.extend(notices.iter().cloned());
        Ok(notices)
    }
}

/// The terminal in our hands. It is given back when this is dropped, and also by the panic hook that ratatui sets.
struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    fn open() -> Result<Self> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                ratatui::restore();
                bail!("this terminal cannot be drawn on ({error}); `| cat` gives lines instead")
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The hook has done it before it printed, and a second time would put the cursor into what is printed.
        if !std::thread::panicking() {
            ratatui::restore();
        }
    }
}

/// Waits for the next sample's time; whether we were told to leave. A window that changes its size is drawn again at
/// once.
fn is_left(end: Instant, terminal: &mut DefaultTerminal, board: &Board) -> Result<bool> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if interrupted() {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
        // A signal ends the wait early, as an error on some systems: then the loop looks again.
        if !event::poll(left).unwrap_or(false) {
            continue;
        }
        match event::read()? {
            Event::Key(key) if leaves(key) => return Ok(true),
            Event::Resize(..) => {
                terminal.draw(|frame| screen::draw(board, frame))?;
            }
            _ => {}
        }
    }
}

/// On a terminal in raw mode, Ctrl-C is a key like any other.
fn leaves(key: KeyEvent) -> bool {
    let is_ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.code == KeyCode::Char('q') || is_ctrl_c
}
