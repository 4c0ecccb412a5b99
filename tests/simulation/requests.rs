//! Requests: the fate of each on its way to the store and back, its purpose, and the crashes that it
//! triggers.
//!
//! Invariant: once sent, a request is independent: it lands whether or not its sender is still alive.

use bytes::BytesMut;
use cairn::store::{ByteRange, Condition, Error, Object, Store};
use cairn::volume::format::head::Head;
use cairn::volume::format::keys::{Keys, Parsed};
use cairn::volume::format::record::{Record, RecordKind};
use futures::FutureExt;
use rand::Rng;

use super::weather::{Failure, Fate, Fault, Outcome, Phase, draw, fair};
use super::world::{Answer, Call, Event, Flight, Inner, Process, Reply, Time};

fn short(call: &Call, prefix: &str) -> String {
    let cut = |key: &str| key.strip_prefix(prefix).unwrap_or(key).to_owned();
    match call {
        Call::Get(key, ByteRange::Full) => format!("get {}", cut(key)),
        Call::Get(key, ByteRange::Bounded { offset, length }) => {
            format!("get {}[{offset}+{length}]", cut(key))
        }
        Call::Put(key, body, condition) => {
            let how = match condition {
                Condition::Always => "",
                Condition::IfAbsent => " if absent",
                Condition::IfMatch(_) => " if match",
            };
            format!("put {} {} bytes{how}", cut(key), body.len())
        }
        Call::Delete(keys) => {
            format!("delete {}", keys.iter().map(|key| cut(key)).collect::<Vec<_>>().join(" "))
        }
        Call::List(prefix, from) => format!("list {} from {from:?}", cut(prefix)),
    }
}

fn told(result: &Result<Answer, Error>) -> String {
    match result {
        Ok(Answer::Object(object)) => format!("{} bytes", object.body.len()),
        Ok(Answer::Listing(listing)) => format!("{} entries", listing.entries.len()),
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("{:?}", error.outcome()),
    }
}

impl Inner {
    fn phase(&self, process: Process, call: &Call) -> Phase {
        if self.ledger.is_some() {
            return super::ledger::phase(call);
        }
        if self.processes[&process].opening {
            return Phase::Open;
        }
        let parse = |key: &str| Keys::new(self.volume).parse(key);
        match call {
            Call::Delete(_) | Call::List(..) => Phase::Sweep,
            Call::Put(key, ..) => match parse(key) {
                Some(Parsed::Head) => Phase::Head,
                Some(Parsed::Root(_) | Parsed::MapPage(..) | Parsed::Overlay(..) | Parsed::Pack(_)) => {
                    Phase::Fold
                }
                _ => Phase::Commit,
            },
            Call::Get(key, range) => match (parse(key), range) {
                // Only a table is read from the beginning of a record, data never.
                (Some(Parsed::Record(slot)), ByteRange::Full | ByteRange::Bounded { offset: 0, .. }) => {
                    let is_own = self.processes[&process].epoch == Some(slot.epoch);
                    if is_own { Phase::Commit } else { Phase::Sweep }
                }
                (
                    Some(
                        Parsed::Record(_)
                        | Parsed::Chunk(..)
                        | Parsed::Pack(_)
                        | Parsed::Overlay(..)
                        | Parsed::MapPage(..),
                    ),
                    _,
                ) => Phase::Read,
                _ => Phase::Sweep,
            },
        }
    }

    /// Sends a request at a time, which may be a little ahead of the world's.
    pub(super) fn send(&mut self, process: Process, at: Time, call: Call, reply: Reply) {
        let at = at.max(self.now);
        let phase = self.phase(process, &call);
        self.numbers += 1;
        let number = self.numbers;
        let fate = self.fate(process, &call);
        if let Some(fault) = fate.fault {
            self.coverage.met(fault, phase);
        }
        self.circumstances(process, phase);
        self.look_before_deletion(process, &call);
        self.check_renaming(process, &call);
        let prefix = Keys::new(self.volume).prefix();
        self.trace.line(
            at,
            format_args!(
                "P{process} #{number} {phase:?} {}{}",
                short(&call, &prefix),
                match fate.fault {
                    Some(fault) => format!(" [{fault:?}]"),
                    None => String::new(),
                }
            ),
        );
        let answer_at = at + fate.answered;
        let outcome = fate.outcome;
        let flight =
            |reply| Flight { process, number, call: call.clone(), reply, outcome, answer_at, sent_at: at };
        if let Some(again) = fate.again {
            self.push(at + again, Event::Land(Box::new(flight(None))));
        }
        let reply = match outcome {
            Outcome::Fails(failure) => {
                let key = match &call {
                    Call::Get(key, _) | Call::Put(key, ..) | Call::List(key, _) => key.as_str(),
                    Call::Delete(keys) => keys.first().map_or("", String::as_str),
                };
                let error = Box::new(Err(failure.error(key)));
                self.push(answer_at, Event::Answer(process, number, reply, error));
                None
            }
            _ => Some(reply),
        };
        if let Some(lands) = fate.lands {
            self.push(at + lands, Event::Land(Box::new(flight(reply))));
        }
        let state = self.processes.get_mut(&process).expect("it sent a request");
        state.flights.insert(number, phase);
        self.crash_by_chance(process);
    }

    /// Checks a deletion: once the list of objects was fixed, the gateway must have read who holds the
    /// volume. The seal that ends a log stays for as long as the volume does: its slot is all that keeps a
    /// late record of an earlier epoch out.
    fn look_before_deletion(&mut self, process: Process, call: &Call) {
        let state = self.processes.get_mut(&process).expect("it sent a request");
        if self.ledger.is_none()
            && let Call::Delete(keys) = call
            && *keys != state.deleted
        {
            state.deleted.clone_from(keys);
            if !std::mem::take(&mut state.asked) {
                self.broken(format!("P{process} deletes {} unasked whose the volume is", keys.join(" ")));
            }
            if let Some(seal) = keys.iter().find(|key| self.is_seal_of_a_log(key)) {
                self.broken(format!("P{process} deletes the seal {seal} of a volume that is in use"));
            }
        }
    }

    /// Whether an object is the seal that ends a log. An opener that was overtaken may put another into the
    /// first slot of a log of which that slot has been deleted.
    fn is_seal_of_a_log(&self, key: &str) -> bool {
        let keys = Keys::new(self.volume);
        let Some(Parsed::Record(slot)) = keys.parse(key) else { return false };
        let found = self.memory.get(key, ByteRange::Full).now_or_never().expect("memory answers at once");
        let record = found.ok().and_then(|object| Record::decode(keys.sealing(), slot, &object.body).ok());
        let follows = |key: &String| match keys.parse(key) {
            Some(Parsed::Record(other)) => other.epoch == slot.epoch && other.n > slot.n,
            _ => false,
        };
        record.is_some_and(|(record, _)| record.kind == RecordKind::Seal)
            && !self.objects().keys().any(follows)
    }

    /// Records that a gateway learns who holds the volume, from a head that it can read.
    fn told_whose(&mut self, process: Process, call: &Call, answer: &Result<Answer, Error>) {
        let (Call::Get(key, _), Ok(Answer::Object(object))) = (call, answer) else { return };
        if *key != Keys::new(self.volume).head() {
            return;
        }
        let state = self.processes.get_mut(&process).expect("it sent a request");
        state.asked |= Head::decode(self.volume, &object.body).is_ok();
    }

    /// Counts the circumstances under which a request is sent.
    fn circumstances(&mut self, process: Process, phase: Phase) {
        let alive = self.processes.values().filter(|state| state.alive && !state.ended).count();
        let no_grace = self.plan.options.deletion_grace.is_zero();
        let here = [
            (Fault::Skew, self.processes[&process].skewed),
            (Fault::Fight, alive > 1),
            (Fault::NoGrace, no_grace),
        ];
        here.into_iter().filter(|(_, is)| *is).for_each(|(fault, _)| self.coverage.met(fault, phase));
    }

    fn fate(&mut self, process: Process, call: &Call) -> Fate {
        let changes = matches!(call, Call::Put(..) | Call::Delete(_));
        let has_body = matches!(call, Call::Get(..));
        if self.calm.is_some() {
            return fair(&self.plan.rough, &mut self.random);
        }
        if self.processes[&process].partitioned {
            let timeout = self.plan.rough.timeout;
            let refused = self.random.random_bool(0.5);
            let answered = if refused { self.random.random_range(1..50) } else { timeout };
            let failure = if refused { Failure::Transient } else { Failure::Timeout };
            let outcome = Outcome::Fails(failure);
            return Fate { lands: None, again: None, answered, outcome, fault: Some(Fault::Partition) };
        }
        if self.refused {
            let (outcome, fault) = (Outcome::Fails(Failure::Denied), Some(Fault::Refused));
            let answered = self.random.random_range(1..50);
            return Fate { lands: None, again: None, answered, outcome, fault };
        }
        let mut rates = self.plan.rough.clone();
        if self.storm {
            (rates.throttled, rates.error_before, rates.lost_answer) = (5000, 2000, 1000);
            // Of what is answered at all, no larger a share denies what is there than in fair weather.
            rates.absent /= 10;
        }
        draw(&rates, &mut self.random, changes, has_body)
    }

    fn crash_by_chance(&mut self, process: Process) {
        // Openings are many requests, and crash in peace else.
        let opening = self.processes.get(&process).is_some_and(|state| state.opening);
        let rate = self.plan.crash_at_request / if opening { 10 } else { 1 };
        let dice = self.random.random_range(0..10_000_u32 << (self.quiet / 2).min(10));
        if self.calm.is_none() && dice < rate {
            self.quiet += 1;
            self.crashing.push(process);
        }
    }

    /// Whether a gateway dies before it has done all that it could do now, and after how many tasks' turns.
    pub(super) fn dies_midway(&mut self, process: Process) -> Option<u32> {
        let rate = self.plan.crash_at_await;
        if rate == 0 || self.calm.is_some() || !self.processes.get(&process).is_some_and(|state| state.alive)
        {
            return None;
        }
        let dice = self.random.random_range(0..10_000_u32 << (self.quiet / 2).min(10));
        if dice >= rate {
            return None;
        }
        self.quiet += 1;
        Some(self.random.random_range(0..24))
    }

    /// Counts a fault of a gateway for each of its requests in flight.
    pub(super) fn strike(&mut self, process: Process, fault: Fault) {
        let phases: Vec<Phase> = self.processes[&process].flights.values().copied().collect();
        phases.into_iter().for_each(|phase| self.coverage.met(fault, phase));
    }

    /// Lets a request take effect.
    pub(super) fn land(&mut self, flight: Flight) {
        let Flight { process, number, call, reply, outcome, answer_at, sent_at } = flight;
        if !self.processes[&process].alive && self.random.random_bool(0.3) {
            self.say(format_args!("P{process} #{number} never arrives: its sender is dead"));
            return;
        }
        let result = self.apply(&call);
        self.say(format_args!("P{process} #{number} lands: {}", told(&result)));
        if self.ledger.is_some() && result.is_ok() {
            self.name_lands(&call, reply.is_none());
        }
        if let (Call::Put(key, body, _), Ok(_)) = (&call, &result) {
            self.landed(process, sent_at, key, body);
            let superseded =
                self.processes[&process].epoch.is_some_and(|epoch| epoch < self.history.newest());
            if reply.is_none() || superseded {
                self.strays.insert(key.clone());
            }
        }
        if let Some(reply) = reply {
            if self.ledger.is_some() && result.is_ok() {
                self.renaming_lands(process, number, &call);
            }
            let result = self.on_the_way(outcome, &call, result);
            self.told_whose(process, &call, &result);
            if outcome == Outcome::Absent {
                self.processes.get_mut(&process).expect("it sent a request").denials += 1;
            }
            self.push(answer_at, Event::Answer(process, number, reply, Box::new(result)));
            self.crash_by_chance(process);
        }
    }

    fn apply(&self, call: &Call) -> Result<Answer, Error> {
        let now = "the store in memory answers at once";
        match call {
            Call::Get(key, range) => {
                self.memory.get(key, *range).now_or_never().expect(now).map(Answer::Object)
            }
            Call::Put(key, body, condition) => {
                let put = self.memory.put(key, body.clone(), condition.clone());
                put.now_or_never().expect(now).map(Answer::ETag)
            }
            Call::Delete(keys) => {
                self.memory.delete(keys).now_or_never().expect(now).map(|()| Answer::Deleted)
            }
            Call::List(prefix, from) => {
                let list = self.memory.list(prefix, from);
                list.now_or_never().expect(now).map(Answer::Listing)
            }
        }
    }

    /// Applies damage in transit to an answer.
    fn on_the_way(
        &mut self,
        outcome: Outcome,
        call: &Call,
        result: Result<Answer, Error>,
    ) -> Result<Answer, Error> {
        let object = match result {
            Ok(Answer::Object(object)) => object,
            Ok(Answer::Listing(mut listing)) if outcome == Outcome::Absent && !listing.entries.is_empty() => {
                let left_out = self.random.random_range(0..listing.entries.len());
                // A sweep cannot find what the store leaves out: space is lost, no data.
                self.strays.insert(listing.entries.remove(left_out).key);
                return Ok(Answer::Listing(listing));
            }
            other => return other,
        };
        match outcome {
            Outcome::Absent => {
                let Call::Get(key, _) = call else { unreachable!("a GET is answered by an object") };
                Err(Error::NotFound { key: key.clone() })
            }
            Outcome::Flipped if !object.body.is_empty() => {
                let mut body = BytesMut::from(&object.body[..]);
                let at = self.random.random_range(0..body.len());
                body[at] ^= 1 << self.random.random_range(0..8_u8);
                Ok(Answer::Object(Object { body: body.freeze(), etag: object.etag }))
            }
            Outcome::Short => {
                let wanted = object.body.len() as u64;
                Err(Error::Truncated { key: String::new(), wanted, got: wanted / 2 })
            }
            _ => Ok(Answer::Object(object)),
        }
    }

    /// Delivers an answer to its caller, unless that is cut off.
    pub(super) fn answer(
        &mut self,
        process: Process,
        number: u64,
        reply: Reply,
        result: Result<Answer, Error>,
    ) {
        let state = self.processes.get_mut(&process).expect("it sent a request");
        if !state.alive {
            return;
        }
        if state.partitioned && !matches!(result, Err(Error::Timeout { .. })) {
            let error = Box::new(Err(Failure::Timeout.error("")));
            let later = self.now + self.plan.rough.timeout;
            return self.push(later, Event::Answer(process, number, reply, error));
        }
        let phase = state.flights.remove(&number);
        let overtakes = state.flights.range(..number).next().is_some();
        if let Some(phase) = phase.filter(|_| overtakes) {
            self.coverage.met(Fault::Reordered, phase);
        }
        self.say(format_args!("P{process} #{number} hears: {}", told(&result)));
        let aims = self.ledger.is_some().then(|| result.clone());
        // There is no receiver if the caller gave the request up.
        if reply.send(result).is_ok() {
            match aims {
                Some(Ok(Answer::Object(object))) => self.aims(process, &object.body),
                Some(Ok(Answer::ETag(_))) => self.renaming_hears(process, number),
                _ => {}
            }
        }
    }
}
