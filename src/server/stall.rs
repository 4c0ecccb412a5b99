//! Stall detection: gives up on a client that stops sending a payload or reading its replies.
//!
//! Must not know the protocol. Invariant: a client that moves at least one byte within the limit is never
//! given up, however slow it is. Under TLS the bytes of the socket count, because a TLS record is usable only
//! once it is complete.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

/// Counts the bytes moved in one direction. Clones share the count.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moved(Arc<AtomicU64>);

impl Moved {
    fn add(&self, bytes: usize) {
        self.0.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long one direction may make no progress.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    limit: Duration,
    moved: Moved,
}

impl Patience {
    pub(crate) fn new(limit: Duration, moved: Moved) -> Self {
        Self { limit, moved }
    }

    /// Waits for one step of a stream. Fails with `TimedOut` if neither the step completes nor a byte moves
    /// within the limit.
    pub(crate) async fn wait_for<T>(&self, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let mut step = pin!(step);
        loop {
            let before = self.moved.bytes();
            match timeout(self.limit, step.as_mut()).await {
                Ok(done) => return done,
                Err(_) if self.moved.bytes() != before => {}
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }
}

/// A stream that counts the bytes read and written.
#[derive(Debug)]
pub(crate) struct Counted<S> {
    stream: S,
    pub(crate) read: Moved,
    pub(crate) written: Moved,
}

impl<S> Counted<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, read: Moved::default(), written: Moved::default() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        this.read.add(buffer.filled().len() - before);
        read
    }
}

impl<S: AsyncWrite + Unpin> Counted<S> {
    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.written.add(bytes);
        }
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.count(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_step_that_never_ends_is_given_up_at_the_limit() {
        let begun = Instant::now();
        let patience = Patience::new(LIMIT, Moved::default());
        let given_up = patience.wait_for(std::future::pending::<io::Result<()>>());
        assert_eq!(given_up.await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), LIMIT);
    }

    /// Sends seven bytes, each just before the limit, and then nothing: the step lasts seven limits and one
    /// more.
    #[tokio::test(start_paused = true)]
    async fn bytes_below_a_step_count() {
        let (mut ours, theirs) = tokio::io::duplex(64);
        let mut counted = Counted::new(theirs);
        let patience = Patience::new(LIMIT, counted.read.clone());
        let begun = Instant::now();
        let slow = async {
            for _ in 0..7 {
                tokio::time::sleep(LIMIT - Duration::from_millis(1)).await;
                ours.write_all(b"x").await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let mut record = [0; 8];
        tokio::select! {
            biased;
            read = patience.wait_for(counted.read_exact(&mut record)) => {
                assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
            }
            () = slow => unreachable!("it never ends"),
        }
        assert!(begun.elapsed() >= 7 * LIMIT, "{:?}", begun.elapsed());
        assert!(begun.elapsed() <= 9 * LIMIT, "{:?}", begun.elapsed());
    }
}
