//! The packs that a fold makes, one after the other.
//!
//! Owns packs from their first block until they are durable. Must not know which blocks belong into a pack.
//! Invariant: a pack keeps its bytes until the store has them, over all attempts of a fold, because map
//! pages that are finished reference it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::compose::{ChangedBlock, Heat};
use crate::metrics::labels::ObjectKind;
use crate::mutant::{self, Mutant};
use crate::store::Condition;
use crate::volume::cache::fetch::{CacheKey, Unit};
use crate::volume::cache::held::Held;
use crate::volume::cache::moved::HeldBlock;
use crate::volume::error::Error;
use crate::volume::format::geometry::{BLOCK_BYTES, BlockIndex};
use crate::volume::format::keys::ObjectId;
use crate::volume::format::pack::{self, MAX_FRAMES, PackWriter};
use crate::volume::shared::Shared;

/// The packs of a fold.
#[derive(Debug, Default)]
pub(super) struct Packs {
    open: Option<OpenPack>,
    /// Complete packs that are not durable yet.
    unsent: Vec<(ObjectId, Bytes)>,
    /// Number of frames of each pack made, by id.
    frames: BTreeMap<ObjectId, u32>,
}

#[derive(Debug)]
struct OpenPack {
    id: ObjectId,
    writer: PackWriter,
    /// The frames, of the last 16, that are to stay in memory.
    hot: (u16, Vec<u8>),
    /// The changes that these frames were in memory as, each with the bit of the frame.
    moved: Vec<(u32, ChangedBlock)>,
}

/// Where a block was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    pub(super) pack: ObjectId,
    pub(super) frame: u16,
}

impl Packs {
    /// Appends a block of the volume. Blocks must be appended in ascending order within a fold. A block that
    /// was in memory stays there.
    pub(super) async fn append(
        &mut self,
        shared: &Shared,
        block: BlockIndex,
        payload: &[u8],
        heat: Heat,
    ) -> Packed {
        let frames = most_frames(shared);
        let open = self.open.get_or_insert_with(|| {
            let id = shared.next_id();
            // Its memory is kept for the next pack, for which it must not have to grow.
            let bytes = usize::try_from(pack::object_bytes(frames)).expect("at most 258 MiB");
            let writer = PackWriter::within(shared.keys.sealing(), id, shared.buffers().take(bytes));
            OpenPack { id, writer, hot: (0, Vec::new()), moved: Vec::new() }
        });
        let frame = open.writer.frames();
        open.writer.block(block, payload);
        if matches!(heat, Heat::Warm | Heat::Changed(_)) {
            open.hot.0 |= 1 << (frame % 16);
            open.hot.1.extend_from_slice(payload);
        }
        match heat {
            Heat::Cold | Heat::Warm => {}
            Heat::Changed(change) => open.moved.push((frame % 16, change)),
            Heat::Replaced(change) => change.leaves(shared).await,
        }
        let packed = Packed { pack: open.id, frame: u16::try_from(frame).expect("less than 65,535") };
        if frame % 16 == 15 {
            open.keep_hot(shared).await;
        }
        if open.writer.frames() == frames {
            self.close(shared).await;
        }
        packed
    }

    /// Completes the pack that is being filled.
    pub(super) async fn close(&mut self, shared: &Shared) {
        if let Some(mut open) = self.open.take() {
            open.keep_hot(shared).await;
            self.frames.insert(open.id, open.writer.frames());
            self.unsent.push((open.id, shared.buffers().lend(open.writer.finish())));
        }
    }

    /// Sends the complete packs.
    pub(super) async fn send(&mut self, shared: &Shared) -> Result<(), Error> {
        while let Some((id, bytes)) = self.unsent.last() {
            if !mutant::is(Mutant::PackUnsent) {
                let key = shared.keys.pack(*id);
                shared.env.store.bulk.put(&key, bytes.clone(), Condition::Always).await?;
                shared.metrics.put_bytes.of(ObjectKind::Pack).inc_by(bytes.len() as u64);
            }
            self.unsent.pop();
        }
        Ok(())
    }

    /// Keys of all packs made so far, including the one that is being filled.
    pub(super) fn keys(&self, shared: &Shared) -> Vec<String> {
        let open = self.open.iter().map(|open| open.id);
        self.frames.keys().copied().chain(open).map(|id| shared.keys.pack(id)).collect()
    }

    /// The number of frames of each complete pack.
    pub(super) fn frames(&self) -> &BTreeMap<ObjectId, u32> {
        &self.frames
    }
}

impl OpenPack {
    async fn keep_hot(&mut self, shared: &Shared) {
        let (mask, data) = std::mem::take(&mut self.hot);
        if mask == 0 {
            return;
        }
        let group = u16::try_from((self.writer.frames() - 1) / 16).expect("less than 4,096");
        let key = CacheKey { volume: shared.keys.volume(), unit: Unit::Packed(self.id, group) };
        shared.env.cache.insert(key, Held::new(mask, Bytes::from(data))).await;
        for (bit, change) in std::mem::take(&mut self.moved) {
            change.moves(shared, HeldBlock { key, bit }).await;
        }
    }
}

/// The number of frames at which a pack is complete.
pub(super) fn most_frames(shared: &Shared) -> u32 {
    let frames = shared.options.pack_bytes / BLOCK_BYTES;
    u32::try_from(frames).unwrap_or(MAX_FRAMES).clamp(1, MAX_FRAMES)
}
