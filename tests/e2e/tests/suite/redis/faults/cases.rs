//! The faults: how each is injected, how it ends, and how it is counted.

use std::thread::sleep;
use std::time::Duration;

use e2e::wire::Fault;

use super::Injection::{Command, Other, Passing, Replies};
use super::{Case, Injection, TICK, TIMEOUT, World};

const DISCONNECTED: &[&str] = &["disconnected"];
const LATE: &[&str] = &["timeout"];
const PROTOCOL: &[&str] = &["protocol"];

/// Connections that are refused, lost, or reset.
pub(super) const CONNECTION: &[Case] = &[
    case(
        "connections are refused",
        DISCONNECTED,
        Other(|world| world.wire.refuse(), |world| world.wire.listen()),
    ),
    case("connections are cut again and again", DISCONNECTED, Passing(cut_again_and_again)),
    case("resets in the middle of a reply", DISCONNECTED, Replies(Fault::ResetMidway)),
];

/// Late and missing replies.
pub(super) const TIME: &[Case] = &[
    case("frozen", LATE, Other(|world| world.redis.freeze(), |world| world.redis.thaw())),
    case(
        "frozen for less than a timeout, again and again",
        &[],
        Passing(|world| freeze_again_and_again(world, 10, TIMEOUT / 3, TIMEOUT / 3)),
    ),
    case(
        "frozen for more than a timeout, again and again",
        LATE,
        Passing(|world| freeze_again_and_again(world, 6, TIMEOUT + TICK + TIMEOUT / 2, TIMEOUT / 2)),
    ),
    // It cannot be ended earlier: `CLIENT UNPAUSE` would wait, too.
    case("paused", LATE, Command(&["CLIENT", "PAUSE", "3000", "ALL"], &["PING"])),
    case("slow", LATE, Replies(Fault::Late(TIMEOUT.saturating_mul(3)))),
    case("accepts and never answers", LATE, Replies(Fault::Silence)),
    case("drips a byte at a time", LATE, Replies(Fault::Drip(Duration::from_millis(10)))),
    case(
        "single bytes, but in time",
        &[],
        Passing(|world| change_replies_for_a_second(world, Fault::Drip(Duration::ZERO))),
    ),
    case(
        "busy with a script that does not end",
        &["error", "timeout"],
        Other(
            |world| {
                world.redis.command(&["CONFIG", "SET", "busy-reply-threshold", "1"]);
                world.redis.begin(&["EVAL", "while true do end", "0"]);
            },
            |world| drop(world.redis.command(&["SCRIPT", "KILL"])),
        ),
    ),
];

/// Replies that are not to our commands.
pub(super) const REPLIES: &[Case] = &[
    case(
        "every reply is sent twice",
        PROTOCOL,
        Passing(|world| change_replies_for_a_second(world, Fault::Twice)),
    ),
    garbage("an HTTP server answers", b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"),
    case(
        "a reply without an end",
        &["protocol", "timeout"],
        Replies(Fault::Garbage(b"$2147483647\r\nxxxxxxxx")),
    ),
    garbage("replies nested without an end", b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n"),
    garbage("binary nonsense", b"\x00\xff\xfe\x16\x03\x01\r\n\r\r\n\n"),
    garbage("valid replies to other commands", b"+OK\r\n"),
    garbage(
        "a reply of our script with another number",
        b"$43\r\n9 1 4.000000000000 1700000000.000000 and more\r\n",
    ),
];

pub(super) const REFUSALS: &[Case] = &[
    case(
        "maxmemory reached",
        &["oom"],
        Command(&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"]),
    ),
    // Of no running server, so that it keeps its data.
    case(
        "become a replica",
        &["readonly"],
        Command(&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]),
    ),
    case(
        "a password is set",
        &["auth", "disconnected"],
        Other(
            |world| {
                world.redis.command(&["CONFIG", "SET", "requirepass", "c4nary-new"]);
                world.wire.cut();
            },
            |world| drop(world.redis.command(&["CONFIG", "SET", "requirepass", ""])),
        ),
    ),
    case(
        "scripts are forbidden",
        &["auth"],
        Command(
            &["ACL", "SETUSER", "default", "-eval", "-evalsha"],
            &["ACL", "SETUSER", "default", "+eval", "+evalsha"],
        ),
    ),
];

/// Replies of a node that has lost the cluster.
pub(super) const CLUSTER: &[Case] = &[case(
    "the cluster is down",
    &["moved"],
    Command(&["CLUSTER", "DELSLOTSRANGE", "0", "16383"], &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]),
)];

const fn case(name: &'static str, reasons: &'static [&'static str], injection: Injection) -> Case {
    Case { name, reasons, injection }
}

/// Every reply is replaced by this one.
const fn garbage(name: &'static str, reply: &'static [u8]) -> Case {
    case(name, PROTOCOL, Replies(Fault::Garbage(reply)))
}

fn cut_again_and_again(world: &mut World) {
    // Often enough that a command is in flight at some cut.
    for _ in 0..60 {
        world.wire.cut();
        sleep(Duration::from_millis(20));
    }
}

fn freeze_again_and_again(world: &mut World, times: u32, frozen: Duration, thawed: Duration) {
    for _ in 0..times {
        world.redis.freeze();
        sleep(frozen);
        world.redis.thaw();
        sleep(thawed);
    }
}

fn change_replies_for_a_second(world: &mut World, fault: Fault) {
    world.wire.fault(fault);
    sleep(Duration::from_secs(1));
    world.wire.fault(Fault::None);
}
