//! The small objects of a volume, each read or created as a whole: head, identity, root, root table.
//!
//! Knows what a damaged or absent object means for an attempt to open, create or delete a volume. Must not
//! know about open volumes. Invariant: an object is returned only if its bytes have passed their check.

use bytes::Bytes;

use super::environment::Environment;
use super::error::OpenError;
use super::format::codec::DecodeError;
use super::format::head::Head;
use super::format::keys::Keys;
use super::format::root::{Root, RootTable};
use super::store_exact::{self, CheckedError, Placed, create_exact, fetch_checked};
use crate::store::ETag;

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
    let volume = keys.volume();
    let (root, _) = fetch(env, &keys.root(head.root), |bytes| Root::decode(volume, head.root, bytes)).await?;
    let (table, _) =
        fetch(env, &keys.root(head.root_table), |bytes| RootTable::decode(volume, head.root_table, bytes))
            .await?;
    Ok((root, table))
}

/// Creates an object. Returns `false` if an object with other bytes exists under the key.
pub(super) async fn create(env: &Environment, key: &str, bytes: Vec<u8>) -> Result<bool, OpenError> {
    let placed = create_exact(env.store.as_ref(), key, &Bytes::from(bytes)).await?;
    Ok(matches!(placed, Placed::Ours))
}
