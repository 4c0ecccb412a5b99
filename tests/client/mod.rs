//! The client: against our server, against other programs' servers, and against servers that break the protocol.

mod encrypted;
mod others;
mod ours;
mod violations;
