//! Shared data as Envoy keeps it, and a handle to it through which other workers get a word in.
//!
//! A write with a version succeeds if the record still has it; `u32::MAX` stands for "not there yet", which is what the
//! host makes of a write to a missing record; versions never repeat within a world. Other workers of the same Envoy may
//! act before every read, every look at the clock and every write, and there again, so every race between two and
//! three workers comes up.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use dynamic_rate_limiter::control::Control;
use dynamic_rate_limiter::store::{Conflict, SharedData};
use dynamic_rate_limiter::time::StoreTime;

use crate::report::Happening;
use crate::world::World;

/// The version by which the host names a record that is not there.
const ABSENT: u32 = u32::MAX;

/// The map of one Envoy process.
#[derive(Default)]
pub struct SharedMap {
    records: RefCell<HashMap<String, (Vec<u8>, u32)>>,
    last_version: Cell<u32>,
    changes: Cell<u64>,
}

impl SharedMap {
    /// The host's `get`.
    fn get(&self, key: &str) -> (Option<Vec<u8>>, Option<u32>) {
        self.records.borrow().get(key).cloned().unzip()
    }

    /// The host's `set`: with no version it writes whatever is there.
    fn set(&self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), Conflict> {
        let mut records = self.records.borrow_mut();
        let stored = records.get(key).map_or(ABSENT, |(_, version)| *version);
        if version.is_some_and(|version| version != stored) {
            return Err(Conflict);
        }
        self.last_version.set(self.last_version.get() + 1);
        match records.get_mut(key) {
            Some((stored, version)) => {
                stored.clear();
                stored.extend_from_slice(value);
                *version = self.last_version.get();
            }
            None => drop(records.insert(key.to_owned(), (value.to_vec(), self.last_version.get()))),
        }
        Ok(())
    }
}

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

    fn map(&self) -> &SharedMap {
        &self.world.envoys[self.envoy].map
    }
}

impl SharedData for Host<'_> {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        self.world.interleave(self.envoy, self.depth);
        if key.contains("/key/") || key.contains("/address/") {
            self.read_after.set(Some(self.world.oracle.borrow().admissions));
        }
        let (value, version) = self.map().get(key);
        value.zip(version)
    }

    fn compare_and_set(&self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), Conflict> {
        self.world.interleave(self.envoy, self.depth);
        let written = self.map().set(key, value, Some(version.unwrap_or(ABSENT)));
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
        Some(self.map().changes.get())
    }

    fn announce_change(&self) {
        self.map().changes.set(self.map().changes.get() + 1);
    }

    fn now(&self) -> StoreTime {
        self.world.interleave(self.envoy, self.depth);
        self.clock_us.set(self.world.envoys[self.envoy].clock_us(self.world.now_us.get()));
        StoreTime::from_micros(self.clock_us.get())
    }
}
