//! A workload under way on a disk, and the power cut that ends it.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::cell::{Cell, Place, Workload};
use crate::support::cairn::Gateway;
use crate::support::machine::Machine;
use crate::support::process::{Process, command, run, within};

/// What comes before a line that a workload says.
const ANSWERED: &str = "vm: answered ";
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/power/scripts");

/// Scripts of these names, one after the other.
pub(crate) fn scripts(names: &[&str]) -> String {
    let text = |name: &&str| {
        std::fs::read_to_string(Path::new(SCRIPTS).join(name)).expect("the workloads' scripts can be read")
    };
    names.iter().map(text).collect()
}

/// Where in its cell a round is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) cell: Cell,
    pub(crate) number: u64,
    pub(crate) seed: u64,
}

impl Round {
    /// What all scripts know.
    pub(crate) fn variables(&self, work: &Path, power: &str) -> String {
        let Self { cell, number, seed } = self;
        format!(
            "set -e\nexport LC_ALL=C\nW={}\nSCRIPTS={SCRIPTS}\nFS={}\nROUND={number}\nSEED={seed}\nPOWER={power}\n",
            work.display(),
            cell.file_system.name(),
        )
    }
}

/// Who uses the disk.
enum User {
    Host(Process),
    Guest(Machine),
}

impl User {
    fn process(&mut self) -> &mut Process {
        match self {
            Self::Host(process) => process,
            Self::Guest(machine) => &mut machine.process,
        }
    }
}

/// A workload under way.
pub(crate) struct Running {
    user: User,
    files: TempDir,
}

/// This program, which has the workload [`super::fsx`] too.
pub(crate) fn power() -> String {
    std::env::current_exe().expect("this program lies somewhere").display().to_string()
}

impl Running {
    /// Mounts the disk and starts the workload of a round.
    pub(crate) async fn start(round: &Round, uri: &str) -> Self {
        let files = tempfile::tempdir().expect("a directory for the workload");
        let user = match round.cell.place {
            Place::Host => User::Host(on_host(round, uri, files.path())),
            Place::Guest => User::Guest(in_guest(round, uri, files.path()).await),
        };
        Self { user, files }
    }

    /// Waits until so many answers were said.
    pub(crate) async fn answers(&mut self, count: usize) {
        let enough = |lines: &[String]| {
            assert!(!lines.iter().any(|line| line.starts_with("vm: ended")), "{}", lines.join("\n"));
            (lines.iter().filter(|line| line.starts_with(ANSWERED)).count() >= count).then_some(())
        };
        self.user.process().wait_until(&format!("{count} answers"), enough).await;
    }

    /// What was answered so far.
    pub(crate) fn told(&mut self) -> Vec<String> {
        let output = self.user.process().output();
        // The last line may be half of one.
        let told = output.lines().filter_map(|line| line.strip_prefix(ANSWERED)?.strip_suffix('.'));
        told.map(str::to_owned).collect()
    }

    /// Cuts the power of the disk's user; gives what was answered.
    pub(crate) async fn cut(mut self) -> Vec<String> {
        self.user.process().kill().await;
        unmounted(self.files.path()).await;
        self.told()
    }

    /// Cuts the power of the gateway too, at the same time.
    pub(crate) async fn cut_with(mut self, gateway: &mut Gateway) -> Vec<String> {
        tokio::join!(self.user.process().kill(), gateway.process.kill());
        unmounted(self.files.path()).await;
        self.told()
    }
}

/// Waits until the kernel has let go of all that was mounted below a directory: a copy of a file system is not mounted
/// beside the original.
async fn unmounted(directory: &Path) {
    let path = directory.display().to_string();
    let is_held = || {
        let devices = std::fs::read_dir("/sys/block").expect("sysfs is mounted");
        devices
            .map(|device| device.expect("sysfs is read").path().join("loop/backing_file"))
            .any(|file| std::fs::read_to_string(file).is_ok_and(|backing| backing.starts_with(&path)))
    };
    let gone = async {
        let mut interval = tokio::time::interval(Duration::from_millis(20));
        while is_held() {
            interval.tick().await;
        }
    };
    within("the kernel unmounts what lost its power", gone).await;
}

/// In namespaces that end with their first process, so that nothing of it outlives the power cut.
fn on_host(round: &Round, uri: &str, files: &Path) -> Process {
    let (workload, _) = round.cell.workload.scripts();
    let mut script = round.variables(files, &power());
    script += &format!("URI='{uri}'\nOPTIONS=discard\nLINEWISE='stdbuf -oL'\n");
    let inner = script.clone() + &scripts(&["loop.sh"]) + &scripts(workload);
    std::fs::write(files.join("inner.sh"), inner).expect("the directory can be written");
    script += &scripts(&["host.sh"]);
    let mut unshare =
        command(["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "sh", "-c", &script]);
    Process::spawn(&format!("the workload {}", round.cell), &mut unshare)
}

async fn in_guest(round: &Round, uri: &str, files: &Path) -> Machine {
    let (workload, _) = round.cell.workload.scripts();
    let mut script = round.variables(Path::new("/tmp"), "power");
    script += "SCRIPTS=/payload/scripts\nOPTIONS=discard\nLINEWISE=\n";
    script += &scripts(&["guest.sh"]);
    script += &scripts(workload);
    let archive = files.join("payload.tar");
    let mut programs = vec![format!("scripts={SCRIPTS}")];
    programs.extend(round.cell.workload.programs().iter().map(|text| (*text).into()));
    if round.cell.workload == Workload::Fsx {
        programs.push(format!("power={}", power()));
    }
    payload(&archive, &programs).await;
    let disk = format!("file={uri},format=raw,if=virtio,discard=unmap");
    let archive = format!("file={},format=raw,if=virtio,read-only=on", archive.display());
    Machine::boot(&script, &["-drive", &disk, "-drive", &archive])
}

/// Makes an archive of programs and files for a guest.
pub(crate) async fn payload(archive: &Path, programs: &[String]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/vm-payload.sh");
    run(command([script]).arg(archive).args(programs)).await;
}
