//! The owners of the objects that a map page references.
//!
//! A fold writes a map page for its own volume, but the map page before it may belong to another volume: the
//! one that this volume is a clone of. "The owner itself" then means another volume. Pure, without I/O.
//! Invariant: an object belongs to the same volume before and after a translation.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::volume::format::map::Entry;
use crate::volume::format::root::MAX_ORIGINS;

/// The owners of objects, as a map page lists them.
#[derive(Clone, Debug)]
pub(super) struct Origins {
    /// The volume that owns the map page.
    ours: Uuid,
    others: Vec<Uuid>,
}

impl Origins {
    /// The list of a map page of the volume `ours`, without other owners.
    pub(super) fn new(ours: Uuid) -> Self {
        Self { ours, others: Vec::new() }
    }

    /// Returns the number of an owner: 0 for the volume itself, otherwise an index into the list, counted
    /// from 1. Adds the owner if it is not in the list.
    ///
    /// # Panics
    /// Panics if there are more owners than a map page may have.
    pub(super) fn number(&mut self, owner: Uuid) -> u16 {
        if owner == self.ours {
            return 0;
        }
        let place = self.others.iter().position(|other| *other == owner).unwrap_or_else(|| {
            assert!(self.others.len() < MAX_ORIGINS, "a map page has at most {MAX_ORIGINS} origins");
            self.others.push(owner);
            self.others.len() - 1
        });
        u16::try_from(place + 1).expect("at most 1,024")
    }

    /// Returns the owner with a number.
    pub(super) fn owner(&self, number: u16) -> Uuid {
        match number {
            0 => self.ours,
            other => self.others[usize::from(other) - 1],
        }
    }

    /// Renumbers the owners of the chunk objects of entries. `owner` returns the owner with a number of the
    /// list that the entries come from.
    pub(super) fn adopt(&mut self, entries: &mut BTreeMap<u16, Entry>, owner: impl Fn(u16) -> Uuid) {
        for base in entries.values_mut().filter_map(|entry| entry.base.as_mut()) {
            base.origin = self.number(owner(base.origin));
        }
    }

    /// The other owners, in order of their numbers.
    pub(super) fn into_others(self) -> Vec<Uuid> {
        self.others
    }
}
