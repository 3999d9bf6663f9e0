//! Starts child processes that end with the test run, however it ends.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// Spawns `command` so that the kernel kills it when this process ends.
///
/// `PR_SET_PDEATHSIG` applies when the spawning *thread* ends. A test's thread ends with its test, while an Envoy in a
/// `static` continues; so one thread that lives as long as the process spawns all children.
pub fn spawn(command: Command) -> io::Result<Child> {
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
