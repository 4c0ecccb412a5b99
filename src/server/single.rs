//! [`SingleExport`]: the [`Exports`] of a server that has only one export.
//!
//! Must not know what the export is. Invariant: every name except the empty one and the export's own is
//! unknown.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::export::{Export, ExportDescription, Exports, ListEntry, OfferedContext, OpenError};

/// A single export. Clients reach it by its name or as the default export.
pub struct SingleExport {
    name: String,
    export: Arc<dyn Export>,
}

impl SingleExport {
    /// Offers `export` under this name.
    #[must_use]
    pub fn new(name: impl Into<String>, export: Arc<dyn Export>) -> Self {
        Self { name: name.into(), export }
    }

    fn find(&self, name: &str) -> Result<&Arc<dyn Export>, OpenError> {
        if name.is_empty() || name == self.name {
            Ok(&self.export)
        } else {
            Err(OpenError::Unknown(name.to_owned()))
        }
    }
}

impl fmt::Debug for SingleExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SingleExport").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl Exports for SingleExport {
    async fn list(&self) -> Result<Vec<ListEntry>, OpenError> {
        let description = self.export.description().description;
        Ok(vec![ListEntry { name: self.name.clone(), description }])
    }

    async fn describe(&self, name: &str) -> Result<ExportDescription, OpenError> {
        Ok(self.find(name)?.description())
    }

    async fn meta_contexts(&self, name: &str) -> Result<Vec<OfferedContext>, OpenError> {
        Ok(self.find(name)?.meta_contexts())
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn Export>, OpenError> {
        Ok(Arc::clone(self.find(name)?))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::export::{ExportError, Segment};
    use super::*;
    use crate::effect::{Durability, ZeroSpeed, Zeroing};
    use crate::protocol::Error;

    /// Implements only the required methods.
    struct Least;

    #[async_trait]
    impl Export for Least {
        fn description(&self) -> ExportDescription {
            ExportDescription::new("inner", 4096)
        }

        async fn read(&self, _offset: u64, length: u32) -> Result<Vec<Segment>, ExportError> {
            Ok(vec![Segment::Zero(length)])
        }

        async fn write(&self, _offset: u64, _data: Bytes, _: Durability) -> Result<(), ExportError> {
            Ok(())
        }

        async fn flush(&self) -> Result<(), ExportError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn the_export_is_found_by_its_name_and_as_the_default() {
        let exports = SingleExport::new("disk", Arc::new(Least));
        assert!(exports.open("disk").await.is_ok());
        assert_eq!(exports.describe("").await.unwrap().size_bytes, 4096);
        assert!(matches!(exports.open("inner").await, Err(OpenError::Unknown(_))));
        let listed = exports.list().await.unwrap();
        assert_eq!(listed.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), ["disk"]);
    }

    #[tokio::test]
    async fn what_an_export_does_not_implement_fails_and_is_never_reported_as_done() {
        assert_eq!(Least.trim(0, 512, Durability::Volatile).await.unwrap_err().error, Error::Inval);
        let zeroes = Least.write_zeroes(0, 512, Zeroing::Deallocate, ZeroSpeed::Any, Durability::Volatile);
        assert_eq!(zeroes.await.unwrap_err().error, Error::Inval);
        assert_eq!(Least.cache(0, 512).await.unwrap_err().error, Error::Inval);
        let extents = Least.block_status(0, 512, 1).await.unwrap();
        assert_eq!(extents.len(), 1);
        assert!(extents[0].length_bytes == 512 && !extents[0].hole && !extents[0].zero);
        assert!(Least.meta_contexts().is_empty());
        assert_eq!(Least.context_status("x-a:b", 0, 512, 1).await.unwrap_err().error, Error::Inval);
    }
}
