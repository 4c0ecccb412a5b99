//! An image file that appears under its name once it is complete. Until then it is `NAME.partial`.
//!
//! Owns both names, and the record from which an export that was cut short goes on. It must not know what is
//! exported. Invariants: a file under the name is complete and durable. What the record says of the partial
//! file was durable before the record was written. A partial file without a record does not remain, unless
//! the process is killed.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::error::{Error, NbdError};

/// What the record's name has in addition.
const RECORD: &str = ".partial.json";

/// How far an export has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// What is exported.
    pub(super) of: String,
    /// Size of the whole disk.
    pub(super) size_bytes: u64,
    /// Everything before this offset is in the partial file.
    pub(super) offset: u64,
    /// The SHA-256 of everything before the offset.
    pub(super) sha256: String,
}

/// A partial file, which no other process writes meanwhile.
#[derive(Debug)]
pub(super) struct ImageFile {
    target: PathBuf,
    partial: PathBuf,
    record: PathBuf,
    file: File,
    is_complete: bool,
}

impl ImageFile {
    /// Opens or creates the partial file.
    pub(super) fn open(target: &Path) -> Result<Self, Error> {
        // A link keeps pointing to its file.
        let target = std::fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
        let (partial, record) = (with(&target, ".partial"), with(&target, RECORD));
        let file = named(&partial, Self::locked(&partial))?;
        Ok(Self { target, partial, record, file, is_complete: false })
    }

    fn locked(partial: &Path) -> io::Result<File> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(partial)?;
        let in_use = || io::Error::new(io::ErrorKind::WouldBlock, "another export writes this file");
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| in_use())?;
        // The other export may have completed its file since this one opened it.
        let (ours, found) = (file.metadata()?, std::fs::metadata(partial)?);
        if (ours.dev(), ours.ino()) != (found.dev(), found.ino()) {
            return Err(in_use());
        }
        Ok(file)
    }

    /// Path of the partial file.
    pub(super) fn partial(&self) -> &Path {
        &self.partial
    }

    /// Returns the partial file, to write it from its start.
    pub(super) fn writer(&self) -> Result<File, Error> {
        named(&self.partial, self.file.try_clone())
    }

    /// Empties the partial file.
    pub(super) fn clear(&self) -> Result<(), Error> {
        named(&self.record, remove(&self.record))?;
        named(&self.partial, self.file.set_len(0))
    }

    /// Reads how far an earlier export has come.
    pub(super) fn progress(&self) -> Result<Record, Error> {
        let read = std::fs::read(&self.record);
        let bytes = match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Mistake(format!(
                    "there is no export to {} to resume",
                    self.target.display()
                )));
            }
            read => named(&self.record, read)?,
        };
        let parsed = serde_json::from_slice(&bytes);
        named(&self.record, parsed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    /// Records how far this export has come. What the record says must be durable.
    pub(super) fn record(&self, record: &Record) -> Result<(), Error> {
        let new = with(&self.record, ".new");
        let text = serde_json::to_vec(record).expect("texts and numbers are JSON");
        let write = || {
            std::fs::write(&new, &text)?;
            File::open(&new)?.sync_all()?;
            std::fs::rename(&new, &self.record)
        };
        named(&self.record, write())
    }

    /// Makes the complete file durable and gives it its name.
    pub(super) fn complete(mut self) -> Result<(), Error> {
        let mut complete = || {
            self.file.sync_all()?;
            std::fs::rename(&self.partial, &self.target)?;
            self.is_complete = true;
            remove(&self.record)?;
            let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        };
        named(&self.target, complete())
    }
}

impl Drop for ImageFile {
    fn drop(&mut self) {
        if !self.is_complete
            && !self.record.exists()
            && let Err(error) = remove(&self.partial)
        {
            tracing::warn!("{} is left: {error}", self.partial.display());
        }
    }
}

/// Whether an export to a file was cut short and can be resumed.
pub(super) fn is_resumable(target: &Path) -> bool {
    let target = std::fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
    with(&target, RECORD).exists()
}

/// Appends to the name of a file.
fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.into();
    name.push(suffix);
    PathBuf::from(name)
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Adds the path of a file to an error.
fn named<T>(path: &Path, done: io::Result<T>) -> Result<T, Error> {
    done.map_err(|source| NbdError::File { path: path.to_owned(), source }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_when_it_is_complete_and_replaces_an_older_one() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("image");
        std::fs::write(&target, "old").unwrap();
        let image = ImageFile::open(&target).unwrap();
        std::fs::write(image.partial(), "new content").unwrap();
        assert!(!is_resumable(&target));
        let record = Record { of: "root".to_owned(), size_bytes: 11, offset: 4, sha256: "00".to_owned() };
        image.record(&record).unwrap();
        assert_eq!((image.progress().unwrap(), is_resumable(&target)), (record, true));
        assert!(ImageFile::open(&target).is_err(), "it is locked");
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        image.complete().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new content");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_recorded_stays_until_it_is_cleared() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("image");
        let image = ImageFile::open(&target).unwrap();
        image.record(&Record { of: String::new(), size_bytes: 1, offset: 1, sha256: String::new() }).unwrap();
        drop(image);
        let image = ImageFile::open(&target).unwrap();
        image.clear().unwrap();
        assert!(image.progress().unwrap_err().to_string().contains("no export"));
        drop(image);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
