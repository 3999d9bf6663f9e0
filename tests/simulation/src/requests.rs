//! Requests that arrive: some at once, some while another worker acts, and changes of health.

use std::rc::Rc;
use std::time::Duration;

use dynamic_rate_limiter::admission::Decision;
use dynamic_rate_limiter::health::Health;
use dynamic_rate_limiter::request::{DecisionStart, RequestId};
use dynamic_rate_limiter::store::redis::queue::max_on_wire;
use harness::{decide, decide_at_once};

use crate::report::{Happening, What};
use crate::shared_data::Host;
use crate::worker::{Pending, Worker};
use crate::workload::{Caller, Limits, SimulatedRequest, Store};
use crate::world::{Event, MAX_DEPTH, POST_TIMEOUT_US, World};

/// One in this many arrivals is a burst of requests.
const CROWD_ONE_IN: u64 = 400;

impl World {
    /// Some requests arrive, and the next arrivals are scheduled.
    pub(crate) fn arrivals(&self) {
        for _ in 0..1 + self.below(8) {
            if let Some(worker) = self.any_worker() {
                self.request_of_any_caller(&worker, 0);
            }
        }
        if self.plan.store != Store::SharedData && self.one_in(CROWD_ONE_IN) {
            self.burst();
        }
        if !self.is_over() {
            self.after(self.below(2 * self.plan.gap_us), Event::Arrivals);
        }
    }

    /// More requests arrive at once at one worker than may be on the wire.
    fn burst(&self) {
        let Some(worker) = self.any_worker() else { return };
        let max_on_wire = max_on_wire(Duration::from_micros(self.plan.timeout_us));
        if worker.pending.borrow().len() > max_on_wire {
            return;
        }
        self.count(Happening::Burst);
        for _ in 0..max_on_wire as u64 + self.below(2 * max_on_wire as u64) {
            self.request_of_any_caller(&worker, MAX_DEPTH);
        }
    }

    /// During an operation, other workers act and time passes.
    pub fn interleave(&self, envoy: usize, depth: u32) {
        if depth >= MAX_DEPTH || self.is_over() || !self.one_in(self.plan.race_one_in) {
            return;
        }
        self.now_us.set(self.now_us.get() + self.below(100));
        if let Some(worker) = self.some_worker(envoy) {
            self.count(Happening::Interleaved);
            self.request_of_any_caller(&worker, depth + 1);
        }
    }

    /// The limits of a worker's next request.
    fn limits(&self, worker: &Worker) -> Rc<Limits> {
        match self.plan.by_documents {
            true => self.envoys[worker.envoy].limits.borrow().clone(),
            false => worker.delivered.clone(),
        }
    }

    pub(crate) fn request_of_any_caller(&self, worker: &Worker, depth: u32) {
        let caller = Caller::draw(&mut self.random.borrow_mut(), &self.plan);
        self.request(worker, caller, depth);
    }

    /// A caller's request arrives at a worker.
    pub(crate) fn request(&self, worker: &Worker, caller: Caller, depth: u32) {
        let (limits, health) = (self.limits(worker), self.envoys[worker.envoy].health.get());
        let owner = limits.owner(caller);
        let other = if health == Health::Normal { Health::Degraded } else { Health::Normal };
        let pending = Pending {
            payment: Some((owner, limits.limit(owner, health))),
            other_limit: Some(limits.limit(owner, other)),
            caller,
            timeout_us: self.plan.timeout_us,
            ..Pending::default()
        };
        let request = SimulatedRequest { caller, is_post: false };
        self.arrive(worker, depth, pending, |host, start| {
            // No request waits for documents: until some are published, the plugin configuration applies.
            let decision = decide_at_once(&mut worker.limiter.borrow_mut(), host, &request, start);
            self.check_health(worker.envoy);
            decision
        });
    }

    /// Sends a change of health with its body.
    pub(crate) fn post_health(&self, worker: &Worker, wanted: Health) {
        let pending = Pending { wanted: Some(wanted), timeout_us: POST_TIMEOUT_US, ..Pending::default() };
        let request = SimulatedRequest { caller: pending.caller, is_post: true };
        self.arrive(worker, 0, pending, |host, start| {
            let mut limiter = worker.limiter.borrow_mut();
            let body = format!(r#"{{"status": "{wanted}"}}"#);
            match decide(&mut limiter, host, &request, start) {
                Decision::AwaitsBody(change) => limiter.change_health(&change, body.as_bytes(), host, start),
                other => other,
            }
        });
    }

    /// A worker decides about a request at once, or the request waits for Redis.
    fn arrive(
        &self,
        worker: &Worker,
        depth: u32,
        pending: Pending,
        decide: impl FnOnce(&Host, DecisionStart) -> Decision,
    ) {
        let (id, at_us, late_us) = (self.number() as RequestId, self.now_us.get(), worker.late_us.get());
        let pending = Pending { id, at_us, late_us, ..pending };
        let host = Host::new(self, worker.envoy, depth);
        let decision = decide(&host, DecisionStart { id, at: self.envoys[worker.envoy].clock(at_us) });
        // The other workers have delayed it already.
        worker.delay(self.now_us.get() - at_us);
        match decision {
            Decision::AwaitsRedis(_) => {
                if let Some((owner, _)) = pending.payment {
                    let Worker { envoy, index, .. } = *worker;
                    self.note(Some(owner), What::Sent { envoy, worker: index, request_id: id });
                    worker.unsent.borrow_mut().push_back(id);
                }
                worker.pending.borrow_mut().insert(id, pending);
            }
            decision => self.decided(worker, pending, decision, &host, false),
        }
        self.wake(worker);
    }
}
