//! Objects that were found missing or damaged, before it is known what that costs.
//!
//! Must not know how the ranges of a volume are found. Invariant: an object is noted only after a head that
//! was read later still references it, so nothing that a gateway replaced meanwhile is taken for damage.

use std::collections::BTreeMap;
use std::ops::Range;

use super::ranges::Ranges;
use super::report::{Effect, Finding, MAX_FINDINGS, ObjectKind, Trouble};

/// Which part of an object cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// These bytes of the object, in ascending order. What they store cannot be read.
    Bytes(Vec<Range<u64>>),
    /// The part does not matter: the volume cannot be opened.
    Opening,
    /// These ranges of the volume read as they were before the record.
    Older(Vec<Range<u64>>),
    /// These ranges of the volume cannot be read.
    Volume(Vec<Range<u64>>),
    /// The part is not needed to read the volume.
    Unread,
}

/// Why an object that something references cannot be used as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) trouble: Trouble,
    pub(super) why: String,
}

impl Loss {
    pub(super) fn missing() -> Self {
        Self { trouble: Trouble::Missing, why: "it is referenced and does not exist".to_owned() }
    }

    pub(super) fn damaged(why: impl std::fmt::Display) -> Self {
        Self { trouble: Trouble::Damaged, why: why.to_string() }
    }
}

/// An object that is not as it should be.
#[derive(Clone, Debug)]
pub(super) struct Suspect {
    pub(super) object: ObjectKind,
    pub(super) why: String,
    pub(super) part: Part,
    /// The ranges of the volume that it costs, in bytes, as far as they are known.
    pub(super) ranges: Ranges,
}

/// All of them, by key and trouble.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    found: BTreeMap<(String, Trouble), Suspect>,
    omitted: u64,
}

impl Suspects {
    /// Notes an object. Beyond [`MAX_FINDINGS`] it is only counted.
    pub(super) fn note(&mut self, key: String, object: ObjectKind, loss: Loss, part: Part) {
        let Loss { trouble, why } = loss;
        let place = (key, trouble);
        if let Some(known) = self.found.get_mut(&place) {
            known.widen(part);
            return;
        }
        if self.found.len() >= MAX_FINDINGS {
            self.omitted += 1;
            return;
        }
        self.found.insert(place, Suspect { object, why, part, ranges: Ranges::default() });
    }

    /// Counts objects that are not as they should be and are not looked at closely.
    pub(super) fn omit(&mut self, objects: u64) {
        self.omitted += objects;
    }

    /// How many more objects can be noted.
    pub(super) fn room(&self) -> usize {
        MAX_FINDINGS - self.found.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Whether an object was noted as missing.
    pub(super) fn is_missing(&self, key: &str) -> bool {
        self.found.contains_key(&(key.to_owned(), Trouble::Missing))
    }

    /// Returns the parts of an object that cannot be used.
    pub(super) fn of<'a>(&'a mut self, key: &str) -> impl Iterator<Item = &'a mut Suspect> + 'a {
        let (first, last) = ((key.to_owned(), Trouble::Missing), (key.to_owned(), Trouble::LostEarlier));
        self.found.range_mut(first..=last).map(|(_, suspect)| suspect)
    }

    /// Returns one trouble with an object.
    pub(super) fn of_trouble(&mut self, key: &str, trouble: Trouble) -> Option<&mut Suspect> {
        self.found.get_mut(&(key.to_owned(), trouble))
    }

    /// Cuts the ranges that are known already to the parts that `uncovered` returns for each.
    pub(super) fn uncover(&mut self, uncovered: impl Fn(&Range<u64>) -> Vec<Range<u64>>) {
        for suspect in self.found.values_mut() {
            if let Part::Volume(ranges) = &mut suspect.part {
                *ranges = ranges.iter().flat_map(&uncovered).collect();
            }
        }
    }

    /// Forgets the ranges that were found so far.
    pub(super) fn clear_ranges(&mut self) {
        self.found.values_mut().for_each(|suspect| suspect.ranges = Ranges::default());
    }

    /// Returns the keys of all objects.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> + '_ {
        self.found.keys().map(|(key, _)| key.as_str())
    }

    /// Returns the findings, with their ranges within a volume of this size, and the number of others.
    pub(super) fn finish(self, size_bytes: Option<u64>) -> (Vec<Finding>, u64) {
        let size_bytes = size_bytes.unwrap_or(0);
        let within = |range: Range<u64>| range.start.min(size_bytes)..range.end.min(size_bytes);
        let findings = self.found.into_iter().map(|((key, trouble), suspect)| {
            let Suspect { object, why, part, ranges: found } = suspect;
            let mut ranges = Ranges::default();
            match &part {
                Part::Opening => ranges.add(0..size_bytes),
                Part::Older(all) | Part::Volume(all) => {
                    all.iter().for_each(|range| ranges.add(within(range.clone())));
                }
                Part::Whole | Part::Bytes(_) | Part::Unread => {
                    ranges = found;
                }
            }
            let effect = match part {
                Part::Opening => Effect::NotOpened,
                Part::Older(_) => Effect::Older,
                _ if ranges.is_empty() => Effect::Nothing,
                _ => Effect::Eio,
            };
            Finding { key, object, trouble, why, effect, ranges }
        });
        (findings.collect(), self.omitted)
    }
}

impl Suspect {
    /// Adds another part of the same object.
    fn widen(&mut self, part: Part) {
        match (&mut self.part, part) {
            (Part::Bytes(bytes), Part::Bytes(more)) => {
                bytes.extend(more);
                bytes.sort_by_key(|range| range.start);
            }
            (Part::Volume(ranges), Part::Volume(more)) | (Part::Older(ranges), Part::Older(more)) => {
                ranges.extend(more);
            }
            (Part::Opening | Part::Whole, _) | (_, Part::Unread) => {}
            (this, part) => *this = part,
        }
    }

    /// Whether a range of bytes of the object cannot be used.
    pub(super) fn has(&self, bytes: &Range<u64>) -> bool {
        match &self.part {
            Part::Whole => true,
            Part::Bytes(bad) => bad.iter().any(|bad| bad.start < bytes.end && bytes.start < bad.end),
            _ => false,
        }
    }
}
