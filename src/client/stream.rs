//! A stream to a server, whatever carries it.

use tokio::io::{AsyncRead, AsyncWrite};

/// Any stream of bytes.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> ByteStream for S {}

pub(super) type Stream = Box<dyn ByteStream>;
