//! Applies an incremental stream to a volume that has the content of its base.
//!
//! Owns the steps, and what shows in the volume how far it is. Must not know where the stream comes from or
//! how a digest is computed. Invariants: nothing is written before the volume is known to have the base. From
//! then on, until the volume has the result, it has a snapshot of the base by which an import that was cut
//! short is noticed and taken back. So a caller may drop a call at any time, which is like a crash.
//!
//! The steps: take the snapshot that says that this stream is being applied; write; flush; take the snapshot
//! that says which content this is; delete the first snapshot, and those that said what the volume had
//! before. A repetition finds out from these snapshots what the last run has done. A snapshot that a clone
//! needs cannot be deleted. So one that is left from earlier counts only for what the map or its place in the
//! order shows.
//!
//! A stream that has everything needs no base. It replaces the content of a volume, so it is applied only to
//! one that was a copy of the same volume before.

use std::sync::Arc;
use std::time::Duration;

use crate::effect::{Durability, Zeroing};
use crate::volume::catalog;
use crate::volume::diff::{Diff, Side};
use crate::volume::disk::Volume;
use crate::volume::environment::Environment;
use crate::volume::error::{ReceiveError, SnapshotError};
use crate::volume::format::keys::is_valid_name;
use crate::volume::format::stream::{Digest, Header, Part, copied_volume, is_begun_name, is_copy_name};
use crate::volume::info::Info;
use crate::volume::options::Options;
use crate::volume::snapshot::SnapshotDisk;
use crate::volume::write::resize::Shrink;

/// How long the store may take to close a volume on which an import gives up, if nothing is configured.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happens to what an import of the same stream has left that was cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// The import is refused.
    Refuse,
    /// The volume goes back to where the import began. Whatever was written since then is lost.
    Discard,
}

/// A volume that a stream is to be applied to.
#[derive(Debug)]
struct Target {
    volume: Arc<Volume>,
    header: Header,
}

/// How an import begins.
#[derive(Debug)]
pub enum Begun {
    /// The volume has the base.
    Ready(Receiver),
    /// The volume has the base if its content has the digest of it.
    Unproved(Unproved),
    /// The volume has the result already.
    Done(Received),
}

/// A volume of which only a digest can show that it has the base.
#[derive(Debug)]
pub struct Unproved(Target);

/// A volume that has the base and what was applied since.
#[derive(Debug)]
pub struct Receiver(Target);

/// A volume to which the whole stream was applied.
#[derive(Debug)]
pub struct Received(Target);

/// What a volume has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Base,
    /// The base, if the digest says so.
    BaseByDigest,
    /// A part of the stream over the base.
    Part,
    Result,
}

/// What has happened to a volume since one of its snapshots, as its map says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    /// There is no such snapshot.
    Missing,
    /// Nothing has changed.
    Same,
    /// It may have changed, first at this offset.
    Changed(u64),
}

/// Opens the volume `name` to apply the stream with this header to it. `snapshot` is the name of the snapshot
/// that is to be taken at the end, if any.
///
/// # Errors
/// If the volume does not have the base, if a gateway holds it, if the name is not valid or the volume has a
/// snapshot of that name, or if the store fails. The volume is not held afterwards, and has the content that
/// it had before, unless the error is [`ReceiveError::Begun`].
pub async fn begin(
    env: &Environment,
    options: &Options,
    name: &str,
    header: Header,
    snapshot: Option<&str>,
    leftovers: Leftovers,
) -> Result<Begun, ReceiveError> {
    if let Some(wrong) = snapshot.filter(|name| !is_valid_name(name)) {
        return Err(SnapshotError::BadName(wrong.to_owned()).into());
    }
    if let Some(reserved) = snapshot.filter(|name| is_copy_name(name) || is_begun_name(name)) {
        return Err(ReceiveError::Reserved(reserved.to_owned()));
    }
    let open = || catalog::open(env, || options.clone(), name, false);
    let mut target = Target { volume: open().await?, header };
    let found = match target.judge(snapshot).await {
        Ok(Found::Part) if leftovers == Leftovers::Discard => {
            // This closes the volume.
            match target.volume.restore(&target.header.begun_name()).await {
                Ok(()) => {
                    target.volume = open().await?;
                    Ok(Found::Base)
                }
                Err(error) => Err(error.into()),
            }
        }
        Ok(Found::Part) => Err(ReceiveError::CutShort),
        found => found,
    };
    match found {
        Ok(Found::Result) => Ok(Begun::Done(Received(target))),
        Ok(Found::BaseByDigest) => Ok(Begun::Unproved(Unproved(target))),
        Ok(Found::Base | Found::Part) => target.start().await.map(Begun::Ready),
        Err(error) => {
            target.release().await;
            Err(error)
        }
    }
}

/// Opens a volume that was made with all of the content that the stream leads to, to mark it as a copy.
///
/// # Errors
/// If others may have opened the volume since it was made, if a gateway holds it, or if the store fails. The
/// volume is not held afterwards.
pub async fn adopt(
    env: &Environment,
    options: &Options,
    made: &Info,
    header: Header,
) -> Result<Received, ReceiveError> {
    let volume = catalog::open(env, || options.clone(), &made.name, false).await?;
    // Each opening takes the next epoch.
    let is_untouched = volume.id() == made.volume && volume.epoch() == made.epoch + 1;
    let target = Target { volume, header };
    if is_untouched {
        return Ok(Received(target));
    }
    target.release().await;
    Err(ReceiveError::Touched)
}

impl Target {
    fn has(&self, snapshot: &str) -> bool {
        self.volume.snapshots().iter().any(|found| found.name == snapshot)
    }

    /// Finds out what the volume has.
    async fn judge(&self, snapshot: Option<&str>) -> Result<Found, ReceiveError> {
        // A snapshot that a run before took in its last moment has no root yet, and is not listed without.
        self.volume.checkpoint().await?;
        let header = &self.header;
        let (result, base) = (header.copy_name(&header.result), header.copy_name(&header.base));
        let since_result = self.since(&result).await?;
        if since_result == Since::Same {
            return Ok(Found::Result);
        }
        if let Some(name) = snapshot.filter(|name| self.has(name)) {
            return Err(SnapshotError::Exists(name.to_owned()).into());
        }
        if header.is_whole() {
            return self.judge_copy().await;
        }
        let since_base = self.since(&base).await?;
        if since_base == Since::Same {
            // A digest decides even then.
            return Ok(if header.base_digest.is_some() { Found::BaseByDigest } else { Found::Base });
        }
        if let Some(found) = self.judge_begun().await? {
            return Ok(found);
        }
        if header.base_digest.is_none()
            && matches!(since_base, Since::Changed(_))
            && let Some(begun) = self.begun()
        {
            return Err(ReceiveError::OtherCutShort { begun });
        }
        let (found, wanted) = (self.volume.size_bytes(), header.base.size_bytes);
        match (header.base_digest, since_base, since_result) {
            (Some(_), ..) if found != wanted => Err(ReceiveError::OtherSize { found, wanted }),
            (Some(_), ..) => Ok(Found::BaseByDigest),
            (None, _, Since::Changed(offset)) if self.is_latest(&result) => {
                Err(ReceiveError::Changed { snapshot: result, offset })
            }
            (None, Since::Changed(offset), _) => Err(ReceiveError::Changed { snapshot: base, offset }),
            _ => Err(ReceiveError::NoBase { marker: base, of: header.base.snapshot.name.clone() }),
        }
    }

    /// Returns the snapshot that was taken when some stream was begun, if none was applied as a whole since.
    fn begun(&self) -> Option<String> {
        let names = self.volume.snapshots().into_iter().rev().map(|snapshot| snapshot.name);
        let mut later = names.take_while(|name| !is_copy_name(name));
        later.find(|name| is_begun_name(name))
    }

    /// Finds out what the volume has if an import of this stream was cut short.
    async fn judge_begun(&self) -> Result<Option<Found>, ReceiveError> {
        let begun = self.header.begun_name();
        if !self.is_latest(&begun) {
            return Ok(None);
        }
        Ok(match self.since(&begun).await? {
            Since::Same => Some(Found::Base),
            Since::Changed(_) => Some(Found::Part),
            Since::Missing => None,
        })
    }

    /// Finds out whether a stream that has everything may be applied.
    async fn judge_copy(&self) -> Result<Found, ReceiveError> {
        if let Some(found) = self.judge_begun().await? {
            return Ok(found);
        }
        match self.volume.snapshots().iter().any(|found| self.is_marker(&found.name)) {
            true => Ok(Found::Base),
            false => Err(ReceiveError::NoCopy { of: self.header.volume }),
        }
    }

    /// Whether a snapshot says that the volume had some content of the volume that the stream is of.
    fn is_marker(&self, name: &str) -> bool {
        copied_volume(name) == Some(self.header.volume)
    }

    /// Whether no stream was applied as a whole since a snapshot was taken.
    fn is_latest(&self, name: &str) -> bool {
        let snapshots = self.volume.snapshots();
        let names = snapshots.iter().rev().map(|snapshot| &*snapshot.name);
        !names.take_while(|later| *later != name).any(is_copy_name)
    }

    /// Compares what the volume has with what it had at one of its snapshots. Reads the map alone.
    async fn since(&self, name: &str) -> Result<Since, ReceiveError> {
        if !self.has(name) {
            return Ok(Since::Missing);
        }
        let (env, options, id) = (self.volume.environment(), self.volume.options(), self.volume.id());
        let before = Side::of_snapshot(&SnapshotDisk::open(env, options, id, name).await?);
        let after = Side::of_volume(&self.volume).await?;
        let (old, new) = (before.size_bytes(), after.size_bytes());
        if let Some(change) = Diff::between(before, after)?.next_change().await? {
            return Ok(Since::Changed(change.range.start));
        }
        Ok(if old == new { Since::Same } else { Since::Changed(old.min(new)) })
    }

    /// Notes in the volume, which has the base, that the stream is being applied.
    async fn start(self) -> Result<Receiver, ReceiveError> {
        match self.prepare().await {
            Ok(()) => Ok(Receiver(self)),
            Err(error) => {
                self.release().await;
                Err(ReceiveError::Begun(Box::new(error)))
            }
        }
    }

    async fn prepare(&self) -> Result<(), ReceiveError> {
        let begun = self.header.begun_name();
        if self.has(&begun) && !self.is_latest(&begun) {
            // A clone needed it, and what it says is over. If it stays, it has the base still, but this
            // import cannot be repeated with [`Leftovers::Discard`] if it is cut short.
            match self.volume.delete_snapshot(&begun).await {
                Ok(()) | Err(SnapshotError::Pinned { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if !self.has(&begun) {
            self.volume.snapshot(&begun).await?;
        }
        let size = self.header.result.size_bytes;
        if self.volume.size_bytes() != size {
            self.volume.resize(size, Shrink::Discard).await?;
        }
        Ok(())
    }

    /// Closes the volume, so that others can open it at once. If the store does not allow that, leaves it as
    /// a crash would.
    async fn release(self) {
        let patience = self.volume.options().store_deadline.unwrap_or(PATIENCE);
        let why = match tokio::time::timeout(patience, self.volume.close()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the store did not answer within {patience:?}"),
        };
        tracing::warn!(volume = %self.volume.id(), "the volume was not closed cleanly: {why}");
        self.volume.abandon().await;
    }

    /// Takes the snapshots that say which content the volume has, and deletes those that the import needed.
    async fn complete(&self, snapshot: Option<&str>) -> Result<(), ReceiveError> {
        let result = self.header.copy_name(&self.header.result);
        self.mark(&result).await?;
        if let Some(name) = snapshot {
            match self.since(name).await? {
                Since::Missing => drop(self.volume.snapshot(name).await?),
                Since::Same => {}
                Since::Changed(_) => return Err(SnapshotError::Exists(name.to_owned()).into()),
            }
        }
        let is_obsolete = |name: &str| name != result && (self.is_marker(name) || is_begun_name(name));
        for name in self.volume.snapshots().into_iter().map(|snapshot| snapshot.name) {
            if !is_obsolete(&name) {
                continue;
            }
            match self.volume.delete_snapshot(&name).await {
                // A clone needs it.
                Ok(()) | Err(SnapshotError::Pinned { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.volume.close().await?;
        Ok(())
    }

    /// Takes the snapshot `result`, which says that the volume has the result.
    async fn mark(&self, result: &str) -> Result<(), ReceiveError> {
        match self.since(result).await? {
            Since::Same => return Ok(()),
            Since::Missing => {}
            // It is left from earlier and has the same content, but the map does not show that.
            Since::Changed(_) => match self.volume.delete_snapshot(result).await {
                Ok(()) => {}
                Err(SnapshotError::Pinned { clones, .. }) => {
                    tracing::warn!(volume = %self.volume.id(), snapshot = result, ?clones,
                        "clones need an earlier snapshot of this content, so the next stream needs a digest");
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            },
        }
        self.volume.snapshot(result).await?;
        Ok(())
    }
}

impl Unproved {
    /// The volume, whose content is to be read.
    #[must_use]
    pub fn volume(&self) -> &Arc<Volume> {
        &self.0.volume
    }

    /// Compares the digest of the volume with that of the base.
    ///
    /// # Errors
    /// If they differ, or if the store fails. The volume is not held afterwards.
    pub async fn prove(self, found: Digest) -> Result<Receiver, ReceiveError> {
        match self.0.header.base_digest {
            Some(wanted) if wanted != found => {
                self.release().await;
                Err(ReceiveError::OtherContent { found, wanted })
            }
            _ => self.0.start().await,
        }
    }

    /// Gives up. The volume is not held afterwards.
    pub async fn release(self) {
        self.0.release().await;
    }
}

impl Receiver {
    /// Applies a part of the stream. Its order is that of the stream.
    ///
    /// # Errors
    /// If the volume stopped, or if the store fails.
    pub async fn apply(&self, part: Part) -> Result<(), ReceiveError> {
        let volume = &self.0.volume;
        match part {
            Part::Data { offset, bytes } => volume.write(offset, bytes, Durability::Volatile).await?,
            Part::Zero { offset, length } => {
                volume.zero(offset, length, Zeroing::Deallocate, Durability::Volatile).await?;
            }
            Part::Header(_) | Part::End { .. } => {}
        }
        Ok(())
    }

    /// Makes durable what was applied. Call this after the end of the stream.
    ///
    /// # Errors
    /// If the volume stopped, or if the store fails. The volume is not held afterwards.
    pub async fn finish(self) -> Result<Received, ReceiveError> {
        match self.0.volume.flush().await {
            Ok(()) => Ok(Received(self.0)),
            Err(error) => {
                self.release().await;
                Err(error.into())
            }
        }
    }

    /// Gives up. The volume keeps what was applied, and its snapshot of the base. It is not held afterwards.
    pub async fn release(self) {
        self.0.release().await;
    }
}

impl Received {
    /// The volume, which has the result.
    #[must_use]
    pub fn volume(&self) -> &Arc<Volume> {
        &self.0.volume
    }

    /// Takes the snapshot that says which content the volume has, and one of the given name. Deletes those
    /// that the import needed, and closes the volume.
    ///
    /// # Errors
    /// If the volume stopped, or if the store fails. The volume is not held afterwards, and the import can be
    /// repeated.
    pub async fn complete(self, snapshot: Option<&str>) -> Result<(), ReceiveError> {
        let completed = self.0.complete(snapshot).await;
        if completed.is_err() {
            self.release().await;
        }
        completed
    }

    /// Gives up. The volume is not held afterwards.
    pub async fn release(self) {
        self.0.release().await;
    }
}
