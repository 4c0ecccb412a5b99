//! The start-up probe refuses stores that must be refused, and its errors say what they do wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cairn::metrics::Metrics;
use cairn::store::fault::{Action, Failure, Gate, Rule};
use cairn::store::passed::{Passed, RECORD};
use cairn::store::probe::{CHECKS, Occasion, ProbeError, ProbeOptions, Violation, When, ensure, probe};
use cairn::store::{
    self, ByteRange, Classes, Condition, Drawn, ETag, Error, Fault, ListFrom, Listing, Location, MemoryStore,
    Object, OpenError, Operation, Options, S3Options, Store,
};

use crate::support::fake_bucket::FakeBucket;
use crate::support::fake_s3::{FakeS3, Reply, error};
use crate::support::minio::Minio;

/// What a [`Careless`] store does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// Every PUT with `If-None-Match` takes effect.
    IgnoresIfNoneMatch,
    /// Every PUT with `If-Match` takes effect.
    IgnoresIfMatch,
    /// A PUT with `If-Match` takes effect if the object does not exist.
    CreatesOnIfMatch,
    /// `If-None-Match` is checked first and the PUT follows later, so that others can come in between.
    LooksBeforeItCreates,
    /// `If-Match` is checked first and the PUT follows later, so that others can come in between.
    LooksBeforeItUpdates,
    /// Every PUT with `If-Match` fails.
    RefusesIfMatch,
    /// The store answers 412, but writes.
    WritesAfterAll,
    /// Listings are always empty.
    ListsNothing,
}

/// A store that honours conditions badly.
#[derive(Debug)]
struct Careless {
    inner: MemoryStore,
    wrong: Wrong,
}

impl Careless {
    async fn holds(&self, key: &str, condition: &Condition) -> bool {
        let stands = self.inner.get(key, ByteRange::Full).await.ok().map(|object| object.etag);
        match condition {
            Condition::Always => true,
            Condition::IfAbsent => stands.is_none(),
            Condition::IfMatch(etag) => stands.as_ref() == Some(etag),
        }
    }
}

#[async_trait]
impl Store for Careless {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        self.inner.get(key, range).await
    }

    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        let failed = || Err(Error::PreconditionFailed { key: key.to_owned() });
        let absent = self.inner.get(key, ByteRange::Full).await.is_err();
        let condition = match (self.wrong, condition) {
            (Wrong::IgnoresIfNoneMatch, Condition::IfAbsent)
            | (Wrong::IgnoresIfMatch, Condition::IfMatch(_)) => Condition::Always,
            (Wrong::CreatesOnIfMatch, Condition::IfMatch(_)) if absent => Condition::Always,
            (Wrong::RefusesIfMatch, Condition::IfMatch(_)) => return failed(),
            (Wrong::LooksBeforeItCreates, condition @ Condition::IfAbsent)
            | (Wrong::LooksBeforeItUpdates, condition @ Condition::IfMatch(_)) => {
                if !self.holds(key, &condition).await {
                    return failed();
                }
                tokio::task::yield_now().await;
                Condition::Always
            }
            (Wrong::WritesAfterAll, condition) => {
                if !self.holds(key, &condition).await {
                    self.inner.put(key, body, Condition::Always).await?;
                    return failed();
                }
                condition
            }
            (_, condition) => condition,
        };
        self.inner.put(key, body, condition).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        self.inner.delete(keys).await
    }

    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        match self.wrong {
            Wrong::ListsNothing => Ok(Listing::default()),
            _ => self.inner.list(prefix, from).await,
        }
    }
}

#[tokio::test]
async fn a_store_that_honours_conditions_badly_is_refused_for_that_reason() {
    for (wrong, violation) in [
        (Wrong::IgnoresIfNoneMatch, Violation::IgnoresIfNoneMatch),
        (Wrong::IgnoresIfMatch, Violation::IgnoresIfMatch),
        (Wrong::CreatesOnIfMatch, Violation::CreatesOnIfMatch),
        (Wrong::LooksBeforeItCreates, Violation::SeveralCreators { racers: 8, winners: 8 }),
        (Wrong::LooksBeforeItUpdates, Violation::SeveralUpdaters { racers: 8, winners: 8 }),
        (Wrong::RefusesIfMatch, Violation::RefusesIfMatch),
        (Wrong::WritesAfterAll, Violation::StaleRead),
        (Wrong::ListsNothing, Violation::StaleList),
    ] {
        let inner = MemoryStore::new();
        let store = Careless { inner: inner.clone(), wrong };
        let error = probe(&store, &ProbeOptions::default(), "nonce").await.unwrap_err();
        let ProbeError::Unsafe(found) = error else { panic!("{wrong:?}: {error}") };
        assert_eq!(found, violation, "{wrong:?}");
        assert!(inner.objects().is_empty(), "the probe's keys are gone");
    }
}

#[tokio::test]
async fn the_errors_name_the_header() {
    for (wrong, header) in [
        (Wrong::IgnoresIfNoneMatch, "it ignores If-None-Match"),
        (Wrong::IgnoresIfMatch, "it ignores If-Match"),
        (Wrong::LooksBeforeItCreates, "it let 8 of 8 racing PUTs with `If-None-Match: *` on one key succeed"),
    ] {
        let store = Careless { inner: MemoryStore::new(), wrong };
        let error = probe(&store, &ProbeOptions::default(), "nonce").await.unwrap_err().to_string();
        assert!(error.contains("cannot keep data safe") && error.contains(header), "{error}");
    }
}

#[tokio::test]
async fn a_good_store_passes_and_only_the_probes_keys_were_touched() {
    let memory = MemoryStore::new();
    memory.insert("volume/x/head", Bytes::from_static(b"someone's"));
    probe(&memory, &ProbeOptions::default(), "a-nonce").await.unwrap();
    assert_eq!(memory.objects().into_keys().collect::<Vec<_>>(), ["volume/x/head"]);
    for operation in [Operation::Put, Operation::Delete, Operation::List] {
        let elsewhere = memory.tally(operation, |key| !key.starts_with("probe/a-nonce/"));
        assert_eq!(elsewhere.requests, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn failures_in_transit_are_no_verdict() {
    for seed in 0..20 {
        let fault = Fault::new(Arc::new(MemoryStore::new()), seed);
        fault.add(Rule::new(Action::FailBefore(Failure::Throttled)).probability(0.03));
        fault.add(Rule::new(Action::FailAfter(Failure::Timeout)).probability(0.03));
        fault.add(Rule::new(Action::Delay(Duration::ZERO, Duration::from_millis(200))));
        let options = ProbeOptions { deadline: Duration::from_secs(3600), ..ProbeOptions::default() };
        if let Err(error) = probe(&fault, &options, "nonce").await {
            panic!("seed {seed}: {error}");
        }
    }
}

/// A store whose first answers of each kind are damaged in transit.
#[derive(Debug)]
struct Garbled {
    inner: MemoryStore,
    objects: AtomicU32,
    listings: AtomicU32,
}

impl Garbled {
    fn new(times: u32) -> Self {
        Self { inner: MemoryStore::new(), objects: times.into(), listings: times.into() }
    }
}

fn damages(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

#[async_trait]
impl Store for Garbled {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        let object = self.inner.get(key, range).await?;
        let body = if damages(&self.objects) { Bytes::from_static(b"fjrst") } else { object.body };
        Ok(Object { body, ..object })
    }

    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        self.inner.put(key, body, condition).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        self.inner.delete(keys).await
    }

    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        let listing = self.inner.list(prefix, from).await?;
        Ok(if damages(&self.listings) { Listing::default() } else { listing })
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_damaged_in_transit_is_no_verdict() {
    let garbled = Garbled::new(2);
    probe(&garbled, &ProbeOptions::default(), "nonce").await.unwrap();
    assert!(garbled.inner.objects().is_empty(), "the probe's keys are gone");
    let left = garbled.objects.load(Ordering::Relaxed) + garbled.listings.load(Ordering::Relaxed);
    assert_eq!(left, 0, "both kinds were met");
    let error = probe(&Garbled::new(3), &ProbeOptions::default(), "nonce").await.unwrap_err();
    assert!(matches!(error, ProbeError::Unsafe(Violation::StaleRead)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_or_hangs_is_reported_in_time() {
    let fault = Fault::new(Arc::new(MemoryStore::new()), 0);
    fault.add(Rule::new(Action::FailBefore(Failure::Transient)));
    let error = probe(&fault, &ProbeOptions::default(), "nonce").await.unwrap_err();
    assert!(matches!(&error, ProbeError::Unreachable { last: Error::Transient { .. }, .. }), "{error}");
    assert!(error.to_string().contains("did not answer within 60 s"), "{error}");

    fault.clear();
    fault.add(Rule::new(Action::Hold(Gate::new())));
    let error = probe(&fault, &ProbeOptions::default(), "nonce").await.unwrap_err();
    assert!(matches!(error, ProbeError::Slow(_)), "{error}");
}

#[tokio::test]
async fn a_refusal_is_reported_at_once() {
    for failure in [Failure::Denied, Failure::Rejected] {
        for (operation, needs) in [
            (Operation::Get, "ListBucket"),
            (Operation::Put, "PUT with If-None-Match"),
            (Operation::Delete, "DELETE"),
            (Operation::List, "LIST"),
        ] {
            let fault = Fault::new(Arc::new(MemoryStore::new()), 0);
            fault.add(Rule::new(Action::FailBefore(failure)).on(operation));
            let error = probe(&fault, &ProbeOptions::default(), "nonce").await.unwrap_err();
            assert!(matches!(error, ProbeError::Refused { .. }), "{error}");
            assert!(error.to_string().contains(needs), "{error}");
        }
    }
}

const HERE: &str = "s3://disks/at at http://127.0.0.1:9000";

async fn start(store: &dyn Store, when: When, against: &str) -> Result<(), ProbeError> {
    let occasion = Occasion { nonce: "nonce", against, now_seconds: 1_700_000_000 };
    ensure(store, &ProbeOptions { when, ..ProbeOptions::default() }, &occasion).await
}

/// Counts the requests of one start.
async fn requests_of(memory: &MemoryStore, when: When, against: &str) -> u64 {
    memory.reset_tallies();
    start(memory, when, against).await.unwrap();
    let all = [Operation::Get, Operation::Put, Operation::Delete, Operation::List];
    all.into_iter().map(|operation| memory.tally(operation, |_| true).requests).sum()
}

#[tokio::test]
async fn a_store_is_probed_in_full_once_and_later_starts_send_few_requests() {
    let memory = MemoryStore::new();
    let few = u64::try_from(CHECKS).unwrap();
    assert!(requests_of(&memory, When::Once, HERE).await > 100);
    assert_eq!(memory.objects().into_keys().collect::<Vec<_>>(), [RECORD]);
    let record = memory.objects()[RECORD].clone();
    let passed: Passed = serde_json::from_slice(&record).unwrap();
    let Passed { passed_at, cairn, against, .. } = &passed;
    let expected = ("2023-11-14T22:13:20Z", env!("CARGO_PKG_VERSION"), HERE);
    assert_eq!((passed_at.as_str(), cairn.as_str(), against.as_str()), expected);
    for _ in 0..3 {
        assert_eq!(requests_of(&memory, When::Once, HERE).await, few);
        assert_eq!(memory.objects(), [(RECORD.to_owned(), record.clone())].into());
    }
    assert!(requests_of(&memory, When::Always, HERE).await > 100, "who asks again gets it");
    // A record that was copied from elsewhere, that another probe wrote, or that cannot be read does not
    // count.
    assert!(requests_of(&memory, When::Once, "file:///elsewhere").await > 100);
    assert_eq!(requests_of(&memory, When::Once, "file:///elsewhere").await, few);
    let other = Passed { probe: passed.probe + 1, against: "file:///elsewhere".into(), ..passed };
    for unknown in [serde_json::to_vec(&other).unwrap(), record[..record.len() - 5].to_vec(), Vec::new()] {
        memory.insert(RECORD, Bytes::from(unknown));
        assert!(requests_of(&memory, When::Once, "file:///elsewhere").await > 100);
        assert_eq!(requests_of(&memory, When::Once, "file:///elsewhere").await, few);
    }
}

#[tokio::test]
async fn a_second_start_on_s3_and_on_a_directory_sends_few_requests() {
    let bucket = FakeBucket::start().await;
    opened("s3://disks/at", bucket.server.options()).await.unwrap();
    let first = bucket.server.requests().len();
    opened("s3://disks/at", bucket.server.options()).await.unwrap();
    assert_eq!(bucket.server.requests().len() - first, CHECKS);
    let directory = tempfile::tempdir().unwrap();
    let location = format!("file://{}", directory.path().display());
    for _ in 0..2 {
        opened(&location, S3Options::default()).await.unwrap();
        assert!(directory.path().join(RECORD).exists());
    }
}

/// The store was exchanged, or has changed its behaviour, since it passed.
#[tokio::test(start_paused = true)]
async fn a_store_that_ignores_conditions_is_caught_at_a_later_start_too() {
    for (wrong, violation) in [
        (Wrong::IgnoresIfNoneMatch, Violation::IgnoresIfNoneMatch),
        (Wrong::IgnoresIfMatch, Violation::IgnoresIfMatch),
        (Wrong::ListsNothing, Violation::StaleList),
    ] {
        let inner = MemoryStore::new();
        start(&inner, When::Once, HERE).await.unwrap();
        let record = inner.objects();
        let error = start(&Careless { inner: inner.clone(), wrong }, When::Once, HERE).await.unwrap_err();
        let ProbeError::Unsafe(found) = error else { panic!("{wrong:?}: {error}") };
        assert_eq!(found, violation, "{wrong:?}");
        assert_eq!(inner.objects(), record, "{wrong:?}: what must fail did no harm");
    }
}

/// Two gateways start at the same time, for the first time and later.
#[tokio::test]
async fn concurrent_starts_do_not_disturb_each_other() {
    let memory = MemoryStore::new();
    for _ in 0..2 {
        let starts = (0..4).map(|n| {
            let memory = memory.clone();
            async move {
                let nonce = format!("nonce-{n}");
                let occasion = Occasion { nonce: &nonce, against: HERE, now_seconds: n };
                ensure(&memory, &ProbeOptions::default(), &occasion).await
            }
        });
        for started in futures::future::join_all(starts).await {
            started.unwrap();
        }
        assert_eq!(memory.objects().into_keys().collect::<Vec<_>>(), [RECORD]);
    }
}

async fn opened(location: &str, s3: S3Options) -> Result<Classes, OpenError> {
    let location: Location = location.parse().expect("a location");
    let options = Options { s3, ..Options::default() };
    // A future must be `Send` to be spawned.
    let open: std::pin::Pin<Box<dyn Future<Output = _> + Send>> = {
        let metrics = Metrics::new().store();
        let drawn = Drawn { seed: 1, nonce: "nonce".into(), now_seconds: 0 };
        Box::pin(async move { store::open(&location, &options, metrics, &drawn).await })
    };
    open.await.map(|opened| opened.store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MinIO"]
async fn a_directory_and_minio_pass() {
    let directory = tempfile::tempdir().unwrap();
    let minio = Minio::start().await;
    let local = format!("file://{}", directory.path().join("store").display());
    for location in [&local, "s3://passes/below"] {
        let store = opened(location, minio.options()).await.unwrap();
        let left = store.list("", &ListFrom::Start).await.unwrap().entries;
        assert_eq!(left.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), [RECORD], "{location}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MinIO"]
async fn a_missing_bucket_and_wrong_credentials_are_named() {
    let minio = Minio::start().await;
    let absent = S3Options { create_bucket: false, ..minio.options() };
    let error = opened("s3://absent", absent.clone()).await.unwrap_err().to_string();
    assert!(error.contains("s3://absent at http://127.0.0.1:") && error.contains("NoSuchBucket"), "{error}");
    let stranger = aws_sdk_s3::config::Credentials::new("stranger", "secret", None, None, "test");
    let wrong = S3Options { credentials: Some(stranger), ..absent };
    let error = opened("s3://absent", wrong).await.unwrap_err().to_string();
    assert!(error.contains("access denied"), "{error}");
}

#[tokio::test]
async fn a_file_in_place_of_the_directory_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let location = format!("file://{}", file.path().display());
    let error = opened(&location, S3Options::default()).await.unwrap_err().to_string();
    assert!(error.contains(&file.path().display().to_string()), "{error}");
}

#[tokio::test]
async fn a_bucket_that_may_not_be_created_is_an_error() {
    let server = FakeS3::start(|request| match request.method.as_str() {
        "HEAD" => Reply::Whole(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec()),
        _ => Reply::Whole(error("403 Forbidden", "AccessDenied")),
    })
    .await;
    let options = S3Options { create_bucket: true, ..server.options() };
    let error = opened("s3://disks", options).await.unwrap_err();
    assert!(matches!(error, OpenError::Bucket(Error::Denied { .. })), "{error}");
}
