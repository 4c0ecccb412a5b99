//! Listing a directory tree in order of key: a page ends at a key, and the next begins behind it. It blocks.
//!
//! Of a tree only those directories are read that can hold a key that is asked for. Invariant: a key's order
//! is that of its bytes, so a directory is ordered by its name and the `/` that follows it (`a-b` < `a/b` <
//! `a0`).

use std::fs::File;
use std::io::{self, ErrorKind};

use rustix::fs::{AtFlags, Dir, FileType};

use super::super::{Entry, Error, ListFrom, Listing, PageToken, key};
use super::tree::failure;

/// Up to `limit` keys below `root` that begin with `prefix`.
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
    /// Lists a directory (empty for the root); `true` if there is more than the limit allows.
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
                // Deleted since the directory was read.
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

    /// What of a directory may hold keys that are asked for: keys, and directories with a `/` at the end, in
    /// order.
    fn names(&self, path: &str) -> io::Result<Vec<String>> {
        let opened = if path.is_empty() { "." } else { path };
        let flags = rustix::fs::OFlags::RDONLY
            | rustix::fs::OFlags::DIRECTORY
            | rustix::fs::OFlags::NOFOLLOW
            | rustix::fs::OFlags::CLOEXEC;
        let directory = match rustix::fs::openat(self.root, opened, flags, rustix::fs::Mode::empty()) {
            Ok(directory) => directory,
            // Removed since the one above was read, or not a directory: no keys.
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
            // Also leaves out `.`, `..`, and the store's own `~tmp` and `~lock`.
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
