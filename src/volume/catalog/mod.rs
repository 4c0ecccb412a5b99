//! Volumes and their names: create, list, look up, delete.

mod deletion;
mod name;
mod volumes;

pub use super::info::Info;
pub use deletion::{delete, delete_by_id};
pub use volumes::{
    CONCURRENT_LOOKUPS, Listed, Progress, Unnamed, check, create, info, list, resolve, unnamed, volumes,
};
