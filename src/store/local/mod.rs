//! A store in a directory: each object is a file at the path of its key, with the conditional writes of S3.
//!
//! Owns the threads that do the blocking work of `tree`, and must not know what is stored. Several processes
//! of one host may share a directory. Invariant: when a PUT or DELETE returns, its effect is on disk,
//! including the entries of directories.

mod direct;
mod tree;
mod walk;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::task::Tasks;

use super::error::cause;
use super::listing::PAGE_ENTRIES;
use super::{ByteRange, Condition, ETag, Error, ListFrom, Listing, Object, Store, key};
use tree::Tree;

/// Maximum size in bytes of a read that is served on the calling thread if the data is in the page cache.
/// Waking another thread would cost more than copying that much.
const AT_HAND_BYTES: u64 = 128 << 10;

/// What may be created in order to open a store in a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Setup {
    /// The directory and the store in it.
    #[default]
    Make,
    /// A store, in a directory that exists.
    InPlace,
    /// Nothing: the store must exist already.
    Existing,
}

/// A store in a directory.
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
    tree: Arc<Tree>,
    tasks: Tasks,
}

impl LocalStore {
    /// Opens the store in the directory `root`. Creates the directory if it does not exist, and removes files
    /// that a crash left half written.
    ///
    /// # Errors
    /// Those of the file system.
    pub async fn open(root: &Path) -> std::io::Result<Self> {
        Self::open_as(root, Setup::Make).await
    }

    /// Opens the store in the directory `root`, and creates only what `setup` allows.
    ///
    /// # Errors
    /// Those of the file system; [`std::io::ErrorKind::NotFound`] if the directory or its store does not
    /// exist and `setup` does not allow its creation.
    pub async fn open_as(root: &Path, setup: Setup) -> std::io::Result<Self> {
        let tasks = Tasks::new();
        let path = root.to_owned();
        let opened = tasks.spawn_blocking(move || Tree::open(&path, setup)).await;
        let tree = Arc::new(opened.map_err(std::io::Error::other)??);
        Ok(Self { root: root.to_owned(), tree, tasks })
    }

    /// Returns the path of the directory, as it was passed to [`LocalStore::open`].
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    async fn run<T: Send + 'static>(
        &self,
        key: &str,
        work: impl FnOnce(&Tree) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let tree = Arc::clone(&self.tree);
        match self.tasks.spawn_blocking(move || work(&tree)).await {
            Ok(answer) => answer,
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(cancelled) => {
                    Err(Error::Transient { key: key.to_owned(), source: cause(cancelled.to_string()) })
                }
            },
        }
    }
}

#[async_trait]
impl Store for LocalStore {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        key::check(key)?;
        if let ByteRange::Bounded { offset, length: length @ ..=AT_HAND_BYTES } = range
            && let Ok(length) = usize::try_from(length)
            && let Some(object) = self.tree.read_at_hand(key, offset, length)
        {
            return Ok(object);
        }
        let name = key.to_owned();
        self.run(key, move |tree| tree.read(&name, range)).await
    }

    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        key::check(key)?;
        let name = key.to_owned();
        self.run(key, move |tree| tree.write(&name, &body, &condition)).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        keys.iter().try_for_each(|key| key::check(key))?;
        let first = keys.first().map_or("", String::as_str);
        let names = keys.to_vec();
        self.run(first, move |tree| tree.delete(&names)).await
    }

    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        key::check_prefix(prefix)?;
        let (wanted, from) = (prefix.to_owned(), from.clone());
        self.run(prefix, move |tree| walk::list(tree.root(), &wanted, &from, PAGE_ENTRIES)).await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(path).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn an_object_is_a_file_at_its_key_and_no_other_file_remains() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("new/root");
        let store = LocalStore::open(&root).await.unwrap();
        let body = Bytes::from_static(b"body");
        store.put("volume/a/head", body.clone(), Condition::IfAbsent).await.unwrap();
        store.put("volume/a/head", body.clone(), Condition::IfAbsent).await.unwrap_err();
        store.put("volume/a/head", body.clone(), Condition::Always).await.unwrap();
        store.put("volume/a/head", body, Condition::IfMatch(ETag("x".into()))).await.unwrap_err();
        assert_eq!(std::fs::read(root.join("volume/a/head")).unwrap(), b"body");
        assert_eq!(
            std::fs::metadata(root.join("volume/a/head")).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(names(&root.join("~tmp")), [""; 0]);
        store.delete(&["volume/a/head".into()]).await.unwrap();
        assert_eq!(names(&root), ["~lock", "~tmp"], "emptied directories go");
    }

    #[tokio::test]
    async fn half_written_files_of_a_crash_are_removed_and_files_being_written_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        drop(LocalStore::open(root).await.unwrap());
        std::fs::write(root.join("~tmp/1-0"), b"left by a crash").unwrap();
        let writing = std::fs::File::create(root.join("~tmp/1-1")).unwrap();
        writing.lock().unwrap();
        let store = LocalStore::open(root).await.unwrap();
        assert_eq!(names(&root.join("~tmp")), ["1-1"]);
        assert_eq!(store.list("", &ListFrom::Start).await.unwrap(), Listing::default());
    }

    #[tokio::test]
    async fn a_file_from_elsewhere_has_the_version_of_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).await.unwrap();
        let body = Bytes::from(vec![7; 100_000]);
        let etag = store.put("ours", body.clone(), Condition::Always).await.unwrap();
        std::fs::write(directory.path().join("copied"), &body).unwrap();
        let range = ByteRange::Bounded { offset: 10, length: 10 };
        assert_eq!(store.get("copied", range).await.unwrap().etag, etag);
        assert_eq!(store.get("ours", range).await.unwrap().etag, etag);
        store.put("copied", Bytes::from_static(b"next"), Condition::IfMatch(etag)).await.unwrap();
    }

    #[tokio::test]
    async fn cached_data_is_read_without_waiting_and_is_identical() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).await.unwrap();
        let body: Bytes = (0..300_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        let etag = store.put("a/b", body.clone(), Condition::Always).await.unwrap();
        // Some file systems, such as those of containers, do not report what is in the page cache.
        let file = std::fs::File::open(directory.path().join("a/b")).unwrap();
        let mut byte = [0];
        let slices = &mut [std::io::IoSliceMut::new(&mut byte)];
        let can_tell = rustix::io::preadv2(&file, slices, 0, rustix::io::ReadWriteFlags::NOWAIT).is_ok();
        for (offset, length) in [(0, 1), (70_000, 65_536), (299_999, 1), (0, 131_072)] {
            let range = ByteRange::Bounded { offset, length };
            let start = usize::try_from(offset).unwrap();
            let wanted = &body[start..start + usize::try_from(length).unwrap()];
            // The body was written through the page cache, so it is still there.
            let got = store.tree.read_at_hand("a/b", offset, wanted.len());
            assert_eq!(got.is_some(), can_tell);
            assert!(got.is_none_or(|got| got.body == wanted && got.etag == etag));
            assert!(store.get("a/b", range).await.unwrap().body == wanted);
        }
        assert!(store.tree.read_at_hand("a/b", u64::MAX, 2).is_none());
        let beyond = ByteRange::Bounded { offset: 299_999, length: 2 };
        assert!(matches!(store.get("a/b", beyond).await, Err(Error::Truncated { wanted: 2, got: 1, .. })));
        let absent = ByteRange::Bounded { offset: 0, length: 1 };
        assert!(matches!(store.get("a/c", absent).await, Err(Error::NotFound { .. })));
    }

    #[tokio::test]
    async fn two_stores_share_a_directory_as_two_processes_would() {
        let directory = tempfile::tempdir().unwrap();
        let one = LocalStore::open(directory.path()).await.unwrap();
        let two = LocalStore::open(directory.path()).await.unwrap();
        let mut etag = one.put("head", Bytes::from_static(b"0"), Condition::IfAbsent).await.unwrap();
        for round in 1..50u32 {
            let when = Condition::IfMatch(etag.clone());
            let (a, b) = (format!("{round} one"), format!("{round} two"));
            let answers =
                tokio::join!(one.put("head", a.into(), when.clone()), two.put("head", b.into(), when));
            etag = match answers {
                (Ok(etag), Err(Error::PreconditionFailed { .. }))
                | (Err(Error::PreconditionFailed { .. }), Ok(etag)) => etag,
                other => panic!("not one winner: {other:?}"),
            };
        }
    }

    #[tokio::test]
    async fn file_system_errors_say_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).await.unwrap();
        let body = Bytes::from_static(b"x");
        store.put("a", body.clone(), Condition::Always).await.unwrap();
        let below = store.put("a/b", body.clone(), Condition::Always).await.unwrap_err();
        assert!(matches!(below, Error::Rejected { .. }), "{below}");
        assert!(matches!(store.get("a/b", ByteRange::Full).await, Err(Error::NotFound { .. })));
        store.put("d/e", body.clone(), Condition::Always).await.unwrap();
        for condition in [Condition::Always, Condition::IfAbsent] {
            let above = store.put("d", body.clone(), condition).await.unwrap_err();
            assert!(matches!(above, Error::Rejected { .. }), "{above}");
        }
        assert!(matches!(store.get("d", ByteRange::Full).await, Err(Error::NotFound { .. })));
        store.delete(&["d".into(), "a/b".into()]).await.unwrap();
        assert!(std::fs::metadata(directory.path().join("d/e")).unwrap().size() == 1);
    }
}
