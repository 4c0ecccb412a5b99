//! What an error of S3 means for the caller.
//!
//! Owns the interpretation of statuses and error codes: no other file does that. It must not retry.
//! Invariant: only a complete answer that states its cause is definite. A bare 404 may come from a proxy and
//! not from the store. It is therefore never [`Error::NotFound`], which callers take for the end of a log.

use std::time::Duration;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::super::error::{Source, cause};
use super::super::{Condition, Error};
use super::connect::Service;
use super::unreached::{told, unreached};

/// The kind of request, as far as it affects the meaning of an error.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked<'a> {
    /// A GET of the whole object, or of this many bytes.
    Get(Option<u64>),
    /// A PUT under this condition.
    Put(&'a Condition),
    /// A DELETE of objects.
    Delete,
    /// A LIST of keys.
    List,
    /// A request about the bucket itself: whether it exists, or to create it.
    Bucket,
}

impl Asked<'_> {
    /// Returns the permissions that the request requires.
    fn permission(self) -> &'static str {
        match self {
            Self::Get(_) => {
                "s3:GetObject and s3:ListBucket (without s3:ListBucket, S3 also denies access to \
                 objects that do not exist)"
            }
            Self::Put(_) => "s3:PutObject",
            Self::Delete => "s3:DeleteObject",
            Self::List => "s3:ListBucket",
            Self::Bucket => "s3:ListBucket and, to create the bucket, s3:CreateBucket",
        }
    }
}

/// An error response of a store.
#[derive(Debug)]
struct Answer<'a> {
    status: u16,
    code: &'a str,
    message: String,
    /// The region of the bucket, if the response contains it.
    region: Option<&'a str>,
}

/// Converts an error of the SDK.
pub(super) fn failure<E>(
    key: &str,
    asked: Asked<'_>,
    error: &SdkError<E>,
    service: &Service,
    waited: Duration,
) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let status = error.raw_response().map(|response| response.status().as_u16());
    // A response that broke off does not count, whatever its status line says.
    let is_whole = !matches!(error, SdkError::ResponseError(_));
    if let Some(status) = status.filter(|_| is_whole) {
        let code = error.code().unwrap_or("");
        let message = match error.message() {
            Some(message) => message.to_owned(),
            None => chain(error),
        };
        let region = error.raw_response().and_then(|response| response.headers().get(REGION_HEADER));
        return judge(key, asked, &Answer { status, code, message, region });
    }
    let key = key.to_owned();
    match error {
        SdkError::TimeoutError(_) => timeout(&key, waited),
        SdkError::DispatchFailure(failure) => match failure.as_connector_error() {
            Some(error) if lacks_credentials(error) => {
                Error::Denied { key, source: cause(format!("{}{CREDENTIALS}", told(error))) }
            }
            // Only connecting has a timeout of its own, so nothing was sent.
            Some(_) if failure.is_timeout() => {
                let setting = "store.connect_timeout";
                let why = format!("cannot connect to {service} within {waited:.1?} ({setting})");
                Error::Transient { key, source: cause(why) }
            }
            Some(error) => unreached(&key, error, service),
            None => Error::Transient { key, source: cause(chain(error)) },
        },
        // Nothing was sent: the configuration is wrong (no region, or a malformed endpoint).
        SdkError::ConstructionFailure(_) => {
            Error::Rejected { key, source: cause(format!("{}; check {}", chain(error), service.setting)) }
        }
        _ => Error::Transient { key, source: cause(chain(error)) },
    }
}

/// Returns whether other credentials might be accepted. A wrong clock would invalidate them too.
pub(super) fn is_for_credentials(error: &Error, code: Option<&str>) -> bool {
    matches!(error, Error::Denied { .. }) && code != Some(SKEWED)
}

/// Added to errors about missing or wrong credentials.
const CREDENTIALS: &str = "; the AWS SDK takes the credentials from AWS_ACCESS_KEY_ID, a profile \
     (AWS_PROFILE), a web identity, or the role of a container or an instance";
/// Error code of a request whose timestamp differs too much from the clock of the store.
const SKEWED: &str = "RequestTimeTooSkewed";
/// Header in which S3 reports the region of a bucket.
const REGION_HEADER: &str = "x-amz-bucket-region";

/// Formats an error and its causes in one line.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut said: Vec<String> = causes.map(|error| error.to_string().replace(['\n', '\r'], " ")).collect();
    said.dedup();
    said.join(": ")
}

/// Creates the error of a request that got no answer in time.
pub(super) fn timeout(key: &str, waited: Duration) -> Error {
    Error::Timeout { key: key.to_owned(), after_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX) }
}

/// Converts the error of one key in the response to DeleteObjects. `None` if the object does not exist.
pub(super) fn delete_failure(key: &str, code: &str, message: &str) -> Option<Error> {
    let status = match code {
        "NoSuchKey" => return None,
        "AccessDenied" => 403,
        "SlowDown" => 503,
        _ => 500,
    };
    Some(judge(key, Asked::Delete, &Answer { status, code, message: message.to_owned(), region: None }))
}

/// Returns whether no credentials were found. The SDK indicates that only by the type of a cause, which it
/// does not export.
fn lacks_credentials(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
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
    let Answer { status, code, message, .. } = answer;
    let named = if code.is_empty() { "no code" } else { code };
    let source = |hint: &str| -> Source { cause(format!("{named} ({status}): {message}{hint}")) };
    match (status, *code, asked) {
        (_, "NoSuchBucket", _) => Error::Rejected {
            key,
            source: source("; create the bucket, or have Cairn create it (store.create_bucket)"),
        },
        (_, "SlowDown" | "TooManyRequests" | "ThrottlingException" | "RequestLimitExceeded", _) => {
            Error::Throttled { key, source: source("") }
        }
        (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired", _) | (401 | 403, _, _) => {
            Error::Denied { key, source: source(&denied(code, asked)) }
        }
        (404, "NoSuchKey", Asked::Get(_)) => Error::NotFound { key },
        (404, "NoSuchKey", Asked::Put(Condition::IfMatch(_))) | (412, _, _) => {
            Error::PreconditionFailed { key }
        }
        (416, _, Asked::Get(Some(wanted))) => Error::Truncated { key, wanted, got: 0 },
        (429 | 503, _, _) => Error::Throttled { key, source: source("") },
        // 409 means that a conditional PUT collided with another one. It had no effect, and may succeed now.
        (408 | 409, _, _) | (_, "RequestTimeout", _) => Error::Transient { key, source: source("") },
        (501, _, _) => Error::Rejected {
            key,
            source: source("; the store does not support this request, which Cairn needs"),
        },
        (301 | 307, _, _) | (_, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException", _) => {
            Error::Rejected { key, source: source(&elsewhere(answer)) }
        }
        (404, _, _) => Error::Rejected { key, source: source("; is the endpoint an S3 service?") },
        (300..=499, _, _) => Error::Rejected { key, source: source("") },
        _ => Error::Transient { key, source: source("") },
    }
}

/// Says what to check if access is denied.
fn denied(code: &str, asked: Asked<'_>) -> String {
    let permission = asked.permission();
    match code {
        SKEWED => "; the clock of this machine is wrong: correct it".to_owned(),
        "AccessDenied" | "AllAccessDisabled" => format!("; the credentials need {permission}"),
        "" | "Forbidden" | "Unauthorized" => format!("; the credentials need {permission}{CREDENTIALS}"),
        _ => CREDENTIALS.to_owned(),
    }
}

/// Says what to set if the bucket is in another region.
fn elsewhere(answer: &Answer<'_>) -> String {
    let region = answer.region.map_or_else(String::new, |region| format!(" to {region}"));
    format!("; the bucket is in another region: set store.region (AWS_REGION){region}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Label, StoreOutcome};
    use crate::store::ETag;

    fn outcome(status: u16, code: &str, asked: Asked<'_>) -> StoreOutcome {
        said(status, code, asked, None).outcome()
    }

    fn said(status: u16, code: &str, asked: Asked<'_>, region: Option<&str>) -> Error {
        judge("k", asked, &Answer { status, code, message: "said".into(), region })
    }

    #[test]
    fn a_response_becomes_the_right_error() {
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
            (403, "InvalidAccessKeyId", put, Is::Denied),
            (403, "SignatureDoesNotMatch", Asked::List, Is::Denied),
            (403, SKEWED, Asked::Delete, Is::Denied),
            (301, "PermanentRedirect", get, Is::Rejected),
            (400, "AuthorizationHeaderMalformed", Asked::Bucket, Is::Rejected),
            (400, "InvalidBucketName", Asked::List, Is::Rejected),
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
    fn permanent_failures_name_their_cause_and_what_to_change() {
        let (get, put) = (Asked::Get(None), Asked::Put(&Condition::IfAbsent));
        for (status, code, asked, parts) in [
            (403, "AccessDenied", get, ["s3:GetObject", "s3:ListBucket"]),
            (403, "AccessDenied", put, ["AccessDenied", "need s3:PutObject"]),
            (403, "AccessDenied", Asked::Delete, ["AccessDenied", "need s3:DeleteObject"]),
            (403, "AccessDenied", Asked::List, ["AccessDenied", "need s3:ListBucket"]),
            (403, "AccessDenied", Asked::Bucket, ["s3:ListBucket", "s3:CreateBucket"]),
            (403, "", Asked::Bucket, ["no code (403)", "AWS_ACCESS_KEY_ID"]),
            (403, "InvalidAccessKeyId", put, ["InvalidAccessKeyId (403)", "AWS_ACCESS_KEY_ID, a profile"]),
            (403, "SignatureDoesNotMatch", put, ["SignatureDoesNotMatch", "AWS_PROFILE"]),
            (400, "ExpiredToken", get, ["ExpiredToken", "AWS_PROFILE"]),
            (403, SKEWED, get, [SKEWED, "clock of this machine is wrong"]),
            (404, "NoSuchBucket", put, ["NoSuchBucket", "store.create_bucket"]),
            (
                301,
                "PermanentRedirect",
                get,
                ["PermanentRedirect", "set store.region (AWS_REGION) to eu-west-1"],
            ),
            (400, "AuthorizationHeaderMalformed", get, ["said", "store.region (AWS_REGION) to eu-west-1"]),
        ] {
            let error = said(status, code, asked, Some("eu-west-1"));
            assert!(error.is_refusal(), "{error}");
            for part in parts {
                assert!(error.to_string().contains(part), "no {part} in: {error}");
            }
        }
        let error = said(301, "", Asked::Bucket, None);
        assert!(error.to_string().ends_with("set store.region (AWS_REGION)"), "{error}");
    }

    #[test]
    fn refused_credentials_are_renewed_but_not_for_a_wrong_clock() {
        for (status, code, others) in [
            (403, "InvalidAccessKeyId", true),
            (403, "SignatureDoesNotMatch", true),
            (400, "ExpiredToken", true),
            (403, "AccessDenied", true),
            (403, "", true),
            (403, SKEWED, false),
            (404, "NoSuchBucket", false),
            (503, "SlowDown", false),
        ] {
            let error = said(status, code, Asked::Get(None), None);
            assert_eq!(is_for_credentials(&error, Some(code)), others, "{status} {code}");
        }
        let none = Error::Denied { key: "k".into(), source: cause("no credentials") };
        assert!(is_for_credentials(&none, None));
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
