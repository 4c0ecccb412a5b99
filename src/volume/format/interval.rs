//! A map from disjoint ranges of bytes to values. Inserting a range replaces what it overlaps.
//!
//! Must not know what the values mean, except how to cut one ([`Value::advanced`]). Invariant: ranges are not
//! empty and do not overlap.

use std::collections::BTreeMap;
use std::ops::Range;

/// A value of a range, which can be cut with its range.
pub trait Value: Clone {
    /// Returns the value for the part of the range that begins `by` bytes later.
    #[must_use]
    fn advanced(&self, by: u64) -> Self;
}

impl Value for bool {
    fn advanced(&self, _by: u64) -> Self {
        *self
    }
}

/// Disjoint ranges, each with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntervalMap<V> {
    /// The end and the value of each range, by its start.
    ranges: BTreeMap<u64, (u64, V)>,
}

impl<V> Default for IntervalMap<V> {
    fn default() -> Self {
        Self { ranges: BTreeMap::new() }
    }
}

impl<V: Value> IntervalMap<V> {
    /// Whether the map contains no ranges.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Returns the number of ranges.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Returns the range that contains `at`, and its value.
    #[must_use]
    pub fn at(&self, at: u64) -> Option<(Range<u64>, &V)> {
        let (&start, (end, value)) = self.ranges.range(..=at).next_back()?;
        (at < *end).then_some((start..*end, value))
    }

    /// Returns the start of the first range that begins at `at` or later.
    #[must_use]
    pub fn next_start(&self, at: u64) -> Option<u64> {
        self.ranges.range(at..).next().map(|(&start, _)| start)
    }

    /// Returns the end of the longest prefix of `range` in which at most `most` ranges begin. `most`
    /// must not be 0.
    #[must_use]
    pub fn reach(&self, range: Range<u64>, most: usize) -> u64 {
        self.ranges.range(range.clone()).nth(most).map_or(range.end, |(&start, _)| start)
    }

    /// Removes a range. Ranges that overlap it are cut.
    pub fn remove(&mut self, range: Range<u64>) {
        self.remove_and(range, &mut |_, _| ());
    }

    /// As [`IntervalMap::remove`]. Calls `removed` with each part that is removed, and the value of the range
    /// that it was a part of.
    fn remove_and(&mut self, range: Range<u64>, removed: &mut impl FnMut(Range<u64>, &V)) {
        if range.is_empty() {
            return;
        }
        if let Some((&start, (end, value))) = self.ranges.range_mut(..range.start).next_back()
            && *end > range.start
        {
            let old_end = std::mem::replace(end, range.start);
            removed(range.start..old_end.min(range.end), value);
            if old_end > range.end {
                let value = self.ranges[&start].1.advanced(range.end - start);
                self.ranges.insert(range.end, (old_end, value));
                return;
            }
        }
        while let Some((&start, &(end, _))) = self.ranges.range(range.clone()).next() {
            let (_, value) = self.ranges.remove(&start).expect("just found");
            removed(start..end.min(range.end), &value);
            if end > range.end {
                self.ranges.insert(range.end, (end, value.advanced(range.end - start)));
                return;
            }
        }
    }

    /// Maps a range to a value. Replaces whatever the range overlaps.
    pub fn insert(&mut self, range: Range<u64>, value: V) {
        self.insert_and(range, value, &mut |_, _| ());
    }

    /// As [`IntervalMap::insert`]. Calls `replaced` with each part that is replaced, and the value of the
    /// range that it was a part of.
    pub fn insert_and(&mut self, range: Range<u64>, value: V, replaced: &mut impl FnMut(Range<u64>, &V)) {
        if range.is_empty() {
            return;
        }
        // A block that is written repeatedly keeps its entry.
        if let Some((end, old)) = self.ranges.get_mut(&range.start)
            && *end == range.end
        {
            replaced(range, old);
            *old = value;
            return;
        }
        self.remove_and(range.clone(), replaced);
        self.ranges.insert(range.start, (range.end, value));
    }

    /// Returns the mapped parts of a range in order, each with the value for its first byte.
    pub fn overlaps(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, V)> + '_ {
        let first = self
            .ranges
            .range(..range.start)
            .next_back()
            .filter(|(_, (end, _))| *end > range.start)
            .map(|(start, _)| *start)
            .unwrap_or(range.start);
        let within = if range.is_empty() { first..first } else { first..range.end };
        self.ranges.range(within).map(move |(&start, (end, value))| {
            let from = start.max(range.start);
            let value = if from == start { value.clone() } else { value.advanced(from - start) };
            (from..(*end).min(range.end), value)
        })
    }

    /// Returns all ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Range<u64>, &V)> + '_ {
        self.ranges.iter().map(|(&start, (end, value))| (start..*end, value))
    }
}

/// Returns the parts of `range` that no range in `covered` covers. `covered` must be in order and disjoint.
pub fn gaps(range: Range<u64>, covered: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut gaps = Vec::new();
    let mut at = range.start;
    for part in covered {
        if part.start > at {
            gaps.push(at..part.start);
        }
        at = at.max(part.end);
    }
    if at < range.end {
        gaps.push(at..range.end);
    }
    gaps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A value that identifies each byte: (number of the insertion, offset within it).
    #[derive(Clone, Debug, PartialEq)]
    struct Mark(usize, u64);

    impl Value for Mark {
        fn advanced(&self, by: u64) -> Self {
            Self(self.0, self.1 + by)
        }
    }

    proptest! {
        #[test]
        fn behaves_as_an_array_of_bytes(
            steps in prop::collection::vec((0_u64..64, 0_u64..20, any::<bool>()), 1..40),
            asked in (0_u64..64, 0_u64..30),
        ) {
            let mut map = IntervalMap::default();
            let mut array: Vec<Option<Mark>> = vec![None; 128];
            let mut left = vec![0; 40];
            for (number, (start, length, remove)) in steps.into_iter().enumerate() {
                let mut replaced = |range: Range<u64>, mark: &Mark| left[mark.0] -= range.end - range.start;
                match remove {
                    true => map.remove_and(start..start + length, &mut replaced),
                    false => map.insert_and(start..start + length, Mark(number, 0), &mut replaced),
                }
                left[number] = if remove { 0 } else { length };
                for i in 0..length {
                    array[usize::try_from(start + i).unwrap()] = (!remove).then_some(Mark(number, i));
                }
            }
            let mut seen: Vec<Option<Mark>> = vec![None; 128];
            let mut last = 0;
            for (range, value) in map.overlaps(0..128) {
                prop_assert!(!range.is_empty() && range.start >= last);
                last = range.end;
                for i in 0..range.end - range.start {
                    seen[usize::try_from(range.start + i).unwrap()] = Some(value.advanced(i));
                }
            }
            prop_assert_eq!(&seen, &array);
            for (number, left) in (0..).zip(left) {
                let held = array.iter().flatten().filter(|mark| mark.0 == number).count();
                prop_assert_eq!(held as u64, left, "of insertion {}", number);
            }
            let (start, end) = (asked.0, asked.0 + asked.1);
            let mut part: Vec<Option<Mark>> = vec![None; 128];
            for (range, value) in map.overlaps(start..end) {
                for i in 0..range.end - range.start {
                    part[usize::try_from(range.start + i).unwrap()] = Some(value.advanced(i));
                }
            }
            for (i, mark) in part.iter().enumerate() {
                let within = (start..end).contains(&(i as u64));
                prop_assert_eq!(mark.as_ref(), if within { array[i].as_ref() } else { None });
            }
            let gaps = gaps(start..end, map.overlaps(start..end).map(|(range, _)| range));
            let unmapped: u64 = gaps.iter().map(|range| range.end - range.start).sum();
            let absent = (start..end).filter(|i| array[usize::try_from(*i).unwrap()].is_none()).count();
            prop_assert_eq!(usize::try_from(unmapped).unwrap(), absent);
        }
    }
}
