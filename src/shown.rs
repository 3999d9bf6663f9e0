//! Text from outside, made fit for a log line, an answer or an error message: one line, and not too long.
//!
//! Errors call [`Shown`] where they quote a name. The log calls [`Line`] for every line, whatever it holds.

use std::fmt::{self, Write};

/// Most characters of one name or value that an error shows.
pub const MAX_SHOWN_CHARS: usize = 40;

/// Longest line of the log, in bytes; the longest message of our own has some 500.
pub const MAX_LINE_BYTES: usize = 1_024;

/// Most names that a list of names shows.
const MAX_LISTED: usize = 20;

/// What stands for the part that is left out.
const CUT: char = '…';

/// Shows at most [`MAX_SHOWN_CHARS`] characters of a text, without any that could break a line or hide in one.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a>(pub &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.0.chars();
        for character in chars.by_ref().take(MAX_SHOWN_CHARS) {
            write_escaped(formatter, character)?;
        }
        if chars.next().is_some() { formatter.write_char(CUT) } else { Ok(()) }
    }
}

/// The same in quotes, with quotes within it escaped.
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{:?}", format!("{}{CUT}", text.get(..end).unwrap_or_default())),
        None => format!("{text:?}"),
    }
}

/// `a, b, c`, or the first names and how many more there are.
pub fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(MAX_LISTED);
    let shown: Vec<String> = names.take(MAX_LISTED).map(|name| Shown(name).to_string()).collect();
    let list = shown.join(", ");
    if more == 0 { list } else { format!("{list} and {more} more") }
}

/// One line of the log, written piece by piece: escaped, and cut off at [`MAX_LINE_BYTES`].
#[derive(Debug, Default)]
pub struct Line {
    text: String,
    is_cut: bool,
}

impl Line {
    /// The line that these arguments make.
    pub fn of(arguments: fmt::Arguments<'_>) -> Self {
        let mut line = Self::default();
        // It takes whatever it is given.
        let _ = line.write_fmt(arguments);
        line
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if self.is_cut {
                break;
            }
            if self.text.len() >= MAX_LINE_BYTES {
                self.text.push(CUT);
                self.is_cut = true;
            } else {
                write_escaped(&mut self.text, character)?;
            }
        }
        Ok(())
    }
}

/// Writes a character, or its escape where it does not show as itself: control characters, line separators, marks that
/// change the direction of what follows.
fn write_escaped(output: &mut impl Write, character: char) -> fmt::Result {
    match character {
        '"' | '\'' | '\\' => output.write_char(character),
        _ => write!(output, "{}", character.escape_debug()),
    }
}
