//! Copies a disk: `cairn nbd copy`, and the copying half of `cairn nbd mirror`.
//!
//! Owns the course of a copy, and must not know whether a disk is a file or an export. Invariant: when a
//! range is reported as copied, it reads the same on both disks.

use std::sync::Arc;

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use indicatif::ProgressBar;

use super::args::Copy;
use super::disk::Disk;
use super::host::say;
use super::pieces::{Piece, Source, Units};
use super::remote::Connecting;
use super::target::Target;
use crate::cli::error::{Error, NbdError};
use crate::cli::progress;
use crate::protocol::TransmissionFlags;
use crate::server::{Export, ExportDescription, ExportError};

/// Number of pieces that are copied concurrently.
const PIECES_IN_FLIGHT: usize = 16;

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
    let bar = if args.quiet { ProgressBar::hidden() } else { progress::bar(size) };
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
    let size = source.description().size_bytes;
    check_source(&args.source.to_string(), &source.description())?;
    check_target(&args.source.to_string(), size, &args.target.to_string(), &target.description())?;
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

/// Checks that every byte of a disk can be read.
pub(in crate::cli) fn check_source(source: &str, told: &ExportDescription) -> Result<(), NbdError> {
    let (size, unit) = (told.size_bytes, u64::from(told.minimum_block_bytes.max(1)));
    match size % unit {
        0 => Ok(()),
        rest => Err(NbdError::Misfit(format!(
            "the last {rest} bytes of {source} cannot be read: its server only reads blocks of {unit} bytes"
        ))),
    }
}

/// Checks that `size` bytes of the source can be written to the target.
pub(in crate::cli) fn check_target(
    source: &str,
    size: u64,
    target: &str,
    told: &ExportDescription,
) -> Result<(), NbdError> {
    let (room, unit) = (told.size_bytes, u64::from(told.minimum_block_bytes.max(1)));
    if room < size {
        return Err(NbdError::Misfit(format!(
            "{target} has {room} bytes, fewer than the {size} bytes of {source}"
        )));
    }
    if told.flags.contains(TransmissionFlags::READ_ONLY) {
        return Err(NbdError::Misfit(format!("{target} is read-only")));
    }
    if size.next_multiple_of(unit) > room {
        return Err(NbdError::Misfit(format!(
            "the last {} bytes of {target} cannot be written: its server only writes blocks of {unit} bytes",
            size % unit
        )));
    }
    Ok(())
}

/// Which of the two disks failed.
#[derive(Debug)]
pub(super) enum Failure {
    Source(ExportError),
    Target(ExportError),
}

/// Copies from one disk to another.
pub(super) struct Copier {
    source: Source,
    target: Target,
}

impl Copier {
    pub(super) fn new(source: Arc<dyn Export>, target: Arc<dyn Export>) -> Self {
        let units = Units::between(&source.description(), &target.description());
        Self { source: Source::new(source, units), target: Target::new(target, units.maximum()) }
    }

    /// Returns how many bytes were written as data.
    pub(super) fn data_bytes(&self) -> u64 {
        self.target.data_bytes()
    }

    /// Returns the pieces of a range, in order. Data is split into small pieces; zeros form large ones.
    pub(super) fn plan(&self, offset: u64, end: u64) -> impl Stream<Item = Result<Piece, Failure>> + '_ {
        self.source.plan(offset, end).map(|piece| piece.map_err(Failure::Source))
    }

    /// Copies the current content of a range.
    pub(super) async fn copy_as_it_is(&self, offset: u64, length: u64) -> Result<(), Failure> {
        self.plan(offset, offset + length).try_for_each(|piece| self.copy(piece)).await
    }

    /// Copies one piece.
    pub(super) async fn copy(&self, piece: Piece) -> Result<(), Failure> {
        for part in self.source.read(piece).await.map_err(Failure::Source)? {
            self.target.put(part).await.map_err(Failure::Target)?;
        }
        Ok(())
    }

    /// Makes the copied data durable.
    pub(super) async fn finish(&self) -> Result<(), Failure> {
        self.target.finish().await.map_err(Failure::Target)
    }
}
