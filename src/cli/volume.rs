//! `cairn volume`: creates, lists, shows, measures, resizes, renames, flattens, warms and deletes volumes,
//! and brings deleted ones back.
//!
//! Owns the choice between the store and a gateway, and must not know how a volume is stored. Invariant: only
//! a creation may create a store.

use super::api_client::Gateway;
use super::args::{Action, Delete, Doomed, Flatten, List, Rename, Resize, Undelete, Usage};
use super::environment::{environment, for_reading};
use super::error::Error;
use super::opened::{close, open, prepare};
use super::printed::print;
use super::settings::Options;
use super::usage_view::print_usage;
use super::volume_view::{
    Later, Row, print_all, print_created, print_deleted, print_flattened, print_one, print_renamed,
    print_resized, print_undeleted, print_unnamed, print_warmed,
};
use crate::admin::{DeletedView, FlattenView, UnnamedView};
use crate::config::{Config, Size};
use crate::metrics::Metrics;
use crate::store::Setup;
use crate::volume::catalog::{self, ChunkBytes};
use crate::volume::check::{self, Depth};
use crate::volume::{Environment, OpenError};

/// Where a command on volumes is executed.
pub(super) enum Place {
    /// In the store.
    Store,
    /// By a gateway.
    Gateway(Gateway),
}

/// Executes a command.
pub(super) async fn run(
    action: Action,
    config: &Config,
    options: Options,
    place: Place,
) -> Result<(), Error> {
    if let Action::Rename(args) = &action {
        check_unconfigured(args, &options)?;
    }
    match place {
        Place::Store => Box::pin(in_store(action, options)).await,
        Place::Gateway(gateway) => {
            let chunk_bytes = config.is_given("volumes.chunk_size").then_some(options.chunk_bytes);
            by_gateway(action, chunk_bytes, &gateway).await
        }
    }
}

async fn in_store(action: Action, options: Options) -> Result<(), Error> {
    let action = match action {
        Action::Usage(args) => return usage(options, args).await,
        Action::Resize(args) => return resize(options, args).await,
        Action::Rename(args) => return rename(options, args).await,
        Action::Flatten(args) => return flatten(options, args).await,
        Action::Warm(args) => return Err(warm_nothing(&args.name)),
        action => action,
    };
    let mut options = options.impatient();
    let chunk = ChunkBytes(options.chunk_bytes);
    match &action {
        Action::Create(args) => {
            // Checked before a store is created for the volume.
            let checked = catalog::check(&args.name, args.size.0, chunk);
            checked.map_err(|source| Error::Volume { name: args.name.clone(), source })?;
        }
        _ => {
            // Without a store there is nothing to show and nothing to delete.
            options.store.setup = Setup::Existing;
            options.store.s3.create_bucket = false;
        }
    }
    if matches!(action, Action::List(_) | Action::Info(_)) {
        // Reading needs no conditional writes, and the user may not have permission to write.
        options.store.probe = None;
    }
    let (env, _) = environment(&options, &Metrics::new()).await?;
    match action {
        Action::Create(args) => {
            let Size(bytes) = args.size;
            let made = catalog::create(&env, &options.volume, &args.name, bytes, chunk).await;
            let info = made.map_err(|source| Error::Volume { name: args.name, source })?;
            print_created(&info, args.json)
        }
        Action::List(List { unnamed: true, json, .. }) => {
            let unnamed = catalog::unnamed(&env).await.map_err(Error::List)?;
            print_unnamed(unnamed.into_iter().map(UnnamedView::from).collect(), json)
        }
        Action::List(List { deleted: true, json, .. }) => {
            let deleted = catalog::deleted(&env).await.map_err(Error::List)?;
            print_deleted(deleted.into_iter().map(DeletedView::from).collect(), json)
        }
        Action::List(args) => {
            let volumes = catalog::volumes(&env).await.map_err(Error::List)?;
            print_all(volumes.into_iter().map(Row::from).collect(), args.json)
        }
        Action::Info(args) => {
            let info = catalog::info(&env, &args.name).await;
            let info = info.map_err(|source| Error::Volume { name: args.name, source })?;
            let parent = match info.clone_of {
                Some(parent) => catalog::name_of(&env, parent).await,
                None => None,
            };
            print_one(&info, parent, args.json)
        }
        Action::Usage(_)
        | Action::Resize(_)
        | Action::Rename(_)
        | Action::Flatten(_)
        | Action::Warm(_)
        | Action::Restore(_) => unreachable!("it was carried out above"),
        Action::Delete(args) => delete(&env, &options, args).await,
        Action::Undelete(args) => undelete(&env, args).await,
    }
}

async fn resize(options: Options, args: Resize) -> Result<(), Error> {
    let Size(bytes) = args.size;
    let volume = open(options, &args.name).await?;
    let resized = volume.resize(bytes, args.shrink()).await;
    let info = volume.info(&args.name);
    let closed = close(&volume, &args.name).await;
    resized.map_err(|source| Error::Resize { name: args.name, source })?;
    print_resized(&info, args.json)?;
    closed
}

async fn flatten(options: Options, args: Flatten) -> Result<(), Error> {
    let volume = open(options, &args.name).await?;
    let done = volume.flatten().await;
    let closed = close(&volume, &args.name).await;
    let done = done.map_err(|source| Error::Flatten { name: args.name.clone(), source })?;
    flattened(&args.name, &done.into(), args.json, Later::Again)?;
    closed
}

/// Prints how far a volume is flattened. Fails if it does not become independent by itself.
fn flattened(name: &str, view: &FlattenView, json: bool, later: Later) -> Result<(), Error> {
    print_flattened(name, view, json, later)?;
    match (&view.snapshots, view.chunks) {
        (Some(snapshots), _) => {
            Err(Error::FlattenHeld { name: name.to_owned(), snapshots: snapshots.join(", ") })
        }
        (None, Some(chunks)) => Err(Error::FlattenUnread { name: name.to_owned(), chunks }),
        (None, None) => Ok(()),
    }
}

/// Why a volume is not warmed without a gateway.
fn warm_nothing(name: &str) -> Error {
    Error::Mistake(format!(
        "the cache is in the memory of a gateway: cairn volume warm {name} --gateway sends the command to \
         the gateway on this machine, and --gateway=SOCKET to the one with that admin socket"
    ))
}

async fn rename(options: Options, args: Rename) -> Result<(), Error> {
    let (env, options) = prepare(options).await?;
    let renamed = catalog::rename(&env, &options, &args.name, &args.to, false).await;
    let info = renamed.map_err(|source| match source {
        OpenError::Held { holder } => Error::RenameHeld { name: args.name.clone(), holder },
        source => Error::Volume { name: args.name.clone(), source },
    })?;
    print_renamed(&args.name, &info, args.json)
}

/// Fails if the configuration names the volume to be renamed: a gateway with this configuration would miss it
/// at its next start, or create an empty volume in its place.
fn check_unconfigured(args: &Rename, options: &Options) -> Result<(), Error> {
    if options.configured().contains(&args.name) {
        return Err(Error::Mistake(format!(
            "the configuration names {0:?}, and a gateway would miss the volume or create an empty one in \
             its place: first remove {0:?} from volumes.create and volumes.open, and add {1:?} there after \
             the renaming",
            args.name, args.to
        )));
    }
    Ok(())
}

async fn usage(options: Options, args: Usage) -> Result<(), Error> {
    let env = for_reading(options, &Metrics::new()).await?;
    let report = check::check(&env, &args.name, Depth::References).await;
    let report = report.map_err(|source| Error::Volume { name: args.name.clone(), source })?;
    if let Some(why) = report.incomplete {
        return Err(Error::Unsteady { name: args.name, why });
    }
    if report.is_damaged() && report.size_bytes.is_none() {
        return Err(super::check::damaged(&report));
    }
    print_usage(&report, args.json)
}

async fn by_gateway(action: Action, chunk_bytes: Option<u64>, gateway: &Gateway) -> Result<(), Error> {
    match action {
        Action::Create(args) => {
            let Size(bytes) = args.size;
            print_created(&gateway.create(&args.name, bytes, chunk_bytes).await?, args.json)
        }
        Action::List(args) if args.unnamed => print_unnamed(gateway.unnamed().await?, args.json),
        Action::List(args) if args.deleted => print_deleted(gateway.deleted().await?, args.json),
        Action::List(args) => print_all(gateway.list().await?, args.json),
        Action::Info(args) => {
            let info = gateway.info(&args.name).await?;
            let parent = match info.clone_of {
                Some(parent) => name_among(gateway.list().await?, parent),
                None => None,
            };
            print_one(&info, parent, args.json)
        }
        Action::Resize(args) => {
            let Size(bytes) = args.size;
            print_resized(&gateway.resize(&args.name, bytes, args.shrink).await?, args.json)
        }
        Action::Rename(args) => {
            print_renamed(&args.name, &gateway.rename(&args.name, &args.to).await?, args.json)
        }
        Action::Flatten(args) => {
            flattened(&args.name, &gateway.flatten(&args.name).await?, args.json, Later::ByGateway)
        }
        Action::Warm(args) => print_warmed(&args.name, &gateway.warm(&args.name, args.all).await?, args.json),
        Action::Usage(_) | Action::Restore(_) => unreachable!("the grammar has no gateway for it"),
        Action::Delete(args) => {
            let shown = match args.which() {
                Doomed::Named(name) => {
                    gateway.delete(&name, args.takeover, args.now).await?;
                    name
                }
                Doomed::Id(id) => {
                    gateway.delete_by_id(id, args.takeover).await?;
                    id.to_string()
                }
                Doomed::Kept(id) => {
                    gateway.delete_kept(id).await?;
                    id.to_string()
                }
            };
            print(&format!("deleted {shown}\n"))
        }
        Action::Undelete(args) => undelete_by_gateway(gateway, args).await,
    }
}

/// Brings a volume back. Only for a name are all deleted volumes looked up.
async fn undelete_by_gateway(gateway: &Gateway, args: Undelete) -> Result<(), Error> {
    let to = args.to.as_deref();
    if let Ok(id) = uuid::Uuid::parse_str(&args.which)
        && let Some(info) = gateway.undelete(id, to).await?
    {
        return print_undeleted(&info, args.json);
    }
    // It may be a name all the same.
    let failed = |source| Error::Volume { name: args.which.clone(), source };
    let deleted = gateway.deleted().await?;
    let all = deleted.iter().map(|volume| (volume.id, &*volume.name));
    let id = catalog::choose(all, &args.which).map_err(failed)?;
    let info = gateway.undelete(id, to).await?;
    let info = info.ok_or_else(|| failed(OpenError::NotDeleted(args.which.clone())))?;
    print_undeleted(&info, args.json)
}

/// Returns the name of the volume with an id.
fn name_among(rows: Vec<Row>, id: uuid::Uuid) -> Option<String> {
    rows.into_iter().find_map(|row| match row {
        Row::Volume(info) if info.volume == id => Some(info.name),
        _ => None,
    })
}

async fn delete(env: &Environment, options: &Options, args: Delete) -> Result<(), Error> {
    let options = &options.volume;
    let (deleted, shown) = match args.which() {
        Doomed::Named(name) if args.now => {
            (catalog::delete(env, options, &name, args.takeover).await.map(|()| None), name)
        }
        Doomed::Named(name) => (catalog::set_aside(env, options, &name, args.takeover).await, name),
        Doomed::Id(id) => {
            let deleted = catalog::delete_by_id(env, options, id, args.takeover).await;
            (deleted.map(|()| None), id.to_string())
        }
        Doomed::Kept(id) => (catalog::delete_kept(env, options, id).await.map(|()| None), id.to_string()),
    };
    match deleted.map_err(|source| Error::Volume { name: shown.clone(), source })? {
        None => print(&format!("deleted {shown}\n")),
        Some(time) => {
            let time = humantime::format_duration(time);
            print(&format!("deleted {shown}; for {time}, cairn volume undelete {shown} brings it back\n"))
        }
    }
}

async fn undelete(env: &Environment, args: Undelete) -> Result<(), Error> {
    let info = catalog::undelete_by(env, &args.which, args.to.as_deref()).await;
    let info = info.map_err(|source| Error::Volume { name: args.which, source })?;
    print_undeleted(&info, args.json)
}
