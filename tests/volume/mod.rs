//! The volume over a store in memory: each test a sentence of its promises.

mod bench;
mod deletion;
mod durability;
mod huge;
mod model;
mod picture;
mod recovery;
mod requests;
mod trouble;
