//! The properties, one file for each kind of input.

mod admin;
mod documents;
mod frames;
mod identity;
mod plugin;
mod request;
mod resp;
mod session;

use std::time::Duration;

use dynamic_rate_limiter::admission::Decision;
use dynamic_rate_limiter::config::Headers;
use dynamic_rate_limiter::headers::write_headers;
use dynamic_rate_limiter::time::WallClock;

use crate::Random;

/// A function that panics where a property does not hold.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and its folder in the corpus.
    pub name: &'static str,
    /// The property, for any bytes at all.
    pub check: fn(&[u8]),
    /// Texts that inputs of this kind are likely to have, with bars between them.
    pub words: &'static str,
}

pub const ALL: &[Target] = &[
    Target { name: "plugin", check: plugin::check, words: plugin::WORDS },
    Target { name: "documents", check: documents::check, words: plugin::WORDS },
    Target { name: "request", check: request::check, words: request::WORDS },
    Target { name: "admin", check: admin::check, words: admin::WORDS },
    Target { name: "resp", check: resp::check, words: resp::WORDS },
    Target { name: "session", check: session::check, words: resp::WORDS },
    Target { name: "frames", check: frames::check, words: "\0\0\0\0\0|\0\0\0\0\u{1}" },
    Target { name: "identity", check: identity::check, words: identity::WORDS },
];

/// The target of that name.
pub fn named(name: &str) -> Option<Target> {
    ALL.iter().find(|target| target.name == name).copied()
}

/// Splits `bytes` into pieces of random sizes, some of them empty.
fn pieces<'a>(bytes: &'a [u8], random: &mut Random) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let most = random.choose(&[1, 3, 17, bytes.len() as u64]);
        let (piece, after) = rest.split_at((random.below(most + 1) as usize).min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// The headers of a decision, if it has any, are complete, in range, and contain no line break.
fn check_headers(decision: &Decision, wall_clock: WallClock) {
    let answer = match decision {
        Decision::Admitted(answer)
        | Decision::Rejected(answer)
        | Decision::Unavailable(answer)
        | Decision::Shed(answer, _) => answer,
        Decision::Exempt
        | Decision::Replied(_)
        | Decision::AwaitsBody(_)
        | Decision::AwaitsRedis(_)
        | Decision::AwaitsDocuments => return,
    };
    if let Some(verdict) = answer.verdict {
        assert!(verdict.remaining <= verdict.capacity, "{verdict:?}");
    }
    let all = Headers { rate_limit: true, system_health: true, processing_time: true, ietf: true };
    let mut names = Vec::new();
    write_headers(answer, all, wall_clock, Duration::from_micros(234), |name, value| {
        assert!(
            !value.is_empty() && value.iter().all(|byte| matches!(byte, b' '..=b'~')),
            "{name}: {value:?}"
        );
        names.push(name);
    });
    let written = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), written, "a header twice");
}
