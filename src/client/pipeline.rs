//! Sends many requests at a time over one connection: a writer, a reader, and a table of unanswered requests.
//!
//! Must not know what a command means. Invariant: every request in the table is answered exactly once, either
//! with its reply or with the reason why there will be none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufWriter, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::connect::Options;
use super::error::{Broken, Error};
use super::reply::{Gathering, Outcome};
use super::stream::Stream;
use crate::protocol::negotiate_client::ClientSession;
use crate::protocol::{
    Chunk, Command, CommandFlags, Cookie, DecodeError, Error as CommandError, HeaderStyle, MetaContext,
    Reply, ReplyFlags, ReplyType, Request,
};
use crate::task::Tasks;

/// How many bytes are read from the socket at a time, and how far the buffer of a payload grows ahead of the
/// bytes received.
const READ_BYTES: usize = 64 << 10;
/// Maximum number of requests that are collected before they are written.
const BATCH_REQUESTS: usize = 64;
/// Maximum payload of a chunk without content in bytes: the most descriptors that a server should send.
const MAXIMUM_STATUS_BYTES: u64 = (1 << 20) * 16 + 8;

/// How long abandoned requests may delay DISC.
const QUIET_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the server may take to close the connection after DISC.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A request that is queued for sending.
struct Outbound {
    request: Request,
    payload: Bytes,
}

/// A request without a complete reply.
struct Pending {
    gathering: Gathering,
    answer: oneshot::Sender<Result<Outcome, Error>>,
    _permit: OwnedSemaphorePermit,
}

/// The unanswered requests. Once the table is closed, it stays closed.
struct Table {
    pending: BTreeMap<Cookie, Pending>,
    next_cookie: u64,
    /// When the server last moved a byte, or when the first request was sent after it had answered all
    /// others.
    moved: Instant,
    /// Why no more requests are accepted.
    closed: Option<Broken>,
}

/// A connection in the transmission phase.
pub(crate) struct Pipeline {
    shared: Arc<Shared>,
    outbound: mpsc::Sender<Outbound>,
    in_flight: Arc<Semaphore>,
    in_flight_bound: u32,
    tasks: Tasks,
    /// The task that detects a stalled server.
    watch: Tasks,
}

struct Shared {
    table: Mutex<Table>,
    outbound: mpsc::WeakSender<Outbound>,
    headers: HeaderStyle,
    contexts: Vec<MetaContext>,
}

impl Pipeline {
    /// Starts transmission over a stream whose handshake is complete. `input` is what was already read from
    /// it.
    pub(crate) fn start(stream: Stream, input: BytesMut, session: &ClientSession, options: &Options) -> Self {
        let in_flight_bound = options.in_flight_requests.max(1);
        let bound = usize::try_from(in_flight_bound).expect("32 bits fit a usize");
        let (outbound, queue) = mpsc::channel(bound);
        let table = Table { pending: BTreeMap::new(), next_cookie: 1, moved: Instant::now(), closed: None };
        let shared = Arc::new(Shared {
            table: Mutex::new(table),
            outbound: outbound.downgrade(),
            headers: session.headers,
            contexts: session.contexts.clone(),
        });
        let (reader, writer) = tokio::io::split(stream);
        let tasks = Tasks::new();
        let receiver = Receiver { reader, buffer: input, shared: Arc::clone(&shared) };
        drop(tasks.spawn_until_cancelled(receiver.run()));
        drop(tasks.spawn_until_cancelled(write_requests(queue, writer, Arc::clone(&shared))));
        let watch = tasks.child();
        if let Some(limit) = options.stall_timeout {
            drop(watch.spawn_until_cancelled(break_off_when_stalled(Arc::clone(&shared), limit)));
        }
        let in_flight = Arc::new(Semaphore::new(bound));
        Self { shared, outbound, in_flight, in_flight_bound, tasks, watch }
    }

    /// Sends a request and waits for its reply. Dropping the future does not cancel the request.
    pub(crate) async fn call(
        &self,
        flags: CommandFlags,
        command: Command,
        offset: u64,
        length: u64,
        payload: Bytes,
    ) -> Result<Outcome, Error> {
        let permit =
            Arc::clone(&self.in_flight).acquire_owned().await.expect("the semaphore is never closed");
        let (answer, answered) = oneshot::channel();
        let request = {
            let mut table = self.shared.table.lock();
            if let Some(broken) = &table.closed {
                return Err(broken.clone().into());
            }
            let cookie = Cookie(table.next_cookie);
            table.next_cookie += 1;
            let request = Request { flags, command, cookie, offset, length };
            let gathering = Gathering::new(request);
            if table.pending.is_empty() {
                table.moved = Instant::now();
            }
            table.pending.insert(cookie, Pending { gathering, answer, _permit: permit });
            request
        };
        if self.outbound.send(Outbound { request, payload }).await.is_err() {
            self.shared.close(Broken::Closed);
        }
        answered.await.unwrap_or(Err(Error::Broken(Broken::Closed)))
    }

    /// Returns why the connection is broken, or `None` if it can be used.
    pub(crate) fn broken(&self) -> Option<Broken> {
        self.shared.table.lock().closed.clone()
    }

    /// Sends DISC and waits until the server has closed the connection. "The client MAY issue a soft
    /// disconnect at any time, but SHOULD wait until there are no inflight requests first", so this first
    /// waits for [`QUIET_TIMEOUT`] at most. Requests that are unanswered when the server closes the
    /// connection fail.
    pub(crate) async fn disconnect(self) {
        let Self { shared, outbound, in_flight, in_flight_bound, tasks, watch } = self;
        let quiet = in_flight.acquire_many(in_flight_bound);
        if tokio::time::timeout(QUIET_TIMEOUT, quiet).await.is_err() {
            tracing::debug!("sending DISC although some requests are unanswered");
        }
        watch.shutdown().await;
        if let Some(Broken::Stalled(_)) = shared.table.lock().closed {
            // A stalled server would not receive DISC.
            return;
        }
        let leave = async {
            if shared.table.lock().closed.is_none() {
                // If the writer has ended, the connection is already closed.
                drop(outbound.send(disc()).await);
            }
            drop(outbound);
            tasks.join().await;
        };
        if tokio::time::timeout(DISCONNECT_TIMEOUT, leave).await.is_err() {
            tracing::debug!("the server did not close after DISC");
        }
    }
}

impl Shared {
    /// Fails every pending request with the reason why it will not be answered. If the table is closed twice,
    /// the first reason stays.
    fn close(&self, broken: Broken) {
        let pending = {
            let mut table = self.table.lock();
            table.closed.get_or_insert(broken.clone());
            std::mem::take(&mut table.pending)
        };
        for (_, pending) in pending {
            pending.answer(Err(broken.clone().into()));
        }
    }

    /// Records that the server has sent or accepted bytes.
    fn moved(&self) {
        self.table.lock().moved = Instant::now();
    }

    /// When the server counts as stalled if nothing moves until then. `None` if no request is pending.
    fn stalled_at(&self, limit: Duration) -> Option<Instant> {
        let table = self.table.lock();
        (!table.pending.is_empty()).then(|| table.moved + limit)
    }

    /// Removes a request from the table in order to answer it.
    fn take(&self, cookie: Cookie) -> Result<Pending, DecodeError> {
        self.table.lock().pending.remove(&cookie).ok_or(DecodeError::Invalid("reply to no request"))
    }

    /// Handles ESHUTDOWN as the specification requires: accepts no more requests and starts a soft
    /// disconnect.
    fn close_after_shutdown(&self, result: &Result<Outcome, Error>) {
        if !matches!(result, Err(Error::Command { error: CommandError::Shutdown, .. })) {
            return;
        }
        //= Terminating the transmission phase: If the client receives an `NBD_ESHUTDOWN` error it MUST
        //# initiate a soft disconnect.
        let first = self.table.lock().closed.replace(Broken::ByServer).is_none();
        if first
            && let Some(outbound) = self.outbound.upgrade()
            && outbound.try_send(disc()).is_err()
        {
            tracing::debug!("not sending DISC after ESHUTDOWN: too many requests are queued");
        }
    }
}

impl Pending {
    fn answer(self, result: Result<Outcome, Error>) {
        if self.answer.send(result).is_err() {
            tracing::trace!("nothing is waiting for this answer any more");
        }
    }
}

/// Creates a DISC request.
fn disc() -> Outbound {
    let (flags, command, cookie) = (CommandFlags::empty(), Command::Disc, Cookie(0));
    Outbound { request: Request { flags, command, cookie, offset: 0, length: 0 }, payload: Bytes::new() }
}

/// Closes the table once the server has made no progress for `limit` while a request is pending.
async fn break_off_when_stalled(shared: Arc<Shared>, limit: Duration) {
    loop {
        let due = shared.stalled_at(limit);
        tokio::time::sleep_until(due.unwrap_or_else(|| Instant::now() + limit)).await;
        if shared.stalled_at(limit).is_some_and(|due| due <= Instant::now()) {
            return shared.close(Broken::Stalled(limit));
        }
    }
}

async fn write_requests(mut queue: mpsc::Receiver<Outbound>, writer: WriteHalf<Stream>, shared: Arc<Shared>) {
    let mut writer = BufWriter::with_capacity(READ_BYTES, writer);
    let mut header = BytesMut::with_capacity(Request::EXTENDED_LENGTH);
    let mut batch = Vec::with_capacity(BATCH_REQUESTS);
    let written = async {
        while queue.recv_many(&mut batch, BATCH_REQUESTS).await > 0 {
            for Outbound { request, payload } in batch.drain(..) {
                header.clear();
                request.encode(shared.headers, &mut header).map_err(Broken::Protocol)?;
                writer.write_all(&header).await?;
                // The payload is written in pieces, so that a server which accepts it slowly is seen to make
                // progress.
                for piece in payload.chunks(READ_BYTES) {
                    writer.write_all(piece).await?;
                    shared.moved();
                }
            }
            writer.flush().await?;
            shared.moved();
        }
        writer.shutdown().await?;
        Ok::<_, Broken>(())
    };
    if let Err(broken) = written.await {
        shared.close(broken);
    }
}

struct Receiver {
    reader: ReadHalf<Stream>,
    buffer: BytesMut,
    shared: Arc<Shared>,
}

impl Receiver {
    async fn run(mut self) {
        loop {
            if let Err(broken) = self.receive().await {
                return self.shared.close(broken);
            }
        }
    }

    /// Receives one simple reply, or one chunk of a structured or extended reply.
    async fn receive(&mut self) -> Result<(), Broken> {
        self.fill(Reply::MAGIC_LENGTH).await?;
        let magic = (&self.buffer[..Reply::MAGIC_LENGTH]).get_u32();
        let length = Reply::header_length(magic)?;
        self.fill(length).await?;
        let header = self.buffer.split_to(length);
        match (Reply::decode(&header)?, self.shared.headers) {
            (Reply::Simple { .. }, HeaderStyle::Extended)
            | (Reply::Structured { .. }, HeaderStyle::Simple | HeaderStyle::Extended)
            | (Reply::Extended { .. }, HeaderStyle::Simple | HeaderStyle::Structured) => {
                Err(DecodeError::Invalid("reply of a kind that was not negotiated").into())
            }
            (Reply::Simple { result, cookie }, headers) => self.receive_simple(result, cookie, headers).await,
            (Reply::Structured { flags, reply_type, cookie, length }, _) => {
                self.receive_chunk(flags, reply_type, cookie, u64::from(length)).await
            }
            (Reply::Extended { flags, reply_type, cookie, length, .. }, _) => {
                self.receive_chunk(flags, reply_type, cookie, length).await
            }
        }
    }

    async fn receive_simple(
        &mut self,
        result: Result<(), CommandError>,
        cookie: Cookie,
        headers: HeaderStyle,
    ) -> Result<(), Broken> {
        let pending = self.shared.take(cookie)?;
        let request = *pending.gathering.request();
        let is_read = request.command == Command::Read;
        if is_read && headers != HeaderStyle::Simple
            || request.command == Command::BlockStatus && result.is_ok()
        {
            let broken = Broken::from(DecodeError::Invalid("simple reply to a command that needs chunks"));
            pending.answer(Err(broken.clone().into()));
            return Err(broken);
        }
        let data = match result {
            Ok(()) if is_read => match self.payload(request.length).await {
                Ok(data) => data,
                Err(broken) => {
                    pending.answer(Err(broken.clone().into()));
                    return Err(broken);
                }
            },
            _ => Bytes::new(),
        };
        let Pending { gathering, answer, _permit } = pending;
        let result = gathering.finish_simple(result, data);
        self.shared.close_after_shutdown(&result);
        Pending { gathering: Gathering::new(request), answer, _permit }.answer(result);
        Ok(())
    }

    async fn receive_chunk(
        &mut self,
        flags: ReplyFlags,
        reply_type: ReplyType,
        cookie: Cookie,
        length: u64,
    ) -> Result<(), Broken> {
        let longest = match self.shared.table.lock().pending.get(&cookie) {
            Some(pending) => pending.gathering.request().length.saturating_add(8).max(MAXIMUM_STATUS_BYTES),
            //= Structured reply chunk message: the chunk with the flag `NBD_REPLY_FLAG_DONE` MUST be sent
            //# last
            None => return Err(DecodeError::Invalid("chunk for no request").into()),
        };
        if length > longest {
            return Err(DecodeError::Invalid("chunk is longer than any answer to its request").into());
        }
        let payload = self.payload(length).await?;
        let chunk = Chunk::decode(reply_type, payload)?;
        //= Structured and extended header reply flags: Clients MUST ignore unrecognized flags.
        let done = flags.contains(ReplyFlags::DONE);
        if chunk == Chunk::None && !done {
            return Err(DecodeError::Invalid("NBD_REPLY_TYPE_NONE without NBD_REPLY_FLAG_DONE").into());
        }
        let mut pending = self.shared.take(cookie)?;
        //= Structured reply types: For all other messages with unknown or unexpected type or inconsistent
        //# contents, the client MUST initiate a hard disconnect.
        if let Err(error) = pending.gathering.add(chunk, &self.shared.contexts) {
            pending.answer(Err(Broken::from(error).into()));
            return Err(error.into());
        }
        if !done {
            self.shared.table.lock().pending.insert(cookie, pending);
            return Ok(());
        }
        let Pending { gathering, answer, .. } = pending;
        let (result, violation) = match gathering.finish(&self.shared.contexts) {
            Ok(result) => (result, Ok(())),
            Err(error) => (Err(Broken::from(error).into()), Err(error.into())),
        };
        self.shared.close_after_shutdown(&result);
        if answer.send(result).is_err() {
            tracing::trace!("nothing is waiting for this answer any more");
        }
        violation
    }

    /// Reads until the buffer holds at least `length` bytes.
    async fn fill(&mut self, length: usize) -> Result<(), Broken> {
        while self.buffer.len() < length {
            self.buffer.reserve(READ_BYTES);
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Err(Broken::ByServer);
            }
            self.shared.moved();
        }
        Ok(())
    }

    /// Reads `length` bytes of payload. Allocates memory only as the bytes arrive.
    async fn payload(&mut self, length: u64) -> Result<Bytes, Broken> {
        let length = usize::try_from(length).map_err(|_| DecodeError::Invalid("payload beyond memory"))?;
        let buffered = self.buffer.len().min(length);
        let mut payload = BytesMut::with_capacity(length.min(buffered + (1 << 20)));
        payload.extend_from_slice(&self.buffer[..buffered]);
        self.buffer.advance(buffered);
        while payload.len() < length {
            let missing = length - payload.len();
            if payload.capacity() == payload.len() {
                payload.reserve(missing.min(payload.len().max(READ_BYTES)));
            }
            let room = missing.min(payload.capacity() - payload.len());
            if self.reader.read_buf(&mut (&mut payload).limit(room)).await? == 0 {
                return Err(Broken::ByServer);
            }
            self.shared.moved();
        }
        Ok(payload.freeze())
    }
}
