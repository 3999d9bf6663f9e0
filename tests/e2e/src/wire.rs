//! The wire between Envoy and Redis, with everything that can go wrong on one.
//!
//! What Envoy says always reaches the real Redis behind; what happens to its answers, and to connections, is
//! the test's choice and may change at any time.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::SockRef;

use harness::port;

/// What becomes of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// It never does.
    Silence,
    Garbage(Vec<u8>),
    /// It does, and then once more.
    Twice,
    /// One byte at a time, with this pause between two.
    Drip(Duration),
    /// All of it, this late.
    Late(Duration),
    /// Its first half, and then a reset.
    ResetMidway,
}

/// A TCP relay in front of a Redis.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    state: Arc<State>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    target: SocketAddr,
    fault: Mutex<Fault>,
    refuses: AtomicBool,
    accepted: AtomicU64,
    open: Mutex<Vec<Weak<Link>>>,
}

/// One connection of Envoy's and the one behind it. Both close when nobody carries anything any more.
#[derive(Debug)]
struct Link {
    envoy: TcpStream,
    redis: TcpStream,
}

impl Wire {
    /// Starts one without a fault.
    pub fn start(target: SocketAddr) -> Self {
        let state = Arc::new(State {
            target,
            fault: Mutex::new(Fault::None),
            refuses: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            open: Mutex::new(Vec::new()),
        });
        let mut wire = Self { address: port::reserve(), state, acceptor: None };
        wire.listen();
        wire
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What becomes of answers from now on, on connections that are open too.
    pub fn fault(&self, fault: Fault) {
        *lock(&self.state.fault) = fault;
    }

    pub fn cut(&self) {
        for link in lock(&self.state.open).drain(..).filter_map(|link| link.upgrade()) {
            link.reset();
        }
    }

    /// Refuses new connections from now on, and resets the open ones.
    pub fn refuse(&mut self) {
        if let Some(acceptor) = self.acceptor.take() {
            self.state.refuses.store(true, Ordering::SeqCst);
            // Wakes the acceptor, which then sees that it is over.
            let _ = TcpStream::connect(self.address);
            acceptor.join().expect("no panic in the acceptor");
        }
        self.cut();
    }

    /// Ends [`Wire::refuse`].
    pub fn listen(&mut self) {
        if self.acceptor.is_some() {
            return;
        }
        self.state.refuses.store(false, Ordering::SeqCst);
        let listener = TcpListener::bind(self.address).expect("the port is still ours");
        let state = Arc::clone(&self.state);
        self.acceptor = Some(thread::spawn(move || accept(&listener, &state)));
    }

    /// How many connections have been made so far.
    pub fn accepted(&self) -> u64 {
        self.state.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.refuse();
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    for stream in listener.incoming().flatten() {
        if state.refuses.load(Ordering::SeqCst) {
            return;
        }
        state.accepted.fetch_add(1, Ordering::SeqCst);
        // Where Redis is not there, Envoy's connection is closed by dropping it.
        let Ok(redis) = TcpStream::connect(state.target) else { continue };
        let link = Arc::new(Link { envoy: stream, redis });
        lock(&state.open).push(Arc::downgrade(&link));
        let (questions, answers, state) = (Arc::clone(&link), link, Arc::clone(state));
        // A connection that breaks is what the test is about; it looks at what Envoy makes of it.
        thread::spawn(move || {
            let _ = io::copy(&mut &questions.envoy, &mut &questions.redis);
            let _ = questions.redis.shutdown(Shutdown::Both);
        });
        thread::spawn(move || {
            let _ = answers.carry_answers(&state);
            let _ = answers.envoy.shutdown(Shutdown::Read);
        });
    }
}

impl Link {
    fn carry_answers(&self, state: &State) -> io::Result<()> {
        let (mut redis, mut envoy) = (&self.redis, &self.envoy);
        envoy.set_nodelay(true)?;
        redis.set_nodelay(true)?;
        let mut chunk = vec![0; 64 * 1024];
        loop {
            let length = redis.read(&mut chunk)?;
            if length == 0 {
                return Ok(());
            }
            let answer = &chunk[..length];
            let fault = lock(&state.fault).clone();
            match fault {
                Fault::None => envoy.write_all(answer)?,
                Fault::Silence => {}
                Fault::Twice => envoy.write_all(&answer.repeat(2))?,
                Fault::Garbage(garbage) => envoy.write_all(&garbage)?,
                Fault::Drip(pause) => {
                    for byte in answer {
                        envoy.write_all(&[*byte])?;
                        thread::sleep(pause);
                    }
                }
                Fault::Late(delay) => {
                    thread::sleep(delay);
                    envoy.write_all(answer)?;
                }
                Fault::ResetMidway => {
                    envoy.write_all(&answer[..length / 2])?;
                    // Long enough for the half to have been read before the reset takes the rest away.
                    thread::sleep(Duration::from_millis(2));
                    self.reset();
                    return Ok(());
                }
            }
        }
    }

    /// Wakes both carriers; the last one closes Envoy's connection, which the zero linger makes a reset.
    fn reset(&self) {
        // These fail only for connections that are closed already.
        let _ = SockRef::from(&self.envoy).set_linger(Some(Duration::ZERO));
        let _ = self.envoy.shutdown(Shutdown::Read);
        let _ = self.redis.shutdown(Shutdown::Both);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
