//! One fetched document on its way: hashed, looked up, parsed, a piece at a time.

use std::hash::{DefaultHasher, Hasher};

use super::published::Fingerprint;
use super::{DocumentFailure, MAX_DOCUMENT_BYTES};
use crate::json::{Batch, Json, MemberReader};
use crate::store::Contended;

/// Work of one call, counted as bytes that are parsed.
pub(super) const WORK_PER_CALL_BYTES: usize = 24 << 10;

/// What an entry costs beside its bytes: its hash, and its write to the table.
pub(super) const ENTRY_COST_BYTES: usize = 128;

/// How many bytes are hashed for what a parsed one costs.
const HASHED_PER_PARSED: usize = 16;

/// About so many bytes are parsed together.
const BATCH_BYTES: usize = 1 << 10;

/// A fetched document.
#[derive(Debug)]
pub(super) enum FetchedText {
    /// There is nothing to do about it: it is not fetched, or is in force as it is.
    NothingToDo,
    /// There is none, or it is no good.
    Failed(DocumentFailure),
    /// So much of it has been hashed.
    Hashing(Vec<u8>, DefaultHasher, usize),
    /// It has this fingerprint; what is known of it is still to be looked up.
    Hashed(Vec<u8>, Fingerprint),
    /// It is being parsed.
    Parsing(MemberReader, Fingerprint),
    /// All of it has been parsed, and is good by itself.
    Parsed(Fingerprint),
}

/// Why a document is not parsed to its end.
pub(super) enum Stop {
    Wrong(String),
    Overtaken,
}

impl FetchedText {
    pub(super) fn new(fetched: Option<Result<Vec<u8>, String>>) -> Self {
        match fetched {
            None => FetchedText::NothingToDo,
            Some(Ok(text)) => FetchedText::Hashing(text, DefaultHasher::new(), 0),
            Some(Err(reason)) => FetchedText::Failed(DocumentFailure::Unreachable(reason)),
        }
    }

    pub(super) fn is_hashed(&self) -> bool {
        matches!(self, FetchedText::Hashed(..))
    }

    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        match self {
            FetchedText::Hashed(_, fingerprint) => Some(*fingerprint),
            _ => None,
        }
    }

    /// Hashes a piece. Returns what that cost; `None` if the text is not being hashed.
    pub(super) fn hash(&mut self) -> Option<usize> {
        let FetchedText::Hashing(text, hasher, at) = self else { return None };
        let end = (*at + WORK_PER_CALL_BYTES * HASHED_PER_PARSED).min(text.len());
        hasher.write(text.get(*at..end).unwrap_or_default());
        let cost = (end - *at) / HASHED_PER_PARSED;
        *at = end;
        if end == text.len() {
            *self = FetchedText::Hashed(std::mem::take(text), hasher.finish() | 1);
        }
        Some(cost)
    }

    /// Sees whether it has to be parsed.
    pub(super) fn look_up(&mut self, in_force: Option<Fingerprint>, wrong: Fingerprint) {
        match self.fingerprint() {
            Some(fingerprint) if in_force == Some(fingerprint) => *self = FetchedText::NothingToDo,
            Some(fingerprint) if wrong == fingerprint => {
                *self = FetchedText::Failed(DocumentFailure::Wrong(fingerprint, None));
            }
            _ => {}
        }
    }

    /// Begins to parse it; returns its length. `None`: there is nothing to parse, or it is too long.
    pub(super) fn begin(&mut self, name: &str) -> Option<usize> {
        let FetchedText::Hashed(text, fingerprint) = self else { return None };
        let bytes = text.len();
        if bytes > MAX_DOCUMENT_BYTES {
            let reason =
                format!("{name}: found more than {MAX_DOCUMENT_BYTES} bytes, wanted at most so many");
            *self = FetchedText::Failed(DocumentFailure::Wrong(*fingerprint, Some(reason)));
            return None;
        }
        *self = FetchedText::Parsing(MemberReader::new(std::mem::take(text), BATCH_BYTES), *fingerprint);
        Some(bytes)
    }

    /// Parses some members and hands them to `add`, which returns their number. Returns the cost; `None` if the text is
    /// not being parsed.
    pub(super) fn parse(
        &mut self,
        name: &str,
        add: impl FnOnce(&Json) -> Result<usize, Stop>,
    ) -> Result<Option<usize>, Contended> {
        let FetchedText::Parsing(reader, fingerprint) = self else { return Ok(None) };
        let (fingerprint, left) = (*fingerprint, reader.left());
        let added = match reader.next_batch() {
            Ok(Batch::Members(members)) => add(&members),
            Ok(Batch::Nothing) => Ok(0),
            Ok(Batch::Other(other)) => Err(Stop::Wrong(other.root(name).secret().wanted("an object"))),
            Ok(Batch::End) => {
                *self = FetchedText::Parsed(fingerprint);
                return Ok(Some(0));
            }
            Err(reason) => Err(Stop::Wrong(format!("{name}: {reason}"))),
        };
        let cost = left - reader.left();
        match added {
            Ok(entries) => Ok(Some(cost + entries * ENTRY_COST_BYTES)),
            Err(Stop::Wrong(reason)) => {
                *self = FetchedText::Failed(DocumentFailure::Wrong(fingerprint, Some(reason)));
                Ok(Some(cost))
            }
            Err(Stop::Overtaken) => Err(Contended),
        }
    }
}
