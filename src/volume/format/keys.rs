//! The keys of all objects of a volume. They are built and parsed only here.
//!
//! Must not know what the objects contain. Invariant: two objects never have the same key, and
//! [`Keys::parse`] accepts a key only in the spelling in which [`Keys`] builds it.

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::codec::{DecodeError, Decoder, Encoder};
use super::geometry::ChunkIndex;
use super::sealing::Sealing;

/// Generation of a volume's writer. Each opening for writing takes the next one.
pub type Epoch = u32;

/// Identifies an immutable object: the epoch that created it, and a number that this epoch used only once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Epoch of the gateway that created the object.
    pub epoch: Epoch,
    /// Number that is unique within the epoch.
    pub k: u64,
}

/// The place of a record in the journal. Slots are ordered as in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Epoch of the log that contains the record.
    pub epoch: Epoch,
    /// Number in the log. The opening record has number 1.
    pub n: u64,
}

impl ObjectId {
    /// Length of an encoded id in bytes.
    pub const BYTES: usize = 4 + 8;

    /// Appends the id to an object.
    pub fn encode(self, to: &mut Encoder) {
        to.u32(self.epoch);
        to.u64(self.k);
    }

    /// Reads an id from an object.
    ///
    /// # Errors
    /// Returns an error if too few bytes are left.
    pub fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Self { epoch: from.u32()?, k: from.u64()? })
    }
}

impl Slot {
    /// The slot before the first record of the journal: that of what a volume begins with.
    pub const START: Self = Self { epoch: 0, n: 0 };
    /// Length of an encoded slot in bytes.
    pub const BYTES: usize = 4 + 8;

    /// Appends the slot to an object.
    pub fn encode(self, to: &mut Encoder) {
        to.u32(self.epoch);
        to.u64(self.n);
    }

    /// Reads a slot from an object.
    ///
    /// # Errors
    /// Returns an error if too few bytes are left.
    pub fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Self { epoch: from.u32()?, n: from.u64()? })
    }
}

/// Prefix of the objects of all names.
pub const NAMES: &str = "name/";

/// Prefix of all identities. A listing of it contains every volume of which any object exists, with or
/// without a name.
pub const IDENTITIES: &str = "identity/";

/// Prefix of all objects of volumes except their identities.
pub const VOLUMES: &str = "volume/";

/// Returns the volume that an object below [`VOLUMES`] belongs to.
#[must_use]
pub fn volume_of(key: &str) -> Option<Uuid> {
    key.strip_prefix(VOLUMES)?.split_once('/')?.0.parse().ok()
}

/// Returns the key of the object that binds a name to a volume.
#[must_use]
pub fn name(name: &str) -> String {
    format!("{NAMES}{name}")
}

/// Limit on the length of a volume's name in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// Whether a volume may have this name: 1 to 128 characters of `[A-Za-z0-9._-]`, not starting with a dot.
#[must_use]
pub fn is_valid_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Builds and parses the keys of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    volume: Uuid,
}

/// What the key of an object of a volume identifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The head of the volume.
    Head,
    /// The blocks that were read first after an opening.
    FirstReads,
    /// The record or seal in this slot.
    Record(Slot),
    /// A root or a root table.
    Root(ObjectId),
    /// A map page: its number and its id.
    MapPage(u32, ObjectId),
    /// A chunk object: the chunk and the object's id.
    Chunk(ChunkIndex, ObjectId),
    /// An overlay: the number of its map page and its id.
    Overlay(u32, ObjectId),
    /// A pack.
    Pack(ObjectId),
}

impl Keys {
    /// Creates the keys of `volume`.
    #[must_use]
    pub fn new(volume: Uuid) -> Self {
        Self { volume }
    }

    /// Returns the volume that the keys belong to.
    #[must_use]
    pub fn volume(&self) -> Uuid {
        self.volume
    }

    /// Returns with what the objects of the volume are sealed.
    #[must_use]
    pub fn sealing(&self) -> Sealing {
        Sealing::new(self.volume)
    }

    /// Returns the prefix of all objects of the volume except its identity.
    #[must_use]
    pub fn prefix(&self) -> String {
        format!("volume/{}/", self.volume)
    }

    /// Returns the key of the identity. It is the first object of a volume to be created and the
    /// last to be deleted.
    #[must_use]
    pub fn identity(&self) -> String {
        format!("{IDENTITIES}{}", self.volume)
    }

    /// Returns the key of the head, the only object of a volume that is overwritten besides the hint
    /// [`Keys::first_reads`].
    #[must_use]
    pub fn head(&self) -> String {
        format!("volume/{}/head", self.volume)
    }

    /// Returns the key of the blocks that were read first after an opening.
    #[must_use]
    pub fn first_reads(&self) -> String {
        format!("volume/{}/reads", self.volume)
    }

    /// Returns the prefix of all records.
    #[must_use]
    pub fn journal(&self) -> String {
        format!("volume/{}/journal/", self.volume)
    }

    /// Returns the prefix of the records of one epoch.
    #[must_use]
    pub fn log(&self, epoch: Epoch) -> String {
        format!("volume/{}/journal/{epoch:010}/", self.volume)
    }

    /// Returns the key of a record or seal.
    #[must_use]
    pub fn record(&self, slot: Slot) -> String {
        format!("volume/{}/journal/{:010}/{:020}", self.volume, slot.epoch, slot.n)
    }

    /// Returns the prefix of roots and root tables.
    #[must_use]
    pub fn roots(&self) -> String {
        format!("volume/{}/root/", self.volume)
    }

    /// Returns the key of a root or a root table.
    #[must_use]
    pub fn root(&self, id: ObjectId) -> String {
        format!("volume/{}/root/{}-{}", self.volume, id.epoch, id.k)
    }

    /// Returns the prefix of map pages.
    #[must_use]
    pub fn map_pages(&self) -> String {
        format!("volume/{}/map/", self.volume)
    }

    /// Returns the key of a map page.
    #[must_use]
    pub fn map_page(&self, page: u32, id: ObjectId) -> String {
        format!("volume/{}/map/{page}-{}-{}", self.volume, id.epoch, id.k)
    }

    /// Returns the prefix of chunk objects.
    #[must_use]
    pub fn chunks(&self) -> String {
        format!("volume/{}/chunk/", self.volume)
    }

    /// Returns the key of a chunk object.
    #[must_use]
    pub fn chunk(&self, index: ChunkIndex, id: ObjectId) -> String {
        format!(
            "volume/{}/chunk/{:02x}/{}-{}-{}",
            self.volume,
            shard(&index.0.to_le_bytes()),
            index.0,
            id.epoch,
            id.k
        )
    }

    /// Returns the prefix of overlays.
    #[must_use]
    pub fn overlays(&self) -> String {
        format!("volume/{}/overlay/", self.volume)
    }

    /// Returns the key of an overlay of map page `page`.
    #[must_use]
    pub fn overlay(&self, page: u32, id: ObjectId) -> String {
        format!("volume/{}/overlay/{page}-{}-{}", self.volume, id.epoch, id.k)
    }

    /// Returns the prefix of packs.
    #[must_use]
    pub fn packs(&self) -> String {
        format!("volume/{}/pack/", self.volume)
    }

    /// Returns the key of a pack.
    #[must_use]
    pub fn pack(&self, id: ObjectId) -> String {
        let shard = shard(&id.k.to_le_bytes());
        format!("volume/{}/pack/{shard:02x}/{}-{}", self.volume, id.epoch, id.k)
    }

    /// Parses a key. Returns `None` if this volume never has an object with this key.
    #[must_use]
    pub fn parse(&self, key: &str) -> Option<Parsed> {
        let rest = key.strip_prefix(&self.prefix())?;
        let parsed = match rest.split('/').collect::<Vec<_>>()[..] {
            ["head"] => Parsed::Head,
            ["reads"] => Parsed::FirstReads,
            ["journal", epoch, n] => Parsed::Record(Slot { epoch: epoch.parse().ok()?, n: n.parse().ok()? }),
            ["root", name] => Parsed::Root(parse_id(name)?),
            ["map", name] => parse_indexed(name).map(|(page, id)| Parsed::MapPage(page, id))?,
            ["chunk", _, name] => parse_indexed(name).map(|(i, id)| Parsed::Chunk(ChunkIndex(i), id))?,
            ["overlay", name] => parse_indexed(name).map(|(page, id)| Parsed::Overlay(page, id))?,
            ["pack", _, name] => Parsed::Pack(parse_id(name)?),
            _ => return None,
        };
        (self.key_of(parsed) == key).then_some(parsed)
    }

    /// Returns the key of an object.
    pub(crate) fn key_of(&self, parsed: Parsed) -> String {
        match parsed {
            Parsed::Head => self.head(),
            Parsed::FirstReads => self.first_reads(),
            Parsed::Record(slot) => self.record(slot),
            Parsed::Root(id) => self.root(id),
            Parsed::MapPage(page, id) => self.map_page(page, id),
            Parsed::Chunk(index, id) => self.chunk(index, id),
            Parsed::Overlay(page, id) => self.overlay(page, id),
            Parsed::Pack(id) => self.pack(id),
        }
    }
}

/// Returns a prefix that spreads keys over the partitions of a store.
pub(crate) fn shard(number: &[u8]) -> u8 {
    xxh3_64(number).to_le_bytes()[0]
}

fn parse_id(name: &str) -> Option<ObjectId> {
    let (epoch, k) = name.split_once('-')?;
    Some(ObjectId { epoch: epoch.parse().ok()?, k: k.parse().ok()? })
}

fn parse_indexed(name: &str) -> Option<(u32, ObjectId)> {
    let (index, id) = name.split_once('-')?;
    Some((index.parse().ok()?, parse_id(id)?))
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
            (keys.first_reads(), Parsed::FirstReads),
            (keys.record(Slot { epoch: 3, n: 9 }), Parsed::Record(Slot { epoch: 3, n: 9 })),
            (keys.root(id), Parsed::Root(id)),
            (keys.map_page(5, id), Parsed::MapPage(5, id)),
            (keys.chunk(ChunkIndex(70_000), id), Parsed::Chunk(ChunkIndex(70_000), id)),
            (keys.overlay(5, id), Parsed::Overlay(5, id)),
            (keys.pack(id), Parsed::Pack(id)),
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
        for bad in [
            "journal/3/9",
            "root/012-1",
            "map/1-2",
            "chunk/zz/1-2-3",
            "head/x",
            "reads/1",
            "x",
            "map/1-2-3-4",
        ] {
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
