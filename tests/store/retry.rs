//! Retries, with a paused clock: when a request is repeated, and when the caller gets an error.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cairn::metrics::{Metrics, StoreClass, StoreOutcome as Is};
use cairn::store::fault::{Action, Failure, Gate, Rule};
use cairn::store::retry::{Patience, RetryOptions};
use cairn::store::{
    ByteRange, Condition, ETag, Error, Fault, Limit, ListFrom, Listing, MemoryStore, Object, Operation,
    Retry, Store,
};
use futures::FutureExt;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Records when requests arrive, and fails them all.
#[derive(Debug, Default)]
struct Down {
    asked: Mutex<Vec<Instant>>,
}

impl Down {
    fn fail<T>(&self, key: &str) -> Result<T, Error> {
        self.asked.lock().push(Instant::now());
        Err(Error::Timeout { key: key.to_owned(), after_ms: 0 })
    }
}

#[async_trait]
impl Store for Down {
    async fn get(&self, key: &str, _: ByteRange) -> Result<Object, Error> {
        self.fail(key)
    }
    async fn put(&self, key: &str, _: Bytes, _: Condition) -> Result<ETag, Error> {
        self.fail(key)
    }
    async fn delete(&self, _: &[String]) -> Result<(), Error> {
        self.fail("")
    }
    async fn list(&self, prefix: &str, _: &ListFrom) -> Result<Listing, Error> {
        self.fail(prefix)
    }
}

fn retry(inner: Arc<dyn Store>, options: RetryOptions, seed: u64) -> Retry {
    Retry::new(inner, options, Metrics::new().store(), seed)
}

/// Creates a store in memory, below fault injection, below retries.
fn stack() -> (MemoryStore, Fault, Retry) {
    let memory = MemoryStore::new();
    let fault = Fault::new(Arc::new(memory.clone()), 0);
    (memory, fault.clone(), retry(Arc::new(fault), RetryOptions::default(), 0))
}

async fn create(store: &dyn Store, key: &str) -> Result<(), Error> {
    store.put(key, Bytes::from(key.to_owned()), Condition::IfAbsent).await.map(drop)
}

async fn get(store: &dyn Store, key: &str) -> Result<Bytes, Error> {
    store.get(key, ByteRange::Full).await.map(|object| object.body)
}

const HOUR: Duration = Duration::from_secs(3600);

/// Returns the pauses of a PUT to a store that is down for an hour.
async fn pauses(seed: u64) -> Vec<Duration> {
    let down = Arc::new(Down::default());
    let store = retry(down.clone(), RetryOptions::default(), seed);
    tokio::time::timeout(HOUR, create(&store, "a")).await.expect_err("it is tried for ever");
    let asked = down.asked.lock().clone();
    asked.windows(2).map(|two| two[1] - two[0]).collect()
}

#[tokio::test(start_paused = true)]
async fn pauses_are_drawn_from_a_range_that_doubles_up_to_the_cap() {
    let RetryOptions { base, cap, .. } = RetryOptions::default();
    // The clock of the runtime counts milliseconds.
    let tick = Duration::from_millis(1);
    let mut longest = Vec::new();
    for seed in 0..40 {
        let pauses = pauses(seed).await;
        for (n, pause) in pauses.iter().enumerate() {
            let bound =
                base.saturating_mul(1u32.checked_shl(u32::try_from(n).unwrap()).unwrap_or(u32::MAX)).min(cap);
            assert!(*pause <= bound + tick, "seed {seed}, pause {n}: {pause:?} of {bound:?}");
            longest.resize(longest.len().max(n + 1), Duration::ZERO);
            longest[n] = longest[n].max(*pause);
        }
        let mean = pauses.iter().sum::<Duration>() / u32::try_from(pauses.len()).unwrap();
        assert!((cap * 2 / 5..cap * 3 / 5).contains(&mean), "full jitter: {mean:?} is about half of {cap:?}");
    }
    for (n, bound) in [(0, base), (1, base * 2), (2, base * 4), (9, cap)] {
        assert!(longest[n] > bound * 3 / 4, "pause {n} reaches toward {bound:?}: {:?}", longest[n]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_pauses() {
    assert_eq!(pauses(3).await, pauses(3).await);
    assert_ne!(pauses(3).await, pauses(4).await);
}

#[tokio::test(start_paused = true)]
async fn reads_end_at_their_deadline_with_the_last_error() {
    let (_, fault, store) = stack();
    let rule = fault.add(Rule::new(Action::FailBefore(Failure::Throttled)));
    let begun = Instant::now();
    assert!(matches!(get(&store, "a").await, Err(Error::Throttled { .. })));
    assert!(matches!(store.list("", &ListFrom::Start).await, Err(Error::Throttled { .. })));
    assert_eq!(begun.elapsed(), Duration::from_secs(120));
    fault.remove(rule);
    fault.add(Rule::new(Action::Hold(Gate::new())));
    assert!(matches!(get(&store, "a").await, Err(Error::Timeout { after_ms: 60_000, .. })));
}

/// An earlier error says more than that the last attempt got no answer. For a write, only an error that
/// leaves the effect unknown is reported in its place.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_the_deadline_cuts_off_returns_the_previous_error() {
    let patience = Patience { deadline: Some(Duration::from_secs(60)), refusals: Some(3) };
    for (failure, outcome) in [(Failure::Transient, Is::Transient), (Failure::Throttled, Is::Timeout)] {
        let fault = Fault::new(Arc::new(MemoryStore::new()), 0);
        let options = RetryOptions { write: patience, ..RetryOptions::default() };
        let store = retry(Arc::new(fault.clone()), options, 0);
        let fail_once = || {
            fault.clear();
            fault.add(Rule::new(Action::Hold(Gate::new())).skip(1));
            fault.add(Rule::new(Action::FailBefore(failure)).times(1));
        };
        fail_once();
        let error = create(&store, "a").await.unwrap_err();
        assert!(error.effect_unknown() && error.outcome() == outcome, "{error}");
        fail_once();
        let failed = Error::outcome(&get(&store, "a").await.unwrap_err());
        assert_ne!(failed, Is::Timeout, "{failure:?}: {failed:?}");
    }
}

/// At the start an operator is watching. Later the disks are in use.
#[tokio::test(start_paused = true)]
async fn a_refusal_fails_soon_at_the_start_and_is_waited_out_later() {
    for failure in [Failure::Denied, Failure::Rejected] {
        let (memory, fault, store) = stack();
        memory.insert("a", Bytes::from_static(b"a"));
        fault.add(Rule::new(Action::FailBefore(failure)));
        let begun = Instant::now();
        assert!(get(&store, "a").await.unwrap_err().is_refusal());
        assert!(store.list("", &ListFrom::Start).await.unwrap_err().is_refusal());
        assert!(create(&store, "b").await.unwrap_err().is_refusal());
        assert!(begun.elapsed() < Duration::from_secs(3), "{failure:?}: {:?}", begun.elapsed());
        store.wait_out_refusals();
        let keys = ["a".to_owned()];
        let mut read = Box::pin(get(&store, "a"));
        tokio::time::timeout(Duration::from_secs(50), &mut read).await.expect_err("it waits");
        let mut written = Box::pin(create(&store, "b"));
        let mut deleted = Box::pin(store.delete(&keys));
        tokio::time::timeout(HOUR, &mut written).await.expect_err("it waits");
        tokio::time::timeout(HOUR, &mut deleted).await.expect_err("it waits");
        // This took longer than the deadline of a read.
        assert!(read.await.unwrap_err().is_refusal());
        let mut read = Box::pin(get(&store, "a"));
        tokio::time::timeout(Duration::from_secs(50), &mut read).await.expect_err("it waits");
        fault.clear();
        assert_eq!(read.await.unwrap(), "a");
        written.await.unwrap();
        deleted.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_survives_an_outage_of_any_kind() {
    for failure in
        [Failure::Timeout, Failure::Transient, Failure::Throttled, Failure::Denied, Failure::Rejected]
    {
        let (memory, fault, store) = stack();
        store.wait_out_refusals();
        fault.add(Rule::new(Action::FailBefore(failure)));
        let keys = ["a".to_owned()];
        let mut put = Box::pin(create(&store, "a"));
        let mut delete = Box::pin(store.delete(&keys));
        tokio::time::timeout(HOUR, &mut put).await.expect_err("it waits");
        tokio::time::timeout(HOUR, &mut delete).await.expect_err("it waits");
        fault.clear();
        put.await.unwrap();
        assert!(memory.objects().contains_key("a"));
        delete.await.unwrap();
        assert!(memory.objects().is_empty());
    }
}

/// Reads that wait for each other longer than the deadline, as those of a checkpoint do behind a slow store.
#[tokio::test(start_paused = true)]
async fn a_read_in_the_background_waits_its_turn_however_long_that_takes() {
    for class in [StoreClass::Bulk, StoreClass::Reads] {
        let (memory, metrics) = (MemoryStore::new(), Metrics::new());
        memory.insert("a", Bytes::from_static(b"a"));
        let fault = Fault::new(Arc::new(memory.clone()), 0);
        let second = Duration::from_secs(1);
        fault.add(Rule::new(Action::DelayAnswer(second, second)));
        let limit = Limit::new(Arc::new(fault), 1, metrics.store());
        let store = Retry::new(Arc::new(limit), RetryOptions::default(), metrics.store(), 0).of_class(class);
        let failed = async |store: &Retry| {
            let reads = join_all((0..100).map(|_| get(store, "a"))).await;
            reads.iter().filter(|read| read.is_err()).count()
        };
        assert!(failed(&store).await >= 40, "at the start the deadline of a minute holds");
        let sent = memory.tally(Operation::Get, |_| true).requests;
        assert!(sent <= 60, "{sent} were sent, some of them after their time was over");
        store.wait_out_refusals();
        assert_eq!(failed(&store).await == 0, class == StoreClass::Bulk, "{class:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_definite_answer_is_returned_at_once() {
    let (memory, _, store) = stack();
    assert!(matches!(get(&store, "a").await, Err(Error::NotFound { .. })));
    create(&store, "a").await.unwrap();
    assert!(matches!(create(&store, "a").await, Err(Error::PreconditionFailed { .. })));
    assert_eq!(memory.tally(Operation::Get, |_| true).requests, 1);
    assert_eq!(memory.tally(Operation::Put, |_| true).requests, 2);
}

#[tokio::test(start_paused = true)]
async fn a_412_after_a_lost_answer_reaches_the_caller() {
    let (memory, fault, store) = stack();
    fault.add(Rule::new(Action::FailAfter(Failure::Timeout)).on(Operation::Put).times(1));
    assert!(matches!(create(&store, "slot").await, Err(Error::PreconditionFailed { .. })));
    assert_eq!(memory.objects()["slot"], "slot", "it is the caller's own");
    assert_eq!(memory.tally(Operation::Put, |_| true).requests, 2);
}

#[tokio::test(start_paused = true)]
async fn a_refused_read_is_retried_a_few_times() {
    for failure in [Failure::Denied, Failure::Rejected] {
        let (memory, fault, store) = stack();
        let gate = Gate::new();
        gate.release();
        fault.add(Rule::new(Action::Hold(gate.clone())));
        fault.add(Rule::new(Action::FailBefore(failure)).times(3));
        memory.insert("a", Bytes::from_static(b"there"));
        assert_eq!(get(&store, "a").await.unwrap(), "there", "credentials came back");
        assert_eq!(gate.count(), 4);
        fault.add(Rule::new(Action::FailBefore(failure)));
        let error = get(&store, "a").await.unwrap_err();
        assert!(matches!(error, Error::Denied { .. } | Error::Rejected { .. }), "{error}");
        assert_eq!(gate.count(), 8);
    }
}

#[tokio::test(start_paused = true)]
async fn the_error_of_a_write_says_whether_any_attempt_may_have_taken_effect() {
    let options = RetryOptions {
        write: Patience { deadline: Some(Duration::from_secs(60)), refusals: Some(3) },
        ..RetryOptions::default()
    };
    let fault = Fault::new(Arc::new(MemoryStore::new()), 0);
    let store = retry(Arc::new(fault.clone()), options, 0);
    fault.add(Rule::new(Action::FailBefore(Failure::Denied)));
    let error = create(&store, "a").await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }) && !error.effect_unknown());
    fault.clear();
    fault.add(Rule::new(Action::FailBefore(Failure::Throttled)));
    let error = create(&store, "a").await.unwrap_err();
    assert!(matches!(error, Error::Throttled { .. }) && !error.effect_unknown());
    for last in [Failure::Denied, Failure::Throttled] {
        fault.clear();
        fault.add(Rule::new(Action::FailBefore(last)).skip(1));
        fault.add(Rule::new(Action::FailAfter(Failure::Transient)).times(1));
        let error = create(&store, "b").await.unwrap_err();
        assert!(error.effect_unknown(), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_keys_are_refused_without_a_request() {
    let down = Arc::new(Down::default());
    let store = retry(down.clone(), RetryOptions::default(), 0);
    assert!(matches!(create(&store, "../a").await, Err(Error::Rejected { .. })));
    assert!(matches!(store.delete(&["a/".into()]).await, Err(Error::Rejected { .. })));
    assert!(down.asked.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pausing_request_leaves_its_permit_to_others() {
    let metrics = Metrics::new();
    let fault = Fault::new(Arc::new(MemoryStore::new()), 0);
    let limit = Limit::new(Arc::new(fault.clone()), 1, metrics.store());
    let store = Retry::new(Arc::new(limit), RetryOptions::default(), metrics.store(), 0);
    fault.add(Rule::new(Action::FailBefore(Failure::Transient)).containing("down"));
    let mut down = Box::pin(create(&store, "down"));
    assert!((&mut down).now_or_never().is_none());
    assert!(create(&store, "up").now_or_never().is_some_and(|answer| answer.is_ok()));
    fault.clear();
    down.await.unwrap();
    assert_eq!(metrics.store().retries(Operation::Put), 1);
}

/// Collects the log lines.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_logged_at_a_bounded_rate() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    // While there is only one subscriber, tracing lets the first thread that reaches a log line decide for
    // all threads whether it is wanted. That thread may belong to another test.
    let _second = tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(std::io::sink).finish());
    let logging = tracing::subscriber::set_default(subscriber);
    let store = retry(Arc::new(Down::default()), RetryOptions::default(), 0);
    let keys: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let puts = join_all(keys.iter().map(|key| create(&store, key)));
    tokio::time::timeout(Duration::from_secs(95), puts).await.expect_err("they wait");
    drop(logging);
    let text = String::from_utf8(lines.0.lock().clone()).unwrap();
    let said = text.lines().filter(|line| line.contains("store request failed, trying again")).count();
    assert_eq!(said, 10, "one at once and one each 10 s:\n{text}");
    assert!(text.contains("no answer within"), "{text}");
}
