//! The gateway: the volumes of a store as exports of an NBD server, and what the admin server may request of
//! them.
//!
//! It opens a volume for its first client and closes it after its last (`OpenVolumes`), and so it does with
//! snapshots (`OpenSnapshots`). It shows both as exports (`VolumeExports`), caches what the store holds for a
//! moment (`Catalogue`), takes snapshots by a schedule (`Scheduler`), deletes volumes for good that nobody
//! has brought back (`Reaper`), and reports its state (`GatewayStatus`). It must not know where settings come
//! from. Invariant: a volume is never open twice.

mod catalogue;
mod census;
mod changed_since;
mod exports;
mod facts;
mod failure;
mod open_snapshots;
mod open_volumes;
mod reaper;
mod schedule;
mod scheduler;
mod server_metrics;
mod snapshot_export;
mod status;
mod store_check;
mod surface;
mod translation;
mod unopened;

pub(crate) use catalogue::Catalogue;
pub(crate) use census::Census;
pub(crate) use exports::VolumeExports;
pub(crate) use failure::chain;
pub(crate) use open_snapshots::OpenSnapshots;
pub(crate) use open_volumes::{Next, OpenVolumes, Options};
pub(crate) use reaper::Reaper;
pub(crate) use schedule::Schedule;
pub(crate) use scheduler::Scheduler;
pub(crate) use status::{GatewayStatus, Serving};
pub(crate) use store_check::StoreCheck;
pub use surface::{Failure, Fate, Gateway, IfHeld, Known, OpenVolume, Stage};
