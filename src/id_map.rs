//! A map whose keys are ids that are counted up.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map by id. No client can choose an id, so a keyed hash, which costs a request ten times as much, would protect
/// nothing.
pub type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

/// Spreads the ids over the table.
#[derive(Debug, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32((*byte).into()));
    }

    fn write_u32(&mut self, id: u32) {
        self.write_u64(id.into());
    }

    fn write_u64(&mut self, id: u64) {
        // 2^64 divided by the golden ratio: the product's high bits, which the table looks at, differ for neighbours.
        self.0 = (self.0 ^ id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
