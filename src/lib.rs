//! Cairn: an NBD server whose disks live in object storage, and an NBD protocol library and client.
//!
//! # The layers
//!
//! Arrows go one way only; `tests/tidy` fails on an arrow that is not in this list.
//!
//! ```text
//! protocol        → nothing                    wire types and the handshake machine: no tokio, no clock, no log
//! task, metrics, config → nothing              spawning with an owner; every metric; every setting
//! mutant          → nothing                    deliberate faults, in builds that test the tests
//! store           → metrics, task, mutant      get/put/delete/list over S3, a directory, memory; decorators
//! volume          → store, metrics, task, mutant   what a disk is: map, journal, cache, commit, fold, recovery
//! server          → protocol, metrics, task, mutant   NBD over TCP and Unix sockets; owns the trait `Export`
//! client          → protocol, task             an NBD client
//! gateway         → volume, server, protocol, store, metrics, task   volumes as exports: opening, closing, catalogue, status
//! admin           → gateway, volume, server, metrics, task   HTTP: metrics, health, the API, the status page
//! cli             → all                        maps configuration to each layer's `Options`
//! main            → cli                        the program
//! ```
//!
//! # The way of a command through the house
//!
//! * WRITE: `server::connection` → `server::transmission` → `server::Export` → `volume::Volume::write` → `volume::layer`
//! * FLUSH: … → `volume::Volume::flush` → `volume::commit` → `store::Store::put`
//! * cold READ: … → `volume::Volume::read` → `volume::read` → `volume::cache` → `store::Store::get`

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
