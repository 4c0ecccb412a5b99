//! The volumes that the settings list: made where they are absent, and opened to stay.

use std::sync::Arc;

use super::error::Error;
use super::settings::Options;
use super::size::Wanted;
use crate::gateway::OpenVolumes;
use crate::volume::catalog;
use crate::volume::{Environment, OpenError};

/// Makes the volumes that are absent, and opens all that are configured, at the same time.
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
    // What is open now may be another volume than the one that was looked at.
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

/// How often a volume is looked up and made where others delete and make it meanwhile.
const ENSURINGS: u32 = 16;

/// Makes a volume where it is absent or being deleted; an error where it stands with another size.
async fn ensure(env: &Environment, options: &Options, wanted: &Wanted) -> Result<(), OpenError> {
    let Wanted { name, size_bytes } = wanted;
    for _ in 0..ENSURINGS {
        match catalog::info(env, name).await {
            Ok(found) => return check_size(wanted, found.size_bytes),
            Err(OpenError::NoSuchVolume(_) | OpenError::Deleting) => {}
            Err(error) => return Err(error),
        }
        match catalog::create(env, &options.volume, name, *size_bytes, options.chunk_bytes).await {
            Ok(made) => {
                tracing::info!(volume = name, id = %made.volume, size_bytes, "created");
                return Ok(());
            }
            // By another since it was looked up.
            Err(OpenError::Exists(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(OpenError::Contended(name.clone()))
}

/// What the empty name stands for: the configured volume, if there is one and no other.
pub(super) fn only(configured: &[String]) -> Option<String> {
    if let [only] = configured { Some(only.clone()) } else { None }
}
