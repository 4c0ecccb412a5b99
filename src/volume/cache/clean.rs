//! The pieces in memory: the contents of the page cache, within a bound that can change at run time.
//!
//! Must not know about stores. The pieces are divided among shards, each a moka cache. The bound of a moka
//! cache is fixed, so a new bound takes a new cache, to which the pieces move: one shard after another, so
//! that little memory is held twice. Invariants: each piece is counted once when it is inserted and once when
//! it is removed, whatever the reason. No piece stays in a cache that was replaced.

use std::collections::BTreeMap;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use futures::FutureExt as _;
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use xxhash_rust::xxh3::Xxh3Builder;

use super::ahead::Ahead;
use super::counts::Counts;
use super::fetch::{CacheKey, Fetch, Unit};
use super::held::Held;

/// Memory that an entry takes in addition to its bytes: keys, counters and lists of the cache, and
/// what the allocator wastes on small entries. It is measured: when the cache grew from 64 MiB to 256 MiB
/// full of blocks, the process grew by 1,150 bytes for each entry besides its block.
const ENTRY_BYTES: usize = 1152;

/// Limit on the bytes that are inserted before pending evictions run.
const UNSETTLED_BYTES: u64 = 1 << 20;

/// Share of the bound that runs of changes may take: one part of this many.
const RUNS_SHARE: u64 = 16;

/// Limit on the number of shards.
const MOST_SHARDS: u64 = 16;
/// Shards are not made smaller than this many bytes: each must hold enough pieces that no use of the disk
/// fills one shard and leaves another empty.
const SHARD_BYTES: u64 = 8 << 20;
/// Seed of the hash that chooses the shard of a piece. moka finds the piece in the shard by another hash, so
/// that its buckets are used evenly.
const SHARD_SEED: u64 = 0x5348_4152_4453;

impl Held {
    /// Bytes of memory that it takes in the cache.
    pub(super) fn weight(&self) -> u32 {
        u32::try_from(self.data.len() + ENTRY_BYTES).unwrap_or(u32::MAX)
    }
}

type Pieces = Cache<CacheKey, Held, Xxh3Builder>;

/// Number of pieces that [`Scanned`] remembers: of 64 KiB each, a gibibyte.
const SCANNED: usize = 16_384;

/// The pieces that sequential readers have read last, by hashes of their keys. A newer piece with the same
/// slot replaces an older one, so a long scan is forgotten before it is repeated.
struct Scanned(Box<[AtomicU64]>);

impl Default for Scanned {
    fn default() -> Self {
        Self((0..SCANNED).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Scanned {
    /// Remembers a piece. Returns whether it was remembered already.
    fn again(&self, key: &CacheKey) -> bool {
        let hash = Xxh3Builder::new().with_seed(SHARD_SEED).hash_one(key);
        let place = usize::try_from(hash >> 32).expect("32 bits fit") % self.0.len();
        self.0[place].swap(hash, Ordering::Relaxed) == hash
    }
}

/// The clean pieces in memory, with their counts.
pub(crate) struct Clean {
    shards: Box<[ArcSwap<Pieces>]>,
    /// The runs of changes. Only a fold reads them, and only for as long as it is at this part of the disk,
    /// so they must not displace what clients read.
    runs: ArcSwap<Pieces>,
    /// Pieces that were read ahead when the shards had no room for them.
    ahead: Ahead,
    /// Pieces that a sequential reader has read from there.
    scanned: Scanned,
    /// Bound of `ahead` in bytes.
    most_ahead_bytes: AtomicU64,
    pub(crate) counts: Arc<Counts>,
    /// Bytes that were inserted since evictions last ran. At `most_unsettled_bytes` they run again.
    unsettled_bytes: AtomicU64,
    most_unsettled_bytes: u64,
}

fn pieces(bytes: u64, counts: &Arc<Counts>) -> Pieces {
    let counts = Arc::clone(counts);
    Cache::builder()
        .max_capacity(bytes)
        // What was written last must stay, or a fold would have to fetch it. A filter by frequency refuses
        // it, and keeps blocks that were read often before they were overwritten.
        .eviction_policy(EvictionPolicy::lru())
        .eviction_listener(move |key: Arc<CacheKey>, value: Held, cause| {
            counts.dropped(&key, value.weight(), cause.was_evicted());
        })
        .weigher(|_: &CacheKey, value: &Held| value.weight())
        .build_with_hasher(Xxh3Builder::new())
}

impl Clean {
    /// Creates a cache of at most `bytes` bytes. If `eager`, evictions run with each insertion.
    pub(crate) fn new(bytes: u64, eager: bool) -> Self {
        let counts = Arc::new(Counts::default());
        let (runs, bytes) = (bytes / RUNS_SHARE, bytes - bytes / RUNS_SHARE);
        let number = (bytes / SHARD_BYTES).clamp(1, MOST_SHARDS);
        let shards = (0..number).map(|_| ArcSwap::from_pointee(pieces(bytes / number, &counts)));
        Self {
            shards: shards.collect(),
            runs: ArcSwap::from_pointee(pieces(runs, &counts)),
            ahead: Ahead::default(),
            scanned: Scanned::default(),
            most_ahead_bytes: AtomicU64::new(0),
            counts,
            unsettled_bytes: AtomicU64::new(0),
            most_unsettled_bytes: if eager { 0 } else { UNSETTLED_BYTES },
        }
    }

    /// Changes the bound to `bytes` bytes. If the pieces exceed it, which of them are evicted does not depend
    /// on how they were used.
    pub(crate) async fn resize(&self, bytes: u64) {
        self.resize_shard(&self.runs, bytes / RUNS_SHARE).await;
        let bytes = bytes - bytes / RUNS_SHARE;
        let number = u64::try_from(self.shards.len()).expect("there are few shards");
        for shard in &self.shards {
            self.resize_shard(shard, bytes / number).await;
        }
    }

    async fn resize_shard(&self, shard: &ArcSwap<Pieces>, bytes: u64) {
        let new = Arc::new(pieces(bytes, &self.counts));
        let old = shard.swap(Arc::clone(&new));
        for (key, value) in old.iter() {
            old.invalidate(&*key).await;
            if !new.contains_key(&*key) {
                self.counts.added(&key, value.weight());
                new.insert(*key, value).await;
            }
        }
        old.run_pending_tasks().await;
        new.run_pending_tasks().await;
    }

    fn shard(&self, key: &CacheKey) -> &ArcSwap<Pieces> {
        if let Unit::Run(..) = key.unit {
            return &self.runs;
        }
        let hash = Xxh3Builder::new().with_seed(SHARD_SEED).hash_one(key);
        let place = usize::try_from(hash >> 32).expect("32 bits fit");
        &self.shards[place % self.shards.len()]
    }

    fn loaded(&self) -> impl Iterator<Item = Arc<Pieces>> {
        self.shards.iter().chain([&self.runs]).map(ArcSwap::load_full)
    }

    /// Bytes that the pieces take, including the overhead of each.
    pub(super) fn held_bytes(&self) -> u64 {
        self.loaded().map(|pieces| pieces.weighted_size()).sum::<u64>() + self.ahead.held_bytes()
    }

    /// Bounds the pieces that were read ahead when there was no other room for them.
    pub(super) fn limit_ahead(&self, bytes: u64) {
        self.most_ahead_bytes.store(bytes, Ordering::Relaxed);
        self.evict_ahead(self.ahead.shorten(bytes));
    }

    /// Bound in bytes of the pieces that were read ahead when there was no other room for them.
    pub(super) fn most_ahead_bytes(&self) -> u64 {
        self.most_ahead_bytes.load(Ordering::Relaxed)
    }

    /// Whether `bytes` bytes fit without an eviction.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let unsettled = self.unsettled_bytes.load(Ordering::Relaxed);
        let (mut held, mut most) = (0, 0);
        for pieces in self.shards.iter().map(ArcSwap::load) {
            held += pieces.weighted_size();
            most += pieces.policy().max_capacity().unwrap_or_default();
        }
        held + unsettled + bytes <= most
    }

    /// Inserts blocks that were read ahead. They stay until they are read, unless so much is read ahead that
    /// they have to go.
    pub(super) fn put_ahead(&self, key: CacheKey, blocks: Held) {
        let inserted = self.ahead.put(key, &blocks, self.most_ahead_bytes());
        self.counts.added(&key, inserted.weight);
        if let Some(before) = inserted.replaced {
            self.counts.moved(&key, before);
        }
        self.evict_ahead(inserted.gone);
    }

    /// Counts off pieces that were read ahead, and that nobody came to read.
    fn evict_ahead(&self, pieces: Vec<(CacheKey, Held)>) {
        for (key, held) in pieces {
            self.counts.dropped(&key, held.weight(), true);
        }
    }

    /// Inserts blocks of a piece beside those that are held already.
    pub(super) async fn put(&self, key: CacheKey, blocks: Held) {
        if blocks.mask == 0 {
            return;
        }
        let shard = self.shard(&key);
        let pieces = shard.load_full();
        // Between the lookup and the insertion another task may insert other blocks of the piece, which are
        // lost then. They are only fetched again.
        let blocks = match pieces.get(&key).await {
            Some(held) if blocks.mask & !held.mask == 0 => return,
            Some(held) => held.joined(&blocks),
            None => blocks,
        };
        self.added(&key, &blocks);
        pieces.insert(key, blocks).await;
        // The move to a new cache may have missed a piece that was inserted meanwhile.
        if !Arc::ptr_eq(&pieces, &shard.load()) {
            pieces.invalidate(&key).await;
        }
        self.settle_when_due().await;
    }

    /// Returns what is held of a piece, of which the blocks in `mask` are read now. Counts as a use.
    pub(crate) async fn get(&self, key: &CacheKey, mask: u16) -> Held {
        let held = self.shard(key).load().get(key).await.unwrap_or_default();
        if mask & !held.mask == 0 {
            return held;
        }
        let Some((ahead, leaves)) = self.ahead.read(key, mask) else { return held };
        let held = held.joined(&ahead);
        if leaves {
            self.counts.moved(key, ahead.weight());
            // A disk that is read once from begin to end must not displace everything else.
            if self.scanned.again(key) {
                self.put(*key, ahead).await;
            }
        }
        held
    }

    /// Returns which blocks of a piece are held.
    pub(crate) fn mask(&self, key: &CacheKey) -> u16 {
        // The cache has no lookup that leaves the order of use alone and returns the value. It never waits.
        let held = self.shard(key).load().get(key).now_or_never().flatten();
        held.map_or(0, |held| held.mask) | self.ahead.mask(key)
    }

    /// Removes a piece.
    pub(crate) async fn remove(&self, key: &CacheKey) {
        self.shard(key).load().invalidate(key).await;
        if let Some(held) = self.ahead.remove(key) {
            self.counts.dropped(key, held.weight(), false);
        }
    }

    /// Runs pending evictions.
    pub(crate) async fn settle(&self) {
        for pieces in self.loaded() {
            pieces.run_pending_tasks().await;
        }
    }

    fn added(&self, key: &CacheKey, value: &Held) {
        let weight = value.weight();
        self.counts.added(key, weight);
        self.unsettled_bytes.fetch_add(u64::from(weight), Ordering::Relaxed);
    }

    /// Runs evictions if enough bytes were inserted. moka runs them after a number of insertions, whatever
    /// their size, so pages would take the cache far beyond its bound.
    async fn settle_when_due(&self) {
        if self.unsettled_bytes.load(Ordering::Relaxed) >= self.most_unsettled_bytes {
            self.unsettled_bytes.store(0, Ordering::Relaxed);
            self.settle().await;
        }
    }

    /// Returns which blocks of which pieces are held, for all volumes.
    pub(crate) fn all(&self) -> HeldPieces {
        let mut all = BTreeMap::new();
        for pieces in self.loaded() {
            all.extend(pieces.iter().map(|(key, held)| (*key, held.mask)));
        }
        for (key, mask) in self.ahead.all() {
            *all.entry(key).or_default() |= mask;
        }
        HeldPieces(all)
    }
}

/// The pieces that were in memory at one moment.
#[derive(Debug, Default)]
pub(crate) struct HeldPieces(BTreeMap<CacheKey, u16>);

impl HeldPieces {
    /// Returns which of the wanted blocks of a piece were held, the first wanted one in the lowest bit.
    pub(crate) fn blocks(&self, fetch: &Fetch) -> u16 {
        self.0.get(&fetch.key).map_or(0, |mask| (mask & fetch.mask()) >> fetch.first)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uuid::Uuid;

    use super::super::fetch::Unit;
    use super::*;
    use crate::metrics::{Metrics, Tier, VolumeMetrics};
    use crate::volume::format::geometry::{ChunkIndex, PageIndex};
    use crate::volume::format::keys::ObjectId;

    fn key(n: u32) -> CacheKey {
        let id = ObjectId { epoch: 1, k: u64::from(n) };
        CacheKey { volume: Uuid::from_u128(7), unit: Unit::Page(ChunkIndex(n), id, PageIndex(0)) }
    }

    fn page() -> Held {
        Held { mask: u16::MAX, data: Bytes::from(vec![7; 65_536]) }
    }

    fn clean(bytes: u64) -> (Clean, VolumeMetrics) {
        let metrics = Metrics::new().volume("disk");
        let clean = Clean::new(bytes, true);
        clean.counts.volumes.lock().insert(Uuid::from_u128(7), metrics.clone());
        (clean, metrics)
    }

    fn counted(metrics: &VolumeMetrics) -> (u64, u64) {
        let bytes = metrics.cache_bytes.of(Tier::Memory).get();
        (u64::try_from(bytes).unwrap(), metrics.cache_evictions.of(Tier::Memory).get())
    }

    #[tokio::test]
    async fn a_bound_that_changes_takes_effect_at_once_and_keeps_what_fits() {
        let (clean, metrics) = clean(32 << 20);
        for n in 0..480 {
            clean.put(key(n), page()).await;
        }
        let before = clean.held_bytes();
        assert!(before > 28 << 20 && before <= 32 << 20, "{before}");
        clean.resize(8 << 20).await;
        let now = clean.held_bytes();
        assert!(now > 7 << 20 && now <= 8 << 20, "{now}");
        assert_eq!(counted(&metrics).0, now, "what went is counted off");
        clean.resize(64 << 20).await;
        assert_eq!(clean.held_bytes(), now, "all that was there is there");
        for n in 1000..1700 {
            clean.put(key(n), page()).await;
        }
        let grown = clean.held_bytes();
        assert!(grown > 40 << 20 && grown <= 64 << 20, "{grown}");
        assert_eq!(counted(&metrics).0, grown);
    }

    #[tokio::test]
    async fn shards_are_filled_evenly_and_keep_their_pieces_when_the_bound_grows() {
        let (clean, metrics) = clean(128 << 20);
        assert_eq!(clean.shards.len(), 15, "a sixteenth is for runs");
        for n in 0..1000 {
            clean.put(key(n), page()).await;
        }
        let one = u64::from(page().weight());
        let held =
            || clean.shards.iter().map(|shard| shard.load().weighted_size() / one).collect::<Vec<u64>>();
        let pieces = held();
        assert_eq!(pieces.iter().sum::<u64>(), 1000);
        assert!(pieces.iter().all(|count| (30..=100).contains(count)), "{pieces:?}");
        clean.resize(256 << 20).await;
        assert_eq!(held(), pieces);
        assert_eq!(counted(&metrics), (1000 * one, 0));
        for n in 0..1000 {
            assert_eq!(clean.get(&key(n), 1).await.mask, u16::MAX, "piece {n}");
        }
    }

    #[tokio::test]
    async fn what_goes_is_counted_off_and_as_evicted_only_for_want_of_room() {
        let (clean, metrics) = clean(4 << 20);
        clean.put(key(1), page()).await;
        clean.put(key(1), page()).await;
        let one = u64::from(page().weight());
        assert_eq!(counted(&metrics), (one, 0));
        clean.remove(&key(1)).await;
        clean.settle().await;
        assert_eq!(counted(&metrics), (0, 0));
        for n in 0..200 {
            clean.put(key(n), page()).await;
        }
        let (bytes, evicted) = counted(&metrics);
        assert_eq!(bytes, clean.held_bytes());
        assert_eq!(evicted, 200 - bytes / one);
    }
}
