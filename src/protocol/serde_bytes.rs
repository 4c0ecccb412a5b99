//! Bytes as a sequence of numbers, for the feature `serde`: the same in every format, whether it has a type
//! for bytes or not.

use bytes::Bytes;
use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

pub(super) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    bytes.as_ref().serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    Vec::deserialize(deserializer).map(Bytes::from)
}
