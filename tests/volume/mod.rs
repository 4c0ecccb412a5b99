//! The volume over a store in memory: each test a sentence of its promises.

mod absence;
mod amplification;
mod bench;
mod bounds;
mod check;
mod clone;
mod cost;
pub(crate) mod crowd;
mod deletion;
mod durability;
mod engine;
mod engine_trouble;
mod hedge;
mod huge;
mod import;
mod model;
mod names;
mod origins;
mod picture;
mod recovery;
mod rename;
mod requests;
mod resize;
mod snapshots;
mod stored;
mod trouble;
