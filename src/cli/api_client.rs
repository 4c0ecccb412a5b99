//! A client for a gateway's API at its admin socket: `cairn volume --gateway` and its siblings.
//!
//! Owns the requests and the reading of responses, and must not know the store. Invariant: it only relies on
//! what `openapi.json` describes. It sends no token, because the admin socket serves the user who runs the
//! gateway.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::error::Error;
use super::http::{Answer, exchange};
use super::volume_view::Row;
use crate::admin::{DeletedView, FlattenView, GarbageView, SnapshotView, UnnamedView, WarmView};
use crate::volume::OpenError;
use crate::volume::catalog::Info;
use crate::volume::format::keys;

/// How long a response may take. The gateway asks the store, and retries if that fails.
const PATIENCE: Duration = Duration::from_secs(90);
/// Maximum size of a response in bytes. A list takes some hundred bytes per volume.
const ANSWER_BYTES: u64 = 256 << 20;

/// Path of the volumes in the API.
const VOLUMES: &str = "/api/v1/volumes";
/// Path of the snapshots of a volume, after the path of the volume.
const SNAPSHOTS: &str = "/snapshots";
/// Path of the volumes without a name in the API.
const UNNAMED: &str = "/api/v1/unnamed";
/// Path of the deleted volumes that can be brought back in the API.
const DELETED: &str = "/api/v1/deleted";

/// A gateway that receives requests.
#[derive(Clone, Debug)]
pub(super) struct Gateway {
    socket: PathBuf,
}

/// A volume as the API describes it.
#[derive(Debug, Deserialize)]
struct Described {
    name: String,
    id: uuid::Uuid,
    size_bytes: u64,
    chunk_bytes: u64,
    created_at: String,
    epoch: u32,
    holder: Option<String>,
    clone_of: Option<uuid::Uuid>,
}

/// An entry of a list as the API describes it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum DescribedRow {
    Volume(Described),
    Problem { name: String, problem: String },
}

impl Gateway {
    /// Creates a client for the gateway with this admin socket. Does not connect yet.
    pub(super) fn at(socket: &Path) -> Self {
        Self { socket: socket.to_path_buf() }
    }

    /// Lists all volumes, in order of name.
    pub(super) async fn list(&self) -> Result<Vec<Row>, Error> {
        let described: Vec<DescribedRow> = self.parsed(&self.ask("GET", VOLUMES, None).await?)?;
        let row = |described| match described {
            DescribedRow::Volume(volume) => self.info_of(volume).map(Row::Volume),
            DescribedRow::Problem { name, problem } => Ok(Row::Problem { name, problem }),
        };
        described.into_iter().map(row).collect()
    }

    /// Lists all volumes without a name.
    pub(super) async fn unnamed(&self) -> Result<Vec<UnnamedView>, Error> {
        self.parsed(&self.ask("GET", UNNAMED, None).await?)
    }

    /// Returns one volume.
    pub(super) async fn info(&self, name: &str) -> Result<Info, Error> {
        let answer = self.ask("GET", &path(name, "")?, None).await?;
        self.info_of(self.parsed(&answer)?)
    }

    /// Creates a volume. Without `chunk_bytes`, it has the gateway's configured chunk size.
    pub(super) async fn create(
        &self,
        name: &str,
        size_bytes: u64,
        chunk_bytes: Option<u64>,
    ) -> Result<Info, Error> {
        let new = json!({ "name": name, "size_bytes": size_bytes, "chunk_bytes": chunk_bytes });
        self.info_of(self.parsed(&self.ask("POST", VOLUMES, Some(&new)).await?)?)
    }

    /// Changes the size of a volume. `shrink` allows it to become smaller.
    pub(super) async fn resize(&self, name: &str, size_bytes: u64, shrink: bool) -> Result<Info, Error> {
        let change = json!({ "size_bytes": size_bytes, "shrink": shrink });
        self.info_of(self.parsed(&self.ask("PATCH", &path(name, "")?, Some(&change)).await?)?)
    }

    /// Gives a volume another name.
    pub(super) async fn rename(&self, name: &str, to: &str) -> Result<Info, Error> {
        let change = json!({ "name": to });
        self.info_of(self.parsed(&self.ask("PATCH", &path(name, "")?, Some(&change)).await?)?)
    }

    /// Deletes a volume that is not open in that gateway. `takeover` deletes it even if another gateway holds
    /// it. With `now` it cannot be brought back.
    pub(super) async fn delete(&self, name: &str, takeover: bool, now: bool) -> Result<(), Error> {
        let query = format!("?takeover={takeover}&now={now}");
        self.ask("DELETE", &path(name, &query)?, None).await.map(drop)
    }

    /// Lists the deleted volumes that can be brought back.
    pub(super) async fn deleted(&self) -> Result<Vec<DeletedView>, Error> {
        self.parsed(&self.ask("GET", DELETED, None).await?)
    }

    /// Brings a deleted volume back, under another name if one is given. Returns `None` if none with this id
    /// is kept.
    pub(super) async fn undelete(&self, id: uuid::Uuid, to: Option<&str>) -> Result<Option<Info>, Error> {
        let undeletion = json!({ "name": to });
        let path = format!("{DELETED}/{id}/undelete");
        let answer = self.within_patience(self.send("POST", &path, Some(&undeletion))).await?;
        if answer.status == Some(404) {
            return Ok(None);
        }
        self.info_of(self.parsed(&self.accepted(answer)?)?).map(Some)
    }

    /// Deletes a volume for good that is kept.
    pub(super) async fn delete_kept(&self, id: uuid::Uuid) -> Result<(), Error> {
        self.ask("DELETE", &format!("{DELETED}/{id}"), None).await.map(drop)
    }

    /// Deletes a volume for good by its id. `takeover` deletes it even if another gateway holds it.
    pub(super) async fn delete_by_id(&self, id: uuid::Uuid, takeover: bool) -> Result<(), Error> {
        let query = if takeover { "?takeover=true" } else { "" };
        self.ask("DELETE", &format!("{UNNAMED}/{id}{query}"), None).await.map(drop)
    }

    /// Lists the snapshots of a volume, in the order in which they were taken.
    pub(super) async fn snapshots(&self, volume: &str) -> Result<Vec<SnapshotView>, Error> {
        self.parsed(&self.ask("GET", &path(volume, SNAPSHOTS)?, None).await?)
    }

    /// Takes a snapshot.
    pub(super) async fn take_snapshot(&self, volume: &str, name: &str) -> Result<SnapshotView, Error> {
        let new = json!({ "name": name });
        self.parsed(&self.ask("POST", &path(volume, SNAPSHOTS)?, Some(&new)).await?)
    }

    /// Creates a volume that begins with the content of a snapshot. A valid name needs no percent-encoding.
    pub(super) async fn clone_snapshot(&self, volume: &str, name: &str, new: &str) -> Result<Info, Error> {
        let path = path(volume, &format!("{SNAPSHOTS}/{name}/clones"))?;
        self.info_of(self.parsed(&self.ask("POST", &path, Some(&json!({ "name": new }))).await?)?)
    }

    /// Deletes a snapshot that no client of that gateway reads. A valid name needs no percent-encoding.
    pub(super) async fn delete_snapshot(&self, volume: &str, name: &str) -> Result<(), Error> {
        self.ask("DELETE", &path(volume, &format!("{SNAPSHOTS}/{name}"))?, None).await.map(drop)
    }

    /// Collects the garbage of a volume. It may take as long as it takes to list all objects of the volume,
    /// and ends when this future is dropped.
    pub(super) async fn collect(&self, volume: &str, dry_run: bool) -> Result<GarbageView, Error> {
        let path = path(volume, if dry_run { "/gc?dry_run=true" } else { "/gc" })?;
        self.parsed(&self.ask_patiently("POST", &path, None).await?)
    }

    /// Flattens a clone. It takes as long as it takes to rewrite what the clone shares.
    pub(super) async fn flatten(&self, volume: &str) -> Result<FlattenView, Error> {
        self.parsed(&self.ask_patiently("POST", &path(volume, "/flatten")?, None).await?)
    }

    /// Loads blocks of a volume into the cache. It takes as long as it takes to fetch them.
    pub(super) async fn warm(&self, volume: &str, all: bool) -> Result<WarmView, Error> {
        let path = path(volume, if all { "/warm?all=true" } else { "/warm" })?;
        self.parsed(&self.ask_patiently("POST", &path, None).await?)
    }

    /// Sends a request, and returns the body of a successful response.
    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<String, Error> {
        self.within_patience(self.ask_patiently(method, path, body)).await
    }

    /// Limits the time of a request.
    async fn within_patience<T>(&self, asked: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(self.failed(format!("no answer within {PATIENCE:?}"))),
        }
    }

    /// As [`Gateway::ask`], without a limit on the time.
    async fn ask_patiently(&self, method: &str, path: &str, body: Option<&Value>) -> Result<String, Error> {
        self.accepted(self.send(method, path, body).await?)
    }

    /// Sends a request, and returns the response.
    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, Error> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        if let Some(body) = body.map(Value::to_string) {
            request.push_str("Content-Type: application/json\r\n");
            request.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        } else {
            request.push_str("\r\n");
        }
        let asked =
            async { exchange(UnixStream::connect(&self.socket).await?, &request, ANSWER_BYTES).await };
        asked.await.map_err(|error| self.failed(error.to_string()))
    }

    /// Returns the body of a successful response.
    fn accepted(&self, Answer { status, body }: Answer) -> Result<String, Error> {
        match status {
            Some(200..=299) => Ok(body),
            Some(status) => {
                let why = serde_json::from_str(&body)
                    .ok()
                    .and_then(|problem: Value| problem["error"].as_str().map(str::to_owned));
                let why = why.unwrap_or_else(|| format!("HTTP status {status}"));
                Err(Error::Gateway { socket: self.socket.clone(), why, is_mistake: status == 422 })
            }
            None => Err(self.failed("the answer is not HTTP".to_owned())),
        }
    }

    fn parsed<T: serde::de::DeserializeOwned>(&self, body: &str) -> Result<T, Error> {
        serde_json::from_str(body).map_err(|error| self.failed(format!("unexpected answer: {error}")))
    }

    fn info_of(&self, described: Described) -> Result<Info, Error> {
        let created = humantime::parse_rfc3339(&described.created_at).ok();
        let since = created.and_then(|created| created.duration_since(std::time::UNIX_EPOCH).ok());
        let wrong =
            || self.failed(format!("the answer contains the invalid time {:?}", described.created_at));
        Ok(Info {
            created_at_seconds: since.ok_or_else(wrong)?.as_secs(),
            name: described.name,
            volume: described.id,
            size_bytes: described.size_bytes,
            chunk_bytes: described.chunk_bytes,
            epoch: described.epoch,
            holder: described.holder,
            clone_of: described.clone_of,
        })
    }

    fn failed(&self, why: String) -> Error {
        Error::Gateway { socket: self.socket.clone(), why, is_mistake: false }
    }
}

/// Returns the API path of a volume, with what follows its name. A valid name needs no percent-encoding.
fn path(name: &str, rest: &str) -> Result<String, Error> {
    if keys::is_valid_name(name) {
        return Ok(format!("{VOLUMES}/{name}{rest}"));
    }
    Err(Error::Volume { name: name.to_owned(), source: OpenError::BadName(name.to_owned()) })
}
