//! Envoy's `adaptive_concurrency` filter with its gradient controller, as its documentation describes it and with the
//! defaults of its configuration: one limit for all workers, no queue, no tiers.

use fastrand::Rng;

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
/// So many intervals in a row at the least concurrency start another measurement of the minimum.
const INTERVALS_AT_MINIMUM: u32 = 5;

pub struct Gradient {
    limit: f64,
    in_flight: usize,
    samples_us: Vec<u64>,
    min_rtt_us: f64,
    /// Set while the minimum is measured: when that began, and the limit before.
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
            in_flight: 0,
            samples_us: Vec::new(),
            min_rtt_us: 0.0,
            measuring: Some((0, MIN_CONCURRENCY)),
            next_measurement_us: u64::MAX,
            next_update_us: UPDATE_INTERVAL_US,
            at_minimum: 0,
            rng: Rng::with_seed(seed),
        }
    }

    /// Whether a request is forwarded; otherwise it gets 503.
    pub fn admit(&mut self) -> bool {
        let is_forwarded = (self.in_flight as f64) < self.limit.floor();
        self.in_flight += usize::from(is_forwarded);
        is_forwarded
    }

    /// A response, or a timeout, which Envoy answers with 504 and counts as any other.
    pub fn answered(&mut self, sent_us: u64, now_us: u64) {
        self.in_flight -= 1;
        match self.measuring {
            Some((since_us, before)) => {
                if sent_us >= since_us {
                    self.samples_us.push(now_us - sent_us);
                }
                if self.samples_us.len() >= MIN_RTT_REQUESTS {
                    self.min_rtt_us = self.median_us().unwrap_or_default();
                    (self.measuring, self.limit, self.at_minimum) = (None, before, 0);
                    let jitter = 1.0 + JITTER * self.rng.f64();
                    self.next_measurement_us = now_us + (MIN_RTT_INTERVAL_US as f64 * jitter) as u64;
                    self.next_update_us = now_us + UPDATE_INTERVAL_US;
                }
            }
            None => self.samples_us.push(now_us - sent_us),
        }
    }

    pub fn limit(&self) -> f64 {
        self.limit
    }

    /// A client has left.
    pub fn cancelled(&mut self) {
        self.in_flight -= 1;
    }

    pub fn next_us(&self) -> u64 {
        if self.measuring.is_some() { u64::MAX } else { self.next_update_us.min(self.next_measurement_us) }
    }

    pub fn handle_timeout(&mut self, now_us: u64) {
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

    /// `sample_aggregate_percentile`.
    fn median_us(&mut self) -> Option<f64> {
        let mut samples = std::mem::take(&mut self.samples_us);
        samples.sort_unstable();
        samples.get(samples.len() / 2).map(|us| *us as f64)
    }
}
