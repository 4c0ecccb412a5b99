//! Power cuts under real programs: databases and file systems on a disk of ours, and Cairn itself on the disk of a machine
//! that loses its power.
//!
//! * [`matrix`]: ext4, xfs and btrfs, each under PostgreSQL, SQLite, fio and a small fsx ([`fsx`]), in a virtual machine
//!   and on this one; the machine's power and the gateway go at a point that the seed picks.
//! * [`directory`]: Cairn in a virtual machine with its store in a directory of the guest's disk, so that what was not
//!   synced there is lost with the guest's memory.
//! * [`replay`]: the commands that a workload gave to a disk ([`recorded`]), given to a volume in a simulation that crashes.
//!
//! A binary of its own, which is built once more to test the tests, and which runs in the guest as [`fsx`].
//! tests/README.md says what the variables `CAIRN_POWER_*` choose.

#![allow(clippy::unwrap_used, reason = "a test fails by unwrapping")]

mod cell;
#[path = "../checker/mod.rs"]
#[allow(dead_code, reason = "the simulation uses the rest")]
mod checker;
mod directory;
mod fsx;
mod matrix;
mod recorded;
mod recovered;
mod replay;
mod running;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "the integration tests use the rest")]
mod support;

/// A number that the environment gives.
fn asked(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// What the points at which the power is cut are drawn from: another number with each commit, unless one is asked for.
fn seed() -> u64 {
    asked("CAIRN_POWER_SEED", asked("CAIRN_POWER_TURN", 0) + 1)
}
