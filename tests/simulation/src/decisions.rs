//! Compares the decisions of workers with the oracle and with the guarantees about failures.

use dynamic_rate_limiter::admission::Decision;
use dynamic_rate_limiter::bucket::{Outcome, Verdict};
use dynamic_rate_limiter::headers::HeaderValues;
use dynamic_rate_limiter::limit::Limit;

use crate::oracle::Said;
use crate::report::{Happening, What};
use crate::shared_data::Host;
use crate::worker::{Envoy, Pending, Worker};
use crate::workload::{KEYS, Store};
use crate::world::{Event, SLACK_US, TURN_US, World, health_key};

/// The longest time until a recovered Redis is used again, in microseconds.
const RECOVERY_US: u64 = 5_000_000;

/// The longest time until a change of health in Redis is known everywhere, in microseconds.
const HEALTH_US: u64 = 1_000_000;

impl World {
    /// Checks a decision: in time, once, by the right store, and equal to the oracle's.
    pub(crate) fn decided(
        &self,
        worker: &Worker,
        pending: Pending,
        decision: Decision,
        host: &Host,
        has_waited: bool,
    ) {
        // Its timeout begins when its command is sent, and, while that is queued, when the last one was.
        let last_us = || pending.at_us.max(worker.last_sent_us.get());
        let waited_us = self.now_us.get() - pending.sent_us.unwrap_or_else(last_us);
        let late_us = worker.late_us_now(self.now_us.get()) - pending.late_us;
        if waited_us > pending.timeout_us + worker.check_interval_us + TURN_US + late_us {
            self.fail(
                pending.payment.map(|(owner, _)| owner),
                format!("request {} waited for {waited_us} µs", pending.id),
            );
        }
        self.totals.borrow_mut().operations += 1;
        let Some((owner, limit)) = pending.payment else {
            return self.posted(worker, &pending, &decision);
        };
        let health = self.envoys[worker.envoy].health.get();
        let (admitted, answer) = match decision {
            Decision::Admitted(answer) => (true, answer),
            Decision::Rejected(answer) => (false, answer),
            Decision::Unavailable(answer) => {
                return self.fell_back(worker, &pending, "deny", answer.verdict.is_some());
            }
            other => return self.fail(Some(owner), format!("request {}: {other:?}", pending.id)),
        };
        if !has_waited && answer.health != health {
            self.fail(Some(owner), format!("limited as {} while {health} holds in its Envoy", answer.health));
        }
        let Some(verdict) = answer.verdict else {
            return self.fell_back(worker, &pending, "allow", !admitted);
        };
        if verdict.capacity != limit.capacity() {
            let (found, expected) = (verdict.capacity, limit.capacity());
            self.fail(Some(owner), format!("limited to {found}, but the limit is {expected}"));
        }
        let how = match (host.read_after.get(), has_waited) {
            (Some(_), _) => {
                self.decided_locally(worker, &pending, (owner, limit), (admitted, &verdict), host)
            }
            (None, true) => self.decided_by_redis(&pending, (owner, limit), (admitted, &verdict), &answer),
            (None, false) => self.decided_by_deny_cache(worker, (owner, limit), pending.at_us, admitted),
        };
        let Worker { envoy, index, .. } = *worker;
        let (request_id, left) = (pending.id, verdict.remaining);
        self.note(Some(owner), What::Decided { envoy, worker: index, request_id, how, admitted, left });
        if admitted {
            self.count(Happening::Admitted);
        } else if verdict.wait_us < 20_000_000 && self.one_in(4) && !self.is_over() {
            self.after(
                (verdict.wait_us + self.below(3)).saturating_sub(1),
                Event::Return(envoy, pending.caller),
            );
        }
    }

    fn decided_locally(
        &self,
        worker: &Worker,
        pending: &Pending,
        (owner, limit): (usize, Limit),
        (admitted, verdict): (bool, &Verdict),
        host: &Host,
    ) -> &'static str {
        let left_pico = host.written_pico.get().filter(|_| admitted && owner < KEYS);
        let wait_us = Some(verdict.wait_us);
        let said = Said { admitted, left_pico, left: verdict.remaining, wait_us };
        let bucket = worker.envoy * self.plan.owners() + owner;
        let read_after = host.read_after.get().unwrap_or_default();
        let judged = self.oracle.borrow_mut().local(bucket, limit, (host.clock_us.get(), read_after), said);
        self.hold(owner, judged);
        match self.plan.store {
            Store::SharedData => {
                if !admitted {
                    self.count(Happening::RejectedHere);
                }
                "shared data"
            }
            Store::Redis(_) => {
                self.fell_back(worker, pending, "local", false);
                "its Envoy, for want of Redis"
            }
        }
    }

    fn decided_by_redis(
        &self,
        pending: &Pending,
        (owner, limit): (usize, Limit),
        (admitted, verdict): (bool, &Verdict),
        answer: &HeaderValues,
    ) -> &'static str {
        let Some(said) = pending.outcome else {
            self.fail(Some(owner), format!("answered without a store: {answer:?}"));
            return "no store";
        };
        let pico = said.left_pico.unwrap_or_default();
        let target =
            if said.admitted { u64::from(limit.capacity()) * 1_000_000_000_000 } else { 1_000_000_000_000 };
        let wait_us = target.saturating_sub(pico).div_ceil(limit.refill_micro_per_sec());
        if (admitted, verdict.remaining, verdict.wait_us) != (said.admitted, said.left, wait_us) {
            self.fail(Some(owner), format!("Redis decided {said:?}, and the limiter {verdict:?}"));
        }
        if (verdict.outcome == Outcome::Admitted) != admitted {
            self.fail(Some(owner), "the verdict and the decision differ");
        }
        if !admitted {
            self.count(Happening::RejectedThere);
        }
        "Redis"
    }

    fn decided_by_deny_cache(
        &self,
        worker: &Worker,
        (owner, limit): (usize, Limit),
        at_us: u64,
        admitted: bool,
    ) -> &'static str {
        if admitted {
            self.fail(Some(owner), "admitted without a store");
        }
        self.count(Happening::RejectedByDenyCache);
        let pays = |pending: &Pending| pending.payment.is_some_and(|(other, _)| other == owner);
        let is_waiting = worker.pending.borrow().values().any(pays);
        let bucket = self.envoys[worker.envoy].namespace_index * self.plan.owners() + owner;
        let now_us = self.now_us.get();
        // The worker read its clock when the request arrived, and others may have acted since.
        let times = (self.redis.borrow().clock_us(at_us), now_us);
        let patience_us = self.plan.timeout_us + worker.check_interval_us + SLACK_US;
        let judged = self.oracle.borrow().denied(bucket, limit, times, is_waiting, patience_us);
        self.hold(owner, judged);
        "what Redis said before"
    }

    /// `on_failure` has decided: only as configured, and only while Redis is unhealthy.
    fn fell_back(&self, worker: &Worker, pending: &Pending, policy: &'static str, is_odd: bool) {
        let owner = pending.payment.map(|(owner, _)| owner);
        if self.plan.store != Store::Redis(policy) || is_odd {
            let (id, index) = (pending.id, worker.index);
            self.fail(owner, format!("request {id} at worker {index} was decided by {policy}"));
        }
        self.count(match policy {
            "local" => Happening::FallbackLocal,
            "allow" => Happening::FallbackAllow,
            _ => Happening::FallbackDeny,
        });
        let well_us = self.faults.healthy_for_us(self.now_us.get());
        if !worker.has_hole() && well_us > RECOVERY_US + self.plan.timeout_us + SLACK_US {
            let healthy_s = well_us as f64 / 1e6;
            self.fail(owner, format!("Redis was not used, although it has been healthy for {healthy_s} s"));
        }
    }

    fn posted(&self, worker: &Worker, pending: &Pending, decision: &Decision) {
        let Decision::Replied(reply) = decision else {
            return self.fail(None, format!("a change of health: {decision:?}"));
        };
        let health = self.envoys[worker.envoy].health.get();
        match reply.status {
            200 if pending.wanted == Some(health) => {}
            500 if self.plan.store != Store::SharedData => {}
            _ => self.fail(
                None,
                format!("{:?} was posted, {health} holds, and the reply is {reply:?}", pending.wanted),
            ),
        }
    }

    /// All Envoys know the health in a healthy Redis after a second, unless a breaker is open.
    pub(crate) fn check_health(&self, envoy: usize) {
        let quiet_us = HEALTH_US + self.plan.timeout_us + SLACK_US;
        let now_us = self.now_us.get();
        if self.plan.store == Store::SharedData
            || now_us < self.health_changed_us.get() + quiet_us
            || self.faults.healthy_for_us(now_us) < RECOVERY_US + quiet_us
            || self.workers.borrow().iter().any(|worker| worker.has_hole())
        {
            return;
        }
        let Envoy { health, namespace_index, .. } = &self.envoys[envoy];
        if let Some(stored) = self.redis.borrow_mut().text(health_key(*namespace_index))
            && stored != health.get().name().as_bytes()
        {
            let stored = String::from_utf8_lossy(&stored);
            self.fail(
                None,
                format!("Redis has {stored} for more than a second, and envoy {envoy} {}", health.get()),
            );
        }
    }
}
