//! Where and from which sources a figure was measured.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// Processor, memory, kernel, and the file system of the stores.
pub(crate) fn machine(directory: &Path) -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let memory_kib: u64 =
        field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    let file_system = output("stat", &["--file-system", "--format=%T", &directory.to_string_lossy()]);
    json!({
        "cpu": field(&read("/proc/cpuinfo"), "model name"),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "memory": format!("{} MiB", memory_kib / 1024),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "file_system": file_system,
    })
}

/// The commit of the sources, with a mark if the working tree differs from it.
pub(crate) fn commit() -> String {
    let git = |arguments: &[&str]| {
        output("git", &[&["-C", env!("CARGO_MANIFEST_DIR"), "-c", "safe.directory=*"], arguments].concat())
    };
    let commit = git(&["rev-parse", "--short", "HEAD"]);
    let changes =
        git(&["status", "--porcelain", "--untracked-files=no", "--", "src", "benches", "Cargo.lock"]);
    match (commit.is_empty(), changes.is_empty()) {
        (true, _) => "none".to_owned(),
        (false, true) => commit,
        (false, false) => format!("{commit}, with changes"),
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
