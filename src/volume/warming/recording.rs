//! What clients read first, noted in memory.
//!
//! Pure: does no I/O, and must not know what becomes of the list. Invariants: each block is listed once, at
//! its first read. A recording has at most [`MAX_RANGES`] ranges and as many blocks as it was given a limit.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::volume::format::first_reads::{FirstReads, MAX_RANGES};
use crate::volume::format::geometry::BlockIndex;
use crate::volume::format::interval::gaps;
use crate::volume::read::Segment;

/// The reads of an opening, until the recording ends.
#[derive(Debug)]
pub(super) struct Recorder {
    /// Whether reads are noted, so that later ones need no lock.
    is_on: AtomicBool,
    recording: Mutex<Recording>,
}

/// The blocks that were read so far.
#[derive(Debug, Default)]
struct Recording {
    /// In the order of their first read.
    ranges: Vec<Range<u64>>,
    /// The same blocks, as the end of each range by its start. Neighbours are joined.
    covered: BTreeMap<u64, u64>,
    /// Number of further blocks that may be noted.
    left_blocks: u64,
    /// Number of blocks.
    blocks: u64,
}

impl Recorder {
    /// Notes at most `most_blocks` blocks, and none if that is 0.
    pub(super) fn new(most_blocks: u64) -> Self {
        let recording = Recording { left_blocks: most_blocks, ..Recording::default() };
        Self { is_on: AtomicBool::new(most_blocks > 0), recording: Mutex::new(recording) }
    }

    /// Notes a read that began at `offset` and returned these segments. Zeros need no data, so they are left
    /// out.
    pub(super) fn note(&self, offset: u64, segments: &[Segment]) {
        if !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        let mut recording = self.recording.lock();
        let mut at = offset;
        for segment in segments {
            match segment {
                Segment::Zero(length) => at += length,
                Segment::Data(data) => {
                    let end = at + data.len() as u64;
                    let blocks = BlockIndex::touched_by(&(at..end));
                    recording.add(blocks.start.0..blocks.end.0);
                    at = end;
                }
            }
        }
    }

    /// Ends the recording. Returns it if it has at least `least_blocks` blocks, and only once.
    pub(super) fn take(&self, least_blocks: u64) -> Option<FirstReads> {
        self.is_on.store(false, Ordering::Relaxed);
        // A read that has seen the flag before may still be noted: in a recording that has no room.
        let Recording { ranges, blocks, .. } = std::mem::take(&mut *self.recording.lock());
        if blocks < least_blocks.max(1) {
            return None;
        }
        let ranges = ranges.into_iter().map(|range| BlockIndex(range.start)..BlockIndex(range.end));
        Some(FirstReads { ranges: ranges.collect() })
    }
}

impl Recording {
    fn add(&mut self, blocks: Range<u64>) {
        if blocks.is_empty() {
            return;
        }
        let range = |(start, end): (&u64, &u64)| *start..*end;
        let before = self.covered.range(..=blocks.start).next_back().map(range);
        let within = self.covered.range(blocks.start + 1..blocks.end).map(range);
        for part in gaps(blocks.clone(), before.into_iter().chain(within)) {
            let part = part.start..part.end.min(part.start.saturating_add(self.left_blocks));
            if part.is_empty() {
                return;
            }
            let is_full = self.ranges.len() == MAX_RANGES;
            match self.ranges.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ if is_full => return,
                _ => self.ranges.push(part.clone()),
            }
            self.blocks += part.end - part.start;
            self.left_blocks -= part.end - part.start;
            self.cover(part);
        }
    }

    /// Adds a range that is not covered, and joins it with its neighbours.
    fn cover(&mut self, part: Range<u64>) {
        let before = self.covered.range(..part.start).next_back();
        let start = match before {
            Some((start, end)) if *end == part.start => *start,
            _ => part.start,
        };
        let end = self.covered.remove(&part.end).unwrap_or(part.end);
        self.covered.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::volume::format::geometry::BLOCK_BYTES;

    fn data(blocks: u64) -> Segment {
        Segment::Data(Bytes::from(vec![7; usize::try_from(blocks * BLOCK_BYTES).unwrap()]))
    }

    fn taken(recorder: &Recorder) -> Vec<(u64, u64)> {
        let ranges = recorder.take(0).map_or_else(Vec::new, |list| list.ranges);
        ranges.into_iter().map(|range| (range.start.0, range.end.0)).collect()
    }

    #[test]
    fn blocks_are_noted_once_in_the_order_of_their_first_read_and_zeros_are_not() {
        let recorder = Recorder::new(1000);
        recorder.note(10 * BLOCK_BYTES, &[data(2), Segment::Zero(3 * BLOCK_BYTES), data(1)]);
        recorder.note(0, &[data(1)]);
        // Successive reads are one range, also if they overlap.
        recorder.note(BLOCK_BYTES, &[data(3)]);
        recorder.note(3 * BLOCK_BYTES, &[data(8)]);
        // A part of a block counts as the block.
        recorder.note(100 * BLOCK_BYTES + 512, &[Segment::Data(Bytes::from_static(b"sector"))]);
        recorder.note(0, &[Segment::Zero(1 << 30)]);
        assert_eq!(taken(&recorder), [(10, 12), (15, 16), (0, 10), (100, 101)]);
        recorder.note(0, &[data(1)]);
        assert_eq!(taken(&recorder), [], "the recording has ended");
    }

    #[test]
    fn a_recording_is_bounded_in_blocks_and_in_ranges() {
        let recorder = Recorder::new(5);
        recorder.note(0, &[data(3)]);
        recorder.note(8 * BLOCK_BYTES, &[data(9)]);
        recorder.note(0, &[data(4)]);
        assert_eq!(taken(&recorder), [(0, 3), (8, 10)]);
        let recorder = Recorder::new(1 << 30);
        let one = data(1);
        for n in 0..MAX_RANGES as u64 + 9 {
            recorder.note(2 * n * BLOCK_BYTES, std::slice::from_ref(&one));
        }
        assert!(recorder.recording.lock().covered.len() <= MAX_RANGES);
        assert_eq!(taken(&recorder).len(), MAX_RANGES);
        assert_eq!(taken(&Recorder::new(0)), []);
    }

    #[test]
    fn too_little_is_no_record() {
        for (least, is_kept) in [(0, true), (2, true), (3, false)] {
            let recorder = Recorder::new(100);
            recorder.note(0, &[data(2)]);
            assert_eq!(recorder.take(least).is_some(), is_kept, "{least}");
        }
        assert!(Recorder::new(100).take(0).is_none(), "nothing was read");
    }

    proptest! {
        #[test]
        fn each_block_that_was_read_is_in_one_range(reads in vec((0_u64..200, 1_u64..20), 1..100)) {
            let recorder = Recorder::new(1 << 20);
            let mut expected: Vec<u64> = Vec::new();
            for (first, count) in &reads {
                recorder.recording.lock().add(*first..first + count);
                let new = (*first..first + count).filter(|block| !expected.contains(block));
                let new: Vec<u64> = new.collect();
                expected.extend(new);
            }
            let covered = recorder.recording.lock().covered.clone();
            let ranges = taken(&recorder);
            let noted: Vec<u64> = ranges.iter().flat_map(|(start, end)| *start..*end).collect();
            prop_assert_eq!(&noted, &expected);
            prop_assert!(covered.len() <= ranges.len());
            let held: u64 = covered.iter().map(|(start, end)| end - start).sum();
            prop_assert_eq!(held, noted.len() as u64);
        }
    }
}
