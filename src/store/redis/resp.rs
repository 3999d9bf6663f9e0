//! The Redis protocol, as much of it as the limiter speaks: commands out, replies in.
//!
//! Commands go out length-prefixed, so that no byte of a name can be taken for protocol. Replies come in pieces
//! that end anywhere. Everything has a bound, and the only replies known are those that our commands can have: an
//! array, or anything else, means that another server than Redis is talking.

/// Longest line or text that is read, in bytes; ours have at most a hundred, errors some hundreds.
pub const MAX_REPLY_BYTES: usize = 4096;

/// Appends a command to `out`.
pub fn push_command(out: &mut Vec<u8>, arguments: &[&[u8]]) {
    push_length(out, b'*', arguments.len());
    for argument in arguments {
        push_length(out, b'$', argument.len());
        out.extend_from_slice(argument);
        out.extend_from_slice(b"\r\n");
    }
}

fn push_length(out: &mut Vec<u8>, kind: u8, length: usize) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// `+OK`
    Simple(&'a [u8]),
    /// `-ERR …`, without the dash.
    Error(&'a [u8]),
    /// `:1`, as its digits.
    Integer(&'a [u8]),
    /// A string of known length.
    Bulk(&'a [u8]),
    /// Nothing there.
    Null,
}

/// The stream is no stream of replies to our commands. It cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Takes a stream apart into replies.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    read: usize,
}

impl Decoder {
    /// Adds the bytes received. Call [`Decoder::next_reply`] until it has no more before adding again: then no more
    /// than one unfinished reply is ever kept.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read.min(self.buffer.len()));
        self.read = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole reply; `None` until more bytes are added.
    pub fn next_reply(&mut self) -> Result<Option<Reply<'_>>, Malformed> {
        let unread = self.buffer.get(self.read..).unwrap_or_default();
        let Some((reply, length)) = parse(unread)? else {
            return Ok(None);
        };
        self.read += length;
        Ok(Some(reply))
    }
}

/// The reply that `bytes` start with, and its length.
fn parse(bytes: &[u8]) -> Result<Option<(Reply<'_>, usize)>, Malformed> {
    let Some((kind, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    if !matches!(kind, b'+' | b'-' | b':' | b'$') {
        return Err(Malformed);
    }
    let head = rest.get(..MAX_REPLY_BYTES).unwrap_or(rest);
    let Some(end) = head.iter().position(|byte| *byte == b'\r') else {
        return if rest.len() >= MAX_REPLY_BYTES { Err(Malformed) } else { Ok(None) };
    };
    let (line, after) = rest.split_at_checked(end).ok_or(Malformed)?;
    let Some(body) = after_line_break(after)? else {
        return Ok(None);
    };
    let head_length = 1 + end + 2;
    let is_number = |digits: &[u8]| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    match kind {
        b'+' => Ok(Some((Reply::Simple(line), head_length))),
        b'-' => Ok(Some((Reply::Error(line), head_length))),
        b':' if is_number(line.strip_prefix(b"-").unwrap_or(line)) => {
            Ok(Some((Reply::Integer(line), head_length)))
        }
        b'$' if line == b"-1" => Ok(Some((Reply::Null, head_length))),
        b'$' if is_number(line) && line.len() <= 4 => {
            // At most four digits, so it fits.
            let length = line.iter().fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
            if length > MAX_REPLY_BYTES {
                return Err(Malformed);
            }
            let Some((text, after)) = body.split_at_checked(length) else {
                return Ok(None);
            };
            let whole = after_line_break(after)?.is_some();
            Ok(whole.then_some((Reply::Bulk(text), head_length + length + 2)))
        }
        _ => Err(Malformed),
    }
}

/// What follows a line break; `None` while that is not whole.
fn after_line_break(bytes: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    match bytes {
        [b'\r', b'\n', rest @ ..] => Ok(Some(rest)),
        [] | [b'\r'] => Ok(None),
        _ => Err(Malformed),
    }
}
