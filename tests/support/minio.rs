//! A MinIO server of a test's own, on a loopback port and in a temporary directory; it ends with the value.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aws_sdk_s3::config::Credentials;
use cairn::store::S3Options;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const USER: &str = "cairn-test";
const PASSWORD: &str = "cairn-test-secret";
/// Between two looks at the server's health.
const POLL: Duration = Duration::from_millis(20);
/// After which a server that is not ready is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running MinIO server.
#[derive(Debug)]
pub(crate) struct Minio {
    child: Child,
    port: u16,
    directory: TempDir,
}

/// Where `tests/run.sh` puts the programs that tests need.
pub(crate) fn tool(name: &str) -> PathBuf {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let tools = variable("CAIRN_TOOLS").unwrap_or_else(|| {
        let cache = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
        let cache = cache.or_else(|| variable("HOME").map(|home| home.join(".cache")));
        cache.expect("HOME is set").join("cairn/tools")
    });
    let path = tools.join("bin").join(name);
    assert!(path.exists(), "{} is missing: tests/run.sh installs what the tests need", path.display());
    path
}

impl Minio {
    /// Starts a server and waits until it says that it is ready.
    pub(crate) async fn start() -> Self {
        let minio = tool("minio");
        // Another process may take the port before MinIO does; MinIO then ends, and has another one to try.
        for _ in 0..5 {
            let mut server = Self::spawn(&minio);
            if tokio::time::timeout(PATIENCE, server.ready()).await.expect("MinIO is ready in time") {
                return server;
            }
        }
        panic!("MinIO ended at each start");
    }

    fn spawn(minio: &PathBuf) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port");
        let port = free.local_addr().expect("a bound socket has an address").port();
        drop(free);
        let log = File::create(directory.path().join("log")).expect("a log can be made");
        let child = Command::new(minio)
            .args(["server", "--quiet", "--address", &format!("127.0.0.1:{port}")])
            .arg(directory.path().join("data"))
            .env("MINIO_ROOT_USER", USER)
            .env("MINIO_ROOT_PASSWORD", PASSWORD)
            .env("MINIO_BROWSER", "off")
            .env("MINIO_UPDATE", "off")
            .env("HOME", directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .expect("MinIO can be started");
        Self { child, port, directory }
    }

    /// Waits until the server is ready; `false` if it ended.
    async fn ready(&mut self) -> bool {
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                let log = std::fs::read_to_string(self.directory.path().join("log"));
                eprintln!("MinIO ended with {status}: {}", log.expect("the log can be read"));
                return false;
            }
            if self.healthy().await.unwrap_or(false) {
                return true;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn healthy(&self) -> std::io::Result<bool> {
        let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
        let request = b"GET /minio/health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        socket.write_all(request).await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        Ok(answer.starts_with("HTTP/1.1 200 "))
    }

    /// URL of the service.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How to reach it, making the bucket.
    pub(crate) fn options(&self) -> S3Options {
        S3Options {
            endpoint: Some(self.endpoint()),
            region: Some("us-east-1".into()),
            credentials: Some(Credentials::new(USER, PASSWORD, None, None, "test")),
            path_style: true,
            create_bucket: true,
            ..S3Options::default()
        }
    }
}

impl Drop for Minio {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("MinIO could not be ended: {error}");
        }
    }
}
