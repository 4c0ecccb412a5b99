//! An import has every byte of its source, gets its name last, and is either resumed soundly or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cairn::store::Operation;
use cairn::store::fault::{Action, Failure, Gate, Rule};
use cairn::volume::catalog::{self, Info, Progress};
use cairn::volume::check::{self, Depth};
use cairn::volume::{Entropy, Environment, Import, ImportError, OpenError, Options, Volume};

use super::bench::{Bench, MIB, pattern, read};

const KIB: u64 = 1 << 10;
const CHUNK: u64 = 64 * KIB;

/// An environment whose ids differ from those of all others.
fn env(bench: &Bench) -> Environment {
    static SEEDS: AtomicU64 = AtomicU64::new(1 << 41);
    let seed = SEEDS.fetch_add(1, Ordering::Relaxed);
    Environment { entropy: Entropy::seeded(seed), ..bench.env(64 * MIB) }
}

/// What a source has: some bytes with a seed, which are written zeros if that is 0, or zeros.
type Source = [(u64, Option<u64>)];

const SOURCE: &Source = &[
    (100_000, Some(1)),
    (5 * CHUNK, None),
    (1, Some(2)),
    (CHUNK - 1, None),
    (40_000, Some(3)),
    (3 * CHUNK, Some(4)),
    (2 * CHUNK + 5000, None),
    (777, Some(5)),
];

fn data(seed: u64, length: usize) -> Vec<u8> {
    if seed == 0 { vec![0; length] } else { pattern(seed, length).to_vec() }
}

fn bytes(source: &Source) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (length, seed) in source {
        let length = usize::try_from(*length).unwrap();
        match seed {
            Some(seed) => bytes.extend(data(*seed, length)),
            None => bytes.resize(bytes.len() + length, 0),
        }
    }
    bytes
}

async fn begin(bench: &Bench) -> Result<Import, ImportError> {
    Import::begin(&env(bench), &bench.options, "image", catalog::ChunkBytes(CHUNK), 4 * CHUNK).await
}

async fn resume(bench: &Bench) -> Result<Import, ImportError> {
    Import::resume(&env(bench), "image", 4 * CHUNK).await
}

async fn pass(import: &mut Import, source: &Source) -> Result<(), ImportError> {
    for (length, seed) in source {
        match seed {
            // Requests of the source do not end where chunks do.
            Some(seed) => {
                for piece in data(*seed, usize::try_from(*length).unwrap()).chunks(30_011) {
                    import.write(piece).await?;
                }
            }
            None => import.zeros(*length).await?,
        }
    }
    Ok(())
}

async fn import(begun: Result<Import, ImportError>, source: &Source) -> Result<Info, ImportError> {
    let mut import = begun?;
    pass(&mut import, source).await?;
    import.finish().await
}

async fn open(bench: &Bench, name: &str) -> Result<Arc<Volume>, OpenError> {
    let env = env(bench);
    let volume = catalog::resolve(&env, name).await?;
    Volume::open(&env, Options { holder_name: "reader".to_owned(), ..bench.options.clone() }, volume, true)
        .await
}

/// Asserts that the volume is sound and has the content, and zeros up to the end of the last block.
async fn holds(bench: &Bench, source: &Source, when: &str) {
    let report = check::check(&env(bench), "image", Depth::Data).await.unwrap();
    assert!(!report.is_damaged(), "{when}: {report:?}");
    let mut expected = bytes(source);
    expected.resize(expected.len().next_multiple_of(4096), 0);
    let volume = open(bench, "image").await.unwrap();
    assert_eq!(volume.size_bytes(), expected.len() as u64, "{when}");
    assert!(read(&volume, 0, expected.len() as u64).await == expected, "{when}");
    // It can be written like any other volume.
    volume.write(5000, pattern(9, 200), cairn::effect::Durability::Durable).await.unwrap();
    expected[5000..5200].copy_from_slice(&pattern(9, 200));
    volume.close().await.unwrap();
    let volume = open(bench, "image").await.unwrap();
    assert!(read(&volume, 0, expected.len() as u64).await == expected, "{when}");
    volume.close().await.unwrap();
}

async fn is_bound(bench: &Bench) -> bool {
    match catalog::resolve(&env(bench), "image").await {
        Ok(_) => true,
        Err(OpenError::NoSuchVolume(_)) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Deletes all volumes, and asserts that nothing is left.
async fn nothing_is_left(bench: &Bench, when: &str) {
    let env = env(bench);
    for unnamed in catalog::unnamed(&env).await.unwrap() {
        catalog::delete_by_id(&env, &bench.options, unnamed.volume, false).await.unwrap();
    }
    for name in catalog::list(&env).await.unwrap() {
        catalog::delete(&env, &bench.options, &name, false).await.unwrap();
    }
    let objects = bench.memory.objects();
    let left: Vec<_> = objects.into_iter().filter(|(_, body)| body.len() != 52).map(|(key, _)| key).collect();
    assert!(left.is_empty(), "{when}: {left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_volume_has_every_byte_of_its_source_and_zeros_take_no_objects() {
    let bench = Bench::new(MIB).await;
    bench.memory.reset_tallies();
    let info = import(begin(&bench).await, SOURCE).await.unwrap();
    let size = bytes(SOURCE).len().next_multiple_of(4096) as u64;
    assert_eq!(
        (info.name.as_str(), info.size_bytes, info.chunk_bytes, info.epoch),
        ("image", size, CHUNK, 0)
    );
    // Each chunk that has data, the map page, identity, head, root, table and name.
    let has_data =
        bytes(SOURCE).chunks(64 << 10).filter(|chunk| chunk.iter().any(|b| *b != 0)).count() as u64;
    assert_eq!(bench.puts("/chunk/").requests, has_data);
    assert_eq!(bench.puts("").requests, has_data + 1 + 5);
    assert_eq!(bench.puts("/journal/").requests, 0);
    let volume = open(&bench, "image").await.unwrap();
    let extents = volume.allocation(0, size, 100).await.unwrap();
    assert!(extents.iter().any(|extent| extent.hole && extent.length == 4 * CHUNK), "{extents:?}");
    volume.close().await.unwrap();
    holds(&bench, SOURCE, "imported").await;
    nothing_is_left(&bench, "imported").await;
}

#[tokio::test(start_paused = true)]
async fn a_sparse_source_of_many_tebibytes_costs_what_it_stores() {
    let bench = Bench::new(MIB).await;
    let (tib, chunk) = (MIB << 20, 4 * MIB);
    bench.memory.reset_tallies();
    let mut import =
        Import::begin(&env(&bench), &bench.options, "image", catalog::ChunkBytes(chunk), 4 * chunk)
            .await
            .unwrap();
    import.write(&pattern(1, 4096)).await.unwrap();
    import.zeros(9 * tib - 4096).await.unwrap();
    import.write(&[0; 100_000]).await.unwrap();
    import.write(&pattern(2, 4096)).await.unwrap();
    import.finish().await.unwrap();
    assert_eq!(bench.puts("/chunk/").requests, 2);
    assert_eq!(bench.puts("").requests, 2 + 2 + 5, "two map pages");
    assert!(bench.puts("").bytes < 3 * 65_536 + 20_000, "a chunk stores whole pages with data only");
    let volume = open(&bench, "image").await.unwrap();
    assert_eq!(read(&volume, 0, 4096).await, pattern(1, 4096));
    assert_eq!(read(&volume, 9 * tib + 100_000, 4096).await, pattern(2, 4096));
    assert_eq!(read(&volume, 4 * tib, 4096).await, [0; 4096]);
}

#[tokio::test(start_paused = true)]
async fn no_more_chunks_are_in_flight_than_allowed() {
    let bench = Bench::new(MIB).await;
    let mut import = begin(&bench).await.unwrap();
    let gate = bench.fault.hold(Operation::Put, "/chunk/");
    let content = pattern(1, 20 << 16);
    {
        let mut passing = std::pin::pin!(import.write(&content));
        tokio::select! {
            biased;
            _ = &mut passing => panic!("it goes on without bound"),
            // The clock moves only when every task waits.
            () = tokio::time::sleep(std::time::Duration::from_secs(60)) => {}
        }
        assert_eq!(gate.count(), 4);
        gate.release();
        passing.await.unwrap();
    }
    import.finish().await.unwrap();
    holds(&bench, &[(20 << 16, Some(1))], "after the wait").await;
}

async fn requests() -> u32 {
    let bench = Bench::new(MIB).await;
    bench.memory.reset_tallies();
    import(begin(&bench).await, SOURCE).await.unwrap();
    let all = [Operation::Get, Operation::Put, Operation::Delete, Operation::List];
    let requests = all.map(|operation| bench.memory.tally(operation, |_| true).requests);
    u32::try_from(requests.iter().sum::<u64>()).unwrap()
}

/// Judges what an import that was cut short has left, and completes it.
async fn judge_and_resume(bench: &Bench, when: &str) {
    if is_bound(bench).await {
        assert!(matches!(resume(bench).await, Err(ImportError::Volume(OpenError::Exists(_)))), "{when}");
    } else {
        for unnamed in catalog::unnamed(&env(bench)).await.unwrap() {
            assert_eq!(unnamed.made_for.as_deref(), Some("image"), "{when}");
            assert!(matches!(unnamed.progress, Progress::Incomplete | Progress::Unbound), "{when}");
        }
        let chunks = bench.keys("/chunk/").len() as u64;
        bench.memory.reset_tallies();
        let begun = match resume(bench).await {
            // Not even the head was made.
            Err(ImportError::NothingToResume(_)) => begin(bench).await,
            begun => begun,
        };
        import(begun, SOURCE).await.unwrap_or_else(|error| panic!("{when}: {error}"));
        assert_eq!(bench.puts("/chunk/").requests + chunks, bench.keys("/chunk/").len() as u64, "{when}");
    }
    holds(bench, SOURCE, when).await;
    nothing_is_left(bench, when).await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_any_request_leaves_no_name_and_can_be_resumed() {
    for action in [Action::FailBefore(Failure::Transient), Action::FailAfter(Failure::Timeout)] {
        for failing in 0..requests().await {
            let when = format!("request {failing}: {action:?}");
            let bench = Bench::new(MIB).await;
            // All further requests fail as well, as in an outage.
            bench.fault.add(Rule::new(action.clone()).skip(failing).times(1));
            bench.fault.add(Rule::new(Action::FailBefore(Failure::Transient)).skip(failing + 1));
            assert!(import(begin(&bench).await, SOURCE).await.is_err(), "{when}");
            bench.fault.clear();
            judge_and_resume(&bench, &when).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_request_leaves_no_name_and_can_be_resumed() {
    for takes_effect in [false, true] {
        for last in 0..requests().await {
            let when = format!("crash at request {last}, which takes effect: {takes_effect}");
            let bench = Bench::new(MIB).await;
            let gate = Gate::new();
            let hold = match takes_effect {
                false => Action::Hold(gate.clone()),
                true => Action::HoldAnswer(gate.clone()),
            };
            bench.fault.add(Rule::new(hold).skip(last));
            tokio::select! {
                biased;
                () = gate.reached(1) => {}
                _ = async { import(begin(&bench).await, SOURCE).await } => panic!("{when}: it ended"),
            }
            bench.fault.clear();
            judge_and_resume(&bench, &when).await;
        }
    }
}

/// Leaves an import of which some chunks are in the store.
async fn cut(bench: &Bench) {
    let failure = Action::FailBefore(Failure::Transient);
    bench.fault.add(Rule::new(failure).on(Operation::Put).containing("/chunk/").skip(3));
    assert!(import(begin(bench).await, SOURCE).await.is_err());
    bench.fault.clear();
    assert_eq!(bench.keys("/chunk/").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_has_changed_is_refused() {
    let changed: &[(&str, &Source)] = &[
        ("another byte", &[(100_000, Some(7)), (30 * CHUNK, None)]),
        ("zeros instead of data", &[(30 * CHUNK, None)]),
        ("written zeros instead of data", &[(30 * CHUNK, Some(0))]),
        ("a shorter source", &SOURCE[..1]),
        ("less data in a chunk", &[(70_000, Some(1)), (30 * CHUNK, None)]),
    ];
    for (what, source) in changed {
        let bench = Bench::new(MIB).await;
        cut(&bench).await;
        let refused = import(resume(&bench).await, source).await;
        assert!(matches!(refused, Err(ImportError::SourceChanged { .. })), "{what}: {refused:?}");
        assert!(!is_bound(&bench).await, "{what}");
        // The first source can still be imported.
        judge_and_resume(&bench, what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_exists_is_refused_before_anything_is_made_and_at_the_end() {
    let bench = Bench::new(MIB).await;
    let before = bench.memory.objects().len();
    for refused in [
        Import::begin(&env(&bench), &bench.options, "disk", catalog::ChunkBytes(CHUNK), CHUNK).await,
        Import::resume(&env(&bench), "disk", CHUNK).await,
    ] {
        assert!(matches!(refused, Err(ImportError::Volume(OpenError::Exists(_)))));
    }
    let refused = Import::begin(&env(&bench), &bench.options, ".x", catalog::ChunkBytes(CHUNK), CHUNK).await;
    assert!(matches!(refused, Err(ImportError::Volume(OpenError::BadName(_)))));
    assert!(matches!(resume(&bench).await, Err(ImportError::NothingToResume(_))));
    assert_eq!(bench.memory.objects().len(), before);

    let mut late = begin(&bench).await.unwrap();
    pass(&mut late, SOURCE).await.unwrap();
    catalog::create(&env(&bench), &bench.options, "image", MIB, catalog::ChunkBytes(CHUNK)).await.unwrap();
    assert!(matches!(late.finish().await, Err(ImportError::Volume(OpenError::Exists(_)))));
    let volume = open(&bench, "image").await.unwrap();
    assert_eq!(volume.size_bytes(), MIB, "it is the one that was created");
    volume.close().await.unwrap();
    catalog::delete(&env(&bench), &bench.options, "image", false).await.unwrap();
    // The name is free again, but a deletion of the import could have freed it, too.
    assert!(matches!(resume(&bench).await, Err(ImportError::NameChanged(_))));
    import(begin(&bench).await, SOURCE).await.unwrap();
    holds(&bench, SOURCE, "with a name that was used before").await;
    nothing_is_left(&bench, "the name was used").await;
}

#[tokio::test(start_paused = true)]
async fn an_empty_source_and_one_that_is_too_large_are_refused() {
    let bench = Bench::new(MIB).await;
    let is_geometry =
        |result: Result<(), ImportError>| matches!(result, Err(ImportError::Volume(OpenError::Geometry(_))));
    assert!(is_geometry(begin(&bench).await.unwrap().finish().await.map(drop)));
    let mut import = begin(&bench).await.unwrap();
    let most = CHUNK * 4096 * 65_536;
    assert!(is_geometry(import.zeros(most + 1).await) && is_geometry(import.zeros(u64::MAX).await));
    import.zeros(most).await.unwrap();
    assert!(is_geometry(import.write(&[1]).await));
    nothing_is_left(&bench, "refused").await;
}

/// A deletion by id may begin before, between or after all requests at the end of an import.
#[tokio::test(start_paused = true)]
async fn an_import_that_is_deleted_meanwhile_never_gets_a_name() {
    for is_resumed in [false, true] {
        for passing in 0.. {
            let bench = Bench::new(MIB).await;
            let mut import = begin(&bench).await.unwrap();
            if is_resumed {
                import.stop().await;
                import = resume(&bench).await.unwrap();
            }
            pass(&mut import, SOURCE).await.unwrap();
            let id = import.volume();
            let gate = Gate::new();
            bench.fault.add(Rule::new(Action::Hold(gate.clone())).skip(passing).times(1));
            let other = bench.beside();
            let (finished, was_held) = {
                let mut finishing = std::pin::pin!(import.finish());
                tokio::select! {
                    biased;
                    finished = &mut finishing => (finished, false),
                    () = gate.reached(1) => {
                        catalog::delete_by_id(&env(&other), &other.options, id, false).await.unwrap();
                        gate.release();
                        (finishing.await, true)
                    }
                }
            };
            if !was_held {
                finished.unwrap();
                break;
            }
            assert!(!is_bound(&bench).await, "deleted at request {passing}: {finished:?}");
            assert!(finished.is_err(), "deleted at request {passing}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn two_processes_that_resume_the_same_import_make_one_volume() {
    let bench = Bench::new(MIB).await;
    cut(&bench).await;
    let (mut one, mut other) = (resume(&bench).await.unwrap(), resume(&bench).await.unwrap());
    pass(&mut one, SOURCE).await.unwrap();
    pass(&mut other, SOURCE).await.unwrap();
    let (one, other) = tokio::join!(one.finish(), other.finish());
    assert_eq!(one.unwrap(), other.unwrap());
    holds(&bench, SOURCE, "imported twice").await;
    nothing_is_left(&bench, "imported twice").await;
}
