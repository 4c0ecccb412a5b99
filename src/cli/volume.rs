//! `cairn volume`: create, list, show and delete; and what it takes to work on a store.

use bytesize::ByteSize;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use super::args::Action;
use super::error::Error;
use super::settings::Options;
use super::{output, process};
use crate::config::Size;
use crate::metrics::Metrics;
use crate::store;
use crate::volume::catalog::{self, Info};
use crate::volume::{DirtyBudget, Entropy, Environment, OpenError, PageCache};

/// Volumes looked up at a time.
const CONCURRENT_LOOKUPS: usize = 16;

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
        Action::List(args) => {
            let infos = infos(&env).await?;
            if args.json {
                print_json(&infos.iter().map(Shown::of).collect::<Vec<_>>())
            } else {
                print(&table(&infos))
            }
        }
        Action::Info(args) => {
            let info = catalog::info(&env, &args.name).await;
            let info = info.map_err(|source| Error::Volume { name: args.name, source })?;
            if args.json { print_json(&Shown::of(&info)) } else { print(&details(&info)) }
        }
        Action::Delete(args) => {
            let deleted = catalog::delete(&env, &options.volume, &args.name, args.takeover).await;
            let name = args.name;
            deleted.map_err(|source| Error::Volume { name: name.clone(), source })?;
            print(&format!("deleted {name}\n"))
        }
    }
}

/// All volumes, in order of name.
async fn infos(env: &Environment) -> Result<Vec<Info>, Error> {
    let names = catalog::list(env).await.map_err(Error::List)?;
    let lookups = stream::iter(names).map(|name| async move {
        match catalog::info(env, &name).await {
            Ok(info) => Ok(Some(info)),
            // Deleted since it was listed.
            Err(OpenError::NoSuchVolume(_)) => Ok(None),
            Err(error @ OpenError::Deleting) => {
                tracing::warn!("{name}: {error}");
                Ok(None)
            }
            Err(source) => Err(Error::Volume { name, source }),
        }
    });
    let found: Vec<Option<Info>> = lookups.buffered(CONCURRENT_LOOKUPS).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
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

fn table(infos: &[Info]) -> String {
    let head = ["NAME", "SIZE", "CHUNK", "CREATED", "HELD BY"].map(str::to_owned);
    let rows = infos.iter().map(|info| {
        let holder = info.holder.clone().unwrap_or_else(|| "-".to_owned());
        let created = time(info.created_at_seconds);
        [info.name.clone(), size(info.size_bytes), size(info.chunk_bytes), created, holder]
    });
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
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
