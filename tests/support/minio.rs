//! An S3 server for one test: MinIO from the tools cache, with its own port and directory.
//!
//! If MinIO could not be built, `tests/tools/install.sh` has installed moto in its place and recorded that in
//! `s3-server`. moto keeps its objects in memory, so it cannot be restarted.

use std::path::PathBuf;

use aws_sdk_s3::config::Credentials;
use cairn::store::S3Options;
use tempfile::TempDir;
use tokio::process::Command;

use super::process::{Process, free_port};

/// Access key and secret of every server started here.
const KEY: &str = "cairn-tests";

/// Returns the directory that `tests/tools/install.sh` fills.
pub(crate) fn tools() -> PathBuf {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = from("CAIRN_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|cache| cache.join("cairn")))
        .or_else(|| from("HOME").map(|home| home.join(".cache/cairn")))
        .expect("HOME is set");
    cache.join("tools")
}

/// A running S3 server.
pub(crate) struct Minio {
    process: Process,
    port: u16,
    data: TempDir,
}

impl Minio {
    /// Starts a server without buckets and waits until it serves.
    pub(crate) async fn start() -> Self {
        let data = tempfile::tempdir().expect("a directory for MinIO");
        let port = free_port();
        let process = serve(port, &data).await;
        Self { process, port, data }
    }

    /// Returns the port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns the URL of the endpoint.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns the options with which the library connects and creates the bucket.
    pub(crate) fn options(&self) -> S3Options {
        S3Options {
            endpoint: Some(self.endpoint()),
            region: Some("us-east-1".into()),
            credentials: Some(Credentials::new(KEY, KEY, None, None, "test")),
            path_style: true,
            create_bucket: true,
            ..S3Options::default()
        }
    }

    /// Returns the environment that a client needs.
    pub(crate) fn env(&self) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL", self.endpoint().as_str()),
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", KEY),
            ("AWS_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// Sends SIGKILL. Requests in flight get no answer.
    pub(crate) async fn kill(&mut self) {
        self.process.kill().await;
    }

    /// Starts the server again after [`Minio::kill`], on the same port and with the same data.
    pub(crate) async fn restart(&mut self) {
        self.process = serve(self.port, &self.data).await;
    }
}

async fn serve(port: u16, data: &TempDir) -> Process {
    let tools = tools();
    let listed = tools.join("s3-server");
    let moto = std::fs::read_to_string(&listed).is_ok_and(|server| server.trim() == "moto");
    let mut command;
    let ready = if moto {
        command = Command::new(tools.join("moto/bin/moto_server"));
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        "Running on"
    } else {
        command = Command::new(tools.join("bin/minio"));
        command.args(["server", "--address", &format!("127.0.0.1:{port}")]).arg(data.path());
        command.envs([("MINIO_ROOT_USER", KEY), ("MINIO_ROOT_PASSWORD", KEY), ("MINIO_BROWSER", "off")]);
        // MinIO would otherwise refuse a directory on the root disk.
        command.env("MINIO_CI_CD", "1");
        "API: "
    };
    let mut process = Process::spawn("the S3 server (see tests/tools/install.sh s3)", &mut command);
    process.wait_for("it serves", |line| line.contains(ready).then_some(())).await;
    process
}
