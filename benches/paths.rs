//! Micro-benchmarks of the paths that every command takes, each on its own and without a network or a disk:
//! `cargo bench --bench paths`, with a part of a name to choose some.
//!
//! Each benchmark repeats one step on state that is prepared outside the measurement. They show which step became
//! slower or faster; `benches/compare` measures what a client sees. Nothing here fails for being slow.

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use cairn::protocol::{Command, CommandFlags, Cookie, HeaderStyle, Reply, Request};
use cairn::server::{
    Durability, Export, ExportDescription, ExportError, Greeting, NoMetrics, Segment, Server, SingleExport,
};
use cairn::store::{Classes, MemoryStore, Store};
use cairn::task::Tasks;
use cairn::volume::cache::fetch::Fetch;
use cairn::volume::cache::held::Held;
use cairn::volume::format::codec::Checksum;
use cairn::volume::format::frame::Place;
use cairn::volume::format::geometry::ChunkIndex;
use cairn::volume::format::keys::{ObjectId, Slot};
use cairn::volume::format::page_set::PageSet;
use cairn::volume::format::record::{RecordKind, RecordWriter};
use cairn::volume::format::sealing::Sealing;
use cairn::volume::{DirtyBudget, Entropy, Environment, Options, PageCache, Volume, catalog};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::runtime::Runtime;
use uuid::Uuid;

const BLOCK: usize = 4096;
const MIB: u64 = 1 << 20;
/// Commands per run of the runtime, so that entering it costs little.
const BATCH: u64 = 256;
/// Requests in flight on the connection.
const DEPTH: u32 = 32;

fn main() {
    divan::main();
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Offsets of blocks within `bytes`, in an order that is not sequential.
fn offset(n: u64, bytes: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (bytes / BLOCK as u64) * BLOCK as u64
}

fn block(n: u64) -> Bytes {
    n.to_le_bytes().repeat(BLOCK / 8).into()
}

// --- the protocol -----------------------------------------------------------------------------------------------

fn read_request(cookie: u64) -> Request {
    Request {
        flags: CommandFlags::empty(),
        command: Command::Read,
        cookie: Cookie(cookie),
        offset: offset(cookie, MIB),
        length: BLOCK as u64,
    }
}

fn encoded(requests: u32) -> BytesMut {
    let mut bytes = BytesMut::new();
    for n in 0..u64::from(requests) {
        read_request(n).encode(HeaderStyle::Simple, &mut bytes).expect("a length of 32 bits");
    }
    bytes
}

/// Decodes the header of a READ and encodes the header of its reply.
#[divan::bench]
fn request_and_reply_headers(bencher: Bencher<'_, '_>) {
    let request = encoded(1);
    let mut out = BytesMut::with_capacity(64);
    bencher.bench_local(|| {
        out.clear();
        let request = Request::decode(HeaderStyle::Simple, black_box(&request)).expect("it is a request");
        Reply::Simple { result: Ok(()), cookie: request.cookie }.encode(&mut out);
        black_box(&out);
    });
}

/// A disk whose every block is the same.
struct OneBlock(Bytes);

#[async_trait::async_trait]
impl Export for OneBlock {
    fn description(&self) -> ExportDescription {
        ExportDescription::new("disk", MIB)
    }

    async fn read(&self, _offset: u64, _length: u32) -> Result<Vec<Segment>, ExportError> {
        Ok(vec![Segment::Data(self.0.clone())])
    }

    async fn write(&self, _offset: u64, _data: Bytes, _durability: Durability) -> Result<(), ExportError> {
        Ok(())
    }

    async fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }
}

/// Negotiates simple replies by hand, as `doc/proto.md` describes the fixed newstyle and `NBD_OPT_EXPORT_NAME`.
async fn connect(server: Arc<Server>, tasks: &Tasks) -> DuplexStream {
    let (mut client, other) = tokio::io::duplex(1 << 20);
    drop(tasks.spawn_until_cancelled(async move { server.serve_stream(other, Greeting::Newstyle).await }));
    client.read_exact(&mut [0; 18]).await.expect("the greeting");
    // Fixed newstyle, no zeroes after the export's description.
    client.write_all(&3_u32.to_be_bytes()).await.expect("it reads");
    client.write_all(b"IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x04disk").await.expect("it reads");
    client.read_exact(&mut [0; 10]).await.expect("size and flags");
    client
}

/// 32 READs of 4 KiB through a connection of the server, from the first byte of the requests to the last byte of
/// the replies.
#[divan::bench]
fn server_answers_32_reads(bencher: Bencher<'_, '_>) {
    let (runtime, tasks) = (runtime(), Tasks::new());
    let exports = SingleExport::new("disk", Arc::new(OneBlock(block(1))));
    let options = cairn::server::Options::default();
    let server = Arc::new(Server::new(Arc::new(exports), options, NoMetrics));
    let client = Mutex::new(runtime.block_on(connect(server, &tasks)));
    let requests = encoded(DEPTH);
    let mut replies = vec![0; DEPTH as usize * (Reply::SIMPLE_LENGTH + BLOCK)];
    bencher.counter(ItemsCount::new(DEPTH)).bench_local(|| {
        let mut client = client.lock().expect("nobody panics");
        runtime.block_on(async {
            client.write_all(&requests).await.expect("the server reads");
            client.read_exact(&mut replies).await.expect("the server answers");
        });
    });
}

// --- formats ----------------------------------------------------------------------------------------------------

/// A record of 256 changes of 4 KiB: tags, table, copy and checksum.
#[divan::bench]
fn record_of_256_blocks(bencher: Bencher<'_, '_>) {
    let blocks: Vec<_> = (0..BATCH).map(block).collect();
    let (sealing, slot) = (Sealing::new(Uuid::from_u128(1)), Slot { epoch: 1, n: 2 });
    bencher.counter(BytesCount::new(BATCH * BLOCK as u64)).bench_local(|| {
        let mut writer = RecordWriter::new(sealing, RecordKind::Commit, slot, 1, 3, Checksum([0; 16]), 64);
        for (block, n) in blocks.iter().zip(0..) {
            writer.data(n * BLOCK as u64, block.clone());
        }
        black_box(writer.finish())
    });
}

/// The check of a fetched frame.
#[divan::bench(args = [4096, 65536])]
fn frame_is_verified(bencher: Bencher<'_, '_>, bytes: usize) {
    let place = Place::chunk(Sealing::new(Uuid::from_u128(1)), 2, ObjectId { epoch: 1, k: 3 });
    let mut frame: Vec<u8> = block(7).iter().copied().cycle().take(bytes).collect();
    frame.extend_from_slice(&place.tag(5, &frame).0);
    bencher
        .counter(BytesCount::new(bytes))
        .bench_local(|| black_box(place.open(5, black_box(&frame))).is_some());
}

// --- the cache --------------------------------------------------------------------------------------------------

/// A hit of one block in a cache of 256 whole pages.
#[divan::bench]
fn cache_hit(bencher: Bencher<'_, '_>) {
    const PAGES: u64 = 256;
    let runtime = runtime();
    let cache = PageCache::new(64 * MIB, MIB);
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let stored = PageSet::first(64);
    // Block `n` of a volume with chunks of 64 pages of 16 blocks.
    let fetch = |n: u64| {
        let block = |n: u64| u32::try_from(n).expect("few blocks");
        let chunk = (ChunkIndex(block(n / 1024)), ObjectId { epoch: 1, k: n / 1024 }, &stored);
        Fetch::chunk(Sealing::new(Uuid::from_u128(1)), 64, chunk, block(n % 1024)..block(n % 1024 + 1))
    };
    let page: Bytes = block(9).repeat(16).into();
    runtime.block_on(async {
        for n in 0..PAGES {
            cache.insert(fetch(n * 16).key, Held::new(u16::MAX, page.clone())).await;
        }
        cache.settle().await;
        assert!((0..PAGES * 16).all(|n| cache.contains(&fetch(n))), "every block is a hit");
    });
    let mut at = 0;
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        runtime.block_on(async {
            for _ in 0..BATCH {
                at += 1;
                let wanted = [fetch(offset(at, 16 * MIB) / BLOCK as u64)];
                black_box(cache.fetch(&store, &wanted).await);
            }
        });
    });
}

// --- a volume ---------------------------------------------------------------------------------------------------

/// A volume of 64 MiB in a store in memory, which commits only when it is told to.
fn volume(runtime: &Runtime) -> Arc<Volume> {
    let env = Environment {
        store: Classes::one(Arc::new(MemoryStore::new())),
        cache: PageCache::new(128 * MIB, MIB),
        budget: DirtyBudget::new(128 * MIB),
        entropy: Entropy::seeded(1),
        wall_clock: Arc::new(|| 1_800_000_000),
    };
    let options = Options {
        holder_name: "bench".to_owned(),
        commit_max_age: std::time::Duration::from_secs(3600),
        ..Options::default()
    };
    runtime.block_on(async {
        catalog::create(&env, &options, "disk", 64 * MIB, catalog::ChunkBytes(4 * MIB))
            .await
            .expect("created");
        catalog::open(&env, || options, "disk", false).await.expect("opened")
    })
}

/// WRITEs of 4 KiB to blocks that are dirty already.
#[divan::bench]
fn dirty_write(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    let volume = volume(&runtime);
    let data = block(3);
    let mut at = 0;
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        runtime.block_on(async {
            for _ in 0..BATCH {
                at += 1;
                volume.write(offset(at, 3 * MIB), data.clone(), Durability::Volatile).await.expect("written");
            }
        });
    });
}

/// One WRITE of 4 KiB and a FLUSH, which is one PUT.
#[divan::bench]
fn write_and_flush(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    let volume = volume(&runtime);
    let data = block(3);
    let mut at = 0;
    bencher.bench_local(|| {
        at += 1;
        runtime.block_on(async {
            volume.write(offset(at, 3 * MIB), data.clone(), Durability::Volatile).await.expect("written");
            volume.flush().await.expect("flushed");
        });
    });
}

/// READs of 4 KiB that the cache holds, after a checkpoint.
#[divan::bench]
fn cached_read(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    let volume = volume(&runtime);
    runtime.block_on(async {
        let chunk = Bytes::from(vec![5; 1 << 20]);
        for n in 0..16 {
            volume.write(n * MIB, chunk.clone(), Durability::Volatile).await.expect("written");
        }
        volume.checkpoint().await.expect("a checkpoint");
        volume.read(0, 16 * MIB).await.expect("read");
    });
    let mut at = 0;
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        runtime.block_on(async {
            for _ in 0..BATCH {
                at += 1;
                black_box(volume.read(offset(at, 16 * MIB), BLOCK as u64).await.expect("read"));
            }
        });
    });
}
