//! Crashes of the real program against a real MinIO. A proxy injects faults, and the clients stamp every
//! cell. The seed chooses when the gateway, the proxy or MinIO is killed. The recovered data is checked by
//! the rules of the simulation ([`crate::checker`]).
//!
//! `CAIRN_CRASH_ROUNDS` sets the number of rounds, of which a run of all tests has time for a few only.
//! `CAIRN_CRASH_SEED` chooses other rounds.

mod ends;
mod outage;
mod rounds;
mod trap;
