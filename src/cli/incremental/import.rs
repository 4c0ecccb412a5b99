//! `cairn import --onto`: applies a stream to a volume that no gateway holds.
//!
//! Owns the course of the import, and must not know how a stream is applied. Invariants: a signal ends the
//! command at any time. The volume is closed afterwards, unless the store does not allow that, or a signal
//! came while the import began or ended. Then it is left as after a crash, from which the import recovers.

use std::fs::File;
use std::future::Future;
use std::io::Read as _;
use std::pin::pin;
use std::sync::Arc;

use indicatif::ProgressBar;

use super::{Shown, digest};
use crate::cli::args;
use crate::cli::endpoint::Endpoint;
use crate::cli::error::{Error, NbdError};
use crate::cli::opened::prepare;
use crate::cli::output;
use crate::cli::printed::print;
use crate::cli::process::Signals;
use crate::cli::settings::Options;
use crate::cli::stored_disk::StoredDisk;
use crate::task::Tasks;
use crate::volume::format::codec::DecodeError;
use crate::volume::format::stream::{Digest, Header, Part, StreamDecoder, Totals};
use crate::volume::incremental::receive::{self, Begun, Leftovers, Received, Receiver, Unproved};
use crate::volume::{OpenError, ReceiveError, Volume};

/// Bytes of the stream that are read at a time.
const READ_BYTES: usize = 1 << 20;

/// Executes the command.
pub(in crate::cli) async fn import(args: args::Import, onto: String, options: Options) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    let mut job = Job { stream: Stream::open(&args.source)?, onto, shown: Shown::of(args.transfer.quiet) };
    let header = unless_ended(pin!(job.header()), &mut signals).await?;
    let snapshot = args.snapshot.as_deref();
    let leftovers = if args.transfer.resume { Leftovers::Discard } else { Leftovers::Refuse };
    let (env, of_volume) = unless_ended(pin!(prepare(options)), &mut signals).await?;
    let begun = async {
        let begun = receive::begin(&env, &of_volume, &job.onto, header.clone(), snapshot, leftovers);
        begun.await.map_err(|error| job.failed(error))
    };
    let begun = unless_ended(pin!(begun), &mut signals).await?;
    let receiver = match begun {
        Begun::Ready(receiver) => receiver,
        Begun::Unproved(unproved) => job.prove(unproved, &mut signals).await?,
        Begun::Done(received) => {
            job.complete(received, snapshot, &mut signals).await?;
            let (onto, name) = (&job.onto, &header.result.snapshot.name);
            return print(&format!("{onto} has the content of the snapshot {name} already\n"));
        }
    };
    let received = match job.apply(receiver, &header, &mut signals).await {
        Ok(received) => received,
        Err(error) => {
            let (onto, begun) = (&job.onto, header.begun_name());
            let advice = format!(
                "{onto} has a part of the stream: to go on, repeat the command with --resume, and to take it \
                 back: cairn volume restore {onto}@{begun}"
            );
            return Err(Error::Cut { source: Box::new(error), advice });
        }
    };
    job.complete(received, snapshot, &mut signals).await?;
    let Totals { extents, data_bytes, zero_bytes } = job.stream.decoder.totals();
    let (onto, name) = (&job.onto, &header.result.snapshot.name);
    print(&format!(
        "imported {extents} extents onto {onto}, {data_bytes} bytes of data and {zero_bytes} bytes of zeros\n\
         {onto} has the content of the snapshot {name}\n"
    ))
}

/// Waits for some work, unless a signal ends the command. Then the work is dropped, as in a crash.
async fn unless_ended<T>(
    work: impl Future<Output = Result<T, Error>>,
    signals: &mut Signals,
) -> Result<T, Error> {
    tokio::select! {
        done = work => done,
        by = signals.next() => Err(Error::Interrupted { by }),
    }
}

/// Waits until a volume is given up. A signal ends that too.
async fn released(release: impl Future<Output = ()>, signals: &mut Signals) {
    tokio::select! {
        () = release => {}
        _ = signals.next() => {}
    }
}

/// An import that runs.
struct Job {
    stream: Stream,
    onto: String,
    shown: Shown,
}

impl Job {
    fn failed(&self, source: ReceiveError) -> Error {
        let name = self.onto.clone();
        match source {
            ReceiveError::Open(OpenError::Held { holder }) => Error::HeldElsewhere { name, holder },
            ReceiveError::Open(source) => Error::Volume { name, source },
            ReceiveError::Begun(source) => {
                let advice = format!("nothing of it is in {name} yet: repeat the command with --resume");
                Error::Cut { source: Box::new(self.failed(*source)), advice }
            }
            source => Error::Receive { name, source },
        }
    }

    async fn header(&mut self) -> Result<Header, Error> {
        match self.stream.next_part().await? {
            Some(Part::Header(header)) => Ok(*header),
            _ => Err(self.stream.broken(DecodeError::Truncated { missing: 1 })),
        }
    }

    /// Reads the content of a volume. Returns its digest.
    async fn digest(&self, volume: &Arc<Volume>, signals: &mut Signals) -> Result<Digest, Error> {
        let disk = StoredDisk::Volume(self.onto.clone(), Arc::clone(volume));
        unless_ended(pin!(digest(&self.onto, disk, self.shown)), signals).await
    }

    /// Finds out by the digest of the volume whether it has the base.
    async fn prove(&self, unproved: Unproved, signals: &mut Signals) -> Result<Receiver, Error> {
        match self.digest(unproved.volume(), signals).await {
            Ok(found) => {
                let proved = async { unproved.prove(found).await.map_err(|error| self.failed(error)) };
                unless_ended(pin!(proved), signals).await
            }
            Err(error) => {
                released(unproved.release(), signals).await;
                Err(error)
            }
        }
    }

    /// Applies the stream, makes it durable, and compares the digest of the volume if the stream has one.
    async fn apply(
        &mut self,
        receiver: Receiver,
        header: &Header,
        signals: &mut Signals,
    ) -> Result<Received, Error> {
        let bar = self.shown.bar(header.result.size_bytes);
        let applied = unless_ended(pin!(self.apply_parts(&receiver, &bar)), signals).await;
        bar.finish_and_clear();
        let result_digest = match applied {
            Ok(result_digest) => result_digest,
            Err(error) => {
                released(receiver.release(), signals).await;
                return Err(error);
            }
        };
        let finished = async { receiver.finish().await.map_err(|error| self.failed(error)) };
        let received = unless_ended(pin!(finished), signals).await?;
        let Some(wanted) = result_digest else { return Ok(received) };
        let error = match self.digest(received.volume(), signals).await {
            Ok(found) if found == wanted => return Ok(received),
            Ok(found) => self.failed(ReceiveError::OtherResult { found, wanted }),
            Err(error) => error,
        };
        released(received.release(), signals).await;
        Err(error)
    }

    /// Ends an import of which everything was applied.
    async fn complete(
        &self,
        received: Received,
        snapshot: Option<&str>,
        signals: &mut Signals,
    ) -> Result<(), Error> {
        let completed = async { received.complete(snapshot).await.map_err(|error| self.failed(error)) };
        unless_ended(pin!(completed), signals).await.map_err(|error| {
            let advice = format!(
                "{} has all of the stream, but the import is not complete: repeat the command with --resume",
                self.onto
            );
            Error::Cut { source: Box::new(error), advice }
        })
    }

    /// Applies all extents. Returns the digest that the end of the stream has.
    async fn apply_parts(&mut self, receiver: &Receiver, bar: &ProgressBar) -> Result<Option<Digest>, Error> {
        loop {
            match self.stream.next_part().await? {
                None => return Err(self.stream.broken(DecodeError::Truncated { missing: 1 })),
                Some(Part::End { result_digest }) => {
                    self.stream.check_end().await?;
                    return Ok(result_digest);
                }
                Some(part) => {
                    match &part {
                        Part::Data { offset, .. } | Part::Zero { offset, .. } => bar.set_position(*offset),
                        Part::Header(_) | Part::End { .. } => {}
                    }
                    receiver.apply(part).await.map_err(|error| self.failed(error))?;
                }
            }
        }
    }
}

/// A stream that is read.
struct Stream {
    /// What it is called in messages.
    name: Endpoint,
    /// The file, unless it is standard input.
    file: Option<Arc<File>>,
    decoder: StreamDecoder,
    work: Tasks,
}

impl Stream {
    fn open(source: &Endpoint) -> Result<Self, Error> {
        let file = match (source, source.path()) {
            (Endpoint::Standard, _) => None,
            (_, Some(path)) => {
                let opened = File::open(path);
                let failed = |source| NbdError::File { path: path.to_owned(), source };
                Some(Arc::new(opened.map_err(failed)?))
            }
            (_, None) => {
                let why = format!("--onto reads a file or standard input, and not {source}");
                return Err(Error::Mistake(why));
            }
        };
        Ok(Self { name: source.clone(), file, decoder: StreamDecoder::default(), work: Tasks::new() })
    }

    /// Reads the next bytes; none at the end.
    async fn more(&self) -> Result<Vec<u8>, Error> {
        let file = self.file.clone();
        let read = move || match file {
            None => output::take(READ_BYTES),
            Some(file) => {
                let mut bytes = Vec::with_capacity(READ_BYTES);
                (&*file).take(READ_BYTES as u64).read_to_end(&mut bytes)?;
                Ok(bytes)
            }
        };
        let read = self.work.spawn_blocking(read).await.expect("the work does not panic");
        read.map_err(|source| Error::System { what: "cannot read the stream", source })
    }

    /// Returns the next part, or `None` where the stream ends.
    async fn next_part(&mut self) -> Result<Option<Part>, Error> {
        loop {
            let part = self.decoder.next_part();
            if let Some(part) = part.map_err(|error| self.broken(error))? {
                return Ok(Some(part));
            }
            let bytes = self.more().await?;
            if bytes.is_empty() {
                return Ok(None);
            }
            self.decoder.push(&bytes);
        }
    }

    /// Checks that nothing follows the end.
    async fn check_end(&mut self) -> Result<(), Error> {
        let bytes = self.more().await?;
        self.decoder.push(&bytes);
        self.decoder.check_end().map_err(|error| self.broken(error))
    }

    fn broken(&self, source: DecodeError) -> Error {
        Error::Stream { name: self.name.to_string(), source }
    }
}
