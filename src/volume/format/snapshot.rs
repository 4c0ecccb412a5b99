//! The name and the time of a snapshot, as records and root tables contain them.
//!
//! Must not know what a snapshot keeps. Invariant: the name of a snapshot is a valid name.

use super::codec::{DecodeError, Decoder, Encoder, invalid};
use super::keys::is_valid_name;

/// What identifies a snapshot to people.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Snapshot {
    /// Its name, by the rules for names of volumes.
    pub name: String,
    /// When it was taken, in seconds since 1970, by the clock of the gateway that took it.
    pub taken_at_seconds: u64,
}

impl Snapshot {
    /// Returns the length of the encoding in bytes.
    #[must_use]
    pub fn encoded_bytes(&self) -> u64 {
        1 + self.name.len() as u64 + 8
    }

    /// Appends a snapshot to an object, or that there is none.
    pub(crate) fn encode_optional(snapshot: Option<&Self>, to: &mut Encoder) {
        match snapshot {
            Some(snapshot) => snapshot.encode(to),
            None => {
                to.short_string("");
                to.u64(0);
            }
        }
    }

    /// Appends a snapshot to an object.
    pub(crate) fn encode(&self, to: &mut Encoder) {
        to.short_string(&self.name);
        to.u64(self.taken_at_seconds);
    }

    /// Reads a snapshot from an object, or that there is none.
    pub(crate) fn decode_optional(from: &mut Decoder<'_>) -> Result<Option<Self>, DecodeError> {
        let (name, taken_at_seconds) = (from.short_string("snapshot")?, from.u64()?);
        match (name.is_empty(), taken_at_seconds) {
            (true, 0) => Ok(None),
            (true, _) => Err(invalid("snapshot", "has a time, but no name")),
            (false, _) if !is_valid_name(&name) => {
                Err(invalid("snapshot", format!("{name:?} is not a name")))
            }
            (false, _) => Ok(Some(Self { name, taken_at_seconds })),
        }
    }

    /// Reads a snapshot from an object.
    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Self::decode_optional(from)?.ok_or_else(|| invalid("snapshot", "has no name"))
    }
}
