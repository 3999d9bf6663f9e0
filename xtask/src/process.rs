//! Starting other programs so that none outlives this one.
//!
//! Each runs in its own process group, and the group is ended when its handle is dropped. So Ctrl-C, SIGTERM and errors
//! are handled in the same way: functions return, and all running programs end, including their children.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::workspace;

const POLL: Duration = Duration::from_millis(20);

const GRACE: Duration = Duration::from_secs(5);

const LOG_TAIL_LINES: usize = 15;

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Turns Ctrl-C, SIGTERM and SIGHUP into [`interrupted`], so that all started programs are ended.
pub(crate) fn catch_interrupts() -> Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&INTERRUPTED))?;
    }
    Ok(())
}

pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Sleeps; an interruption is an error.
pub(crate) fn pause(duration: Duration) -> Result<()> {
    let end = Instant::now() + duration;
    while Instant::now() < end {
        ensure!(!interrupted(), "interrupted");
        sleep(POLL.min(duration));
    }
    Ok(())
}

/// A running program.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    /// Its command line, and the file with its output, for errors.
    command: String,
    log: Option<PathBuf>,
}

impl Running {
    /// Starts a program without input: a background process group that reads the terminal would be stopped.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Self { child, command: shown(command), log: None })
    }

    /// Like [`Running::start`], with the program's output in `log`.
    pub(crate) fn start_logged(command: &mut Command, log: &Path) -> Result<Self> {
        if let Some(directory) = log.parent() {
            fs::create_dir_all(directory)?;
        }
        let output = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut running = Self::start(command.stdout(output.try_clone()?).stderr(output))?;
        running.log = Some(log.to_owned());
        Ok(running)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    pub(crate) fn check(&mut self) -> Result<()> {
        let ended = self.exited()?;
        ensure!(ended.is_none(), "`{}` ended by itself: {ended:?}{}", self.command, self.log_tail());
        Ok(())
    }

    pub(crate) fn wait_until_ready(
        &mut self,
        limit: Duration,
        mut probe: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let start = Instant::now();
        while let Err(error) = probe() {
            self.check()?;
            ensure!(
                start.elapsed() < limit,
                "`{}` is not ready within {} s: {error:#}{}",
                self.command,
                limit.as_secs(),
                self.log_tail()
            );
            pause(POLL)?;
        }
        Ok(())
    }

    /// Waits until it ends; `None` after `limit`.
    pub(crate) fn wait_within(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let start = Instant::now();
        loop {
            let ended = self.exited()?;
            if ended.is_some() || start.elapsed() > limit {
                return Ok(ended);
            }
            pause(POLL)?;
        }
    }

    fn log_tail(&self) -> String {
        self.log.as_ref().map_or_else(String::new, |log| format!("\n{}", log_tail(log)))
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It fails only if no process is left in the group.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let end = Instant::now() + GRACE;
        if matches!(self.exited(), Ok(None)) {
            self.signal(Signal::TERM);
            while matches!(self.exited(), Ok(None)) && Instant::now() < end {
                sleep(POLL);
            }
        }
        // Also when the program itself has ended: it may have left children.
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

pub(crate) fn log_tail(log: &Path) -> String {
    let content = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = content.lines().collect();
    let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
    format!("{} ends with\n  {}", workspace::shown(log), tail.join("\n  "))
}

/// Runs a program to its end; any status but success is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    run_within(command, Duration::MAX)
}

pub(crate) fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    let status = ended_within(Running::start(command)?, limit)?;
    ensure!(status.success(), "`{}`: {status}", shown(command));
    Ok(())
}

/// Runs a program to its end, with its output in `log`; returns whether it succeeded.
pub(crate) fn run_logged_within(command: &mut Command, log: &Path, limit: Duration) -> Result<bool> {
    Ok(ended_within(Running::start_logged(command, log)?, limit)?.success())
}

fn ended_within(mut running: Running, limit: Duration) -> Result<ExitStatus> {
    let ended = running.wait_within(limit)?;
    ended.with_context(|| format!("`{}`: not done after {} s, ended", running.command, limit.as_secs()))
}

pub(crate) fn output_of(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    ensure!(
        output.status.success(),
        "`{}`: {}\n{}",
        shown(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command line, without its environment.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
