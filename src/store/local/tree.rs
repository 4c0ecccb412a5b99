//! Objects as files below one directory: reads, atomic and durable writes, and deletions. Every call blocks.
//!
//! Owns the layout of the directory, and must not know tasks or what the objects mean. A new object is
//! written to `~tmp` and made durable. It is then linked, which fails if the object exists, or renamed over
//! the old object. No key contains a `~`. Whatever replaces or removes an object holds one of the locks in
//! `~lock`: shared, or exclusive for If-Match, which holds it from reading the old object until the rename.
//! Paths are relative to an open directory, so that an unmounted file system is an error and not an empty
//! store. Invariant: a file under the name of an object is complete and durable, and is never written again.

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

use crate::buffers::Buffers;
use crate::mutant::{self, Mutant};

use super::super::error::Source;
use super::super::{ByteRange, Condition, ETag, Error, MAX_WHOLE_BYTES, Object};
use super::Setup;
use super::direct;

const TEMPORARY: &str = "~tmp";
const LOCKS: &str = "~lock";
/// Number of locks over which the keys are distributed.
const LOCK_COUNT: u64 = 16;
/// Extended attribute with the ETag of a file, so that reading a range does not require hashing the rest. It
/// is only a cache of the hash: file systems without extended attributes work too.
const VERSION_ATTRIBUTE: &str = "user.cairn.etag";
/// How often to recreate a directory that other processes keep removing as empty.
const PARENT_ATTEMPTS: u32 = 64;
/// Limit on the memory of idle buffers. A sequential reader has several bodies of the default `cache.fetch`
/// in flight, of 4 MiB and their tags, and their number varies.
const IDLE_BYTES: usize = 26 << 20;
/// Access for the owner only, because the files contain the data of people's disks.
const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o700);

/// The directory of a store.
#[derive(Debug)]
pub(super) struct Tree {
    root: File,
    locks: File,
    process: u32,
    temporaries: AtomicU64,
    buffers: Arc<Buffers>,
    /// Held for writing while directories are created, so that nobody uses a directory that is not durable
    /// yet.
    making: RwLock<()>,
}

fn open_directory(at: &File, path: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty())?.into())
}

/// Makes the entries of a directory durable.
fn sync_directory(directory: &File) -> io::Result<()> {
    if mutant::is(Mutant::DirectoryUnsynced) { Ok(()) } else { directory.sync_all() }
}

/// Creates a directory if it does not exist, and makes it durable in either case.
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

/// Converts an error that says nothing about the object itself into what the caller should do.
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
        // A full disk, an I/O error or too many open files: these pass, or an operator can fix them.
        _ => Error::Transient { key, source },
    }
}

fn etag_of(body: &[u8]) -> ETag {
    ETag(format!("{:032x}-{:x}", xxh3::xxh3_128(body), body.len()).into())
}

/// Returns the cached ETag of a file of `size_bytes` bytes, if it exists and can belong to that content.
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

/// Does what [`read_at`] does, but uses memory again.
fn read_range(file: &File, offset: u64, length: usize, buffers: &Arc<Buffers>) -> io::Result<Bytes> {
    let mut memory = buffers.take_filled(length);
    file.read_exact_at(&mut memory, offset)?;
    Ok(buffers.lend(memory))
}

/// A lock that is released when its file is closed.
#[derive(Debug)]
struct Locked(#[expect(dead_code, reason = "holds the lock while it lives")] File);

/// A file in `~tmp`, removed on drop.
#[derive(Debug)]
struct Temporary<'a> {
    tree: &'a Tree,
    name: String,
    file: File,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // After a rename the file no longer exists. If removal fails, the next start removes the file.
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
            // Checked before anything is created.
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
            buffers: Buffers::new(IDLE_BYTES),
            making: RwLock::new(()),
        })
    }

    pub(super) fn root(&self) -> &File {
        &self.root
    }

    /// Opens the file of an object and returns it with its size. `None` if the object does not exist.
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

    /// Reads a range of an object without waiting for the disk, if all of it is in the page cache. `None`
    /// only means that it was not read this way.
    pub(super) fn read_at_hand(&self, key: &str, offset: u64, length: usize) -> Option<Object> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = rustix::fs::openat2(&self.root, key, flags, Mode::empty(), ResolveFlags::CACHED);
        let file: File = opened.ok()?.into();
        let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        // The system takes the largest offset for no offset at all.
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
            ByteRange::Bounded { .. } => read_range(&file, offset, length, &self.buffers),
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

    /// Writes a temporary file whose content is durable.
    fn temporary(&self, body: &[u8], etag: &ETag) -> io::Result<Temporary<'_>> {
        loop {
            let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
            let name = format!("{TEMPORARY}/{}-{number}", self.process);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file: File = match rustix::fs::openat(&self.root, &name, flags, FILE_MODE) {
                Ok(file) => file.into(),
                // A process in another PID namespace has the same process id.
                Err(rustix::io::Errno::EXIST) => continue,
                Err(error) => return Err(error.into()),
            };
            let temporary = Temporary { tree: self, name, file };
            // A cleanup removes files that nobody has locked. If it removed this file before it was locked,
            // write another one.
            match rustix::fs::flock(&temporary.file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if rustix::fs::fstat(&temporary.file)?.st_nlink > 0 => {}
                Ok(()) | Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let kept = etag.0.as_bytes();
            if let Err(error) =
                rustix::fs::fsetxattr(&temporary.file, VERSION_ATTRIBUTE, kept, XattrFlags::empty())
            {
                tracing::trace!(%error, "no extended attribute: reading a range hashes the whole file");
            }
            direct::write_all(&temporary.file, body, &self.buffers)?;
            if !mutant::is(Mutant::FileUnsynced) {
                temporary.file.sync_all()?;
            }
            return Ok(temporary);
        }
    }

    /// Gives a temporary file the name of the object, durably, if the condition holds.
    fn place(&self, key: &str, temporary: &Temporary<'_>, condition: &Condition) -> io::Result<bool> {
        let (directory, name) = split(key);
        for _ in 0..PARENT_ATTEMPTS {
            let parent = self.parent(directory)?;
            match self.enter(&parent, key, name, temporary, condition) {
                Ok(entered) => {
                    // Sync even if another object exists already: the caller may rely on that answer.
                    sync_directory(&parent)?;
                    return Ok(entered);
                }
                // The directory was emptied and removed by somebody else in the meantime.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("another process keeps removing the directory"))
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

    /// Opens a directory. Creates it, durably, if it does not exist.
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
        // A lock belongs to an open file description, so each holder opens the file itself.
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
        // Deepest directory first, so that each one is empty when it is removed.
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

    /// Makes the deletions in a directory durable, then removes it and its ancestors as long as they are
    /// empty.
    fn settle(&self, directory: &str) -> io::Result<()> {
        match open_directory(&self.root, directory) {
            Ok(opened) => sync_directory(&opened)?,
            Err(error) if absent(&error) => {}
            Err(error) => return Err(error),
        }
        let mut empty = directory;
        while empty != "." {
            // The directory is not empty, or it is gone already. In both cases nothing is left to do.
            if rustix::fs::unlinkat(&self.root, empty, AtFlags::REMOVEDIR).is_err() {
                break;
            }
            empty = split(empty).0;
        }
        Ok(())
    }
}

/// Creates a directory and its ancestors, durably.
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

/// Removes temporary files that no process is writing.
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
    fn a_file_system_error_says_whether_to_retry() {
        // Error numbers of Linux: ENOSPC, EDQUOT, EIO, EMFILE; EACCES, EPERM, EROFS; ENOTDIR, EISDIR,
        // ENAMETOOLONG.
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
