//! Tests of when the store is listed, on a store in memory with a paused clock.

use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::effect::Durability::{Durable, Volatile};
use crate::gateway::open_volumes::Options;
use crate::store::fault::{Action, Failure, Rule};
use crate::store::{
    ByteRange, Classes, Condition, ETag, Error, Fault, ListFrom, Listing, MemoryStore, Object, Operation,
    Store,
};
use crate::volume::{self, DirtyBudget, Entropy, PageCache};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The prefix that a census lists.
const OBJECTS: &str = "volume/";
/// The prefix under which names are looked up.
const NAMES: &str = "name/";

/// A store that remembers when it was listed.
#[derive(Debug)]
struct Timed {
    inner: Fault,
    lists: Mutex<Vec<(Instant, String)>>,
}

#[async_trait]
impl Store for Timed {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        self.inner.get(key, range).await
    }
    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        self.inner.put(key, body, condition).await
    }
    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        self.inner.delete(keys).await
    }
    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        self.lists.lock().push((Instant::now(), prefix.to_owned()));
        self.inner.list(prefix, from).await
    }
}

/// A census of a store with the volume `a` and further objects of that volume.
struct Bench {
    /// The environment of the open volumes. Its requests are not recorded.
    env: Environment,
    memory: MemoryStore,
    fault: Fault,
    timed: Arc<Timed>,
    volumes: Arc<OpenVolumes>,
    metrics: Metrics,
    census: Arc<Census>,
}

impl Bench {
    async fn new(objects: usize, interval: Option<Duration>) -> Self {
        let memory = MemoryStore::new();
        let env = environment(Arc::new(memory.clone()), 1);
        let made = create(&env, "a").await;
        for n in 0..objects {
            memory.insert(&format!("volume/{made}/chunk/aa/{n}-0-9"), Bytes::from_static(b"0123456789"));
        }
        let fault = Fault::new(Arc::new(memory.clone()), 0);
        let timed = Arc::new(Timed { inner: fault.clone(), lists: Mutex::default() });
        let options = Options {
            volume: volume::Options { holder_name: "gateway".to_owned(), ..volume::Options::default() },
            idle_timeout: DAY * 30,
            maximum_open: 2,
        };
        let metrics = Metrics::new();
        let volumes = OpenVolumes::new(env.clone(), options, metrics.clone());
        let counting = environment(Arc::<Timed>::clone(&timed), 2);
        let reaper = Reaper::new(counting.clone(), volume::Options::default());
        let census = Census::start(counting, Arc::clone(&volumes), metrics.clone(), reaper, interval);
        Self { env, memory, fault, timed, volumes, metrics, census }
    }

    /// Returns when this prefix was listed, as time since `start`.
    fn lists(&self, prefix: &str, start: Instant) -> Vec<Duration> {
        let lists = self.timed.lists.lock();
        let lists = lists.iter().filter(|(at, listed)| *at >= start && listed == prefix);
        lists.map(|(at, _)| *at - start).collect()
    }

    /// Returns the names of the last census.
    fn names(&self) -> Option<Vec<String>> {
        let known = self.census.known()?;
        Some(known.listed.into_iter().map(|listed| listed.name).collect())
    }
}

fn environment(store: Arc<dyn Store>, seed: u64) -> Environment {
    Environment {
        store: Classes::one(store),
        cache: PageCache::new(1 << 20, 1 << 20),
        budget: DirtyBudget::new(16 << 20),
        entropy: Entropy::seeded(seed),
        wall_clock: Arc::new(|| 1_700_000_000),
    }
}

async fn create(env: &Environment, name: &str) -> Uuid {
    catalog::create(env, &volume::Options::default(), name, 1 << 30, catalog::ChunkBytes(4 << 20))
        .await
        .unwrap()
        .volume
}

/// Writes and flushes a block every half minute for a day.
async fn write_for_a_day(bench: &Bench) {
    let opened = bench.volumes.open("a").await.unwrap();
    for n in 0..2 * 24 * 60_u64 {
        opened.volume.write(n % 100 * 4096, Bytes::from(vec![1; 4096]), Volatile).await.unwrap();
        opened.volume.flush().await.unwrap();
        tokio::time::sleep(MINUTE / 2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn while_data_is_written_the_store_is_listed_once_a_minute_on_average() {
    let bench = Bench::new(4200, Some(HOUR)).await;
    let start = Instant::now();
    write_for_a_day(&bench).await;
    let lists = bench.lists(OBJECTS, start);
    let pages = 5;
    assert_eq!(lists[0], MINUTE, "the first census comes after a minute, if nobody asks");
    for census in lists.chunks_exact(pages) {
        assert!(census.windows(2).all(|two| two[1] - two[0] == SECOND), "one LIST a second: {census:?}");
    }
    let names = bench.lists(NAMES, start);
    for (n, two) in lists.chunks_exact(pages).collect::<Vec<_>>().windows(2).enumerate() {
        let (begin, next) = (two[0][0], two[1][0]);
        let sent = pages + names.iter().filter(|at| (begin..next).contains(*at)).count();
        let period = 5 * SECOND + u32::try_from(sent).unwrap() * MINUTE;
        assert_eq!(next - begin, period, "a minute of rest for each LIST, after census {n}");
    }
    let (minutes, sent) = (24 * 60, lists.len() + names.len());
    assert!((minutes * 9 / 10..=minutes).contains(&sent), "{sent} LISTs in a day");
    let names = names.len();
    assert!((20..=24).contains(&names), "names are looked up once an hour: {names} times in a day");
}

/// Then names are looked up at each census.
#[tokio::test(start_paused = true)]
async fn at_the_shortest_interval_the_store_is_listed_once_a_minute_on_average() {
    for writes in [false, true] {
        let bench = Bench::new(100, Some(MINUTE)).await;
        let start = Instant::now();
        if writes {
            write_for_a_day(&bench).await;
        } else {
            tokio::time::sleep(DAY).await;
        }
        let (objects, names) = (bench.lists(OBJECTS, start).len(), bench.lists(NAMES, start).len());
        let (minutes, sent) = (24 * 60, objects + names);
        assert_eq!(objects, names, "both at each census");
        assert!((minutes * 9 / 10..=minutes).contains(&sent), "{sent} LISTs in a day (writes: {writes})");
    }
}

/// Whoever creates a volume a minute waits for the names, not for a count of all objects.
#[tokio::test(start_paused = true)]
async fn changes_that_are_made_here_do_not_delay_the_count_and_add_one_list_each() {
    let bench = Bench::new(4200, Some(HOUR)).await;
    tokio::time::sleep(HOUR).await;
    let start = Instant::now();
    for n in 0..60 {
        create(&bench.env, &format!("made-{n}")).await;
        bench.census.has_changed();
        tokio::time::sleep(MINUTE).await;
    }
    tokio::time::sleep(MINUTE * 10).await;
    let (objects, names) = (bench.lists(OBJECTS, start).len(), bench.lists(NAMES, start).len());
    assert!((5..=10).contains(&objects), "{objects} LISTs of objects: one census, or two");
    assert!((60..=62).contains(&names), "{names} LISTs of names for 60 changes");
    assert_eq!(bench.names().unwrap().len(), 61);
}

/// The renewal of its lease is all that an open volume writes while nobody uses it.
#[tokio::test(start_paused = true)]
async fn while_nothing_is_written_the_store_is_counted_once_in_each_interval() {
    let bench = Bench::new(100, Some(HOUR)).await;
    let _open = bench.volumes.open("a").await.unwrap();
    tokio::time::sleep(HOUR).await;
    let start = Instant::now();
    tokio::time::sleep(DAY).await;
    let (objects, names) = (bench.lists(OBJECTS, start).len(), bench.lists(NAMES, start).len());
    assert!((22..=24).contains(&objects), "{objects} LISTs of objects in a day");
    assert!(names <= objects, "{names} LISTs of names in a day");
}

#[tokio::test(start_paused = true)]
async fn the_first_query_requests_a_census_and_later_ones_cost_nothing() {
    let bench = Bench::new(100, Some(HOUR)).await;
    let start = Instant::now();
    assert_eq!(bench.names(), None);
    tokio::time::sleep(SECOND * 2).await;
    for _ in 0..1000 {
        assert_eq!(bench.names().unwrap(), ["a"]);
        assert!(!bench.metrics.render().is_empty());
    }
    tokio::time::sleep(MINUTE * 30).await;
    assert_eq!(bench.lists(OBJECTS, start), [Duration::ZERO]);
    assert_eq!(bench.lists(NAMES, start), [SECOND]);
    assert!(bench.metrics.render().contains("cairn_stored_bytes{volume=\"a\"} "), "a closed volume counts");
}

#[tokio::test(start_paused = true)]
async fn a_change_that_is_made_here_is_known_at_once() {
    let bench = Bench::new(100, Some(HOUR)).await;
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(bench.names().unwrap(), ["a"]);
    create(&bench.env, "b").await;
    let start = Instant::now();
    bench.census.has_changed();
    tokio::time::sleep(SECOND * 2).await;
    assert_eq!(bench.names().unwrap(), ["a", "b"]);
    // A deletion that was cut short has taken the name and left the objects.
    bench.memory.remove("name/b").unwrap();
    bench.census.has_changed();
    tokio::time::sleep(SECOND * 2).await;
    assert_eq!(bench.names().unwrap(), ["a"]);
    assert_eq!(bench.lists(NAMES, start).len(), 2, "one for each change");
    assert_eq!(bench.lists(OBJECTS, start).len(), 0, "objects are counted when it is their time");
}

/// Names are looked up before their interval is over only if the set of volumes has changed.
#[tokio::test(start_paused = true)]
async fn a_volume_that_was_created_elsewhere_is_known_after_the_next_count() {
    let bench = Bench::new(100, Some(HOUR)).await;
    let opened = bench.volumes.open("a").await.unwrap();
    tokio::time::sleep(MINUTE * 5).await;
    create(&bench.env, "b").await;
    opened.volume.write(0, Bytes::from_static(b"x"), Durable).await.unwrap();
    tokio::time::sleep(MINUTE * 3).await;
    assert_eq!(bench.names().unwrap(), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_listed_once_a_minute() {
    let bench = Bench::new(100, Some(HOUR)).await;
    let start = Instant::now();
    bench.fault.add(Rule::new(Action::FailBefore(Failure::Transient)).on(Operation::List));
    tokio::time::sleep(HOUR + MINUTE / 2).await;
    let lists = bench.lists(OBJECTS, start);
    assert_eq!(lists.len(), 60);
    assert!(lists.windows(2).all(|two| two[1] - two[0] == MINUTE), "{lists:?}");
    // Nor does anybody who asks in the meantime, as an open page does.
    let start = Instant::now();
    for _ in 0..30 * 30 {
        assert_eq!(bench.names(), None);
        tokio::time::sleep(SECOND * 2).await;
    }
    // The first query has one sent at once.
    let lists = bench.lists(OBJECTS, start).len();
    assert!((30..=31).contains(&lists), "{lists} LISTs in half an hour");
    bench.fault.clear();
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(bench.names().unwrap(), ["a"]);
}

/// A failure after a change leaves a list that is out of date, which must not stay for the whole interval.
#[tokio::test(start_paused = true)]
async fn names_that_could_not_be_looked_up_are_looked_up_within_minutes() {
    let bench = Bench::new(100, Some(HOUR)).await;
    tokio::time::sleep(MINUTE * 5).await;
    assert_eq!(bench.names().unwrap(), ["a"]);
    create(&bench.env, "b").await;
    bench.fault.add(Rule::new(Action::FailBefore(Failure::Transient)).on(Operation::List));
    bench.census.has_changed();
    tokio::time::sleep(MINUTE / 2).await;
    assert_eq!(bench.names().unwrap(), ["a"], "what is known is shown");
    bench.fault.clear();
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(bench.names().unwrap(), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn without_an_interval_nothing_is_counted() {
    let bench = Bench::new(100, None).await;
    let start = Instant::now();
    for _ in 0..24 {
        assert_eq!(bench.names(), None);
        bench.census.has_changed();
        tokio::time::sleep(HOUR).await;
    }
    assert_eq!((bench.lists(OBJECTS, start), bench.lists(NAMES, start)), (Vec::new(), Vec::new()));
}
