//! Deletion as steps of the machine: a gateway fixes a list of objects, reads the head, and deletes them one
//! by one. A root goes in two parts: what only it references, then its map pages and the root itself as
//! orphans.
//!
//! Any retired root may go next, so a root that stays behind also represents one that a snapshot keeps. This
//! file must not know what has to hold: that is in [`super`].

use super::gateway::{Deletion, Phase, Reason, State, Sweep};
use super::map::{Kind, Number, Object, Objects, PAGES};
use super::scope::{Broken, Scope};
use super::step::Step;

impl State {
    /// Returns the kept roots as a gateway knows them, the current last.
    pub(super) fn kept(&self, g: usize) -> Vec<Number> {
        let gateway = &self.gateways[g];
        let table = &self.history.of(gateway.checkpoint).kept;
        table.iter().copied().filter(|root| !gateway.collected.contains(root)).collect()
    }

    /// Returns the objects that the map pages of a root reference, with the pages themselves, as far as these
    /// still exist.
    fn named_by_map(&self, root: Number) -> Objects {
        let mut named = Objects::default();
        for page in 0..PAGES {
            if let Some(by) = self.history.root(root).pages[page] {
                let object = Object { by, kind: Kind::Map(page) };
                named.insert(object);
                if self.exists.contains(object) {
                    named = named.union(self.named_by_page(root, page));
                }
            }
        }
        named
    }

    /// Returns the chunk objects and overlays that a map page of a root references.
    pub(super) fn named_by_page(&self, root: Number, page: usize) -> Objects {
        let page = self.history.page(root, page);
        page.map_or(Objects::default(), |page| page.chunks().union(page.overlays()))
    }

    /// Continues a deletion, or begins one.
    pub(super) fn collect(&self, scope: &Scope, g: usize, steps: &mut Vec<(Step, Self)>) {
        let gateway = &self.gateways[g];
        if let Some(deletion) = gateway.deletion {
            steps.push(if deletion.is_asked { self.delete(g, deletion) } else { self.read_head(g) });
            return;
        }
        if scope.breaks(Broken::ReadsHeadFirst) && !gateway.has_read_head {
            if self.is_held_by(g) {
                let next = self.with(g, |gateway| gateway.has_read_head = true);
                steps.push((Step::ReadsHead { gateway: g, is_ours: true }, next));
            }
            return;
        }
        if !gateway.orphans.is_empty() {
            steps.push(self.list(scope, g, Reason::Orphans, gateway.orphans));
        }
        let kept = self.kept(g);
        for (place, &root) in kept.iter().enumerate().take(kept.len() - 1) {
            steps.extend(self.retire(scope, g, &kept, place, root));
        }
        if gateway.sweep == Sweep::Due {
            let mut next = self.list(scope, g, Reason::Swept, self.unneeded(scope, g));
            let swept = &mut next.1.gateways[g];
            swept.sweep = if swept.deletion.is_none() { Sweep::Done } else { Sweep::Listed };
            steps.push(next);
        }
    }

    /// Fixes a list of objects to delete. An empty one is deleted at once.
    fn list(&self, scope: &Scope, g: usize, reason: Reason, list: Objects) -> (Step, Self) {
        let is_asked = scope.breaks(Broken::DeletesUnasked) || scope.breaks(Broken::ReadsHeadFirst);
        let deletion = Deletion { reason, list, is_asked };
        let mut next = self.with(g, |gateway| {
            gateway.deletion = Some(deletion);
            gateway.has_read_head = false;
        });
        if list.is_empty() {
            next.finish(g, reason);
        } else if is_asked {
            next.mark_dying(reason);
        }
        (Step::Lists { gateway: g, deletion }, next)
    }

    /// Reads the head. If it has another epoch, the gateway stops.
    fn read_head(&self, g: usize) -> (Step, Self) {
        let is_ours = self.is_held_by(g);
        let mut next = self.clone();
        match &mut next.gateways[g].deletion {
            Some(deletion) if is_ours => {
                deletion.is_asked = true;
                let reason = deletion.reason;
                next.mark_dying(reason);
            }
            _ => next.gateways[g].phase = Phase::Done,
        }
        (Step::ReadsHead { gateway: g, is_ours }, next)
    }

    fn mark_dying(&mut self, reason: Reason) {
        if let Reason::Retired(root) = reason
            && !self.dying.contains(&root)
        {
            self.dying.push(root);
            self.dying.sort_unstable();
        }
    }

    /// Deletes the next object of the list.
    fn delete(&self, g: usize, deletion: Deletion) -> (Step, Self) {
        let object = deletion.list.iter().next().expect("an empty list ends the deletion");
        let mut next = self.clone();
        next.exists.remove(object);
        next.strays.remove(object);
        let gateway = &mut next.gateways[g];
        gateway.orphans.remove(object);
        let left = deletion.list.without(Objects::from_iter([object]));
        gateway.deletion = Some(Deletion { list: left, ..deletion });
        if left.is_empty() {
            next.finish(g, deletion.reason);
        }
        (Step::Deletes { gateway: g, object }, next)
    }

    /// Everything on the list is deleted.
    fn finish(&mut self, g: usize, reason: Reason) {
        self.mark_dying(reason);
        if let Reason::Retired(root) = reason {
            let kept = self.kept(g);
            let place = kept.iter().position(|kept| *kept == root).expect("it is kept until now");
            let mut own: Objects = [Object { by: root, kind: Kind::Root }].into_iter().collect();
            for page in 0..PAGES {
                let by = self.history.root(root).pages[page];
                let is_shared =
                    neighbours(&kept, place).any(|other| self.history.root(other).pages[page] == by);
                if let Some(by) = by.filter(|_| !is_shared) {
                    own.insert(Object { by, kind: Kind::Map(page) });
                }
            }
            self.gateways[g].orphans = self.gateways[g].orphans.union(own);
            self.collected(g, root);
        }
        let gateway = &mut self.gateways[g];
        if reason == Reason::Swept {
            gateway.sweep = Sweep::Done;
        }
        gateway.deletion = None;
    }

    fn collected(&mut self, g: usize, root: Number) {
        let collected = &mut self.gateways[g].collected;
        collected.push(root);
        collected.sort_unstable();
    }

    /// Lists what only a retired root references: objects that neither its parent nor its child does.
    fn retire(
        &self,
        scope: &Scope,
        g: usize,
        kept: &[Number],
        place: usize,
        root: Number,
    ) -> Option<(Step, Self)> {
        let is_there = |root: Number| self.exists.contains(Object { by: root, kind: Kind::Root });
        if !is_there(root) {
            // An earlier epoch deleted it.
            let mut next = self.clone();
            next.collected(g, root);
            if !scope.breaks(Broken::MissingRootTrusted) {
                next.gateways[g].has_left = true;
            }
            return Some((Step::FindsMissing { gateway: g, root }, next));
        }
        let parent = place.checked_sub(1).map(|place| kept[place]);
        let parent = parent.filter(|_| !scope.breaks(Broken::ParentIgnored));
        let child = Some(kept[place + 1]).filter(|_| !scope.breaks(Broken::ChildIgnored));
        let neighbours: Vec<Number> = parent.into_iter().chain(child).collect();
        if !neighbours.iter().all(|root| is_there(*root)) {
            return None;
        }
        let (mut list, mut is_left) = (self.history.root(root).packs(), false);
        for other in &neighbours {
            list = list.without(self.history.root(*other).packs());
        }
        for page in 0..PAGES {
            let map_page = |root: Number| {
                self.history.root(root).pages[page].map(|by| Object { by, kind: Kind::Map(page) })
            };
            let Some(own) = map_page(root) else { continue };
            if neighbours.iter().any(|other| map_page(*other) == Some(own)) {
                continue;
            }
            if !self.exists.contains(own) {
                // An earlier epoch began this deletion. What it left to a neighbour may be nobody's by now.
                is_left |= !scope.breaks(Broken::MissingPageTrusted);
                continue;
            }
            let mut only_here = self.named_by_page(root, page);
            for other in &neighbours {
                match map_page(*other) {
                    None => {}
                    // What this neighbour shares with the root is unknown.
                    Some(object) if !self.exists.contains(object) => {
                        (only_here, is_left) = (Objects::default(), true)
                    }
                    Some(_) if scope.breaks(Broken::OverlaysUnshared) => {
                        let chunks = self.history.page(*other, page).map(|page| page.chunks());
                        only_here = only_here.without(chunks.unwrap_or_default());
                    }
                    Some(_) => only_here = only_here.without(self.named_by_page(*other, page)),
                }
            }
            list = list.union(only_here);
        }
        let (step, mut next) = self.list(scope, g, Reason::Retired(root), list);
        next.gateways[g].has_left |= is_left;
        Some((step, next))
    }

    /// Returns the objects of older epochs that no kept root references, by a listing of the bucket.
    fn unneeded(&self, scope: &Scope, g: usize) -> Objects {
        let gateway = &self.gateways[g];
        let mut needed = Objects::default();
        needed.insert(Object { by: gateway.checkpoint, kind: Kind::Table });
        for root in self.kept(g) {
            let object = Object { by: root, kind: Kind::Root };
            let is_asked = root == gateway.checkpoint || !scope.breaks(Broken::OnlyCurrentAsked);
            if self.exists.contains(object) && is_asked {
                needed.insert(object);
                needed = needed.union(self.history.root(root).packs()).union(self.named_by_map(root));
            }
        }
        let end = Self::epoch(g) + u8::from(scope.breaks(Broken::OwnEpochSwept));
        self.exists
            .iter()
            .filter(|object| self.history.of(object.by).epoch < end && !needed.contains(*object))
            .collect()
    }
}

/// Returns the kept roots next to one: its parent and its child.
fn neighbours(kept: &[Number], place: usize) -> impl Iterator<Item = Number> {
    let parent = place.checked_sub(1).map(|place| kept[place]);
    parent.into_iter().chain(kept.get(place + 1).copied())
}
