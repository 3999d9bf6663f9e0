//! Envoy's `adaptive_concurrency` filter with its gradient controller, as its documentation describes it and with the
//! defaults of its configuration: one limit for all workers, no queue, no tiers.

use std::collections::{HashMap, VecDeque};

use fastrand::Rng;

use crate::protection::{Arrival, End, Output, Protection};

/// `concurrency_update_interval`; Envoy has no default, its documentation's example has this.
const UPDATE_INTERVAL_US: u64 = 100_000;
/// `min_rtt_calc_params.interval` of the same example, and its defaults of jitter, requests and concurrency.
const MIN_RTT_INTERVAL_US: u64 = 60_000_000;
const JITTER: f64 = 0.15;
const MIN_RTT_REQUESTS: usize = 50;
const MIN_CONCURRENCY: f64 = 3.0;
/// `buffer`.
const BUFFER: f64 = 0.25;
/// `max_concurrency_limit`.
const MAX_CONCURRENCY: f64 = 1_000.0;
/// After this many intervals in a row at the least concurrency, the minimum is measured again.
const INTERVALS_AT_MINIMUM: u32 = 5;

pub struct Gradient {
    limit: f64,
    /// When each request in flight was sent.
    in_flight: HashMap<u64, u64>,
    outputs: VecDeque<Output>,
    samples_us: Vec<u64>,
    min_rtt_us: f64,
    /// Set while the minimum is measured: its start, and the limit before.
    measuring: Option<(u64, f64)>,
    next_measurement_us: u64,
    next_update_us: u64,
    at_minimum: u32,
    rng: Rng,
}

impl Gradient {
    pub fn new(seed: u64) -> Self {
        Self {
            limit: MIN_CONCURRENCY,
            in_flight: HashMap::new(),
            outputs: VecDeque::new(),
            samples_us: Vec::new(),
            min_rtt_us: 0.0,
            measuring: Some((0, MIN_CONCURRENCY)),
            next_measurement_us: u64::MAX,
            next_update_us: UPDATE_INTERVAL_US,
            at_minimum: 0,
            rng: Rng::with_seed(seed),
        }
    }

    /// `sample_aggregate_percentile`.
    fn median_us(&mut self) -> Option<f64> {
        let mut samples = std::mem::take(&mut self.samples_us);
        samples.sort_unstable();
        samples.get(samples.len() / 2).map(|us| *us as f64)
    }
}

impl Protection for Gradient {
    fn arrive(&mut self, arrival: Arrival, now_us: u64) {
        let is_sent = (self.in_flight.len() as f64) < self.limit.floor();
        if is_sent {
            self.in_flight.insert(arrival.request, now_us);
        }
        let output = if is_sent { Output::Send } else { Output::Shed };
        self.outputs.push_back(output(arrival.request));
    }

    /// A timeout is answered with 504 and counts as any other response.
    fn end(&mut self, _: usize, request: u64, end: End, now_us: u64) {
        let sent_us = self.in_flight.remove(&request).expect("it was sent at once");
        let is_sample = match (end, self.measuring) {
            (End::Left, _) => false,
            (_, Some((since_us, _))) => sent_us >= since_us,
            (_, None) => true,
        };
        if is_sample {
            self.samples_us.push(now_us - sent_us);
        }
        if let Some((_, before)) = self.measuring
            && self.samples_us.len() >= MIN_RTT_REQUESTS
        {
            self.min_rtt_us = self.median_us().unwrap_or_default();
            (self.measuring, self.limit, self.at_minimum) = (None, before, 0);
            let jitter = 1.0 + JITTER * self.rng.f64();
            self.next_measurement_us = now_us + (MIN_RTT_INTERVAL_US as f64 * jitter) as u64;
            self.next_update_us = now_us + UPDATE_INTERVAL_US;
        }
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The first worker's timer runs for all.
    fn next_us(&self, worker: usize) -> Option<u64> {
        let is_due = worker == 0 && self.measuring.is_none();
        is_due.then_some(self.next_update_us.min(self.next_measurement_us))
    }

    fn handle_timeout(&mut self, _: usize, now_us: u64) {
        self.next_update_us = now_us + UPDATE_INTERVAL_US;
        if now_us >= self.next_measurement_us || self.at_minimum >= INTERVALS_AT_MINIMUM {
            self.samples_us.clear();
            self.measuring = Some((now_us, self.limit));
            self.limit = MIN_CONCURRENCY;
        } else if let Some(sample_us) = self.median_us() {
            let gradient = (self.min_rtt_us * (1.0 + BUFFER) / sample_us).clamp(0.5, 2.0);
            let limit = self.limit * gradient;
            self.limit = (limit + limit.sqrt()).clamp(MIN_CONCURRENCY, MAX_CONCURRENCY);
            self.at_minimum = if self.limit > MIN_CONCURRENCY { 0 } else { self.at_minimum + 1 };
        }
    }

    fn limit(&self, _: usize) -> f64 {
        self.limit
    }
}
