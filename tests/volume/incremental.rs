//! A stream of what has changed brings a copy up to date: as a whole, only over the content that it begins
//! with, and after any interruption.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cairn::effect::Durability::Volatile;
use cairn::effect::Zeroing;
use cairn::store::fault::{Action, Failure, Gate, Rule};
use cairn::volume::check::{self, Depth};
use cairn::volume::format::codec::{Checksum, DecodeError};
use cairn::volume::format::keys::Keys;
use cairn::volume::format::stream::{Digest, Header, Part, StreamDecoder};
use cairn::volume::incremental::receive::{self, Begun, Leftovers, Received, Receiver};
use cairn::volume::incremental::send::Sender;
use cairn::volume::{
    DiffError, Entropy, Environment, Options, ReceiveError, Shrink, SnapshotDisk, SnapshotError, Volume,
    catalog,
};

use super::bench::{Bench, MIB, pattern, read};

const KIB: u64 = 1 << 10;
const BLOCK: u64 = 4096;
const CHUNK: u64 = 64 * KIB;
/// What a stream says of the content of its base, where nobody computes it.
const DIGEST: Digest = Digest([7; 32]);

/// A store with a volume `disk`, and another one with a volume `copy` in larger chunks.
struct World {
    source: Bench,
    target: Bench,
    volume: Arc<Volume>,
    /// What `disk` has at each of its snapshots.
    contents: Vec<(String, Vec<u8>)>,
}

/// The environment of a process of its own.
fn env(bench: &Bench) -> Environment {
    static SEEDS: AtomicU64 = AtomicU64::new(1 << 42);
    let seed = SEEDS.fetch_add(1, Ordering::Relaxed);
    Environment { entropy: Entropy::seeded(seed), ..bench.env(64 * MIB) }
}

fn options(bench: &Bench) -> Options {
    Options { deletion_grace: Duration::ZERO, pack_bytes: 8 * BLOCK, ..bench.options.clone() }
}

async fn open_copy(bench: &Bench) -> Arc<Volume> {
    catalog::open(&env(bench), || options(bench), "copy", true).await.unwrap()
}

async fn content(volume: &Volume) -> Vec<u8> {
    read(volume, 0, volume.size_bytes()).await
}

impl World {
    /// A disk with three snapshots, and a copy of the first.
    async fn new() -> Self {
        let mut source = Bench::with_chunks(MIB, CHUNK).await;
        source.options.pack_bytes = 8 * BLOCK;
        let target = Bench::with_chunks(MIB, CHUNK).await;
        let maker = env(&target);
        let chunk = catalog::ChunkBytes(2 * CHUNK);
        catalog::create(&maker, &target.options, "copy", MIB, chunk).await.unwrap();
        let volume = source.open().await;
        let mut world = Self { source, target, volume, contents: Vec::new() };
        world.write(0, 1, 400 * KIB).await;
        world.write(700 * KIB, 2, 100 * KIB).await;
        world.snapshot("a").await;
        world.write(8 * BLOCK + 512, 3, 1024).await;
        world.write(3 * CHUNK, 4, CHUNK).await;
        world.trim(20 * BLOCK, 3 * BLOCK).await;
        world.trim(700 * KIB, 50 * KIB).await;
        world.snapshot("b").await;
        world.volume.resize(MIB + 20 * BLOCK + 512, Shrink::Refuse).await.unwrap();
        world.write(MIB + 20 * BLOCK, 5, 512).await;
        world.write(900 * KIB, 6, BLOCK).await;
        world.snapshot("c").await;
        let copy = open_copy(&world.target).await;
        copy.write(0, world.contents[0].1.clone().into(), Volatile).await.unwrap();
        copy.close().await.unwrap();
        world
    }

    async fn write(&self, offset: u64, seed: u64, length: u64) {
        let data = pattern(seed, usize::try_from(length).unwrap());
        self.volume.write(offset, data, Volatile).await.unwrap();
    }

    async fn trim(&self, offset: u64, length: u64) {
        self.volume.zero(offset, length, Zeroing::Deallocate, Volatile).await.unwrap();
    }

    async fn snapshot(&mut self, name: &str) {
        self.volume.snapshot(name).await.unwrap();
        self.contents.push((name.to_owned(), content(&self.volume).await));
    }

    fn content_of(&self, name: &str) -> &[u8] {
        &self.contents.iter().find(|(found, _)| found == name).expect("a snapshot").1
    }

    async fn disk(&self, name: &str) -> Arc<SnapshotDisk> {
        let env = env(&self.source);
        SnapshotDisk::open(&env, &self.source.options, self.volume.id(), name).await.unwrap()
    }

    /// The stream from one snapshot to another one.
    async fn stream(&self, before: &str, after: &str, base: Option<Digest>) -> Vec<u8> {
        let (before, after) = (self.disk(before).await, self.disk(after).await);
        let (mut sender, mut stream) = Sender::begin(&before, &after, base).unwrap();
        while let Some(bytes) = sender.next_bytes().await.unwrap() {
            stream.extend(bytes);
        }
        stream.extend(sender.end(None));
        stream
    }

    /// Asserts that the copy is sound, and has what a snapshot has.
    async fn copy_has(&self, name: &str, when: &str) {
        let report = check::check(&env(&self.target), "copy", Depth::Data).await.unwrap();
        assert!(!report.is_damaged(), "{when}: {report:?}");
        let copy = open_copy(&self.target).await;
        assert!(content(&copy).await == self.content_of(name), "{when}: the copy has what {name} has");
        copy.close().await.unwrap();
    }

    /// Opens the disk again, changes a block, and takes a snapshot `d`.
    async fn go_on(&mut self, seed: u64) {
        self.volume = self.source.open().await;
        self.write(0, seed, BLOCK).await;
        self.snapshot("d").await;
    }

    /// Makes a clone of a snapshot of the copy.
    async fn clone_of_copy(&self, snapshot: &str, name: &str) {
        let copy = open_copy(&self.target).await;
        catalog::clone(&copy, snapshot, name).await.unwrap();
        copy.close().await.unwrap();
    }

    async fn snapshots_of_copy(&self) -> Vec<String> {
        let env = env(&self.target);
        let id = catalog::resolve(&env, "copy").await.unwrap();
        let listed = cairn::volume::snapshot::list(&env, id).await.unwrap();
        listed.into_iter().map(|snapshot| snapshot.name).collect()
    }
}

/// Passes a stream in pieces to a decoder.
fn parts(stream: &[u8], piece: usize) -> Result<Vec<Part>, DecodeError> {
    let (mut decoder, mut parts) = (StreamDecoder::default(), Vec::new());
    for piece in stream.chunks(piece) {
        decoder.push(piece);
        while let Some(part) = decoder.next_part()? {
            parts.push(part);
        }
    }
    decoder.check_end()?;
    Ok(parts)
}

fn header_of(stream: &[u8]) -> Header {
    let mut decoder = StreamDecoder::default();
    decoder.push(stream);
    match decoder.next_part() {
        Ok(Some(Part::Header(header))) => *header,
        other => panic!("a header: {other:?}"),
    }
}

async fn begin(
    bench: &Bench,
    stream: &[u8],
    snapshot: Option<&str>,
    leftovers: Leftovers,
) -> Result<Begun, ReceiveError> {
    receive::begin(&env(bench), &options(bench), "copy", header_of(stream), snapshot, leftovers).await
}

/// Applies parts, and gives up at the first mistake.
async fn apply_all(receiver: Receiver, stream: &[u8]) -> Result<Received, String> {
    let mut decoder = StreamDecoder::default();
    decoder.push(stream);
    loop {
        match decoder.next_part() {
            Ok(Some(Part::End { .. })) => break,
            Ok(Some(part)) => receiver.apply(part).await.map_err(|error| error.to_string())?,
            Ok(None) => {
                receiver.release().await;
                return Err("the stream is cut off".to_owned());
            }
            Err(error) => {
                receiver.release().await;
                return Err(error.to_string());
            }
        }
    }
    decoder.check_end().map_err(|error| error.to_string())?;
    receiver.finish().await.map_err(|error| error.to_string())
}

/// Applies a stream as the command does. If the copy must be proved by its digest, it has that of the base.
async fn import(
    bench: &Bench,
    stream: &[u8],
    snapshot: Option<&str>,
    leftovers: Leftovers,
) -> Result<(), String> {
    let begun = begin(bench, stream, snapshot, leftovers).await.map_err(|error| error.to_string())?;
    let receiver = match begun {
        Begun::Ready(receiver) => receiver,
        Begun::Unproved(unproved) => unproved.prove(DIGEST).await.map_err(|error| error.to_string())?,
        Begun::Done(received) => {
            return received.complete(snapshot).await.map_err(|error| error.to_string());
        }
    };
    let received = apply_all(receiver, stream).await?;
    received.complete(snapshot).await.map_err(|error| error.to_string())
}

#[tokio::test(start_paused = true)]
async fn streams_bring_a_copy_from_snapshot_to_snapshot() {
    let world = World::new().await;
    let first = world.stream("a", "b", Some(DIGEST)).await;
    assert!((first.len() as u64) < CHUNK + 40 * KIB, "what did not change is not sent: {}", first.len());
    import(&world.target, &first, Some("monday"), Leftovers::Refuse).await.unwrap();
    world.copy_has("b", "after the first").await;
    let header = header_of(&first);
    let marker = header.copy_name(&header.result);
    assert_eq!(world.snapshots_of_copy().await, [marker, "monday".to_owned()]);
    // From now on, the copy itself shows what it has.
    let second = world.stream("b", "c", None).await;
    import(&world.target, &second, None, Leftovers::Refuse).await.unwrap();
    world.copy_has("c", "after the second, which makes it larger").await;
    import(&world.target, &second, Some("again"), Leftovers::Refuse).await.unwrap();
    world.copy_has("c", "after the second once more").await;
    // Back to the beginning.
    let back = world.stream("c", "a", None).await;
    import(&world.target, &back, None, Leftovers::Refuse).await.unwrap();
    world.copy_has("a", "after the way back").await;
    let header = header_of(&back);
    let marker = header.copy_name(&header.result);
    assert_eq!(world.snapshots_of_copy().await, ["monday", "again", &marker]);
    world.volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_the_same_however_it_is_cut_and_whoever_makes_it() {
    let world = World::new().await;
    let stream = world.stream("a", "c", None).await;
    assert_eq!(world.stream("a", "c", None).await, stream);
    let whole = parts(&stream, stream.len()).unwrap();
    assert!(whole.len() > 5 && matches!(whole.last(), Some(Part::End { result_digest: None })));
    for piece in [1, 7, 4096] {
        assert_eq!(parts(&stream, piece).unwrap(), whole, "in pieces of {piece} bytes");
    }
    // Nothing can be cut off, added or changed.
    for end in (0..stream.len()).step_by(61) {
        assert!(parts(&stream[..end], 1 << 20).is_err(), "the first {end} bytes");
    }
    assert!(parts(&[&stream[..], &[0]].concat(), 1 << 20).is_err(), "a byte more");
    let mut broken = stream.clone();
    for at in (0..stream.len()).step_by(97) {
        broken[at] ^= 1;
        assert!(parts(&broken, 1 << 20).is_err(), "byte {at}");
        broken[at] ^= 1;
    }
    world.volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_volume_without_the_base_is_refused_and_unchanged() {
    let world = World::new().await;
    let (target, refuse) = (&world.target, Leftovers::Refuse);
    let without = world.stream("a", "b", None).await;
    let refused = begin(target, &without, None, refuse).await;
    assert!(matches!(refused, Err(ReceiveError::NoBase { .. })), "nothing shows it: {refused:?}");
    let with = world.stream("a", "b", Some(DIGEST)).await;
    let Ok(Begun::Unproved(unproved)) = begin(target, &with, None, refuse).await else {
        panic!("only the digest shows it")
    };
    let refused = unproved.prove(Digest([8; 32])).await;
    assert!(matches!(refused, Err(ReceiveError::OtherContent { .. })), "another content: {refused:?}");
    let larger = world.stream("c", "b", Some(DIGEST)).await;
    let refused = begin(target, &larger, None, refuse).await;
    assert!(matches!(refused, Err(ReceiveError::OtherSize { .. })), "another size: {refused:?}");
    let refused = begin(target, &with, Some(".mine"), refuse).await;
    let is_bad = |error: ReceiveError| matches!(error, ReceiveError::Snapshot(SnapshotError::BadName(_)));
    assert!(refused.is_err_and(is_bad), "a name that no snapshot may have");
    assert_eq!(world.snapshots_of_copy().await, Vec::<String>::new());
    world.copy_has("a", "after what was refused").await;

    import(target, &with, Some("mine"), refuse).await.unwrap();
    let next = world.stream("b", "c", None).await;
    let refused = begin(target, &next, Some("mine"), refuse).await;
    let is_name = |error: &ReceiveError| matches!(error, ReceiveError::Snapshot(SnapshotError::Exists(_)));
    assert!(refused.is_err_and(|error| is_name(&error)), "a name that is used");
    let skipping = world.stream("a", "c", None).await;
    let refused = begin(target, &skipping, None, refuse).await;
    assert!(matches!(refused, Err(ReceiveError::NoBase { .. })), "out of order: {refused:?}");
    // Somebody uses the copy.
    let copy = open_copy(target).await;
    copy.write(123 * BLOCK, pattern(9, 100), Volatile).await.unwrap();
    copy.close().await.unwrap();
    let refused = begin(target, &next, None, refuse).await;
    let Err(ReceiveError::Changed { snapshot, offset }) = refused else { panic!("{refused:?}") };
    assert_eq!(offset, 123 * BLOCK);
    let copy = open_copy(target).await;
    copy.restore(&snapshot).await.unwrap();
    import(target, &next, None, refuse).await.unwrap();
    world.copy_has("c", "after the restoration").await;
    world.volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_digest_decides_even_if_the_copy_says_that_it_has_the_base() {
    let world = World::new().await;
    let (target, refuse) = (&world.target, Leftovers::Refuse);
    import(target, &world.stream("a", "b", Some(DIGEST)).await, None, refuse).await.unwrap();
    let next = world.stream("b", "c", Some(DIGEST)).await;
    let Ok(Begun::Unproved(unproved)) = begin(target, &next, None, refuse).await else {
        panic!("the digest is not skipped")
    };
    let refused = unproved.prove(Digest([8; 32])).await;
    assert!(matches!(refused, Err(ReceiveError::OtherContent { .. })), "another content: {refused:?}");
    world.copy_has("b", "after what was refused").await;
    import(target, &next, None, refuse).await.unwrap();
    world.copy_has("c", "after what has the right digest").await;
    world.volume.close().await.unwrap();
}

/// A bucket that is restored from a backup begins a second history, with the same ids.
#[tokio::test(start_paused = true)]
async fn a_snapshot_of_another_history_is_no_base() {
    let mut world = World::new().await;
    let refuse = Leftovers::Refuse;
    import(&world.target, &world.stream("a", "c", Some(DIGEST)).await, None, refuse).await.unwrap();
    world.volume.close().await.unwrap();
    let backup = world.source.memory.objects();
    world.go_on(7).await;
    let first = header_of(&world.stream("c", "d", None).await).result;
    import(&world.target, &world.stream("c", "d", None).await, None, refuse).await.unwrap();
    world.copy_has("d", "in the first history").await;
    let root = world.source.memory.objects()[&Keys::new(world.volume.id()).root(first.root)].clone();
    assert_eq!(first.root_checksum, Checksum::of(&root[..root.len() - Checksum::BYTES]));
    world.volume.close().await.unwrap();

    for key in world.source.memory.objects().into_keys() {
        world.source.memory.remove(&key).expect("it exists");
    }
    for (key, object) in backup {
        world.source.memory.insert(&key, object);
    }
    world.source.now_seconds.fetch_add(60, Ordering::Relaxed);
    world.go_on(8).await;
    world.write(MIB / 2, 9, BLOCK).await;
    world.snapshot("e").await;
    let second = world.stream("d", "e", None).await;
    let base = header_of(&second).base;
    assert_eq!((base.root, base.commit), (first.root, first.commit), "the ids are the same");
    let refused = begin(&world.target, &second, None, refuse).await;
    assert!(matches!(refused, Err(ReceiveError::NoBase { .. })), "another history: {refused:?}");
    world.copy_has("d", "after what was refused").await;
    world.volume.close().await.unwrap();
}

/// Clones keep the snapshots by which imports know what the copy has. These say nothing wrong later.
#[tokio::test(start_paused = true)]
async fn snapshots_that_clones_keep_mislead_no_import() {
    let world = World::new().await;
    let (target, refuse) = (&world.target, Leftovers::Refuse);
    let first = world.stream("a", "b", Some(DIGEST)).await;
    let failed = import(target, &first[..first.len() / 2], None, refuse).await;
    assert_eq!(failed, Err("the stream is cut off".to_owned()));
    let header = header_of(&first);
    let (begun, of_b) = (header.begun_name(), header.copy_name(&header.result));
    world.clone_of_copy(&begun, "one").await;
    import(target, &first, None, Leftovers::Discard).await.unwrap();
    world.clone_of_copy(&of_b, "two").await;
    let back = world.stream("b", "a", None).await;
    import(target, &back, None, refuse).await.unwrap();
    world.copy_has("a", "after the way back").await;
    assert_eq!(world.snapshots_of_copy().await[..2], [begun, of_b.clone()], "clones keep both");
    import(target, &first, None, refuse).await.unwrap();
    world.copy_has("b", "after the first stream once more").await;
    // The map does not show that the copy has again what it had at the old snapshot.
    let refused = begin(target, &world.stream("b", "c", None).await, None, refuse).await;
    let is_of_b =
        |error: &ReceiveError| matches!(error, ReceiveError::Changed { snapshot, .. } if *snapshot == of_b);
    assert!(refused.as_ref().is_err_and(is_of_b), "{refused:?}");
    import(target, &world.stream("b", "c", Some(DIGEST)).await, None, refuse).await.unwrap();
    world.copy_has("c", "by the digest").await;
    world.volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn giving_up_ends_while_the_store_is_down() {
    let world = World::new().await;
    let stream = world.stream("a", "c", Some(DIGEST)).await;
    let Ok(Begun::Unproved(unproved)) = begin(&world.target, &stream, None, Leftovers::Refuse).await else {
        panic!("only the digest shows it")
    };
    let receiver = unproved.prove(DIGEST).await.unwrap();
    for part in parts(&stream, stream.len()).unwrap().into_iter().take(4) {
        receiver.apply(part).await.unwrap();
    }
    world.target.fault.add(Rule::new(Action::FailBefore(Failure::Transient)));
    let patience = Duration::from_secs(120);
    tokio::time::timeout(patience, receiver.release()).await.expect("it ends though nothing can be stored");
    world.target.fault.clear();
    open_copy(&world.target).await.close().await.unwrap();
    judge_and_resume(&world, &stream, "given up in an outage").await;
    world.volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn snapshots_of_two_volumes_make_no_stream() {
    let world = World::new().await;
    catalog::clone(&world.volume, "a", "clone").await.unwrap();
    let env = env(&world.source);
    let clone = catalog::open(&env, || options(&world.source), "clone", false).await.unwrap();
    clone.snapshot("x").await.unwrap();
    let of_clone = SnapshotDisk::open(&env, &world.source.options, clone.id(), "x").await.unwrap();
    let refused = Sender::begin(&world.disk("a").await, &of_clone, None);
    assert!(matches!(refused, Err(DiffError::Unrelated)), "{refused:?}");
    clone.close().await.unwrap();
    world.volume.close().await.unwrap();
}

/// Asserts that an import that was cut short is noticed, and that it can be repeated and taken back.
async fn judge_and_resume(world: &World, stream: &[u8], when: &str) {
    let refused = match begin(&world.target, stream, None, Leftovers::Refuse).await {
        Ok(Begun::Unproved(unproved)) => {
            unproved.release().await;
            None
        }
        // Nothing was written yet, or all of it.
        Ok(Begun::Ready(receiver)) => {
            receiver.release().await;
            None
        }
        Ok(Begun::Done(received)) => {
            received.release().await;
            None
        }
        Err(error) => Some(error),
    };
    if let Some(error) = refused {
        assert!(matches!(error, ReceiveError::CutShort), "{when}: {error}");
    }
    import(&world.target, stream, Some("end"), Leftovers::Discard)
        .await
        .unwrap_or_else(|error| panic!("{when}: {error}"));
    world.copy_has("c", when).await;
    let left = world.snapshots_of_copy().await;
    assert!(left.len() == 2 && left[1] == "end" && left[0].starts_with("copy-of-"), "{when}: {left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_anywhere_is_noticed_and_can_be_repeated() {
    for share in [30, 60, 99] {
        let world = World::new().await;
        let stream = world.stream("a", "c", Some(DIGEST)).await;
        let cut = &stream[..stream.len() * share / 100];
        let failed = import(&world.target, cut, None, Leftovers::Refuse).await;
        assert_eq!(failed, Err("the stream is cut off".to_owned()));
        let begun = header_of(&stream).begun_name();
        assert!(world.snapshots_of_copy().await.contains(&begun), "a part of it is there");
        // It can be taken back.
        let copy = open_copy(&world.target).await;
        copy.restore(&begun).await.unwrap();
        world.copy_has("a", "taken back").await;
        let failed = import(&world.target, cut, None, Leftovers::Refuse).await;
        assert_eq!(failed, Err("the stream is cut off".to_owned()));
        judge_and_resume(&world, &stream, &format!("cut at {share}%")).await;
        world.volume.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_import_that_crashes_or_fails_at_any_request_can_be_repeated() {
    let mut last = 0;
    loop {
        let world = World::new().await;
        let stream = world.stream("a", "c", Some(DIGEST)).await;
        let (gate, fault) = (Gate::new(), &world.target.fault);
        let action = match last % 2 {
            0 => Action::HoldAnswer(gate.clone()),
            _ => Action::Hold(gate.clone()),
        };
        fault.add(Rule::new(action).skip(last));
        let is_over = tokio::select! {
            biased;
            () = gate.reached(1) => false,
            ended = import(&world.target, &stream, Some("end"), Leftovers::Refuse) => {
                ended.unwrap();
                true
            }
        };
        fault.clear();
        if is_over {
            assert!(last > 20, "it takes some requests");
            break;
        }
        let when = format!("crash at request {last}");
        // Whoever crashed does not release the volume.
        open_copy(&world.target).await.close().await.unwrap();
        judge_and_resume(&world, &stream, &when).await;
        world.volume.close().await.unwrap();
        last += 3;
    }
}

#[tokio::test(start_paused = true)]
async fn an_import_that_the_store_fails_can_be_repeated() {
    let world = World::new().await;
    let stream = world.stream("a", "c", Some(DIGEST)).await;
    let failure = Action::FailBefore(Failure::Transient);
    world.target.fault.add(Rule::new(failure).containing("/pack/"));
    // A checkpoint that fails is repeated until the patience of the command ends.
    let patience = Duration::from_secs(600);
    let import = import(&world.target, &stream, None, Leftovers::Refuse);
    let ended = tokio::time::timeout(patience, import).await;
    assert!(!matches!(ended, Ok(Ok(()))), "it cannot end well");
    world.target.fault.clear();
    open_copy(&world.target).await.close().await.unwrap();
    judge_and_resume(&world, &stream, "after an outage").await;
    world.volume.close().await.unwrap();
}
