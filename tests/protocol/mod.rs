//! The protocol's types against other programs' bytes, and against any bytes.

mod golden;
mod handshake;
mod names;
mod properties;
mod serialized;
