//! Information about an export in the replies to INFO and GO (NBD `doc/proto.md`, `NBD_REP_INFO` and "Block
//! size constraints").
//!
//! Owns the information types and their payloads; must not know when they are sent. Invariant: block sizes
//! that violate the rules of the specification do not decode.

use bytes::{BufMut, Bytes, BytesMut};

use super::announcement::RESERVED_ZEROES;
use super::codec::{DecodeError, Decoder, WireString};
use super::flags::TransmissionFlags;

/// Size and flags of an export: the answer to EXPORT_NAME, and the payload of `NBD_INFO_EXPORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DiskInfo {
    /// Size of the export in bytes.
    pub size_bytes: u64,
    /// Features of the export.
    pub flags: TransmissionFlags,
}

/// How the answer to EXPORT_NAME ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// With the information itself, because NO_ZEROES was negotiated.
    None,
    /// With the 124 reserved zeroes.
    Zeroes,
}

impl DiskInfo {
    /// Length in bytes without the reserved zeroes.
    pub const LENGTH: usize = 10;
    /// Length in bytes with the reserved zeroes, which end the answer to EXPORT_NAME unless NO_ZEROES was
    /// negotiated.
    pub const LENGTH_WITH_ZEROES: usize = Self::LENGTH + RESERVED_ZEROES;

    /// Decodes exactly [`Self::LENGTH`] or [`Self::LENGTH_WITH_ZEROES`] bytes. The values of the reserved
    /// bytes are ignored.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        let info = Self { size_bytes: decoder.u64()?, flags: TransmissionFlags::from_wire(decoder.u16()?) };
        if decoder.remaining() == RESERVED_ZEROES {
            decoder.bytes(RESERVED_ZEROES)?;
        }
        decoder.finish()?;
        Ok(info)
    }

    /// Appends [`Self::LENGTH`] bytes, and the padding.
    pub fn encode(self, padding: Padding, out: &mut BytesMut) {
        out.put_u64(self.size_bytes);
        out.put_u16(self.flags.bits());
        if padding == Padding::Zeroes {
            out.put_bytes(0, RESERVED_ZEROES);
        }
    }
}

/// The type of a piece of information.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum InfoType {
    /// `NBD_INFO_EXPORT` (0): size and flags.
    Export,
    /// `NBD_INFO_NAME` (1): canonical name.
    Name,
    /// `NBD_INFO_DESCRIPTION` (2): description for people.
    Description,
    /// `NBD_INFO_BLOCK_SIZE` (3): block size constraints.
    BlockSize,
    /// A type that the specification does not define.
    Unknown(u16),
}

impl InfoType {
    /// Returns the type in the information type field.
    #[must_use]
    pub fn from_wire(value: u16) -> Self {
        match value {
            0 => Self::Export,
            1 => Self::Name,
            2 => Self::Description,
            3 => Self::BlockSize,
            other => Self::Unknown(other),
        }
    }

    /// Returns the number on the wire.
    #[must_use]
    pub fn value(self) -> u16 {
        match self {
            Self::Export => 0,
            Self::Name => 1,
            Self::Description => 2,
            Self::BlockSize => 3,
            Self::Unknown(other) => other,
        }
    }
}

/// The block size constraints of an export, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BlockSize {
    /// Alignment of offsets and lengths: a power of two, at most 65,536.
    pub minimum: u32,
    /// Efficient size of I/O: a power of two, at least 512 and at least the minimum.
    pub preferred: u32,
    /// Maximum payload, at least the preferred size. `u32::MAX` means no limit. It need not be a multiple of
    /// the other sizes.
    pub maximum: u32,
}

impl BlockSize {
    /// The constraints that apply if the server advertises none.
    pub const DEFAULT: Self = Self { minimum: 1, preferred: 4096, maximum: u32::MAX };

    /// Whether the constraints follow the rules of the specification ("Size constraints"). The maximum "MAY
    /// be something other than a power of 2, but MUST be at least as large as the preferred block size".
    #[must_use]
    pub fn is_valid(self) -> bool {
        self.minimum.is_power_of_two()
            && self.minimum <= 65_536
            && self.preferred.is_power_of_two()
            && self.preferred >= self.minimum.max(512)
            && self.maximum >= self.preferred
    }
}

/// One piece of information: the payload of `NBD_REP_INFO`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Info {
    /// Size and flags of the export.
    Export(DiskInfo),
    /// Canonical name of the export.
    Name(WireString),
    /// Description for people.
    Description(WireString),
    /// Block size constraints of the export.
    BlockSize(BlockSize),
    /// A type that the specification does not define. Clients ignore it.
    Unknown {
        /// Number of the type.
        info_type: u16,
        /// The payload after the type.
        #[cfg_attr(feature = "serde", serde(with = "super::serde_bytes"))]
        payload: Bytes,
    },
}

impl Info {
    /// Decodes the whole data of the reply.
    pub fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(data);
        let info = match InfoType::from_wire(decoder.u16()?) {
            InfoType::Export => match decoder.take_rest() {
                rest if rest.len() == DiskInfo::LENGTH => Self::Export(DiskInfo::decode(rest)?),
                _ => return Err(DecodeError::Invalid("length of NBD_INFO_EXPORT is not 12")),
            },
            InfoType::Name => Self::Name(WireString::try_from(decoder.take_rest())?),
            InfoType::Description => Self::Description(WireString::try_from(decoder.take_rest())?),
            InfoType::BlockSize => {
                let sizes =
                    BlockSize { minimum: decoder.u32()?, preferred: decoder.u32()?, maximum: decoder.u32()? };
                if !sizes.is_valid() {
                    return Err(DecodeError::Invalid("block size constraints break their rules"));
                }
                Self::BlockSize(sizes)
            }
            InfoType::Unknown(info_type) => {
                Self::Unknown { info_type, payload: Bytes::copy_from_slice(decoder.take_rest()) }
            }
        };
        decoder.finish()?;
        Ok(info)
    }

    /// Appends the data of the reply.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Export(disk) => {
                out.put_u16(InfoType::Export.value());
                disk.encode(Padding::None, out);
            }
            Self::Name(name) => {
                out.put_u16(InfoType::Name.value());
                name.encode(out);
            }
            Self::Description(description) => {
                out.put_u16(InfoType::Description.value());
                description.encode(out);
            }
            Self::BlockSize(sizes) => {
                out.put_u16(InfoType::BlockSize.value());
                out.put_u32(sizes.minimum);
                out.put_u32(sizes.preferred);
                out.put_u32(sizes.maximum);
            }
            Self::Unknown { info_type, payload } => {
                out.put_u16(*info_type);
                out.put_slice(payload);
            }
        }
    }
}

/// Everything the protocol can say about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ExportInfo {
    /// Canonical name of the export.
    pub name: WireString,
    /// Description for people; empty if there is none.
    pub description: WireString,
    /// Size and flags of the export.
    pub disk: DiskInfo,
    /// Block size constraints of the export.
    pub block_size: BlockSize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both_ways(wire: &[u8], info: &Info) {
        assert_eq!(Info::decode(wire).as_ref(), Ok(info));
        let mut out = BytesMut::new();
        info.encode(&mut out);
        assert_eq!(out, wire);
    }

    #[test]
    fn payloads_are_laid_out_as_specified() {
        let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
        both_ways(
            b"\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x05",
            &Info::Export(DiskInfo { size_bytes: 4096, flags }),
        );
        both_ways(b"\x00\x01disk", &Info::Name(WireString::try_from("disk").unwrap()));
        both_ways(b"\x00\x02", &Info::Description(WireString::default()));
        both_ways(
            b"\x00\x03\x00\x00\x02\x00\x00\x00\x10\x00\x02\x00\x00\x00",
            &Info::BlockSize(BlockSize { minimum: 512, preferred: 4096, maximum: 32 << 20 }),
        );
        both_ways(b"\x00\x63ab", &Info::Unknown { info_type: 99, payload: Bytes::from_static(b"ab") });
    }

    #[test]
    fn the_length_of_info_export_is_12() {
        let mut wire = vec![0; 12];
        assert!(Info::decode(&wire).is_ok());
        wire.extend([0; 124]);
        assert!(Info::decode(&wire).is_err());
    }

    #[test]
    fn block_sizes_keep_their_rules() {
        let good = BlockSize { minimum: 512, preferred: 4096, maximum: 1 << 20 };
        assert!(good.is_valid());
        assert!(BlockSize::DEFAULT.is_valid());
        assert!(!BlockSize { minimum: 3, ..good }.is_valid());
        assert!(!BlockSize { minimum: 0, ..good }.is_valid());
        assert!(!BlockSize { minimum: 131_072, preferred: 131_072, ..good }.is_valid());
        assert!(!BlockSize { preferred: 256, ..good }.is_valid());
        assert!(!BlockSize { maximum: 0, ..good }.is_valid());
    }

    /// "it MAY be something other than a power of 2, but MUST be at least as large as the preferred block
    /// size".
    #[test]
    fn the_maximum_is_at_least_the_preferred_size_and_need_not_be_a_multiple_of_the_minimum() {
        let good = BlockSize { minimum: 512, preferred: 4096, maximum: 1 << 20 };
        assert!(BlockSize { maximum: 4096, ..good }.is_valid());
        assert!(BlockSize { maximum: 4097, ..good }.is_valid());
        assert!(BlockSize { maximum: 1_000_001, ..good }.is_valid());
        assert!(!BlockSize { maximum: 4095, ..good }.is_valid());
        assert!(!BlockSize { maximum: 512, ..good }.is_valid());
        let wire = |maximum: u32| {
            [&b"\x00\x03\x00\x00\x02\x00\x00\x00\x10\x00"[..], &maximum.to_be_bytes()].concat()
        };
        assert_eq!(
            Info::decode(&wire(1_000_001)),
            Ok(Info::BlockSize(BlockSize { maximum: 1_000_001, ..good }))
        );
        assert!(Info::decode(&wire(2048)).is_err());
    }
}
