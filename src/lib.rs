//! Cairn: an NBD server whose disks live in object storage, and an NBD protocol library and client.
//!
//! # The layers
//!
//! Arrows go one way only; `tests/tidy` fails on an arrow that is not in this list.
//!
//! ```text
//! protocol → nothing        wire types and the handshake machine: no tokio, no clock, no log
//! task, metrics, config → nothing        spawning with an owner; every metric; every setting
//! mutant   → nothing        deliberate faults, in builds that test the tests
//! store    → metrics, task, mutant  get/put/delete/list over S3, a directory, memory; decorators
//! volume   → store, metrics, task, mutant  what a disk is: map, journal, cache, commit, fold, recovery
//! server   → protocol, metrics, task, mutant  NBD over TCP and Unix sockets; owns the trait `Export`
//! client   → protocol, task  an NBD client
//! gateway  → volume, server, protocol, store, metrics, task  exports, catalogue, status
//! admin    → gateway, volume, server, metrics, task  HTTP: metrics, health, the API, the status page
//! cli      → all            maps configuration to each layer's `Options`
//! main     → cli            the program
//! ```
//!
//! # The way of a command through the house
//!
//! From `main` to a connection: `cli::main` → `cli::serve` → `server::serve` → `server::connection`.
//! From there:
//!
//! * WRITE: `server::transmission` → `server::execute` → `server::Export`, which is `gateway::exports` →
//!   `volume::disk` (`Volume::write`) → `volume::change` → `volume::layer`
//! * FLUSH: … → `volume::disk` (`Volume::flush`), which waits for `volume::commit`; that waits until
//!   `volume::upload` has put the filled chunks → `volume::store_exact` → the store
//! * cold READ: … → `volume::disk` (`Volume::read`) → `volume::read` → `volume::cache` → the store
//!
//! The store is a class of `store::classes`, which is `store::retry` → `store::limit` →
//! `store::instrument` → a backend: `store::s3`, `store::local` or `store::memory`.

#![forbid(unsafe_code)]

pub mod admin;
pub mod cli;
pub mod client;
pub mod config;
pub mod gateway;
pub mod metrics;
pub mod mutant;
pub mod protocol;
pub mod server;
pub mod store;
pub mod task;
pub mod volume;
