//! A volume that a command opens, changes and closes, without a gateway.
//!
//! Owns how such a volume is opened, and must not know what is done with it. Invariant: a volume that a
//! gateway holds is never taken over.

use std::sync::Arc;
use std::time::Duration;

use super::environment::environment;
use super::error::Error;
use super::process;
use super::settings::Options;
use crate::metrics::Metrics;
use crate::store::Setup;
use crate::volume::{self, Environment, OpenError, Volume, catalog};

/// How long the store may take, if nothing is configured.
const PATIENCE: Duration = Duration::from_secs(60);

/// Opens the store of a volume that no gateway holds. Returns the options with which to open the volume.
pub(super) async fn prepare(options: Options) -> Result<(Environment, volume::Options), Error> {
    let mut options = options.impatient();
    options.store.setup = Setup::Existing;
    options.store.s3.create_bucket = false;
    let (env, _) = environment(&options, &Metrics::new()).await?;
    Ok((env, of_command(options.volume)))
}

/// The options with which a command opens a volume.
pub(super) fn of_command(options: volume::Options) -> volume::Options {
    volume::Options {
        // The configured name is that of a gateway. Under this name we would take its volume from it.
        holder_name: process::name(),
        holder_is_stable: false,
        store_deadline: options.store_deadline.or(Some(PATIENCE)),
        // What a command reads says nothing about what a client will.
        record_reads: Duration::ZERO,
        ..options
    }
}

/// Opens a volume that no gateway holds.
pub(super) async fn open(options: Options, name: &str) -> Result<Arc<Volume>, Error> {
    let (env, options) = prepare(options).await?;
    open_in(&env, options, name).await
}

/// As [`open`], in a store that [`prepare`] has opened.
pub(super) async fn open_in(
    env: &Environment,
    options: volume::Options,
    name: &str,
) -> Result<Arc<Volume>, Error> {
    catalog::open(env, || options, name, false).await.map_err(|source| match source {
        OpenError::Held { holder } => Error::HeldElsewhere { name: name.to_owned(), holder },
        source => Error::Volume { name: name.to_owned(), source },
    })
}

/// Closes a volume, so that a gateway can open it at once.
pub(super) async fn close(volume: &Volume, name: &str) -> Result<(), Error> {
    match volume.close().await {
        Ok(()) => Ok(()),
        Err(error) => {
            tracing::error!(volume = name, "the volume was not closed cleanly: {error}");
            volume.abandon().await;
            Err(Error::Close(vec![name.to_owned()]))
        }
    }
}
