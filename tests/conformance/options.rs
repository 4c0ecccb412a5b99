//! "Option types" and "Option reply types": option haggling without metadata contexts.

use std::sync::Arc;

use cairn::server::{ExportDescription, Options};

use crate::support::memory_export::{MemoryExport, MemoryExports};
use crate::support::wire::*;

fn two_disks() -> Harness {
    let plain = ExportDescription {
        name: "plain".to_owned(),
        description: String::new(),
        size_bytes: 512,
        flags: cairn::protocol::TransmissionFlags::READ_ONLY,
        minimum_block_bytes: 512,
        preferred_block_bytes: 512,
        maximum_block_bytes: 1 << 30,
    };
    let exports = MemoryExports::new(vec![
        Arc::new(MemoryExport::new("disk", 1 << 20)),
        Arc::new(MemoryExport::described(plain)),
    ]);
    Harness::new(exports, Options::default())
}

fn data_of(replies: &[OptionReply]) -> Vec<&[u8]> {
    replies.iter().map(|reply| reply.data.as_slice()).collect()
}

//= Baseline: Servers that receive messages which they do not implement MUST reply to them with
//# `NBD_REP_ERR_UNSUP`, and MUST NOT fail to parse the next message received.
#[tokio::test]
async fn an_unknown_option_gets_err_unsup_and_the_stream_stays_in_step() {
    let mut wire = Harness::disk().options().await;
    wire.haggle(99, b"some data", REP_ERR_UNSUP).await;
    wire.haggle(PEEK_EXPORT, b"disk", REP_ERR_UNSUP).await;
    wire.haggle(0xffff_ffff, &vec![0; 1 << 20], REP_ERR_UNSUP).await;
    wire.go("disk").await;
    wire.is_alive().await;
}

//= Baseline: Servers that receive messages which they do not implement MUST reply to them with
//# `NBD_REP_ERR_UNSUP`, and MUST NOT fail to parse the next message received.
#[tokio::test]
async fn an_over_long_option_gets_err_too_big_and_the_stream_stays_in_step() {
    let mut wire = Harness::disk().options().await;
    wire.haggle(INFO, &vec![0; 32 << 20], REP_ERR_TOO_BIG).await;
    wire.go("disk").await;
    wire.is_alive().await;
}

#[tokio::test]
async fn list_returns_one_server_reply_for_each_export_and_an_ack() {
    let mut wire = two_disks().options().await;
    let replies = wire.replies_to(LIST, b"").await;
    assert!(replies.iter().all(|reply| reply.reply == REP_SERVER));
    assert_eq!(data_of(&replies), [&b"\x00\x00\x00\x04diska disk in memory"[..], b"\x00\x00\x00\x05plain"]);
}

//= Option types: The client MUST NOT send any additional data with the option, and the server SHOULD reject
//# a request that includes data with `NBD_REP_ERR_INVALID`.
#[tokio::test]
async fn list_with_data_is_rejected_with_err_invalid() {
    let mut wire = Harness::disk().options().await;
    wire.haggle(LIST, b"x", REP_ERR_INVALID).await;
    wire.go("disk").await;
}

//= Option types: The server MUST reply with `NBD_REP_ACK`.
#[tokio::test]
async fn the_server_must_reply_to_abort_with_an_ack() {
    let mut wire = Harness::disk().options().await;
    assert_eq!(wire.haggle(ABORT, b"", REP_ACK).await, b"");
    wire.expect_closed().await;
}

#[tokio::test]
async fn data_of_abort_is_ignored() {
    let mut wire = Harness::disk().options().await;
    wire.haggle(ABORT, &vec![1; 100_000], REP_ACK).await;
    wire.expect_closed().await;
}

//= NOTLS mode: If the server receives `NBD_OPT_STARTTLS` it MUST respond with `NBD_REP_ERR_POLICY`
#[tokio::test]
async fn starttls_is_refused_by_policy_where_tls_is_not_configured() {
    let mut wire = Harness::disk().options().await;
    wire.haggle(STARTTLS, b"", REP_ERR_POLICY).await;
    wire.go("disk").await;
}

//= Option types: The client MUST NOT send any additional data with the option, and the server SHOULD reject
//# a request that includes data with `NBD_REP_ERR_INVALID`.
#[tokio::test]
async fn starttls_and_structured_reply_with_data_get_err_invalid() {
    let mut wire = Harness::disk().options().await;
    wire.haggle(STARTTLS, b"x", REP_ERR_INVALID).await;
    wire.haggle(STRUCTURED_REPLY, b"x", REP_ERR_INVALID).await;
    wire.haggle(EXTENDED_HEADERS, b"x", REP_ERR_INVALID).await;
    wire.go("disk").await;
    wire.is_alive().await;
}

//= Option reply types: The server MUST send an `NBD_INFO_EXPORT` information type at some point before
//# sending an `NBD_REP_ACK`
#[tokio::test]
async fn info_must_send_info_export_before_the_ack() {
    let mut wire = Harness::disk().options().await;
    let replies = wire.replies_to(INFO, &info_request("disk", &[])).await;
    assert!(replies.iter().all(|reply| reply.reply == REP_INFO));
    assert_eq!(
        data_of(&replies),
        [
            &b"\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x0d\x6d"[..],
            b"\x00\x03\x00\x00\x00\x01\x00\x00\x10\x00\x04\x00\x00\x00",
        ]
    );
}

#[tokio::test]
async fn info_tells_name_and_description_when_asked() {
    let mut wire = Harness::disk().options().await;
    let replies = wire.replies_to(INFO, &info_request("disk", &[1, 2, 3])).await;
    let data = data_of(&replies);
    assert!(data.contains(&&b"\x00\x01disk"[..]));
    assert!(data.contains(&&b"\x00\x02a disk in memory"[..]));
}

#[tokio::test]
async fn the_canonical_name_is_told_where_the_client_used_another() {
    let mut wire = Harness::disk().options().await;
    let replies = wire.replies_to(INFO, &info_request("", &[])).await;
    assert!(data_of(&replies).contains(&&b"\x00\x01disk"[..]));
}

#[tokio::test]
async fn block_sizes_keep_the_rules_of_the_specification() {
    let mut wire = two_disks().options().await;
    let replies = wire.replies_to(INFO, &info_request("plain", &[3])).await;
    // Minimum and preferred as they are; the maximum is what the server takes.
    let sizes = b"\x00\x03\x00\x00\x02\x00\x00\x00\x02\x00\x04\x00\x00\x00";
    assert!(data_of(&replies).contains(&&sizes[..]));
}

//= Option types: The server MUST ignore any information requests it does not understand.
#[tokio::test]
async fn the_server_must_ignore_information_requests_it_does_not_understand() {
    let mut wire = Harness::disk().options().await;
    let replies = wire.replies_to(INFO, &info_request("disk", &[9, 0xffff, 9])).await;
    assert_eq!(replies.len(), 2);
}

#[tokio::test]
async fn go_tells_the_same_as_info_before_it() {
    let mut wire = Harness::disk().options().await;
    wire.haggle(STRUCTURED_REPLY, b"", REP_ACK).await;
    let info = wire.replies_to(INFO, &info_request("disk", &[1, 2, 3])).await;
    let go = wire.replies_to(GO, &info_request("disk", &[1, 2, 3])).await;
    assert_eq!(data_of(&info), data_of(&go));
}

//= Option types: The server MUST NOT send any zero padding bytes after the `NBD_REP_ACK` data
#[tokio::test]
async fn go_must_not_be_followed_by_zeroes() {
    let mut wire = Harness::disk().connect();
    wire.greet(1).await;
    wire.go("disk").await;
    wire.is_alive().await;
}

#[tokio::test]
async fn an_export_that_does_not_exist_gets_err_unknown_and_haggling_goes_on() {
    let mut wire = Harness::disk().options().await;
    wire.haggle(INFO, &info_request("nothing", &[]), REP_ERR_UNKNOWN).await;
    wire.haggle(GO, &info_request("nothing", &[]), REP_ERR_UNKNOWN).await;
    wire.go("disk").await;
    wire.is_alive().await;
}

//= Option types: the server MUST fail the request with `NBD_REP_ERR_INVALID`
#[tokio::test]
async fn malformed_options_get_err_invalid_and_the_stream_stays_in_step() {
    let mut wire = Harness::disk().options().await;
    for data in [
        &b""[..],
        b"\x00\x00\x00\x04dis",
        b"\x00\x00\x00\x04disk",
        b"\x00\x00\x00\x04disk\x00\x01",
        b"\x00\x00\x00\x04disk\x00\x00\x00\x03",
        b"\xff\xff\xff\xffdisk\x00\x00",
        b"\x00\x00\x00\x04di\x00k\x00\x00",
        b"\x00\x00\x00\x04di\xffk\x00\x00",
    ] {
        wire.haggle(GO, data, REP_ERR_INVALID).await;
        wire.haggle(INFO, data, REP_ERR_INVALID).await;
    }
    wire.go("disk").await;
    wire.is_alive().await;
}

//= Conventions: MUST be no longer than 4096 bytes
#[tokio::test]
async fn a_name_of_more_than_4096_bytes_gets_err_too_big() {
    let mut wire = Harness::disk().options().await;
    wire.haggle(GO, &info_request(&"a".repeat(4097), &[]), REP_ERR_TOO_BIG).await;
    wire.haggle(GO, &info_request(&"a".repeat(4096), &[]), REP_ERR_UNKNOWN).await;
}

//= Transmission flags: MUST leave this flag clear if neither structured replies nor extended headers have
//# been negotiated
#[tokio::test]
async fn send_df_must_be_clear_unless_structured_replies_were_negotiated() {
    let mut wire = Harness::disk().options().await;
    let send_df = |replies: &[OptionReply]| replies[0].data[11] & 0x80 != 0;
    assert!(!send_df(&wire.replies_to(INFO, &info_request("disk", &[])).await));
    wire.haggle(STRUCTURED_REPLY, b"", REP_ACK).await;
    assert!(send_df(&wire.go("disk").await));
}

//= Transmission flags: MUST set this transmission flag to 0 if `NBD_FLAG_SEND_WRITE_ZEROES` is not set
#[tokio::test]
async fn send_fast_zero_must_be_clear_without_send_write_zeroes() {
    let mut wire = two_disks().options().await;
    let replies = wire.replies_to(INFO, &info_request("plain", &[])).await;
    // HAS_FLAGS and READ_ONLY.
    assert_eq!(replies[0].data[10..], [0, 3]);
}

//= Option types: When successful, this option takes precedence over structured replies, and the server MUST
//# also support `NBD_OPT_GO`.
#[tokio::test]
async fn extended_headers_take_precedence_over_structured_replies() {
    let mut wire = Harness::disk().options().await;
    wire.haggle(STRUCTURED_REPLY, b"", REP_ACK).await;
    wire.haggle(EXTENDED_HEADERS, b"", REP_ACK).await;
    wire.haggle(STRUCTURED_REPLY, b"", REP_ERR_EXT_HEADER_REQD).await;
}

//= Option types: a client that has used `NBD_OPT_EXTENDED_HEADERS` to negotiate extended headers MUST NOT
//# use this option
#[tokio::test]
async fn export_name_after_extended_headers_is_a_violation() {
    let mut wire = Harness::disk().options().await;
    wire.haggle(EXTENDED_HEADERS, b"", REP_ACK).await;
    wire.send(option(EXPORT_NAME, b"disk")).await;
    wire.expect_closed().await;
}

/// "The client MUST NOT send any option until it has received a final reply to any option it has sent." One that does is
/// answered in order.
#[tokio::test]
async fn options_that_come_all_at_once_are_answered_one_after_the_other() {
    let mut wire = Harness::disk().options().await;
    let options = [
        option(77, b"data"),
        option(STRUCTURED_REPLY, b""),
        option(LIST, b""),
        option(INFO, &info_request("nothing", &[])),
        option(ABORT, b""),
        option(LIST, b""),
    ];
    wire.send(options.concat()).await;
    wire.expect_reply(77, REP_ERR_UNSUP).await;
    wire.expect_reply(STRUCTURED_REPLY, REP_ACK).await;
    wire.expect_reply(LIST, REP_SERVER).await;
    wire.expect_reply(LIST, REP_ACK).await;
    wire.expect_reply(INFO, REP_ERR_UNKNOWN).await;
    wire.expect_reply(ABORT, REP_ACK).await;
    wire.expect_closed().await;
}

/// A request may follow GO in the same packet: what was read of it with the option is not lost.
#[tokio::test]
async fn a_request_that_comes_with_go_is_answered() {
    let mut wire = Harness::disk().options().await;
    wire.send([option(GO, &info_request("disk", &[])), request(0, READ, 9, 0, 2)].concat()).await;
    while wire.option_reply().await.reply != REP_ACK {}
    wire.expect([&simple_reply(0, 9)[..], b"\0\0"].concat()).await;
}

#[tokio::test]
async fn an_information_request_that_is_repeated_is_answered_once() {
    let mut wire = Harness::disk().options().await;
    let replies = wire.replies_to(INFO, &info_request("disk", &[1, 1, 3, 3, 1, 0, 0])).await;
    let of = |kind: u16| data_of(&replies).iter().filter(|data| data[..2] == kind.to_be_bytes()).count();
    assert_eq!([of(0), of(1), of(3)], [1, 1, 1]);
}

#[tokio::test]
async fn structured_replies_may_be_asked_for_twice() {
    let mut wire = Harness::disk().options().await;
    wire.haggle(STRUCTURED_REPLY, b"", REP_ACK).await;
    wire.haggle(STRUCTURED_REPLY, b"", REP_ACK).await;
    wire.haggle(EXTENDED_HEADERS, b"", REP_ACK).await;
    wire.haggle(EXTENDED_HEADERS, b"", REP_ACK).await;
    wire.go("disk").await;
    wire.send(extended_request(0, FLUSH, 1, 0, 0)).await;
    wire.expect(extended_chunk(1, 0, 1, 0, b"")).await;
}

//= Transmission flags: `NBD_FLAG_HAS_FLAGS`: MUST always be 1.
/// "The server MUST NOT set flags for features it does not support"; that it has block status is told by the contexts.
#[tokio::test]
async fn has_flags_must_always_be_set() {
    let mut wire = two_disks().options().await;
    for name in ["disk", "plain"] {
        let replies = wire.replies_to(INFO, &info_request(name, &[])).await;
        assert_eq!(replies[0].data[11] & 1, 1, "{name}");
    }
}
