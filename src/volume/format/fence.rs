//! Describes what fenced a writer, for the log and the client.
//!
//! Must not know what the writer does next. Invariant: any bytes result in a description.

use uuid::Uuid;

use super::keys::Slot;
use super::record::{Record, RecordKind};

/// Describes the object in a slot where a record of ours should be.
pub(crate) fn describe(volume: Uuid, slot: Slot, found: &[u8]) -> String {
    match Record::decode(volume, slot, found) {
        Ok((record, _)) if record.kind == RecordKind::Seal => format!("the seal of epoch {}", record.writer),
        Ok((record, _)) => format!("another record of epoch {}", record.writer),
        Err(error) => format!("something that is no record ({error})"),
    }
}
