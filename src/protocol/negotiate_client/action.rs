//! The goals, actions and results of the client's handshake.
//!
//! Must not know how the handshake reaches them. Invariant: only the handshake creates a [`TlsTicket`], so
//! TLS cannot be reported as started unless the handshake asked for it.

use crate::protocol::codec::{DecodeError, WireString};
use crate::protocol::info::ExportInfo;
use crate::protocol::option::OptionCode;
use crate::protocol::option_reply::{MetaContext, Refusal, ServerEntry};
use crate::protocol::request::HeaderStyle;

/// The purpose of a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// List all exports.
    List,
    /// Describe this export.
    Info(WireString),
    /// Use this export.
    Go(WireString),
}

/// Whether the client uses TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientTls {
    /// Do not use TLS.
    #[default]
    Off,
    /// Use TLS if the server supports it. An attacker who can modify the traffic can prevent that.
    Opportunistic,
    /// Fail if the server does not support TLS.
    Required,
}

/// The features that a client asks for. Only the goal and required TLS are mandatory; the client does without
/// any other feature that the server does not support.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// The purpose of the handshake.
    pub goal: Goal,
    /// Whether to use TLS.
    pub tls: ClientTls,
    /// Whether to ask for structured replies.
    pub structured_replies: bool,
    /// Whether to ask for extended headers, which take precedence over structured replies.
    pub extended_headers: bool,
    /// Queries for metadata contexts. [`Goal::Go`] selects the matching contexts, [`Goal::Info`] lists them.
    pub contexts: Vec<WireString>,
}

impl Wishes {
    /// Asks for every feature of the protocol except TLS and metadata contexts.
    #[must_use]
    pub fn new(goal: Goal) -> Self {
        let (structured_replies, extended_headers) = (true, true);
        Self { goal, tls: ClientTls::Off, structured_replies, extended_headers, contexts: Vec::new() }
    }
}

/// What the caller must do next, after it has sent the output.
#[derive(Debug)]
pub enum ClientAction {
    /// Receive more bytes. If the server has closed the connection, call
    /// [`super::ClientHandshake::handle_closed`].
    NeedInput,
    /// Run the TLS handshake, then call [`super::ClientHandshake::handle_tls_started`]. Close the connection
    /// if it fails.
    StartTls(TlsTicket),
    /// The goal is reached.
    Finish(Outcome),
    /// Close the connection.
    Fail(HandshakeError),
}

/// A STARTTLS option that waits for the TLS handshake.
#[derive(Debug)]
pub struct TlsTicket(pub(super) ());

/// The result of a successful handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All exports of the server. The session is over.
    Listed(Vec<ServerEntry>),
    /// The description of an export, and the contexts that matched. The session is over.
    Described(ExportInfo, Vec<MetaContext>),
    /// Transmission begins. The remaining input belongs to it.
    Transmit(ClientSession),
}

/// The result of the negotiation for an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSession {
    /// The export as the server described it, with the defaults of the specification for what the server left
    /// out.
    pub export: ExportInfo,
    /// The kind of headers that was negotiated.
    pub headers: HeaderStyle,
    /// The selected contexts with their ids.
    pub contexts: Vec<MetaContext>,
}

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The server refused an option that is needed for the goal.
    #[error("the server refused {option}: {refusal}")]
    Refused {
        /// The option that was refused.
        option: OptionCode,
        /// The error reply of the server.
        refusal: Refusal,
    },
    /// The server uses an older version of the protocol that does not have this option.
    #[error("the server does not know {0}")]
    TooOld(OptionCode),
    /// TLS is required, but the server does not support it.
    #[error("the server does not offer TLS")]
    NoTls,
    /// The server closed the connection. This is also how it refuses EXPORT_NAME.
    #[error("the server closed the connection{}", if *.0 { ", so there is no such export" } else { "" })]
    Closed(
        /// Whether the client was waiting for the answer to EXPORT_NAME.
        bool,
    ),
    /// The server violated the protocol.
    #[error("the server violated the protocol: {0}")]
    Protocol(#[from] DecodeError),
    /// [`super::ClientHandshake::poll`] was called after the handshake was over, or before TLS was reported
    /// as started.
    #[error("the handshake is over")]
    Over,
}
