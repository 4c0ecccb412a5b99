//! Counts how many bytes the store holds for each volume, open or not, by listing their objects.
//!
//! Must not know what the objects contain: it reads none. Invariant: memory is bounded by [`COUNTED`], not by
//! the number of objects.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::format::keys::{VOLUMES, volume_of};
use crate::store::{self, Pages, Store};

/// Limit on the volumes that are counted. Objects of further volumes are ignored.
pub const COUNTED: usize = 65_536;

/// The result of a census.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Total bytes of the objects of each volume, including objects that nothing references any more. The
    /// identity is not included.
    pub stored_bytes: BTreeMap<Uuid, u64>,
    /// Number of LIST requests that the census took. Repeated requests are not included.
    pub pages: u32,
}

/// Counts the objects of all volumes. Sleeps for `pause` after each LIST request.
///
/// # Errors
/// Returns the errors of [`Store::list`].
pub async fn take(store: &dyn Store, pause: Duration) -> Result<Census, store::Error> {
    let mut census = Census::default();
    let mut pages = Pages::new(store, VOLUMES);
    while let Some(entries) = pages.next().await? {
        census.pages = census.pages.saturating_add(1);
        for entry in entries {
            let Some(volume) = volume_of(&entry.key) else { continue };
            let has_room = census.stored_bytes.len() < COUNTED;
            if has_room || census.stored_bytes.contains_key(&volume) {
                let bytes = census.stored_bytes.entry(volume).or_default();
                *bytes = bytes.saturating_add(entry.size_bytes);
            }
        }
        tokio::time::sleep(pause).await;
    }
    Ok(census)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::format::keys::{Keys, name};
    use super::*;
    use crate::store::{Condition, MemoryStore};

    #[tokio::test(start_paused = true)]
    async fn bytes_are_counted_by_volume_with_a_pause_after_each_listing() {
        let store = MemoryStore::new();
        let volumes = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let keys = volumes.map(Keys::new);
        let mut objects: Vec<(String, usize)> =
            (0..2500).map(|n| (format!("volume/{}/chunk/aa/{n}-1-1", volumes[0]), 10)).collect();
        objects.push((keys[0].head(), 7));
        objects.push((keys[1].head(), 5));
        // Neither is below a volume.
        objects.push((keys[1].identity(), 100));
        objects.push((name("disk"), 100));
        for (key, length) in objects {
            store.put(&key, Bytes::from(vec![0; length]), Condition::Always).await.unwrap();
        }
        let begun = tokio::time::Instant::now();
        let census = take(&store, Duration::from_secs(1)).await.unwrap();
        assert_eq!(census.stored_bytes, BTreeMap::from([(volumes[0], 25_007), (volumes[1], 5)]));
        assert!(census.pages >= 3, "{} pages of at most 1,000 keys", census.pages);
        assert_eq!(begun.elapsed(), Duration::from_secs(u64::from(census.pages)));
    }
}
