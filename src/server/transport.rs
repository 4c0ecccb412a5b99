//! The byte streams a connection runs over: TCP, a Unix socket, any other stream, and TLS over each of these.
//!
//! One type hides the differences, so that no code above it is generic. Must not know the protocol.
//! Invariant: the counters of [`Halves`] see the bytes that a TLS session moves on its socket.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use super::metrics::TransportKind;
use super::stall::{Counted, Moved};

/// Any bidirectional byte stream that the server can own.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}

pub(crate) type Reader = Box<dyn AsyncRead + Send + Unpin>;
pub(crate) type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A stream split for a reading and a writing task.
///
/// `read` and `written` count the bytes on the socket below TLS. For other streams they stay at zero: there,
/// the caller sees every byte itself.
pub(crate) struct Halves {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    pub(crate) read: Moved,
    pub(crate) written: Moved,
}

impl Halves {
    fn new(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        let (read, written) = (Moved::default(), Moved::default());
        Self { reader: Box::new(reader), writer: Box::new(writer), read, written }
    }
}

/// The stream of one connection.
pub(crate) enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
    Other(Box<dyn Stream>),
    Tls(Box<TlsStream<Counted<Transport>>>),
}

impl Transport {
    /// The kind that metrics report. A stream that is not a socket was created on this machine and counts as
    /// a Unix socket.
    pub(crate) fn kind(&self) -> TransportKind {
        match self {
            Self::Tcp(_) => TransportKind::Tcp,
            Self::Unix(_) | Self::Other(_) => TransportKind::Unix,
            Self::Tls(_) => TransportKind::Tls,
        }
    }

    /// Splits the stream so that two tasks can use it at the same time. The halves of a socket share no lock.
    pub(super) fn into_halves(self) -> Halves {
        match self {
            Self::Tcp(stream) => {
                let (reader, writer) = stream.into_split();
                Halves::new(reader, writer)
            }
            Self::Unix(stream) => {
                let (reader, writer) = stream.into_split();
                Halves::new(reader, writer)
            }
            Self::Other(stream) => {
                let (reader, writer) = tokio::io::split(stream);
                Halves::new(reader, writer)
            }
            Self::Tls(stream) => {
                let socket = stream.get_ref().0;
                let (read, written) = (socket.read.clone(), socket.written.clone());
                let (reader, writer) = tokio::io::split(stream);
                Halves { read, written, ..Halves::new(reader, writer) }
            }
        }
    }

    fn reader(&mut self) -> Pin<&mut (dyn AsyncRead + Unpin)> {
        match self {
            Self::Tcp(stream) => Pin::new(stream),
            Self::Unix(stream) => Pin::new(stream),
            Self::Other(stream) => Pin::new(stream),
            Self::Tls(stream) => Pin::new(stream),
        }
    }

    fn writer(&mut self) -> Pin<&mut (dyn AsyncWrite + Unpin)> {
        match self {
            Self::Tcp(stream) => Pin::new(stream),
            Self::Unix(stream) => Pin::new(stream),
            Self::Other(stream) => Pin::new(stream),
            Self::Tls(stream) => Pin::new(stream),
        }
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Tcp",
            Self::Unix(_) => "Unix",
            Self::Other(_) => "Other",
            Self::Tls(_) => "Tls",
        })
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().reader().poll_read(context, buffer)
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().writer().poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().writer().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().writer().poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().writer().poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
            Self::Other(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
