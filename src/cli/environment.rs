//! The environment for work on a store: the store itself, randomness, the time, and what volumes share.
//!
//! Owns the assembly of these parts, and must not know volumes. Invariant: all volumes of a
//! process share one store, one cache, one dirty budget, one source of randomness and one clock.

use super::error::Error;
use super::process;
use super::settings::Options;
use crate::metrics::Metrics;
use crate::store;
use crate::volume::{DirtyBudget, Entropy, Environment, PageCache};

/// Opens an existing store for a command that only reads. Such a command needs no conditional writes, and the
/// user may not have permission to write.
pub(super) async fn for_reading(options: Options, metrics: &Metrics) -> Result<Environment, Error> {
    let mut options = options.impatient();
    options.store.setup = store::Setup::Existing;
    options.store.s3.create_bucket = false;
    options.store.probe = None;
    Ok(environment(&options, metrics).await?.0)
}

/// Opens the store, and creates what all volumes share.
pub(super) async fn environment(
    options: &Options,
    metrics: &Metrics,
) -> Result<(Environment, store::Control), Error> {
    let (entropy, wall_clock) = (Entropy::from_os(), process::wall_clock());
    let drawn = store::Drawn {
        seed: entropy.next_u64(),
        nonce: entropy.uuid().simple().to_string(),
        now_seconds: wall_clock(),
    };
    let opened = store::open(&options.location, &options.store, metrics.store(), &drawn).await?;
    let env = Environment {
        store: opened.store,
        cache: PageCache::new(options.clean_bytes, options.volume.get_bytes),
        budget: DirtyBudget::new(options.dirty_bytes),
        entropy,
        wall_clock,
    };
    Ok((env, opened.control))
}
