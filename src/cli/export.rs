//! `cairn export`: copies a snapshot or a volume from the store to a file, an NBD export or standard output.
//!
//! Owns the course of an export and its checksum, and must not know how a volume is stored. Invariant: a file
//! appears under its name only if it has everything.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use indicatif::ProgressBar;

use super::args;
use super::checksum::Checksum;
use super::endpoint::{Endpoint, Format};
use super::error::{Error, NbdError};
use super::image_file::{ImageFile, Record, is_resumable};
use super::nbd::{
    Connecting, Content, Disk, DiskName, FileExport, Part, Place, Source, Target, Units, check_target,
};
use super::process::Signals;
use super::qemu::{self, Access, Served};
use super::settings::Options;
use super::stored_disk::StoredDisk;
use super::{output, progress};
use crate::server::{Export, ExportError};
use crate::task::Tasks;

/// Number of parts that are written concurrently.
const PARTS_IN_FLIGHT: usize = 16;
/// After this much of the disk, a file is made durable, and how far it has come is recorded.
const STRETCH_BYTES: u64 = 1 << 30;
/// Zeros that are written to standard output at a time.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Executes the command.
pub(super) async fn run(args: args::Export, options: Options) -> Result<(), Error> {
    let kind = Kind::of(&args)?;
    let mut signals = Signals::new()?;
    let disk = StoredDisk::open(&args.of, options).await?;
    let size = disk.size_bytes();
    let bar = if args.transfer.quiet { ProgressBar::hidden() } else { progress::bar(size) };
    let exported = tokio::select! {
        exported = Job { args: &args, disk: &disk, size, bar: &bar }.export(kind) => exported,
        by = signals.next() => Err(Error::Interrupted { by }),
    };
    bar.finish_and_clear();
    let closed = disk.close().await;
    let exported = match (exported, args.target.path()) {
        (Err(error @ (Error::Nbd(_) | Error::Interrupted { .. })), Some(path)) if is_resumable(path) => {
            let advice = "what was exported is kept: add --resume to go on".to_owned();
            Err(Error::Cut { source: Box::new(error), advice })
        }
        (exported, _) => exported,
    };
    let text =
        format!("exported {size} bytes of {} to {}\nsha256 {}\n", args.of, args.target, exported?.text());
    closed?;
    let printed = match kind {
        // The content is there.
        Kind::Standard => {
            output::error().say(text.into_bytes());
            Ok(())
        }
        _ => output::answer(&text),
    };
    printed.map_err(|source| Error::System { what: "cannot print", source })
}

/// How the target is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Standard,
    /// A disk that exists: a block device or an NBD export.
    Disk,
    /// A raw file.
    Raw,
    /// A qcow2 image.
    Qcow2,
}

impl Kind {
    fn of(args: &args::Export) -> Result<Self, Error> {
        let kind = match (&args.target, args.target.path()) {
            (Endpoint::Standard, _) => Self::Standard,
            (_, None) => Self::Disk,
            (_, Some(path)) => {
                let is_qcow2 = path.extension().is_some_and(|extension| extension == "qcow2");
                match (std::fs::metadata(path), args.transfer.format) {
                    (Ok(found), _) if !found.is_file() => Self::Disk,
                    (_, Some(Format::Qcow2)) => Self::Qcow2,
                    (_, None) if is_qcow2 => Self::Qcow2,
                    _ => Self::Raw,
                }
            }
        };
        let is_file = matches!(kind, Self::Raw | Self::Qcow2);
        if args.transfer.format == Some(Format::Qcow2) && !is_file {
            return Err(Error::Mistake(format!("{} cannot be a qcow2 image: only a file can", args.target)));
        }
        if args.transfer.resume && kind != Self::Raw {
            return Err(Error::Mistake("--resume is only possible with a raw file".to_owned()));
        }
        Ok(kind)
    }
}

/// Which of the two sides failed.
enum Failure {
    Source(ExportError),
    Target(ExportError),
}

/// An export that runs.
struct Job<'a> {
    args: &'a args::Export,
    disk: &'a StoredDisk,
    size: u64,
    bar: &'a ProgressBar,
}

impl Job<'_> {
    async fn export(self, kind: Kind) -> Result<Checksum, Error> {
        match (kind, &self.args.target) {
            (Kind::Standard, _) | (_, Endpoint::Standard) => self.to_standard_output().await,
            (Kind::Disk, Endpoint::Disk(name)) => self.to_disk(name).await,
            (Kind::Raw, Endpoint::Disk(DiskName { place: Place::File(path), .. })) => {
                self.to_file(path).await
            }
            (_, Endpoint::Disk(name)) => match &name.place {
                Place::File(path) => self.to_qcow2(path).await,
                Place::Export(_) => unreachable!("an export of a server is a disk"),
            },
        }
    }

    fn source(&self, units: Units) -> Source {
        Source::new(Arc::new(self.disk.clone()), units)
    }

    fn failed(&self, failure: Failure) -> Error {
        let (disk, source) = match failure {
            Failure::Source(source) => (self.args.of.to_string(), source),
            Failure::Target(source) => (self.args.target.to_string(), source),
        };
        NbdError::Disk { disk, source }.into()
    }

    /// Copies a range. Adds its content to the checksum.
    async fn copy(
        &self,
        (offset, end): (u64, u64),
        to: Arc<dyn Export>,
        checksum: &mut Checksum,
    ) -> Result<(), Error> {
        let units = Units::between(&self.disk.description(), &to.description());
        let (source, target) = (self.source(units), Target::new(to, units.maximum()));
        let note = |part: Part| {
            checksum.add_part(&part);
            part
        };
        let parts = source.read_in_order(offset, end).map_err(Failure::Source).map_ok(note);
        let copied = parts
            .try_for_each_concurrent(PARTS_IN_FLIGHT, |part| {
                let target = &target;
                async move {
                    let length = part.length();
                    target.put(part).await.map_err(Failure::Target)?;
                    self.bar.inc(length);
                    Ok(())
                }
            })
            .await;
        copied.map_err(|failure| self.failed(failure))?;
        target.finish().await.map_err(|error| self.failed(Failure::Target(error)))
    }

    async fn to_disk(&self, name: &DiskName) -> Result<Checksum, Error> {
        let transfer = &self.args.transfer;
        let how = Connecting { options: transfer.waiting.options(), connections: transfer.connections };
        let disk = Disk::open(name, &how, false).await?;
        let copied = self.copy_to(&disk).await;
        // Even after a failure, a client must end its session with DISC.
        disk.close().await;
        copied
    }

    async fn copy_to(&self, disk: &Disk) -> Result<Checksum, Error> {
        let (of, target) = (self.args.of.to_string(), self.args.target.to_string());
        check_target(&of, self.size, &target, &disk.export().description())?;
        let mut checksum = Checksum::new();
        self.copy((0, self.size), disk.export(), &mut checksum).await?;
        Ok(checksum)
    }

    async fn to_file(&self, path: &Path) -> Result<Checksum, Error> {
        let identity = self.disk.identity();
        let image = ImageFile::open(path)?;
        let (offset, mut checksum) = match (self.args.transfer.resume, &identity) {
            (false, _) => {
                image.clear()?;
                (0, Checksum::new())
            }
            (true, Some(of)) => self.resumed(&image, of).await?,
            (true, None) => {
                let why = "--resume is only possible with a snapshot: a volume may have changed since";
                return Err(Error::Mistake(why.to_owned()));
            }
        };
        let file = self.partial(&image)?;
        self.bar.set_position(offset);
        let copied = self.copy_stretches(offset, &image, &file, identity.as_deref(), &mut checksum).await;
        copied?;
        image.complete()?;
        Ok(checksum)
    }

    /// Opens the partial file as a disk of the right size.
    fn partial(&self, image: &ImageFile) -> Result<Arc<FileExport>, Error> {
        let path = image.partial();
        let opened = FileExport::create(path, self.size);
        Ok(Arc::new(opened.map_err(|source| NbdError::File { path: path.to_owned(), source })?))
    }

    async fn copy_stretches(
        &self,
        from: u64,
        image: &ImageFile,
        file: &Arc<FileExport>,
        identity: Option<&str>,
        checksum: &mut Checksum,
    ) -> Result<(), Error> {
        let mut offset = from;
        while offset < self.size {
            let end = (offset - offset % STRETCH_BYTES + STRETCH_BYTES).min(self.size);
            self.copy((offset, end), Arc::<FileExport>::clone(file), checksum).await?;
            offset = end;
            if let Some(of) = identity {
                let (of, sha256) = (of.to_owned(), checksum.text());
                image.record(&Record { of, size_bytes: self.size, offset, sha256 })?;
            }
        }
        Ok(())
    }

    /// Returns from where an export that was cut short goes on, and the checksum up to there. It is compared
    /// with what the file has.
    async fn resumed(&self, image: &ImageFile, of: &str) -> Result<(u64, Checksum), Error> {
        let record = image.progress()?;
        if record.of != of || record.size_bytes != self.size || record.offset > self.size {
            let why = format!("{} is a part of something else", image.partial().display());
            return Err(Error::Mistake(format!("{why}: leave out --resume to replace it")));
        }
        let file = self.partial(image)?;
        let units = Units::of(&file.description());
        let source = Source::new(file, units);
        let mut checksum = Checksum::new();
        let mut parts = pin!(source.read_in_order(0, record.offset));
        while let Some(part) = parts.next().await {
            checksum.add_part(&part.map_err(|error| self.failed(Failure::Target(error)))?);
        }
        if checksum.text() != record.sha256 {
            let why = format!("{} was changed since it was exported", image.partial().display());
            return Err(Error::Mistake(format!("{why}: leave out --resume to replace it")));
        }
        Ok((record.offset, checksum))
    }

    async fn to_qcow2(&self, path: &Path) -> Result<Checksum, Error> {
        let image = ImageFile::open(path)?;
        image.clear()?;
        let checksum = self.write_qcow2(&image).await?;
        image.complete()?;
        Ok(checksum)
    }

    async fn write_qcow2(&self, image: &ImageFile) -> Result<Checksum, Error> {
        qemu::create(image.partial(), self.size).await?;
        let served = Served::start(image.partial(), Access::Write, self.args.transfer.connections)?;
        match self.to_disk(&served.name()).await {
            Ok(checksum) => served.end().await.map(|()| checksum),
            Err(error) => Err(served.explained(error).await),
        }
    }

    async fn to_standard_output(&self) -> Result<Checksum, Error> {
        let failed = |source| Error::System { what: "cannot write standard output", source };
        let (mut checksum, work) = (Checksum::new(), Tasks::new());
        let source = self.source(Units::of(&self.disk.description()));
        let mut parts = pin!(source.read_in_order(0, self.size));
        while let Some(part) = parts.next().await {
            let part = part.map_err(|error| self.failed(Failure::Source(error)))?;
            checksum.add_part(&part);
            let length = part.length();
            let written = work.spawn_blocking(move || pour(&part.content)).await;
            written.expect("the work does not panic").map_err(failed)?;
            self.bar.inc(length);
        }
        Ok(checksum)
    }
}

/// Writes content to standard output.
fn pour(content: &Content) -> std::io::Result<()> {
    match content {
        Content::Data(data) => output::pour(data),
        Content::Zeros(length) => {
            let mut left = *length;
            while left > 0 {
                let now = left.min(ZEROS.len() as u64);
                output::pour(&ZEROS[..usize::try_from(now).expect("at most 64 KiB")])?;
                left -= now;
            }
            Ok(())
        }
    }
}
