//! The weather between gateways and the store: the fate of each request, drawn from the seed.
//!
//! Owns the faults and their rates. It must not know what requests are for. Invariant: whatever is drawn, a
//! caller is told only what a real store could have told it. An error whose effect is unknown may hide any
//! effect; a definite error has no effect but its own.

use std::collections::BTreeMap;

use cairn::store::Error;
use cairn::store::error::cause;
use rand::Rng;
use rand::rngs::SmallRng;

/// The purpose of a request, as far as an observer can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// A request of a gateway that is opening the volume.
    Open,
    /// The upload of a record or of a chunk object.
    Commit,
    /// The upload of a map page or of a root.
    Fold,
    /// An update of the head: the state that the next opener begins with.
    Head,
    /// The search for unreferenced objects: a listing, a deletion, or a read of records, roots or the head
    /// before one.
    Sweep,
    /// A read of part of an object, for a reader or a fold.
    Read,
    /// A name or an identity, or a listing of these.
    Name,
}

/// All phases, in the order of the coverage table.
pub(super) const PHASES: [Phase; 7] =
    [Phase::Open, Phase::Commit, Phase::Fold, Phase::Head, Phase::Sweep, Phase::Read, Phase::Name];

/// A fault of a request, or of its gateway while the request is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// The request fails without effect.
    ErrorBefore,
    /// The request takes effect, and its answer is lost.
    LostAnswer,
    /// The request times out, and takes effect long after.
    Late,
    /// The request takes effect, and a second time much later.
    Duplicate,
    /// The store asks the client to slow down (503).
    Throttled,
    /// The request is refused because another one for the same key is in progress (409).
    Conflict,
    /// Access is denied for this one request.
    Denied,
    /// Access is denied to everyone for a while because credentials were exchanged.
    Refused,
    /// The request takes seconds.
    Slow,
    /// A bit of the body is flipped in transit.
    Flip,
    /// The body ends early.
    Short,
    /// The store reports an existing object as missing, or omits it from a listing.
    Absent,
    /// The gateway is cut off from the store.
    Partition,
    /// The gateway is paused while its clock continues.
    Pause,
    /// The gateway crashes.
    Crash,
    /// An earlier request of the same gateway is answered after this one.
    Reordered,
    /// The gateway's clock runs at a different rate.
    Skew,
    /// Another gateway is running at the time.
    Fight,
    /// Garbage is deleted without a grace period.
    NoGrace,
}

/// All faults, in the order of the coverage table.
pub(super) const FAULTS: [Fault; 19] = [
    Fault::ErrorBefore,
    Fault::LostAnswer,
    Fault::Late,
    Fault::Duplicate,
    Fault::Throttled,
    Fault::Conflict,
    Fault::Denied,
    Fault::Refused,
    Fault::Slow,
    Fault::Flip,
    Fault::Short,
    Fault::Absent,
    Fault::Partition,
    Fault::Pause,
    Fault::Crash,
    Fault::Reordered,
    Fault::Skew,
    Fault::Fight,
    Fault::NoGrace,
];

impl Fault {
    /// Whether this fault can happen to a request of the phase: only reads have bodies that can be damaged,
    /// and only changes can land late or twice.
    pub(super) fn meets(self, phase: Phase) -> bool {
        match self {
            Self::Flip | Self::Short | Self::Absent => {
                matches!(phase, Phase::Open | Phase::Sweep | Phase::Read | Phase::Name)
            }
            Self::Late | Self::Duplicate | Self::Conflict => phase != Phase::Read,
            _ => true,
        }
    }
}

/// Counts how often each fault happened in each phase.
#[derive(Clone, Debug, Default)]
pub(super) struct Coverage(BTreeMap<(Fault, Phase), u64>);

impl Coverage {
    /// Counts one occurrence of a fault in a phase.
    pub(super) fn met(&mut self, fault: Fault, phase: Phase) {
        *self.0.entry((fault, phase)).or_default() += 1;
    }

    /// Adds the counts of another run.
    pub(super) fn add(&mut self, other: &Self) {
        for (pair, count) in &other.0 {
            *self.0.entry(*pair).or_default() += count;
        }
    }

    /// Returns how often a fault happened in a phase.
    pub(super) fn of(&self, fault: Fault, phase: Phase) -> u64 {
        self.0.get(&(fault, phase)).copied().unwrap_or(0)
    }

    /// Returns the possible pairs that happened less often than `least`, with their counts.
    pub(super) fn rare(&self, least: u64) -> Vec<(Fault, Phase, u64)> {
        let pairs = FAULTS.iter().flat_map(|fault| PHASES.iter().map(|phase| (*fault, *phase)));
        pairs
            .filter(|(fault, phase)| fault.meets(*phase) && self.of(*fault, *phase) < least)
            .map(|(fault, phase)| (fault, phase, self.of(fault, phase)))
            .collect()
    }

    /// Returns the count of the rarest pair.
    pub(super) fn least(&self) -> u64 {
        let pairs = FAULTS.iter().flat_map(|fault| PHASES.iter().map(|phase| (*fault, *phase)));
        pairs
            .filter(|(fault, phase)| fault.meets(*phase))
            .map(|(fault, phase)| self.of(fault, phase))
            .min()
            .unwrap_or(0)
    }

    /// Formats the counts as a table.
    pub(super) fn table(&self) -> String {
        let mut table = format!("{:>12}", "");
        for phase in PHASES {
            table += &format!("{:>10}", format!("{phase:?}"));
        }
        for fault in FAULTS {
            table += &format!("\n{:>12}", format!("{fault:?}"));
            for phase in PHASES {
                let count = self.of(fault, phase);
                table += &if fault.meets(phase) { format!("{count:>10}") } else { format!("{:>10}", "-") };
            }
        }
        table
    }
}

/// Rates of the faults, each per 10,000 requests, and the durations of requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates {
    pub(super) error_before: u32,
    pub(super) lost_answer: u32,
    pub(super) late: u32,
    pub(super) duplicate: u32,
    pub(super) throttled: u32,
    pub(super) conflict: u32,
    pub(super) denied: u32,
    pub(super) slow: u32,
    pub(super) flip: u32,
    pub(super) short: u32,
    pub(super) absent: u32,
    /// Longest usual time of a request in milliseconds.
    pub(super) latency: u64,
    /// Time in milliseconds after which an unanswered request fails.
    pub(super) timeout: u64,
}

/// The outcome of a request for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The real answer of the store.
    Real,
    /// The real answer with a bit of its body flipped.
    Flipped,
    /// The real answer with its body cut short.
    Short,
    /// An answer as if the object, or one of those listed, did not exist.
    Absent,
    /// An error that says nothing about the effect, or that there was none.
    Fails(Failure),
}

/// An error that a request meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Timeout,
    Transient,
    Throttled,
    Conflict,
    Denied,
}

impl Failure {
    /// Converts the failure to an error of the store.
    pub(super) fn error(self, key: &str) -> Error {
        let key = key.to_owned();
        match self {
            Self::Timeout => Error::Timeout { key, after_ms: 10_000 },
            Self::Transient => Error::Transient { key, source: cause("simulated") },
            Self::Conflict => Error::Transient { key, source: cause("simulated 409") },
            Self::Throttled => Error::Throttled { key, source: cause("simulated") },
            Self::Denied => Error::Denied { key, source: cause("simulated") },
        }
    }
}

/// The fate of a request; times in milliseconds after it was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fate {
    /// When it takes effect, if ever.
    pub(super) lands: Option<u64>,
    /// When it takes effect a second time, if ever.
    pub(super) again: Option<u64>,
    /// When its caller receives the answer.
    pub(super) answered: u64,
    /// The answer that its caller receives.
    pub(super) outcome: Outcome,
    /// What was done to it.
    pub(super) fault: Option<Fault>,
}

fn latency(rates: &Rates, random: &mut SmallRng) -> u64 {
    let usual = random.random_range(1..=rates.latency.max(1));
    match random.random_range(0..1000_u32) {
        0..900 => usual,
        900..985 => usual * random.random_range(2..8),
        _ => usual * random.random_range(8..60),
    }
}

/// Draws what becomes of a request in fair weather: only its times differ.
pub(super) fn fair(rates: &Rates, random: &mut SmallRng) -> Fate {
    let lands = latency(rates, random).min(rates.timeout / 3);
    let answered = lands + latency(rates, random).min(rates.timeout / 3);
    Fate { lands: Some(lands), again: None, answered, outcome: Outcome::Real, fault: None }
}

/// Draws what becomes of a request; `changes` says that it is a PUT or DELETE, and not a LIST or GET, `has_body` that it
/// is a GET.
pub(super) fn draw(rates: &Rates, random: &mut SmallRng, changes: bool, has_body: bool) -> Fate {
    let mut fate = fair(rates, random);
    let mut dice = random.random_range(0..10_000_u32);
    let mut hit = |rate: u32| {
        let hit = dice < rate;
        dice = dice.saturating_sub(rate).max(if hit { 10_000 } else { 0 });
        hit
    };
    if hit(rates.error_before) {
        let failure = if random.random() { Failure::Transient } else { Failure::Timeout };
        if failure == Failure::Timeout {
            fate.answered = rates.timeout;
        }
        return Fate {
            lands: None,
            outcome: Outcome::Fails(failure),
            fault: Some(Fault::ErrorBefore),
            ..fate
        };
    }
    if hit(rates.lost_answer) {
        let failure = if random.random() { Failure::Transient } else { Failure::Timeout };
        if failure == Failure::Timeout {
            fate.answered = rates.timeout;
        }
        return Fate { outcome: Outcome::Fails(failure), fault: Some(Fault::LostAnswer), ..fate };
    }
    if hit(rates.throttled) {
        let outcome = Outcome::Fails(Failure::Throttled);
        return Fate { lands: None, outcome, fault: Some(Fault::Throttled), ..fate };
    }
    if changes && hit(rates.conflict) {
        let outcome = Outcome::Fails(Failure::Conflict);
        return Fate { lands: None, outcome, fault: Some(Fault::Conflict), ..fate };
    }
    if hit(rates.denied) {
        let outcome = Outcome::Fails(Failure::Denied);
        return Fate { lands: None, outcome, fault: Some(Fault::Denied), ..fate };
    }
    if hit(rates.slow) {
        let lands = random.random_range(rates.timeout / 20..=rates.timeout * 2);
        let answered = lands + random.random_range(1..=rates.timeout / 2);
        let in_time = answered < rates.timeout;
        let outcome = if in_time { Outcome::Real } else { Outcome::Fails(Failure::Timeout) };
        let answered = answered.min(rates.timeout);
        return Fate { lands: Some(lands), again: None, answered, outcome, fault: Some(Fault::Slow) };
    }
    if changes && hit(rates.late) {
        let lands = random.random_range(rates.timeout..=rates.timeout * 20);
        let failure = if random.random() { Failure::Transient } else { Failure::Timeout };
        let answered = if failure == Failure::Timeout { rates.timeout } else { fate.answered };
        let outcome = Outcome::Fails(failure);
        return Fate { lands: Some(lands), again: None, answered, outcome, fault: Some(Fault::Late) };
    }
    if changes && hit(rates.duplicate) {
        let again = fate.answered + random.random_range(1..=rates.timeout * 10);
        return Fate { again: Some(again), fault: Some(Fault::Duplicate), ..fate };
    }
    if has_body && hit(rates.flip) {
        return Fate { outcome: Outcome::Flipped, fault: Some(Fault::Flip), ..fate };
    }
    if has_body && hit(rates.short) {
        return Fate { outcome: Outcome::Short, fault: Some(Fault::Short), ..fate };
    }
    if !changes && hit(rates.absent) {
        return Fate { outcome: Outcome::Absent, fault: Some(Fault::Absent), ..fate };
    }
    fate
}
