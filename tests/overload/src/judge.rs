//! What has to hold, exactly. Whatever is judged over a time is judged from when it can hold by the specification's own
//! words, see [`settled`]; and goodput by what can be had, which a limiter has shown that did not have to find out anything.

use dynamic_rate_limiter::health::Health;

use crate::scenario::{Phase, Scenario};
use crate::upstream::{Condition, FEW};
use crate::world::{ATTEMPTS, BIN_US, Bin, Story};

/// The share of what the upstream can do that has to be done, or of what can be had where it is ill; and where it does few
/// requests a second, so that chance is much of what is seen.
pub const GOODPUT: f64 = 0.8;
const GOODPUT_OF_ILL: f64 = 0.7;
const GOODPUT_OF_FEW: f64 = 0.6;
const GOODPUT_OF_FEW_AND_ILL: f64 = 0.4;

/// What is wanted. It is counted how often that is missed.
pub const WANTED_GOODPUT: f64 = 0.95;

/// The share of important calls that may fail; more where the upstream refuses at once what it cannot do, because the
/// specification bears errors up to a bound and so a share of calls whose every attempt meets one.
const FAILED: f64 = 0.001;
const FAILED_OF_REFUSING: f64 = 0.02;
const FAILED_OF_FEW: f64 = 0.01;

/// How much longer the way back may take with few requests, in seconds.
const RECOVERY_OF_FEW: f64 = 10.0;

/// What is not excused by an upstream that is slow or fails by itself: so much of what is asked for shed without need, and
/// so much where few requests are; so many seconds too late; and, but for few requests, such a share of important calls
/// failed.
const GROSS_SHED: f64 = 0.3;
const GROSS_SHED_OF_FEW: f64 = 0.5;
const GROSS_DELAY: f64 = 10.0;
const GROSS_FAILED: f64 = 0.03;

/// Less than so many seconds are no steady state.
const SHORTEST: f64 = 5.0;

/// A queue of fewer seconds is no place to wait in.
const SHORT_QUEUE_SECONDS: f64 = 0.3;

/// A caller that was turned away is back after so many seconds.
const LONGEST_RETRY_AFTER: f64 = 11.0;

/// What a run came to.
#[derive(Debug, Default)]
pub struct Verdict {
    /// The least share of what the upstream could do that it did, in any steady phase.
    pub goodput: Option<f64>,
    /// The least share of what can be had of that, at most all, in any steady phase.
    pub had: Option<f64>,
    /// Important calls that had to be served, and those that were not.
    pub enterprise: (u32, u32),
    /// The longest way back to `NORMAL`, in seconds.
    pub recovery: Option<f64>,
    /// What does not hold and has to.
    pub violations: Vec<String>,
    /// What does not hold with an upstream that is slow or fails by itself, where no limiter can do better than by chance.
    pub shortfalls: Vec<String>,
}

/// Something that does not hold.
struct Miss {
    what: String,
    is_gross: bool,
}

/// Judges a run, beside one of the same world in which the limiter was told what the upstream can do.
pub fn judge(scenario: &Scenario, story: &Story, told: &Story) -> Verdict {
    let mut verdict = Verdict::default();
    let mut found = Vec::new();
    let mut from = 0.0;
    for (index, phase) in scenario.phases.iter().enumerate() {
        let to = from + phase.seconds;
        if let Some(settled) = steady_from(scenario, phase, story, from, to) {
            let bins = between(story, settled, to);
            let told = steady_from(scenario, phase, told, from, to).map(|settled| between(told, settled, to));
            judge_goodput(scenario, phase, bins, told, &mut verdict);
            judge_sparing(scenario, phase, between(story, settled, to), &mut found);
            let room = scenario.upstream.capacity() * (0.8 - phase.load.0 * scenario.mix[2]);
            let over = last_over(story, from, to, room, &|bin| bin.leftover[2]);
            count_enterprise(scenario, phase, between(story, settled.max(over), to), &mut verdict);
        }
        if index > 0 && scenario.phases[index - 1].is_disturbed() && !phase.is_disturbed() {
            let over = backlog_over(scenario, phase, story, from, to);
            judge_recovery(scenario, story, over, &mut verdict, &mut found);
        }
        from = to;
    }
    judge_enterprise(scenario, &verdict, &mut found);
    let is_ill = scenario.phases.iter().any(|phase| phase.condition.is_partial());
    for miss in found {
        let is_excused = is_ill && !miss.is_gross;
        if is_excused { &mut verdict.shortfalls } else { &mut verdict.violations }.push(miss.what);
    }
    judge_always(scenario, story, &mut verdict.violations);
    verdict
}

/// From when on a phase is judged; `None` where it is not.
fn steady_from(scenario: &Scenario, phase: &Phase, story: &Story, from: f64, to: f64) -> Option<f64> {
    let over = backlog_over(scenario, phase, story, from, to);
    let settled = settled(scenario, phase, strained(scenario, story, from, to), over);
    (phase.is_steady() && settled + SHORTEST < to).then_some(settled)
}

/// When a phase can hold what is asked of it. Nothing may be shed before a bound was broken for `degrade_after_seconds`, which the
/// window delays, so a window has to pass. By then the upstream's queue may be full of requests whose clients have gone;
/// to work it off takes its length twice, if half of what is done goes to new ones. Of what clients have given up, an
/// upstream that notices that has no more than they wait.
fn settled(scenario: &Scenario, phase: &Phase, from: f64, over: f64) -> f64 {
    let window = f64::from(scenario.bounds.window_seconds);
    let queue = scenario.upstream.queue as f64 / phase.condition.capacity(&scenario.upstream).max(1.0);
    let queue =
        if scenario.upstream.works_for_nobody { queue } else { queue.min(scenario.clients.patience.1) };
    (from + window + 2.0 * queue).max(over + window / 2.0)
}

/// When a queue has first built up in a phase, or its begin: a load a little above what the upstream can do takes its time.
fn strained(scenario: &Scenario, story: &Story, from: f64, to: f64) -> f64 {
    let is_strained = |bin: &Bin| bin.waiting > scenario.upstream.queue / 4;
    from + between(story, from, to).iter().position(is_strained).map_or(0.0, seconds)
}

/// When it no longer matters what was before a calm phase: calls that began earlier, and come again, fit in beside those
/// that begin now. Some of these were turned away in the meantime; they come again within the longest `Retry-After`.
fn backlog_over(scenario: &Scenario, phase: &Phase, story: &Story, from: f64, to: f64) -> f64 {
    if phase.is_disturbed() {
        return from;
    }
    let room = scenario.upstream.capacity() * 0.9;
    let begun = scenario.upstream.capacity() * phase.load.1;
    let leftover = last_over(story, from, to, room - begun, &|bin| bin.leftover.iter().sum());
    let asked = last_over(story, from, to, room, &|bin| bin.sent + bin.shed.iter().sum::<u32>());
    asked.clamp(leftover, leftover + LONGEST_RETRY_AFTER)
}

/// From when on no two seconds have a count over so many a second.
fn last_over(story: &Story, from: f64, to: f64, rate: f64, count: &dyn Fn(&Bin) -> u32) -> f64 {
    let sum = |bins: &[Bin]| f64::from(bins.iter().map(count).sum::<u32>());
    let busy = between(story, from, to).windows(4).rposition(|bins| sum(bins) / 2.0 > rate);
    from + busy.map_or(0.0, |bin| seconds(bin + 4))
}

fn between(story: &Story, from: f64, to: f64) -> &[Bin] {
    let index = |seconds: f64| ((seconds * 1e6) as u64 / BIN_US) as usize;
    let to = index(to).min(story.bins.len());
    &story.bins[index(from).min(to)..to]
}

fn seconds(bins: usize) -> f64 {
    bins as f64 * BIN_US as f64 / 1e6
}

/// Whether all that is asked for is less than 0.9 of what the upstream can do, if every failure is tried again: whatever
/// is wrong, nobody needs to be shed.
fn fits(scenario: &Scenario, phase: &Phase) -> bool {
    let failing = if let Condition::Failing(share) = phase.condition { share } else { 0.0 };
    let attempts: f64 = (0..i32::from(ATTEMPTS)).map(|attempt| failing.powi(attempt)).sum();
    phase.load.0 * attempts * scenario.upstream.capacity()
        < 0.9 * phase.condition.capacity(&scenario.upstream)
}

/// Whether an upstream does so few requests a second that chance is much of what is seen.
fn is_few(scenario: &Scenario, phase: &Phase) -> bool {
    scenario.upstream.is_small() || phase.condition.capacity(&scenario.upstream) <= FEW / 2.0
}

fn judge_goodput(
    scenario: &Scenario,
    phase: &Phase,
    bins: &[Bin],
    told: Option<&[Bin]>,
    verdict: &mut Verdict,
) {
    let Some(done) = goodput(scenario, phase, bins) else { return };
    let can_be_had = told.and_then(|bins| goodput(scenario, phase, bins)).unwrap_or(1.0).min(1.0);
    let least = |noted: Option<f64>, new: f64| Some(noted.map_or(new, |noted| noted.min(new)));
    verdict.goodput = least(verdict.goodput, done);
    verdict.had = least(verdict.had, done / can_be_had);
    let is_few = is_few(scenario, phase);
    // An upstream that is ill and has enough to spare for all that has no excuse.
    let is_ill = phase.condition.is_partial() && (is_few || !fits(scenario, phase));
    let (wanted, excused) = match (is_few, is_ill) {
        (false, false) => (GOODPUT, 1.0),
        (true, false) => (GOODPUT_OF_FEW, 1.0),
        (false, true) => (GOODPUT_OF_ILL, can_be_had),
        (true, true) => (GOODPUT_OF_FEW_AND_ILL, can_be_had),
    };
    if done < wanted * excused {
        verdict.violations.push(format!(
            "goodput {done:.3} of the {excused:.3} that can be had, wanted {wanted} of that, in {phase}"
        ));
    }
}

/// Calls that are served, as a share of what the upstream can do; `None` where it can do nothing.
fn goodput(scenario: &Scenario, phase: &Phase, bins: &[Bin]) -> Option<f64> {
    let sum =
        |count: &dyn Fn(&Bin) -> u32| f64::from(bins.iter().map(count).sum::<u32>()) / seconds(bins.len());
    // Of calls whose every attempt succeeds with such a probability so many are served in the end.
    let good = if let Condition::Failing(share) = phase.condition { 1.0 - share } else { 1.0 };
    let served = 1.0 - (1.0 - good).powi(i32::from(ATTEMPTS));
    let offered = sum(&|bin| bin.calls.iter().sum::<u32>() - bin.refused.iter().sum::<u32>());
    let doable = (offered * served).min(phase.condition.capacity(&scenario.upstream) * good);
    (doable > 0.0).then(|| sum(&|bin| bin.good) / doable)
}

/// Nothing is shed while less is asked for than 0.9 of what the upstream can do.
fn judge_sparing(scenario: &Scenario, phase: &Phase, bins: &[Bin], found: &mut Vec<Miss>) {
    let shed: u32 = bins.iter().flat_map(|bin| bin.shed).sum();
    if shed > 0 && fits(scenario, phase) {
        let sent: u32 = bins.iter().map(|bin| bin.sent).sum();
        let gross = if is_few(scenario, phase) { GROSS_SHED_OF_FEW } else { GROSS_SHED };
        found.push(Miss {
            what: format!("{shed} requests shed, wanted none, in {phase}"),
            is_gross: f64::from(shed) > gross * f64::from(shed + sent),
        });
    }
}

/// Calls of the most important tier while they alone ask for less than 0.8 of what the upstream can do.
fn count_enterprise(scenario: &Scenario, phase: &Phase, bins: &[Bin], verdict: &mut Verdict) {
    let asked = phase.load.0 * scenario.upstream.capacity() * scenario.mix[2];
    let can_succeed = !matches!(phase.condition, Condition::Failing(_));
    if can_succeed && asked < 0.8 * phase.condition.capacity(&scenario.upstream) {
        // Who calls in the last seconds is overtaken by what comes next.
        for bin in bins.iter().rev().skip(10) {
            verdict.enterprise.0 += bin.served[2] + bin.given_up[2];
            verdict.enterprise.1 += bin.given_up[2];
        }
    }
}

fn judge_enterprise(scenario: &Scenario, verdict: &Verdict, found: &mut Vec<Miss>) {
    let (calls, failed) = verdict.enterprise;
    let queue = scenario.upstream.queue as f64 / scenario.upstream.capacity();
    let allowed = match queue {
        queue if queue < SHORT_QUEUE_SECONDS => FAILED_OF_REFUSING,
        _ if scenario.upstream.is_small() => FAILED_OF_FEW,
        _ => FAILED,
    };
    if f64::from(failed) > (allowed * f64::from(calls)).max(2.0) {
        found.push(Miss {
            what: format!("{failed} of {calls} enterprise calls failed, wanted {allowed} of them at most"),
            is_gross: !scenario.upstream.is_small() && f64::from(failed) > GROSS_FAILED * f64::from(calls),
        });
    }
}

fn judge_recovery(
    scenario: &Scenario,
    story: &Story,
    over: f64,
    verdict: &mut Verdict,
    found: &mut Vec<Miss>,
) {
    let last = story.bins.iter().rposition(|bin| bin.health == Health::Degraded);
    let back = last.map_or(0.0, |bin| seconds(bin + 1) - over).max(0.0);
    verdict.recovery = Some(verdict.recovery.unwrap_or_default().max(back));
    let wanted = f64::from(scenario.bounds.recover_after_seconds + scenario.bounds.window_seconds);
    let wanted = if scenario.upstream.is_small() { wanted + RECOVERY_OF_FEW } else { wanted };
    if back > wanted {
        found.push(Miss {
            what: format!("NORMAL {back} s after it was over, wanted {wanted} s at most"),
            is_gross: back > wanted + GROSS_DELAY,
        });
    }
}

/// What no illness of the upstream excuses: order among tiers, and two changes of health a disturbance at most.
fn judge_always(scenario: &Scenario, story: &Story, violations: &mut Vec<String>) {
    if let Some(disorder) = story.disorder.first() {
        violations.push(format!("{disorder}, {} times", story.disorder.len()));
    }
    let starts = scenario.phases.windows(2).filter(|pair| !pair[0].is_disturbed() && pair[1].is_disturbed());
    let most = 2 * starts.count();
    if story.transitions.len() > most {
        violations.push(format!("health changed at {:?}, wanted {most} changes at most", story.transitions));
    }
}
