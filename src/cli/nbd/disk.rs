//! A disk as it is named on the command line: a file, a block device, or an NBD URI.

use std::path::Path;
use std::sync::Arc;

use super::error::NbdError;
use super::file::{FileExport, named};
use super::remote::RemoteExport;
use crate::client::Uri;
use crate::server::Export;

/// A disk that is open.
pub(super) enum Disk {
    File(Arc<FileExport>),
    Remote(Arc<RemoteExport>),
}

impl Disk {
    /// Opens what is there.
    pub(super) async fn open(text: &str, connections: u16, read_only: bool) -> Result<Self, NbdError> {
        match uri(text)? {
            Some(uri) => Self::connect(&uri, connections).await,
            None => {
                let path = Path::new(text);
                Ok(Self::File(Arc::new(named(path, FileExport::open(path, "", read_only))?)))
            }
        }
    }

    /// Opens what is to be written: a file is made or replaced, all else is there.
    pub(super) async fn create(text: &str, connections: u16, size_bytes: u64) -> Result<Self, NbdError> {
        match uri(text)? {
            Some(uri) => Self::connect(&uri, connections).await,
            None => {
                let path = Path::new(text);
                Ok(Self::File(Arc::new(named(path, FileExport::create(path, size_bytes))?)))
            }
        }
    }

    async fn connect(uri: &Uri, connections: u16) -> Result<Self, NbdError> {
        Ok(Self::Remote(Arc::new(RemoteExport::connect(uri, connections).await?)))
    }

    /// As something to be served or copied.
    pub(super) fn export(&self) -> Arc<dyn Export> {
        match self {
            Self::File(file) => Arc::<FileExport>::clone(file),
            Self::Remote(remote) => Arc::<RemoteExport>::clone(remote),
        }
    }

    /// Takes leave of a server, if nothing uses it any more.
    pub(super) async fn close(self) {
        if let Self::Remote(remote) = self
            && let Some(remote) = Arc::into_inner(remote)
        {
            remote.disconnect().await;
        }
    }
}

/// The URI that a text is, unless it is a path. What has a scheme is meant as a URI.
fn uri(text: &str) -> Result<Option<Uri>, NbdError> {
    let scheme = text.split_once("://").map(|(scheme, _)| scheme);
    let is_scheme = |scheme: &str| scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    match scheme {
        Some(scheme) if is_scheme(scheme) => Ok(Some(text.parse()?)),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_scheme_is_a_uri() {
        assert!(uri("nbd://host/disk").unwrap().is_some());
        assert!(uri("http://host/disk").is_err());
        for path in ["disk.img", "/dev/sda", "./nbd:/x", "/a b/c://d"] {
            assert!(uri(path).unwrap().is_none(), "{path}");
        }
    }
}
