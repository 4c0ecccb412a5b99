//! The volume over a store in memory: each test a sentence of its promises.

mod absence;
mod amplification;
mod bench;
mod bounds;
mod cost;
pub(crate) mod crowd;
mod deletion;
mod durability;
mod engine;
mod engine_trouble;
mod huge;
mod model;
mod names;
mod picture;
mod recovery;
mod requests;
mod stored;
mod trouble;
