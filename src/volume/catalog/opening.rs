//! Opens volumes by name, to use them or to rename them.
//!
//! Owns how a name leads to an open volume. It must not know what the volume is opened for, or the steps of a
//! renaming. Invariant: a volume that is opened by name has exactly that name. A renaming that was cut short
//! is finished before anybody uses the volume. So no late request of the process that began it can take the
//! name from the volume while it is in use.

use std::sync::Arc;

use super::rename::{finish, give};
use super::volumes::{check_name, resolve};
use crate::mutant::{self, Mutant};
use crate::volume::disk::Volume;
use crate::volume::environment::Environment;
use crate::volume::error::OpenError;
use crate::volume::info::Info;
use crate::volume::options::Options;

/// Limit on attempts to open a volume by name while others delete and recreate it.
const OPENINGS: u32 = 4;

/// Opens the volume that a name is bound to, like [`Volume::open`]. If a renaming of it was cut short, the
/// renaming is finished first. `options` is called once, when it is known that a volume has this name.
///
/// # Errors
/// As [`Volume::open`]; also if no volume has this name, or if the volume got another name in the meantime or
/// because its renaming was finished. The volume is not held afterwards.
pub async fn open(
    env: &Environment,
    options: impl FnOnce() -> Options,
    name: &str,
    takeover: bool,
) -> Result<Arc<Volume>, OpenError> {
    let volume = open_settled(env, options, name, takeover).await?;
    let now = volume.name();
    if now == name {
        return Ok(volume);
    }
    release(&volume).await;
    Err(OpenError::Renamed { from: name.to_owned(), to: now })
}

/// Gives a volume that nobody uses another name. If an earlier call was cut short, this one finishes it. If
/// the call fails, both names may be bound to the volume, until it is opened or renamed again.
///
/// # Errors
/// If `to` is not valid or bound to another volume, if no volume has the name `from`, if a gateway holds the
/// volume (unless `takeover`) or takes it over in the meantime, or if the store fails.
pub async fn rename(
    env: &Environment,
    options: &Options,
    from: &str,
    to: &str,
    takeover: bool,
) -> Result<Info, OpenError> {
    check_name(to)?;
    let volume = open_settled(env, || options.clone(), from, takeover).await?;
    let renamed = match volume.name() {
        now if now == to => Ok(()),
        now if now == from => give(&volume, to).await,
        now => Err(OpenError::Renamed { from: from.to_owned(), to: now }),
    };
    release(&volume).await;
    renamed?;
    Ok(Info { holder: None, ..volume.info(to) })
}

/// Opens the volume that a name is bound to, and finishes a renaming that was cut short. The volume has one
/// name then, which may be another one.
async fn open_settled(
    env: &Environment,
    options: impl FnOnce() -> Options,
    name: &str,
    takeover: bool,
) -> Result<Arc<Volume>, OpenError> {
    let mut id = resolve(env, name).await?;
    let options = options();
    for _ in 0..OPENINGS {
        let error = match Volume::open_by(env, options.clone(), id, Some(name), takeover).await {
            Ok(volume) => return settled(volume).await,
            Err(error) => error,
        };
        let may_be_deleted =
            matches!(error, OpenError::Deleting | OpenError::Incomplete { .. } | OpenError::Lost(_));
        if !may_be_deleted {
            return Err(error);
        }
        // The name may refer to another volume by now, or to none.
        let now = resolve(env, name).await?;
        if now == id {
            return Err(error);
        }
        id = now;
    }
    Err(OpenError::Contended(name.to_owned()))
}

/// Finishes a renaming that was cut short.
async fn settled(volume: Arc<Volume>) -> Result<Arc<Volume>, OpenError> {
    if !mutant::is(Mutant::RenameUnfinished)
        && let Err(error) = finish(&volume).await
    {
        release(&volume).await;
        return Err(error);
    }
    Ok(volume)
}

/// Closes a volume that was not used, so that others can open it at once. If the store fails meanwhile, they
/// have to wait until the lease has expired.
async fn release(volume: &Volume) {
    let why = match tokio::time::timeout(volume.options().lease_ttl, volume.hand_on()).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the store did not answer in time".to_owned(),
    };
    tracing::warn!(volume = %volume.id(), "the lease of the volume is not released: {why}");
    volume.abandon().await;
}
