//! Copies a disk: `cairn nbd copy`, and the copying half of `cairn nbd mirror`.
//!
//! Owns the plan of a copy, and must not know whether a disk is a file or an export. Ranges that are known to
//! be zero are not read, and not written where the target is zero already. Invariant: when a range is
//! reported as copied, it reads the same on both disks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{Stream, TryStreamExt as _, stream};
use indicatif::{ProgressBar, ProgressStyle};

use super::args::Copy;
use super::disk::Disk;
use super::host::say;
use super::remote::Connecting;
use crate::cli::error::{Error, NbdError};
use crate::effect::{Durability, ZeroSpeed, Zeroing};
use crate::protocol::{Error as CommandError, TransmissionFlags};
use crate::server::{Export, ExportDescription, ExportError, Segment};

/// Maximum number of bytes in one read and one write.
const PIECE_BYTES: u64 = 1 << 20;
/// Number of pieces that are copied concurrently.
const PIECES_IN_FLIGHT: usize = 16;
/// Zeros within data are written as zeros in units of this size, aligned to it.
const ZERO_BYTES: usize = 64 << 10;
/// Maximum number of bytes in one query of the allocation.
const STATUS_BYTES: u64 = 1 << 32;
/// Maximum number of extents in the result of one query.
const STATUS_EXTENTS: usize = 4096;

/// Executes `cairn nbd copy`.
pub(super) async fn run(args: Copy) -> Result<(), Error> {
    let how = Connecting { options: args.waiting.options(), connections: args.connections };
    let source = Disk::open(&args.source, &how, true).await?;
    let size = source.export().description().size_bytes;
    let copied = copy_to_target(&args, &source, &how).await;
    // Even after a failure, a client must end its session with DISC.
    source.close().await;
    say(&format!("copied {size} bytes, {} of them data", copied?));
    Ok(())
}

/// Copies, and returns how many bytes were data.
async fn copy_to_target(args: &Copy, source: &Disk, how: &Connecting) -> Result<u64, NbdError> {
    let target = source.create_target(&args.target, how).await?;
    let size = source.export().description().size_bytes;
    let bar = if args.quiet { ProgressBar::hidden() } else { progress_bar(size) };
    let copied = copy(args, source.export(), target.export(), &bar).await;
    bar.finish_and_clear();
    target.close().await;
    copied
}

async fn copy(
    args: &Copy,
    source: Arc<dyn Export>,
    target: Arc<dyn Export>,
    bar: &ProgressBar,
) -> Result<u64, NbdError> {
    let told = target.description();
    let (size, room) = (source.description().size_bytes, told.size_bytes);
    if room < size {
        let (source, target) = (&args.source, &args.target);
        return Err(NbdError::Misfit(format!(
            "{target} has {room} bytes, fewer than the {size} bytes of {source}"
        )));
    }
    if told.flags.contains(TransmissionFlags::READ_ONLY) {
        return Err(NbdError::Misfit(format!("{} is read-only", args.target)));
    }
    let copier = Copier::new(source, target);
    let copier = &copier;
    let copied = copier
        .plan(0, size)
        .try_for_each_concurrent(PIECES_IN_FLIGHT, |piece| async move {
            copier.copy(piece).await?;
            bar.inc(piece.length);
            Ok(())
        })
        .await;
    let named = |failure: Failure| match failure {
        Failure::Source(source) => NbdError::Disk { disk: args.source.to_string(), source },
        Failure::Target(source) => NbdError::Disk { disk: args.target.to_string(), source },
    };
    copied.map_err(named)?;
    copier.finish().await.map_err(named)?;
    Ok(copier.data_bytes())
}

fn progress_bar(size: u64) -> ProgressBar {
    let style = "{percent:>3} % [{wide_bar}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(style).expect("the template is right");
    ProgressBar::new(size).with_style(style)
}

/// Which of the two disks failed.
#[derive(Debug)]
pub(super) enum Failure {
    Source(ExportError),
    Target(ExportError),
}

/// A range that is copied at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) length: u64,
    /// Whether the range is known to read as zeros.
    zero: bool,
}

/// Copies from one disk to another.
pub(super) struct Copier {
    source: Arc<dyn Export>,
    target: Arc<dyn Export>,
    target_told: ExportDescription,
    piece_bytes: u64,
    data_bytes: AtomicU64,
}

impl Copier {
    pub(super) fn new(source: Arc<dyn Export>, target: Arc<dyn Export>) -> Self {
        let (source_told, target_told) = (source.description(), target.description());
        let maximum = source_told.maximum_block_bytes.min(target_told.maximum_block_bytes);
        // Block sizes are powers of two, so this is a multiple of both minima.
        let minimum = source_told.minimum_block_bytes.max(target_told.minimum_block_bytes).max(1);
        let piece_bytes = PIECE_BYTES.min(u64::from(maximum - maximum % minimum)).max(u64::from(minimum));
        Self { source, target, target_told, piece_bytes, data_bytes: AtomicU64::new(0) }
    }

    /// Returns how many bytes were written as data.
    pub(super) fn data_bytes(&self) -> u64 {
        self.data_bytes.load(Ordering::Relaxed)
    }

    /// Returns the pieces of a range, in order. Data is split into small pieces; zeros form large ones.
    pub(super) fn plan(&self, offset: u64, end: u64) -> impl Stream<Item = Result<Piece, Failure>> + '_ {
        stream::try_unfold(offset, move |at| async move {
            if at >= end {
                return Ok::<_, Failure>(None);
            }
            let (pieces, next) = self.ask(at, end).await?;
            Ok(Some((stream::iter(pieces.into_iter().map(Ok)), next)))
        })
        .try_flatten()
    }

    /// Queries the allocation once. Returns the pieces, and the offset up to which they reach.
    async fn ask(&self, offset: u64, end: u64) -> Result<(Vec<Piece>, u64), Failure> {
        let asked = (end - offset).min(STATUS_BYTES);
        let extents =
            self.source.block_status(offset, asked, STATUS_EXTENTS).await.map_err(Failure::Source)?;
        let mut pieces = Vec::new();
        let mut at = offset;
        for extent in extents {
            let until = at + extent.length_bytes.min(end - at);
            let longest = if extent.zero { STATUS_BYTES } else { self.piece_bytes };
            while at < until {
                // Pieces end at multiples of their maximum length, wherever the extent begins.
                let length = (longest - at % longest).min(until - at);
                pieces.push(Piece { offset: at, length, zero: extent.zero });
                at += length;
            }
        }
        if at == offset {
            let error = ExportError::new(CommandError::Io, "the server does not report allocation");
            return Err(Failure::Source(error));
        }
        Ok((pieces, at))
    }

    /// Copies the current content of a range.
    pub(super) async fn copy_as_it_is(&self, offset: u64, length: u64) -> Result<(), Failure> {
        self.plan(offset, offset + length).try_for_each(|piece| self.copy(piece)).await
    }

    /// Copies one piece.
    pub(super) async fn copy(&self, piece: Piece) -> Result<(), Failure> {
        let Piece { offset, length, zero } = piece;
        if zero {
            return self.zero(offset, length).await.map_err(Failure::Target);
        }
        let asked = u32::try_from(length).expect("a piece of data is at most a MiB");
        let segments = self.source.read(offset, asked).await.map_err(Failure::Source)?;
        let mut at = offset;
        for segment in segments {
            let length = segment.length_bytes();
            match segment {
                Segment::Zero(_) => self.zero(at, length).await,
                Segment::Data(data) => self.write(at, data).await,
            }
            .map_err(Failure::Target)?;
            at += length;
        }
        Ok(())
    }

    /// Writes data. Runs of zeros are written as zeros.
    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        for (start, run, zero) in runs(offset, &data) {
            let at = offset + u64::try_from(start).expect("a usize fits 64 bits");
            let length = u64::try_from(run).expect("a usize fits 64 bits");
            if zero {
                self.zero(at, length).await?;
            } else {
                self.data_bytes.fetch_add(length, Ordering::Relaxed);
                self.target.write(at, data.slice(start..start + run), Durability::Volatile).await?;
            }
        }
        Ok(())
    }

    /// Makes a range of the target read as zeros, as cheaply as possible.
    async fn zero(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        if self.is_zero(offset, length).await? {
            return Ok(());
        }
        if self.target_told.flags.contains(TransmissionFlags::SEND_WRITE_ZEROES) {
            let (zeroing, speed) = (Zeroing::Deallocate, ZeroSpeed::Any);
            return self.target.write_zeroes(offset, length, zeroing, speed, Durability::Volatile).await;
        }
        let zeros = Bytes::from(vec![0; usize::try_from(self.piece_bytes).expect("a piece fits memory")]);
        let mut at = offset;
        while at < offset + length {
            let piece = self.piece_bytes.min(offset + length - at);
            let data = zeros.slice(..usize::try_from(piece).expect("a piece fits memory"));
            self.target.write(at, data, Durability::Volatile).await?;
            at += piece;
        }
        Ok(())
    }

    async fn is_zero(&self, offset: u64, length: u64) -> Result<bool, ExportError> {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let extents = self.target.block_status(at, end - at, STATUS_EXTENTS).await?;
            if extents.is_empty() || extents.iter().any(|extent| !extent.zero || extent.length_bytes == 0) {
                return Ok(false);
            }
            at += extents.iter().map(|extent| extent.length_bytes).sum::<u64>();
        }
        Ok(true)
    }

    /// Makes the copied data durable.
    pub(super) async fn finish(&self) -> Result<(), Failure> {
        if self.target_told.flags.contains(TransmissionFlags::SEND_FLUSH) {
            self.target.flush().await.map_err(Failure::Target)?;
        }
        Ok(())
    }
}

/// Divides data into runs of zeros and runs of other bytes. Each run has a start, a length, and whether it is
/// zero.
fn runs(offset: u64, data: &[u8]) -> Vec<(usize, usize, bool)> {
    let unit = u64::try_from(ZERO_BYTES).expect("a usize fits 64 bits");
    let mut runs: Vec<(usize, usize, bool)> = Vec::new();
    let mut at = 0;
    // The first unit ends at a multiple of its size on the disk.
    let mut length = usize::try_from(unit - offset % unit).expect("at most a unit");
    while at < data.len() {
        let length_here = length.min(data.len() - at);
        let zero = data[at..at + length_here].iter().all(|byte| *byte == 0);
        match runs.last_mut() {
            Some((_, run, before)) if *before == zero => *run += length_here,
            _ => runs.push((at, length_here, zero)),
        }
        at += length_here;
        length = ZERO_BYTES;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_among_data_are_found_in_whole_units() {
        let mut data = vec![0; 4 * ZERO_BYTES];
        assert_eq!(runs(0, &data), [(0, 4 * ZERO_BYTES, true)]);
        data[2 * ZERO_BYTES] = 1;
        let expected = [
            (0, 2 * ZERO_BYTES, true),
            (2 * ZERO_BYTES, ZERO_BYTES, false),
            (3 * ZERO_BYTES, ZERO_BYTES, true),
        ];
        assert_eq!(runs(0, &data), expected);
        // Units are aligned to the disk, not to the piece.
        let at = 1000;
        let first = ZERO_BYTES - 1000;
        let expected = [
            (0, first + ZERO_BYTES, true),
            (first + ZERO_BYTES, ZERO_BYTES, false),
            (first + 2 * ZERO_BYTES, ZERO_BYTES + 1000, true),
        ];
        assert_eq!(runs(at, &data), expected);
        assert_eq!(runs(7, &[]), []);
    }
}
