//! The URL of an S3 service other than Amazon's, as a person wrote it.
//!
//! Owns the syntax of these URLs, and must not connect. Invariant: with the URL that [`parse`] returns, the
//! SDK finds the bucket, also if the URL has a path.

use std::fmt;

use url::Url;

/// A configured endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// The URL, in the form that the SDK expects.
    pub(super) url: String,
    /// The setting or variable that contains it.
    pub(super) setting: &'static str,
}

/// Why a text is not an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct EndpointError {
    /// The text, without the part that may be a secret.
    shown: String,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    NoScheme,
    OtherScheme,
    NoUrl,
    Credentials,
    Query,
}

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shown, fault } = self;
        write!(f, "the endpoint {shown:?} ")?;
        match fault {
            Fault::NoScheme => write!(f, "has no scheme: write http://{shown} or https://{shown}"),
            Fault::OtherScheme => f.write_str("begins with neither http:// nor https://"),
            Fault::NoUrl => f.write_str("is not a URL such as https://HOST:PORT"),
            Fault::Credentials => {
                f.write_str("contains a user before the @: credentials are separate settings")
            }
            Fault::Query => f.write_str("must not contain a query or a fragment"),
        }
    }
}

/// Parses an endpoint into the form that the SDK expects. Without a path, the result has no trailing `/`.
/// With a path it has one, because the SDK appends the bucket to the path as it is.
pub fn parse(text: &str) -> Result<String, EndpointError> {
    let text = text.trim();
    // The text before an `@` may contain a secret.
    let shown = text.rsplit_once('@').map_or(text, |(_, shown)| shown);
    let fail = |fault| Err(EndpointError { shown: shown.to_owned(), fault });
    match text.split_once("://") {
        None => return fail(Fault::NoScheme),
        Some((scheme, _)) if !["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()) => {
            return fail(Fault::OtherScheme);
        }
        Some(_) => {}
    }
    let Ok(mut url) = Url::parse(text) else { return fail(Fault::NoUrl) };
    if !url.has_host() {
        return fail(Fault::NoUrl);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return fail(Fault::Credentials);
    }
    if url.query().is_some() || url.fragment().is_some() {
        return fail(Fault::Query);
    }
    let path = url.path().trim_end_matches('/').to_owned();
    if path.is_empty() {
        return Ok(url.as_str().trim_end_matches('/').to_owned());
    }
    url.set_path(&format!("{path}/"));
    Ok(url.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_ends_with_a_slash_and_a_host_alone_does_not() {
        for (written, taken) in [
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
            ("http://127.0.0.1:9000/", "http://127.0.0.1:9000"),
            (" https://s3.example.com\n", "https://s3.example.com"),
            ("HTTPS://S3.example.com", "https://s3.example.com"),
            ("http://[::1]:9000", "http://[::1]:9000"),
            ("https://example.com/storage/v1/s3", "https://example.com/storage/v1/s3/"),
            ("https://example.com/storage/v1/s3//", "https://example.com/storage/v1/s3/"),
        ] {
            assert_eq!(parse(written).as_deref(), Ok(taken), "{written}");
        }
    }

    #[test]
    fn an_invalid_endpoint_is_reported_with_what_to_write() {
        for (written, told) in [
            ("minio:9000", "write http://minio:9000 or https://minio:9000"),
            ("minio", "write http://minio or"),
            ("s3.example.com/path", "has no scheme"),
            ("", "has no scheme"),
            ("ftp://minio", "neither http:// nor https://"),
            ("s3://disks", "neither http:// nor https://"),
            ("http://", "is not a URL"),
            ("http://mi nio", "is not a URL"),
            ("http://minio:99999", "is not a URL"),
            ("http://user:secret@minio", "credentials are separate settings"),
            ("http://minio/?x=1", "query"),
        ] {
            let message = parse(written).unwrap_err().to_string();
            assert!(message.contains(told) && !message.contains("secret"), "{written}: {message}");
        }
    }
}
