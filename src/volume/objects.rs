//! The small objects of a volume, each read or created as a whole: head, identity, root, root table.
//!
//! Knows what a damaged or absent one means for whoever opens, creates or deletes a volume, and nothing of an
//! open one.

use bytes::Bytes;

use super::environment::Environment;
use super::error::OpenError;
use super::format::codec::DecodeError;
use super::format::head::Head;
use super::format::keys::Keys;
use super::format::root::{Root, RootTable};
use super::store_exact::{self, CheckedError, Placed, create_exact, fetch_checked};
use crate::store::ETag;

/// Fetches an object that must stand.
pub(super) async fn fetch<T>(
    env: &Environment,
    key: &str,
    decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
) -> Result<(T, ETag), OpenError> {
    unless_damaged(key, fetch_checked(env.store.as_ref(), key, decode).await)
}

/// Fetches an object that may well be absent; that is believed at once.
pub(super) async fn fetch_if_present<T>(
    env: &Environment,
    key: &str,
    decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
) -> Result<(T, ETag), OpenError> {
    unless_damaged(key, store_exact::fetch_if_present(env.store.as_ref(), key, decode).await)
}

/// What was read of an object that must stand.
pub(super) fn unless_damaged<T>(key: &str, read: Result<T, CheckedError>) -> Result<T, OpenError> {
    read.map_err(|error| error.unopened(key))
}

/// Reads the head.
pub(super) async fn read_head(env: &Environment, keys: Keys) -> Result<(Head, ETag), OpenError> {
    let key = keys.head();
    fetch(env, &key, |bytes| Head::decode(keys.volume(), bytes)).await
}

/// Loads the root and the root table that a head names.
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

/// Creates an object that must not stand yet.
pub(super) async fn create(env: &Environment, key: &str, bytes: Vec<u8>) -> Result<bool, OpenError> {
    let placed = create_exact(env.store.as_ref(), key, &Bytes::from(bytes)).await?;
    Ok(matches!(placed, Placed::Ours))
}
