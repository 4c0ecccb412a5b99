//! The commands of the transmission phase (NBD `doc/proto.md`, "Request types").
//!
//! Owns their numbers and the flags that the specification documents for each; must not know how a command is
//! carried out. Invariant: every number decodes to a command and encodes to itself.

use std::fmt;

use super::flags::CommandFlags;

/// The command of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Command {
    /// `NBD_CMD_READ` (0): read a range.
    Read,
    /// `NBD_CMD_WRITE` (1): write the payload that follows.
    Write,
    /// `NBD_CMD_DISC` (2): end the connection.
    Disc,
    /// `NBD_CMD_FLUSH` (3): make completed writes durable.
    Flush,
    /// `NBD_CMD_TRIM` (4): discard a range.
    Trim,
    /// `NBD_CMD_CACHE` (5): prefetch a range.
    Cache,
    /// `NBD_CMD_WRITE_ZEROES` (6): make a range read as zeros.
    WriteZeroes,
    /// `NBD_CMD_BLOCK_STATUS` (7): report the state of a range in the selected metadata contexts.
    BlockStatus,
    /// `NBD_CMD_RESIZE` (8): change the size; part of an experimental extension.
    Resize,
    /// A number that the specification does not assign.
    Unknown(u16),
}

impl Command {
    /// Returns the command in the type field of a request.
    #[must_use]
    pub fn from_wire(value: u16) -> Self {
        match value {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disc,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            8 => Self::Resize,
            other => Self::Unknown(other),
        }
    }

    /// Returns the number on the wire.
    #[must_use]
    pub fn value(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disc => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Resize => 8,
            Self::Unknown(other) => other,
        }
    }

    /// Returns the flags that the specification documents for this command. FUA is valid for all commands.
    /// PAYLOAD_LEN depends on the header style and is not included.
    #[must_use]
    pub fn documented_flags(self) -> CommandFlags {
        match self {
            //= Command flags: the server MUST accept all commands with this bit set (even by ignoring the
            //# bit)
            Self::Read => CommandFlags::FUA | CommandFlags::DF,
            Self::WriteZeroes => CommandFlags::FUA | CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
            Self::BlockStatus => CommandFlags::FUA | CommandFlags::REQ_ONE,
            Self::Write
            | Self::Disc
            | Self::Flush
            | Self::Trim
            | Self::Cache
            | Self::Resize
            | Self::Unknown(_) => CommandFlags::FUA,
        }
    }
}

/// Writes the name in the specification, without its prefix.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "READ",
            Self::Write => "WRITE",
            Self::Disc => "DISC",
            Self::Flush => "FLUSH",
            Self::Trim => "TRIM",
            Self::Cache => "CACHE",
            Self::WriteZeroes => "WRITE_ZEROES",
            Self::BlockStatus => "BLOCK_STATUS",
            Self::Resize => "RESIZE",
            Self::Unknown(value) => return write!(f, "unknown command {value}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_specification() {
        for value in 0..=9 {
            assert_eq!(Command::from_wire(value).value(), value);
        }
        assert_eq!(Command::from_wire(6), Command::WriteZeroes);
        assert_eq!(Command::from_wire(9), Command::Unknown(9));
    }
}
