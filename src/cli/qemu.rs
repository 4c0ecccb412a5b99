//! qcow2 images, by QEMU's own programs: `qemu-nbd` serves an image, and `qemu-img` creates one.
//!
//! Owns these processes, and must not know what is read or written. Invariants: no process outlives the
//! command. An image that makes QEMU read other files is not opened unless the user said that it is qcow2.

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use super::endpoint::Format;
use super::error::{Error, NbdError};
use super::nbd::DiskName;
use super::text::printable;
use crate::task::Tasks;
use crate::volume::Entropy;

const PACKAGE: &str = "qemu-utils (Debian, Ubuntu), qemu-img (Fedora) or qemu (Arch, Homebrew)";
/// The first bytes of a qcow2 image.
const MAGIC: &[u8; 4] = b"QFI\xfb";
/// Length of the part of the header that is examined.
const HEADER_BYTES: u64 = 80;
/// The bit of the incompatible features that says that the data is in another file.
const EXTERNAL_DATA: u64 = 1 << 2;

/// How an image is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// Returns the format of a file: the one that the user named, or else the one that its first bytes show.
pub(super) fn format_of(path: &Path, named: Option<Format>) -> Result<Format, Error> {
    if let Some(format) = named {
        return Ok(format);
    }
    let failed = |source| NbdError::File { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Ok(Format::Raw);
    }
    let mut header = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(HEADER_BYTES).read_to_end(&mut header).map_err(failed)?;
    if !header.starts_with(MAGIC) {
        return Ok(Format::Raw);
    }
    match other_file(&header) {
        None => Ok(Format::Qcow2),
        Some(other) => Err(Error::Mistake(format!(
            "{} begins like a qcow2 image with {other}; add --format qcow2 if you trust it to name other \
             files of this machine, or --format raw if a machine has written these bytes to its disk",
            path.display()
        ))),
    }
}

/// Returns which other file a header makes QEMU read.
fn other_file(header: &[u8]) -> Option<&'static str> {
    let number = |at: usize| {
        let bytes = header.get(at..at + 8).map(|bytes| bytes.try_into().expect("8 bytes"));
        bytes.map_or(0, u64::from_be_bytes)
    };
    let version = header.get(4..8).map_or(0, |bytes| u32::from_be_bytes(bytes.try_into().expect("4 bytes")));
    match (number(8), version >= 3 && number(72) & EXTERNAL_DATA != 0) {
        (0, false) => None,
        (0, true) => Some("an external data file"),
        _ => Some("a backing file"),
    }
}

/// Returns an error unless a program is installed.
fn require(program: &'static str) -> Result<(), Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        true => Ok(()),
        false => Err(Error::NoProgram { program, package: PACKAGE }),
    }
}

/// Creates an empty image, or replaces one.
pub(super) async fn create(image: &Path, size_bytes: u64) -> Result<(), Error> {
    const PROGRAM: &str = "qemu-img";
    require(PROGRAM)?;
    let mut command = Command::new(PROGRAM);
    command.args(["create", "-q", "-f", "qcow2", "--"]).arg(image).arg(size_bytes.to_string());
    command.stdin(Stdio::null());
    let work = Tasks::new();
    let output = work.spawn_blocking(move || command.output()).await.expect("the work does not panic");
    ended(PROGRAM, output)
}

fn ended(program: &'static str, output: io::Result<Output>) -> Result<(), Error> {
    let output = output.map_err(|source| Error::System { what: "cannot run a program of QEMU", source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let why = match said.trim() {
        "" => output.status.to_string(),
        said => printable(said).into_owned(),
    };
    Err(Error::Program { program, why })
}

/// An image that `qemu-nbd` serves.
pub(super) struct Served {
    child: Option<Child>,
    folder: PathBuf,
    image: PathBuf,
}

const SERVER: &str = "qemu-nbd";
/// How a server ended that said nothing before it was killed.
const KILLED: &str = "signal: 9 (SIGKILL)";

impl Served {
    /// Starts to serve an image. The server ends when its last client has disconnected.
    pub(super) fn start(image: &Path, access: Access, connections: u16) -> Result<Self, Error> {
        require(SERVER)?;
        let name = format!("cairn-{}", Entropy::from_os().uuid().simple());
        let folder = std::env::temp_dir().join(name);
        let failed = |source| Error::System { what: "cannot serve an image", source };
        DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
        let mut served = Self { child: None, folder, image: image.to_owned() };
        // The server inherits a socket that listens already, so there is nothing to wait for. A shell knows
        // the id of the process that it becomes.
        let listener = UnixListener::bind(served.socket()).map_err(failed)?;
        let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", SERVER, "--format=qcow2", "--discard=unmap"]);
        command.arg(format!("--shared={connections}"));
        if access == Access::Read {
            command.arg("--read-only");
        }
        command.arg("--").arg(image);
        command.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(Stdio::piped());
        served.child = Some(command.spawn().map_err(failed)?);
        Ok(served)
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("nbd")
    }

    /// Returns the name of the disk in the image.
    pub(super) fn name(&self) -> DiskName {
        DiskName::at_socket(self.socket(), self.image.display().to_string())
    }

    /// Waits until the server has written everything and ended. No client may be connected any more.
    pub(super) async fn end(mut self) -> Result<(), Error> {
        let child = self.child.take().expect("it was started");
        let work = Tasks::new();
        let output = work.spawn_blocking(move || child.wait_with_output()).await;
        ended(SERVER, output.expect("the work does not panic"))
    }

    /// Returns why no client could connect. That is `error`, unless the server says more.
    pub(super) async fn explained(mut self, error: Error) -> Error {
        // A server that has refused the image may not have ended yet.
        if let Some(child) = &mut self.child
            && let Err(error) = child.kill()
        {
            tracing::debug!("{SERVER} may still run: {error}");
        }
        match self.end().await {
            Err(Error::Program { why, .. }) if why == KILLED => error,
            Err(said) => said,
            Ok(()) => error,
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take()
            && let Err(error) = child.kill().and_then(|()| child.wait())
        {
            tracing::warn!("{SERVER} may still run: {error}");
        }
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            tracing::debug!("{} is left: {error}", self.folder.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: u32, backing: u64, features: u64) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(version.to_be_bytes());
        bytes.extend(backing.to_be_bytes());
        bytes.resize(72, 0);
        bytes.extend(features.to_be_bytes());
        bytes
    }

    #[test]
    fn the_format_is_named_or_shown_by_the_first_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let found = |bytes: &[u8], named| {
            std::fs::write(&path, bytes).unwrap();
            format_of(&path, named)
        };
        assert_eq!(found(b"", None).unwrap(), Format::Raw);
        assert_eq!(found(&[0; 512], None).unwrap(), Format::Raw);
        assert_eq!(found(&header(3, 0, 1), None).unwrap(), Format::Qcow2);
        assert_eq!(found(&header(2, 0, 4)[..76], None).unwrap(), Format::Qcow2);
        assert_eq!(found(&header(3, 0, 0), Some(Format::Raw)).unwrap(), Format::Raw);
        for bytes in [header(2, 104, 0), header(3, 104, 0), header(3, 0, 4)] {
            assert!(found(&bytes, None).unwrap_err().to_string().contains("--format raw"));
            assert_eq!(found(&bytes, Some(Format::Qcow2)).unwrap(), Format::Qcow2);
        }
        assert!(format_of(&directory.path().join("none"), None).is_err());
    }
}
