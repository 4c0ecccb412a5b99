//! What an S3 error means for the caller: the one place where statuses and codes are judged.
//!
//! Invariant: only an answer that came whole and names its cause is definite. A bare 404 may be a proxy's word and not
//! the store's, so it is never [`Error::NotFound`], which callers take for the end of a log.

use std::time::Duration;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::super::error::{Source, cause};
use super::super::{Condition, Error};

/// What was asked, as far as it matters to the meaning of an error.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked<'a> {
    /// An object, or so many bytes of it.
    Get(Option<u64>),
    /// A PUT under this condition.
    Put(&'a Condition),
    /// Anything else.
    Other,
}

/// What a store said was wrong.
#[derive(Debug)]
struct Answer<'a> {
    status: u16,
    code: &'a str,
    message: String,
}

/// The error of a request that the SDK gave up.
pub(super) fn failure<E>(key: &str, asked: Asked<'_>, error: &SdkError<E>, waited: Duration) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let status = error.raw_response().map(|response| response.status().as_u16());
    // An answer that broke off is none, whatever its first line says.
    let is_whole = !matches!(error, SdkError::ResponseError(_));
    if let Some(status) = status.filter(|_| is_whole) {
        let code = error.code().unwrap_or("");
        let message = match error.message() {
            Some(message) => message.to_owned(),
            None => chain(error),
        };
        return judge(key, asked, &Answer { status, code, message });
    }
    let key = key.to_owned();
    let source = cause(chain(error));
    match error {
        SdkError::TimeoutError(_) => timeout(&key, waited),
        SdkError::DispatchFailure(failure) if failure.is_timeout() => timeout(&key, waited),
        SdkError::DispatchFailure(failure) if lacks_credentials(failure.as_connector_error()) => {
            Error::Denied { key, source }
        }
        // Nothing was sent: the configuration is wrong (no region, a malformed endpoint).
        SdkError::ConstructionFailure(_) => Error::Rejected { key, source },
        _ => Error::Transient { key, source },
    }
}

/// An error and its causes, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut said: Vec<String> = causes.map(|error| error.to_string().replace(['\n', '\r'], " ")).collect();
    said.dedup();
    said.join(": ")
}

/// No answer in time.
pub(super) fn timeout(key: &str, waited: Duration) -> Error {
    Error::Timeout { key: key.to_owned(), after_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX) }
}

/// The error of one key in the answer to DeleteObjects, or `None` if the object is gone.
pub(super) fn delete_failure(key: &str, code: &str, message: &str) -> Option<Error> {
    let status = match code {
        "NoSuchKey" => return None,
        "AccessDenied" => 403,
        "SlowDown" => 503,
        _ => 500,
    };
    Some(judge(key, Asked::Other, &Answer { status, code, message: message.to_owned() }))
}

/// The SDK says so only by the type of a cause, which it does not export.
fn lacks_credentials(error: Option<&(impl std::error::Error + 'static)>) -> bool {
    let mut next = error.map(|error| error as &(dyn std::error::Error + 'static));
    while let Some(error) = next {
        if error.to_string().contains("credential") {
            return true;
        }
        next = error.source();
    }
    false
}

fn judge(key: &str, asked: Asked<'_>, answer: &Answer<'_>) -> Error {
    let key = key.to_owned();
    let Answer { status, code, message } = answer;
    let named = if code.is_empty() { "no code" } else { code };
    let source = |hint: &str| -> Source { cause(format!("{named} ({status}): {message}{hint}")) };
    match (status, *code, asked) {
        (_, "NoSuchBucket", _) => {
            Error::Rejected { key, source: source("; create the bucket, or have Cairn create it") }
        }
        (_, "SlowDown" | "TooManyRequests" | "ThrottlingException" | "RequestLimitExceeded", _) => {
            Error::Throttled { key, source: source("") }
        }
        (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired", _) | (401 | 403, _, _) => {
            Error::Denied { key, source: source("") }
        }
        (404, "NoSuchKey", Asked::Get(_)) => Error::NotFound { key },
        (404, "NoSuchKey", Asked::Put(Condition::IfMatch(_))) | (412, _, _) => {
            Error::PreconditionFailed { key }
        }
        (416, _, Asked::Get(Some(wanted))) => Error::Truncated { key, wanted, got: 0 },
        (429 | 503, _, _) => Error::Throttled { key, source: source("") },
        // 409 is a conditional PUT that met another: it took no effect, and may now.
        (408 | 409, _, _) | (_, "RequestTimeout", _) => Error::Transient { key, source: source("") },
        (501, _, _) => Error::Rejected { key, source: source("; the store lacks what Cairn needs") },
        (301 | 307, _, _) => Error::Rejected { key, source: source("; the bucket is in another region") },
        (404, _, _) => Error::Rejected { key, source: source("; is the endpoint an S3 one?") },
        (300..=499, _, _) => Error::Rejected { key, source: source("") },
        _ => Error::Transient { key, source: source("") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Label, StoreOutcome};
    use crate::store::ETag;

    fn outcome(status: u16, code: &str, asked: Asked<'_>) -> StoreOutcome {
        judge("k", asked, &Answer { status, code, message: "said".into() }).outcome()
    }

    #[test]
    fn an_answer_means_what_the_caller_should_do() {
        use StoreOutcome as Is;
        let if_match = Condition::IfMatch(ETag("e".into()));
        let (get, put, update) = (Asked::Get(None), Asked::Put(&Condition::IfAbsent), Asked::Put(&if_match));
        for (status, code, asked, expected) in [
            (404, "NoSuchKey", get, Is::NotFound),
            (404, "", get, Is::Rejected),
            (404, "NoSuchBucket", get, Is::Rejected),
            (404, "NoSuchBucket", update, Is::Rejected),
            (404, "NoSuchKey", update, Is::PreconditionFailed),
            (404, "NoSuchKey", put, Is::Rejected),
            (412, "PreconditionFailed", put, Is::PreconditionFailed),
            (412, "", update, Is::PreconditionFailed),
            (409, "ConditionalRequestConflict", put, Is::Transient),
            (416, "InvalidRange", Asked::Get(Some(7)), Is::Truncated),
            (403, "AccessDenied", get, Is::Denied),
            (403, "", put, Is::Denied),
            (401, "Unauthorized", put, Is::Denied),
            (400, "ExpiredToken", put, Is::Denied),
            (400, "RequestTimeout", put, Is::Transient),
            (400, "InvalidArgument", put, Is::Rejected),
            (301, "PermanentRedirect", get, Is::Rejected),
            (429, "", put, Is::Throttled),
            (503, "SlowDown", put, Is::Throttled),
            (503, "ServiceUnavailable", put, Is::Throttled),
            (500, "InternalError", put, Is::Transient),
            (502, "", get, Is::Transient),
            (501, "NotImplemented", put, Is::Rejected),
            (507, "XMinioStorageFull", put, Is::Transient),
            (200, "", get, Is::Transient),
        ] {
            assert_eq!(outcome(status, code, asked), expected, "{status} {code} {asked:?}");
            assert!(Is::ALL.contains(&expected));
        }
    }

    #[test]
    fn an_error_of_one_deleted_key() {
        assert!(delete_failure("k", "NoSuchKey", "").is_none());
        for (code, expected) in [
            ("AccessDenied", StoreOutcome::Denied),
            ("SlowDown", StoreOutcome::Throttled),
            ("InternalError", StoreOutcome::Transient),
        ] {
            let error = delete_failure("k", code, "said").unwrap();
            assert_eq!(error.outcome(), expected);
            assert!(error.to_string().starts_with("k: "), "{error}");
        }
    }
}
