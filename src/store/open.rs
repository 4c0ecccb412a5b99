//! Opens a store: builds the backend for a [`Location`] and decorates it with metrics, limits and retries.
//!
//! Owns the order of the decorators, and must not know what is stored. Invariant: [`Retry`] is above
//! [`Hedging`], which is above [`Limit`], which is above [`Instrument`], which is above the backend. Every
//! request, also a second one, is therefore counted and limited, and no permit is held during a pause. A
//! store that fails the probe is never returned.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::Instant;

use crate::metrics::StoreMetrics;

use super::probe::{self, Occasion, ProbeError, ProbeOptions};
use super::retry::RetryOptions;
use super::{
    Classes, Error, HedgeOptions, Hedging, Instrument, Limit, LocalStore, Location, Retry, S3Options,
    S3Store, Setup, Store,
};

/// How to use a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Options for a bucket.
    pub s3: S3Options,
    /// Maximum number of concurrent requests of each class. See [`Classes`].
    pub concurrency: usize,
    /// How to retry failed requests.
    pub retry: RetryOptions,
    /// When to send a request to a bucket a second time. A directory is never hedged.
    pub hedge: HedgeOptions,
    /// How to probe the store. `None` trusts the store to honour conditions.
    pub probe: Option<ProbeOptions>,
    /// What may be created in a directory.
    pub setup: Setup,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            s3: S3Options::default(),
            concurrency: 64,
            retry: RetryOptions::default(),
            hedge: HedgeOptions::default(),
            probe: Some(ProbeOptions::default()),
            setup: Setup::default(),
        }
    }
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be opened or created.
    #[error("cannot open the directory {}: {source}", path.display())]
    Directory {
        /// Path of the directory.
        path: PathBuf,
        /// The error of the file system.
        #[source]
        source: std::io::Error,
    },
    /// The directory or the store in it does not exist, and may not be created.
    #[error(
        "the directory {} does not contain a store; `cairn volume create` and `cairn serve --create` \
         create one",
        path.display()
    )]
    NoStore {
        /// Path of the directory.
        path: PathBuf,
    },
    /// The bucket cannot be created, or its configuration cannot work.
    #[error("cannot open the bucket: {0}")]
    Bucket(#[source] Error),
    /// The store failed the probe.
    #[error("{at}: {source}")]
    Probe {
        /// The location of the store, its service, and the setting that determines the service.
        at: String,
        /// Why the store failed the probe.
        #[source]
        source: ProbeError,
    },
}

/// Random values and the time of one opening. The caller supplies them, so that tests are deterministic.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// Seed of the pauses between retries.
    pub seed: u64,
    /// Distinguishes the keys of this probe from those of concurrent probes. Consists of key characters.
    pub nonce: String,
    /// The time in seconds since 1970.
    pub now_seconds: u64,
}

/// An open store.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The store, for reading and writing.
    pub store: Classes,
    /// Control over the store, for its owner.
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
    /// Treats refusals as outages from now on, because disks are in use, and lets background work wait
    /// without a deadline. See [`Retry::wait_out_refusals`].
    pub fn wait_out_refusals(&self) {
        self.retries.iter().for_each(|retry| retry.wait_out_refusals());
    }

    /// Resolves the credentials again. See [`S3Store::renew_credentials`]. Does nothing for a directory.
    pub async fn renew_credentials(&self) {
        if let Some(bucket) = &self.bucket {
            bucket.renew_credentials().await;
        }
    }
}

/// Opens the store at `location` and probes it.
///
/// # Errors
/// If the store cannot be reached before the probe's deadline, or does not honour conditions.
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
    let percent = if bucket.is_some() { options.hedge.percent } else { 0 };
    let hedging = Hedging::new(HedgeOptions { percent, ..options.hedge }, metrics.clone());
    let retried = |class, limited| -> Arc<dyn Store> {
        let hedged = hedging.above(class, limited);
        let retry = Arc::new(Retry::new(hedged, options.retry, metrics.clone(), seed).of_class(class));
        seed = seed.wrapping_add(1);
        retries.push(Arc::clone(&retry));
        retry
    };
    let store = Classes::limited(&counted, options.concurrency, &metrics, retried);
    Ok(Opened { store, control: Control { retries, bucket } })
}

/// Returns the text of a location with an absolute path, which does not depend on the working directory.
fn whole(location: &Location) -> String {
    let path = match location {
        Location::Directory(path) => std::fs::canonicalize(path).ok(),
        Location::S3 { .. } => None,
    };
    path.map_or_else(|| location.to_string(), |path| Location::Directory(path).to_string())
}

/// Opens a bucket. Waits for a service that does not answer yet, as long as the probe would.
async fn open_bucket(bucket: &str, prefix: &str, options: &Options) -> Result<S3Store, Error> {
    let ProbeOptions { deadline, pause, .. } = options.probe.clone().unwrap_or_default();
    let end = Instant::now() + deadline;
    loop {
        match S3Store::open(bucket, prefix, options.s3.clone()).await {
            Err(error @ (Error::Throttled { .. } | Error::Timeout { .. } | Error::Transient { .. }))
                if Instant::now() + pause < end =>
            {
                tracing::debug!("cannot open the bucket yet: {error}");
                tokio::time::sleep(pause).await;
            }
            opened => return opened,
        }
    }
}
