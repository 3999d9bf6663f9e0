//! A client of Redis that knows nothing but how commands and replies look on the wire.

use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A Redis that stands still is a test's own doing, and a test that asks one then has a defect.
const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+OK` and the like.
    Status(String),
    /// An error, its code first.
    Error(String),
    Integer(i64),
    /// A string, `None` for the null reply.
    Text(Option<String>),
    List(Vec<Reply>),
}

impl Reply {
    /// The text of a status or string.
    #[track_caller]
    pub fn text(&self) -> &str {
        match self {
            Self::Status(text) | Self::Text(Some(text)) => text,
            other => panic!("no text: {other:?}"),
        }
    }

    #[track_caller]
    pub fn integer(&self) -> i64 {
        match self {
            Self::Integer(number) => *number,
            other => panic!("no number: {other:?}"),
        }
    }

    /// The list's entries, each a text.
    #[track_caller]
    pub fn texts(&self) -> Vec<String> {
        match self {
            Self::List(list) => list.iter().map(|reply| reply.text().to_owned()).collect(),
            other => panic!("no list: {other:?}"),
        }
    }
}

/// One connection over the server's own socket file.
#[derive(Debug)]
pub(crate) struct Connection(BufReader<UnixStream>);

impl Connection {
    pub(crate) fn open(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self(BufReader::new(stream)))
    }

    pub(crate) fn command(&mut self, words: &[&str]) -> io::Result<Reply> {
        self.send(words)?;
        self.read()
    }

    pub(crate) fn send(&mut self, words: &[&str]) -> io::Result<()> {
        let mut bytes = format!("*{}\r\n", words.len());
        for word in words {
            bytes += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0.get_mut().write_all(bytes.as_bytes())
    }

    fn read(&mut self) -> io::Result<Reply> {
        let line = self.read_line()?;
        let strange = || io::Error::other(format!("no reply: {line:?}"));
        let (kind, rest) = line.split_at_checked(1).ok_or_else(strange)?;
        let number = || rest.parse::<i64>().map_err(|_| strange());
        Ok(match kind {
            "+" => Reply::Status(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Integer(number()?),
            "$" => match usize::try_from(number()?) {
                Ok(length) => Reply::Text(Some(self.read_text(length)?)),
                Err(_) => Reply::Text(None),
            },
            "*" => Reply::List((0..number()?).map(|_| self.read()).collect::<io::Result<_>>()?),
            _ => return Err(strange()),
        })
    }

    fn read_line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    fn read_text(&mut self, length: usize) -> io::Result<String> {
        let mut bytes = vec![0; length + 2];
        self.0.read_exact(&mut bytes)?;
        bytes.truncate(length);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
