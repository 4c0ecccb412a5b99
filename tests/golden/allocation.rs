//! Measures the memory that a call takes.
//!
//! The allocator of the test binary is the system's, with two numbers for each thread: the bytes that it has
//! taken, and the most that it had taken at once. Invariant: the allocator itself takes no memory.

#![allow(unsafe_code, reason = "an allocator is unsafe to implement")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static TAKEN: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

struct Measured;

#[global_allocator]
static ALLOCATOR: Measured = Measured;

fn add(bytes: isize) {
    TAKEN.set(TAKEN.get() + bytes);
    MOST.set(MOST.get().max(TAKEN.get()));
}

fn signed(bytes: usize) -> isize {
    // No allocation is larger than `isize::MAX`.
    bytes.cast_signed()
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Measured {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(signed(layout.size()));
        // SAFETY: the caller keeps the rules of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(signed(layout.size()));
        // SAFETY: the caller keeps the rules of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(signed(size));
        add(-signed(layout.size()));
        // SAFETY: the caller keeps the rules of `realloc`.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        add(-signed(layout.size()));
        // SAFETY: the caller keeps the rules of `dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// What a call returns, and the most bytes of memory that it took at once on this thread.
pub(super) fn measured<T>(call: impl FnOnce() -> T) -> (T, usize) {
    let before = TAKEN.get();
    MOST.set(before);
    let value = call();
    (value, (MOST.get() - before).unsigned_abs())
}

#[test]
fn the_memory_of_a_call_is_measured() {
    let (kept, most) = measured(|| {
        drop(Vec::<u8>::with_capacity(3000));
        let mut kept = Vec::<u8>::with_capacity(1000);
        kept.reserve_exact(1500);
        kept
    });
    assert_eq!(most, 3000);
    assert_eq!(measured(|| drop(kept)).1, 0);
    assert_eq!(measured(|| vec![0_u8; 5000]).1, 5000);
}
