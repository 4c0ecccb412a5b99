//! A simulation of gateways, a volume and an object store, that is a function of its seed.
//!
//! The code of the volume, of the store's decorators, and of the NBD server and client runs as it is released. What is simulated is its
//! surroundings: gateways with runtimes, clocks and memories of their own ([`gateway`]) that crash, stand still and
//! fight for the volume ([`driver`]); requests that are late, lost, refused, repeated or damaged on their way
//! ([`weather`], [`world`], [`link`]); and clients that stamp what they write ([`client`], [`cells`]),
//! half of them over NBD ([`wire`]).
//!
//! What is checked:
//!
//! * every read gives the last answered change of each cell or one that was under way ([`history`]);
//! * at each opening, and at moments in between as if the gateway crashed there, what an opener recovers is the state
//!   after a prefix of the changes, whole changes only, with all that a FLUSH covered ([`prefix`], [`bucket`]);
//! * whatever head, root and journal name is there and whole; at the end, nothing else is;
//! * nothing succeeds that was asked after the volume had stopped, nor a read of a strict one after its lease was over;
//! * every record is within its bound, and so are, whenever a gateway has run, its requests of each class, its records on
//!   their way, dirty and clean bytes, the journal with what is coming, and every delete request; a checkpoint leaves no
//!   journal ([`bounds`]);
//! * while a volume is open, a refusal by the store is waited for as long as an outage is ([`bounds`]);
//! * a volume that was created and that nobody deletes is found under its name and can be opened; no deletion takes the
//!   name of another volume; no listing fails for one volume; whatever was cut short is found and removed at the end
//!   ([`names`], [`ledger`]);
//! * where an object was damaged or lost at rest, what is read is right or an error ([`rot`]);
//! * errors are only those that the weather explains; in fair weather everything is answered.
//!
//! The power cuts ([`power`]) are in the same binary, so that what can commit a deliberate fault is built once.
//!
//! `CAIRN_SIM_SEEDS=from..to` says which seeds run; `CAIRN_SIM_TRACE=1` prints every event; `CAIRN_SIM_LEDGER=<file>`
//! appends a line on a run that broke no promise.

#![allow(clippy::unwrap_used, reason = "a test fails by unwrapping")]

mod bounds;
mod bucket;
#[path = "../checker/mod.rs"]
mod checker;
mod client;
mod driver;
mod finale;
mod gateway;
mod ledger;
mod link;
mod mutants;
mod names;
mod plan;
#[path = "../power/mod.rs"]
mod power;
mod requests;
mod rot;
mod seeds;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "the integration tests use the rest")]
mod support;
mod trace;
mod weather;
mod wire;
mod world;

use checker::{cells, history, prefix};
