//! The greeting: [`Announcement`], [`Negotiate`] and [`NegotiateResponse`] (NBD `doc/proto.md`, "Handshake").
//!
//! The server sends the first two without waiting in between. Must not know options. Invariant: the
//! announcement alone determines the length and layout of the [`Negotiate`] that follows it.

use bytes::{BufMut, BytesMut};

use super::codec::{DecodeError, Decoder};
use super::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};

/// `NBDMAGIC`, which the specification also calls `INIT_PASSWD`: the first eight bytes of a server.
pub const INIT_PASSWD: u64 = 0x4e42_444d_4147_4943;
/// `cliserv_magic`: announces oldstyle negotiation.
pub const CLISERV_MAGIC: u64 = 0x0000_4202_8186_1253;
/// `IHAVEOPT`: announces newstyle negotiation. It also starts every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Number of reserved zero bytes after the size and flags of an export.
pub const RESERVED_ZEROES: usize = 124;

/// The first 16 bytes from the server, which announce the kind of negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Announcement {
    /// Oldstyle: the server sends size and flags, and transmission begins.
    V1,
    /// Newstyle, fixed or not: the client sends options.
    V2,
}

impl Announcement {
    /// Length in bytes.
    pub const LENGTH: usize = 16;

    /// Decodes exactly [`Self::LENGTH`] bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        decoder.magic_u64(INIT_PASSWD)?;
        let announcement = match decoder.u64()? {
            CLISERV_MAGIC => Self::V1,
            OPTION_MAGIC => Self::V2,
            other => return Err(DecodeError::BadMagic(other)),
        };
        decoder.finish()?;
        Ok(announcement)
    }

    /// Appends [`Self::LENGTH`] bytes.
    pub fn encode(self, out: &mut BytesMut) {
        out.put_u64(INIT_PASSWD);
        out.put_u64(match self {
            Self::V1 => CLISERV_MAGIC,
            Self::V2 => OPTION_MAGIC,
        });
    }
}

/// What the server sends right after its [`Announcement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Negotiate {
    /// Oldstyle: everything that the client learns about the export.
    V1 {
        /// Size of the export in bytes.
        size_bytes: u64,
        /// Features of the export: the low 16 bits of the 32-bit field.
        flags: TransmissionFlags,
    },
    /// Newstyle: the handshake flags of the server.
    V2(HandshakeFlags),
}

impl Negotiate {
    /// Length in bytes after this kind of announcement.
    #[must_use]
    pub fn length(announcement: Announcement) -> usize {
        match announcement {
            Announcement::V1 => 8 + 4 + RESERVED_ZEROES,
            Announcement::V2 => 2,
        }
    }

    /// Decodes exactly [`Self::length`] bytes. The values of reserved bytes are ignored.
    pub fn decode(announcement: Announcement, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        let negotiate = match announcement {
            Announcement::V1 => {
                let size_bytes = decoder.u64()?;
                let _handshake_flags = decoder.u16()?;
                let flags = TransmissionFlags::from_wire(decoder.u16()?);
                decoder.bytes(RESERVED_ZEROES)?;
                Self::V1 { size_bytes, flags }
            }
            Announcement::V2 => Self::V2(HandshakeFlags::from_wire(decoder.u16()?)),
        };
        decoder.finish()?;
        Ok(negotiate)
    }

    /// Appends [`Self::length`] bytes. Oldstyle negotiation never sets a handshake flag.
    pub fn encode(self, out: &mut BytesMut) {
        match self {
            Self::V1 { size_bytes, flags } => {
                out.put_u64(size_bytes);
                //= Handshake flags: The server MUST NOT set any of these flags during oldstyle negotiation.
                out.put_u16(0);
                out.put_u16(flags.bits());
                out.put_bytes(0, RESERVED_ZEROES);
            }
            Self::V2(flags) => out.put_u16(flags.bits()),
        }
    }
}

/// The client's answer to a newstyle [`Negotiate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct NegotiateResponse(pub ClientFlags);

impl NegotiateResponse {
    /// Length in bytes.
    pub const LENGTH: usize = 4;

    /// Decodes exactly [`Self::LENGTH`] bytes. Unknown flags are kept, because the server must drop the
    /// connection if there are any.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        let flags = ClientFlags::from_wire(decoder.u32()?);
        decoder.finish()?;
        Ok(Self(flags))
    }

    /// Appends [`Self::LENGTH`] bytes.
    pub fn encode(self, out: &mut BytesMut) {
        out.put_u32(self.0.bits());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "Newstyle negotiation", with the flags that every modern server sends.
    const NEWSTYLE: &[u8] = b"NBDMAGICIHAVEOPT\x00\x03";

    #[test]
    fn newstyle_greeting() {
        let announcement = Announcement::decode(&NEWSTYLE[..16]).unwrap();
        assert_eq!(announcement, Announcement::V2);
        let negotiate = Negotiate::decode(announcement, &NEWSTYLE[16..]).unwrap();
        assert_eq!(negotiate, Negotiate::V2(HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES));
        let mut out = BytesMut::new();
        announcement.encode(&mut out);
        negotiate.encode(&mut out);
        assert_eq!(out, NEWSTYLE);
    }

    #[test]
    fn oldstyle_greeting() {
        let mut wire = b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53".to_vec();
        wire.extend(b"\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00\x03");
        wire.extend([0; 124]);
        let announcement = Announcement::decode(&wire[..16]).unwrap();
        assert_eq!(announcement, Announcement::V1);
        let negotiate = Negotiate::decode(announcement, &wire[16..]).unwrap();
        let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY;
        assert_eq!(negotiate, Negotiate::V1 { size_bytes: 1 << 20, flags });
        let mut out = BytesMut::new();
        announcement.encode(&mut out);
        negotiate.encode(&mut out);
        assert_eq!(out, wire);
    }

    #[test]
    fn another_magic_is_no_announcement() {
        assert_eq!(Announcement::decode(b"NBDMAGICNBDMAGIC"), Err(DecodeError::BadMagic(INIT_PASSWD)));
        assert_eq!(
            Announcement::decode(b"HTTP/1.1 400 Bad"),
            Err(DecodeError::BadMagic(0x4854_5450_2f31_2e31))
        );
    }

    #[test]
    fn client_flags_keep_unknown_bits() {
        let response = NegotiateResponse::decode(&[0, 0, 0, 7]).unwrap();
        assert_eq!(response.0.unknown_bits(), 4);
    }
}
