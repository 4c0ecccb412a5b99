//! Applies a stream to a volume that no gateway holds.
//!
//! Owns the course of it, and must not know how a stream is applied or where it comes from. Invariants: a
//! signal ends it at any time. The volume is closed afterwards, unless the store does not allow that, or a
//! signal came while it began or ended. Then it is left as after a crash, from which a repetition recovers.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use indicatif::ProgressBar;

use super::stream::Stream;
use super::{Shown, digest};
use crate::cli::error::Error;
use crate::cli::process::Signals;
use crate::cli::stored_disk::StoredDisk;
use crate::volume::format::stream::{Digest, Header, Part};
use crate::volume::incremental::receive::{self, Begun, Leftovers, Received, Receiver, Unproved};
use crate::volume::{self, Environment, OpenError, ReceiveError, Volume};

/// Waits for some work, unless a signal ends the command. Then the work is dropped, as in a crash.
pub(super) async fn unless_ended<T>(
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

/// The volume that a stream is applied to.
#[derive(Clone, Debug)]
pub(super) struct Onto {
    pub(super) name: String,
    /// The flags by which other commands find its store, with a space before each.
    pub(super) flags: String,
}

/// Where a stream comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `cairn import --onto` reads it.
    Import,
    /// `cairn backup` makes it.
    Backup,
}

/// Whether a volume turned out to have another content than the result of its stream.
pub(super) fn is_other_result(error: &Error) -> bool {
    matches!(error, Error::Receive { source: ReceiveError::OtherResult { .. }, .. })
}

/// What became of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    /// The volume had the result before.
    Before,
    /// It was applied now.
    Now,
}

/// A stream that is applied.
pub(super) struct Job {
    pub(super) stream: Stream,
    pub(super) onto: Onto,
    pub(super) kind: Kind,
    /// Name of the snapshot to take in the end, if any.
    pub(super) snapshot: Option<String>,
    pub(super) leftovers: Leftovers,
    /// Digest of the result, if it is known before the stream ends.
    pub(super) result_digest: Option<Digest>,
    pub(super) shown: Shown,
}

impl Job {
    /// Applies the stream, whose header was taken from it.
    pub(super) async fn run(
        &mut self,
        env: &Environment,
        options: &volume::Options,
        header: &Header,
        signals: &mut Signals,
    ) -> Result<Applied, Error> {
        let begun = async {
            let (onto, snapshot) = (&*self.onto.name, self.snapshot.as_deref());
            let begun = receive::begin(env, options, onto, header.clone(), snapshot, self.leftovers);
            begun.await.map_err(|error| self.failed(error))
        };
        let begun = unless_ended(pin!(begun), signals).await?;
        let receiver = match begun {
            Begun::Ready(receiver) => receiver,
            Begun::Unproved(unproved) => self.prove(unproved, signals).await?,
            Begun::Done(received) => {
                let received = self.compare(received, self.result_digest, signals).await?;
                self.complete(received, signals).await?;
                return Ok(Applied::Before);
            }
        };
        let received = match self.apply(receiver, header, signals).await {
            Ok(received) => received,
            Err(error) => {
                let advice = self.advice(&error, &header.begun_name());
                return Err(Error::Cut { source: Box::new(error), advice });
            }
        };
        self.complete(received, signals).await?;
        Ok(Applied::Now)
    }

    /// What to do if not all of the stream was applied, or if the result is wrong.
    fn advice(&self, error: &Error, begun: &str) -> String {
        let Onto { name, flags } = &self.onto;
        match (is_other_result(error), self.kind) {
            (false, _) => format!(
                "{name} has a part of the stream: to go on, repeat the command with --resume, and to take it \
                 back: cairn volume restore {name}@{begun}{flags}"
            ),
            (true, Kind::Backup) => {
                format!("{name} was no copy of what its snapshots say: send all of it with --full --digest")
            }
            (true, Kind::Import) => format!(
                "{name} was no copy of the base: take the stream back (cairn volume restore {name}@{begun}), \
                 and apply one that was exported with --digest"
            ),
        }
    }

    pub(super) fn failed(&self, source: ReceiveError) -> Error {
        let name = self.onto.name.clone();
        match source {
            ReceiveError::Open(OpenError::Held { holder }) => Error::OntoHeld { name, holder },
            ReceiveError::OtherCutShort { begun } => {
                let advice =
                    format!("to take it back: cairn volume restore {name}@{begun}{}", self.onto.flags);
                let source = ReceiveError::OtherCutShort { begun };
                Error::Cut { source: Box::new(Error::Receive { name, source }), advice }
            }
            ReceiveError::Open(source) => Error::Volume { name, source },
            ReceiveError::Begun(source) => {
                let advice = format!("nothing of it is in {name} yet: repeat the command with --resume");
                Error::Cut { source: Box::new(self.failed(*source)), advice }
            }
            source => Error::Receive { name, source },
        }
    }

    /// Reads the content of a volume. Returns its digest.
    async fn digest(&self, volume: &Arc<Volume>, signals: &mut Signals) -> Result<Digest, Error> {
        let disk = StoredDisk::Volume(self.onto.name.clone(), Arc::clone(volume));
        unless_ended(pin!(digest(&self.onto.name, disk, self.shown)), signals).await
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
        self.compare(received, result_digest, signals).await
    }

    /// Compares the digest of a volume that has the result with what it should be, if that is known.
    pub(super) async fn compare(
        &self,
        received: Received,
        wanted: Option<Digest>,
        signals: &mut Signals,
    ) -> Result<Received, Error> {
        let Some(wanted) = wanted else { return Ok(received) };
        let error = match self.digest(received.volume(), signals).await {
            Ok(found) if found == wanted => return Ok(received),
            Ok(found) => self.failed(ReceiveError::OtherResult { found, wanted }),
            Err(error) => error,
        };
        released(received.release(), signals).await;
        Err(error)
    }

    /// Ends an import of which everything was applied.
    pub(super) async fn complete(&self, received: Received, signals: &mut Signals) -> Result<(), Error> {
        let snapshot = self.snapshot.as_deref();
        let completed = async { received.complete(snapshot).await.map_err(|error| self.failed(error)) };
        unless_ended(pin!(completed), signals).await.map_err(|error| {
            let advice = format!(
                "{} has all of the stream, but the import is not complete: repeat the command with --resume",
                self.onto.name
            );
            Error::Cut { source: Box::new(error), advice }
        })
    }

    /// Applies all extents. Returns the digest that the end of the stream has.
    async fn apply_parts(&mut self, receiver: &Receiver, bar: &ProgressBar) -> Result<Option<Digest>, Error> {
        loop {
            match self.stream.next_part().await? {
                None => return Err(self.stream.cut_off()),
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
