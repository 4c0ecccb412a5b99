//! Every object key of a volume, made and parsed here only.
//!
//! Knows nothing of what the objects hold. Invariant: two objects never share a key, and `parse` undoes the
//! making.

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::codec::{DecodeError, Decoder, Encoder};
use super::geometry::ChunkIndex;

/// Generation of a volume's writer; each opening for writing takes the next.
pub type Epoch = u32;

/// Name of an immutable object: the epoch that made it, and a number that this epoch used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Epoch of the maker.
    pub epoch: Epoch,
    /// Unique within the epoch.
    pub k: u64,
}

/// Place of a record in the journal. Orders as the journal does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Epoch of the log.
    pub epoch: Epoch,
    /// 1 for the opening record.
    pub n: u64,
}

impl ObjectId {
    /// Bytes of an encoded id.
    pub const BYTES: usize = 4 + 8;

    /// Appends it.
    pub fn encode(self, to: &mut Encoder) {
        to.u32(self.epoch);
        to.u64(self.k);
    }

    /// Takes one.
    ///
    /// # Errors
    /// If fewer bytes are left.
    pub fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Self { epoch: from.u32()?, k: from.u64()? })
    }
}

impl Slot {
    /// Bytes of an encoded slot.
    pub const BYTES: usize = 4 + 8;

    /// Appends it.
    pub fn encode(self, to: &mut Encoder) {
        to.u32(self.epoch);
        to.u64(self.n);
    }

    /// Takes one.
    ///
    /// # Errors
    /// If fewer bytes are left.
    pub fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Self { epoch: from.u32()?, n: from.u64()? })
    }
}

/// Prefix of all names.
pub const NAMES: &str = "name/";

/// Prefix of all identities: a listing of it shows every volume of which there is anything, with or without a
/// name.
pub const IDENTITIES: &str = "identity/";

/// Prefix of all objects of volumes but their identities.
pub const VOLUMES: &str = "volume/";

/// The volume that an object below [`VOLUMES`] belongs to.
#[must_use]
pub fn volume_of(key: &str) -> Option<Uuid> {
    key.strip_prefix(VOLUMES)?.split_once('/')?.0.parse().ok()
}

/// Key of the object that binds a name to a volume.
#[must_use]
pub fn name(name: &str) -> String {
    format!("{NAMES}{name}")
}

/// Longest volume name in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// Whether a volume may have that name: 1 to 128 of `[A-Za-z0-9._-]`, not beginning with a dot.
#[must_use]
pub fn is_valid_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// The keys of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    volume: Uuid,
}

/// What a key under a volume's prefix is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Head.
    Head,
    /// Record or seal.
    Record(Slot),
    /// Root or root table.
    Root(ObjectId),
    /// Map page.
    MapPage(u32, ObjectId),
    /// Chunk object.
    Chunk(ChunkIndex, ObjectId),
    /// Pack.
    Pack(u32, ObjectId),
}

impl Keys {
    /// The keys of this volume.
    #[must_use]
    pub fn new(volume: Uuid) -> Self {
        Self { volume }
    }

    /// The volume.
    #[must_use]
    pub fn volume(&self) -> Uuid {
        self.volume
    }

    /// Prefix of every object of the volume.
    #[must_use]
    pub fn prefix(&self) -> String {
        format!("volume/{}/", self.volume)
    }

    /// Identity: format, features, geometry. Written once, before all else; deleted after all else.
    #[must_use]
    pub fn identity(&self) -> String {
        format!("{IDENTITIES}{}", self.volume)
    }

    /// Head: the only object of a volume that is overwritten.
    #[must_use]
    pub fn head(&self) -> String {
        format!("volume/{}/head", self.volume)
    }

    /// Prefix of the journal.
    #[must_use]
    pub fn journal(&self) -> String {
        format!("volume/{}/journal/", self.volume)
    }

    /// Prefix of the log of one epoch.
    #[must_use]
    pub fn log(&self, epoch: Epoch) -> String {
        format!("volume/{}/journal/{epoch:010}/", self.volume)
    }

    /// A record or seal.
    #[must_use]
    pub fn record(&self, slot: Slot) -> String {
        format!("volume/{}/journal/{:010}/{:020}", self.volume, slot.epoch, slot.n)
    }

    /// Prefix of roots and root tables.
    #[must_use]
    pub fn roots(&self) -> String {
        format!("volume/{}/root/", self.volume)
    }

    /// A root or a root table.
    #[must_use]
    pub fn root(&self, id: ObjectId) -> String {
        format!("volume/{}/root/{}-{}", self.volume, id.epoch, id.k)
    }

    /// Prefix of map pages.
    #[must_use]
    pub fn map_pages(&self) -> String {
        format!("volume/{}/map/", self.volume)
    }

    /// A map page.
    #[must_use]
    pub fn map_page(&self, page: u32, id: ObjectId) -> String {
        format!("volume/{}/map/{page}-{}-{}", self.volume, id.epoch, id.k)
    }

    /// Prefix of chunk objects.
    #[must_use]
    pub fn chunks(&self) -> String {
        format!("volume/{}/chunk/", self.volume)
    }

    /// A chunk object.
    #[must_use]
    pub fn chunk(&self, index: ChunkIndex, id: ObjectId) -> String {
        format!("volume/{}/chunk/{:02x}/{}-{}-{}", self.volume, shard(index.0), index.0, id.epoch, id.k)
    }

    /// Prefix of packs.
    #[must_use]
    pub fn packs(&self) -> String {
        format!("volume/{}/pack/", self.volume)
    }

    /// A pack of one map page's chunks.
    #[must_use]
    pub fn pack(&self, page: u32, id: ObjectId) -> String {
        format!("volume/{}/pack/{:02x}/{page}-{}-{}", self.volume, shard(page), id.epoch, id.k)
    }

    /// What a key is; `None` for one that this volume would never make.
    #[must_use]
    pub fn parse(&self, key: &str) -> Option<Parsed> {
        let rest = key.strip_prefix(&self.prefix())?;
        let parsed = match rest.split('/').collect::<Vec<_>>()[..] {
            ["head"] => Parsed::Head,
            ["journal", epoch, n] => Parsed::Record(Slot { epoch: epoch.parse().ok()?, n: n.parse().ok()? }),
            ["root", name] => {
                let (epoch, k) = name.split_once('-')?;
                Parsed::Root(ObjectId { epoch: epoch.parse().ok()?, k: k.parse().ok()? })
            }
            ["map", name] => parse_indexed(name).map(|(page, id)| Parsed::MapPage(page, id))?,
            ["chunk", _, name] => parse_indexed(name).map(|(i, id)| Parsed::Chunk(ChunkIndex(i), id))?,
            ["pack", _, name] => parse_indexed(name).map(|(page, id)| Parsed::Pack(page, id))?,
            _ => return None,
        };
        (self.key_of(parsed) == key).then_some(parsed)
    }

    fn key_of(&self, parsed: Parsed) -> String {
        match parsed {
            Parsed::Head => self.head(),
            Parsed::Record(slot) => self.record(slot),
            Parsed::Root(id) => self.root(id),
            Parsed::MapPage(page, id) => self.map_page(page, id),
            Parsed::Chunk(index, id) => self.chunk(index, id),
            Parsed::Pack(page, id) => self.pack(page, id),
        }
    }
}

/// Spreads keys over the partitions of a store.
fn shard(index: u32) -> u8 {
    xxh3_64(&index.to_le_bytes()).to_le_bytes()[0]
}

fn parse_indexed(name: &str) -> Option<(u32, ObjectId)> {
    let mut parts = name.split('-');
    let (index, epoch, k) = (parts.next()?, parts.next()?, parts.next()?);
    let id = ObjectId { epoch: epoch.parse().ok()?, k: k.parse().ok()? };
    parts.next().is_none().then_some((index.parse().ok()?, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_parse_back_and_sort_as_the_journal_does() {
        let keys = Keys::new(Uuid::from_u128(7));
        let id = ObjectId { epoch: 12, k: 34 };
        for (key, parsed) in [
            (keys.head(), Parsed::Head),
            (keys.record(Slot { epoch: 3, n: 9 }), Parsed::Record(Slot { epoch: 3, n: 9 })),
            (keys.root(id), Parsed::Root(id)),
            (keys.map_page(5, id), Parsed::MapPage(5, id)),
            (keys.chunk(ChunkIndex(70_000), id), Parsed::Chunk(ChunkIndex(70_000), id)),
            (keys.pack(5, id), Parsed::Pack(5, id)),
        ] {
            assert_eq!(keys.parse(&key), Some(parsed), "{key}");
            assert_eq!(Keys::new(Uuid::from_u128(8)).parse(&key), None, "another volume's key");
        }
        assert!(keys.record(Slot { epoch: 9, n: 10 }) < keys.record(Slot { epoch: 10, n: 2 }));
        assert!(keys.record(Slot { epoch: 9, n: 9 }) < keys.record(Slot { epoch: 9, n: 10 }));
    }

    #[test]
    fn a_key_in_another_spelling_is_not_ours() {
        let keys = Keys::new(Uuid::from_u128(7));
        let prefix = keys.prefix();
        for bad in ["journal/3/9", "root/012-1", "map/1-2", "chunk/zz/1-2-3", "head/x", "x", "map/1-2-3-4"] {
            assert_eq!(keys.parse(&format!("{prefix}{bad}")), None, "{bad}");
        }
    }

    #[test]
    fn names_are_plain() {
        for good in ["disk", "a.b-c_d", "0"] {
            assert!(is_valid_name(good), "{good}");
        }
        for bad in ["", ".hidden", "a/b", "a b", "é", &"x".repeat(129)] {
            assert!(!is_valid_name(bad), "{bad}");
        }
    }
}
