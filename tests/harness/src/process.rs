//! Starts child processes that end with the test run, however it ends.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use crate::wait;

/// What a failing test shows of the output.
const TAIL_LINES: usize = 40;

/// A program that appends its output to a file. It is killed when it is dropped.
#[derive(Debug)]
pub struct ChildProcess {
    child: Child,
    output: PathBuf,
}

impl ChildProcess {
    #[track_caller]
    pub fn start(mut command: Command, output: PathBuf) -> Self {
        let file = File::options().create(true).append(true).open(&output).expect("a file for the output");
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a file descriptor to spare"))
            .stderr(file);
        let program = command.get_program().to_owned();
        match spawn(command) {
            Ok(child) => Self { child, output },
            Err(error) => panic!("starting {}: {error}", program.display()),
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `probe` returns a value; panics if the process ends before that.
    #[track_caller]
    pub fn await_ready<T>(&mut self, limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
        let ready = wait::poll(limit, || {
            if let Some(status) = self.exit_status() {
                panic!("{status} before: {what}\n{}", self.tail());
            }
            probe()
        });
        ready.unwrap_or_else(|| panic!("not within {limit:?}: {what}\n{}", self.tail()))
    }

    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child to wait for")
    }

    /// Its output so far.
    pub fn output(&self) -> String {
        read(&self.output)
    }

    pub fn tail(&self) -> String {
        tail(&self.output)
    }

    pub fn kill(&mut self) {
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

fn read(output: &Path) -> String {
    String::from_utf8_lossy(&fs::read(output).unwrap_or_default()).into_owned()
}

/// The end of a program's output, for the message of a failing test.
pub fn tail(output: &Path) -> String {
    let text = read(output);
    let lines: Vec<_> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    format!("--- the end of {} ---\n{}", output.display(), lines[from..].join("\n"))
}

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// Spawns `command` so that the kernel kills it when this process ends.
///
/// `PR_SET_PDEATHSIG` applies when the spawning *thread* ends. A test's thread ends with its test, while an Envoy in a
/// `static` continues; so one thread that lives as long as the process spawns all children.
fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let orders = SPAWNER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (command, answer) in receiver {
                // The caller may have panicked meanwhile.
                let _ = answer.send(spawn_tied(command));
            }
        });
        Mutex::new(sender)
    });
    let (answer, result) = mpsc::channel();
    orders
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, answer))
        .expect("the spawner thread lives as long as the process");
    result.recv().expect("the spawner thread answers every order")
}

fn spawn_tied(mut command: Command) -> io::Result<Child> {
    // SAFETY: the closure runs between fork and exec and makes one system call, which is
    // async-signal-safe; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        });
    }
    command.spawn()
}
