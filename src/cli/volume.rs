//! `cairn volume`: create, list, show and delete; and what it takes to work on a store.

use std::io::Write as _;

use bytesize::ByteSize;
use serde::Serialize;

use super::args::{Action, Delete};
use super::error::{Error, chain};
use super::process;
use super::settings::Options;
use crate::config::Size;
use crate::metrics::Metrics;
use crate::store::{self, Setup};
use crate::volume::catalog::{self, Info, Listed, Unnamed};
use crate::volume::{DirtyBudget, Entropy, Environment, PageCache};

/// Opens the store, and what volumes share.
pub(super) async fn environment(options: &Options, metrics: &Metrics) -> Result<Environment, Error> {
    let entropy = Entropy::from_os();
    let (seed, nonce) = (entropy.next_u64(), entropy.uuid().simple().to_string());
    let store = store::open(&options.location, &options.store, metrics.store(), seed, &nonce).await?;
    Ok(Environment {
        store,
        cache: PageCache::new(options.clean_bytes, options.volume.get_bytes),
        budget: DirtyBudget::new(options.dirty_bytes),
        entropy,
        wall_clock: process::wall_clock(),
    })
}

/// Does what was asked for.
pub(super) async fn run(action: Action, options: Options) -> Result<(), Error> {
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
    let env = environment(&options, &Metrics::new()).await?;
    match action {
        Action::Create(args) => {
            let Size(bytes) = args.size;
            let made = catalog::create(&env, &options.volume, &args.name, bytes, options.chunk_bytes).await;
            let info = made.map_err(|source| Error::Volume { name: args.name, source })?;
            if args.json {
                print_json(&Shown::of(&info))
            } else {
                print(&format!("created {} of {}\n", info.name, size(info.size_bytes)))
            }
        }
        Action::List(args) if args.unnamed => {
            let unnamed = catalog::unnamed(&env).await.map_err(Error::List)?;
            if args.json {
                print_json(&unnamed.iter().map(ShownUnnamed::of).collect::<Vec<_>>())
            } else {
                print(&unnamed_table(&unnamed))
            }
        }
        Action::List(args) => {
            let volumes = catalog::volumes(&env).await.map_err(Error::List)?;
            if args.json {
                print_json(&volumes.iter().map(ShownListed::of).collect::<Vec<_>>())
            } else {
                print(&volumes_table(&volumes))
            }
        }
        Action::Info(args) => {
            let info = catalog::info(&env, &args.name).await;
            let info = info.map_err(|source| Error::Volume { name: args.name, source })?;
            if args.json { print_json(&Shown::of(&info)) } else { print(&details(&info)) }
        }
        Action::Delete(args) => delete(&env, &options, args).await,
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

/// A name of a list as JSON shows it: the volume, or why nothing is known of it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ShownListed<'a> {
    Volume(Shown<'a>),
    Problem { name: &'a str, problem: String },
}

impl<'a> ShownListed<'a> {
    fn of(listed: &'a Listed) -> Self {
        match &listed.found {
            Ok(info) => Self::Volume(Shown::of(info)),
            Err(error) => Self::Problem { name: &listed.name, problem: chain(&**error) },
        }
    }
}

/// A volume without a name as JSON shows it.
#[derive(Debug, Serialize)]
struct ShownUnnamed<'a> {
    id: uuid::Uuid,
    made_for: Option<&'a str>,
    created_at: Option<String>,
    state: String,
}

impl<'a> ShownUnnamed<'a> {
    fn of(unnamed: &'a Unnamed) -> Self {
        Self {
            id: unnamed.volume,
            made_for: unnamed.made_for.as_deref(),
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

fn volumes_table(volumes: &[Listed]) -> String {
    let head = ["NAME", "SIZE", "CHUNK", "CREATED", "HELD BY"].map(str::to_owned);
    let rows = volumes.iter().map(|listed| match &listed.found {
        Ok(info) => {
            let holder = info.holder.clone().unwrap_or_else(|| "-".to_owned());
            let created = time(info.created_at_seconds);
            [info.name.clone(), size(info.size_bytes), size(info.chunk_bytes), created, holder]
        }
        Err(error) => {
            let unknown = || "?".to_owned();
            [listed.name.clone(), unknown(), unknown(), unknown(), chain(&**error)]
        }
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn unnamed_table(unnamed: &[Unnamed]) -> String {
    let head = ["ID", "MADE FOR", "CREATED", "STATE"].map(str::to_owned);
    let unknown = || "?".to_owned();
    let rows = unnamed.iter().map(|volume| {
        let made_for = volume.made_for.clone().unwrap_or_else(unknown);
        let created = volume.created_at_seconds.map_or_else(unknown, time);
        [volume.volume.to_string(), made_for, created, volume.progress.to_string()]
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
    let mut out = std::io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    printed.map_err(|source| Error::System { what: "cannot print", source })
}
