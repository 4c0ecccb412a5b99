//! A disk in memory with metadata contexts of its own.

use async_trait::async_trait;
use bytes::Bytes;
use cairn::effect::Durability;
use cairn::protocol::Error;
use cairn::server::{
    Allocation, ContextStatus, Export, ExportDescription, ExportError, OfferedContext, Segment,
};

use super::memory_export::MemoryExport;

/// The context whose status cannot be found out.
pub(crate) const FAILS: &str = "x-test:fails";
/// The context for which no extent is returned.
pub(crate) const NOTHING: &str = "x-test:nothing";

/// A [`MemoryExport`] with contexts. In the context `x-test:below-N`, the bytes below N have the status 1.
pub(crate) struct MarkedExport {
    disk: MemoryExport,
    contexts: Vec<OfferedContext>,
}

impl MarkedExport {
    /// Offers these contexts.
    pub(crate) fn new<'a>(disk: MemoryExport, contexts: impl IntoIterator<Item = &'a str>) -> Self {
        let offered = |name: &str| OfferedContext { name: name.to_owned(), about: None };
        Self { disk, contexts: contexts.into_iter().map(offered).collect() }
    }

    /// Offers one more context, which reveals something about another export.
    pub(crate) fn about(mut self, context: &str, export: &str) -> Self {
        self.contexts.push(OfferedContext { name: context.to_owned(), about: Some(export.to_owned()) });
        self
    }
}

#[async_trait]
impl Export for MarkedExport {
    fn description(&self) -> ExportDescription {
        self.disk.description()
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Segment>, ExportError> {
        self.disk.read(offset, length).await
    }

    async fn write(&self, offset: u64, data: Bytes, durability: Durability) -> Result<(), ExportError> {
        self.disk.write(offset, data, durability).await
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.disk.flush().await
    }

    async fn block_status(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> Result<Vec<Allocation>, ExportError> {
        self.disk.block_status(offset, length, limit).await
    }

    fn meta_contexts(&self) -> Vec<OfferedContext> {
        self.contexts.clone()
    }

    async fn context_status(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> Result<Vec<ContextStatus>, ExportError> {
        assert!(self.contexts.iter().any(|offered| offered.name == context), "{context}");
        match context {
            FAILS => return Err(ExportError::new(Error::Io, "as scripted")),
            NOTHING => return Ok(Vec::new()),
            _ => {}
        }
        let below: u64 = context.strip_prefix("x-test:below-").unwrap().parse().unwrap();
        let marked = below.saturating_sub(offset).min(length);
        let mut extents = vec![
            ContextStatus { length_bytes: marked, status: 1 },
            ContextStatus { length_bytes: length - marked, status: 0 },
        ];
        extents.retain(|extent| extent.length_bytes > 0);
        extents.truncate(limit);
        Ok(extents)
    }
}
