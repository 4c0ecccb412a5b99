//! `cairn backup`: brings a copy of a snapshot into another store.
//!
//! Owns the course of a backup and what is printed. It must not know how contents are compared or applied.
//! Invariants: the source is only read. The copy has a snapshot of the name only once all of it is durable.

use std::pin::pin;

use serde::Serialize;
use uuid::Uuid;

use super::apply::{Applied, Job, Kind, unless_ended};
use super::plan::{Plan, Source, Target};
use super::{Shown, first};
use crate::cli::backup_args::Backup;
use crate::cli::error::Error;
use crate::cli::printed::{print, print_json};
use crate::cli::process::Signals;
use crate::cli::settings::Options;
use crate::volume::format::stream::{Totals, is_begun_name, is_copy_name};
use crate::volume::incremental::receive::Leftovers;

/// Executes the command.
pub(in crate::cli) async fn backup(args: Backup, options: Options) -> Result<(), Error> {
    if is_copy_name(&args.of.name) || is_begun_name(&args.of.name) {
        let why = "by such snapshots Cairn knows what a copy has, so they are not backed up";
        return Err(Error::Mistake(format!("{}: {why}", args.of)));
    }
    let mut signals = Signals::new()?;
    let target = target_options(&args, &options)?;
    let source = unless_ended(pin!(Source::open(&args.of, options)), &mut signals).await?;
    let done = Box::pin(back_up(&args, &source, target, &mut signals)).await;
    let done = done.map_err(|source| Error::Backup { to: args.target.to_string(), source: Box::new(source) });
    let report = Report { args: &args, id: source.id, done: done? };
    if args.json { print_json(&report.row()) } else { print(&report.text()) }
}

/// The options for the other store: those of the source, unless a file has others.
fn target_options(args: &Backup, options: &Options) -> Result<Options, Error> {
    let options = Options { location: args.target.clone(), ..options.clone() };
    match args.target_config()? {
        Some(config) => Ok(options.with_store_of(&config)?),
        None => Ok(options),
    }
}

/// How the copy got what it has.
#[derive(Clone, Debug, PartialEq, Eq)]
enum How {
    /// It had the snapshot already.
    Present,
    /// It was made.
    First,
    /// It was brought up to date. Has the name of the snapshot that it had the content of.
    Incremental(String),
    /// All of it was replaced.
    Full,
    /// It was compared, and is a copy.
    Compared,
}

/// A backup that is complete.
struct Done {
    how: How,
    /// Id of the copy.
    id: Uuid,
    totals: Totals,
}

async fn back_up(
    args: &Backup,
    source: &Source,
    options: Options,
    signals: &mut Signals,
) -> Result<Done, Error> {
    let target = unless_ended(pin!(Target::open(args, options)), signals).await?;
    let planned = async {
        let existing = target.existing(source).await?;
        let plan = match &existing {
            None => target.plan_first(args).await?,
            Some(existing) => target.plan(args, source, existing).await?,
        };
        Ok::<_, Error>((existing, plan))
    };
    let (existing, plan) = unless_ended(pin!(planned), signals).await?;
    let shown = Shown::of(args.quiet);
    let digest = match (&plan, args.digest) {
        (Plan::Compare, _) | (Plan::First | Plan::Since(_) | Plan::Whole, true) => {
            Some(unless_ended(pin!(source.digest(shown)), signals).await?)
        }
        _ => None,
    };
    // What is compared before needs no comparison afterwards.
    let (base_digest, result_digest) = match plan {
        Plan::Compare => (digest, None),
        _ => (None, digest),
    };
    let (stream, how) = match &plan {
        Plan::Since(before) => {
            let how = How::Incremental(before.snapshot().name.clone());
            (source.since(before, None, result_digest)?, how)
        }
        Plan::Compare => (source.since(&source.disk, base_digest, None)?, How::Compared),
        Plan::First => (source.whole(result_digest), How::First),
        Plan::Whole => (source.whole(result_digest), How::Full),
        Plan::Nothing => (source.whole(None), How::Present),
    };
    let mut job = Job {
        stream,
        onto: target.onto.clone(),
        kind: Kind::Backup,
        snapshot: Some(source.of.name.clone()),
        leftovers: if args.resume { Leftovers::Discard } else { Leftovers::Refuse },
        result_digest,
        shown,
    };
    let (id, how) = match existing {
        Some(existing) if how == How::Present => (existing.id, how),
        Some(existing) => (existing.id, run(&mut job, &target, how, signals).await?),
        None => {
            let header = unless_ended(pin!(job.stream.header()), signals).await?;
            (Box::pin(first::make(&mut job, &target, &header, signals)).await?, how)
        }
    };
    Ok(Done { how, id, totals: job.stream.totals() })
}

/// Applies a stream to a volume that exists. Returns how the volume got what it has.
async fn run(job: &mut Job, target: &Target, how: How, signals: &mut Signals) -> Result<How, Error> {
    let header = unless_ended(pin!(job.stream.header()), signals).await?;
    match Box::pin(job.run(&target.env, &target.options, &header, signals)).await? {
        Applied::Now => Ok(how),
        // An earlier run was cut short at its very end.
        Applied::Before => Ok(How::Present),
    }
}

/// What is printed.
struct Report<'a> {
    args: &'a Backup,
    /// Id of the volume that was backed up.
    id: Uuid,
    done: Done,
}

/// A backup, in JSON.
#[derive(Debug, Serialize)]
struct Row<'a> {
    volume: &'a str,
    volume_id: Uuid,
    snapshot: &'a str,
    target: String,
    target_volume: &'a str,
    target_volume_id: Uuid,
    /// One of `present`, `first`, `incremental`, `full` and `compared`.
    kind: &'static str,
    /// Snapshot of the volume since which changes were sent.
    base: Option<&'a str>,
    extents: u64,
    data_bytes: u64,
    zero_bytes: u64,
}

impl Report<'_> {
    fn row(&self) -> Row<'_> {
        let Done { how, id, totals } = &self.done;
        let (kind, base) = match how {
            How::Present => ("present", None),
            How::First => ("first", None),
            How::Incremental(base) => ("incremental", Some(&**base)),
            How::Full => ("full", None),
            How::Compared => ("compared", None),
        };
        Row {
            volume: &self.args.of.volume,
            volume_id: self.id,
            snapshot: &self.args.of.name,
            target: self.args.target.to_string(),
            target_volume: self.args.name(),
            target_volume_id: *id,
            kind,
            base,
            extents: totals.extents,
            data_bytes: totals.data_bytes,
            zero_bytes: totals.zero_bytes,
        }
    }

    fn text(&self) -> String {
        let Self { args, done: Done { how, totals, .. }, .. } = self;
        let to = match args.name() {
            name if name == args.of.volume => args.target.to_string(),
            name => format!("{} as {name}", args.target),
        };
        let how = match how {
            How::Present => return format!("{to} has {} already\n", args.of),
            How::First => "the first backup".to_owned(),
            How::Incremental(base) => format!("incremental since {}@{base}", args.of.volume),
            How::Full => "all of it was replaced".to_owned(),
            How::Compared => "the copy was there, and has the same SHA-256".to_owned(),
        };
        let Totals { extents, data_bytes, zero_bytes } = totals;
        format!(
            "backed up {} to {to}: {extents} extents, {data_bytes} bytes of data, {zero_bytes} bytes of \
             zeros; {how}\n",
            args.of
        )
    }
}
