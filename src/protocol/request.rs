//! Requests of the transmission phase (NBD `doc/proto.md`, "Request message").
//!
//! Owns compact and extended headers, and the payload of a BLOCK_STATUS that selects contexts. Must not know
//! whether a request is valid. Invariant: the header alone determines how many payload bytes follow it.

use bytes::{BufMut, BytesMut};

use super::codec::{DecodeError, Decoder};
use super::command::Command;
use super::flags::CommandFlags;

/// `NBD_REQUEST_MAGIC`: starts a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// `NBD_EXTENDED_REQUEST_MAGIC`: starts an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;

/// The kind of headers that was negotiated, in order of increasing capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum HeaderStyle {
    /// Compact requests and simple replies.
    #[default]
    Simple,
    /// Compact requests. Replies to READ and BLOCK_STATUS are structured; other replies are of either kind.
    Structured,
    /// Extended requests and extended replies.
    Extended,
}

impl HeaderStyle {
    /// Length of a request header in bytes.
    #[must_use]
    pub fn request_length(self) -> usize {
        match self {
            Self::Simple | Self::Structured => Request::COMPACT_LENGTH,
            Self::Extended => Request::EXTENDED_LENGTH,
        }
    }
}

/// The identifier that a client chooses for a request. The reply repeats it. Earlier versions of the
/// specification call it "handle".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Cookie(pub u64);

/// The header of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Request {
    /// Command flags, including unknown ones.
    pub flags: CommandFlags,
    /// The command to carry out.
    pub command: Command,
    /// Identifier that the reply repeats.
    pub cookie: Cookie,
    /// Offset of the first byte of the range in the export.
    pub offset: u64,
    /// Length of the range in bytes, or of the payload if [`Request::payload_length`] is not 0.
    pub length: u64,
}

impl Request {
    /// Length of a compact header in bytes.
    pub const COMPACT_LENGTH: usize = 28;
    /// Length of an extended header in bytes.
    pub const EXTENDED_LENGTH: usize = 32;

    /// Decodes exactly one header of this style.
    pub fn decode(style: HeaderStyle, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        let extended = style == HeaderStyle::Extended;
        //= Option types: the client MUST use the 32-byte extended request header
        decoder.magic_u32(if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC })?;
        let request = Self {
            flags: CommandFlags::from_wire(decoder.u16()?),
            command: Command::from_wire(decoder.u16()?),
            cookie: Cookie(decoder.u64()?),
            offset: decoder.u64()?,
            length: if extended { decoder.u64()? } else { u64::from(decoder.u32()?) },
        };
        decoder.finish()?;
        Ok(request)
    }

    /// Appends one header of this style. Fails if the length does not fit into a compact header.
    pub fn encode(self, style: HeaderStyle, out: &mut BytesMut) -> Result<(), DecodeError> {
        let extended = style == HeaderStyle::Extended;
        let compact_length = u32::try_from(self.length);
        if !extended && compact_length.is_err() {
            return Err(DecodeError::Invalid("length does not fit a compact request"));
        }
        out.put_u32(if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC });
        out.put_u16(self.flags.bits());
        out.put_u16(self.command.value());
        out.put_u64(self.cookie.0);
        out.put_u64(self.offset);
        match compact_length {
            Ok(length) if !extended => out.put_u32(length),
            _ => out.put_u64(self.length),
        }
        Ok(())
    }

    /// Number of payload bytes that follow the header.
    ///
    /// A WRITE always has a payload. With extended headers, any command with the flag PAYLOAD_LEN has one
    /// too. A WRITE must set that flag as well, but QEMU's client (seen in 10.0) does not, and sends its
    /// payload all the same.
    #[must_use]
    pub fn payload_length(&self, style: HeaderStyle) -> u64 {
        //= Option types: with proper use of `NBD_CMD_FLAG_PAYLOAD_LEN` for all commands sending a payload
        let says_so = style == HeaderStyle::Extended && self.flags.contains(CommandFlags::PAYLOAD_LEN);
        if says_so || self.command == Command::Write { self.length } else { 0 }
    }
}

/// The payload of a BLOCK_STATUS with the flag PAYLOAD_LEN, which selects some of the contexts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BlockStatusPayload {
    /// Length of the range in bytes.
    pub effect_length: u64,
    /// Ids of the contexts to report, as assigned in the reply to SET_META_CONTEXT.
    pub context_ids: Vec<u32>,
}

impl BlockStatusPayload {
    /// Decodes the whole payload.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(payload);
        let effect_length = decoder.u64()?;
        if !decoder.remaining().is_multiple_of(4) {
            return Err(DecodeError::Invalid("payload is not 8 + n * 4 bytes"));
        }
        let count = decoder.remaining() / 4;
        let context_ids = (0..count).map(|_| decoder.u32()).collect::<Result<_, _>>()?;
        Ok(Self { effect_length, context_ids })
    }

    /// Appends the payload.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u64(self.effect_length);
        for id in &self.context_ids {
            out.put_u32(*id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compact_write_is_followed_by_its_data() {
        let wire =
            b"\x25\x60\x95\x13\x00\x01\x00\x01cookie:)\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x02\x00";
        let request = Request::decode(HeaderStyle::Structured, wire).unwrap();
        assert_eq!(request.command, Command::Write);
        assert_eq!(request.flags, CommandFlags::FUA);
        assert_eq!(request.cookie, Cookie(u64::from_be_bytes(*b"cookie:)")));
        assert_eq!((request.offset, request.length), (65_536, 512));
        assert_eq!(request.payload_length(HeaderStyle::Structured), 512);
        let mut out = BytesMut::new();
        request.encode(HeaderStyle::Simple, &mut out).unwrap();
        assert_eq!(out, &wire[..]);
    }

    #[test]
    fn an_extended_request_says_whether_a_payload_follows() {
        let wire =
            b"\x21\xe4\x1c\x71\x00\x02\x00\x06\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\0\x00\x00\x01\x00\0\0\0\0";
        let request = Request::decode(HeaderStyle::Extended, wire).unwrap();
        assert_eq!(request.command, Command::WriteZeroes);
        assert_eq!(request.length, 1 << 40);
        assert_eq!(request.payload_length(HeaderStyle::Extended), 0);
        let mut out = BytesMut::new();
        request.encode(HeaderStyle::Extended, &mut out).unwrap();
        assert_eq!(out, &wire[..]);
        let with_payload =
            Request { flags: CommandFlags::PAYLOAD_LEN, command: Command::Write, length: 512, ..request };
        assert_eq!(with_payload.payload_length(HeaderStyle::Extended), 512);
    }

    #[test]
    fn the_magic_of_the_other_style_is_refused() {
        let mut out = BytesMut::new();
        let request = Request {
            flags: CommandFlags::empty(),
            command: Command::Flush,
            cookie: Cookie(1),
            offset: 0,
            length: 0,
        };
        request.encode(HeaderStyle::Extended, &mut out).unwrap();
        let bad = DecodeError::BadMagic(u64::from(EXTENDED_REQUEST_MAGIC));
        assert_eq!(Request::decode(HeaderStyle::Simple, &out[..28]), Err(bad));
    }

    #[test]
    fn a_length_of_64_bits_needs_an_extended_header() {
        let request = Request {
            flags: CommandFlags::empty(),
            command: Command::Trim,
            cookie: Cookie(1),
            offset: 0,
            length: 1 << 32,
        };
        let mut out = BytesMut::new();
        assert!(request.encode(HeaderStyle::Structured, &mut out).is_err());
        assert!(out.is_empty());
    }

    #[test]
    fn the_payload_of_block_status_is_8_plus_4_n_bytes() {
        let wire = b"\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\x09";
        let payload = BlockStatusPayload::decode(wire).unwrap();
        assert_eq!(payload, BlockStatusPayload { effect_length: 1 << 32, context_ids: vec![1, 9] });
        let mut out = BytesMut::new();
        payload.encode(&mut out);
        assert_eq!(out, &wire[..]);
        assert!(BlockStatusPayload::decode(&wire[..10]).is_err());
        assert!(BlockStatusPayload::decode(&wire[..7]).is_err());
    }
}
