//! More connections to one limiter than it accepts.

use std::time::Duration;

use e2e::client::Request;
use e2e::wait;

use crate::Progress;
use crate::clients::{assert_all_served, send};
use crate::compose::{Compose, docker};
use crate::production::{CLIENTS, under_load};

/// As in `deploy/compose/limiter.yaml`.
const LIMIT: usize = 4096;

/// The number of connections over the limit.
const EXTRA: usize = 200;

/// Clients for which the load balancer opens more connections than for [`CLIENTS`].
const MANY: usize = 4 * CLIENTS;

/// Each of these clients sends some requests.
const CROWD_STAYS: Duration = Duration::from_secs(2);

/// Opens connections from inside the limiter's container, whose port is not published, and sends half a request on
/// each. Prints the number of opened connections, the number that Envoy has closed at once since its start, and the
/// memory of the container in bytes.
const OPEN: &str = r#"
ulimit -n 16384
# Writes to a closed connection are ignored.
trap '' PIPE
opened=0
for ((i = 0; i < COUNT; i++)); do
  exec {fd}<>/dev/tcp/127.0.0.1/8000 || break
  printf 'GET /test HTTP/1.1\r\nHost: x\r\n' >&"$fd"
  opened=$((opened + 1))
done 2>/dev/null
sleep 1
exec {admin}<>/dev/tcp/127.0.0.1/9901
printf 'GET /stats?filter=downstream_global_cx HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n' >&"$admin"
closed=0
while read -r name value; do
  [[ $name == listener.0.0.0.0_8000.downstream_global_cx_overflow: ]] && closed=${value%$'\r'}
done < <(cat <&"$admin")
cd /sys/fs/cgroup
echo "$opened $closed $(cat memory/memory.usage_in_bytes memory.current 2>/dev/null)"
"#;

pub(crate) fn run(compose: &Compose, progress: &mut Progress) {
    let limiter = compose.names("limiter").remove(0);
    // The full limiter closes further connections, some with a request on them: the load balancer must have enough.
    let ((), many) = under_load(MANY, || std::thread::sleep(CROWD_STAYS));
    assert_all_served(&many);
    let ((opened, closed, memory), exchanges) = under_load(CLIENTS, || open(&limiter, LIMIT + EXTRA));
    assert_eq!(opened, LIMIT + EXTRA);
    // The connections of the load balancer count too.
    assert!((EXTRA..EXTRA + MANY).contains(&closed), "{closed} were closed at once");
    assert!(memory < 512 << 20, "{memory} bytes");
    let count = assert_all_served(&exchanges);
    wait::until("connections are accepted again", || {
        let closed_before = open(&limiter, 0).1;
        (open(&limiter, 1).1 == closed_before).then_some(())
    });
    assert_eq!(send(&Request::get("/health")).status, 200);
    progress.passed(format!(
        "{opened} connections to one limiter, {closed} closed at once, {} MiB in its container, \
         none of {count} requests lost",
        memory >> 20
    ));
}

/// Runs [`OPEN`]; returns its three numbers.
#[track_caller]
fn open(limiter: &str, count: usize) -> (usize, usize, usize) {
    let printed = docker(&["exec", limiter, "bash", "-c", &OPEN.replace("COUNT", &count.to_string())]);
    let numbers: Vec<usize> = printed.split_whitespace().flat_map(str::parse).collect();
    let [opened, closed, memory] = numbers[..] else { panic!("three numbers in {printed}") };
    (opened, closed, memory)
}
