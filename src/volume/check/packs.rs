//! Packs: their indexes, and with them their data.
//!
//! Must not know which frames are in use. Invariant: the indexes in memory have at most [`INDEX_FRAMES`]
//! frames, or those of one pack. A volume with more is checked in several groups of packs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use futures::stream::{self, StreamExt as _};
use uuid::Uuid;

use super::context::{Context, Stop};
use super::frames::{self as bytes_of, Expected};
use super::report::{Depth, Trouble};
use super::sizes::{self, Fit};
use super::suspects::{Loss, Part, Suspects};
use crate::store::ByteRange;
use crate::volume::format::geometry::BlockIndex;
use crate::volume::format::keys::{Keys, ObjectId, Parsed};
use crate::volume::format::pack;
use crate::volume::format::root::Root;
use crate::volume::store_exact::fetch_part_checked;

/// Limit on the frames of the packs whose indexes are in memory: 64 MiB.
pub(super) const INDEX_FRAMES: u64 = 8 << 20;
/// Number of packs that are read at a time.
const PACKS_AT_ONCE: usize = 4;

/// The indexes of a group of packs: the block of each frame.
#[derive(Debug, Default)]
pub(super) struct Indexes(BTreeMap<(Uuid, ObjectId), Vec<BlockIndex>>);

impl Indexes {
    /// The block of each frame of a pack, if it is in the group and its index can be read.
    pub(super) fn of(&self, owner: Keys, pack: ObjectId) -> Option<&[BlockIndex]> {
        self.0.get(&(owner.volume(), pack)).map(Vec::as_slice)
    }
}

/// A pack, and its number of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PackAt {
    pub(super) owner: Keys,
    pub(super) id: ObjectId,
    pub(super) frames: u32,
}

/// The packs of the volume itself, as its root lists them.
pub(super) fn own(context: &Context<'_>, root: &Root) -> Vec<PackAt> {
    let packs = root.packs.iter();
    packs.map(|(id, pack)| PackAt { owner: context.keys, id: *id, frames: pack.frames }).collect()
}

/// Reads how many frames packs of other volumes have, which only the packs themselves say. Notes those that
/// are lost.
pub(super) async fn shared(
    context: &Context<'_>,
    packs: &BTreeSet<(Uuid, ObjectId)>,
    suspects: &mut Suspects,
) -> Result<Vec<PackAt>, Stop> {
    let reads = stream::iter(packs.clone()).map(|(owner, id)| async move {
        let owner = Keys::new(owner);
        let range = ByteRange::Bounded { offset: 0, length: pack::HEADER_BYTES };
        let decode = |bytes: &[u8]| pack::decode_header(owner.sealing(), id, bytes);
        (owner, id, fetch_part_checked(context.store(), &owner.pack(id), range, decode).await)
    });
    let mut reads = reads.buffered(PACKS_AT_ONCE);
    let mut found = Vec::new();
    while let Some((owner, id, read)) = reads.next().await {
        let object = (owner, Parsed::Pack(id));
        match context.unless_replaced(object, read).await? {
            Ok(frames) => found.push(PackAt { owner, id, frames }),
            Err(loss) if loss.trouble == Trouble::Missing => {
                context.note(suspects, object, loss, Part::Whole);
            }
            Err(loss) => {
                // No read needs the header.
                let why = format!("its header, without which no frame was verified: {}", loss.why);
                context.note(suspects, object, Loss::damaged(why), Part::Unread);
            }
        }
    }
    Ok(found)
}

/// Divides packs into groups of at most `frames` frames.
pub(super) fn groups(packs: &[PackAt], frames: u64) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let (mut start, mut sum) = (0, 0);
    for (place, pack) in packs.iter().enumerate() {
        sum += u64::from(pack.frames);
        if sum > frames && place > start {
            groups.push(start..place);
            (start, sum) = (place, u64::from(pack.frames));
        }
    }
    groups.push(start..packs.len());
    groups
}

/// Reads the indexes of a group of packs, and verifies their data if that is wanted and not in `verified`.
pub(super) async fn check(
    context: &Context<'_>,
    group: &[PackAt],
    verified: &mut BTreeSet<(Uuid, ObjectId)>,
    suspects: &mut Suspects,
) -> Result<Indexes, Stop> {
    let mut indexes = Indexes::default();
    let reads = stream::iter(group.to_vec()).map(|PackAt { owner, id, frames }| async move {
        let key = owner.pack(id);
        let index = pack::index_range(frames);
        let range = ByteRange::Bounded { offset: index.start, length: index.end - index.start };
        let decode = |bytes: &[u8]| pack::decode_index(owner.sealing(), id, frames, bytes);
        (owner, id, frames, fetch_part_checked(context.store(), &key, range, decode).await)
    });
    let mut reads = reads.buffered(PACKS_AT_ONCE);
    while let Some((owner, id, frames, read)) = reads.next().await {
        let object = (owner, Parsed::Pack(id));
        let index = match context.unless_replaced(object, read).await? {
            Ok(index) => index,
            Err(loss) if loss.trouble == Trouble::Missing => {
                context.note(suspects, object, loss, Part::Whole);
                continue;
            }
            Err(loss) => {
                // No read needs the index. Its frames cannot be verified without it.
                let cut = sizes::check(context, object, pack::object_bytes(frames), suspects).await?;
                if cut == Fit::Right {
                    let why = format!("its index, without which no frame was verified: {}", loss.why);
                    context.note(suspects, object, Loss::damaged(why), Part::Unread);
                }
                continue;
            }
        };
        if context.depth == Depth::Data && !verified.contains(&(owner.volume(), id)) {
            let expected = Expected::pack(owner.sealing(), id, &index);
            let read = bytes_of::verify(context.store(), &owner.pack(id), &expected).await;
            if bytes_of::note(context, object, read, suspects).await? {
                verified.insert((owner.volume(), id));
            }
        }
        indexes.0.insert((owner.volume(), id), index);
    }
    Ok(indexes)
}
