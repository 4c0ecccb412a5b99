//! Volumes and their names: create, list, look up, open, rename, delete, bring back.
//!
//! Owns the objects under which names are bound, the creation, cloning and deletion of volumes, and how a
//! name leads to an open volume. It must not know what is written to a volume. Invariant: a name is bound
//! only to a complete volume, and is taken from a volume only when that is deleted or has another name.

mod cloning;
mod deletion;
pub(super) mod draft;
mod name;
mod needed;
mod opening;
mod rename;
mod settle;
mod undelete;
mod volumes;
mod watch;

pub use self::cloning::clone;
pub use super::clones::name_of;
pub use super::format::geometry::ChunkBytes;
pub use super::info::Info;
pub use deletion::{delete, delete_by_id, delete_kept};
pub use opening::{open, rename};
pub use undelete::{Deleted, choose, deleted, set_aside, undelete, undelete_by};
pub use volumes::{
    CONCURRENT_LOOKUPS, Listed, Progress, Unnamed, check, create, info, list, resolve, unnamed, volumes,
};
pub use watch::Watch;
