//! A disk that a command of `cairn nbd` works with: a file, a block device, or an export of another server.

use std::path::Path;
use std::sync::Arc;

use super::file::{FileExport, named};
use super::identity::Identity;
use super::place::{DiskName, Place};
use super::remote::{Connecting, RemoteExport};
use crate::cli::error::NbdError;
use crate::server::Export;

/// A disk that is open.
pub(super) struct Disk {
    name: DiskName,
    kind: Kind,
}

enum Kind {
    File(Arc<FileExport>),
    Remote(Arc<RemoteExport>),
}

impl Disk {
    /// Opens what is there.
    pub(super) async fn open(name: &DiskName, how: &Connecting, read_only: bool) -> Result<Self, NbdError> {
        let kind = match &name.place {
            Place::Export(uri) => Kind::Remote(Arc::new(RemoteExport::connect(uri, how).await?)),
            Place::File(path) => Kind::File(Arc::new(named(path, FileExport::open(path, "", read_only))?)),
        };
        Ok(Self { name: name.clone(), kind })
    }

    /// Opens what is there and is to be written as this disk is read, unless it is the same disk.
    pub(super) async fn open_target(&self, name: &DiskName, how: &Connecting) -> Result<Self, NbdError> {
        if let Place::File(path) = &name.place {
            self.check_apart_from_file(name, path)?;
        }
        self.checked(Self::open(name, how, false).await?).await
    }

    /// Opens what is to become a copy of this disk: a file is made or gets the size of this one, all else is
    /// there. What a file held is not cut off first, so that nothing is lost where both are the same disk and
    /// nobody can see it.
    pub(super) async fn create_target(&self, name: &DiskName, how: &Connecting) -> Result<Self, NbdError> {
        let Place::File(path) = &name.place else { return self.open_target(name, how).await };
        self.check_apart_from_file(name, path)?;
        let size_bytes = self.export().description().size_bytes;
        let kind = Kind::File(Arc::new(named(path, FileExport::create(path, size_bytes))?));
        Ok(Self { name: name.clone(), kind })
    }

    /// By its name, before it is opened: to open a file for writing has effects of its own.
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
        NbdError::Misfit(format!("{} and {target} are the same disk, or have bytes in common", self.name))
    }

    /// Which bytes it is made of.
    pub(super) fn identity(&self) -> &Identity {
        match &self.kind {
            Kind::File(file) => file.identity(),
            Kind::Remote(remote) => remote.identity(),
        }
    }

    /// As something to be served or copied.
    pub(super) fn export(&self) -> Arc<dyn Export> {
        match &self.kind {
            Kind::File(file) => Arc::<FileExport>::clone(file),
            Kind::Remote(remote) => Arc::<RemoteExport>::clone(remote),
        }
    }

    /// Takes leave of a server, if nothing uses it any more.
    pub(super) async fn close(self) {
        if let Kind::Remote(remote) = self.kind
            && let Some(remote) = Arc::into_inner(remote)
        {
            remote.disconnect().await;
        }
    }
}
