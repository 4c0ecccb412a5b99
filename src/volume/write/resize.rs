//! Changing the size: the commit that ends with a new one.
//!
//! Owns the instant at which the size changes. It does not know roots: the fold that ends with this commit
//! makes one of the new size. Invariants: changes that were applied before that instant are checked against
//! the old size, and later ones against the new size. What is beyond the new end reads as zeros if the volume
//! grows again. Clients do not wait for it.

use tokio::time::Instant;

use super::snapshot::{Room, room_for, wait_for_room};
use crate::volume::error::ResizeError;
use crate::volume::format::record::{RESIZE_CHANGE_BYTES, ZERO_CHANGE_BYTES};
use crate::volume::shared::Shared;

/// Whether a volume may become smaller, which discards what lies beyond its new end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shrink {
    /// Refuse a size below the current one.
    Refuse,
    /// Discard everything beyond the new end.
    Discard,
}

/// Limit on the bytes that a new size adds to a record. The range between the sizes may cut an older zeroed
/// range in two.
const CHANGE_BYTES: u64 = RESIZE_CHANGE_BYTES + 2 * ZERO_CHANGE_BYTES;

/// Changes the size: cuts a commit that ends with the new one. Returns the number of the slot of that commit,
/// or of the newest one if the volume has this size already. The size lasts once that commit is durable.
pub(crate) async fn take(shared: &Shared, size_bytes: u64, shrink: Shrink) -> Result<u64, ResizeError> {
    shared.geometry.check_size(size_bytes)?;
    loop {
        let room = {
            let mut state = shared.state.lock();
            let before = state.size_bytes;
            if size_bytes < before && shrink == Shrink::Refuse {
                return Err(ResizeError::Smaller { size: before, wanted: size_bytes });
            }
            if size_bytes == before {
                return Ok(state.next_n - 1);
            }
            let room = room_for(shared, &state, CHANGE_BYTES);
            if room == Room::Free {
                let now = Instant::now();
                let between = before.min(size_bytes)..before.max(size_bytes);
                if state.dirty.cuts_filled_chunk(shared.geometry, &between) {
                    state.cut(shared.geometry, now, None);
                }
                let n = state.next_n;
                state.resize(shared.geometry, now, size_bytes);
                shared.gauge(&state);
                shared.commit_wake.notify_one();
                return Ok(n);
            }
            room
        };
        wait_for_room(shared, room, CHANGE_BYTES).await?;
    }
}
