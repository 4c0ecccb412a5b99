//! `cairn export --since`: writes what differs between two snapshots to a file or standard output.
//!
//! Owns the course of the export, and must not know what a stream has. Invariant: a file appears under its
//! name only once the whole stream is durable.

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;

use super::{Shown, digest};
use crate::cli::args;
use crate::cli::endpoint::{Endpoint, Exported};
use crate::cli::environment::for_reading;
use crate::cli::error::Error;
use crate::cli::image_file::ImageFile;
use crate::cli::output;
use crate::cli::process::Signals;
use crate::cli::settings::Options;
use crate::cli::snapshot_name::{Earlier, SnapshotName};
use crate::cli::stored_disk::StoredDisk;
use crate::metrics::Metrics;
use crate::task::Tasks;
use crate::volume::format::stream::Totals;
use crate::volume::incremental::send::Sender;
use crate::volume::{DiffError, SnapshotDisk, catalog};

/// The stream is written when there is this much of it.
const WRITTEN_BYTES: usize = 1 << 20;

/// Executes the command.
pub(in crate::cli) async fn export(
    args: args::Export,
    since: Earlier,
    options: Options,
) -> Result<(), Error> {
    let Exported::Snapshot(of) = args.of.clone() else {
        let why = "--since is only possible with a snapshot: a volume may change meanwhile";
        return Err(Error::Mistake(why.to_owned()));
    };
    check_target(&args.target)?;
    let mut signals = Signals::new()?;
    let volume = options.volume.clone();
    let env = for_reading(options, &Metrics::new()).await?;
    let failed = |source| Error::Volume { name: of.volume.clone(), source };
    let id = catalog::resolve(&env, &of.volume).await.map_err(failed)?;
    let before = SnapshotDisk::open(&env, &volume, id, &since.0).await.map_err(failed)?;
    let after = SnapshotDisk::open(&env, &volume, id, &of.name).await.map_err(failed)?;
    let since = SnapshotName { volume: of.volume.clone(), name: since.0 };
    let mut output = Output::open(&args.target)?;
    let job = Job { args: &args, since: &since, before, after };
    let totals = tokio::select! {
        written = job.write(&mut output) => written,
        by = signals.next() => Err(Error::Interrupted { by }),
    }?;
    output.complete()?;
    let Totals { extents, data_bytes, zero_bytes } = totals;
    let text = format!(
        "exported what differs between {since} and {of} to {}: {extents} extents, {data_bytes} bytes of \
         data, {zero_bytes} bytes of zeros\n",
        args.target
    );
    let printed = match &args.target {
        // The stream is there.
        Endpoint::Standard => {
            output::error().say(text.into_bytes());
            Ok(())
        }
        Endpoint::Disk(_) => output::answer(&text),
    };
    printed.map_err(|source| Error::System { what: "cannot print", source })
}

/// Refuses targets that are neither files nor standard output.
fn check_target(target: &Endpoint) -> Result<(), Error> {
    let is_file = match (target, target.path()) {
        (Endpoint::Standard, _) => true,
        (_, Some(path)) => std::fs::metadata(path).map_or(true, |found| found.is_file()),
        (_, None) => false,
    };
    match is_file {
        true => Ok(()),
        false => Err(Error::Mistake(format!("--since writes a file or standard output, and not {target}"))),
    }
}

/// An export that runs.
struct Job<'a> {
    args: &'a args::Export,
    since: &'a SnapshotName,
    before: Arc<SnapshotDisk>,
    after: Arc<SnapshotDisk>,
}

impl Job<'_> {
    async fn write(&self, output: &mut Output) -> Result<Totals, Error> {
        let Self { args, since, before, after } = self;
        let failed =
            |source: DiffError| Error::Compare { from: since.to_string(), to: args.of.to_string(), source };
        let shown = Shown::of(args.transfer.quiet);
        let base_digest = match args.digest {
            true => Some(digest(&since.to_string(), StoredDisk::Snapshot(Arc::clone(before)), shown).await?),
            false => None,
        };
        let (mut sender, first) = Sender::begin(before, after, base_digest).map_err(failed)?;
        let bar = shown.bar(after.size_bytes());
        output.write(&first).await?;
        while let Some(bytes) = sender.next_bytes().await.map_err(|error| failed(error.into()))? {
            output.write(&bytes).await?;
            bar.set_position(sender.position());
        }
        bar.finish_and_clear();
        let result_digest = match args.digest {
            true => Some(digest(&args.of.to_string(), StoredDisk::Snapshot(Arc::clone(after)), shown).await?),
            false => None,
        };
        let totals = sender.totals();
        output.write(&sender.end(result_digest)).await?;
        output.flush().await?;
        Ok(totals)
    }
}

/// Where the stream goes.
struct Output {
    /// The file, unless it is standard output.
    file: Option<(ImageFile, Arc<File>)>,
    pending: Vec<u8>,
    work: Tasks,
}

impl Output {
    fn open(target: &Endpoint) -> Result<Self, Error> {
        let file = match target.path() {
            None => None,
            Some(path) => {
                let image = ImageFile::open(path)?;
                image.clear()?;
                let writer = Arc::new(image.writer()?);
                Some((image, writer))
            }
        };
        Ok(Self { file, pending: Vec::new(), work: Tasks::new() })
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() < WRITTEN_BYTES { Ok(()) } else { self.flush().await }
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let bytes = std::mem::take(&mut self.pending);
        let file = self.file.as_ref().map(|(_, file)| Arc::clone(file));
        let write = move || match file {
            Some(file) => (&*file).write_all(&bytes),
            None => output::pour(&bytes),
        };
        let written = self.work.spawn_blocking(write).await.expect("the work does not panic");
        written.map_err(|source| Error::System { what: "cannot write the stream", source })
    }

    /// Gives the file its name.
    fn complete(self) -> Result<(), Error> {
        match self.file {
            Some((image, _)) => image.complete(),
            None => Ok(()),
        }
    }
}
