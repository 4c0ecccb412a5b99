//! `cairn check`: verifies a volume in the store, without opening it, and reports what damage costs.
//!
//! Takes no lease and changes nothing, so it may run while a gateway serves the volume. It must not know
//! how results are shown. Invariants: nothing that a gateway replaces or deletes while the check runs is
//! reported as damage. Memory is bounded: by 1,048,576 references to objects (or twice as many while a
//! share is divided), the indexes of packs with 8,388,608 frames, one map page with its overlays, the table
//! of the journal (as for an opening), the root, and the requests in flight.
//!
//! The parts, in order: `basis` (name, identity, head, roots), `journal`, `objects` (map pages, packs, data
//! and listings, share by share), `cost` (what each lost object costs).

mod basis;
mod context;
mod cost;
mod frames;
mod journal;
mod listing;
mod maps;
mod objects;
mod packs;
mod ranges;
mod read_only;
mod references;
mod report;
mod sizes;
mod suspects;

use std::sync::Arc;
use std::time::Duration;

pub use ranges::{MAX_RANGES, Ranges};
pub use report::{
    Count, Depth, Effect, Finding, MAX_FINDINGS, MAX_ORPHANS, ObjectKind, Orphans, Purpose, Report, Trouble,
    Usage,
};

use self::context::{Context, Stop};
use self::journal::Journal;
use self::objects::{Limits, Sources, Verified};
use self::read_only::ReadOnly;
use self::suspects::Suspects;
use super::environment::Environment;
use super::error::OpenError;
use super::format::root::Root;
use crate::store::Classes;

/// Limit on the attempts to check a volume that changes meanwhile.
const ATTEMPTS: u32 = 8;
/// Pause before the second attempt. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Checks the volume that a name refers to. Only reads.
///
/// # Errors If no volume has that name, if it is being deleted, or if the store fails. Damage is no error:
/// it is in the report.
pub async fn check(env: &Environment, name: &str, depth: Depth) -> Result<Report, OpenError> {
    check_within(env, name, depth, Limits::default()).await
}

/// Finds the objects of a volume that nothing references, for a caller that deletes them. The report lists at
/// most `most_orphans` of them. Only reads.
///
/// # Errors
/// As [`check`].
pub(super) async fn orphans(env: &Environment, name: &str, most_orphans: usize) -> Result<Report, OpenError> {
    let limits = Limits { orphans: most_orphans, ..Limits::default() };
    check_within(env, name, Depth::References, limits).await
}

async fn check_within(
    env: &Environment,
    name: &str,
    depth: Depth,
    limits: Limits,
) -> Result<Report, OpenError> {
    let store = Arc::new(ReadOnly::new(Arc::clone(&env.store.bulk)));
    let env = Environment { store: Classes::one(Arc::clone(&store) as Arc<_>), ..env.clone() };
    let mut verified = Verified::default();
    let mut pause = FIRST_PAUSE;
    let mut report = Report::new(name, depth);
    for attempt in 1..=ATTEMPTS {
        report = Report::new(name, depth);
        let mut suspects = Suspects::default();
        let ended = check_once(&env, &mut report, limits, &mut verified, &mut suspects).await;
        let (findings, omitted) = suspects.finish(report.size_bytes);
        findings.iter().for_each(|finding| report.ranges.extend(&finding.ranges));
        (report.findings, report.omitted_findings) = (findings, omitted);
        match ended {
            Ok(()) => break,
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Moved) if attempt == ATTEMPTS => {
                let why = format!("the volume changes faster than it can be checked ({ATTEMPTS} attempts)");
                report.incomplete = Some(why);
            }
            Err(Stop::Moved) => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
        }
    }
    (report.requests, report.read_bytes) = store.counts();
    Ok(report)
}

/// Checks a volume as its current head describes it.
async fn check_once(
    env: &Environment,
    report: &mut Report,
    limits: Limits,
    verified: &mut Verified,
    suspects: &mut Suspects,
) -> Result<(), Stop> {
    let (name, depth) = (report.name.clone(), report.depth);
    let Some(context) = basis::find(env, &name, depth, report, suspects).await? else { return Ok(()) };
    let basis = basis::check(&context, suspects).await?;
    report.size_bytes = basis.root.as_ref().map(|root| root.size_bytes);
    let volume = basis.root.as_ref().map(|root| (root.size_bytes, root.geometry));
    let mut journal = journal::check(&context, volume, suspects).await?;
    report.size_bytes = journal.resized.or(report.size_bytes);
    report.notes.append(&mut journal.notes);
    let Some(root) = &basis.root else { return Ok(()) };
    let sources = Sources { root, table: basis.table.as_ref(), journal: &journal };
    let checked = objects::check(&context, sources, limits, verified, suspects).await;
    if matches!(checked, Err(Stop::Moved)) {
        // Needed if this was the last attempt.
        find_cost(&context, None, suspects).await?;
    }
    let (seen, notes) = checked?;
    report.notes.extend(notes);
    report.orphans = seen.orphans;
    report.usage = seen.usage;
    report.usage.extend(&journal.usage);
    report.usage.space = root.space();
    find_cost(&context, Some((root, &journal)), suspects).await
}

/// Finds what each object costs, by the root and the journal that were checked or, once these are replaced,
/// by the current ones.
async fn find_cost(
    context: &Context<'_>,
    checked: Option<(&Root, &Journal)>,
    suspects: &mut Suspects,
) -> Result<(), Stop> {
    if suspects.is_empty() {
        return Ok(());
    }
    if let Some((root, journal)) = checked {
        match cost::find(context, root, journal, suspects).await {
            Err(Stop::Moved) => {}
            ended => return ended,
        }
    }
    for _ in 0..ATTEMPTS {
        match cost_now(context, suspects).await {
            Err(Stop::Moved) => {}
            ended => return ended,
        }
    }
    Err(Stop::Moved)
}

/// Finds what each object costs, by the current root and journal.
async fn cost_now(context: &Context<'_>, suspects: &mut Suspects) -> Result<(), Stop> {
    suspects.clear_ranges();
    let Context { env, keys, depth, .. } = *context;
    let context = Context { env, keys, depth, head: context.head_now().await? };
    let mut noted = Suspects::default();
    let basis = basis::check(&context, &mut noted).await?;
    let Some(root) = &basis.root else { return Ok(()) };
    let journal = journal::check(&context, Some((root.size_bytes, root.geometry)), &mut noted).await?;
    cost::find(&context, root, &journal, suspects).await
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::effect::Durability::Volatile;
    use crate::store::MemoryStore;
    use crate::volume::{DirtyBudget, Entropy, Options, PageCache, Volume, catalog};

    const CHUNK: u64 = 64 << 10;

    /// A store with a volume of many chunks, overlays and packs, without grace period.
    async fn volume() -> (MemoryStore, Environment) {
        let memory = MemoryStore::unsorted(7);
        let env = Environment {
            store: Classes::one(Arc::new(memory.clone())),
            cache: PageCache::new(1 << 20, 1 << 20),
            budget: DirtyBudget::new(64 << 20),
            entropy: Entropy::seeded(1),
            wall_clock: Arc::new(|| 1_800_000_000),
        };
        let options = Options { embed_bytes: 0, pack_bytes: 4 * 4096, ..Options::default() };
        let made =
            catalog::create(&env, &options, "disk", 1 << 30, catalog::ChunkBytes(CHUNK)).await.unwrap();
        let volume = Volume::open(&env, options, made.volume, false).await.unwrap();
        for chunk in (0..80).chain(4096..4100) {
            let bytes = Bytes::from(vec![u8::try_from(chunk % 251).unwrap(); 1 << 16]);
            volume.write(chunk * CHUNK, bytes, Volatile).await.unwrap();
        }
        volume.checkpoint().await.unwrap();
        for chunk in (0..60).step_by(3) {
            volume.write(chunk * CHUNK + 4096, Bytes::from(vec![7; 4096]), Volatile).await.unwrap();
        }
        volume.checkpoint().await.unwrap();
        volume.write(9 * CHUNK, Bytes::from(vec![9; 1 << 16]), Volatile).await.unwrap();
        volume.close().await.unwrap();
        (memory, env)
    }

    /// Whether the volume is checked in one share or in many makes no difference.
    #[tokio::test(start_paused = true)]
    async fn a_volume_that_is_checked_in_shares_is_checked_as_a_whole() {
        let (memory, env) = volume().await;
        let few = Limits { references: 5, index_frames: 4, ..Limits::default() };
        let whole = |depth| check(&env, "disk", depth);
        let shared = |depth| check_within(&env, "disk", depth, few);
        for depth in [Depth::References, Depth::Structure, Depth::Data] {
            let (whole, shared) = (whole(depth).await.unwrap(), shared(depth).await.unwrap());
            assert!(whole.findings.is_empty() && shared.findings.is_empty(), "{shared:?}");
            assert_eq!(whole.usage, shared.usage);
            assert_eq!(whole.orphans, shared.orphans);
            assert!(shared.requests > whole.requests, "it took several rounds");
        }
        let chosen = |part: &str, n: usize| {
            memory.objects().into_keys().filter(|key| key.contains(part)).nth(n).expect("there are that many")
        };
        let lost = [chosen("/chunk/", 3), chosen("/chunk/", 50), chosen("/pack/", 1), chosen("/overlay/", 0)];
        let stray = chosen("/pack/", 0).replace("-", "-99");
        memory.insert(&stray, Bytes::from_static(b"an orphan"));
        lost.iter().for_each(|key| drop(memory.remove(key)));
        for depth in [Depth::Structure, Depth::Data] {
            let (whole, shared) = (whole(depth).await.unwrap(), shared(depth).await.unwrap());
            let found: Vec<&String> = whole.findings.iter().map(|finding| &finding.key).collect();
            assert!(lost.iter().all(|key| found.contains(&key)), "{found:?}");
            assert_eq!(whole.findings, shared.findings);
            assert_eq!((whole.orphans, whole.usage), (shared.orphans, shared.usage));
        }
    }
}
