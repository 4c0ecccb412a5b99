//! The actions and results of the server's handshake.
//!
//! Must not know how exports are found or opened. Invariant: every question to the caller is a ticket. Only
//! the handshake creates tickets, and the answer consumes the ticket, so a question cannot be answered
//! unasked or twice.

use crate::protocol::codec::{DecodeError, WireString};
use crate::protocol::info::{ExportInfo, InfoType};
use crate::protocol::option::OptionCode;
use crate::protocol::option_reply::{MetaContext, Refusal};
use crate::protocol::request::HeaderStyle;

/// Whether clients can or must use TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsPolicy {
    /// TLS is not available ("NOTLS").
    #[default]
    Off,
    /// The client decides, but the server may refuse some exports without TLS ("SELECTIVETLS").
    Allowed,
    /// Nothing is available without TLS ("FORCEDTLS").
    Required,
}

/// The configuration of the server's side of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakePolicy {
    /// Whether clients can or must use TLS.
    pub tls: TlsPolicy,
    /// Maximum length of an option's data in bytes. Longer data is skipped and the option is refused.
    pub maximum_option_bytes: u32,
}

/// What the caller must do next, after it has sent the output.
#[derive(Debug)]
pub enum ServerAction {
    /// Receive more bytes.
    NeedInput,
    /// List the exports, then call [`super::ServerHandshake::handle_list`].
    List(ListTicket),
    /// Describe an export, then call [`super::ServerHandshake::handle_description`].
    Describe(DescribeTicket),
    /// Look up the metadata contexts of an export, then call [`super::ServerHandshake::handle_contexts`].
    Contexts(ContextsTicket),
    /// Open an export, then call [`super::ServerHandshake::handle_opened`].
    Open(OpenTicket),
    /// Run the TLS handshake, then call [`super::ServerHandshake::handle_tls_started`]. Close the connection
    /// if it fails.
    StartTls(TlsTicket),
    /// The handshake is over and transmission begins. The remaining input belongs to it.
    Transmit(Session),
    /// Close the connection.
    Close(CloseReason),
}

/// A LIST option that waits for the list of exports.
#[derive(Debug)]
pub struct ListTicket(pub(super) ());

/// An INFO option that waits for the description of an export.
#[derive(Debug)]
pub struct DescribeTicket {
    pub(super) name: WireString,
    pub(super) requests: Vec<InfoType>,
}

impl DescribeTicket {
    /// Name of the export; empty for the default export.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }
}

/// A LIST_META_CONTEXT or SET_META_CONTEXT option that waits for the contexts of an export.
#[derive(Debug)]
pub struct ContextsTicket {
    pub(super) name: WireString,
    pub(super) queries: Vec<WireString>,
    pub(super) purpose: ContextsPurpose,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum ContextsPurpose {
    List,
    Select,
}

impl ContextsTicket {
    /// Name of the export; empty for the default export.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }
}

/// A GO or EXPORT_NAME option that waits for its export.
#[derive(Debug)]
pub struct OpenTicket {
    pub(super) name: WireString,
    /// The information requests of a GO; `None` for EXPORT_NAME.
    pub(super) requests: Option<Vec<InfoType>>,
}

impl OpenTicket {
    /// Name of the export; empty for the default export.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }
}

/// A STARTTLS option that waits for the TLS handshake.
#[derive(Debug)]
pub struct TlsTicket(pub(super) ());

/// The result of the negotiation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The export, with the flags that were sent to the client.
    pub export: ExportInfo,
    /// The kind of headers that was negotiated.
    pub headers: HeaderStyle,
    /// The metadata contexts that the client selected, with their ids: at most
    /// [`MAXIMUM_SELECTED`](crate::protocol::meta_context::MAXIMUM_SELECTED).
    pub contexts: Vec<MetaContext>,
}

/// Why the server closes the connection during the handshake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client sent ABORT.
    #[error("the client aborted")]
    Aborted,
    /// The client sent bytes that are not an option.
    #[error("malformed option: {0}")]
    NotAnOption(DecodeError),
    /// The client set unknown client flags, for which the server must drop the connection.
    #[error("unknown client flags {0:#x}")]
    UnknownClientFlags(u32),
    /// A client without fixed newstyle sent an option other than EXPORT_NAME.
    #[error("{0} without fixed newstyle")]
    NotFixedNewstyle(OptionCode),
    /// The server refuses an EXPORT_NAME, for which no error reply exists.
    #[error("EXPORT_NAME refused: {0}")]
    ExportName(Refusal),
    /// [`super::ServerHandshake::poll`] was called before the previous action was answered.
    #[error("an action was not answered")]
    Unanswered,
    /// [`super::ServerHandshake::poll`] was called after the handshake was over.
    #[error("the handshake is over")]
    Over,
}
