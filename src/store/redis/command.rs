//! What is sent to Redis, and what a reply to it says.

use std::rc::Rc;

use super::failure::{FailureKind, Scope};
use super::resp::{Reply, push_command};
use super::script::{Script, Take, TakeReply};
use crate::credentials::Credentials;

/// Longest part of an error reply that is shown.
const MAX_SHOWN_BYTES: usize = 120;

/// How the errors begin that Redis sends to a new connection before it reads a command.
const UNASKED: [&[u8]; 2] = [b"ERR max number of clients", b"DENIED"];

/// Names a command of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandId(pub u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Take(Take),
    /// Read a string.
    Get(Rc<str>),
    /// Write a string, or only if there is none.
    Set(Rc<str>, &'static str, Overwrite),
}

/// Whether to write over what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    Always,
    Never,
}

/// What Redis replies to a command, in the form that the command calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyValue {
    /// To [`Command::Take`].
    Taken(TakeReply),
    /// To [`Command::Get`].
    Text(Option<Vec<u8>>),
    /// To [`Command::Set`].
    Done,
}

/// Why a command got no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: FailureKind,
    /// For the log.
    pub detail: String,
}

/// Why a command was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declined {
    BreakerOpen,
    /// It is a [`Command::Take`], and there are [`MAX_COMMANDS`](super::session::MAX_COMMANDS) already.
    QueueFull,
}

/// What has become of Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It answers.
    Connected,
    /// Nothing is sent to it any more, for this reason.
    Lost(Failure),
}

/// What was sent.
#[derive(Debug)]
pub(super) enum Sent {
    Auth,
    Command(Command, Script),
}

impl Command {
    /// Appends it; a `Take` in this form, and with this number.
    pub(super) fn push(&self, out: &mut Vec<u8>, sequence: u32, script: Script) {
        match self {
            Command::Take(take) => take.push(out, sequence, script),
            Command::Get(key) => push_command(out, &[b"GET", key.as_bytes()]),
            Command::Set(key, value, Overwrite::Always) => {
                push_command(out, &[b"SET", key.as_bytes(), value.as_bytes()]);
            }
            Command::Set(key, value, Overwrite::Never) => {
                push_command(out, &[b"SET", key.as_bytes(), value.as_bytes(), b"NX"]);
            }
        }
    }
}

/// Appends `AUTH` if there is a password. Returns whether there is one.
pub(super) fn push_auth(out: &mut Vec<u8>, credentials: &Credentials) -> bool {
    let Credentials { username, password } = credentials;
    match (username, password) {
        (_, None) => return false,
        (Some(username), Some(password)) => push_command(out, &[b"AUTH", username, password]),
        (None, Some(password)) => push_command(out, &[b"AUTH", password]),
    }
    true
}

/// What a reply says.
pub(super) enum Read {
    Value(ReplyValue),
    Authenticated,
    /// This Redis does not know the script yet.
    UnknownScript,
    /// Redis replied with an error.
    Error(Failure, Scope),
}

/// Reads the reply to a command. One that the command cannot have means that replies and commands are out of step.
pub(super) fn read(
    sent: &Sent,
    sequence: u32,
    reply: Reply<'_>,
    proxy_errors: &[&[u8]],
) -> Result<Read, Failure> {
    match (sent, reply) {
        (Sent::Command(Command::Take(_), Script::Hash), Reply::Error(error))
            if error.starts_with(b"NOSCRIPT") =>
        {
            Ok(Read::UnknownScript)
        }
        (Sent::Auth, Reply::Error(error)) if !UNASKED.iter().any(|start| error.starts_with(start)) => {
            // A server without `AUTH` repeats its arguments, which are secret. So only the first word of the error is
            // shown.
            let code = error.split(|byte| *byte == b' ').next().filter(|word| word.len() <= 16);
            let detail =
                format!("AUTH with our credentials is refused ({})", shown(code.unwrap_or_default()));
            let failure = Failure { reason: FailureKind::Auth, detail };
            Ok(Read::Error(failure, Scope::Whole))
        }
        (_, Reply::Error(error)) => {
            let reason = FailureKind::of_error(error, proxy_errors);
            let failure = Failure { reason, detail: shown(error) };
            Ok(Read::Error(failure, Scope::of_error(error, reason)))
        }
        (Sent::Command(Command::Take(_), _), Reply::Bulk(text)) => match TakeReply::parse(text) {
            Some(taken) if taken.sequence == sequence => Ok(Read::Value(ReplyValue::Taken(taken))),
            Some(_) => Err(protocol("the reply to another command came")),
            None => Err(protocol("the bytes are no reply of our script")),
        },
        (Sent::Command(Command::Get(_), _), Reply::Bulk(text)) => {
            Ok(Read::Value(ReplyValue::Text(Some(text.to_vec()))))
        }
        (Sent::Command(Command::Get(_), _), Reply::Null) => Ok(Read::Value(ReplyValue::Text(None))),
        (Sent::Command(Command::Set(..), _), Reply::Simple(b"OK") | Reply::Null) => {
            Ok(Read::Value(ReplyValue::Done))
        }
        (Sent::Auth, Reply::Simple(b"OK")) => Ok(Read::Authenticated),
        _ => Err(protocol("the reply is of another kind than the command")),
    }
}

/// The bytes from Redis are out of step with the commands, or not its protocol.
pub(super) fn protocol(detail: &str) -> Failure {
    Failure { reason: FailureKind::Protocol, detail: detail.to_owned() }
}

/// Redis does not know the script, and its text is not sent.
pub(super) fn unknown_script() -> Failure {
    Failure { reason: FailureKind::Error, detail: "the script is not known".to_owned() }
}

/// Redis has not replied in time.
pub(super) fn timeout() -> Failure {
    Failure { reason: FailureKind::Timeout, detail: "no reply in time".to_owned() }
}

/// The start of an error reply, without what could spoil a log.
fn shown(error: &[u8]) -> String {
    let printable = |byte: &u8| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '.' };
    error.iter().take(MAX_SHOWN_BYTES).map(printable).collect()
}
