//! The NBD protocol: wire types and the handshake machine, without I/O.

pub mod error;
pub mod flags;

pub use error::Error;
pub use flags::TransmissionFlags;
