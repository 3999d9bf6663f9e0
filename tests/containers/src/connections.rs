//! More connections to one limiter than it accepts.

use std::time::Duration;

use e2e::client::Request;
use e2e::wait;

use crate::Story;
use crate::clients::{Clients, ask, assert_all_served};
use crate::compose::{Compose, docker};
use crate::production::{CLIENTS, request};

/// As `deploy/compose/limiter.yaml` says.
const LIMIT: usize = 4096;

/// How many more than that are opened.
const BEYOND: usize = 200;

/// How long the load balancer opens connections before the limiter is full.
const POOLS_FILL: Duration = Duration::from_secs(3);

/// Opens connections from within the limiter's container, whose port is not published, each with half a
/// request on it, and keeps them while Envoy is asked: how many were opened, how many it has closed at once
/// in its life, the memory of the container in bytes.
const OPEN: &str = r#"
ulimit -n 16384
# What is written to a connection that was closed at once.
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

pub(crate) fn run(compose: &Compose, story: &mut Story) {
    let limiter = compose.names("limiter").remove(0);
    let load = Clients::start(CLIENTS, Duration::ZERO, &request());
    // The load balancer has as many connections as it needs: one more to the limiter that is full would be closed.
    std::thread::sleep(POOLS_FILL);
    let (opened, closed, memory) = open(&limiter, LIMIT + BEYOND);
    assert_eq!(opened, LIMIT + BEYOND);
    // Those of the load balancer are there too.
    assert!((BEYOND..BEYOND + 2 * CLIENTS).contains(&closed), "{closed} were closed at once");
    assert!(memory < 512 << 20, "{memory} bytes");
    let count = assert_all_served(&load.stop());
    wait::until("connections are accepted again", || {
        let closed_before = open(&limiter, 0).1;
        (open(&limiter, 1).1 == closed_before).then_some(())
    });
    assert_eq!(ask(&Request::get("/health")).status, 200);
    story.seen(format!(
        "{opened} connections to one limiter, {closed} closed at once, {} MiB in its container, \
         none of {count} requests lost",
        memory >> 20
    ));
}

/// What [`OPEN`] prints.
#[track_caller]
fn open(limiter: &str, count: usize) -> (usize, usize, usize) {
    let printed = docker(&["exec", limiter, "bash", "-c", &OPEN.replace("COUNT", &count.to_string())]);
    let numbers: Vec<usize> = printed.split_whitespace().flat_map(str::parse).collect();
    let [opened, closed, memory] = numbers[..] else { panic!("three numbers in {printed}") };
    (opened, closed, memory)
}
