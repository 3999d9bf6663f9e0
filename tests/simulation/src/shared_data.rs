//! A handle to shared data through which other workers get a word in.
//!
//! Other workers of the same Envoy may act before every read, every look at the clock and every write, and there again,
//! so every race between two and three workers comes up.

use std::cell::Cell;

use dynamic_rate_limiter::control::Control;
use dynamic_rate_limiter::store::{Conflict, SharedData};
use dynamic_rate_limiter::time::StoreTime;
use harness::FakeData;

use crate::report::Happening;
use crate::world::World;

/// What one operation of one worker sees of the host.
pub struct Host<'a> {
    world: &'a World,
    envoy: usize,
    /// How many operations this one is inside of.
    depth: u32,
    /// What the clock said when it was last read.
    pub clock_us: Cell<u64>,
    /// If a bucket was read: after how many admissions, the last time.
    pub read_after: Cell<Option<u64>>,
    /// Tokens in the bucket of a key that was last written.
    pub written_pico: Cell<Option<u64>>,
}

impl<'a> Host<'a> {
    pub fn new(world: &'a World, envoy: usize, depth: u32) -> Self {
        let clock_us = Cell::new(world.envoys[envoy].clock_us(world.now_us.get()));
        Self { world, envoy, depth, clock_us, read_after: Cell::default(), written_pico: Cell::default() }
    }

    fn map(&self) -> &FakeData {
        &self.world.envoys[self.envoy].map
    }
}

impl SharedData for Host<'_> {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        self.world.interleave(self.envoy, self.depth);
        if key.contains("/key/") || key.contains("/address/") {
            self.read_after.set(Some(self.world.oracle.borrow().admissions));
        }
        self.map().get(key)
    }

    fn compare_and_set(&self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), Conflict> {
        self.world.interleave(self.envoy, self.depth);
        let written = self.map().compare_and_set(key, value, version);
        if written.is_err() {
            self.world.count(Happening::Conflict);
            return written;
        }
        if key.contains("/key/") {
            let tokens = value.first_chunk().map(|tokens| u64::from_le_bytes(*tokens));
            self.written_pico.set(tokens);
        } else if key.ends_with("/control") {
            let control = Control::decode(value).expect("a control record");
            self.world.note_health(self.envoy, control.health());
        }
        written
    }

    fn changes(&self) -> Option<u64> {
        self.map().changes()
    }

    fn announce_change(&self) {
        self.map().announce_change();
    }

    fn now(&self) -> StoreTime {
        self.world.interleave(self.envoy, self.depth);
        self.clock_us.set(self.world.envoys[self.envoy].clock_us(self.world.now_us.get()));
        StoreTime::from_micros(self.clock_us.get())
    }
}
