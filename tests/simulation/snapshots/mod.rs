//! Snapshots: what clients were told of them, and what the bucket has of them.
//!
//! Clients take, delete, list and read snapshots, with any gateway that is up. A snapshot is known by the slot
//! of the commit that ends with it: wherever the bucket has it, as a record or as a kept root, it must have
//! the same content. It must not know how a snapshot is made. Invariants that it checks:
//!
//! * The content is the state at one instant between the call and its answer, by the rules of [`prefix`].
//! * Once its creation was answered, or once an opener would find it, it stays until someone deletes it. What
//!   an opener did not find never appears later, nor does what was deleted.
//! * No two snapshots have one name at a time, and a refusal of a name has a reason.
//! * Every object that a snapshot needs exists.

mod commands;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use cairn::volume::format::keys::{ObjectId, Slot};
use cairn::volume::format::root::RootTable;
use cairn::volume::format::sealing::Sealing;
use cairn::volume::format::snapshot::Snapshot;
use cairn::volume::{Error, OpenError};

pub(super) use self::commands::{Command, look};
use super::bucket::{self, Objects, Recovered};
use super::cells::{CELL_LEN, Id, identify};
use super::history::{History, Image, Moment};
use super::prefix;
use super::world::Inner;

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is not answered, or failed in a way that leaves open whether it took effect.
    Open,
    /// It had no effect.
    Refused,
    /// It was answered with success, at this moment.
    Answered(Moment),
}

impl Fate {
    fn is_answered_before(self, moment: Moment) -> bool {
        matches!(self, Self::Answered(at) if at < moment)
    }
}

/// A call that takes a snapshot.
#[derive(Debug)]
struct Creation {
    epoch: u32,
    name: String,
    issued: Moment,
    fate: Fate,
    /// What it answered.
    snapshot: Option<Snapshot>,
    /// The commit that ends with its snapshot, once that is certain.
    slot: Option<Slot>,
}

/// A call that deletes a snapshot.
#[derive(Debug)]
struct Deletion {
    name: String,
    issued: Moment,
    fate: Fate,
}

/// A snapshot that the bucket has or had.
#[derive(Debug)]
struct Known {
    snapshot: Snapshot,
    image: Image,
    /// Keys of what its root references, by the id of the root.
    roots: BTreeMap<ObjectId, BTreeSet<String>>,
    /// Whether an opener would have found it at some time.
    is_seen: bool,
    /// Whether an opener must not find it any more.
    is_gone: bool,
}

/// What the run knows about snapshots.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    creations: Vec<Creation>,
    deletions: Vec<Deletion>,
    known: BTreeMap<Slot, Known>,
    names: u32,
}

impl Ledger {
    /// Whether a call may have deleted, or may still delete, a snapshot of this name that was taken by a call
    /// issued at `since`.
    fn may_be_deleted(&self, name: &str, since: Moment) -> bool {
        let mut of_name = self.deletions.iter().filter(|deletion| deletion.name == name);
        of_name.any(|deletion| deletion.fate != Fate::Refused && !deletion.fate.is_answered_before(since))
    }

    /// The snapshots that certainly existed at `moment` and still do.
    fn certain(&self, moment: Moment) -> impl Iterator<Item = &Creation> {
        self.creations.iter().filter(move |creation| {
            creation.fate.is_answered_before(moment) && !self.may_be_deleted(&creation.name, creation.issued)
        })
    }

    /// The creations that may have made the snapshot of a slot.
    fn makers(&self, slot: Slot, name: &str) -> impl Iterator<Item = &Creation> {
        self.creations.iter().filter(move |creation| {
            creation.epoch == slot.epoch
                && creation.name == name
                && creation.fate != Fate::Refused
                && creation.slot.is_none_or(|bound| bound == slot)
        })
    }

    /// Checks that a snapshot has the state at an instant of a call that may have taken it.
    fn fits(&self, history: &History, slot: Slot) -> Result<(), String> {
        let Known { snapshot, image, .. } = &self.known[&slot];
        let epoch = history.epochs.get(&slot.epoch).ok_or("it is of no epoch")?;
        let mut why = "nobody took it".to_owned();
        for maker in self.makers(slot, &snapshot.name) {
            let until = match maker.fate {
                Fate::Answered(at) => at,
                _ => Moment::MAX,
            };
            match prefix::check(&epoch.between(maker.issued, until), image) {
                Ok(()) => return Ok(()),
                Err(wrong) => why = wrong,
            }
        }
        Err(format!("snapshot {} of {slot:?}: {why}", snapshot.name))
    }

    /// Checks every snapshot once more, now that all answers are known.
    pub(super) fn check_all(&self, history: &History) -> Result<(), String> {
        self.known.keys().try_for_each(|slot| self.fits(history, *slot))
    }

    /// Whether the snapshot of a slot was certainly deleted before `moment`.
    fn was_deleted_before(&self, slot: Slot, moment: Moment) -> bool {
        let mut bound = self.creations.iter().filter(|creation| creation.slot == Some(slot));
        bound.any(|creation| {
            let mut of_name = self.deletions.iter().filter(|deletion| deletion.name == creation.name);
            of_name.any(|deletion| {
                creation.fate.is_answered_before(deletion.issued) && deletion.fate.is_answered_before(moment)
            })
        })
    }

    /// Names that a snapshot may have now.
    fn used(&self) -> Vec<&str> {
        let used = self.creations.iter().filter(|creation| {
            creation.fate != Fate::Refused && !self.deletions.iter().any(|other| other.name == creation.name)
        });
        used.map(|creation| creation.name.as_str()).collect()
    }

    /// Keys of all that the snapshots of a root table need.
    pub(super) fn named(&self, table: &RootTable) -> BTreeSet<String> {
        let kept = table.roots.iter().filter(|kept| kept.snapshot.is_some());
        let known = kept.filter_map(|kept| self.known.get(&kept.commit)?.roots.get(&kept.root));
        known.flatten().cloned().collect()
    }
}

impl Inner {
    fn snapshot_issued(&mut self, epoch: u32, name: &str) -> usize {
        let issued = self.history.tick();
        let creation =
            Creation { epoch, name: name.to_owned(), issued, fate: Fate::Open, snapshot: None, slot: None };
        self.snapshots.creations.push(creation);
        self.snapshots.creations.len() - 1
    }

    /// A snapshot was answered: the table that the head references has it.
    fn snapshot_answered(&mut self, number: usize, snapshot: Snapshot) {
        let now = self.history.tick();
        let ledger = &mut self.snapshots;
        let creation = &mut ledger.creations[number];
        (creation.fate, creation.snapshot) = (Fate::Answered(now), Some(snapshot.clone()));
        let (epoch, issued) = (creation.epoch, creation.issued);
        if ledger.certain(issued).any(|other| other.name == snapshot.name) {
            return self.broken(format!("there are two snapshots named {}", snapshot.name));
        }
        if ledger.may_be_deleted(&snapshot.name, issued) {
            return;
        }
        let objects = self.objects();
        let table = match bucket::table(&objects, self.volume) {
            Ok(table) => table,
            Err(why) => return self.broken(why),
        };
        let is_it = |kept: &&cairn::volume::format::root::KeptRoot| {
            kept.snapshot.as_ref() == Some(&snapshot) && kept.commit.epoch == epoch
        };
        let Some(kept) = table.roots.iter().find(is_it) else {
            return self.broken(format!("snapshot {} is answered, but nobody can read it", snapshot.name));
        };
        self.snapshots.creations[number].slot = Some(kept.commit);
        self.check_kept(&objects, kept.commit, &snapshot, kept.root);
        if self.violation.is_none()
            && let Err(why) = self.snapshots.fits(&self.history, kept.commit)
        {
            self.broken(why);
        }
    }

    /// A name was refused: a snapshot of that name may exist.
    fn snapshot_refused(&mut self, number: usize) {
        let ledger = &mut self.snapshots;
        ledger.creations[number].fate = Fate::Refused;
        let Creation { epoch, name, issued, .. } = &ledger.creations[number];
        let is_gone = |other: &Creation| {
            let mut of_name = ledger.deletions.iter().filter(|deletion| deletion.name == *name);
            of_name.any(|deletion| {
                other.fate.is_answered_before(deletion.issued) && deletion.fate.is_answered_before(*issued)
            })
        };
        let mut others = ledger.creations.iter().filter(|other| other.name == *name);
        let is_explained = others.any(|other| other.fate != Fate::Refused && !is_gone(other));
        let (epoch, name) = (*epoch, name.clone());
        // A gateway that was deposed may not know of a deletion.
        if !is_explained && !self.is_superseded(epoch) {
            self.broken(format!("the name {name} is refused, and no snapshot has it"));
        }
    }

    fn deletion_issued(&mut self, name: &str) -> usize {
        let issued = self.history.tick();
        self.snapshots.deletions.push(Deletion { name: name.to_owned(), issued, fate: Fate::Open });
        self.snapshots.deletions.len() - 1
    }

    fn deletion_answered(&mut self, number: usize) {
        let now = self.history.tick();
        let ledger = &mut self.snapshots;
        ledger.deletions[number].fate = Fate::Answered(now);
        let Deletion { name, issued, .. } = &ledger.deletions[number];
        let mut creations = ledger.creations.iter().filter(|creation| creation.name == *name);
        if !creations.clone().any(|creation| creation.fate != Fate::Refused) {
            let why = format!("snapshot {name} is deleted, and nobody took it");
            return self.broken(why);
        }
        let certain = creations.by_ref().filter(|creation| creation.fate.is_answered_before(*issued));
        let slots: Vec<Slot> = certain.filter_map(|creation| creation.slot).collect();
        for slot in slots {
            if let Some(known) = ledger.known.get_mut(&slot) {
                known.is_gone = true;
            }
        }
    }

    /// A deletion found no snapshot: none certainly existed that its gateway must know.
    fn deletion_refused(&mut self, number: usize, epoch: u32) {
        let ledger = &mut self.snapshots;
        ledger.deletions[number].fate = Fate::Refused;
        let Deletion { name, issued, .. } = &ledger.deletions[number];
        let is_there = |creation: &&Creation| creation.name == *name && creation.epoch <= epoch;
        let missed = ledger.certain(*issued).find(is_there).map(|creation| creation.name.clone());
        if let Some(name) = missed {
            self.broken(format!("snapshot {name} exists, and its deletion does not find it"));
        }
    }

    /// Checks a list of snapshots that was asked for at `issued`.
    fn check_list(&mut self, found: &[Snapshot], issued: Moment) {
        let ledger = &self.snapshots;
        let certain = ledger.certain(issued).filter_map(|creation| creation.snapshot.as_ref());
        let missed = certain.filter(|snapshot| !found.contains(snapshot)).last();
        let slots_of = |snapshot: &Snapshot| -> Vec<Slot> {
            let of_it = ledger.known.iter().filter(|(_, known)| known.snapshot == *snapshot);
            of_it.map(|(slot, _)| *slot).collect()
        };
        let unknown = found.iter().find(|snapshot| slots_of(snapshot).is_empty());
        let is_gone = |slot: &Slot| ledger.was_deleted_before(*slot, issued);
        let deleted = found.iter().find(|snapshot| slots_of(snapshot).iter().all(is_gone));
        let names: BTreeSet<&str> = found.iter().map(|snapshot| snapshot.name.as_str()).collect();
        let why = match (missed, unknown, deleted) {
            (Some(missed), ..) => format!("the list lacks {missed:?}"),
            (_, Some(unknown), _) => format!("the list has {unknown:?}, which nobody took"),
            (.., Some(deleted)) => format!("the list has {deleted:?}, which was deleted"),
            _ if names.len() < found.len() => format!("the list has a name twice: {found:?}"),
            _ => return,
        };
        self.broken(why);
    }

    /// Checks bytes that were read from a snapshot.
    fn check_snapshot(&mut self, snapshot: &Snapshot, range: &Range<u64>, bytes: &[u8]) {
        let mut found: Vec<(u32, Id)> = Vec::new();
        if bytes.len() as u64 != range.end - range.start {
            return self.broken(format!("a read of {range:?} of a snapshot gave {} bytes", bytes.len()));
        }
        for (start, cells) in self.plan.layout.cells_of(range) {
            let at = usize::try_from(start - range.start).expect("within the read");
            let parts = cells.clone().zip(bytes[at..].chunks_exact(CELL_LEN));
            found.extend(parts.map(|(cell, part)| (cell, identify(part, cell))));
        }
        let mut why = "which nobody took".to_owned();
        for known in self.snapshots.known.values().filter(|known| known.snapshot == *snapshot) {
            let Some((cell, id)) = found.iter().find(|(cell, id)| known.image[*cell as usize] != *id) else {
                return;
            };
            why = format!("cell {cell} reads as change {id}, it has {}", known.image[*cell as usize]);
        }
        self.broken(format!("read of {range:?} of snapshot {}: {why}", snapshot.name));
    }

    /// A snapshot cannot be opened, or the snapshots not be listed: is that explained?
    fn opening_snapshot_failed(&mut self, name: Option<&str>, issued: Moment, error: &OpenError) {
        let name = name.unwrap_or_default();
        let is_explained = match error {
            OpenError::NoSuchSnapshot(_) => !self.snapshots.certain(issued).any(|other| other.name == name),
            OpenError::Store(_) => !self.is_fair(),
            // Checkpoints replaced and deleted each table before it was read.
            OpenError::Contended(_) => self.plan.options.deletion_grace.is_zero(),
            _ => false,
        };
        self.say(format_args!("no snapshot {name}: {error}"));
        if !is_explained {
            self.broken(format!("snapshot {name} cannot be opened: {error}"));
        }
    }

    fn reading_snapshot_failed(&mut self, name: &str, error: &Error) {
        let may_be_deleted = self.snapshots.may_be_deleted(name, 0);
        let is_explained = match error {
            Error::Stopped(_) => may_be_deleted,
            // Whether it was deleted could not be found out.
            Error::Lost { .. } => may_be_deleted && !self.is_fair(),
            Error::Store(_) => !self.is_fair(),
            _ => false,
        };
        self.say(format_args!("snapshot {name} cannot be read: {error}"));
        if !is_explained {
            self.broken(format!("snapshot {name} cannot be read: {error}"));
        }
    }

    /// A root table was put: notes what its snapshots have, before anyone can read them.
    pub(super) fn table_lands(&mut self, id: ObjectId, body: &Bytes) {
        let Ok(table) = RootTable::decode(Sealing::new(self.volume), id, body) else { return };
        if self.rotten {
            return;
        }
        let is_new = |slot: &Slot| !self.snapshots.known.contains_key(slot);
        let new = table.roots.into_iter().filter_map(|kept| Some((kept.snapshot?, kept.commit, kept.root)));
        let new: Vec<_> = new.filter(|(_, slot, _)| is_new(slot)).collect();
        if new.is_empty() {
            return;
        }
        let objects = self.objects();
        for (snapshot, slot, root) in new {
            let (volume, layout) = (self.volume, self.plan.layout.clone());
            // A table that lands late may list what is deleted.
            if let Ok(whole) = bucket::check_root(&objects, volume, &layout, root, &mut self.known) {
                self.snapshot_found(slot, &snapshot, whole.image);
            }
        }
    }

    /// The bucket has a snapshot with this content.
    fn snapshot_found(&mut self, slot: Slot, snapshot: &Snapshot, image: Vec<Id>) {
        if let Some(known) = self.snapshots.known.get(&slot) {
            let is_same = *known.image == image && known.snapshot == *snapshot;
            if !is_same {
                self.broken(format!("{snapshot:?} of {slot:?} is not what it was"));
            }
            return;
        }
        if slot.epoch < self.history.newest() {
            self.broken(format!("{snapshot:?} of {slot:?} was not there when a later epoch began"));
        }
        let (snapshot, image) = (snapshot.clone(), Arc::new(image));
        let known = Known { snapshot, image, roots: BTreeMap::new(), is_seen: false, is_gone: false };
        self.snapshots.known.insert(slot, known);
        if let Err(why) = self.snapshots.fits(&self.history, slot) {
            self.broken(why);
        }
    }

    /// Checks the snapshots that an opener would find.
    pub(super) fn check_snapshots(&mut self, objects: &Objects, found: &Recovered) {
        let mut present: BTreeMap<Slot, &str> = BTreeMap::new();
        let in_roots = found.table.roots.iter().filter_map(|kept| Some((kept, kept.snapshot.as_ref()?)));
        for (kept, snapshot) in in_roots {
            self.check_kept(objects, kept.commit, snapshot, kept.root);
            if present.insert(kept.commit, &snapshot.name).is_some() {
                self.broken(format!("{snapshot:?} has two roots"));
            }
        }
        for (slot, snapshot, image) in &found.snapshots {
            self.snapshot_found(*slot, snapshot, image.clone());
            if present.insert(*slot, &snapshot.name).is_some() {
                self.broken(format!("{snapshot:?} has a root and is in the journal"));
            }
        }
        let names: BTreeSet<&str> = present.values().copied().collect();
        if names.len() < present.len() {
            self.broken(format!("two snapshots have one name: {present:?}"));
        }
        let slots: Vec<Slot> = self.snapshots.known.keys().copied().collect();
        for slot in slots {
            self.check_presence(slot, present.contains_key(&slot));
        }
    }

    /// Checks the root of a snapshot. What was seen to be whole stays so as long as all of it exists.
    fn check_kept(&mut self, objects: &Objects, slot: Slot, snapshot: &Snapshot, root: ObjectId) {
        let named = self.snapshots.known.get(&slot).and_then(|known| known.roots.get(&root));
        if let Some(named) = named {
            let missing = named.iter().find(|key| !objects.contains_key(*key)).cloned();
            if let Some(key) = missing {
                self.broken(format!("{snapshot:?} needs {key}, which is gone"));
            }
            return;
        }
        let layout = self.plan.layout.clone();
        match bucket::check_root(objects, self.volume, &layout, root, &mut self.known) {
            Err(why) => self.broken(format!("{snapshot:?} is not whole: {why}")),
            Ok(whole) if whole.commit != slot => {
                self.broken(format!("{snapshot:?} of {slot:?} has a root of {:?}", whole.commit));
            }
            Ok(whole) => {
                self.snapshot_found(slot, snapshot, whole.image);
                if let Some(known) = self.snapshots.known.get_mut(&slot) {
                    known.roots.insert(root, whole.named);
                }
            }
        }
    }

    /// Checks that a snapshot may be there, or may be absent.
    fn check_presence(&mut self, slot: Slot, is_present: bool) {
        let ledger = &self.snapshots;
        let Known { snapshot, is_seen, is_gone, .. } = &ledger.known[&slot];
        let since = ledger.makers(slot, &snapshot.name).map(|maker| maker.issued).min();
        let may_be_deleted = since.is_none_or(|since| ledger.may_be_deleted(&snapshot.name, since));
        let why = match is_present {
            true if *is_gone => Some(format!("{snapshot:?} of {slot:?} was gone, and is back")),
            false if *is_seen && !may_be_deleted => Some(format!("{snapshot:?} of {slot:?} is gone")),
            _ => None,
        };
        let known = self.snapshots.known.get_mut(&slot).expect("just seen");
        known.is_gone |= known.is_seen && !is_present;
        known.is_seen |= is_present;
        if let Some(why) = why {
            self.broken(why);
        }
    }
}
