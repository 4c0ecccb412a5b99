//! This process: its memory, as the kernel counts it, the settings of its allocator, and when it ends.
//!
//! Invariant: the allocator has the settings of the released program (`src/main.rs`), so that what is measured here is
//! what the program needs.

use crate::Failure;

/// The settings of `src/main.rs`.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "glibc offers these settings by this call or by the environment only")]
pub(crate) fn tune_allocator() {
    // SAFETY: the settings are documented for mallopt, and no other thread runs yet.
    let is_tuned = unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1) == 1 && libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024) == 1
    };
    assert!(is_tuned, "glibc accepts these settings");
}

/// Other allocators need no settings.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn tune_allocator() {}

/// Returns free memory to the system.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "glibc offers this by this call only")]
pub(crate) fn give_memory_back() {
    // SAFETY: malloc_trim accepts any number, and any thread may call it at any time.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators return memory by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_memory_back() {}

/// Ends this process when the one that started it ends: whoever interrupts a measurement expects all of it to stop.
pub(crate) fn end_with_parent() -> Result<(), Failure> {
    Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?)
}

/// Resident memory in bytes.
pub(crate) fn resident_bytes() -> Result<u64, Failure> {
    status_bytes("VmRSS:")
}

/// Peak of resident memory in bytes, since the process began or [`reset_peak`] was called.
pub(crate) fn peak_bytes() -> Result<u64, Failure> {
    status_bytes("VmHWM:")
}

/// Sets the peak to the current value.
pub(crate) fn reset_peak() -> Result<(), Failure> {
    Ok(std::fs::write("/proc/self/clear_refs", "5")?)
}

fn status_bytes(field: &str) -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)).ok_or("no such field")?;
    Ok(value.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
