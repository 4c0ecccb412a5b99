//! Damaged volumes: each damaged object is found by its key, with the ranges that it costs. The ranges that are
//! expected follow from what was written. A gateway that reads them shows that they are right.

use std::time::Duration;

use bytes::Bytes;
use cairn::store::{Fault, MemoryStore};
use cairn::volume::check::{Depth, Effect, Finding, ObjectKind, Report, Trouble};
use cairn::volume::format::chunk;
use cairn::volume::format::frame::FRAME_BYTES;
use cairn::volume::format::geometry::BlockIndex;
use cairn::volume::format::head::Head;
use cairn::volume::format::keys::{Keys, Parsed, Slot, volume_of};
use cairn::volume::format::pack::{self, Pack, PackWriter};
use cairn::volume::format::root::{Root, RootTable};

use super::super::bench::Bench;
use super::*;

/// The only finding of a report.
fn only(report: &Report) -> &Finding {
    assert_eq!(report.findings.len(), 1, "{report:?}");
    &report.findings[0]
}

/// A copy of a bench, whose objects can be damaged without consequences.
fn copy(bench: &Bench) -> Bench {
    let memory = MemoryStore::unsorted(5);
    bench.memory.objects().into_iter().for_each(|(key, bytes)| memory.insert(&key, bytes));
    let fault = Fault::new(Arc::new(memory.clone()), 1);
    let mut copy = bench.beside();
    (copy.memory, copy.fault) = (memory, fault);
    copy
}

/// As [`copy`], without one object.
fn copy_without(bench: &Bench, key: &str) -> Bench {
    let copy = copy(bench);
    copy.memory.remove(key).expect("it exists");
    copy
}

/// Checks that a gateway cannot read exactly these ranges, as far as they lie within the first MiB.
async fn assert_unreadable(bench: &mut Bench, expected: &[Range<u64>], when: &str) {
    bench.options.deletion_grace = Duration::from_secs(1 << 30);
    let volume = bench.open().await;
    let first = expected.iter().map(|range| range.start.min(MIB)..range.end.min(MIB));
    let first: Vec<Range<u64>> = first.filter(|range| !range.is_empty()).collect();
    assert_eq!(unreadable(&volume, 0..MIB).await, first, "{when}");
}

fn keys_of(bench: &Bench) -> Keys {
    let head = bench.keys("/head");
    Keys::new(volume_of(&head[0]).expect("the head of a volume"))
}

impl Written {
    /// The number of the chunk with an object.
    fn chunk_of(key: &str, keys: Keys) -> u64 {
        match keys.parse(key) {
            Some(Parsed::Chunk(index, _)) => u64::from(index.0),
            other => panic!("{key} is {other:?}"),
        }
    }

    /// What cannot be read without this object, and whether the volume can be opened.
    fn cost(&self, key: &str, bench: &Bench) -> (Effect, Vec<Range<u64>>) {
        let keys = keys_of(bench);
        let mut newer: Vec<Range<u64>> = [&self.packed[..], &self.journal[..]].concat();
        newer.sort_by_key(|range| range.start);
        let all = one_range(0..SIZE);
        let lost: Vec<Range<u64>> = match keys.parse(key) {
            Some(Parsed::Chunk(index, _)) => {
                let index = u64::from(index.0);
                assert!(self.chunks.contains(&index));
                let range = index * CHUNK..(index + 1) * CHUNK;
                // The object of chunk 5 that the journal references lies over the one of the root.
                let is_newest = index == 5;
                if is_newest { vec![range] } else { without(range, &newer) }
            }
            Some(Parsed::Pack(_)) => {
                self.packed.iter().flat_map(|range| without(range.clone(), &self.journal)).collect()
            }
            Some(Parsed::Overlay(..)) => without(0..4 * CHUNK, &self.journal),
            Some(Parsed::MapPage(0, _)) => without(0..MAP_PAGE, &self.journal),
            Some(Parsed::MapPage(1, _)) => one_range(MAP_PAGE..SIZE),
            // The size of the volume is in the root.
            Some(Parsed::Root(id)) if id == head_of(bench).root => return (Effect::NotOpened, Vec::new()),
            Some(Parsed::Head) => return (Effect::NotOpened, Vec::new()),
            None if key.starts_with("name/") => return (Effect::NotOpened, Vec::new()),
            _ => return (Effect::NotOpened, all),
        };
        (Effect::Eio, lost)
    }
}

fn head_of(bench: &Bench) -> Head {
    let keys = keys_of(bench);
    Head::decode(keys.volume(), &bench.memory.objects()[&keys.head()]).expect("a head")
}

/// The objects that the volume needs, except the last record of the journal: without it, the journal is one that
/// ended earlier.
fn needed(bench: &Bench) -> Vec<String> {
    let (keys, head) = (keys_of(bench), head_of(bench));
    let records = bench.keys("/journal/");
    let last = records.last().expect("a journal");
    let is_needed = |key: &String| match keys.parse(key) {
        Some(Parsed::Record(slot)) => slot > head.checkpoint.slot && key != last,
        _ => true,
    };
    all_keys(bench).into_iter().filter(is_needed).collect()
}

#[tokio::test(start_paused = true)]
async fn each_deleted_object_is_found_with_what_it_costs() {
    let (bench, written) = fixture_bench().await;
    let needed = needed(&bench);
    let kinds = ["/chunk/", "/pack/", "/overlay/", "/map/", "/root/", "/journal/", "/head", "identity/"];
    assert!(kinds.iter().all(|kind| needed.iter().any(|key| key.contains(kind))), "{needed:?}");
    let root_chunk_5 = superseded(&bench);
    for key in needed.iter().filter(|key| !key.starts_with("name/")) {
        let with_data = checked(&copy_without(&bench, key), Depth::Data).await;
        assert_eq!(only(&with_data).key, *key);
        let mut bench = copy(&bench);
        let (effect, expected) = match root_chunk_5.as_ref() == Some(key) {
            true => (Effect::Nothing, Vec::new()),
            false => written.cost(key, &bench),
        };
        bench.memory.remove(key).expect("it exists");
        let report = checked(&bench, Depth::Structure).await;
        let finding = only(&report);
        assert_eq!((&finding.key, finding.trouble), (key, Trouble::Missing), "{report:?}");
        assert_eq!((finding.effect, ranges(finding)), (effect, expected.clone()), "{key}");
        assert_eq!(report.ranges.iter().collect::<Vec<_>>(), expected, "{key}");
        assert_eq!(report.orphans.objects, 0, "{key}: {:?}", report.orphans);
        match effect {
            Effect::Eio | Effect::Nothing => assert_unreadable(&mut bench, &expected, key).await,
            _ => drop(bench.try_open(true).await.expect_err("it cannot be opened")),
        }
    }
}

/// The chunk object that the root references and the journal replaces.
fn superseded(bench: &Bench) -> Option<String> {
    let keys = keys_of(bench);
    let of_5 = bench.keys("/chunk/").into_iter().filter(|key| Written::chunk_of(key, keys) == 5);
    of_5.min_by_key(|key| match keys.parse(key) {
        Some(Parsed::Chunk(_, id)) => id,
        _ => unreachable!("it is a chunk"),
    })
}

/// Replaces an object by one that `change` made of it.
fn change(bench: &Bench, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = bench.memory.objects()[key].to_vec();
    change(&mut bytes);
    bench.memory.insert(key, Bytes::from(bytes));
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_is_found_wherever_it_is() {
    let (bench, written) = fixture_bench().await;
    let last = bench.keys("/journal/").pop().expect("a journal");
    let mut found = 0;
    for key in needed(&bench).into_iter().chain([last]) {
        let length = bench.memory.objects()[&key].len();
        for at in [0, 20, 45, length / 3, length / 2, length - 20, length - 1] {
            let bench = copy(&bench);
            change(&bench, &key, |bytes| bytes[at] ^= 0x10);
            let report = checked(&bench, Depth::Data).await;
            let finding = only(&report);
            assert_eq!((&finding.key, finding.trouble), (&key, Trouble::Damaged), "byte {at}: {report:?}");
            // What is read in parts costs only what the part stores. Everything else is lost as a whole.
            let parts = [ObjectKind::Chunk, ObjectKind::Pack, ObjectKind::Record];
            if !parts.contains(&finding.object) {
                let (effect, expected) = written.cost(&key, &bench);
                assert_eq!((finding.effect, ranges(finding)), (effect, expected), "{key}");
            }
            found += 1;
        }
    }
    assert!(found > 100, "{found} objects were damaged");
}

#[tokio::test(start_paused = true)]
async fn a_truncated_object_is_found_with_what_its_end_stored() {
    let (bench, written) = fixture_bench().await;
    for key in needed(&bench) {
        let length = bench.memory.objects()[&key].len();
        for to in [length - 1, length / 2, 30, 0] {
            for depth in [Depth::Structure, Depth::Data] {
                let bench = copy(&bench);
                change(&bench, &key, |bytes| bytes.truncate(to));
                let report = checked(&bench, depth).await;
                let finding = only(&report);
                assert_eq!(finding.key, key, "{to} bytes: {report:?}");
                let in_parts = matches!(finding.object, ObjectKind::Chunk | ObjectKind::Pack);
                let expected = if in_parts { Trouble::TooShort } else { Trouble::Damaged };
                assert_eq!(finding.trouble, expected, "{to} bytes: {report:?}");
            }
        }
    }
    // Chunk 0 without its last three frames, and half of the one before them.
    let keys = keys_of(&bench);
    let of_0 = bench.keys("/chunk/").into_iter().find(|key| Written::chunk_of(key, keys) == 0);
    let of_0 = of_0.expect("chunk 0 has an object");
    let mut short = copy(&bench);
    let end = chunk::frame_offset(1, 0, 12) + FRAME_BYTES / 2;
    change(&short, &of_0, |bytes| bytes.truncate(usize::try_from(end).unwrap()));
    let report = checked(&short, Depth::Structure).await;
    let expected = one_range(block(0, 12).start..block(0, 15).end);
    assert_eq!(ranges(only(&report)), expected);
    assert_unreadable(&mut short, &expected, "the end of chunk 0").await;
    // The pack without its last two frames, of which the journal covers one.
    let pack = bench.keys("/pack/").remove(0);
    let mut short = copy(&bench);
    change(&short, &pack, |bytes| bytes.truncate(usize::try_from(pack::frame_offset(2)).unwrap()));
    let report = checked(&short, Depth::Structure).await;
    let expected: Vec<_> =
        written.packed[2..].iter().flat_map(|range| without(range.clone(), &written.journal)).collect();
    assert_eq!(ranges(only(&report)), expected);
    assert_unreadable(&mut short, &expected, "the end of the pack").await;
}

/// Exchanges two parts of an object.
fn swap(bytes: &mut [u8], a: u64, b: u64, length: u64) {
    let [a, b, length] = [a, b, length].map(|n| usize::try_from(n).unwrap());
    let kept = bytes[a..a + length].to_vec();
    bytes.copy_within(b..b + length, a);
    bytes[b..b + length].copy_from_slice(&kept);
}

#[tokio::test(start_paused = true)]
async fn two_frames_that_were_exchanged_are_found_with_their_blocks() {
    let (bench, written) = fixture_bench().await;
    let keys = keys_of(&bench);
    for key in bench.keys("/chunk/") {
        let number = Written::chunk_of(&key, keys);
        if number == 5 {
            continue;
        }
        let mut bench = copy(&bench);
        // The second one is below a block in a pack for chunks 0 to 3.
        change(&bench, &key, |bytes| {
            swap(bytes, chunk::frame_offset(1, 0, 1), chunk::frame_offset(1, 0, 3), FRAME_BYTES);
        });
        let report = checked(&bench, Depth::Data).await;
        let finding = only(&report);
        assert_eq!((&finding.key, finding.trouble), (&key, Trouble::Damaged));
        let blocks =
            if number < 4 { vec![block(number, 1)] } else { vec![block(number, 1), block(number, 3)] };
        assert_eq!(ranges(finding), blocks, "{key}");
        assert!(!checked(&bench, Depth::Structure).await.is_damaged(), "data is read only if asked for");
        assert_unreadable(&mut bench, &blocks, &key).await;
    }
    let mut bench = copy(&bench);
    let pack = bench.keys("/pack/").remove(0);
    change(&bench, &pack, |bytes| swap(bytes, pack::frame_offset(1), pack::frame_offset(2), FRAME_BYTES));
    let report = checked(&bench, Depth::Data).await;
    // The journal covers the block of the third frame.
    assert_eq!((&only(&report).key, ranges(only(&report))), (&pack, vec![written.packed[1].clone()]));
    assert_unreadable(&mut bench, &[written.packed[1].clone()], &pack).await;
}

#[tokio::test(start_paused = true)]
async fn damaged_data_of_a_record_costs_what_the_change_wrote() {
    let (bench, written) = fixture_bench().await;
    let keys = keys_of(&bench);
    let first = head_of(&bench).checkpoint.slot;
    // The second commit after the checkpoint.
    let key = keys.record(Slot { n: first.n + 2, ..first });
    let mut bench = copy(&bench);
    change(&bench, &key, |bytes| {
        let at = bytes.len() - 100;
        bytes[at] ^= 1;
    });
    assert!(!checked(&bench, Depth::Structure).await.is_damaged(), "the table is sound");
    let report = checked(&bench, Depth::Data).await;
    let finding = only(&report);
    assert_eq!((&finding.key, finding.effect, ranges(finding)), (&key, Effect::Eio, written.second.clone()));
    assert_unreadable(&mut bench, &written.second, &key).await;
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_orphan_is_found_and_costs_only_space() {
    let (bench, _) = fixture_bench().await;
    let keys = keys_of(&bench);
    let id = cairn::volume::format::keys::ObjectId { epoch: 0, k: 77 };
    let index = cairn::volume::format::geometry::ChunkIndex(4);
    let mut expected = Vec::new();
    for (n, key) in [
        keys.chunk(index, id),
        keys.map_page(0, id),
        keys.overlay(1, id),
        keys.pack(id),
        keys.root(id),
        format!("{}stray/object", keys.prefix()),
    ]
    .into_iter()
    .enumerate()
    {
        bench.memory.insert(&key, Bytes::from(vec![7; 100 + n]));
        expected.push((key, 100 + n as u64));
    }
    // What the gateway makes that holds the volume may be referenced in a moment.
    let own = cairn::volume::format::keys::ObjectId { epoch: 2, k: 77 };
    bench.memory.insert(&keys.pack(own), Bytes::from_static(b"in flight"));
    let report = assert_sound(&bench, "with orphans").await;
    let mut listed = report.orphans.listed.clone();
    listed.sort();
    expected.sort();
    assert_eq!((listed, report.orphans.objects), (expected.clone(), 6));
    assert_eq!(report.orphans.bytes, expected.iter().map(|(_, bytes)| bytes).sum::<u64>());
}

/// Roots and root tables share a prefix. Neither is taken for a damaged object of the other kind, which would be
/// read several times, with warnings.
#[tokio::test(start_paused = true)]
async fn a_root_that_is_an_orphan_is_read_once() {
    let (bench, _) = fixture_bench().await;
    let (keys, head) = (keys_of(&bench), head_of(&bench));
    let id = |k| cairn::volume::format::keys::ObjectId { epoch: 0, k };
    let objects = bench.memory.objects();
    let mut root = Root::decode(keys.sealing(), head.root, &objects[&keys.root(head.root)]).expect("a root");
    root.id = id(77);
    let table = objects[&keys.root(head.root_table)].clone();
    let mut table = RootTable::decode(keys.sealing(), head.root_table, &table).expect("a root table");
    table.id = id(78);
    let (orphan, replaced) = (keys.root(root.id), keys.root(table.id));
    bench.memory.insert(&orphan, Bytes::from(root.encode(keys.sealing())));
    bench.memory.insert(&replaced, Bytes::from(table.encode(keys.sealing())));
    let report = checked(&bench, Depth::Data).await;
    assert_eq!(report.orphans.listed.iter().map(|(key, _)| key).collect::<Vec<_>>(), [&orphan], "{report:?}");
    assert_eq!((bench.gets(&orphan).requests, bench.gets(&replaced).requests), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn wrong_counts_in_a_root_are_found() {
    let (bench, _) = fixture_bench().await;
    let keys = keys_of(&bench);
    let id = head_of(&bench).root;
    let key = keys.root(id);
    let root = Root::decode(keys.sealing(), id, &bench.memory.objects()[&key]).expect("a root");
    let altered = |alter: &dyn Fn(&mut Root)| {
        let bench = copy(&bench);
        let mut root = root.clone();
        alter(&mut root);
        bench.memory.insert(&key, Bytes::from(root.encode(keys.sealing())));
        bench
    };
    let fewer = altered(&|root| root.packs.values_mut().for_each(|pack| pack.live -= 1));
    let unlisted = altered(&|root| root.packs.clear());
    let stored = altered(&|root| root.map_pages.values_mut().for_each(|page| page.counts.stored += 16));
    let overlaid = altered(&|root| root.map_pages.get_mut(&0).unwrap().counts.overlaid += 1);
    let hidden = altered(&|root| root.map_pages.get_mut(&0).unwrap().counts.hidden -= 1);
    for bench in [fewer, unlisted, stored, overlaid, hidden] {
        let report = checked(&bench, Depth::Structure).await;
        let finding = only(&report);
        assert_eq!((&finding.key, finding.trouble), (&key, Trouble::WrongCount), "{report:?}");
        assert_eq!(finding.effect, Effect::Nothing);
    }
}

/// An overlay that locates a block in a frame of another block.
#[tokio::test(start_paused = true)]
async fn an_overlay_and_a_pack_that_disagree_are_found() {
    let (bench, written) = fixture_bench().await;
    let keys = keys_of(&bench);
    let key = bench.keys("/pack/").remove(0);
    let objects = bench.memory.objects();
    let Some(Parsed::Pack(id)) = keys.parse(&key) else { panic!("{key} is no pack") };
    let found = Pack::decode(keys.sealing(), &objects[&key]).expect("a pack");
    let mut writer = PackWriter::new(keys.sealing(), id, 4);
    for (block, payload) in &found.blocks {
        // The second block moves by one.
        let moves = *block == BlockIndex::at(written.packed[1].start);
        writer.block(BlockIndex(block.0 + u64::from(moves)), payload);
    }
    let mut bench = copy(&bench);
    bench.memory.insert(&key, Bytes::from(writer.finish()));
    for depth in [Depth::Structure, Depth::Data] {
        let report = checked(&bench, depth).await;
        let finding = only(&report);
        assert_eq!((&finding.key, finding.trouble), (&bench.keys("/overlay/")[0], Trouble::Damaged));
        assert_eq!(ranges(finding), [written.packed[1].clone()]);
    }
    assert_unreadable(&mut bench, &[written.packed[1].clone()], &key).await;
}

/// A gateway that meets a loss records it, and drops the reference to the lost object.
#[tokio::test(start_paused = true)]
async fn what_was_lost_earlier_is_found_until_it_is_overwritten() {
    let (bench, written) = fixture_bench().await;
    let keys = keys_of(&bench);
    let overlay = bench.keys("/overlay/").remove(0);
    let mut bench = copy_without(&bench, &overlay);
    let volume = bench.open().await;
    write(&volume, block(0, 9), 500).await;
    volume.checkpoint().await.unwrap();
    tokio::time::sleep(SETTLED).await;
    let report = checked(&bench, Depth::Data).await;
    let finding = only(&report);
    let newer = [&[block(0, 9)][..], &written.journal[..]].concat();
    let expected = without(0..4 * CHUNK, &newer);
    assert_eq!((finding.trouble, finding.effect), (Trouble::LostEarlier, Effect::Eio));
    assert_eq!(finding.object, ObjectKind::MapPage);
    assert!(finding.key.starts_with(&keys.map_pages()), "{}", finding.key);
    assert_eq!(ranges(finding), expected);
    assert_eq!(unreadable(&volume, 0..MIB).await, expected);
    write(&volume, 0..4 * CHUNK, 501).await;
    volume.checkpoint().await.unwrap();
    tokio::time::sleep(SETTLED).await;
    assert_sound(&bench, "overwritten").await;
}

/// A free slot in the log of a gateway that may still run is no damage, unless no running gateway leaves one.
#[tokio::test(start_paused = true)]
async fn a_gap_in_the_log_of_the_holder_is_a_note() {
    let mut bench = Bench::with_chunks(SIZE, CHUNK).await;
    let volume = bench.open().await;
    for n in 0..70 {
        write(&volume, block(n, 0), n).await;
        volume.flush().await.unwrap();
    }
    drop(volume);
    let keys = keys_of(&bench);
    let record = |n| keys.record(Slot { epoch: 1, n });
    let late = copy_without(&bench, &record(69));
    let report = assert_sound(&late, "with a gap that a commit in flight leaves").await;
    assert!(report.notes.len() == 1 && report.notes[0].contains(&record(69)), "{report:?}");
    let early = copy_without(&bench, &record(3));
    let report = checked(&early, Depth::Structure).await;
    let finding = only(&report);
    assert_eq!(
        (&finding.key, finding.trouble, finding.effect),
        (&record(3), Trouble::Missing, Effect::Older)
    );
    // Commit n wrote block 0 of chunk n - 2.
    assert_eq!(ranges(finding), (2..70).map(|chunk| block(chunk, 0)).collect::<Vec<_>>());
    let opening = copy_without(&bench, &record(1));
    let report = checked(&opening, Depth::Structure).await;
    assert_eq!((&only(&report).key, only(&report).effect), (&record(1), Effect::Older));
}

#[tokio::test(start_paused = true)]
async fn several_losses_at_once_are_all_found_and_their_ranges_merged() {
    let (bench, written) = fixture_bench().await;
    let keys = keys_of(&bench);
    let chunks = bench.keys("/chunk/").into_iter().filter(|key| Written::chunk_of(key, keys) < 4);
    let mut lost: Vec<String> = chunks.chain(bench.keys("/pack/")).collect();
    lost.sort();
    lost.iter().for_each(|key| drop(bench.memory.remove(key)));
    let report = checked(&bench, Depth::Data).await;
    let found: Vec<&String> = report.findings.iter().map(|finding| &finding.key).collect();
    assert_eq!(found, lost.iter().collect::<Vec<_>>());
    let expected = without(0..4 * CHUNK, &written.journal);
    assert_eq!(report.ranges.iter().collect::<Vec<_>>(), expected);
    assert_eq!(report.ranges.bytes(), 4 * CHUNK - 2 * BLOCK);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_name_is_found() {
    let (bench, _) = fixture_bench().await;
    change(&bench, "name/disk", |bytes| bytes[30] ^= 1);
    let report = checked(&bench, Depth::Structure).await;
    assert_eq!((only(&report).key.as_str(), only(&report).effect), ("name/disk", Effect::NotOpened));
}
