//! A store in an S3 bucket, through the AWS SDK with its retries off.
//!
//! Knows nothing of what is stored. Bodies are held whole in memory, both ways, and the length of what
//! arrives is checked. [`connect`] finds the service, [`credentials`] change while it is used, [`failure`]
//! says what an error means. Invariant: an answer is given only for what the store said in full.

mod connect;
mod credentials;
pub mod endpoint;
mod failure;
mod trust;
mod unreached;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Credentials, Intercept, RuntimeComponents};
use aws_sdk_s3::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration, Delete, ObjectIdentifier};
use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::error::cause;
use super::{
    ByteRange, Condition, ETag, Entry, Error, ListFrom, Listing, MAX_WHOLE_BYTES, MAXIMUM_DELETE_KEYS,
    Object, PageToken, Store, key,
};
use connect::{Connection, PLAIN_REGION, Service};
use credentials::Clients;
use failure::{Asked, delete_failure, failure, is_for_credentials, timeout};

/// How to reach the bucket. What is `None` comes from the SDK's standard chain (environment, profile,
/// instance).
#[derive(Clone, Debug)]
pub struct S3Options {
    /// URL of the service.
    pub endpoint: Option<String>,
    /// Region.
    pub region: Option<String>,
    /// Credentials.
    pub credentials: Option<Credentials>,
    /// Name the bucket in the path and not in the host's name, as MinIO needs it.
    pub path_style: bool,
    /// Make the bucket where it is absent.
    pub create_bucket: bool,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time for one attempt, without that for its body.
    pub request_timeout: Duration,
    /// Slowest rate at which a body may move: what an attempt's time grows with.
    pub minimum_bytes_per_second: u64,
    /// Time for which a body may stand still.
    pub stall_timeout: Duration,
}

impl Default for S3Options {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            credentials: None,
            path_style: false,
            create_bucket: false,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            minimum_bytes_per_second: 1 << 20,
            stall_timeout: Duration::from_secs(5),
        }
    }
}

/// A store in an S3 bucket, below a prefix.
pub struct S3Store {
    clients: Clients,
    service: Service,
    bucket: String,
    /// Empty, or ends with `/`.
    prefix: String,
    options: S3Options,
    transport: Transport,
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bucket, prefix, options, .. } = self;
        let mut debug = f.debug_struct("S3Store");
        debug
            .field("bucket", bucket)
            .field("prefix", prefix)
            .field("options", options)
            .finish_non_exhaustive()
    }
}

/// Notes whether requests go over TLS, which then protects a body in the place of its SHA-256 in the
/// signature (most of the cost of a PUT). The endpoint may come from many places, so it is read off the
/// requests; the first is signed.
#[derive(Clone, Debug, Default)]
struct Transport {
    tls: Arc<AtomicBool>,
}

impl Transport {
    fn note(&self, uri: &str) {
        self.tls.store(uri.starts_with("https:"), Ordering::Relaxed);
    }

    fn protects(&self) -> bool {
        self.tls.load(Ordering::Relaxed)
    }
}

impl Intercept for Transport {
    fn name(&self) -> &'static str {
        "Transport"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.note(context.request().uri());
        Ok(())
    }
}

impl S3Store {
    /// Prepares requests to `bucket`, whose keys all begin with `prefix` and a `/`, unless it is empty. Sends
    /// none, but to make the bucket where that is asked for.
    ///
    /// # Errors
    /// Of a configuration that cannot work, and of making the bucket.
    pub async fn open(bucket: &str, prefix: &str, options: S3Options) -> Result<Self, Error> {
        let transport = Transport::default();
        let rejected = |why| Error::Rejected { key: format!("s3://{bucket}"), source: cause(why) };
        let connection = Box::pin(Connection::of(&options)).await.map_err(rejected)?;
        let client = Box::pin(connection.client(&transport)).await;
        let service = connection.service();
        // What was given cannot be resolved again.
        let connection = options.credentials.is_none().then_some(connection);
        let clients = Clients::new(client, connection, options.request_timeout);
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let store = Self { clients, service, bucket: bucket.to_owned(), prefix, options, transport };
        if store.options.create_bucket {
            store.create_bucket().await?;
        }
        Ok(store)
    }

    /// The service: its URL, or which of Amazon's it is.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service.name
    }

    /// The same with the setting that decides it, as errors name it.
    #[must_use]
    pub fn service_and_setting(&self) -> String {
        self.service.to_string()
    }

    /// Resolves the credentials again, as an operator may ask after replacing them. Those that were given to
    /// [`S3Store::open`] stay. Where none resolve, those in use do.
    pub async fn renew_credentials(&self) {
        Box::pin(self.clients.told()).await;
    }

    /// The client with the credentials in force; a request keeps the one that it began with.
    fn client(&self) -> Arc<Client> {
        Arc::clone(&self.clients.current())
    }

    async fn create_bucket(&self) -> Result<(), Error> {
        let name = format!("s3://{}", self.bucket);
        // Asked first, since whoever may use a bucket need not be allowed to make one.
        let head = self.client().head_bucket().bucket(&self.bucket).send();
        let missing = self.within(&name, Asked::Bucket, 0, head).await;
        if !matches!(&missing, Err(Failed { status: Some(404), .. })) {
            return missing.map(drop).map_err(Failed::into_error);
        }
        let region = self.client().config().region().map(ToString::to_string);
        let place = region.filter(|region| region != PLAIN_REGION).map(|region| {
            CreateBucketConfiguration::builder()
                .location_constraint(BucketLocationConstraint::from(region.as_str()))
                .build()
        });
        let create =
            self.client().create_bucket().bucket(&self.bucket).set_create_bucket_configuration(place).send();
        match self.within(&name, Asked::Bucket, 0, create).await {
            Err(failed) if failed.code.as_deref() != Some("BucketAlreadyOwnedByYou") => {
                Err(failed.into_error())
            }
            _ => {
                tracing::info!(bucket = self.bucket, "bucket made");
                Ok(())
            }
        }
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The time that an attempt with a body of so many bytes may take.
    fn patience(&self, body_bytes: u64) -> Duration {
        let moving = body_bytes / self.options.minimum_bytes_per_second.max(1);
        self.options.request_timeout.saturating_add(Duration::from_secs(moving))
    }

    /// Waits for the answer to a request, no longer than its body's size allows.
    async fn within<T, E>(
        &self,
        key: &str,
        asked: Asked<'_>,
        body_bytes: u64,
        request: impl Future<Output = Result<T, SdkError<E>>>,
    ) -> Result<T, Failed>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let begun = Instant::now();
        let patience = self.patience(body_bytes);
        // The futures of the SDK are large.
        match tokio::time::timeout(patience, Box::pin(request)).await {
            Err(_) => Err(Failed { status: None, code: None, error: timeout(key, patience) }),
            Ok(Ok(answer)) => {
                self.clients.accept();
                Ok(answer)
            }
            Ok(Err(error)) => {
                let judged = failure(key, asked, &error, &self.service, begun.elapsed());
                Err(Failed {
                    status: error.raw_response().map(|response| response.status().as_u16()),
                    code: error.code().map(str::to_owned),
                    error: self.noted(judged, error.code()).await,
                })
            }
        }
    }

    /// Has other credentials resolved where these were refused; whoever repeats the request then sends it
    /// with them.
    async fn noted(&self, error: Error, code: Option<&str>) -> Error {
        if is_for_credentials(&error, code) {
            // The futures of the SDK are large.
            Box::pin(self.clients.refused()).await;
        }
        error
    }

    /// Reads a body of exactly `wanted` bytes.
    async fn collect(&self, key: &str, mut body: ByteStream, wanted: u64) -> Result<Bytes, Error> {
        let truncated = |got: usize| Error::Truncated {
            key: key.to_owned(),
            wanted,
            got: u64::try_from(got).expect("a length fits in 64 bits"),
        };
        let capacity = usize::try_from(wanted).map_err(|_| truncated(0))?;
        let mut collected = BytesMut::with_capacity(capacity);
        loop {
            let next = tokio::time::timeout(self.options.stall_timeout, body.try_next()).await;
            match next.map_err(|_| timeout(key, self.options.stall_timeout))? {
                Ok(Some(part)) if part.len() > capacity - collected.len() => {
                    let source = cause("the body is longer than announced");
                    return Err(Error::Transient { key: key.to_owned(), source });
                }
                Ok(Some(part)) => collected.extend_from_slice(&part),
                Ok(None) if collected.len() == capacity => return Ok(collected.freeze()),
                Ok(None) => return Err(truncated(collected.len())),
                Err(error) if collected.len() < capacity => {
                    tracing::debug!(key, %error, "the body broke off");
                    return Err(truncated(collected.len()));
                }
                // All of it came, and its checksum is wrong.
                Err(error) => return Err(Error::Transient { key: key.to_owned(), source: Arc::new(error) }),
            }
        }
    }

    async fn delete_some(&self, keys: &[String]) -> Result<(), Error> {
        let Some(first) = keys.first() else { return Ok(()) };
        let rejected = |error: aws_sdk_s3::error::BuildError| Error::Rejected {
            key: first.clone(),
            source: Arc::new(error),
        };
        let mut delete = Delete::builder().quiet(true);
        for key in keys {
            delete =
                delete.objects(ObjectIdentifier::builder().key(self.full(key)).build().map_err(rejected)?);
        }
        let delete = delete.build().map_err(rejected)?;
        let request = self.client().delete_objects().bucket(&self.bucket).delete(delete).send();
        let answer = self.within(first, Asked::Delete, 0, request).await.map_err(Failed::into_error)?;
        for error in answer.errors() {
            let key = error.key().and_then(|key| key.strip_prefix(&self.prefix)).unwrap_or(first);
            let code = error.code().unwrap_or("");
            if let Some(failure) = delete_failure(key, code, error.message().unwrap_or("")) {
                return Err(self.noted(failure, Some(code)).await);
            }
        }
        Ok(())
    }

    /// One page of raw keys, which may hold some that are no keys of ours, and whether more follow.
    /// Whether the bucket is one of S3 Express One Zone. Those list in no order, cannot begin behind a key,
    /// and take no prefix but one that ends in `/`.
    fn is_directory_bucket(&self) -> bool {
        self.bucket.ends_with("--x-s3")
    }
}

/// A failed request, with what some callers look at themselves.
struct Failed {
    status: Option<u16>,
    code: Option<String>,
    error: Error,
}

impl Failed {
    fn into_error(self) -> Error {
        self.error
    }
}

/// The offset that `Content-Range: bytes <first>-<last>/<size>` begins with.
fn range_start(header: &str) -> Option<u64> {
    header.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

#[async_trait]
impl Store for S3Store {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        key::check(key)?;
        let (header, bounded) = match range {
            ByteRange::Full => (None, None),
            ByteRange::Bounded { offset, length } => {
                let last = length.checked_sub(1).and_then(|length| offset.checked_add(length));
                let truncated = || Error::Truncated { key: key.to_owned(), wanted: length, got: 0 };
                (Some(format!("bytes={offset}-{}", last.ok_or_else(truncated)?)), Some((offset, length)))
            }
        };
        let asked = Asked::Get(bounded.map(|(_, length)| length));
        let request =
            self.client().get_object().bucket(&self.bucket).key(self.full(key)).set_range(header).send();
        let answer = self.within(key, asked, 0, request).await.map_err(Failed::into_error)?;
        let rejected = |why: &str| Error::Rejected { key: key.to_owned(), source: cause(why) };
        let announced = answer.content_length().and_then(|length| u64::try_from(length).ok());
        let announced = announced.ok_or_else(|| rejected("an answer without Content-Length"))?;
        if let Some((offset, length)) = bounded {
            if answer.content_range().and_then(range_start) != Some(offset) {
                return Err(rejected("the store does not heed Range"));
            }
            if announced < length {
                return Err(Error::Truncated { key: key.to_owned(), wanted: length, got: announced });
            }
            if announced > length {
                return Err(rejected("the store answers with more than the range asked for"));
            }
        }
        if bounded.is_none() && announced > MAX_WHOLE_BYTES {
            return Err(Error::TooLarge { key: key.to_owned(), size_bytes: announced });
        }
        let etag = ETag(answer.e_tag().ok_or_else(|| rejected("an answer without ETag"))?.into());
        let patience = self.patience(announced);
        let body = tokio::time::timeout(patience, self.collect(key, answer.body, announced)).await;
        Ok(Object { body: body.map_err(|_| timeout(key, patience))??, etag })
    }

    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        key::check(key)?;
        let length = u64::try_from(body.len()).expect("a length fits in 64 bits");
        let request = self.client().put_object().bucket(&self.bucket).key(self.full(key));
        let request = match &condition {
            Condition::Always => request,
            Condition::IfAbsent => request.if_none_match("*"),
            Condition::IfMatch(etag) => request.if_match(&*etag.0),
        };
        let request = request.body(ByteStream::from(body)).customize();
        let request = if self.transport.protects() { request.disable_payload_signing() } else { request };
        let asked = Asked::Put(&condition);
        let answer = self.within(key, asked, length, request.send()).await.map_err(Failed::into_error)?;
        let without = || Error::Rejected { key: key.to_owned(), source: cause("an answer without ETag") };
        Ok(ETag(answer.e_tag().ok_or_else(without)?.into()))
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        keys.iter().try_for_each(|key| key::check(key))?;
        for some in keys.chunks(MAXIMUM_DELETE_KEYS) {
            self.delete_some(some).await?;
        }
        Ok(())
    }

    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        key::check_prefix(prefix)?;
        let mut asked = self.full(prefix);
        let (mut after, mut token) = (None, None);
        match from {
            ListFrom::Start => {}
            ListFrom::After(key) => after = Some(self.full(key)),
            ListFrom::Page(PageToken(page)) => token = Some(page.to_string()),
        }
        if self.is_directory_bucket() {
            after = None;
            asked.truncate(asked.rfind('/').map_or(0, |last| last + 1));
        }
        let request = self.client().list_objects_v2().bucket(&self.bucket).prefix(asked);
        let request = request.set_start_after(after).set_continuation_token(token).send();
        let page = self.within(prefix, Asked::List, 0, request).await.map_err(Failed::into_error)?;
        let malformed = |what: &str| Error::Transient { key: prefix.to_owned(), source: cause(what) };
        let mut entries = Vec::with_capacity(page.contents().len());
        for object in page.contents() {
            let full = object.key().ok_or_else(|| malformed("a listing without a key"))?;
            let size = object.size().and_then(|size| u64::try_from(size).ok());
            let size_bytes = size.ok_or_else(|| malformed("a listing without a size"))?;
            // What others put into the bucket is not ours to see.
            if let Some(key) = full.strip_prefix(&self.prefix)
                && key.starts_with(prefix)
                && key::check(key).is_ok()
            {
                entries.push(Entry { key: key.to_owned(), size_bytes });
            }
        }
        let next = page.next_continuation_token().filter(|_| page.is_truncated().unwrap_or(false));
        if page.is_truncated().unwrap_or(false) && next.is_none() {
            return Err(malformed("a listing that goes on and does not say where"));
        }
        Ok(Listing { next: next.map(|token| PageToken(token.into())), entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_go_unsigned_only_once_requests_are_seen_to_go_over_tls() {
        let transport = Transport::default();
        assert!(!transport.protects());
        transport.note("https://disks.s3.eu-central-1.amazonaws.com/a");
        assert!(transport.protects());
        transport.note("http://127.0.0.1:9000/disks/a");
        assert!(!transport.protects());
    }

    #[test]
    fn the_start_of_a_content_range() {
        assert_eq!(range_start("bytes 21010-47021/47022"), Some(21010));
        assert_eq!(range_start("bytes 0-0/*"), Some(0));
        for other in ["", "bytes */47022", "items 0-1/2", "bytes -1-2/3"] {
            assert_eq!(range_start(other), None);
        }
    }
}
