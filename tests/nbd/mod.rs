//! `cairn nbd`: serves files, queries servers, copies and mirrors disks. Other programs read the results.

mod copy;
mod dead;
mod inherited;
mod mirror;
mod query;
mod same;
mod serve;
mod text;

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::process::Command;

use crate::support::cairn::program;
use crate::support::process::{Finished, Process, command, finish, listens_at, run};

/// A command that runs `cairn nbd`, without any variable of Cairn in its environment.
fn cairn_nbd<'a>(words: impl IntoIterator<Item = &'a str>) -> Command {
    let mut cairn = program();
    cairn.arg("nbd").args(words);
    cairn
}

/// Runs `cairn nbd`, which must exit with this status.
async fn ends_with(status: i32, words: &[&str]) -> Finished {
    let done = finish(&mut cairn_nbd(words.iter().copied())).await;
    assert_eq!(done.status.code(), Some(status), "cairn nbd {words:?}: {}{}", done.stdout, done.stderr);
    done
}

/// A directory with the files of a test.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Creates a file with these bytes.
    fn write(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        self.text(name)
    }

    /// Creates a file without data.
    fn sparse(&self, name: &str, bytes: u64) -> String {
        std::fs::File::create(self.path(name)).unwrap().set_len(bytes).unwrap();
        self.text(name)
    }
}

/// `cairn nbd` as a server.
struct Served {
    process: Process,
    uri: String,
}

impl Served {
    /// Starts it on a free port without TLS, and waits until it listens.
    async fn start(words: &[&str]) -> Self {
        Self::encrypted(&[words, &["--no-tls"]].concat()).await
    }

    /// Starts it with the TLS options in `words`.
    async fn encrypted(words: &[&str]) -> Self {
        Self::spawn(&mut cairn_nbd([words, &["--port", "0"]].concat())).await
    }

    /// Starts it without TLS, with this log level.
    async fn logging(words: &[&str], level: &str) -> Self {
        let words = [words, &["--no-tls", "--port", "0"]].concat();
        Self::spawn(cairn_nbd(words).env("CAIRN_LOG__LEVEL", level)).await
    }

    async fn spawn(command: &mut Command) -> Self {
        let mut process = Process::spawn("cairn nbd", command);
        let announced = |line: &str| line.strip_prefix("listening on ").map(str::to_owned);
        let uri = process.wait_for("its address", announced).await;
        Self { process, uri }
    }

    /// Sends SIGTERM. The server must exit with this status.
    async fn terminate(mut self, status: i32) -> String {
        self.process.signal(rustix::process::Signal::TERM);
        let ended = self.process.exit().await;
        assert_eq!(ended.code(), Some(status), "{}", self.process.output());
        self.process.output()
    }
}

/// A server of another program, on a Unix socket in a directory of its own.
struct Other {
    process: Process,
    socket: PathBuf,
    _directory: TempDir,
}

impl Other {
    async fn nbdkit(words: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let line = ["nbdkit", "--foreground", "--exit-with-parent", "--unix", socket.to_str().unwrap()];
        let process = Process::spawn("nbdkit", &mut command([&line[..], words].concat()));
        listens_at(&socket).await;
        Self { process, socket, _directory: directory }
    }

    async fn qemu(words: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let at = format!("--socket={}", socket.display());
        let line = ["qemu-nbd", "--persistent", "--shared=8", "--format=raw", &at];
        let process = Process::spawn("qemu-nbd", &mut command([&line[..], words].concat()));
        listens_at(&socket).await;
        Self { process, socket, _directory: directory }
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }
}

/// Panics unless QEMU reads the same content from both.
async fn assert_alike(one: &str, other: &str) {
    run(&mut command(["qemu-img", "compare", "-f", "raw", "-F", "raw", one, other])).await;
}

/// Returns how many bytes a file occupies on its file system.
fn allocated(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(path).unwrap()) * 512
}
