//! The client: against our server, against other programs' servers, and against servers that break the protocol.

mod encrypted;
mod lost;
mod others;
mod ours;
mod violations;
