//! Where this user's sockets are while it runs: `/run/cairn` for root, `cairn` in `XDG_RUNTIME_DIR` for
//! others.
//!
//! Knows nothing of what listens there. Invariant: a directory in which somebody else could put something in
//! the place of a socket of ours is not used.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Permissions of a directory that we make.
const MODE: u32 = 0o700;
/// What nobody but the owner may have.
const WRITE_OF_OTHERS: u32 = 0o022;
/// Where root's is.
const OF_ROOT: &str = "/run";
/// The name of ours in it.
const OURS: &str = "cairn";

/// Why there is no directory to use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// Nobody says where this user's runtime directory is.
    #[error("XDG_RUNTIME_DIR is not set to an absolute path")]
    Unknown,
    /// Somebody else can change it.
    #[error("{}: not safe for a socket: {why}", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The directory of this user, whether it is there or not.
pub(super) fn path() -> Result<PathBuf, Unusable> {
    let user = rustix::process::geteuid();
    path_of(user.is_root(), std::env::var_os("XDG_RUNTIME_DIR").as_deref())
}

/// Root's never depends on a variable, which `sudo` may have kept of another user.
fn path_of(root: bool, runtime: Option<&OsStr>) -> Result<PathBuf, Unusable> {
    let parent = match runtime {
        _ if root => Path::new(OF_ROOT),
        Some(runtime) if Path::new(runtime).is_absolute() => Path::new(runtime),
        _ => return Err(Unusable::Unknown),
    };
    Ok(parent.join(OURS))
}

/// The directory of this user, made where it is absent.
pub(super) fn prepare() -> Result<PathBuf, Unusable> {
    let directory = path()?;
    if let Some(parent) = directory.parent() {
        check(parent)?;
    }
    prepare_one(&directory)?;
    Ok(directory)
}

/// The directory that a socket is to be in, made where it alone is absent.
pub(super) fn prepare_parent(socket: &Path) -> Result<(), Unusable> {
    match socket.parent() {
        Some(parent) if parent.as_os_str().is_empty() => check(Path::new(".")),
        Some(parent) => prepare_one(parent),
        None => Ok(()),
    }
}

fn prepare_one(directory: &Path) -> Result<(), Unusable> {
    match std::fs::DirBuilder::new().mode(MODE).create(directory) {
        Ok(()) => {}
        // A read-only file system may say so of one that is there.
        Err(_) if directory.is_dir() => {}
        Err(source) => return Err(Unusable::Io { path: directory.to_path_buf(), source }),
    }
    check(directory)
}

/// Refuses a directory in which another user, but root, could make, remove or rename something. A link is
/// followed: where it is, is checked too, or was named by whoever runs us.
fn check(directory: &Path) -> Result<(), Unusable> {
    let path = || directory.to_path_buf();
    let found = std::fs::metadata(directory).map_err(|source| Unusable::Io { path: path(), source })?;
    let unsafe_for = |why| Err(Unusable::Unsafe { path: path(), why });
    let user = rustix::process::geteuid().as_raw();
    if !found.is_dir() {
        return unsafe_for("it is not a directory".to_owned());
    }
    if found.uid() != user && found.uid() != 0 {
        return unsafe_for(format!("it belongs to user {}, and this is user {user}", found.uid()));
    }
    if found.mode() & WRITE_OF_OTHERS != 0 {
        return unsafe_for(format!(
            "others than its owner can write to it (mode {:o})",
            found.mode() & 0o7777
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn root_has_its_own_and_others_theirs() {
        let of = |root, runtime: Option<&str>| path_of(root, runtime.map(OsStr::new)).ok();
        assert_eq!(of(true, None), Some("/run/cairn".into()));
        assert_eq!(of(true, Some("/run/user/1000")), Some("/run/cairn".into()));
        assert_eq!(of(false, Some("/run/user/1000")), Some("/run/user/1000/cairn".into()));
        for nowhere in [None, Some(""), Some("run")] {
            assert_eq!(of(false, nowhere), None);
        }
    }

    #[test]
    fn a_directory_is_made_for_its_user_alone() {
        let at = tempfile::tempdir().unwrap();
        let directory = at.path().join("cairn");
        prepare_parent(&directory.join("admin.sock")).unwrap();
        assert_eq!(std::fs::metadata(&directory).unwrap().mode() & 0o7777, 0o700);
        prepare_parent(&directory.join("admin.sock")).unwrap();
        let deeper = prepare_parent(&at.path().join("a/b/admin.sock"));
        assert!(matches!(deeper, Err(Unusable::Io { .. })), "{deeper:?}");
    }

    #[test]
    fn a_directory_that_others_can_change_is_not_used() {
        let at = tempfile::tempdir().unwrap();
        let directory = at.path().join("cairn");
        std::fs::create_dir(&directory).unwrap();
        for (mode, used) in [(0o700, true), (0o755, true), (0o775, false), (0o777, false), (0o1777, false)] {
            std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(mode)).unwrap();
            let checked = prepare_parent(&directory.join("admin.sock"));
            assert_eq!(checked.is_ok(), used, "{mode:o}: {checked:?}");
        }
        let link = at.path().join("link");
        std::os::unix::fs::symlink(&directory, &link).unwrap();
        let checked = prepare_parent(&link.join("admin.sock"));
        assert!(matches!(checked, Err(Unusable::Unsafe { .. })), "{checked:?}");
        std::fs::write(at.path().join("file"), "").unwrap();
        assert!(prepare_parent(&at.path().join("file/admin.sock")).is_err());
    }
}
