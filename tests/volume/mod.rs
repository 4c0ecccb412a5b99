//! The volume over a store in memory: each test a sentence of its promises.

mod absence;
mod bench;
mod deletion;
mod durability;
mod model;
mod picture;
mod recovery;
mod requests;
mod trouble;
