//! A client survives any stream of replies: every command ends, and what a READ gives has the length that was asked for.
//!
//! The first byte of the input chooses the headers; the rest is what the server sends after the handshake, then it closes.
#![no_main]

use bytes::Bytes;
use cairn::client::ExtentLimit;
use cairn::effect::Durability::Volatile;
use cairn::client::{Client, Options};
use cairn::protocol::HeaderStyle;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What a server says to a client that wants these headers, up to transmission.
fn handshake(style: HeaderStyle) -> Vec<u8> {
    let reply = |option: u8, reply: u8, data: &[u8]| {
        let length = u8::try_from(data.len()).expect("short data");
        let header = [0, 0, 0, option, 0, 0, 0, reply, 0, 0, 0, length];
        [b"\x00\x03\xe8\x89\x04\x55\x65\xa9", &header[..], data].concat()
    };
    let mut said = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    match style {
        HeaderStyle::Simple => {}
        HeaderStyle::Structured => said.extend(reply(8, 1, b"")),
        HeaderStyle::Extended => said.extend(reply(11, 1, b"")),
    }
    if style != HeaderStyle::Simple {
        said.extend(reply(10, 4, b"\0\0\0\x01base:allocation"));
        said.extend(reply(10, 1, b""));
    }
    // 1 MiB; FLUSH, FUA, TRIM, WRITE_ZEROES, DF.
    said.extend(reply(7, 3, b"\0\0\0\0\0\0\0\x10\0\0\0\xed"));
    said.extend(reply(7, 1, b""));
    said
}

async fn converse(style: HeaderStyle, replies: &[u8]) {
    let (ours, theirs) = tokio::io::duplex(4 << 10);
    let options = Options {
        structured_replies: style == HeaderStyle::Structured,
        extended_headers: style == HeaderStyle::Extended,
        ..Options::default()
    };
    let (mut reader, mut writer) = tokio::io::split(theirs);
    let greeting = handshake(style);
    let greet = async {
        writer.write_all(&greeting).await.expect("the client reads");
        // All that the client says in its handshake, so that none of it is taken for requests.
        let length = match style {
            HeaderStyle::Simple => 4 + 16 + 16,
            HeaderStyle::Structured | HeaderStyle::Extended => 4 + 16 + 16 + 31 + 16 + 16,
        };
        reader.read_exact(&mut vec![0; length]).await.expect("the client negotiates");
    };
    let (client, ()) = tokio::join!(Client::connect_over(ours, "disk", &options), greet);
    let client = client.expect("the handshake succeeds");
    let commands = async move {
        let (whole, part, status, write, flush) = tokio::join!(
            client.read(0, 64),
            client.read_segments(4096, 512),
            client.block_status(0, 1 << 20, ExtentLimit::Many),
            client.write(0, Bytes::from_static(b"data"), Volatile),
            client.flush(),
        );
        assert!(whole.is_err() || whole.is_ok_and(|bytes| bytes.len() == 64));
        if let Ok(segments) = part {
            assert_eq!(segments.iter().map(|segment| segment.length()).sum::<u64>(), 512);
        }
        if let Ok(contexts) = status {
            assert!(contexts.iter().all(|context| !context.extents.is_empty()));
        }
        drop((write, flush));
        drop(client);
    };
    let serve = async {
        // The client may break off before it has read all.
        drop(writer.write_all(replies).await);
        drop(writer.shutdown().await);
        let mut said = Vec::new();
        drop(reader.read_to_end(&mut said).await);
    };
    tokio::join!(commands, serve);
}

fuzz_target!(|input: &[u8]| {
    let Some((style, replies)) = input.split_first() else { return };
    let style = [HeaderStyle::Simple, HeaderStyle::Structured, HeaderStyle::Extended][usize::from(style % 3)];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(converse(style, replies));
});
