//! A virtual machine: QEMU in software emulation, with a serial console to read and a script to run.

use tempfile::TempDir;

use super::minio::tools;
use super::process::{Process, command};

/// A machine that runs one script. Its messages are the lines that begin with `vm: `.
pub(crate) struct Machine {
    pub(crate) process: Process,
    _files: TempDir,
}

impl Machine {
    /// Boots with this script and further arguments for QEMU.
    pub(crate) fn boot(script: &str, arguments: &[&str]) -> Self {
        let files = tempfile::tempdir().expect("a directory for the machine");
        let path = files.path().join("script");
        std::fs::write(&path, script).expect("the directory can be written");
        let image = tools().join("vm/current");
        let mut qemu =
            command(["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "512"]);
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]);
        qemu.arg("-kernel").arg(image.join("vmlinuz")).arg("-initrd").arg(image.join("initrd"));
        qemu.args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check"]);
        qemu.arg("-fw_cfg").arg(format!("name=opt/script,file={}", path.display()));
        let process =
            Process::spawn("the virtual machine (see tests/tools/vm-image.sh)", qemu.args(arguments));
        Self { process, _files: files }
    }

    /// Waits until the guest has printed this message.
    pub(crate) async fn says(&mut self, what: &str) {
        let wanted = format!("vm: {what}");
        self.process
            .wait_until(&format!("the guest says {what}"), |lines| {
                let ended = lines.iter().any(|line| line.starts_with("vm: ended"));
                assert!(!ended, "the guest's script ended:\n{}", lines.join("\n"));
                lines.contains(&wanted).then_some(())
            })
            .await;
    }

    /// Returns the messages of the guest so far that begin with `prefix`, without the prefix.
    pub(crate) fn lines(&self, prefix: &str) -> Vec<String> {
        let prefix = format!("vm: {prefix}");
        self.process
            .output()
            .lines()
            .filter_map(|line| line.strip_prefix(&prefix))
            .map(str::to_owned)
            .collect()
    }

    /// Stops the machine like a power cut: nothing more is written, and it prints nothing more.
    pub(crate) async fn cut_power(&mut self) {
        self.process.kill().await;
    }
}
