//! Rotating credentials: rebuilds the SDK's chain of credentials when the store refuses the current ones, and
//! on request.
//!
//! Owns the current client, and must not know what requests are for. The chain caches what it read of a
//! profile for ever, so asking the same chain again would return the same credentials. Invariants: a request
//! in flight keeps the client with which it started. New credentials replace the current ones only after they
//! were resolved. Refusals rebuild the chain at most once per [`INTERVAL`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Credentials, IdentityCache, ProvideCredentials, SharedCredentialsProvider};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::connect::Connection;
use super::failure::chain;

/// Minimum time between two rebuilds that refusals cause.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);

/// The current client, and how to resolve its credentials again.
pub(super) struct Clients {
    current: ArcSwap<Client>,
    /// `None` if the caller supplied the credentials.
    connection: Option<Connection>,
    /// How long the chain may take to resolve credentials.
    patience: Duration,
    /// Whether the store has ever accepted the credentials. Before that a refusal is final, because an
    /// operator is watching.
    accepted: AtomicBool,
    pace: Pace,
    /// The last access key, to log whether it changed.
    access_key: Mutex<Option<String>>,
    /// Ensures that only one renewal runs at a time.
    renewal: tokio::sync::Mutex<()>,
}

impl Clients {
    pub(super) fn new(client: Client, connection: Option<Connection>, patience: Duration) -> Self {
        Self {
            current: ArcSwap::from_pointee(client),
            connection,
            patience,
            accepted: AtomicBool::new(false),
            pace: Pace::default(),
            access_key: Mutex::default(),
            renewal: tokio::sync::Mutex::default(),
        }
    }

    /// Returns the current client.
    pub(super) fn current(&self) -> Guard<Arc<Client>> {
        self.current.load()
    }

    /// Notes that the store accepted the credentials.
    pub(super) fn accept(&self) {
        if !self.accepted.load(Ordering::Relaxed) {
            self.accepted.store(true, Ordering::Relaxed);
        }
    }

    /// Resolves the credentials again, because the store refused them or there are none. Does nothing if that
    /// is in progress or was done recently.
    pub(super) async fn refused(&self) {
        if self.connection.is_none() || !self.accepted.load(Ordering::Relaxed) {
            return;
        }
        let Ok(_alone) = self.renewal.try_lock() else { return };
        if self.pace.is_due() {
            self.renew("the store refused the current ones").await;
        }
    }

    /// Resolves the credentials again on request, for example on SIGHUP.
    pub(super) async fn told(&self) {
        if self.connection.is_some() {
            let _alone = self.renewal.lock().await;
            self.pace.note();
            self.renew("requested").await;
        }
    }

    async fn renew(&self, why: &str) {
        let Some(connection) = &self.connection else { return };
        let resolved = async {
            let chain = connection.credentials().await.ok_or("the SDK has no chain of credentials")?;
            let first = chain.provide_credentials().await.map_err(|error| self::chain(&error))?;
            Ok::<_, String>(Resolved::new(first, chain))
        };
        let resolved = match tokio::time::timeout(self.patience, resolved).await {
            Ok(Ok(resolved)) => resolved,
            Ok(Err(error)) => return tracing::warn!("cannot refresh the credentials ({why}): {error}"),
            Err(_) => {
                let patience = self.patience;
                return tracing::warn!("cannot refresh the credentials ({why}) within {patience:?}");
            }
        };
        let access_key = resolved.first.lock().as_ref().map(|first| first.access_key_id().to_owned());
        let config = self.current.load().config().to_builder();
        let config = config.credentials_provider(resolved).identity_cache(IdentityCache::lazy().build());
        self.current.store(Arc::new(Client::from_conf(config.build())));
        let before = std::mem::replace(&mut *self.access_key.lock(), access_key.clone());
        let access_key = access_key.unwrap_or_default();
        if before.as_ref() == Some(&access_key) {
            tracing::debug!(access_key, "refreshed the credentials ({why}): they have not changed");
        } else {
            tracing::info!(access_key, "refreshed the credentials ({why})");
        }
    }
}

/// A chain of credentials and the first credentials that it returned, so that it need not resolve them twice.
#[derive(Debug)]
struct Resolved {
    first: Mutex<Option<Credentials>>,
    chain: SharedCredentialsProvider,
}

impl Resolved {
    fn new(first: Credentials, chain: SharedCredentialsProvider) -> Self {
        Self { first: Mutex::new(Some(first)), chain }
    }
}

impl ProvideCredentials for Resolved {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        match self.first.lock().take() {
            Some(first) => future::ProvideCredentials::ready(Ok::<_, CredentialsError>(first)),
            None => self.chain.provide_credentials(),
        }
    }
}

/// Limits how often refusals renew the credentials.
#[derive(Debug, Default)]
struct Pace {
    last: Mutex<Option<Instant>>,
}

impl Pace {
    /// Returns whether a renewal is due. If it is, it counts as started now.
    fn is_due(&self) -> bool {
        let mut last = self.last.lock();
        let now = Instant::now();
        let due = last.is_none_or(|last| now.saturating_duration_since(last) >= INTERVAL);
        if due {
            *last = Some(now);
        }
        due
    }

    /// Notes that a renewal starts now.
    fn note(&self) {
        *self.last.lock() = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn refusals_cause_one_renewal_per_interval() {
        let pace = Pace::default();
        let due = || (0..64).filter(|_| pace.is_due()).count();
        assert_eq!(due(), 1, "the first at once");
        tokio::time::advance(INTERVAL - Duration::from_millis(1)).await;
        assert_eq!(due(), 0);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(due(), 1);
        pace.note();
        assert_eq!(due(), 0, "one that was asked for counts");
    }

    #[tokio::test]
    async fn resolved_credentials_are_used_before_the_chain_is_asked_again() {
        let of = |key: &str| Credentials::new(key, "secret", None, None, "test");
        let resolved = Resolved::new(of("first"), SharedCredentialsProvider::new(of("later")));
        for expected in ["first", "later", "later"] {
            assert_eq!(resolved.provide_credentials().await.unwrap().access_key_id(), expected);
        }
    }
}
