//! The slots of the open volumes: who uses which volume, and under which names it is found.
//!
//! Must not know how a volume is opened or closed. Invariant: each volume has one slot at most, even while
//! two names refer to it, and a slot has one name. Whoever waits for a slot is woken when it changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use uuid::Uuid;

use super::unopened::Unopened;
use crate::metrics::VolumeMetrics;
use crate::volume::{OpenError, Volume};

/// An open volume.
#[derive(Debug)]
pub(crate) struct Served {
    /// The name of the volume. Its metrics keep the name under which it was opened.
    pub(super) name: Mutex<Arc<str>>,
    pub(crate) volume: Arc<Volume>,
    pub(crate) metrics: VolumeMetrics,
    pub(super) stay: watch::Sender<Stay>,
    pub(super) users: watch::Sender<usize>,
}

impl Served {
    /// The name of the volume.
    pub(crate) fn name(&self) -> Arc<str> {
        Arc::clone(&self.name.lock())
    }
}

/// The right to use an open volume. It ends on drop.
#[derive(Debug)]
pub(crate) struct Use(Arc<Served>);

impl Use {
    pub(super) fn of(served: &Arc<Served>) -> Self {
        served.users.send_modify(|users| *users += 1);
        served.metrics.clients.inc();
        Self(Arc::clone(served))
    }
}

impl std::ops::Deref for Use {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.0
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.0.users.send_modify(|users| *users -= 1);
        self.0.metrics.clients.dec();
    }
}

/// Counts as an open volume until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    pub(super) _counted: Arc<()>,
}

/// Whether a volume stays open while nobody uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stay {
    /// The volume is configured.
    Always,
    /// The volume was opened for a client.
    WhileUsed,
}

/// The life cycle of a volume in this gateway.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    Opening,
    Open(Arc<Served>),
    /// Being closed. Nobody may use it any more.
    Closing(Arc<Served>),
    /// It is closed, or could not be opened. Its slot is no longer in the map.
    Gone(Option<Arc<OpenError>>),
}

pub(super) type Slot = watch::Sender<Phase>;

#[derive(Debug, Default)]
pub(super) struct Slots {
    pub(super) by_name: BTreeMap<String, Arc<Slot>>,
    /// The slot in which each volume is open, being opened or being closed.
    by_id: BTreeMap<Uuid, Arc<Slot>>,
    /// Second names of volumes that are being renamed, and the names of their slots.
    aliases: BTreeMap<String, String>,
    /// One reference more than there are [`Place`]s.
    pub(super) places: Arc<()>,
    pub(super) draining: bool,
}

impl Slots {
    /// Fails if nothing more may be opened.
    pub(super) fn check_room(&self, maximum: usize) -> Result<(), Unopened> {
        let taken = self.by_name.len() + Arc::strong_count(&self.places) - 1;
        match (self.draining, taken >= maximum) {
            (true, _) => Err(Unopened::Draining),
            (false, true) => Err(Unopened::Full(maximum)),
            (false, false) => Ok(()),
        }
    }

    /// Returns the slot to which a name refers.
    pub(super) fn find(&self, name: &str) -> Option<&Arc<Slot>> {
        self.by_name.get(name).or_else(|| self.by_name.get(self.aliases.get(name)?))
    }

    fn name_of(&self, slot: &Arc<Slot>) -> Option<String> {
        let mut named = self.by_name.iter();
        named.find(|(_, other)| Arc::ptr_eq(other, slot)).map(|(name, _)| name.clone())
    }

    /// Returns the slot of a volume.
    pub(super) fn of(&self, volume: Uuid) -> Option<&Arc<Slot>> {
        self.by_id.get(&volume)
    }

    /// Reserves a volume for a slot. Returns `false` if another slot has it: the name of the slot then refers
    /// to that one.
    pub(super) fn take(&mut self, volume: Uuid, name: &str, slot: &Arc<Slot>) -> bool {
        let other = match self.by_id.get(&volume) {
            Some(other) if !Arc::ptr_eq(other, slot) => Arc::clone(other),
            _ => {
                self.by_id.insert(volume, Arc::clone(slot));
                return true;
            }
        };
        self.remove(slot);
        if let Some(of_other) = self.name_of(&other).filter(|of_other| of_other != name) {
            self.aliases.insert(name.to_owned(), of_other);
        }
        false
    }

    /// Gives a slot another name.
    pub(super) fn rename(&mut self, slot: &Arc<Slot>, to: &str) {
        self.by_name.retain(|_, other| !Arc::ptr_eq(other, slot));
        self.by_name.insert(to.to_owned(), Arc::clone(slot));
        self.forget_others();
    }

    /// Removes a slot and whatever refers to it.
    pub(super) fn remove(&mut self, slot: &Arc<Slot>) {
        self.by_name.retain(|_, other| !Arc::ptr_eq(other, slot));
        self.by_id.retain(|_, other| !Arc::ptr_eq(other, slot));
        self.forget_others();
    }

    fn forget_others(&mut self) {
        let by_name = &self.by_name;
        self.aliases.retain(|name, to| !by_name.contains_key(name) && by_name.contains_key(to));
    }
}
