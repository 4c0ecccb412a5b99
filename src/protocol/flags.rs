//! The flags of the handshake and of the transmission phase.
//!
//! Owns the bits; must not know what follows from them. Invariant: bits that the specification does not
//! define are kept as received, so that a server can refuse them and a client can ignore them.

use std::fmt;

/// Declares a flags type that keeps unknown bits.
macro_rules! wire_flags {
    ($(#[$outer:meta])* $name:ident: $bits:ty { $($(#[$($inner:tt)*])* $flag:ident = $bit:literal;)* }) => {
        bitflags::bitflags! {
            $(#[$outer])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
            pub struct $name: $bits {
                $($(#[$($inner)*])* const $flag = 1 << $bit;)*
            }
        }

        impl $name {
            /// Returns the flags in a field from the wire, including unknown bits.
            #[must_use]
            pub const fn from_wire(bits: $bits) -> Self {
                Self::from_bits_retain(bits)
            }

            /// Returns the bits that the specification does not define.
            #[must_use]
            pub const fn unknown_bits(self) -> $bits {
                self.bits() & !Self::all().bits()
            }
        }

        /// Writes the names in the specification without their prefix, followed by unknown bits as a number.
        /// Writes `none` if no bit is set.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                if self.is_empty() { f.write_str("none") } else { bitflags::parser::to_writer(self, f) }
            }
        }

        /// Serializes the bits as a number, including unknown ones.
        #[cfg(feature = "serde")]
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.bits().serialize(serializer)
            }
        }

        #[cfg(feature = "serde")]
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <$bits>::deserialize(deserializer).map(Self::from_wire)
            }
        }
    };
}

wire_flags! {
    /// Flags that the server sends in its greeting (NBD `doc/proto.md`, "Handshake flags").
    HandshakeFlags: u16 {
        /// `NBD_FLAG_FIXED_NEWSTYLE`: the server supports fixed newstyle negotiation.
        FIXED_NEWSTYLE = 0;
        /// `NBD_FLAG_NO_ZEROES`: the server can omit the 124 zero bytes after EXPORT_NAME.
        NO_ZEROES = 1;
    }
}

wire_flags! {
    /// Flags with which the client answers the handshake flags (NBD `doc/proto.md`, "Client flags").
    ClientFlags: u32 {
        /// `NBD_FLAG_C_FIXED_NEWSTYLE`: the client supports fixed newstyle negotiation.
        FIXED_NEWSTYLE = 0;
        /// `NBD_FLAG_C_NO_ZEROES`: the server must omit the 124 zero bytes after EXPORT_NAME.
        NO_ZEROES = 1;
    }
}

wire_flags! {
    /// The features of an export (NBD `doc/proto.md`, "Transmission flags").
    TransmissionFlags: u16 {
        /// `NBD_FLAG_HAS_FLAGS`: always set.
        HAS_FLAGS = 0;
        /// `NBD_FLAG_READ_ONLY`: commands that write fail.
        READ_ONLY = 1;
        /// `NBD_FLAG_SEND_FLUSH`: FLUSH is supported.
        SEND_FLUSH = 2;
        /// `NBD_FLAG_SEND_FUA`: the command flag FUA is supported.
        SEND_FUA = 3;
        /// `NBD_FLAG_ROTATIONAL`: the export behaves like a rotating disk.
        ROTATIONAL = 4;
        /// `NBD_FLAG_SEND_TRIM`: TRIM is supported.
        SEND_TRIM = 5;
        /// `NBD_FLAG_SEND_WRITE_ZEROES`: WRITE_ZEROES is supported.
        SEND_WRITE_ZEROES = 6;
        /// `NBD_FLAG_SEND_DF`: the command flag DF is supported.
        SEND_DF = 7;
        /// `NBD_FLAG_CAN_MULTI_CONN`: a client may use several connections, because a FLUSH on one covers the
        /// writes on all.
        CAN_MULTI_CONN = 8;
        /// `NBD_FLAG_SEND_RESIZE`: RESIZE is supported (experimental).
        SEND_RESIZE = 9;
        /// `NBD_FLAG_SEND_CACHE`: CACHE is supported.
        SEND_CACHE = 10;
        /// `NBD_FLAG_SEND_FAST_ZERO`: the command flag FAST_ZERO is supported.
        SEND_FAST_ZERO = 11;
        /// `NBD_FLAG_BLOCK_STATUS_PAYLOAD`: BLOCK_STATUS may have a payload that selects contexts.
        BLOCK_STATUS_PAYLOAD = 12;
    }
}

wire_flags! {
    /// Flags of a request (NBD `doc/proto.md`, "Command flags").
    CommandFlags: u16 {
        /// `NBD_CMD_FLAG_FUA`: reply only when the written data is durable.
        FUA = 0;
        /// `NBD_CMD_FLAG_NO_HOLE`: WRITE_ZEROES must leave the range allocated.
        NO_HOLE = 1;
        /// `NBD_CMD_FLAG_DF`: the reply to READ must have at most one content chunk.
        DF = 2;
        /// `NBD_CMD_FLAG_REQ_ONE`: the reply to BLOCK_STATUS must have only one extent per context.
        REQ_ONE = 3;
        /// `NBD_CMD_FLAG_FAST_ZERO`: WRITE_ZEROES must fail if it is no faster than writing.
        FAST_ZERO = 4;
        /// `NBD_CMD_FLAG_PAYLOAD_LEN`: the length is that of a payload (extended headers only).
        PAYLOAD_LEN = 5;
    }
}

wire_flags! {
    /// Flags of a chunk of a structured or extended reply (NBD `doc/proto.md`, "Structured reply flags").
    ReplyFlags: u16 {
        /// `NBD_REPLY_FLAG_DONE`: this is the last chunk of the reply.
        DONE = 0;
    }
}

wire_flags! {
    /// The state of an extent in the context `base:allocation`.
    AllocationFlags: u64 {
        /// `NBD_STATE_HOLE`: no storage is allocated.
        HOLE = 0;
        /// `NBD_STATE_ZERO`: the extent reads as zeros.
        ZERO = 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_those_of_the_specification() {
        assert_eq!(HandshakeFlags::all().bits(), 0b11);
        assert_eq!(ClientFlags::NO_ZEROES.bits(), 2);
        assert_eq!(TransmissionFlags::BLOCK_STATUS_PAYLOAD.bits(), 0x1000);
        assert_eq!(TransmissionFlags::CAN_MULTI_CONN.bits(), 0x100);
        assert_eq!(CommandFlags::PAYLOAD_LEN.bits(), 0x20);
        assert_eq!(AllocationFlags::ZERO.bits(), 2);
    }

    #[test]
    fn unknown_bits_are_kept_and_told_apart() {
        let flags = ClientFlags::from_wire(0x8000_0001);
        assert!(flags.contains(ClientFlags::FIXED_NEWSTYLE));
        assert_eq!(flags.unknown_bits(), 0x8000_0000);
        assert_eq!(flags.bits(), 0x8000_0001);
    }
}
