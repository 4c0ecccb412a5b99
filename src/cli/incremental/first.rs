//! The first backup: a new volume in the other store.
//!
//! Owns the course of it, and must not know how a volume is made. Invariants: the volume has its name only
//! once all of it is durable, and the snapshot by which it counts as a backup only after that.

use std::pin::pin;

use indicatif::ProgressBar;
use uuid::Uuid;

use super::apply::{Job, Onto, is_other_result, unless_ended};
use super::plan::Target;
use super::stream::Stream;
use crate::cli::error::Error;
use crate::cli::import::cut;
use crate::cli::process::Signals;
use crate::volume::catalog::{ChunkBytes, Info};
use crate::volume::format::stream::{Header, Part};
use crate::volume::incremental::receive::{self, Leftovers};
use crate::volume::{IN_FLIGHT_BYTES, Import, ImportError};

/// Makes the volume of a stream that has everything, whose header was taken from it. Returns its id.
pub(super) async fn make(
    job: &mut Job,
    target: &Target,
    header: &Header,
    signals: &mut Signals,
) -> Result<Uuid, Error> {
    let info = Box::pin(fill(job, target, header, signals)).await?;
    let adopted = async {
        let adopted = receive::adopt(&target.env, &target.options, &info, header.clone()).await;
        adopted.map_err(|error| job.failed(error))
    };
    let adopted = unless_ended(pin!(adopted), signals).await;
    let received = match adopted {
        Ok(received) => job.compare(received, job.result_digest, signals).await,
        Err(error) => Err(error),
    };
    let received = received.map_err(|error| {
        let Onto { name, flags } = &target.onto;
        let advice = match is_other_result(&error) {
            true => format!(
                "{name} is not known as a backup: delete it (cairn volume delete {name}{flags}), and begin \
                 again"
            ),
            false => format!(
                "{name} is there, but is not known as a backup yet: repeat the command with --resume, which \
                 compares all of it"
            ),
        };
        Error::Cut { source: Box::new(error), advice }
    })?;
    job.complete(received, signals).await?;
    Ok(info.volume)
}

/// Makes the volume, which has its name then, but no snapshot.
async fn fill(job: &mut Job, target: &Target, header: &Header, signals: &mut Signals) -> Result<Info, Error> {
    let failed = |source| Error::Import { name: target.onto.name.clone(), source };
    let begun = async { begin(target, header, job.leftovers).await.map_err(failed) };
    let mut import = unless_ended(pin!(begun), signals).await?;
    let id = import.volume();
    let size = header.result.size_bytes;
    let bar = job.shown.bar(size);
    let passed = async {
        let passed = pass(&mut job.stream, &mut import, size, &bar).await?;
        passed.map_err(failed)
    };
    let passed = unless_ended(pin!(passed), signals).await;
    bar.finish_and_clear();
    let finished = match passed {
        Ok(()) => {
            let finished = async { import.finish_unpadded().await.map_err(failed) };
            unless_ended(pin!(finished), signals).await
        }
        Err(error) => {
            import.stop().await;
            Err(error)
        }
    };
    match finished {
        Ok(info) => Ok(info),
        Err(error) => Err(cut(&target.env, &target.options, id, &target.onto.flags, error).await),
    }
}

/// Begins the volume, or goes on with what an earlier run has left, if there is anything.
async fn begin(target: &Target, header: &Header, leftovers: Leftovers) -> Result<Import, ImportError> {
    let (env, name) = (&target.env, &*target.onto.name);
    if leftovers == Leftovers::Discard {
        match Import::resume(env, name, IN_FLIGHT_BYTES).await {
            Err(ImportError::NothingToResume(_)) => {}
            resumed => return resumed,
        }
    }
    let chunk = ChunkBytes(header.geometry.chunk_bytes());
    Import::begin(env, &target.options, name, chunk, IN_FLIGHT_BYTES).await
}

/// Passes the stream to the volume. What no extent has is zeros.
async fn pass(
    stream: &mut Stream,
    import: &mut Import,
    size: u64,
    bar: &ProgressBar,
) -> Result<Result<(), ImportError>, Error> {
    loop {
        let passed = match stream.next_part().await? {
            None => return Err(stream.cut_off()),
            Some(Part::End { .. }) => {
                stream.check_end().await?;
                return Ok(import.zeros(size - import.position()).await);
            }
            Some(Part::Header(_)) => Ok(()),
            Some(Part::Data { offset, bytes }) => match import.zeros(offset - import.position()).await {
                Ok(()) => import.write(&bytes).await,
                failed => failed,
            },
            Some(Part::Zero { offset, length }) => import.zeros(offset + length - import.position()).await,
        };
        if passed.is_err() {
            return Ok(passed);
        }
        bar.set_position(import.position());
    }
}
