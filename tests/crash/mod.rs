//! Crashes of real parts: the program against MinIO through a proxy that injects faults, under clients that stamp every
//! cell; gateway, proxy or MinIO are killed at points that the seed picks, and what is recovered is checked by the rules
//! of the simulation ([`crate::checker`]).
//!
//! `CAIRN_CRASH_ROUNDS` asks for more rounds than a run of all tests has time for, `CAIRN_CRASH_SEED` for others.

mod ends;
mod outage;
mod rounds;
mod trap;
