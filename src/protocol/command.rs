//! Commands of the transmission phase (NBD `doc/proto.md`, "Request types").
//!
//! Owns their numbers, and which flags the specification documents for each.

use std::fmt;

use super::flags::CommandFlags;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Command {
    /// `NBD_CMD_READ` (0).
    Read,
    /// `NBD_CMD_WRITE` (1).
    Write,
    /// `NBD_CMD_DISC` (2).
    Disc,
    /// `NBD_CMD_FLUSH` (3).
    Flush,
    /// `NBD_CMD_TRIM` (4).
    Trim,
    /// `NBD_CMD_CACHE` (5).
    Cache,
    /// `NBD_CMD_WRITE_ZEROES` (6).
    WriteZeroes,
    /// `NBD_CMD_BLOCK_STATUS` (7).
    BlockStatus,
    /// `NBD_CMD_RESIZE` (8), of an experimental extension.
    Resize,
    /// A command that the specification does not name.
    Unknown(u16),
}

impl Command {
    /// The command of a request's type field.
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

    /// The number on the wire.
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

    /// The flags that the specification documents for this command. FUA is valid for all commands, and
    /// PAYLOAD_LEN is a matter of the header, not of the command.
    #[must_use]
    pub fn documented_flags(self) -> CommandFlags {
        match self {
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

/// The name in the specification, without its prefix.
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
