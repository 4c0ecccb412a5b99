//! The NBD protocol: wire types and the state machines of the handshake.
//!
//! The names are those of the specification, `doc/proto.md` of NetworkBlockDevice/nbd, including its
//! extension for extended headers. Every type has its decoder and its encoder side by side, for clients and
//! servers alike. The module must not do I/O or use clocks or logs. Invariant: any bytes decode to a value or
//! an error.
//!
//! The types of the OCaml package `nbd` have these names here:
//!
//! | there | here |
//! |---|---|
//! | `Error` | [`Error`] |
//! | `Command` | [`Command`] |
//! | `PerExportFlag` | [`TransmissionFlags`] |
//! | `GlobalFlag` | [`HandshakeFlags`] |
//! | `ClientFlag` | [`ClientFlags`] |
//! | `Option` | [`OptionCode`] |
//! | `OptionResponse` | [`OptionReply`] |
//! | `Announcement` | [`Announcement`] |
//! | `Negotiate` | [`Negotiate`] |
//! | `NegotiateResponse` | [`NegotiateResponse`] |
//! | `OptionRequestHeader` | [`OptionRequestHeader`] |
//! | `ExportName` | [`ExportName`] |
//! | `DiskInfo` | [`DiskInfo`] |
//! | `OptionResponseHeader` | [`OptionReplyHeader`] |
//! | `Server` | [`ServerEntry`] |
//! | `Request` | [`Request`] |
//! | `Reply` | [`Reply`] |

pub mod announcement;
pub mod chunk;
pub mod codec;
pub mod command;
mod display;
pub mod error;
pub mod flags;
pub mod info;
pub mod meta_context;
pub mod negotiate_client;
pub mod negotiate_server;
pub mod option;
pub mod option_reply;
pub mod reply;
pub mod request;
#[cfg(feature = "serde")]
mod serde_bytes;

pub use announcement::{Announcement, Negotiate, NegotiateResponse};
pub use chunk::{BlockDescriptor, Chunk};
pub use codec::{DecodeError, WireString};
pub use command::Command;
pub use error::Error;
pub use flags::{AllocationFlags, ClientFlags, CommandFlags, HandshakeFlags, ReplyFlags, TransmissionFlags};
pub use info::{BlockSize, DiskInfo, ExportInfo, Info, InfoType, Padding};
pub use option::{ExportName, InfoRequest, MetaContextRequest, OptionCode, OptionRequestHeader};
pub use option_reply::{MetaContext, OptionError, OptionReply, OptionReplyHeader, Refusal, ServerEntry};
pub use reply::{Reply, ReplyType};
pub use request::{BlockStatusPayload, Cookie, HeaderStyle, Request};
