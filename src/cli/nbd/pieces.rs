//! The plan of a copy: a disk as pieces, read in order of offset.
//!
//! Owns how a disk is divided, and must not know where its content goes. Ranges that are known to be zero are
//! not read. Invariant: a piece begins and ends at a multiple of both disks' minimum block size, or ends with
//! the range that was asked for.

use std::sync::Arc;

use futures::{Stream, TryStreamExt as _, stream};

use crate::protocol::Error as CommandError;
use crate::server::{Allocation, Export, ExportDescription, ExportError, Segment};

/// Maximum number of bytes in one read and one write.
const PIECE_BYTES: u64 = 1 << 20;
/// Maximum number of bytes in one query of the allocation.
const STATUS_BYTES: u64 = 1 << 32;
/// Maximum number of extents in the result of one query.
pub(super) const STATUS_EXTENTS: usize = 4096;
/// Number of pieces that are read concurrently while they are passed on in order.
const PIECES_AHEAD: usize = 16;

/// A range that is copied at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Piece {
    pub(in crate::cli) offset: u64,
    pub(in crate::cli) length: u64,
    /// Whether the range is known to read as zeros.
    pub(super) zero: bool,
}

/// The content of a range.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Part {
    pub(in crate::cli) offset: u64,
    pub(in crate::cli) content: Content,
}

impl Part {
    /// Length of the range in bytes.
    pub(in crate::cli) fn length(&self) -> u64 {
        match &self.content {
            Content::Zeros(length) => *length,
            Content::Data(data) => u64::try_from(data.len()).expect("a usize fits 64 bits"),
        }
    }
}

/// What a range reads as.
#[derive(Clone, Debug)]
pub(in crate::cli) enum Content {
    /// This many zeros.
    Zeros(u64),
    Data(bytes::Bytes),
}

/// The block sizes that a copy keeps to, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Units {
    /// The unit of offsets and lengths.
    minimum: u64,
    /// Maximum length of a piece of data, a multiple of `minimum`.
    maximum: u64,
}

impl Units {
    /// The units for reading one disk.
    pub(in crate::cli) fn of(source: &ExportDescription) -> Self {
        Self::between(source, source)
    }

    /// The units for copying from one disk to another.
    pub(in crate::cli) fn between(source: &ExportDescription, target: &ExportDescription) -> Self {
        let maximum = source.maximum_block_bytes.min(target.maximum_block_bytes);
        // Block sizes are powers of two, so this is a multiple of both minima.
        let minimum = source.minimum_block_bytes.max(target.minimum_block_bytes).max(1);
        let maximum = PIECE_BYTES.min(u64::from(maximum - maximum % minimum)).max(u64::from(minimum));
        Self { minimum: u64::from(minimum), maximum }
    }

    /// Maximum length of a piece of data.
    pub(in crate::cli) fn maximum(self) -> u64 {
        self.maximum
    }

    /// Divides what was reported from `start` on, where `start` is aligned. Returns the pieces, and the
    /// offset up to which they reach. A block that is zero only in part is data. If `extents` end before the
    /// first block does, that block is data.
    fn divide(self, start: u64, end: u64, extents: &[Allocation]) -> (Vec<Piece>, u64) {
        let unit = self.minimum;
        let down = |offset: u64| if offset == end { end } else { offset - offset % unit };
        let up = |offset: u64| offset.next_multiple_of(unit).min(end);
        let (mut pieces, mut at, mut reported) = (Vec::new(), start, start);
        for extent in extents {
            let from = reported;
            reported += extent.length_bytes.min(end - from);
            let (first, last) = (up(from), down(reported));
            if extent.zero && first < last {
                self.split(at..first, false, &mut pieces);
                self.split(first..last, true, &mut pieces);
                at = last;
            }
        }
        let mut last = down(reported);
        if last == start && reported > start {
            last = up(start + 1);
        }
        if at < last {
            self.split(at..last, false, &mut pieces);
        }
        (pieces, last.max(at))
    }

    /// Adds a range as pieces that end at multiples of their maximum length, wherever the range begins.
    fn split(self, range: std::ops::Range<u64>, zero: bool, to: &mut Vec<Piece>) {
        let longest = if zero { STATUS_BYTES } else { self.maximum };
        let mut offset = range.start;
        while offset < range.end {
            let length = (longest - offset % longest).min(range.end - offset);
            to.push(Piece { offset, length, zero });
            offset += length;
        }
    }
}

/// A disk that is read.
pub(in crate::cli) struct Source {
    export: Arc<dyn Export>,
    units: Units,
}

impl Source {
    pub(in crate::cli) fn new(export: Arc<dyn Export>, units: Units) -> Self {
        Self { export, units }
    }

    /// Returns the pieces of a range, in order. Data is split into small pieces; zeros form large ones.
    pub(in crate::cli) fn plan(
        &self,
        offset: u64,
        end: u64,
    ) -> impl Stream<Item = Result<Piece, ExportError>> + Send + '_ {
        stream::try_unfold(offset, move |at| async move {
            if at >= end {
                return Ok::<_, ExportError>(None);
            }
            let (pieces, next) = self.ask(at, end).await?;
            Ok(Some((stream::iter(pieces.into_iter().map(Ok)), next)))
        })
        .try_flatten()
    }

    /// Queries the allocation once. Returns the pieces, and the offset up to which they reach.
    async fn ask(&self, offset: u64, end: u64) -> Result<(Vec<Piece>, u64), ExportError> {
        let asked = (end - offset).min(STATUS_BYTES);
        let extents = self.export.block_status(offset, asked, STATUS_EXTENTS).await?;
        let (pieces, next) = self.units.divide(offset, end, &extents);
        if next == offset {
            return Err(ExportError::new(CommandError::Io, "the server does not report allocation"));
        }
        Ok((pieces, next))
    }

    /// Reads a piece.
    pub(in crate::cli) async fn read(&self, piece: Piece) -> Result<Vec<Part>, ExportError> {
        let Piece { offset, length, zero } = piece;
        if zero {
            return Ok(vec![Part { offset, content: Content::Zeros(length) }]);
        }
        let asked = u32::try_from(length).expect("a piece of data is at most a MiB");
        let mut at = offset;
        let part = |segment: Segment| {
            let offset = at;
            at += segment.length_bytes();
            let content = match segment {
                Segment::Zero(length) => Content::Zeros(u64::from(length)),
                Segment::Data(data) => Content::Data(data),
            };
            Part { offset, content }
        };
        Ok(self.export.read(offset, asked).await?.into_iter().map(part).collect())
    }

    /// Reads a range. Many requests are in flight, and the parts come in order.
    pub(in crate::cli) fn read_in_order(
        &self,
        offset: u64,
        end: u64,
    ) -> impl Stream<Item = Result<Part, ExportError>> + Send + '_ {
        self.plan(offset, end)
            .map_ok(|piece| self.read(piece))
            .try_buffered(PIECES_AHEAD)
            .map_ok(|parts| stream::iter(parts.into_iter().map(Ok)))
            .try_flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divided(minimum: u64, start: u64, end: u64, extents: &[(u64, bool)]) -> (Vec<(u64, u64, bool)>, u64) {
        let allocation = |(length_bytes, zero): &(u64, bool)| Allocation {
            length_bytes: *length_bytes,
            hole: *zero,
            zero: *zero,
        };
        let extents: Vec<Allocation> = extents.iter().map(allocation).collect();
        let (pieces, next) = Units { minimum, maximum: 16_384 }.divide(start, end, &extents);
        (pieces.iter().map(|piece| (piece.offset, piece.length, piece.zero)).collect(), next)
    }

    #[test]
    fn pieces_follow_the_extents_if_every_byte_is_a_block() {
        let (pieces, next) = divided(1, 0, 50_000, &[(100, true), (20_000, false), (29_900, true)]);
        let expected = [(0, 100, true), (100, 16_284, false), (16_384, 3716, false), (20_100, 29_900, true)];
        assert_eq!((&pieces[..], next), (&expected[..], 50_000));
    }

    #[test]
    fn a_block_that_is_zero_in_part_is_data() {
        let (pieces, next) = divided(4096, 0, 40_960, &[(5000, true), (100, false), (35_860, true)]);
        let expected = [(0, 4096, true), (4096, 4096, false), (8192, 32_768, true)];
        assert_eq!((&pieces[..], next), (&expected[..], 40_960));
        // What is reported ends within a block, which is asked for again.
        assert_eq!(divided(4096, 8192, 40_960, &[(5000, true)]), (vec![(8192, 4096, true)], 12_288));
        assert_eq!(divided(4096, 8192, 40_960, &[(5000, false)]), (vec![(8192, 4096, false)], 12_288));
        assert_eq!(divided(4096, 8192, 40_960, &[(10, true)]), (vec![(8192, 4096, false)], 12_288));
        assert_eq!(divided(4096, 8192, 40_960, &[]), (vec![], 8192));
    }

    #[test]
    fn the_last_piece_ends_where_the_disk_ends() {
        assert_eq!(divided(512, 0, 1000, &[(1000, false)]), (vec![(0, 1000, false)], 1000));
        assert_eq!(divided(512, 512, 1000, &[(488, true)]), (vec![(512, 488, true)], 1000));
        assert_eq!(
            divided(512, 0, 1000, &[(600, false), (900, true)]),
            (vec![(0, 1000, false)], 1000),
            "no whole block is zero"
        );
    }
}
