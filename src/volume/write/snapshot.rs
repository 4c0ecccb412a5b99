//! Taking a snapshot: the commit that ends with it.
//!
//! Owns the instant of a snapshot. It does not know roots: the fold that ends with this commit makes one.
//! Invariants: the snapshot contains every change that was applied before its instant, and none after.
//! Clients do not wait for it.

use tokio::time::Instant;

use super::change::journal_is_full;
use crate::volume::error::Error;
use crate::volume::format::record::{EMPTY_RECORD_BYTES, snapshot_change_bytes};
use crate::volume::format::snapshot::Snapshot;
use crate::volume::shared::Shared;
use crate::volume::state::{State, Status};

/// Limit on the commits that wait for roots of their own. Every read searches the changes between them.
const WAITING_ROOTS: usize = 16;

/// What a commit that ends with a snapshot or a new size needs before it can be cut.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// Nothing: it can be cut now.
    Free,
    /// Earlier commits must be sent or folded first.
    Full,
    /// The volume accepts no changes any more.
    Closed,
}

/// Takes a snapshot: cuts a commit that ends with it. Returns the number of the commit's slot. The
/// snapshot exists once that commit is durable. The caller ensures that no other snapshot has its name.
pub(crate) async fn take(shared: &Shared, snapshot: Snapshot) -> Result<u64, Error> {
    loop {
        let room = {
            let mut state = shared.state.lock();
            let room = room_for(shared, &state, snapshot_change_bytes(&snapshot));
            if room == Room::Free {
                let n = state.next_n;
                state.cut(shared.geometry, Instant::now(), Some(snapshot));
                shared.gauge(&state);
                shared.commit_wake.notify_one();
                return Ok(n);
            }
            room
        };
        wait_for_room(shared, room, snapshot_change_bytes(&snapshot)).await?;
    }
}

/// Waits until a commit may be cut whose last change has so many bytes, after `room` was found.
pub(super) async fn wait_for_room(shared: &Shared, room: Room, change_bytes: u64) -> Result<(), Error> {
    if room == Room::Closed {
        shared.check_serving()?;
        return Err(Error::Stopped("the volume is being closed".to_owned()));
    }
    shared.fold_wake.notify_one();
    shared.wait(|_| room_for(shared, &shared.state.lock(), change_bytes) != Room::Full).await
}

/// Whether a commit may be cut whose last change has so many bytes.
pub(super) fn room_for(shared: &Shared, state: &State, change_bytes: u64) -> Room {
    if state.status != Status::Serving {
        return Room::Closed;
    }
    let begins_record = if state.dirty.is_empty() { EMPTY_RECORD_BYTES } else { 0 };
    let growth = begins_record + change_bytes;
    let is_full = state.waiting_roots() >= WAITING_ROOTS
        || !state.may_cut(shared.options.commits_in_flight)
        || journal_is_full(shared, state, growth);
    if is_full { Room::Full } else { Room::Free }
}
