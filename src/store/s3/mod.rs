//! A store in an S3 bucket, through the AWS SDK with its retries off.
//!
//! Knows nothing of what is stored. Bodies are held whole in memory, both ways, and the length of what arrives is
//! checked. [`failure`] says what an error means. Invariant: an answer is given only for what the store said in full.

mod failure;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_config::BehaviorVersion;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    AppName, ConfigBag, Credentials, Intercept, Region, RuntimeComponents, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration, Delete, ObjectIdentifier};
use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::error::cause;
use super::{ByteRange, Condition, ETag, Entry, Error, Listing, MAX_WHOLE_BYTES, Object, Store, key};
use failure::{Asked, delete_failure, failure, timeout};

/// Keys that one DeleteObjects may name.
const DELETE_KEYS: usize = 1000;
/// The region in which a bucket is made without naming one.
const PLAIN_REGION: &str = "us-east-1";

/// How to reach the bucket. What is `None` comes from the SDK's standard chain (environment, profile, instance).
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
    client: Client,
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

/// Notes whether requests go over TLS, which then protects a body in the place of its SHA-256 in the signature (most
/// of the cost of a PUT). The endpoint may come from many places, so it is read off the requests; the first is signed.
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
    /// Prepares requests to `bucket`, whose keys all begin with `prefix` and a `/`, unless it is empty. Sends none,
    /// but to make the bucket where that is asked for.
    ///
    /// # Errors
    /// Of a configuration that cannot work, and of making the bucket.
    pub async fn open(bucket: &str, prefix: &str, options: S3Options) -> Result<Self, Error> {
        let transport = Transport::default();
        let client = client(&options, &transport)
            .await
            .map_err(|why| Error::Rejected { key: format!("s3://{bucket}"), source: cause(why) })?;
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let store = Self { client, bucket: bucket.to_owned(), prefix, options, transport };
        if store.options.create_bucket {
            store.create_bucket().await?;
        }
        Ok(store)
    }

    async fn create_bucket(&self) -> Result<(), Error> {
        let name = format!("s3://{}", self.bucket);
        // Asked first, since whoever may use a bucket need not be allowed to make one.
        let head = self.client.head_bucket().bucket(&self.bucket).send();
        let missing = self.within(&name, Asked::Other, 0, head).await;
        if !matches!(&missing, Err(Failed { status: Some(404), .. })) {
            return missing.map(drop).map_err(Failed::into_error);
        }
        let region = self.client.config().region().map(ToString::to_string);
        let place = region.filter(|region| region != PLAIN_REGION).map(|region| {
            CreateBucketConfiguration::builder()
                .location_constraint(BucketLocationConstraint::from(region.as_str()))
                .build()
        });
        let create =
            self.client.create_bucket().bucket(&self.bucket).set_create_bucket_configuration(place).send();
        match self.within(&name, Asked::Other, 0, create).await {
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
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Failed {
                status: error.raw_response().map(|response| response.status().as_u16()),
                code: error.code().map(str::to_owned),
                error: failure(key, asked, &error, begun.elapsed()),
            }),
        }
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
        let request = self.client.delete_objects().bucket(&self.bucket).delete(delete).send();
        let answer = self.within(first, Asked::Other, 0, request).await.map_err(Failed::into_error)?;
        let failed = answer.errors().iter().find_map(|error| {
            let key = error.key().and_then(|key| key.strip_prefix(&self.prefix)).unwrap_or(first);
            delete_failure(key, error.code().unwrap_or(""), error.message().unwrap_or(""))
        });
        failed.map_or(Ok(()), Err)
    }

    /// One page of raw keys, which may hold some that are no keys of ours, and whether more follow.
    async fn list_some(
        &self,
        prefix: &str,
        start_after: Option<String>,
    ) -> Result<(Vec<(String, u64)>, bool), Error> {
        let request = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(self.full(prefix))
            .set_start_after(start_after)
            .send();
        let page = self.within(prefix, Asked::Other, 0, request).await.map_err(Failed::into_error)?;
        let malformed = |what: &str| Error::Transient { key: prefix.to_owned(), source: cause(what) };
        let mut objects: Vec<(String, u64)> = Vec::with_capacity(page.contents().len());
        for object in page.contents() {
            let key = object.key().ok_or_else(|| malformed("a listing without a key"))?;
            let size = object.size().and_then(|size| u64::try_from(size).ok());
            let size_bytes = size.ok_or_else(|| malformed("a listing without a size"))?;
            if objects.last().is_some_and(|(last, _)| last.as_str() >= key) {
                let source = cause("the store does not list keys in order");
                return Err(Error::Rejected { key: prefix.to_owned(), source });
            }
            objects.push((key.to_owned(), size_bytes));
        }
        let more = page.is_truncated().unwrap_or(false);
        if more && objects.is_empty() {
            return Err(malformed("an empty page of a listing that goes on"));
        }
        Ok((objects, more))
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

async fn client(options: &S3Options, transport: &Transport) -> Result<Client, String> {
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(options.connect_timeout).build())
        // The second line for downloads, which `collect` watches too.
        .stalled_stream_protection(
            StalledStreamProtectionConfig::enabled().grace_period(options.stall_timeout * 2).build(),
        )
        .app_name(AppName::new("cairn").expect("a plain word is a valid name"));
    if let Some(endpoint) = &options.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(region) = &options.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(credentials) = &options.credentials {
        loader = loader.credentials_provider(credentials.clone());
    }
    let shared = loader.load().await;
    let mut config = aws_sdk_s3::config::Builder::from(&shared)
        .force_path_style(options.path_style)
        .interceptor(transport.clone());
    if let Some(endpoint) = shared.endpoint_url() {
        let parsed = url::Url::parse(endpoint).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https") && url.has_host() && url.username().is_empty()
        });
        if parsed.is_none() {
            // What stands before an @ may be a secret.
            let shown = endpoint.rsplit_once('@').map_or(endpoint, |(_, shown)| shown);
            return Err(format!("the endpoint {shown:?} is no http:// or https:// URL of a host alone"));
        }
    }
    if shared.region().is_none() {
        if shared.endpoint_url().is_none() {
            return Err(
                "no region is set, in Cairn's configuration, the environment or the profile".to_owned()
            );
        }
        // Servers other than Amazon's mostly take any, this one by custom.
        config = config.region(Region::new(PLAIN_REGION));
    }
    Ok(Client::from_conf(config.build()))
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
            self.client.get_object().bucket(&self.bucket).key(self.full(key)).set_range(header).send();
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
        let request = self.client.put_object().bucket(&self.bucket).key(self.full(key));
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
        for some in keys.chunks(DELETE_KEYS) {
            self.delete_some(some).await?;
        }
        Ok(())
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Listing, Error> {
        key::check_prefix(prefix)?;
        let mut after = start_after.map(|after| self.full(after));
        loop {
            let (objects, more) = self.list_some(prefix, after).await?;
            after = objects.last().map(|(key, _)| key.clone());
            // What others put into the bucket is not ours to see.
            let ours = objects.into_iter().filter_map(|(full, size_bytes)| {
                let key = full.strip_prefix(&self.prefix)?;
                key::check(key).is_ok().then(|| Entry { key: key.to_owned(), size_bytes })
            });
            let entries: Vec<Entry> = ours.collect();
            if !entries.is_empty() || !more {
                return Ok(Listing { entries, more });
            }
        }
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
