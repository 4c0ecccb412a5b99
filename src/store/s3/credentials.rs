//! Credentials that rotate: the SDK's chain is built anew when the store refuses what the old one gave, and
//! when told.
//!
//! The chain remembers for ever what it read of a profile, so asking it again would give the same.
//! Invariants: requests in flight keep the client that they began with; new credentials take the place of
//! those in use only once they were resolved; refusals, however many, have the chain built at most once in
//! [`INTERVAL`].

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

/// Least time between two chains that refusals bring about.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);

/// The client in force, and how its credentials are resolved again.
pub(super) struct Clients {
    current: ArcSwap<Client>,
    /// `None` where the credentials were given.
    connection: Option<Connection>,
    /// Time that the chain may take.
    patience: Duration,
    /// Whether the store has ever taken the credentials. Before that a refusal is final: an operator looks
    /// on.
    accepted: AtomicBool,
    pace: Pace,
    /// Which access key was in force last, to say whether it changed.
    access_key: Mutex<Option<String>>,
    /// One at a time.
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

    /// The client in force.
    pub(super) fn current(&self) -> Guard<Arc<Client>> {
        self.current.load()
    }

    /// The store took the credentials.
    pub(super) fn accept(&self) {
        if !self.accepted.load(Ordering::Relaxed) {
            self.accepted.store(true, Ordering::Relaxed);
        }
    }

    /// The store refused the credentials, or there are none: resolves them again, unless that was done just
    /// now or is being done.
    pub(super) async fn refused(&self) {
        if self.connection.is_none() || !self.accepted.load(Ordering::Relaxed) {
            return;
        }
        let Ok(_alone) = self.renewal.try_lock() else { return };
        if self.pace.is_due() {
            self.renew("the store refused those in use").await;
        }
    }

    /// Resolves the credentials again, since somebody said so.
    pub(super) async fn told(&self) {
        if self.connection.is_some() {
            let _alone = self.renewal.lock().await;
            self.pace.note();
            self.renew("told to").await;
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
            Ok(Err(error)) => return tracing::warn!("credentials cannot be resolved again ({why}): {error}"),
            Err(_) => {
                let patience = self.patience;
                return tracing::warn!("credentials cannot be resolved again ({why}) within {patience:?}");
            }
        };
        let access_key = resolved.first.lock().as_ref().map(|first| first.access_key_id().to_owned());
        let config = self.current.load().config().to_builder();
        let config = config.credentials_provider(resolved).identity_cache(IdentityCache::lazy().build());
        self.current.store(Arc::new(Client::from_conf(config.build())));
        let before = std::mem::replace(&mut *self.access_key.lock(), access_key.clone());
        let access_key = access_key.unwrap_or_default();
        if before.as_ref() == Some(&access_key) {
            tracing::debug!(access_key, "credentials resolved again ({why}): they are the same");
        } else {
            tracing::info!(access_key, "credentials resolved again ({why})");
        }
    }
}

/// A chain with the credentials that it gave already, so that it is not asked twice for the first.
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

/// Says when the next renewal is due.
#[derive(Debug, Default)]
struct Pace {
    last: Mutex<Option<Instant>>,
}

impl Pace {
    /// Whether so much time passed that another may begin; if so, it begins now.
    fn is_due(&self) -> bool {
        let mut last = self.last.lock();
        let now = Instant::now();
        let due = last.is_none_or(|last| now.saturating_duration_since(last) >= INTERVAL);
        if due {
            *last = Some(now);
        }
        due
    }

    /// One begins now.
    fn note(&self) {
        *self.last.lock() = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn refusals_bring_one_renewal_in_each_interval() {
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
    async fn what_was_resolved_is_given_out_before_the_chain_is_asked_again() {
        let of = |key: &str| Credentials::new(key, "secret", None, None, "test");
        let resolved = Resolved::new(of("first"), SharedCredentialsProvider::new(of("later")));
        for expected in ["first", "later", "later"] {
            assert_eq!(resolved.provide_credentials().await.unwrap().access_key_id(), expected);
        }
    }
}
