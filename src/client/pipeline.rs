//! Many requests at a time over one connection: a writer, a reader, and the table of what is not yet
//! answered.
//!
//! Invariant: every request that was entered is answered exactly once, by its reply or by why there will be
//! none.

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

/// What is read from the socket at a time, and how far a payload's place grows ahead of what has come.
const READ_BYTES: usize = 64 << 10;
/// Most requests that are gathered before they are written.
const BATCH_REQUESTS: usize = 64;
/// Longest payload of a chunk that is no content: as many descriptors as a server should send.
const MAXIMUM_STATUS_BYTES: u64 = (1 << 20) * 16 + 8;

/// How long requests that nobody waits for any more may delay DISC.
const QUIET_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the server may take to close after DISC.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A request on its way.
struct Outbound {
    request: Request,
    payload: Bytes,
}

/// A request that is not yet answered.
struct Pending {
    gathering: Gathering,
    answer: oneshot::Sender<Result<Outcome, Error>>,
    _permit: OwnedSemaphorePermit,
}

/// What is not yet answered; closed for good when the connection is.
struct Table {
    pending: BTreeMap<Cookie, Pending>,
    next_cookie: u64,
    /// When the server last moved a byte, or was first asked for one after it had answered all.
    moved: Instant,
    /// Why no request is taken any more.
    closed: Option<Broken>,
}

/// One connection in transmission.
pub(crate) struct Pipeline {
    shared: Arc<Shared>,
    outbound: mpsc::Sender<Outbound>,
    in_flight: Arc<Semaphore>,
    in_flight_bound: u32,
    tasks: Tasks,
    /// Watches for a server that stands still.
    watch: Tasks,
}

struct Shared {
    table: Mutex<Table>,
    outbound: mpsc::WeakSender<Outbound>,
    headers: HeaderStyle,
    contexts: Vec<MetaContext>,
}

impl Pipeline {
    /// Goes on with a stream after its handshake.
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

    /// Sends a request and waits for its answer. Dropping the future does not take the request back.
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

    /// Whether the connection is gone, and why.
    pub(crate) fn broken(&self) -> Option<Broken> {
        self.shared.table.lock().closed.clone()
    }

    /// Sends DISC and waits until the server has closed. "The client MAY issue a soft disconnect at any time,
    /// but SHOULD wait until there are no inflight requests first": it waits a moment. Requests that are not
    /// answered when the server closes are broken off.
    pub(crate) async fn disconnect(self) {
        let Self { shared, outbound, in_flight, in_flight_bound, tasks, watch } = self;
        let quiet = in_flight.acquire_many(in_flight_bound);
        if tokio::time::timeout(QUIET_TIMEOUT, quiet).await.is_err() {
            tracing::debug!("DISC goes out although requests are not answered");
        }
        watch.shutdown().await;
        if let Some(Broken::Stalled(_)) = shared.table.lock().closed {
            // Nobody takes a DISC from us.
            return;
        }
        let leave = async {
            if shared.table.lock().closed.is_none() {
                // If the writer is gone, so is the connection.
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
    /// Answers all that is pending with why there will be no other answer. The first reason stays.
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

    /// The server has sent or taken something.
    fn moved(&self) {
        self.table.lock().moved = Instant::now();
    }

    /// When the server's time is over, if nothing moves; none if it owes nothing.
    fn stalled_at(&self, limit: Duration) -> Option<Instant> {
        let table = self.table.lock();
        (!table.pending.is_empty()).then(|| table.moved + limit)
    }

    /// Takes a request out of the table, answered.
    fn take(&self, cookie: Cookie) -> Result<Pending, DecodeError> {
        self.table.lock().pending.remove(&cookie).ok_or(DecodeError::Invalid("reply to no request"))
    }

    /// After ESHUTDOWN no request is taken any more, and a soft disconnect begins, as the specification
    /// demands.
    fn close_after_shutdown(&self, result: &Result<Outcome, Error>) {
        if !matches!(result, Err(Error::Command { error: CommandError::Shutdown, .. })) {
            return;
        }
        let first = self.table.lock().closed.replace(Broken::ByServer).is_none();
        if first
            && let Some(outbound) = self.outbound.upgrade()
            && outbound.try_send(disc()).is_err()
        {
            tracing::debug!("no DISC after ESHUTDOWN: too many requests are in its way");
        }
    }
}

impl Pending {
    fn answer(self, result: Result<Outcome, Error>) {
        if self.answer.send(result).is_err() {
            tracing::trace!("nobody waits for this answer any more");
        }
    }
}

/// The request to disconnect.
fn disc() -> Outbound {
    let (flags, command, cookie) = (CommandFlags::empty(), Command::Disc, Cookie(0));
    Outbound { request: Request { flags, command, cookie, offset: 0, length: 0 }, payload: Bytes::new() }
}

/// Closes the table once the server has stood still for so long although it owes an answer.
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
                // Piece by piece, so that a server that takes them slowly is seen to move.
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

    /// One reply, or one chunk of one.
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
            None => return Err(DecodeError::Invalid("chunk for no request").into()),
        };
        if length > longest {
            return Err(DecodeError::Invalid("chunk is longer than any answer to its request").into());
        }
        let payload = self.payload(length).await?;
        let chunk = Chunk::decode(reply_type, payload)?;
        let done = flags.contains(ReplyFlags::DONE);
        if chunk == Chunk::None && !done {
            return Err(DecodeError::Invalid("NBD_REPLY_TYPE_NONE without NBD_REPLY_FLAG_DONE").into());
        }
        let mut pending = self.shared.take(cookie)?;
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
            tracing::trace!("nobody waits for this answer any more");
        }
        violation
    }

    /// So many bytes at least in the buffer.
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

    /// So many bytes of payload. Memory is taken as they come.
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
