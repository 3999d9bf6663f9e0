//! What a request's callbacks do. They answer that request and no other: see [`super::root_callbacks`].

use proxy_wasm::hostcalls;
use proxy_wasm::types::{Action, BufferType};

use super::Worker;
use crate::admin::{self, MAX_BODY_BYTES, PendingChange};
use crate::admission::Decision;
use crate::host::hostcalls::{HostData, response_code_details, set_response_header};
use crate::host::http::{Next, action, outcome, send_decision, write_headers};
use crate::overload::RequestOutcome;
use crate::request::{DecisionStart, RequestId};
use crate::requests::{Arrived, InProgress, RequestState};
use crate::store::SharedData;
use crate::time::StoreTime;

impl Worker {
    /// Decides about a request whose headers have come in.
    pub(in crate::host) fn on_request_headers(&mut self, id: RequestId, end_of_stream: bool) -> Next {
        let arrived = Arrived { at: HostData.now(), has_body: !end_of_stream };
        let decided = self.decide(id, arrived, arrived.at);
        self.wake(arrived.at);
        let Some(decision) = decided else {
            self.set_ticks();
            self.leave_queue_to_next_turn();
            return Next::PauseAndHoldBody;
        };
        if !matches!(decision, Decision::AwaitsRedis(_) | Decision::AwaitsDocuments) {
            self.decision_timer.note_decision(arrived.at);
        }
        let next = match decision {
            Decision::Exempt => Next::GoOn,
            Decision::Admitted(header_values) => {
                self.requests.send_on(id, arrived, header_values);
                if end_of_stream {
                    self.note_complete_at_headers(id, arrived.at);
                }
                Next::GoOn
            }
            Decision::AwaitsDocuments => {
                self.requests.wait_for_documents(id, arrived);
                self.set_ticks();
                Next::PauseAndHoldBody
            }
            Decision::AwaitsRedis(command) => {
                self.requests.wait_for_redis(id, arrived, command);
                Next::PauseAndHoldBody
            }
            Decision::AwaitsBody(change) if end_of_stream => {
                self.change_health(id, &change, b"");
                Next::Pause
            }
            Decision::AwaitsBody(change) => {
                if self.requests.wait_for_body(id, arrived, change).is_err() {
                    self.reject_change(&admin::too_many_bodies());
                }
                Next::Pause
            }
            decision @ (Decision::Rejected(_)
            | Decision::Unavailable(_)
            | Decision::Shed(..)
            | Decision::Replied(_)) => {
                send_decision(self, &decision, arrived.at);
                Next::Pause
            }
        };
        self.leave_queue_to_next_turn();
        next
    }

    /// Takes in a piece of a request's body. `size` is that of all that Envoy has collected.
    pub(in crate::host) fn on_request_body(
        &mut self,
        id: RequestId,
        size: usize,
        end_of_stream: bool,
    ) -> Action {
        if !matches!(self.requests.state(id), Some(RequestState::WaitsForBody(..))) {
            if end_of_stream {
                self.note_complete(id);
            }
            return action(self.requests.state(id));
        }
        // One byte over the bound is enough to know that it is too long.
        let bytes = hostcalls::get_buffer(BufferType::HttpRequestBody, 0, size.min(MAX_BODY_BYTES + 1));
        let body = bytes.ok().flatten().unwrap_or_default();
        let is_complete = end_of_stream || body.len() > MAX_BODY_BYTES;
        self.requests.keep_body(id, body);
        if is_complete {
            self.change_health_with_body(id);
        }
        Action::Pause
    }

    /// A request ends with trailers: its body is complete.
    pub(in crate::host) fn on_request_trailers(&mut self, id: RequestId) -> Action {
        if self.change_health_with_body(id) {
            return Action::Pause;
        }
        self.note_complete(id);
        action(self.requests.state(id))
    }

    /// Completes the response headers of a request that was sent on. In any other state, Envoy or another filter has
    /// answered the request, and nothing waits for it any more.
    pub(in crate::host) fn on_response_headers(&mut self, id: RequestId, end_of_stream: bool) {
        let Some(InProgress { arrived, state }) = self.requests.end(id) else { return };
        let RequestState::SentOn(header_values) = state else { return self.finish_unsent(id, &state) };
        let now = write_headers(self, &header_values, arrived.at, set_response_header);
        if self.overload.is_some() {
            // A gRPC request has a body, if an empty one.
            let outcome = outcome(end_of_stream && arrived.has_body);
            let now = now.unwrap_or_else(|| HostData.now());
            self.finish_at(id, outcome, now);
            self.leave_queue_to_next_turn();
        }
    }

    /// A request has ended. If it was sent on and no response headers came, its client has left, or Envoy follows a
    /// redirect itself: that was the response.
    pub(in crate::host) fn on_end(&mut self, id: RequestId) {
        match self.requests.end(id) {
            Some(InProgress { state: RequestState::SentOn(_), .. }) => {
                let details = self.overload.as_ref().and_then(|_| response_code_details());
                let is_redirect = details.is_some_and(|details| details == b"internal_redirect");
                let response = RequestOutcome::Response { failed: false };
                self.finish(id, if is_redirect { response } else { RequestOutcome::ClientLeft })
            }
            Some(InProgress { state, .. }) => self.finish_unsent(id, &state),
            None => {}
        }
    }

    /// A request without a body was sent on at its headers. With Redis it was to be complete only after the reply, but
    /// no command was sent.
    fn note_complete_at_headers(&mut self, id: RequestId, now: StoreTime) {
        if let (Some(overload), Some(_)) = (&mut self.overload, &self.stream) {
            overload.request_complete(id, now);
        }
    }

    /// A request has ended before it was sent on: nothing that it waited for is done for it any more.
    fn finish_unsent(&mut self, id: RequestId, state: &RequestState) {
        match state {
            RequestState::WaitsForRedis(command) => self.limiter.cancel(*command),
            RequestState::WaitsForPlace(waiting) => self.limiter.release(&waiting.screened, id),
            RequestState::WaitsForDocuments | RequestState::WaitsForBody(..) | RequestState::SentOn(_) => {}
        }
        self.finish(id, RequestOutcome::NotSent);
    }

    /// A request needs its place in flight no more, if it has one.
    fn finish(&mut self, id: RequestId, outcome: RequestOutcome) {
        if self.overload.is_some() {
            self.finish_at(id, outcome, HostData.now());
            self.leave_queue_to_next_turn();
        }
    }

    /// Carries out a change of health whose body is complete; false where the request is none.
    fn change_health_with_body(&mut self, id: RequestId) -> bool {
        if !matches!(self.requests.state(id), Some(RequestState::WaitsForBody(..))) {
            return false;
        }
        if let Some(InProgress { state: RequestState::WaitsForBody(change, body), .. }) =
            self.requests.end(id)
        {
            self.change_health(id, &change, &body);
        }
        true
    }

    fn change_health(&mut self, id: RequestId, change: &PendingChange, body: &[u8]) {
        let start = DecisionStart { id, at: HostData.now() };
        let decision = self.limiter.change_health(change, body, &HostData, start);
        self.wake(start.at);
        match decision {
            Decision::AwaitsRedis(command) => {
                let arrived = Arrived { at: start.at, has_body: false };
                self.requests.wait_for_redis(id, arrived, command);
            }
            _ => send_decision(self, &decision, start.at),
        }
    }
}
