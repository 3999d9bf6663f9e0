//! The screen, drawn on ratatui's test terminal.

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::style::Color;

use super::board::{Board, Rates, rates};
use super::screen;
use super::stats::{Cluster, Sample};

/// Recorded from an Envoy, shortened.
const BEFORE: &str = "\
wasmcustom.rate_limiter_config_reloads_total.result.applied: 3
wasmcustom.rate_limiter_config_reloads_total.result.rejected: 1
wasmcustom.rate_limiter_requests_total.tier.free.status.allowed: 10
wasmcustom.rate_limiter_requests_total.tier.free.status.limited: 4
wasmcustom.rate_limiter_requests_total.tier.pro.status.allowed: 100
wasmcustom.rate_limiter_system_degraded: 0
wasmcustom.rate_limiter_tokens_remaining.tier.free: 3
wasmcustom.rate_limiter_tokens_remaining.tier.pro: 24
wasmcustom.rate_limiter_decision_duration_microseconds: P0(nan,1.0) P50(nan,2.05)
listener.127.0.0.1_8000.downstream_cx_total: 7
";

const NOW: &str = "\
wasmcustom.rate_limiter_config_reloads_total.result.applied: 3
wasmcustom.rate_limiter_config_reloads_total.result.rejected: 1
wasmcustom.rate_limiter_requests_total.tier.free.status.allowed: 30
wasmcustom.rate_limiter_requests_total.tier.free.status.limited: 11
wasmcustom.rate_limiter_requests_total.tier.free.status.blocked: 3
wasmcustom.rate_limiter_requests_total.tier.pro.status.allowed: 103
wasmcustom.rate_limiter_requests_total.tier.pro.status.exempt: 2
wasmcustom.rate_limiter_system_degraded: 0
wasmcustom.rate_limiter_tokens_remaining.tier.free: 5
wasmcustom.rate_limiter_tokens_remaining.tier.pro: 20
";

/// Recorded from `/stats?filter=rate_limiter_` during the overload of `cargo xtask demo --overload`, without the gauges
/// whose names contain a hash. An end-to-end test compares the names with those of an Envoy.
const OVERLOAD: &str = include_str!("overload.stats");

/// Two seconds before.
const OVERLOAD_BEFORE: &str = "\
wasmcustom.rate_limiter_requests_total.tier.free.status.shed: 2509
wasmcustom.rate_limiter_requests_total.tier.pro.status.shed: 29
";

const TIERS: &[u8] = br#"{
    "free": {"base": {"capacity": 5, "refill_rate": 1}, "burst": {"capacity": 10},
             "degraded": {"capacity": 2, "refill_rate": 1}},
    "pro": {"base": {"capacity": 25, "refill_rate": 1}}, "internal": {"unlimited": true}}"#;

/// A board with a sample of each text, two seconds apart.
fn board(before: &str, now: &str) -> Board {
    let mut board = Board::default();
    for (second, text) in [(1, before), (3, now)] {
        board.add(Sample::parse(Duration::from_secs(second), text), TIERS);
    }
    board
}

fn drawn(board: &Board, columns: u16, rows: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).expect("a table of cells");
    terminal.draw(|frame| screen::draw(board, frame)).expect("drawn");
    terminal.backend().buffer().clone()
}

fn rows(buffer: &Buffer) -> Vec<String> {
    let columns = usize::from(buffer.area.width);
    let rows = buffer.content.chunks(columns);
    rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned()).collect()
}

/// The column and row at which `text` begins.
fn place(buffer: &Buffer, text: &str) -> (u16, u16) {
    let rows = rows(buffer);
    let row = rows.iter().position(|row| row.contains(text));
    let row = row.unwrap_or_else(|| panic!("{text:?} in\n{}", rows.join("\n")));
    let column = rows[row].find(text).map(|at| rows[row][..at].chars().count()).expect("found above");
    (u16::try_from(column).expect("a column"), u16::try_from(row).expect("a row"))
}

#[test]
fn rates_are_the_changes_between_two_samples() {
    let [before, now] =
        [(1, BEFORE), (3, NOW)].map(|(at, text)| Sample::parse(Duration::from_secs(at), text));
    let found = rates(&before, &now);
    assert_eq!(found["free"], Rates { allowed: 10.0, rejected: 5.0, shed: 0.0 });
    assert_eq!(found["pro"], Rates { allowed: 2.5, rejected: 0.0, shed: 0.0 });
    let later = Sample::parse(Duration::from_secs(4), BEFORE);
    assert_eq!(rates(&now, &later)["free"].allowed, 10.0, "a restarted Envoy counts from zero");
    assert_eq!(rates(&now, &now)["free"], Rates::default(), "no time, no rate");
}

#[test]
fn rates_are_over_two_seconds() {
    let mut board = Board::default();
    for half_seconds in 0..10 {
        let text = if half_seconds < 5 { BEFORE } else { NOW };
        board.add(Sample::parse(Duration::from_millis(half_seconds * 500), text), &[]);
    }
    // The first sample has none before it; 20 requests in two seconds are 100 tenths a second.
    assert_eq!(board.curve("free", |rates| rates.allowed), [0, 0, 0, 0, 100, 100, 100, 100, 0]);
    assert_eq!(board.rates("free"), Rates::default());
}

#[test]
fn tokens_are_a_bar_relative_to_the_capacity() {
    let buffer = drawn(&board(BEFORE, NOW), 80, 24);
    let (column, row) = place(&buffer, "5 of 10");
    let filled = (28..80).filter(|x| {
        let cell = &buffer[(*x, row)];
        // Under the label, the bar is the background colour instead of a block.
        if (column..column + 7).contains(x) { cell.bg == Color::Cyan } else { cell.symbol() == "█" }
    });
    assert_eq!(filled.count(), 26, "half of 52 columns");
    place(&buffer, "20 of 25");
    assert_eq!(place(&buffer, "free").0, place(&buffer, "pro").0);
    assert!(place(&buffer, "free").1 < place(&buffer, "pro").1, "small buckets first");
}

#[test]
fn allowed_and_rejected_requests_are_curves() {
    let mut board = board(BEFORE, NOW);
    let buffer = drawn(&board, 80, 24);
    let (_, allowed) = place(&buffer, "allowed       10.0 a second");
    assert_eq!((buffer[(28, allowed)].symbol(), buffer[(28, allowed)].fg), ("█", Color::Green));
    let (_, rejected) = place(&buffer, "rejected       5.0 a second");
    assert_eq!((buffer[(28, rejected)].symbol(), buffer[(28, rejected)].fg), ("█", Color::Red));

    // Half the rate later is half as high, beside the first.
    board.add(Sample::parse(Duration::from_secs(5), &NOW.replace("allowed: 30", "allowed: 40")), &[]);
    let buffer = drawn(&board, 80, 24);
    assert_eq!([buffer[(28, allowed)].symbol(), buffer[(29, allowed)].symbol()], ["█", "▄"]);
}

#[test]
fn health_and_redis_have_their_colours() {
    let cases = [
        ("", "not reported yet", Color::Reset),
        ("system_degraded: 0", "NORMAL", Color::Green),
        ("system_degraded: 1", "DEGRADED", Color::Yellow),
        ("config_reloads_total.result.applied: 0", "not configured", Color::Reset),
        ("redis_connected: 1", "connected", Color::Green),
        ("redis_connected: 0", "disconnected", Color::Red),
    ];
    for (stat, text, colour) in cases {
        let stat = format!("wasmcustom.rate_limiter_{stat}\n");
        let buffer = drawn(&board(&stat, &stat), 80, 24);
        let cell = &buffer[place(&buffer, text)];
        assert!([cell.bg, cell.fg].contains(&colour), "{text}: {cell:?}");
    }
}

#[test]
fn while_degraded_the_bars_use_the_degraded_limits() {
    let buffer = drawn(&board(BEFORE, &NOW.replace("degraded: 0", "degraded: 1")), 80, 24);
    let (column, row) = place(&buffer, "2 of 2");
    assert_eq!(buffer[(column, row)].bg, Color::Cyan, "tokens above the capacity are a full bar");
    place(&buffer, "20 of 25");
}

#[test]
fn only_measured_health_has_rows() {
    let without = rows(&drawn(&board(BEFORE, NOW), 80, 24)).join("\n");
    assert!(!without.contains("in flight") && !without.contains("Shed"), "{without}");

    let board = board(OVERLOAD_BEFORE, OVERLOAD);
    let with = rows(&drawn(&board, 80, 24));
    assert_eq!(with[2], "Mode auto   upstream 15 of 15 in flight, 32 waiting");
    assert_eq!(with[3], "Shed 80.4 %   a second: free 371.5  pro 4.5  enterprise 0.0");
    for row in &with[2..4] {
        assert!(screen::line(&board).contains(row), "{row}");
    }

    // Words that do not fit are wrapped.
    let narrow = rows(&drawn(&board, 40, 24));
    assert_eq!(narrow[2..4], ["Mode auto   upstream 15 of 15 in flight,", "32 waiting"]);
}

/// Only the stat of Redis is missing in the record.
#[test]
fn the_recorded_overload_contains_all_parsed_stats() {
    let sample = Sample::parse(Duration::ZERO, OVERLOAD);
    assert!(sample.is_limiter);
    assert_eq!((sample.degraded, sample.is_automatic), (Some(true), Some(true)));
    assert_eq!((sample.redis_connected, sample.shed_permille), (None, Some(804)));
    assert_eq!(sample.reloads_applied, 1);
    assert_eq!(sample.clusters["upstream"], Cluster { in_flight: 15, limit: 15, waiting: 32 });
    let of = |name: &str| &sample.tiers[name];
    for (tier, is_shed) in [("enterprise", false), ("free", true), ("pro", true)] {
        assert!(of(tier).allowed > 0, "{tier}");
        assert_eq!((of(tier).rejected, of(tier).shed > 0), (0, is_shed), "{tier}");
        assert_eq!(of(tier).tokens_remaining(), Some(99_999), "{tier}");
    }
}

#[test]
fn a_tier_without_a_caller_has_no_tokens() {
    let seen = "wasmcustom.rate_limiter_requests_total.tier.pro.status.limited: 1\n";
    for (counted, wanted) in [("", None), (seen, Some(0))] {
        let text = format!("wasmcustom.rate_limiter_tokens_remaining.tier.pro: 0\n{counted}");
        assert_eq!(Sample::parse(Duration::ZERO, &text).tiers["pro"].tokens_remaining(), wanted);
    }
}

#[test]
fn a_new_tier_an_error_and_a_notice_are_shown() {
    let mut board = board("", "");
    board.error = Some("no answer from Envoy's admin endpoint 127.0.0.1:9901".to_owned());
    board.notices.push("Redis has ended.\n    redis-server".to_owned());
    let buffer = drawn(&board, 120, 24);
    for text in
        ["free", "none seen yet", "no answer from Envoy's admin endpoint 127.0.0.1:9901", "Redis has ended."]
    {
        place(&buffer, text);
    }
    assert_eq!(place(&buffer, "    redis-server"), (0, 23));
    let unknown = "wasmcustom.rate_limiter_tokens_remaining.tier.gold: 7\n";
    board.add(Sample::parse(Duration::from_secs(9), unknown), &[]);
    place(&drawn(&board, 80, 24), "gold");
}

#[test]
fn tiers_that_do_not_fit_are_named_and_any_window_size_works() {
    let many: String =
        (0..9).map(|n| format!("wasmcustom.rate_limiter_tokens_remaining.tier.t{n}: {n}\n")).collect();
    let mut board = Board::default();
    board.add(Sample::parse(Duration::ZERO, &many), &[]);
    place(&drawn(&board, 80, 24), "4 more: t5, t6, t7, t8.");
    assert!(!rows(&drawn(&board, 80, 44)).join("\n").contains("more:"));
    for (columns, lines) in [(1, 1), (10, 3), (26, 8), (300, 100)] {
        drawn(&board, columns, lines);
    }
}

#[test]
fn without_a_terminal_the_output_is_a_line() {
    let wanted = "Health NORMAL   Redis not configured \
                  | free: 5/10 tokens, 10.0 allowed/s, 5.0 rejected/s | pro: 20/25 tokens, 2.5 allowed/s, 0.0 rejected/s";
    assert_eq!(screen::line(&board(BEFORE, NOW)), wanted);
}
