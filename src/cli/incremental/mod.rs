//! `cairn export --since`, `cairn import --onto` and `cairn backup`: a copy of a volume is brought up to date
//! by a stream of what has changed.
//!
//! Owns where the stream is kept, the digests of whole disks, and what is printed. It must not know how
//! contents are compared, or what a stream has. Invariant: a file appears under its name only if it has the
//! whole stream.

mod apply;
mod backup;
mod export;
mod first;
mod import;
mod plan;
mod stream;

use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt as _;
use indicatif::ProgressBar;

pub(super) use backup::backup;
pub(super) use export::export;
pub(super) use import::import;

use super::checksum::Checksum;
use super::error::{Error, NbdError};
use super::nbd::{Source, Units};
use super::progress;
use super::stored_disk::StoredDisk;
use crate::server::Export as _;
use crate::volume::format::stream::Digest;

/// What a command shows of its progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Bar,
    Nothing,
}

impl Shown {
    fn of(quiet: bool) -> Self {
        if quiet { Self::Nothing } else { Self::Bar }
    }

    fn bar(self, size_bytes: u64) -> ProgressBar {
        match self {
            Self::Bar => progress::bar(size_bytes),
            Self::Nothing => ProgressBar::hidden(),
        }
    }
}

/// Reads a whole disk, and returns its digest.
async fn digest(name: &str, disk: StoredDisk, shown: Shown) -> Result<Digest, Error> {
    let (size, units) = (disk.size_bytes(), Units::of(&disk.description()));
    let bar = shown.bar(size);
    let source = Source::new(Arc::new(disk), units);
    let mut parts = pin!(source.read_in_order(0, size));
    let mut checksum = Checksum::new();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|source| NbdError::Disk { disk: name.to_owned(), source })?;
        checksum.add_part(&part);
        bar.inc(part.length());
    }
    bar.finish_and_clear();
    Ok(checksum.digest())
}
