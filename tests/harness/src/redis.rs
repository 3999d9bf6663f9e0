//! A real Redis that a test can start, stop, freeze, kill and query.
//!
//! The test connects through a socket file and as a separate user. So it works with any password, and all traffic on
//! the TCP port is Envoy's.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use redis::{Client, Connection, FromRedisValue, RedisError, RedisResult, Value, from_redis_value};
use tempfile::TempDir;

use crate::process::{self, ChildProcess};
use crate::{canary, port, wait};

/// For commands of the test. Only a test itself freezes Redis, so a timeout is a defect of the test.
const TIMEOUT: Duration = Duration::from_secs(20);

const START: Duration = Duration::from_secs(30);

const SOCKET: &str = "redis.sock";

const USER: &str = "e2e-harness";

/// A `redis-server`, running or not.
#[derive(Debug)]
pub struct Redis {
    dir: TempDir,
    address: SocketAddr,
    /// For the other nodes of a cluster, and for clients that want TLS.
    second_port: u16,
    process: Option<ChildProcess>,
}

impl Redis {
    /// Starts a Redis without persistence, on its own port.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a Redis with these lines in its configuration file; `{second}` is replaced by a second port.
    #[track_caller]
    pub fn start_with(lines: &[&str]) -> Self {
        let mut redis = Self::not_started(lines);
        redis.restart();
        redis
    }

    /// Starts a node of a cluster.
    #[track_caller]
    pub fn start_node() -> Self {
        Self::start_with(&["cluster-enabled yes", "cluster-node-timeout 2000", "cluster-port {second}"])
    }

    /// A Redis with an address, which does not run until [`Redis::restart`].
    #[track_caller]
    pub fn not_started(lines: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let address = port::reserve();
        let second_port = port::reserve().port();
        let mut config = format!(
            "bind {}\nport {}\nunixsocket {}\ndir {}\n\
             save \"\"\nappendonly no\nuser {USER} on nopass +@all ~* &*\n",
            address.ip(),
            address.port(),
            dir.path().join(SOCKET).display(),
            dir.path().display(),
        );
        for line in lines {
            config += &line.replace("{second}", &second_port.to_string());
            config.push('\n');
        }
        fs::write(dir.path().join("redis.conf"), config).expect("a configuration written");
        Self { dir, address, second_port, process: None }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn tls_address(&self) -> SocketAddr {
        SocketAddr::new(self.address.ip(), self.second_port)
    }

    #[track_caller]
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("Redis runs").id()
    }

    /// The port for the other nodes of its cluster.
    pub fn bus_port(&self) -> u16 {
        self.second_port
    }

    /// Starts it again on the same port, and waits until it answers.
    #[track_caller]
    pub fn restart(&mut self) {
        self.launch("Redis answers", |redis| redis.try_command(&["PING"]).ok());
    }

    /// [`Redis::restart`] without waiting until it has loaded its data; until then it replies `LOADING`.
    #[track_caller]
    pub fn restart_loading(&mut self) {
        self.launch("Redis listens", |redis| {
            redis.try_command(&["PING"]).map_or_else(|error| error.code().map(drop), |_| Some(()))
        });
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Freezes it: connections stay open and the kernel accepts new ones, but there are no replies.
    #[track_caller]
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// Ends a [`Redis::freeze`].
    #[track_caller]
    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    /// Runs one command on a connection of its own.
    #[track_caller]
    pub fn command(&self, words: &[&str]) -> Reply {
        self.try_command(words)
            .unwrap_or_else(|error| panic!("{words:?}: {error}\n{}", process::tail(&self.log_file())))
    }

    pub fn try_command(&self, words: &[&str]) -> RedisResult<Reply> {
        command(words).query(&mut self.connect()?).map(Reply)
    }

    /// Sends a command without waiting for its reply.
    #[track_caller]
    pub fn begin(&self, words: &[&str]) {
        let begun = self
            .connect()
            .and_then(|mut connection| connection.send_packed_command(&command(words).get_packed_command()));
        begun.expect("a command sent");
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join(SOCKET)
    }

    /// A connection through the socket file, as the user of the tests.
    pub fn connect(&self) -> RedisResult<Connection> {
        let url = format!("redis+unix://{}", self.socket().display());
        let mut connection = Client::open(url)?.get_connection_with_timeout(TIMEOUT)?;
        connection.set_read_timeout(Some(TIMEOUT))?;
        connection.set_write_timeout(Some(TIMEOUT))?;
        // A test may have a server without `AUTH`.
        let _ = command(&["AUTH", USER, "any"]).query::<()>(&mut connection);
        Ok(connection)
    }

    /// A bucket's fields, `(tokens, last_refill)`; `None` if there is no such key.
    #[track_caller]
    pub fn bucket(&self, key: &str) -> Option<(String, String)> {
        let mut fields = self.command(&["HGETALL", key]).texts();
        if fields.is_empty() {
            return None;
        }
        let mut take = |name: &str| {
            let at = fields.iter().step_by(2).position(|field| field == name);
            let at = at.unwrap_or_else(|| panic!("no {name} in {fields:?}")) * 2;
            fields.drain(at..at + 2).next_back().expect("a field has a value")
        };
        let bucket = (take("tokens"), take("last_refill"));
        assert_eq!(fields, [""; 0], "further fields in {key}");
        Some(bucket)
    }

    /// All keys in order, except for the temporary key of probes.
    #[track_caller]
    pub fn keys(&self) -> Vec<String> {
        let mut keys = self.command(&["KEYS", "*"]).texts();
        keys.retain(|key| !key.ends_with("#probe"));
        keys.sort();
        keys
    }

    /// How many times this command has run since the last `CONFIG RESETSTAT`.
    #[track_caller]
    pub fn calls(&self, command: &str) -> u64 {
        let stats = self.command(&["INFO", "commandstats"]);
        let prefix = format!("cmdstat_{command}:calls=");
        stats
            .text()
            .lines()
            .find_map(|line| line.strip_prefix(&prefix)?.split(',').next()?.parse().ok())
            .unwrap_or(0)
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("redis.log")
    }

    /// Starts it, and waits until `probe` returns a value.
    #[track_caller]
    fn launch<T>(&mut self, what: &str, probe: impl Fn(&Self) -> Option<T>) {
        assert!(self.process.is_none(), "it already runs");
        let mut command = Command::new(redis_server());
        command.arg(self.dir.path().join("redis.conf"));
        let mut process = ChildProcess::start(command, self.log_file());
        process.await_ready(START, what, || probe(self));
        self.process = Some(process);
    }

    #[track_caller]
    fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.id()).expect("a process id");
        // SAFETY: kill takes two integers; the process is our child and not waited for, so its id is its own.
        let result = unsafe { libc::kill(pid, signal) };
        assert_eq!(result, 0, "signal {signal}: {}", io::Error::last_os_error());
    }
}

impl Redis {
    /// Every secret in its keys and values, its log and its ACL log; only in its log if it does not run.
    #[track_caller]
    pub fn secrets(&self) -> Vec<String> {
        let mut shown = String::new();
        if self.process.is_some() {
            // It may be frozen or still loading.
            self.signal(libc::SIGCONT);
            let keys =
                wait::until_within(START, "Redis lists its keys", || self.try_command(&["KEYS", "*"]).ok());
            for key in keys.texts() {
                for command in ["HGETALL", "GET"] {
                    shown += &format!("{key} {}\n", self.shown(&[command, &key]));
                }
            }
            shown += &self.shown(&["ACL", "LOG"]);
        }
        canary::search([("Redis", shown.into_bytes()), ("Redis' log", self.log().into_bytes())])
    }

    fn shown(&self, words: &[&str]) -> String {
        self.try_command(words).map_or_else(|error: RedisError| error.to_string(), |reply| text_of(&reply.0))
    }
}

/// A reply of Redis.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply(Value);

impl Reply {
    #[track_caller]
    pub fn text(&self) -> String {
        self.read()
    }

    /// `None` for the null reply.
    #[track_caller]
    pub fn optional_text(&self) -> Option<String> {
        self.read()
    }

    #[track_caller]
    pub fn integer(&self) -> i64 {
        self.read()
    }

    #[track_caller]
    pub fn texts(&self) -> Vec<String> {
        self.read()
    }

    #[track_caller]
    fn read<T: FromRedisValue>(&self) -> T {
        from_redis_value(self.0.clone()).unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }
}

fn command(words: &[&str]) -> redis::Cmd {
    let mut command = redis::Cmd::new();
    command.arg(words);
    command
}

/// All content of a reply as text.
fn text_of(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::Array(values) => values.iter().map(text_of).collect::<Vec<_>>().join(" "),
        other => format!("{other:?}"),
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let secrets = if std::thread::panicking() { Vec::new() } else { self.secrets() };
        self.kill();
        canary::assert_none(&secrets);
    }
}

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Starts this program from now on, instead of the one in `REDIS_SERVER`.
pub fn use_program(redis_server: PathBuf) {
    let _ = PROGRAM.set(redis_server);
}

fn redis_server() -> &'static Path {
    let named = || std::env::var_os("REDIS_SERVER").map_or_else(|| "redis-server".into(), PathBuf::from);
    PROGRAM.get_or_init(named)
}
