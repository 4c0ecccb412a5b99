//! A stream that has all of a snapshot: it makes a new copy, or replaces the content of an old one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cairn::effect::Durability::Volatile;
use cairn::effect::Zeroing;
use cairn::store::Operation;
use cairn::store::fault::{Action, Gate, Rule};
use cairn::volume::catalog::{ChunkBytes, Info};
use cairn::volume::check::{self, Depth};
use cairn::volume::format::stream::{Digest, Header, Part, StreamDecoder, copied_volume};
use cairn::volume::incremental::receive::{self, Begun, Leftovers, Receiver};
use cairn::volume::incremental::send::{Sender, copy_name};
use cairn::volume::{
    Entropy, Environment, Import, ImportError, OpenError, Options, ReceiveError, SnapshotDisk, Volume,
    catalog, snapshot,
};

use super::bench::{Bench, MIB, bytes_of, pattern, read};

const KIB: u64 = 1 << 10;
const BLOCK: u64 = 4096;
const CHUNK: u64 = 64 * KIB;
/// The size of the disk is no multiple of a block.
const SIZE: u64 = MIB + 5 * BLOCK + 512;
/// What a stream says of the content of its base, where nobody computes it.
const DIGEST: Digest = Digest([7; 32]);
/// Where a process can end: at which kind of request that changes the store, and whether it takes effect.
const ENDS: [(Operation, bool); 4] =
    [(Operation::Put, false), (Operation::Put, true), (Operation::Delete, false), (Operation::Delete, true)];

/// Two stores: one has a volume `disk`, and the other one gets its copy.
struct World {
    source: Bench,
    target: Bench,
    volume: Arc<Volume>,
    /// What the disk has, as it was written.
    content: Vec<u8>,
}

/// The environment of a process of its own.
fn env(bench: &Bench) -> Environment {
    static SEEDS: AtomicU64 = AtomicU64::new(1 << 43);
    let seed = SEEDS.fetch_add(1, Ordering::Relaxed);
    Environment { entropy: Entropy::seeded(seed), ..bench.env(64 * MIB) }
}

fn options(bench: &Bench) -> Options {
    Options { deletion_grace: Duration::ZERO, pack_bytes: 8 * BLOCK, ..bench.options.clone() }
}

fn range(offset: u64, length: u64) -> std::ops::Range<usize> {
    usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap()
}

impl World {
    /// A disk with data, holes, and zeros that were written, and a snapshot `a` of it.
    async fn new() -> Self {
        let mut source = Bench::with_chunks(SIZE, CHUNK).await;
        source.options.pack_bytes = 8 * BLOCK;
        // The store of the copy has another volume, as a store has in practice.
        let target = Bench::with_chunks(MIB, CHUNK).await;
        let volume = source.open().await;
        let content = vec![0; usize::try_from(SIZE).unwrap()];
        let mut world = Self { source, target, volume, content };
        world.write(3 * BLOCK, &pattern(1, 300_000)).await;
        world.write(9 * BLOCK + 512, &pattern(2, 1000)).await;
        world.write(10 * CHUNK, &vec![0; usize::try_from(CHUNK).unwrap()]).await;
        world.write(12 * CHUNK, &pattern(3, usize::try_from(2 * CHUNK).unwrap())).await;
        world.trim(12 * CHUNK + BLOCK, 4 * BLOCK).await;
        world.write(SIZE - 700, &pattern(4, 700)).await;
        world.volume.snapshot("a").await.unwrap();
        world
    }

    async fn write(&mut self, offset: u64, data: &[u8]) {
        self.volume.write(offset, data.to_vec().into(), Volatile).await.unwrap();
        self.content[range(offset, data.len() as u64)].copy_from_slice(data);
    }

    async fn trim(&mut self, offset: u64, length: u64) {
        self.volume.zero(offset, length, Zeroing::Deallocate, Volatile).await.unwrap();
        self.content[range(offset, length)].fill(0);
    }

    async fn disk(&self, name: &str) -> Arc<SnapshotDisk> {
        SnapshotDisk::open(&env(&self.source), &self.source.options, self.volume.id(), name).await.unwrap()
    }

    /// The parts of the stream that has all of a snapshot.
    async fn whole(&self, name: &str) -> (Header, Vec<Part>) {
        decoded(Sender::whole(&self.disk(name).await)).await
    }

    /// Makes the copy of a snapshot as a new volume of the same size.
    async fn import(&self, name: &str) -> Info {
        self.fill(self.begin_import().await, name).await
    }

    async fn begin_import(&self) -> Import {
        let chunk = ChunkBytes(CHUNK);
        let begun = Import::begin(&env(&self.target), &options(&self.target), "copy", chunk, 4 * CHUNK).await;
        begun.unwrap()
    }

    /// Passes all of a snapshot to an import.
    async fn fill(&self, mut import: Import, name: &str) -> Info {
        for part in self.whole(name).await.1 {
            match part {
                Part::Data { bytes, .. } => import.write(&bytes).await.unwrap(),
                Part::Zero { length, .. } => import.zeros(length).await.unwrap(),
                Part::Header(_) | Part::End { .. } => {}
            }
        }
        import.finish_unpadded().await.unwrap()
    }

    /// Makes the copy of the snapshot `a`, which has that snapshot too.
    async fn first(&self) {
        self.complete_first(self.begin_import().await).await;
    }

    async fn complete_first(&self, import: Import) {
        let made = self.fill(import, "a").await;
        let header = self.whole("a").await.0;
        let adopted = receive::adopt(&env(&self.target), &options(&self.target), &made, header).await;
        adopted.unwrap().complete(Some("a")).await.unwrap();
    }

    /// Goes on with the first backup after its process has ended, as the command does with `--resume`.
    async fn resume_first(&self, when: &str) {
        let target = env(&self.target);
        if matches!(catalog::resolve(&target, "copy").await, Err(OpenError::NoSuchVolume(_))) {
            let import = match Import::resume(&target, "copy", 4 * CHUNK).await {
                // Not even the head was made.
                Err(ImportError::NothingToResume(_)) => self.begin_import().await,
                resumed => resumed.unwrap_or_else(|error| panic!("{when}: {error}")),
            };
            return self.complete_first(import).await;
        }
        // Whoever has ended does not release the volume.
        self.open_copy().await.close().await.unwrap();
        self.snapshots_have(|_| &self.content, when).await;
        if self.snapshots_of_copy().await.contains(&"a".to_owned()) {
            return;
        }
        let disk = self.disk("a").await;
        let (header, parts) = decoded(Sender::begin(&disk, &disk, Some(DIGEST)).unwrap()).await;
        match self.begin(&header, "a", Leftovers::Discard).await {
            Ok(Begun::Unproved(unproved)) => {
                let copy = unproved.volume();
                assert!(read(copy, 0, copy.size_bytes()).await == self.content, "{when}: it has its name");
                apply_all(unproved.prove(DIGEST).await.unwrap(), parts, "a").await;
            }
            Ok(Begun::Done(received)) => received.complete(Some("a")).await.unwrap(),
            other => panic!("{when}: {other:?}"),
        }
    }

    async fn begin(&self, header: &Header, name: &str, leftovers: Leftovers) -> Result<Begun, ReceiveError> {
        let (env, options) = (env(&self.target), options(&self.target));
        receive::begin(&env, &options, "copy", header.clone(), Some(name), leftovers).await
    }

    async fn open_copy(&self) -> Arc<Volume> {
        catalog::open(&env(&self.target), || options(&self.target), "copy", true).await.unwrap()
    }

    async fn snapshots_of_copy(&self) -> Vec<String> {
        let env = env(&self.target);
        let id = catalog::resolve(&env, "copy").await.unwrap();
        snapshot::list(&env, id).await.unwrap().into_iter().map(|snapshot| snapshot.name).collect()
    }

    /// Asserts that the copy is sound and has this content, and so has a snapshot of it.
    async fn copy_has(&self, content: &[u8], name: &str, when: &str) {
        let report = check::check(&env(&self.target), "copy", Depth::Data).await.unwrap();
        assert!(!report.is_damaged(), "{when}: {report:?}");
        let copy = self.open_copy().await;
        assert!(read(&copy, 0, copy.size_bytes()).await == content, "{when}: the copy");
        copy.close().await.unwrap();
        self.snapshot_has(content, name, when).await;
    }

    /// Asserts of every snapshot of the copy that it has what it should have.
    async fn snapshots_have<'a>(&self, expected: impl Fn(&str) -> &'a [u8], when: &str) {
        for name in self.snapshots_of_copy().await {
            self.snapshot_has(expected(&name), &name, when).await;
        }
    }

    async fn snapshot_has(&self, content: &[u8], name: &str, when: &str) {
        let env = env(&self.target);
        let id = catalog::resolve(&env, "copy").await.unwrap();
        let disk = SnapshotDisk::open(&env, &self.target.options, id, name).await.unwrap();
        let found = bytes_of(&disk.read(0, disk.size_bytes()).await.unwrap());
        assert!(found == content, "{when}: the snapshot {name}");
    }
}

/// Ends a stream, and decodes it.
async fn decoded((mut sender, first): (Sender, Vec<u8>)) -> (Header, Vec<Part>) {
    let mut decoder = StreamDecoder::default();
    decoder.push(&first);
    while let Some(bytes) = sender.next_bytes().await.unwrap() {
        decoder.push(&bytes);
    }
    decoder.push(&sender.end(None));
    let mut parts = Vec::new();
    while let Some(part) = decoder.next_part().unwrap() {
        parts.push(part);
    }
    decoder.check_end().unwrap();
    match parts.remove(0) {
        Part::Header(header) => (*header, parts),
        other => panic!("a header: {other:?}"),
    }
}

async fn apply_all(receiver: Receiver, parts: Vec<Part>, name: &str) {
    for part in parts {
        receiver.apply(part).await.unwrap();
    }
    receiver.finish().await.unwrap().complete(Some(name)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_everything_has_each_byte_once_and_reads_no_zeros() {
    let world = World::new().await;
    let (header, parts) = world.whole("a").await;
    assert!(header.is_whole());
    let (mut found, mut data_bytes) = (Vec::new(), 0);
    for part in parts {
        match part {
            Part::Data { offset, bytes } => {
                assert_eq!(offset, found.len() as u64, "without a gap");
                data_bytes += bytes.len() as u64;
                found.extend_from_slice(&bytes);
            }
            Part::Zero { offset, length } => {
                assert_eq!(offset, found.len() as u64, "without a gap");
                found.resize(range(0, offset + length).end, 0);
            }
            Part::Header(_) => panic!("a second header"),
            Part::End { .. } => {}
        }
    }
    assert!(found == world.content);
    assert!(data_bytes < 300_000 + 2 * CHUNK + 8 * BLOCK, "zeros are no data: {data_bytes} bytes of it");
    // What changes later is in no stream of the snapshot.
    world.volume.write(0, pattern(9, 4096), Volatile).await.unwrap();
    world.volume.flush().await.unwrap();
    assert!(matches!(&world.whole("a").await.1[0], Part::Zero { offset: 0, length } if *length == 3 * BLOCK));
    // The stream between two snapshots needs a base.
    let same = decoded(Sender::begin(&world.disk("a").await, &world.disk("a").await, None).unwrap()).await;
    assert!(!same.0.is_whole() && same.1.len() == 1, "nothing differs: {:?}", same.1);
    world.volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_new_copy_has_the_size_and_is_the_base_of_the_next_stream() {
    let mut world = World::new().await;
    world.first().await;
    let first = world.content.clone();
    world.copy_has(&first, "a", "the first").await;
    let disk = world.disk("a").await;
    let marker = copy_name(&disk);
    assert_eq!(copied_volume(&marker), Some(world.volume.id()));
    assert_eq!(world.snapshots_of_copy().await, [marker, "a".to_owned()]);
    world.write(20 * BLOCK, &pattern(5, 4096)).await;
    world.volume.snapshot("b").await.unwrap();
    let begun = Sender::begin(&world.disk("a").await, &world.disk("b").await, None).unwrap();
    let (header, parts) = decoded(begun).await;
    let Begun::Ready(receiver) = world.begin(&header, "b", Leftovers::Refuse).await.unwrap() else {
        panic!("the copy says what it has")
    };
    apply_all(receiver, parts, "b").await;
    world.copy_has(&world.content, "b", "the second").await;
    world.snapshot_has(&first, "a", "after the second").await;
    world.volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_others_opened_is_not_adopted() {
    let world = World::new().await;
    let made = world.import("a").await;
    let header = world.whole("a").await.0;
    let copy = world.open_copy().await;
    copy.write(0, pattern(6, 512), Volatile).await.unwrap();
    copy.close().await.unwrap();
    let (env, options) = (env(&world.target), options(&world.target));
    let refused = receive::adopt(&env, &options, &made, header).await;
    assert!(matches!(refused, Err(ReceiveError::Touched)), "{refused:?}");
    assert_eq!(world.snapshots_of_copy().await, Vec::<String>::new());
    // It is not held.
    world.open_copy().await.close().await.unwrap();
    world.volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_everything_replaces_only_a_copy_of_its_volume() {
    let world = World::new().await;
    let (header, parts) = world.whole("a").await;
    let chunk = ChunkBytes(2 * CHUNK);
    catalog::create(&env(&world.target), &world.target.options, "copy", 3 * MIB, chunk).await.unwrap();
    let copy = world.open_copy().await;
    copy.write(2 * MIB, pattern(7, 9000), Volatile).await.unwrap();
    copy.snapshot("mine").await.unwrap();
    let mine = read(&copy, 0, 3 * MIB).await;
    copy.close().await.unwrap();
    for leftovers in [Leftovers::Refuse, Leftovers::Discard] {
        let refused = world.begin(&header, "a", leftovers).await;
        assert!(
            matches!(refused, Err(ReceiveError::NoCopy { of }) if of == world.volume.id()),
            "{refused:?}"
        );
    }
    // The name of a snapshot is all that says what a volume is a copy of. This one is of another volume.
    let other = header.copy_name(&header.base).replace(&header.volume.simple().to_string(), &"0".repeat(32));
    let copy = world.open_copy().await;
    copy.snapshot(&other).await.unwrap();
    copy.close().await.unwrap();
    let refused = world.begin(&header, "a", Leftovers::Refuse).await;
    assert!(matches!(refused, Err(ReceiveError::NoCopy { .. })), "{refused:?}");
    world.copy_has(&mine, "mine", "after what was refused").await;
    // It was a copy of this volume once, at a snapshot that nobody knows any more.
    let copy = world.open_copy().await;
    copy.snapshot(&format!("copy-of-{}-{}", header.volume.simple(), "1".repeat(32))).await.unwrap();
    copy.close().await.unwrap();
    let Begun::Ready(receiver) = world.begin(&header, "a", Leftovers::Refuse).await.unwrap() else {
        panic!("it may be replaced")
    };
    apply_all(receiver, parts, "a").await;
    world.copy_has(&world.content, "a", "replaced, with another size").await;
    world.snapshot_has(&mine, "mine", "replaced").await;
    let expected = ["mine".to_owned(), other, header.copy_name(&header.result), "a".to_owned()];
    assert_eq!(world.snapshots_of_copy().await, expected);
    let done = world.begin(&header, "a", Leftovers::Refuse).await.unwrap();
    let Begun::Done(received) = done else { panic!("it has the content: {done:?}") };
    received.complete(Some("a")).await.unwrap();
    world.volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_everything_that_was_cut_short_is_noticed_and_repeated() {
    for applied in [0, 1, 5] {
        let mut world = World::new().await;
        world.first().await;
        let first = world.content.clone();
        world.write(0, &pattern(8, 3 * 4096)).await;
        world.volume.snapshot("b").await.unwrap();
        let (header, parts) = world.whole("b").await;
        assert!(parts.len() > 6, "{} parts", parts.len());
        let Begun::Ready(receiver) = world.begin(&header, "b", Leftovers::Refuse).await.unwrap() else {
            panic!("it may be replaced")
        };
        for part in parts.iter().take(applied) {
            receiver.apply(part.clone()).await.unwrap();
        }
        receiver.release().await;
        assert!(!world.snapshots_of_copy().await.contains(&"b".to_owned()), "it is not complete");
        // No other stream is taken for this one.
        let begun = Sender::begin(&world.disk("a").await, &world.disk("b").await, None).unwrap();
        let (between, _) = decoded(begun).await;
        if applied > 0 {
            let refused = world.begin(&header, "b", Leftovers::Refuse).await;
            assert!(matches!(refused, Err(ReceiveError::CutShort)), "{applied} parts: {refused:?}");
            let refused = world.begin(&between, "b", Leftovers::Discard).await;
            let expected = header.begun_name();
            assert!(
                matches!(&refused, Err(ReceiveError::OtherCutShort { begun }) if *begun == expected),
                "{applied} parts: {refused:?}"
            );
        }
        let Begun::Ready(receiver) = world.begin(&header, "b", Leftovers::Discard).await.unwrap() else {
            panic!("it is repeated")
        };
        apply_all(receiver, parts, "b").await;
        let when = format!("after {applied} parts and a repetition");
        world.copy_has(&world.content, "b", &when).await;
        world.snapshot_has(&first, "a", &when).await;
        let marker = header.copy_name(&header.result);
        assert_eq!(world.snapshots_of_copy().await, ["a".to_owned(), marker, "b".to_owned()]);
        world.volume.close().await.unwrap();
    }
}

/// Does some work until it comes to a request, at which its process ends. Returns whether it came to that.
async fn ends(
    target: &Bench,
    (operation, takes_effect): (Operation, bool),
    nth: u32,
    work: impl Future<Output = ()>,
) -> bool {
    let gate = Gate::new();
    let action = match takes_effect {
        false => Action::Hold(gate.clone()),
        true => Action::HoldAnswer(gate.clone()),
    };
    target.fault.add(Rule::new(action).on(operation).skip(nth));
    let has_ended = tokio::select! {
        biased;
        () = gate.reached(1) => true,
        () = work => false,
    };
    target.fault.clear();
    has_ended
}

#[tokio::test(start_paused = true)]
async fn a_first_backup_that_ends_at_any_request_has_no_snapshot_of_other_content_and_goes_on() {
    for end in ENDS {
        for nth in 0.. {
            let when = format!("ended at {nth} of {end:?}");
            let world = World::new().await;
            let has_ended = ends(&world.target, end, nth, Box::pin(world.first())).await;
            if has_ended {
                Box::pin(world.resume_first(&when)).await;
            }
            world.copy_has(&world.content, "a", &when).await;
            let marker = copy_name(&*world.disk("a").await);
            assert_eq!(world.snapshots_of_copy().await, [marker, "a".to_owned()], "{when}");
            world.volume.close().await.unwrap();
            if !has_ended {
                assert!(nth > 15 || end.0 == Operation::Delete, "it takes some requests: {nth}");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_backup_that_ends_at_any_request_has_no_snapshot_of_other_content_and_is_repeated() {
    for end in ENDS {
        for nth in 0.. {
            let when = format!("ended at {nth} of {end:?}");
            let mut world = World::new().await;
            world.first().await;
            let first = world.content.clone();
            world.write(0, &pattern(8, 3 * 4096)).await;
            world.volume.snapshot("b").await.unwrap();
            let (header, parts) = world.whole("b").await;
            let marker = header.copy_name(&header.result);
            let replacing = Box::pin(async {
                let begun = world.begin(&header, "b", Leftovers::Refuse).await.unwrap();
                let Begun::Ready(receiver) = begun else { panic!("it may be replaced") };
                apply_all(receiver, parts.clone(), "b").await;
            });
            let has_ended = ends(&world.target, end, nth, replacing).await;
            if has_ended {
                // Whoever has ended does not release the volume.
                world.open_copy().await.close().await.unwrap();
                let of_b = |name: &str| name == "b" || name == marker;
                world.snapshots_have(|name| if of_b(name) { &world.content } else { &first }, &when).await;
                match world.begin(&header, "b", Leftovers::Discard).await {
                    Ok(Begun::Ready(receiver)) => apply_all(receiver, parts, "b").await,
                    Ok(Begun::Done(received)) => received.complete(Some("b")).await.unwrap(),
                    other => panic!("{when}: {other:?}"),
                }
            }
            world.copy_has(&world.content, "b", &when).await;
            world.snapshot_has(&first, "a", &when).await;
            assert_eq!(world.snapshots_of_copy().await, ["a".to_owned(), marker, "b".to_owned()], "{when}");
            world.volume.close().await.unwrap();
            if !has_ended {
                assert!(nth > 10 || end.0 == Operation::Delete, "it takes some requests: {nth}");
                break;
            }
        }
    }
}
