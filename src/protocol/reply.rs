//! Headers of the replies of the transmission phase (NBD `doc/proto.md`, "Simple reply message" and
//! "Structured reply chunk message").
//!
//! Must not know the payload of chunks, which [`super::chunk`] owns. A simple reply does not say how much
//! data follows it; the client has to remember its request. Invariant: the magic number alone determines the
//! length of a header.

use bytes::{BufMut, BytesMut};

use super::codec::{DecodeError, Decoder};
use super::error::Error;
use super::flags::ReplyFlags;
use super::request::Cookie;

/// `NBD_SIMPLE_REPLY_MAGIC`: starts a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// `NBD_STRUCTURED_REPLY_MAGIC`: starts a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// `NBD_EXTENDED_REPLY_MAGIC`: starts a chunk of an extended reply.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// The type of a chunk (NBD `doc/proto.md`, "Structured reply types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum ReplyType {
    /// `NBD_REPLY_TYPE_NONE` (0): no payload.
    None,
    /// `NBD_REPLY_TYPE_OFFSET_DATA` (1): data of a READ.
    OffsetData,
    /// `NBD_REPLY_TYPE_OFFSET_HOLE` (2): zeros of a READ.
    OffsetHole,
    /// `NBD_REPLY_TYPE_BLOCK_STATUS` (5): extents with 32-bit lengths.
    BlockStatus,
    /// `NBD_REPLY_TYPE_BLOCK_STATUS_EXT` (6): extents with 64-bit lengths.
    BlockStatusExt,
    /// `NBD_REPLY_TYPE_ERROR` (2^15 + 1): the request failed.
    Error,
    /// `NBD_REPLY_TYPE_ERROR_OFFSET` (2^15 + 2): the request failed at a known offset.
    ErrorOffset,
    /// A type that the specification does not define.
    Unknown(u16),
}

impl ReplyType {
    /// The bit that marks a type as an error.
    pub const ERROR_BIT: u16 = 1 << 15;

    /// Returns the type in the type field of a chunk.
    #[must_use]
    pub fn from_wire(value: u16) -> Self {
        match value {
            0 => Self::None,
            1 => Self::OffsetData,
            2 => Self::OffsetHole,
            5 => Self::BlockStatus,
            6 => Self::BlockStatusExt,
            0x8001 => Self::Error,
            0x8002 => Self::ErrorOffset,
            other => Self::Unknown(other),
        }
    }

    /// Returns the number on the wire.
    #[must_use]
    pub fn value(self) -> u16 {
        match self {
            Self::None => 0,
            Self::OffsetData => 1,
            Self::OffsetHole => 2,
            Self::BlockStatus => 5,
            Self::BlockStatusExt => 6,
            Self::Error => 0x8001,
            Self::ErrorOffset => 0x8002,
            Self::Unknown(other) => other,
        }
    }

    /// Whether this is an error chunk, of a known or unknown type.
    #[must_use]
    pub fn is_error(self) -> bool {
        self.value() & Self::ERROR_BIT != 0
    }
}

/// The header of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Reply {
    /// A simple reply. Data follows if a READ succeeded.
    Simple {
        /// Whether the command succeeded, or its error value.
        result: Result<(), Error>,
        /// Identifier of the request that this answers.
        cookie: Cookie,
    },
    /// A chunk of a structured reply.
    Structured {
        /// Whether this is the last chunk, and unknown flags.
        flags: ReplyFlags,
        /// Type of the payload.
        reply_type: ReplyType,
        /// Identifier of the request that this answers.
        cookie: Cookie,
        /// Length of the payload in bytes.
        length: u32,
    },
    /// A chunk of an extended reply.
    Extended {
        /// Whether this is the last chunk, and unknown flags.
        flags: ReplyFlags,
        /// Type of the payload.
        reply_type: ReplyType,
        /// Identifier of the request that this answers.
        cookie: Cookie,
        /// Offset of the request that this answers.
        offset: u64,
        /// Length of the payload in bytes.
        length: u64,
    },
}

impl Reply {
    /// Length of the header of a simple reply in bytes.
    pub const SIMPLE_LENGTH: usize = 16;
    /// Length of the header of a structured chunk in bytes.
    pub const STRUCTURED_LENGTH: usize = 20;
    /// Length of the header of an extended chunk in bytes.
    pub const EXTENDED_LENGTH: usize = 32;
    /// Length of a magic number in bytes, which is all that [`Self::header_length`] needs.
    pub const MAGIC_LENGTH: usize = 4;

    /// Returns the length of the header that starts with `magic`, in bytes.
    pub fn header_length(magic: u32) -> Result<usize, DecodeError> {
        match magic {
            SIMPLE_REPLY_MAGIC => Ok(Self::SIMPLE_LENGTH),
            STRUCTURED_REPLY_MAGIC => Ok(Self::STRUCTURED_LENGTH),
            EXTENDED_REPLY_MAGIC => Ok(Self::EXTENDED_LENGTH),
            other => Err(DecodeError::BadMagic(u64::from(other))),
        }
    }

    /// Decodes exactly one header of any kind.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        let reply = match decoder.u32()? {
            SIMPLE_REPLY_MAGIC => {
                let result = Error::check(decoder.u32()?);
                Self::Simple { result, cookie: Cookie(decoder.u64()?) }
            }
            STRUCTURED_REPLY_MAGIC => Self::Structured {
                flags: ReplyFlags::from_wire(decoder.u16()?),
                reply_type: ReplyType::from_wire(decoder.u16()?),
                cookie: Cookie(decoder.u64()?),
                length: decoder.u32()?,
            },
            EXTENDED_REPLY_MAGIC => Self::Extended {
                flags: ReplyFlags::from_wire(decoder.u16()?),
                reply_type: ReplyType::from_wire(decoder.u16()?),
                cookie: Cookie(decoder.u64()?),
                offset: decoder.u64()?,
                length: decoder.u64()?,
            },
            other => return Err(DecodeError::BadMagic(u64::from(other))),
        };
        decoder.finish()?;
        Ok(reply)
    }

    /// Appends the header.
    pub fn encode(self, out: &mut BytesMut) {
        match self {
            Self::Simple { result, cookie } => {
                out.put_u32(SIMPLE_REPLY_MAGIC);
                out.put_u32(result.map_or_else(Error::value, |()| 0));
                out.put_u64(cookie.0);
            }
            Self::Structured { flags, reply_type, cookie, length } => {
                out.put_u32(STRUCTURED_REPLY_MAGIC);
                out.put_u16(flags.bits());
                out.put_u16(reply_type.value());
                out.put_u64(cookie.0);
                out.put_u32(length);
            }
            Self::Extended { flags, reply_type, cookie, offset, length } => {
                out.put_u32(EXTENDED_REPLY_MAGIC);
                out.put_u16(flags.bits());
                out.put_u16(reply_type.value());
                out.put_u64(cookie.0);
                out.put_u64(offset);
                out.put_u64(length);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both_ways(wire: &[u8], reply: Reply) {
        assert_eq!(Reply::decode(wire), Ok(reply));
        let mut out = BytesMut::new();
        reply.encode(&mut out);
        assert_eq!(out, wire);
        let magic = u32::from_be_bytes(*wire.first_chunk().unwrap());
        assert_eq!(Reply::header_length(magic), Ok(wire.len()));
    }

    #[test]
    fn headers_are_laid_out_as_specified() {
        both_ways(
            b"\x67\x44\x66\x98\0\0\0\x1c\0\0\0\0\0\0\0\x2a",
            Reply::Simple { result: Err(Error::NoSpc), cookie: Cookie(42) },
        );
        both_ways(
            b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x2a",
            Reply::Simple { result: Ok(()), cookie: Cookie(42) },
        );
        both_ways(
            b"\x66\x8e\x33\xef\0\x01\0\x02\0\0\0\0\0\0\0\x2a\0\0\0\x0c",
            Reply::Structured {
                flags: ReplyFlags::DONE,
                reply_type: ReplyType::OffsetHole,
                cookie: Cookie(42),
                length: 12,
            },
        );
        both_ways(
            b"\x6e\x8a\x27\x8c\0\x01\x80\x01\0\0\0\0\0\0\0\x2a\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\x06",
            Reply::Extended {
                flags: ReplyFlags::DONE,
                reply_type: ReplyType::Error,
                cookie: Cookie(42),
                offset: 65_536,
                length: 6,
            },
        );
    }

    #[test]
    fn reserved_magic_values_are_refused() {
        for magic in [0x1256_0953, 0x9674_4668, 0x2560_9514] {
            assert!(Reply::header_length(magic).is_err());
        }
    }

    #[test]
    fn types_with_bit_15_are_errors() {
        assert!(ReplyType::from_wire(0x8007).is_error());
        assert!(ReplyType::ErrorOffset.is_error());
        assert!(!ReplyType::from_wire(3).is_error());
    }
}
