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
        if phase.is_steady() && phase.seconds > window {
            judge_steady(scenario, phase, between(story, from + window, to), &mut verdict);
        }
        let is_over = index > 0 && scenario.phases[index - 1].is_disturbed() && !phase.is_disturbed();
        if is_over {
            let back = story.bins.iter().rposition(|bin| bin.health == Health::Degraded);
            let back = back.map_or(0.0, |bin| (bin + 1) as f64 * BIN_US as f64 / 1e6 - from).max(0.0);
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

fn between(story: &Story, from: f64, to: f64) -> &[Bin] {
    let index = |seconds: f64| ((seconds * 1e6) as u64 / BIN_US) as usize;
    &story.bins[index(from)..index(to).min(story.bins.len())]
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
    if load * scenario.mix[2] < 0.8 * capacity && good == 1.0 {
        verdict.enterprise.0 += sum(&|bin| bin.served[2] + bin.given_up[2]) as u32;
        verdict.enterprise.1 += sum(&|bin| bin.given_up[2]) as u32;
    }
    if load < 0.9 * capacity {
        let shed = sum(&|bin| bin.shed.iter().sum());
        if shed > 0.0 {
            verdict.violations.push(format!("{shed} requests were shed in the phase {phase:?}, below capacity"));
        }
    }
}
