//! Errors of the store: each variant says what the caller should do.

use std::sync::Arc;

use crate::metrics::StoreOutcome;

/// A cause, kept for the log.
pub type Source = Arc<dyn std::error::Error + Send + Sync>;

/// A cause that is only a message.
pub fn cause(message: impl Into<String>) -> Source {
    Source::from(Box::<dyn std::error::Error + Send + Sync>::from(message.into()))
}

/// Why a store request failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No object has that key. Definite.
    #[error("{key}: no such object")]
    NotFound {
        /// Key.
        key: String,
    },
    /// A condition did not hold (412); after a lost answer it may be the caller's own success: read and
    /// compare.
    #[error("{key}: the object stands in another version")]
    PreconditionFailed {
        /// Key.
        key: String,
    },
    /// The object ends before the range asked for, or the body before its announced length. Retry.
    #[error("{key}: body of {got} bytes, {wanted} expected")]
    Truncated {
        /// Key.
        key: String,
        /// Bytes expected.
        wanted: u64,
        /// Bytes received.
        got: u64,
    },
    /// The object, by its listing too, ends before the range asked for. Definite.
    #[error("{key}: the object has {size_bytes} bytes, fewer than the {wanted} that it must have")]
    CutShort {
        /// Key.
        key: String,
        /// Bytes that the object must have at least.
        wanted: u64,
        /// Size of the object in bytes.
        size_bytes: u64,
    },
    /// The store asks for less (429, 503 SlowDown). Retry after a pause.
    #[error("{key}: the store asks to slow down")]
    Throttled {
        /// Key.
        key: String,
        /// Cause.
        #[source]
        source: Source,
    },
    /// No answer in time: the effect of a PUT or DELETE is unknown. Retry the same bytes.
    #[error("{key}: no answer within {after_ms} ms")]
    Timeout {
        /// Key.
        key: String,
        /// Milliseconds waited.
        after_ms: u64,
    },
    /// Connection trouble, 409 or 5xx: the effect of a PUT or DELETE is unknown. Retry the same bytes.
    #[error("{key}: {source}")]
    Transient {
        /// Key.
        key: String,
        /// Cause.
        #[source]
        source: Source,
    },
    /// The service cannot be reached as it is configured: no such host, or a certificate that is not trusted.
    /// Nothing was sent, and an operator must act.
    #[error("{key}: {source}")]
    Unreachable {
        /// Key.
        key: String,
        /// Cause.
        #[source]
        source: Source,
    },
    /// Credentials or permissions (401, 403): an operator must act; retried since credentials may rotate.
    #[error("{key}: access denied: {source}")]
    Denied {
        /// Key.
        key: String,
        /// Cause.
        #[source]
        source: Source,
    },
    /// The object is larger than what is read whole. Definite. Read it in ranges.
    #[error("{key}: {size_bytes} bytes are more than are read at once")]
    TooLarge {
        /// Key.
        key: String,
        /// Bytes of the object.
        size_bytes: u64,
    },
    /// The request itself is wrong, or the bucket does not exist: an operator must act.
    #[error("{key}: {source}")]
    Rejected {
        /// Key.
        key: String,
        /// Cause.
        #[source]
        source: Source,
    },
}

impl Error {
    /// The key that the request was for.
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

    /// The outcome that metrics count it under.
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

    /// Whether the answer is the store's definite word on the state of the object: nothing to retry.
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

    /// Whether waiting alone cannot cure it: somebody must change permissions, the bucket or the
    /// configuration.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Denied { .. } | Self::Rejected { .. } | Self::Unreachable { .. })
    }

    /// Whether a PUT or DELETE that failed so may have taken effect.
    #[must_use]
    pub fn effect_unknown(&self) -> bool {
        matches!(self, Self::Truncated { .. } | Self::Timeout { .. } | Self::Transient { .. })
    }
}
