//! The directory for a user's sockets: `/run/cairn` for root, and `cairn` in `XDG_RUNTIME_DIR` for other
//! users.
//!
//! Owns the choice of this directory, and must not know what listens there. Invariant: a directory is not
//! used if another user could replace our socket in it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Mode of a directory that we create.
const MODE: u32 = 0o700;
/// Mode bits that only the owner may have.
const WRITE_OF_OTHERS: u32 = 0o022;
/// The parent directory for root.
const OF_ROOT: &str = "/run";
/// Name of our directory in the parent.
const OURS: &str = "cairn";

/// Why there is no usable directory.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// The runtime directory of this user is not known.
    #[error("XDG_RUNTIME_DIR is not set to an absolute path")]
    Unknown,
    /// Another user can change the directory.
    #[error("{}: this directory is not safe for a socket: {why}", path.display())]
    Unsafe {
        /// Path of the directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The system returned an error.
    #[error("{}: {source}", path.display())]
    Io {
        /// Path of the directory.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// Returns the directory of this user, whether or not it exists.
pub(super) fn path() -> Result<PathBuf, Unusable> {
    let user = rustix::process::geteuid();
    path_of(user.is_root(), std::env::var_os("XDG_RUNTIME_DIR").as_deref())
}

/// Root's directory never depends on a variable, because `sudo` may have kept that of another user.
fn path_of(root: bool, runtime: Option<&OsStr>) -> Result<PathBuf, Unusable> {
    let parent = match runtime {
        _ if root => Path::new(OF_ROOT),
        Some(runtime) if Path::new(runtime).is_absolute() => Path::new(runtime),
        _ => return Err(Unusable::Unknown),
    };
    Ok(parent.join(OURS))
}

/// Returns the directory of this user, and creates it if it does not exist.
pub(super) fn prepare() -> Result<PathBuf, Unusable> {
    let directory = path()?;
    if let Some(parent) = directory.parent() {
        check(parent)?;
    }
    prepare_one(&directory)?;
    Ok(directory)
}

/// Creates the directory for a socket if only its last component does not exist.
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
        // A read-only file system may return an error although the directory exists.
        Err(_) if directory.is_dir() => {}
        Err(source) => return Err(Unusable::Io { path: directory.to_path_buf(), source }),
    }
    check(directory)
}

/// Fails if a user other than this one and root could create, remove or rename something in the directory.
/// Links are followed: the location of a link is checked too, or was named by whoever started the process.
fn check(directory: &Path) -> Result<(), Unusable> {
    let path = || directory.to_path_buf();
    let found = std::fs::metadata(directory).map_err(|source| Unusable::Io { path: path(), source })?;
    let unsafe_for = |why| Err(Unusable::Unsafe { path: path(), why });
    let user = rustix::process::geteuid().as_raw();
    if !found.is_dir() {
        return unsafe_for("it is not a directory".to_owned());
    }
    if found.uid() != user && found.uid() != 0 {
        return unsafe_for(format!(
            "it belongs to user {}, but the gateway runs as user {user}",
            found.uid()
        ));
    }
    if found.mode() & WRITE_OF_OTHERS != 0 {
        return unsafe_for(format!(
            "users other than its owner can write to it (mode {:o})",
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
