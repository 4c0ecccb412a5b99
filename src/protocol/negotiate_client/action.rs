//! What the client's handshake is for, what it asks of the world, and what it ends with.

use crate::protocol::codec::{DecodeError, WireString};
use crate::protocol::info::ExportInfo;
use crate::protocol::option::OptionCode;
use crate::protocol::option_reply::{MetaContext, Refusal, ServerEntry};
use crate::protocol::request::HeaderStyle;

/// What a handshake is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// To be told all exports.
    List,
    /// To be told of an export.
    Info(WireString),
    /// To use an export.
    Go(WireString),
}

/// Whether to use TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientTls {
    /// No.
    #[default]
    Off,
    /// Where the server has it. Whoever can change what is sent can prevent it.
    Opportunistic,
    /// Or not at all.
    Required,
}

/// What a client would like to have, and does without where a server cannot, except for its goal and required
/// TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// What the handshake is for.
    pub goal: Goal,
    /// TLS.
    pub tls: ClientTls,
    /// Structured replies.
    pub structured_replies: bool,
    /// Extended headers; they take precedence.
    pub extended_headers: bool,
    /// Queries for metadata contexts: to select them with [`Goal::Go`], to list them with [`Goal::Info`].
    pub contexts: Vec<WireString>,
}

impl Wishes {
    /// All that the protocol has, without TLS and contexts.
    #[must_use]
    pub fn new(goal: Goal) -> Self {
        let (structured_replies, extended_headers) = (true, true);
        Self { goal, tls: ClientTls::Off, structured_replies, extended_headers, contexts: Vec::new() }
    }
}

/// What is to be done next, once the output is sent.
#[derive(Debug)]
pub enum ClientAction {
    /// Wait for more bytes; at their end, call [`super::ClientHandshake::handle_closed`].
    NeedInput,
    /// Run the TLS handshake, then call [`super::ClientHandshake::handle_tls_started`]; close if it fails.
    StartTls(TlsTicket),
    /// The goal is reached.
    Finish(Outcome),
    /// Close the connection.
    Fail(HandshakeError),
}

/// A STARTTLS that waits for the TLS handshake.
#[derive(Debug)]
pub struct TlsTicket(pub(super) ());

/// What a handshake has given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All exports. The session is over.
    Listed(Vec<ServerEntry>),
    /// An export, and the contexts that were found. The session is over.
    Described(ExportInfo, Vec<MetaContext>),
    /// Transmission begins with whatever input is left.
    Transmit(ClientSession),
}

/// What was negotiated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSession {
    /// The export as the server tells of it. What it does not tell is as the specification presumes.
    pub export: ExportInfo,
    /// Kind of headers.
    pub headers: HeaderStyle,
    /// The selected contexts with their numbers.
    pub contexts: Vec<MetaContext>,
}

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The server refuses an option that the goal needs.
    #[error("the server refused {option}: {refusal}")]
    Refused {
        /// The option.
        option: OptionCode,
        /// Its answer.
        refusal: Refusal,
    },
    /// The server speaks a version of the protocol that has no such option.
    #[error("the server does not know {0}")]
    TooOld(OptionCode),
    /// TLS is required, and the server does not have it.
    #[error("the server does not offer TLS")]
    NoTls,
    /// The server closed the connection; after EXPORT_NAME, this is how it refuses.
    #[error("the server closed the connection{}", if *.0 { ", so there is no such export" } else { "" })]
    Closed(
        /// Whether it was asked for an export.
        bool,
    ),
    /// What the server sent breaks the protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(#[from] DecodeError),
    /// Polled after the handshake was over.
    #[error("the handshake is over")]
    Over,
}
