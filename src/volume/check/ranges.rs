//! Ranges of bytes of a volume, merged.
//!
//! Must not know why a range is in the set. Invariants: the ranges are sorted and do not touch each other,
//! and there are at most [`MAX_RANGES`] of them, so that a set has a bound however much is lost.

use std::collections::BTreeMap;
use std::ops::Range;

/// Limit on the ranges of one set. Of further ranges only the number of bytes is kept.
pub const MAX_RANGES: usize = 4096;

/// A set of bytes, as ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// The end of each range, by its start.
    ends: BTreeMap<u64, u64>,
    bytes: u64,
    omitted_bytes: u64,
}

impl Ranges {
    /// Adds a range. It is merged with the ranges that it overlaps or touches.
    pub fn add(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        if let Some((&before, &its_end)) = self.ends.range(..start).next_back()
            && its_end >= start
        {
            self.remove(before..its_end);
            (start, end) = (before, end.max(its_end));
        }
        while let Some((&next, &its_end)) = self.ends.range(start..=end).next() {
            self.remove(next..its_end);
            end = end.max(its_end);
        }
        if self.ends.len() >= MAX_RANGES {
            self.omitted_bytes = self.omitted_bytes.saturating_add(end - start);
            return;
        }
        self.ends.insert(start, end);
        self.bytes += end - start;
    }

    fn remove(&mut self, range: Range<u64>) {
        self.ends.remove(&range.start);
        self.bytes -= range.end - range.start;
    }

    /// Adds all ranges of another set.
    pub fn extend(&mut self, other: &Self) {
        other.iter().for_each(|range| self.add(range));
        self.omitted_bytes = self.omitted_bytes.saturating_add(other.omitted_bytes);
    }

    /// Returns the ranges in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ends.iter().map(|(&start, &end)| start..end)
    }

    /// Whether the set has no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns the number of bytes of all ranges.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the number of bytes of the ranges beyond [`MAX_RANGES`], which [`Ranges::iter`] leaves out.
    /// Some may be counted twice.
    #[must_use]
    pub fn omitted_bytes(&self) -> u64 {
        self.omitted_bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_set_of_bytes(added in prop::collection::vec((0_u64..60, 0_u64..12), 0..30)) {
            let mut ranges = Ranges::default();
            let mut set = [false; 80];
            for (start, length) in added {
                ranges.add(start..start + length);
                (start..start + length).for_each(|at| set[usize::try_from(at).unwrap()] = true);
            }
            let mut found = [false; 80];
            let mut last = None;
            for range in ranges.iter() {
                prop_assert!(last.is_none_or(|last| range.start > last), "ranges that touch are one");
                last = Some(range.end);
                range.for_each(|at| found[usize::try_from(at).unwrap()] = true);
            }
            prop_assert_eq!(found, set);
            let bytes = set.iter().filter(|is_in| **is_in).count();
            prop_assert_eq!(usize::try_from(ranges.bytes()).unwrap(), bytes);
        }
    }

    #[test]
    fn beyond_the_limit_only_the_bytes_are_counted() {
        let mut ranges = Ranges::default();
        (0..MAX_RANGES as u64 + 3).for_each(|n| ranges.add(n * 10..n * 10 + 4));
        assert_eq!(ranges.iter().count(), MAX_RANGES);
        assert_eq!((ranges.bytes(), ranges.omitted_bytes()), (4 * MAX_RANGES as u64, 12));
    }
}
