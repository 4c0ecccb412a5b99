//! Simulates several processes that create, rename, delete, open and list volumes of a few names, in the weather
//! in which gateways fight for a volume, and that may crash anywhere.
//!
//! Besides the invariants that [`super::ledger`] checks in the store, this must hold: a volume that was
//! created and that no process deletes is found under its name, is listed, can be opened, and has the data
//! that was flushed to it. A volume that was opened by a name has that name alone. No listing fails because of one
//! volume. At the end, whatever was interrupted is found and removed, until only free names are left.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn::effect::Durability::Volatile;
use cairn::volume::catalog::{self, Listed, Progress, Unnamed, Watch};
use cairn::volume::read::concat;
use cairn::volume::{Error, OpenError, Options, Volume};
use futures::FutureExt;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use super::driver::{Driver, Outcome, PATIENCE, empty_store};
use super::gateway::{Gateway, Parts};
use super::ledger::{Aim, Ledger, Made, Operation};
use super::plan::Plan;
use super::world::{Inner, Order, Process, World};

/// Size of each volume in bytes.
const SIZE: u64 = 256 << 10;
const CHUNK: u64 = 64 << 10;
/// Name of the volume that is damaged before the run begins.
const CRACKED: &str = "cracked";
/// Limit on the searches for volumes without a name at the end.
const ROUNDS: u32 = 5;

/// Runs a seed.
pub(super) fn run(seed: u64, print: bool) -> Outcome {
    let random = SmallRng::seed_from_u64(seed ^ 0x5eed_0000_0000_0007);
    run_with(Plan::draw(seed), random, Ledger::default(), print)
}

/// Runs a plan. The ledger says which operations are drawn.
pub(super) fn run_with(plan: Plan, mut random: SmallRng, ledger: Ledger, print: bool) -> Outcome {
    let seed = plan.seed;
    let plan = Plan {
        commands: random.random_range(20..70),
        gateways: random.random_range(2..=5),
        crash_at_request: [0, 50, 200][random.random_range(0..3)],
        crash_at_await: [0, 0, 20][random.random_range(0..3)],
        disaster_every: [1000, 5000, 20_000][random.random_range(0..3)],
        think: [10, 100, 1000][random.random_range(0..3)],
        concurrency: plan.concurrency.max(8),
        // A record that lands late may be left of a volume that was deleted.
        options: Options { lease_strict: false, record_reads: Duration::ZERO, ..plan.options },
        ..plan
    };
    let (memory, env) = empty_store(seed);
    let processes = plan.gateways;
    let world = World::new(plan, Uuid::nil(), memory, print);
    {
        let mut inner = world.lock();
        inner.ledger = Some(ledger);
        // There is no single volume whose recovery could be checked.
        inner.rotten = true;
        if random.random_bool(0.3) {
            let options = inner.plan.options.clone();
            let created =
                catalog::create(&env, &options, CRACKED, SIZE, catalog::ChunkBytes(CHUNK)).now_or_never();
            let cracked = created.expect("memory answers at once").expect("an empty store takes a volume");
            inner.plant(CRACKED, cracked.volume);
        }
    }
    let mut driver = Driver::with(world, start);
    for _ in 0..processes {
        driver.start(false);
    }
    driver.chaos();
    driver.end_names();
    driver.outcome()
}

fn start(world: &World, process: Process, _: bool) -> Gateway {
    let gateway = Gateway::spawn(world, process, |parts| Citizen::new(parts).live());
    world.lock().processes.get_mut(&process).expect("just born").opening = false;
    gateway
}

impl Driver {
    fn end_names(&mut self) {
        if self.world.lock().violation.is_some() {
            return;
        }
        self.clear_up();
        let all_done = |inner: &Inner| inner.processes.values().all(|state| !state.alive || state.ended);
        if !self.run_while(PATIENCE, all_done) {
            return self
                .world
                .lock()
                .broken("in fair weather, an operation on names does not end".to_owned());
        }
        // Late requests arrive before the final check.
        self.run_while(PATIENCE, |_| false);
        // Some answers are slow in fair weather, too.
        self.world.lock().plan.options.store_deadline = None;
        let number = self.number();
        let janitor = Gateway::spawn(&self.world, number, |parts| async move {
            let (world, process) = (parts.world.clone(), parts.process);
            let outcome = Citizen::new(parts).clean_up().await;
            let mut inner = world.lock();
            if let Err(why) = outcome {
                inner.broken(format!("at last: {why}"));
            }
            inner.look_for_leftovers();
            inner.processes.get_mut(&process).expect("it was born").ended = true;
        });
        self.gateways.insert(number, janitor);
        if !self.run_while(4 * PATIENCE, |inner| inner.processes[&number].ended) {
            self.world.lock().broken("the last look at the names does not end".to_owned());
        }
    }
}

/// An operation of a process.
#[derive(Clone, Debug)]
pub(super) enum Deed {
    Create(String),
    Delete(String, bool),
    DeleteById(Uuid, bool),
    DeleteKept(Uuid),
    Open(String, bool),
    Rename(String, String, bool),
    List,
    SetAside(String, bool),
    Undelete(Uuid, Option<String>),
    Watch,
}

/// Why an operation failed.
pub(super) enum Failure {
    Opening(OpenError),
    Serving(Error),
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self::Opening(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Serving(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Opening(error) => write!(f, "{error}"),
            Self::Serving(error) => write!(f, "{error}"),
        }
    }
}

/// The state when an operation began.
pub(super) struct Before {
    pub(super) operation: Operation,
    /// World time in milliseconds.
    pub(super) now: u64,
    pub(super) ledger: Ledger,
    denials: u64,
}

/// A process that performs one operation after another.
pub(super) struct Citizen {
    pub(super) parts: Parts,
    /// What it has seen of deleted volumes.
    pub(super) watch: Mutex<Watch>,
}

impl Citizen {
    fn new(parts: Parts) -> Self {
        Self { parts, watch: Mutex::default() }
    }

    async fn live(mut self) {
        if self.parts.random.random_bool(0.5) {
            self.parts.control.wait_out_refusals();
        }
        loop {
            let think = self.parts.world.lock().plan.think;
            let pause = self.parts.random.random_range(0..=think);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if *self.parts.orders.borrow() != Order::Serve || !self.parts.world.lock().take_command() {
                break;
            }
            let keeps = self.parts.world.lock().names().keeps;
            let deed = if keeps { self.draw_of_all() } else { self.draw() };
            // Sometimes the caller goes away, and the operation ends at its current await point.
            let patience = match self.parts.random.random_range(0..10) {
                0 => Duration::from_millis(self.parts.random.random_range(0..300)),
                _ => Duration::MAX,
            };
            let before = self.begin(&deed);
            let outcome = tokio::time::timeout(patience, self.act(&deed, &before)).await.ok();
            self.end(&deed, &before, outcome);
        }
        let mut inner = self.parts.world.lock();
        inner.say(format_args!("P{} is done", self.parts.process));
        inner.processes.get_mut(&self.parts.process).expect("it was born").ended = true;
    }

    fn draw(&mut self) -> Deed {
        let random = &mut self.parts.random;
        let [name, other] = [(); 2].map(|()| ["a", "a", "b", "c"][random.random_range(0..4)].to_owned());
        let takeover = random.random_bool(0.6);
        match random.random_range(0..100) {
            0..32 => Deed::Create(name),
            32..54 => match self.parts.world.lock().deletes_opened(random) {
                Some(opened) => Deed::Delete(opened, true),
                None => Deed::Delete(name, takeover),
            },
            54..63 => {
                let inner = self.parts.world.lock();
                let seen = &inner.ledger.as_ref().expect("the run is about names").seen;
                match seen.iter().choose(random) {
                    Some(volume) => Deed::DeleteById(*volume, takeover),
                    None => Deed::List,
                }
            }
            63..77 => Deed::Open(name, takeover),
            77..91 => match self.parts.world.lock().renames_bound(random) {
                Some((bound, old)) => Deed::Rename(bound, old.unwrap_or(other), true),
                None => Deed::Rename(name, other, takeover),
            },
            _ => Deed::List,
        }
    }

    fn begin(&self, deed: &Deed) -> Before {
        let process = self.parts.process;
        let mut inner = self.parts.world.lock();
        let operation = inner.begin(process, deed);
        let (now, denials) = (inner.now, inner.processes[&process].denials);
        let ledger = inner.ledger.as_mut().expect("the run is about names");
        let before = ledger.clone();
        match deed {
            Deed::Delete(name, _) => {
                ledger.aiming.insert(process, (operation, name.clone(), Aim::Delete));
            }
            Deed::SetAside(name, _) => {
                ledger.aiming.insert(process, (operation, name.clone(), Aim::SetAside));
            }
            Deed::DeleteById(volume, _) => {
                ledger.aimed.entry(*volume).or_default().insert(operation);
            }
            Deed::DeleteKept(volume) => {
                ledger.doomed.insert(*volume);
            }
            Deed::Open(name, _) => {
                ledger.opened.insert(process, name.clone());
            }
            Deed::Rename(from, to, _) => {
                ledger.opened.insert(process, from.clone());
                ledger.binding.insert(process, (to.clone(), Some(from.clone())));
            }
            Deed::Create(name) => {
                ledger.binding.insert(process, (name.clone(), None));
            }
            Deed::List | Deed::Undelete(..) | Deed::Watch => {}
        }
        Before { operation, now, ledger: before, denials }
    }

    async fn act(&self, deed: &Deed, before: &Before) -> Result<(), Failure> {
        let Parts { world, env, .. } = &self.parts;
        let options = self.options();
        match deed {
            Deed::Create(name) => {
                let info = catalog::create(env, &options, name, SIZE, catalog::ChunkBytes(CHUNK)).await?;
                world.lock().created(name, info.volume);
            }
            Deed::Delete(name, takeover) => catalog::delete(env, &options, name, *takeover).await?,
            Deed::DeleteById(volume, takeover) => {
                catalog::delete_by_id(env, &options, *volume, *takeover).await?;
            }
            Deed::Open(name, takeover) => {
                let volume = self.use_volume(name, *takeover).await?;
                world.lock().resolved(before, name, volume);
            }
            Deed::Rename(from, to, takeover) => {
                catalog::rename(env, &options, from, to, *takeover).await?;
                self.use_volume(to, *takeover).await?;
            }
            Deed::List => {
                let all = catalog::volumes(env).await?;
                let is_denied = self.is_denied(before);
                world.lock().listed(before, &all, is_denied);
                let unnamed = catalog::unnamed(env).await?;
                let denials = self.denials(before);
                world.lock().without_name(before, &unnamed, denials);
            }
            Deed::SetAside(..) | Deed::Undelete(..) | Deed::DeleteKept(_) | Deed::Watch => {
                self.act_on_deleted(deed, before).await?;
            }
        }
        Ok(())
    }

    pub(super) fn options(&self) -> Options {
        let mut options = self.parts.world.lock().plan.options.clone();
        options.holder_name = format!("P{}", self.parts.process);
        options
    }

    /// Whether the store has since then falsely reported to the process that an object does not exist.
    fn is_denied(&self, before: &Before) -> bool {
        self.denials(before) > 0
    }

    fn denials(&self, before: &Before) -> u64 {
        self.parts.world.lock().processes[&self.parts.process].denials - before.denials
    }

    /// Opens a volume, checks the mark that was flushed last, and writes another. Returns the volume.
    pub(super) async fn use_volume(&self, name: &str, takeover: bool) -> Result<Uuid, Failure> {
        let Parts { world, env, .. } = &self.parts;
        // Looked up before, because another process may take the volume over and flush a newer mark.
        let made = world.lock().names().made.clone();
        let volume = catalog::open(env, || self.options(), name, takeover).await?;
        let id = volume.id();
        let flushed = made.get(&id).map_or(0, |made| made.flushed);
        if let Err(error) = self.mark(&volume, id, flushed).await {
            volume.abandon().await;
            return Err(error);
        }
        Ok(id)
    }

    async fn mark(&self, volume: &Arc<Volume>, id: Uuid, flushed: u64) -> Result<(), Failure> {
        let world = &self.parts.world;
        let found = concat(&volume.read(0, 512).await?);
        let found = u64::from_le_bytes(found[..8].try_into().expect("eight bytes"));
        if found < flushed {
            world.lock().broken(format!("{id} has the mark {found}, and {flushed} was flushed"));
        }
        let mark = world.lock().history.tick();
        let mut bytes = vec![0; 512];
        bytes[..8].copy_from_slice(&mark.to_le_bytes());
        volume.write(0, Bytes::from(bytes), Volatile).await?;
        volume.flush().await?;
        world.lock().flushed_onto(id, mark);
        match mark % 3 {
            0 => volume.abandon().await,
            1 => volume.close().await?,
            _ => volume.hand_on().await?,
        }
        Ok(())
    }

    /// Judges the outcome of an operation; `None` if its caller did not wait for it.
    fn end(&self, deed: &Deed, before: &Before, outcome: Option<Result<(), Failure>>) {
        let process = self.parts.process;
        let is_denied = self.is_denied(before);
        let mut inner = self.parts.world.lock();
        let how = match &outcome {
            None => "given up".to_owned(),
            Some(Ok(())) => "done".to_owned(),
            Some(Err(error)) => error.to_string(),
        };
        inner.end(process, before.operation, &how);
        let ledger = inner.ledger.as_mut().expect("the run is about names");
        ledger.aiming.remove(&process);
        ledger.opened.remove(&process);
        ledger.binding.remove(&process);
        ledger.told.remove(&process);
        ledger.aside_ends(before.operation);
        match outcome {
            Some(Ok(())) => {
                inner.quiet = 0;
                inner.deleted(deed, before);
            }
            Some(Err(error)) => {
                if matches!(error, Failure::Opening(OpenError::Held { .. } | OpenError::NoSuchVolume(_))) {
                    // It has not marked the head, and never will.
                    for aimed in ledger.aimed.values_mut() {
                        aimed.remove(&before.operation);
                    }
                    for aside in ledger.aside.values_mut() {
                        aside.remove(&before.operation);
                    }
                }
                if !inner.explains(deed, before, &error, is_denied) {
                    inner.broken(format!("P{process}: {deed:?} fails: {error}"));
                }
            }
            None => {}
        }
    }

    /// The final check, in fair weather.
    async fn clean_up(&self) -> Result<(), String> {
        let Parts { world, env, .. } = &self.parts;
        let owed = || world.lock().names().owed();
        if world.lock().names().keeps {
            self.bring_all_back().await?;
        }
        for (name, volume) in &owed() {
            if owed().get(name) != Some(volume) {
                // It is the old name of a volume that was used under the new one just now.
                continue;
            }
            self.check_owed(name, *volume).await?;
            let used = match self.use_volume(name, true).await {
                // Its renaming was finished.
                Err(Failure::Opening(OpenError::Renamed { to, .. })) => self.use_volume(&to, true).await,
                used => used,
            };
            used.map_err(|error| format!("{name} cannot be used: {error}"))?;
        }
        self.remove_unnamed().await?;
        let listed = catalog::volumes(env).await.map_err(|error| format!("no listing: {error}"))?;
        let mut seen = BTreeSet::new();
        for (name, volume) in &owed() {
            self.check_owed(name, *volume).await?;
            if !listed.iter().any(|listed| listed.name == *name && listed.found.is_ok()) {
                return Err(format!("{name} is not listed"));
            }
            if !seen.insert(*volume) {
                return Err(format!("{volume} was opened, and has two names"));
            }
        }
        for Listed { name, .. } in listed {
            let key = cairn::volume::format::keys::name(&name);
            if world.lock().ledger.as_ref().expect("the run is about names").planted.contains(&key) {
                continue;
            }
            let before = self.begin(&Deed::Delete(name.clone(), true));
            let deleted = catalog::delete(env, &self.options(), &name, true).await;
            let is_gone =
                world.lock().ledger.as_ref().is_some_and(|ledger| ledger.stands_for(&name).is_none());
            if matches!(deleted, Err(OpenError::NoSuchVolume(_))) && is_gone {
                // It was the second name of a volume that was deleted under the first.
                continue;
            }
            deleted.map_err(|error| format!("{name} cannot be deleted: {error}"))?;
            self.end(&Deed::Delete(name, true), &before, Some(Ok(())));
        }
        self.remove_unnamed().await
    }

    async fn check_owed(&self, name: &str, volume: Uuid) -> Result<(), String> {
        let found = catalog::info(&self.parts.env, name).await.map_err(|error| format!("{name}: {error}"))?;
        let found = found.volume;
        if found == volume { Ok(()) } else { Err(format!("{name} stands for {found}, not for {volume}")) }
    }

    /// Deletes all volumes without a name.
    async fn remove_unnamed(&self) -> Result<(), String> {
        let Parts { env, .. } = &self.parts;
        for _ in 0..ROUNDS {
            let unnamed = catalog::unnamed(env).await.map_err(|error| format!("no listing: {error}"))?;
            if unnamed.is_empty() {
                return Ok(());
            }
            for found in unnamed {
                let deed = Deed::DeleteById(found.volume, true);
                let before = self.begin(&deed);
                match catalog::delete_by_id(env, &self.options(), found.volume, true).await {
                    Ok(()) | Err(OpenError::NoSuchId(_)) => self.end(&deed, &before, Some(Ok(()))),
                    // Those that cannot be read are removed in this round, too.
                    Err(OpenError::MayHaveClones { .. }) => {}
                    Err(error) => return Err(format!("{} cannot be removed: {error}", found.volume)),
                }
            }
        }
        Err("what has no name is removed, and is there again and again".to_owned())
    }
}

impl Inner {
    fn created(&mut self, name: &str, volume: Uuid) {
        let ledger = self.names();
        let is_aimed = ledger.aimed.get(&volume).is_some_and(|aimed| !aimed.is_empty());
        // It may have got another name by now.
        let is_aimed = is_aimed || ledger.ever_aside.contains(&volume);
        if !ledger.has_name(volume) && !is_aimed {
            self.broken(format!("{volume} was created, and {name} does not stand for it"));
        }
        self.names().made.insert(volume, Made { flushed: 0 });
    }

    /// Returns the volume that had to exist under a name when an operation began, if it still must, and if the
    /// name was not changed since.
    pub(super) fn owed_since(&self, before: &Before, name: &str) -> Option<Uuid> {
        let volume = *before.ledger.owed().get(name)?;
        let ledger = self.ledger.as_ref().expect("the run is about names");
        let is_unchanged = ledger.version_of(name) == before.ledger.version_of(name);
        (is_unchanged && ledger.is_owed(volume)).then_some(volume)
    }

    fn resolved(&mut self, before: &Before, name: &str, found: Uuid) {
        if let Some(owed) = self.owed_since(before, name).filter(|owed| *owed != found) {
            self.broken(format!("the name {name} stands for {found}, not for {owed}"));
        }
    }

    /// Checks what a listing shows.
    fn listed(&mut self, before: &Before, all: &[Listed], is_denied: bool) {
        let names: Vec<String> = before.ledger.owed().into_keys().collect();
        for name in names {
            let Some(owed) = self.owed_since(before, &name) else { continue };
            let found = all.iter().find(|listed| listed.name == name).map(|listed| &listed.found);
            let is_right = match found {
                None => is_denied,
                Some(Ok(info)) => info.volume == owed,
                Some(Err(error)) => matches!(&**error, OpenError::Store(error) if self.is_weather(error)),
            };
            if !is_right {
                self.broken(format!("{owed} is owed under {name}, and is listed as {found:?}"));
            }
        }
    }

    /// Checks what is said to have no name. Meanwhile the process got so many false answers.
    fn without_name(&mut self, before: &Before, found: &[Unnamed], denials: u64) {
        for Unnamed { volume, progress, .. } in found {
            let volume = *volume;
            self.names().seen.insert(volume);
            // A single false answer must not be believed.
            let is_owed = before.ledger.is_owed(volume) && self.names().is_owed(volume) && denials <= 1;
            // Even if it is deleted and brought back meanwhile, it has a name whenever it is in use.
            let must_exist = before.ledger.must_exist(volume) && self.names().must_exist(volume);
            let is_in_use = must_exist && matches!(progress, Progress::Unbound) && denials == 0;
            if is_owed || is_in_use {
                self.broken(format!("{volume}, which was created, is said to have no name: {progress}"));
            }
        }
    }

    fn flushed_onto(&mut self, volume: Uuid, mark: u64) {
        if let Some(made) = self.names().made.get_mut(&volume) {
            made.flushed = made.flushed.max(mark);
        }
    }

    /// Records an answered deletion.
    fn deleted(&mut self, deed: &Deed, before: &Before) {
        let gone: Vec<Uuid> = match deed {
            Deed::Delete(..) | Deed::DeleteById(..) => {
                let aimed = self.names().aimed.iter();
                aimed.filter(|(_, by)| by.contains(&before.operation)).map(|(volume, _)| *volume).collect()
            }
            Deed::DeleteKept(volume) => vec![*volume],
            _ => return,
        };
        for volume in gone {
            self.names().deleted.insert(volume);
            let stands = self.names().names.iter().find(|(_, standing)| standing.volume == Some(volume));
            if let Some((name, _)) = stands {
                let name = name.clone();
                self.broken(format!("{volume} was deleted, and {name} still stands for it"));
            }
        }
    }
}
