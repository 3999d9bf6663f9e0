//! What has to hold: the table of section 12 of the specification, row by row. What is left to chance is judged by how
//! likely it is: a share of few calls may exceed its bound by as much as chance explains, and by no more. All runs of a
//! scenario together are held to the table; of single runs, few may be far off.

use crate::protection::{Nothing, Protection};
use crate::scenario::{Cluster, OVERLOAD, Scenario, TIERS};
use crate::upstream::{Condition, Discipline};
use crate::world::{self, BIN_US, Call, Fate, Run};

/// A run whose shares are exactly at their bounds fails at most once in so many.
const ONE_IN: f64 = 10_000.0;
/// Of a normal distribution, for the same probability.
const STANDARD_ERRORS: f64 = 3.72;

/// By so much of all a single run may miss, and misses by half more than are allowed.
const FAR_OFF: f64 = 0.1;

/// Below this load the upstream can do all that is asked for.
const SPARE: f64 = 0.9;
/// Below this load its queue is short.
const CALM: f64 = 0.8;
/// A tier that asks for less of the capacity than this is served, if it is the most important.
const IMPORTANT: f64 = 0.8;
/// Times, in seconds: the begin of an overload; until all are served after it; the begin of a rise.
const BEGIN: f64 = 5.0;
const RECOVERY: f64 = 2.0;
const RISE: f64 = 10.0;
/// Until an overload has turned health `DEGRADED`, and until it has been `NORMAL` again for long:
/// `degrade_after_seconds` and `recover_after_seconds` with a window each, and 2 s.
const DEGRADED: f64 = 14.0;
const NORMAL: f64 = 22.0;

type Make<'a> = dyn Fn() -> Box<dyn Protection> + 'a;

/// So many calls show what latency is usual.
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
    /// Of so many, so many missed, of which this share may.
    Misses { missed: u32, of: u32, allowed: f64 },
    /// Of what could be had, so much was; this share is wanted. `variance`: of what could be had, by chance.
    Amount { found: f64, of: f64, wanted: f64, variance: f64 },
}

impl Found {
    pub fn holds(self) -> bool {
        match self {
            // Chernoff's bound of the probability that chance alone misses so many.
            Self::Misses { missed, of, allowed } => {
                let share = f64::from(missed) / f64::from(of.max(1));
                share <= allowed || f64::from(of) * divergence(share, allowed) < ONE_IN.ln()
            }
            Self::Amount { found, of, wanted, variance } => {
                found + STANDARD_ERRORS * variance.sqrt() >= wanted * of
            }
        }
    }

    /// Missed by more than a single run ever may: one bad stretch makes the misses of a run depend on each other.
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

/// Kullback and Leibler's, of one coin from another.
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

/// All rows that say something about the phases of a scenario.
///
/// `protection` makes another of the kind that was in the run.
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
    // A worker that pauses sends late, and without gauges workers know nothing of each other's queues.
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
            // Calls that are tried again prolong the overload.
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
            let is_usual = is_queue && condition == Condition::Well && scenario.pauses_per_second == 0.0;
            if load >= OVERLOAD && is_usual {
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

    /// Useful work against what the upstream could do.
    fn served(&self, from: f64, to: f64, wanted: f64) -> Found {
        let bin = |seconds: f64| ((seconds * 1e6) as u64 / BIN_US) as usize;
        let found = self.run.bins[self.index][bin(from)..bin(to)].iter().map(|bin| bin.useful).sum();
        Found::Amount { found, of: self.cluster.capacity(self.phase) * (to - from), wanted, variance: 0.0 }
    }

    /// Calls that began in a part of the phase, but for those that are still open.
    fn calls(&self, from: f64, to: f64) -> impl Iterator<Item = &Call> {
        let (from_us, to_us) = ((from * 1e6) as u64, (to * 1e6) as u64);
        let is_meant = move |call: &&Call| {
            call.cluster == self.index
                && (from_us..to_us).contains(&call.begun_us)
                && matches!(call.fate, Fate::Served | Fate::Failed)
        };
        self.run.calls.iter().filter(is_meant)
    }

    fn shed(&self, from: f64, to: f64, allowed: f64) -> Found {
        let sum = |count: fn(&Call) -> u32| self.calls(from, to).map(count).sum();
        Found::Misses { missed: sum(|call| call.shed), of: sum(|call| call.tries), allowed }
    }

    /// Calls, of a tier or all, that were not served in the end.
    fn lost(&self, tier: Option<usize>, settled: f64, allowed: f64) -> Found {
        let calls = || {
            self.calls(self.from + settled, self.to)
                .filter(move |call| tier.is_none_or(|tier| call.tier == tier))
        };
        let missed = calls().filter(|call| call.fate == Fate::Failed).count() as u32;
        Found::Misses { missed, of: calls().count() as u32, allowed }
    }

    /// Calls, of a tier or all, that were served but took longer.
    fn slower(&self, tier: Option<usize>, than_us: u64, allowed: f64) -> Found {
        let served = || {
            let is_meant =
                move |call: &&Call| call.fate == Fate::Served && tier.is_none_or(|tier| call.tier == tier);
            self.calls(self.from, self.to).filter(is_meant)
        };
        let missed = served().filter(|call| call.latency_us > than_us).count() as u32;
        Found::Misses { missed, of: served().count() as u32, allowed }
    }
}

/// Health changes only because of a disturbance, is `DEGRADED` under an overload and `NORMAL` again after it. What a
/// load nearer to the capacity, or an upstream in trouble, does to it is not judged, except for the number of
/// changes: there latency itself may break its bound now and then.
fn health(cluster: &Cluster, transitions: &[f64]) -> Vec<Check> {
    let is_calm =
        |phase: usize| cluster.load(phase) < CALM && cluster.phases[phase].condition == Condition::Well;
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

/// Median and 99th percentile of the latency without overload and without protection; for a cluster beside an
/// overloaded one, of the same calls with the same protection without that one.
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
    let mut protection = if index == 0 { Box::new(Nothing::default()) } else { protection() };
    let run = world::run(&calm, seed, protection.as_mut());
    let is_meant = |call: &&Call| call.cluster == index && call.fate == Fate::Served;
    let mut latencies: Vec<u64> = run.calls.iter().filter(is_meant).map(|call| call.latency_us).collect();
    latencies.sort_unstable();
    let quantile = |quantile: f64| {
        let at = (quantile * latencies.len() as f64) as usize;
        latencies.get(at).copied().unwrap_or_default()
    };
    (quantile(0.5), quantile(0.99))
}

/// Beside Envoy's `adaptive_concurrency` in the same world: calls that are served in all. How many a busy upstream
/// serves varies with its service times, in both runs.
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
    use crate::protection::Nothing;
    use crate::scenario::all;
    use crate::world::run;

    #[test]
    fn a_share_may_exceed_its_bound_by_what_chance_explains() {
        let holds = |missed, of| Found::Misses { missed, of, allowed: 0.01 }.holds();
        for (of, most) in [(10, 3), (100, 7), (600, 19), (100_000, 1_138)] {
            assert!(holds(most, of) && !holds(most + 1, of), "{most} of {of}");
        }
    }

    #[test]
    fn a_world_is_its_scenario_and_its_seed() {
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
            let run = run(&scenario, 1, &mut Nothing::default());
            let checks = judge(&scenario, &run, 1, &|| Box::new(Nothing::default()));
            assert_eq!(checks.iter().any(|check| !check.found.holds()), fails, "{name}: {checks:?}");
        }
    }
}
