//! Memory for large reads and writes, used again and again.
//!
//! What the system gives anew it clears first, page by page, and that takes as long as the reading.
//! Invariant: only so much is kept as [`MOST_FREE`] says; memory in use comes back when it is dropped,
//! wherever that is.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// What memory, offset and length must be multiples of: no file system in use asks for more.
pub(super) const ALIGNMENT: usize = 4096;
/// Bytes of one write.
pub(super) const SLICE_BYTES: usize = 1 << 20;

/// Bytes of a buffer: a slice that can be aligned.
const BUFFER_BYTES: usize = SLICE_BYTES + ALIGNMENT;
/// Buffers that are kept while nobody uses them.
const MOST_FREE: usize = 8;

/// Memory that nobody uses now.
#[derive(Debug, Default)]
pub(super) struct Pool {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    /// A buffer; what is in it is of no meaning.
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
    /// Bytes that it holds at most.
    pub(super) const LONGEST: usize = BUFFER_BYTES;

    /// All of it.
    pub(super) fn memory(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// Its first bytes, so many, for others to read; they give it back.
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
    fn memory_comes_back_when_the_last_reader_is_done_and_little_is_kept() {
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
