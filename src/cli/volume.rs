//! `cairn volume`: create, list, show and delete; and what it takes to work on a store.

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::args::{Action, Delete, List};
use super::error::{Error, chain};
use super::gateway::Gateway;
use super::settings::Options;
use super::{output, process};
use crate::config::{Config, Size};
use crate::metrics::Metrics;
use crate::store::{self, Setup};
use crate::volume::catalog::{self, Info, Listed, Unnamed};
use crate::volume::{DirtyBudget, Entropy, Environment, PageCache};

/// Opens the store, and what volumes share.
pub(super) async fn environment(
    options: &Options,
    metrics: &Metrics,
) -> Result<(Environment, store::Control), Error> {
    let (entropy, wall_clock) = (Entropy::from_os(), process::wall_clock());
    let drawn = store::Drawn {
        seed: entropy.next_u64(),
        nonce: entropy.uuid().simple().to_string(),
        now_seconds: wall_clock(),
    };
    let opened = store::open(&options.location, &options.store, metrics.store(), &drawn).await?;
    let env = Environment {
        store: opened.store,
        cache: PageCache::new(options.clean_bytes, options.volume.get_bytes),
        budget: DirtyBudget::new(options.dirty_bytes),
        entropy,
        wall_clock,
    };
    Ok((env, opened.control))
}

/// Where volumes are made, looked up and deleted.
pub(super) enum Place {
    /// In the store.
    Store,
    /// By a gateway.
    Gateway(Gateway),
}

/// Does what was asked for.
pub(super) async fn run(
    action: Action,
    config: &Config,
    options: Options,
    place: Place,
) -> Result<(), Error> {
    match place {
        Place::Store => in_store(action, options).await,
        Place::Gateway(gateway) => {
            let chunk_bytes = config.is_given("volumes.chunk_size").then_some(options.chunk_bytes);
            by_gateway(action, chunk_bytes, &gateway).await
        }
    }
}

async fn in_store(action: Action, options: Options) -> Result<(), Error> {
    let mut options = options.impatient();
    match &action {
        Action::Create(args) => {
            // Before a store is made for it.
            let checked = catalog::check(&args.name, args.size.0, options.chunk_bytes);
            checked.map_err(|source| Error::Volume { name: args.name.clone(), source })?;
        }
        Action::List(_) | Action::Info(_) | Action::Delete(_) => {
            // Where there is no store, there is nothing to show and nothing to delete.
            options.store.setup = Setup::Existing;
            options.store.s3.create_bucket = false;
        }
    }
    if matches!(action, Action::List(_) | Action::Info(_)) {
        // Who only looks needs no conditions, and may have no right to write.
        options.store.probe = None;
    }
    let (env, _) = environment(&options, &Metrics::new()).await?;
    match action {
        Action::Create(args) => {
            let Size(bytes) = args.size;
            let made = catalog::create(&env, &options.volume, &args.name, bytes, options.chunk_bytes).await;
            let info = made.map_err(|source| Error::Volume { name: args.name, source })?;
            print_created(&info, args.json)
        }
        Action::List(List { unnamed: true, json, .. }) => {
            let unnamed = catalog::unnamed(&env).await.map_err(Error::List)?;
            print_unnamed(unnamed.into_iter().map(ShownUnnamed::from).collect(), json)
        }
        Action::List(args) => {
            let volumes = catalog::volumes(&env).await.map_err(Error::List)?;
            print_all(volumes.into_iter().map(Row::from).collect(), args.json)
        }
        Action::Info(args) => {
            let info = catalog::info(&env, &args.name).await;
            let info = info.map_err(|source| Error::Volume { name: args.name, source })?;
            print_one(&info, args.json)
        }
        Action::Delete(args) => delete(&env, &options, args).await,
    }
}

async fn by_gateway(action: Action, chunk_bytes: Option<u64>, gateway: &Gateway) -> Result<(), Error> {
    match action {
        Action::Create(args) => {
            let Size(bytes) = args.size;
            print_created(&gateway.create(&args.name, bytes, chunk_bytes).await?, args.json)
        }
        Action::List(args) if args.unnamed => print_unnamed(gateway.unnamed().await?, args.json),
        Action::List(args) => print_all(gateway.list().await?, args.json),
        Action::Info(args) => print_one(&gateway.info(&args.name).await?, args.json),
        Action::Delete(args) => {
            let shown = match (args.name, args.id) {
                (Some(name), _) => {
                    gateway.delete(&name, args.takeover).await?;
                    name
                }
                (None, Some(id)) => {
                    gateway.delete_by_id(id, args.takeover).await?;
                    id.to_string()
                }
                (None, None) => unreachable!("the grammar asks for one of them"),
            };
            print(&format!("deleted {shown}\n"))
        }
    }
}

async fn delete(env: &Environment, options: &Options, args: Delete) -> Result<(), Error> {
    let (deleted, shown) = match (args.name, args.id) {
        (Some(name), _) => (catalog::delete(env, &options.volume, &name, args.takeover).await, name),
        (None, Some(id)) => {
            (catalog::delete_by_id(env, &options.volume, id, args.takeover).await, id.to_string())
        }
        (None, None) => unreachable!("the grammar asks for one of them"),
    };
    deleted.map_err(|source| Error::Volume { name: shown.clone(), source })?;
    print(&format!("deleted {shown}\n"))
}

/// A name of a list: its volume, or why nothing is known of it.
pub(super) enum Row {
    /// The volume.
    Volume(Info),
    /// What is wrong with it.
    Problem {
        /// The name.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

impl From<Listed> for Row {
    fn from(listed: Listed) -> Self {
        match listed.found {
            Ok(info) => Self::Volume(info),
            Err(error) => Self::Problem { name: listed.name, problem: chain(&*error) },
        }
    }
}

fn print_created(info: &Info, json: bool) -> Result<(), Error> {
    if json {
        return print_json(&Shown::of(info));
    }
    print(&format!("created {} of {}\n", info.name, size(info.size_bytes)))
}

fn print_all(rows: Vec<Row>, json: bool) -> Result<(), Error> {
    if json {
        print_json(&rows.iter().map(ShownRow::of).collect::<Vec<_>>())
    } else {
        print(&volumes_table(&rows))
    }
}

fn print_unnamed(unnamed: Vec<ShownUnnamed>, json: bool) -> Result<(), Error> {
    if json { print_json(&unnamed) } else { print(&unnamed_table(&unnamed)) }
}

fn print_one(info: &Info, json: bool) -> Result<(), Error> {
    if json { print_json(&Shown::of(info)) } else { print(&details(info)) }
}

/// A volume as JSON shows it.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    name: &'a str,
    id: uuid::Uuid,
    size_bytes: u64,
    chunk_bytes: u64,
    created_at: String,
    epoch: u32,
    holder: Option<&'a str>,
}

impl<'a> Shown<'a> {
    fn of(info: &'a Info) -> Self {
        Self {
            name: &info.name,
            id: info.volume,
            size_bytes: info.size_bytes,
            chunk_bytes: info.chunk_bytes,
            created_at: time(info.created_at_seconds),
            epoch: info.epoch,
            holder: info.holder.as_deref(),
        }
    }
}

/// A name of a list as JSON shows it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ShownRow<'a> {
    Volume(Shown<'a>),
    Problem { name: &'a str, problem: &'a str },
}

impl<'a> ShownRow<'a> {
    fn of(row: &'a Row) -> Self {
        match row {
            Row::Volume(info) => Self::Volume(Shown::of(info)),
            Row::Problem { name, problem } => Self::Problem { name, problem },
        }
    }
}

/// A volume without a name as JSON shows it, here and in the API.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ShownUnnamed {
    id: uuid::Uuid,
    made_for: Option<String>,
    created_at: Option<String>,
    state: String,
}

impl From<Unnamed> for ShownUnnamed {
    fn from(unnamed: Unnamed) -> Self {
        Self {
            id: unnamed.volume,
            made_for: unnamed.made_for,
            created_at: unnamed.created_at_seconds.map(time),
            state: unnamed.progress.to_string(),
        }
    }
}

/// Seconds since 1970 as RFC 3339 has them.
fn time(seconds: u64) -> String {
    // The year 9999, which is as far as that goes.
    const LAST: u64 = 253_402_300_799;
    let since = std::time::Duration::from_secs(seconds.min(LAST));
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since).to_string()
}

/// A size for people: exact where that is short.
fn size(bytes: u64) -> String {
    let exact = Size(bytes).to_string();
    if exact.len() <= 7 { exact } else { ByteSize(bytes).display().iec().to_string() }
}

fn volumes_table(rows: &[Row]) -> String {
    let head = ["NAME", "SIZE", "CHUNK", "CREATED", "HELD BY"].map(str::to_owned);
    let rows = rows.iter().map(|row| match row {
        Row::Volume(info) => {
            let holder = info.holder.clone().unwrap_or_else(|| "-".to_owned());
            let created = time(info.created_at_seconds);
            [info.name.clone(), size(info.size_bytes), size(info.chunk_bytes), created, holder]
        }
        Row::Problem { name, problem } => {
            let unknown = || "?".to_owned();
            [name.clone(), unknown(), unknown(), unknown(), problem.clone()]
        }
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn unnamed_table(unnamed: &[ShownUnnamed]) -> String {
    let head = ["ID", "INTENDED NAME", "CREATED", "STATE"].map(str::to_owned);
    let known = |value: &Option<String>| value.clone().unwrap_or_else(|| "?".to_owned());
    let rows = unnamed.iter().map(|volume| {
        [volume.id.to_string(), known(&volume.made_for), known(&volume.created_at), volume.state.clone()]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// Lines of cells that stand below each other.
fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    // The last cell of a line is as long as it is.
    let width = |column: usize| if column + 1 < COLUMNS { width(column) } else { 0 };
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn details(info: &Info) -> String {
    let holder = info.holder.as_deref().unwrap_or("nobody");
    let fields = [
        ("name", info.name.clone()),
        ("id", info.volume.to_string()),
        ("size", format!("{} ({} bytes)", size(info.size_bytes), info.size_bytes)),
        ("chunk size", size(info.chunk_bytes)),
        ("created", time(info.created_at_seconds)),
        ("epoch", info.epoch.to_string()),
        ("held by", holder.to_owned()),
    ];
    fields.iter().map(|(field, value)| format!("{field:<11} {value}\n")).collect()
}

fn print_json(value: &impl Serialize) -> Result<(), Error> {
    let mut text = serde_json::to_string_pretty(value).expect("plain data is JSON");
    text.push('\n');
    print(&text)
}

fn print(text: &str) -> Result<(), Error> {
    output::answer(text).map_err(|source| Error::System { what: "cannot print", source })
}
