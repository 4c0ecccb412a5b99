//! A disk that is written by a copy.
//!
//! Owns how content is written: zeros as zeros, and not at all where the disk is zero already. It must not
//! know where the content comes from. Invariant: every command keeps to the disk's minimum block size. If the
//! content ends within a block, the rest of that block stays as it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};

use super::pieces::{Content, Part, STATUS_EXTENTS};
use crate::effect::{Durability, ZeroSpeed, Zeroing};
use crate::protocol::TransmissionFlags;
use crate::server::{Export, ExportDescription, ExportError, Segment};

/// Zeros within data are written as zeros in units of this size, aligned to it. No minimum block size is
/// larger.
const ZERO_BYTES: usize = 64 << 10;

/// A disk that is written.
pub(in crate::cli) struct Target {
    export: Arc<dyn Export>,
    told: ExportDescription,
    /// Maximum length of a WRITE.
    maximum: u64,
    data_bytes: AtomicU64,
}

impl Target {
    /// `maximum` is the maximum length of a WRITE, in whole blocks.
    pub(in crate::cli) fn new(export: Arc<dyn Export>, maximum: u64) -> Self {
        let told = export.description();
        Self { export, told, maximum, data_bytes: AtomicU64::new(0) }
    }

    /// Returns how many bytes were written as data.
    pub(in crate::cli) fn data_bytes(&self) -> u64 {
        self.data_bytes.load(Ordering::Relaxed)
    }

    /// Writes a part.
    pub(in crate::cli) async fn put(&self, part: Part) -> Result<(), ExportError> {
        match part.content {
            Content::Zeros(length) => self.zero(part.offset, length).await,
            Content::Data(data) => self.write(part.offset, data).await,
        }
    }

    /// Writes data. Runs of zeros are written as zeros.
    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        for (start, run, zero) in runs(offset, &data) {
            let at = offset + u64::try_from(start).expect("a usize fits 64 bits");
            let length = u64::try_from(run).expect("a usize fits 64 bits");
            if zero {
                self.zero(at, length).await?;
            } else {
                self.data_bytes.fetch_add(length, Ordering::Relaxed);
                self.write_run(at, data.slice(start..start + run)).await?;
            }
        }
        Ok(())
    }

    /// Writes data from the start of a block on.
    async fn write_run(&self, at: u64, mut data: Bytes) -> Result<(), ExportError> {
        let length = u64::try_from(data.len()).expect("a usize fits 64 bits");
        let rest = data.split_off(usize::try_from(self.whole(length)).expect("within the data"));
        let behind = at + u64::try_from(data.len()).expect("a usize fits 64 bits");
        if !data.is_empty() {
            self.export.write(at, data, Durability::Volatile).await?;
        }
        if !rest.is_empty() {
            self.write_part_of_block(behind, &rest).await?;
        }
        Ok(())
    }

    /// Returns how much of a length from the start of a block on consists of whole blocks.
    fn whole(&self, length: u64) -> u64 {
        length - length % u64::from(self.told.minimum_block_bytes.max(1))
    }

    /// Writes the start of a block, and keeps the rest of it.
    async fn write_part_of_block(&self, at: u64, data: &[u8]) -> Result<(), ExportError> {
        let mut block = BytesMut::new();
        for segment in self.export.read(at, self.told.minimum_block_bytes).await? {
            match segment {
                Segment::Data(data) => block.extend_from_slice(&data),
                Segment::Zero(length) => {
                    let length = usize::try_from(length).expect("32 bits fit a usize");
                    block.resize(block.len() + length, 0);
                }
            }
        }
        block[..data.len()].copy_from_slice(data);
        self.export.write(at, block.freeze(), Durability::Volatile).await
    }

    /// Makes a range of the disk read as zeros, as cheaply as possible.
    async fn zero(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        let whole = self.whole(length);
        if whole > 0 {
            self.zero_blocks(offset, whole).await?;
        }
        if whole < length {
            let zeros = vec![0; usize::try_from(length - whole).expect("less than a block")];
            self.write_part_of_block(offset + whole, &zeros).await?;
        }
        Ok(())
    }

    async fn zero_blocks(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        if self.is_zero(offset, length).await? {
            return Ok(());
        }
        if self.told.flags.contains(TransmissionFlags::SEND_WRITE_ZEROES) {
            let (zeroing, speed) = (Zeroing::Deallocate, ZeroSpeed::Any);
            return self.export.write_zeroes(offset, length, zeroing, speed, Durability::Volatile).await;
        }
        let zeros = Bytes::from(vec![0; usize::try_from(self.maximum).expect("a piece fits memory")]);
        let mut at = offset;
        while at < offset + length {
            let piece = self.maximum.min(offset + length - at);
            let data = zeros.slice(..usize::try_from(piece).expect("a piece fits memory"));
            self.export.write(at, data, Durability::Volatile).await?;
            at += piece;
        }
        Ok(())
    }

    async fn is_zero(&self, offset: u64, length: u64) -> Result<bool, ExportError> {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let extents = self.export.block_status(at, end - at, STATUS_EXTENTS).await?;
            if extents.is_empty() || extents.iter().any(|extent| !extent.zero || extent.length_bytes == 0) {
                return Ok(false);
            }
            at += extents.iter().map(|extent| extent.length_bytes).sum::<u64>();
        }
        Ok(true)
    }

    /// Makes what was written durable.
    pub(in crate::cli) async fn finish(&self) -> Result<(), ExportError> {
        if self.told.flags.contains(TransmissionFlags::SEND_FLUSH) {
            self.export.flush().await?;
        }
        Ok(())
    }
}

/// Divides data into runs of zeros and runs of other bytes. Each run has a start, a length, and whether it is
/// zero.
fn runs(offset: u64, data: &[u8]) -> Vec<(usize, usize, bool)> {
    let unit = u64::try_from(ZERO_BYTES).expect("a usize fits 64 bits");
    let mut runs: Vec<(usize, usize, bool)> = Vec::new();
    let mut at = 0;
    // The first unit ends at a multiple of its size on the disk.
    let mut length = usize::try_from(unit - offset % unit).expect("at most a unit");
    while at < data.len() {
        let length_here = length.min(data.len() - at);
        let zero = data[at..at + length_here].iter().all(|byte| *byte == 0);
        match runs.last_mut() {
            Some((_, run, before)) if *before == zero => *run += length_here,
            _ => runs.push((at, length_here, zero)),
        }
        at += length_here;
        length = ZERO_BYTES;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_among_data_are_found_in_whole_units() {
        let mut data = vec![0; 4 * ZERO_BYTES];
        assert_eq!(runs(0, &data), [(0, 4 * ZERO_BYTES, true)]);
        data[2 * ZERO_BYTES] = 1;
        let expected = [
            (0, 2 * ZERO_BYTES, true),
            (2 * ZERO_BYTES, ZERO_BYTES, false),
            (3 * ZERO_BYTES, ZERO_BYTES, true),
        ];
        assert_eq!(runs(0, &data), expected);
        // Units are aligned to the disk, not to the piece.
        let at = 1000;
        let first = ZERO_BYTES - 1000;
        let expected = [
            (0, first + ZERO_BYTES, true),
            (first + ZERO_BYTES, ZERO_BYTES, false),
            (first + 2 * ZERO_BYTES, ZERO_BYTES + 1000, true),
        ];
        assert_eq!(runs(at, &data), expected);
        assert_eq!(runs(7, &[]), []);
    }
}
