//! The NBD server: connections over TCP and Unix sockets.

pub mod export;

pub use export::{
    Allocation, Export, ExportDescription, ExportError, Exports, ListEntry, OpenError, Segment,
};
