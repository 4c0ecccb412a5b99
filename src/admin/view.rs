//! What the API answers as JSON, built from the state of the layers below.
//!
//! Must not know routes or access control. Invariant: `openapi.json` describes every field here; a test
//! compares them.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::{Context, Failure, Known, OpenVolume, Stage};
use crate::metrics::labels::Share;
use crate::metrics::{Command, Label as _, Limits, ReadSource, Tier, VolumeMetrics};
use crate::server;
use crate::volume::catalog::{Deleted, Info, Unnamed};
use crate::volume::format::geometry::BLOCK_BYTES;
use crate::volume::format::snapshot::Snapshot;
use crate::volume::{
    self, CloneError, CollectError, DiffError, OpenError, Picture, ResizeError, SnapshotError, Status,
};

/// The last second of the year 9999, the latest time that RFC 3339 can express.
const LAST_SECOND: u64 = 253_402_300_799;

/// The body of a failed request.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Problem {
    #[serde(skip)]
    status: StatusCode,
    error: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, Json(self)).into_response()
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotServing(why) => Self::new(StatusCode::SERVICE_UNAVAILABLE, why),
            Failure::InUse(why) => Self::new(StatusCode::CONFLICT, why),
            Failure::Snapshot(error) => error.into(),
            Failure::Resize(error) => error.into(),
            Failure::Compare(DiffError::Open(error)) => Self::from(&error),
            Failure::Compare(DiffError::Volume(error)) => error.into(),
            Failure::Compare(error @ DiffError::Unrelated) => {
                Self::new(StatusCode::CONFLICT, error.to_string())
            }
            Failure::Clone(CloneError::Snapshot(error)) => error.into(),
            Failure::Clone(CloneError::Volume(error)) => Self::from(&error),
            Failure::Clone(error @ CloneError::TooDeep(_)) => {
                Self::new(StatusCode::CONFLICT, error.to_string())
            }
            Failure::Collect(error) => error.into(),
            Failure::Volume(error) => Self::from(&*error),
        }
    }
}

impl From<CollectError> for Problem {
    fn from(error: CollectError) -> Self {
        match error {
            CollectError::Open(error) => Self::from(&error),
            CollectError::Volume(error) => error.into(),
            CollectError::Damaged { .. } => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            CollectError::Unsteady(_) => Self::new(StatusCode::CONFLICT, error.to_string()),
        }
    }
}

impl From<&OpenError> for Problem {
    fn from(error: &OpenError) -> Self {
        let status = match error {
            OpenError::NoSuchVolume(_)
            | OpenError::Renamed { .. }
            | OpenError::NoSuchId(_)
            | OpenError::NotDeleted(_)
            | OpenError::NoSuchSnapshot(_) => StatusCode::NOT_FOUND,
            OpenError::BadName(_) | OpenError::Geometry(_) => StatusCode::UNPROCESSABLE_ENTITY,
            OpenError::Exists(_)
            | OpenError::SizeDiffers { .. }
            | OpenError::HasClones { .. }
            | OpenError::MayHaveClones { .. }
            | OpenError::Held { .. }
            | OpenError::Lost(_)
            | OpenError::Unclear { .. }
            | OpenError::Contended(_)
            | OpenError::LeaseOver
            | OpenError::Ambiguous { .. }
            | OpenError::Taken(_)
            | OpenError::Unkeepable { .. }
            | OpenError::Deleting => StatusCode::CONFLICT,
            OpenError::Damaged { .. } | OpenError::Incomplete { .. } | OpenError::BrokenJournal { .. } => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            OpenError::Store(_) => StatusCode::BAD_GATEWAY,
        };
        Self::new(status, error.to_string())
    }
}

impl From<volume::Error> for Problem {
    fn from(error: volume::Error) -> Self {
        let status = match &error {
            volume::Error::OutOfRange { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            volume::Error::Stopped(_) => StatusCode::CONFLICT,
            volume::Error::Damaged { .. }
            | volume::Error::Lost { .. }
            | volume::Error::TableFull { .. }
            | volume::Error::NameTaken { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            volume::Error::Deadline { .. } => StatusCode::GATEWAY_TIMEOUT,
            volume::Error::Store(_) => StatusCode::BAD_GATEWAY,
        };
        Self::new(status, error.to_string())
    }
}

impl From<SnapshotError> for Problem {
    fn from(error: SnapshotError) -> Self {
        let status = match error {
            SnapshotError::Volume(error) => return error.into(),
            SnapshotError::NoSuchSnapshot(_) => StatusCode::NOT_FOUND,
            SnapshotError::BadName(_) => StatusCode::UNPROCESSABLE_ENTITY,
            SnapshotError::Exists(_)
            | SnapshotError::TooMany(_)
            | SnapshotError::Pinned { .. }
            | SnapshotError::TooManyClones { .. } => StatusCode::CONFLICT,
        };
        Self::new(status, error.to_string())
    }
}

impl From<ResizeError> for Problem {
    fn from(error: ResizeError) -> Self {
        match error {
            ResizeError::Volume(error) => error.into(),
            ResizeError::Geometry(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
            ResizeError::Smaller { .. } => Self::new(StatusCode::CONFLICT, error.to_string()),
        }
    }
}

/// The body of the readiness check.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ready {
    pub(super) ready: bool,
    pub(super) reasons: Vec<String>,
}

/// A volume in the store, with its state if it is open here.
#[derive(Clone, Debug, Serialize)]
pub(super) struct VolumeView {
    name: String,
    id: Option<uuid::Uuid>,
    size_bytes: Option<u64>,
    chunk_bytes: Option<u64>,
    created_at: Option<String>,
    epoch: Option<u32>,
    holder: Option<String>,
    clone_of: Option<uuid::Uuid>,
    stored_bytes: Option<u64>,
    problem: Option<String>,
    open: Option<OpenView>,
}

/// Formats seconds since 1970 as RFC 3339.
fn time(seconds: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_secs(seconds.min(LAST_SECOND));
    humantime::format_rfc3339_seconds(at).to_string()
}

impl VolumeView {
    pub(super) fn new(info: Info, open: Option<&OpenVolume>, stored_bytes: Option<u64>) -> Self {
        Self {
            name: info.name,
            id: Some(info.volume),
            size_bytes: Some(info.size_bytes),
            chunk_bytes: Some(info.chunk_bytes),
            created_at: Some(time(info.created_at_seconds)),
            epoch: Some(info.epoch),
            holder: info.holder,
            clone_of: info.clone_of,
            stored_bytes,
            problem: None,
            open: open.map(OpenView::of),
        }
    }

    /// Describes a volume of which nothing is known except the name and the error.
    pub(super) fn problem(name: String, error: &OpenError) -> Self {
        Self {
            name,
            id: None,
            size_bytes: None,
            chunk_bytes: None,
            created_at: None,
            epoch: None,
            holder: None,
            clone_of: None,
            stored_bytes: None,
            problem: Some(error.to_string()),
            open: None,
        }
    }
}

/// Returns the time of the last census of the store in seconds since 1970, and the stored bytes by volume
/// name.
pub(super) fn stored(context: &Context) -> (Option<u64>, BTreeMap<String, u64>) {
    match context.metrics.gateway().stored() {
        Some((stored, at_seconds)) => (Some(at_seconds), stored),
        None => (None, BTreeMap::new()),
    }
}

/// The state of the gateway, without access to the store.
#[derive(Clone, Debug, Serialize)]
pub(super) struct StatusView {
    version: &'static str,
    state: &'static str,
    /// How long requests to the store have been failing without a success; `None` if they succeed.
    store_failing_seconds: Option<f64>,
    /// When the list of closed volumes and the stored bytes were read from the store.
    counted_at: Option<String>,
    connect: Vec<String>,
    limits: LimitsView,
    volumes: Vec<VolumeView>,
}

/// The configured limits that are in force.
#[derive(Clone, Debug, Serialize)]
struct LimitsView {
    dirty_bytes: u64,
    clean_bytes: u64,
    connections: u64,
    open_volumes: u64,
    journal_bytes: u64,
    journal_records: u64,
    lease_seconds: f64,
}

impl From<Limits> for LimitsView {
    fn from(limits: Limits) -> Self {
        Self {
            dirty_bytes: limits.dirty_bytes,
            clean_bytes: limits.clean_bytes,
            connections: limits.connections,
            open_volumes: limits.open_volumes,
            journal_bytes: limits.journal_bytes,
            journal_records: limits.journal_records,
            lease_seconds: limits.lease_ttl.as_secs_f64(),
        }
    }
}

impl StatusView {
    /// Combines the current state of the open volumes with what was last known of the closed ones, in order
    /// of name.
    pub(super) fn new(context: &Context, open: &[OpenVolume], known: Option<Known>) -> Self {
        let (counted_at, stored) = stored(context);
        let at_seconds = known.as_ref().map(|known| known.at_seconds).or(counted_at);
        let of_open = |open: &OpenVolume| {
            let stored_bytes = stored.get(&open.name).copied();
            VolumeView::new(open.volume.info(&open.name), Some(open), stored_bytes)
        };
        let mut volumes: Vec<VolumeView> = open.iter().map(of_open).collect();
        let closed = known.into_iter().flat_map(|known| known.listed);
        volumes.extend(closed.filter(|listed| open.iter().all(|open| open.name != listed.name)).map(
            |listed| match listed.found {
                Ok(info) => {
                    let stored_bytes = stored.get(&info.name).copied();
                    VolumeView::new(info, None, stored_bytes)
                }
                Err(error) => VolumeView::problem(listed.name, &error),
            },
        ));
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Self {
            version: env!("CARGO_PKG_VERSION"),
            state: match context.gateway.stage() {
                Stage::Starting => "starting",
                Stage::Serving => "serving",
                Stage::Ending => "ending",
            },
            store_failing_seconds: context.metrics.store().failing_for().map(|failing| failing.as_secs_f64()),
            counted_at: at_seconds.map(time),
            connect: context.gateway.connect(),
            limits: context.metrics.gateway().limits().into(),
            volumes,
        }
    }
}

/// A volume in the store that no name refers to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UnnamedView {
    /// Id of the volume.
    pub id: uuid::Uuid,
    /// The name that the volume was created for; `None` if its identity cannot be read.
    pub made_for: Option<String>,
    /// When the volume was created (RFC 3339, UTC); `None` if its identity cannot be read.
    pub created_at: Option<String>,
    /// How far the creation or deletion of the volume has progressed.
    pub state: String,
}

impl From<Unnamed> for UnnamedView {
    fn from(unnamed: Unnamed) -> Self {
        Self {
            id: unnamed.volume,
            made_for: unnamed.made_for,
            created_at: unnamed.created_at_seconds.map(time),
            state: unnamed.progress.to_string(),
        }
    }
}

/// A deleted volume that can be brought back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeletedView {
    /// Id of the volume.
    pub id: uuid::Uuid,
    /// The name that the volume had.
    pub name: String,
    /// Size of the volume in bytes; `None` if its root cannot be read.
    pub size_bytes: Option<u64>,
    /// When the volume was deleted (RFC 3339, UTC), by the clock of whoever did it.
    pub deleted_at: String,
    /// About until when the volume is kept (RFC 3339, UTC). It is an estimate.
    pub kept_until: String,
}

impl From<Deleted> for DeletedView {
    fn from(deleted: Deleted) -> Self {
        Self {
            id: deleted.volume,
            name: deleted.name,
            size_bytes: deleted.size_bytes,
            deleted_at: time(deleted.deleted_at_seconds),
            kept_until: time(deleted.kept_until_seconds),
        }
    }
}

/// A snapshot of a volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotView {
    /// Name of the snapshot.
    pub name: String,
    /// When it was taken (RFC 3339, UTC), by the clock of the gateway that took it.
    pub taken_at: String,
}

impl From<Snapshot> for SnapshotView {
    fn from(snapshot: Snapshot) -> Self {
        Self { name: snapshot.name, taken_at: time(snapshot.taken_at_seconds) }
    }
}

/// The state of a volume that is open here.
#[derive(Clone, Debug, Serialize)]
struct OpenView {
    state: &'static str,
    reason: Option<String>,
    clients: usize,
    dirty_bytes: u64,
    uncommitted_bytes: u64,
    uncommitted_seconds: f64,
    commits_in_flight: usize,
    journal_bytes: u64,
    journal_records: u64,
    checkpoints: u64,
    checkpoint_at: Option<String>,
    lease_seconds: Option<f64>,
    cached_bytes: u64,
    live_bytes: u64,
    garbage_bytes: u64,
    overlaid_bytes: u64,
    packs: u64,
    flatten_remaining_bytes: u64,
    totals: Totals,
}

impl OpenView {
    fn of(open: &OpenVolume) -> Self {
        let usage = open.volume.usage();
        let (state, reason) = match open.volume.status() {
            Status::Serving => ("serving", None),
            Status::Draining => ("draining", None),
            Status::Stopped(why) => ("stopped", Some(why)),
        };
        let positive = |n: i64| u64::try_from(n).unwrap_or(0);
        let checkpoint = positive(open.metrics.checkpoint_time.get());
        let dirty_blocks = u64::try_from(usage.dirty_blocks).expect("a usize fits 64 bits");
        Self {
            state,
            reason,
            clients: open.clients,
            dirty_bytes: dirty_blocks * BLOCK_BYTES,
            uncommitted_bytes: positive(open.metrics.uncommitted_bytes.get()),
            uncommitted_seconds: open.metrics.uncommitted_since.length().unwrap_or_default().as_secs_f64(),
            commits_in_flight: usage.commits_in_flight,
            journal_bytes: usage.journal_bytes,
            journal_records: usage.journal_records,
            checkpoints: usage.checkpoints,
            checkpoint_at: (checkpoint > 0).then(|| time(checkpoint)),
            lease_seconds: open.metrics.lease_ends.length().map(|left| left.as_secs_f64()),
            cached_bytes: positive(open.metrics.cache_bytes.of(Tier::Memory).get()),
            live_bytes: positive(open.metrics.data_bytes.of(Share::Live).get()),
            garbage_bytes: positive(open.metrics.data_bytes.of(Share::Garbage).get()),
            overlaid_bytes: positive(open.metrics.overlaid_bytes.get()),
            packs: positive(open.metrics.packs.get()),
            flatten_remaining_bytes: positive(open.metrics.flatten_remaining_bytes.get()),
            totals: Totals::of(&open.metrics),
        }
    }
}

/// Counts since the volume was opened. Clients compute rates from the differences.
#[derive(Clone, Debug, Serialize)]
struct Totals {
    reads: u64,
    read_bytes: u64,
    read_seconds: f64,
    writes: u64,
    write_bytes: u64,
    write_seconds: f64,
    flushes: u64,
    flush_seconds: f64,
    cache_hits: u64,
    cache_misses: u64,
    throttled_seconds: f64,
}

impl Totals {
    fn of(metrics: &VolumeMetrics) -> Self {
        let reads = ReadSource::ALL.iter().map(|source| metrics.read_duration.of(*source));
        Self {
            reads: reads.clone().map(|histogram| histogram.get_sample_count()).sum(),
            read_bytes: metrics.request_bytes.of(Command::Read).get(),
            read_seconds: reads.map(|histogram| histogram.get_sample_sum()).sum(),
            writes: metrics.write_duration.get_sample_count(),
            write_bytes: metrics.request_bytes.of(Command::Write).get(),
            write_seconds: metrics.write_duration.get_sample_sum(),
            flushes: metrics.flush_duration.get_sample_count(),
            flush_seconds: metrics.flush_duration.get_sample_sum(),
            cache_hits: metrics.cache_hits.of(Tier::Memory).get(),
            cache_misses: metrics.cache_misses.of(Tier::Memory).get(),
            throttled_seconds: metrics.write_throttled.seconds(),
        }
    }
}

/// A map of the disk, divided into cells of equal size.
#[derive(Clone, Debug, Serialize)]
pub(super) struct MapView {
    size_bytes: u64,
    cell_bytes: u64,
    stored_bytes: Vec<u64>,
    cached_bytes: Vec<u64>,
    dirty_bytes: Vec<u64>,
}

impl MapView {
    pub(super) fn new(size_bytes: u64, picture: &Picture) -> Self {
        Self {
            size_bytes,
            cell_bytes: picture.cell_bytes,
            stored_bytes: picture.cells.iter().map(|cell| cell.stored_bytes).collect(),
            cached_bytes: picture.cells.iter().map(|cell| cell.cached_bytes).collect(),
            dirty_bytes: picture.cells.iter().map(|cell| cell.dirty_bytes).collect(),
        }
    }
}

/// An open NBD connection.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ConnectionView {
    id: u64,
    peer: String,
    export: Option<String>,
}

impl From<server::Connection> for ConnectionView {
    fn from(connection: server::Connection) -> Self {
        Self { id: connection.id, peer: connection.peer, export: connection.export }
    }
}
