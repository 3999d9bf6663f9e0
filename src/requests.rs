//! The requests of one worker: each is one value, from its arrival to its end.
//!
//! A request that is answered or exempt at its headers never gets an entry. Any other is in one [`RequestState`] at a
//! time, and only the transitions here change it. What Envoy does with a request in a state is the host's part.

use std::collections::BTreeSet;

use crate::admin::{BODY_TIMEOUT, PendingChange};
use crate::admission::ScreenedRequest;
use crate::headers::HeaderValues;
use crate::id_map::IdMap;
use crate::request::RequestId;
use crate::store::redis::command::CommandId;
use crate::time::StoreTime;

/// Most admin requests of one worker that wait for a body at a time. Each has shown the admin token.
const MAX_AWAITED_BODIES: usize = 64;

/// Most requests of one worker that wait for documents at a time; any others are decided without them.
const MAX_WAITING_FOR_DOCUMENTS: usize = 2_048;

/// Where a request is between its headers and its end.
#[derive(Clone, Debug)]
pub enum RequestState {
    /// It is decided when the first documents have been applied or rejected. Envoy holds it back, body included.
    WaitsForDocuments,
    /// It is charged and sent on when it has a place in flight. Envoy holds it back, body included.
    WaitsForPlace(Waiting),
    /// Redis decides it, by the reply to this command. Envoy holds it back, body included.
    WaitsForRedis(CommandId),
    /// It changes health when its body is complete. Envoy collects the body; this much has arrived.
    WaitsForBody(PendingChange, Vec<u8>),
    /// It was sent on, and waits for response headers, which are to say this.
    SentOn(HeaderValues),
}

/// A request that waits for a place in flight.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// To be charged when it has the place.
    pub screened: ScreenedRequest,
    /// The upstream cluster; empty where it shares its limit with others.
    pub cluster: Vec<u8>,
}

/// The arrival of a request's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// When.
    pub at: StoreTime,
    /// Whether a body follows.
    pub has_body: bool,
}

/// A request that has an entry.
#[derive(Clone, Debug)]
pub struct InProgress {
    pub arrived: Arrived,
    pub state: RequestState,
}

/// As many requests wait for a body as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyBodies;

/// The requests of one worker that have not ended.
#[derive(Debug, Default)]
pub struct Requests {
    by_id: IdMap<RequestId, InProgress>,
    waiting_for_place: usize,
    /// The admin requests that wait for a body, earliest deadline first.
    body_deadlines: BTreeSet<(StoreTime, RequestId)>,
    /// How many requests wait for documents.
    waiting_for_documents: usize,
}

impl Requests {
    /// Holds a request until the first documents have been applied or rejected.
    pub fn wait_for_documents(&mut self, id: RequestId, arrived: Arrived) {
        self.enter(id, arrived, RequestState::WaitsForDocuments);
    }

    /// Holds a request until it has a place in flight.
    pub fn wait_for_place(&mut self, id: RequestId, arrived: Arrived, waiting: Waiting) {
        self.enter(id, arrived, RequestState::WaitsForPlace(waiting));
        self.waiting_for_place += 1;
    }

    /// How many requests wait for a place in flight.
    pub fn waiting_for_place(&self) -> usize {
        self.waiting_for_place
    }

    /// Whether all requests have ended.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Whether one more request may wait for documents.
    pub fn may_wait_for_documents(&self) -> bool {
        self.waiting_for_documents < MAX_WAITING_FOR_DOCUMENTS
    }

    /// Whether a request waits for documents.
    pub fn any_waits_for_documents(&self) -> bool {
        self.waiting_for_documents > 0
    }

    /// Holds a request until Redis has decided.
    pub fn wait_for_redis(&mut self, id: RequestId, arrived: Arrived, command: CommandId) {
        self.enter(id, arrived, RequestState::WaitsForRedis(command));
    }

    /// Waits for the body of an admin request.
    pub fn wait_for_body(
        &mut self,
        id: RequestId,
        arrived: Arrived,
        change: PendingChange,
    ) -> Result<(), TooManyBodies> {
        if self.body_deadlines.len() >= MAX_AWAITED_BODIES {
            return Err(TooManyBodies);
        }
        self.enter(id, arrived, RequestState::WaitsForBody(change, Vec::new()));
        self.body_deadlines.insert((body_deadline(arrived), id));
        Ok(())
    }

    /// Keeps what has arrived of the body of an admin request.
    pub fn keep_body(&mut self, id: RequestId, arrived: Vec<u8>) {
        if let Some(InProgress { state: RequestState::WaitsForBody(_, body), .. }) = self.by_id.get_mut(&id) {
            *body = arrived;
        }
    }

    /// The request goes on, at once or after it has waited.
    pub fn send_on(&mut self, id: RequestId, arrived: Arrived, header_values: HeaderValues) {
        self.enter(id, arrived, RequestState::SentOn(header_values));
    }

    /// Where a request is; `None` where it has ended or never had to be remembered.
    pub fn state(&self, id: RequestId) -> Option<&RequestState> {
        self.by_id.get(&id).map(|request| &request.state)
    }

    /// Takes the request out: it was answered, its client left, or it is decided anew.
    pub fn end(&mut self, id: RequestId) -> Option<InProgress> {
        let ended = self.by_id.remove(&id)?;
        match ended.state {
            RequestState::WaitsForBody(..) => {
                self.body_deadlines.remove(&(body_deadline(ended.arrived), id));
            }
            RequestState::WaitsForDocuments => {
                self.waiting_for_documents = self.waiting_for_documents.saturating_sub(1);
            }
            RequestState::WaitsForPlace(_) => {
                self.waiting_for_place = self.waiting_for_place.saturating_sub(1)
            }
            RequestState::WaitsForRedis(_) | RequestState::SentOn(_) => {}
        }
        Some(ended)
    }

    /// Takes out the request that has waited too long for its body, if there is one.
    pub fn end_without_body(&mut self, now: StoreTime) -> Option<RequestId> {
        let (_, id) = *self.body_deadlines.first().filter(|(deadline, _)| *deadline <= now)?;
        self.end(id).map(|_| id)
    }

    /// Up to `most` requests that wait for the first documents, oldest first.
    pub fn oldest_waiting_for_documents(&self, most: usize) -> Vec<RequestId> {
        let waits = |request: &InProgress| matches!(request.state, RequestState::WaitsForDocuments);
        let waiting = self.by_id.iter().filter(|(_, request)| waits(request));
        let mut ids: Vec<RequestId> = waiting.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids.truncate(most);
        ids
    }

    fn enter(&mut self, id: RequestId, arrived: Arrived, state: RequestState) {
        self.end(id);
        self.waiting_for_documents += usize::from(matches!(state, RequestState::WaitsForDocuments));
        self.by_id.insert(id, InProgress { arrived, state });
    }
}

fn body_deadline(arrived: Arrived) -> StoreTime {
    arrived.at.after(BODY_TIMEOUT)
}
