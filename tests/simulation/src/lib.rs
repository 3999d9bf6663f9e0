//! A simulation of several Envoys with one Redis, in a single thread: the real limiter, its stores and its session with
//! Redis under a virtual clock, with random faults, and an oracle that checks every decision.
//!
//! A world is determined by its seed. Each world of a run has its own seed, so that one short world repeats a failure.
//! In reading order: [`oracle`] (the properties), [`workload`] (the requests), [`shared_data`] and [`redis`] (the
//! stores), [`worker`] and [`world`] (the events), `requests`, `streams`, `decisions`, [`faults`], [`report`].

mod decisions;
pub mod faults;
pub mod oracle;
pub mod redis;
pub mod report;
mod requests;
pub mod shared_data;
mod streams;
pub mod worker;
pub mod workload;
pub mod world;

pub use harness::random;

use harness::catch_panic;

use crate::redis::{Client, Server};
use crate::report::Totals;
use crate::world::World;

/// The seed of world `index` in a run with `seed`.
pub fn world_seed(seed: u64, index: u64) -> u64 {
    match index {
        0 => seed,
        _ => random::Random::new(seed.wrapping_add(index.wrapping_mul(0x9e37_79b9))).next() >> 16,
    }
}

/// Runs one world, on a real Redis if there is a connection to one; the error is a text.
pub fn run(seed: u64, client: &mut Option<Client>, totals: &mut Totals) -> Result<(), String> {
    let server = client.take().map_or_else(Server::model, Server::real);
    let world = World::new(seed, server);
    let found = catch_panic(|| world.run())
        .unwrap_or_else(|panic| Err(format!("panicked: {panic}\n{}", world.history(None))));
    totals.join(&world.totals());
    *client = world.into_server().into_client();
    found
}
