//! Replies to options during the handshake (NBD `doc/proto.md`, "Option reply types").
//!
//! Owns the reply types and errors, the header of every reply, and the payloads of `NBD_REP_SERVER`,
//! `NBD_REP_META_CONTEXT` and errors. Must not know when a reply is allowed. Invariant: every option except
//! EXPORT_NAME is answered with this header; the answer to EXPORT_NAME is a bare [`super::info::DiskInfo`].

use std::fmt;

use bytes::{BufMut, BytesMut};

use super::codec::{DecodeError, Decoder, WireString};
use super::option::OptionCode;

/// The magic number at the start of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// The type of an option reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum OptionReply {
    /// `NBD_REP_ACK` (1): the option succeeded, and this is its last reply.
    Ack,
    /// `NBD_REP_SERVER` (2): one export, in answer to LIST.
    Server,
    /// `NBD_REP_INFO` (3): one piece of information about an export.
    Info,
    /// `NBD_REP_META_CONTEXT` (4): one metadata context.
    MetaContext,
    /// A type that the specification does not define and that is not an error.
    Unknown(u32),
    /// The option failed.
    Error(OptionError),
}

impl OptionReply {
    /// Returns the type in the reply type field.
    #[must_use]
    pub fn from_wire(value: u32) -> Self {
        match value {
            1 => Self::Ack,
            2 => Self::Server,
            3 => Self::Info,
            4 => Self::MetaContext,
            error if error & OptionError::BIT != 0 => Self::Error(OptionError::from_wire(error)),
            other => Self::Unknown(other),
        }
    }

    /// Returns the number on the wire.
    #[must_use]
    pub fn value(self) -> u32 {
        match self {
            Self::Ack => 1,
            Self::Server => 2,
            Self::Info => 3,
            Self::MetaContext => 4,
            Self::Unknown(other) => other,
            Self::Error(error) => error.value(),
        }
    }
}

/// Why an option failed. On the wire, this is a reply type with bit 31 set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum OptionError {
    /// `NBD_REP_ERR_UNSUP`: the option is unknown.
    Unsup,
    /// `NBD_REP_ERR_POLICY`: the server's policy forbids the option.
    Policy,
    /// `NBD_REP_ERR_INVALID`: the option is syntactically or semantically invalid.
    Invalid,
    /// `NBD_REP_ERR_PLATFORM`: the server's platform does not support the option.
    Platform,
    /// `NBD_REP_ERR_TLS_REQD`: TLS must be initiated first.
    TlsReqd,
    /// `NBD_REP_ERR_UNKNOWN`: the export is not available.
    Unknown,
    /// `NBD_REP_ERR_SHUTDOWN`: the server is shutting down.
    Shutdown,
    /// `NBD_REP_ERR_BLOCK_SIZE_REQD`: the client must request the block size constraints.
    BlockSizeReqd,
    /// `NBD_REP_ERR_TOO_BIG`: the request or the reply is too large.
    TooBig,
    /// `NBD_REP_ERR_EXT_HEADER_REQD`: extended headers are required, or are in use and take precedence.
    ExtHeaderReqd,
    /// An error that the specification does not define; its number without bit 31.
    Other(u32),
}

impl OptionError {
    /// The bit that marks a reply type as an error.
    pub const BIT: u32 = 1 << 31;

    /// Returns the error in the reply type field. Bit 31 is ignored.
    #[must_use]
    pub fn from_wire(value: u32) -> Self {
        match value & !Self::BIT {
            1 => Self::Unsup,
            2 => Self::Policy,
            3 => Self::Invalid,
            4 => Self::Platform,
            5 => Self::TlsReqd,
            6 => Self::Unknown,
            7 => Self::Shutdown,
            8 => Self::BlockSizeReqd,
            9 => Self::TooBig,
            10 => Self::ExtHeaderReqd,
            other => Self::Other(other),
        }
    }

    /// Returns the number on the wire, with bit 31 set.
    #[must_use]
    pub fn value(self) -> u32 {
        Self::BIT
            | match self {
                Self::Unsup => 1,
                Self::Policy => 2,
                Self::Invalid => 3,
                Self::Platform => 4,
                Self::TlsReqd => 5,
                Self::Unknown => 6,
                Self::Shutdown => 7,
                Self::BlockSizeReqd => 8,
                Self::TooBig => 9,
                Self::ExtHeaderReqd => 10,
                Self::Other(other) => other,
            }
    }
}

/// Writes the name in the specification, without its prefix.
impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsup => "ERR_UNSUP",
            Self::Policy => "ERR_POLICY",
            Self::Invalid => "ERR_INVALID",
            Self::Platform => "ERR_PLATFORM",
            Self::TlsReqd => "ERR_TLS_REQD",
            Self::Unknown => "ERR_UNKNOWN",
            Self::Shutdown => "ERR_SHUTDOWN",
            Self::BlockSizeReqd => "ERR_BLOCK_SIZE_REQD",
            Self::TooBig => "ERR_TOO_BIG",
            Self::ExtHeaderReqd => "ERR_EXT_HEADER_REQD",
            Self::Other(value) => return write!(f, "error {value}"),
        })
    }
}

/// The header of every option reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct OptionReplyHeader {
    /// The option that this answers.
    pub option: OptionCode,
    /// Type of the reply.
    pub reply: OptionReply,
    /// Length of the data that follows, in bytes.
    pub length: u32,
}

impl OptionReplyHeader {
    /// Length of the header in bytes.
    pub const LENGTH: usize = 20;

    /// Decodes exactly [`Self::LENGTH`] bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        decoder.magic_u64(OPTION_REPLY_MAGIC)?;
        let header = Self {
            option: OptionCode::from_wire(decoder.u32()?),
            reply: OptionReply::from_wire(decoder.u32()?),
            length: decoder.u32()?,
        };
        decoder.finish()?;
        Ok(header)
    }

    /// Appends [`Self::LENGTH`] bytes.
    pub fn encode(self, out: &mut BytesMut) {
        out.put_u64(OPTION_REPLY_MAGIC);
        out.put_u32(self.option.value());
        out.put_u32(self.reply.value());
        out.put_u32(self.length);
    }
}

/// Appends a reply with its header. `encode_data` appends the data, from which the length is computed.
pub fn encode_option_reply(
    option: OptionCode,
    reply: OptionReply,
    out: &mut BytesMut,
    encode_data: impl FnOnce(&mut BytesMut),
) {
    let start = out.len();
    OptionReplyHeader { option, reply, length: 0 }.encode(out);
    let data = out.len();
    encode_data(out);
    let length = u32::try_from(out.len() - data).expect("reply data is built from a few bounded strings");
    out[start + OptionReplyHeader::LENGTH - 4..data].copy_from_slice(&length.to_be_bytes());
}

/// One export in the answer to LIST: the data of `NBD_REP_SERVER`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ServerEntry {
    /// Name to use with GO.
    pub name: WireString,
    /// Description for people; empty if there is none.
    pub description: WireString,
}

impl ServerEntry {
    /// Decodes the whole data of the reply.
    pub fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(data);
        let name = decoder.string_with_length()?;
        let description = WireString::try_from(decoder.take_rest())?;
        Ok(Self { name, description })
    }

    /// Appends the data of the reply.
    pub fn encode(&self, out: &mut BytesMut) {
        self.name.encode_with_length(out);
        self.description.encode(out);
    }
}

/// A metadata context: the data of `NBD_REP_META_CONTEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MetaContext {
    /// Id that BLOCK_STATUS uses for the context; 0 in the answer to LIST_META_CONTEXT.
    pub id: u32,
    /// Full name: namespace, colon, leaf-name.
    pub name: WireString,
}

impl MetaContext {
    /// Decodes the whole data of the reply.
    pub fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(data);
        Ok(Self { id: decoder.u32()?, name: WireString::try_from(decoder.take_rest())? })
    }

    /// Appends the data of the reply.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u32(self.id);
        self.name.encode(out);
    }
}

/// An error reply with its message: why an option is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[error("{error}: {message}")]
pub struct Refusal {
    /// The error, which is the type of the reply.
    pub error: OptionError,
    /// Explanation for people, which is the data of the reply; empty if there is none.
    pub message: WireString,
}

impl Refusal {
    /// Creates a refusal. The message is truncated if it is too long.
    #[must_use]
    pub fn new(error: OptionError, message: &str) -> Self {
        Self { error, message: WireString::truncated(message) }
    }

    /// Creates the refusal from an error reply with this data. A malformed message is dropped.
    #[must_use]
    pub fn decode(error: OptionError, data: &[u8]) -> Self {
        Self { error, message: WireString::try_from(data).unwrap_or_default() }
    }

    /// Appends the whole reply, including its header.
    pub fn encode(&self, option: OptionCode, out: &mut BytesMut) {
        encode_option_reply(option, OptionReply::Error(self.error), out, |out| self.message.encode(out));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_types_are_those_of_the_specification() {
        for value in (0..=5).chain(0x8000_0000..=0x8000_000b) {
            assert_eq!(OptionReply::from_wire(value).value(), value);
        }
        assert_eq!(OptionReply::from_wire(0x8000_0009), OptionReply::Error(OptionError::TooBig));
        assert_eq!(OptionReply::from_wire(0x8000_000a), OptionReply::Error(OptionError::ExtHeaderReqd));
        assert_eq!(OptionReply::from_wire(0x8000_0000), OptionReply::Error(OptionError::Other(0)));
    }

    #[test]
    fn a_list_entry_with_a_description() {
        let wire = b"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x03\x00\x00\x00\x02\x00\x00\x00\x0d\
                     \x00\x00\x00\x04disktests";
        let header = OptionReplyHeader::decode(&wire[..20]).unwrap();
        assert_eq!(header.option, OptionCode::List);
        assert_eq!(header.reply, OptionReply::Server);
        let entry = ServerEntry::decode(&wire[20..]).unwrap();
        assert_eq!((entry.name.as_str(), entry.description.as_str()), ("disk", "tests"));
        let mut out = BytesMut::new();
        encode_option_reply(OptionCode::List, OptionReply::Server, &mut out, |out| entry.encode(out));
        assert_eq!(out, &wire[..]);
    }

    #[test]
    fn the_name_of_an_entry_is_no_larger_than_the_data_minus_4() {
        assert_eq!(ServerEntry::decode(b"\x00\x00\x00\x05disk"), Err(DecodeError::Truncated));
    }

    #[test]
    fn a_refusal_carries_its_message() {
        let mut out = BytesMut::new();
        Refusal::new(OptionError::Unknown, "no such export").encode(OptionCode::Go, &mut out);
        let wire = b"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x80\x00\x00\x06\x00\x00\x00\x0e\
                     no such export";
        assert_eq!(out, &wire[..]);
    }

    #[test]
    fn a_meta_context_has_an_id_and_a_name() {
        let wire = b"\x00\x00\x00\x01base:allocation";
        let context = MetaContext::decode(wire).unwrap();
        assert_eq!((context.id, context.name.as_str()), (1, "base:allocation"));
        let mut out = BytesMut::new();
        context.encode(&mut out);
        assert_eq!(out, &wire[..]);
    }
}
