//! A disk for a command of `cairn nbd`: a file, a block device, or an export of another server.
//!
//! Owns the opening of disks, and must not know what the command does. Invariant: a target that shares bytes
//! with the source is not opened, as far as that can be determined.

use std::path::Path;
use std::sync::Arc;

use super::file::{FileExport, named};
use super::identity::Identity;
use super::place::{DiskName, Place};
use super::remote::{Connecting, RemoteExport};
use crate::cli::error::NbdError;
use crate::server::Export;

/// An open disk.
pub(in crate::cli) struct Disk {
    name: DiskName,
    kind: Kind,
}

enum Kind {
    File(Arc<FileExport>),
    Remote(Arc<RemoteExport>),
}

impl Disk {
    /// Opens an existing disk.
    pub(in crate::cli) async fn open(
        name: &DiskName,
        how: &Connecting,
        read_only: bool,
    ) -> Result<Self, NbdError> {
        let kind = match &name.place {
            Place::Export(uri) => Kind::Remote(Arc::new(RemoteExport::connect(uri, how).await?)),
            Place::File(path) => Kind::File(Arc::new(named(path, FileExport::open(path, "", read_only))?)),
        };
        Ok(Self { name: name.clone(), kind })
    }

    /// Opens an existing disk as the target of a copy of this one. Fails if both are the same disk.
    pub(super) async fn open_target(&self, name: &DiskName, how: &Connecting) -> Result<Self, NbdError> {
        if let Place::File(path) = &name.place {
            self.check_apart_from_file(name, path)?;
        }
        self.checked(Self::open(name, how, false).await?).await
    }

    /// Opens the target of a copy of this disk. A file is created, or gets the size of this disk; everything
    /// else must exist. Existing content of a file is not truncated first, so nothing is lost if both are the
    /// same disk and that cannot be determined.
    pub(super) async fn create_target(&self, name: &DiskName, how: &Connecting) -> Result<Self, NbdError> {
        let Place::File(path) = &name.place else { return self.open_target(name, how).await };
        self.check_apart_from_file(name, path)?;
        let size_bytes = self.export().description().size_bytes;
        let kind = Kind::File(Arc::new(named(path, FileExport::create(path, size_bytes))?));
        Ok(Self { name: name.clone(), kind })
    }

    /// Compares by path before the file is opened, because opening a file for writing has effects of its own.
    fn check_apart_from_file(&self, name: &DiskName, path: &Path) -> Result<(), NbdError> {
        match std::fs::metadata(path) {
            Ok(found) if self.identity().overlaps(&Identity::of_file(&found)) => Err(self.same(name)),
            _ => Ok(()),
        }
    }

    async fn checked(&self, target: Self) -> Result<Self, NbdError> {
        if self.identity().overlaps(target.identity()) {
            let same = self.same(&target.name);
            target.close().await;
            return Err(same);
        }
        Ok(target)
    }

    fn same(&self, target: &DiskName) -> NbdError {
        NbdError::Misfit(format!("{} and {target} are the same disk, or overlap", self.name))
    }

    /// Returns which bytes the disk consists of.
    pub(super) fn identity(&self) -> &Identity {
        match &self.kind {
            Kind::File(file) => file.identity(),
            Kind::Remote(remote) => remote.identity(),
        }
    }

    /// Returns the disk as an export that can be served or copied.
    pub(in crate::cli) fn export(&self) -> Arc<dyn Export> {
        match &self.kind {
            Kind::File(file) => Arc::<FileExport>::clone(file),
            Kind::Remote(remote) => Arc::<RemoteExport>::clone(remote),
        }
    }

    /// Ends the session with a server, unless the export is still in use.
    pub(in crate::cli) async fn close(self) {
        if let Kind::Remote(remote) = self.kind
            && let Some(remote) = Arc::into_inner(remote)
        {
            remote.disconnect().await;
        }
    }
}
