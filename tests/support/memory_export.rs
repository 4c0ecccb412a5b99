//! A sparse disk in memory: the simplest [`Export`], for tests and the example.
//!
//! Pages that were never written take no memory and are reported as holes.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use cairn::effect::{Durability, ZeroSpeed, Zeroing};
use cairn::protocol::TransmissionFlags;
use cairn::server::{
    Allocation, Export, ExportDescription, ExportError, Exports, ListEntry, OfferedContext, OpenError,
    Segment,
};
use parking_lot::Mutex;

const PAGE_BYTES: usize = 4096;

/// Converts a length or position to an index in memory.
fn index(value: u64) -> usize {
    usize::try_from(value).expect("memory is addressed with 64 bits")
}

/// Converts an index in memory to a length or position on the disk.
fn wide(value: usize) -> u64 {
    u64::try_from(value).expect("memory is addressed with 64 bits")
}

/// A disk in memory.
#[derive(Debug)]
pub(crate) struct MemoryExport {
    description: ExportDescription,
    pages: Mutex<BTreeMap<u64, Box<[u8; PAGE_BYTES]>>>,
}

impl MemoryExport {
    /// Creates a disk of zeros that supports every feature.
    pub(crate) fn new(name: &str, size_bytes: u64) -> Self {
        let flags = TransmissionFlags::HAS_FLAGS
            | TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_FUA
            | TransmissionFlags::SEND_TRIM
            | TransmissionFlags::SEND_WRITE_ZEROES
            | TransmissionFlags::SEND_FAST_ZERO
            | TransmissionFlags::SEND_CACHE
            | TransmissionFlags::CAN_MULTI_CONN;
        Self::described(ExportDescription {
            name: name.to_owned(),
            description: "a disk in memory".to_owned(),
            size_bytes,
            flags,
            minimum_block_bytes: 1,
            preferred_block_bytes: 4096,
            maximum_block_bytes: 64 << 20,
        })
    }

    /// Creates a disk of zeros with this description.
    pub(crate) fn described(description: ExportDescription) -> Self {
        Self { description, pages: Mutex::default() }
    }

    /// Splits a range at page boundaries. Returns each page and the bytes in it.
    fn parts(offset: u64, length: u64) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
        let page_bytes = wide(PAGE_BYTES);
        let end = offset + length;
        let mut at = offset;
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let page = at / page_bytes;
                let next = end.min((page + 1) * page_bytes);
                let in_page = |position: u64| index(position - page * page_bytes);
                let range = in_page(at)..in_page(next);
                at = next;
                (page, range)
            })
        })
    }
}

#[async_trait]
impl Export for MemoryExport {
    fn description(&self) -> ExportDescription {
        self.description.clone()
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Segment>, ExportError> {
        let pages = self.pages.lock();
        let mut segments = Vec::new();
        for (page, range) in Self::parts(offset, u64::from(length)) {
            segments.push(match pages.get(&page) {
                Some(bytes) => Segment::Data(Bytes::copy_from_slice(&bytes[range])),
                None => Segment::Zero(u32::try_from(range.len()).expect("part of a page")),
            });
        }
        Ok(segments)
    }

    async fn write(&self, offset: u64, data: Bytes, _: Durability) -> Result<(), ExportError> {
        let mut pages = self.pages.lock();
        let mut rest = &data[..];
        for (page, range) in Self::parts(offset, wide(data.len())) {
            let (part, tail) = rest.split_at(range.len());
            pages.entry(page).or_insert_with(|| Box::new([0; PAGE_BYTES]))[range].copy_from_slice(part);
            rest = tail;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }

    async fn trim(&self, offset: u64, length: u64, durability: Durability) -> Result<(), ExportError> {
        self.write_zeroes(offset, length, Zeroing::Deallocate, ZeroSpeed::Any, durability).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        zeroing: Zeroing,
        _: ZeroSpeed,
        _: Durability,
    ) -> Result<(), ExportError> {
        let mut pages = self.pages.lock();
        if zeroing == Zeroing::Allocate {
            for (page, range) in Self::parts(offset, length) {
                pages.entry(page).or_insert_with(|| Box::new([0; PAGE_BYTES]))[range].fill(0);
            }
            return Ok(());
        }
        let page_bytes = wide(PAGE_BYTES);
        let touched = offset / page_bytes..=(offset + length - 1) / page_bytes;
        let touched: Vec<u64> = pages.range(touched).map(|(page, _)| *page).collect();
        for page in touched {
            let start = offset.max(page * page_bytes) - page * page_bytes;
            let end = (offset + length).min((page + 1) * page_bytes) - page * page_bytes;
            let range = index(start)..index(end);
            if range.len() == PAGE_BYTES {
                pages.remove(&page);
            } else if let Some(bytes) = pages.get_mut(&page) {
                bytes[range].fill(0);
            }
        }
        Ok(())
    }

    async fn cache(&self, _offset: u64, _length: u64) -> Result<(), ExportError> {
        Ok(())
    }

    async fn block_status(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> Result<Vec<Allocation>, ExportError> {
        let pages = self.pages.lock();
        let page_bytes = wide(PAGE_BYTES);
        let end = offset + length;
        let mut extents: Vec<Allocation> = Vec::new();
        let mut push = |length_bytes: u64, hole: bool| {
            let full = extents.len() == limit;
            match extents.last_mut() {
                _ if length_bytes == 0 => {}
                Some(last) if last.hole == hole => last.length_bytes += length_bytes,
                _ if full => return false,
                _ => extents.push(Allocation { length_bytes, hole, zero: hole }),
            }
            true
        };
        let mut at = offset;
        for page in pages.range(offset / page_bytes..=(end - 1) / page_bytes).map(|(page, _)| *page) {
            let start = at.max(page * page_bytes);
            let next = end.min((page + 1) * page_bytes);
            if !push(start - at, true) || !push(next - start, false) {
                return Ok(extents);
            }
            at = next;
        }
        push(end - at, true);
        Ok(extents)
    }
}

/// Exports by name. The first one is the default.
#[derive(Default)]
pub(crate) struct MemoryExports {
    exports: Vec<Arc<dyn Export>>,
}

impl MemoryExports {
    /// Creates the set of exports.
    pub(crate) fn new(exports: Vec<Arc<dyn Export>>) -> Self {
        Self { exports }
    }

    fn find(&self, name: &str) -> Result<&Arc<dyn Export>, OpenError> {
        self.exports
            .iter()
            .find(|export| name.is_empty() || export.description().name == name)
            .ok_or_else(|| OpenError::Unknown(name.to_owned()))
    }
}

#[async_trait]
impl Exports for MemoryExports {
    async fn list(&self) -> Result<Vec<ListEntry>, OpenError> {
        let entry = |export: &Arc<dyn Export>| {
            let ExportDescription { name, description, .. } = export.description();
            ListEntry { name, description }
        };
        Ok(self.exports.iter().map(entry).collect())
    }

    async fn describe(&self, name: &str) -> Result<ExportDescription, OpenError> {
        Ok(self.find(name)?.description())
    }

    async fn meta_contexts(&self, name: &str) -> Result<Vec<OfferedContext>, OpenError> {
        Ok(self.find(name)?.meta_contexts())
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn Export>, OpenError> {
        self.find(name).cloned()
    }
}
