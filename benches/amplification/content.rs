//! What is written to a disk: bytes that follow from the block and from how often it was written.
//!
//! Must not know where the bytes go. Invariant: no two versions of any blocks are equal, and none can be compressed.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use crate::experiment::BLOCK_BYTES;
use crate::plan::Run;

/// Blocks whose versions lie in one piece of memory.
const GROUP: u64 = 4096;

/// How often each block of a disk was written.
#[derive(Debug)]
pub(crate) struct Content {
    seed: u64,
    /// The number of writes to each block, modulo 255 and plus 1; 0 for a block that was never written.
    versions: BTreeMap<u64, Vec<u8>>,
    written_blocks: u64,
}

impl Content {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, versions: BTreeMap::new(), written_blocks: 0 }
    }

    /// Gives each block of the run its next version.
    pub(crate) fn rewrite(&mut self, run: Run) {
        for block in run.block..run.block + run.blocks {
            let group = usize::try_from(GROUP).expect("fits");
            let versions = self.versions.entry(block / GROUP).or_insert_with(|| vec![0; group]);
            let version = &mut versions[usize::try_from(block % GROUP).expect("fits")];
            self.written_blocks += u64::from(*version == 0);
            *version = *version % 255 + 1;
        }
    }

    /// As [`Content::rewrite`], and returns the new bytes.
    pub(crate) fn next(&mut self, run: Run) -> Bytes {
        self.rewrite(run);
        self.bytes(run)
    }

    /// The bytes of a run as they were last written. Zeros where nothing was written.
    pub(crate) fn bytes(&self, run: Run) -> Bytes {
        let length = usize::try_from(run.blocks * BLOCK_BYTES).expect("fits");
        let mut bytes = BytesMut::with_capacity(length);
        for block in run.block..run.block + run.blocks {
            let versions = self.versions.get(&(block / GROUP));
            let version = versions.map_or(0, |of| of[usize::try_from(block % GROUP).expect("fits")]);
            fill(&mut bytes, self.seed, block, version);
        }
        bytes.freeze()
    }

    /// Bytes of all blocks that were ever written: the live data.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.written_blocks * BLOCK_BYTES
    }

    /// Memory that this takes. It belongs to the measurement, not to what is measured.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.versions.len() as u64 * GROUP
    }
}

fn fill(bytes: &mut BytesMut, seed: u64, block: u64, version: u8) {
    let length = usize::try_from(BLOCK_BYTES).expect("fits");
    if version == 0 {
        bytes.resize(bytes.len() + length, 0);
        return;
    }
    let mixed = seed ^ (block << 8 | u64::from(version)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut state = mixed | 1;
    let end = bytes.len() + length;
    bytes.extend_from_slice(&(block << 8 | u64::from(version)).to_le_bytes());
    while bytes.len() < end {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
}
