//! A volume whose root references objects of other volumes: it reads them, and its checkpoints pass them on.
//!
//! The root of the second volume is made by hand from that of the first, as the format describes it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn::effect::Durability::Volatile;
use cairn::effect::Zeroing;
use cairn::volume::format::head::Head;
use cairn::volume::format::keys::Keys;
use cairn::volume::format::map::{MapPage, OverlayPlace};
use cairn::volume::format::root::{MapPageRef, Root};
use cairn::volume::format::sealing::Sealing;
use cairn::volume::{Options, Volume, catalog};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use super::bench::{Bench, MIB, pattern, read};

const SIZE: u64 = 8 * MIB;
const CHUNK: u64 = 256 << 10;
const COLLECTED: Duration = Duration::from_secs(30);

/// A volume and what it must contain.
struct Side {
    name: &'static str,
    volume: Uuid,
    model: Vec<u8>,
}

fn root_of(bench: &Bench, volume: Uuid) -> (Head, Root) {
    let (keys, objects) = (Keys::new(volume), bench.memory.objects());
    let head = Head::decode(volume, &objects[&keys.head()]).expect("a head");
    let root = Root::decode(keys.sealing(), head.root, &objects[&keys.root(head.root)]).expect("a root");
    (head, root)
}

/// Creates a volume that contains what `parent` has stored, and that owns nothing of it.
async fn cloned(bench: &mut Bench, parent: &Side, name: &'static str) -> Side {
    // Another gateway, which chooses other ids.
    *bench = bench.beside();
    let env = bench.env(64 * MIB);
    catalog::create(&env, &bench.options, name, SIZE, catalog::ChunkBytes(CHUNK)).await.expect("created");
    let volume = catalog::resolve(&env, name).await.expect("a volume");
    let (_, theirs) = root_of(bench, parent.volume);
    let (head, mut root) = root_of(bench, volume);
    root.origins = [&theirs.origins[..], &[parent.volume]].concat();
    let own = u16::try_from(root.origins.len()).unwrap();
    let passed_on = |page: &MapPageRef| {
        let origin = if page.origin == 0 { own } else { page.origin };
        MapPageRef { origin, ..*page }
    };
    root.map_pages = theirs.map_pages.iter().map(|(number, page)| (*number, passed_on(page))).collect();
    root.zeroed = theirs.zeroed.clone();
    let keys = Keys::new(volume);
    bench.memory.insert(&keys.root(head.root), Bytes::from(root.encode(keys.sealing())));
    Side { name, volume, model: parent.model.clone() }
}

async fn open(bench: &Bench, side: &Side) -> Arc<Volume> {
    let options = Options { holder_name: side.name.to_owned(), ..bench.options.clone() };
    Volume::open(&bench.env(64 * MIB), options, side.volume, true).await.expect("opened")
}

/// Writes the whole disk.
async fn fill(volume: &Volume, side: &mut Side) {
    for at in (0..SIZE).step_by(1 << 20) {
        let bytes = pattern(at + 1, 1 << 20);
        let start = usize::try_from(at).unwrap();
        side.model[start..start + bytes.len()].copy_from_slice(&bytes);
        volume.write(at, bytes, Volatile).await.unwrap();
    }
    volume.checkpoint().await.unwrap();
}

/// Writes, zeroes and discards at random, with a checkpoint after every tenth change.
async fn change(volume: &Volume, side: &mut Side, numbers: &mut SmallRng, rounds: u64) {
    for round in 0..rounds {
        for _ in 0..10 {
            let (at, length) = match numbers.random_range(0..8_u8) {
                0 => (numbers.random_range(0..SIZE / CHUNK) * CHUNK, CHUNK),
                1 | 2 => (numbers.random_range(0..SIZE / 512 - 16) * 512, 1536),
                _ => (numbers.random_range(0..SIZE / 4096) * 4096, 4096),
            };
            let part = usize::try_from(at).unwrap()..usize::try_from(at + length).unwrap();
            if numbers.random_range(0..4_u8) == 0 {
                let zeroing = if round % 2 == 0 { Zeroing::Deallocate } else { Zeroing::Allocate };
                volume.zero(at, length, zeroing, Volatile).await.unwrap();
                side.model[part].fill(0);
            } else {
                let bytes = pattern(numbers.random(), part.len());
                volume.write(at, bytes.clone(), Volatile).await.unwrap();
                side.model[part].copy_from_slice(&bytes);
            }
        }
        volume.checkpoint().await.unwrap();
    }
}

async fn check(volume: &Volume, side: &Side, when: &str) {
    assert!(read(volume, 0, SIZE).await == side.model, "{}: {when}", side.name);
}

/// The objects that store a volume's data, without its heads, records, roots and lists of roots.
fn data_of(bench: &Bench, side: &Side) -> BTreeMap<String, Bytes> {
    let keys = Keys::new(side.volume);
    let prefixes = [keys.chunks(), keys.packs(), keys.overlays(), keys.map_pages()];
    let objects = bench.memory.objects().into_iter();
    objects.filter(|(key, _)| prefixes.iter().any(|prefix| key.starts_with(prefix))).collect()
}

#[tokio::test(start_paused = true)]
async fn what_a_volume_has_from_others_keeps_its_owner_in_every_checkpoint() {
    for (embed_bytes, overlays, seed) in [(0, 2, 1), (4096, 2, 2), (4096, 8, 3), (0, 8, 4)] {
        let mut bench = Bench::with_chunks(SIZE, CHUNK).await;
        bench.options.embed_bytes = embed_bytes;
        bench.options.overlays = overlays;
        bench.options.deletion_grace = Duration::ZERO;
        let mut numbers = SmallRng::seed_from_u64(seed);
        let volume = catalog::resolve(&bench.env(MIB), "disk").await.unwrap();
        let mut first = Side { name: "disk", volume, model: vec![0; usize::try_from(SIZE).unwrap()] };
        let opened = open(&bench, &first).await;
        fill(&opened, &mut first).await;
        change(&opened, &mut first, &mut numbers, 8).await;
        opened.close().await.unwrap();

        let mut second = cloned(&mut bench, &first, "second").await;
        let of_first = data_of(&bench, &first);
        let opened = open(&bench, &second).await;
        check(&opened, &second, "before it is changed").await;
        change(&opened, &mut second, &mut numbers, 3).await;
        check(&opened, &second, "after checkpoints").await;
        opened.close().await.unwrap();

        let mut third = cloned(&mut bench, &second, "third").await;
        let of_second = data_of(&bench, &second);
        let opened = open(&bench, &third).await;
        change(&opened, &mut third, &mut numbers, 3).await;
        opened.close().await.unwrap();
        let opened = open(&bench, &third).await;
        check(&opened, &third, "opened again").await;
        let page = a_map_page(&bench, &third);
        assert_eq!(page.origins().len(), 2, "it still has objects of both");
        opened.consolidate().await.unwrap();
        check(&opened, &third, "consolidated").await;
        let is_own = |place: &OverlayPlace| matches!(place, OverlayPlace::Object { origin: 0, .. });
        let page = a_map_page(&bench, &third);
        assert!(page.overlays().iter().all(|overlay| is_own(&overlay.place)), "no overlay of another");
        tokio::time::sleep(COLLECTED).await;
        opened.close().await.unwrap();

        assert!(data_of(&bench, &first) == of_first, "nobody deletes what others own");
        assert!(data_of(&bench, &second) == of_second, "nobody deletes what others own");
        for side in [&first, &second, &third] {
            let opened = open(&bench, side).await;
            check(&opened, side, "in the end").await;
            opened.close().await.unwrap();
        }
    }
}

fn a_map_page(bench: &Bench, side: &Side) -> MapPage {
    let (_, root) = root_of(bench, side.volume);
    let page = root.map_pages[&0];
    assert_eq!(page.origin, 0, "the volume has a map page of its own");
    let body = &bench.memory.objects()[&Keys::new(side.volume).map_page(0, page.id)];
    MapPage::decode(Sealing::new(side.volume), 0, page.id, root.geometry, body).expect("a map page")
}
