//! Objects as files below one directory: reading, atomic and durable writing, deleting. All of it blocks.
//!
//! A new object is written to `~tmp`, made durable, then linked (which fails where one stands) or renamed
//! over the old one; no key has a `~`. Everything that replaces or removes an object holds one of the locks
//! in `~lock`, shared, and If-Match exclusive, from its look at the old object to the rename. Paths are
//! relative to an open directory, so that a file system unmounted below us is an error and not an empty
//! store. Invariant: a file under an object's name is whole, durable and never written again.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;
use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::ReadWriteFlags;
use xxhash_rust::xxh3;

use crate::mutant::{self, Mutant};

use super::super::error::Source;
use super::super::{ByteRange, Condition, ETag, Error, MAX_WHOLE_BYTES, Object};
use super::Setup;
use super::direct;
use super::memory::{Buffer, Pool};

const TEMPORARY: &str = "~tmp";
const LOCKS: &str = "~lock";
/// Locks that keys are spread over.
const LOCK_COUNT: u64 = 16;
/// Where a file's version is kept, so that a range can be read without hashing the rest. Only a cache of the
/// content's hash: a file system without extended attributes does without.
const VERSION_ATTRIBUTE: &str = "user.cairn.etag";
/// How often a directory that others remove as empty is made anew.
const PARENT_ATTEMPTS: u32 = 64;
/// Bytes from which on a range is read into memory of the pool.
const POOLED_FROM: usize = 128 << 10;
/// Only the owner: these are people's disks.
const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o700);

/// The directory.
#[derive(Debug)]
pub(super) struct Tree {
    root: File,
    locks: File,
    process: u32,
    temporaries: AtomicU64,
    pool: Arc<Pool>,
    /// Held for writing while directories are made, so that no one builds on one that is not yet durable.
    making: RwLock<()>,
}

fn open_directory(at: &File, path: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty())?.into())
}

/// Makes what was written into a file durable.
fn sync_file(file: &File) -> io::Result<()> {
    if mutant::is(Mutant::FileUnsynced) { Ok(()) } else { file.sync_all() }
}

/// Makes the names in a directory durable.
fn sync_directory(directory: &File) -> io::Result<()> {
    if mutant::is(Mutant::DirectoryUnsynced) { Ok(()) } else { directory.sync_all() }
}

/// Makes a directory where there is none, and makes that durable either way.
fn make_directory(at: &File, name: &str) -> io::Result<File> {
    match rustix::fs::mkdirat(at, name, DIRECTORY_MODE) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => sync_directory(at)?,
        Err(other) => return Err(other.into()),
    }
    open_directory(at, name)
}

fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('/').unwrap_or((".", key))
}

fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// What the caller should do about an error that says nothing of the object itself.
pub(super) fn failure(key: &str, error: io::Error) -> Error {
    let (key, kind) = (key.to_owned(), error.kind());
    let source: Source = Arc::new(error);
    match kind {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Error::Denied { key, source },
        ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::DirectoryNotEmpty
        | ErrorKind::InvalidInput
        | ErrorKind::InvalidFilename => Error::Rejected { key, source },
        // A full disk, an I/O error, too many open files: they pass, or an operator mends them.
        _ => Error::Transient { key, source },
    }
}

fn etag_of(body: &[u8]) -> ETag {
    ETag(format!("{:032x}-{:x}", xxh3::xxh3_128(body), body.len()).into())
}

/// The version kept with a file of `size_bytes`, if it is there and can be its.
fn kept_version(file: &File, size_bytes: u64) -> Option<ETag> {
    let mut value = [0u8; 64];
    let length = rustix::fs::fgetxattr(file, VERSION_ATTRIBUTE, &mut value[..]).ok()?;
    let text = std::str::from_utf8(&value[..length]).ok()?;
    let (_, size) = text.split_once('-')?;
    (u64::from_str_radix(size, 16) == Ok(size_bytes)).then(|| ETag(text.into()))
}

fn read_at(file: &File, offset: u64, length: usize) -> io::Result<Bytes> {
    let mut body = Vec::with_capacity(length);
    while body.len() < length {
        let at = offset + body.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut body), at) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    body.truncate(length);
    Ok(body.into())
}

/// As [`read_at`], into memory that is used again where it is large enough to be had from the system each
/// time.
fn read_range(file: &File, offset: u64, length: usize, pool: &Arc<Pool>) -> io::Result<Bytes> {
    if !(POOLED_FROM..=Buffer::LONGEST).contains(&length) {
        return read_at(file, offset, length);
    }
    let mut buffer = pool.take();
    file.read_exact_at(&mut buffer.memory()[..length], offset)?;
    Ok(buffer.filled(length))
}

/// A lock that ends with its file description.
#[derive(Debug)]
struct Locked(#[expect(dead_code, reason = "holds the lock while it lives")] File);

/// A file in `~tmp`, removed when this is dropped.
#[derive(Debug)]
struct Temporary<'a> {
    tree: &'a Tree,
    name: String,
    file: File,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // After a rename there is none; any other left behind is removed at the next start.
        if let Err(error) = rustix::fs::unlinkat(&self.tree.root, &self.name, AtFlags::empty())
            && error != rustix::io::Errno::NOENT
        {
            tracing::warn!(name = self.name, %error, "could not remove a temporary file");
        }
    }
}

impl Tree {
    pub(super) fn open(path: &Path, setup: Setup) -> io::Result<Self> {
        match setup {
            Setup::Make => make_path(path)?,
            Setup::InPlace => {}
            // Looked at before anything is made.
            Setup::Existing => {
                std::fs::metadata(path.join(LOCKS))?;
            }
        }
        let root: File = {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty())?.into()
        };
        let temporary = make_directory(&root, TEMPORARY)?;
        let locks = make_directory(&root, LOCKS)?;
        clean(&temporary)?;
        Ok(Self {
            root,
            locks,
            process: std::process::id(),
            temporaries: AtomicU64::new(0),
            pool: Arc::default(),
            making: RwLock::new(()),
        })
    }

    pub(super) fn root(&self) -> &File {
        &self.root
    }

    /// The object's file and its size; `None` if there is no object.
    fn look(&self, key: &str) -> io::Result<Option<(File, u64)>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file: File = match rustix::fs::openat(&self.root, key, flags, Mode::empty()) {
            Ok(file) => file.into(),
            Err(error) if absent(&error.into()) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        Ok(metadata.is_file().then_some((file, metadata.len())))
    }

    /// A range of an object, if the system has all of it in memory: waits for no disk. `None` says nothing
    /// else.
    pub(super) fn read_at_hand(&self, key: &str, offset: u64, length: usize) -> Option<Object> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = rustix::fs::openat2(&self.root, key, flags, Mode::empty(), ResolveFlags::CACHED);
        let file: File = opened.ok()?.into();
        let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        // To the system, the largest offset is none at all.
        offset.checked_add(length as u64).filter(|end| *end <= metadata.len())?;
        let etag = kept_version(&file, metadata.len())?;
        let mut body = vec![0; length];
        let slices = &mut [IoSliceMut::new(&mut body)];
        let read = rustix::io::preadv2(&file, slices, offset, ReadWriteFlags::NOWAIT).ok()?;
        (read == length).then(|| Object { body: body.into(), etag })
    }

    fn version(file: &File, size_bytes: u64) -> io::Result<ETag> {
        if let Some(kept) = kept_version(file, size_bytes) {
            return Ok(kept);
        }
        let length = usize::try_from(size_bytes).map_err(|_| io::Error::from(ErrorKind::FileTooLarge))?;
        Ok(etag_of(&read_at(file, 0, length)?))
    }

    pub(super) fn read(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        let failed = |error| failure(key, error);
        let (file, size_bytes) =
            self.look(key).map_err(failed)?.ok_or_else(|| Error::NotFound { key: key.to_owned() })?;
        let (offset, wanted) = match range {
            ByteRange::Full if size_bytes > MAX_WHOLE_BYTES => {
                return Err(Error::TooLarge { key: key.to_owned(), size_bytes });
            }
            ByteRange::Full => (0, size_bytes),
            ByteRange::Bounded { offset, length } => (offset, length),
        };
        let short = || {
            let got = size_bytes.saturating_sub(offset).min(wanted);
            Error::Truncated { key: key.to_owned(), wanted, got }
        };
        if offset.checked_add(wanted).is_none_or(|end| end > size_bytes) {
            return Err(short());
        }
        let length = usize::try_from(wanted).map_err(|_| short())?;
        let body = match range {
            ByteRange::Full => read_at(&file, offset, length),
            ByteRange::Bounded { .. } => read_range(&file, offset, length, &self.pool),
        };
        let body = body.map_err(failed)?;
        let etag = match range {
            ByteRange::Full => kept_version(&file, size_bytes).unwrap_or_else(|| etag_of(&body)),
            ByteRange::Bounded { .. } => Self::version(&file, size_bytes).map_err(failed)?,
        };
        Ok(Object { body, etag })
    }

    pub(super) fn write(&self, key: &str, body: &[u8], condition: &Condition) -> Result<ETag, Error> {
        let etag = etag_of(body);
        let placed = self.temporary(body, &etag).and_then(|temporary| self.place(key, &temporary, condition));
        match placed {
            Ok(true) => Ok(etag),
            Ok(false) => Err(Error::PreconditionFailed { key: key.to_owned() }),
            Err(error) => Err(failure(key, error)),
        }
    }

    /// Writes a file that is durable but for its name.
    fn temporary(&self, body: &[u8], etag: &ETag) -> io::Result<Temporary<'_>> {
        loop {
            let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
            let name = format!("{TEMPORARY}/{}-{number}", self.process);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file: File = match rustix::fs::openat(&self.root, &name, flags, FILE_MODE) {
                Ok(file) => file.into(),
                // Another process of the same number, in another namespace.
                Err(rustix::io::Errno::EXIST) => continue,
                Err(error) => return Err(error.into()),
            };
            let temporary = Temporary { tree: self, name, file };
            // Whoever cleans up removes what nobody has locked, so one that was removed before it was locked
            // is made again.
            match rustix::fs::flock(&temporary.file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if rustix::fs::fstat(&temporary.file)?.st_nlink > 0 => {}
                Ok(()) | Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let kept = etag.0.as_bytes();
            if let Err(error) =
                rustix::fs::fsetxattr(&temporary.file, VERSION_ATTRIBUTE, kept, XattrFlags::empty())
            {
                tracing::trace!(%error, "no extended attribute: reading a range will hash the whole file");
            }
            direct::write_all(&temporary.file, body, &self.pool)?;
            sync_file(&temporary.file)?;
            return Ok(temporary);
        }
    }

    /// Gives a file the object's name, durably, if the condition holds.
    fn place(&self, key: &str, temporary: &Temporary<'_>, condition: &Condition) -> io::Result<bool> {
        let (directory, name) = split(key);
        for _ in 0..PARENT_ATTEMPTS {
            let parent = self.parent(directory)?;
            match self.enter(&parent, key, name, temporary, condition) {
                Ok(entered) => {
                    // Also where another stands: whoever is told so may rely on it.
                    sync_directory(&parent)?;
                    return Ok(entered);
                }
                // The directory was emptied and removed in between.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("the directory was removed again and again"))
    }

    fn enter(
        &self,
        parent: &File,
        key: &str,
        name: &str,
        temporary: &Temporary<'_>,
        condition: &Condition,
    ) -> io::Result<bool> {
        let from = &temporary.name;
        match condition {
            Condition::IfAbsent => {
                match rustix::fs::linkat(&self.root, from, parent, name, AtFlags::empty()) {
                    Ok(()) => Ok(true),
                    Err(rustix::io::Errno::EXIST) => match rustix::fs::statat(parent, name, AtFlags::empty())
                    {
                        Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() => {
                            Err(ErrorKind::IsADirectory.into())
                        }
                        _ => Ok(false),
                    },
                    Err(error) => Err(error.into()),
                }
            }
            Condition::Always => {
                let _locked = self.lock(key, FlockOperation::LockShared)?;
                rustix::fs::renameat(&self.root, from, parent, name)?;
                Ok(true)
            }
            Condition::IfMatch(wanted) => {
                let _locked = self.lock(key, FlockOperation::LockExclusive)?;
                let stands = match self.look(key)? {
                    Some((file, size_bytes)) => Self::version(&file, size_bytes)? == *wanted,
                    None => false,
                };
                if stands {
                    rustix::fs::renameat(&self.root, from, parent, name)?;
                }
                Ok(stands)
            }
        }
    }

    /// Opens a directory, made durably where it is absent.
    fn parent(&self, directory: &str) -> io::Result<File> {
        {
            let _none_is_made = self.making.read();
            match open_directory(&self.root, directory) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                opened => return opened,
            }
        }
        let _making = self.making.write();
        let mut at = self.root.try_clone()?;
        for name in directory.split('/') {
            at = make_directory(&at, name)?;
        }
        Ok(at)
    }

    fn lock(&self, key: &str, operation: FlockOperation) -> io::Result<Locked> {
        let name = (xxh3::xxh3_64(key.as_bytes()) % LOCK_COUNT).to_string();
        // A lock belongs to an open file description: each holder opens its own.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let file: File = rustix::fs::openat(&self.locks, name, flags, FILE_MODE)?.into();
        loop {
            match rustix::fs::flock(&file, operation) {
                Ok(()) => return Ok(Locked(file)),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) fn delete(&self, keys: &[String]) -> Result<(), Error> {
        let mut parents = BTreeSet::new();
        for key in keys {
            if self.unlink(key).map_err(|error| failure(key, error))? {
                parents.insert(split(key).0);
            }
        }
        // The deepest first, so that a directory is empty by the time that its turn comes.
        for directory in parents.into_iter().rev() {
            self.settle(directory).map_err(|error| failure(directory, error))?;
        }
        Ok(())
    }

    fn unlink(&self, key: &str) -> io::Result<bool> {
        let _locked = self.lock(key, FlockOperation::LockShared)?;
        match rustix::fs::unlinkat(&self.root, key, AtFlags::empty()).map_err(io::Error::from) {
            Ok(()) => Ok(true),
            Err(error) if absent(&error) || error.kind() == ErrorKind::IsADirectory => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes deletions in a directory durable, then removes it and those above it that are empty.
    fn settle(&self, directory: &str) -> io::Result<()> {
        match open_directory(&self.root, directory) {
            Ok(opened) => sync_directory(&opened)?,
            Err(error) if absent(&error) => {}
            Err(error) => return Err(error),
        }
        let mut empty = directory;
        while empty != "." {
            // Not empty, or gone already: either way there is no more to do.
            if rustix::fs::unlinkat(&self.root, empty, AtFlags::REMOVEDIR).is_err() {
                break;
            }
            empty = split(empty).0;
        }
        Ok(())
    }
}

/// Makes a directory and those above it, durably.
fn make_path(path: &Path) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let mut missing: Vec<PathBuf> = Vec::new();
    for above in path.ancestors() {
        if above.try_exists()? {
            break;
        }
        missing.push(above.to_owned());
    }
    for directory in missing.iter().rev() {
        match std::fs::create_dir(directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if let Some(above) = directory.parent() {
            sync_directory(&File::open(above)?)?;
        }
    }
    Ok(())
}

/// Removes the temporary files that no process is writing.
fn clean(temporary: &File) -> io::Result<()> {
    for entry in rustix::fs::Dir::read_from(temporary)? {
        let entry = entry?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let Ok(file) = rustix::fs::openat(temporary, entry.file_name(), flags, Mode::empty()) else {
            continue;
        };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            && let Err(error) = rustix::fs::unlinkat(temporary, entry.file_name(), AtFlags::empty())
        {
            tracing::warn!(name = ?entry.file_name(), %error, "could not remove a temporary file");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::StoreOutcome;

    #[test]
    fn an_error_of_the_file_system_says_whether_to_try_again() {
        // Numbers of Linux: ENOSPC, EDQUOT, EIO, EMFILE; EACCES, EPERM, EROFS; ENOTDIR, EISDIR, ENAMETOOLONG.
        for (errors, outcome) in [
            (&[28, 122, 5, 24][..], StoreOutcome::Transient),
            (&[13, 1, 30], StoreOutcome::Denied),
            (&[20, 21, 36], StoreOutcome::Rejected),
        ] {
            for number in errors {
                let error = failure("k", io::Error::from_raw_os_error(*number));
                assert_eq!(error.outcome(), outcome, "{error}");
            }
        }
    }
}
