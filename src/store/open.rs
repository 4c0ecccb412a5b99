//! Putting a store together: the backend that a [`Location`] names, below metrics, limit and retries.
//!
//! Invariant: the order is [`Retry`] over [`Limit`] over [`Instrument`] over the backend, so that every attempt is
//! counted and no permit is held during a pause; and a store that ignores conditions is never handed out.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::Instant;

use crate::metrics::StoreMetrics;

use super::probe::{self, ProbeError, ProbeOptions};
use super::retry::RetryOptions;
use super::{Classes, Error, Instrument, Limit, LocalStore, Location, Retry, S3Options, S3Store, Store};

/// How to use a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// For a bucket.
    pub s3: S3Options,
    /// Requests at a time.
    pub concurrency: usize,
    /// Retries.
    pub retry: RetryOptions,
    /// The probe; `None` to trust that the store heeds conditions.
    pub probe: Option<ProbeOptions>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            s3: S3Options::default(),
            concurrency: 64,
            retry: RetryOptions::default(),
            probe: Some(ProbeOptions::default()),
        }
    }
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be opened or made.
    #[error("the directory {} cannot be opened: {source}", path.display())]
    Directory {
        /// Directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The bucket cannot be made, or the configuration for it cannot work.
    #[error("the bucket cannot be opened: {0}")]
    Bucket(#[source] Error),
    /// The store failed the probe.
    #[error("{location}: {source}")]
    Probe {
        /// Store.
        location: Location,
        /// Cause.
        #[source]
        source: ProbeError,
    },
}

/// Opens the store at `location` and probes it. Pauses between retries are drawn from `seed`; `nonce`, of key
/// characters, sets this probe's keys apart from those of any other that runs at the same time.
///
/// # Errors
/// Where the store cannot be reached in the probe's time, or cannot be relied on.
pub async fn open(
    location: &Location,
    options: &Options,
    metrics: StoreMetrics,
    seed: u64,
    nonce: &str,
) -> Result<Classes, OpenError> {
    let backend: Arc<dyn Store> = match location {
        Location::Directory(path) => {
            let failed = |source| OpenError::Directory { path: path.clone(), source };
            Arc::new(LocalStore::open(path).await.map_err(failed)?)
        }
        Location::S3 { bucket, prefix } => {
            Arc::new(open_bucket(bucket, prefix, options).await.map_err(OpenError::Bucket)?)
        }
    };
    let counted: Arc<dyn Store> = Arc::new(Instrument::new(backend, metrics.clone()));
    if let Some(probe) = &options.probe {
        let failed = |source| OpenError::Probe { location: location.clone(), source };
        let limited = Limit::new(Arc::clone(&counted), options.concurrency, metrics.clone());
        probe::probe(&limited, probe, nonce).await.map_err(failed)?;
    }
    let mut seeds = seed..;
    let retried = |limited| -> Arc<dyn Store> {
        let seed = seeds.next().unwrap_or(seed);
        Arc::new(Retry::new(limited, options.retry, metrics.clone(), seed))
    };
    Ok(Classes::limited(&counted, options.concurrency, &metrics, retried))
}

/// Opens a bucket; a service that does not answer yet is waited for as long as the probe waits.
async fn open_bucket(bucket: &str, prefix: &str, options: &Options) -> Result<S3Store, Error> {
    let ProbeOptions { deadline, pause, .. } = options.probe.clone().unwrap_or_default();
    let end = Instant::now() + deadline;
    loop {
        match S3Store::open(bucket, prefix, options.s3.clone()).await {
            Err(error @ (Error::Throttled { .. } | Error::Timeout { .. } | Error::Transient { .. }))
                if Instant::now() + pause < end =>
            {
                tracing::debug!("the bucket cannot be opened yet: {error}");
                tokio::time::sleep(pause).await;
            }
            opened => return opened,
        }
    }
}
