//! Clones: disks of one another, by gateways of which each may crash while it makes or deletes a clone or a
//! snapshot, over a store whose answers are late.
//!
//! A run of its own for each seed, with small disks and an array of numbers beside each. It draws nothing from
//! what the other runs draw. Invariants that it checks:
//!
//! * Every disk reads as what was written to it last, and a new clone as the snapshot.
//! * A clone that was answered exists. One that exists has all its data, whatever happens to other volumes.
//! * A snapshot is deleted only if no clone of it exists, and a volume only if none of it does.
//! * That also holds while the store denies clones that exist, and if the table or the head of the volume is lost.
//! * A comparison of two snapshots, of one disk or of a disk and a clone, lists every cell that differs.
//! * In the end, what was cut short is found and removed, until nothing is left but one disk.
//! * All of that also holds if what nothing references is deleted on request at any time.
//! * A clone that was flattened needs nothing of its parent any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn::effect::{Durability, Zeroing};
use cairn::store::fault::{Action, Failure, Rule, RuleId};
use cairn::store::{Classes, Fault, MemoryStore, Operation};
use cairn::volume::catalog::ChunkBytes;
use cairn::volume::format::head::Head;
use cairn::volume::format::keys::Keys;
use cairn::volume::read::concat;
use cairn::volume::{
    Diff, DiffError, DirtyBudget, Entropy, Environment, Flattened, OpenError, Options, PageCache,
    Side as Compared, SnapshotDisk, SnapshotError, Volume, catalog, gc,
};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::driver::volume_metrics;

/// The unit of writes, in bytes.
const CELL: u64 = 4096;
/// The size of every disk, in cells: four chunks.
const CELLS: usize = 64;
const CHUNK: u64 = 64 << 10;
/// What happens in a run.
const ROUNDS: u32 = 24;
/// Limit on the volumes of a run.
const MOST: usize = 5;
/// How many snapshots of each disk are compared with all others.
const COMPARED: usize = 3;
/// Longer than the collector needs.
const COLLECTED: Duration = Duration::from_secs(60);
/// Limit on the duration of anything.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// What a disk contains: a number in each cell.
type Content = Vec<u64>;

/// A disk, and what is known of it.
struct Side {
    name: String,
    content: Content,
    snapshots: BTreeMap<String, Content>,
    /// The volume and the snapshot that it is a clone of.
    of: Option<(String, String)>,
    volume: Arc<Volume>,
    /// What its gateway suffers.
    fault: Fault,
}

struct Run {
    random: SmallRng,
    /// Decides when garbage is collected on request.
    collects: SmallRng,
    memory: MemoryStore,
    options: Options,
    seed: u64,
    sides: Vec<Side>,
    numbers: u64,
    /// Whether the creation of a clone was cut short, so that its snapshot may be kept for what is left.
    leaves_any: bool,
}

/// Runs a seed. Returns what was broken.
pub(super) fn run(seed: u64) -> Option<String> {
    let panics = super::seeds::panics();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime without I/O");
    let ended = runtime.block_on(async {
        let lives = async { Run::new(seed).await?.live().await };
        tokio::time::timeout(PATIENCE, lives).await.unwrap_or_else(|_| Err("it does not end".to_owned()))
    });
    drop(runtime);
    let is_panic = super::seeds::panics() > panics;
    let why = ended.err().or_else(|| is_panic.then(|| "a task panicked".to_owned()));
    why.map(|why| format!("clones: {why}"))
}

fn pick(random: &mut SmallRng, from: &[u64]) -> u64 {
    *from.choose(random).expect("there are some")
}

/// The number in each cell of a disk.
async fn read(volume: &Volume) -> Result<Content, String> {
    let read = volume.read(0, CELLS as u64 * CELL).await;
    let bytes = concat(&read.map_err(|error| format!("it cannot be read: {error}"))?);
    let number = |cell: &[u8]| {
        let number = u64::from_le_bytes(cell[..8].try_into().expect("eight bytes"));
        let is_whole = cell.chunks(8).all(|part| part == number.to_le_bytes());
        is_whole.then_some(number).ok_or_else(|| "a cell is torn".to_owned())
    };
    bytes.chunks(usize::try_from(CELL).expect("small")).map(number).collect()
}

impl Run {
    async fn new(seed: u64) -> Result<Self, String> {
        let mut random = SmallRng::seed_from_u64(seed ^ 0x5eed_0000_0000_00c1);
        let ms = Duration::from_millis;
        let options = Options {
            commit_max_age: ms(pick(&mut random, &[5, 5000])),
            journal_max_records: pick(&mut random, &[3, 100]),
            deletion_grace: ms(pick(&mut random, &[0, 0, 3000])),
            pack_bytes: pick(&mut random, &[1, 3, 64]) * 4096,
            overlays: usize::try_from(pick(&mut random, &[1, 3])).expect("few"),
            embed_bytes: pick(&mut random, &[0, 4096]),
            holder_name: "clones".to_owned(),
            metrics: Some(volume_metrics()),
            ..Options::default()
        };
        let memory = MemoryStore::unsorted(7);
        let collects = SmallRng::seed_from_u64(seed ^ 0x5eed_0000_0000_00c2);
        let (sides, numbers, leaves_any) = (Vec::new(), 0, false);
        let mut run = Self { random, collects, memory, options, seed, sides, numbers, leaves_any };
        let size = CELLS as u64 * CELL;
        let made = catalog::create(&run.env(), &run.options, "disk", size, ChunkBytes(CHUNK)).await;
        made.expect("an empty store takes a volume");
        run.opened("disk", vec![0; CELLS], None).await?;
        Ok(run)
    }

    /// The environment of a new process.
    fn env(&mut self) -> Environment {
        self.faulty_env().0
    }

    /// The environment of a new gateway, and what makes its requests fail. Its requests take some time, and those
    /// that make a clone a long one.
    fn faulty_env(&mut self) -> (Environment, Fault) {
        self.numbers += 1;
        let fault = Fault::new(Arc::new(self.memory.clone()), self.seed ^ self.numbers);
        let delay = Duration::from_millis(pick(&mut self.random, &[0, 3, 30]));
        if !delay.is_zero() {
            fault.add(Rule::new(Action::Delay(Duration::ZERO, delay)));
            fault.add(Rule::new(Action::DelayAnswer(Duration::ZERO, 4 * delay)).on(Operation::Put));
        }
        let long = Duration::from_secs(pick(&mut self.random, &[0, 0, 40]));
        if !long.is_zero() {
            let making = Rule::new(Action::Delay(Duration::ZERO, long)).on(Operation::Put);
            fault.add(making.containing("/root/0-"));
        }
        let env = Environment {
            store: Classes::one(Arc::new(fault.clone())),
            cache: PageCache::new(128 << 10, 1 << 20),
            budget: DirtyBudget::new(1 << 20),
            entropy: Entropy::seeded(self.seed ^ (self.numbers << 32)),
            wall_clock: Arc::new(|| 1_800_000_000),
        };
        (env, fault)
    }

    async fn open(&mut self, name: &str) -> Result<(Arc<Volume>, Fault), String> {
        let (env, fault) = self.faulty_env();
        let id =
            catalog::resolve(&env, name).await.map_err(|error| format!("{name} has no name: {error}"))?;
        let opened = Volume::open(&env, self.options.clone(), id, true).await;
        Ok((opened.map_err(|error| format!("{name} cannot be opened: {error}"))?, fault))
    }

    /// Opens a volume that is new here.
    async fn opened(
        &mut self,
        name: &str,
        content: Content,
        of: Option<(String, String)>,
    ) -> Result<(), String> {
        let (volume, fault) = self.open(name).await?;
        let snapshots = BTreeMap::new();
        self.sides.push(Side { name: name.to_owned(), content, snapshots, of, volume, fault });
        self.check(self.sides.len() - 1).await
    }

    async fn reopen(&mut self, at: usize) -> Result<(), String> {
        let name = self.sides[at].name.clone();
        let (volume, fault) = self.open(&name).await?;
        (self.sides[at].volume, self.sides[at].fault) = (volume, fault);
        self.check(at).await
    }

    async fn check(&self, at: usize) -> Result<(), String> {
        let side = &self.sides[at];
        let found = read(&side.volume).await.map_err(|error| format!("{}: {error}", side.name))?;
        let mut pairs = found.iter().zip(&side.content).enumerate();
        match pairs.find(|(_, (found, expected))| found != expected) {
            Some((cell, (found, expected))) => {
                Err(format!("{}: cell {cell} reads as {found}, not {expected}", side.name))
            }
            None => Ok(()),
        }
    }

    async fn live(&mut self) -> Result<(), String> {
        for _ in 0..ROUNDS {
            let at = self.random.random_range(0..self.sides.len());
            match self.random.random_range(0..12) {
                0..4 => self.write(at).await?,
                4 | 5 => self.snapshot(at).await?,
                6..9 => self.make_and_delete(at).await?,
                9 if self.sides.len() > 1 => drop(self.delete(at).await?),
                9 => {}
                10 => self.restore(at).await?,
                _ => {
                    let volume = &self.sides[at].volume;
                    match self.random.random() {
                        true => volume.abandon().await,
                        false => volume.close().await.map_err(|error| format!("not closed: {error}"))?,
                    }
                    self.reopen(at).await?;
                }
            }
            let at = at % self.sides.len();
            match self.collects.random_range(0..8) {
                0 | 1 => self.collect(at).await?,
                2 => self.flatten(at).await?,
                _ => {}
            }
        }
        for at in 0..self.sides.len() {
            self.check(at).await?;
        }
        self.compare().await?;
        self.end().await
    }

    /// Makes a clone independent of its parent, if no snapshot of it is in the way.
    async fn flatten(&mut self, at: usize) -> Result<(), String> {
        let Side { name, volume, of, .. } = &mut self.sides[at];
        loop {
            let flattened = volume.flatten().await;
            match flattened.map_err(|error| format!("{name}: not flattened: {error}"))? {
                Flattened::Done | Flattened::NoClone => {
                    *of = None;
                    break;
                }
                Flattened::Waits { .. } => tokio::time::sleep(COLLECTED).await,
                Flattened::Held { .. } => {
                    // What goes on in the background ends in the same way.
                    tokio::time::sleep(COLLECTED).await;
                    break;
                }
                other @ Flattened::Unreadable { .. } => return Err(format!("{name}: {other:?}")),
            }
        }
        self.check(at).await
    }

    /// Deletes what nothing references of a disk, and of no other.
    async fn collect(&self, at: usize) -> Result<(), String> {
        let Side { name, volume, .. } = &self.sides[at];
        let collected = gc::collect(volume, None).await;
        let collected = collected.map_err(|error| format!("{name}: no collection: {error}"))?;
        match collected.after.orphans.objects {
            0 => self.check(at).await,
            left => Err(format!("{name}: {left} orphans are left by a collection")),
        }
    }

    /// Compares snapshots of all disks with each other.
    async fn compare(&self) -> Result<(), String> {
        let env = Environment {
            store: Classes::one(Arc::new(self.memory.clone())),
            cache: PageCache::new(1 << 20, 1 << 20),
            budget: DirtyBudget::new(1 << 20),
            entropy: Entropy::seeded(1),
            wall_clock: Arc::new(|| 1_800_000_000),
        };
        let mut snapshots = Vec::new();
        for Side { name: of, snapshots: taken, volume, .. } in &self.sides {
            for (name, content) in taken.iter().take(COMPARED) {
                let opened = SnapshotDisk::open(&env, &self.options, volume.id(), name).await;
                let disk = opened.map_err(|error| format!("{of}@{name} cannot be opened: {error}"))?;
                snapshots.push(((of, name), Compared::of_snapshot(&disk), content));
            }
        }
        for ((of, one), before, old) in &snapshots {
            for ((of_other, other), after, new) in &snapshots {
                let pair = format!("{of}@{one} and {of_other}@{other}");
                let diff = match Diff::between(before.clone(), after.clone()) {
                    // Their common parent is no volume of theirs any more.
                    Err(DiffError::Unrelated) if of != of_other => continue,
                    diff => diff.map_err(|error| format!("{pair}: {error}"))?,
                };
                judge(diff, old, new).await.map_err(|why| format!("{pair}: {why}"))?;
            }
        }
        Ok(())
    }

    /// Writes some cells, and makes them durable.
    async fn write(&mut self, at: usize) -> Result<(), String> {
        for _ in 0..self.random.random_range(1..8) {
            self.numbers += 1;
            let start = self.random.random_range(0..CELLS);
            let most = if self.random.random_range(0..4) == 0 { 16 } else { 3 };
            let end = (start + self.random.random_range(1..=most)).min(CELLS);
            let number = if self.random.random_range(0..5) == 0 { 0 } else { self.numbers };
            let (offset, length) = (start as u64 * CELL, (end - start) as u64 * CELL);
            let Side { volume, content, .. } = &mut self.sides[at];
            let made = if number == 0 {
                volume.zero(offset, length, Zeroing::Deallocate, Durability::Volatile).await
            } else {
                let words = usize::try_from(length / 8).expect("small");
                volume
                    .write(offset, Bytes::from(number.to_le_bytes().repeat(words)), Durability::Volatile)
                    .await
            };
            made.map_err(|error| format!("not written: {error}"))?;
            content[start..end].fill(number);
        }
        let volume = &self.sides[at].volume;
        volume.flush().await.map_err(|error| format!("not flushed: {error}"))?;
        if self.random.random() {
            volume.checkpoint().await.map_err(|error| format!("no checkpoint: {error}"))?;
        }
        self.check(at).await
    }

    async fn snapshot(&mut self, at: usize) -> Result<(), String> {
        self.numbers += 1;
        let name = format!("s{}", self.numbers);
        let side = &mut self.sides[at];
        side.volume.snapshot(&name).await.map_err(|error| format!("no snapshot: {error}"))?;
        side.snapshots.insert(name, side.content.clone());
        Ok(())
    }

    fn some_snapshot(&mut self, at: usize) -> Option<String> {
        let names: Vec<String> = self.sides[at].snapshots.keys().cloned().collect();
        names.choose(&mut self.random).cloned()
    }

    /// Whether clones of a volume exist, or of one of its snapshots.
    fn is_cloned(&self, name: &str, snapshot: Option<&str>) -> bool {
        let of = self.sides.iter().filter_map(|side| side.of.as_ref());
        of.filter(|(of, _)| of == name).any(|(_, at)| snapshot.is_none_or(|one| one == at))
    }

    /// Makes a clone and deletes its snapshot at the same time, or does one of both. The gateway may crash
    /// before there is an answer.
    async fn make_and_delete(&mut self, at: usize) -> Result<(), String> {
        let Some(snapshot) = self.some_snapshot(at) else { return Ok(()) };
        self.numbers += 1;
        let new = format!("clone-{}", self.numbers);
        let what = if self.sides.len() < MOST { self.random.random_range(0..4) } else { 3 };
        let (makes, deletes) = (what < 3, what == 0 || what == 3);
        let after = Duration::from_millis(pick(&mut self.random, &[0, 20, 200, 2000]));
        let ends = match self.random.random_range(0..5) {
            0 => Duration::from_millis(self.random.random_range(0..2000)),
            1 => Duration::from_secs(self.random.random_range(0..100)),
            _ => PATIENCE,
        };
        let volume = Arc::clone(&self.sides[at].volume);
        let denies = deletes && self.random.random_range(0..3) == 0;
        let denied = if denies { self.deny_clones(at) } else { Vec::new() };
        let (mut made, mut deleted) = (None, None);
        let make = async {
            if makes {
                made = Some(catalog::clone(&volume, &snapshot, &new).await);
            }
        };
        let delete = async {
            tokio::time::sleep(after).await;
            if deletes {
                deleted = Some(volume.delete_snapshot(&snapshot).await);
            }
        };
        let is_cut = tokio::time::timeout(ends, async { tokio::join!(make, delete) }).await.is_err();
        denied.into_iter().for_each(|rule| self.sides[at].fault.remove(rule));
        if is_cut {
            volume.abandon().await;
        }
        let env = self.env();
        let names = catalog::list(&env).await.map_err(|error| format!("no list: {error}"))?;
        let exists = names.contains(&new);
        let (name, content) = (self.sides[at].name.clone(), self.sides[at].snapshots[&snapshot].clone());
        let was_cloned = self.is_cloned(&name, Some(&snapshot));
        match &made {
            Some(Ok(_)) if !exists => return Err(format!("{new} was answered, and has no name")),
            Some(Err(error)) if !deletes => return Err(format!("{name}@{snapshot} is not cloned: {error}")),
            _ => {}
        }
        match &deleted {
            Some(Ok(())) if was_cloned => {
                return Err(format!("{name}@{snapshot} is deleted under its clone"));
            }
            Some(Err(SnapshotError::Pinned { .. })) if !was_cloned && !makes && !self.leaves_any => {
                return Err(format!("{name}@{snapshot} has no clone, and is not deleted"));
            }
            Some(Ok(())) => drop(self.sides[at].snapshots.remove(&snapshot)),
            _ => {}
        }
        if is_cut {
            self.leaves_any |= makes;
            self.reopen(at).await?;
            let kept = self.sides[at].volume.snapshots();
            self.sides[at].snapshots.retain(|name, _| kept.iter().any(|snapshot| snapshot.name == *name));
        }
        if exists {
            if !self.sides[at].snapshots.contains_key(&snapshot) {
                return Err(format!("{new} exists, and {name}@{snapshot} does not"));
            }
            // What the parent has no use for is gone when the clone is read.
            if self.random.random() {
                tokio::time::sleep(COLLECTED).await;
            }
            self.opened(&new, content, Some((name, snapshot))).await?;
        }
        Ok(())
    }

    /// Makes the store deny, to the gateway of a volume, both objects that show that a clone exists, once.
    fn deny_clones(&mut self, at: usize) -> Vec<RuleId> {
        let Side { name, fault, .. } = &self.sides[at];
        let is_clone = |side: &&Side| side.of.as_ref().is_some_and(|(of, _)| of == name);
        let rule = |clone: &Side| {
            let denied = Rule::new(Action::FailBefore(Failure::NotFound)).on(Operation::Get);
            fault.add(denied.containing(&clone.volume.id().to_string()).times(2))
        };
        self.sides.iter().filter(is_clone).map(rule).collect()
    }

    /// Damages or removes the root table of a closed volume or its head, or does neither. Returns what repairs it.
    fn lose(&mut self, at: usize) -> Option<(String, Bytes)> {
        let (keys, objects) = (Keys::new(self.sides[at].volume.id()), self.memory.objects());
        let head = Head::decode(keys.volume(), &objects[&keys.head()]).expect("a head");
        let key = match self.random.random_range(0..6) {
            0 => keys.root(head.root_table),
            1 => keys.head(),
            _ => return None,
        };
        let kept = self.memory.remove(&key).expect("it exists");
        if self.random.random() {
            self.memory.insert(&key, Bytes::from_static(b"damaged"));
        }
        Some((key, kept))
    }

    /// Deletes a disk. Returns why that was refused, if what is left of a clone may need it.
    async fn delete(&mut self, at: usize) -> Result<Option<OpenError>, String> {
        let name = self.sides[at].name.clone();
        let closed = self.sides[at].volume.close().await;
        closed.map_err(|error| format!("{name} is not closed: {error}"))?;
        let env = self.env();
        let is_cloned = self.is_cloned(&name, None);
        let lost = self.lose(at);
        let deleted = catalog::delete(&env, &self.options, &name, lost.is_some()).await;
        if let (Some((key, kept)), Err(_)) = (&lost, &deleted) {
            self.memory.insert(key, kept.clone());
        }
        match deleted {
            Ok(()) if is_cloned => Err(format!("{name} is deleted under its clone")),
            Ok(()) => {
                self.sides.remove(at);
                Ok(None)
            }
            // A clone whose creator crashed is one, too, until somebody removes what is left.
            Err(error @ OpenError::HasClones { .. }) => {
                self.reopen(at).await?;
                Ok(Some(error))
            }
            // What such a creator left has no root yet.
            Err(error @ OpenError::MayHaveClones { .. }) if self.leaves_any => {
                self.reopen(at).await?;
                Ok(Some(error))
            }
            Err(error) => Err(format!("{name} is not deleted: {error}")),
        }
    }

    async fn restore(&mut self, at: usize) -> Result<(), String> {
        let Some(snapshot) = self.some_snapshot(at) else { return Ok(()) };
        let side = &mut self.sides[at];
        side.volume.restore(&snapshot).await.map_err(|error| format!("not restored: {error}"))?;
        side.content = side.snapshots[&snapshot].clone();
        self.reopen(at).await
    }

    /// Removes everything but one disk.
    async fn end(&mut self) -> Result<(), String> {
        let env = self.env();
        let unnamed = catalog::unnamed(&env).await.map_err(|error| format!("no list: {error}"))?;
        for left in unnamed {
            let deleted = catalog::delete_by_id(&env, &self.options, left.volume, false).await;
            deleted.map_err(|error| format!("what is left of a clone is not deleted: {error}"))?;
        }
        while self.sides.len() > 1 {
            let leaf = self.sides.iter().position(|side| !self.is_cloned(&side.name, None));
            let leaf = leaf.ok_or("each disk is a clone of another")?;
            if let Some(error) = self.delete(leaf).await? {
                return Err(format!("{} has no clone, and is not deleted: {error}", self.sides[leaf].name));
            }
            for at in 0..self.sides.len() {
                self.check(at).await?;
            }
        }
        for snapshot in self.sides[0].snapshots.clone().into_keys() {
            let deleted = self.sides[0].volume.delete_snapshot(&snapshot).await;
            deleted.map_err(|error| format!("{snapshot} has no clone, and is not deleted: {error}"))?;
        }
        self.check(0).await?;
        let id = self.sides[0].volume.id().to_string();
        self.sides[0].volume.close().await.map_err(|error| format!("not closed: {error}"))?;
        let keys = self.memory.objects().into_keys();
        match keys.filter(|key| !key.starts_with("name/")).find(|key| !key.contains(&id)) {
            Some(key) => Err(format!("{key} is left, and belongs to nothing")),
            None => Ok(()),
        }
    }
}

/// Checks that a comparison lists every cell that differs, and that what it calls zeros is.
async fn judge(mut diff: Diff, old: &Content, new: &Content) -> Result<(), String> {
    let mut listed = [false; CELLS];
    while let Some(change) = diff.next_change().await.map_err(|error| error.to_string())? {
        for at in change.range.start / CELL..change.range.end.div_ceil(CELL) {
            let cell = usize::try_from(at).expect("few");
            listed[cell] = true;
            if change.zero && new[cell] != 0 {
                return Err(format!("cell {cell} is {}, and listed as zeros", new[cell]));
            }
        }
    }
    match (0..CELLS).find(|cell| old[*cell] != new[*cell] && !listed[*cell]) {
        Some(cell) => Err(format!("cell {cell} differs, and is not listed")),
        None => Ok(()),
    }
}

#[test]
fn clones_and_their_parents_keep_what_they_have() {
    for seed in 0..40 {
        if let Some(why) = run(seed) {
            panic!("seed {seed}: {why}");
        }
    }
}
