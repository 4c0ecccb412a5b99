//! Power cuts under real programs: databases and file systems on a disk of ours, and Cairn itself on the disk of a machine
//! that loses its power.
//!
//! * [`matrix`]: ext4, xfs and btrfs, each under PostgreSQL, SQLite, fio and a small fsx ([`fsx`]), in a virtual machine
//!   and on this one; the machine's power and the gateway go at a point that the seed picks.
//! * [`directory`]: Cairn in a virtual machine with its store in a directory of the guest's disk, so that what was not
//!   synced there is lost with the guest's memory.
//! * [`replay`]: the commands that a workload gave to a disk ([`recorded`]), given to a volume in a simulation that crashes.
//!
//! Part of the binary `simulation`, which is the one that can commit deliberate faults, and which runs in the guest as
//! [`fsx`]. tests/README.md says what the variables `CAIRN_POWER_*` choose.

mod cell;
mod directory;
mod fsx;
mod matrix;
mod recorded;
mod recovered;
mod replay;
mod running;

/// A number that the environment gives.
fn asked(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// What the points at which the power is cut are drawn from: another number with each commit, unless one is asked for.
fn seed() -> u64 {
    asked("CAIRN_POWER_SEED", asked("CAIRN_POWER_TURN", 0) + 1)
}
