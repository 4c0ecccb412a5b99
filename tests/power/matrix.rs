//! The matrix: power cuts in rounds on one disk, each checked before the next.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::cell::Cell;
use super::recovered::{DISK, check, make};
use super::running::{Round, Running};
use super::{asked, seed};
use crate::support::cairn::{Setup, Store};

/// A gateway that folds and deletes more often than one would have it.
fn setup(store: &Store) -> Setup {
    let settings = [
        ("CAIRN_VOLUMES__CHUNK_SIZE", "1MiB"),
        ("CAIRN_CACHE__CLEAN", "16MiB"),
        ("CAIRN_CACHE__DIRTY", "16MiB"),
        ("CAIRN_JOURNAL__MAX_BYTES", "8MiB"),
        ("CAIRN_JOURNAL__MAX_AGE", "5s"),
        ("CAIRN_STORE__DELETION_GRACE", "0s"),
    ];
    let setup = Setup::new(store).create("disk", "512MiB").tcp();
    settings.into_iter().fold(setup, |setup, (name, value)| setup.env(name, value))
}

/// Rounds of a cell; what was broken, if anything was.
async fn rounds(cell: Cell, rounds: u64, seed: u64, mutant: Option<&str>) -> Result<(), String> {
    // Cells of one seed are not all cut at the same answers.
    let turn = Cell::all().iter().position(|other| *other == cell).expect("it is one of them") as u64;
    let mut random = SmallRng::seed_from_u64(seed ^ turn << 32);
    let store = Store::minio().await;
    let faulty = |setup: Setup| match mutant {
        Some(mutant) => setup.env("MUTANT", mutant),
        None => setup,
    };
    let mut gateway = faulty(setup(&store)).start().await;
    make(cell, &gateway.uri("disk"), DISK).await;
    let mut answered = Vec::new();
    for number in 1..=rounds {
        let round = Round { cell, number, seed: u64::from(random.random::<u32>()) };
        let count = random.random_range(cell.workload.answers(cell.place));
        let mut running = Running::start(&round, &gateway.uri("disk")).await;
        running.answers(count).await;
        let told = running.cut_with(&mut gateway).await;
        println!("{cell}: round {number} of seed {seed}: power cut after {} answers", told.len());
        answered.extend(told);
        gateway = faulty(setup(&store)).takeover().start().await;
        check(&round, &gateway, &answered)
            .await
            .map_err(|why| format!("{cell}, round {number} of seed {seed}: {why}"))?;
    }
    Ok(())
}

/// The cells that `CAIRN_POWER_CELLS` names, or the one whose turn it is.
fn chosen() -> Vec<Cell> {
    match std::env::var("CAIRN_POWER_CELLS") {
        Ok(names) => Cell::asked(&names),
        Err(_) => {
            let (all, turn) = (Cell::all(), asked("CAIRN_POWER_TURN", 0));
            let at = turn % u64::try_from(all.len()).expect("cells are few");
            vec![all[usize::try_from(at).expect("cells are few")]]
        }
    }
}

#[tokio::test]
#[ignore = "needs MinIO, PostgreSQL, QEMU, SQLite, btrfs-progs, e2fsprogs, fio, libnbd, util-linux, xfsprogs"]
async fn what_was_answered_survives_a_power_cut() {
    let mut broken = Vec::new();
    for cell in chosen() {
        println!("{cell}");
        broken.extend(rounds(cell, asked("CAIRN_POWER_ROUNDS", 1), seed(), None).await.err());
    }
    assert!(broken.is_empty(), "{}", broken.join("\n\n"));
}

/// The matrix, tested: a server that answers FLUSH by itself, under the cells that are asked for.
#[cfg(feature = "mutants")]
#[tokio::test]
#[ignore = "needs MinIO, PostgreSQL, QEMU, SQLite, btrfs-progs, e2fsprogs, fio, libnbd, util-linux, xfsprogs"]
async fn a_flush_that_is_not_passed_on_is_caught() {
    let names = std::env::var("CAIRN_POWER_CELLS").unwrap_or_else(|_| "ext4-sqlite-host".to_owned());
    let mut blind = Vec::new();
    for cell in Cell::asked(&names) {
        match rounds(cell, 10, seed(), Some("flush-not-passed-on")).await {
            Err(why) => println!("{why}"),
            Ok(()) => blind.push(cell.to_string()),
        }
    }
    assert!(blind.is_empty(), "these lost nothing: {blind:?}");
}
