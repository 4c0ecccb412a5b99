//! The errors of the store.
//!
//! Owns what a failed request means to the caller, and must not know any backend. Invariant: each variant
//! tells the caller what to do next.

use std::sync::Arc;

use crate::metrics::StoreOutcome;

/// The cause of an error, kept for the log.
pub type Source = Arc<dyn std::error::Error + Send + Sync>;

/// Wraps a message as a cause.
pub fn cause(message: impl Into<String>) -> Source {
    Source::from(Box::<dyn std::error::Error + Send + Sync>::from(message.into()))
}

/// Why a store request failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No object has this key. The answer is definite.
    #[error("{key}: no such object")]
    NotFound {
        /// The key that was requested.
        key: String,
    },
    /// A condition did not hold (412). If an earlier answer was lost, this may be the caller's own success:
    /// read the object and compare.
    #[error("{key}: the object has a different version")]
    PreconditionFailed {
        /// The key of the PUT.
        key: String,
    },
    /// The object ends before the requested range, or the body before its announced length. Retry.
    #[error("{key}: received {got} bytes, expected {wanted}")]
    Truncated {
        /// The key that was requested.
        key: String,
        /// Number of bytes expected.
        wanted: u64,
        /// Number of bytes received.
        got: u64,
    },
    /// The object ends before the requested range, and the listing confirms its size. The answer is definite.
    #[error("{key}: the object has {size_bytes} bytes, but must have at least {wanted}")]
    CutShort {
        /// The key that was requested.
        key: String,
        /// Least size in bytes that the request requires of the object.
        wanted: u64,
        /// Size of the object in bytes.
        size_bytes: u64,
    },
    /// The store asks for fewer requests (429, 503 SlowDown). Retry after a pause.
    #[error("{key}: the store throttles requests")]
    Throttled {
        /// The key that was requested.
        key: String,
        /// The answer of the store.
        #[source]
        source: Source,
    },
    /// No answer arrived in time. The effect of a PUT or DELETE is unknown. Retry with the same bytes.
    #[error("{key}: no answer within {after_ms} ms")]
    Timeout {
        /// The key that was requested.
        key: String,
        /// How long the request waited, in milliseconds.
        after_ms: u64,
    },
    /// The connection failed, or the store answered 409 or 5xx. The effect of a PUT or DELETE is unknown.
    /// Retry with the same bytes.
    #[error("{key}: {source}")]
    Transient {
        /// The key that was requested.
        key: String,
        /// The failure, or the answer of the store.
        #[source]
        source: Source,
    },
    /// The service cannot be reached as configured: the host does not exist, or its certificate is not
    /// trusted. Nothing was sent. An operator must act.
    #[error("{key}: {source}")]
    Unreachable {
        /// The key that was requested.
        key: String,
        /// The failure, and the setting to check.
        #[source]
        source: Source,
    },
    /// The credentials or permissions do not suffice (401, 403). An operator must act. Retried all the same,
    /// because credentials may rotate.
    #[error("{key}: access denied: {source}")]
    Denied {
        /// The key that was requested.
        key: String,
        /// The answer of the store, and the permission to check.
        #[source]
        source: Source,
    },
    /// The object exceeds the size limit of a full read. The answer is definite. Read the object in ranges.
    #[error("{key}: the object has {size_bytes} bytes, too many to read at once")]
    TooLarge {
        /// The key that was requested.
        key: String,
        /// Size of the object in bytes.
        size_bytes: u64,
    },
    /// The request itself is invalid, or the bucket does not exist. An operator must act.
    #[error("{key}: {source}")]
    Rejected {
        /// The key that was requested.
        key: String,
        /// The answer of the store.
        #[source]
        source: Source,
    },
}

impl Error {
    /// Returns the key that was requested; for a LIST, the prefix.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::NotFound { key }
            | Self::PreconditionFailed { key }
            | Self::Truncated { key, .. }
            | Self::CutShort { key, .. }
            | Self::Throttled { key, .. }
            | Self::Timeout { key, .. }
            | Self::Transient { key, .. }
            | Self::Unreachable { key, .. }
            | Self::Denied { key, .. }
            | Self::TooLarge { key, .. }
            | Self::Rejected { key, .. } => key,
        }
    }

    /// Returns the outcome under which metrics count this error.
    #[must_use]
    pub fn outcome(&self) -> StoreOutcome {
        match self {
            Self::NotFound { .. } => StoreOutcome::NotFound,
            Self::PreconditionFailed { .. } => StoreOutcome::PreconditionFailed,
            Self::Truncated { .. } | Self::CutShort { .. } => StoreOutcome::Truncated,
            Self::Throttled { .. } => StoreOutcome::Throttled,
            Self::Timeout { .. } => StoreOutcome::Timeout,
            Self::Transient { .. } | Self::Unreachable { .. } => StoreOutcome::Transient,
            Self::Denied { .. } => StoreOutcome::Denied,
            Self::TooLarge { .. } | Self::Rejected { .. } => StoreOutcome::Rejected,
        }
    }

    /// Returns whether the answer settles the state of the object, so that a retry is pointless.
    #[must_use]
    pub fn is_definite(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. }
                | Self::PreconditionFailed { .. }
                | Self::CutShort { .. }
                | Self::TooLarge { .. }
        )
    }

    /// Returns whether waiting alone cannot help: somebody must change permissions, the bucket or the
    /// configuration.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Denied { .. } | Self::Rejected { .. } | Self::Unreachable { .. })
    }

    /// Returns whether a PUT or DELETE that failed with this error may have taken effect.
    #[must_use]
    pub fn effect_unknown(&self) -> bool {
        matches!(self, Self::Truncated { .. } | Self::Timeout { .. } | Self::Transient { .. })
    }
}
