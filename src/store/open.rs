//! Putting a store together: the backend that a [`Location`] names, below metrics, limit and retries.
//!
//! Invariant: the order is [`Retry`] over [`Limit`] over [`Instrument`] over the backend, so that every
//! attempt is counted and no permit is held during a pause; and a store that ignores conditions is never
//! handed out.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::Instant;

use crate::metrics::StoreMetrics;

use super::probe::{self, Occasion, ProbeError, ProbeOptions};
use super::retry::RetryOptions;
use super::{
    Classes, Error, Instrument, Limit, LocalStore, Location, Retry, S3Options, S3Store, Setup, Store,
};

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
    /// What may be made of a directory.
    pub setup: Setup,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            s3: S3Options::default(),
            concurrency: 64,
            retry: RetryOptions::default(),
            probe: Some(ProbeOptions::default()),
            setup: Setup::default(),
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
    /// There is no such directory, or no store in it, and no reason to make one.
    #[error(
        "there is no store in the directory {}; `cairn volume create` and `cairn serve --create` make one",
        path.display()
    )]
    NoStore {
        /// Directory.
        path: PathBuf,
    },
    /// The bucket cannot be made, or the configuration for it cannot work.
    #[error("the bucket cannot be opened: {0}")]
    Bucket(#[source] Error),
    /// The store failed the probe.
    #[error("{at}: {source}")]
    Probe {
        /// Where the store is, the service that has it, and the setting that says so.
        at: String,
        /// Cause.
        #[source]
        source: ProbeError,
    },
}

/// What is drawn, or looked at on a clock, once for each opening.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// Pauses between retries are drawn from it.
    pub seed: u64,
    /// Of key characters: sets this probe's keys apart from those of any other that runs at the same time.
    pub nonce: String,
    /// Seconds since 1970.
    pub now_seconds: u64,
}

/// A store that was opened, and what only its owner may do with it.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The store.
    pub store: Classes,
    /// The same, for its owner.
    pub control: Control,
}

/// What the owner of an open store can do besides reading and writing.
#[derive(Clone, Debug)]
pub struct Control {
    /// One for each class of requests.
    retries: Vec<Arc<Retry>>,
    bucket: Option<Arc<S3Store>>,
}

impl Control {
    /// Disks are in use from now on: see [`Retry::wait_out_refusals`].
    pub fn wait_out_refusals(&self) {
        self.retries.iter().for_each(|retry| retry.wait_out_refusals());
    }

    /// Resolves the credentials again: see [`S3Store::renew_credentials`]. A directory has none.
    pub async fn renew_credentials(&self) {
        if let Some(bucket) = &self.bucket {
            bucket.renew_credentials().await;
        }
    }
}

/// Opens the store at `location` and probes it.
///
/// # Errors
/// Where the store cannot be reached in the probe's time, or cannot be relied on.
pub async fn open(
    location: &Location,
    options: &Options,
    metrics: StoreMetrics,
    drawn: &Drawn,
) -> Result<Opened, OpenError> {
    let (backend, bucket): (Arc<dyn Store>, _) = match location {
        Location::Directory(path) => {
            let failed = |source| OpenError::Directory { path: path.clone(), source };
            let absent = |source: std::io::Error| match source.kind() {
                std::io::ErrorKind::NotFound => OpenError::NoStore { path: path.clone() },
                _ => failed(source),
            };
            (Arc::new(LocalStore::open_as(path, options.setup).await.map_err(absent)?), None)
        }
        Location::S3 { bucket, prefix } => {
            let bucket = open_bucket(bucket, prefix, options).await.map_err(OpenError::Bucket)?;
            let bucket = Arc::new(bucket);
            (Arc::<S3Store>::clone(&bucket) as _, Some(bucket))
        }
    };
    let counted: Arc<dyn Store> = Arc::new(Instrument::new(backend, metrics.clone()));
    if let Some(probe) = &options.probe {
        let (against, at) = match &bucket {
            None => (whole(location), location.to_string()),
            Some(bucket) => {
                let at = |service: &str| format!("{location} at {service}");
                (at(bucket.service()), at(&bucket.service_and_setting()))
            }
        };
        let occasion = Occasion { nonce: &drawn.nonce, against: &against, now_seconds: drawn.now_seconds };
        let limited = Limit::new(Arc::clone(&counted), options.concurrency, metrics.clone());
        let probed = probe::ensure(&limited, probe, &occasion).await;
        probed.map_err(|source| OpenError::Probe { at, source })?;
    }
    let mut retries = Vec::new();
    let mut seed = drawn.seed;
    let retried = |limited| -> Arc<dyn Store> {
        let retry = Arc::new(Retry::new(limited, options.retry, metrics.clone(), seed));
        seed = seed.wrapping_add(1);
        retries.push(Arc::clone(&retry));
        retry
    };
    let store = Classes::limited(&counted, options.concurrency, &metrics, retried);
    Ok(Opened { store, control: Control { retries, bucket } })
}

/// A directory with its path from the root, so that it is the same from wherever it is opened.
fn whole(location: &Location) -> String {
    let path = match location {
        Location::Directory(path) => std::fs::canonicalize(path).ok(),
        Location::S3 { .. } => None,
    };
    path.map_or_else(|| location.to_string(), |path| Location::Directory(path).to_string())
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
