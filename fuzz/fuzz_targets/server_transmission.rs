//! A server survives any stream of requests, and answers with replies of the kind that was negotiated, to requests that
//! were made, no more than once.
//!
//! The first byte of the input chooses the headers; the rest is what the client sends after its handshake.
#![no_main]

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/support/memory_export.rs"]
mod memory_export;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use cairn::metrics::Metrics;
use cairn::protocol::{HeaderStyle, Reply, ReplyFlags, Request};
use cairn::server::{Greeting, Options, Server};
use libfuzzer_sys::fuzz_target;
use memory_export::{MemoryExport, MemoryExports};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Client flags, and options by which transmission begins with these headers.
fn handshake(style: HeaderStyle) -> Vec<u8> {
    let option = |code: u8, data: &[u8]| {
        let length = u8::try_from(data.len()).expect("short data");
        [b"IHAVEOPT\0\0\0", &[code, 0, 0, 0, length][..], data].concat()
    };
    let headers = match style {
        HeaderStyle::Simple => Vec::new(),
        HeaderStyle::Structured => option(8, b""),
        HeaderStyle::Extended => option(11, b""),
    };
    let contexts = match style {
        HeaderStyle::Simple => Vec::new(),
        _ => option(10, b"\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation"),
    };
    [b"\0\0\0\x03", &headers[..], &contexts, &option(7, b"\0\0\0\0\0\0")].concat()
}

/// Where the answers to the handshake end: behind the ACK of GO.
fn answers_length(said: &[u8]) -> Option<usize> {
    const ACK_OF_GO: &[u8] = b"\x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x01\0\0\0\0";
    said.windows(ACK_OF_GO.len()).position(|it| it == ACK_OF_GO).map(|at| at + ACK_OF_GO.len())
}

/// What the server says to a client that sends this and closes.
async fn said(sent: Vec<u8>) -> Vec<u8> {
    let disk = Arc::new(MemoryExport::new("disk", 1 << 20));
    let server = Server::new(
        Arc::new(MemoryExports::new(vec![disk])),
        Options { maximum_payload_bytes: 64 << 10, ..Options::default() },
        Metrics::new().server(),
    );
    let (ours, theirs) = tokio::io::duplex(4 << 10);
    let (mut reader, mut writer) = tokio::io::split(ours);
    let send = async move {
        // The server may close before it has read all.
        let sent = writer.write_all(&sent).await;
        drop(sent.and(writer.shutdown().await));
    };
    let mut said = Vec::new();
    let receive = async {
        reader.read_to_end(&mut said).await.expect("a pipe in memory does not fail");
    };
    tokio::join!(server.serve_stream(theirs, Greeting::Newstyle), send, receive);
    said
}

/// The cookies of all that can be read as requests in the stream, at whatever place.
fn cookies(style: HeaderStyle, stream: &[u8]) -> BTreeSet<u64> {
    let requests = stream.windows(style.request_length()).filter_map(|it| Request::decode(style, it).ok());
    requests.map(|request| request.cookie.0).collect()
}

fn check(style: HeaderStyle, stream: &[u8], mut replies: Bytes) {
    let cookies = cookies(style, stream);
    while !replies.is_empty() {
        let magic = (&replies[..]).get_u32();
        let length = Reply::header_length(magic).expect("a reply");
        let header = replies.split_to(length);
        match (Reply::decode(&header).expect("a reply"), style) {
            (Reply::Simple { cookie, .. }, HeaderStyle::Simple) => {
                assert!(cookies.contains(&cookie.0));
                // What a READ gives has no length of its own: what follows is not looked at.
                return;
            }
            (Reply::Simple { cookie, .. }, HeaderStyle::Structured) => {
                assert!(cookies.contains(&cookie.0));
            }
            (Reply::Structured { cookie, length, flags, .. }, HeaderStyle::Structured) => {
                assert!(cookies.contains(&cookie.0));
                assert!((flags - ReplyFlags::DONE).is_empty());
                replies.advance(usize::try_from(length).expect("32 bits fit a usize"));
            }
            (Reply::Extended { cookie, length, flags, .. }, HeaderStyle::Extended) => {
                assert!(cookies.contains(&cookie.0));
                assert!((flags - ReplyFlags::DONE).is_empty());
                replies.advance(usize::try_from(length).expect("a payload fits memory"));
            }
            (other, style) => panic!("{other:?} where {style:?} was negotiated"),
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((style, stream)) = input.split_first() else { return };
    let style = [HeaderStyle::Simple, HeaderStyle::Structured, HeaderStyle::Extended][usize::from(style % 3)];
    let sent = [&handshake(style)[..], stream].concat();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let said = runtime.block_on(said(sent));
    let begin = answers_length(&said).expect("the handshake succeeds");
    check(style, stream, Bytes::from(said).slice(begin..));
});
