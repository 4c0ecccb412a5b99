//! Reusable memory for large reads and writes.
//!
//! Owns the buffers, and must not know what they hold. The system clears new memory page by page, which takes
//! as long as the read itself. Invariant: at most [`MOST_FREE`] unused buffers are kept, and a buffer returns
//! to the pool when its last reader drops it.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Required alignment of memory, offset and length in bytes. No file system in use requires more.
pub(super) const ALIGNMENT: usize = 4096;
/// Size of one write in bytes.
pub(super) const SLICE_BYTES: usize = 1 << 20;

/// Size of a buffer in bytes: a slice, and room to align it.
const BUFFER_BYTES: usize = SLICE_BYTES + ALIGNMENT;
/// Maximum number of unused buffers that are kept.
const MOST_FREE: usize = 8;

/// Buffers that are not in use.
#[derive(Debug, Default)]
pub(super) struct Pool {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    /// Returns a buffer with arbitrary content.
    pub(super) fn take(self: &Arc<Self>) -> Buffer {
        let free = self.free.lock().pop();
        Buffer { memory: free.unwrap_or_else(|| vec![0; BUFFER_BYTES]), length: 0, pool: Arc::clone(self) }
    }
}

/// A buffer that is in use.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: Vec<u8>,
    length: usize,
    pool: Arc<Pool>,
}

impl Buffer {
    /// Size of the buffer in bytes.
    pub(super) const LONGEST: usize = BUFFER_BYTES;

    /// Returns the whole buffer for writing.
    pub(super) fn memory(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// Returns the first `length` bytes for reading. The buffer returns to the pool when the last reader
    /// drops them.
    pub(super) fn filled(mut self, length: usize) -> Bytes {
        self.length = length;
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.pool.free.lock();
        if free.len() < MOST_FREE {
            free.push(std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_return_after_the_last_reader_and_few_are_kept() {
        let pool = Arc::new(Pool::default());
        let mut buffer = pool.take();
        buffer.memory()[..3].copy_from_slice(b"abc");
        let bytes = buffer.filled(3);
        let part = bytes.slice(1..);
        drop(bytes);
        assert_eq!((&part[..], pool.free.lock().len()), (&b"bc"[..], 0));
        drop(part);
        assert_eq!(pool.free.lock().len(), 1);
        let many: Vec<Buffer> = (0..MOST_FREE + 3).map(|_| pool.take()).collect();
        drop(many);
        assert_eq!(pool.free.lock().len(), MOST_FREE);
    }
}
