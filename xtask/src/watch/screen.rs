//! A board as a screen of text, and as a line.

use ratatui::Frame;
use ratatui::layout::Constraint::{Length, Min};
use ratatui::layout::{Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Gauge, Paragraph, Sparkline, Wrap};

use super::board::{Board, Rates};
use super::stats::Cluster;

/// A line with the tier's name, tokens, and curves of allowed and rejected requests.
const ROWS_PER_TIER: u16 = 4;

const NAME_COLUMNS: u16 = 28;

pub(super) fn draw(board: &Board, frame: &mut Frame) {
    let columns = frame.area().width;
    let measured = measured_health(board);
    let measured_rows = measured.iter().map(|line| rows_of(&line.to_string(), columns)).sum();
    let notice = board.notices.last().map_or("", String::as_str);
    let notices = notice.lines().map(|line| rows_of(line, columns)).sum();
    let rows = [Length(1), Length(1), Length(measured_rows), Min(0), Length(1), Length(notices)];
    let [top, second, third, middle, last, bottom] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(title(board), top);
    frame.render_widget(Line::from(state(board)), second);
    frame.render_widget(Paragraph::new(measured).wrap(Wrap { trim: true }), third);
    draw_tiers(board, frame, middle);
    frame.render_widget(counts(board).dim(), last);
    frame.render_widget(Paragraph::new(notice).wrap(Wrap { trim: false }).yellow(), bottom);
}

/// The maximum of rows for a line: words are not broken.
fn rows_of(line: &str, columns: u16) -> u16 {
    let rows =
        line.len().div_ceil(usize::from(columns.max(1))) + usize::from(line.len() > usize::from(columns));
    u16::try_from(rows).unwrap_or(u16::MAX)
}

fn title(board: &Board) -> Line<'_> {
    Line::from(vec![
        "Rate limiter".bold(),
        format!(" at {}   ", board.admin).into(),
        "q or Ctrl-C quits".dim(),
        board.error.as_ref().map_or(Span::default(), |why| format!("   {why}").red()),
    ])
}

fn state(board: &Board) -> Vec<Span<'static>> {
    let health = match board.now().and_then(|sample| sample.degraded) {
        Some(true) => "DEGRADED".black().on_yellow(),
        Some(false) => "NORMAL".black().on_green(),
        None => "not reported yet".dim(),
    };
    let redis = match board.now().and_then(|sample| sample.redis_connected) {
        Some(true) => "connected".green(),
        Some(false) => "disconnected".white().on_red(),
        None => "not configured".dim(),
    };
    vec!["Health ".into(), health, "   Redis ".into(), redis]
}

/// Mode, requests in flight, and shed requests of each tier; empty if health is not measured.
fn measured_health(board: &Board) -> Vec<Line<'static>> {
    let Some((sample, is_automatic)) = board.now().and_then(|sample| Some((sample, sample.is_automatic?)))
    else {
        return Vec::new();
    };
    let mut in_flight = format!("Mode {}", if is_automatic { "auto" } else { "manual" });
    for (name, Cluster { in_flight: now, limit, waiting }) in &sample.clusters {
        in_flight += &format!("   {name} {now} of {limit} in flight, {waiting} waiting");
    }
    let share = sample.shed_permille.unwrap_or(0) as f64 / 10.0;
    let colour = if share > 0.0 { Color::Yellow } else { Color::Reset };
    let of_tiers: Vec<_> =
        board.tiers().iter().map(|name| format!("{name} {:.1}", board.rates(name).shed)).collect();
    let shed = format!("Shed {share:.1} %").fg(colour);
    let a_second = format!("   a second: {}", of_tiers.join("  "));
    vec![in_flight.into(), Line::from(vec![shed, a_second.into()])]
}

fn draw_tiers(board: &Board, frame: &mut Frame, area: Rect) {
    let tiers = board.tiers();
    let fit = usize::from(area.height / ROWS_PER_TIER);
    // If not all fit, the last row says so.
    let shown =
        if tiers.len() > fit { usize::from(area.height.saturating_sub(1) / ROWS_PER_TIER) } else { fit };
    let rows = tiers.iter().take(shown).map(|_| Length(ROWS_PER_TIER));
    let areas = Layout::vertical(rows.chain([Min(0)])).split(area);
    for (name, area) in tiers.iter().take(shown).zip(areas.iter()) {
        draw_tier(board, name, frame, *area);
    }
    if let Some(rest) = tiers.get(shown..).filter(|rest| !rest.is_empty()) {
        let text = format!("{} more: {}. Enlarge the window to see them.", rest.len(), rest.join(", "));
        frame.render_widget(text.dim(), areas[areas.len() - 1]);
    }
}

fn draw_tier(board: &Board, name: &str, frame: &mut Frame, area: Rect) {
    let block = Block::new().borders(Borders::TOP).title(format!(" {name} ").bold());
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let rates = board.rates(name);
    let rows: [Rect; 3] = Layout::vertical([Length(1); 3]).areas(inner);
    let columns = |row: Rect| Layout::horizontal([Length(NAME_COLUMNS), Min(0)]).areas(row);
    let [[left, right], second, third] = rows.map(columns);
    frame.render_widget(Line::from("tokens of the last caller"), left);
    draw_tokens(board, name, frame, right);
    draw_curve("allowed", rates.allowed, board.curve(name, |r| r.allowed), Color::Green, frame, second);
    draw_curve("rejected", rates.rejected, board.curve(name, |r| r.rejected), Color::Red, frame, third);
}

fn draw_tokens(board: &Board, name: &str, frame: &mut Frame, area: Rect) {
    let Some(left) = board.tier(name).and_then(|tier| tier.tokens_remaining()) else {
        return frame.render_widget("none seen yet".dim(), area);
    };
    let Some(capacity) = board.capacity(name) else {
        return frame.render_widget(left.to_string(), area);
    };
    // The value may be from before the capacity was reduced.
    let left = left.min(capacity);
    let share = if capacity == 0 { 0.0 } else { left as f64 / capacity as f64 };
    let colour = if share > 0.25 { Color::Cyan } else { Color::Yellow };
    let gauge = Gauge::default().ratio(share).label(format!("{left} of {capacity}"));
    frame.render_widget(gauge.gauge_style(Style::new().fg(colour).bg(Color::DarkGray)), area);
}

fn draw_curve(what: &str, rate: f64, curve: Vec<u64>, colour: Color, frame: &mut Frame, areas: [Rect; 2]) {
    let [left, right] = areas;
    let text = format!("{what:<8} {rate:>9.1} a second");
    frame.render_widget(Line::from(text.fg(if rate > 0.0 { colour } else { Color::Reset })), left);
    let newest = curve.len().saturating_sub(usize::from(right.width));
    let sparkline = Sparkline::default().data(&curve[newest..]).style(Style::new().fg(colour));
    frame.render_widget(sparkline, right);
}

fn counts(board: &Board) -> Paragraph<'static> {
    let text = board.now().map(|sample| {
        format!(
            "configurations applied {}, rejected {}   without Redis {}   store failures {}",
            sample.reloads_applied, sample.reloads_rejected, sample.fallbacks, sample.store_failures
        )
    });
    Paragraph::new(text.unwrap_or_default())
}

/// All values in one line, if there is no terminal.
pub(super) fn line(board: &Board) -> String {
    if let Some(why) = &board.error {
        return why.clone();
    }
    let mut text: String = state(board).iter().map(|span| span.content.as_ref()).collect();
    measured_health(board).iter().for_each(|line| text += &format!("   {line}"));
    for name in board.tiers() {
        let Rates { allowed, rejected, .. } = board.rates(&name);
        let left = board.tier(&name).and_then(|tier| tier.tokens_remaining());
        let left = left.map_or("-".to_owned(), |left| left.to_string());
        let capacity = board.capacity(&name).map_or("?".to_owned(), |capacity| capacity.to_string());
        text +=
            &format!(" | {name}: {left}/{capacity} tokens, {allowed:.1} allowed/s, {rejected:.1} rejected/s");
    }
    text
}
