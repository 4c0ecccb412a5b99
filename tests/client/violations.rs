//! Servers that break the protocol: the client breaks off, and nobody waits for ever.

use bytes::{Bytes, BytesMut};
use cairn::client::{Broken, Client, Error, Options};
use cairn::protocol::negotiate_client::{
    ClientAction, ClientHandshake, ClientTls, Goal, HandshakeError, Wishes,
};

use crate::support::wire::*;

/// A server that is played by the test, and a stream that leads to it.
pub(super) fn pipe() -> (Wire, tokio::io::DuplexStream) {
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
pub(super) async fn welcome(server: &mut Wire) {
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

pub(super) fn options() -> Options {
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

//= Structured reply types: For all other messages with unknown or unexpected type or inconsistent contents,
//# the client MUST initiate a hard disconnect.
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
        (
            [&chunk(0, 1, 1, &data(0, b"01234567"))[..], &chunk(0, 1, 1, &data(0, b"01234567"))].concat(),
            "twice",
        ),
        (chunk(1, 1, 1, &data(0, b"")), "data of no bytes"),
        (chunk(1, 1, 1, b"\0\0\0\0"), "data without an offset"),
        (chunk(1, 2, 1, b"\0\0\0\0\0\0\0\0\0\0\0\x08more"), "a hole with more"),
        (chunk(1, 2, 1, b"\0\0\0\0\0\0\0\0\0\0\0\x09"), "a hole beyond the request"),
        (chunk(1, 0x8001, 1, b"\0\0\0\0\0\0"), "an error that is none"),
        (chunk(1, 0x8001, 1, b"\0\0\0\x05\0"), "an error that is cut"),
        (chunk(1, 0x8002, 1, b"\0\0\0\x05\0\0\0\0"), "an offset that is cut"),
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

//= Terminating the transmission phase: If the client receives an `NBD_ESHUTDOWN` error it MUST initiate a
//# soft disconnect.
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

//= Structured reply types: If the client receives an unknown or unexpected type with bit 15 set, it MUST
//# consider the current reply as errored
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

//= Termination of the session during option haggling: If the client receives `NBD_REP_ERR_SHUTDOWN` it MUST
//# initiate a soft disconnect.
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

//= Structured reply chunk message: the chunk with the flag `NBD_REPLY_FLAG_DONE` MUST be sent last
/// Chunks after the last belong to no request; the one that was answered keeps its answer.
#[tokio::test]
async fn a_chunk_after_the_last_breaks_the_connection() {
    let whole = chunk(1, 1, 1, b"\0\0\0\0\0\0\0\x0001234567");
    let (first, second) = answered(&[&whole[..], &chunk(1, 0, 1, b"")].concat()).await;
    assert_eq!(first.unwrap(), &b"01234567"[..]);
    assert!(matches!(second, Err(Error::Broken(Broken::Protocol(_)))), "{second:?}");
}

//= Structured and extended header reply flags: Clients MUST ignore unrecognized flags.
/// "Clients MUST ignore unrecognized flags" of replies, and "SHOULD ignore unknown flags" of the transmission.
#[tokio::test]
async fn unknown_flags_of_a_reply_must_be_ignored() {
    let (first, _) = answered(&chunk(0xff01, 1, 1, b"\0\0\0\0\0\0\0\x0001234567")).await;
    assert_eq!(first.unwrap(), &b"01234567"[..]);
}

/// "it MUST consider the current reply as errored, but MAY continue transmission": what came with it is not given.
#[tokio::test]
async fn content_beside_an_error_is_not_given() {
    let content = chunk(0, 1, 1, b"\0\0\0\0\0\0\0\x0001234567");
    let (first, _) = answered(&[&content[..], &chunk(1, 0x8001, 1, b"\0\0\0\x05\0\0")].concat()).await;
    assert!(matches!(first, Err(Error::Command { .. })), "{first:?}");
}

/// A reply of the server to what a client needs for transmission, with something of it unusual.
async fn goes_on(greeting: &[u8], client_flags: &[u8], info: &[u8]) -> Client {
    let (mut server, stream) = pipe();
    let options = Options { structured_replies: false, extended_headers: false, ..Options::default() };
    let serve = async {
        server.send(greeting).await;
        server.expect(client_flags).await;
        server.expect(option(GO, &info_request("disk", &[1, 2, 3]))).await;
        server.send(reply(GO, REP_INFO, b"\xff\x99of no known kind")).await;
        server.send(reply(GO, REP_INFO, info)).await;
        server.send(reply(GO, REP_ACK, b"")).await;
    };
    let (client, ()) = tokio::join!(Client::connect_over(stream, "disk", &options), serve);
    client.unwrap()
}

//= Client flags: Clients MUST NOT set any other flags
//= Client flags: MUST NOT be set if the server did not set `NBD_FLAG_NO_ZEROES`.
//= Option types: The client MUST ignore information replies it does not understand.
/// "The client SHOULD ignore any handshake flags it does not recognize"; NO_ZEROES "MUST NOT be set if the server did not
/// set NBD_FLAG_NO_ZEROES"; and unknown transmission flags and information are ignored.
#[tokio::test]
async fn what_a_client_does_not_know_is_ignored_and_what_was_not_offered_not_taken() {
    let info = b"\0\0\0\0\0\0\0\x10\0\0\xf0\x01";
    for (greeting, flags) in [
        (&b"NBDMAGICIHAVEOPT\xff\xff"[..], b"\0\0\0\x03"),
        (&b"NBDMAGICIHAVEOPT\x00\x03"[..], b"\0\0\0\x03"),
        (&b"NBDMAGICIHAVEOPT\x00\x01"[..], b"\0\0\0\x01"),
    ] {
        assert_eq!(goes_on(greeting, flags, info).await.size_bytes(), 1 << 20);
    }
}

//= Client-side requirements: The client MUST NOT issue `NBD_OPT_STARTTLS` unless the server set flag
//# `NBD_FLAG_FIXED_NEWSTYLE` and the client replied with `NBD_FLAG_C_FIXED_NEWSTYLE` in the fixed newstyle
//# negotiation.
/// "The client MUST NOT issue NBD_OPT_STARTTLS unless the server set flag NBD_FLAG_FIXED_NEWSTYLE".
#[tokio::test]
async fn starttls_must_not_be_sent_without_fixed_newstyle() {
    let (mut server, stream) = pipe();
    let options = Options { tls: ClientTls::Required, ..options() };
    let serve = async {
        server.send(b"NBDMAGICIHAVEOPT\x00\x00").await;
        server.expect(b"\0\0\0\0").await;
        server.expect_closed().await;
    };
    let (client, ()) = tokio::join!(Client::connect_over(stream, "disk", &options), serve);
    assert!(matches!(client, Err(Error::Handshake(HandshakeError::NoTls))), "{client:?}");
}

//= Conventions: which is not `NUL` terminated, MUST NOT contain `NUL` characters
/// "that string [...] MUST be no longer than 4096 bytes", "MUST NOT contain NUL", and is UTF-8.
#[tokio::test]
async fn strings_that_are_none_are_a_violation() {
    let named = |name: &[u8]| [&u32::try_from(name.len()).unwrap().to_be_bytes()[..], name].concat();
    for entry in [
        named(&[b'a'; 4097]),
        named(b"nul\0"),
        named(b"\xff\xfe"),
        b"\0\0\0\x09too".to_vec(),
        b"\0\0".to_vec(),
    ] {
        let mut machine = ClientHandshake::new(Wishes {
            goal: Goal::List,
            tls: ClientTls::Off,
            structured_replies: false,
            extended_headers: false,
            contexts: Vec::new(),
        });
        let mut input = BytesMut::from(&[NEWSTYLE, &reply(LIST, REP_SERVER, &entry)].concat()[..]);
        let listed = machine.poll(&mut input);
        let protocol = matches!(listed, ClientAction::Fail(HandshakeError::Protocol(_)));
        assert!(protocol, "{}: {listed:?}", entry.escape_ascii());
    }
    for context in [&[&b"\0\0\0\x07"[..], &[b'a'; 4097]].concat()[..], b"\0\0\0\x07nul\0", b"\0\0"] {
        let selected = reply(SET_META_CONTEXT, REP_META_CONTEXT, context);
        let error = greeted(NEWSTYLE, &[reply(STRUCTURED_REPLY, REP_ACK, b""), selected].concat()).await;
        assert!(matches!(error, Error::Handshake(HandshakeError::Protocol(_))), "{error:?}");
    }
}
