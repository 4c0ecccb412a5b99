//! The gateway: the volumes of a store as exports of an NBD server, and what the admin server may request of
//! them.
//!
//! It opens a volume for its first client and closes it after its last (`OpenVolumes`), shows volumes as
//! exports (`VolumeExports`), caches what the store holds for a moment (`Catalogue`), and reports its state
//! (`GatewayStatus`). It must not know where settings come from. Invariant: a volume is never open twice.

mod catalogue;
mod census;
mod exports;
mod failure;
mod open_volumes;
mod server_metrics;
mod status;
mod store_check;
mod surface;

pub(crate) use catalogue::Catalogue;
pub(crate) use census::Census;
pub(crate) use exports::VolumeExports;
pub(crate) use failure::chain;
pub(crate) use open_volumes::{Next, OpenVolumes, Options};
pub(crate) use status::{GatewayStatus, Serving};
pub(crate) use store_check::StoreCheck;
pub use surface::{Failure, Gateway, IfHeld, Known, OpenVolume, Stage};
