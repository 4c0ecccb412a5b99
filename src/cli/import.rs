//! `cairn import`: makes a new volume of a file, an NBD export or standard input.
//!
//! Owns the reading of the source and its checksum, and must not know how a volume is stored. Invariants: the
//! source is opened before anything is written to the store. The volume has its name only if everything was
//! imported.

use std::pin::pin;

use futures::StreamExt as _;
use indicatif::ProgressBar;

use super::args;
use super::checksum::Checksum;
use super::endpoint::{Endpoint, Format};
use super::environment::environment;
use super::error::{Error, NbdError};
use super::nbd::{Connecting, Content, Disk, Source, Units, check_source};
use super::printed::print;
use super::process::Signals;
use super::qemu::{self, Access, Served};
use super::settings::Options;
use super::{output, progress};
use crate::metrics::Metrics;
use crate::task::Tasks;
use crate::volume::{self, Environment, IN_FLIGHT_BYTES, Import, ImportError, OpenError, catalog};

/// Bytes that are read from standard input at a time.
const READ_BYTES: usize = 1 << 20;

/// Executes the command.
pub(super) async fn run(args: args::Import, options: Options) -> Result<(), Error> {
    let of_volume = |source| Error::Volume { name: args.name().to_owned(), source };
    // Checked before a store is created for the volume; the size is checked later.
    let chunk = catalog::ChunkBytes(options.chunk_bytes);
    catalog::check(args.name(), options.chunk_bytes, chunk).map_err(of_volume)?;
    let input = Input::open(&args).await?;
    let imported = import(&args, &input, options).await;
    // Even after a failure, a client must end its session with DISC.
    let closed = input.close().await;
    let Imported { read_bytes, size_bytes, sha256 } = imported?;
    closed?;
    let source = &args.source;
    let padded = match size_bytes - read_bytes {
        0 => String::new(),
        zeros => format!(" and {zeros} zeros"),
    };
    print(&format!("imported {read_bytes} bytes of {source}{padded} as {}\nsha256 {sha256}\n", args.name()))
}

/// What was imported.
struct Imported {
    read_bytes: u64,
    size_bytes: u64,
    sha256: String,
}

/// Where the content comes from.
enum Input {
    Standard,
    Disk(Disk, Option<Served>),
}

impl Input {
    async fn open(args: &args::Import) -> Result<Self, Error> {
        if args.transfer.format == Some(Format::Qcow2) && args.source.path().is_none() {
            let why = format!("{} cannot be a qcow2 image: only a file can", args.source);
            return Err(Error::Mistake(why));
        }
        let Endpoint::Disk(name) = &args.source else { return Ok(Self::Standard) };
        let connections = args.transfer.connections;
        let how = Connecting { options: args.transfer.waiting.options(), connections };
        let format =
            args.source.path().map(|path| qemu::format_of(path, args.transfer.format)).transpose()?;
        let served = match (args.source.path(), format) {
            (Some(path), Some(Format::Qcow2)) => Some(Served::start(path, Access::Read, connections)?),
            _ => None,
        };
        let disk = match &served {
            Some(served) => Disk::open(&served.name(), &how, true).await,
            None => Disk::open(name, &how, true).await,
        };
        match (disk, served) {
            (Ok(disk), served) => Self::checked(&args.source, disk, served).await,
            (Err(error), Some(served)) => Err(served.explained(error.into()).await),
            (Err(error), None) => Err(error.into()),
        }
    }

    async fn checked(name: &Endpoint, disk: Disk, served: Option<Served>) -> Result<Self, Error> {
        let told = disk.export().description();
        let checked = match told.size_bytes {
            0 => Err(NbdError::Misfit(format!("{name} is empty"))),
            _ => check_source(&name.to_string(), &told),
        };
        let input = Self::Disk(disk, served);
        if let Err(error) = checked {
            input.close().await?;
            return Err(error.into());
        }
        Ok(input)
    }

    fn bar(&self) -> ProgressBar {
        match self {
            Self::Standard => progress::endless(),
            Self::Disk(disk, _) => progress::bar(disk.export().description().size_bytes),
        }
    }

    async fn close(self) -> Result<(), Error> {
        let Self::Disk(disk, served) = self else { return Ok(()) };
        disk.close().await;
        match served {
            Some(served) => served.end().await,
            None => Ok(()),
        }
    }
}

async fn import(args: &args::Import, input: &Input, options: Options) -> Result<Imported, Error> {
    let of_volume = |source| Error::Import { name: args.name().to_owned(), source };
    let mut signals = Signals::new()?;
    let chunk = catalog::ChunkBytes(options.chunk_bytes);
    let options = options.impatient();
    let (env, _) = environment(&options, &Metrics::new()).await?;
    let begun = match args.transfer.resume {
        true => Import::resume(&env, args.name(), IN_FLIGHT_BYTES).await,
        false => Import::begin(&env, &options.volume, args.name(), chunk, IN_FLIGHT_BYTES).await,
    };
    let mut import = begun.map_err(of_volume)?;
    let id = import.volume();
    let bar = if args.transfer.quiet { ProgressBar::hidden() } else { input.bar() };
    let mut checksum = Checksum::new();
    let filled = tokio::select! {
        filled = fill(args, input, &mut import, &mut checksum, &bar) => filled,
        by = signals.next() => Err(Error::Interrupted { by }),
    };
    bar.finish_and_clear();
    let read_bytes = import.position();
    let finished = match filled {
        Ok(()) => import.finish().await.map_err(of_volume),
        Err(error) => {
            import.stop().await;
            Err(error)
        }
    };
    match finished {
        Ok(info) => {
            checksum.add_zeros(info.size_bytes - read_bytes);
            Ok(Imported { read_bytes, size_bytes: info.size_bytes, sha256: checksum.text() })
        }
        Err(error) => Err(cut(&env, &options.volume, id, "", error).await),
    }
}

/// Passes the content of the source to the import.
async fn fill(
    args: &args::Import,
    input: &Input,
    import: &mut Import,
    checksum: &mut Checksum,
    bar: &ProgressBar,
) -> Result<(), Error> {
    let of_volume = |source| Error::Import { name: args.name().to_owned(), source };
    match input {
        Input::Standard => {
            let work = Tasks::new();
            loop {
                let read = work.spawn_blocking(|| output::take(READ_BYTES)).await;
                let bytes = read.expect("the work does not panic");
                let bytes =
                    bytes.map_err(|source| Error::System { what: "cannot read standard input", source })?;
                if bytes.is_empty() {
                    return Ok(());
                }
                checksum.add(&bytes);
                import.write(&bytes).await.map_err(of_volume)?;
                bar.inc(bytes.len() as u64);
            }
        }
        Input::Disk(disk, _) => {
            let export = disk.export();
            let told = export.description();
            let source = Source::new(export, Units::of(&told));
            let mut parts = pin!(source.read_in_order(0, told.size_bytes));
            while let Some(part) = parts.next().await {
                let failed = |source| NbdError::Disk { disk: args.source.to_string(), source };
                let part = part.map_err(failed)?;
                checksum.add_part(&part);
                let passed = match &part.content {
                    Content::Zeros(length) => import.zeros(*length).await,
                    Content::Data(data) => import.write(data).await,
                };
                passed.map_err(of_volume)?;
                bar.set_position(import.position());
            }
            Ok(())
        }
    }
}

/// Adds to an error what is left of the import. What cannot be completed is deleted. `flags` are those by
/// which a command finds the store, with a space before each.
pub(super) async fn cut(
    env: &Environment,
    options: &volume::Options,
    id: uuid::Uuid,
    flags: &str,
    error: Error,
) -> Error {
    let delete = format!("cairn volume delete --id {id}{flags}");
    let advice = match &error {
        Error::Import { source: ImportError::Volume(OpenError::Geometry(_)), .. } => {
            match catalog::delete_by_id(env, options, id, false).await {
                Ok(()) => return error,
                Err(left) => format!("what was imported could not be deleted ({left}): {delete}"),
            }
        }
        Error::Import { source: ImportError::SourceChanged { .. } | ImportError::NameChanged(_), .. } => {
            delete
        }
        _ => {
            format!("what was imported is kept without a name: add --resume to go on, or delete it: {delete}")
        }
    };
    Error::Cut { source: Box::new(error), advice }
}
