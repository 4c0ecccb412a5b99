//! Serialization of bytes as a sequence of numbers, for the feature `serde`.
//!
//! Must not know the types that use it. Invariant: the result is the same in every format, whether or not the
//! format has a type for bytes.

use bytes::Bytes;
use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

pub(super) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    bytes.as_ref().serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    Vec::deserialize(deserializer).map(Bytes::from)
}
