//! Connects to a server and completes the handshake.
//!
//! Owns the sockets and timeouts, and drives [`ClientHandshake`]. Must not know commands. Invariant:
//! connecting and the handshake together take no longer than [`Options::handshake_timeout`].

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};

use super::error::{Broken, Error};
use super::stream::Stream;
use super::tls::{self, TlsOptions};
use super::uri::{Address, Uri};
use crate::protocol::negotiate_client::{
    ClientAction, ClientHandshake, ClientTls, Goal, HandshakeError, Outcome, Wishes,
};
use crate::protocol::{DecodeError, WireString};

/// How many bytes are read from the socket at a time.
const READ_BYTES: usize = 16 << 10;
/// How long the server may take to close the connection after ABORT.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Idle time after which the system probes whether the server's machine is still reachable.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Time between two keepalive probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Number of unanswered keepalive probes after which the connection counts as lost.
const KEEPALIVE_PROBES: u32 = 3;

/// How the client connects, and which features it asks for. If the server does not support an optional
/// feature, the client continues without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether to use TLS.
    pub tls: ClientTls,
    /// How to use TLS.
    pub tls_options: TlsOptions,
    /// Ask for structured replies, which report holes as holes and add messages to errors.
    pub structured_replies: bool,
    /// Ask for extended headers, which have 64-bit lengths.
    pub extended_headers: bool,
    /// Metadata contexts to select, such as `base:allocation`. [`Client::contexts`](super::Client::contexts)
    /// returns those that the server offers. If a server refuses to select as many, it selects none.
    pub contexts: Vec<String>,
    /// How long connecting and the handshake may take together.
    pub handshake_timeout: Duration,
    /// How long the server may make no progress, neither sending nor accepting a byte, while a command waits
    /// for its reply. `None` means forever.
    pub stall_timeout: Option<Duration>,
    /// Maximum number of unanswered requests. Further requests wait.
    pub in_flight_requests: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tls: ClientTls::Off,
            tls_options: TlsOptions::default(),
            structured_replies: true,
            extended_headers: true,
            contexts: vec![crate::protocol::meta_context::BASE_ALLOCATION.to_owned()],
            handshake_timeout: Duration::from_secs(30),
            stall_timeout: None,
            in_flight_requests: 128,
        }
    }
}

impl Options {
    /// Returns these options, overridden by what a URI says about TLS.
    #[must_use]
    pub fn for_uri(mut self, uri: &Uri) -> Self {
        if let Some(said) = &uri.tls {
            self.tls = ClientTls::Required;
            let options = &mut self.tls_options;
            options.trust_anyone |= !said.verify_peer;
            if said.hostname.is_some() {
                options.hostname.clone_from(&said.hostname);
            }
            if let Some(directory) = &said.certificates {
                options.authorities = Some(directory.join("ca-cert.pem"));
                let (certificate, key) =
                    (directory.join("client-cert.pem"), directory.join("client-key.pem"));
                options.identity = certificate.exists().then_some((certificate, key));
            }
        }
        self
    }

    fn wishes(&self, goal: Goal) -> Result<Wishes, DecodeError> {
        let contexts = self
            .contexts
            .iter()
            .map(|query| WireString::try_from(query.as_str()))
            .collect::<Result<_, _>>()?;
        let &Self { tls, structured_replies, extended_headers, .. } = self;
        Ok(Wishes { goal, tls, structured_replies, extended_headers, contexts })
    }
}

/// A connection after its handshake.
pub(super) struct Connected {
    pub(super) stream: Stream,
    /// Bytes that were read after the last handshake message of the server.
    pub(super) input: BytesMut,
    pub(super) outcome: Outcome,
    /// Address of the server if the connection uses TCP.
    pub(super) peer: Option<SocketAddr>,
}

/// Connects to an address and negotiates until the goal is reached.
pub(super) async fn connect(address: &Address, goal: Goal, options: &Options) -> Result<Connected, Error> {
    let host = match address {
        Address::Tcp { host, .. } => host.clone(),
        Address::Unix(_) => "localhost".to_owned(),
    };
    let deadline = Instant::now() + options.handshake_timeout;
    let (stream, peer) = match timeout_at(deadline, open(address)).await {
        Ok(opened) => opened?,
        Err(_) => return Err(unreachable(address, io::ErrorKind::TimedOut.into())),
    };
    let connected = in_time(deadline, negotiate(stream, &host, goal, options)).await?;
    Ok(Connected { peer, ..connected })
}

/// Negotiates over a stream that is already connected, until the goal is reached.
pub(super) async fn connect_over(stream: Stream, goal: Goal, options: &Options) -> Result<Connected, Error> {
    let deadline = Instant::now() + options.handshake_timeout;
    in_time(deadline, negotiate(stream, "localhost", goal, options)).await
}

async fn in_time<T>(deadline: Instant, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout_at(deadline, work).await.map_err(|_| Error::TimedOut)?
}

fn unreachable(address: &Address, source: io::Error) -> Error {
    Error::Connect { address: address.clone(), source: Arc::new(source) }
}

async fn open(address: &Address) -> Result<(Stream, Option<SocketAddr>), Error> {
    let failed = |source| unreachable(address, source);
    match address {
        Address::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            keep_alive(&stream).map_err(failed)?;
            let peer = stream.peer_addr().map_err(failed)?;
            Ok((Box::new(stream), Some(peer)))
        }
        Address::Unix(path) => Ok((Box::new(UnixStream::connect(path).await.map_err(failed)?), None)),
    }
}

/// Turns on keepalive, because a server whose machine has failed sends nothing, not even that it has failed.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(())
}

async fn negotiate(
    mut stream: Stream,
    host: &str,
    goal: Goal,
    options: &Options,
) -> Result<Connected, Error> {
    let wishes = options.wishes(goal).map_err(HandshakeError::Protocol)?;
    let mut machine = ClientHandshake::new(wishes);
    let mut input = BytesMut::new();
    loop {
        let action = machine.poll(&mut input);
        let output = machine.take_output();
        let sent = async {
            stream.write_all(&output).await?;
            stream.flush().await
        };
        match (sent.await, &action) {
            // If the session has ended anyway, it does not matter that the server closed the connection
            // first.
            (Ok(()), _) | (Err(_), ClientAction::Fail(_)) => {}
            (Err(_), ClientAction::Finish(Outcome::Listed(_) | Outcome::Described(..))) => {}
            (Err(error), _) => return Err(Broken::from(error).into()),
        }
        match action {
            ClientAction::NeedInput => {
                input.reserve(READ_BYTES);
                match stream.read_buf(&mut input).await {
                    Ok(0) => return Err(machine.handle_closed().into()),
                    Ok(_) => {}
                    Err(error) => return Err(Broken::from(error).into()),
                }
            }
            ClientAction::StartTls(ticket) => {
                let failed = |error| Error::Tls(Arc::new(error));
                stream = tls::connect(stream, host, &options.tls_options).await.map_err(failed)?;
                machine.handle_tls_started(ticket);
            }
            ClientAction::Finish(outcome) => {
                if let Outcome::Listed(_) | Outcome::Described(..) = outcome {
                    leave(&mut stream).await;
                }
                return Ok(Connected { stream, input, outcome, peer: None });
            }
            ClientAction::Fail(error) => {
                leave(&mut stream).await;
                return Err(error.into());
            }
        }
    }
}

/// Ends the connection. "\[ABORT\] MUST be followed by the client shutting down TLS (if it is running), and
/// the client dropping the connection." Reads and discards what the server still sends. Otherwise the system
/// might reset the connection before the server has received everything.
async fn leave(stream: &mut Stream) {
    let end = async {
        //= Termination of the session during option haggling: This MUST be followed by the client shutting
        //# down TLS (if it is running), and the client dropping the connection.
        stream.shutdown().await?;
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    match timeout(LEAVE_TIMEOUT, end).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("the server closed the connection before the client did: {error}"),
        Err(_) => tracing::debug!("the server did not close after ABORT"),
    }
}
