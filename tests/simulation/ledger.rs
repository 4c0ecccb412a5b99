//! The ledger of names: which volumes were created, which operations may have deleted them, and what exists
//! under each name.
//!
//! It observes requests when they take effect in the store, whoever sent them and whenever. It also picks what
//! meets an operation of another process midway. It must not know how Cairn creates, renames and deletes
//! volumes. Invariants that it checks: the object under a name is only replaced, by a later version. A name is
//! bound only to a complete volume, and taken from a volume only when that is being deleted or has another
//! name. The head and the identity are deleted after the names are taken.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use cairn::store::{ByteRange, Error as StoreError, Store};
use cairn::volume::format::head::{Head, VolumeState};
use cairn::volume::format::identity::NameBinding;
use cairn::volume::format::keys::{self, IDENTITIES, Keys, NAMES};
use futures::FutureExt;
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom;
use uuid::Uuid;

use super::weather::Phase;
use super::world::{Call, Inner, Process, Time};

/// Number of an operation of a process: a creation, a deletion, an opening or a listing.
pub(super) type Operation = u64;

/// A volume whose creation was answered.
#[derive(Clone, Debug)]
pub(super) struct Made {
    /// The newest mark that was flushed onto it; 0 if there is none.
    pub(super) flushed: u64,
}

/// The state of a name in the store.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    version: u64,
    pub(super) volume: Option<Uuid>,
    /// When a binding of it to a volume last ended.
    pub(super) until: Option<Time>,
}

/// What a deletion by name is about to do to the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aim {
    /// It is deleted for good.
    Delete,
    /// It is kept, so that it can be brought back.
    SetAside,
}

/// What the run knows about names and volumes.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    /// Whether processes also delete volumes so that they can be brought back.
    pub(super) keeps: bool,
    /// Operations that may have deleted a volume in that way since it was last brought back, and whether each of
    /// them has ended. While there are any, nobody can say whether the volume has a name.
    pub(super) aside: BTreeMap<Uuid, BTreeMap<Operation, bool>>,
    /// Volumes that a process may ever have deleted in that way.
    pub(super) ever_aside: BTreeSet<Uuid>,
    /// Volumes that a process may have deleted for good while they were kept.
    pub(super) doomed: BTreeSet<Uuid>,
    /// The state of each volume, and since when a kept one was kept.
    pub(super) states: BTreeMap<Uuid, (VolumeState, Time)>,
    /// Volumes whose creation was answered.
    pub(super) made: BTreeMap<Uuid, Made>,
    /// Deletions that may have been aimed at a volume.
    pub(super) aimed: BTreeMap<Uuid, BTreeSet<Operation>>,
    /// Volumes whose deletion was answered with success.
    pub(super) deleted: BTreeSet<Uuid>,
    /// Deletions by name that have not read the name yet, and what they do then.
    pub(super) aiming: BTreeMap<Process, (Operation, String, Aim)>,
    /// Names that processes are opening, or have opened and use.
    pub(super) opened: BTreeMap<Process, String>,
    /// Names that processes are binding. If that is a renaming, also the old name.
    pub(super) binding: BTreeMap<Process, (String, Option<String>)>,
    /// Answers that tell a process that the new name is bound, and the old name: by process and request.
    pub(super) telling: BTreeMap<(Process, u64), String>,
    /// The old names of processes that know that the new one is bound, and have not touched the old one since.
    pub(super) told: BTreeMap<Process, String>,
    /// Names that were ever used.
    pub(super) names: BTreeMap<String, Standing>,
    /// Every volume that was seen in a listing or under a name.
    pub(super) seen: BTreeSet<Uuid>,
    /// Keys that were damaged before all else.
    pub(super) planted: BTreeSet<String>,
}

impl Ledger {
    /// Whether a volume was created and no operation can have deleted it.
    pub(super) fn is_owed(&self, volume: Uuid) -> bool {
        self.must_exist(volume) && self.aside.get(&volume).is_none_or(BTreeMap::is_empty)
    }

    /// Whether a volume was created and no operation can have deleted it for good.
    pub(super) fn must_exist(&self, volume: Uuid) -> bool {
        self.made.contains_key(&volume) && !self.is_aimed(volume)
    }

    /// Whether an operation may have deleted a volume for good.
    pub(super) fn is_aimed(&self, volume: Uuid) -> bool {
        self.aimed.get(&volume).is_some_and(|aimed| !aimed.is_empty())
    }

    /// All names of volumes that must exist. While a volume is being renamed it has two.
    pub(super) fn owed(&self) -> BTreeMap<String, Uuid> {
        let bound = self.names.iter().filter_map(|(name, standing)| Some((name, standing.volume?)));
        bound.filter(|(_, volume)| self.is_owed(*volume)).map(|(name, to)| (name.clone(), to)).collect()
    }

    /// Whether a name is bound to a volume.
    pub(super) fn has_name(&self, volume: Uuid) -> bool {
        self.names.values().any(|standing| standing.volume == Some(volume))
    }

    /// Returns the version of a name, 0 if it was never used.
    pub(super) fn version_of(&self, name: &str) -> u64 {
        self.names.get(name).map_or(0, |standing| standing.version)
    }

    /// Returns the volume that a name is bound to.
    pub(super) fn stands_for(&self, name: &str) -> Option<Uuid> {
        self.names.get(name).and_then(|standing| standing.volume)
    }
}

/// Returns the phase of a request in a run that tests names.
pub(super) fn phase(call: &Call) -> Phase {
    let is_name = |key: &str| key.starts_with(NAMES) || key.starts_with(IDENTITIES);
    match call {
        Call::Get(key, _) | Call::Put(key, ..) | Call::List(key, _) if is_name(key) => Phase::Name,
        Call::Delete(_) | Call::List(..) => Phase::Sweep,
        _ => Phase::Open,
    }
}

/// The volume to which a key belongs.
pub(super) fn volume_of(key: &str) -> Option<Uuid> {
    let rest = key.strip_prefix("volume/").or_else(|| key.strip_prefix(IDENTITIES))?;
    Uuid::parse_str(rest.get(..36)?).ok()
}

impl Inner {
    pub(super) fn names(&mut self) -> &mut Ledger {
        self.ledger.as_mut().expect("the run is about names")
    }

    /// Picks for a renaming, now and then, a name that a process has bound but may not know to be bound, and pauses
    /// that process. If it renames a volume itself, the new one gives the old name back.
    pub(super) fn renames_bound(&mut self, random: &mut SmallRng) -> Option<(String, Option<String>)> {
        let ledger = self.ledger.as_ref().expect("the run is about names");
        let bound = ledger.binding.iter().filter(|(process, (name, _))| {
            self.processes[*process].alive && ledger.stands_for(name).is_some()
        });
        let (process, names) = bound.choose(random)?;
        let (process, names) = (*process, names.clone());
        if random.random_bool(0.3) {
            return None;
        }
        if self.calm.is_none() && random.random_bool(0.7) {
            self.pausing.push(process);
        }
        Some(names)
    }

    /// Picks for a deletion, now and then, the name of a volume that a process is opening, and pauses that process:
    /// a deletion can do no more harm than between two requests of an opening.
    pub(super) fn deletes_opened(&mut self, random: &mut SmallRng) -> Option<String> {
        let opened: Vec<_> = self.names().opened.clone().into_iter().collect();
        let alive = opened.into_iter().filter(|(process, _)| self.processes[process].alive);
        let (process, name) = alive.choose(random)?;
        if random.random_bool(0.3) {
            return None;
        }
        if self.calm.is_none() && random.random_bool(0.7) {
            self.pausing.push(process);
        }
        Some(name)
    }

    /// Interprets a request that took effect. `unheard` if its caller will never know.
    pub(super) fn name_lands(&mut self, call: &Call, unheard: bool) {
        match call {
            Call::Put(key, body, _) => match key.strip_prefix(NAMES) {
                Some(name) => self.name_changes(name, body),
                None => {
                    self.head_changes(key, body);
                    self.note_stray(key, unheard);
                }
            },
            Call::Delete(keys) => {
                if let Some(name) = keys.iter().find(|key| key.starts_with(NAMES)) {
                    self.broken(format!("{name} is deleted: a late request could bring it back"));
                }
                for key in keys {
                    self.check_removed(key);
                }
            }
            Call::Get(..) | Call::List(..) => {}
        }
    }

    /// Notes an object that is created while or after its volume is deleted, or unknown to its sender.
    /// Nothing can find it once the identity is gone.
    fn note_stray(&mut self, key: &str, unheard: bool) {
        let Some(volume) = volume_of(key) else { return };
        let is_aimed = self.names().aimed.get(&volume).is_some_and(|aimed| !aimed.is_empty());
        if unheard || is_aimed || self.peek(&Keys::new(volume).identity()).is_none() {
            self.strays.insert(key.to_owned());
        }
    }

    /// Checks that a volume to which a name is bound keeps its head and its identity.
    fn check_removed(&mut self, key: &str) {
        let Some(volume) = volume_of(key) else { return };
        let keys = Keys::new(volume);
        if [keys.head(), keys.identity()].iter().any(|of| of == key) && self.names().has_name(volume) {
            self.broken(format!("{key} is deleted, and a name is bound to its volume"));
        }
    }

    fn name_changes(&mut self, name: &str, body: &Bytes) {
        let now = self.now;
        let binding = match NameBinding::decode(body) {
            Ok(binding) => binding,
            Err(error) => return self.broken(format!("under the name {name} stands: {error}")),
        };
        let to = binding.name.is_some().then_some(binding.volume);
        let standing = self.names().names.entry(name.to_owned()).or_default();
        let (version, from) = (standing.version, standing.volume);
        let until = from.map(|_| now).or(standing.until);
        *standing = Standing { version: binding.version, volume: to, until };
        if binding.version <= version {
            self.broken(format!("version {} of the name {name} follows {version}", binding.version));
        }
        if let Some(from) = from.filter(|from| Some(*from) != to) {
            self.check_taken(name, from);
        }
        if let Some(to) = to {
            self.names().seen.insert(to);
            self.check_binding(name, to);
            self.cut_off_creator(name);
        }
    }

    /// Cuts off, now and then, a process that creates a volume of this name, which is bound from now on. So the
    /// process learns that late.
    fn cut_off_creator(&mut self, name: &str) {
        let creates = |(of, old): &(String, Option<String>)| of == name && old.is_none();
        let creator =
            self.names().binding.iter().find(|(_, names)| creates(names)).map(|(process, _)| *process);
        if let Some(creator) = creator
            && self.calm.is_none()
            && self.random.random_bool(0.2)
        {
            self.cutting_off.push(creator);
        }
    }

    /// Checks that a name may be taken from a volume.
    fn check_taken(&mut self, name: &str, from: Uuid) {
        if self.names().has_name(from) {
            return;
        }
        if self.names().is_owed(from) {
            self.broken(format!("the name {name} is taken from {from}, which nobody deletes"));
        }
        if self.state_of(from) == Some(VolumeState::Live) {
            self.broken(format!("the name {name} is taken from {from}, which is not being deleted"));
        }
    }

    /// Notes that a renaming has bound the new name, which its process learns by the answer to this request.
    pub(super) fn renaming_lands(&mut self, process: Process, number: u64, call: &Call) {
        let Call::Put(key, body, _) = call else { return };
        let ledger = self.names();
        let Some((new, Some(old))) = ledger.binding.get(&process) else { return };
        let binds = NameBinding::decode(body).is_ok_and(|binding| binding.name.as_ref() == Some(new));
        if binds && key.strip_prefix(NAMES) == Some(new) {
            let old = old.clone();
            ledger.telling.insert((process, number), old);
        }
    }

    /// Notes that a process has heard the answer to a request.
    pub(super) fn renaming_hears(&mut self, process: Process, number: u64) {
        if let Some(ledger) = &mut self.ledger
            && let Some(old) = ledger.telling.remove(&(process, number))
        {
            ledger.told.insert(process, old);
        }
    }

    /// Checks that a renaming which knows that the new name is bound does not look at the old one again before it
    /// frees it. It may have lost the volume since, and then what it finds is somebody else's.
    pub(super) fn check_renaming(&mut self, process: Process, call: &Call) {
        let Some(ledger) = &mut self.ledger else { return };
        let (Call::Get(key, _) | Call::Put(key, ..)) = call else { return };
        let renames = ledger.binding.contains_key(&process);
        if let Some(old) = ledger.told.get(&process)
            && (!renames || key.strip_prefix(NAMES) == Some(old))
        {
            let old = ledger.told.remove(&process).expect("just found");
            if renames && matches!(call, Call::Get(..)) {
                self.broken(format!(
                    "P{process} looks at the name {old} again, after it has bound the new one"
                ));
            }
        }
    }

    /// Checks that a name may be bound to a volume.
    fn check_binding(&mut self, name: &str, to: Uuid) {
        if self.names().deleted.contains(&to) {
            self.broken(format!("the name {name} is bound to {to}, which was deleted"));
        }
        let is_aimed = self.names().is_aimed(to);
        if !is_aimed && self.state_of(to).is_none() {
            self.broken(format!("the name {name} is bound to {to}, which is not whole"));
        }
        self.check_recorded(name, to);
    }

    /// Returns the state in the head of a volume. Returns `None` if it has no readable head, or no identity.
    pub(super) fn state_of(&self, volume: Uuid) -> Option<VolumeState> {
        let keys = Keys::new(volume);
        let head = Head::decode(volume, &self.peek(&keys.head())?).ok()?;
        self.peek(&keys.identity()).map(|_| head.state)
    }

    /// Returns the object under a key, without a request.
    pub(super) fn peek(&self, key: &str) -> Option<Bytes> {
        let object = self.memory.get(key, ByteRange::Full).now_or_never()?;
        object.ok().map(|object| object.body)
    }

    /// Notes that a process has read an object: a deletion by name now knows which volume it deletes.
    pub(super) fn aims(&mut self, process: Process, body: &Bytes) {
        let Some((operation, name, aim)) = self.names().aiming.get(&process).cloned() else { return };
        let Ok(binding) = NameBinding::decode(body) else { return };
        // A second request for the same read may have brought another answer at the same instant.
        if binding.name == Some(name) {
            self.names().aiming.remove(&process);
            match aim {
                Aim::Delete => {
                    self.names().aimed.entry(binding.volume).or_default().insert(operation);
                }
                Aim::SetAside => {
                    self.names().ever_aside.insert(binding.volume);
                    self.names().aside.entry(binding.volume).or_default().insert(operation, false);
                }
            }
            self.say(format_args!("P{process} deletes {}", binding.volume));
        }
    }

    /// Whether the weather explains that the store failed.
    pub(super) fn is_weather(&self, error: &StoreError) -> bool {
        !error.is_definite() && !self.is_fair()
    }

    /// Whether a key belongs to a volume that is being or has been deleted.
    pub(super) fn is_deleted(&self, key: &str) -> bool {
        let aimed = self.ledger.as_ref().and_then(|ledger| ledger.aimed.get(&volume_of(key)?));
        aimed.is_some_and(|aimed| !aimed.is_empty())
    }

    /// Returns when a name was last bound to a volume: the current time if it still is.
    pub(super) fn stood_until(&self, name: &str) -> Option<Time> {
        let standing = self.ledger.as_ref()?.names.get(name)?;
        standing.volume.map(|_| self.now).or(standing.until)
    }

    /// Checks that of all volumes and names only free names are left, and objects that nothing can find.
    pub(super) fn look_for_leftovers(&mut self) {
        let objects = self.objects();
        let planted = self.names().planted.clone();
        let is_free = |key: &str| {
            let binding = NameBinding::decode(&objects[key]);
            key.starts_with(NAMES) && binding.is_ok_and(|binding| binding.name.is_none())
        };
        let is_left = |key: &&String| !is_free(key) && !self.strays.contains(*key) && !planted.contains(*key);
        let left: Vec<&str> = objects.keys().filter(is_left).map(String::as_str).collect();
        if !left.is_empty() {
            let left = left.join(", ");
            self.broken(format!("after all was deleted, there is left: {left}"));
        }
    }

    /// Damages a name, an identity and a head before the run begins.
    pub(super) fn plant(&mut self, cracked: &str, volume: Uuid) {
        let damaged = Bytes::from_static(b"damaged");
        let name = keys::name("broken");
        self.memory.insert(&name, damaged.clone());
        let unknown = Uuid::from_u128(0x00ff_0000_0000_4000_8000_0000_0000_0001);
        self.memory.insert(&Keys::new(unknown).identity(), damaged.clone());
        self.memory.insert(&Keys::new(volume).head(), damaged);
        self.names().planted.insert(name);
        let standing = Standing { version: 1, volume: Some(volume), until: None };
        self.names().names.insert(cracked.to_owned(), standing);
    }
}
