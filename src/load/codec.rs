//! The record of the load as bytes in shared data: little-endian, fields in order, slots with their count before them.

use super::Load;
use super::controller::Controller;
use super::signals::{Counts, Window};
use super::switch::Switch;

/// Names this layout. Code of another version that runs in the same Envoy starts anew.
const LAYOUT: u32 = 3;

impl Load {
    /// The record as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let slots = self.window.slots();
        let mut bytes = Vec::with_capacity((slots.len() + 2) * size_of::<Counts>());
        bytes.extend(LAYOUT.to_le_bytes());
        bytes.extend(self.open_since_us.to_le_bytes());
        bytes.extend(self.window.seconds().to_le_bytes());
        put_part(&mut bytes, &self.switch.encode());
        put_part(&mut bytes, &self.controller.encode());
        bytes.extend((slots.len() as u32).to_le_bytes());
        for counts in slots.chain([&self.open]) {
            put_counts(&mut bytes, counts);
        }
        bytes
    }

    /// The record that these bytes are; `None` where they are none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if reader.u32()? != LAYOUT {
            return None;
        }
        let open_since_us = reader.u64()?;
        let mut window = Window::new(reader.u32()?);
        let switch = Switch::decode(reader.part()?)?;
        let controller = Controller::decode(reader.part()?)?;
        let count = reader.u32()?;
        if count as usize > window.size() {
            return None;
        }
        for _ in 0..count {
            window.push(reader.counts()?);
        }
        let open = reader.counts()?;
        Some(Self { window, switch, controller, open, open_since_us })
    }
}

fn put_part(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend((part.len() as u32).to_le_bytes());
    bytes.extend_from_slice(part);
}

fn put_counts(bytes: &mut Vec<u8>, counts: &Counts) {
    for level in &counts.levels {
        for count in [level.passed, level.refused, level.shed] {
            bytes.extend(count.to_le_bytes());
        }
        bytes.extend(level.kept_milli.to_le_bytes());
    }
    for count in
        [counts.answered, counts.errors, counts.prompt, counts.at_once].iter().chain(counts.latency.buckets())
    {
        bytes.extend(count.to_le_bytes());
    }
    bytes.extend(counts.in_flight_us.to_le_bytes());
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn part(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        let (part, rest) = self.0.split_at_checked(len as usize)?;
        self.0 = rest;
        Some(part)
    }

    fn counts(&mut self) -> Option<Counts> {
        let mut counts = Counts::default();
        for level in &mut counts.levels {
            for count in [&mut level.passed, &mut level.refused, &mut level.shed] {
                *count = self.u32()?;
            }
            level.kept_milli = self.u64()?;
        }
        for count in [&mut counts.answered, &mut counts.errors, &mut counts.prompt, &mut counts.at_once] {
            *count = self.u32()?;
        }
        for bucket in counts.latency.buckets_mut() {
            *bucket = self.u32()?;
        }
        counts.in_flight_us = self.u64()?;
        Some(counts)
    }
}
