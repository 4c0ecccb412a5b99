//! The `cairn` program in tests: started with a store, awaited until it serves, signalled and killed.
//!
//! `CAIRN_TEST_BINARY` names another binary with the same command line in place of the one that cargo built.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use tempfile::TempDir;
use tokio::process::Command;

use super::minio::Minio;
use super::process::{Process, command};
use super::proxy::Proxy;

/// Where the gateways of a test store their volumes.
pub(crate) enum Store {
    /// A local directory, which is removed on drop.
    Directory(TempDir),
    /// A bucket on its own MinIO.
    Minio(Box<Minio>),
}

impl Store {
    pub(crate) fn directory() -> Self {
        Self::Directory(tempfile::tempdir().expect("a directory for the store"))
    }

    pub(crate) async fn minio() -> Self {
        Self::Minio(Box::new(Minio::start().await))
    }

    /// Returns the URL of the store.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Directory(directory) => format!("file://{}", directory.path().display()),
            Self::Minio(_) => "s3://disks/tests".to_owned(),
        }
    }

    /// Starts a proxy in front of the bucket, for [`Setup::through`].
    pub(crate) async fn proxy(&self) -> Proxy {
        match self {
            Self::Directory(_) => panic!("a directory has no port to put a proxy in front of"),
            Self::Minio(minio) => Proxy::start(minio.port()).await,
        }
    }

    fn env(&self) -> Vec<(String, String)> {
        match self {
            Self::Directory(_) => Vec::new(),
            Self::Minio(minio) => {
                let mut env = minio.env();
                env.push(("CAIRN_STORE__CREATE_BUCKET".to_owned(), "true".to_owned()));
                env.push(("CAIRN_STORE__PATH_STYLE".to_owned(), "true".to_owned()));
                env
            }
        }
    }

    /// A command that runs `cairn` with the environment for this store, and no other variables of Cairn or
    /// AWS.
    pub(crate) fn cairn<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut cairn = program();
        cairn.args(args).envs(self.env());
        cairn
    }
}

/// Returns the path of the `cairn` program under test.
pub(crate) fn binary() -> OsString {
    std::env::var_os("CAIRN_TEST_BINARY").unwrap_or_else(|| OsString::from(env!("CARGO_BIN_EXE_cairn")))
}

/// A command that runs the `cairn` program, without any variable of Cairn or AWS in its environment.
pub(crate) fn program() -> Command {
    let mut cairn = command([binary()]);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CAIRN_") || text.starts_with("AWS_") {
            cairn.env_remove(&name);
        }
    }
    // The default path of the socket is shared by the whole machine.
    cairn.env("CAIRN_ADMIN__SOCKET", "none");
    cairn
}

/// Where a gateway listens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Endpoint {
    Tcp(u16),
    Unix(PathBuf),
}

impl Endpoint {
    /// Returns the NBD URI of an export at this endpoint.
    pub(crate) fn uri(&self, export: &str) -> String {
        match self {
            Self::Tcp(port) => format!("nbd://127.0.0.1:{port}/{export}"),
            Self::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
        }
    }

    /// Parses the line that announces a listener.
    fn announced(line: &str) -> Option<Self> {
        let uri = line.strip_prefix("listening on nbd")?.split_whitespace().next()?;
        let uri = uri.strip_prefix('s').unwrap_or(uri);
        if let Some(path) = uri.strip_prefix("+unix:///?socket=") {
            return Some(Self::Unix(PathBuf::from(path)));
        }
        let port = uri.strip_prefix("://127.0.0.1:")?.trim_end_matches('/');
        port.parse().ok().map(Self::Tcp)
    }
}

/// How to start a gateway.
pub(crate) struct Setup {
    command: Command,
    listeners: usize,
}

impl Setup {
    /// `cairn serve` with a store, without a listener or a volume yet.
    pub(crate) fn new(store: &Store) -> Self {
        Self { command: store.cairn(["serve", "--store", &store.url()]), listeners: 0 }
    }

    /// `cairn serve` with a store whose connection is described by the environment.
    pub(crate) fn at<'a>(url: &str, env: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut command = program();
        command.args(["serve", "--store", url]).envs(env);
        Self { command, listeners: 0 }
    }

    /// Creates the volume if it does not exist, and opens it at the start.
    pub(crate) fn create(mut self, name: &str, size: &str) -> Self {
        self.command.args(["--create", &format!("{name}={size}")]);
        self
    }

    /// Listens on a free TCP port.
    pub(crate) fn tcp(mut self) -> Self {
        self.command.args(["--listen", "127.0.0.1:0"]);
        self.listeners += 1;
        self
    }

    /// Listens on this TCP port.
    pub(crate) fn tcp_at(mut self, port: u16) -> Self {
        self.command.args(["--listen", &format!("127.0.0.1:{port}")]);
        self.listeners += 1;
        self
    }

    /// Listens on a Unix socket.
    pub(crate) fn unix(mut self, path: &Path) -> Self {
        self.command.arg("--listen").arg(format!("unix:{}", path.display()));
        self.listeners += 1;
        self
    }

    /// Does not wait for an unexpired lease of another holder.
    pub(crate) fn takeover(mut self) -> Self {
        self.command.arg("--takeover");
        self
    }

    /// Hands its sockets to a successor at this path, and takes them from a predecessor.
    pub(crate) fn handover(self, path: &Path) -> Self {
        self.env("CAIRN_SERVER__HANDOVER", &path.display().to_string())
    }

    /// Reads a configuration file.
    pub(crate) fn config(mut self, path: &Path) -> Self {
        self.command.arg("--config").arg(path);
        self
    }

    /// Sets a setting by its variable `CAIRN_<SECTION>__<KEY>`.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Connects to its bucket through the proxy.
    pub(crate) fn through(self, proxy: &Proxy) -> Self {
        self.env("AWS_ENDPOINT_URL", &proxy.endpoint())
    }

    /// Lets a shell redirect its standard streams, such as `2>/dev/full`.
    pub(crate) fn redirected(mut self, redirections: &str) -> Self {
        let mut shell = command(["sh", "-c", &format!("exec \"$0\" \"$@\" {redirections}")]);
        let cairn = self.command.as_std();
        shell.arg(cairn.get_program()).args(cairn.get_args());
        for (name, value) in cairn.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        self.command = shell;
        self
    }

    /// Starts it, without waiting for any output.
    pub(crate) fn spawn(mut self) -> Process {
        Process::spawn("cairn serve", &mut self.command)
    }

    /// Starts it, and waits until every listener accepts and every volume is open.
    pub(crate) async fn start(mut self) -> Gateway {
        let mut process = Process::spawn("cairn serve", &mut self.command);
        let listeners = self.listeners;
        let endpoints = process
            .wait_until("all its listeners", |lines| {
                let found: Vec<_> = lines.iter().filter_map(|line| Endpoint::announced(line)).collect();
                (found.len() == listeners).then_some(found)
            })
            .await;
        Gateway { process, endpoints }
    }

    /// Starts it in a situation where it must not serve. Returns its exit status and its output.
    pub(crate) async fn refused(mut self) -> (ExitStatus, String) {
        let mut process = Process::spawn("cairn serve", &mut self.command);
        let status = process.exit().await;
        (status, process.output())
    }
}

/// A running gateway. Dropping it kills it.
pub(crate) struct Gateway {
    pub(crate) process: Process,
    endpoints: Vec<Endpoint>,
}

impl Gateway {
    /// Returns the URI of an export at its TCP port, or at its Unix socket if it has no port.
    pub(crate) fn uri(&self, export: &str) -> String {
        self.endpoint().uri(export)
    }

    /// Returns its TCP port.
    pub(crate) fn port(&self) -> u16 {
        match self.endpoint() {
            Endpoint::Tcp(port) => *port,
            Endpoint::Unix(path) => panic!("the gateway listens only at {}", path.display()),
        }
    }

    fn endpoint(&self) -> &Endpoint {
        let tcp = self.endpoints.iter().find(|endpoint| matches!(endpoint, Endpoint::Tcp(_)));
        tcp.or(self.endpoints.first()).expect("a test's gateway has a listener")
    }
}
