//! Gives a volume another name.
//!
//! Owns the order of a renaming, and must not know who uses the volume. Only the gateway that holds the
//! volume can rename it:
//!
//! 1. it reads the old and the new name,
//! 2. it records in the head that the volume gets the new name,
//! 3. it binds the new name to the volume,
//! 4. it takes the old name from the volume,
//! 5. it records in the head that the volume has the new name.
//!
//! Invariants: at every instant a name is bound to the volume, and the head records each name that is. The
//! names are read before the head is updated, and only these versions are replaced. So a gateway that has
//! lost the volume changes nothing that its successor did. While both names are bound, each refers to the
//! volume. Whoever opens the volume then finishes the renaming, by the same steps. Whoever deletes it frees
//! both.

use uuid::Uuid;

use super::name::{self, Found, Swapped, Unbind};
use super::volumes::{check_name, claim};
use crate::mutant::{self, Mutant};
use crate::volume::disk::Volume;
use crate::volume::environment::Environment;
use crate::volume::error::{OpenError, RenameError};
use crate::volume::format::head::Names;

/// Limit on attempts to bind a name that other processes change in the meantime.
const ATTEMPTS: u32 = 16;

/// Gives an open volume another name. A renaming that was cut short before is finished first. If the call
/// fails, the volume may have both names, until it is opened or renamed again.
///
/// # Errors
/// If the name is not valid or bound to another volume, if the volume stopped, or if the store failed.
pub async fn rename(volume: &Volume, to: &str) -> Result<(), RenameError> {
    check_name(to)?;
    let _turn = volume.turn_to_rename().await;
    finish(volume).await?;
    match volume.names().current {
        current if current == to => Ok(()),
        _ => give(volume, to).await,
    }
}

/// Finishes a renaming that was cut short, if there is one. If the new name belongs to another volume by now,
/// the volume keeps the old one.
///
/// # Errors
/// If the volume stopped, or if the store failed.
pub async fn finish_rename(volume: &Volume) -> Result<(), RenameError> {
    let _turn = volume.turn_to_rename().await;
    finish(volume).await
}

async fn finish(volume: &Volume) -> Result<(), RenameError> {
    let Some(next) = volume.names().next else { return Ok(()) };
    match give(volume, &next).await {
        Err(RenameError::Name(OpenError::Exists(_))) => Ok(()),
        given => given,
    }
}

/// Carries out the steps of a renaming. The name may be the one that an earlier renaming recorded, but no
/// other may be recorded.
async fn give(volume: &Volume, to: &str) -> Result<(), RenameError> {
    let (env, id) = (volume.environment(), volume.id());
    for _ in 0..ATTEMPTS {
        let Names { current, next } = volume.names();
        let old = name::look_closely(env, &current).await?;
        let Some(new) = claim_for(env, to, id).await? else {
            if next.is_some() {
                // Nobody can bind the name to this volume any more, because it was changed since it was read.
                volume.record_names(Names { current, next: None }).await?;
            }
            return Err(OpenError::Exists(to.to_owned()).into());
        };
        if old.volume() != Some(id) && new.volume() != Some(id) {
            return Err(OpenError::NoSuchVolume(current).into());
        }
        if !mutant::is(Mutant::RenameUnrecorded) {
            volume.record_names(Names { current: current.clone(), next: Some(to.to_owned()) }).await?;
        }
        if old.volume() == Some(id) && mutant::is(Mutant::OldNameFirst) {
            name::free(env, &current, &old, id).await?;
        }
        if new.volume() != Some(id) && name::bind(env, to, &new, id).await? == Swapped::Lost {
            continue;
        }
        if mutant::is(Mutant::OldNameLookedUpLate) {
            name::unbind(env, &current, id, Unbind::Bound).await?;
        }
        // If somebody else has changed it, that is a successor or a deletion, and the next update fails.
        if old.volume() == Some(id) {
            name::free(env, &current, &old, id).await?;
        }
        volume.record_names(Names { current: to.to_owned(), next: None }).await?;
        tracing::info!(volume = %id, from = current, to, "renamed the volume");
        return Ok(());
    }
    Err(OpenError::Contended(to.to_owned()).into())
}

/// Returns what exists under a name that a volume may get, or that is bound to it already. Returns `None` if
/// another volume has the name.
async fn claim_for(env: &Environment, to: &str, volume: Uuid) -> Result<Option<Found>, OpenError> {
    for _ in 0..ATTEMPTS {
        let found = name::look_closely(env, to).await?;
        if found.volume() == Some(volume) {
            return Ok(Some(found));
        }
        match claim(env, to).await {
            Ok(found) => return Ok(Some(found)),
            // A request of an earlier holder may have bound it to this volume just now.
            Err(OpenError::Exists(_)) => match name::look_closely(env, to).await?.volume() {
                Some(other) if other != volume => return Ok(None),
                _ => {}
            },
            Err(error) => return Err(error),
        }
    }
    Err(OpenError::Contended(to.to_owned()))
}
