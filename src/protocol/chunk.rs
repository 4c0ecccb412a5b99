//! Payloads of the chunks of structured and extended replies (NBD `doc/proto.md`, "Structured reply types").
//!
//! Must not know headers or requests. Invariants: a chunk that violates a length rule of the specification
//! does not decode; decoding does not copy data.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::codec::{DecodeError, Decoder, WireString};
use super::error::Error;
use super::flags::AllocationFlags;
use super::reply::ReplyType;

/// Number of bytes before the data in an OFFSET_DATA chunk.
pub const OFFSET_DATA_OVERHEAD: u32 = 8;
/// Maximum number of descriptors that a server should send in one BLOCK_STATUS chunk.
pub const MAXIMUM_DESCRIPTORS: usize = 1 << 20;

/// An extent in a metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BlockDescriptor {
    /// Length of the extent in bytes, never 0. In a [`Chunk::BlockStatus`] it fits into 32 bits.
    pub length: u64,
    /// State of the extent, as the context defines it; for `base:allocation`, [`AllocationFlags`]. In a
    /// [`Chunk::BlockStatus`] it fits into 32 bits.
    pub status: u64,
}

impl BlockDescriptor {
    /// Interprets the status as the context `base:allocation` defines it.
    #[must_use]
    pub fn allocation(self) -> AllocationFlags {
        AllocationFlags::from_wire(self.status)
    }
}

/// The payload of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Chunk {
    /// No payload: the end of a reply.
    None,
    /// Data of a READ, at least one byte.
    OffsetData {
        /// Offset of the data in the export.
        offset: u64,
        /// The data itself.
        #[cfg_attr(feature = "serde", serde(with = "super::serde_bytes"))]
        data: Bytes,
    },
    /// Zeros of a READ, sent as a hole.
    OffsetHole {
        /// Offset of the hole in the export.
        offset: u64,
        /// Length of the hole in bytes, never 0.
        length: u32,
    },
    /// Extents with 32-bit lengths.
    BlockStatus {
        /// Id of the context, as assigned in the reply to SET_META_CONTEXT.
        context_id: u32,
        /// The extents in order; at least one.
        descriptors: Vec<BlockDescriptor>,
    },
    /// Extents with 64-bit lengths (extended headers only).
    BlockStatusExt {
        /// Id of the context, as assigned in the reply to SET_META_CONTEXT.
        context_id: u32,
        /// The extents in order; at least one.
        descriptors: Vec<BlockDescriptor>,
    },
    /// The request failed.
    Error {
        /// The error value.
        error: Error,
        /// Explanation for people; empty if there is none.
        message: WireString,
    },
    /// The request failed at a known offset.
    ErrorOffset {
        /// The error value.
        error: Error,
        /// Explanation for people; empty if there is none.
        message: WireString,
        /// Offset in the export at which the request failed.
        offset: u64,
    },
    /// An error chunk of a type that the specification does not define.
    UnknownError {
        /// Number of the type, which has bit 15 set.
        reply_type: u16,
        /// The error value.
        error: Error,
        /// Explanation for people; empty if there is none.
        message: WireString,
    },
}

impl Chunk {
    /// Decodes the whole payload of a chunk of this type. An unknown type that is not an error fails, as the
    /// specification requires.
    pub fn decode(reply_type: ReplyType, mut payload: Bytes) -> Result<Self, DecodeError> {
        match reply_type {
            ReplyType::None if payload.is_empty() => Ok(Self::None),
            ReplyType::None => Err(DecodeError::TrailingBytes(payload.len())),
            ReplyType::OffsetData => {
                if payload.len() < 9 {
                    return Err(DecodeError::Invalid("length of OFFSET_DATA is below 9"));
                }
                let offset = payload.get_u64();
                Ok(Self::OffsetData { offset, data: payload })
            }
            ReplyType::OffsetHole => {
                let mut decoder = Decoder::new(&payload);
                let (offset, length) = (decoder.u64()?, decoder.u32()?);
                decoder.finish()?;
                if length == 0 {
                    return Err(DecodeError::Invalid("hole of no bytes"));
                }
                Ok(Self::OffsetHole { offset, length })
            }
            ReplyType::BlockStatus => {
                let mut decoder = Decoder::new(&payload);
                let context_id = decoder.u32()?;
                let descriptors = decode_descriptors(decoder, 8, |decoder| {
                    Ok(BlockDescriptor {
                        length: u64::from(decoder.u32()?),
                        status: u64::from(decoder.u32()?),
                    })
                })?;
                Ok(Self::BlockStatus { context_id, descriptors })
            }
            ReplyType::BlockStatusExt => {
                let mut decoder = Decoder::new(&payload);
                let (context_id, count) = (decoder.u32()?, decoder.u32()?);
                let descriptors = decode_descriptors(decoder, 16, |decoder| {
                    Ok(BlockDescriptor { length: decoder.u64()?, status: decoder.u64()? })
                })?;
                if count != 0 && usize::try_from(count) != Ok(descriptors.len()) {
                    return Err(DecodeError::Invalid("descriptor count disagrees with the length"));
                }
                Ok(Self::BlockStatusExt { context_id, descriptors })
            }
            ReplyType::Error => {
                let (error, message, rest) = decode_error(&payload)?;
                rest.finish()?;
                Ok(Self::Error { error, message })
            }
            ReplyType::ErrorOffset => {
                let (error, message, mut rest) = decode_error(&payload)?;
                let offset = rest.u64()?;
                rest.finish()?;
                Ok(Self::ErrorOffset { error, message, offset })
            }
            //= Structured reply types: If the client receives an unknown or unexpected type with bit 15
            //# set, it MUST consider the current reply as errored
            ReplyType::Unknown(value) if reply_type.is_error() => {
                let (error, message, _) = decode_error(&payload)?;
                Ok(Self::UnknownError { reply_type: value, error, message })
            }
            ReplyType::Unknown(_) => Err(DecodeError::Invalid("unknown type of chunk")),
        }
    }

    /// Returns the type of the chunk.
    #[must_use]
    pub fn reply_type(&self) -> ReplyType {
        match self {
            Self::None => ReplyType::None,
            Self::OffsetData { .. } => ReplyType::OffsetData,
            Self::OffsetHole { .. } => ReplyType::OffsetHole,
            Self::BlockStatus { .. } => ReplyType::BlockStatus,
            Self::BlockStatusExt { .. } => ReplyType::BlockStatusExt,
            Self::Error { .. } => ReplyType::Error,
            Self::ErrorOffset { .. } => ReplyType::ErrorOffset,
            Self::UnknownError { reply_type, .. } => ReplyType::Unknown(*reply_type),
        }
    }

    /// Appends the payload except the data of [`Chunk::OffsetData`], which follows it on the wire.
    ///
    /// In a [`Chunk::BlockStatus`], a length that does not fit into 32 bits is reduced to the largest
    /// multiple of 65,536 that does, so that it stays aligned. A status that does not fit is sent as 0.
    pub fn encode_without_data(&self, out: &mut BytesMut) {
        match self {
            Self::None => {}
            Self::OffsetData { offset, .. } => out.put_u64(*offset),
            Self::OffsetHole { offset, length } => {
                out.put_u64(*offset);
                out.put_u32(*length);
            }
            Self::BlockStatus { context_id, descriptors } => {
                out.put_u32(*context_id);
                for descriptor in descriptors {
                    out.put_u32(u32::try_from(descriptor.length).unwrap_or(0xffff_0000));
                    out.put_u32(u32::try_from(descriptor.status).unwrap_or(0));
                }
            }
            Self::BlockStatusExt { context_id, descriptors } => {
                out.put_u32(*context_id);
                out.put_u32(u32::try_from(descriptors.len()).unwrap_or(0));
                for descriptor in descriptors {
                    out.put_u64(descriptor.length);
                    out.put_u64(descriptor.status);
                }
            }
            Self::Error { error, message } | Self::UnknownError { error, message, .. } => {
                encode_error(*error, message, out);
            }
            Self::ErrorOffset { error, message, offset } => {
                encode_error(*error, message, out);
                out.put_u64(*offset);
            }
        }
    }

    /// Appends the whole payload, including data.
    pub fn encode(&self, out: &mut BytesMut) {
        self.encode_without_data(out);
        if let Self::OffsetData { data, .. } = self {
            out.put_slice(data);
        }
    }
}

/// Decodes all remaining bytes as descriptors of `size` bytes each; there must be at least one.
fn decode_descriptors(
    mut decoder: Decoder<'_>,
    size: usize,
    decode: impl Fn(&mut Decoder<'_>) -> Result<BlockDescriptor, DecodeError>,
) -> Result<Vec<BlockDescriptor>, DecodeError> {
    let bytes = decoder.remaining();
    if bytes == 0 || !bytes.is_multiple_of(size) {
        return Err(DecodeError::Invalid("length of BLOCK_STATUS fits no number of descriptors"));
    }
    let descriptors = (0..bytes / size).map(|_| decode(&mut decoder)).collect::<Result<Vec<_>, _>>()?;
    if descriptors.iter().any(|descriptor| descriptor.length == 0) {
        return Err(DecodeError::Invalid("extent of no bytes"));
    }
    Ok(descriptors)
}

/// Decodes the fields at the start of every error chunk. Returns a decoder for the rest.
fn decode_error(payload: &[u8]) -> Result<(Error, WireString, Decoder<'_>), DecodeError> {
    let mut decoder = Decoder::new(payload);
    let error = match Error::check(decoder.u32()?) {
        Err(error) => error,
        Ok(()) => return Err(DecodeError::Invalid("error chunk without an error")),
    };
    let length = decoder.u16()?;
    let message = decoder.string(u32::from(length))?;
    Ok((error, message, decoder))
}

fn encode_error(error: Error, message: &WireString, out: &mut BytesMut) {
    out.put_u32(error.value());
    out.put_u16(message.len_u16());
    message.encode(out);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both_ways(wire: &'static [u8], chunk: &Chunk) {
        assert_eq!(Chunk::decode(chunk.reply_type(), Bytes::from_static(wire)).as_ref(), Ok(chunk));
        let mut out = BytesMut::new();
        chunk.encode(&mut out);
        assert_eq!(out, wire);
    }

    fn refused(reply_type: ReplyType, wire: &'static [u8]) {
        assert!(Chunk::decode(reply_type, Bytes::from_static(wire)).is_err());
    }

    #[test]
    fn content_chunks_are_laid_out_as_specified() {
        both_ways(b"", &Chunk::None);
        both_ways(
            b"\0\0\0\0\0\0\x10\0ab",
            &Chunk::OffsetData { offset: 4096, data: Bytes::from_static(b"ab") },
        );
        both_ways(b"\0\0\0\0\0\0\x10\0\0\0\x02\0", &Chunk::OffsetHole { offset: 4096, length: 512 });
    }

    #[test]
    fn status_chunks_are_laid_out_as_specified() {
        let hole = BlockDescriptor { length: 65_536, status: 3 };
        let data = BlockDescriptor { length: 512, status: 0 };
        both_ways(
            b"\0\0\0\x07\0\x01\0\0\0\0\0\x03\0\0\x02\0\0\0\0\0",
            &Chunk::BlockStatus { context_id: 7, descriptors: vec![hole, data] },
        );
        both_ways(
            b"\0\0\0\x07\0\0\0\x01\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\x03",
            &Chunk::BlockStatusExt {
                context_id: 7,
                descriptors: vec![BlockDescriptor { length: 1 << 40, status: 3 }],
            },
        );
        assert_eq!(hole.allocation(), AllocationFlags::HOLE | AllocationFlags::ZERO);
    }

    #[test]
    fn error_chunks_are_laid_out_as_specified() {
        let message = WireString::try_from("gone").unwrap();
        both_ways(b"\0\0\0\x05\0\x04gone", &Chunk::Error { error: Error::Io, message: message.clone() });
        both_ways(
            b"\0\0\0\x05\0\x04gone\0\0\0\0\0\0\x02\0",
            &Chunk::ErrorOffset { error: Error::Io, message: message.clone(), offset: 512 },
        );
        let unknown = Chunk::decode(ReplyType::Unknown(0x8009), Bytes::from_static(b"\0\0\0\x05\0\x04gone+"));
        assert_eq!(unknown, Ok(Chunk::UnknownError { reply_type: 0x8009, error: Error::Io, message }));
    }

    #[test]
    fn broken_length_rules_are_refused() {
        refused(ReplyType::None, b"\0");
        refused(ReplyType::OffsetData, b"\0\0\0\0\0\0\x10\0");
        refused(ReplyType::OffsetHole, b"\0\0\0\0\0\0\x10\0\0\0\0\0");
        refused(ReplyType::OffsetHole, b"\0\0\0\0\0\0\x10\0\0\0\x02\0\0");
        refused(ReplyType::BlockStatus, b"\0\0\0\x07");
        refused(ReplyType::BlockStatus, b"\0\0\0\x07\0\x01\0\0\0\0\0");
        refused(ReplyType::BlockStatus, b"\0\0\0\x07\0\0\0\0\0\0\0\x03");
        refused(ReplyType::BlockStatusExt, b"\0\0\0\x07\0\0\0\x02\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\x03");
        refused(ReplyType::Error, b"\0\0\0\x05\0\x05gone");
        refused(ReplyType::Error, b"\0\0\0\0\0\0");
        refused(ReplyType::ErrorOffset, b"\0\0\0\x05\0\x04gone\0\0\0\0");
        refused(ReplyType::Unknown(3), b"");
    }
}
