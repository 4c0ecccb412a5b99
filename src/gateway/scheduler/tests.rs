//! Tests of the task that follows the schedule, on a store in memory with a paused clock.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::gateway::open_volumes::{Options, Use};
use crate::store::fault::{Action as Fate, Failure, Rule};
use crate::store::{Classes, Fault, MemoryStore, Operation};
use crate::volume::format::snapshot::Snapshot;
use crate::volume::{DirtyBudget, Entropy, PageCache, catalog};

/// 2026-11-28T14:30:00Z, a Saturday.
const START: u64 = 1_795_876_200;
const HOUR: u64 = 3600;

struct Bench {
    volumes: Arc<OpenVolumes>,
    snapshots: Arc<OpenSnapshots>,
    metrics: Metrics,
    memory: MemoryStore,
    fault: Fault,
    time: Arc<AtomicU64>,
    scheduler: Arc<Scheduler>,
}

impl Bench {
    /// Creates a store with two volumes, and a gateway with this schedule.
    async fn new(schedule: &str) -> Self {
        let memory = MemoryStore::new();
        let fault = Fault::new(Arc::new(memory.clone()), 0);
        let time = Arc::new(AtomicU64::new(START));
        let clock = Arc::clone(&time);
        let env = Environment {
            store: Classes::one(Arc::new(fault.clone())),
            cache: PageCache::new(16 << 20, 1 << 20),
            budget: DirtyBudget::new(16 << 20),
            entropy: Entropy::seeded(1),
            wall_clock: Arc::new(move || clock.load(Ordering::SeqCst)),
        };
        let of_volume =
            volume::Options { store_deadline: Some(Duration::from_secs(1)), ..volume::Options::default() };
        for name in ["open", "closed"] {
            catalog::create(&env, &of_volume, name, 1 << 30, catalog::ChunkBytes(4 << 20)).await.unwrap();
        }
        let metrics = Metrics::new();
        let how =
            Options { volume: of_volume.clone(), idle_timeout: Duration::from_secs(3600), maximum_open: 9 };
        let volumes = OpenVolumes::new(env.clone(), how, metrics.clone());
        let snapshots = OpenSnapshots::new(env.clone(), of_volume, metrics.clone(), Arc::clone(&volumes));
        let schedule = schedule.parse().unwrap();
        let (of_task, open) = (Arc::clone(&snapshots), Arc::clone(&volumes));
        let scheduler = Scheduler::start(env, open, of_task, metrics.clone(), schedule);
        Self { volumes, snapshots, metrics, memory, fault, time, scheduler }
    }

    async fn used(&self) -> Use {
        self.volumes.open("open").await.unwrap()
    }

    /// Lets time pass, and the task act.
    async fn passes(&self, seconds: u64) {
        self.time.fetch_add(seconds, Ordering::SeqCst);
        tokio::time::sleep(TICK * 2).await;
    }
}

fn names(of: &Use) -> Vec<String> {
    of.volume.snapshots().into_iter().map(|snapshot| snapshot.name).collect()
}

#[tokio::test(start_paused = true)]
async fn the_schedule_of_an_open_volume_is_met_and_shown() {
    let bench = Bench::new("hourly:2 daily:1").await;
    let disk = bench.used().await;
    disk.volume.snapshot("by-hand").await.unwrap();
    bench.passes(0).await;
    assert_eq!(names(&disk), ["by-hand", "hourly-2026-11-28T14-00Z", "daily-2026-11-28"]);
    let shown = bench.metrics.render();
    for line in [
        "cairn_snapshots{volume=\"open\"} 3\n",
        &format!("cairn_snapshot_timestamp_seconds{{volume=\"open\"}} {START}\n"),
        "cairn_snapshot_interval_seconds 3600\n",
        "cairn_snapshot_failures_total{volume=\"open\"} 0\n",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    assert!(!bench.volumes.has("closed"), "a volume that is not open is left alone");
    bench.passes(HOUR).await;
    bench.passes(HOUR).await;
    bench.passes(1).await;
    let hours = ["hourly-2026-11-28T15-00Z", "hourly-2026-11-28T16-00Z"];
    assert_eq!(names(&disk), ["by-hand", "daily-2026-11-28", hours[0], hours[1]]);

    bench.scheduler.set("daily:1".parse().unwrap());
    bench.passes(24 * HOUR).await;
    assert_eq!(names(&disk), ["by-hand", hours[0], hours[1], "daily-2026-11-29"]);
    bench.scheduler.set(Schedule::default());
    bench.passes(24 * HOUR).await;
    assert_eq!(names(&disk).len(), 4, "without a schedule nothing is taken or deleted");
    assert!(bench.metrics.render().contains("cairn_snapshot_interval_seconds 0\n"));
    bench.scheduler.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_clients_read_is_deleted_once_they_are_gone() {
    let bench = Bench::new("hourly:1").await;
    let disk = bench.used().await;
    bench.passes(0).await;
    let read = Snapshot { name: "hourly-2026-11-28T14-00Z".to_owned(), taken_at_seconds: START };
    let identity = crate::gateway::open_snapshots::Identity { volume: disk.volume.id(), snapshot: read };
    let reader = bench.snapshots.open("open@hourly-2026-11-28T14-00Z", &identity).await.unwrap();
    bench.passes(HOUR).await;
    assert_eq!(names(&disk), ["hourly-2026-11-28T14-00Z", "hourly-2026-11-28T15-00Z"]);
    drop(reader);
    bench.passes(1).await;
    assert_eq!(names(&disk), ["hourly-2026-11-28T15-00Z"]);
}

/// While the store takes nothing, nothing is deleted, and the failures are counted.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_taken_costs_no_older_one_and_is_taken_later() {
    let bench = Bench::new("hourly:1").await;
    let disk = bench.used().await;
    bench.passes(0).await;
    bench.fault.add(Rule::new(Fate::FailBefore(Failure::Transient)).on(Operation::Put));
    bench.passes(HOUR).await;
    assert_eq!(names(&disk), ["hourly-2026-11-28T14-00Z"]);
    assert!(disk.metrics.snapshot_failures.get() > 0);
    bench.fault.clear();
    bench.passes(1).await;
    bench.passes(1).await;
    assert_eq!(names(&disk), ["hourly-2026-11-28T15-00Z"]);
}

/// GETs that find out that a clone exists and needs its parent: two of its head, one of the root.
const LOOK: u64 = 3;

/// To find out that a clone is gone takes long, so it is tried once an hour, beside everything else.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_a_clone_keeps_is_looked_at_once_an_hour_and_holds_up_no_other() {
    let bench = Bench::new("hourly:1").await;
    let (disk, env) = (bench.used().await, bench.scheduler.env.clone());
    bench.passes(0).await;
    let hours: Vec<String> = (14..18).map(|hour| format!("hourly-2026-11-28T{hour}-00Z")).collect();
    let clone = catalog::clone(&disk.volume, &hours[0], "clone").await.unwrap().volume.to_string();
    let looks = || bench.memory.tally(Operation::Get, |key| key.contains(&clone)).requests;
    let before = looks();
    bench.passes(HOUR).await;
    for _ in 0..20 {
        bench.passes(1).await;
    }
    assert_eq!((names(&disk), looks() - before), (hours[..2].to_vec(), LOOK));
    assert_eq!(disk.metrics.snapshot_failures.get(), 0);

    let gate = bench.fault.hold(Operation::Get, &clone);
    tokio::time::sleep(KEPT).await;
    gate.reached(1).await;
    bench.passes(HOUR).await;
    bench.passes(1).await;
    assert_eq!(names(&disk), [&hours[0], &hours[2]].map(Clone::clone), "the look is still on");
    gate.release();
    bench.fault.clear();
    // Now the look ends.
    bench.passes(1).await;
    assert_eq!(names(&disk).len(), 2, "the clone was there");

    catalog::delete(&env, &volume::Options::default(), "clone", false).await.unwrap();
    bench.passes(1).await;
    assert_eq!(names(&disk).len(), 2, "not yet");
    tokio::time::sleep(KEPT + Duration::from_secs(30)).await;
    assert_eq!(names(&disk), [hours[2].clone()]);
    bench.scheduler.stop().await;
}
