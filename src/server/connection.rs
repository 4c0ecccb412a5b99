//! One connection from start to end: the handshake with its timeout, then transmission.
//!
//! Drives [`ServerHandshake`] over a socket and answers its questions from [`Exports`]. Must not know wire
//! formats. Invariant: a newstyle client that has sent no option uses nothing but its socket, and is
//! disconnected after the handshake timeout.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};

use super::connections::Seat;
use super::dispatch::Rules;
use super::export::{Export, ExportDescription, OfferedContext, OpenError};
use super::metrics::{HandshakeFailure, OpenConnection};
use super::shared::Shared;
use super::tls::{Identity, Tls};
use super::transmission::{self, Broken, End, READ_BYTES, Transmission};
use super::transport::Transport;
use crate::protocol::negotiate_server::{
    CloseReason, HandshakePolicy, ServerAction, ServerHandshake, Session, TlsPolicy,
};
use crate::protocol::{
    BlockSize, DiskInfo, ExportInfo, OptionError, Refusal, ServerEntry, TransmissionFlags, WireString,
};

/// Maximum length of an option's data in bytes; longer options are refused.
const MAXIMUM_OPTION_BYTES: u32 = 64 << 10;

/// How the server greets the clients of a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Greeting {
    /// Fixed newstyle: the client chooses an export with an option.
    #[default]
    Newstyle,
    /// Oldstyle: every client gets the same export.
    Oldstyle {
        /// Name of the export that every client gets.
        export: String,
    },
}

/// Why a connection did not reach transmission.
#[derive(Debug, thiserror::Error)]
enum HandshakeEnd {
    #[error("{0}")]
    Closed(CloseReason),
    #[error("the client disconnected")]
    Left,
    #[error("the client took too long")]
    TimedOut,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the server is shutting down")]
    Drained,
    #[error("oldstyle export refused: {0}")]
    Oldstyle(Refusal),
    #[error("TLS failed: {0}")]
    Tls(io::Error),
}

impl HandshakeEnd {
    fn failure(&self) -> HandshakeFailure {
        match self {
            Self::Closed(CloseReason::Aborted) => HandshakeFailure::Aborted,
            Self::Closed(CloseReason::ExportName(_)) | Self::Oldstyle(_) => HandshakeFailure::Export,
            Self::Closed(_) => HandshakeFailure::Protocol,
            Self::TimedOut => HandshakeFailure::Timeout,
            Self::Tls(_) => HandshakeFailure::Tls,
            Self::Left | Self::Io(_) | Self::Drained => HandshakeFailure::Disconnected,
        }
    }
}

/// Serves one connection until it ends.
pub(crate) async fn serve(shared: &Shared, transport: Transport, greeting: &Greeting, seat: &Seat) {
    let kind = transport.kind();
    let mut _open = OpenConnection::new(&shared.metrics, kind);
    let handshake = Handshake::new(shared, transport);
    let ready = match greeting {
        Greeting::Newstyle => handshake.newstyle().await,
        Greeting::Oldstyle { export } => handshake.oldstyle(export).await,
    };
    let Ready { session, export, transport, input } = match ready {
        Ok(ready) => ready,
        Err(end) => {
            shared.metrics.handshake_failed(kind, end.failure());
            return tracing::debug!("handshake ended: {end}");
        }
    };
    if transport.kind() != kind {
        _open = OpenConnection::new(&shared.metrics, transport.kind());
    }
    tracing::debug!(export = %session.export.name, headers = ?session.headers, "transmission begins");
    seat.uses(session.export.name.as_ref());
    let rules = Rules::new(&session, export.alignment());
    let transmission = Transmission { halves: transport.into_halves(), input, rules, export };
    match transmission::run(transmission, shared).await {
        Ok(End::Disconnected) => tracing::debug!("the client disconnected"),
        Ok(End::Closed) => tracing::debug!("the client closed without DISC"),
        Ok(End::Drained) => tracing::debug!("drained"),
        Ok(End::Rested) => tracing::info!("connection closed: no command arrived within server.idle_timeout"),
        Err(broken @ Broken::Stalled(direction)) => {
            shared.metrics.stalled(direction);
            tracing::info!("connection closed: {broken}");
        }
        Err(broken @ (Broken::Read(_) | Broken::Write)) => tracing::debug!("connection lost: {broken}"),
        Err(broken) => tracing::warn!("connection dropped: {broken}"),
    }
}

/// A connection that has finished its handshake.
struct Ready {
    session: Session,
    export: Arc<dyn Export>,
    transport: Transport,
    input: BytesMut,
}

struct Handshake<'a> {
    shared: &'a Shared,
    /// The TLS configuration at the time the connection was accepted.
    tls: Option<Tls>,
    transport: Transport,
    input: BytesMut,
    identity: Identity,
    /// When the client runs out of time. Time that the server itself needs is added to it.
    deadline: Instant,
}

impl<'a> Handshake<'a> {
    fn new(shared: &'a Shared, transport: Transport) -> Self {
        let deadline = Instant::now() + shared.options.handshake_timeout;
        let tls = shared.tls.read().clone();
        Self { shared, tls, transport, input: BytesMut::new(), identity: Identity::Plain, deadline }
    }

    async fn newstyle(mut self) -> Result<Ready, HandshakeEnd> {
        let mut machine = ServerHandshake::new(HandshakePolicy {
            tls: self.tls.as_ref().map_or(TlsPolicy::Off, Tls::policy),
            maximum_option_bytes: MAXIMUM_OPTION_BYTES,
        });
        let mut opened = None;
        loop {
            if self.shared.drain.hangs_up() {
                self.close().await?;
                transmission::linger(&mut self.transport).await;
                return Err(HandshakeEnd::Drained);
            }
            if self.shared.drain.is_cancelled() {
                machine.handle_shutdown();
            }
            let action = machine.poll(&mut self.input);
            self.send(&machine.take_output()).await?;
            match action {
                ServerAction::NeedInput => self.receive().await?,
                ServerAction::List(ticket) => {
                    let listed = self.list().await;
                    machine.handle_list(ticket, listed);
                }
                ServerAction::Describe(ticket) => {
                    let described = self.describe(ticket.name()).await;
                    machine.handle_description(ticket, described);
                }
                ServerAction::Contexts(ticket) => {
                    let offered = self.contexts(ticket.name()).await;
                    machine.handle_contexts(ticket, offered);
                }
                ServerAction::Open(ticket) => {
                    let result = self.open(ticket.name()).await;
                    let (export, info) = match result {
                        Ok((export, info)) => (Some(export), Ok(info)),
                        Err(refusal) => (None, Err(refusal)),
                    };
                    opened = export;
                    machine.handle_opened(ticket, info);
                }
                //= FORCEDTLS mode: the server MUST be prepared for a TLS handshake, and all further data
                //# MUST be sent and received over TLS
                ServerAction::StartTls(ticket) => {
                    self = self.start_tls().await?;
                    machine.handle_tls_started(ticket);
                }
                ServerAction::Transmit(session) => {
                    let export = opened.ok_or(HandshakeEnd::Closed(CloseReason::Unanswered))?;
                    let Self { transport, input, .. } = self;
                    return Ok(Ready { session, export, transport, input });
                }
                ServerAction::Close(reason) => {
                    self.close().await?;
                    return Err(HandshakeEnd::Closed(reason));
                }
            }
        }
    }

    async fn oldstyle(mut self, name: &str) -> Result<Ready, HandshakeEnd> {
        if self.tls.as_ref().is_some_and(|tls| tls.policy() == TlsPolicy::Required) {
            let message = "TLS is required, but oldstyle negotiation does not support it";
            return Err(HandshakeEnd::Oldstyle(Refusal::new(OptionError::TlsReqd, message)));
        }
        let (export, info) = self.open(name).await.map_err(HandshakeEnd::Oldstyle)?;
        let (greeting, session) = ServerHandshake::oldstyle(info);
        self.send(&greeting).await?;
        let Self { transport, input, .. } = self;
        Ok(Ready { session, export, transport, input })
    }

    /// Lists the exports that this client may see.
    async fn list(&mut self) -> Result<Vec<ServerEntry>, Refusal> {
        let mut exports = self.ask(self.shared.exports.list()).await?;
        exports.retain(|entry| self.identity.may_use(self.tls.as_ref(), &entry.name));
        entries(exports)
    }

    async fn describe(&mut self, name: &str) -> Result<ExportInfo, Refusal> {
        if !self.may_use(name) {
            return Err(self.conceal(name).await);
        }
        let described = self.ask(self.shared.exports.describe(name)).await;
        let description = described.map_err(|refusal| self.hide(refusal))?;
        // The requested name may be an alias of another export; the empty name is one.
        if !self.may_use(&description.name) {
            return Err(self.conceal(name).await);
        }
        self.export_info(&description)
    }

    /// Names the metadata contexts of an export that this client may see, besides `base:allocation`.
    async fn contexts(&mut self, name: &str) -> Result<Vec<WireString>, Refusal> {
        self.describe(name).await?;
        let asked = self.ask(self.shared.exports.meta_contexts(name)).await;
        let mut offered = asked.map_err(|refusal| self.hide(refusal))?;
        let may_use = |export: &str| self.identity.may_use(self.tls.as_ref(), export);
        offered.retain(|context| context.about.as_deref().is_none_or(may_use));
        let name_of = |context: OfferedContext| {
            WireString::try_from(context.name).map_err(|_| {
                Refusal::new(OptionError::Platform, "a metadata context's name does not fit the protocol")
            })
        };
        offered.into_iter().map(name_of).collect()
    }

    async fn open(&mut self, name: &str) -> Result<(Arc<dyn Export>, ExportInfo), Refusal> {
        if !self.may_use(name) {
            return Err(self.conceal(name).await);
        }
        let opened = self.ask(self.shared.exports.open(name)).await;
        let export = opened.map_err(|refusal| self.hide(refusal))?;
        let description = export.description();
        if !self.may_use(&description.name) {
            return Err(self.conceal(name).await);
        }
        let info = self.export_info(&description)?;
        Ok((export, info))
    }

    fn may_use(&self, export: &str) -> bool {
        let may_use = self.identity.may_use(self.tls.as_ref(), export);
        if !may_use {
            let subject = self.identity.subject().unwrap_or("none");
            tracing::info!(
                export,
                subject,
                "client refused: tls.subjects does not list its certificate for this export"
            );
        }
        may_use
    }

    /// Refuses an export that must stay hidden from this client. The refusal is the same as for an export
    /// that does not exist, and takes the same work.
    async fn conceal(&mut self, name: &str) -> Refusal {
        let exports = Arc::clone(&self.shared.exports);
        let refused = self.ask(async { Err::<Infallible, _>(exports.conceal(name).await) }).await;
        let Err(refusal) = refused;
        self.hide(refusal)
    }

    fn hide(&self, refusal: Refusal) -> Refusal {
        self.identity.hide(self.tls.as_ref(), refusal)
    }

    async fn start_tls(self) -> Result<Self, HandshakeEnd> {
        let Self { shared, tls: ours, transport, input, deadline, .. } = self;
        let tls = ours.as_ref().ok_or(HandshakeEnd::Closed(CloseReason::Unanswered))?;
        let accepted = tokio::select! {
            biased;
            accepted = timeout_at(deadline, tls.accept(transport)) => accepted,
            () = shared.drain.cancelled() => return Err(HandshakeEnd::Drained),
        };
        //= FORCEDTLS mode: If the handshake is unsuccessful (for instance the client's certificate does not
        //# match) the server MUST terminate the session
        let (transport, identity) =
            accepted.map_err(|_| HandshakeEnd::TimedOut)?.map_err(HandshakeEnd::Tls)?;
        Ok(Self { shared, tls: ours, transport, input, identity, deadline })
    }

    /// Asks [`Exports`] a question. If the server starts to drain first, the answer is a shutdown error. The
    /// time it takes does not count against the client.
    async fn ask<T>(&mut self, question: impl Future<Output = Result<T, OpenError>>) -> Result<T, Refusal> {
        let asked = Instant::now();
        let answer = tokio::select! {
            biased;
            answer = question => answer,
            () = self.shared.drain.cancelled() => Err(OpenError::Shutdown),
        };
        self.deadline += asked.elapsed();
        answer.map_err(|error| refusal(&error))
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), HandshakeEnd> {
        if bytes.is_empty() {
            return Ok(());
        }
        let send = async {
            self.transport.write_all(bytes).await?;
            self.transport.flush().await
        };
        timeout_at(self.deadline, send).await.map_err(|_| HandshakeEnd::TimedOut)?.map_err(HandshakeEnd::Io)
    }

    /// Shuts down our side of the connection. Under TLS this sends bytes, which may block on a client that
    /// does not read.
    async fn close(&mut self) -> Result<(), HandshakeEnd> {
        let closed = timeout_at(self.deadline, self.transport.shutdown()).await;
        closed.map_err(|_| HandshakeEnd::TimedOut)?.map_err(HandshakeEnd::Io)
    }

    /// Waits for bytes from the client. If the server is draining, nothing is owed to the client any more,
    /// and the connection is closed instead.
    async fn receive(&mut self) -> Result<(), HandshakeEnd> {
        if self.shared.drain.is_cancelled() {
            self.close().await?;
            transmission::linger(&mut self.transport).await;
            return Err(HandshakeEnd::Drained);
        }
        self.input.reserve(READ_BYTES);
        tokio::select! {
            biased;
            read = timeout_at(self.deadline, self.transport.read_buf(&mut self.input)) => match read {
                Ok(Ok(0)) => Err(HandshakeEnd::Left),
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(HandshakeEnd::Io(error)),
                Err(_) => Err(HandshakeEnd::TimedOut),
            },
            () = self.shared.drain.cancelled() => Ok(()),
        }
    }

    fn export_info(&self, description: &ExportDescription) -> Result<ExportInfo, Refusal> {
        let unfit = |message| Refusal::new(OptionError::Platform, message);
        let name = WireString::try_from(description.name.as_str())
            .map_err(|_| unfit("the export's name does not fit the protocol"))?;
        let minimum = description.minimum_block_bytes.max(1);
        let maximum = description.maximum_block_bytes.min(self.shared.options.maximum_payload_bytes);
        let maximum = maximum - maximum % minimum;
        // "MUST be at least as large as the preferred block size": if they conflict, the memory limit wins,
        // and the preferred size is reduced.
        let preferred = description.preferred_block_bytes.min(1 << maximum.max(1).ilog2());
        let block_size = BlockSize { minimum, preferred, maximum };
        if !block_size.is_valid() {
            return Err(unfit("the export's block sizes do not fit the protocol"));
        }
        let flags = description.flags | TransmissionFlags::HAS_FLAGS;
        Ok(ExportInfo {
            name,
            description: WireString::truncated(&description.description),
            disk: DiskInfo { size_bytes: description.size_bytes, flags },
            block_size,
        })
    }
}

fn entries(exports: Vec<super::export::ListEntry>) -> Result<Vec<ServerEntry>, Refusal> {
    exports
        .into_iter()
        .map(|entry| {
            let name = WireString::try_from(entry.name.as_str()).map_err(|_| {
                Refusal::new(OptionError::Platform, "an export's name does not fit the protocol")
            })?;
            Ok(ServerEntry { name, description: WireString::truncated(&entry.description) })
        })
        .collect()
}

fn refusal(error: &OpenError) -> Refusal {
    let kind = match error {
        OpenError::Unknown(_) => OptionError::Unknown,
        OpenError::Refused(_) => OptionError::Policy,
        OpenError::Shutdown => OptionError::Shutdown,
        OpenError::Failed(_) => OptionError::Platform,
    };
    Refusal::new(kind, &error.to_string())
}
