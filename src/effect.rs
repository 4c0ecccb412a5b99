//! How a command takes effect: choices that every layer passes on unchanged, from a client to the volume.
//!
//! Owns these choices, and must not know how NBD encodes them or what a disk is. Invariant: each is an enum,
//! so that no caller can exchange one for another.

/// When a change is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// As soon as reads return it. It is durable after the next FLUSH, as with the volatile cache of a disk.
    Volatile,
    /// Only when the change is durable: forced unit access, `NBD_CMD_FLAG_FUA`.
    Durable,
}

/// What happens to the storage of a range that is zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// The range stays allocated: `NBD_CMD_FLAG_NO_HOLE`.
    Allocate,
    /// The range becomes a hole.
    Deallocate,
}

/// How long zeroing may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroSpeed {
    /// As long as writing the zeros.
    Any,
    /// The command fails with ENOTSUP if it would be no faster than writing: `NBD_CMD_FLAG_FAST_ZERO`.
    Fast,
}
