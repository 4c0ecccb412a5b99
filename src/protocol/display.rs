//! `Display` implementations: the values of the protocol as text for people.
//!
//! Names are those of the specification without their prefixes. Must not know where the text is shown.
//! Invariant: text from the other side is quoted and escaped, so that it cannot forge a line of a log.

use std::fmt::{Display, Formatter, Result, Write as _};

use super::announcement::{Announcement, Negotiate, NegotiateResponse};
use super::chunk::{BlockDescriptor, Chunk};
use super::info::{BlockSize, DiskInfo, ExportInfo, Info, InfoType, Padding};
use super::option::{ExportName, InfoRequest, MetaContextRequest, OptionRequestHeader};
use super::option_reply::{MetaContext, OptionReply, OptionReplyHeader, ServerEntry};
use super::reply::{Reply, ReplyType};
use super::request::{BlockStatusPayload, Cookie, HeaderStyle, Request};

/// Writes items separated by commas.
fn list<T: Display>(f: &mut Formatter<'_>, items: impl IntoIterator<Item = T>) -> Result {
    for (at, item) in items.into_iter().enumerate() {
        write!(f, "{}{item}", if at == 0 { "" } else { ", " })?;
    }
    Ok(())
}

impl Display for Announcement {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::V1 => "oldstyle",
            Self::V2 => "newstyle",
        })
    }
}

impl Display for Negotiate {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::V1 { size_bytes, flags } => write!(f, "oldstyle: {size_bytes} bytes, flags {flags}"),
            Self::V2(flags) => write!(f, "newstyle: flags {flags}"),
        }
    }
}

impl Display for NegotiateResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "client flags {}", self.0)
    }
}

impl Display for Padding {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::None => "no padding",
            Self::Zeroes => "124 zeroes",
        })
    }
}

impl Display for BlockDescriptor {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{} bytes with status {:#x}", self.length, self.status)
    }
}

impl Display for Chunk {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{}", self.reply_type())?;
        match self {
            Self::None => Ok(()),
            Self::OffsetData { offset, data } => write!(f, " of {} bytes at {offset}", data.len()),
            Self::OffsetHole { offset, length } => write!(f, " of {length} bytes at {offset}"),
            Self::BlockStatus { context_id, descriptors }
            | Self::BlockStatusExt { context_id, descriptors } => {
                write!(f, " of context {context_id}: ")?;
                list(f, descriptors)
            }
            Self::Error { error, message } | Self::UnknownError { error, message, .. } => {
                write!(f, ": {error}: {:?}", message.as_str())
            }
            Self::ErrorOffset { error, message, offset } => {
                write!(f, " at {offset}: {error}: {:?}", message.as_str())
            }
        }
    }
}

impl Display for InfoType {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::Export => "EXPORT",
            Self::Name => "NAME",
            Self::Description => "DESCRIPTION",
            Self::BlockSize => "BLOCK_SIZE",
            Self::Unknown(value) => return write!(f, "unknown information {value}"),
        })
    }
}

impl Display for BlockSize {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "blocks of {} bytes at least, {} preferred, ", self.minimum, self.preferred)?;
        match self.maximum {
            u32::MAX => f.write_str("payloads without a limit"),
            maximum => write!(f, "payloads of {maximum} at most"),
        }
    }
}

impl Display for Info {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Export(disk) => write!(f, "EXPORT: {disk}"),
            Self::Name(name) => write!(f, "NAME: {:?}", name.as_str()),
            Self::Description(text) => write!(f, "DESCRIPTION: {:?}", text.as_str()),
            Self::BlockSize(sizes) => write!(f, "BLOCK_SIZE: {sizes}"),
            Self::Unknown { info_type, payload } => {
                write!(f, "unknown information {info_type}: {} bytes", payload.len())
            }
        }
    }
}

impl Display for ExportInfo {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{:?}: {}, {}", self.name.as_str(), self.disk, self.block_size)?;
        if self.description.is_empty() { Ok(()) } else { write!(f, ", {:?}", self.description.as_str()) }
    }
}

impl Display for OptionRequestHeader {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{} with {} bytes", self.option, self.length)
    }
}

impl Display for ExportName {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{:?}", self.0.as_str())
    }
}

impl Display for DiskInfo {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{} bytes, flags {}", self.size_bytes, self.flags)
    }
}

impl Display for InfoRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{:?}", self.name.as_str())?;
        if self.requests.is_empty() {
            return Ok(());
        }
        f.write_str(": ")?;
        list(f, &self.requests)
    }
}

impl Display for MetaContextRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{:?}", self.export.as_str())?;
        for (at, query) in self.queries.iter().enumerate() {
            write!(f, "{} {:?}", if at == 0 { ":" } else { "," }, query.as_str())?;
        }
        Ok(())
    }
}

impl Display for MetaContext {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{:?} as {}", self.name.as_str(), self.id)
    }
}

impl Display for ServerEntry {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{:?}", self.name.as_str())?;
        if self.description.is_empty() { Ok(()) } else { write!(f, ": {:?}", self.description.as_str()) }
    }
}

impl Display for OptionReply {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::Ack => "ACK",
            Self::Server => "SERVER",
            Self::Info => "INFO",
            Self::MetaContext => "META_CONTEXT",
            Self::Unknown(value) => return write!(f, "unknown reply {value}"),
            Self::Error(error) => return error.fmt(f),
        })
    }
}

impl Display for OptionReplyHeader {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{} to {} with {} bytes", self.reply, self.option, self.length)
    }
}

impl Display for ReplyType {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::None => "NONE",
            Self::OffsetData => "OFFSET_DATA",
            Self::OffsetHole => "OFFSET_HOLE",
            Self::BlockStatus => "BLOCK_STATUS",
            Self::BlockStatusExt => "BLOCK_STATUS_EXT",
            Self::Error => "ERROR",
            Self::ErrorOffset => "ERROR_OFFSET",
            Self::Unknown(value) => return write!(f, "unknown chunk {value}"),
        })
    }
}

impl Display for Reply {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Simple { result: Ok(()), cookie } => write!(f, "success for {cookie}"),
            Self::Simple { result: Err(error), cookie } => write!(f, "{error} for {cookie}"),
            Self::Structured { flags, reply_type, cookie, length } => {
                write!(f, "{reply_type} with {length} bytes for {cookie}, flags {flags}")
            }
            Self::Extended { flags, reply_type, cookie, offset, length } => {
                write!(f, "{reply_type} with {length} bytes for {cookie} at {offset}, flags {flags}")
            }
        }
    }
}

impl Display for HeaderStyle {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::Simple => "simple replies",
            Self::Structured => "structured replies",
            Self::Extended => "extended headers",
        })
    }
}

impl Display for Cookie {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "cookie {:#x}", self.0)
    }
}

impl Display for Request {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { flags, command, cookie, offset, length } = self;
        write!(f, "{command} of {length} bytes at {offset}, {cookie}, flags {flags}")
    }
}

impl Display for BlockStatusPayload {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{} bytes in contexts ", self.effect_length)?;
        f.write_char('[')?;
        list(f, &self.context_ids)?;
        f.write_char(']')
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::codec::WireString;
    use super::super::command::Command;
    use super::super::error::Error;
    use super::super::flags::{CommandFlags, ReplyFlags, TransmissionFlags};
    use super::*;

    fn text(text: &str) -> WireString {
        WireString::try_from(text).unwrap()
    }

    #[test]
    fn values_read_as_in_the_specification() {
        let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
        let disk = DiskInfo { size_bytes: 1024, flags };
        assert_eq!(disk.to_string(), "1024 bytes, flags HAS_FLAGS | SEND_FLUSH");
        let request = Request {
            flags: CommandFlags::FUA | CommandFlags::from_wire(0x8000),
            command: Command::Write,
            cookie: Cookie(42),
            offset: 4096,
            length: 512,
        };
        let written = "WRITE of 512 bytes at 4096, cookie 0x2a, flags FUA | 0x8000";
        assert_eq!(request.to_string(), written);
        let reply = Reply::Structured {
            flags: ReplyFlags::empty(),
            reply_type: ReplyType::OffsetData,
            cookie: Cookie(42),
            length: 9,
        };
        assert_eq!(reply.to_string(), "OFFSET_DATA with 9 bytes for cookie 0x2a, flags none");
        let data = Chunk::OffsetData { offset: 7, data: Bytes::from_static(b"x") };
        assert_eq!(data.to_string(), "OFFSET_DATA of 1 bytes at 7");
        let sizes = BlockSize { minimum: 512, preferred: 4096, maximum: 1 << 20 };
        assert_eq!(
            Info::BlockSize(sizes).to_string(),
            "BLOCK_SIZE: blocks of 512 bytes at least, 4096 preferred, payloads of 1048576 at most"
        );
        assert_eq!(InfoType::Unknown(99).to_string(), "unknown information 99");
        let payload = BlockStatusPayload { effect_length: 8, context_ids: vec![1, 2] };
        assert_eq!(payload.to_string(), "8 bytes in contexts [1, 2]");
    }

    #[test]
    fn text_of_the_other_side_cannot_pass_for_a_line_of_its_own() {
        let entry = ServerEntry { name: text("a\nb"), description: text("\u{1b}[2J") };
        assert_eq!(entry.to_string(), r#""a\nb": "\u{1b}[2J""#);
        let failed = Chunk::Error { error: Error::Io, message: text("x\r\ny") };
        assert_eq!(failed.to_string(), r#"ERROR: EIO: input/output error: "x\r\ny""#);
        let asked = MetaContextRequest { export: text("d\n"), queries: vec![text("base:"), text("q\n:")] };
        assert_eq!(asked.to_string(), r#""d\n": "base:", "q\n:""#);
    }
}
