//! From an address to a finished handshake: sockets, timeouts, and the driver of [`ClientHandshake`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::error::{Broken, Error};
use super::tls::{self, TlsOptions};
use super::uri::{Address, Uri};
use crate::protocol::negotiate_client::{
    ClientAction, ClientHandshake, ClientTls, Goal, HandshakeError, Outcome, Wishes,
};
use crate::protocol::{DecodeError, WireString};

/// What is read from the socket at a time.
const READ_BYTES: usize = 16 << 10;

/// Any stream of bytes.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> ByteStream for S {}

pub(super) type Stream = Box<dyn ByteStream>;

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
}

/// Connects to an address and reaches a goal.
pub(super) async fn connect(address: &Address, goal: Goal, options: &Options) -> Result<Connected, Error> {
    let host = match address {
        Address::Tcp { host, .. } => host.clone(),
        Address::Unix(_) => "localhost".to_owned(),
    };
    let connect = async {
        let stream = open(address).await?;
        negotiate(stream, &host, goal, options).await
    };
    in_time(options, connect).await
}

/// Reaches a goal over a stream that is connected already.
pub(super) async fn connect_over(stream: Stream, goal: Goal, options: &Options) -> Result<Connected, Error> {
    in_time(options, negotiate(stream, "localhost", goal, options)).await
}

async fn in_time<T>(options: &Options, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(options.handshake_timeout, work).await.map_err(|_| Error::TimedOut)?
}

async fn open(address: &Address) -> Result<Stream, Error> {
    let failed = |source| Error::Connect { address: address.clone(), source: Arc::new(source) };
    match address {
        Address::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            Ok(Box::new(stream))
        }
        Address::Unix(path) => Ok(Box::new(UnixStream::connect(path).await.map_err(failed)?)),
    }
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
            ClientAction::Finish(outcome) => return Ok(Connected { stream, input, outcome }),
            ClientAction::Fail(error) => return Err(error.into()),
        }
    }
}
