//! What others must know about a clone: whether it still exists, and how people call it.
//!
//! A clone reads objects of other volumes, so the snapshot that it is a clone of is kept: by a pin in the
//! root table. Must not know how clones are made or deleted. Invariant: a clone counts as gone only if it can
//! never be used again.
//!
//! Why a clone without an identity can never be used: its creator makes the identity before the pin, and
//! binds the name last, if that is as it was before the identity was made. The identity is deleted last of
//! all, and only after the name was changed. So a creator that is late cannot bind the name any more.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use uuid::Uuid;

use super::environment::Environment;
use super::error::OpenError;
use super::format::head::Head;
use super::format::identity::{Identity, NameBinding};
use super::format::keys::{self, Keys};
use super::objects::fetch_if_present;
use super::store_exact::confirm_gone;
use crate::mutant::{self, Mutant};
use crate::store::{self, ByteRange, Pages};

/// Limit on concurrent lookups of clones.
const CONCURRENT_LOOKS: usize = 16;

/// Returns those of the clones of a snapshot that do not exist any more.
///
/// # Errors
/// If the store fails, or contradicts itself.
pub(super) async fn gone(env: &Environment, clones: &[Uuid]) -> Result<Vec<Uuid>, store::Error> {
    let looks = stream::iter(clones.to_vec()).map(|clone| async move {
        let is_gone = is_gone(env, Keys::new(clone)).await?;
        Ok::<_, store::Error>(is_gone.then_some(clone))
    });
    let found: Vec<Option<Uuid>> = looks.buffered(CONCURRENT_LOOKS).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// Whether a clone does not exist any more. Several answers of the store must say so: a false one would cost
/// the clone its data.
async fn is_gone(env: &Environment, keys: Keys) -> Result<bool, store::Error> {
    let store = env.store.as_ref();
    let first = ByteRange::Bounded { offset: 0, length: 1 };
    for key in [keys.head(), keys.identity()] {
        match store.get(&key, first).await {
            Err(store::Error::NotFound { .. }) => confirm_gone(store, &key).await?,
            Ok(_) | Err(store::Error::Truncated { .. } | store::Error::CutShort { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
        if mutant::is(Mutant::PinReleasedEarly) {
            return Ok(true);
        }
    }
    Pages::new(store, &keys.prefix()).are_empty().await
}

/// Returns the names of volumes, or the id of each that has none.
pub(super) async fn labels(env: &Environment, volumes: &[Uuid]) -> Vec<String> {
    let looks = stream::iter(volumes.to_vec()).map(|volume| label(env, volume));
    looks.buffered(CONCURRENT_LOOKS).collect().await
}

/// Returns the name of a volume, or its id if it has none or if the name cannot be read.
async fn label(env: &Environment, volume: Uuid) -> String {
    match name_of(env, volume).await {
        Ok(Some(name)) => name,
        Ok(None) | Err(_) => volume.to_string(),
    }
}

async fn name_of(env: &Environment, volume: Uuid) -> Result<Option<String>, OpenError> {
    let keys = Keys::new(volume);
    // The head has the name of a volume that was renamed.
    let decode = |bytes: &[u8]| Head::decode(volume, bytes);
    let names = match fetch_if_present(env, &keys.head(), decode).await {
        Ok((head, _)) => head.names,
        Err(OpenError::Store(store::Error::NotFound { .. })) => None,
        Err(error) => return Err(error),
    };
    let name = match names {
        Some(names) => names.current,
        None => {
            let decode = |bytes: &[u8]| Identity::decode(volume, bytes);
            fetch_if_present(env, &keys.identity(), decode).await?.0.name
        }
    };
    let (binding, _) = fetch_if_present(env, &keys::name(&name), NameBinding::decode).await?;
    Ok((binding.volume == volume && binding.name.as_ref() == Some(&name)).then_some(name))
}
