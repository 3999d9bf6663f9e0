//! What has to hold, exactly.

use dynamic_rate_limiter::health::Health;

use crate::scenario::{Phase, Scenario};
use crate::upstream::Condition;
use crate::world::{BIN_US, Bin, Story};

/// What a run came to.
#[derive(Debug, Default)]
pub struct Verdict {
    /// The least share of what the upstream could do that it did, in any steady phase.
    pub goodput: Option<f64>,
    /// Important calls that had to be served, and those that were not.
    pub enterprise: (u32, u32),
    /// Changes of health.
    pub transitions: usize,
    /// The longest way back to `NORMAL`, in seconds.
    pub recovery: Option<f64>,
    /// What does not hold.
    pub violations: Vec<String>,
}

/// Judges a run.
pub fn judge(scenario: &Scenario, story: &Story) -> Verdict {
    let mut verdict = Verdict { transitions: story.transitions.len(), ..Verdict::default() };
    let window = f64::from(scenario.bounds.window_seconds);
    let mut from = 0.0;
    for (index, phase) in scenario.phases.iter().enumerate() {
        let to = from + phase.seconds;
        let over = backlog_over(scenario, phase, story, from, to);
        // The queue may be full of requests that nobody waits for any more. That has to be worked off, by half of what
        // the upstream can do.
        let queue = scenario.upstream.queue as f64 / (scenario.upstream.capacity() * capacity_left(phase.condition)).max(1.0);
        let settling = window + 2.0 * queue.min(scenario.patience.1.max(if scenario.upstream.works_for_nobody { queue } else { 0.0 }));
        let settled = (over + window / 2.0).max(from + settling);
        if phase.is_steady() && to - settled > window / 2.0 {
            judge_steady(scenario, phase, between(story, settled, to), &mut verdict);
            let room = scenario.upstream.capacity() * (0.8 - phase.load.0 * scenario.mix[2]);
            let over = last_over(story, from, to, room, &|bin| bin.leftover[2]);
            judge_enterprise(scenario, phase, between(story, settled.max(over + window / 2.0), to), &mut verdict);
        }
        let is_over = index > 0 && scenario.phases[index - 1].is_disturbed() && !phase.is_disturbed();
        if is_over {
            let back = story.bins.iter().rposition(|bin| bin.health == Health::Degraded);
            let back = back.map_or(0.0, |bin| (bin + 1) as f64 * BIN_US as f64 / 1e6 - over).max(0.0);
            verdict.recovery = Some(verdict.recovery.unwrap_or_default().max(back));
            let wanted = window + f64::from(scenario.bounds.recover_after_seconds);
            if back > wanted {
                verdict.violations.push(format!("NORMAL {back} s after it was over, wanted {wanted} s at most"));
            }
        }
        from = to;
    }
    let starts = scenario.phases.windows(2).filter(|pair| !pair[0].is_disturbed() && pair[1].is_disturbed());
    let most = 2 * starts.count();
    if verdict.transitions > most {
        verdict.violations.push(format!("{} transitions, wanted {most} at most: {:?}", verdict.transitions, story.transitions));
    }
    let (calls, failed) = verdict.enterprise;
    if f64::from(failed) > 0.001 * f64::from(calls) {
        verdict.violations.push(format!("{failed} of {calls} enterprise calls were not served"));
    }
    if let Some(disorder) = story.disorder.first() {
        verdict.violations.push(format!("{disorder} ({} times)", story.disorder.len()));
    }
    verdict
}

/// When it no longer matters what was before this phase: calls that began earlier, and come again, fit in beside those
/// that begin now. Some of these were turned away in the meantime; they come again within the longest `Retry-After`.
fn backlog_over(scenario: &Scenario, phase: &Phase, story: &Story, from: f64, to: f64) -> f64 {
    let room = scenario.upstream.capacity() * 0.9;
    let begun = scenario.upstream.capacity() * phase.load.1;
    let leftover = last_over(story, from, to, room - begun, &|bin| bin.leftover.iter().sum());
    let asked = last_over(story, from, to, room, &|bin| bin.sent + bin.shed.iter().sum::<u32>());
    if phase.is_disturbed() { from } else { asked.clamp(leftover, leftover + LONGEST_RETRY_AFTER) }
}

/// From when on no two seconds have a count over so many a second.
fn last_over(story: &Story, from: f64, to: f64, rate: f64, count: &dyn Fn(&Bin) -> u32) -> f64 {
    let sum = |bins: &[Bin]| f64::from(bins.iter().map(count).sum::<u32>());
    let busy = between(story, from, to).windows(4).rposition(|bins| sum(bins) / 2.0 > rate);
    from + busy.map_or(0.0, |bin| (bin + 4) as f64 * BIN_US as f64 / 1e6)
}

const LONGEST_RETRY_AFTER: f64 = 11.0;

fn between(story: &Story, from: f64, to: f64) -> &[Bin] {
    let index = |seconds: f64| ((seconds * 1e6) as u64 / BIN_US) as usize;
    &story.bins[index(from).min(index(to))..index(to).min(story.bins.len())]
}

fn judge_steady(scenario: &Scenario, phase: &Phase, bins: &[Bin], verdict: &mut Verdict) {
    let seconds = bins.len() as f64 * BIN_US as f64 / 1e6;
    let sum = |count: &dyn Fn(&Bin) -> u32| bins.iter().map(count).map(f64::from).sum::<f64>();
    let capacity = scenario.upstream.capacity();
    // Of calls that succeed with a probability of `good` each time, so many are served, and so many requests it takes.
    let (good, capacity) = match phase.condition {
        Condition::Well => (1.0, capacity),
        Condition::Slow(factor) => (1.0, capacity / factor),
        Condition::Failing(share) => (1.0 - share, capacity),
        Condition::Dead | Condition::Hanging => (0.0, 0.0),
    };
    let offered = sum(&|bin| bin.calls.iter().sum::<u32>() - bin.refused.iter().sum::<u32>()) / seconds;
    let doable = (offered * (1.0 - (1.0 - good).powi(4))).min(capacity * good);
    if doable > 0.0 {
        let done = sum(&|bin| bin.good) / seconds / doable;
        verdict.goodput = Some(verdict.goodput.map_or(done, |least: f64| least.min(done)));
        if done < 0.95 {
            verdict.violations.push(format!("goodput {done:.3} of {doable:.0}/s in the phase {phase:?}, wanted 0.95"));
        }
    }
    let load = phase.load.0 * scenario.upstream.capacity();
    if load < 0.9 * capacity {
        let shed = sum(&|bin| bin.shed.iter().sum());
        if shed > 0.0 {
            verdict.violations.push(format!("{shed} requests were shed in the phase {phase:?}, below capacity"));
        }
    }
}

fn judge_enterprise(scenario: &Scenario, phase: &Phase, bins: &[Bin], verdict: &mut Verdict) {
    let capacity = match phase.condition {
        Condition::Well => 1.0,
        Condition::Slow(factor) => 1.0 / factor,
        _ => return,
    };
    if phase.load.0 * scenario.mix[2] >= 0.8 * capacity {
        return;
    }
    // Who calls in the last seconds is overtaken by what comes next.
    for bin in bins.iter().rev().skip(10) {
        verdict.enterprise.0 += bin.served[2] + bin.given_up[2];
        verdict.enterprise.1 += bin.given_up[2];
    }
}

/// Which part of what the upstream can do is left.
fn capacity_left(condition: Condition) -> f64 {
    match condition {
        Condition::Slow(factor) => 1.0 / factor,
        _ => 1.0,
    }
}
