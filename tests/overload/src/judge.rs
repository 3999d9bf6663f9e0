//! The table of section 12 of the specification, row by row. Results are random, so that the share of a few calls may
//! exceed its bound by as much as chance explains. The table applies to all runs of a scenario together; few single
//! runs may miss it by far.

use crate::protection::{Protection, Unprotected};
use crate::scenario::{Cluster, OVERLOAD, Scenario, TIERS};
use crate::upstream::{Condition, Discipline};
use crate::world::{self, BIN_US, Call, Fate, Run};

/// A run whose shares are exactly at their bounds fails at most once in this many runs.
const ONE_IN: f64 = 10_000.0;
/// Of a normal distribution, for the same probability.
const STANDARD_ERRORS: f64 = 3.72;

/// The share of all, and half of the allowed misses, by which a single run may exceed a bound.
const FAR_OFF: f64 = 0.1;

/// Below this load the upstream has enough capacity.
const SPARE: f64 = 0.9;
/// Below this load its queue is short.
const CALM: f64 = 0.8;
/// Below this load of the most important tier, that tier is served.
const IMPORTANT: f64 = 0.8;
/// From this load on, the latency of the most important tier is judged.
const HIGH: f64 = 1.5;
/// Times in seconds: the begin of an overload, the recovery after it, and the begin of a rise.
const BEGIN: f64 = 5.0;
const RECOVERY: f64 = 2.0;
const RISE: f64 = 10.0;
/// The longest times until an overload has turned health `DEGRADED`, and until it is `NORMAL` again after it:
/// `degrade_after_seconds` and `recover_after_seconds` with a window each, and 2 s.
const DEGRADED: f64 = 14.0;
const NORMAL: f64 = 22.0;

type Make<'a> = dyn Fn() -> Box<dyn Protection> + 'a;

/// The number of calls that measure the usual latency.
const REFERENCE: f64 = 10_000.0;

/// One row of the table for one phase of one cluster.
#[derive(Clone, Debug)]
pub struct Check {
    pub row: &'static str,
    pub cluster: usize,
    pub phase: usize,
    pub found: Found,
}

#[derive(Clone, Copy, Debug)]
pub enum Found {
    /// The number of misses, of all, and the share of them that is allowed.
    Misses { missed: u32, of: u32, allowed: f64 },
    /// The result, the possible result with its variance by chance, and the share that is wanted.
    Amount { found: f64, of: f64, wanted: f64, variance: f64 },
}

impl Found {
    fn share(is_missed: impl Iterator<Item = bool>, allowed: f64) -> Self {
        let counted =
            is_missed.fold((0, 0), |(missed, of), is_missed| (missed + u32::from(is_missed), of + 1));
        Self::Misses { missed: counted.0, of: counted.1, allowed }
    }

    pub fn holds(self) -> bool {
        match self {
            // Chernoff's bound of the probability that chance alone causes these misses.
            Self::Misses { missed, of, allowed } => {
                let share = f64::from(missed) / f64::from(of.max(1));
                share <= allowed || f64::from(of) * divergence(share, allowed) < ONE_IN.ln()
            }
            Self::Amount { found, of, wanted, variance } => {
                found + STANDARD_ERRORS * variance.sqrt() >= wanted * of
            }
        }
    }

    /// Misses by more than a single run may. Within a run misses depend on each other.
    pub fn is_far_off(self) -> bool {
        match self {
            Self::Misses { missed, of, allowed } => {
                !self.holds() && f64::from(missed) > (1.5 * allowed + FAR_OFF) * f64::from(of)
            }
            Self::Amount { found, of, wanted, .. } => found < (wanted - FAR_OFF) * of,
        }
    }

    /// The same row of another run.
    pub fn add(&mut self, other: Self) {
        match (self, other) {
            (Self::Misses { missed, of, .. }, Self::Misses { missed: more_missed, of: more, .. }) => {
                (*missed, *of) = (*missed + more_missed, *of + more);
            }
            (
                Self::Amount { found, of, variance, .. },
                Self::Amount { found: more_found, of: more, variance: more_variance, .. },
            ) => {
                (*found, *of, *variance) = (*found + more_found, *of + more, *variance + more_variance);
            }
            _ => {}
        }
    }
}

/// The Kullback-Leibler divergence of one coin from another.
fn divergence(share: f64, from: f64) -> f64 {
    let term = |share: f64, from: f64| if share > 0.0 { share * (share / from).ln() } else { 0.0 };
    term(share, from) + term(1.0 - share, 1.0 - from)
}

impl std::fmt::Display for Check {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { row, cluster, phase, .. } = self;
        write!(formatter, "cluster {cluster}, phase {phase}: {row}: ")?;
        match self.found {
            Found::Misses { missed, of, allowed } => {
                let share = f64::from(missed) / f64::from(of.max(1));
                write!(formatter, "{share:.4} ({missed} of {of}), allowed {allowed}")
            }
            Found::Amount { found, of, wanted, .. } => {
                write!(formatter, "{:.3} of {of:.0}, wanted {wanted}", found / of)
            }
        }
    }
}

/// All rows that apply to the phases of a scenario.
///
/// `protection` makes another protection of the kind in the run.
pub fn judge(scenario: &Scenario, run: &Run, seed: u64, protection: &Make) -> Vec<Check> {
    let mut checks = Vec::new();
    for (index, cluster) in scenario.clusters.iter().enumerate() {
        let (mut from, usual) = (0.0, usual_latency(scenario, index, seed, protection));
        for phase in 0..cluster.phases.len() {
            let to = from + cluster.phases[phase].seconds;
            let view = View { cluster, run, index, phase, from, to, is_beside: index > 0 };
            let found = view.rows(scenario, usual);
            checks.extend(found.into_iter().map(|(row, found)| Check { row, cluster: index, phase, found }));
            from = to;
        }
    }
    if scenario.clusters.len() == 1 && scenario.trap_at.is_none() {
        checks.extend(health(&scenario.clusters[0], &run.transitions));
    }
    // A worker that pauses sends late, and without gauges workers do not see each other's queues.
    if scenario.has_gauges && scenario.pauses_per_second == 0.0 {
        let found = Found::Misses { missed: run.out_of_order, of: run.sent, allowed: 0.001 };
        checks.push(Check { row: "sent before a more important one", cluster: 0, phase: 0, found });
    }
    checks
}

/// One phase of one cluster in one run.
struct View<'a> {
    cluster: &'a Cluster,
    run: &'a Run,
    index: usize,
    phase: usize,
    from: f64,
    to: f64,
    is_beside: bool,
}

impl View<'_> {
    fn rows(&self, scenario: &Scenario, usual: (u64, u64)) -> Vec<(&'static str, Found)> {
        let (cluster, phase) = (self.cluster, self.phase);
        let (load, condition) = (cluster.load(phase), cluster.phases[phase].condition);
        let fails = matches!(condition, Condition::Failing(_) | Condition::Down);
        let is_queue = matches!(cluster.upstream.discipline, Discipline::Queue(_));
        let mut rows = Vec::new();
        if load >= OVERLOAD && load.is_finite() {
            let (begin, after) = if is_queue { (0.9, 0.95) } else { (0.85, 0.85) };
            rows.push(("served, first 5 s", self.served(self.from, self.from + BEGIN, begin)));
            rows.push(("served, after 5 s", self.served(self.from + BEGIN, self.to, after)));
        }
        if load < SPARE || fails {
            let follows_overload = phase > 0 && cluster.load(phase - 1) > SPARE && !fails;
            let rises = phase > 0 && cluster.phases[phase].rate >= 5.0 * cluster.phases[phase - 1].rate;
            // Retries prolong the overload.
            let retries = if cluster.clients.tries > 1 { cluster.clients.deadline } else { 0.0 };
            let recovery = if follows_overload { RECOVERY + retries } else { 0.0 };
            let settled = recovery + if rises { RISE } else { 0.0 };
            rows.push(("shed", self.shed(self.from + settled, self.to, 0.005)));
            if rises {
                rows.push(("shed, first 10 s of a rise", self.shed(self.from, self.from + RISE, 0.02)));
            }
            if follows_overload {
                rows.push(("not served, after the overload", self.lost(None, settled, 0.005)));
            }
        }
        if cluster.mix[TIERS - 1] * load < IMPORTANT && !fails {
            rows.push(("most important not served", self.lost(Some(TIERS - 1), 0.0, 0.01)));
            rows.push(("most important not served, after 5 s", self.lost(Some(TIERS - 1), BEGIN, 0.005)));
            let is_usual = is_queue && condition == Condition::Healthy && scenario.pauses_per_second == 0.0;
            if load >= HIGH && is_usual {
                rows.push((
                    "most important over 3 x usual p50",
                    self.slower(Some(TIERS - 1), 3 * usual.0, 0.5),
                ));
                rows.push((
                    "most important over 3 x usual p99",
                    self.slower(Some(TIERS - 1), 3 * usual.1, 0.01),
                ));
            }
        }
        if self.is_beside {
            rows.push(("not served beside an overload", self.lost(None, 0.0, 0.001)));
            rows.push(("over usual p50 beside an overload", self.slower(None, usual.0, 0.5)));
            rows.push(("over usual p99 beside an overload", self.slower(None, usual.1, 0.01)));
        }
        rows
    }

    /// Useful work, compared with the capacity of the upstream.
    fn served(&self, from: f64, to: f64, wanted: f64) -> Found {
        let bin = |seconds: f64| ((seconds * 1e6) as u64 / BIN_US) as usize;
        let found = self.run.bins[self.index][bin(from)..bin(to)].iter().map(|bin| bin.useful).sum();
        Found::Amount { found, of: self.cluster.capacity(self.phase) * (to - from), wanted, variance: 0.0 }
    }

    /// Calls, of a tier or all, that began in a part of the phase and have ended.
    fn calls(&self, tier: Option<usize>, from: f64, to: f64) -> impl Iterator<Item = &Call> {
        let (from_us, to_us) = ((from * 1e6) as u64, (to * 1e6) as u64);
        let is_counted = move |call: &&Call| {
            call.cluster == self.index
                && (from_us..to_us).contains(&call.begun_us)
                && matches!(call.fate, Fate::Served | Fate::Failed)
                && tier.is_none_or(|tier| call.tier == tier)
        };
        self.run.calls.iter().filter(is_counted)
    }

    fn shed(&self, from: f64, to: f64, allowed: f64) -> Found {
        let sum = |count: fn(&Call) -> u32| self.calls(None, from, to).map(count).sum();
        Found::Misses { missed: sum(|call| call.shed), of: sum(|call| call.tries), allowed }
    }

    /// Calls that were not served in the end.
    fn lost(&self, tier: Option<usize>, settled: f64, allowed: f64) -> Found {
        let calls = self.calls(tier, self.from + settled, self.to);
        Found::share(calls.map(|call| call.fate == Fate::Failed), allowed)
    }

    /// Calls that were served but took longer.
    fn slower(&self, tier: Option<usize>, than_us: u64, allowed: f64) -> Found {
        let served = self.calls(tier, self.from, self.to).filter(|call| call.fate == Fate::Served);
        Found::share(served.map(|call| call.latency_us > than_us), allowed)
    }
}

/// Health changes only because of a disturbance, is `DEGRADED` under an overload and `NORMAL` again after it. For a
/// load near the capacity, and for an upstream with a fault, only the number of changes is checked: latency may break
/// its bound there.
fn health(cluster: &Cluster, transitions: &[f64]) -> Vec<Check> {
    let is_calm =
        |phase: usize| cluster.load(phase) < CALM && cluster.phases[phase].condition == Condition::Healthy;
    let is_degraded = |at: f64| transitions.iter().filter(|since| **since < at).count() % 2 == 1;
    let disturbances = (0..cluster.phases.len()).filter(|phase| !is_calm(*phase)).count();
    let extra = transitions.len().saturating_sub(2 * disturbances) as u32;
    let mut checks = vec![("changes of health beyond two a disturbance", 0, extra)];
    let mut to = 0.0;
    for (phase, of) in cluster.phases.iter().enumerate() {
        to += of.seconds;
        let load = cluster.load(phase);
        if load >= 2.0 && load.is_finite() && of.seconds >= DEGRADED {
            checks.push(("NORMAL at the end of an overload", phase, u32::from(!is_degraded(to))));
        }
        if is_calm(phase) && of.seconds >= NORMAL {
            checks.push(("DEGRADED long after an overload", phase, u32::from(is_degraded(to))));
        }
    }
    let check = |(row, phase, missed)| Check {
        row,
        cluster: 0,
        phase,
        found: Found::Misses { missed, of: 1, allowed: 0.0 },
    };
    checks.into_iter().map(check).collect()
}

/// Median and 99th percentile of the latency without overload and without protection. For a cluster beside an
/// overloaded one: with protection, but without the overload.
fn usual_latency(scenario: &Scenario, index: usize, seed: u64, protection: &Make) -> (u64, u64) {
    let mut calm = scenario.clone();
    for (other, cluster) in calm.clusters.iter_mut().enumerate() {
        cluster.phases.truncate(1);
        if index == 0 {
            cluster.phases[0].seconds = REFERENCE / cluster.phases[0].rate;
        } else if other != index {
            cluster.phases[0].rate = f64::MIN_POSITIVE;
        }
    }
    let mut protection = if index == 0 { Box::new(Unprotected::default()) } else { protection() };
    let run = world::run(&calm, seed, protection.as_mut());
    let is_counted = |call: &&Call| call.cluster == index && call.fate == Fate::Served;
    let mut latencies: Vec<u64> = run.calls.iter().filter(is_counted).map(|call| call.latency_us).collect();
    latencies.sort_unstable();
    let quantile = |quantile: f64| {
        let at = (quantile * latencies.len() as f64) as usize;
        latencies.get(at).copied().unwrap_or_default()
    };
    (quantile(0.5), quantile(0.99))
}

/// All served calls, compared with Envoy's `adaptive_concurrency` in the same world. Both numbers vary with the service
/// times.
pub fn beside(cluster: &Cluster, ours: &Run, theirs: &Run) -> Check {
    let served = |run: &Run| run.calls.iter().filter(|call| call.fate == Fate::Served).count() as f64;
    let variance = cluster.upstream.spread.variance() * (served(ours) + served(theirs));
    let found = Found::Amount { found: served(ours), of: served(theirs), wanted: 1.0, variance };
    Check { row: "served beside adaptive_concurrency", cluster: 0, phase: 0, found }
}

#[cfg(test)]
mod tests {
    use super::{Found, judge};
    use crate::gradient::Gradient;
    use crate::protection::Unprotected;
    use crate::scenario::all;
    use crate::world::run;

    #[test]
    fn a_share_may_exceed_its_bound_as_far_as_chance_explains() {
        let holds = |missed, of| Found::Misses { missed, of, allowed: 0.01 }.holds();
        for (of, most) in [(10, 3), (100, 7), (600, 19), (100_000, 1_138)] {
            assert!(holds(most, of) && !holds(most + 1, of), "{most} of {of}");
        }
    }

    #[test]
    fn scenario_and_seed_determine_the_world() {
        let scenario = all().swap_remove(0);
        let calls = |seed| {
            let run = run(&scenario, seed, &mut Gradient::new(seed));
            run.calls.iter().map(|call| (call.begun_us, call.latency_us)).collect::<Vec<_>>()
        };
        assert_eq!(calls(1), calls(1));
        assert_ne!(calls(1), calls(2));
    }

    #[test]
    fn without_protection_an_overload_fails_the_table_and_a_light_load_passes() {
        for (name, fails) in [("queue-10x", true), ("queue-1.5x", true), ("spare-0.7", false)] {
            let scenario = all().into_iter().find(|scenario| scenario.name == name).expect("it is listed");
            let run = run(&scenario, 1, &mut Unprotected::default());
            let checks = judge(&scenario, &run, 1, &|| Box::new(Unprotected::default()));
            assert_eq!(checks.iter().any(|check| !check.found.holds()), fails, "{name}: {checks:?}");
        }
    }
}
