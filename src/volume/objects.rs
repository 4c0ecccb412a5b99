//! The small objects of a volume, each read or created as a whole (head, identity, root, root table), and
//! the tables of records.
//!
//! Knows what a damaged or absent object means for an attempt to open, create or delete a volume. Must not
//! know about open volumes. Invariant: an object is returned only if its bytes have passed their check.

use std::ops::Range;

use bytes::Bytes;

use super::environment::Environment;
use super::error::OpenError;
use super::format::codec::{Checksum, DecodeError, invalid};
use super::format::head::Head;
use super::format::keys::{Keys, Slot};
use super::format::record::Record;
use super::format::root::{Root, RootTable};
use super::format::sealing::Sealing;
use super::store_exact::{
    self, CheckedError, Doubt, Placed, Verdict, create_exact, damaged_on_the_way, fetch_checked,
};
use crate::store::{self, ByteRange, ETag, Store};

/// Fetches and decodes an object that must exist.
pub(super) async fn fetch<T>(
    env: &Environment,
    key: &str,
    decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
) -> Result<(T, ETag), OpenError> {
    unless_damaged(key, fetch_checked(env.store.as_ref(), key, decode).await)
}

/// Fetches and decodes an object that may be absent. A single answer that it is absent is believed.
pub(super) async fn fetch_if_present<T>(
    env: &Environment,
    key: &str,
    decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
) -> Result<(T, ETag), OpenError> {
    unless_damaged(key, store_exact::fetch_if_present(env.store.as_ref(), key, decode).await)
}

/// Converts the outcome of reading an object into that of opening, creating or deleting a volume.
pub(super) fn unless_damaged<T>(key: &str, read: Result<T, CheckedError>) -> Result<T, OpenError> {
    read.map_err(|error| error.unopened(key))
}

/// Fetches the head of a volume.
pub(super) async fn read_head(env: &Environment, keys: Keys) -> Result<(Head, ETag), OpenError> {
    let key = keys.head();
    fetch(env, &key, |bytes| Head::decode(keys.volume(), bytes)).await
}

/// Fetches the root and the root table that a head references.
pub(super) async fn load_roots(
    env: &Environment,
    keys: Keys,
    head: &Head,
) -> Result<(Root, RootTable), OpenError> {
    let sealing = keys.sealing();
    let (root, _) =
        fetch(env, &keys.root(head.root), |bytes| Root::decode(sealing, head.root, bytes)).await?;
    let (table, _) =
        fetch(env, &keys.root(head.root_table), |bytes| RootTable::decode(sealing, head.root_table, bytes))
            .await?;
    Ok((root, table))
}

/// Number of bytes of a record that are read first. The table of a commit of 16 MiB in blocks of 4 KiB fits.
const TABLE_BYTES: u64 = 128 << 10;

/// Fetches and verifies the table of a record of `size_bytes`, without the data behind it. A single answer
/// that the record is absent is believed. Also returns the checksum of the table.
pub(super) async fn fetch_table(
    store: &dyn Store,
    keys: Keys,
    slot: Slot,
    size_bytes: u64,
) -> Result<(Record, Checksum), CheckedError> {
    let (sealing, key) = (keys.sealing(), keys.record(slot));
    let mut doubt = Doubt::default();
    loop {
        let (error, reading) = match read_table(store, sealing, &key, size_bytes).await {
            Ok(table) => match Record::decode_table(sealing, slot, &table) {
                Ok(found) => return Ok(found),
                Err(error) => (error, table),
            },
            Err(CheckedError::Damaged(error)) => {
                let reading = Bytes::from(error.to_string());
                (error, reading)
            }
            Err(error @ CheckedError::Store(_)) => return Err(error),
        };
        match doubt.note(&key, &reading) {
            Verdict::Again => {}
            Verdict::AtRest => return Err(CheckedError::Damaged(error)),
            Verdict::OnTheWay => return Err(CheckedError::Store(damaged_on_the_way(&key))),
        }
    }
}

/// Reads a record up to the start of its data.
async fn read_table(
    store: &dyn Store,
    sealing: Sealing,
    key: &str,
    size_bytes: u64,
) -> Result<Bytes, CheckedError> {
    let get = async |range: Range<u64>| {
        let range = ByteRange::Bounded { offset: range.start, length: range.end - range.start };
        match store.get(key, range).await {
            Ok(object) => Ok(object.body),
            Err(error @ store::Error::CutShort { .. }) => {
                Err(CheckedError::Damaged(invalid("size", error.to_string())))
            }
            Err(error) => Err(CheckedError::Store(error)),
        }
    };
    if size_bytes == 0 {
        return Err(CheckedError::Damaged(invalid("size", "the record is empty")));
    }
    let first = size_bytes.min(TABLE_BYTES);
    let start = get(0..first).await?;
    let end = Record::table_bytes(sealing, &start, size_bytes).map_err(CheckedError::Damaged)?;
    if end <= first {
        return Ok(start.slice(..usize::try_from(end).expect("within the bytes")));
    }
    let mut table = Vec::from(start);
    table.extend_from_slice(&get(first..end).await?);
    Ok(Bytes::from(table))
}

/// Creates an object. Returns `false` if an object with other bytes exists under the key.
pub(super) async fn create(env: &Environment, key: &str, bytes: Vec<u8>) -> Result<bool, OpenError> {
    let placed = create_exact(env.store.as_ref(), key, &Bytes::from(bytes)).await?;
    Ok(matches!(placed, Placed::Ours))
}
