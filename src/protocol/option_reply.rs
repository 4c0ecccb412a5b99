//! What a server answers during option haggling (NBD `doc/proto.md`, "Option reply types").
//!
//! Owns the reply types and errors, the header of every reply, and the payloads of `NBD_REP_SERVER`,
//! `NBD_REP_META_CONTEXT` and of errors. EXPORT_NAME alone is answered without a header, by a
//! [`super::info::DiskInfo`].

use std::fmt;

use bytes::{BufMut, BytesMut};

use super::codec::{DecodeError, Decoder, WireString};
use super::option::OptionCode;

/// Magic number of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Type of an option reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OptionReply {
    /// `NBD_REP_ACK` (1): done.
    Ack,
    /// `NBD_REP_SERVER` (2): one export of LIST.
    Server,
    /// `NBD_REP_INFO` (3): one piece of information.
    Info,
    /// `NBD_REP_META_CONTEXT` (4): one metadata context.
    MetaContext,
    /// A type that the specification does not name, and no error.
    Unknown(u32),
    /// An error: the option failed.
    Error(OptionError),
}

impl OptionReply {
    /// The type of a reply type field.
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

    /// The number on the wire.
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

/// Why an option failed: a reply type with bit 31 set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OptionError {
    /// `NBD_REP_ERR_UNSUP`: the option is unknown.
    Unsup,
    /// `NBD_REP_ERR_POLICY`: the server's policy forbids it.
    Policy,
    /// `NBD_REP_ERR_INVALID`: syntactically or semantically invalid.
    Invalid,
    /// `NBD_REP_ERR_PLATFORM`: not supported where the server runs.
    Platform,
    /// `NBD_REP_ERR_TLS_REQD`: TLS must be initiated first.
    TlsReqd,
    /// `NBD_REP_ERR_UNKNOWN`: the export is not available.
    Unknown,
    /// `NBD_REP_ERR_SHUTDOWN`: the server is being shut down.
    Shutdown,
    /// `NBD_REP_ERR_BLOCK_SIZE_REQD`: block size constraints must be asked for.
    BlockSizeReqd,
    /// `NBD_REP_ERR_TOO_BIG`: request or reply is too large.
    TooBig,
    /// `NBD_REP_ERR_EXT_HEADER_REQD`: extended headers must be in use, or are and take precedence.
    ExtHeaderReqd,
    /// An error that the specification does not name; its value without bit 31.
    Other(u32),
}

impl OptionError {
    /// What marks a reply type as an error.
    pub const BIT: u32 = 1 << 31;

    /// The error of a reply type field; bit 31 is not looked at.
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

    /// The number on the wire, with bit 31.
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

/// The name in the specification, without its prefix.
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
pub struct OptionReplyHeader {
    /// The option that is answered.
    pub option: OptionCode,
    /// Type of the reply.
    pub reply: OptionReply,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionReplyHeader {
    /// Bytes on the wire.
    pub const LENGTH: usize = 20;

    /// Reads exactly [`Self::LENGTH`] bytes.
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

/// Appends a reply whose data `encode_data` appends.
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

/// One export in answer to LIST: the data of `NBD_REP_SERVER`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerEntry {
    /// Name, as GO takes it.
    pub name: WireString,
    /// Text for people; empty for none.
    pub description: WireString,
}

impl ServerEntry {
    /// Reads the whole data of the reply.
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
pub struct MetaContext {
    /// The number that BLOCK_STATUS uses for it; 0 in answer to LIST_META_CONTEXT.
    pub id: u32,
    /// Namespace, colon, leaf-name.
    pub name: WireString,
}

impl MetaContext {
    /// Reads the whole data of the reply.
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

/// Why an option is refused: an error reply with its message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}: {message}")]
pub struct Refusal {
    /// Type of the reply.
    pub error: OptionError,
    /// For people: the data of the reply; empty for none.
    pub message: WireString,
}

impl Refusal {
    /// A refusal with a message for people, cut where it is too long.
    #[must_use]
    pub fn new(error: OptionError, message: &str) -> Self {
        Self { error, message: WireString::truncated(message) }
    }

    /// The refusal of an error reply with this data. A message that is not well-formed is left out.
    #[must_use]
    pub fn decode(error: OptionError, data: &[u8]) -> Self {
        Self { error, message: WireString::try_from(data).unwrap_or_default() }
    }

    /// Appends the whole reply.
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
