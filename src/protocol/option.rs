//! Options that a client sends during the handshake (NBD `doc/proto.md`, "Option types").
//!
//! Owns the header of every option, and the payloads of EXPORT_NAME, INFO and GO, LIST_META_CONTEXT and
//! SET_META_CONTEXT. Must not know which options are allowed when; the handshake machines decide that.
//! Invariant: a payload decodes only if its fields fill the option's data exactly.

use std::fmt;

use bytes::{BufMut, BytesMut};

use super::announcement::OPTION_MAGIC;
use super::codec::{DecodeError, Decoder, WireString};
use super::info::InfoType;

/// The code of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum OptionCode {
    /// `NBD_OPT_EXPORT_NAME` (1): choose an export and begin transmission, without an error reply.
    ExportName,
    /// `NBD_OPT_ABORT` (2): end the session.
    Abort,
    /// `NBD_OPT_LIST` (3): list the exports.
    List,
    /// `NBD_OPT_PEEK_EXPORT` (4): withdrawn from the specification.
    PeekExport,
    /// `NBD_OPT_STARTTLS` (5): switch the connection to TLS.
    StartTls,
    /// `NBD_OPT_INFO` (6): describe an export.
    Info,
    /// `NBD_OPT_GO` (7): choose an export and begin transmission.
    Go,
    /// `NBD_OPT_STRUCTURED_REPLY` (8): use structured replies.
    StructuredReply,
    /// `NBD_OPT_LIST_META_CONTEXT` (9): list the metadata contexts of an export.
    ListMetaContext,
    /// `NBD_OPT_SET_META_CONTEXT` (10): select metadata contexts of an export.
    SetMetaContext,
    /// `NBD_OPT_EXTENDED_HEADERS` (11): use extended headers.
    ExtendedHeaders,
    /// A code that the specification does not define.
    Unknown(u32),
}

impl OptionCode {
    /// Returns the option in the option field of a header.
    #[must_use]
    pub fn from_wire(value: u32) -> Self {
        match value {
            1 => Self::ExportName,
            2 => Self::Abort,
            3 => Self::List,
            4 => Self::PeekExport,
            5 => Self::StartTls,
            6 => Self::Info,
            7 => Self::Go,
            8 => Self::StructuredReply,
            9 => Self::ListMetaContext,
            10 => Self::SetMetaContext,
            11 => Self::ExtendedHeaders,
            other => Self::Unknown(other),
        }
    }

    /// Returns the number on the wire.
    #[must_use]
    pub fn value(self) -> u32 {
        match self {
            Self::ExportName => 1,
            Self::Abort => 2,
            Self::List => 3,
            Self::PeekExport => 4,
            Self::StartTls => 5,
            Self::Info => 6,
            Self::Go => 7,
            Self::StructuredReply => 8,
            Self::ListMetaContext => 9,
            Self::SetMetaContext => 10,
            Self::ExtendedHeaders => 11,
            Self::Unknown(other) => other,
        }
    }
}

/// Writes the name in the specification, without its prefix.
impl fmt::Display for OptionCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ExportName => "EXPORT_NAME",
            Self::Abort => "ABORT",
            Self::List => "LIST",
            Self::PeekExport => "PEEK_EXPORT",
            Self::StartTls => "STARTTLS",
            Self::Info => "INFO",
            Self::Go => "GO",
            Self::StructuredReply => "STRUCTURED_REPLY",
            Self::ListMetaContext => "LIST_META_CONTEXT",
            Self::SetMetaContext => "SET_META_CONTEXT",
            Self::ExtendedHeaders => "EXTENDED_HEADERS",
            Self::Unknown(value) => return write!(f, "unknown option {value}"),
        })
    }
}

/// The header of every option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct OptionRequestHeader {
    /// Code of the option.
    pub option: OptionCode,
    /// Length of the data that follows, in bytes.
    pub length: u32,
}

impl OptionRequestHeader {
    /// Length of the header in bytes.
    pub const LENGTH: usize = 16;

    /// Decodes exactly [`Self::LENGTH`] bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        decoder.magic_u64(OPTION_MAGIC)?;
        let header = Self { option: OptionCode::from_wire(decoder.u32()?), length: decoder.u32()? };
        decoder.finish()?;
        Ok(header)
    }

    /// Appends [`Self::LENGTH`] bytes.
    pub fn encode(self, out: &mut BytesMut) {
        out.put_u64(OPTION_MAGIC);
        out.put_u32(self.option.value());
        out.put_u32(self.length);
    }
}

/// Appends an option: its header, followed by its data.
pub fn encode_option(option: OptionCode, data: &[u8], out: &mut BytesMut) {
    let length = u32::try_from(data.len()).expect("option data is built from bounded strings and lists");
    OptionRequestHeader { option, length }.encode(out);
    out.put_slice(data);
}

/// The data of `NBD_OPT_EXPORT_NAME`, which consists of the name only.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ExportName(pub WireString);

impl ExportName {
    /// Decodes the whole data of the option.
    pub fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        WireString::try_from(data).map(Self)
    }

    /// Appends the data of the option.
    pub fn encode(&self, out: &mut BytesMut) {
        self.0.encode(out);
    }
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct InfoRequest {
    /// Name of the export; empty for the default export.
    pub name: WireString,
    /// What the client wants to know in addition to `NBD_INFO_EXPORT`.
    pub requests: Vec<InfoType>,
}

impl InfoRequest {
    /// Decodes the whole data of the option.
    pub fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(data);
        let name = decoder.string_with_length()?;
        let count = usize::from(decoder.u16()?);
        if decoder.remaining() != count * 2 {
            return Err(DecodeError::Invalid("number of information requests disagrees with the length"));
        }
        let requests =
            (0..count).map(|_| decoder.u16().map(InfoType::from_wire)).collect::<Result<_, _>>()?;
        decoder.finish()?;
        Ok(Self { name, requests })
    }

    /// Appends the data of the option. If there are more than 65,535 requests, only the first 65,535 are
    /// sent.
    pub fn encode(&self, out: &mut BytesMut) {
        self.name.encode_with_length(out);
        let count = u16::try_from(self.requests.len()).unwrap_or(u16::MAX);
        out.put_u16(count);
        for request in self.requests.iter().take(usize::from(count)) {
            out.put_u16(request.value());
        }
    }
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MetaContextRequest {
    /// Name of the export; empty for the default export.
    pub export: WireString,
    /// Queries, each of which consists of a namespace, a colon and a leaf-name.
    pub queries: Vec<WireString>,
}

impl MetaContextRequest {
    /// Decodes the whole data of the option.
    pub fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(data);
        let export = decoder.string_with_length()?;
        let count = decoder.u32()?;
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(decoder.string_with_length()?);
        }
        decoder.finish()?;
        Ok(Self { export, queries })
    }

    /// Appends the data of the option.
    pub fn encode(&self, out: &mut BytesMut) {
        self.export.encode_with_length(out);
        out.put_u32(
            u32::try_from(self.queries.len()).expect("fewer queries than bytes of memory in 32 bits"),
        );
        for query in &self.queries {
            query.encode_with_length(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::info::{DiskInfo, Padding};

    #[test]
    fn go_with_two_information_requests() {
        let data = b"\x00\x00\x00\x04disk\x00\x02\x00\x01\x00\x03";
        let request = InfoRequest::decode(data).unwrap();
        assert_eq!(request.name.as_str(), "disk");
        assert_eq!(request.requests, [InfoType::Name, InfoType::BlockSize]);
        let mut out = BytesMut::new();
        request.encode(&mut out);
        assert_eq!(out, &data[..]);
    }

    #[test]
    fn the_name_of_go_is_no_larger_than_the_data_minus_6() {
        assert_eq!(InfoRequest::decode(b"\x00\x00\x00\x05diskx\x00"), Err(DecodeError::Truncated));
        assert_eq!(InfoRequest::decode(b"\xff\xff\xff\xffdisk\x00\x00"), Err(DecodeError::Truncated));
    }

    #[test]
    fn the_requests_of_go_fill_the_data() {
        assert!(InfoRequest::decode(b"\x00\x00\x00\x00\x00\x01").is_err());
        assert!(InfoRequest::decode(b"\x00\x00\x00\x00\x00\x00\x00\x03").is_err());
    }

    #[test]
    fn a_query_may_not_reach_beyond_the_option() {
        let data = b"\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x06base:";
        assert_eq!(MetaContextRequest::decode(data), Err(DecodeError::Truncated));
        let many = b"\x00\x00\x00\x00\xff\xff\xff\xff";
        assert_eq!(MetaContextRequest::decode(many), Err(DecodeError::Truncated));
    }

    #[test]
    fn set_meta_context() {
        let data = b"\x00\x00\x00\x01x\x00\x00\x00\x01\x00\x00\x00\x0fbase:allocation";
        let request = MetaContextRequest::decode(data).unwrap();
        assert_eq!(request.export.as_str(), "x");
        assert_eq!(request.queries[0].as_str(), "base:allocation");
        let mut out = BytesMut::new();
        request.encode(&mut out);
        assert_eq!(out, &data[..]);
    }

    #[test]
    fn an_option_opens_with_ihaveopt() {
        let header = OptionRequestHeader::decode(b"IHAVEOPT\x00\x00\x00\x03\x00\x00\x00\x00").unwrap();
        assert_eq!(header, OptionRequestHeader { option: OptionCode::List, length: 0 });
        assert!(OptionRequestHeader::decode(b"IHAVEOPX\x00\x00\x00\x03\x00\x00\x00\x00").is_err());
    }

    #[test]
    fn disk_info_with_and_without_zeroes() {
        let mut wire = b"\x00\x00\x00\x00\x40\x00\x00\x00\x01\x6d".to_vec();
        let info = DiskInfo::decode(&wire).unwrap();
        assert_eq!((info.size_bytes, info.flags.bits()), (1 << 30, 0x16d));
        wire.extend([0; 124]);
        assert_eq!(DiskInfo::decode(&wire), Ok(info));
        let mut out = BytesMut::new();
        info.encode(Padding::Zeroes, &mut out);
        assert_eq!(out, wire);
        assert!(DiskInfo::decode(&wire[..133]).is_err());
    }
}
