//! What the server's handshake asks of the world, and what it ends with.
//!
//! A question that needs an answer is a ticket: it is made by the machine alone and given back with the
//! answer, so that no answer comes unasked or twice.

use crate::protocol::codec::{DecodeError, WireString};
use crate::protocol::info::{ExportInfo, InfoType};
use crate::protocol::option::OptionCode;
use crate::protocol::option_reply::Refusal;
use crate::protocol::request::HeaderStyle;

/// Whether clients can or must use TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsPolicy {
    /// No TLS ("NOTLS").
    #[default]
    Off,
    /// At the client's option, except for exports that the server refuses without ("SELECTIVETLS").
    Allowed,
    /// Nothing without TLS ("FORCEDTLS").
    Required,
}

/// What the server's side of a handshake is configured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakePolicy {
    /// TLS.
    pub tls: TlsPolicy,
    /// Longest data of an option in bytes; longer data is skipped and the option refused.
    pub maximum_option_bytes: u32,
}

/// What is to be done next, once the output is sent.
#[derive(Debug)]
pub enum ServerAction {
    /// Wait for more bytes.
    NeedInput,
    /// Find the exports, then call [`super::ServerHandshake::handle_list`].
    List(ListTicket),
    /// Describe an export, then call [`super::ServerHandshake::handle_description`].
    Describe(DescribeTicket),
    /// Open an export, then call [`super::ServerHandshake::handle_opened`].
    Open(OpenTicket),
    /// Run the TLS handshake, then call [`super::ServerHandshake::handle_tls_started`]; close if it fails.
    StartTls(TlsTicket),
    /// The handshake is over; transmission begins with whatever input is left.
    Transmit(Session),
    /// Close the connection.
    Close(CloseReason),
}

/// A LIST that waits for the exports.
#[derive(Debug)]
pub struct ListTicket(pub(super) ());

/// An INFO, LIST_META_CONTEXT or SET_META_CONTEXT that waits for an export's description.
#[derive(Debug)]
pub struct DescribeTicket {
    pub(super) name: WireString,
    pub(super) purpose: DescribePurpose,
}

#[derive(Debug)]
pub(super) enum DescribePurpose {
    Info(Vec<InfoType>),
    ListContexts(Vec<WireString>),
    SetContexts(Vec<WireString>),
}

impl DescribeTicket {
    /// The export's name; empty for the default.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }
}

/// A GO or EXPORT_NAME that waits for its export.
#[derive(Debug)]
pub struct OpenTicket {
    pub(super) name: WireString,
    /// The requests of a GO; none for EXPORT_NAME.
    pub(super) requests: Option<Vec<InfoType>>,
}

impl OpenTicket {
    /// The export's name; empty for the default.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }
}

/// A STARTTLS that waits for the TLS handshake.
#[derive(Debug)]
pub struct TlsTicket(pub(super) ());

/// What was negotiated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The export, with the flags that the client was told.
    pub export: ExportInfo,
    /// Kind of headers.
    pub headers: HeaderStyle,
    /// The number of the context `base:allocation`, if the client selected it.
    pub base_allocation: Option<u32>,
}

/// Why the server closes the connection during the handshake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The client sent ABORT.
    #[error("the client aborted")]
    Aborted,
    /// Bytes that are no option.
    #[error("no option: {0}")]
    NotAnOption(DecodeError),
    /// Client flags that the server must drop the connection for.
    #[error("unknown client flags {0:#x}")]
    UnknownClientFlags(u32),
    /// An option other than EXPORT_NAME from a client that does not know fixed newstyle.
    #[error("{0} without fixed newstyle")]
    NotFixedNewstyle(OptionCode),
    /// An EXPORT_NAME that cannot be granted: it knows no error reply.
    #[error("EXPORT_NAME refused: {0}")]
    ExportName(Refusal),
    /// Polled although an action was not answered.
    #[error("an action was not answered")]
    Unanswered,
    /// Polled after the handshake was over.
    #[error("the handshake is over")]
    Over,
}
