//! Hedged requests, with a paused clock: when a request is sent a second time, which answer counts, and what
//! it costs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cairn::metrics::{HedgeResult, Label, Metrics, StoreClass, StoreMetrics, StoreOutcome};
use cairn::store::fault::{Action, Rule};
use cairn::store::retry::RetryOptions;
use cairn::store::{
    self, ByteRange, Classes, Condition, Drawn, ETag, Error, Fault, HedgeOptions, Hedging, Instrument, Limit,
    ListFrom, Listing, Location, MemoryStore, Object, Operation, Retry, Store,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::support::fake_s3::{FakeS3, Reply};

const USUAL: Duration = ms(20);
const RANGE: ByteRange = ByteRange::Bounded { offset: 0, length: 4 };

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// The decorators of a gateway above a store.
fn classes(store: Arc<dyn Store>, hedge: HedgeOptions, requests: usize) -> (StoreMetrics, Classes) {
    let metrics = Metrics::new().store();
    let counted: Arc<dyn Store> = Arc::new(Instrument::new(store, metrics.clone()));
    let hedging = Hedging::new(hedge, metrics.clone());
    let classes = Classes::limited(&counted, requests, &metrics, |class, limited| {
        let hedged = hedging.above(class, limited);
        Arc::new(Retry::new(hedged, RetryOptions::default(), metrics.clone(), 1))
    });
    (metrics, classes)
}

/// Number of requests that reached the store, answered or not.
fn sent(metrics: &StoreMetrics, operation: Operation) -> u64 {
    StoreOutcome::ALL.iter().map(|outcome| metrics.requests(operation, *outcome)).sum()
}

fn hedges(metrics: &StoreMetrics, operation: Operation) -> [u64; 3] {
    [HedgeResult::Won, HedgeResult::Lost, HedgeResult::Denied].map(|result| metrics.hedges(operation, result))
}

/// Creates an object as a commit does: an object with the same bytes is a success.
async fn commit(store: &dyn Store, key: &str, body: &Bytes) {
    match store.put(key, body.clone(), Condition::IfAbsent).await {
        Ok(_) => {}
        Err(Error::PreconditionFailed { .. }) => {
            assert_eq!(store.get(key, ByteRange::Full).await.unwrap().body, body);
        }
        Err(error) => panic!("{error}"),
    }
}

/// The median, and the 99th percentile.
fn percentiles(mut latencies: Vec<Duration>) -> (Duration, Duration) {
    latencies.sort_unstable();
    (latencies[latencies.len() / 2], latencies[latencies.len() * 99 / 100])
}

/// Times 10,000 cold reads and 10,000 commits, one after the other, with these rules.
async fn measured(rules: &[Rule], hedge: HedgeOptions) -> [(Duration, Duration, StoreMetrics); 2] {
    let memory = MemoryStore::new();
    memory.insert("cold", Bytes::from_static(b"bytes"));
    let fault = Fault::new(Arc::new(memory), 7);
    for rule in rules {
        fault.add(rule.clone());
    }
    let (read_metrics, reads) = classes(Arc::new(fault.clone()), hedge, 64);
    let (commit_metrics, commits) = classes(Arc::new(fault), hedge, 64);
    let (mut read, mut committed) = (Vec::new(), Vec::new());
    for n in 0..10_000 {
        let begun = Instant::now();
        reads.get("cold", RANGE).await.unwrap();
        read.push(begun.elapsed());
        let (begun, body) = (Instant::now(), Bytes::from(format!("record {n}")));
        commit(&*commits.journal, &format!("journal/{n}"), &body).await;
        committed.push(begun.elapsed());
    }
    let (read, committed) = (percentiles(read), percentiles(committed));
    [(read.0, read.1, read_metrics), (committed.0, committed.1, commit_metrics)]
}

/// Rules by which every request takes its usual time, and one in twenty takes ten times as long. `late` says
/// what takes so long: the effect, or only the answer.
fn one_in_twenty_is_slow(late: fn(Duration, Duration) -> Action) -> [Rule; 2] {
    [Rule::new(Action::Delay(USUAL, USUAL)), Rule::new(late(9 * USUAL, 9 * USUAL)).probability(0.05)]
}

#[tokio::test(start_paused = true)]
async fn one_answer_in_twenty_that_is_ten_times_slower_at_most_doubles_the_99th_percentile() {
    for late in [Action::Delay, Action::DelayAnswer] {
        let rules = one_in_twenty_is_slow(late);
        let plain = measured(&rules, HedgeOptions { percent: 0, ..HedgeOptions::default() }).await;
        for (median, p99, metrics) in plain {
            assert_eq!((median, p99), (USUAL, 10 * USUAL), "unhedged");
            assert_eq!([Operation::Get, Operation::Put].map(|of| hedges(&metrics, of)), [[0; 3]; 2]);
        }
        let [reads, commits] = measured(&rules, HedgeOptions::default()).await;
        for (operation, (median, p99, metrics)) in [(Operation::Get, reads), (Operation::Put, commits)] {
            let [won, lost, denied] = hedges(&metrics, operation);
            println!("{operation:?}: p50 {median:?}, p99 {p99:?}, {won} won, {lost} lost, {denied} denied");
            assert!(p99 <= 2 * median, "{operation:?}: {median:?}, {p99:?}");
            let all = sent(&metrics, Operation::Get) + sent(&metrics, Operation::Put);
            assert!(all <= 10_500, "{operation:?}: {all} requests");
            assert!(won >= 350, "{operation:?}: {won} won");
        }
    }
}

/// The latencies are spread, as those of real stores are.
#[tokio::test(start_paused = true)]
async fn spread_latencies_cost_no_more_than_the_budget() {
    let rules = [
        Rule::new(Action::Delay(USUAL, USUAL + USUAL / 2)),
        Rule::new(Action::Delay(9 * USUAL, 12 * USUAL)).probability(0.03),
    ];
    let [reads, commits] = measured(&rules, HedgeOptions::default()).await;
    for (operation, (median, p99, metrics)) in [(Operation::Get, reads), (Operation::Put, commits)] {
        let [won, lost, denied] = hedges(&metrics, operation);
        println!("{operation:?}: p50 {median:?}, p99 {p99:?}, {won} won, {lost} lost, {denied} denied");
        assert!(p99 <= 5 * median / 2, "{operation:?}: {median:?}, {p99:?}");
        assert!(won + lost <= 500, "{operation:?}: {won} won, {lost} lost");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_becomes_slow_gets_no_more_than_the_budget() {
    let memory = MemoryStore::new();
    memory.insert("cold", Bytes::from_static(b"bytes"));
    let fault = Fault::new(Arc::new(memory), 7);
    let (metrics, store) = classes(Arc::new(fault.clone()), HedgeOptions::default(), 64);
    for rule in one_in_twenty_is_slow(Action::Delay) {
        fault.add(rule);
    }
    for _ in 0..2000 {
        store.get("cold", RANGE).await.unwrap();
    }
    fault.clear();
    fault.add(Rule::new(Action::Delay(25 * USUAL, 50 * USUAL)));
    let before = hedges(&metrics, Operation::Get);
    for n in 1..=2000_u64 {
        store.get("cold", RANGE).await.unwrap();
        let [won, lost, _] = hedges(&metrics, Operation::Get);
        let extra = won + lost - before[0] - before[1];
        assert!(extra <= 64 + n / 20, "{extra} extra requests of {n}");
    }
    // Once most recent requests were slow, only the slowest of them are sent again.
    let settled = hedges(&metrics, Operation::Get);
    for _ in 0..2000 {
        store.get("cold", RANGE).await.unwrap();
    }
    let [won, lost, denied] = hedges(&metrics, Operation::Get);
    assert!(won + lost - settled[0] - settled[1] <= 100, "{settled:?}, then {won}, {lost}");
    assert!(denied - settled[2] <= 200, "{settled:?}, then {denied} denied");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_always_answers_fast_is_never_hedged() {
    let rules =
        [Rule::new(Action::Delay(ms(1), ms(1))), Rule::new(Action::Delay(ms(3), ms(3))).probability(0.05)];
    for (_, _, metrics) in measured(&rules, HedgeOptions::default()).await {
        assert_eq!([Operation::Get, Operation::Put].map(|of| hedges(&metrics, of)), [[0; 3]; 2]);
    }
}

#[tokio::test]
async fn a_directory_is_not_hedged_and_a_bucket_is_unless_it_is_disabled() {
    let directory = tempfile::tempdir().unwrap();
    let local = format!("file://{}", directory.path().join("store").display());
    let server = FakeS3::start(|_| Reply::Close(Vec::new())).await;
    for (location, percent, is_hedged) in
        [(&*local, 5, false), ("s3://disks/at", 5, true), ("s3://disks/at", 0, false)]
    {
        let options = store::Options {
            s3: server.options(),
            hedge: HedgeOptions { percent, ..HedgeOptions::default() },
            probe: None,
            ..store::Options::default()
        };
        let (location, drawn) =
            (location.parse::<Location>().unwrap(), Drawn { seed: 1, nonce: "n".into(), now_seconds: 0 });
        let opened = store::open(&location, &options, Metrics::new().store(), &drawn).await.unwrap();
        let Classes { reads, journal, uploads, ahead, bulk } = opened.store;
        let hedged = [&reads, &journal].map(|class| format!("{class:?}").contains("Hedge"));
        assert_eq!(hedged, [is_hedged; 2], "{location} with {percent}%");
        for class in [uploads, ahead, bulk] {
            assert!(!format!("{class:?}").contains("Hedge"), "{class:?}");
        }
    }
}

/// What a request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Fine,
    Absent,
    Taken,
    Throttled,
    Timeout,
    Broken,
    Other,
}
use Answer::{Absent, Broken, Fine, Other, Taken, Throttled, Timeout};

/// Answers requests in the order in which they come, as a script says; then all in the usual time.
#[derive(Clone, Debug, Default)]
struct Scripted(Arc<Mutex<Script>>);

/// The answers to come, each with its time in milliseconds, and the requests so far.
type Script = (VecDeque<(u64, Answer)>, Vec<String>);

impl Scripted {
    async fn answer(&self, request: String, key: &str) -> Result<Bytes, Error> {
        let (time, answer) = {
            let (script, requests) = &mut *self.0.lock();
            requests.push(request);
            script.pop_front().unwrap_or((20, Fine))
        };
        tokio::time::sleep(ms(time)).await;
        let (key, source) = (key.to_owned(), store::error::cause("scripted"));
        match answer {
            Fine => Ok(Bytes::from_static(b"ours")),
            Other => Ok(Bytes::from_static(b"others")),
            Absent => Err(Error::NotFound { key }),
            Taken => Err(Error::PreconditionFailed { key }),
            Throttled => Err(Error::Throttled { key, source }),
            Timeout => Err(Error::Timeout { key, after_ms: 0 }),
            Broken => Err(Error::Denied { key, source }),
        }
    }
}

#[async_trait]
impl Store for Scripted {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        let body = self.answer(format!("GET {key} {range:?}"), key).await?;
        Ok(Object { body, etag: ETag("etag".into()) })
    }
    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        self.answer(format!("PUT {key} {body:?} {condition:?}"), key).await.map(|_| ETag("etag".into()))
    }
    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        self.answer(format!("DELETE {keys:?}"), "").await.map(drop)
    }
    async fn list(&self, prefix: &str, _: &ListFrom) -> Result<Listing, Error> {
        self.answer(format!("LIST {prefix}"), prefix).await?;
        Ok(Listing { entries: Vec::new(), next: None })
    }
}

/// A hedged class above a script.
struct Bench {
    script: Scripted,
    metrics: StoreMetrics,
    store: Arc<dyn Store>,
    operation: Operation,
}

impl Bench {
    fn new(class: StoreClass, requests: usize) -> Self {
        let (script, metrics) = (Scripted::default(), Metrics::new().store());
        let limit = Limit::of_class(Arc::new(script.clone()), requests, metrics.clone(), class);
        let store = Hedging::new(HedgeOptions::default(), metrics.clone()).above(class, Arc::new(limit));
        let operation = if class == StoreClass::Reads { Operation::Get } else { Operation::Put };
        Self { script, metrics, store, operation }
    }

    /// Sends requests that take 20 ms, and a few that take long, until a request counts as slow after 20 ms.
    async fn warm(class: StoreClass, requests: usize) -> Self {
        let bench = Self::new(class, requests);
        for n in 0..600 {
            bench.script.0.lock().0.push_back((if n % 50 == 0 { 400 } else { 20 }, Fine));
        }
        while !bench.script.0.lock().0.is_empty() {
            bench.request().await.unwrap();
        }
        bench.script.0.lock().1.clear();
        bench
    }

    async fn request(&self) -> Result<(), Error> {
        match self.operation {
            Operation::Get => self.store.get("key", RANGE).await.map(drop),
            _ => self.store.put("key", Bytes::from_static(b"ours"), Condition::IfAbsent).await.map(drop),
        }
    }

    /// Sends a request for which the script has these answers. Returns its outcome, and its time in
    /// milliseconds.
    async fn case(&self, answers: &[(u64, Answer)]) -> (StoreOutcome, u128) {
        // Whatever the case before was, nothing is wrong any more.
        tokio::time::advance(ms(60_000)).await;
        self.script.0.lock().0 = answers.iter().copied().collect();
        let begun = Instant::now();
        let answer = self.request().await;
        assert_eq!(self.script.0.lock().0.len(), 0, "{answers:?} were all asked for");
        let outcome = answer.as_ref().map_or_else(Error::outcome, |()| StoreOutcome::Ok);
        (outcome, begun.elapsed().as_millis())
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.script.0.lock().1)
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_counts_that_the_other_cannot_improve_on() {
    use StoreOutcome as Is;
    let bench = Bench::warm(StoreClass::Reads, 64).await;
    for (first, second, outcome, time) in [
        ((300, Fine), (20, Fine), Is::Ok, 40),
        ((50, Fine), (200, Fine), Is::Ok, 50),
        // No single 404 is believed while the other request is on its way.
        ((50, Absent), (60, Fine), Is::Ok, 80),
        ((300, Fine), (20, Absent), Is::Ok, 300),
        ((50, Absent), (60, Absent), Is::NotFound, 80),
        ((50, Absent), (60, Timeout), Is::Timeout, 80),
        ((300, Broken), (20, Absent), Is::Denied, 300),
        // A failure is not the last word either.
        ((50, Timeout), (60, Fine), Is::Ok, 80),
        ((300, Fine), (20, Broken), Is::Ok, 300),
        ((50, Broken), (60, Broken), Is::Denied, 80),
    ] {
        let found = bench.case(&[first, second]).await;
        assert_eq!(found, (outcome, time), "{first:?}, then {second:?}");
        let requests = bench.requests();
        assert_eq!(requests, [&*format!("GET key {RANGE:?}"); 2], "both are the same");
    }
    // A request that is not slow is not sent again, whatever its answer is.
    for (answer, outcome) in [(Fine, Is::Ok), (Absent, Is::NotFound), (Timeout, Is::Timeout)] {
        assert_eq!(bench.case(&[(20, answer)]).await, (outcome, 20));
    }
}

#[tokio::test(start_paused = true)]
async fn a_put_that_finds_its_object_in_place_answers_at_once_and_an_unknown_effect_stays_unknown() {
    use StoreOutcome as Is;
    let bench = Bench::warm(StoreClass::Journal, 64).await;
    for (first, second, outcome, time) in [
        ((300, Fine), (20, Fine), Is::Ok, 40),
        ((50, Fine), (200, Fine), Is::Ok, 50),
        ((50, Taken), (200, Fine), Is::PreconditionFailed, 50),
        ((50, Timeout), (60, Fine), Is::Ok, 80),
        ((50, Timeout), (60, Broken), Is::Timeout, 80),
        ((50, Broken), (60, Timeout), Is::Timeout, 80),
        ((50, Timeout), (60, Taken), Is::PreconditionFailed, 80),
    ] {
        let found = bench.case(&[first, second]).await;
        assert_eq!(found, (outcome, time), "{first:?}, then {second:?}");
        assert_eq!(bench.requests(), [r#"PUT key b"ours" IfAbsent"#; 2], "both are the same");
    }
}

#[tokio::test(start_paused = true)]
async fn once_a_slow_put_had_taken_effect_the_next_is_looked_for_before_it_is_sent_again() {
    use StoreOutcome as Is;
    const PUT: &str = r#"PUT key b"ours" IfAbsent"#;
    const GET: &str = "GET key Full";
    let bench = Bench::warm(StoreClass::Journal, 64).await;
    assert_eq!(bench.case(&[(300, Fine), (20, Taken)]).await, (Is::PreconditionFailed, 40));
    assert_eq!(bench.requests(), [PUT, PUT]);
    for (found, outcome, time) in
        [(Fine, Is::Ok, 40), (Other, Is::PreconditionFailed, 40), (Timeout, Is::Ok, 300), (Fine, Is::Ok, 40)]
    {
        assert_eq!(bench.case(&[(300, Fine), (20, found)]).await, (outcome, time), "{found:?}");
        assert_eq!(bench.requests(), [PUT, GET]);
    }
    assert_eq!(bench.case(&[(300, Fine), (20, Absent), (20, Fine)]).await, (Is::Ok, 60));
    assert_eq!(bench.requests(), [PUT, GET, PUT], "it had not taken effect");
    assert_eq!(bench.case(&[(300, Fine), (20, Fine)]).await, (Is::Ok, 40));
    assert_eq!(bench.requests(), [PUT, PUT], "so the next one is sent again");
}

#[tokio::test(start_paused = true)]
async fn only_reads_and_the_creation_of_records_are_hedged() {
    for class in StoreClass::ALL {
        let bench = Bench::warm(*class, 64).await;
        let (store, body) = (&bench.store, Bytes::from_static(b"head"));
        let etag = ETag("etag".into());
        bench.script.0.lock().0.extend([(400, Fine); 4]);
        store.put("head", body.clone(), Condition::IfMatch(etag)).await.unwrap();
        store.put("chunk", body.clone(), Condition::Always).await.unwrap();
        store.delete(&["key".to_owned()]).await.unwrap();
        store.list("journal/", &ListFrom::Start).await.unwrap();
        if *class != StoreClass::Reads {
            bench.script.0.lock().0.push_back((400, Fine));
            store.get("key", RANGE).await.unwrap();
        }
        if *class != StoreClass::Journal {
            bench.script.0.lock().0.push_back((400, Fine));
            store.put("identity", body, Condition::IfAbsent).await.unwrap();
        }
        let requests = bench.requests();
        let once: std::collections::BTreeSet<&String> = requests.iter().collect();
        assert_eq!(once.len(), requests.len(), "{class:?}: {requests:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_hedged_while_requests_fail() {
    for (failure, outcome, pause) in [
        (Throttled, StoreOutcome::Throttled, 10_000),
        (Timeout, StoreOutcome::Timeout, 1000),
        (Broken, StoreOutcome::Denied, 1000),
    ] {
        let bench = Bench::warm(StoreClass::Reads, 64).await;
        assert_eq!(bench.case(&[(20, failure)]).await, (outcome, 20));
        let denied = hedges(&bench.metrics, Operation::Get)[2];
        bench.requests();
        bench.script.0.lock().0.push_back((pause - 100, Fine));
        bench.request().await.unwrap();
        assert_eq!(bench.requests().len(), 1, "{failure:?}");
        assert_eq!(hedges(&bench.metrics, Operation::Get)[2], denied + 1);
        tokio::time::advance(ms(100)).await;
        bench.script.0.lock().0.push_back((300, Fine));
        bench.request().await.unwrap();
        assert_eq!(bench.requests().len(), 2, "{failure:?}: it has passed");
    }
    // Also if the other request succeeded.
    let bench = Bench::warm(StoreClass::Reads, 64).await;
    assert_eq!(bench.case(&[(300, Fine), (20, Throttled)]).await, (StoreOutcome::Ok, 300));
    bench.requests();
    bench.script.0.lock().0.push_back((300, Fine));
    bench.request().await.unwrap();
    assert_eq!(bench.requests().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_class_at_its_limit_sends_nothing_twice() {
    let bench = Bench::warm(StoreClass::Reads, 1).await;
    assert_eq!(bench.case(&[(300, Fine)]).await, (StoreOutcome::Ok, 300));
    let [won, lost, denied] = hedges(&bench.metrics, Operation::Get);
    assert_eq!((won, lost), (0, 0), "the only place is taken by the first request");
    assert!(denied > 0);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_nobody_waits_for_is_counted_and_ends() {
    let bench = Bench::warm(StoreClass::Reads, 2).await;
    let [won, lost, _] = hedges(&bench.metrics, Operation::Get);
    bench.script.0.lock().0.extend([(1000, Fine); 2]);
    tokio::time::timeout(ms(100), bench.request()).await.unwrap_err();
    assert_eq!(bench.requests().len(), 2);
    assert_eq!(hedges(&bench.metrics, Operation::Get)[..2], [won, lost + 1]);
    // Both have given their permits back.
    let both = futures::future::join(bench.request(), bench.request());
    let begun = Instant::now();
    let (one, other) = both.await;
    one.and(other).unwrap();
    assert_eq!(begun.elapsed(), ms(20));
}
