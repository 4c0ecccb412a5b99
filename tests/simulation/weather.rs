//! The weather between gateways and the store: what becomes of each request, drawn from the seed.
//!
//! Knows nothing of what requests are for. Invariant: whatever is drawn, a caller is told only what a real store
//! could have told it: an error whose effect is unknown may hide any effect, a definite one none but its own.

use std::collections::BTreeMap;

use cairn::store::Error;
use cairn::store::error::cause;
use rand::Rng;
use rand::rngs::SmallRng;

/// What a request was for, as far as an onlooker can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Of a gateway that is opening the volume.
    Open,
    /// A record, or a chunk object, on its way.
    Commit,
    /// A map page or a root on its way.
    Fold,
    /// An update of the head: the state that the next opener begins with.
    Head,
    /// Looking for what nothing names: a listing, a deletion, or a look at records, roots or the head before one.
    Sweep,
    /// A piece of an object, for a reader or a fold.
    Read,
    /// A name or an identity, or a listing of these.
    Name,
}

/// Every phase.
pub(super) const PHASES: [Phase; 7] =
    [Phase::Open, Phase::Commit, Phase::Fold, Phase::Head, Phase::Sweep, Phase::Read, Phase::Name];

/// What is done to a request, or to its gateway while the request is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// It fails without effect.
    ErrorBefore,
    /// It takes effect, and its answer is lost.
    LostAnswer,
    /// No answer comes in time, and it takes effect long after.
    Late,
    /// It takes effect, and once more much later.
    Duplicate,
    /// The store asks to slow down.
    Throttled,
    /// It is refused because another for the same key is under way (409).
    Conflict,
    /// Access is denied once.
    Denied,
    /// Access is denied to all for a while: credentials were exchanged.
    Refused,
    /// It takes seconds.
    Slow,
    /// A bit of its body is flipped on the way.
    Flip,
    /// Its body ends early.
    Short,
    /// The store denies an object that is there, or leaves it out of a listing.
    Absent,
    /// The gateway is cut off from the store.
    Partition,
    /// The gateway stands still, and its clock goes on.
    Pause,
    /// The gateway dies.
    Crash,
    /// An earlier one of its gateway is answered later.
    Reordered,
    /// Its gateway's clock goes at a rate of its own.
    Skew,
    /// Another gateway lives at the time.
    Fight,
    /// Nothing is kept for a while before it is deleted.
    NoGrace,
}

/// Every fault.
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
    /// Whether a request of that phase can meet it: bodies are only read, and only changes land late or twice.
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

/// How often each fault met each phase.
#[derive(Clone, Debug, Default)]
pub(super) struct Coverage(BTreeMap<(Fault, Phase), u64>);

impl Coverage {
    /// Counts a meeting.
    pub(super) fn met(&mut self, fault: Fault, phase: Phase) {
        *self.0.entry((fault, phase)).or_default() += 1;
    }

    /// Adds what another run met.
    pub(super) fn add(&mut self, other: &Self) {
        for (pair, count) in &other.0 {
            *self.0.entry(*pair).or_default() += count;
        }
    }

    /// How often a pair was met.
    pub(super) fn of(&self, fault: Fault, phase: Phase) -> u64 {
        self.0.get(&(fault, phase)).copied().unwrap_or(0)
    }

    /// The pairs met less often than `least`, of those that can meet.
    pub(super) fn rare(&self, least: u64) -> Vec<(Fault, Phase, u64)> {
        let pairs = FAULTS.iter().flat_map(|fault| PHASES.iter().map(|phase| (*fault, *phase)));
        pairs
            .filter(|(fault, phase)| fault.meets(*phase) && self.of(*fault, *phase) < least)
            .map(|(fault, phase)| (fault, phase, self.of(fault, phase)))
            .collect()
    }

    /// How often the rarest pair was met.
    pub(super) fn least(&self) -> u64 {
        let pairs = FAULTS.iter().flat_map(|fault| PHASES.iter().map(|phase| (*fault, *phase)));
        pairs
            .filter(|(fault, phase)| fault.meets(*phase))
            .map(|(fault, phase)| self.of(fault, phase))
            .min()
            .unwrap_or(0)
    }

    /// A table for people.
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

/// How often what happens, each of 10,000 requests; and how long they take.
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
    /// A request without an answer fails after so many milliseconds.
    pub(super) timeout: u64,
}

/// How a request ends for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// As the store says.
    Real,
    /// With a bit of its body flipped.
    Flipped,
    /// With its body cut short.
    Short,
    /// As if the object, or one of those listed, did not exist.
    Absent,
    /// With an error that says nothing of the effect, or that there was none.
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
    /// As the store's errors say it.
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

/// What becomes of a request; times in milliseconds after it was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fate {
    /// When it takes effect, if ever.
    pub(super) lands: Option<u64>,
    /// When it takes effect once more.
    pub(super) again: Option<u64>,
    /// When its caller hears.
    pub(super) answered: u64,
    /// What its caller hears.
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
