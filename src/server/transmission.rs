//! The transmission phase of one connection: receives requests and sends replies, many at a time.
//!
//! A reader checks requests ([`super::dispatch`]) and starts them ([`super::execute`]). A writer sends
//! replies as they become available ([`super::outgoing`]). Must not know what an export does. Invariants: the
//! requests and bytes in flight are limited, and at the limit nothing is read from the socket; when [`run`]
//! returns, no request of the connection is running.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::dispatch::{Job, Refused, Rules};
use super::drain::Drain;
use super::execute::{Answer, Answered, execute};
use super::export::{Export, ExportError};
use super::in_flight::{Charge, InFlight};
use super::metrics::Direction;
use super::outgoing::Outgoing;
use super::shared::Shared;
use super::stall::Patience;
use super::transport::{Halves, Reader, Writer};
use crate::buffers::Buffers;
use crate::mutant::{self, Mutant};
use crate::protocol::request::HeaderStyle;
use crate::protocol::{Command, DecodeError, Error, Request};
use crate::task::Tasks;

/// How many bytes are read from the socket at a time, unless they are the payload of a WRITE.
pub(crate) const READ_BYTES: usize = 64 << 10;
/// How many bytes of a payload are read at a time, at most.
const PAYLOAD_READ_BYTES: usize = 1 << 20;
/// Limit on the memory of idle buffers for payloads, of all connections.
pub(super) const IDLE_PAYLOAD_BYTES: usize = 8 << 20;
/// Maximum length of a payload that is read together with the requests after it, in bytes.
const COPIED_PAYLOAD_BYTES: usize = 16 << 10;
/// Maximum number of replies that are collected before they are written.
const BATCH_REPLIES: usize = 64;
/// Maximum payload of a BLOCK_STATUS that is decoded, in bytes. A longer list of contexts would have unknown
/// or repeated ids, so it is refused unread.
const CONTEXTS_PAYLOAD_BYTES: u64 = 4096;
/// How long a drained client may take to close its side.
const LINGER: Duration = Duration::from_secs(1);

/// How transmission ended in an orderly way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The client sent DISC.
    Disconnected,
    /// The client closed its side without sending DISC.
    Closed,
    /// The server drained.
    Drained,
    /// No command arrived within the idle timeout.
    Rested,
}

/// Why the server gave up a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the client stalled: no progress on its {0}")]
    Stalled(Direction),
    #[error("cannot read: {0}")]
    Read(io::Error),
    #[error("cannot write replies")]
    Write,
    #[error("malformed request: {0}")]
    NotARequest(DecodeError),
    #[error("the payload of {0} bytes is too long")]
    PayloadTooLong(u64),
}

/// A connection that has finished its handshake.
pub(crate) struct Transmission {
    pub(crate) halves: Halves,
    /// Bytes that were read after the last option of the handshake.
    pub(crate) input: BytesMut,
    pub(crate) rules: Rules,
    pub(crate) export: Arc<dyn Export>,
}

/// Serves requests until the client or the server ends the connection.
pub(crate) async fn run(transmission: Transmission, shared: &Shared) -> Result<End, Broken> {
    let Shared { options, tasks, lingering, drain, metrics, payloads, .. } = shared;
    let Transmission { halves: Halves { reader, writer, read, written }, input, rules, export } =
        transmission;
    let capacity = usize::try_from(options.in_flight_requests).expect("32 bits fit a usize").max(1);
    let (replies, queue) = mpsc::channel(capacity);
    let patience = Patience::new(options.stall_timeout, written);
    let writer = tasks.spawn_until_cancelled(write_replies(queue, writer, patience));
    let in_flight = InFlight::new(options, &shared.budget, Arc::clone(metrics));
    let closed = replies.clone();
    let patience = Patience::new(options.stall_timeout, read);
    let mut receiver = Receiver {
        requests: Requests { reader, buffer: input, patience, payloads: Arc::clone(payloads) },
        rules,
        export,
        in_flight: in_flight.clone(),
        replies,
        tasks: Arc::clone(tasks),
        drain: drain.clone(),
        over: CancellationToken::new(),
        idle_timeout: options.idle_timeout,
    };
    let end = tokio::select! {
        biased;
        end = receiver.receive() => end,
        () = closed.closed() => Err(Broken::Write),
    };
    receiver.over.cancel();
    let Receiver { mut requests, replies, export, .. } = receiver;
    // Before the writer can end: a client that sees the end of the stream finds the export released.
    drop(export);
    drop((replies, closed));
    in_flight.wait_until_idle().await;
    payloads.rest();
    //= Request types: The server MUST handle all outstanding requests, shut down the TLS session (if one is
    //# running), and close the TCP session.
    let written = writer.await;
    if end.as_ref().is_ok_and(|end| *end == End::Drained) {
        // Runs in a task of its own, so that the export can be closed meanwhile.
        drop(lingering.spawn_until_cancelled(async move { requests.linger().await }));
    }
    match written {
        Ok(Some(Ok(()))) => end,
        Ok(Some(Err(error))) if error.kind() == io::ErrorKind::TimedOut => {
            Err(Broken::Stalled(Direction::Replies))
        }
        _ => end.and(Err(Broken::Write)),
    }
}

struct Receiver {
    requests: Requests,
    rules: Rules,
    export: Arc<dyn Export>,
    in_flight: InFlight,
    replies: mpsc::Sender<Answered>,
    tasks: Arc<Tasks>,
    drain: Drain,
    /// Cancelled when no more requests are received.
    over: CancellationToken,
    idle_timeout: Option<Duration>,
}

impl Receiver {
    async fn receive(&mut self) -> Result<End, Broken> {
        // When the writer has ended, replies can no longer be sent, so requests that are still in the buffer
        // are not carried out.
        while !self.replies.is_closed() {
            // A request that is already in the buffer takes precedence over everything below.
            if !self.drain.hangs_up()
                && let Some(request) = self.requests.take_buffered(self.rules.headers)?
            {
                // Lets the writer and other connections run although nothing here waits.
                tokio::task::coop::consume_budget().await;
                if let Some(end) = self.handle(request).await? {
                    return Ok(end);
                }
                continue;
            }
            let (draining, deaf) = (self.drain.is_cancelled(), self.drain.hangs_up());
            tokio::select! {
                biased;
                request = self.requests.next(self.rules.headers), if !deaf => match request? {
                    None => return Ok(End::Closed),
                    Some(request) => if let Some(end) = self.handle(request).await? { return Ok(end) },
                },
                () = self.drain.cancelled(), if !draining => {}
                () = self.in_flight.wait_until_idle(), if draining => return Ok(End::Drained),
                () = rest(&self.in_flight, self.idle_timeout), if !draining => return Ok(End::Rested),
            }
        }
        Err(Broken::Write)
    }

    /// Starts a request or refuses it. Returns how transmission ends if the request ends it.
    async fn handle(&mut self, request: Request) -> Result<Option<End>, Broken> {
        //= Request types: A client MUST NOT send anything to the server after sending an `NBD_CMD_DISC`
        //# command.
        if request.command == Command::Disc {
            return Ok(Some(End::Disconnected));
        }
        let payload_length = request.payload_length(self.rules.headers);
        let maximum = u64::from(self.rules.maximum_payload_bytes());
        if self.rules.headers == HeaderStyle::Extended && payload_length > maximum {
            return Err(Broken::PayloadTooLong(payload_length));
        }
        let (request, judged) = if self.rules.takes_contexts(&request)
            && payload_length <= CONTEXTS_PAYLOAD_BYTES
        {
            let payload = self.requests.payload(payload_length).await?;
            match self.rules.with_contexts(request, &payload) {
                Ok((request, chosen)) => (request, self.judge(&request).map(|job| job.limited_to(chosen))),
                Err(refused) => (Request { length: 0, ..request }, Err(refused)),
            }
        } else {
            (request, self.judge(&request))
        };
        match judged {
            Ok(job) => self.start(request, job).await?,
            Err(refused) => {
                self.export.refused(request.command, refused.error);
                let charge = self.in_flight.charge(0).await;
                //= Request types: The client MUST follow the request header with *length* number of bytes
                //# to be written to the device.
                self.requests.skip(request.payload_length(self.rules.headers)).await?;
                let answered = self.answered(&request, Err(ExportError::from(refused)), charge);
                self.replies.send(answered).await.map_err(|_| Broken::Write)?;
            }
        }
        Ok(None)
    }

    fn judge(&self, request: &Request) -> Result<Job, Refused> {
        //= Terminating the transmission phase: any subsequently received requests SHOULD be `NBD_ESHUTDOWN`
        if self.drain.is_cancelled() && !self.drain.hangs_up() {
            return Err(Refused { error: Error::Shutdown, message: "the server is shutting down" });
        }
        self.rules.judge(request)
    }

    async fn start(&mut self, request: Request, job: Job) -> Result<(), Broken> {
        let charge = self.in_flight.charge(job.payload_bytes(&request, &self.rules)).await;
        let payload = self.requests.payload(request.payload_length(self.rules.headers)).await?;
        let (rules, export, replies) = (self.rules.clone(), Arc::clone(&self.export), self.replies.clone());
        let ends_early = matches!(job, Job::Cache { .. }).then(|| (self.over.clone(), self.drain.clone()));
        let mut work = Box::pin(async move {
            let outcome = execute(&*export, &rules, &request, job, payload);
            let outcome = match ends_early {
                None => outcome.await,
                // CACHE is only a hint and may take long. It must not delay a client that leaves or a server
                // that drains.
                Some((over, drain)) => tokio::select! {
                    biased;
                    outcome = outcome => outcome,
                    () = over.cancelled() => Ok(Answer::Done),
                    () = drain.cancelled() => Ok(Answer::Done),
                },
            };
            drop(export);
            //= Transmission: the server MUST use the same value for cookie as was sent by the client in the
            //# corresponding request, treating the cookie as an opaque field
            let Request { cookie, offset, .. } = request;
            let answered = Answered { headers: rules.headers, cookie, offset, outcome, _charge: charge };
            if replies.send(answered).await.is_err() {
                tracing::trace!("the client disconnected before its reply");
            }
        });
        // Most commands finish at once. Only the others get a task of their own.
        if futures::poll!(work.as_mut()).is_pending() {
            drop(self.tasks.spawn_until_cancelled(work));
        }
        Ok(())
    }

    fn answered(&self, request: &Request, outcome: Result<Answer, ExportError>, charge: Charge) -> Answered {
        let &Request { cookie, offset, .. } = request;
        Answered { headers: self.rules.headers, cookie, offset, outcome, _charge: charge }
    }
}

/// Returns once the connection has been idle for the idle timeout, with every request answered. Waits forever
/// if there is no timeout.
async fn rest(in_flight: &InFlight, idle_timeout: Option<Duration>) {
    let Some(idle_timeout) = idle_timeout else { return std::future::pending().await };
    in_flight.wait_until_idle().await;
    tokio::time::sleep(idle_timeout).await;
}

/// Reads requests and their payloads from the client.
struct Requests {
    reader: Reader,
    buffer: BytesMut,
    patience: Patience,
    payloads: Arc<Buffers>,
}

impl Requests {
    /// Reads the next request. Returns `None` if the client closed its side between two requests. The future
    /// may be dropped without losing bytes.
    async fn next(&mut self, style: HeaderStyle) -> Result<Option<Request>, Broken> {
        loop {
            if let Some(request) = self.take_buffered(style)? {
                return Ok(Some(request));
            }
            // Between two requests, a client may be idle without being stalled.
            if self.buffer.is_empty() {
                self.buffer.reserve(READ_BYTES);
                match self.reader.read_buf(&mut self.buffer).await {
                    Ok(0) => return Ok(None),
                    Ok(_) => {}
                    Err(error) => return Err(Broken::Read(error)),
                }
            } else {
                self.read_more().await?;
            }
        }
    }

    /// Takes the next request from the buffer, if all of its header has been read.
    fn take_buffered(&mut self, style: HeaderStyle) -> Result<Option<Request>, Broken> {
        let Some(header) = self.buffer.get(..style.request_length()) else { return Ok(None) };
        let request = Request::decode(style, header).map_err(Broken::NotARequest)?;
        self.buffer.advance(style.request_length());
        Ok(Some(request))
    }

    /// Reads `length` bytes of payload. A long payload is read directly into its final buffer. A short one is
    /// copied, so that one read brings in many requests.
    async fn payload(&mut self, length: u64) -> Result<Bytes, Broken> {
        let length = usize::try_from(length).map_err(|_| Broken::PayloadTooLong(length))?;
        while length <= COPIED_PAYLOAD_BYTES && self.buffer.len() < length {
            self.read_more().await?;
        }
        let mut payload = self.payloads.take(length);
        let buffered = self.buffer.len().min(length);
        payload.extend_from_slice(&self.buffer[..buffered]);
        self.buffer.advance(buffered);
        while payload.len() < length {
            let missing = (length - payload.len()).min(PAYLOAD_READ_BYTES);
            let mut rest = (&mut payload).limit(missing);
            arrived(self.patience.wait_for(self.reader.read_buf(&mut rest)).await)?;
        }
        Ok(self.payloads.lend(payload))
    }

    /// Discards the next `length` bytes.
    async fn skip(&mut self, mut length: u64) -> Result<(), Broken> {
        loop {
            let buffered = usize::try_from(length).unwrap_or(usize::MAX).min(self.buffer.len());
            self.buffer.advance(buffered);
            length -= u64::try_from(buffered).expect("a usize fits 64 bits");
            if length == 0 {
                return Ok(());
            }
            self.read_more().await?;
        }
    }

    /// Reads more bytes of a request that has begun.
    async fn read_more(&mut self) -> Result<(), Broken> {
        self.buffer.reserve(READ_BYTES.saturating_sub(self.buffer.len()));
        arrived(self.patience.wait_for(self.reader.read_buf(&mut self.buffer)).await)
    }

    /// Reads until the client closes its side, for [`LINGER`] at most. If a socket is closed while received
    /// bytes are unread, replies that the client has not received yet can be lost.
    async fn linger(&mut self) {
        linger(&mut self.reader).await;
    }
}

/// Checks the result of a read in the middle of a request, where the end of the stream is an error.
fn arrived(read: io::Result<usize>) -> Result<(), Broken> {
    match read {
        Ok(0) => Err(Broken::Read(io::ErrorKind::UnexpectedEof.into())),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(Broken::Stalled(Direction::Requests)),
        Err(error) => Err(Broken::Read(error)),
    }
}

/// Reads and discards bytes until the client closes its side, for [`LINGER`] at most.
pub(super) async fn linger(reader: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let mut discarded = [0; 4096];
    let read_to_end = async { while matches!(reader.read(&mut discarded).await, Ok(1..)) {} };
    if tokio::time::timeout(LINGER, read_to_end).await.is_err() {
        tracing::debug!("the client did not close its side");
    }
}

/// Writes replies in the order in which they become available, up to [`BATCH_REPLIES`] at a time. Ends the
/// stream when the queue is closed.
async fn write_replies(
    mut replies: mpsc::Receiver<Answered>,
    mut writer: Writer,
    patience: Patience,
) -> io::Result<()> {
    let mut batch = Vec::with_capacity(BATCH_REPLIES);
    let mut outgoing = Outgoing::default();
    while replies.recv_many(&mut batch, BATCH_REPLIES).await > 0 {
        if mutant::is(Mutant::RepliesCrossed)
            && let [first, second, ..] = &mut batch[..]
        {
            std::mem::swap(&mut first.cookie, &mut second.cookie);
        }
        for answered in &mut batch {
            outgoing.push_reply(answered);
        }
        outgoing.seal();
        while outgoing.has_remaining() {
            if patience.wait_for(writer.write_buf(&mut outgoing)).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        if replies.is_empty() {
            patience.wait_for(writer.flush()).await?;
        }
        batch.clear();
    }
    patience.wait_for(writer.shutdown()).await
}
