//! A store in an S3 bucket. It uses the AWS SDK with its retries disabled.
//!
//! Owns the requests to the bucket, and must not know what is stored. Bodies are held whole in memory, and
//! the length of a received body is checked. `connect` finds the service, `credentials` replaces credentials
//! at run time, and `failure` interprets errors. Invariant: a result is returned only if the store sent it
//! completely.

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
use bytes::Bytes;
use tokio::time::Instant;
use url::{Host, Url};

use super::error::cause;
use super::{
    ByteRange, Condition, ETag, Entry, Error, ListFrom, Listing, MAX_WHOLE_BYTES, MAXIMUM_DELETE_KEYS,
    Object, PageToken, Store, key,
};
use crate::buffers::Buffers;
use connect::{Connection, PLAIN_REGION, Service};
use credentials::Clients;
use failure::{Asked, delete_failure, failure, is_for_credentials, timeout};

/// Limit on the memory of idle buffers. A sequential reader has several bodies of the default `cache.fetch`
/// in flight, of 4 MiB and their tags, and their number varies.
const IDLE_BYTES: usize = 26 << 20;

/// How to reach the bucket. A `None` leaves the choice to the SDK's standard chain (environment, profile,
/// instance).
#[derive(Clone, Debug)]
pub struct S3Options {
    /// URL of the service. See [`endpoint::parse`].
    pub endpoint: Option<String>,
    /// Region of the bucket.
    pub region: Option<String>,
    /// Credentials to use. They are never renewed.
    pub credentials: Option<Credentials>,
    /// Put the bucket name in the path instead of the host name. MinIO needs this.
    pub path_style: bool,
    /// Whether the signatures of PUTs cover their bodies.
    pub sign_body: SignBody,
    /// Create the bucket if it does not exist.
    pub create_bucket: bool,
    /// Time limit for establishing a connection.
    pub connect_timeout: Duration,
    /// Time limit for one attempt, not counting the transfer of its body.
    pub request_timeout: Duration,
    /// Lowest acceptable transfer rate of a body, in bytes per second. The time limit of an attempt grows
    /// with the size of its body at this rate.
    pub minimum_bytes_per_second: u64,
    /// How long the transfer of a body may stall.
    pub stall_timeout: Duration,
}

impl Default for S3Options {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            credentials: None,
            path_style: false,
            sign_body: SignBody::default(),
            create_bucket: false,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            minimum_bytes_per_second: 1 << 20,
            stall_timeout: Duration::from_secs(5),
        }
    }
}

/// Whether the signature of a PUT covers its body. That takes a SHA-256 of the body, which is a sixth of the
/// gateway's work when a disk is written. All PUTs carry a CRC-32 of the body, which the service checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SignBody {
    /// Only if somebody else could change the body on its way: not over TLS, nor to the same machine.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never. Whoever can change the traffic can then change what is stored.
    Never,
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
    /// Buffers of received bodies.
    buffers: Arc<Buffers>,
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

/// Notes whether nobody else can change a body on its way: requests use TLS, or do not leave the machine. The
/// endpoint can come from many sources, so this looks at the requests themselves; the body of the first
/// request is signed.
#[derive(Clone, Debug, Default)]
struct Transport {
    is_safe: Arc<AtomicBool>,
}

impl Transport {
    fn note(&self, uri: &str) {
        self.is_safe.store(uri.starts_with("https:") || is_loopback(uri), Ordering::Relaxed);
    }

    fn protects(&self) -> bool {
        self.is_safe.load(Ordering::Relaxed)
    }
}

/// Whether requests to a URL do not leave the machine. A host name other than `localhost` may change what it
/// stands for.
fn is_loopback(uri: &str) -> bool {
    match uri.parse::<Url>().ok().as_ref().and_then(Url::host) {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
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
    /// Prepares requests to `bucket`. All keys begin with `prefix` and a `/`, unless the prefix is empty.
    /// Sends no request, except to create the bucket if the options say so.
    ///
    /// # Errors
    /// If the configuration cannot work, or if the bucket cannot be created.
    pub async fn open(bucket: &str, prefix: &str, options: S3Options) -> Result<Self, Error> {
        let transport = Transport::default();
        let rejected = |why| Error::Rejected { key: format!("s3://{bucket}"), source: cause(why) };
        let connection = Box::pin(Connection::of(&options)).await.map_err(rejected)?;
        let client = Box::pin(connection.client(&transport)).await;
        let service = connection.service();
        // Credentials that the caller supplied cannot be resolved again.
        let connection = options.credentials.is_none().then_some(connection);
        let clients = Clients::new(client, connection, options.request_timeout);
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let (bucket, buffers) = (bucket.to_owned(), Buffers::new(IDLE_BYTES));
        let store = Self { clients, service, bucket, prefix, options, transport, buffers };
        if store.options.create_bucket {
            store.create_bucket().await?;
        }
        Ok(store)
    }

    /// Returns the service: its URL, or the region of Amazon S3.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service.name
    }

    /// Returns the service and the setting that determines it, as errors show them.
    #[must_use]
    pub fn service_and_setting(&self) -> String {
        self.service.to_string()
    }

    /// Resolves the credentials again, for example because an operator has replaced them. Credentials that
    /// were passed to [`S3Store::open`] stay, and so do the current ones if no new ones can be resolved.
    pub async fn renew_credentials(&self) {
        Box::pin(self.clients.told()).await;
    }

    /// Returns the client with the current credentials. A request keeps the client with which it started.
    fn client(&self) -> Arc<Client> {
        Arc::clone(&self.clients.current())
    }

    async fn create_bucket(&self) -> Result<(), Error> {
        let name = format!("s3://{}", self.bucket);
        // Check first, because whoever may use a bucket may not be allowed to create one.
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
                tracing::info!(bucket = self.bucket, "created the bucket");
                Ok(())
            }
        }
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Returns how long an attempt with a body of this many bytes may take.
    fn patience(&self, body_bytes: u64) -> Duration {
        let moving = body_bytes / self.options.minimum_bytes_per_second.max(1);
        self.options.request_timeout.saturating_add(Duration::from_secs(moving))
    }

    /// Waits for the response to a request, within the time limit for the size of its body.
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
        // The futures of the SDK are large, so they are boxed.
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

    /// Renews the credentials if the error is a refusal of the current ones. A retry of the request then uses
    /// the new ones.
    async fn noted(&self, error: Error, code: Option<&str>) -> Error {
        if is_for_credentials(&error, code) {
            // The futures of the SDK are large, so they are boxed.
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
        let mut collected = self.buffers.take(capacity);
        loop {
            let next = tokio::time::timeout(self.options.stall_timeout, body.try_next()).await;
            match next.map_err(|_| timeout(key, self.options.stall_timeout))? {
                Ok(Some(part)) if part.len() > capacity - collected.len() => {
                    let source = cause("the body is longer than its Content-Length");
                    return Err(Error::Transient { key: key.to_owned(), source });
                }
                Ok(Some(part)) => collected.extend_from_slice(&part),
                Ok(None) if collected.len() == capacity => return Ok(self.buffers.lend(collected)),
                Ok(None) => return Err(truncated(collected.len())),
                Err(error) if collected.len() < capacity => {
                    tracing::debug!(key, %error, "the body ended early");
                    return Err(truncated(collected.len()));
                }
                // All bytes have arrived, but the checksum is wrong.
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

    /// Returns whether the bucket is a directory bucket (S3 Express One Zone). Such a bucket lists keys in no
    /// order, cannot start after a key, and only accepts prefixes that end in `/`.
    fn is_directory_bucket(&self) -> bool {
        self.bucket.ends_with("--x-s3")
    }
}

/// A failed request, with the status and error code that some callers examine.
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

/// Returns the first offset of a header `Content-Range: bytes <first>-<last>/<size>`.
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
        let announced = announced.ok_or_else(|| rejected("the answer has no Content-Length"))?;
        if let Some((offset, length)) = bounded {
            if answer.content_range().and_then(range_start) != Some(offset) {
                return Err(rejected("the store ignores Range"));
            }
            if announced < length {
                return Err(Error::Truncated { key: key.to_owned(), wanted: length, got: announced });
            }
            if announced > length {
                return Err(rejected("the store returned more than the requested range"));
            }
        }
        if bounded.is_none() && announced > MAX_WHOLE_BYTES {
            return Err(Error::TooLarge { key: key.to_owned(), size_bytes: announced });
        }
        let etag = ETag(answer.e_tag().ok_or_else(|| rejected("the answer has no ETag"))?.into());
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
        let is_signed = match self.options.sign_body {
            SignBody::Auto => !self.transport.protects(),
            SignBody::Always => true,
            SignBody::Never => false,
        };
        let request = if is_signed { request } else { request.disable_payload_signing() };
        let asked = Asked::Put(&condition);
        let answer = self.within(key, asked, length, request.send()).await.map_err(Failed::into_error)?;
        let without = || Error::Rejected { key: key.to_owned(), source: cause("the answer has no ETag") };
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
            let full = object.key().ok_or_else(|| malformed("the listing has an entry without a key"))?;
            let size = object.size().and_then(|size| u64::try_from(size).ok());
            let size_bytes = size.ok_or_else(|| malformed("the listing has an entry without a size"))?;
            // Objects that others put into the bucket under names that are not keys are skipped.
            if let Some(key) = full.strip_prefix(&self.prefix)
                && key.starts_with(prefix)
                && key::check(key).is_ok()
            {
                entries.push(Entry { key: key.to_owned(), size_bytes });
            }
        }
        let next = page.next_continuation_token().filter(|_| page.is_truncated().unwrap_or(false));
        if page.is_truncated().unwrap_or(false) && next.is_none() {
            return Err(malformed("the listing is truncated but has no continuation token"));
        }
        Ok(Listing { next: next.map(|token| PageToken(token.into())), entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tls_and_the_machine_itself_protect_a_body() {
        let transport = Transport::default();
        assert!(!transport.protects());
        let host = |host: &str| format!("http://{host}/disks/a?x-id=PutObject");
        for safe in ["127.0.0.1:9000", "127.8.9.1", "[::1]:9000", "localhost:9000"] {
            transport.note(&host(safe));
            assert!(transport.protects(), "{safe}");
        }
        for unsafe_ in ["10.0.0.1:9000", "minio:9000", "localhost.example", "[fe80::1]", "127.0.0.1.example"]
        {
            transport.note(&host(unsafe_));
            assert!(!transport.protects(), "{unsafe_}");
        }
        transport.note("https://disks.s3.eu-central-1.amazonaws.com/a");
        assert!(transport.protects());
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
