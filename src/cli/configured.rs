//! The volumes in the settings: creates those that do not exist, and opens all of them to stay open.
//!
//! Owns the comparison with the settings, and must not know how a volume is opened. Invariant: a configured
//! volume has its configured size, or the start fails.

use std::sync::Arc;

use super::error::Error;
use super::settings::Options;
use super::size::Wanted;
use crate::gateway::OpenVolumes;
use crate::volume::catalog::{self, ChunkBytes};
use crate::volume::{Environment, OpenError};

/// Creates the configured volumes that do not exist, then opens all configured volumes concurrently.
pub(super) async fn open_configured(
    env: &Environment,
    options: &Options,
    volumes: &Arc<OpenVolumes>,
) -> Result<(), Error> {
    let of = |name: &str| {
        let name = name.to_owned();
        move |source| Error::Volume { name, source }
    };
    let names = options.configured();
    volumes.configure(&names);
    for wanted in &options.create {
        ensure(env, options, wanted).await.map_err(of(&wanted.name))?;
    }
    let opening = names.iter().map(|name| async move {
        let opened = volumes.open_configured(name, options.takeover).await;
        opened.map_err(|source| Error::Open { name: name.clone(), source })
    });
    futures::future::try_join_all(opening).await?;
    // The volume that is open now may differ from the one that was looked up.
    for wanted in &options.create {
        if let Some(found) = volumes.size_bytes(&wanted.name) {
            check_size(wanted, found).map_err(of(&wanted.name))?;
        }
    }
    Ok(())
}

fn check_size(wanted: &Wanted, found: u64) -> Result<(), OpenError> {
    if found == wanted.size_bytes {
        return Ok(());
    }
    Err(OpenError::SizeDiffers { name: wanted.name.clone(), found, wanted: wanted.size_bytes })
}

/// How often to look up and create a volume while others delete and recreate it.
const ENSURINGS: u32 = 16;

/// Creates a volume if it does not exist or is being deleted. Fails if it exists with another size.
async fn ensure(env: &Environment, options: &Options, wanted: &Wanted) -> Result<(), OpenError> {
    let Wanted { name, size_bytes } = wanted;
    for _ in 0..ENSURINGS {
        match catalog::info(env, name).await {
            Ok(found) => return check_size(wanted, found.size_bytes),
            Err(OpenError::NoSuchVolume(_) | OpenError::Deleting) => {}
            Err(error) => return Err(error),
        }
        let chunk = ChunkBytes(options.chunk_bytes);
        match catalog::create(env, &options.volume, name, *size_bytes, chunk).await {
            Ok(made) => {
                tracing::info!(volume = name, id = %made.volume, size_bytes, "created");
                return Ok(());
            }
            // Somebody else created it after the lookup.
            Err(OpenError::Exists(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(OpenError::Contended(name.clone()))
}

/// Returns the volume to which the empty name refers: the only configured volume.
pub(super) fn only(configured: &[String]) -> Option<String> {
    if let [only] = configured { Some(only.clone()) } else { None }
}
