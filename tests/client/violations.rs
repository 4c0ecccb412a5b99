//! Servers that break the protocol: the client breaks off, and nobody waits for ever.

use bytes::Bytes;
use cairn::client::{Broken, Client, Error, Options};
use cairn::protocol::negotiate_client::HandshakeError;

use crate::support::wire::*;

/// A server that is played by the test, and a stream that leads to it.
fn pipe() -> (Wire, tokio::io::DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    (Wire::over(ours), theirs)
}

/// "S: 64 bits 0x3e889045565a9, 32 bits option, 32 bits reply type, 32 bits length, data".
fn reply(code: u32, reply: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    let magic = b"\x00\x03\xe8\x89\x04\x55\x65\xa9";
    [magic, &code.to_be_bytes()[..], &reply.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

/// Takes the client through the handshake: structured replies, context 7, a disk of 1 MiB.
async fn welcome(server: &mut Wire) {
    server.send(b"NBDMAGICIHAVEOPT\x00\x03").await;
    server.expect(b"\x00\x00\x00\x03").await;
    server.expect(option(STRUCTURED_REPLY, b"")).await;
    server.send(reply(STRUCTURED_REPLY, REP_ACK, b"")).await;
    server.expect(option(SET_META_CONTEXT, &meta_context("disk", &["base:allocation"]))).await;
    server.send(reply(SET_META_CONTEXT, REP_META_CONTEXT, b"\x00\x00\x00\x07base:allocation")).await;
    server.send(reply(SET_META_CONTEXT, REP_ACK, b"")).await;
    server.expect(option(GO, &info_request("disk", &[1, 2, 3]))).await;
    server.send(reply(GO, REP_INFO, b"\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x65")).await;
    server.send(reply(GO, REP_ACK, b"")).await;
}

fn options() -> Options {
    Options { extended_headers: false, ..Options::default() }
}

async fn connected() -> (Wire, Client) {
    let (mut server, stream) = pipe();
    let options = options();
    let (client, ()) = tokio::join!(Client::connect_over(stream, "disk", &options), welcome(&mut server));
    (server, client.unwrap())
}

/// What a READ of 8 bytes at 0 and what a following one get, if the server answers the first with this.
async fn answered(answer: &[u8]) -> (Result<Bytes, Error>, Result<Bytes, Error>) {
    let (mut server, client) = connected().await;
    let answers = async {
        server.expect(request(0, READ, 1, 0, 8)).await;
        server.send(answer).await;
        server.close_writing().await;
    };
    let (read, ()) = tokio::join!(client.read(0, 8), answers);
    (read, client.read(0, 8).await)
}

#[tokio::test]
async fn replies_that_break_the_protocol_break_the_connection() {
    let data = |offset: u64, bytes: &[u8]| [&offset.to_be_bytes()[..], bytes].concat();
    let broken = [
        (b"\x12\x34\x56\x78 what is this".to_vec(), "no magic"),
        (simple_reply(0, 1), "a simple reply to READ"),
        (chunk(1, 1, 9, &data(0, b"01234567")), "no such cookie"),
        (chunk(1, 1, 1, &data(8, b"01234567")), "another place"),
        (chunk(1, 1, 1, &data(0, b"0123")), "not all of it"),
        (chunk(1, 1, 1, &data(0, b"012345678")), "more than all of it"),
        (chunk(1, 2, 1, b"\0\0\0\0\0\0\0\0\0\0\0\0"), "a hole of no bytes"),
        (chunk(1, 0, 1, b"payload"), "NONE with a payload"),
        (chunk(0, 0, 1, b""), "NONE that is not the end"),
        (chunk(1, 5, 1, b"\0\0\0\x07\0\0\0\x08\0\0\0\0"), "extents for a READ"),
        (chunk(1, 3, 1, b""), "an unknown type"),
        (chunk(1, 0x8001, 1, b"\0\0\0\x05\0\xffshort"), "a message beyond its chunk"),
        (extended_chunk(1, 1, 1, 0, &data(0, b"01234567")), "a kind that was not negotiated"),
        (
            [&chunk(0, 1, 1, &data(0, b"01234567"))[..], &chunk(1, 1, 1, &data(4, b"4567"))].concat(),
            "overlap",
        ),
        (b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\0\x01\xff\xff\xff\xff".to_vec(), "4 GiB"),
    ];
    for (answer, what) in broken {
        let (first, second) = answered(&answer).await;
        assert!(matches!(first, Err(Error::Broken(Broken::Protocol(_)))), "{what}: {first:?}");
        assert!(matches!(second, Err(Error::Broken(Broken::Protocol(_)))), "{what}: {second:?}");
    }
}

#[tokio::test]
async fn a_reply_that_is_cut_off_fails_its_command() {
    for answer in [&b""[..], b"\x66\x8e", &chunk(1, 1, 1, b"\0\0\0\0\0\0\0\x0001234567")[..30]] {
        let (first, second) = answered(answer).await;
        assert!(matches!(first, Err(Error::Broken(Broken::ByServer))), "{first:?}");
        assert!(matches!(second, Err(Error::Broken(Broken::ByServer))), "{second:?}");
    }
}

/// "If the client receives an ESHUTDOWN error it MUST initiate a soft disconnect."
#[tokio::test]
async fn eshutdown_must_be_followed_by_a_soft_disconnect() {
    let (mut server, client) = connected().await;
    let answers = async {
        server.expect(request(0, READ, 1, 0, 8)).await;
        server.send(chunk(1, 0x8001, 1, b"\0\0\0\x6c\0\0")).await;
        server.expect(request(0, DISC, 0, 0, 0)).await;
    };
    let (read, ()) = tokio::join!(client.read(0, 8), answers);
    assert!(matches!(read, Err(Error::Command { .. })), "{read:?}");
    assert!(matches!(client.read(0, 8).await, Err(Error::Broken(Broken::ByServer))));
}

#[tokio::test]
async fn an_unknown_type_of_error_is_an_error_and_no_more() {
    let (first, second) = answered(&chunk(1, 0x8009, 1, b"\0\0\0\x05\0\x04gone with more")).await;
    assert!(matches!(first, Err(Error::Command { message, .. }) if message == "gone"));
    assert!(matches!(second, Err(Error::Broken(Broken::ByServer))), "only the server's end broke it");
}

#[tokio::test]
async fn an_error_value_that_is_not_known_is_no_reason_to_disconnect() {
    let (first, _) = answered(&chunk(1, 0x8001, 1, b"\0\0\0\x63\0\0")).await;
    assert!(matches!(first, Err(Error::Command { .. })), "{first:?}");
}

/// What the handshake comes to if the server sends this after the client's first option.
async fn greeted(greeting: &[u8], answers: &[u8]) -> Error {
    let (mut server, stream) = pipe();
    let serve = async {
        server.send([greeting, answers].concat()).await;
        server.close_writing().await;
    };
    let options = options();
    let (client, ()) = tokio::join!(Client::connect_over(stream, "disk", &options), serve);
    client.unwrap_err()
}

const NEWSTYLE: &[u8] = b"NBDMAGICIHAVEOPT\x00\x03";

#[tokio::test]
async fn handshakes_that_break_the_protocol_fail() {
    let endless =
        [&b"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x08\x00\x00\x00\x03"[..], b"\xff\xff\xff\xff"]
            .concat();
    let without_info = [reply(STRUCTURED_REPLY, REP_ERR_UNSUP, b""), reply(GO, REP_ACK, b"")].concat();
    let bad_sizes = [
        reply(STRUCTURED_REPLY, REP_ERR_UNSUP, b""),
        reply(GO, REP_INFO, b"\x00\x03\x00\x00\x00\x03\x00\x00\x00\x03\x00\x00\x00\x03"),
    ]
    .concat();
    let cases = [
        (&b"HTTP/1.1 400 Bad Request\r\n"[..], vec![]),
        (NEWSTYLE, b"this is not a reply to an option".to_vec()),
        (NEWSTYLE, reply(LIST, REP_ACK, b"")),
        (NEWSTYLE, reply(STRUCTURED_REPLY, 77, b"")),
        (NEWSTYLE, endless),
        (NEWSTYLE, without_info),
        (NEWSTYLE, bad_sizes),
    ];
    for (greeting, answers) in cases {
        let error = greeted(greeting, &answers).await;
        let protocol = matches!(error, Error::Handshake(HandshakeError::Protocol(_)));
        assert!(protocol, "{}: {error:?}", answers.escape_ascii());
    }
}

#[tokio::test]
async fn a_server_that_closes_is_told_apart() {
    assert!(matches!(greeted(b"NBDM", b"").await, Error::Handshake(HandshakeError::Closed(false))));
    assert!(matches!(greeted(NEWSTYLE, b"").await, Error::Handshake(HandshakeError::Closed(false))));
    // After EXPORT_NAME, to which there is no other refusal.
    let unfixed = greeted(b"NBDMAGICIHAVEOPT\x00\x00", b"").await;
    assert!(matches!(unfixed, Error::Handshake(HandshakeError::Closed(true))), "{unfixed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_not_waited_for_for_ever() {
    let (_server, stream) = pipe();
    let silent = Client::connect_over(stream, "disk", &Options::default()).await;
    assert!(matches!(silent, Err(Error::TimedOut)), "{silent:?}");
}

#[tokio::test]
async fn err_shutdown_ends_the_session_softly() {
    let (mut server, stream) = pipe();
    let serve = async {
        server.send(NEWSTYLE).await;
        server.expect(b"\x00\x00\x00\x03").await;
        server.expect(option(STRUCTURED_REPLY, b"")).await;
        server.send(reply(STRUCTURED_REPLY, REP_ERR_SHUTDOWN, b"")).await;
        server.expect(option(ABORT, b"")).await;
    };
    let options = options();
    let (client, ()) = tokio::join!(Client::connect_over(stream, "disk", &options), serve);
    assert!(matches!(client, Err(Error::Handshake(HandshakeError::Refused { .. }))), "{client:?}");
}
