//! A large object, read some members at a time: the same errors in the same words as for a text that is read at once.
//!
//! A scan over the bytes finds where members end; `serde_json` then reads a batch of whole members as an object of
//! their own. Its errors get the line and column in the whole text.

use super::{Json, SyntaxError, without_bom};

/// Longest member, in bytes; an entry of the key document has some 300.
pub const MAX_MEMBER_BYTES: usize = 64 << 10;

/// Bytes that one call scans at most, beyond the longest member.
const SCAN_BYTES: usize = 64 << 10;

/// Put in front of a batch, so that it is parsed as an object.
const OPEN: &[u8] = b"{";
/// The same after a comma: then the batch may not be empty.
const OPEN_AFTER_COMMA: &[u8] = b"{\"\":0,";

/// A text with one object, and how much of it has been read.
#[derive(Debug)]
pub struct MemberReader {
    text: Vec<u8>,
    /// Where the next member, or the white space before it, begins.
    at: usize,
    /// The line there, from 1, and how many bytes of it come before.
    line: usize,
    column: usize,
    expects: Expects,
    batch_bytes: usize,
}

/// Members that were read together.
#[derive(Debug)]
pub enum Batch {
    /// The next members; there may be more.
    Members(Json),
    /// None yet: there was much white space.
    Nothing,
    /// All have been read.
    End,
    /// The text is no object but this.
    Other(Json),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Expects {
    Object,
    Members,
    MembersAfterComma,
    End,
}

impl MemberReader {
    /// Reads `text` in batches of about so many bytes.
    pub fn new(text: Vec<u8>, batch_bytes: usize) -> Self {
        let at = text.len() - without_bom(&text).len();
        Self { text, at, line: 1, column: 0, expects: Expects::Object, batch_bytes }
    }

    /// How many bytes are still to be read.
    pub fn left(&self) -> usize {
        self.text.len().saturating_sub(self.at)
    }

    pub fn next_batch(&mut self) -> Result<Batch, String> {
        if self.skip_white_space() {
            return Ok(Batch::Nothing);
        }
        match self.expects {
            Expects::Object if self.rest().first() == Some(&b'{') => {
                self.advance(1);
                self.expects = Expects::Members;
                self.next_batch()
            }
            Expects::Object => self.other(),
            Expects::Members | Expects::MembersAfterComma => self.members(),
            Expects::End if self.rest().is_empty() => Ok(Batch::End),
            Expects::End => {
                // Makes the error for a second value, at this place.
                let text = [b"0 ", self.rest().get(..1).unwrap_or_default()].concat();
                Err(Json::read(&text).map_or_else(|error| self.placed(&error, 2), |_| String::new()))
            }
        }
    }

    /// Goes to the next byte that is no white space; true where it is not there yet.
    fn skip_white_space(&mut self) -> bool {
        let is_white = |byte: &u8| matches!(byte, b' ' | b'\n' | b'\t' | b'\r');
        let skipped = self.rest().iter().take(SCAN_BYTES).take_while(|byte| is_white(byte)).count();
        self.advance(skipped);
        skipped == SCAN_BYTES
    }

    /// The value that is there instead of an object.
    fn other(&self) -> Result<Batch, String> {
        let rest = self.rest();
        let text = match rest.first() {
            _ if rest.len() <= MAX_MEMBER_BYTES => rest,
            // What it holds does not matter: it is no object.
            Some(b'[') => b"[]",
            Some(b'"') => b"\"\"",
            Some(b'-' | b'0'..=b'9') => b"0",
            _ => rest.get(..MAX_MEMBER_BYTES).unwrap_or_default(),
        };
        Json::read(text).map(Batch::Other).map_err(|error| self.placed(&error, 0))
    }

    fn members(&mut self) -> Result<Batch, String> {
        let (length, end) = self.extent()?;
        let members = self.rest().get(..length).unwrap_or_default();
        let open = match self.expects {
            Expects::MembersAfterComma if members.is_empty() => OPEN_AFTER_COMMA,
            _ => OPEN,
        };
        let read = |close: &[u8]| Json::read(&[open, members, close].concat());
        let json = match end {
            // A comma that no member is before is an error.
            End::Comma if members.is_empty() => read(b","),
            // An error is made again with the bytes that follow: an escape in the text may reach into them.
            End::Comma | End::Brace => read(b"}").or_else(|_| {
                let follows = self.rest().get(length..).unwrap_or_default();
                read(follows.get(..1 + ESCAPE_BYTES).unwrap_or(follows))
            }),
            End::Text => read(b""),
        }
        .map_err(|error| self.placed(&error, open.len()))?;
        self.advance(length + 1);
        self.expects = if end == End::Comma { Expects::MembersAfterComma } else { Expects::End };
        Ok(Batch::Members(json))
    }

    /// How long the next whole members are, and what ends them.
    fn extent(&self) -> Result<(usize, End), String> {
        let rest = self.rest();
        let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
        let mut last_comma = None;
        for (index, byte) in rest.iter().enumerate().take(MAX_MEMBER_BYTES + 1) {
            if in_string {
                match byte {
                    _ if is_escaped => is_escaped = false,
                    b'\\' => is_escaped = true,
                    b'"' => in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => in_string = true,
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth > 0 => depth -= 1,
                b'}' => return Ok((index, End::Brace)),
                b',' if depth == 0 => {
                    last_comma = Some(index);
                    if index >= self.batch_bytes {
                        break;
                    }
                }
                _ => {}
            }
        }
        match last_comma {
            Some(index) => Ok((index, End::Comma)),
            None if rest.len() <= MAX_MEMBER_BYTES => Ok((rest.len(), End::Text)),
            None => Err(self.too_long()),
        }
    }

    /// A member without an end: wrong from its beginning on, or too long.
    fn too_long(&self) -> String {
        let start = [OPEN, self.rest().get(..MAX_MEMBER_BYTES).unwrap_or_default()].concat();
        match Json::read(&start) {
            Err(error) if !error.is_end => self.placed(&error, OPEN.len()),
            _ => {
                let (line, column) = (self.line, self.column + 1);
                let found =
                    format!("a member of over {MAX_MEMBER_BYTES} bytes at line {line} column {column}");
                format!("found {found}, wanted a shorter one")
            }
        }
    }

    fn rest(&self) -> &[u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn advance(&mut self, bytes: usize) {
        let passed = self.text.get(self.at..self.at + bytes).unwrap_or_default();
        match passed.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => {
                self.line += passed.iter().filter(|byte| **byte == b'\n').count();
                self.column = passed.len() - last - 1;
            }
            None => self.column += passed.len(),
        }
        self.at += passed.len();
    }

    /// An error in a text that begins `opened` bytes before where this reader stands.
    fn placed(&self, error: &SyntaxError, opened: usize) -> String {
        let column =
            if error.line == 1 { (self.column + error.column).saturating_sub(opened) } else { error.column };
        SyntaxError { line: self.line + error.line - 1, column, ..error.clone() }.to_string()
    }
}

/// Bytes of an escape such as `\u0041` after `\u`.
const ESCAPE_BYTES: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Comma,
    Brace,
    /// The text ends before its object does.
    Text,
}
