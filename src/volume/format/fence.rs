//! Describes what fenced a writer, for the log and the client.
//!
//! Must not know what the writer does next. Invariant: any bytes result in a description.

use super::keys::Slot;
use super::record::{Record, RecordKind};
use super::sealing::Sealing;

/// Describes the object in a slot where a record of ours should be.
pub(crate) fn describe(sealing: Sealing, slot: Slot, found: &[u8]) -> String {
    match Record::decode(sealing, slot, found) {
        Ok((record, _)) if record.kind == RecordKind::Seal => format!("the seal of epoch {}", record.writer),
        Ok((record, _)) => format!("another record of epoch {}", record.writer),
        Err(error) => format!("something that is no record ({error})"),
    }
}
