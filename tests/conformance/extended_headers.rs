//! The extension for extended headers: requests and replies of 32 bytes, lengths of 64 bits.

use std::sync::Arc;

use crate::support::memory_export::MemoryExport;
use crate::support::wire::*;

const DONE: u16 = 1;

fn large_disk() -> Harness {
    Harness::of(Arc::new(MemoryExport::new("disk", 1 << 44)))
}

//= Extended reply chunk message: all server replies MUST use an extended reply; the server MUST NOT use
//# simple replies even when there is no payload
//= Extended reply chunk message: The extended reply has an additional field *offset* which MUST match the
//# *offset* of the client's request
#[tokio::test]
async fn all_replies_must_be_extended_and_repeat_the_offset_of_the_request() {
    let mut wire = large_disk().extended().await;
    wire.send([&extended_request(PAYLOAD_LEN, WRITE, 1, 8192, 4)[..], b"data"].concat()).await;
    wire.expect(extended_chunk(DONE, 0, 1, 8192, b"")).await;
    wire.send(extended_request(0, FLUSH, 2, 0, 0)).await;
    wire.expect(extended_chunk(DONE, 0, 2, 0, b"")).await;
    wire.send(extended_request(0, READ, 3, 4096, 8192)).await;
    wire.expect(extended_chunk(0, 2, 3, 4096, b"\0\0\0\0\0\0\x10\0\0\0\x10\0")).await;
    let data = [b"\0\0\0\0\0\0\x20\0data", &[0; 4092][..]].concat();
    wire.expect(extended_chunk(DONE, 1, 3, 4096, &data)).await;
}

//= Option types: with proper use of `NBD_CMD_FLAG_PAYLOAD_LEN` for all commands sending a payload
#[tokio::test]
async fn lengths_without_a_payload_may_be_of_64_bits() {
    let mut wire = large_disk().extended().await;
    for command in [TRIM, WRITE_ZEROES, CACHE] {
        wire.send(extended_request(0, command, 1, 4096, 1 << 43)).await;
        wire.expect(extended_chunk(DONE, 0, 1, 4096, b"")).await;
    }
    wire.fails(extended_request(0, TRIM, 2, 1 << 43, u64::MAX), EINVAL).await;
    wire.fails(extended_request(0, WRITE_ZEROES, 2, 1 << 43, u64::MAX), ENOSPC).await;
    wire.fails(extended_request(0, READ, 3, 0, 1 << 40), EINVAL).await;
}

#[tokio::test]
async fn block_status_is_answered_with_64_bits() {
    let mut wire = large_disk().extended().await;
    wire.send(extended_request(0, BLOCK_STATUS, 1, 0, 1 << 44)).await;
    let payload = [&b"\0\0\0\x01\0\0\0\x01"[..], &(1_u64 << 44).to_be_bytes(), &3_u64.to_be_bytes()];
    wire.expect(extended_chunk(DONE, 6, 1, 0, &payload.concat())).await;
}

#[tokio::test]
async fn a_write_is_followed_by_its_payload_even_where_qemu_does_not_say_so() {
    let mut wire = large_disk().extended().await;
    wire.send([&extended_request(0, WRITE, 1, 0, 4)[..], b"data"].concat()).await;
    wire.expect(extended_chunk(DONE, 0, 1, 0, b"")).await;
}

//= Command flags: for other commands, the flag will trigger an `NBD_EINVAL` error unless the command
//# documents an optional payload form for the command and the server has implemented that form
#[tokio::test]
async fn an_unexpected_payload_is_consumed_and_einval() {
    let mut wire = large_disk().extended().await;
    for command in [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, 99] {
        let request = extended_request(PAYLOAD_LEN, command, 1, 0, 1000);
        wire.fails([&request[..], &[0x21; 1000]].concat(), EINVAL).await;
    }
    wire.send(extended_request(0, FLUSH, 2, 0, 0)).await;
    wire.expect(extended_chunk(DONE, 0, 2, 0, b"")).await;
}

#[tokio::test]
async fn a_payload_longer_than_the_maximum_disconnects() {
    let mut wire = large_disk().extended().await;
    wire.send(extended_request(PAYLOAD_LEN, WRITE, 1, 0, (64 << 20) + 1)).await;
    wire.expect_closed().await;
}

//= Transmission flags: Servers MUST NOT advertise this bit unless the client successfully negotiates
//# extended headers via `NBD_OPT_EXTENDED_HEADERS`
#[tokio::test]
async fn block_status_payload_is_advertised_only_with_contexts_and_extended_headers() {
    let harness = large_disk();
    let advertised = |replies: &[OptionReply]| replies[0].data[10] & 0x10 != 0;
    let mut wire = harness.options().await;
    wire.haggle(EXTENDED_HEADERS, b"", REP_ACK).await;
    assert!(!advertised(&wire.replies_to(INFO, &info_request("disk", &[])).await));
    wire.replies_to(SET_META_CONTEXT, &meta_context("disk", &["base:allocation"])).await;
    assert!(advertised(&wire.go("disk").await));
}

#[tokio::test]
async fn block_status_may_name_the_contexts_it_wants() {
    let mut wire = large_disk().extended().await;
    let payload = [&8192_u64.to_be_bytes()[..], &1_u32.to_be_bytes()].concat();
    let request = extended_request(PAYLOAD_LEN | REQ_ONE, BLOCK_STATUS, 1, 4096, 12);
    wire.send([request, payload].concat()).await;
    let expected = [&b"\0\0\0\x01\0\0\0\x01"[..], &8192_u64.to_be_bytes(), &3_u64.to_be_bytes()];
    wire.expect(extended_chunk(DONE, 6, 1, 4096, &expected.concat())).await;
}

//= Request types: the server MUST gracefully consume the client's payload before failing with `NBD_EINVAL`
#[tokio::test]
async fn unknown_repeated_or_malformed_contexts_are_einval_and_the_payload_is_consumed() {
    let mut wire = large_disk().extended().await;
    let unknown = [&512_u64.to_be_bytes()[..], &9_u32.to_be_bytes()].concat();
    let repeated = [&512_u64.to_be_bytes()[..], &1_u32.to_be_bytes(), &1_u32.to_be_bytes()].concat();
    for payload in [&unknown[..], &repeated, &repeated[..8], b"short", &[1; 10_000]] {
        let length = u64::try_from(payload.len()).unwrap();
        let request = extended_request(PAYLOAD_LEN, BLOCK_STATUS, 1, 0, length);
        wire.fails([&request[..], payload].concat(), EINVAL).await;
    }
    wire.send(extended_request(0, FLUSH, 2, 0, 0)).await;
    wire.expect(extended_chunk(DONE, 0, 2, 0, b"")).await;
}

//= Option types: the client MUST use the 32-byte extended request header
#[tokio::test]
async fn a_compact_request_is_a_violation() {
    let mut wire = large_disk().extended().await;
    wire.send([&request(0, FLUSH, 1, 0, 0)[..], &[0; 4]].concat()).await;
    wire.expect_closed().await;
}

#[tokio::test]
async fn an_error_has_the_offset_of_its_request_and_an_error_chunk() {
    let mut wire = large_disk().extended().await;
    wire.send(extended_request(0x8000, READ, 3, 4096, 512)).await;
    wire.expect(b"\x6e\x8a\x27\x8c\x00\x01\x80\x01\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\x10\0").await;
    let length = u64::from_be_bytes(wire.read(8).await.try_into().unwrap());
    let payload = wire.read(usize::try_from(length).unwrap()).await;
    assert_eq!(payload[..4], EINVAL.to_be_bytes());
}
