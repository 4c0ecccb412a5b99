//! Lists a directory tree in the order of keys. The call blocks.
//!
//! Owns the order and the pages of a listing, and must not know how objects are written. A page ends at a
//! key, and the next one begins after that key. Only directories that can contain a requested key are read.
//! Invariant: keys are ordered by their bytes, so a directory is ordered by its name followed by `/` (`a-b` <
//! `a/b` < `a0`).

use std::fs::File;
use std::io::{self, ErrorKind};

use rustix::fs::{AtFlags, Dir, FileType};

use super::super::{Entry, Error, ListFrom, Listing, PageToken, key};
use super::tree::failure;

/// Lists at most `limit` keys below `root` that begin with `prefix`.
pub(super) fn list(root: &File, prefix: &str, from: &ListFrom, limit: usize) -> Result<Listing, Error> {
    let start_after = match from {
        ListFrom::Start => "",
        ListFrom::After(key) => key,
        ListFrom::Page(PageToken(last)) => last,
    };
    let mut walk = Walk { root, prefix, start_after, limit, entries: Vec::new() };
    let directory = prefix.rsplit_once('/').map_or("", |(directory, _)| directory);
    let more = walk.directory(directory).map_err(|error| failure(prefix, error))?;
    let last = walk.entries.last().filter(|_| more);
    let next = last.map(|last| PageToken(last.key.as_str().into()));
    Ok(Listing { entries: walk.entries, next })
}

struct Walk<'a> {
    root: &'a File,
    prefix: &'a str,
    start_after: &'a str,
    limit: usize,
    entries: Vec<Entry>,
}

impl Walk<'_> {
    /// Lists a directory, or the root if `path` is empty. Returns `true` if the limit is reached and more
    /// keys follow.
    fn directory(&mut self, path: &str) -> io::Result<bool> {
        for name in self.names(path)? {
            if name.ends_with('/') {
                if self.directory(name.trim_end_matches('/'))? {
                    return Ok(true);
                }
                continue;
            }
            let stat = match rustix::fs::statat(self.root, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // The file was deleted after the directory was read.
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => continue,
                Err(error) => return Err(error.into()),
            };
            if !FileType::from_raw_mode(stat.st_mode).is_file() {
                continue;
            }
            if self.entries.len() == self.limit {
                return Ok(true);
            }
            let size_bytes = u64::try_from(stat.st_size).map_err(|_| ErrorKind::InvalidData)?;
            self.entries.push(Entry { key: name, size_bytes });
        }
        Ok(false)
    }

    /// Returns the sorted entries of a directory that can hold requested keys: files, and directories with a
    /// trailing `/`.
    fn names(&self, path: &str) -> io::Result<Vec<String>> {
        let opened = if path.is_empty() { "." } else { path };
        let flags = rustix::fs::OFlags::RDONLY
            | rustix::fs::OFlags::DIRECTORY
            | rustix::fs::OFlags::NOFOLLOW
            | rustix::fs::OFlags::CLOEXEC;
        let directory = match rustix::fs::openat(self.root, opened, flags, rustix::fs::Mode::empty()) {
            Ok(directory) => directory,
            // The directory was removed after its parent was read, or it is no directory. It has no keys.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error.into()),
        };
        let mut names = Vec::new();
        for entry in Dir::new(directory)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let mut name = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            // This also skips `.` and `..`, and the store's own directories `~tmp` and `~lock`.
            if key::check(&name).is_err() {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => match rustix::fs::statat(self.root, &name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(rustix::io::Errno::NOENT) => continue,
                    Err(error) => return Err(error.into()),
                },
                known => known,
            };
            if kind.is_dir() {
                name.push('/');
            }
            if self.wanted(&name) {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn wanted(&self, name: &str) -> bool {
        if name.ends_with('/') {
            (name.starts_with(self.prefix) || self.prefix.starts_with(name))
                && (name > self.start_after || self.start_after.starts_with(name))
        } else {
            name.starts_with(self.prefix) && name > self.start_after
        }
    }
}
