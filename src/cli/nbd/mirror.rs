//! `cairn nbd mirror`: serves a disk, the primary, while copying it to another, the secondary.
//!
//! Owns the order of writes and copies, and must not know whether a disk is a file or an export. Invariants:
//! a write and a copy of an overlapping range exclude each other, so both disks see them in the same order.
//! What was answered, and what was copied, reads the same on both disks. If the secondary fails, it is given
//! up with an error in the log, and the primary is served on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt as _;
use parking_lot::Mutex;

use super::args::Mirror;
use super::copy::{Copier, Failure};
use super::disk::Disk;
use super::host::{Hosted, mention};
use super::pieces::Piece;
use super::ranges::RangeLocks;
use super::remote::Connecting;
use crate::cli::error::{Error, NbdError};
use crate::cli::listeners::Inherited;
use crate::effect::{Durability, ZeroSpeed, Zeroing};
use crate::protocol::TransmissionFlags;
use crate::server::{Alignment, Allocation, Drained, Export, ExportDescription, ExportError, Segment};

/// Number of ranges that are copied concurrently.
const PIECES_IN_FLIGHT: usize = 4;
/// Number of connections to each server.
const CONNECTIONS: u16 = 4;

/// Executes `cairn nbd mirror`.
pub(super) async fn run(args: Mirror, inherited: Inherited) -> Result<(), Error> {
    let how = Connecting { options: args.waiting.options(), connections: CONNECTIONS };
    let primary = Disk::open(&args.primary, &how, false).await?;
    // Whatever the outcome, a client must end its session with DISC.
    let outcome = match primary.open_target(&args.secondary, &how).await {
        Ok(secondary) => {
            let outcome = mirror(&args, &primary, &secondary, inherited).await;
            secondary.close().await;
            outcome
        }
        Err(error) => Err(error.into()),
    };
    primary.close().await;
    outcome
}

async fn mirror(args: &Mirror, primary: &Disk, secondary: &Disk, inherited: Inherited) -> Result<(), Error> {
    let pair = Arc::new(Pair::new(args, primary, secondary)?);
    let hosted = Hosted::start(&args.host, Arc::<Pair>::clone(&pair), inherited).await?;
    let silent = args.host.stdio;
    let drained = hosted
        .until_told(pair.copy_all(&|line| {
            if !silent {
                mention(line)
            }
        }))
        .await;
    if let Drained::TimedOut { .. } = drained {
        pair.lose("commands took too long and were abandoned".to_owned());
    }
    if let Err(error) = pair.flush().await {
        pair.lose(format!("{}: {error}", args.primary));
    }
    Ok(pair.outcome()?)
}

/// The progress of the copy.
#[derive(Debug)]
enum State {
    Copying,
    Complete,
    Lost(String),
}

/// Two disks that are served as one.
struct Pair {
    name: String,
    description: String,
    primary: Arc<dyn Export>,
    secondary: Arc<dyn Export>,
    primary_name: String,
    secondary_name: String,
    copier: Copier,
    locks: RangeLocks,
    copied_bytes: AtomicU64,
    state: Mutex<State>,
}

impl Pair {
    fn new(args: &Mirror, primary: &Disk, secondary: &Disk) -> Result<Self, NbdError> {
        let description = primary.identity().and(secondary.identity()).to_string();
        let (primary, secondary) = (primary.export(), secondary.export());
        let (one, other) = (primary.description(), secondary.description());
        if one.size_bytes != other.size_bytes {
            let (one, other) = (one.size_bytes, other.size_bytes);
            let (primary, secondary) = (&args.primary, &args.secondary);
            return Err(NbdError::Misfit(format!("{primary} has {one} bytes, {secondary} has {other}")));
        }
        if other.flags.contains(TransmissionFlags::READ_ONLY) {
            return Err(NbdError::Misfit(format!("{} is read-only", args.secondary)));
        }
        let copier = Copier::new(Arc::clone(&primary), Arc::clone(&secondary));
        Ok(Self {
            name: args.host.exportname.clone(),
            description,
            primary,
            secondary,
            primary_name: args.primary.to_string(),
            secondary_name: args.secondary.to_string(),
            copier,
            locks: RangeLocks::default(),
            copied_bytes: AtomicU64::new(0),
            state: Mutex::new(State::Copying),
        })
    }

    /// Copies the whole primary, and reports every percent.
    async fn copy_all(&self, say: &(dyn Fn(&str) + Sync)) {
        let size = self.primary.description().size_bytes;
        say("0 %");
        let copied = async {
            let pieces = self.copier.plan(0, size);
            pieces.try_for_each_concurrent(PIECES_IN_FLIGHT, |piece| self.copy(piece, size, say)).await?;
            self.copier.finish().await
        };
        match copied.await {
            Err(failure) => self.lose_by(&failure),
            Ok(()) => {
                let mut state = self.state.lock();
                if matches!(*state, State::Copying) {
                    *state = State::Complete;
                    drop(state);
                    say("complete: both disks are the same");
                }
            }
        }
    }

    async fn copy(&self, piece: Piece, size: u64, say: &(dyn Fn(&str) + Sync)) -> Result<(), Failure> {
        let Piece { offset, length, .. } = piece;
        let held = self.locks.lock(offset..offset + length).await;
        if !self.has_secondary() {
            return Ok(());
        }
        // The content may have changed since the piece was planned.
        self.copier.copy_as_it_is(offset, length).await?;
        drop(held);
        let before = self.copied_bytes.fetch_add(length, Ordering::Relaxed);
        let percent = |bytes: u64| u128::from(bytes) * 100 / u128::from(size);
        if percent(before + length) > percent(before) {
            say(&format!("{} %", percent(before + length)));
        }
        Ok(())
    }

    fn has_secondary(&self) -> bool {
        !matches!(*self.state.lock(), State::Lost(_))
    }

    fn lose_by(&self, failure: &Failure) {
        self.lose(match failure {
            Failure::Source(error) => format!("{}: {error}", self.primary_name),
            Failure::Target(error) => format!("{}: {error}", self.secondary_name),
        });
    }

    fn lose(&self, why: String) {
        let mut state = self.state.lock();
        if !matches!(*state, State::Lost(_)) {
            tracing::error!("the mirror is broken, and only the primary is served now: {why}");
            *state = State::Lost(why);
        }
    }

    /// Returns an error unless both disks are the same.
    fn outcome(&self) -> Result<(), NbdError> {
        match &*self.state.lock() {
            State::Complete => Ok(()),
            State::Copying => {
                Err(NbdError::Incomplete("the program was stopped before the copy was complete".to_owned()))
            }
            State::Lost(why) => Err(NbdError::Incomplete(why.clone())),
        }
    }

    /// Repeats on the secondary what was done to the primary, unless the secondary is lost. If the primary
    /// failed, the range may hold anything there, so its content is copied instead. The caller holds the lock
    /// of the range.
    async fn repeat(
        &self,
        (offset, length): (u64, u64),
        primary: Result<(), ExportError>,
        secondary: impl Future<Output = Result<(), ExportError>>,
    ) -> Result<(), ExportError> {
        if self.has_secondary() {
            let repeated = match primary {
                Ok(()) => secondary.await.map_err(Failure::Target),
                Err(_) => self.copier.copy_as_it_is(offset, length).await,
            };
            if let Err(failure) = repeated {
                self.lose_by(&failure);
            }
        }
        primary
    }
}

#[async_trait]
impl Export for Pair {
    fn description(&self) -> ExportDescription {
        let (one, other) = (self.primary.description(), self.secondary.description());
        let mut flags = one.flags;
        flags.remove(TransmissionFlags::SEND_FAST_ZERO);
        // Every connection uses this pair.
        flags.insert(TransmissionFlags::CAN_MULTI_CONN);
        for flag in [TransmissionFlags::SEND_WRITE_ZEROES, TransmissionFlags::SEND_FUA] {
            if !other.flags.contains(flag) {
                flags.remove(flag);
            }
        }
        if !flags.contains(TransmissionFlags::SEND_WRITE_ZEROES) {
            flags.remove(TransmissionFlags::SEND_TRIM);
        }
        ExportDescription {
            name: self.name.clone(),
            description: self.description.clone(),
            flags,
            minimum_block_bytes: one.minimum_block_bytes.max(other.minimum_block_bytes),
            preferred_block_bytes: one.preferred_block_bytes.max(other.preferred_block_bytes),
            maximum_block_bytes: one.maximum_block_bytes.min(other.maximum_block_bytes),
            ..one
        }
    }

    fn alignment(&self) -> Alignment {
        match (self.primary.alignment(), self.secondary.alignment()) {
            (Alignment::Preferred, Alignment::Preferred) => Alignment::Preferred,
            _ => Alignment::Required,
        }
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Segment>, ExportError> {
        self.primary.read(offset, length).await
    }

    async fn write(&self, offset: u64, data: Bytes, durability: Durability) -> Result<(), ExportError> {
        let length = u64::try_from(data.len()).expect("a usize fits 64 bits");
        let _held = self.locks.lock(offset..offset + length).await;
        let primary = self.primary.write(offset, data.clone(), durability).await;
        self.repeat((offset, length), primary, self.secondary.write(offset, data, durability)).await
    }

    async fn flush(&self) -> Result<(), ExportError> {
        let can_flush =
            |disk: &Arc<dyn Export>| disk.description().flags.contains(TransmissionFlags::SEND_FLUSH);
        if can_flush(&self.primary) {
            self.primary.flush().await?;
        }
        if can_flush(&self.secondary) {
            self.repeat((0, 0), Ok(()), self.secondary.flush()).await?;
        }
        Ok(())
    }

    async fn trim(&self, offset: u64, length: u64, durability: Durability) -> Result<(), ExportError> {
        // After a TRIM, the range may read as anything, and differently on each disk. Zero it instead.
        self.write_zeroes(offset, length, Zeroing::Deallocate, ZeroSpeed::Any, durability).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        zeroing: Zeroing,
        speed: ZeroSpeed,
        durability: Durability,
    ) -> Result<(), ExportError> {
        let _held = self.locks.lock(offset..offset + length).await;
        let primary = self.primary.write_zeroes(offset, length, zeroing, speed, durability).await;
        let secondary = self.secondary.write_zeroes(offset, length, zeroing, ZeroSpeed::Any, durability);
        self.repeat((offset, length), primary, secondary).await
    }

    async fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.primary.cache(offset, length).await
    }

    async fn block_status(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> Result<Vec<Allocation>, ExportError> {
        self.primary.block_status(offset, length, limit).await
    }
}
