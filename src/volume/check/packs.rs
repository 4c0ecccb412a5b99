//! Packs: their indexes, and with them their data.
//!
//! Must not know which frames are in use. Invariant: the indexes in memory have at most [`INDEX_FRAMES`]
//! frames, or those of one pack. A volume with more is checked in several groups of packs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use futures::stream::{self, StreamExt as _};

use super::context::{Context, Stop};
use super::frames::{self as bytes_of, Expected};
use super::report::{Depth, Trouble};
use super::sizes::{self, Fit};
use super::suspects::{Loss, Part, Suspects};
use crate::store::ByteRange;
use crate::volume::format::geometry::BlockIndex;
use crate::volume::format::keys::{ObjectId, Parsed};
use crate::volume::format::pack;
use crate::volume::format::root::{PackUse, Root};
use crate::volume::store_exact::fetch_part_checked;

/// Limit on the frames of the packs whose indexes are in memory: 64 MiB.
pub(super) const INDEX_FRAMES: u64 = 8 << 20;
/// Number of packs that are read at a time.
const PACKS_AT_ONCE: usize = 4;

/// The indexes of a group of packs: the block of each frame.
#[derive(Debug, Default)]
pub(super) struct Indexes(BTreeMap<ObjectId, Vec<BlockIndex>>);

impl Indexes {
    /// The block of each frame of a pack, if it is in the group and its index can be read.
    pub(super) fn of(&self, pack: ObjectId) -> Option<&[BlockIndex]> {
        self.0.get(&pack).map(Vec::as_slice)
    }
}

/// Divides the packs of a root into groups of at most `frames` frames.
pub(super) fn groups(root: &Root, frames: u64) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let (mut start, mut sum) = (0, 0);
    for (place, pack) in root.packs.values().enumerate() {
        sum += u64::from(pack.frames);
        if sum > frames && place > start {
            groups.push(start..place);
            (start, sum) = (place, u64::from(pack.frames));
        }
    }
    groups.push(start..root.packs.len());
    groups
}

/// Reads the indexes of a group of packs, and verifies their data if that is wanted and not in `verified`.
pub(super) async fn check(
    context: &Context<'_>,
    root: &Root,
    group: Range<usize>,
    verified: &mut BTreeSet<ObjectId>,
    suspects: &mut Suspects,
) -> Result<Indexes, Stop> {
    let mut indexes = Indexes::default();
    let packs = root.packs.iter().skip(group.start).take(group.len()).map(|(id, pack)| (*id, *pack));
    let reads = stream::iter(packs).map(|(id, PackUse { frames, .. })| async move {
        let key = context.keys.pack(id);
        let index = pack::index_range(frames);
        let range = ByteRange::Bounded { offset: index.start, length: index.end - index.start };
        let decode = |bytes: &[u8]| pack::decode_index(context.keys.sealing(), id, frames, bytes);
        (id, frames, key.clone(), fetch_part_checked(context.store(), &key, range, decode).await)
    });
    let mut reads = reads.buffered(PACKS_AT_ONCE);
    while let Some((id, frames, key, read)) = reads.next().await {
        let object = Parsed::Pack(id);
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
        if context.depth == Depth::Data && !verified.contains(&id) {
            let expected = Expected::pack(context.keys.sealing(), id, &index);
            let read = bytes_of::verify(context.store(), &key, &expected).await;
            if bytes_of::note(context, object, read, suspects).await? {
                verified.insert(id);
            }
        }
        indexes.0.insert(id, index);
    }
    Ok(indexes)
}
