//! A simulation of gateways, a volume and an object store that is a function of its seed.
//!
//! The volume, the store's decorators, and the NBD server and client run the released code. Their
//! surroundings are simulated: gateways with their own runtimes, clocks and memories ([`gateway`]) that
//! crash, pause and fight for the volume ([`driver`]); requests that are late, lost, refused, repeated or
//! damaged in transit ([`weather`], [`world`], [`link`]); and clients that stamp what they write ([`client`],
//! [`cells`]), half of them over NBD ([`wire`]).
//!
//! What is checked:
//!
//! * Every read returns the last answered change of each cell, or one that was in flight ([`history`]).
//! * At each opening, and at moments in between as if the gateway crashed there, an opener recovers the state
//!   after a prefix of the changes, with whole changes only and everything that a FLUSH covered ([`prefix`],
//!   [`bucket`]).
//! * Every object that the head, the root, the snapshots and the journal reference exists and is sound; at the
//!   end, no other object exists.
//! * A snapshot has the state at one instant between the call and its answer, whoever reads it and whenever. It
//!   exists from its answer until it is deleted, and one that was not answered has one outcome ([`snapshots`]).
//! * No command that was issued after the volume stopped succeeds, nor does a read of a strict volume after
//!   its lease expired.
//! * Every record is within its limit. Whenever a gateway has run, so are its requests of each class, its
//!   records in flight, its dirty and clean bytes, the journal with the records to come, and every delete
//!   request. A checkpoint leaves no journal ([`bounds`]).
//! * While a volume is open, it waits for a refusal by the store to end as long as for an outage
//!   ([`bounds`]).
//! * A volume that was created and that no process deletes is found under its name and can be opened. No
//!   deletion takes the name of another volume. No listing fails because of one volume. Whatever was
//!   interrupted is found and removed at the end ([`names`], [`ledger`]).
//! * A deleted volume is kept for its time, and can be brought back with what was flushed to it. A volume in use
//!   always has one name ([`undeletes`]).
//! * A size that was answered lasts, everyone sees it, and what was beyond the end of the disk never comes back
//!   ([`sizes`]).
//! * A clone has what its snapshot has, and keeps it, whatever is deleted and whoever crashes ([`clones`]).
//! * If an object was damaged or lost at rest, every read is right or fails ([`rot`]).
//! * Only errors that the weather explains occur; in fair weather every request is answered.
//!
//! The power cuts ([`power`]) are in the same binary, so that code with mutants is built only once.
//!
//! `CAIRN_SIM_SEEDS=from..to` selects the seeds, `CAIRN_SIM_TRACE=1` prints every event, and
//! `CAIRN_SIM_LEDGER=<file>` appends a line about a run that broke no promise.

#![allow(clippy::unwrap_used, reason = "a test fails by unwrapping")]

mod bounds;
mod bucket;
#[path = "../checker/mod.rs"]
mod checker;
mod client;
mod clones;
mod driver;
mod explained;
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
mod sizes;
mod snapshots;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "the integration tests use the rest")]
mod support;
mod trace;
mod undeletes;
mod weather;
mod wire;
mod world;

use checker::{cells, history, prefix};
