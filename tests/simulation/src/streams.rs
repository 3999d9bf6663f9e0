//! The streams between workers and Redis: bytes in flight, commands, and their requests.

use dynamic_rate_limiter::request::RequestId;
use dynamic_rate_limiter::store::redis::outbox::StreamAction;
use harness::fake_redis::{READ_ONLY, parse_words};

use crate::redis::{Done, Took};
use crate::report::{Happening, What};
use crate::worker::{Stream, Worker};
use crate::workload::full_in_us;
use crate::world::{Event, World};

impl World {
    /// Carries out an action of a worker on its stream.
    pub(crate) fn carry_out(&self, worker: &Worker, action: StreamAction) {
        match action {
            StreamAction::Close => self.drop_stream(worker),
            StreamAction::Open => {
                self.drop_stream(worker);
                self.open_stream(worker);
            }
            StreamAction::Send(bytes) => self.send(worker, bytes),
        }
    }

    pub(crate) fn drop_stream(&self, worker: &Worker) {
        let Some(stream) = worker.stream.borrow_mut().take() else { return };
        if stream.is_hole {
            self.faults.touch(self.now_us.get());
        }
        if stream.is_replica {
            // What still waits is sent again on the next stream, in the order in which it was sent last.
            let mut sent: Vec<_> = stream.request_ids.into_iter().collect();
            sent.sort_unstable();
            let (mut unsent, pending) = (worker.unsent.borrow_mut(), worker.pending.borrow());
            for (_, request_id) in sent.into_iter().rev().filter(|(_, id)| pending.contains_key(id)) {
                if !unsent.contains(&request_id) {
                    unsent.push_front(request_id);
                }
            }
        }
    }

    fn open_stream(&self, worker: &Worker) {
        let stream =
            Stream { id: self.number(), is_refused: self.faults.lasts(Happening::Down), ..Stream::default() };
        if stream.is_refused {
            self.after(1 + self.below(2_000), Event::Closed(worker.index, stream.id));
        }
        *worker.stream.borrow_mut() = Some(stream);
    }

    fn send(&self, worker: &Worker, bytes: Vec<u8>) {
        self.note_owners(worker, &bytes);
        let mut stream = worker.stream.borrow_mut();
        let Some(stream) = stream.as_mut().filter(|stream| !stream.is_refused && !stream.is_hole) else {
            return;
        };
        let cut = if self.one_in(8) { 1 + self.below(bytes.len() as u64) as usize } else { bytes.len() };
        for part in [&bytes[..cut], &bytes[cut..]].into_iter().filter(|part| !part.is_empty()) {
            stream.last_us.0 = stream.last_us.0.max(self.now_us.get() + self.delay_us());
            stream.to_redis.push_back(part.to_vec());
            self.at(stream.last_us.0, Event::ToRedis(worker.index, stream.id));
        }
    }

    /// Records the requests of these commands: commands are sent in the order of their requests, and sent again in the
    /// order of the replies without the script.
    fn note_owners(&self, worker: &Worker, mut bytes: &[u8]) {
        let mut stream = worker.stream.borrow_mut();
        let Some(stream) = stream.as_mut() else { return self.fail(None, "bytes are sent on no stream") };
        while let Some((words, length)) = parse_words(bytes) {
            bytes = &bytes[length..];
            let (b"EVALSHA" | b"EVAL") = words[0] else { continue };
            let Some(bucket) = self.redis_buckets.get(words[3]).copied() else { continue };
            let owner = bucket % self.plan.owners();
            let mut pending = worker.pending.borrow_mut();
            let is_asker = |request_id: &RequestId| {
                pending
                    .get(request_id)
                    .and_then(|pending| pending.payment)
                    .is_some_and(|(other, _)| other == owner)
            };
            let request_id = match words[0] {
                b"EVALSHA" => {
                    worker.last_sent_us.set(self.now_us.get());
                    worker.unsent.borrow_mut().pop_front().filter(is_asker)
                }
                _ => stream.unknown.iter().position(is_asker).and_then(|place| stream.unknown.remove(place)),
            };
            let sequence = std::str::from_utf8(words[7]).ok().and_then(|text| text.parse().ok());
            if let Some(pending) = request_id.and_then(|request_id| pending.get_mut(&request_id)) {
                pending.sent_us.get_or_insert(self.now_us.get());
            }
            match request_id.zip(sequence) {
                Some((request_id, sequence)) => drop(stream.request_ids.insert(sequence, request_id)),
                None => self.fail(Some(owner), "a command is sent for no waiting request"),
            }
        }
    }

    /// The delay of bytes in one direction.
    fn delay_us(&self) -> u64 {
        let usual = 20 + self.below(self.plan.timeout_us / 8);
        usual + if self.faults.lasts(Happening::Slow) { self.below(2 * self.plan.timeout_us) } else { 0 }
    }

    pub(crate) fn arrive_at_redis(&self, index: usize, id: u64) {
        let worker = self.worker(index);
        if !worker.has_stream(id) {
            return;
        }
        if self.faults.lasts(Happening::Frozen) {
            return self.after(1_000, Event::ToRedis(index, id));
        }
        let mut input = {
            let mut stream = worker.stream.borrow_mut();
            let Some(stream) = stream.as_mut().filter(|stream| !stream.is_hole) else { return };
            let Some(bytes) = stream.to_redis.pop_front() else { return };
            stream.input.extend_from_slice(&bytes);
            std::mem::take(&mut stream.input)
        };
        let (mut replies, mut read) = (Vec::new(), 0);
        while let Some((words, length)) = parse_words(&input[read..]) {
            replies.push(self.execute(&worker, &words));
            read += length;
        }
        input.drain(..read);
        let mut stream = worker.stream.borrow_mut();
        let Some(stream) = stream.as_mut() else { return };
        let mut out = self.spoil(replies, stream);
        stream.input = input;
        while !out.is_empty() {
            let length = if self.one_in(8) { 1 + self.below(out.len() as u64) as usize } else { out.len() };
            if length < out.len() {
                self.count(Happening::Fragmented);
            }
            let rest = out.split_off(length);
            stream.last_us.1 = stream.last_us.1.max(self.now_us.get() + self.delay_us());
            stream.from_redis.push_back(std::mem::replace(&mut out, rest));
            self.at(stream.last_us.1, Event::FromRedis(index, id));
        }
    }

    fn execute(&self, worker: &Worker, words: &[&[u8]]) -> Vec<u8> {
        let is_replica = worker.stream.borrow().as_ref().is_some_and(|stream| stream.is_replica);
        if let Some(error) = self.faults.error().or(is_replica.then_some(READ_ONLY)) {
            if let (READ_ONLY, Some(stream)) = (error, worker.stream.borrow_mut().as_mut()) {
                stream.is_replica = true;
            }
            return format!("-{error}\r\n").into_bytes();
        }
        let now_us = self.now_us.get();
        let (reply, done) = self.redis.borrow_mut().execute(words, now_us);
        match done {
            Done::Other => {
                if words[0] == b"SET" {
                    self.health_changed_us.set(now_us);
                }
            }
            Done::NoScript(sequence) => {
                self.count(Happening::NoScript);
                let request_id = self.owner(worker, sequence);
                if let (Some(request_id), Some(stream)) = (request_id, worker.stream.borrow_mut().as_mut()) {
                    stream.unknown.push_back(request_id);
                }
            }
            Done::Took(took) => self.took(worker, &took),
        }
        reply
    }

    /// Checks a decision of Redis, and records it for its request.
    fn took(&self, worker: &Worker, took: &Took) {
        let Some(bucket) = self.redis_buckets.get(&took.key).copied() else {
            if !took.key.ends_with(b"#probe") {
                self.fail(None, format!("an unknown bucket: {}", String::from_utf8_lossy(&took.key)));
            }
            return;
        };
        if took.has_expired {
            self.count(Happening::Expired);
        }
        let owner = bucket % self.plan.owners();
        let Some(request_id) = self.owner(worker, took.sequence) else {
            return self.fail(Some(owner), "a command has no request");
        };
        let now_us = self.now_us.get();
        let redis_us = self.redis.borrow().clock_us(now_us);
        let (capacity, rate) = (took.limit.capacity(), took.limit.refill_micro_per_sec());
        let said = took.said;
        let left_pico = said.left_pico.unwrap_or_default();
        self.note(Some(owner), What::Took { admitted: said.admitted, left_pico, redis_us, capacity, rate });
        let fill =
            (took.was_absent, full_in_us(took.limit, left_pico).max(full_in_us(took.other_limit, left_pico)));
        let judged = self.oracle.borrow_mut().redis(bucket, took.limit, (redis_us, now_us), fill, said);
        self.hold(owner, judged);
        if let Some(pending) = worker.pending.borrow_mut().get_mut(&request_id) {
            if pending.payment != Some((owner, took.limit)) || pending.other_limit != Some(took.other_limit) {
                let (payment, other) = (pending.payment, pending.other_limit);
                self.fail(Some(owner), format!("request {request_id} takes {payment:?}, {other:?}"));
            }
            pending.outcome = Some(said);
        }
    }

    /// The request of a command; `None` for a probe.
    fn owner(&self, worker: &Worker, sequence: u32) -> Option<RequestId> {
        worker.stream.borrow().as_ref().and_then(|stream| stream.request_ids.get(&sequence).copied())
    }

    pub(crate) fn arrive_at_worker(&self, index: usize, id: u64) {
        let worker = self.worker(index);
        if !worker.has_stream(id) {
            return;
        }
        let bytes = worker.stream.borrow_mut().as_mut().and_then(|stream| stream.from_redis.pop_front());
        let Some(bytes) = bytes else { return };
        let clock = self.envoys[worker.envoy].clock(self.now_us.get());
        worker.limiter.borrow_mut().handle_input(&bytes, clock);
        self.pump(&worker);
    }

    pub(crate) fn closed(&self, index: usize, id: u64) {
        let worker = self.worker(index);
        if !worker.has_stream(id) {
            return;
        }
        self.drop_stream(&worker);
        let clock = self.envoys[worker.envoy].clock(self.now_us.get());
        worker.limiter.borrow_mut().handle_close("reset", clock);
        self.pump(&worker);
    }
}
