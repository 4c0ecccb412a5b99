//! Detects sequential streams among reads and decides what to fetch ahead of them.
//!
//! Pure: does no I/O and must not know how data is fetched. Invariant: within one stream, no byte is
//! requested twice, and a requested range lies within the volume.

use std::ops::Range;

/// Limit on the streams that are tracked at once.
const STREAMS: usize = 8;
/// Bytes that must be read in sequence before anything is read ahead.
const LEAST_RUN: u64 = 128 * 1024;
/// How far, in bytes, a read may start from the expected offset and still belong to the stream. Requests of
/// one stream overtake each other.
const SLACK: u64 = 2 * 1024 * 1024;

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// Offset at which the next read is expected.
    next: u64,
    /// End of what has been requested ahead.
    ahead: u64,
    /// Bytes that were read in sequence so far.
    run: u64,
    /// Logical time of the last read; 0 if this slot is unused.
    used: u64,
}

/// The sequential streams of one volume.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    streams: [Stream; STREAMS],
    /// Logical time: the number of reads so far.
    clock: u64,
}

impl ReadAhead {
    /// Records a read on a volume of `size` bytes. Returns the range to fetch ahead of it, if any, so that at
    /// most `most` bytes are read ahead of the stream. With 0, nothing is read ahead.
    pub(crate) fn note(&mut self, read: Range<u64>, size: u64, most: u64) -> Option<Range<u64>> {
        if most == 0 {
            return None;
        }
        self.clock += 1;
        let near = |stream: &Stream| stream.used > 0 && read.start.abs_diff(stream.next) <= SLACK.min(most);
        let exact = self.streams.iter().position(|stream| stream.used > 0 && stream.next == read.start);
        let Some(place) = exact.or_else(|| self.streams.iter().position(near)) else {
            let oldest = self.streams.iter_mut().min_by_key(|stream| stream.used).expect("there are eight");
            *oldest =
                Stream { next: read.end, ahead: read.end, run: read.end - read.start, used: self.clock };
            return None;
        };
        let stream = &mut self.streams[place];
        stream.used = self.clock;
        if read.end <= stream.next {
            return None;
        }
        stream.run += read.end - read.start.max(stream.next);
        stream.next = read.end;
        if stream.run < LEAST_RUN {
            return None;
        }
        // The longer a stream has lasted, the farther ahead of it to read.
        let window = (2 * stream.run).min(most);
        let until = (read.end + window).min(size);
        let from = stream.ahead.max(read.end);
        // At least half a window is requested at a time, so that each GET is large enough to
        // be worth its cost.
        if until < from + window / 2 {
            return None;
        }
        stream.ahead = until;
        Some(from..until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;

    #[test]
    fn a_stream_is_read_ahead_of_once_and_within_the_bound() {
        let mut ahead = ReadAhead::default();
        let mut until = 0;
        for n in 0..100_u64 {
            let read = n * 65_536..(n + 1) * 65_536;
            if let Some(range) = ahead.note(read.clone(), SIZE, 1 << 20) {
                assert!(range.start >= until && range.start >= read.end, "given once, and ahead");
                assert!(range.end - read.end <= 1 << 20, "within the bound");
                until = range.end;
            }
        }
        assert!(until >= 100 * 65_536, "the stream stays ahead of its reader");
    }

    #[test]
    fn random_reads_cause_none() {
        let mut ahead = ReadAhead::default();
        for n in 0..1000_u64 {
            let start = n * 7919 % 100 * (8 << 20);
            assert_eq!(ahead.note(start..start + 4096, SIZE, 1 << 20), None);
        }
    }

    #[test]
    fn nothing_lies_beyond_the_volume() {
        let mut ahead = ReadAhead::default();
        for n in 0..16_u64 {
            if let Some(range) = ahead.note(n * 65_536..(n + 1) * 65_536, 1 << 20, 1 << 20) {
                assert!(range.end <= 1 << 20);
            }
        }
    }
}
