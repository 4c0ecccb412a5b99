//! Applies an incremental stream to a volume that has the content of its base.
//!
//! Owns the steps, and what shows in the volume how far it is. Must not know where the stream comes from or
//! how a digest is computed. Invariants: nothing is written before the volume is known to have the base. From
//! then on, until the volume has the result, it has a snapshot of the base by which an import that was cut
//! short is noticed and taken back.
//!
//! The steps: take the snapshot that says that this stream is being applied; write; flush; take the snapshot
//! that says which content this is; delete the first snapshot, and the one that said what the base was. A
//! repetition finds out from these snapshots what the last run has done.

use std::sync::Arc;

use crate::effect::{Durability, Zeroing};
use crate::volume::catalog;
use crate::volume::diff::{Diff, Side};
use crate::volume::disk::Volume;
use crate::volume::environment::Environment;
use crate::volume::error::{ReceiveError, SnapshotError};
use crate::volume::format::keys::ObjectId;
use crate::volume::format::stream::{Digest, Header, Part};
use crate::volume::options::Options;
use crate::volume::snapshot::SnapshotDisk;
use crate::volume::write::resize::Shrink;

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

/// Name of the snapshot of a copy that says which content it has: that of the root `root` of the volume that
/// the stream is of.
#[must_use]
pub fn copy_name(header: &Header, root: ObjectId) -> String {
    format!("copy-of-{}-{}-{}", header.volume.simple(), root.epoch, root.k)
}

/// What the name of a snapshot begins with that says that a stream is being applied.
const BEGUN: &str = "receiving-";

/// Name of the snapshot of a copy that says that a stream is being applied to it.
#[must_use]
pub fn begun_name(header: &Header) -> String {
    format!("{BEGUN}{:?}", header.id())
}

/// Whether a snapshot says that some stream is being applied. Once another one was applied as a whole, it
/// says nothing any more.
fn is_begun_name(name: &str) -> bool {
    let digits = name.strip_prefix(BEGUN);
    digits.is_some_and(|digits| digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// Opens the volume `name` to apply the stream with this header to it. `snapshot` is the name of the snapshot
/// that is to be taken at the end, if any.
///
/// # Errors
/// If the volume does not have the base, if a gateway holds it, if it has a snapshot of that name, or if the
/// store fails. The volume is not held afterwards, and has the content that it had before.
pub async fn begin(
    env: &Environment,
    options: &Options,
    name: &str,
    header: Header,
    snapshot: Option<&str>,
    leftovers: Leftovers,
) -> Result<Begun, ReceiveError> {
    let open = || catalog::open(env, || options.clone(), name, false);
    let mut target = Target { volume: open().await?, header };
    let found = match target.judge(snapshot).await {
        Ok(Found::Part) if leftovers == Leftovers::Discard => {
            // This closes the volume.
            target.volume.restore(&begun_name(&target.header)).await?;
            target.volume = open().await?;
            Ok(Found::Base)
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

impl Target {
    fn has(&self, snapshot: &str) -> bool {
        self.volume.snapshots().iter().any(|found| found.name == snapshot)
    }

    /// Finds out what the volume has.
    async fn judge(&self, snapshot: Option<&str>) -> Result<Found, ReceiveError> {
        // A snapshot that a run before took in its last moment has no root yet, and is not listed without.
        self.volume.checkpoint().await?;
        let header = &self.header;
        let (result, base) = (copy_name(header, header.result.root), copy_name(header, header.base.root));
        if self.has(&result) {
            return self.unchanged(&result).await.map(|()| Found::Result);
        }
        if let Some(name) = snapshot.filter(|name| self.has(name)) {
            return Err(SnapshotError::Exists(name.to_owned()).into());
        }
        let begun = begun_name(header);
        if self.has(&begun) {
            return match self.unchanged(&begun).await {
                Ok(()) => Ok(Found::Base),
                Err(ReceiveError::Changed { .. }) => Ok(Found::Part),
                Err(error) => Err(error),
            };
        }
        if self.has(&base) {
            return self.unchanged(&base).await.map(|()| Found::Base);
        }
        let (found, wanted) = (self.volume.size_bytes(), header.base.size_bytes);
        match header.base_digest {
            None => Err(ReceiveError::NoBase { marker: base, of: header.base.snapshot.name.clone() }),
            Some(_) if found != wanted => Err(ReceiveError::OtherSize { found, wanted }),
            Some(_) => Ok(Found::BaseByDigest),
        }
    }

    /// Checks that the volume has what it had at one of its snapshots. Reads the map alone.
    async fn unchanged(&self, name: &str) -> Result<(), ReceiveError> {
        let (env, options, id) = (self.volume.environment(), self.volume.options(), self.volume.id());
        let before = Side::of_snapshot(&SnapshotDisk::open(env, options, id, name).await?);
        let after = Side::of_volume(&self.volume).await?;
        let changed = |offset| ReceiveError::Changed { snapshot: name.to_owned(), offset };
        let (old, new) = (before.size_bytes(), after.size_bytes());
        if let Some(change) = Diff::between(before, after)?.next_change().await? {
            return Err(changed(change.range.start));
        }
        if old == new { Ok(()) } else { Err(changed(old.min(new))) }
    }

    /// Notes in the volume, which has the base, that the stream is being applied.
    async fn start(self) -> Result<Receiver, ReceiveError> {
        match self.prepare().await {
            Ok(()) => Ok(Receiver(self)),
            Err(error) => {
                self.release().await;
                Err(error)
            }
        }
    }

    async fn prepare(&self) -> Result<(), ReceiveError> {
        let begun = begun_name(&self.header);
        if !self.has(&begun) {
            self.volume.snapshot(&begun).await?;
        }
        let size = self.header.result.size_bytes;
        if self.volume.size_bytes() != size {
            self.volume.resize(size, Shrink::Discard).await?;
        }
        Ok(())
    }

    /// Closes the volume, so that others can open it at once.
    async fn release(self) {
        if let Err(error) = self.volume.close().await {
            tracing::warn!(volume = %self.volume.id(), "the volume was not closed cleanly: {error}");
            self.volume.abandon().await;
        }
    }

    /// Takes the snapshots that say which content the volume has, and deletes those that the import needed.
    async fn complete(&self, snapshot: Option<&str>) -> Result<(), ReceiveError> {
        let header = &self.header;
        let result = copy_name(header, header.result.root);
        for name in [Some(&*result), snapshot].into_iter().flatten() {
            match self.has(name) {
                false => drop(self.volume.snapshot(name).await?),
                true if self.unchanged(name).await.is_ok() => {}
                true => return Err(SnapshotError::Exists(name.to_owned()).into()),
            }
        }
        let base = copy_name(header, header.base.root);
        let is_obsolete = |name: &str| name != result && (name == base || is_begun_name(name));
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
