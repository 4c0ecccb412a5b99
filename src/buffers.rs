//! Large buffers for reuse: the system clears each page of a new buffer, which costs more than to fill it.
//!
//! Must not know what is in the buffers. Invariants: a buffer is idle only once nobody can read the bytes in
//! it any more. Idle buffers take at most the bound.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Buffers below this size are not kept: the allocator has memory for these without the system.
const LEAST_BYTES: usize = 128 << 10;

/// Buffers that are used again and again.
#[derive(Debug)]
pub(crate) struct Buffers {
    idle: Mutex<Idle>,
}

#[derive(Debug, Default)]
struct Idle {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
    most_bytes: usize,
    /// Number of buffers that somebody can read.
    lent: usize,
}

/// A buffer that becomes idle when the last reference to its bytes is dropped.
struct Lent {
    memory: Vec<u8>,
    to: Arc<Buffers>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.memory
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.to.take_back(std::mem::take(&mut self.memory));
    }
}

impl Buffers {
    /// Keeps idle buffers of at most `most_bytes` bytes in all.
    pub(crate) fn new(most_bytes: usize) -> Arc<Self> {
        Arc::new(Self { idle: Mutex::new(Idle { most_bytes, ..Idle::default() }) })
    }

    /// Keeps idle buffers of at most `most_bytes` bytes from now on. Those that are idle now may take more
    /// until one is returned.
    #[cfg(any(feature = "gateway", test))]
    pub(crate) fn limit(&self, most_bytes: usize) {
        self.idle.lock().most_bytes = most_bytes;
    }

    /// Returns an empty buffer of at least `bytes` bytes of capacity.
    pub(crate) fn take(&self, bytes: usize) -> Vec<u8> {
        match self.find(bytes) {
            Some(mut buffer) => {
                buffer.clear();
                buffer
            }
            None => Vec::with_capacity(bytes),
        }
    }

    /// Returns a buffer of `bytes` bytes, whose contents mean nothing.
    #[cfg(feature = "gateway")]
    pub(crate) fn take_filled(&self, bytes: usize) -> Vec<u8> {
        match self.find(bytes) {
            Some(mut buffer) => {
                buffer.resize(bytes, 0);
                buffer
            }
            None => vec![0; bytes],
        }
    }

    fn find(&self, bytes: usize) -> Option<Vec<u8>> {
        if bytes < LEAST_BYTES {
            return None;
        }
        let mut idle = self.idle.lock();
        // All of an idle buffer is in memory, so one that is far too large would waste it.
        let fits = |place: &usize| (bytes..=2 * bytes).contains(&idle.buffers[*place].capacity());
        // Of equal ones the newest, which is most likely in the caches of the processor.
        let fitting = (0..idle.buffers.len()).rev().filter(fits);
        let place = fitting.min_by_key(|place| idle.buffers[*place].capacity())?;
        let buffer = idle.buffers.remove(place);
        idle.bytes -= buffer.capacity();
        Some(buffer)
    }

    /// Returns the contents of a buffer that was taken. Once all references to them are dropped, the buffer
    /// can be taken again.
    pub(crate) fn lend(self: &Arc<Self>, memory: Vec<u8>) -> Bytes {
        if memory.capacity() < LEAST_BYTES {
            return Bytes::from(memory);
        }
        self.idle.lock().lent += 1;
        Bytes::from_owner(Lent { memory, to: Arc::clone(self) })
    }

    /// Frees the idle buffers, unless somebody still reads another one and will soon need the next.
    pub(crate) fn rest(&self) {
        let idle = {
            let mut idle = self.idle.lock();
            if idle.lent > 0 { Vec::new() } else { idle.drain(0) }
        };
        // Outside the lock, because the system unmaps each of them.
        drop(idle);
    }

    fn take_back(&self, memory: Vec<u8>) {
        let freed = {
            let mut idle = self.idle.lock();
            idle.lent -= 1;
            idle.bytes += memory.capacity();
            idle.buffers.push(memory);
            let most = idle.most_bytes;
            idle.drain(most)
        };
        drop(freed);
    }

    /// Bytes of all idle buffers.
    #[cfg(test)]
    pub(crate) fn idle_bytes(&self) -> usize {
        self.idle.lock().bytes
    }
}

impl Idle {
    /// Returns the buffers beyond `most` bytes. Those that have been idle longest go first, because their
    /// size is wanted least.
    fn drain(&mut self, most: usize) -> Vec<Vec<u8>> {
        let mut freed = 0;
        while self.bytes > most && freed < self.buffers.len() {
            self.bytes -= self.buffers[freed].capacity();
            freed += 1;
        }
        self.buffers.drain(..freed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn a_buffer_is_used_again_once_its_bytes_are_dropped() {
        let buffers = Buffers::new(32 * MIB);
        let mut memory = buffers.take(MIB);
        memory.resize(MIB, 7);
        let place = memory.as_ptr();
        let bytes = buffers.lend(memory);
        let part = bytes.slice(5..9);
        drop(bytes);
        let other = buffers.take(MIB);
        assert_ne!(other.as_ptr(), place, "a part of it is still in use");
        assert_eq!(part, [7; 4][..]);
        drop(part);
        let again = buffers.take(MIB / 2);
        assert_eq!(again.as_ptr(), place, "it is large enough");
    }

    #[test]
    fn the_smallest_buffer_that_is_large_enough_is_taken() {
        let buffers = Buffers::new(32 * MIB);
        for mib in [4, 2, 8] {
            drop(buffers.lend(Vec::with_capacity(mib * MIB)));
        }
        assert_eq!(buffers.take(MIB / 2).capacity(), MIB / 2, "none is so small");
        assert_eq!([2, 3, 5, 5].map(|mib| buffers.take(mib * MIB).capacity() / MIB), [2, 4, 8, 5]);
    }

    #[test]
    fn idle_buffers_are_bounded_and_can_be_freed() {
        let buffers = Buffers::new(32 * MIB);
        let many: Vec<Bytes> = (0..20).map(|_| buffers.lend(Vec::with_capacity(3 * MIB))).collect();
        drop(many);
        let idle = || {
            let buffers_idle = buffers.idle.lock().buffers.len();
            (buffers_idle, buffers.idle_bytes())
        };
        assert_eq!(idle(), (10, 30 * MIB));
        drop(buffers.lend(Vec::with_capacity(64)));
        assert_eq!(buffers.take(64).capacity(), 64, "small ones are not kept");
        drop(buffers.lend(Vec::with_capacity(8 * MIB)));
        assert_eq!(idle(), (9, 32 * MIB), "those that were idle longest went");
        let read = buffers.lend(Vec::with_capacity(3 * MIB));
        buffers.rest();
        assert_eq!(idle(), (9, 32 * MIB), "somebody still reads one");
        buffers.limit(7 * MIB);
        drop(read);
        assert_eq!(idle(), (1, 3 * MIB), "the new bound holds");
        buffers.rest();
        assert_eq!(idle(), (0, 0));
    }
}
