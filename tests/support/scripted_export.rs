//! A disk that follows a script: it holds commands, fails them, breaks its contract, and counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use cairn::effect::{Durability, ZeroSpeed, Zeroing};
use cairn::protocol::Error;
use cairn::server::{Allocation, Export, ExportDescription, ExportError, Segment};
use tokio::sync::{Semaphore, watch};

use super::memory_export::MemoryExport;

/// What a [`ScriptedExport`] does with commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Script {
    /// Passes a command on after [`ScriptedExport::release`] has let it through.
    Hold,
    /// Fails commands with this error.
    Fail(Error),
    /// Fails commands with this error, and reports this offset as its position.
    FailAt(Error, u64),
    /// Panics in every command.
    Panic,
    /// Answers a READ with one byte, and a BLOCK_STATUS without an extent.
    BreakContract,
    /// Answers a BLOCK_STATUS with one extent of this length, whatever was requested.
    LongExtent(u64),
    /// Passes commands on unchanged.
    Pass,
}

/// A [`MemoryExport`] that follows a script. Only commands at offset 0 are held; others pass.
pub(crate) struct ScriptedExport {
    inner: MemoryExport,
    script: Script,
    gate: Semaphore,
    started: watch::Sender<usize>,
    /// Number of FLUSHes, and of writes with FUA.
    pub(crate) durable: AtomicUsize,
}

impl ScriptedExport {
    pub(crate) fn new(inner: MemoryExport, script: Script) -> Arc<Self> {
        let (gate, started) = (Semaphore::new(0), watch::channel(0).0);
        Arc::new(Self { inner, script, gate, started, durable: AtomicUsize::new(0) })
    }

    /// Waits until this many commands have started in total.
    pub(crate) async fn wait_started(&self, count: usize) {
        self.started.subscribe().wait_for(|started| *started >= count).await.expect("the sender is ours");
    }

    /// Returns how many commands have started.
    pub(crate) fn started(&self) -> usize {
        *self.started.borrow()
    }

    /// Lets this many held commands through.
    pub(crate) fn release(&self, count: usize) {
        self.gate.add_permits(count);
    }

    async fn follow_script(&self, offset: u64) -> Result<(), ExportError> {
        self.started.send_modify(|started| *started += 1);
        match self.script {
            Script::Hold if offset == 0 => {
                self.gate.acquire().await.expect("the gate is never closed").forget();
                Ok(())
            }
            Script::Fail(error) => Err(ExportError::new(error, "as scripted")),
            Script::FailAt(error, at) => {
                Err(ExportError { at: Some(at), ..ExportError::new(error, "as scripted") })
            }
            Script::Panic => panic!("as scripted"),
            Script::Hold | Script::Pass | Script::BreakContract | Script::LongExtent(_) => Ok(()),
        }
    }

    fn count_durable(&self, durability: Durability) {
        let is_durable = durability == Durability::Durable;
        self.durable.fetch_add(usize::from(is_durable), Ordering::SeqCst);
    }
}

#[async_trait]
impl Export for ScriptedExport {
    fn description(&self) -> ExportDescription {
        self.inner.description()
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Segment>, ExportError> {
        self.follow_script(offset).await?;
        match self.script {
            Script::BreakContract => Ok(vec![Segment::Data(Bytes::from_static(b"x"))]),
            _ => self.inner.read(offset, length).await,
        }
    }

    async fn write(&self, offset: u64, data: Bytes, durability: Durability) -> Result<(), ExportError> {
        self.follow_script(offset).await?;
        self.count_durable(durability);
        self.inner.write(offset, data, durability).await
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.follow_script(0).await?;
        self.count_durable(Durability::Durable);
        self.inner.flush().await
    }

    async fn trim(&self, offset: u64, length: u64, durability: Durability) -> Result<(), ExportError> {
        self.follow_script(offset).await?;
        self.count_durable(durability);
        self.inner.trim(offset, length, durability).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        zeroing: Zeroing,
        speed: ZeroSpeed,
        durability: Durability,
    ) -> Result<(), ExportError> {
        self.follow_script(offset).await?;
        self.count_durable(durability);
        self.inner.write_zeroes(offset, length, zeroing, speed, durability).await
    }

    async fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.follow_script(offset).await?;
        self.inner.cache(offset, length).await
    }

    async fn block_status(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> Result<Vec<Allocation>, ExportError> {
        self.follow_script(offset).await?;
        match self.script {
            Script::BreakContract => Ok(Vec::new()),
            Script::LongExtent(length_bytes) => Ok(vec![Allocation { length_bytes, hole: true, zero: true }]),
            _ => self.inner.block_status(offset, length, limit).await,
        }
    }
}
