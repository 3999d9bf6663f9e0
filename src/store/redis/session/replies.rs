//! What follows from the replies of Redis.

use super::{Probe, Session, SessionState};
use crate::store::redis::command::{
    Command, Event, Failure, Read, ReplyValue, Sent, protocol, read, unknown_script,
};
use crate::store::redis::failure::{FailureKind, Scope};
use crate::store::redis::pending_reply::{PendingReply, Recipient};
use crate::store::redis::resp::Malformed;
use crate::store::redis::script::Script;
use crate::time::StoreTime;

impl Session {
    /// Takes the bytes apart into replies, and does what follows from each.
    pub(super) fn read_replies(&mut self, bytes: &[u8], now: StoreTime) {
        self.decoder.push(bytes);
        loop {
            let outcome = match self.decoder.next_reply() {
                Ok(None) => return,
                Err(Malformed) => Err(protocol("the bytes are no reply of Redis")),
                Ok(Some(reply)) => match self.pending.pop_front() {
                    None => Err(protocol("a reply came to no command")),
                    Some(pending) => {
                        match read(&pending.sent, pending.sequence, reply, self.proxy_errors) {
                            Ok(read) => Ok((pending, read)),
                            Err(failure) => {
                                // Its request is still to be answered, with all others.
                                self.pending.push_front(pending);
                                Err(failure)
                            }
                        }
                    }
                },
            };
            match outcome {
                Ok((pending, read)) => self.settle(pending, read, now),
                Err(failure) => self.break_off(failure, now),
            }
            if !self.is_on_stream() {
                return;
            }
        }
    }

    /// Does what follows from a reply.
    fn settle(&mut self, pending: PendingReply, read: Read, now: StoreTime) {
        match read {
            Read::Value(value) => match pending.recipient {
                recipient @ (Recipient::Owner(_) | Recipient::Left(_)) => {
                    match value {
                        ReplyValue::Taken(_) => {
                            self.has_taken = true;
                            self.breaker.record_token(now);
                            self.note_connected();
                        }
                        ReplyValue::Text(_) | ReplyValue::Done => self.breaker.record_reply(),
                    }
                    self.reply(recipient, Ok(value));
                }
                Recipient::Session => self.probe_succeeded(now),
                Recipient::Gone => {}
            },
            Read::Authenticated => {}
            Read::UnknownScript => match (pending.recipient, pending.sent) {
                (recipient @ Recipient::Left(_), _) => self.reply(recipient, Err(unknown_script())),
                (Recipient::Gone, _) | (_, Sent::Auth) => {}
                (recipient, Sent::Command(command, _)) => {
                    self.transmit(recipient, command, Script::Text, pending.wait);
                }
            },
            Read::Error(failure, scope) if failure.reason == FailureKind::ReadOnly => {
                self.breaker.record_error(scope, now);
                self.pending.push_front(pending);
                if self.has_failed() { self.trip(failure, now) } else { self.leave_replica(&failure, now) }
            }
            Read::Error(failure, scope) => {
                if let Recipient::Owner(_) | Recipient::Left(_) = pending.recipient {
                    self.reply(pending.recipient, Err(failure.clone()));
                    // An error of another command, such as a missing right to read health, is no reason to stop.
                    if matches!(pending.sent, Sent::Command(Command::Take(_), _)) {
                        self.breaker.record_error(scope, now);
                    } else if matches!(scope, Scope::Node | Scope::Shard) {
                        // Where there are no requests, the next poll probes again.
                        self.has_taken = false;
                    }
                }
                if self.has_failed() || matches!(pending.sent, Sent::Auth) {
                    self.trip(failure, now);
                }
            }
        }
    }

    pub(super) fn reply(&mut self, recipient: Recipient, reply: Result<ReplyValue, Failure>) {
        if let Some(id) = recipient.command() {
            self.replies.push_back((id, reply));
        }
    }

    fn probe_succeeded(&mut self, now: StoreTime) {
        match self.state {
            SessionState::Probing(Probe::Connecting) => {
                self.state = SessionState::Probing(Probe::Timed);
                self.send_probe(self.timeout, now);
            }
            SessionState::Probing(Probe::Timed) => {
                self.state = SessionState::Open;
                self.breaker.record_token(now);
                self.note_connected();
            }
            SessionState::Idle | SessionState::Open | SessionState::Broken { .. } => {}
        }
    }

    fn note_connected(&mut self) {
        if self.connected != Some(true) {
            self.connected = Some(true);
            self.event = Some(Event::Connected);
        }
    }
}
