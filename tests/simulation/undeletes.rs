//! Names once more, with processes that also delete volumes so that they can be brought back, bring them
//! back, and count how long they are kept.
//!
//! The processes, the weather and the checks are those of [`super::names`] and [`super::ledger`]. Besides
//! these must hold: a volume that is brought back has exactly one name before it is in use, and its head
//! records that. A kept volume is deleted for good only once it was kept for its time, unless somebody asks
//! for it; and whoever wants to delete a kept volume deletes none in use. Once an attempt to bring a volume back
//! has succeeded, the deletions that had ended before do nothing to it any more. In the end every volume that
//! nobody deleted for good is in use or can be brought back, with the data that was flushed.

use std::time::Duration;

use bytes::Bytes;
use cairn::volume::catalog;
use cairn::volume::format::head::{Head, VolumeState};
use cairn::volume::format::keys::Keys;
use cairn::volume::{OpenError, Options};
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use super::driver::Outcome;
use super::ledger::{Ledger, Operation, volume_of};
use super::names::{Before, Citizen, Deed, Failure, run_with};
use super::plan::Plan;
use super::world::{Inner, Time};

/// What deletes a volume because it is kept: its time is over, or somebody asks for it.
const BY_STATE: Operation = Operation::MAX;

/// Runs a seed.
pub(super) fn run(seed: u64, print: bool) -> Outcome {
    let mut random = SmallRng::seed_from_u64(seed ^ 0x5eed_0000_0000_000b);
    let plan = Plan::draw(seed);
    let undelete = Duration::from_secs([3, 30, 300][random.random_range(0..3)]);
    // A monotonic clock is trusted to be right to one part in 64. The times of day differ by years.
    let plan = Plan { skewed: false, options: Options { undelete, ..plan.options }, ..plan };
    run_with(plan, random, Ledger { keeps: true, ..Ledger::default() }, print)
}

impl Citizen {
    pub(super) fn draw_of_all(&mut self) -> Deed {
        let random = &mut self.parts.random;
        let [name, other] = [(); 2].map(|()| ["a", "a", "b", "c"][random.random_range(0..4)].to_owned());
        let takeover = random.random_bool(0.6);
        let mut inner = self.parts.world.lock();
        let known = inner.names();
        let seen = known.seen.iter().copied().choose(random);
        let aside = known.ever_aside.iter().copied().choose(random);
        match (random.random_range(0..100), seen, aside) {
            (0..24, ..) => Deed::Create(name),
            (24..46, ..) => match inner.deletes_opened(random) {
                Some(opened) => Deed::SetAside(opened, true),
                None => Deed::SetAside(name, takeover),
            },
            (46..66, _, Some(volume)) => Deed::Undelete(volume, random.random_bool(0.6).then_some(name)),
            (66..69, ..) => Deed::Delete(name, takeover),
            (69..72, Some(volume), _) => match inner.names().states.get(&volume) {
                Some((VolumeState::Kept(_), _)) if takeover => Deed::DeleteKept(volume),
                _ => Deed::DeleteById(volume, takeover),
            },
            (72..82, ..) => Deed::Open(name, takeover),
            (82..87, ..) => Deed::Rename(name, other, takeover),
            (87..96, ..) => Deed::Watch,
            _ => Deed::List,
        }
    }

    pub(super) async fn act_on_deleted(&self, deed: &Deed, before: &Before) -> Result<(), Failure> {
        let (env, options) = (&self.parts.env, self.options());
        match deed {
            Deed::SetAside(name, takeover) => {
                catalog::set_aside(env, &options, name, *takeover).await?;
            }
            Deed::Undelete(volume, to) => {
                let info = catalog::undelete(env, *volume, to.as_deref()).await?;
                self.parts.world.lock().brought_back(before, *volume);
                self.use_volume(&info.name, false).await?;
            }
            Deed::DeleteKept(volume) => catalog::delete_kept(env, &options, *volume).await?,
            Deed::Watch => {
                let seen: Vec<Uuid> = self.parts.world.lock().names().seen.iter().copied().collect();
                // If the look is given up, it is as if the process had restarted.
                let mut watch = std::mem::take(&mut *self.watch.lock());
                watch.look(env, &options, &seen).await;
                *self.watch.lock() = watch;
                catalog::deleted(env).await?;
            }
            other => unreachable!("{other:?} is carried out elsewhere"),
        }
        Ok(())
    }

    /// Brings back every volume that is kept, and checks that none is missing.
    pub(super) async fn bring_all_back(&self) -> Result<(), String> {
        let (env, world) = (&self.parts.env, &self.parts.world);
        let kept = catalog::deleted(env).await.map_err(|error| format!("no listing: {error}"))?;
        for (number, deleted) in kept.into_iter().enumerate() {
            let name = format!("back-{number}");
            let volume = deleted.volume;
            let back = catalog::undelete(env, volume, Some(&name)).await;
            back.map_err(|error| format!("{volume} cannot be brought back: {error}"))?;
        }
        let listed = catalog::volumes(env).await.map_err(|error| format!("no listing: {error}"))?;
        let named: Vec<(String, Uuid)> =
            listed.into_iter().filter_map(|listed| Some((listed.name, listed.found.ok()?.volume))).collect();
        let made: Vec<Uuid> = world.lock().names().made.keys().copied().collect();
        for volume in made {
            if !world.lock().names().must_exist(volume) {
                continue;
            }
            let Some((name, _)) = named.iter().find(|(_, of)| *of == volume) else {
                return Err(format!("{volume}, which nobody deleted for good, is not found"));
            };
            // While it is being renamed it has two names, of which it gets one now.
            match self.use_volume(name, true).await {
                Ok(_) | Err(Failure::Opening(OpenError::Renamed { .. })) => {}
                Err(error) => return Err(format!("{name} cannot be used: {error}")),
            }
        }
        Ok(())
    }
}

impl Ledger {
    /// Notes that an operation has ended, or that its caller does not wait for it. Requests that it has sent may
    /// still take effect.
    pub(super) fn aside_ends(&mut self, operation: Operation) {
        for has_ended in self.aside.values_mut().filter_map(|by| by.get_mut(&operation)) {
            *has_ended = true;
        }
    }
}

impl Inner {
    /// Notes that a volume was brought back, and checks that it is in use and has a name, unless another
    /// operation may have deleted it since. Those that had ended before this one began cannot: whatever they
    /// sent replaces only the head and the names that they had read, and these were replaced since.
    fn brought_back(&mut self, before: &Before, volume: Uuid) {
        let ended = before.ledger.aside.get(&volume).cloned().unwrap_or_default();
        if let Some(by) = self.names().aside.get_mut(&volume) {
            by.retain(|operation, _| ended.get(operation) != Some(&true));
        }
        if !self.names().is_owed(volume) {
            return;
        }
        let state = self.state_of(volume);
        if state != Some(VolumeState::Live) || !self.names().has_name(volume) {
            self.broken(format!("{volume} was brought back, and is {state:?} or has no name"));
        }
    }

    /// Checks the state in a head that was just replaced.
    pub(super) fn head_changes(&mut self, key: &str, body: &Bytes) {
        let Some(volume) = volume_of(key).filter(|volume| Keys::new(*volume).head() == key) else { return };
        let Ok(head) = Head::decode(volume, body) else { return };
        if !self.names().keeps {
            return;
        }
        let now = self.now;
        let (was, began) = match self.names().states.get(&volume) {
            Some((was, began)) => (Some(*was), *began),
            None => (None, now),
        };
        let was_kept = matches!(was, Some(VolumeState::Kept(_)));
        let is_kept = matches!(head.state, VolumeState::Kept(_));
        self.names().states.insert(volume, (head.state, if was_kept && is_kept { began } else { now }));
        let is_aimed = self.names().is_aimed(volume);
        match head.state {
            VolumeState::Kept(_) if !self.names().ever_aside.contains(&volume) => {
                self.broken(format!("{volume} is deleted, and nobody asked for it"));
            }
            VolumeState::Live if was_kept => self.check_back(volume, &head),
            VolumeState::Deleting if was == Some(VolumeState::Deleting) || is_aimed => {}
            VolumeState::Deleting if was_kept && self.names().doomed.contains(&volume) => {
                self.names().aimed.entry(volume).or_default().insert(BY_STATE);
            }
            VolumeState::Deleting => self.check_over(volume, was_kept, now - began),
            VolumeState::Kept(_) | VolumeState::Live => {}
        }
    }

    /// Checks that a volume that is in use again has one name, which its head records.
    fn check_back(&mut self, volume: Uuid, head: &Head) {
        let names = self.names().names.iter();
        let bound: Vec<String> = names
            .filter(|(_, standing)| standing.volume == Some(volume))
            .map(|(name, _)| name.clone())
            .collect();
        let recorded = head.names.as_ref().map(|names| names.current.clone());
        if bound.len() != 1 || recorded.as_ref() != bound.first() {
            self.broken(format!("{volume} is brought back as {recorded:?}, and has the names {bound:?}"));
        }
    }

    /// Checks that the time of a volume is over that is deleted for good although nobody asked for it.
    fn check_over(&mut self, volume: Uuid, was_kept: bool, kept: Time) {
        let keep = u64::try_from(self.plan.options.undelete.as_millis()).expect("it is short");
        if !was_kept {
            self.broken(format!("{volume} is in use and is deleted for good, and nobody asked for it"));
        } else if kept < keep {
            self.broken(format!("{volume} is deleted for good after {kept} ms, and not after {keep}"));
        }
        self.names().aimed.entry(volume).or_default().insert(BY_STATE);
    }

    /// Checks that a name is recorded in the head of the volume in use that it is bound to.
    pub(super) fn check_recorded(&mut self, name: &str, to: Uuid) {
        let head = self.peek(&Keys::new(to).head()).and_then(|body| Head::decode(to, &body).ok());
        let Some(Head { state, names: Some(names), .. }) = head else { return };
        if state != VolumeState::Deleting && !names.contain(name) {
            self.broken(format!("the name {name} is bound to {to}, whose head does not record it"));
        }
    }
}
