//! Any history of deletions and returns: each volume is found where it must be, with what was flushed to it last.

use std::collections::BTreeMap;

use cairn::volume::catalog::Watch;
use proptest::prelude::*;
use tokio::time::{Instant, advance};

use super::*;

const KEEP: Duration = Duration::from_secs(3 * 3600);

#[derive(Clone, Debug)]
enum Step {
    Create(&'static str),
    SetAside(&'static str),
    DeleteNow(&'static str),
    /// Brings back one of the kept volumes, under its own name or another one.
    Undelete(usize, Option<&'static str>),
    Write(&'static str),
    Rename(&'static str, &'static str),
    /// Lets minutes pass, and looks at the deleted volumes.
    Look(u64),
}

fn name() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("a"), Just("b")]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => name().prop_map(Step::Create),
        4 => name().prop_map(Step::SetAside),
        1 => name().prop_map(Step::DeleteNow),
        4 => (0..4_usize, proptest::option::of(name())).prop_map(|(which, to)| Step::Undelete(which, to)),
        3 => name().prop_map(Step::Write),
        1 => (name(), name()).prop_map(|(from, to)| Step::Rename(from, to)),
        3 => (1..120_u64).prop_map(Step::Look),
    ]
}

/// A deleted volume, by the reference.
#[derive(Clone, Debug)]
struct Aside {
    id: Uuid,
    name: String,
    since: Instant,
}

/// What must exist.
#[derive(Debug, Default)]
struct Reference {
    named: BTreeMap<String, Uuid>,
    aside: Vec<Aside>,
    /// The seed of the data that was flushed last to each volume.
    written: BTreeMap<Uuid, u64>,
}

impl Reference {
    async fn takes(&mut self, bench: &Bench, watch: &mut Watch, seed: u64, step: &Step) {
        match *step {
            Step::Create(name) => match create(bench, name).await {
                Ok(id) => assert_eq!(self.named.insert(name.to_owned(), id), None, "{step:?}"),
                Err(OpenError::Exists(_)) => assert!(self.named.contains_key(name)),
                Err(error) => panic!("{step:?}: {error}"),
            },
            Step::SetAside(name) => match self.named.remove(name) {
                Some(id) => {
                    assert_eq!(set_aside(bench, name).await.unwrap(), Some(KEEP));
                    self.aside.push(Aside { id, name: name.to_owned(), since: Instant::now() });
                }
                None => drop(set_aside(bench, name).await.expect_err("nothing has the name")),
            },
            Step::DeleteNow(name) => {
                if let Some(id) = self.named.remove(name) {
                    delete_for_good(bench, id).await;
                }
            }
            Step::Undelete(which, to) => self.undeletes(bench, which, to).await,
            Step::Write(name) => {
                if let Some(id) = self.named.get(name) {
                    let volume = open(bench, name).await;
                    volume.write(0, pattern(seed, 4096), Durable).await.unwrap();
                    if seed.is_multiple_of(2) {
                        volume.close().await.unwrap();
                    } else {
                        volume.hand_on().await.unwrap();
                    }
                    self.written.insert(*id, seed);
                }
            }
            Step::Rename(from, to) => {
                let renamed = catalog::rename(&env(bench), &bench.options, from, to, false).await;
                if self.named.contains_key(from) && (from == to || !self.named.contains_key(to)) {
                    renamed.unwrap_or_else(|error| panic!("{step:?}: {error}"));
                    let id = self.named.remove(from).expect("it has the name");
                    self.named.insert(to.to_owned(), id);
                } else {
                    renamed.expect_err("there is no such volume, or the name is taken");
                }
            }
            Step::Look(minutes) => {
                advance(Duration::from_secs(minutes * 60)).await;
                let all: Vec<Uuid> = self.aside.iter().map(|aside| aside.id).collect();
                for gone in watch.look(&env(bench), &bench.options, &all).await {
                    let at = self.aside.iter().position(|aside| aside.id == gone).expect("it was kept");
                    let was = self.aside.remove(at);
                    assert!(was.since.elapsed() >= KEEP, "{was:?} is gone after {:?}", was.since.elapsed());
                }
            }
        }
    }

    async fn undeletes(&mut self, bench: &Bench, which: usize, to: Option<&str>) {
        let Some(aside) = self.aside.get(which).cloned() else { return };
        let name = to.unwrap_or(&aside.name).to_owned();
        match undelete(bench, aside.id, to).await {
            Ok(info) => {
                assert_eq!((&info.name, info.volume), (&name, aside.id));
                assert_eq!(self.named.insert(name, aside.id), None, "the name was free");
                self.aside.remove(which);
            }
            Err(OpenError::Taken(taken)) => {
                assert!(taken == name && self.named.contains_key(&name), "{taken}");
            }
            Err(error) => panic!("{aside:?} as {name}: {error}"),
        }
    }

    async fn check(&self, bench: &Bench) {
        let expected: Vec<(String, Uuid)> = self.named.iter().map(|(name, id)| (name.clone(), *id)).collect();
        assert_eq!(live(bench).await, expected);
        let mut expected: Vec<Uuid> = self.aside.iter().map(|aside| aside.id).collect();
        expected.sort();
        let mut found: Vec<Uuid> = kept(bench).await.into_iter().map(|(_, id)| id).collect();
        found.sort();
        assert_eq!(found, expected);
        assert_eq!(catalog::unnamed(&env(bench)).await.unwrap().len(), 0);
        recorded(bench).await;
    }
}

async fn run(steps: Vec<Step>) {
    let mut bench = Bench::new(MIB).await;
    bench.options.undelete = KEEP;
    catalog::delete(&env(&bench), &bench.options, "disk", false).await.unwrap();
    let (mut reference, mut watch) = (Reference::default(), Watch::default());
    for (seed, step) in (1..).zip(steps) {
        reference.takes(&bench, &mut watch, seed, &step).await;
        reference.check(&bench).await;
    }
    for (number, aside) in reference.aside.clone().into_iter().enumerate() {
        let name = format!("back-{number}");
        undelete(&bench, aside.id, Some(&name)).await.unwrap();
        reference.named.insert(name, aside.id);
    }
    for (name, id) in reference.named {
        if let Some(seed) = reference.written.get(&id) {
            let volume = open(&bench, &name).await;
            assert_eq!(read(&volume, 0, 4096).await, pattern(*seed, 4096), "{name}");
            volume.close().await.unwrap();
        }
        delete_for_good(&bench, id).await;
    }
    only_free_names(&bench);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_history_leaves_each_volume_in_use_or_kept(steps in prop::collection::vec(step(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(steps));
    }
}
