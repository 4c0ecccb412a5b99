//! Errors of the transmission phase (NBD `doc/proto.md`, "Error values").

/// An error value of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Error {
    /// `NBD_EPERM` (1): operation not permitted.
    Perm,
    /// `NBD_EIO` (5): input/output error.
    Io,
    /// `NBD_ENOMEM` (12): cannot allocate memory.
    NoMem,
    /// `NBD_EINVAL` (22): invalid argument.
    Inval,
    /// `NBD_ENOSPC` (28): no space left on device.
    NoSpc,
    /// `NBD_EOVERFLOW` (75): value too large.
    Overflow,
    /// `NBD_ENOTSUP` (95): operation not supported.
    NotSup,
    /// `NBD_ESHUTDOWN` (108): server is in the process of being shut down.
    Shutdown,
    /// A value that the specification does not name; a client treats it as EINVAL.
    Unknown(u32),
}
