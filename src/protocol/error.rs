//! Errors of the transmission phase (NBD `doc/proto.md`, "Error values").
//!
//! Owns the error values and their numbers; must not know which command can fail with which error. Invariant:
//! an error never encodes as 0, which means success.

use std::fmt;

/// The error value in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
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
    /// `NBD_ESHUTDOWN` (108): the server is shutting down.
    Shutdown,
    /// A value that the specification does not define. Clients treat it as EINVAL.
    Unknown(u32),
}

impl Error {
    /// Decodes the error field of a reply, in which 0 means success.
    pub fn check(value: u32) -> Result<(), Self> {
        match value {
            0 => Ok(()),
            1 => Err(Self::Perm),
            5 => Err(Self::Io),
            12 => Err(Self::NoMem),
            22 => Err(Self::Inval),
            28 => Err(Self::NoSpc),
            75 => Err(Self::Overflow),
            95 => Err(Self::NotSup),
            108 => Err(Self::Shutdown),
            other => Err(Self::Unknown(other)),
        }
    }

    /// Returns the number on the wire, which is never 0.
    #[must_use]
    pub fn value(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::NoMem => 12,
            Self::Inval | Self::Unknown(0) => 22,
            Self::NoSpc => 28,
            Self::Overflow => 75,
            Self::NotSup => 95,
            Self::Shutdown => 108,
            Self::Unknown(other) => other,
        }
    }

    /// Converts an `errno` of Linux. EACCES and EROFS become EPERM, EDQUOT and EFBIG become ENOSPC, and every
    /// other value that the specification does not define becomes EIO.
    #[must_use]
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            1 | 13 | 30 => Self::Perm,
            12 => Self::NoMem,
            22 => Self::Inval,
            27 | 28 | 122 => Self::NoSpc,
            75 => Self::Overflow,
            95 => Self::NotSup,
            108 => Self::Shutdown,
            _ => Self::Io,
        }
    }
}

/// Writes the name in the specification and its meaning.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Perm => f.write_str("EPERM: operation not permitted"),
            Self::Io => f.write_str("EIO: input/output error"),
            Self::NoMem => f.write_str("ENOMEM: cannot allocate memory"),
            Self::Inval => f.write_str("EINVAL: invalid argument"),
            Self::NoSpc => f.write_str("ENOSPC: no space left on device"),
            Self::Overflow => f.write_str("EOVERFLOW: value too large"),
            Self::NotSup => f.write_str("ENOTSUP: operation not supported"),
            Self::Shutdown => f.write_str("ESHUTDOWN: server is being shut down"),
            Self::Unknown(value) => write!(f, "unknown error {value}"),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_specification() {
        let listed = [
            (1, Error::Perm),
            (5, Error::Io),
            (12, Error::NoMem),
            (22, Error::Inval),
            (28, Error::NoSpc),
            (75, Error::Overflow),
            (95, Error::NotSup),
            (108, Error::Shutdown),
            (2, Error::Unknown(2)),
        ];
        for (value, error) in listed {
            assert_eq!(Error::check(value), Err(error));
            assert_eq!(error.value(), value);
        }
        assert_eq!(Error::check(0), Ok(()));
    }

    #[test]
    fn no_error_is_sent_as_success() {
        assert_eq!(Error::Unknown(0).value(), 22);
    }

    #[test]
    fn edquot_and_efbig_are_enospc() {
        assert_eq!(Error::from_errno(122), Error::NoSpc);
        assert_eq!(Error::from_errno(27), Error::NoSpc);
        assert_eq!(Error::from_errno(110), Error::Io);
    }
}
