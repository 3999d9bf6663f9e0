//! The faults: how each is injected, how it ends, and how it is counted.

use std::time::Duration;

use e2e::wire::Fault;

use super::{Case, TICK, TIMEOUT};

/// Connections that are refused, lost, or reset.
pub(super) const CONNECTION: &[Case] = &[
    Case {
        name: "connections are refused",
        inject: |world| world.wire.refuse(),
        heal: |world| world.wire.listen(),
        reasons: &["disconnected"],
        opens: true,
    },
    Case {
        name: "connections are cut again and again",
        inject: |world| {
            // Often enough that a command is in flight at some cut.
            for _ in 0..60 {
                world.wire.cut();
                std::thread::sleep(Duration::from_millis(20));
            }
        },
        heal: |_| {},
        reasons: &["disconnected"],
        opens: false,
    },
    Case {
        name: "resets in the middle of a reply",
        inject: |world| world.wire.fault(Fault::ResetMidway),
        heal: |world| world.wire.fault(Fault::None),
        reasons: &["disconnected"],
        opens: true,
    },
];

/// Late and missing replies.
pub(super) const TIME: &[Case] = &[
    Case {
        name: "frozen",
        inject: |world| world.redis.freeze(),
        heal: |world| world.redis.thaw(),
        reasons: &["timeout"],
        opens: true,
    },
    Case {
        name: "frozen for less than a timeout, again and again",
        inject: |world| {
            for _ in 0..10 {
                world.redis.freeze();
                std::thread::sleep(TIMEOUT / 3);
                world.redis.thaw();
                std::thread::sleep(TIMEOUT / 3);
            }
        },
        heal: |_| {},
        reasons: &[],
        opens: false,
    },
    Case {
        name: "frozen for more than a timeout, again and again",
        inject: |world| {
            for _ in 0..6 {
                world.redis.freeze();
                std::thread::sleep(TIMEOUT + TICK + TIMEOUT / 2);
                world.redis.thaw();
                std::thread::sleep(TIMEOUT / 2);
            }
        },
        heal: |_| {},
        reasons: &["timeout"],
        opens: false,
    },
    Case {
        name: "paused",
        inject: |world| {
            world.redis.command(&["CLIENT", "PAUSE", "3000", "ALL"]);
        },
        // It cannot be ended earlier: `CLIENT UNPAUSE` would wait, too.
        heal: |world| {
            world.redis.command(&["PING"]);
        },
        reasons: &["timeout"],
        opens: true,
    },
    Case {
        name: "slow",
        inject: |world| world.wire.fault(Fault::Late(TIMEOUT * 3)),
        heal: |world| world.wire.fault(Fault::None),
        reasons: &["timeout"],
        opens: true,
    },
    Case {
        name: "accepts and never answers",
        inject: |world| world.wire.fault(Fault::Silence),
        heal: |world| world.wire.fault(Fault::None),
        reasons: &["timeout"],
        opens: true,
    },
    Case {
        name: "drips a byte at a time",
        inject: |world| world.wire.fault(Fault::Drip(Duration::from_millis(10))),
        heal: |world| world.wire.fault(Fault::None),
        reasons: &["timeout"],
        opens: true,
    },
    Case {
        name: "single bytes, but in time",
        inject: |world| {
            world.wire.fault(Fault::Drip(Duration::ZERO));
            std::thread::sleep(Duration::from_secs(1));
        },
        heal: |world| world.wire.fault(Fault::None),
        reasons: &[],
        opens: false,
    },
    Case {
        name: "busy with a script that does not end",
        inject: |world| {
            world.redis.command(&["CONFIG", "SET", "busy-reply-threshold", "1"]);
            world.redis.begin(&["EVAL", "while true do end", "0"]);
        },
        heal: |world| {
            world.redis.command(&["SCRIPT", "KILL"]);
        },
        reasons: &["error", "timeout"],
        opens: true,
    },
];

pub(super) const REPLIES: &[Case] = &[
    Case {
        name: "every reply is sent twice",
        inject: |world| {
            world.wire.fault(Fault::Twice);
            std::thread::sleep(Duration::from_secs(1));
        },
        heal: |world| world.wire.fault(Fault::None),
        reasons: &["protocol"],
        opens: false,
    },
    Case {
        name: "an HTTP server answers",
        inject: |world| world.wire.fault(garbage(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")),
        heal: |world| world.wire.fault(Fault::None),
        reasons: &["protocol"],
        opens: true,
    },
    Case {
        name: "a reply without an end",
        inject: |world| world.wire.fault(garbage(b"$2147483647\r\nxxxxxxxx")),
        heal: |world| world.wire.fault(Fault::None),
        reasons: &["protocol", "timeout"],
        opens: true,
    },
    Case {
        name: "replies nested without an end",
        inject: |world| world.wire.fault(garbage(b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n")),
        heal: |world| world.wire.fault(Fault::None),
        reasons: &["protocol"],
        opens: true,
    },
    Case {
        name: "binary nonsense",
        inject: |world| world.wire.fault(garbage(b"\x00\xff\xfe\x16\x03\x01\r\n\r\r\n\n")),
        heal: |world| world.wire.fault(Fault::None),
        reasons: &["protocol"],
        opens: true,
    },
    Case {
        name: "valid replies to other commands",
        inject: |world| world.wire.fault(garbage(b"+OK\r\n")),
        heal: |world| world.wire.fault(Fault::None),
        reasons: &["protocol"],
        opens: true,
    },
    Case {
        name: "a reply of our script with another number",
        inject: |world| {
            world.wire.fault(garbage(b"$43\r\n9 1 4.000000000000 1700000000.000000 and more\r\n"))
        },
        heal: |world| world.wire.fault(Fault::None),
        reasons: &["protocol"],
        opens: true,
    },
];

pub(super) const REFUSALS: &[Case] = &[
    Case {
        name: "maxmemory reached",
        inject: |world| {
            world.redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
        },
        heal: |world| {
            world.redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
        },
        reasons: &["oom"],
        opens: true,
    },
    Case {
        name: "become a replica",
        inject: |world| {
            // Of no running server, so that it keeps its data.
            world.redis.command(&["REPLICAOF", "127.0.0.1", "1"]);
        },
        heal: |world| {
            world.redis.command(&["REPLICAOF", "NO", "ONE"]);
        },
        reasons: &["readonly"],
        opens: true,
    },
    Case {
        name: "a password is set",
        inject: |world| {
            world.redis.command(&["CONFIG", "SET", "requirepass", "c4nary-new"]);
            world.wire.cut();
        },
        heal: |world| {
            world.redis.command(&["CONFIG", "SET", "requirepass", ""]);
        },
        reasons: &["auth", "disconnected"],
        opens: true,
    },
    Case {
        name: "scripts are forbidden",
        inject: |world| {
            world.redis.command(&["ACL", "SETUSER", "default", "-eval", "-evalsha"]);
        },
        heal: |world| {
            world.redis.command(&["ACL", "SETUSER", "default", "+eval", "+evalsha"]);
        },
        reasons: &["auth"],
        opens: true,
    },
];

/// Replies of a node that has lost the cluster.
pub(super) const CLUSTER: &[Case] = &[Case {
    name: "the cluster is down",
    inject: |world| {
        world.redis.command(&["CLUSTER", "DELSLOTSRANGE", "0", "16383"]);
    },
    heal: |world| {
        world.redis.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    },
    reasons: &["moved"],
    opens: true,
}];

fn garbage(bytes: &[u8]) -> Fault {
    Fault::Garbage(bytes.to_vec())
}
