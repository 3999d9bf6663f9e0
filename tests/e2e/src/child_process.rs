//! A child process that writes its output to a file. It is killed when it is dropped.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use harness::{process, wait};

/// What a failing test shows of the output.
const TAIL_LINES: usize = 40;

#[derive(Debug)]
pub(crate) struct ChildProcess {
    child: Child,
    output: PathBuf,
}

impl ChildProcess {
    #[track_caller]
    pub(crate) fn start(mut command: Command, output: PathBuf) -> Self {
        let file = File::create(&output).expect("a file for the output");
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a file descriptor to spare"))
            .stderr(file);
        match process::spawn(command) {
            Ok(child) => Self { child, output },
            Err(error) => panic!("starting the process of {}: {error}", output.display()),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `probe` returns a value; panics if the process ends before that.
    #[track_caller]
    pub(crate) fn await_ready<T>(
        &mut self,
        limit: Duration,
        what: &str,
        mut probe: impl FnMut() -> Option<T>,
    ) -> T {
        let ready = wait::poll(limit, || {
            if let Some(status) = self.exit_status() {
                panic!("{status} before: {what}\n{}", self.tail());
            }
            probe()
        });
        ready.unwrap_or_else(|| panic!("not within {limit:?}: {what}\n{}", self.tail()))
    }

    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child to wait for")
    }

    /// Its output so far.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// The end of its output, for the message of a failing test.
    pub(crate) fn tail(&self) -> String {
        let output = self.output();
        let lines: Vec<_> = output.lines().collect();
        let from = lines.len().saturating_sub(TAIL_LINES);
        format!("--- the end of {} ---\n{}", self.output.display(), lines[from..].join("\n"))
    }

    pub(crate) fn kill(&mut self) {
        // Both fail only for a child that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
