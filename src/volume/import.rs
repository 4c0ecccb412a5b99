//! Import: a new volume from content that comes in order, without a journal.
//!
//! Owns the chunk objects and the map pages of the volume. It must not know where the content comes from.
//! The volume is a draft of the catalogue until all its objects are durable. Invariants: the id of an object
//! depends on its place alone, its bytes on its id and the content, and it is only ever created. So an import
//! that was cut short can be repeated, and either has the same content or fails. What the import holds in
//! memory does not depend on the size of the volume.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::catalog::draft::Draft;
use super::environment::Environment;
use super::error::ImportError;
use super::format::chunk::{ChunkWriter, object_bytes};
use super::format::codec::Checksum;
use super::format::geometry::{
    BLOCK_BYTES, BLOCKS_PER_PAGE, ChunkBytes, ChunkIndex, Geometry, GeometryError, PAGE_LEN, PageIndex,
};
use super::format::keys::{Keys, ObjectId, Parsed, Slot};
use super::format::map::{Base, Entry, MapPage};
use super::format::page_set::PageSet;
use super::format::root::{BlockCounts, MapPageRef, Root};
use super::info::Info;
use super::options::Options;
use super::store_exact::{Placed, create_exact, get_referenced};
use crate::store::{self, ByteRange, Pages};
use crate::task::Tasks;

/// Bytes of content that are on their way to the store by default.
pub const IN_FLIGHT_BYTES: u64 = 64 << 20;

/// Offset of the `k` of chunk objects. The root and its table have smaller ones.
const CHUNK_K: u64 = 1 << 32;
/// Offset of the `k` of map pages.
const MAP_PAGE_K: u64 = 2 << 32;
/// The commit that an import counts as: the state before the first record of the journal.
const COMMIT: Slot = Slot { epoch: 0, n: 0 };

/// A volume that is being imported.
///
/// The content is passed in order, by [`Import::write`] and [`Import::zeros`]. Pages of zeros become holes.
#[derive(Debug)]
pub struct Import {
    env: Environment,
    draft: Draft,
    /// The root so far. Its size is known at the end.
    root: Root,
    /// Number of bytes passed so far.
    at: u64,
    /// The content of the current chunk. The zeros at its end are left out.
    filling: Vec<u8>,
    /// Sizes of the chunk objects that exist from before a resumption.
    existing: BTreeMap<ChunkIndex, u64>,
    /// Maximum number of chunks in flight.
    most_in_flight: usize,
    in_flight: FuturesOrdered<JoinHandle<Option<Result<Stored, ImportError>>>>,
    tasks: Tasks,
    map_page: Filled,
}

/// A chunk that is in the store.
#[derive(Clone, Copy, Debug)]
struct Stored {
    index: ChunkIndex,
    /// The pages of its object. If there are none, there is no object.
    pages: PageSet,
}

/// The entries of the map page that is being filled.
#[derive(Debug, Default)]
struct Filled {
    number: u32,
    entries: BTreeMap<u16, Entry>,
    stored_blocks: u32,
}

impl Import {
    /// Begins the import of a new volume. At most about `in_flight_bytes` of content, and at least two
    /// chunks, are on their way to the store at once.
    ///
    /// # Errors
    /// If the name is bound or not valid, if the chunk size is not valid, or if the store fails.
    pub async fn begin(
        env: &Environment,
        options: &Options,
        name: &str,
        chunk: ChunkBytes,
        in_flight_bytes: u64,
    ) -> Result<Self, ImportError> {
        let draft = Draft::begin(env, options, name, chunk).await?;
        Ok(Self::of(env, draft, in_flight_bytes, BTreeMap::new()))
    }

    /// Continues the last import of this name that was cut short. The content must be passed from its first
    /// byte again. What the store has already is compared and not sent.
    ///
    /// # Errors
    /// If the name is bound or not valid, if there is no such import, or if the store fails.
    pub async fn resume(env: &Environment, name: &str, in_flight_bytes: u64) -> Result<Self, ImportError> {
        let draft = Draft::find(env, name).await?;
        let keys = draft.keys();
        let mut existing = BTreeMap::new();
        let prefix = keys.chunks();
        let mut pages = Pages::new(env.store.bulk.as_ref(), &prefix);
        while let Some(entries) = pages.next().await? {
            for entry in entries {
                if let Some(Parsed::Chunk(index, id)) = keys.parse(&entry.key)
                    && id == chunk_id(index)
                {
                    existing.insert(index, entry.size_bytes);
                }
            }
        }
        Ok(Self::of(env, draft, in_flight_bytes, existing))
    }

    fn of(
        env: &Environment,
        draft: Draft,
        in_flight_bytes: u64,
        existing: BTreeMap<ChunkIndex, u64>,
    ) -> Self {
        let most_in_flight = usize::try_from(in_flight_bytes / draft.geometry().chunk_bytes());
        Self {
            env: env.clone(),
            root: draft.root(0),
            draft,
            at: 0,
            filling: Vec::new(),
            existing,
            most_in_flight: most_in_flight.unwrap_or(usize::MAX).max(2),
            in_flight: FuturesOrdered::new(),
            tasks: Tasks::new(),
            map_page: Filled::default(),
        }
    }

    /// Id of the volume, by which it can be deleted if it does not get its name.
    #[must_use]
    pub fn volume(&self) -> Uuid {
        self.draft.keys().volume()
    }

    /// Number of bytes passed so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Number of chunks that exist from before a resumption.
    #[must_use]
    pub fn existing(&self) -> usize {
        self.existing.len()
    }

    /// Passes the next bytes.
    ///
    /// # Errors
    /// If the volume would be too large, if the store fails, or if it has other bytes from before.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        self.check_room(bytes.len() as u64)?;
        let chunk_bytes = self.geometry().chunk_bytes();
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = within(self.at, chunk_bytes);
            let room = usize::try_from(chunk_bytes).expect("at most 32 MiB") - within;
            let (now, later) = rest.split_at(room.min(rest.len()));
            if self.filling.capacity() == 0 {
                self.filling.reserve_exact(within + room);
            }
            self.filling.resize(within, 0);
            self.filling.extend_from_slice(now);
            self.at += now.len() as u64;
            rest = later;
            if now.len() == room {
                self.complete().await?;
            }
        }
        Ok(())
    }

    /// Passes zeros.
    ///
    /// # Errors
    /// As [`Import::write`].
    pub async fn zeros(&mut self, length: u64) -> Result<(), ImportError> {
        self.check_room(length)?;
        let end = self.at + length;
        let chunk_bytes = self.geometry().chunk_bytes();
        while self.at < end {
            let boundary = self.at - self.at % chunk_bytes + chunk_bytes;
            self.at = boundary.min(end);
            if self.at == boundary {
                self.complete().await?;
            }
        }
        Ok(())
    }

    /// Completes the volume. Its size is what was passed, rounded up to whole blocks with zeros.
    ///
    /// # Errors
    /// If nothing was passed, if the name was used since the import began, or as [`Import::write`].
    pub async fn finish(mut self) -> Result<Info, ImportError> {
        self.zeros(self.at.next_multiple_of(BLOCK_BYTES) - self.at).await?;
        self.finish_unpadded().await
    }

    /// As [`Import::finish`], but the size is exactly what was passed: a multiple of 512 bytes.
    ///
    /// # Errors
    /// As [`Import::finish`], and if what was passed is no multiple of 512 bytes.
    pub async fn finish_unpadded(mut self) -> Result<Info, ImportError> {
        self.geometry().check_size(self.at)?;
        if !self.at.is_multiple_of(self.geometry().chunk_bytes()) {
            self.complete().await?;
        }
        while !self.in_flight.is_empty() {
            self.settle().await?;
        }
        if let Some(index) = self.existing.keys().next() {
            // The source has become shorter.
            return Err(self.changed(*index));
        }
        self.put_map_page().await?;
        self.root.size_bytes = self.at;
        let Self { env, draft, root, .. } = self;
        draft.publish(&env, root).await
    }

    /// Ends the import and waits for its requests. What it has made remains, without a name.
    pub async fn stop(self) {
        self.tasks.shutdown().await;
    }

    fn geometry(&self) -> Geometry {
        self.draft.geometry()
    }

    fn check_room(&self, length: u64) -> Result<(), ImportError> {
        let most = self.geometry().max_volume_bytes();
        match self.at.checked_add(length) {
            Some(size) if size <= most => Ok(()),
            size => Err(GeometryError::Volume { size: size.unwrap_or(u64::MAX), most }.into()),
        }
    }

    fn changed(&self, index: ChunkIndex) -> ImportError {
        ImportError::SourceChanged { key: self.draft.keys().chunk(index, chunk_id(index)) }
    }

    /// Sends the chunk that ends here.
    async fn complete(&mut self) -> Result<(), ImportError> {
        let index = self.geometry().chunk_at(self.at - 1);
        let content = std::mem::take(&mut self.filling);
        let existing_bytes = self.existing.remove(&index);
        if content.is_empty() {
            return if existing_bytes.is_some() { Err(self.changed(index)) } else { Ok(()) };
        }
        while self.in_flight.len() >= self.most_in_flight {
            self.settle().await?;
        }
        let (env, keys) = (self.env.clone(), self.draft.keys());
        let pages_per_chunk = self.geometry().pages_per_chunk();
        let sent = self.tasks.spawn_until_cancelled(async move {
            let (pages, object) = encode(keys, index, pages_per_chunk, content);
            put_chunk(&env, keys, index, object, existing_bytes).await?;
            Ok(Stored { index, pages })
        });
        self.in_flight.push_back(sent);
        Ok(())
    }

    /// Waits for the oldest chunk in flight, and adds it to the map.
    async fn settle(&mut self) -> Result<(), ImportError> {
        let settled = self.in_flight.next().await.expect("a chunk is in flight");
        let Stored { index, pages } = settled
            .expect("the task does not panic")
            .expect("the task is not cancelled before the import")?;
        if pages.is_empty() {
            return Ok(());
        }
        if self.map_page.number != index.map_page() {
            self.put_map_page().await?;
            self.map_page.number = index.map_page();
        }
        let base = Base { origin: 0, id: chunk_id(index), stored: pages };
        let entry = Entry { birth: Some(COMMIT), base: Some(base), allocated: pages, ..Entry::default() };
        self.map_page.entries.insert(index.slot(), entry);
        self.map_page.stored_blocks += pages.len() * BLOCKS_PER_PAGE;
        Ok(())
    }

    /// Makes the map page that was filled, if it has any chunk.
    async fn put_map_page(&mut self) -> Result<(), ImportError> {
        let Filled { number, entries, stored_blocks } = std::mem::take(&mut self.map_page);
        if entries.is_empty() {
            return Ok(());
        }
        let keys = self.draft.keys();
        let id = ObjectId { epoch: 0, k: MAP_PAGE_K + u64::from(number) };
        let page = MapPage::new(number, self.geometry(), Vec::new(), Vec::new(), &entries);
        let key = keys.map_page(number, id);
        create(&*self.env.store.bulk, key, Bytes::from(page.encode(keys.sealing(), id))).await?;
        let counts = BlockCounts { stored: stored_blocks, ..BlockCounts::default() };
        self.root.set_page(number, MapPageRef { origin: 0, id, counts });
        Ok(())
    }
}

/// The id of the object of an imported chunk.
fn chunk_id(index: ChunkIndex) -> ObjectId {
    ObjectId { epoch: 0, k: CHUNK_K + u64::from(index.0) }
}

/// Position of an offset in its chunk.
fn within(at: u64, chunk_bytes: u64) -> usize {
    usize::try_from(at % chunk_bytes).expect("within a chunk")
}

/// Makes the object of a chunk from the pages that are not zero. Without any, the object is empty.
fn encode(keys: Keys, index: ChunkIndex, pages_per_chunk: u16, mut content: Vec<u8>) -> (PageSet, Bytes) {
    content.resize(content.len().next_multiple_of(PAGE_LEN), 0);
    let mut pages = PageSet::EMPTY;
    for (page, bytes) in (0..).map(PageIndex).zip(content.chunks(PAGE_LEN)) {
        if bytes.iter().any(|byte| *byte != 0) {
            pages.insert(page);
        }
    }
    if pages.is_empty() {
        return (pages, Bytes::new());
    }
    let id = chunk_id(index);
    let mut writer = ChunkWriter::new(keys.sealing(), index, id, pages_per_chunk, pages.len());
    for page in pages.iter() {
        writer.page(page, &content[usize::from(page.0) * PAGE_LEN..][..PAGE_LEN]);
    }
    let object = writer.finish();
    debug_assert_eq!(object.len() as u64, object_bytes(pages_per_chunk, pages.len()));
    (pages, object.into())
}

/// Makes sure that the store has the object of a chunk, or no object if the chunk has none.
async fn put_chunk(
    env: &Environment,
    keys: Keys,
    index: ChunkIndex,
    object: Bytes,
    existing_bytes: Option<u64>,
) -> Result<(), ImportError> {
    let key = keys.chunk(index, chunk_id(index));
    let store = env.store.uploads.as_ref();
    match existing_bytes {
        None if object.is_empty() => return Ok(()),
        None => return create(store, key, object).await,
        Some(bytes) if bytes == object.len() as u64 => {}
        Some(_) => return Err(ImportError::SourceChanged { key }),
    }
    // The last bytes of an object are the checksum of all others.
    let length = Checksum::BYTES as u64;
    let end = ByteRange::Bounded { offset: object.len() as u64 - length, length };
    match get_referenced(store, &key, end).await {
        Ok(found) if object.ends_with(&found.body) => Ok(()),
        Ok(_) => Err(ImportError::SourceChanged { key }),
        Err(store::Error::NotFound { .. }) => create(store, key, object).await,
        Err(error) => Err(error.into()),
    }
}

/// Creates an object, unless it exists with these bytes.
async fn create(store: &dyn store::Store, key: String, object: Bytes) -> Result<(), ImportError> {
    match create_exact(store, &key, &object).await? {
        Placed::Ours => Ok(()),
        Placed::Other(_) | Placed::Larger(_) => Err(ImportError::SourceChanged { key }),
    }
}
