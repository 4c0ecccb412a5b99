//! The volume over a store in memory: each test a sentence of its promises.

mod bench;
mod bounds;
mod deletion;
mod durability;
mod model;
mod picture;
mod recovery;
mod requests;
mod trouble;
