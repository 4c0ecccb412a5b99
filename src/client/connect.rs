//! From an address to a finished handshake: sockets, timeouts, and the driver of [`ClientHandshake`].

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

/// What is read from the socket at a time.
const READ_BYTES: usize = 16 << 10;
/// How long the server may take to close after ABORT.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// After this time without a packet the system asks whether the server's machine is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Time between two such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How many of them may stay unanswered before the connection counts as lost.
const KEEPALIVE_PROBES: u32 = 3;

/// How the client connects, and what it would like to have; it does without what the server has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether to use TLS.
    pub tls: ClientTls,
    /// How to use TLS.
    pub tls_options: TlsOptions,
    /// Structured replies: holes are told from zeros, and errors have messages.
    pub structured_replies: bool,
    /// Extended headers: lengths of 64 bits.
    pub extended_headers: bool,
    /// Metadata contexts to select, such as `base:allocation`.
    pub contexts: Vec<String>,
    /// How long connecting and the handshake may take.
    pub handshake_timeout: Duration,
    /// How long the server may neither send nor take a byte while a command waits for its answer; without a
    /// limit the client waits for ever.
    pub stall_timeout: Option<Duration>,
    /// Most requests that are not yet answered; further ones wait.
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
    /// These options with what a URI says of TLS.
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
    /// What was read after the server's last word of the handshake.
    pub(super) input: BytesMut,
    pub(super) outcome: Outcome,
    /// Where the server is, over TCP.
    pub(super) peer: Option<SocketAddr>,
}

/// Connects to an address and reaches a goal.
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

/// Reaches a goal over a stream that is connected already.
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

/// A server whose machine is gone says nothing any more, not even that it is gone.
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
            // A session that is over is over, also where the server did not wait to be told.
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
/// the client dropping the connection." What the server still sends is read, so that the system does not
/// reset the connection before the server has got all of this.
async fn leave(stream: &mut Stream) {
    let end = async {
        stream.shutdown().await?;
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    match timeout(LEAVE_TIMEOUT, end).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("the server has left before the client: {error}"),
        Err(_) => tracing::debug!("the server did not close after ABORT"),
    }
}
