//! The load on the upstream, as the workers of one Envoy see it together; and what follows from it.
//!
//! Each worker counts ([`Tally`], [`signals`]) and hands in what it counted several times a second. It is added up in one
//! record in shared data; whoever hands in when a slot of time is over closes it, by pure functions: [`switch`] says
//! which health the bounds ask for, [`controller`] how much of the traffic is too much, [`shed`] who is turned away for
//! it. Every worker finds the outcome in the same record. Knows nothing of requests, Envoy or Redis.

mod codec;
pub mod controller;
pub mod shed;
pub mod signals;
pub mod switch;
mod tally;

pub use tally::{Response, Tally};

use self::controller::Controller;
use self::shed::Cut;
use self::signals::{Counts, Window};
use self::switch::Switch;
use crate::config::Measured;
use crate::health::{Health, Told};
use crate::store::{Contended, SharedData, record_key, update};

/// How often a worker hands in what it counted, in microseconds, where slots are long.
const HAND_IN_US: u64 = 250_000;

/// How often a worker hands in what it counted, in microseconds: twice in a slot at least.
pub fn hand_in_us(bounds: &Measured) -> u64 {
    HAND_IN_US.min(Window::new(bounds.window_seconds).slot_us() / 2)
}

/// Of the times to response headers, the share that has to be within a bound.
pub const LATENCY_QUANTILE: f64 = 0.9;

/// Of the times to response headers, the share that tells whether everybody has to wait.
pub const QUICKEST: f64 = 0.1;

/// What is shown of a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Signals {
    /// Responses.
    pub requests: u32,
    /// The share of server errors among them, 0 to 1.
    pub error_ratio: f64,
    /// The time to response headers that nine in ten do not exceed, in microseconds.
    pub latency_us: Option<f64>,
    /// The same while all was well, in microseconds.
    pub baseline_us: Option<f64>,
    /// Requests that waited for response headers, on average.
    pub in_flight: f64,
}

/// The record: what all workers saw, and what was made of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// The slots that are over.
    pub window: Window,
    /// Which health the bounds ask for.
    pub switch: Switch,
    /// How much is shed.
    pub controller: Controller,
    /// What was seen in the slot that is not over yet.
    open: Counts,
    /// When that began, by the store's clock, in microseconds.
    open_since_us: u64,
}

impl Load {
    /// Nothing seen yet.
    pub fn new(bounds: &Measured, now_us: u64) -> Self {
        Self {
            window: Window::new(bounds.window_seconds),
            switch: Switch::default(),
            controller: Controller::default(),
            open: Counts::default(),
            open_since_us: now_us,
        }
    }

    /// The record as it stands; `None` where nobody has handed in anything.
    pub fn read(data: &impl SharedData, key: &str) -> Option<Self> {
        let (bytes, _) = data.get(key)?;
        Self::decode(&bytes)
    }

    /// Adds what one worker saw to the record, and closes the slots that are over; the record as it is then.
    pub fn hand_in(
        data: &impl SharedData,
        key: &str,
        counts: &Counts,
        bounds: &Measured,
        told: Told,
    ) -> Result<Self, Contended> {
        let updated = update(data, key, |stored, now_us| {
            let stored = stored.and_then(Self::decode);
            let mut load = stored.unwrap_or_else(|| Self::new(bounds, now_us));
            load.add(counts, bounds, told, now_us);
            let bytes = load.encode();
            (load, Some(bytes))
        })?;
        Ok(updated.value)
    }

    /// Adds what was seen up to `now_us`.
    pub fn add(&mut self, counts: &Counts, bounds: &Measured, told: Told, now_us: u64) {
        if self.window.seconds() != bounds.window_seconds {
            // The configuration has changed, and slots of another length cannot be told apart.
            self.window = Window::new(bounds.window_seconds);
            self.open_since_us = now_us;
        }
        // Workers hand in at nearly the same moments, and not quite as often as they should. So that each slot has the same
        // number of times that each has handed in, it ends at such a moment: the one that is nearest to its length.
        let slot_us = self.window.slot_us().max(1);
        let elapsed_us = now_us.saturating_sub(self.open_since_us);
        let over = elapsed_us.saturating_add(hand_in_us(bounds) / 2) / slot_us;
        // After a long pause what came before it is of no interest any more.
        for _ in 0..over.min(self.window.size() as u64 + 1) {
            self.window.push(std::mem::take(&mut self.open));
            self.step(bounds, told);
        }
        if over > 0 {
            self.open_since_us = now_us;
        }
        // Whoever comes first then closes it for all, and what any of them brings belongs to the next one: else it would be
        // chance which slot it is in.
        self.open.merge(counts);
    }

    /// The signals, over the whole window.
    pub fn signals(&self) -> Signals {
        let total = self.window.total();
        let window_us = self.window.slot_us().saturating_mul(self.window.slots().len() as u64);
        Signals {
            requests: total.answered,
            error_ratio: total.error_ratio(),
            latency_us: total.latency.quantile_us(LATENCY_QUANTILE).map(|us| us as f64),
            baseline_us: self.switch.baseline_us(),
            in_flight: total.in_flight_us as f64 / window_us.max(1) as f64,
        }
    }

    /// Which requests to shed.
    pub fn cut(&self) -> Cut {
        self.controller.cut()
    }

    /// The record's key.
    pub fn key(namespace: &str) -> String {
        record_key(namespace, "load")
    }

    fn step(&mut self, bounds: &Measured, told: Told) {
        self.switch = self.switch.step(&self.window, bounds, self.controller.severity());
        let health = told.health().unwrap_or(self.switch.health());
        let health = if bounds.shed { health } else { Health::Normal };
        self.controller = self.controller.step(&self.window, bounds, &self.switch, health);
    }
}
