//! The NBD specification, MUST by MUST, against the real server over a pipe in memory.
//!
//! Each test is a sentence of `doc/proto.md`; what is sent and expected is bytes.

mod commands;
mod contexts;
mod crowd;
mod extended_headers;
mod greeting;
mod index;
mod leavers;
mod limits;
mod metadata;
mod options;
mod shutdown;
mod stalled;
mod structured_replies;
mod tls;
