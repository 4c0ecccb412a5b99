//! Cairn: an NBD server whose disks live in object storage, and an NBD protocol library and client.
//!
//! # The library
//!
//! With `default-features = false`, this crate only contains the NBD library: [`protocol`] has the wire types
//! and the handshake of both sides without I/O, [`server`] serves anything that implements
//! [`server::Export`], and [`client`] sends commands to any NBD server. These modules and [`effect`], whose
//! enums they share, are the stable interface.
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `gateway` | yes | the program: disks in object storage, the admin API, metrics, configuration |
//! | `serde` | yes | `Serialize` and `Deserialize` for the types of [`protocol`] |
//!
//! The modules of the gateway are public for the program and the tests. They may change in any release.
//!
//! This example serves a disk in memory, and connects a client to it:
//!
//! ```
//! use std::sync::{Arc, Mutex};
//!
//! use bytes::Bytes;
//! use cairn::client::{self, Client};
//! use cairn::server::{
//!     self, Durability, Export, ExportDescription, ExportError, Greeting, Segment, Server,
//! };
//!
//! /// A disk of 1 MiB in memory.
//! struct Memory(Mutex<Vec<u8>>);
//!
//! #[async_trait::async_trait]
//! impl Export for Memory {
//!     fn description(&self) -> ExportDescription {
//!         ExportDescription::new("disk", 1 << 20)
//!     }
//!
//!     async fn read(&self, offset: u64, length: u32) -> Result<Vec<Segment>, ExportError> {
//!         let bytes = self.0.lock().unwrap();
//!         let data = &bytes[offset as usize..][..length as usize];
//!         Ok(vec![Segment::Data(Bytes::copy_from_slice(data))])
//!     }
//!
//!     async fn write(&self, offset: u64, data: Bytes, _: Durability) -> Result<(), ExportError> {
//!         self.0.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(&data);
//!         Ok(())
//!     }
//!
//!     async fn flush(&self) -> Result<(), ExportError> {
//!         Ok(()) // never called: the description does not set SEND_FLUSH
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let disk = Memory(Mutex::new(vec![0; 1 << 20]));
//! let exports = server::SingleExport::new("disk", Arc::new(disk));
//! let server = Server::new(Arc::new(exports), server::Options::default(), server::NoMetrics);
//! let listener = server::Listener::bind(&"127.0.0.1:0".parse()?).await?;
//! let address = server.listen(listener, Greeting::Newstyle);
//!
//! let uri = format!("nbd://{address}/disk").parse()?;
//! let client = Client::connect(&uri, &client::Options::default()).await?;
//! client.write(4096, Bytes::from_static(b"hello"), Durability::Volatile).await?;
//! assert_eq!(client.read(4096, 5).await?, "hello");
//! client.disconnect().await;
//! server.drain().await;
//! # Ok(())
//! # }
//! ```
//!
//! # The layers
//!
//! Dependencies point in one direction only. `tests/tidy` fails if the code has one that is not in this list.
//!
//! ```text
//! protocol → nothing        wire types and the handshake machine: no tokio, no clock, no log
//! task, metrics, config → nothing        spawning with an owner; every metric; every setting
//! buffers  → nothing        large buffers for reuse
//! effect   → nothing        how a write or a zeroing takes effect: the same enums for all layers
//! mutant   → nothing        deliberate faults, in builds that test the tests
//! store    → metrics, task, mutant, buffers  get/put/delete/list over S3, a directory, memory; decorators
//! volume   → store, metrics, task, mutant, effect, buffers  what a disk is: map, journal, cache, fold
//! server   → protocol, task, mutant, effect, buffers  NBD over TCP and Unix sockets; the trait `Export`
//! client   → protocol, task, effect  an NBD client
//! gateway  → volume, server, protocol, store, metrics, task, effect  exports, catalogue, status
//! admin    → gateway, volume, server, metrics, task  HTTP: metrics, health, the API, the status page
//! cli      → all            maps configuration to each layer's `Options`
//! main     → cli            the program
//! ```
//!
//! # The path of a command
//!
//! From `main` to a connection: `cli::main` → `cli::serve` → `server::serve` → `server::connection`.
//! From a connection to the store:
//!
//! * WRITE: `server::transmission` → `server::execute` → `server::Export`, which is `gateway::exports` →
//!   `volume::disk` (`Volume::write`) → `volume::write::change` → `volume::state::layer`
//! * FLUSH: … → `volume::disk` (`Volume::flush`), which waits for `volume::write::commit`; that waits until
//!   `volume::write::upload` has put the filled chunks → `volume::store_exact` → the store
//! * cold READ: … → `volume::disk` (`Volume::read`) → `volume::read` → `volume::cache` → the store
//!
//! "The store" is a class of requests in `store::classes`: `store::retry` → `store::limit` →
//! `store::instrument` → a backend, which is `store::s3`, `store::local` or `store::memory`.

#![forbid(unsafe_code)]

#[cfg(feature = "gateway")]
pub mod admin;
mod buffers;
#[cfg(feature = "gateway")]
#[doc(hidden)]
pub mod cli;
pub mod client;
#[cfg(feature = "gateway")]
pub mod config;
pub mod effect;
#[cfg(feature = "gateway")]
pub mod gateway;
#[cfg(feature = "gateway")]
pub mod metrics;
#[doc(hidden)]
pub mod mutant;
pub mod protocol;
pub mod server;
#[cfg(feature = "gateway")]
pub mod store;
#[doc(hidden)]
pub mod task;
#[cfg(feature = "gateway")]
pub mod volume;
