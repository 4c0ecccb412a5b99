//! Drives `blocks.py`, a client that writes numbered blocks and reports which of them were answered.

use crate::support::process::{Process, command, run};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/blocks.py");

/// A client that writes until a command fails.
pub(super) struct Writer {
    process: Process,
}

impl Writer {
    /// Starts a client on a disk whose size is a power of two.
    pub(super) fn start(uri: &str) -> Self {
        Self {
            process: Process::spawn(
                "blocks.py write",
                &mut command(["/usr/bin/python3", SCRIPT, "write", uri]),
            ),
        }
    }

    /// Waits until at least `count` blocks have been flushed.
    pub(super) async fn has_flushed(&mut self, count: u64) {
        let reached = |line: &str| (number(line, "flushed ")? >= count).then_some(());
        self.process.wait_for(&format!("{count} blocks are flushed"), reached).await;
    }

    /// Waits until the client exits. Returns the answers that it received.
    pub(super) async fn end(mut self) -> Answers {
        self.process.exit().await;
        let said = self.process.output();
        let last = |word: &str| said.lines().filter_map(|line| number(line, word)).next_back();
        let failures =
            said.lines().filter_map(|line| line.strip_prefix("failed ")).map(str::to_owned).collect();
        let (written, flushed) = (last("written "), last("flushed "));
        let lines: Vec<_> = said.lines().collect();
        let said = lines[lines.len().saturating_sub(20)..].join("\n");
        Answers { written, flushed, failures, said }
    }
}

/// The answers that a [`Writer`] received before its connections failed.
#[derive(Debug)]
pub(super) struct Answers {
    /// The last block such that its WRITE and the WRITEs of all earlier blocks were answered.
    pub(super) written: Option<u64>,
    /// The last block that an answered FLUSH covers.
    pub(super) flushed: Option<u64>,
    /// `COMMAND ERRNO` for each failed command.
    pub(super) failures: Vec<String>,
    /// The last lines of its output.
    pub(super) said: String,
}

fn number(line: &str, word: &str) -> Option<u64> {
    line.strip_prefix(word)?.parse().ok()
}

/// Asserts that blocks 0 to `last` have the written content, and that no other block is written in part.
pub(super) async fn assert_blocks(uri: &str, last: u64) {
    run(&mut command(["/usr/bin/python3", SCRIPT, "check", uri, &last.to_string()])).await;
}
