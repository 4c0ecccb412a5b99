//! "Structured reply chunk message" and "Structured reply types".

use cairn::protocol::Error;

use crate::support::memory_export::MemoryExport;
use crate::support::scripted_export::{Script, ScriptedExport};
use crate::support::wire::*;

const DONE: u16 = 1;
const NONE: u16 = 0;
const OFFSET_DATA: u16 = 1;
const OFFSET_HOLE: u16 = 2;

/// A disk of 1 MiB with 4 KiB of `d` at 4096, and a connection with structured replies.
async fn disk_with_data() -> (Harness, Wire) {
    let harness = Harness::disk();
    let mut wire = harness.structured().await;
    wire.send([&request(0, WRITE, 1, 4096, 4096)[..], &[b'd'; 4096]].concat()).await;
    wire.expect(simple_reply(0, 1)).await;
    (harness, wire)
}

fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], bytes].concat()
}

fn hole(offset: u64, length: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat()
}

//= Request types: When no error is detected, the server MUST send enough data chunks to cover the entire
//# region described by the offset and length of the client's request.
//= Structured and extended header reply flags: MUST set this bit if this is the final reply
#[tokio::test]
async fn holes_are_sent_as_holes_and_the_last_chunk_is_done() {
    let (_harness, mut wire) = disk_with_data().await;
    wire.send(request(0, READ, 2, 0, 12_288)).await;
    wire.expect(chunk(0, OFFSET_HOLE, 2, &hole(0, 4096))).await;
    wire.expect(chunk(0, OFFSET_DATA, 2, &data(4096, &[b'd'; 4096]))).await;
    wire.expect(chunk(DONE, OFFSET_HOLE, 2, &hole(8192, 4096))).await;
}

#[tokio::test]
async fn adjacent_parts_of_a_kind_share_a_chunk() {
    let (_harness, mut wire) = disk_with_data().await;
    wire.send([&request(0, WRITE, 2, 8192, 4096)[..], &[b'e'; 4096]].concat()).await;
    wire.expect(simple_reply(0, 2)).await;
    wire.send(request(0, READ, 3, 8190, 4)).await;
    wire.expect(chunk(DONE, OFFSET_DATA, 3, &data(8190, b"ddee"))).await;
    wire.send(request(0, READ, 4, 12_288, 900_000)).await;
    wire.expect(chunk(DONE, OFFSET_HOLE, 4, &hole(12_288, 900_000))).await;
}

//= Request types: If this flag is set, the server MUST send at most one content chunk
//= Request types: If the area being read contains both data and a hole, the server MUST use
//# `NBD_REPLY_TYPE_OFFSET_DATA` with the zeroes explicitly present.
#[tokio::test]
async fn with_df_the_server_must_send_one_content_chunk_with_zeroes_explicitly_present() {
    let (_harness, mut wire) = disk_with_data().await;
    wire.send(request(DF, READ, 2, 4000, 4288)).await;
    let bytes = [vec![0; 96], vec![b'd'; 4096], vec![0; 96]].concat();
    wire.expect(chunk(DONE, OFFSET_DATA, 2, &data(4000, &bytes))).await;
}

#[tokio::test]
async fn with_df_a_hole_alone_may_be_a_hole() {
    let (_harness, mut wire) = disk_with_data().await;
    wire.send(request(DF, READ, 2, 65_536, 65_536)).await;
    wire.expect(chunk(DONE, OFFSET_HOLE, 2, &hole(65_536, 65_536))).await;
}

//= Request types: each chunk MUST describe at least one byte
#[tokio::test]
async fn a_read_of_no_bytes_must_not_have_a_content_chunk() {
    let (_harness, mut wire) = disk_with_data().await;
    wire.send(request(0, READ, 2, 4096, 0)).await;
    // A simple reply would do for any command but READ.
    wire.expect(chunk(DONE, NONE, 2, b"")).await;
}

//= Structured reply chunk message: MUST NOT use a simple reply for `NBD_CMD_READ` (even for the case of an
//# early `NBD_EINVAL` due to bad flags)
#[tokio::test]
async fn errors_of_a_read_must_be_error_chunks_even_early_ones() {
    let (_harness, mut wire) = disk_with_data().await;
    wire.send(request(0x8000, READ, 2, 0, 512)).await;
    wire.expect(b"\x66\x8e\x33\xef\x00\x01\x80\x01\x00\x00\x00\x00\x00\x00\x00\x02").await;
    let length = wire.read_u32().await;
    let payload = wire.read(usize::try_from(length).unwrap()).await;
    assert_eq!(payload[..4], EINVAL.to_be_bytes());
    assert_eq!(usize::from(u16::from_be_bytes([payload[4], payload[5]])), payload.len() - 6);
}

#[tokio::test]
async fn the_message_of_an_error_is_the_exports() {
    let export = ScriptedExport::new(MemoryExport::new("disk", 1 << 20), Script::Fail(Error::Io));
    let mut wire = Harness::of(export).structured().await;
    wire.send(request(0, READ, 2, 0, 512)).await;
    wire.expect(chunk(DONE, 0x8001, 2, b"\x00\x00\x00\x05\x00\x0bas scripted")).await;
}

#[tokio::test]
async fn an_error_whose_place_is_known_has_its_offset() {
    let export = ScriptedExport::new(MemoryExport::new("disk", 1 << 20), Script::FailAt(Error::Io, 300));
    let harness = Harness::of(export);
    let payload = b"\x00\x00\x00\x05\x00\x0bas scripted\x00\x00\x00\x00\x00\x00\x01\x2c";
    let mut wire = harness.structured().await;
    wire.send(request(0, READ, 2, 0, 512)).await;
    wire.expect(chunk(DONE, 0x8002, 2, payload)).await;
    let mut wire = harness.extended().await;
    wire.send(extended_request(0, READ, 2, 0, 512)).await;
    wire.expect(extended_chunk(DONE, 0x8002, 2, 0, payload)).await;
    // A simple reply has no place for it.
    let mut wire = harness.simple().await;
    wire.fails(request(0, READ, 2, 0, 512), EIO).await;
}

//= Request types: the server MUST support unfragmented reads in which the client's request length does not
//# exceed 65,536 bytes
#[tokio::test]
async fn an_unfragmented_read_of_65536_bytes_must_be_supported() {
    let (_harness, mut wire) = disk_with_data().await;
    wire.send(request(DF, READ, 2, 0, 65_536)).await;
    let bytes = [vec![0; 4096], vec![b'd'; 4096], vec![0; 57_344]].concat();
    wire.expect(chunk(DONE, OFFSET_DATA, 2, &data(0, &bytes))).await;
}

//= Structured reply types: This reply represents that an error occurred at a given offset, which MUST lie
//# within the original offset and length of the request
/// "an error occurred at a given offset, which MUST lie within the original offset and length of the request".
#[tokio::test]
async fn the_offset_of_an_error_must_lie_within_the_request() {
    for at in [0, 511, 1024, u64::MAX] {
        let export = ScriptedExport::new(MemoryExport::new("disk", 1 << 20), Script::FailAt(Error::Io, at));
        let mut wire = Harness::of(export).structured().await;
        wire.send(request(0, READ, 2, 512, 512)).await;
        wire.expect(chunk(DONE, 0x8001, 2, b"\x00\x00\x00\x05\x00\x0bas scripted")).await;
    }
}
