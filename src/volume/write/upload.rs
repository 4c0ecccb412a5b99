//! Uploads chunks that were filled, before the commit that will reference them.
//!
//! Owns the upload tasks and their permits; the commit waits for the chunks to be durable. Invariant: permits
//! are returned once, however the upload ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::metrics::labels::ObjectKind;
use crate::store::Condition;
use crate::volume::cache::fetch::{CacheKey, Unit};
use crate::volume::cache::held::Held;
use crate::volume::format::chunk::{ChunkWriter, object_bytes, payload};
use crate::volume::format::geometry::BLOCKS_PER_PAGE;
use crate::volume::shared::Shared;
use crate::volume::state::piece::{ChunkMemory, ChunkRef, blocks_of_page};

/// Returns a chunk's permits when its upload ends, however it ends.
struct Permits {
    shared: Arc<Shared>,
    permits: usize,
}

impl Drop for Permits {
    fn drop(&mut self) {
        self.shared.env.budget.give(self.permits);
    }
}

/// Starts uploading a chunk. Its permits are returned once the chunk is durable and has left memory.
pub(super) fn start(shared: &Arc<Shared>, chunk: Arc<ChunkRef>, permits: usize) {
    let held = Permits { shared: Arc::clone(shared), permits };
    shared.tasks.spawn_until_cancelled(async move {
        upload(&held.shared, &chunk).await;
        drop(held);
    });
}

async fn upload(shared: &Shared, chunk: &ChunkRef) {
    if !chunk.stored.is_empty() {
        let object = chunk_object(shared, chunk);
        *chunk.memory.lock() = ChunkMemory::Object(object.clone());
        let key = shared.keys.chunk(chunk.index, chunk.id);
        // Each name is used once, so an unconditional PUT can only repeat itself.
        while let Err(error) = shared.env.store.uploads.put(&key, object.clone(), Condition::Always).await {
            tracing::error!(%key, "chunk not durable yet, sending it again: {error}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        shared.metrics.put_bytes.of(ObjectKind::Chunk).inc_by(object.len() as u64);
        for page in chunk.stored.iter() {
            let rank = chunk.stored.rank(page);
            let block = |block| payload(&object, chunk.pages_per_chunk, rank, block);
            let data = Bytes::from((0..BLOCKS_PER_PAGE).map(block).collect::<Vec<_>>().concat());
            let unit = Unit::page(chunk.index, chunk.id, page);
            let key = CacheKey { volume: shared.keys.volume(), unit };
            shared.env.cache.insert(key, Held::new(u16::MAX, data)).await;
        }
    }
    *chunk.memory.lock() = ChunkMemory::Gone;
    chunk.uploaded.set(true);
}

fn chunk_object(shared: &Shared, chunk: &ChunkRef) -> Bytes {
    let ChunkMemory::Blocks(blocks) = chunk.memory.lock().clone() else {
        unreachable!("only the upload takes the blocks");
    };
    let bytes = object_bytes(chunk.pages_per_chunk, chunk.stored.len());
    let memory = shared.buffers().take(usize::try_from(bytes).expect("at most 33 MiB"));
    let (sealing, pages) = (shared.keys.sealing(), chunk.pages_per_chunk);
    let mut writer = ChunkWriter::within(sealing, chunk.index, chunk.id, pages, memory);
    for page in chunk.stored.iter() {
        writer.page_of(page, blocks_of_page(&blocks, page).iter().map(|block| &block[..]));
    }
    shared.buffers().lend(writer.finish())
}
