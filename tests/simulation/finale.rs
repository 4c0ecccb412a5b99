//! The end of a run: the weather clears, every command must be answered, and the volume is read once more, whole.

use std::sync::Arc;
use std::time::Duration;

use cairn::volume::read::concat;
use cairn::volume::{OpenError, Volume};
use rand::Rng;

use super::bucket;
use super::driver::{Driver, PATIENCE};
use super::gateway::{Gateway, Parts};
use super::world::{Inner, Order, Process};

/// Size in bytes of a read in the final check.
const READ: u64 = 256 << 10;
/// Limit on the time that collection may take in fair weather, after the grace period.
const COLLECTING: Duration = Duration::from_secs(120);
/// Least lease of the last look: all else rests then, and renewing it would be most of what a run does.
const LONG_LEASE: Duration = Duration::from_secs(60);

impl Driver {
    /// Ends the run.
    pub(super) fn finale(&mut self) {
        if self.world.lock().violation.is_some() {
            return;
        }
        self.clear_up();
        if !self.run_while(PATIENCE, |inner| inner.pending().is_none()) {
            let mut inner = self.world.lock();
            let left = inner.pending().unwrap_or_default();
            return inner.broken(format!("in fair weather still without an answer: {left}"));
        }
        if !self.end_gateways() {
            return;
        }
        let number = self.number();
        let drains: bool = self.world.lock().random.random();
        // What is recovered before an object rots is what a reader is held to: nothing may come after it.
        if drains || self.world.lock().plan.rots {
            // Whatever is late arrives before the last look; else it does while it lasts.
            self.run_while(PATIENCE, |_| false);
            self.world.lock().drained = true;
        }
        let rots = {
            let mut inner = self.world.lock();
            inner.plan.rots && inner.rot()
        };
        let gateway = match rots {
            false => Gateway::spawn(&self.world, number, look),
            true => Gateway::spawn(&self.world, number, super::rot::look),
        };
        self.gateways.insert(number, gateway);
        let grace = self.world.lock().plan.options.deletion_grace;
        let grace = u64::try_from(grace.as_millis()).expect("an hour at most");
        // Each small read of what is gone takes the time until its absence is believed.
        let patience = if rots { 16 * PATIENCE } else { 4 * PATIENCE };
        let ended = self.run_while(patience + 4 * grace, |inner| inner.processes[&number].ended);
        if !ended && self.world.lock().violation.is_none() {
            self.world.lock().broken("the last look does not end in fair weather".to_owned());
        }
    }

    pub(super) fn clear_up(&mut self) {
        let paused: Vec<Process> =
            self.gateways.values().filter(|gateway| gateway.paused).map(|gateway| gateway.process).collect();
        paused.into_iter().for_each(|process| self.resume(process));
        let mut inner = self.world.lock();
        inner.say(format_args!("the weather clears"));
        (inner.calm, inner.storm, inner.refused) = (Some(inner.now), false, false);
        inner.commands_left = 0;
        inner.forget_acts();
        let all: Vec<Process> = self.gateways.keys().copied().collect();
        for process in all {
            inner.processes.get_mut(&process).expect("it was born").partitioned = false;
            if *inner.processes[&process].order.borrow() == Order::Serve {
                inner.order(process, Order::Rest);
            }
        }
    }

    /// Closes some gateways and crashes the others; `false` if one does not close.
    fn end_gateways(&mut self) -> bool {
        let all: Vec<Process> = self.gateways.keys().copied().collect();
        for process in all {
            let (closes, epoch) = {
                let mut inner = self.world.lock();
                (inner.random.random_bool(0.6), inner.processes[&process].epoch)
            };
            if let Some(epoch) = epoch.filter(|_| closes) {
                self.world.lock().order(process, Order::Close);
                if !self.run_while(PATIENCE, |inner| {
                    let state = &inner.processes[&process];
                    // One that was struck as the weather cleared closes nothing any more.
                    !state.alive || state.ended || inner.history.epochs[&epoch].closed.is_some()
                }) {
                    self.world.lock().broken(format!("P{process} does not close in fair weather"));
                    return false;
                }
            }
            if self.gateways.contains_key(&process) {
                self.crash(process);
            }
        }
        self.world.lock().violation.is_none()
    }
}

impl Inner {
    /// Returns the unanswered commands.
    fn pending(&self) -> Option<String> {
        let pending = self.processes.iter().flat_map(|(process, state)| {
            state.commands.iter().map(move |(number, what)| format!("P{process} !{number} {what}"))
        });
        pending.reduce(|all, one| format!("{all}, {one}"))
    }
}

/// Opens the volume, reads all of it and of its snapshots, deletes some of these, waits for the collector, closes, opens
/// again and looks for garbage.
async fn look(parts: Parts) {
    let Parts { world, process, env, mut random, .. } = parts;
    for time in 0..2 {
        let (volume, mut options) = {
            let inner = world.lock();
            (inner.volume, inner.plan.options.clone())
        };
        options.holder_name = "the last look".to_owned();
        options.lease_ttl = options.lease_ttl.max(LONG_LEASE).max(options.deletion_grace / 4);
        let volume = loop {
            match Volume::open(&env, options.clone(), volume, true).await {
                Ok(volume) => break volume,
                // A bid for the epoch that was late.
                Err(OpenError::Lost(_)) => {}
                Err(error) => {
                    return world.lock().broken(format!("the volume cannot be opened: {error}"));
                }
            }
        };
        world.lock().looked(process, volume.epoch());
        if let Err(why) = read_all(&parts_of(&world, &volume)).await {
            return world.lock().broken(why);
        }
        let deletes = (time == 0).then_some(&mut random);
        if let Err(why) = super::snapshots::look(&world, &env, &volume, deletes).await {
            return world.lock().broken(why);
        }
        tokio::time::sleep(options.deletion_grace + COLLECTING).await;
        if let Err(error) = volume.checkpoint().await {
            return world.lock().broken(format!("no checkpoint in fair weather: {error}"));
        }
        // No other process changes anything now.
        let usage = volume.usage();
        if (usage.journal_records, usage.dirty_blocks, usage.commits_in_flight) != (0, 0, 0) {
            return world.lock().broken(format!("a checkpoint leaves a journal: {usage:?}"));
        }
        tokio::time::sleep(options.deletion_grace + COLLECTING).await;
        if time == 1 {
            world.lock().look_for_garbage();
        }
        if let Err(error) = volume.close().await {
            return world.lock().broken(format!("no closing in fair weather: {error}"));
        }
    }
    let mut inner = world.lock();
    inner.processes.get_mut(&process).expect("it was born").ended = true;
}

/// The reader of the final check.
struct Looking {
    world: super::world::World,
    volume: Arc<Volume>,
}

fn parts_of(world: &super::world::World, volume: &Arc<Volume>) -> Looking {
    Looking { world: world.clone(), volume: Arc::clone(volume) }
}

async fn read_all(looking: &Looking) -> Result<(), String> {
    let Looking { world, volume } = looking;
    let windows = world.lock().plan.layout.windows.clone();
    for window in windows {
        let mut at = window.start;
        while at < window.end {
            let range = at..window.end.min(at + READ);
            at = range.end;
            let issued = world.lock().history.tick();
            let segments = volume.read(range.start, range.end - range.start).await;
            let segments = segments.map_err(|error| format!("{range:?} cannot be read: {error}"))?;
            world.lock().check_read(volume.epoch(), &range, issued, &concat(&segments));
        }
    }
    Ok(())
}

impl Inner {
    pub(super) fn looked(&mut self, process: Process, epoch: u32) {
        self.say(format_args!("P{process} looks at epoch {epoch}"));
        let state = self.processes.get_mut(&process).expect("it was born");
        (state.opening, state.epoch) = (false, Some(epoch));
    }

    /// Checks that the bucket contains no unreferenced object, except those that arrived without anyone's
    /// knowledge.
    fn look_for_garbage(&mut self) {
        let objects = self.objects();
        match bucket::recover(&objects, self.volume, &self.plan.layout, &mut self.known) {
            Err(why) => self.broken(format!("at last: {why}")),
            Ok(found) => {
                self.check_snapshots(&objects, &found);
                let kept = self.snapshots.named(&found.table);
                let mut garbage = bucket::garbage(&objects, self.volume, &found, &kept);
                garbage.retain(|key| !self.strays.contains(key));
                if self.drained && !garbage.is_empty() {
                    self.broken(format!("nothing names {}", garbage.join(", ")));
                }
            }
        }
    }
}
