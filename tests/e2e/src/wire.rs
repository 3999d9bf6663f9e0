//! The connection between Envoy and Redis, with fault injection.
//!
//! What Envoy sends always reaches the real Redis. The test chooses what happens to replies and to connections, and
//! may change it at any time.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::SockRef;

use crate::{lock, port};

/// What happens to a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// It is never delivered.
    Silence,
    /// It is replaced by these bytes.
    Garbage(&'static [u8]),
    /// It is delivered twice.
    Twice,
    /// One byte at a time, with this pause in between.
    Drip(Duration),
    /// It is delivered after this delay.
    Late(Duration),
    /// Its first half is delivered, and then a reset.
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
    open: Mutex<Vec<Weak<Link>>>,
}

/// One connection from Envoy and the one to Redis. Both close when neither direction is relayed any more.
#[derive(Debug)]
struct Link {
    envoy: TcpStream,
    redis: TcpStream,
}

impl Wire {
    /// Starts a relay without a fault.
    pub fn start(target: SocketAddr) -> Self {
        let state = Arc::new(State {
            target,
            fault: Mutex::new(Fault::None),
            refuses: AtomicBool::new(false),
            open: Mutex::new(Vec::new()),
        });
        let mut wire = Self { address: port::reserve(), state, acceptor: None };
        wire.listen();
        wire
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What happens to replies from now on, also on open connections.
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
            // Wakes the acceptor, which then ends.
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
        // If Redis is not running, dropping the stream closes Envoy's connection.
        let Ok(redis) = TcpStream::connect(state.target) else { continue };
        let link = Arc::new(Link { envoy: stream, redis });
        lock(&state.open).push(Arc::downgrade(&link));
        let (commands, replies, state) = (Arc::clone(&link), link, Arc::clone(state));
        // A broken connection is no error here: the test checks how Envoy handles it.
        thread::spawn(move || {
            let _ = io::copy(&mut &commands.envoy, &mut &commands.redis);
            let _ = commands.redis.shutdown(Shutdown::Both);
        });
        thread::spawn(move || {
            let _ = replies.relay_replies(&state);
            let _ = replies.envoy.shutdown(Shutdown::Read);
        });
    }
}

impl Link {
    fn relay_replies(&self, state: &State) -> io::Result<()> {
        let (mut redis, mut envoy) = (&self.redis, &self.envoy);
        envoy.set_nodelay(true)?;
        redis.set_nodelay(true)?;
        let mut chunk = vec![0; 64 * 1024];
        loop {
            let length = redis.read(&mut chunk)?;
            if length == 0 {
                return Ok(());
            }
            let reply = &chunk[..length];
            let fault = lock(&state.fault).clone();
            match fault {
                Fault::None => envoy.write_all(reply)?,
                Fault::Silence => {}
                Fault::Twice => envoy.write_all(&reply.repeat(2))?,
                Fault::Garbage(garbage) => envoy.write_all(garbage)?,
                Fault::Drip(pause) => {
                    for byte in reply {
                        envoy.write_all(&[*byte])?;
                        thread::sleep(pause);
                    }
                }
                Fault::Late(delay) => {
                    thread::sleep(delay);
                    envoy.write_all(reply)?;
                }
                Fault::ResetMidway => {
                    envoy.write_all(&reply[..length / 2])?;
                    // Long enough for Envoy to read the first half before the reset.
                    thread::sleep(Duration::from_millis(2));
                    self.reset();
                    return Ok(());
                }
            }
        }
    }

    /// Wakes both relay threads; the last one closes Envoy's connection, with a reset because of the zero linger.
    fn reset(&self) {
        // These fail only for connections that are closed already.
        let _ = SockRef::from(&self.envoy).set_linger(Some(Duration::ZERO));
        let _ = self.envoy.shutdown(Shutdown::Read);
        let _ = self.redis.shutdown(Shutdown::Both);
    }
}
