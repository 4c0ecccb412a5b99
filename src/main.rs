//! The `cairn` program.

/// Bytes from which memory is had from and given back to the system by itself.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_FROM_BYTES: libc::c_int = 128 * 1024;

/// Keeps memory near what is in use; whether the allocator does so. By default glibc has an arena a thread,
/// and each keeps its own peak: under random writes at a cache of 256 MiB that made 484 MB of what is 351 MB
/// with one.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "glibc offers these settings by this call or by the environment only")]
fn tune_allocator() -> bool {
    // SAFETY: mallopt is given settings that it documents, before any other thread runs.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1) == 1
            && libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES) == 1
    }
}

/// Other allocators need none of it.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn tune_allocator() -> bool {
    true
}

/// Gives memory that is free between pieces that are in use back to the system.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "glibc offers this by this call only")]
fn give_memory_back() {
    // SAFETY: malloc_trim takes any number and may be called at any time by any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators see to that themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_memory_back() {}

fn main() -> std::process::ExitCode {
    let is_tuned = tune_allocator();
    cairn::cli::main(cairn::cli::Allocator { is_tuned, give_back: give_memory_back })
}
