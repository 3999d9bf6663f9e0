//! The load on the upstream: when the switch turns, who is turned away for a severity, and states as bytes.

use dynamic_rate_limiter::config::Measured;
use dynamic_rate_limiter::health::{Health, Told};
use dynamic_rate_limiter::load::controller::Controller;
use dynamic_rate_limiter::load::shed::{Cut, Demand, place};
use dynamic_rate_limiter::load::signals::{Counts, LEVELS, Window};
use dynamic_rate_limiter::load::switch::{Reason, Switch};
use dynamic_rate_limiter::load::{Load, Response, Tally};
use proptest::prelude::*;

/// Slots in a second, and in the default window.
const A_SECOND: usize = 2;
const SLOTS: usize = 20;

/// Half a second in which so many requests were answered after so long, and so many failed.
fn slot(answered: u32, errors: u32, ms: u64) -> Counts {
    let mut counts =
        Counts { answered: answered + errors, errors, prompt: errors, at_once: errors, ..Counts::default() };
    counts.levels[2].passed = answered + errors;
    (0..answered).for_each(|_| counts.latency.add(ms * 1_000));
    counts
}

/// Half a second in which so many requests waited and nobody got an answer.
fn hanging(sent: u32, waiting: u64) -> Counts {
    let mut counts = Counts { in_flight_us: waiting * 500_000, ..Counts::default() };
    counts.levels[2].passed = sent;
    counts
}

struct Watch {
    window: Window,
    switch: Switch,
    bounds: Measured,
}

impl Watch {
    fn new(bounds: Measured) -> Self {
        Self { window: Window::new(bounds.window_seconds), switch: Switch::default(), bounds }
    }

    /// Sees one slot.
    fn see(&mut self, counts: Counts, severity: f64) -> Health {
        self.window.push(counts);
        self.switch = self.switch.step(&self.window, &self.bounds, severity);
        self.switch.health()
    }

    /// Sees the same slot so often, and says after how many the health was another.
    fn turns_after(&mut self, counts: &Counts, severity: f64, most: usize) -> Option<usize> {
        let before = self.switch.health();
        (1..=most).find(|_| self.see(counts.clone(), severity) != before)
    }
}

fn watch() -> Watch {
    let mut watch = Watch::new(Measured::default());
    assert_eq!(watch.turns_after(&slot(50, 0, 40), 0.0, 2 * SLOTS), None);
    watch
}

fn degraded() -> Watch {
    let mut watch = watch();
    assert!(watch.turns_after(&slot(0, 50, 40), 0.0, 2 * SLOTS).is_some());
    watch
}

#[test]
fn turns_when_a_bound_was_broken_for_so_long_and_not_one_slot_earlier() {
    // The bound is broken at the end of each of these slots: there is nothing else in the window.
    let mut watch = Watch::new(Measured::default());
    let after = watch.turns_after(&slot(50, 50, 40), 0.0, 2 * SLOTS);
    assert_eq!(after, Some(1 + 2 * A_SECOND), "two seconds after the first end at which it was broken");
    assert_eq!(watch.switch.reason(), Some(Reason::ErrorRatio(0.5)));
}

#[test]
fn a_bound_that_holds_in_between_starts_the_time_anew() {
    let mut watch = Watch::new(Measured::default());
    assert_eq!(watch.turns_after(&slot(50, 50, 40), 0.0, 2 * A_SECOND), None);
    assert_eq!(watch.see(slot(1_000, 0, 40), 0.0), Health::Normal);
    assert_eq!(watch.see(slot(50, 50, 40), 0.0), Health::Normal);
    assert_eq!(watch.switch.reason(), None);
}

#[test]
fn too_few_requests_decide_nothing() {
    // 2 a slot are 40 in the window; the default asks for 50.
    let mut watch = Watch::new(Measured::default());
    assert_eq!(watch.turns_after(&slot(0, 2, 40), 0.0, 3 * SLOTS), None);
    assert!(watch.turns_after(&slot(0, 3, 40), 0.0, 3 * SLOTS).is_some());
}

#[test]
fn latency_is_held_against_both_its_bounds() {
    let cases = [
        (Some(500), None, 600, true),
        (Some(500), None, 400, false),
        (None, Some(3.0), 150, true),
        (None, Some(3.0), 100, false),
        (None, None, 20_000, false),
    ];
    for (latency_ms, latency_ratio, ms, turns) in cases {
        let mut watch = Watch::new(Measured { latency_ms, latency_ratio, ..Measured::default() });
        assert_eq!(watch.turns_after(&slot(50, 0, 40), 0.0, SLOTS), None);
        assert!(watch.switch.baseline_us().is_some_and(|us| (35_000.0..=45_000.0).contains(&us)));
        let turned = watch.turns_after(&slot(50, 0, ms), 0.0, 3 * SLOTS).is_some();
        assert_eq!(turned, turns, "{latency_ms:?} {latency_ratio:?} {ms} ms");
    }
}

#[test]
fn a_hang_is_seen_although_nobody_gets_an_answer() {
    let mut watch = Watch::new(Measured::default());
    let mut waiting = 0;
    let turned = (0..SLOTS).find(|_| {
        waiting += 40;
        watch.see(hanging(40, waiting), 0.0) == Health::Degraded
    });
    assert!(turned.is_some_and(|slots| slots <= 4 * A_SECOND), "{turned:?}");
    assert!(matches!(watch.switch.reason(), Some(Reason::LatencyMs(_))), "{:?}", watch.switch.reason());
}

#[test]
fn a_few_requests_that_take_long_are_no_hang() {
    // One in fifty waits for half a minute, as requests do that wait for news; 60 are waiting at any time.
    let mut counts = slot(49, 0, 40);
    counts.latency.add(30_000_000);
    counts.levels[2].passed = 50;
    counts.in_flight_us = 60 * 500_000;
    let mut watch = watch();
    assert_eq!(watch.turns_after(&counts, 0.0, 3 * SLOTS), None);
}

#[test]
fn turns_back_when_all_bounds_held_for_so_long() {
    let mut watch = degraded();
    // Half a window until what was wrong no longer counts, and ten seconds more; with fewer slots before, since errors
    // may be up to 0.18 of what is seen.
    let after = watch.turns_after(&slot(50, 0, 40), 0.0, 4 * SLOTS).expect("it turns");
    let (least, most) = (10 * A_SECOND + 1, SLOTS / 2 + 10 * A_SECOND + 1);
    assert!((least..=most).contains(&after), "{after} slots, wanted {least} to {most}");
}

#[test]
fn does_not_turn_back_on_the_margin_of_a_bound_nor_while_anything_is_shed() {
    let mut watch = degraded();
    assert_eq!(
        watch.turns_after(&slot(81, 19, 40), 0.0, 4 * SLOTS),
        None,
        "0.19 is under the bound, 0.18 its margin"
    );
    assert_eq!(watch.turns_after(&slot(100, 0, 40), 0.01, 4 * SLOTS), None);
    assert!(watch.turns_after(&slot(83, 17, 40), 0.0, 4 * SLOTS).is_some());
}

#[test]
fn nobody_asking_changes_nothing_and_little_traffic_takes_longer() {
    let mut watch = degraded();
    assert_eq!(watch.turns_after(&Counts::default(), 0.0, 20 * SLOTS), None);
    assert_eq!(watch.turns_after(&slot(1, 0, 40), 0.0, 49), None);
    assert_eq!(watch.see(slot(1, 0, 40), 0.0), Health::Normal, "the fiftieth that was answered");
}

#[test]
fn what_is_usual_falls_at_once_and_rises_slowly() {
    let mut watch = watch();
    let usual = |watch: &Watch| watch.switch.baseline_us().expect("it is known");
    let before = usual(&watch);
    watch.turns_after(&slot(50, 0, 80), 0.0, 2 * SLOTS);
    assert!(usual(&watch) < before * 1.1, "20 s at twice the time");
    watch.turns_after(&slot(50, 0, 20), 0.0, 4 * SLOTS);
    assert!(usual(&watch) < before * 0.7, "40 s at half the time");
}

#[test]
fn states_are_the_same_as_bytes_and_nonsense_is_none() {
    let mut watch = degraded();
    let mut controller = Controller::default();
    for _ in 0..2 * SLOTS {
        watch.see(slot(20, 80, 700), controller.severity());
        controller = controller.step(&watch.window, &watch.bounds, &watch.switch, Health::Degraded);
        assert_eq!(Switch::decode(&watch.switch.encode()), Some(watch.switch));
        assert_eq!(Controller::decode(&controller.encode()), Some(controller));
    }
    assert_eq!(Switch::decode(&[0; 3]), None);
    assert_eq!(Switch::decode(&[255; 34]), None);
    assert_eq!(Controller::decode(&[]), None);
    let nonsense = Controller::default().encode().map(|_| 255);
    assert_eq!(Controller::decode(&nonsense), None);
}

#[test]
fn nothing_is_shed_while_health_is_normal_or_shedding_is_off() {
    for (shed, health) in [(true, Health::Normal), (false, Health::Degraded)] {
        let mut watch = Watch::new(Measured { shed, ..Measured::default() });
        let mut controller = Controller::default();
        for _ in 0..2 * SLOTS {
            watch.see(slot(10, 90, 900), 0.0);
            controller = controller.step(&watch.window, &watch.bounds, &watch.switch, health);
            assert!(controller.severity() == 0.0 && controller.cut().is_open());
        }
    }
}

#[test]
fn the_line_goes_through_the_least_important_first() {
    let mut demand = [Demand::default(); LEVELS];
    demand[2] = Demand { rate: 60.0, kept: 0.0 };
    demand[5] = Demand { rate: 30.0, kept: 0.5 };
    demand[8] = Demand { rate: 10.0, kept: 0.0 };
    let cases = [
        (0.0, Cut { level: 0, share: 0.0 }),
        (0.3, Cut { level: 2, share: 0.5 }),
        (0.675, Cut { level: 5, share: 0.5 }),
        (0.8, Cut { level: 8, share: 0.5 }),
        (1.0, Cut { level: LEVELS as u8, share: 0.0 }),
    ];
    for (severity, wanted) in cases {
        let cut = Cut::of(severity, &demand);
        assert_eq!((cut.level, (cut.share * 1e9).round() / 1e9), (wanted.level, wanted.share), "{severity}");
    }
}

proptest! {
    /// What is turned away adds up to the severity, or to all that `min_share` lets go; and nobody goes before those who
    /// matter less.
    #[test]
    fn what_is_turned_away_adds_up(
        severity in 0.0..=1.0f64,
        levels in prop::collection::vec((0.0..1e6f64, 0.0..=1.0f64), LEVELS),
    ) {
        let mut demand = [Demand::default(); LEVELS];
        for (level, (rate, kept)) in demand.iter_mut().zip(levels) {
            *level = Demand { rate, kept };
        }
        let cut = Cut::of(severity, &demand);
        let share = |level: usize| match level.cmp(&usize::from(cut.level)) {
            std::cmp::Ordering::Less => 1.0,
            std::cmp::Ordering::Equal => cut.share,
            std::cmp::Ordering::Greater => 0.0,
        };
        let sheddable = |level: usize| demand[level].rate * (1.0 - demand[level].kept);
        let total: f64 = demand.iter().map(|level| level.rate).sum();
        let shed: f64 = (0..LEVELS).map(|level| share(level) * sheddable(level)).sum();
        let wanted = (severity * total).min((0..LEVELS).map(sheddable).sum());
        prop_assert!((shed - wanted).abs() <= 1e-6 * total.max(1.0), "{shed} {wanted}");
        prop_assert!((0.0..=1.0).contains(&cut.share));
    }

    /// Who is turned away under a line is so under every line further up; places below `1 - min_share` alone go.
    #[test]
    fn a_caller_is_turned_away_by_its_place(
        priority in 0..LEVELS as u8,
        level in 0..LEVELS as u8,
        share in 0.0..=1.0f64,
        min_share in 0.0..=1.0f64,
        place in 0.0..1.0f64,
    ) {
        let cut = Cut { level, share };
        let sheds = cut.sheds(priority, min_share, place);
        prop_assert!(!sheds || priority <= level && place < 1.0 - min_share);
        let further = Cut { level: level + 1, share: 0.0 };
        prop_assert!(!sheds || further.sheds(priority, min_share, place));
        prop_assert_eq!(further.sheds(priority, min_share, place), priority <= level && place < 1.0 - min_share);
    }

    /// Whatever is counted, the states stay numbers that are written and read, and the severity a share.
    #[test]
    fn no_counts_break_the_controller(
        slots in prop::collection::vec(
            (any::<[u32; 8]>(), any::<u64>(), 0..u64::MAX / 2, any::<bool>()), 1..80),
    ) {
        let bounds = Measured::default();
        let mut window = Window::new(bounds.window_seconds);
        let (mut switch, mut controller) = (Switch::default(), Controller::default());
        for ([passed, refused, shed, answered, errors, prompt, at_once, slow], kept_milli, us, is_degraded) in slots {
            let mut counts = Counts { answered, errors, prompt, at_once, in_flight_us: us, ..Counts::default() };
            counts.levels[5].passed = passed;
            counts.levels[5].refused = refused;
            counts.levels[2].shed = shed;
            counts.levels[2].kept_milli = kept_milli;
            (0..slow % 200).for_each(|_| counts.latency.add(us));
            window.push(counts);
            switch = switch.step(&window, &bounds, controller.severity());
            let health = if is_degraded { Health::Degraded } else { Health::Normal };
            controller = controller.step(&window, &bounds, &switch, health);
            prop_assert!((0.0..=1.0).contains(&controller.severity()), "{controller:?}");
            prop_assert_eq!(Switch::decode(&switch.encode()), Some(switch));
            prop_assert_eq!(Controller::decode(&controller.encode()), Some(controller));
        }
    }
}

#[test]
fn an_error_is_work_if_it_took_the_time_that_work_takes_and_no_longer_than_an_answer_may() {
    let bounds = Measured::default();
    let mut load = Load::new(&bounds, 0);
    let half_seconds = (1..=2 * SLOTS as u64).map(|half| half * 500_000);
    half_seconds.for_each(|now_us| load.add(&slot(50, 0, 40), &bounds, Told::Auto, now_us));
    let counts_of = |tally: &mut Tally, us| {
        tally.answered(Response::Failed(us));
        let counts = tally.take(0);
        assert_eq!((counts.answered, counts.errors), (1, 1));
        (counts.prompt, counts.at_once, counts.worked(), counts.latency.count())
    };
    let mut tally = Tally::new(1, 0);
    assert_eq!(counts_of(&mut tally, Some(30_000)), (1, 1, 0, 0), "nothing is known of how long work takes");
    tally.follow(&load, &bounds);
    for refused_us in [None, Some(0), Some(10_000)] {
        assert_eq!(counts_of(&mut tally, refused_us), (1, 1, 0, 0), "{refused_us:?}");
    }
    for worked_us in [30_000, 40_000, 100_000] {
        assert_eq!(counts_of(&mut tally, Some(worked_us)), (1, 0, 1, 1), "{worked_us}");
    }
    assert_eq!(counts_of(&mut tally, Some(2_000_000)), (0, 0, 0, 1));
}

/// Two workers, of which one serves nobody, hand in four times a second; now the one comes first and now the other.
#[test]
fn each_slot_has_as_many_hand_ins_of_a_worker_whoever_comes_first() {
    let bounds = Measured::default();
    let mut load = Load::new(&bounds, 0);
    let (idle, mut busy) = (Counts::default(), Counts::default());
    busy.levels[2].passed = 10;
    for turn in 1..=200 {
        let late_us = |worker: u64| (turn * 7 + worker * 3) % 5 * 400;
        let mut both =
            [(0, &idle), (1, &busy)].map(|(worker, counts)| (turn * 252_000 + late_us(worker), counts));
        both.sort_by_key(|(now_us, _)| *now_us);
        both.iter().for_each(|(now_us, counts)| load.add(counts, &bounds, Told::Auto, *now_us));
        let passed: Vec<_> = load.window.slots().map(Counts::passed).collect();
        assert!(passed.iter().skip(1).all(|passed| *passed == 20), "{passed:?}");
    }
}

#[test]
fn slots_are_half_a_second_unless_the_window_is_very_short_or_very_long() {
    let shape = |seconds| (Window::new(seconds).size(), Window::new(seconds).slot_us());
    assert_eq!(shape(1), (20, 50_000));
    assert_eq!(shape(10), (20, 500_000));
    assert_eq!(shape(60), (120, 500_000));
    assert_eq!(shape(300), (120, 2_500_000));
}

#[test]
fn places_are_spread_evenly_and_come_round() {
    let share_below = |limit: f64, now_us| {
        (0..10_000u32).filter(|caller| place(caller, now_us) < limit).count() as f64 / 10_000.0
    };
    for limit in [0.1, 0.5, 0.9] {
        for now_us in [0, 77_000_000, 299_999_999] {
            let share = share_below(limit, now_us);
            assert!((share - limit).abs() < 0.02, "{share} of {limit} at {now_us}");
        }
    }
    assert!((0..300).any(|second| place(&1u32, second * 1_000_000) < 0.05), "everybody's turn comes");
    assert!((0..300).any(|second| place(&1u32, second * 1_000_000) > 0.95));
}
