//! The byte stream to a server, independent of what carries it.
//!
//! Must not know the protocol. Invariant: the rest of the client uses only [`Stream`], never a concrete
//! socket type.

use tokio::io::{AsyncRead, AsyncWrite};

/// Any bidirectional byte stream that the client can own.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> ByteStream for S {}

pub(super) type Stream = Box<dyn ByteStream>;
