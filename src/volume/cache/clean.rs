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

use super::ahead::{Ahead, Use};
use super::counts::Counts;
use super::fetch::{CacheKey, Fetch, Unit};
use super::held::Held;
use super::kept::Kept;

/// Memory that an entry takes in addition to its bytes: keys, counters and lists of the cache. This and the
/// next one are measured: when the cache grew from 64 MiB to 256 MiB by random reads, its entries by 176.5 MB
/// with what these two say, the process grew by 177.6 MB.
const ENTRY_BYTES: usize = 640;
/// Memory that each allocation of an entry takes in addition to its bytes.
const ALLOCATION_BYTES: usize = 96;

/// Limit on the bytes that are inserted before pending evictions run.
const UNSETTLED_BYTES: u64 = 1 << 20;

/// Share of the bound that runs of changes may take: one part of this many.
const RUNS_SHARE: u64 = 16;

/// Limit on the number of shards.
const MOST_SHARDS: u64 = 16;
/// Shards are not made smaller than this many bytes: each must hold some hundreds of the largest pieces, so
/// that no use of the disk fills one shard and leaves another empty.
const SHARD_BYTES: u64 = 32 << 20;
/// Seed of the hash that chooses the shard of a piece. moka finds the piece in the shard by another hash, so
/// that its buckets are used evenly.
const SHARD_SEED: u64 = 0x5348_4152_4453;

impl Held {
    /// Bytes of memory that it takes in the cache.
    pub(super) fn weight(&self) -> u32 {
        let overhead = ENTRY_BYTES + self.allocations() * ALLOCATION_BYTES;
        u32::try_from(self.bytes() + overhead).unwrap_or(u32::MAX)
    }
}

type Pieces = Cache<CacheKey, Arc<Kept>, Xxh3Builder>;

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
    /// Pieces that were read ahead. They have the room that the shards do not need, and a share of their own.
    ahead: Ahead,
    /// Pieces that a sequential reader has read from there.
    scanned: Scanned,
    /// The share of `ahead` in bytes.
    most_ahead_bytes: AtomicU64,
    pub(crate) counts: Arc<Counts>,
    /// Bound of the shards in bytes.
    bound: AtomicU64,
    /// Bytes that were inserted so far.
    taken_bytes: AtomicU64,
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
        .eviction_listener(move |key: Arc<CacheKey>, kept: Arc<Kept>, cause| {
            let weight = kept.held.weight();
            if cause.was_evicted() && !matches!(key.unit, Unit::Run(..)) {
                counts.gave_way(weight);
            }
            counts.dropped(&key, weight, cause.was_evicted());
        })
        .weigher(|_: &CacheKey, kept: &Arc<Kept>| kept.held.weight())
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
            bound: AtomicU64::new(bytes),
            taken_bytes: AtomicU64::new(0),
            unsettled_bytes: AtomicU64::new(0),
            most_unsettled_bytes: if eager { 0 } else { UNSETTLED_BYTES },
        }
    }

    /// Changes the bound to `bytes` bytes. If the pieces exceed it, those that were not used for longest are
    /// evicted.
    pub(crate) async fn resize(&self, bytes: u64) {
        self.resize_shard(&self.runs, bytes / RUNS_SHARE).await;
        let bytes = bytes - bytes / RUNS_SHARE;
        self.bound.store(bytes, Ordering::Relaxed);
        let number = u64::try_from(self.shards.len()).expect("there are few shards");
        for shard in &self.shards {
            self.resize_shard(shard, bytes / number).await;
        }
    }

    async fn resize_shard(&self, shard: &ArcSwap<Pieces>, bytes: u64) {
        let new = Arc::new(pieces(bytes, &self.counts));
        let old = shard.swap(Arc::clone(&new));
        let mut pieces: Vec<(u64, Arc<CacheKey>)> =
            old.iter().map(|(key, kept)| (kept.used(), key)).collect();
        pieces.sort_unstable_by_key(|(used, _)| *used);
        for (_, key) in pieces {
            if let Some(kept) = old.remove(&*key).await
                && !new.contains_key(&*key)
            {
                self.counts.added(&key, kept.held.weight());
                new.insert(*key, kept).await;
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

    /// Bound in bytes of the runs of changes.
    pub(super) fn most_run_bytes(&self) -> u64 {
        self.bound.load(Ordering::Relaxed) / (RUNS_SHARE - 1)
    }

    /// Sets the share of the pieces that were read ahead, which they have besides the room that nothing else
    /// needs.
    pub(super) fn limit_ahead(&self, bytes: u64) {
        self.most_ahead_bytes.store(bytes, Ordering::Relaxed);
        self.shorten_ahead();
    }

    /// The share in bytes of the pieces that were read ahead.
    pub(super) fn most_ahead_bytes(&self) -> u64 {
        self.most_ahead_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that fit into the shards without an eviction.
    fn room(&self) -> u64 {
        let unsettled = self.unsettled_bytes.load(Ordering::Relaxed);
        let held: u64 = self.shards.iter().map(|shard| shard.load().weighted_size()).sum();
        self.bound.load(Ordering::Relaxed).saturating_sub(held + unsettled)
    }

    /// Whether `bytes` bytes fit without an eviction of anything but what was read ahead.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        bytes <= self.room()
    }

    /// Whether `bytes` bytes that are read ahead fit where nothing else needs the room, beside those that
    /// wait for their reader.
    pub(super) fn has_room_ahead(&self, bytes: u64) -> bool {
        self.ahead.unread_bytes() + bytes <= self.room()
    }

    fn shorten_ahead(&self) {
        self.evict_ahead(self.ahead.shorten(self.room() + self.most_ahead_bytes()));
    }

    /// Inserts blocks that were read ahead.
    pub(super) fn put_ahead(&self, key: CacheKey, blocks: Held) {
        let inserted = self.ahead.put(key, &blocks, self.room() + self.most_ahead_bytes());
        self.counts.added(&key, inserted.weight);
        if let Some(before) = inserted.replaced {
            self.counts.moved(&key, before);
        }
        self.evict_ahead(inserted.gone);
    }

    /// Counts off pieces that were read ahead, and had to go.
    fn evict_ahead(&self, pieces: Vec<(CacheKey, Held)>) {
        for (key, held) in pieces {
            self.counts.dropped(&key, held.weight(), true);
        }
    }

    /// Inserts blocks of a piece beside those that are held already.
    pub(super) async fn put(&self, key: CacheKey, blocks: Held) {
        if blocks.mask() == 0 {
            return;
        }
        // Between the lookup and the insertion another task may insert other blocks of the piece, which are
        // lost then. They are only fetched again.
        let found = self.shard(&key).load().get(&key).await;
        match found {
            Some(kept) if blocks.mask() & !kept.held.mask() == 0 => {}
            Some(kept) => {
                let joined = kept.with(kept.held.joined(&blocks), self.taken_bytes());
                self.keep(key, joined, kept.held.weight()).await;
            }
            None => {
                self.keep(key, Kept::new(blocks, self.taken_bytes(), self.counts.evicted_bytes()), 0).await;
            }
        }
    }

    /// Inserts a piece in place of what is held of it, which takes `before` bytes.
    async fn keep(&self, key: CacheKey, kept: Kept, before: u32) {
        let (shard, weight) = (self.shard(&key), kept.held.weight());
        let (kept, more) = (Arc::new(kept), u64::from(weight.saturating_sub(before)));
        self.taken_bytes.fetch_add(more, Ordering::Relaxed);
        self.unsettled_bytes.fetch_add(more, Ordering::Relaxed);
        loop {
            let pieces = shard.load_full();
            self.counts.added(&key, weight);
            if before > 0 {
                // moka 0.12.16 does not change the weight of an entry in place without fault: if the entry is
                // removed before its new weight is counted, the difference stays in the sum for good. A read
                // that comes between these two fetches the piece.
                pieces.invalidate(&key).await;
            }
            pieces.insert(key, Arc::clone(&kept)).await;
            if Arc::ptr_eq(&pieces, &shard.load()) {
                break;
            }
            // The move to a new cache may have missed it.
            pieces.invalidate(&key).await;
        }
        self.settle_when_due().await;
    }

    fn taken_bytes(&self) -> u64 {
        self.taken_bytes.load(Ordering::Relaxed)
    }

    /// Keeps only those blocks of a piece that are in `mask`.
    async fn keep_only(&self, key: &CacheKey, kept: &Kept, mask: u16) {
        match kept.held.mask() & mask {
            0 => self.invalidate(key).await,
            left if left == kept.held.mask() => {}
            left => {
                let some = kept.with(kept.held.only(left), self.taken_bytes());
                self.keep(*key, some, kept.held.weight()).await;
            }
        }
    }

    /// Removes blocks of a piece.
    pub(super) async fn let_go(&self, key: &CacheKey, mask: u16) {
        let found = self.shard(key).load().get(key).await;
        if let Some(kept) = found {
            self.keep_only(key, &kept, !mask).await;
        }
        if self.ahead.mask(key) & !mask == 0 {
            self.remove_ahead(key);
        }
    }

    /// Returns what is held of a piece, of which the blocks in `mask` are read now. Counts as a use.
    pub(crate) async fn get(&self, key: &CacheKey, mask: u16) -> Held {
        let found = self.shard(key).load().get(key).await;
        let held = match found {
            Some(kept) => {
                kept.note(mask, self.taken_bytes());
                let bound = self.bound.load(Ordering::Relaxed);
                if let Some(read) = kept.examine(self.counts.evicted_bytes(), bound) {
                    self.keep_only(key, &kept, read).await;
                }
                kept.held.clone()
            }
            None => Held::default(),
        };
        if mask & !held.mask() == 0 {
            return held;
        }
        let Some((ahead, used)) = self.ahead.read(key, mask) else { return held };
        let is_in_use = match used {
            Use::Waits => false,
            // A disk that is read once from begin to end must not displace what is in use.
            Use::IsRead => self.scanned.again(key),
            Use::Again => true,
        };
        if is_in_use && let Some(ahead) = self.ahead.remove(key) {
            self.counts.moved(key, ahead.weight());
            self.put(*key, ahead).await;
        }
        held.joined(&ahead)
    }

    /// Returns which blocks of a piece are held.
    pub(crate) fn mask(&self, key: &CacheKey) -> u16 {
        // The cache has no lookup that leaves the order of use alone and returns the value. It never waits.
        let held = self.shard(key).load().get(key).now_or_never().flatten();
        held.map_or(0, |kept| kept.held.mask()) | self.ahead.mask(key)
    }

    /// Removes a piece.
    pub(crate) async fn remove(&self, key: &CacheKey) {
        self.invalidate(key).await;
        self.remove_ahead(key);
    }

    async fn invalidate(&self, key: &CacheKey) {
        self.shard(key).load().invalidate(key).await;
        // Otherwise the room would be there only once moka comes to it, in real time.
        self.settle_when_due().await;
    }

    fn remove_ahead(&self, key: &CacheKey) {
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

    /// Runs evictions if enough bytes were inserted. moka runs them after a number of insertions, whatever
    /// their size, so pages would take the cache far beyond its bound.
    async fn settle_when_due(&self) {
        if self.unsettled_bytes.load(Ordering::Relaxed) >= self.most_unsettled_bytes {
            self.unsettled_bytes.store(0, Ordering::Relaxed);
            self.settle().await;
            self.shorten_ahead();
        }
    }

    /// Returns which blocks of which pieces are held, for all volumes.
    pub(crate) fn all(&self) -> HeldPieces {
        let mut all = BTreeMap::new();
        for pieces in self.loaded() {
            all.extend(pieces.iter().map(|(key, kept)| (*key, kept.held.mask())));
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
    use crate::volume::format::geometry::{BLOCK_LEN, ChunkIndex, PageIndex};
    use crate::volume::format::keys::ObjectId;

    fn key(n: u32) -> CacheKey {
        let id = ObjectId { epoch: 1, k: u64::from(n) };
        CacheKey { volume: Uuid::from_u128(7), unit: Unit::Page(ChunkIndex(n), id, PageIndex(0)) }
    }

    fn page() -> Held {
        Held::new(u16::MAX, Bytes::from(vec![7; 65_536]))
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
        let (clean, metrics) = clean(512 << 20);
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
        clean.resize(1 << 30).await;
        assert_eq!(held(), pieces);
        assert_eq!(counted(&metrics), (1000 * one, 0));
        for n in 0..1000 {
            assert_eq!(clean.get(&key(n), 1).await.mask(), u16::MAX, "piece {n}");
        }
    }

    /// As in a fold: block after block of the changes becomes a block of a page.
    #[tokio::test]
    async fn pieces_that_leave_block_by_block_make_room_for_as_many_bytes() {
        let metrics = Metrics::new().volume("disk");
        let clean = Clean::new(40 << 20, false);
        clean.counts.volumes.lock().insert(Uuid::from_u128(7), metrics.clone());
        let count = 512;
        let block = || Bytes::from(vec![7; BLOCK_LEN]);
        for n in 0..count {
            clean.put(key(n), Held::apart(u16::MAX, (0..16).map(|_| block()).collect())).await;
        }
        for n in 0..count * 8 {
            let (from, bit) = (n * 7919 % count, n / count * 2);
            clean.let_go(&key(from), 1 << bit).await;
            clean.let_go(&key(from), 2 << bit).await;
            if n % 8 == 7 {
                clean.put(key(1000 + n), page()).await;
            }
        }
        clean.settle().await;
        assert_eq!(counted(&metrics), (u64::from(count) * u64::from(page().weight()), 0));
        assert_eq!(clean.held_bytes(), counted(&metrics).0, "what is counted is what there is");
    }

    #[tokio::test]
    async fn what_was_used_last_stays_when_the_bound_shrinks() {
        let (clean, _metrics) = clean(8 << 20);
        for n in 0..100 {
            clean.put(key(n), page()).await;
        }
        for n in (0..40).rev() {
            assert_eq!(clean.get(&key(n), 1).await.mask(), u16::MAX);
            // The order of use is counted in bytes that are inserted.
            clean.put(key(200), page()).await;
            clean.remove(&key(200)).await;
        }
        let room = 40 * u64::from(page().weight());
        clean.resize((room * RUNS_SHARE).div_ceil(RUNS_SHARE - 1)).await;
        let held: Vec<u32> = (0..100).filter(|n| clean.mask(&key(*n)) != 0).collect();
        assert_eq!(held, (0..40).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn blocks_that_nobody_reads_go_although_their_neighbours_are_read() {
        let (clean, metrics) = clean(4 << 20);
        clean.put(key(0), page()).await;
        for n in 1..200 {
            clean.put(key(n), page()).await;
            clean.get(&key(0), 0b1001).await;
        }
        assert_eq!(clean.mask(&key(0)), 0b1001);
        let one = clean.get(&key(0), 0b1001).await;
        assert_eq!(one.blocks(3..4), Some(Bytes::from(vec![7; BLOCK_LEN])));
        assert_eq!(counted(&metrics).0, clean.held_bytes(), "each is counted once");
    }

    #[tokio::test]
    async fn what_is_read_ahead_makes_nothing_go() {
        let (clean, _metrics) = clean(4 << 20);
        clean.put(key(0), page()).await;
        clean.limit_ahead(1 << 20);
        for n in 1..400 {
            clean.put_ahead(key(n), page());
            assert_eq!(clean.get(&key(n), u16::MAX).await.mask(), u16::MAX);
            clean.get(&key(0), 0b1001).await;
        }
        assert_eq!(clean.mask(&key(0)), u16::MAX);
        assert!(clean.held_bytes() <= 5 << 20, "{}", clean.held_bytes());
        clean.get(&key(399), 1).await;
        clean.limit_ahead(0);
        for n in 1000..1057 {
            clean.put(key(n), page()).await;
        }
        assert_eq!(clean.mask(&key(399)), u16::MAX, "it is in use, since it was read again");
        assert_eq!(clean.mask(&key(398)), 0, "the others gave way");
    }

    #[tokio::test]
    async fn blocks_are_let_go_one_by_one() {
        let (clean, metrics) = clean(4 << 20);
        let before = counted(&metrics);
        clean.put(key(1), page()).await;
        clean.let_go(&key(1), 0b110).await;
        assert_eq!(clean.mask(&key(1)), !0b110);
        clean.let_go(&key(1), u16::MAX).await;
        clean.settle().await;
        assert_eq!((clean.mask(&key(1)), counted(&metrics)), (0, before));
        clean.let_go(&key(1), 1).await;
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
