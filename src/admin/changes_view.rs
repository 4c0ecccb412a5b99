//! The JSON type of what differs between two snapshots.
//!
//! Must not know how snapshots are compared. Invariant: the ranges are those of the comparison, in its order.

use serde::Serialize;

use crate::volume::Change;
use crate::volume::diff::Page;

/// A range that differs between two snapshots.
#[derive(Clone, Debug, Serialize)]
struct RangeView {
    offset: u64,
    length: u64,
    zero: bool,
}

/// A part of what differs between two snapshots.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ChangesView {
    since_size_bytes: u64,
    size_bytes: u64,
    ranges: Vec<RangeView>,
    next_offset: Option<u64>,
}

impl From<Page> for ChangesView {
    fn from(page: Page) -> Self {
        let range = |change: Change| RangeView {
            offset: change.range.start,
            length: change.range.end - change.range.start,
            zero: change.zero,
        };
        Self {
            since_size_bytes: page.before_bytes,
            size_bytes: page.after_bytes,
            ranges: page.changes.into_iter().map(range).collect(),
            next_offset: page.next_offset,
        }
    }
}
