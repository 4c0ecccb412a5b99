//! The API below `/api/v1`: volumes, snapshots and their differences, clones, garbage, connections, draining,
//! and the description of the API itself.
//!
//! Must not know how the gateway does its work. Invariant: `openapi.json` describes exactly the routes that
//! exist here.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, extract::rejection::QueryRejection};
use serde::Deserialize;
use uuid::Uuid;

use super::body::{Change, NewClone, NewSnapshot, NewVolume, Undeletion, VolumeChange};
use super::changes_view::ChangesView;
use super::view::{
    ConnectionView, DeletedView, MapView, Problem, SnapshotView, StatusView, UnnamedView, VolumeView, stored,
};
use super::{Context, FlattenView, GarbageView, OpenVolume, WarmView};
use crate::gateway::{Fate, IfHeld};
use crate::volume::catalog::Info;
use crate::volume::{Status, Warm};

/// The OpenAPI description of the API.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

/// Number of cells in a map if the client does not choose one.
const MAP_CELLS: u64 = 1024;
/// Maximum number of cells in a map.
const MAXIMUM_MAP_CELLS: u64 = 4096;
/// Number of ranges of a comparison in an answer if the client does not choose one.
const RANGES: usize = 1024;
/// Maximum number of ranges in an answer.
const MAXIMUM_RANGES: usize = 16_384;

type Answer<T> = Result<T, Problem>;

pub(super) fn routes() -> Router<Context> {
    Router::new()
        .route("/api/v1/openapi.json", get(openapi))
        .route("/api/v1/status", get(status))
        .route("/api/v1/volumes", get(list).post(create))
        .route("/api/v1/volumes/{name}", get(info).patch(change).delete(delete))
        .route("/api/v1/unnamed", get(unnamed))
        .route("/api/v1/unnamed/{id}", axum::routing::delete(delete_by_id))
        .route("/api/v1/deleted", get(deleted))
        .route("/api/v1/deleted/{id}", axum::routing::delete(delete_kept))
        .route("/api/v1/deleted/{id}/undelete", post(undelete))
        .route("/api/v1/volumes/{name}/map", get(map))
        .route("/api/v1/volumes/{name}/flush", post(flush))
        .route("/api/v1/volumes/{name}/checkpoint", post(checkpoint))
        .route("/api/v1/volumes/{name}/snapshots", get(snapshots).post(take_snapshot))
        .route("/api/v1/volumes/{name}/snapshots/{snapshot}", axum::routing::delete(delete_snapshot))
        .route("/api/v1/volumes/{name}/snapshots/{snapshot}/clones", post(clone_snapshot))
        .route("/api/v1/volumes/{name}/snapshots/{snapshot}/changes", get(changes))
        .route("/api/v1/volumes/{name}/gc", post(collect_garbage))
        .route("/api/v1/volumes/{name}/flatten", post(flatten))
        .route("/api/v1/volumes/{name}/warm", post(warm))
        .route("/api/v1/connections", get(connections))
        .route("/api/v1/drain", post(drain))
}

async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

/// Returns the state in memory. It does not access the store, so it works during an outage.
async fn status(State(context): State<Context>) -> Json<StatusView> {
    let (open, known) = (context.gateway.open_volumes(), context.gateway.known());
    Json(StatusView::new(&context, &open, known))
}

/// How often a waiting request checks whether the store is failing altogether.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Waits for an answer from the store. Fails with 503 once all requests to the store have failed for
/// `ready_timeout`.
async fn asked<T, E: Into<Problem>>(
    context: &Context,
    work: impl Future<Output = Result<T, E>>,
) -> Answer<T> {
    tokio::pin!(work);
    loop {
        match tokio::time::timeout(LOOK_EVERY, &mut work).await {
            Ok(result) => return result.map_err(Into::into),
            Err(_) => {
                let failing = context.metrics.store().failing_for();
                if let Some(failing) = failing.filter(|failing| *failing >= context.ready_timeout) {
                    let why = format!(
                        "the store has answered nothing for {} s; /api/v1/status says what is open here",
                        failing.as_secs()
                    );
                    return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, why));
                }
            }
        }
    }
}

async fn list(State(context): State<Context>) -> Answer<Json<Vec<VolumeView>>> {
    let volumes = asked(&context, context.gateway.volumes()).await?;
    let (_, stored) = stored(&context);
    let open = context.gateway.open_volumes();
    let views = volumes.into_iter().map(|listed| match listed.found {
        Ok(info) => view(info, &open, &stored),
        Err(error) => VolumeView::problem(listed.name, &error),
    });
    Ok(Json(views.collect()))
}

/// Combines a volume in the store with its state if it is open here. The ids are compared too, because the
/// volume that is open here under this name may be an older one that has been deleted.
fn view(info: Info, open: &[OpenVolume], stored: &BTreeMap<String, u64>) -> VolumeView {
    let open = open.iter().find(|open| open.name == info.name && open.volume.id() == info.volume);
    let stored_bytes = stored.get(&info.name).copied();
    VolumeView::new(info, open, stored_bytes)
}

async fn info(State(context): State<Context>, Path(name): Path<String>) -> Answer<Json<VolumeView>> {
    let (open, (_, stored)) = (context.gateway.open_volumes(), stored(&context));
    // A volume that has stopped here may belong to another gateway by now, or may be deleted, so the store is
    // asked.
    let serves =
        |open: &&OpenVolume| open.name == name && !matches!(open.volume.status(), Status::Stopped(_));
    let info = match open.iter().find(serves) {
        Some(open) => open.volume.info(&name),
        None => asked(&context, context.gateway.volume(&name)).await?,
    };
    Ok(Json(view(info, &open, &stored)))
}

async fn unnamed(State(context): State<Context>) -> Answer<Json<Vec<UnnamedView>>> {
    let unnamed = asked(&context, context.gateway.unnamed()).await?;
    Ok(Json(unnamed.into_iter().map(UnnamedView::from).collect()))
}

async fn deleted(State(context): State<Context>) -> Answer<Json<Vec<DeletedView>>> {
    let deleted = asked(&context, context.gateway.deleted()).await?;
    Ok(Json(deleted.into_iter().map(DeletedView::from).collect()))
}

async fn undelete(
    State(context): State<Context>,
    Path(id): Path<String>,
    body: Result<Json<Undeletion>, JsonRejection>,
) -> Answer<Json<VolumeView>> {
    let Json(undeletion) = body.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let info = context.gateway.undelete(parsed(&id)?, undeletion.name.as_deref()).await?;
    Ok(Json(VolumeView::new(info, None, None)))
}

/// Reads the id of a volume.
fn parsed(id: &str) -> Answer<Uuid> {
    id.parse().map_err(|error| {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format!("{id:?} is not an id: {error}"))
    })
}

async fn create(
    State(context): State<Context>,
    body: Result<Json<NewVolume>, JsonRejection>,
) -> Answer<Response> {
    let Json(new) = body.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let chunk_bytes = new.chunk_bytes.map(|whole| whole.0);
    let info = context.gateway.create(&new.name, new.size_bytes.0, chunk_bytes).await?;
    // A valid name contains only characters that may appear in a path.
    let location = format!("/api/v1/volumes/{}", info.name);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(VolumeView::new(info, None, None))).into_response())
}

async fn change(
    State(context): State<Context>,
    Path(name): Path<String>,
    body: Result<Json<VolumeChange>, JsonRejection>,
) -> Answer<Json<VolumeView>> {
    let Json(change) = body.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let info = match change.what()? {
        Change::Size(size_bytes, shrink) => context.gateway.resize(&name, size_bytes, shrink).await?,
        Change::Name(to) => {
            let id = asked(&context, context.gateway.resolve(&name)).await?;
            check_closed(&context, id, &name)?;
            context.gateway.rename(&name, &to).await?
        }
    };
    let (open, (_, stored)) = (context.gateway.open_volumes(), stored(&context));
    Ok(Json(view(info, &open, &stored)))
}

/// Fails with 409 if this gateway serves a volume, under whatever name. A stopped volume is not served:
/// another gateway holds it or is deleting it.
fn check_closed(context: &Context, id: Uuid, shown: &str) -> Answer<()> {
    let open = context.gateway.open_volumes();
    let serves =
        |open: &&OpenVolume| open.volume.id() == id && !matches!(open.volume.status(), Status::Stopped(_));
    let Some(open) = open.iter().find(serves) else { return Ok(()) };
    let why = match (open.is_configured, open.clients) {
        (true, _) => "the configuration names it; remove it from volumes.create and volumes.open, and reload"
            .to_owned(),
        (false, 0) => "no client uses it any more, and it is closed after volumes.idle_timeout".to_owned(),
        (false, clients) => format!(
            "connections that use it: {clients}; disconnect them, and it is closed after volumes.idle_timeout"
        ),
    };
    Err(Problem::new(StatusCode::CONFLICT, format!("{shown} is open in this gateway: {why}")))
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Deletion {
    #[serde(default)]
    takeover: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeletionByName {
    #[serde(default)]
    takeover: bool,
    #[serde(default)]
    now: bool,
}

fn if_held(takeover: bool) -> IfHeld {
    if takeover { IfHeld::TakeOver } else { IfHeld::Refuse }
}

async fn delete(
    State(context): State<Context>,
    Path(name): Path<String>,
    query: Result<Query<DeletionByName>, QueryRejection>,
) -> Answer<StatusCode> {
    let Query(deletion) = query.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let fate = if deletion.now { Fate::Gone } else { Fate::Kept };
    // By its id: the volume may be open here under another name.
    let id = asked(&context, context.gateway.resolve(&name)).await?;
    check_closed(&context, id, &name)?;
    context.gateway.delete(&name, if_held(deletion.takeover), fate).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn delete_by_id(
    State(context): State<Context>,
    Path(id): Path<String>,
    query: Result<Query<Deletion>, QueryRejection>,
) -> Answer<StatusCode> {
    let Query(deletion) = query.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let id = parsed(&id)?;
    check_closed(&context, id, &id.to_string())?;
    context.gateway.delete_by_id(id, if_held(deletion.takeover)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Deletes a volume for good that is kept. What is open here does not matter: a volume in use is not kept.
async fn delete_kept(State(context): State<Context>, Path(id): Path<String>) -> Answer<StatusCode> {
    context.gateway.delete_kept(parsed(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Returns the open volume of this name. Fails with 409 if it is not open here.
async fn opened(context: &Context, name: &str) -> Answer<OpenVolume> {
    if let Some(open) = context.gateway.open_volumes().into_iter().find(|open| open.name == name) {
        return Ok(open);
    }
    // If the volume does not exist at all, this fails with 404 instead.
    asked(context, context.gateway.volume(name)).await?;
    Err(Problem::new(StatusCode::CONFLICT, format!("{name} is not open in this gateway")))
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MapSize {
    cells: Option<u64>,
}

async fn map(
    State(context): State<Context>,
    Path(name): Path<String>,
    query: Result<Query<MapSize>, QueryRejection>,
) -> Answer<Json<MapView>> {
    let Query(size) = query.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let cells = size.cells.unwrap_or(MAP_CELLS);
    if !(1..=MAXIMUM_MAP_CELLS).contains(&cells) {
        let why = format!("cells = {cells}: must be between 1 and {MAXIMUM_MAP_CELLS}");
        return Err(Problem::new(StatusCode::BAD_REQUEST, why));
    }
    let open = opened(&context, &name).await?;
    let picture = asked(&context, open.volume.picture(cells)).await?;
    Ok(Json(MapView::new(open.volume.size_bytes(), &picture)))
}

async fn flush(State(context): State<Context>, Path(name): Path<String>) -> Answer<StatusCode> {
    opened(&context, &name).await?.volume.flush().await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn checkpoint(State(context): State<Context>, Path(name): Path<String>) -> Answer<StatusCode> {
    opened(&context, &name).await?.volume.checkpoint().await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn snapshots(
    State(context): State<Context>,
    Path(name): Path<String>,
) -> Answer<Json<Vec<SnapshotView>>> {
    let snapshots = asked(&context, context.gateway.snapshots(&name)).await?;
    Ok(Json(snapshots.into_iter().map(SnapshotView::from).collect()))
}

async fn take_snapshot(
    State(context): State<Context>,
    Path(volume): Path<String>,
    body: Result<Json<NewSnapshot>, JsonRejection>,
) -> Answer<Response> {
    let Json(new) = body.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let taken = context.gateway.take_snapshot(&volume, &new.name).await?;
    let location = format!("/api/v1/volumes/{volume}/snapshots/{}", taken.name);
    let view = Json(SnapshotView::from(taken));
    Ok((StatusCode::CREATED, [(LOCATION, location)], view).into_response())
}

async fn delete_snapshot(
    State(context): State<Context>,
    Path((volume, snapshot)): Path<(String, String)>,
) -> Answer<StatusCode> {
    context.gateway.delete_snapshot(&volume, &snapshot).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn clone_snapshot(
    State(context): State<Context>,
    Path((volume, snapshot)): Path<(String, String)>,
    body: Result<Json<NewClone>, JsonRejection>,
) -> Answer<Response> {
    let Json(new) = body.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let info = context.gateway.clone_snapshot(&volume, &snapshot, &new.name).await?;
    let location = format!("/api/v1/volumes/{}", info.name);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(VolumeView::new(info, None, None))).into_response())
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangesQuery {
    since: String,
    offset: Option<u64>,
    limit: Option<usize>,
}

async fn changes(
    State(context): State<Context>,
    Path((volume, snapshot)): Path<(String, String)>,
    query: Result<Query<ChangesQuery>, QueryRejection>,
) -> Answer<Json<ChangesView>> {
    let Query(query) = query.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let limit = query.limit.unwrap_or(RANGES);
    if !(1..=MAXIMUM_RANGES).contains(&limit) {
        let why = format!("limit = {limit}: must be between 1 and {MAXIMUM_RANGES}");
        return Err(Problem::new(StatusCode::BAD_REQUEST, why));
    }
    let snapshots = (&*query.since, &*snapshot);
    let offset = query.offset.unwrap_or(0);
    let page = asked(&context, context.gateway.compare(&volume, snapshots, offset, limit)).await?;
    Ok(Json(page.into()))
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Collection {
    #[serde(default)]
    dry_run: bool,
}

/// Collects the garbage of a volume. It takes as long as the volume has objects to list, and ends when the
/// client disconnects.
async fn collect_garbage(
    State(context): State<Context>,
    Path(name): Path<String>,
    query: Result<Query<Collection>, QueryRejection>,
) -> Answer<Json<GarbageView>> {
    let Query(collection) = query.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let view: GarbageView = match collection.dry_run {
        true => context.gateway.look_for_garbage(&name).await?.into(),
        false => context.gateway.collect_garbage(&name).await?.into(),
    };
    Ok(Json(view))
}

/// Flattens a clone. The volume goes on with it if the client disconnects.
async fn flatten(State(context): State<Context>, Path(name): Path<String>) -> Answer<Json<FlattenView>> {
    Ok(Json(context.gateway.flatten(&name).await?.into()))
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Warming {
    #[serde(default)]
    all: bool,
}

/// Loads blocks of a volume into the cache. It ends when the client disconnects.
async fn warm(
    State(context): State<Context>,
    Path(name): Path<String>,
    query: Result<Query<Warming>, QueryRejection>,
) -> Answer<Json<WarmView>> {
    let Query(warming) = query.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let what = if warming.all { Warm::Everything } else { Warm::FirstReads };
    Ok(Json(context.gateway.warm(&name, what).await?.into()))
}

async fn connections(State(context): State<Context>) -> Json<Vec<ConnectionView>> {
    Json(context.gateway.connections().into_iter().map(ConnectionView::from).collect())
}

async fn drain(State(context): State<Context>) -> StatusCode {
    tracing::info!("the admin API requested a shutdown");
    context.gateway.drain();
    StatusCode::ACCEPTED
}
