//! Volumes and their names: create, list, look up, rename, delete.
//!
//! Owns the objects under which names are bound, and the creation, cloning and deletion of volumes. It must
//! not open a volume or know what is written to it. Invariant: a name is bound only to a complete volume, and
//! is taken from a volume only when that is being deleted or has another name.

mod cloning;
mod deletion;
pub(super) mod draft;
mod name;
mod needed;
mod rename;
mod volumes;

pub use self::cloning::clone;
pub use super::clones::name_of;
pub use super::format::geometry::ChunkBytes;
pub use super::info::Info;
pub use deletion::{delete, delete_by_id};
pub use rename::{finish_rename, rename};
pub use volumes::{
    CONCURRENT_LOOKUPS, Listed, Progress, Unnamed, check, create, info, list, resolve, unnamed, volumes,
};
