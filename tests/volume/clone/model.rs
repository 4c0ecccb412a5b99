//! Disks and their clones against arrays of bytes, by random commands.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn::volume::{Environment, OpenError, Options, SnapshotError, Volume, catalog};
use proptest::prelude::*;

use super::super::bench::{Bench, MIB};
use super::super::engine::Model;
use super::super::stored::assert_exact_for_all;
use super::{BLOCK, COLLECTED, KIB, open, process, small_bench};

/// Limit on the volumes of a run.
const MOST: usize = 6;

/// A command to one of the volumes, chosen by a number.
#[derive(Clone, Debug)]
enum Command {
    Write { of: usize, offset: u64, length: u64 },
    Zero { of: usize, offset: u64, length: u64, hole: bool },
    Flush(usize),
    Checkpoint(usize),
    Snapshot(usize),
    Clone { of: usize, snapshot: usize },
    Restore { of: usize, snapshot: usize },
    DeleteSnapshot { of: usize, snapshot: usize },
    Delete(usize),
    Crash(usize),
    Close(usize),
}

fn command() -> impl Strategy<Value = Command> {
    let of = 0..MOST;
    let range = prop_oneof![
        (0..15_u64, 1..3_u64).prop_map(|(at, n)| (at * 64 * KIB, (n * 64 * KIB).min(MIB - at * 64 * KIB))),
        (0..240_u64, 1..8_u64).prop_map(|(at, n)| (at * BLOCK, n * BLOCK)),
        (0..MIB - 10_000, 1..10_000_u64),
    ];
    let of_snapshot = (of.clone(), 0..4_usize);
    prop_oneof![
        10 => (of.clone(), range.clone()).prop_map(|(of, (offset, length))| Command::Write { of, offset, length }),
        3 => (of.clone(), range, any::<bool>())
            .prop_map(|(of, (offset, length), hole)| Command::Zero { of, offset, length, hole }),
        1 => of.clone().prop_map(Command::Flush),
        4 => of.clone().prop_map(Command::Checkpoint),
        3 => of.clone().prop_map(Command::Snapshot),
        4 => of_snapshot.clone().prop_map(|(of, snapshot)| Command::Clone { of, snapshot }),
        1 => of_snapshot.clone().prop_map(|(of, snapshot)| Command::Restore { of, snapshot }),
        3 => of_snapshot.prop_map(|(of, snapshot)| Command::DeleteSnapshot { of, snapshot }),
        2 => of.clone().prop_map(Command::Delete),
        1 => of.clone().prop_map(Command::Crash),
        1 => of.prop_map(Command::Close),
    ]
}

/// A volume that is open, and what it must contain.
struct Side {
    name: String,
    volume: Arc<Volume>,
    model: Model,
    snapshots: BTreeMap<String, Model>,
    /// The volume and the snapshot that it is a clone of.
    of: Option<(String, String)>,
}

struct World {
    bench: Bench,
    env: Environment,
    options: Options,
    sides: Vec<Side>,
    count: u64,
}

impl World {
    async fn new() -> Self {
        let bench = small_bench().await;
        let (env, options) = (process(&bench, 77), bench.options.clone());
        let volume = open(&env, &options, "disk").await;
        let model = Model::new(0, MIB);
        let first = Side { name: "disk".to_owned(), volume, model, snapshots: BTreeMap::new(), of: None };
        Self { bench, env, options, sides: vec![first], count: 0 }
    }

    async fn reopen(&mut self, at: usize) {
        let side = &mut self.sides[at];
        side.volume = open(&self.env, &self.options, &side.name).await;
        side.model.check(&side.volume, &format!("{} is opened again", side.name)).await;
    }

    /// The names of the clones of a volume, or of one of its snapshots.
    fn clones(&self, name: &str, snapshot: Option<&str>) -> Vec<String> {
        let is_clone = |side: &&Side| {
            side.of.as_ref().is_some_and(|(of, at)| of == name && snapshot.is_none_or(|one| one == at))
        };
        self.sides.iter().filter(is_clone).map(|side| side.name.clone()).collect()
    }

    async fn delete_snapshot(&mut self, at: usize, snapshot: &str) {
        let clones = self.clones(&self.sides[at].name, Some(snapshot));
        let side = &mut self.sides[at];
        match side.volume.delete_snapshot(snapshot).await {
            Ok(()) if clones.is_empty() => drop(side.snapshots.remove(snapshot)),
            Err(SnapshotError::Pinned { clones: mut told, .. }) if !clones.is_empty() => {
                told.names.sort_unstable();
                let mut clones = clones;
                clones.sort_unstable();
                assert_eq!((told.names, told.more), (clones, 0));
            }
            other => panic!("{}@{snapshot}, cloned as {clones:?}: {other:?}", side.name),
        }
    }

    async fn delete(&mut self, at: usize) {
        let name = self.sides[at].name.clone();
        let clones = self.clones(&name, None);
        self.sides[at].volume.close().await.unwrap();
        match catalog::delete(&self.env, &self.options, &name, false).await {
            Ok(()) if clones.is_empty() => drop(self.sides.remove(at)),
            Err(OpenError::HasClones { .. }) if !clones.is_empty() => self.reopen(at).await,
            other => panic!("{name}, cloned as {clones:?}: {other:?}"),
        }
    }

    async fn execute(&mut self, command: Command) {
        self.count += 1;
        let (n, sides) = (self.count, self.sides.len());
        let nth = |side: &Side, n: usize| side.snapshots.keys().nth(n % side.snapshots.len().max(1)).cloned();
        match command {
            Command::Write { of, offset, length } => {
                let Side { volume, model, .. } = &mut self.sides[of % sides];
                model.write(volume, offset, n, usize::try_from(length).unwrap()).await;
            }
            Command::Zero { of, offset, length, hole } => {
                let Side { volume, model, .. } = &mut self.sides[of % sides];
                model.zero(volume, offset, usize::try_from(length).unwrap(), hole).await;
            }
            Command::Flush(of) => self.sides[of % sides].volume.flush().await.unwrap(),
            Command::Checkpoint(of) => self.sides[of % sides].volume.checkpoint().await.unwrap(),
            Command::Snapshot(of) => {
                let side = &mut self.sides[of % sides];
                side.volume.snapshot(&format!("s{n}")).await.unwrap();
                side.snapshots.insert(format!("s{n}"), side.model.clone());
            }
            Command::Clone { of, snapshot } => {
                let parent = &self.sides[of % sides];
                let Some(snapshot) = nth(parent, snapshot).filter(|_| sides < MOST) else { return };
                let (name, model) = (format!("clone-{n}"), parent.snapshots[&snapshot].clone());
                let (env, options) = (&self.env, &self.options);
                catalog::clone(&parent.volume, &snapshot, &name).await.unwrap();
                let volume = open(env, options, &name).await;
                model.check(&volume, &format!("{name} is new")).await;
                let of = Some((parent.name.clone(), snapshot));
                self.sides.push(Side { name, volume, model, snapshots: BTreeMap::new(), of });
            }
            Command::Restore { of, snapshot } => {
                let side = &mut self.sides[of % sides];
                let Some(snapshot) = nth(side, snapshot) else { return };
                side.volume.restore(&snapshot).await.unwrap();
                side.model = side.snapshots[&snapshot].clone();
                self.reopen(of % sides).await;
            }
            Command::DeleteSnapshot { of, snapshot } => {
                let Some(snapshot) = nth(&self.sides[of % sides], snapshot) else { return };
                self.delete_snapshot(of % sides, &snapshot).await;
            }
            Command::Delete(of) => {
                if sides > 1 {
                    self.delete(of % sides).await;
                }
            }
            Command::Crash(of) => {
                self.sides[of % sides].volume.flush().await.unwrap();
                self.sides[of % sides].volume.abandon().await;
                self.reopen(of % sides).await;
            }
            Command::Close(of) => {
                self.sides[of % sides].volume.close().await.unwrap();
                self.reopen(of % sides).await;
            }
        }
    }

    /// Asserts that every disk has what it must have, and that the bucket has nothing else.
    async fn check(&self, when: &str) {
        for side in &self.sides {
            side.volume.checkpoint().await.unwrap();
        }
        tokio::time::sleep(COLLECTED).await;
        assert_exact_for_all(&self.bench);
        for side in &self.sides {
            side.model.check(&side.volume, &format!("{}, {when}", side.name)).await;
        }
    }
}

async fn run(commands: Vec<Command>) {
    let mut world = World::new().await;
    for command in commands {
        world.execute(command).await;
    }
    // Whoever opens a volume after a crash sweeps what is left.
    for at in 0..world.sides.len() {
        world.sides[at].volume.close().await.unwrap();
        world.reopen(at).await;
    }
    world.check("at the end").await;
    while world.sides.len() > 1 {
        let is_leaf = |side: &Side| world.clones(&side.name, None).is_empty();
        let leaf = world.sides.iter().position(is_leaf).expect("a clone has another parent");
        world.delete(leaf).await;
        world.check("after a deletion").await;
    }
    let snapshots: Vec<String> = world.sides[0].snapshots.keys().cloned().collect();
    for snapshot in snapshots {
        world.delete_snapshot(0, &snapshot).await;
    }
    world.check("without snapshots").await;
    world.sides[0].volume.close().await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn disks_and_their_clones_behave_as_arrays_of_bytes(commands in prop::collection::vec(command(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(commands));
    }
}
