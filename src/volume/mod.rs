//! Volumes: disks whose data lives in an object store.
//!
//! Owns the format, the memory state and the tasks of a volume, and the names of volumes. It must not know
//! NBD, sockets or configuration files: the layers above use [`Volume`] and [`catalog`]. Invariant: a change
//! that was answered as durable is never lost, and no read returns anything but what was written.
//!
//! # In which order to read it
//!
//! Each of these modules imports only from those above it; `tests/tidy` checks that.
//!
//! 1. `format`: the bytes of every object, as docs/FORMAT.md describes them.
//! 2. `error`, `info`, `options`, `signal`, `census`: what can fail, be known and be set; what a store holds.
//!    `store_exact`, `held`: how an object is created or replaced exactly once.
//! 3. `state`: what an open volume has in memory, from the dirty layer to the root.
//! 4. `cache`: clean pages, by object and page; what fetches and verifies them.
//! 5. `budget`, `environment`, `objects`, `shared`: what volumes share, and what one volume's tasks share.
//!    `clones`: whether a clone still exists.
//! 6. `read`: which layer has a range, and its bytes. `write`: changes and commits. `keeper`: head and lease.
//!    `warming`: what is read first is recorded, and loaded at the next opening.
//! 7. `collect`: deletes what nothing references any more.
//! 8. `fold`: makes new objects and a new root from the journal.
//! 9. `pins`: requests that clones may be in the way of. `flatten`: a clone gets objects of its own.
//!    `disk`: the open volume, as its users see it.
//! 10. `open`: lease, replay, opening record. `catalog`: names; how volumes are created, opened by name,
//!     renamed and deleted.
//! 11. `snapshot`: a snapshot as a disk that can only be read. `diff`: what differs between two contents.
//! 12. `import`: a new volume from content that comes in order. `incremental`: what differs between two
//!     snapshots, as a stream that brings a copy up to date.
//! 13. `check`: verifies a volume in the store without opening it.
//! 14. `gc`: deletes, on request, what a check finds that nothing references.

mod budget;
pub mod cache;
pub mod catalog;
pub mod census;
pub mod check;
mod clones;
mod collect;
pub mod diff;
mod disk;
mod environment;
pub mod error;
mod flatten;
mod fold;
pub mod format;
pub mod gc;
mod held;
mod import;
pub mod incremental;
mod info;
mod keeper;
mod objects;
mod open;
pub mod options;
mod pins;
pub mod read;
pub mod shared;
pub mod signal;
pub mod snapshot;
pub mod state;
mod store_exact;
mod warming;
mod write;

pub use budget::DirtyBudget;
pub use cache::{Brought, PageCache};
pub use diff::{Change, Diff, Portion, Side};
pub use disk::Volume;
pub use environment::Environment;
pub use error::{
    CloneError, CollectError, DiffError, Error, ImportError, Mentioned, OpenError, ReceiveError, ResizeError,
    SnapshotError,
};
pub use flatten::Flattened;
pub use import::{IN_FLIGHT_BYTES, Import};
pub use options::{Entropy, Options, WallClock};
pub use read::picture::{Cell, Picture};
pub use read::{Extent, Segment};
pub use snapshot::SnapshotDisk;
pub use state::{Status, Usage};
pub use warming::{Warm, Warmed};
pub use write::resize::Shrink;
