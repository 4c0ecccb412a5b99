//! What a server answers during transmission (NBD `doc/proto.md`, "Simple reply message" and "Structured
//! reply chunk message"): the headers. What chunks carry is in [`super::chunk`].
//!
//! A simple reply does not tell how much data follows it: the client knows from its request.

use bytes::{BufMut, BytesMut};

use super::codec::{DecodeError, Decoder};
use super::error::Error;
use super::flags::ReplyFlags;
use super::request::Cookie;

/// `NBD_SIMPLE_REPLY_MAGIC`.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// `NBD_STRUCTURED_REPLY_MAGIC`.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// `NBD_EXTENDED_REPLY_MAGIC`.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Type of a chunk (NBD `doc/proto.md`, "Structured reply types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplyType {
    /// `NBD_REPLY_TYPE_NONE` (0).
    None,
    /// `NBD_REPLY_TYPE_OFFSET_DATA` (1).
    OffsetData,
    /// `NBD_REPLY_TYPE_OFFSET_HOLE` (2).
    OffsetHole,
    /// `NBD_REPLY_TYPE_BLOCK_STATUS` (5).
    BlockStatus,
    /// `NBD_REPLY_TYPE_BLOCK_STATUS_EXT` (6).
    BlockStatusExt,
    /// `NBD_REPLY_TYPE_ERROR` (2^15 + 1).
    Error,
    /// `NBD_REPLY_TYPE_ERROR_OFFSET` (2^15 + 2).
    ErrorOffset,
    /// A type that the specification does not name.
    Unknown(u16),
}

impl ReplyType {
    /// What marks a type as an error.
    pub const ERROR_BIT: u16 = 1 << 15;

    /// The type of a type field.
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

    /// The number on the wire.
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

    /// Whether the type is an error chunk, known or not.
    #[must_use]
    pub fn is_error(self) -> bool {
        self.value() & Self::ERROR_BIT != 0
    }
}

/// The header of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A simple reply: data follows if it succeeds and answers a READ.
    Simple {
        /// Whether the command succeeded.
        result: Result<(), Error>,
        /// The request that is answered.
        cookie: Cookie,
    },
    /// A chunk of a structured reply.
    Structured {
        /// Flags.
        flags: ReplyFlags,
        /// Type of the chunk.
        reply_type: ReplyType,
        /// The request that is answered.
        cookie: Cookie,
        /// Bytes of payload that follow.
        length: u32,
    },
    /// A chunk of an extended reply.
    Extended {
        /// Flags.
        flags: ReplyFlags,
        /// Type of the chunk.
        reply_type: ReplyType,
        /// The request that is answered.
        cookie: Cookie,
        /// The offset of the request.
        offset: u64,
        /// Bytes of payload that follow.
        length: u64,
    },
}

impl Reply {
    /// Bytes of a simple reply's header.
    pub const SIMPLE_LENGTH: usize = 16;
    /// Bytes of a structured chunk's header.
    pub const STRUCTURED_LENGTH: usize = 20;
    /// Bytes of an extended chunk's header.
    pub const EXTENDED_LENGTH: usize = 32;
    /// Bytes of a magic number: enough for [`Self::header_length`].
    pub const MAGIC_LENGTH: usize = 4;

    /// Bytes of the header that begins with `magic`.
    pub fn header_length(magic: u32) -> Result<usize, DecodeError> {
        match magic {
            SIMPLE_REPLY_MAGIC => Ok(Self::SIMPLE_LENGTH),
            STRUCTURED_REPLY_MAGIC => Ok(Self::STRUCTURED_LENGTH),
            EXTENDED_REPLY_MAGIC => Ok(Self::EXTENDED_LENGTH),
            other => Err(DecodeError::BadMagic(u64::from(other))),
        }
    }

    /// Reads exactly one header, of any kind.
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
