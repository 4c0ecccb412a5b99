//! Cairn in a virtual machine, its store in a directory of the guest's disk: what was not synced is in the guest's memory,
//! and goes with it.
//!
//! The clients are on this machine, so that what they were told outlives the guest. What is recovered is judged by the
//! rules of the simulation ([`crate::checker`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use tokio::sync::watch;

use super::running::{payload, scripts};
use super::{asked, seed};
use crate::checker::cells::{CELL_LEN, Id, Layout, identify};
use crate::checker::history::History;
use crate::checker::prefix;
use crate::support::cairn::binary;
use crate::support::load::{Ledger, Load};
use crate::support::machine::Machine;
use crate::support::process::{command, free_port, run, within};

const SIZE: u64 = 16 << 20;
const CHUNK: u64 = 256 << 10;
/// Rounds of a run that nobody asked for more of.
const ROUNDS: u64 = 4;
/// Rounds in which a fault must be caught.
#[cfg(feature = "mutants")]
const WITHIN: u64 = 12;

/// A gateway that commits, folds and deletes much more often than one would have it.
const SETTINGS: &str = "export CAIRN_VOLUMES__CHUNK_SIZE=256KiB CAIRN_CACHE__CLEAN=2MiB CAIRN_CACHE__DIRTY=8MiB
export CAIRN_COMMIT__MAX_AGE=200ms CAIRN_COMMIT__MAX_BYTES=2MiB CAIRN_JOURNAL__MAX_BYTES=4MiB CAIRN_JOURNAL__MAX_AGE=1s
export CAIRN_LEASE__HEAD_INTERVAL=100ms CAIRN_STORE__DELETION_GRACE=0s
";

/// The guest's disk, the programs for it, and where its gateway is reached.
struct Guest {
    files: TempDir,
    port: u16,
    mutant: Option<&'static str>,
}

impl Guest {
    async fn new(mutant: Option<&'static str>) -> Self {
        let files = tempfile::tempdir().expect("a directory for the guest's disks");
        let guest = Self { files, port: free_port(), mutant };
        let disk = std::fs::File::create(guest.path("disk")).expect("the directory can be written");
        disk.set_len(512 << 20).expect("files may have holes");
        run(command(["/sbin/mkfs.ext4", "-q", "-F"]).arg(guest.path("disk"))).await;
        payload(&guest.path("payload.tar"), &[format!("cairn={}", binary().display())]).await;
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn uri(&self) -> String {
        format!("nbd://127.0.0.1:{}/disk", self.port)
    }

    /// Boots, and waits until the gateway serves; what was said if it does not come to that.
    async fn boot(&self) -> Result<Machine, String> {
        let mut script = SETTINGS.to_owned();
        if let Some(mutant) = self.mutant {
            script += &format!("export MUTANT={mutant}\n");
        }
        script += &scripts(&["inside.sh"]);
        let drive = |name: &str, more: &str| {
            let path = self.path(name);
            format!("file={},format=raw,if=virtio,cache=writeback{more}", path.display())
        };
        let network = format!("user,id=net,hostfwd=tcp:127.0.0.1:{}-10.0.2.15:10809", self.port);
        let arguments = ["-drive", &drive("disk", ""), "-drive", &drive("payload.tar", ",read-only=on")];
        let network = ["-netdev", &network, "-device", "virtio-net-pci,netdev=net,romfile="];
        let mut machine = Machine::boot(&script, &[&arguments[..], &network[..]].concat());
        let serves = machine.process.wait_until("the guest's gateway serves", |lines| {
            let is_listening = |line: &String| line.starts_with("listening on nbd");
            let ended = lines.iter().any(|line| line.starts_with("vm: ended"));
            let listening = lines.iter().any(is_listening);
            (ended || listening).then(|| if ended { Err(lines.join("\n")) } else { Ok(()) })
        });
        serves.await?;
        Ok(machine)
    }

    /// What every cell holds.
    async fn image(&self) -> Vec<Id> {
        let file = self.path("image");
        run(command(["nbdcopy", &self.uri()]).arg(&file)).await;
        cells(&file)
    }
}

fn cells(file: &Path) -> Vec<Id> {
    let bytes = std::fs::read(file).expect("nbdcopy wrote it");
    assert_eq!(bytes.len() as u64, SIZE);
    (0..).zip(bytes.chunks_exact(CELL_LEN)).map(|(cell, bytes)| identify(bytes, cell)).collect()
}

/// Rounds of load and loss of power; the number of the round that broke a promise, and which.
async fn rounds(rounds: u64, seed: u64, mutant: Option<&'static str>) -> Result<u64, (u64, String)> {
    let mut random = SmallRng::seed_from_u64(seed);
    let layout = Layout { size: SIZE, chunk: CHUNK, windows: std::iter::once(0..SIZE).collect() };
    let history = Mutex::new(History::new(layout.cells()));
    let ledger = Arc::new(Ledger { layout, history, answers: watch::channel(0).0 });
    let guest = Guest::new(mutant).await;
    for round in 1..=rounds + 1 {
        let mut machine =
            guest.boot().await.map_err(|said| (round - 1, format!("it does not open: {said}")))?;
        let epoch = u32::try_from(round).expect("rounds are few");
        let found = guest.image().await;
        {
            let mut history = ledger.history.lock();
            let before = history.newest();
            prefix::check(&history.epochs[&before], &found).map_err(|why| (round - 1, why))?;
            history.begin(epoch, Arc::new(found));
            history.epochs.retain(|number, _| *number == epoch);
        }
        if round > rounds {
            break;
        }
        let mut load = Load::start(&ledger, &guest.uri(), epoch, random.random()).await;
        let enough = *ledger.answers.borrow() + random.random_range(20..1500);
        let mut answers = ledger.answers.subscribe();
        let waited = answers.wait_for(|count| *count >= enough);
        within("the guest's gateway answers", waited).await.expect("the ledger lives");
        // After a flush nothing else is synced: what it should have synced and did not, is lost for certain.
        let settled = random.random_bool(0.5);
        if settled {
            load.settle(&ledger).await;
        }
        machine.cut_power().await;
        load.end().await;
        println!("round {round} of seed {seed}: power cut after {enough} answers, at rest: {settled}");
    }
    let answers = *ledger.answers.borrow();
    Ok(answers)
}

#[tokio::test]
#[ignore = "needs QEMU, e2fsprogs, libnbd"]
async fn a_store_in_a_directory_keeps_what_a_flush_answered_when_the_machine_loses_its_power() {
    let (count, seed) = (asked("CAIRN_POWER_ROUNDS", ROUNDS), seed());
    let answers =
        rounds(count, seed, None).await.unwrap_or_else(|(round, why)| panic!("round {round}: {why}"));
    println!("{count} rounds, {answers} answers");
}

/// The test, tested: a store that leaves out one kind of sync.
#[cfg(feature = "mutants")]
#[tokio::test]
#[ignore = "needs QEMU, e2fsprogs, libnbd"]
async fn a_sync_that_is_left_out_is_caught() {
    for mutant in cairn::mutant::Mutant::UNSYNCED {
        let answered = rounds(WITHIN, seed(), Some(mutant.name())).await;
        let (round, why) = answered.expect_err(mutant.name());
        println!("{} is caught within {round} rounds: {why}", mutant.name());
    }
}
