//! Many Envoys on one Redis in one seeded, single-threaded world: the real limiter, its stores and its session with
//! Redis under a virtual clock, with faults drawn at random, and an oracle that judges every decision.
//!
//! Everything in a world follows from its seed. World `i` of a run has a seed of its own, so that a failure is brought
//! back by one short world. In reading order: [`oracle`] (what must hold), [`workload`] (who asks for what),
//! [`shared_data`] and [`redis`] (the stores), [`worker`] and [`world`] (what happens when), `streams`,
//! `decisions`, [`faults`], [`report`].

mod decisions;
pub mod faults;
pub mod oracle;
pub mod redis;
pub mod report;
pub mod shared_data;
mod streams;
pub mod worker;
pub mod workload;
pub mod world;

pub use harness::random;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::redis::{Client, Server};
use crate::report::Tally;
use crate::world::World;

/// The seed of world `index` in a run with `seed`.
pub fn world_seed(seed: u64, index: u64) -> u64 {
    match index {
        0 => seed,
        _ => random::Random::new(seed.wrapping_add(index.wrapping_mul(0x9e37_79b9))).next() >> 16,
    }
}

/// Runs one world, on a real Redis where there is a connection to one. What is wrong comes back as text.
pub fn run(seed: u64, client: &mut Option<Client>, tally: &mut Tally) -> Result<(), String> {
    let server = client.take().map_or_else(Server::model, Server::real);
    let world = World::new(seed, server);
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    let found = match ended {
        Ok(found) => found,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(format!("panicked: {}\n{}", text.unwrap_or_default(), world.history(None)))
        }
    };
    tally.join(&world.tally());
    *client = world.into_server().into_client();
    found
}
