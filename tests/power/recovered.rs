//! Making the file system before the first power cut, and looking at it after each.

use std::path::Path;

use super::cell::Cell;
use super::running::{Round, power, scripts};
use crate::support::cairn::Gateway;
use crate::support::process::{command, finish, run};

/// Bytes of the disk. xfs wants 300 MiB.
pub(crate) const DISK: u64 = 512 << 20;

/// Makes a file system on the disk with what the workload starts from, durably.
pub(crate) async fn make(cell: Cell, uri: &str, size: u64) {
    let files = tempfile::tempdir().expect("a directory for the image");
    let image = files.path().join("image");
    let file = std::fs::File::create(&image).expect("the directory can be written");
    file.set_len(size).expect("files may have holes");
    run(command(cell.file_system.maker()).arg(&image)).await;
    let makers = cell.workload.makers();
    if !makers.is_empty() {
        let round = Round { cell, number: 0, seed: 0 };
        std::fs::write(files.path().join("make.sh"), scripts(makers)).expect("the directory can be written");
        let made = on_image(&round, files.path(), &image, &scripts(&["made.sh"])).await;
        made.unwrap_or_else(|why| panic!("{cell} is not made: {why}"));
    }
    run(command(["nbdcopy", "--flush"]).arg(&image).arg(uri)).await;
}

/// Checks the disk that a new gateway serves: what was answered in the round is there, and the file system is whole.
pub(crate) async fn check(round: &Round, gateway: &Gateway, answered: &[String]) -> Result<(), String> {
    let files = tempfile::tempdir().expect("a directory for the image");
    let image = files.path().join("image");
    run(command(["nbdcopy", &gateway.uri("disk")]).arg(&image)).await;
    check_image(round, files.path(), &image, answered).await
}

/// Checks an image; changes it, as mounting does.
pub(crate) async fn check_image(
    round: &Round,
    work: &Path,
    image: &Path,
    answered: &[String],
) -> Result<(), String> {
    let told = work.join("answered");
    std::fs::write(&told, answered.join("\n") + "\n").expect("the directory can be written");
    let (_, check) = round.cell.workload.scripts();
    std::fs::write(work.join("check.sh"), scripts(check)).expect("the directory can be written");
    let script = format!("ANSWERED={}\n", told.display()) + &scripts(&["recovered.sh"]);
    on_image(round, work, image, &script).await
}

/// Runs a script that mounts the image in namespaces of its own; what it said if it fails.
async fn on_image(round: &Round, work: &Path, image: &Path, script: &str) -> Result<(), String> {
    let mut all = round.variables(work, &power());
    all += &format!("IMAGE={}\n{script}", image.display());
    let unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "sh", "-c", &all];
    let done = finish(&mut command(unshare)).await;
    if done.status.success() {
        Ok(())
    } else {
        // Behind a mark: where a test is what checks, its result must not be counted as ours.
        let said = done.stdout.lines().chain(done.stderr.lines()).map(|line| format!("\n| {line}"));
        Err(said.fold(done.status.to_string(), |all, line| all + &line))
    }
}
