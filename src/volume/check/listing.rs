//! What the store lists of a volume, against what is referenced: missing objects, wrong lengths, orphans.
//!
//! Must not know why an object is referenced. Invariant: an object is an orphan only if whoever made it no
//! longer holds the volume. What the holder makes may be referenced a moment later.

use futures::stream::{self, StreamExt as _};

use super::context::{Context, Stop};
use super::journal::Journal;
use super::references::{Reference, References};
use super::report::{ObjectKind, Orphans, Purpose, Usage};
use super::sizes;
use super::suspects::{Loss, Part, Suspects};
use crate::store::{self, ByteRange, Entry, Pages};
use crate::volume::format::head::Lease;
use crate::volume::format::keys::{Epoch, Keys, ObjectId, Parsed};
use crate::volume::format::root::{Root, RootTable};
use crate::volume::store_exact::{CheckedError, fetch_if_present, get_referenced};

/// Number of objects that are looked for at a time if the listing does not show them.
const LOOKED_FOR_AT_ONCE: usize = 16;

/// What the listings have shown so far.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) usage: Usage,
    pub(super) orphans: Orphans,
    /// Limit on the orphans whose keys are kept.
    most_orphans: usize,
}

/// Lists a share and compares it with what is referenced.
pub(super) async fn check(
    context: &Context<'_>,
    references: &mut References,
    journal: &Journal,
    seen: &mut Seen,
    suspects: &mut Suspects,
) -> Result<(), Stop> {
    for prefix in references.share.prefixes(context.keys) {
        let mut pages = Pages::new(context.store(), &prefix);
        while let Some(entries) = pages.next().await? {
            for entry in entries {
                check_entry(context, references, journal, &entry, seen, suspects).await?;
            }
        }
    }
    look_for_missing(context, context.keys, references, suspects).await?;
    for (owner, shared) in &mut references.shared {
        check_shared(context, Keys::new(*owner), shared, suspects).await?;
    }
    Ok(())
}

/// Lists a share of another volume, and compares it with what is referenced of it. What else it has belongs
/// to that volume.
async fn check_shared(
    context: &Context<'_>,
    owner: Keys,
    references: &mut References,
    suspects: &mut Suspects,
) -> Result<(), Stop> {
    for prefix in references.share.chunk_prefixes(owner) {
        let mut pages = Pages::new(context.store(), &prefix);
        while let Some(entries) = pages.next().await? {
            for entry in entries {
                let Some(object @ Parsed::Chunk(index, id)) = owner.parse(&entry.key) else { continue };
                let Some(reference) = references.chunks.get_mut(&(index, id)) else { continue };
                reference.is_listed = true;
                if reference.bytes != entry.size_bytes {
                    sizes::check(context, (owner, object), reference.bytes, suspects).await?;
                }
            }
        }
    }
    look_for_missing(context, owner, references, suspects).await
}

async fn check_entry(
    context: &Context<'_>,
    references: &mut References,
    journal: &Journal,
    entry: &Entry,
    seen: &mut Seen,
    suspects: &mut Suspects,
) -> Result<(), Stop> {
    let Some(object) = context.keys.parse(&entry.key) else {
        seen.add(ObjectKind::Unknown, Purpose::Orphan, entry);
        return Ok(());
    };
    if !references.has(object) || matches!(object, Parsed::Record(_)) {
        return Ok(());
    }
    let referenced = match object {
        Parsed::Chunk(index, id) => references.chunks.get_mut(&(index, id)),
        Parsed::Pack(id) => references.packs.get_mut(&id),
        _ => None,
    };
    let purpose = match referenced {
        Some(reference) => {
            reference.is_listed = true;
            let Reference { purpose, bytes, .. } = *reference;
            if purpose == Purpose::Live && bytes != entry.size_bytes {
                sizes::check(context, object, bytes, suspects).await?;
            }
            Some(purpose)
        }
        None => purpose_of(context, references, object),
    };
    let mut purpose = purpose.unwrap_or_else(|| unreferenced(context, references, journal, object));
    if let (Purpose::Orphan, Parsed::Root(id)) = (purpose, object)
        && is_table(context, id, &entry.key).await?
    {
        // A root table is kept for the grace period after a checkpoint replaced it.
        purpose = Purpose::Waiting;
    }
    seen.add(ObjectKind::of(object), purpose, entry);
    Ok(())
}

/// Why an object that is no chunk and no pack is needed.
fn purpose_of(context: &Context<'_>, references: &References, object: Parsed) -> Option<Purpose> {
    match object {
        Parsed::Head | Parsed::FirstReads => Some(Purpose::Live),
        Parsed::Root(id) if id == context.head.root || id == context.head.root_table => Some(Purpose::Live),
        Parsed::Root(id) => references.roots.get(&id).copied(),
        Parsed::MapPage(number, id) => references.map_pages.get(&(number, id)).copied(),
        Parsed::Overlay(number, id) => references.overlays.get(&(number, id)).copied(),
        Parsed::Chunk(..) | Parsed::Pack(_) | Parsed::Record(_) => None,
    }
}

/// Why an object exists that nothing references.
fn unreferenced(
    context: &Context<'_>,
    references: &References,
    journal: &Journal,
    object: Parsed,
) -> Purpose {
    let (epoch, page): (Epoch, Option<u32>) = match object {
        Parsed::Chunk(index, id) => (id.epoch, Some(index.map_page())),
        Parsed::MapPage(number, id) | Parsed::Overlay(number, id) => (id.epoch, Some(number)),
        Parsed::Root(id) | Parsed::Pack(id) => (id.epoch, None),
        Parsed::Head | Parsed::FirstReads | Parsed::Record(_) => return Purpose::Live,
    };
    let is_held = matches!(context.head.lease, Lease::Held { .. });
    let is_over = epoch < context.head.epoch || epoch == context.head.epoch && !is_held;
    let is_unknown =
        references.is_root_unknown || page.is_some_and(|page| references.unknown_pages.contains(&page));
    // A folded record that waits for its deletion may reference a chunk object of its epoch, and so may a
    // record that cannot be read.
    let is_unread = journal.unread_from.is_some_and(|first| epoch >= first);
    let may_be_folded =
        matches!(object, Parsed::Chunk(..)) && (is_unread || journal.folded_epochs.contains(&epoch));
    if !is_over {
        Purpose::Unsettled
    } else if is_unknown || may_be_folded {
        Purpose::Waiting
    } else {
        Purpose::Orphan
    }
}

/// Whether an object is a root table, and not a root. Their keys are alike. An object that is neither is no
/// table.
async fn is_table(context: &Context<'_>, id: ObjectId, key: &str) -> Result<bool, Stop> {
    let sealing = context.keys.sealing();
    let decode = |bytes: &[u8]| {
        let table = RootTable::decode(sealing, id, bytes).map(|_| true);
        table.or_else(|_| Root::decode(sealing, id, bytes).map(|_| false))
    };
    match fetch_if_present(context.store(), key, decode).await {
        Ok((is_table, _)) => Ok(is_table),
        Err(CheckedError::Damaged(_) | CheckedError::Store(store::Error::NotFound { .. })) => Ok(false),
        Err(CheckedError::Store(error)) => Err(error.into()),
    }
}

impl Seen {
    pub(super) fn new(most_orphans: usize) -> Self {
        Self { usage: Usage::default(), orphans: Orphans::default(), most_orphans }
    }

    fn add(&mut self, kind: ObjectKind, purpose: Purpose, entry: &Entry) {
        self.usage.add(kind, purpose, entry.size_bytes);
        if purpose == Purpose::Orphan {
            self.orphans.objects += 1;
            self.orphans.bytes = self.orphans.bytes.saturating_add(entry.size_bytes);
            if self.orphans.listed.len() < self.most_orphans {
                self.orphans.listed.push((entry.key.clone(), entry.size_bytes));
            }
        }
    }
}

/// Notes the chunk objects and packs in use that exist neither in the listing nor otherwise.
async fn look_for_missing(
    context: &Context<'_>,
    owner: Keys,
    references: &References,
    suspects: &mut Suspects,
) -> Result<(), Stop> {
    let is_absent = |reference: &Reference| reference.purpose == Purpose::Live && !reference.is_listed;
    let chunks = references.chunks.iter().filter(|(_, reference)| is_absent(reference));
    let chunks = chunks.map(|((index, id), _)| Parsed::Chunk(*index, *id));
    let packs = references.packs.iter().filter(|(_, reference)| is_absent(reference));
    let has_packs = references.share.number == 0;
    let packs = packs.map(|(id, _)| Parsed::Pack(*id)).filter(|_| has_packs);
    let room = suspects.room();
    let (mut absent, mut omitted) = (Vec::new(), 0);
    for object in chunks.chain(packs) {
        match suspects.is_missing(&owner.key_of(object)) {
            true => {}
            false if absent.len() < room => absent.push(object),
            false => omitted += 1,
        }
    }
    suspects.omit(omitted);
    let reads = stream::iter(absent).map(|object| async move {
        let key = owner.key_of(object);
        let one = ByteRange::Bounded { offset: 0, length: 1 };
        (object, get_referenced(context.store(), &key, one).await)
    });
    let mut reads = reads.buffer_unordered(LOOKED_FOR_AT_ONCE);
    while let Some((object, read)) = reads.next().await {
        match read {
            // The listing left it out.
            Ok(_) => {}
            Err(store::Error::NotFound { .. }) => {
                context.confirm((owner, object)).await?;
                context.note(suspects, (owner, object), Loss::missing(), Part::Whole);
            }
            // An empty object was listed, so it was too short before.
            Err(store::Error::CutShort { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
