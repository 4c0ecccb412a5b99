//! Flags of the handshake and of the transmission phase.
//!
//! Owns the bits, not what follows from them. Bits that the specification does not name are kept as they
//! came, so that a server can refuse them and a client can ignore them.

/// Declares a type of flags that keeps unknown bits.
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
            /// The flags of a field of the wire, unknown bits included.
            #[must_use]
            pub const fn from_wire(bits: $bits) -> Self {
                Self::from_bits_retain(bits)
            }

            /// The bits that the specification does not name.
            #[must_use]
            pub const fn unknown_bits(self) -> $bits {
                self.bits() & !Self::all().bits()
            }
        }
    };
}

wire_flags! {
    /// Sent by the server with its announcement (NBD `doc/proto.md`, "Handshake flags").
    HandshakeFlags: u16 {
        /// `NBD_FLAG_FIXED_NEWSTYLE`: the server supports fixed newstyle negotiation.
        FIXED_NEWSTYLE = 0;
        /// `NBD_FLAG_NO_ZEROES`: the server can leave out the 124 zeroes after EXPORT_NAME.
        NO_ZEROES = 1;
    }
}

wire_flags! {
    /// Sent by the client in answer to the handshake flags (NBD `doc/proto.md`, "Client flags").
    ClientFlags: u32 {
        /// `NBD_FLAG_C_FIXED_NEWSTYLE`: the client supports fixed newstyle negotiation.
        FIXED_NEWSTYLE = 0;
        /// `NBD_FLAG_C_NO_ZEROES`: the server must leave out the 124 zeroes after EXPORT_NAME.
        NO_ZEROES = 1;
    }
}

wire_flags! {
    /// What an export can do (NBD `doc/proto.md`, "Transmission flags").
    TransmissionFlags: u16 {
        /// `NBD_FLAG_HAS_FLAGS`: always set.
        HAS_FLAGS = 0;
        /// `NBD_FLAG_READ_ONLY`.
        READ_ONLY = 1;
        /// `NBD_FLAG_SEND_FLUSH`.
        SEND_FLUSH = 2;
        /// `NBD_FLAG_SEND_FUA`.
        SEND_FUA = 3;
        /// `NBD_FLAG_ROTATIONAL`.
        ROTATIONAL = 4;
        /// `NBD_FLAG_SEND_TRIM`.
        SEND_TRIM = 5;
        /// `NBD_FLAG_SEND_WRITE_ZEROES`.
        SEND_WRITE_ZEROES = 6;
        /// `NBD_FLAG_SEND_DF`.
        SEND_DF = 7;
        /// `NBD_FLAG_CAN_MULTI_CONN`.
        CAN_MULTI_CONN = 8;
        /// `NBD_FLAG_SEND_RESIZE`.
        SEND_RESIZE = 9;
        /// `NBD_FLAG_SEND_CACHE`.
        SEND_CACHE = 10;
        /// `NBD_FLAG_SEND_FAST_ZERO`.
        SEND_FAST_ZERO = 11;
        /// `NBD_FLAG_BLOCK_STATUS_PAYLOAD`.
        BLOCK_STATUS_PAYLOAD = 12;
    }
}

wire_flags! {
    /// Sent with every request (NBD `doc/proto.md`, "Command flags").
    CommandFlags: u16 {
        /// `NBD_CMD_FLAG_FUA`: answer only when what was written is durable.
        FUA = 0;
        /// `NBD_CMD_FLAG_NO_HOLE`: WRITE_ZEROES must leave the range allocated.
        NO_HOLE = 1;
        /// `NBD_CMD_FLAG_DF`: READ must be answered with one content chunk at most.
        DF = 2;
        /// `NBD_CMD_FLAG_REQ_ONE`: BLOCK_STATUS must be answered with one extent.
        REQ_ONE = 3;
        /// `NBD_CMD_FLAG_FAST_ZERO`: WRITE_ZEROES must fail where it is not faster than writing.
        FAST_ZERO = 4;
        /// `NBD_CMD_FLAG_PAYLOAD_LEN`: the length is that of a payload (extended headers only).
        PAYLOAD_LEN = 5;
    }
}

wire_flags! {
    /// Sent with every chunk of a structured or extended reply (NBD `doc/proto.md`, "Structured reply
    /// flags").
    ReplyFlags: u16 {
        /// `NBD_REPLY_FLAG_DONE`: the last chunk of the reply.
        DONE = 0;
    }
}

wire_flags! {
    /// State of an extent in the context `base:allocation`.
    AllocationFlags: u64 {
        /// `NBD_STATE_HOLE`: nothing is allocated.
        HOLE = 0;
        /// `NBD_STATE_ZERO`: reads as zeros.
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
