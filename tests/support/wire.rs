//! A client that only knows bytes, and functions that lay them out according to the specification.
//!
//! It uses none of Cairn's encoders, so that expected bytes come from the specification alone.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use cairn::metrics::Metrics;
use cairn::server::{Export, Exports, Greeting, Options, Server, Stream, Tls};
use cairn::task::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::memory_export::{MemoryExport, MemoryExports};

pub(crate) const EXPORT_NAME: u32 = 1;
pub(crate) const ABORT: u32 = 2;
pub(crate) const LIST: u32 = 3;
pub(crate) const PEEK_EXPORT: u32 = 4;
pub(crate) const STARTTLS: u32 = 5;
pub(crate) const INFO: u32 = 6;
pub(crate) const GO: u32 = 7;
pub(crate) const STRUCTURED_REPLY: u32 = 8;
pub(crate) const LIST_META_CONTEXT: u32 = 9;
pub(crate) const SET_META_CONTEXT: u32 = 10;
pub(crate) const EXTENDED_HEADERS: u32 = 11;

pub(crate) const REP_ACK: u32 = 1;
pub(crate) const REP_SERVER: u32 = 2;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const REP_META_CONTEXT: u32 = 4;
pub(crate) const REP_ERR_UNSUP: u32 = 0x8000_0001;
pub(crate) const REP_ERR_POLICY: u32 = 0x8000_0002;
pub(crate) const REP_ERR_INVALID: u32 = 0x8000_0003;
pub(crate) const REP_ERR_TLS_REQD: u32 = 0x8000_0005;
pub(crate) const REP_ERR_UNKNOWN: u32 = 0x8000_0006;
pub(crate) const REP_ERR_SHUTDOWN: u32 = 0x8000_0007;
pub(crate) const REP_ERR_TOO_BIG: u32 = 0x8000_0009;
pub(crate) const REP_ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;
pub(crate) const DF: u16 = 4;
pub(crate) const REQ_ONE: u16 = 8;
pub(crate) const FAST_ZERO: u16 = 16;
pub(crate) const PAYLOAD_LEN: u16 = 32;

pub(crate) const EPERM: u32 = 1;
pub(crate) const EIO: u32 = 5;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;
pub(crate) const ENOTSUP: u32 = 95;
pub(crate) const ESHUTDOWN: u32 = 108;

/// "C: 64 bits IHAVEOPT, 32 bits option, 32 bits length, data".
pub(crate) fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [b"IHAVEOPT", &code.to_be_bytes()[..], &length.to_be_bytes(), data].concat()
}

/// A 32-bit length, followed by a string.
pub(crate) fn string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}

/// The data of INFO and GO.
pub(crate) fn info_request(name: &str, requests: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend(u16::try_from(requests.len()).unwrap().to_be_bytes());
    requests.iter().for_each(|request| data.extend(request.to_be_bytes()));
    data
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn meta_context(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(export);
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

/// "C: 32 bits 0x25609513, 16 bits flags, 16 bits type, 64 bits cookie, 64 bits offset, 32 bits length".
pub(crate) fn request(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let (flags, command) = (flags.to_be_bytes(), command.to_be_bytes());
    let (cookie, offset) = (cookie.to_be_bytes(), offset.to_be_bytes());
    [b"\x25\x60\x95\x13", &flags[..], &command, &cookie, &offset, &length.to_be_bytes()].concat()
}

/// "C: 32 bits 0x21e41c71, 16 bits flags, 16 bits type, 64 bits cookie, 64 bits offset, 64 bits length".
pub(crate) fn extended_request(flags: u16, command: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    let (flags, command) = (flags.to_be_bytes(), command.to_be_bytes());
    let (cookie, offset) = (cookie.to_be_bytes(), offset.to_be_bytes());
    [b"\x21\xe4\x1c\x71", &flags[..], &command, &cookie, &offset, &length.to_be_bytes()].concat()
}

/// "S: 32 bits 0x67446698, 32 bits error, 64 bits cookie".
pub(crate) fn simple_reply(error: u32, cookie: u64) -> Vec<u8> {
    [b"\x67\x44\x66\x98", &error.to_be_bytes()[..], &cookie.to_be_bytes()].concat()
}

/// "S: 32 bits 0x668e33ef, 16 bits flags, 16 bits type, 64 bits cookie, 32 bits length, payload".
pub(crate) fn chunk(flags: u16, reply_type: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let (flags, reply_type) = (flags.to_be_bytes(), reply_type.to_be_bytes());
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [b"\x66\x8e\x33\xef", &flags[..], &reply_type, &cookie.to_be_bytes(), &length, payload].concat()
}

/// "S: 32 bits 0x6e8a278c, 16 bits flags, 16 bits type, 64 bits cookie, 64 bits offset, 64 bits length, payload".
pub(crate) fn extended_chunk(
    flags: u16,
    reply_type: u16,
    cookie: u64,
    offset: u64,
    payload: &[u8],
) -> Vec<u8> {
    let (flags, reply_type) = (flags.to_be_bytes(), reply_type.to_be_bytes());
    let (cookie, offset) = (cookie.to_be_bytes(), offset.to_be_bytes());
    let length = u64::try_from(payload.len()).unwrap().to_be_bytes();
    [b"\x6e\x8a\x27\x8c", &flags[..], &reply_type, &cookie, &offset, &length, payload].concat()
}

/// A reply to an option.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OptionReply {
    pub(crate) option: u32,
    pub(crate) reply: u32,
    pub(crate) data: Vec<u8>,
}

/// An error chunk, or a simple reply with an error.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) error: u32,
    pub(crate) cookie: u64,
}

/// Waits for `future`. A hang is a panic. The time limit exceeds every timeout of the server.
async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), future).await.expect("the server does not answer")
}

/// The client's end of a connection.
pub(crate) struct Wire(Box<dyn Stream>);

impl Wire {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.expect("the server reads");
    }

    pub(crate) async fn read(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        in_time(self.0.read_exact(&mut bytes)).await.expect("the server sends");
        bytes
    }

    pub(crate) async fn read_u32(&mut self) -> u32 {
        u32::from_be_bytes(self.read(4).await.try_into().unwrap())
    }

    pub(crate) async fn expect(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        let found = self.read(bytes.len()).await;
        assert!(found == bytes, "expected {}\n   found {}", bytes.escape_ascii(), found.escape_ascii());
    }

    /// Expects that the server closes the connection without sending another byte.
    pub(crate) async fn expect_closed(&mut self) {
        let mut rest = Vec::new();
        in_time(self.0.read_to_end(&mut rest)).await.expect("a pipe in memory does not fail");
        assert!(rest.is_empty(), "the server sent {} before it closed", rest.escape_ascii());
    }

    /// Returns the stream, for something else to continue with.
    pub(crate) fn into_stream(self) -> Box<dyn Stream> {
        self.0
    }

    /// Creates a client that continues on an existing stream.
    pub(crate) fn over(stream: impl Stream) -> Self {
        Self(Box::new(stream))
    }

    /// Returns whether the connection ends, in any way, before the server sends anything more.
    pub(crate) async fn is_dropped(&mut self) -> bool {
        !matches!(in_time(self.0.read(&mut [0])).await, Ok(1..))
    }

    /// Closes our side for writing.
    pub(crate) async fn close_writing(&mut self) {
        self.0.shutdown().await.expect("a pipe in memory does not fail");
    }

    /// "S: 64 bits 0x3e889045565a9, 32 bits option, 32 bits reply type, 32 bits length, data".
    pub(crate) async fn option_reply(&mut self) -> OptionReply {
        self.expect(b"\x00\x03\xe8\x89\x04\x55\x65\xa9").await;
        let (option, reply, length) = (self.read_u32().await, self.read_u32().await, self.read_u32().await);
        OptionReply { option, reply, data: self.read(usize::try_from(length).unwrap()).await }
    }

    /// Sends an option and expects one reply of this type. Returns its data.
    pub(crate) async fn haggle(&mut self, code: u32, data: &[u8], reply: u32) -> Vec<u8> {
        self.send(option(code, data)).await;
        self.expect_reply(code, reply).await
    }

    pub(crate) async fn expect_reply(&mut self, code: u32, reply: u32) -> Vec<u8> {
        let found = self.option_reply().await;
        assert_eq!((found.option, found.reply), (code, reply), "{}", found.data.escape_ascii());
        found.data
    }

    /// Returns all replies to an option. The last one must be an ACK without data.
    pub(crate) async fn replies_to(&mut self, code: u32, data: &[u8]) -> Vec<OptionReply> {
        self.send(option(code, data)).await;
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply().await;
            assert_eq!(reply.option, code);
            match reply.reply {
                REP_ACK => {
                    assert!(reply.data.is_empty());
                    return replies;
                }
                0x8000_0000.. => panic!("refused: {reply:?}"),
                _ => replies.push(reply),
            }
        }
    }

    /// Reads the greeting and answers with these client flags.
    pub(crate) async fn greet(&mut self, client_flags: u32) {
        self.expect(b"NBDMAGICIHAVEOPT\x00\x03").await;
        self.send(client_flags.to_be_bytes()).await;
    }

    /// Enters transmission by GO.
    pub(crate) async fn go(&mut self, name: &str) -> Vec<OptionReply> {
        self.replies_to(GO, &info_request(name, &[])).await
    }

    /// Reads an error in reply to a command: simple, structured or extended.
    pub(crate) async fn failure(&mut self) -> Failure {
        match self.read_u32().await {
            0x6744_6698 => {
                let error = self.read_u32().await;
                Failure { error, cookie: self.read_u64().await }
            }
            0x668e_33ef => {
                self.expect(b"\x00\x01\x80\x01").await;
                let cookie = self.read_u64().await;
                let length = u64::from(self.read_u32().await);
                self.error_payload(cookie, length).await
            }
            0x6e8a_278c => {
                self.expect(b"\x00\x01\x80\x01").await;
                let cookie = self.read_u64().await;
                let _offset = self.read_u64().await;
                let length = self.read_u64().await;
                self.error_payload(cookie, length).await
            }
            other => panic!("magic {other:#x}"),
        }
    }

    async fn error_payload(&mut self, cookie: u64, length: u64) -> Failure {
        let payload = self.read(usize::try_from(length).unwrap()).await;
        let message_length = u16::from_be_bytes([payload[4], payload[5]]);
        assert_eq!(usize::from(message_length) + 6, payload.len());
        Failure { error: u32::from_be_bytes(*payload.first_chunk().unwrap()), cookie }
    }

    async fn read_u64(&mut self) -> u64 {
        u64::from_be_bytes(self.read(8).await.try_into().unwrap())
    }

    /// Sends a request and expects an error.
    pub(crate) async fn fails(&mut self, request: impl AsRef<[u8]>, error: u32) {
        self.send(&request).await;
        let cookie = u64::from_be_bytes(request.as_ref()[8..16].try_into().unwrap());
        assert_eq!(self.failure().await, Failure { error, cookie });
    }

    /// Checks that the connection still works: a FLUSH succeeds.
    pub(crate) async fn is_alive(&mut self) {
        self.send(request(0, FLUSH, 0xf1, 0, 0)).await;
        self.expect(simple_reply(0, 0xf1)).await;
    }
}

/// A server to connect to.
pub(crate) struct Harness {
    pub(crate) server: Arc<Server>,
    pub(crate) tasks: Tasks,
    pub(crate) metrics: Metrics,
}

impl Harness {
    pub(crate) fn new(exports: impl Exports, options: Options) -> Self {
        let metrics = Metrics::new();
        let server = Server::new(Arc::new(exports), options, metrics.server());
        Self { server: Arc::new(server), tasks: Tasks::new(), metrics }
    }

    /// Adds TLS to the server.
    pub(crate) fn with_tls(self, tls: Tls) -> Self {
        let server = Arc::into_inner(self.server).expect("nobody is connected yet");
        Self { server: Arc::new(server.with_tls(tls)), ..self }
    }

    /// Serves one export, as `disk` and as the default.
    pub(crate) fn of(export: Arc<dyn Export>) -> Self {
        Self::new(MemoryExports::new(vec![export]), Options::default())
    }

    /// Serves an empty disk of 1 MiB named `disk`.
    pub(crate) fn disk() -> Self {
        Self::of(Arc::new(MemoryExport::new("disk", 1 << 20)))
    }

    pub(crate) fn connect(&self) -> Wire {
        self.connect_with(Greeting::Newstyle)
    }

    pub(crate) fn connect_with(&self, greeting: Greeting) -> Wire {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let server = Arc::clone(&self.server);
        drop(self.tasks.spawn(async move { server.serve_stream(theirs, greeting).await }));
        Wire(Box::new(ours))
    }

    /// Connects, up to option haggling.
    pub(crate) async fn options(&self) -> Wire {
        let mut wire = self.connect();
        wire.greet(3).await;
        wire
    }

    /// Connects and enters transmission with simple replies.
    pub(crate) async fn simple(&self) -> Wire {
        let mut wire = self.options().await;
        wire.go("disk").await;
        wire
    }

    /// Connects and enters transmission with structured replies, and with `base:allocation` as context 1.
    pub(crate) async fn structured(&self) -> Wire {
        self.with_contexts(STRUCTURED_REPLY).await
    }

    /// Connects and enters transmission with extended headers, and with `base:allocation` as context 1.
    pub(crate) async fn extended(&self) -> Wire {
        self.with_contexts(EXTENDED_HEADERS).await
    }

    async fn with_contexts(&self, headers: u32) -> Wire {
        let mut wire = self.options().await;
        assert_eq!(wire.haggle(headers, b"", REP_ACK).await, b"");
        let contexts = wire.replies_to(SET_META_CONTEXT, &meta_context("disk", &["base:allocation"])).await;
        assert_eq!(contexts[0].data, b"\x00\x00\x00\x01base:allocation");
        wire.go("disk").await;
        wire
    }
}
