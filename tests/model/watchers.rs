//! Exhaustive check, at small scope, of how gateways count the time for which a deleted volume is kept.
//!
//! Two gateways look at the head whenever they like, and time passes between any two of their requests. A
//! gateway that restarts has seen nothing. Whoever has seen the very same head for some time replaces it by
//! one that has as much less left, or deletes the volume if nothing is left. This must never be too early.
//! Each rule is broken once.

use std::fmt;

use super::explore::{Machine, check, check_to_first};

/// For how long the volume must be kept.
const KEEP: u8 = 2;
/// When the check ends.
const END: u8 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// A gateway counts the time since it first saw any head of the volume.
    CountsAnyHead,
    /// A gateway counts from when it asked, and not from when it was answered.
    CountsFromItsQuestion,
    /// A gateway replaces whatever head there is.
    ReplacesAnyHead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Head {
    version: u8,
    left: u8,
}

/// A gateway: what it has seen, and which request it sends next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Watcher {
    /// The version of the head that it saw, and since when.
    seen: Option<(u8, u8)>,
    at: At,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum At {
    #[default]
    Idle,
    /// It asked at this time.
    Asks(u8),
    /// The store has read the head for it.
    Hears(u8, Head),
    /// It replaces this head by one with less left.
    Replaces(Head, u8),
    /// The store has replaced the head for it.
    Replaced(u8),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    now: u8,
    head: Option<Head>,
    /// When the volume was deleted last. Before that, its head is another one.
    kept_at: Option<u8>,
    /// How often it was deleted. It was brought back in between.
    deletions: u8,
    is_early: bool,
    watchers: [Watcher; 2],
}

impl State {
    fn watches(&self, broken: Option<Broken>, number: usize) -> Option<Self> {
        let mut next = self.clone();
        let is = |rule| broken == Some(rule);
        let me = self.watchers[number];
        let watcher = &mut next.watchers[number];
        watcher.at = match me.at {
            At::Idle => At::Asks(self.now),
            At::Asks(asked) => At::Hears(asked, self.head?),
            At::Hears(asked, head) => {
                let from = if is(Broken::CountsFromItsQuestion) { asked } else { self.now };
                match me.seen {
                    Some((version, since)) if version == head.version || is(Broken::CountsAnyHead) => {
                        let passed = asked.saturating_sub(since);
                        // A head of a volume in use has nothing left to count.
                        if passed == 0 || head.version == 0 {
                            At::Idle
                        } else {
                            At::Replaces(head, head.left.saturating_sub(passed))
                        }
                    }
                    _ => {
                        watcher.seen = Some((head.version, from));
                        At::Idle
                    }
                }
            }
            At::Replaces(old, left) => {
                let now = self.head?;
                if now != old && !is(Broken::ReplacesAnyHead) {
                    watcher.seen = None;
                    At::Idle
                } else if left == 0 {
                    next.head = None;
                    next.is_early = self.kept_at.is_none_or(|kept_at| self.now - kept_at < KEEP);
                    At::Idle
                } else {
                    next.head = Some(Head { version: now.version + 1, left });
                    At::Replaced(now.version + 1)
                }
            }
            At::Replaced(version) => {
                watcher.seen = Some((version, self.now));
                At::Idle
            }
        };
        Some(next)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Early;

enum Step {
    TimePasses,
    IsDeleted,
    Watches(usize),
    Restarts(usize),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimePasses => write!(f, "time passes"),
            Self::IsDeleted => write!(f, "the volume is deleted"),
            Self::Watches(number) => write!(f, "gateway {number} goes on"),
            Self::Restarts(number) => write!(f, "gateway {number} restarts"),
        }
    }
}

impl Machine for State {
    type Scope = Option<Broken>;
    type Step = Step;
    type Violation = Early;

    fn first(_: &Option<Broken>) -> Self {
        let head = Some(Head { version: 0, left: 0 });
        let watchers = [Watcher::default(); 2];
        Self { now: 0, head, kept_at: None, deletions: 0, is_early: false, watchers }
    }

    fn steps(&self, broken: &Option<Broken>) -> Vec<(Step, Self)> {
        let mut steps = Vec::new();
        if self.now < END {
            steps.push((Step::TimePasses, Self { now: self.now + 1, ..self.clone() }));
        }
        if let (0 | 1, Some(Head { version, .. })) = (self.deletions, self.head) {
            let head = Some(Head { version: version + 1, left: KEEP });
            let deletions = self.deletions + 1;
            steps.push((Step::IsDeleted, Self { head, deletions, kept_at: Some(self.now), ..self.clone() }));
        }
        for number in 0..self.watchers.len() {
            steps.extend(self.watches(*broken, number).map(|next| (Step::Watches(number), next)));
            let mut next = self.clone();
            next.watchers[number] = Watcher::default();
            steps.push((Step::Restarts(number), next));
        }
        steps
    }

    fn violation(&self, _: &Option<Broken>) -> Option<Early> {
        self.is_early.then_some(Early)
    }
}

#[test]
fn no_gateway_deletes_a_volume_for_good_before_its_time() {
    let found = check::<State>(&None);
    assert!(found.violations.is_empty(), "{:#?}", found.violations);
    assert!(found.states > 1000, "{} states", found.states);
}

#[test]
fn each_rule_of_counting_is_needed() {
    for broken in [Broken::CountsAnyHead, Broken::CountsFromItsQuestion, Broken::ReplacesAnyHead] {
        let found = check_to_first::<State>(&Some(broken));
        assert!(!found.violations.is_empty(), "{broken:?}");
    }
}
