//! Buffers of bodies, for reuse: the system clears each page of a new buffer, which costs more than to fill
//! it.
//!
//! Must not know what is in the bodies. Invariants: a buffer is idle only once nobody can read the body in
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
    most_idle_bytes: usize,
}

#[derive(Debug, Default)]
struct Idle {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
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
        self.to.give(std::mem::take(&mut self.memory));
    }
}

impl Buffers {
    /// Keeps buffers of at most `most_idle_bytes` bytes in all while they are idle.
    pub(crate) fn new(most_idle_bytes: usize) -> Arc<Self> {
        Arc::new(Self { idle: Mutex::default(), most_idle_bytes })
    }

    /// Returns a buffer of at least `bytes` bytes of capacity. Its contents mean nothing.
    pub(crate) fn take(&self, bytes: usize) -> Vec<u8> {
        let mut idle = self.idle.lock();
        // All of an idle buffer is in memory, so one that is far too large would waste it.
        let fits = |place: &usize| (bytes..=2 * bytes).contains(&idle.buffers[*place].capacity());
        let fitting = (0..idle.buffers.len()).filter(fits);
        match fitting.min_by_key(|place| idle.buffers[*place].capacity()) {
            Some(place) if bytes >= LEAST_BYTES => {
                let buffer = idle.buffers.swap_remove(place);
                idle.bytes -= buffer.capacity();
                buffer
            }
            _ => Vec::with_capacity(bytes),
        }
    }

    /// Returns the contents of a buffer that `take` returned. Once all references to them are dropped, the
    /// buffer can be taken again.
    pub(crate) fn lend(self: &Arc<Self>, memory: Vec<u8>) -> Bytes {
        match memory.capacity() < LEAST_BYTES {
            true => Bytes::from(memory),
            false => Bytes::from_owner(Lent { memory, to: Arc::clone(self) }),
        }
    }

    /// Frees the idle buffers.
    pub(crate) fn clear(&self) {
        let idle = std::mem::take(&mut *self.idle.lock());
        // Outside the lock, because the system unmaps each of them.
        drop(idle);
    }

    fn give(&self, memory: Vec<u8>) {
        let mut idle = self.idle.lock();
        if idle.bytes + memory.capacity() <= self.most_idle_bytes {
            idle.bytes += memory.capacity();
            idle.buffers.push(memory);
        }
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
            let idle = buffers.idle.lock();
            (idle.buffers.len(), idle.bytes)
        };
        assert_eq!(idle(), (10, 30 * MIB));
        drop(buffers.lend(Vec::with_capacity(64)));
        assert_eq!(buffers.take(64).capacity(), 64, "small ones are not kept");
        buffers.clear();
        assert_eq!(idle(), (0, 0));
    }
}
