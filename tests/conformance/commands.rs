//! "Request types" and "Error values", with simple replies.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cairn::protocol::{Error, TransmissionFlags};
use cairn::server::{Export as _, ExportDescription};

use crate::support::memory_export::MemoryExport;
use crate::support::scripted_export::{Script, ScriptedExport};
use crate::support::wire::*;

const MIB: u64 = 1 << 20;

/// A disk of 1 MiB with only these flags and this minimum block size.
fn disk_with(flags: TransmissionFlags, minimum_block_bytes: u32) -> Harness {
    let description = MemoryExport::new("disk", MIB).description();
    Harness::of(Arc::new(MemoryExport::described(ExportDescription {
        flags,
        minimum_block_bytes,
        ..description
    })))
}

async fn write(wire: &mut Wire, cookie: u64, offset: u64, data: &[u8]) {
    let length = u32::try_from(data.len()).unwrap();
    wire.send([&request(0, WRITE, cookie, offset, length)[..], data].concat()).await;
    wire.expect(simple_reply(0, cookie)).await;
}

#[tokio::test]
async fn what_is_written_is_read() {
    let mut wire = Harness::disk().simple().await;
    write(&mut wire, 1, 4095, b"across").await;
    wire.send(request(0, READ, 2, 4093, 10)).await;
    wire.expect([&simple_reply(0, 2)[..], b"\0\0across\0\0"].concat()).await;
}

#[tokio::test]
async fn a_read_of_a_hole_is_zeros() {
    let mut wire = Harness::disk().simple().await;
    wire.send(request(0, READ, 2, 0, 200_000)).await;
    wire.expect([&simple_reply(0, 2)[..], &vec![0; 200_000]].concat()).await;
}

#[tokio::test]
async fn large_payloads_arrive_whole() {
    let harness = Harness::of(Arc::new(MemoryExport::new("disk", 128 * MIB)));
    let mut wire = harness.simple().await;
    let data: Vec<u8> = (0..33 * MIB).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let length = u32::try_from(data.len()).unwrap();
    wire.send(request(0, WRITE, 1, 1000, length)).await;
    wire.send(&data).await;
    wire.expect(simple_reply(0, 1)).await;
    wire.send(request(0, READ, 2, 1000, length)).await;
    wire.expect(simple_reply(0, 2)).await;
    assert!(wire.read(data.len()).await == data);
}

//= Transmission: the server MUST use the same value for cookie as was sent by the client in the
//# corresponding request, treating the cookie as an opaque field
#[tokio::test]
async fn the_cookie_is_opaque_and_given_back() {
    let mut wire = Harness::disk().simple().await;
    for cookie in [0, u64::MAX, u64::from_be_bytes(*b"\x67\x44\x66\x98abcd")] {
        wire.send(request(0, FLUSH, cookie, 0, 0)).await;
        wire.expect(simple_reply(0, cookie)).await;
    }
}

//= Request types: The client MUST follow the request header with *length* number of bytes to be written to
//# the device.
#[tokio::test]
async fn a_write_past_the_end_is_enospc_and_its_payload_is_consumed() {
    let mut wire = Harness::disk().simple().await;
    for offset in [MIB - 3, MIB, u64::MAX, u64::MAX - 3] {
        wire.fails([&request(0, WRITE, 1, offset, 4)[..], b"data"].concat(), ENOSPC).await;
    }
    wire.is_alive().await;
}

#[tokio::test]
async fn write_zeroes_past_the_end_is_enospc() {
    let mut wire = Harness::disk().simple().await;
    wire.fails(request(0, WRITE_ZEROES, 1, MIB - 3, 4), ENOSPC).await;
    wire.fails(request(0, WRITE_ZEROES, 1, 0, u32::MAX), ENOSPC).await;
    wire.fails(request(0, WRITE_ZEROES, 1, u64::MAX, 1), ENOSPC).await;
}

#[tokio::test]
async fn read_trim_and_cache_past_the_end_are_einval() {
    let mut wire = Harness::disk().simple().await;
    for command in [READ, TRIM, CACHE] {
        wire.fails(request(0, command, 1, MIB - 3, 4), EINVAL).await;
        wire.fails(request(0, command, 2, MIB + 1, 0), EINVAL).await;
        wire.fails(request(0, command, 3, u64::MAX, 1), EINVAL).await;
        wire.fails(request(0, command, 4, u64::MAX, u32::MAX), EINVAL).await;
    }
    wire.is_alive().await;
}

//= Transmission flags: The client MUST NOT use a feature documented as 'exposed' by a flag unless that flag
//# was set.
#[tokio::test]
async fn an_unknown_command_is_einval() {
    let mut wire = Harness::disk().simple().await;
    for command in [8, 9, 0xffff] {
        wire.fails(request(0, command, 1, 0, 512), EINVAL).await;
    }
    wire.is_alive().await;
}

//= Command flags: Clients MUST NOT set a command flag bit that is not documented for the particular command
#[tokio::test]
async fn an_unknown_flag_or_one_not_documented_for_the_command_is_einval() {
    let mut wire = Harness::disk().simple().await;
    for flags in [0x8000, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN] {
        wire.fails(request(flags, READ, 1, 0, 512), EINVAL).await;
        wire.fails(request(flags, TRIM, 1, 0, 512), EINVAL).await;
        wire.fails(request(flags, FLUSH, 1, 0, 0), EINVAL).await;
        wire.fails(request(flags, CACHE, 1, 0, 512), EINVAL).await;
        wire.fails([&request(flags, WRITE, 1, 0, 4)[..], b"data"].concat(), EINVAL).await;
    }
    for flags in [0x8000, DF, REQ_ONE, PAYLOAD_LEN] {
        wire.fails(request(flags, WRITE_ZEROES, 1, 0, 512), EINVAL).await;
    }
    wire.is_alive().await;
}

//= Command flags: the server MUST accept all commands with this bit set (even by ignoring the bit)
#[tokio::test]
async fn the_server_must_accept_all_commands_with_fua_set() {
    let export = ScriptedExport::new(MemoryExport::new("disk", MIB), Script::Pass);
    let mut wire = Harness::of(Arc::clone(&export) as _).simple().await;
    wire.send(request(FUA, READ, 1, 0, 2)).await;
    wire.expect([&simple_reply(0, 1)[..], b"\0\0"].concat()).await;
    for (command, length) in [(FLUSH, 0), (CACHE, 512), (TRIM, 512), (WRITE_ZEROES, 512)] {
        wire.send(request(FUA, command, 2, 0, length)).await;
        wire.expect(simple_reply(0, 2)).await;
    }
    wire.send([&request(FUA, WRITE, 3, 0, 4)[..], b"data"].concat()).await;
    wire.expect(simple_reply(0, 3)).await;
    // FLUSH, TRIM, WRITE_ZEROES and WRITE.
    assert_eq!(export.durable.load(Ordering::SeqCst), 4);
}

//= Command flags: Clients MUST NOT set a command flag bit that is not documented for the particular command
#[tokio::test]
async fn fua_without_send_fua_is_einval() {
    let mut wire = disk_with(TransmissionFlags::SEND_FLUSH, 1).simple().await;
    wire.fails([&request(FUA, WRITE, 1, 0, 4)[..], b"data"].concat(), EINVAL).await;
    wire.is_alive().await;
}

//= Transmission flags: The client MUST NOT use a feature documented as 'exposed' by a flag unless that flag
//# was set.
#[tokio::test]
async fn commands_that_were_not_advertised_are_einval() {
    let mut wire = disk_with(TransmissionFlags::empty(), 1).simple().await;
    for command in [FLUSH, TRIM, CACHE, WRITE_ZEROES] {
        wire.fails(request(0, command, 1, 0, 0), EINVAL).await;
    }
    let mut slow = disk_with(TransmissionFlags::SEND_WRITE_ZEROES, 1).simple().await;
    slow.fails(request(FAST_ZERO, WRITE_ZEROES, 1, 0, 512), EINVAL).await;
}

//= Request types: The client MUST follow the request header with *length* number of bytes to be written to
//# the device.
//= Transmission flags: If this flag is set, the server MUST error subsequent write operations to the
//# export.
#[tokio::test]
async fn writing_to_a_read_only_export_is_eperm_and_the_payload_is_consumed() {
    let flags = TransmissionFlags::READ_ONLY
        | TransmissionFlags::SEND_TRIM
        | TransmissionFlags::SEND_WRITE_ZEROES
        | TransmissionFlags::SEND_FLUSH;
    let mut wire = disk_with(flags, 1).simple().await;
    wire.fails([&request(0, WRITE, 1, 0, 4)[..], b"data"].concat(), EPERM).await;
    wire.fails(request(0, TRIM, 2, 0, 512), EPERM).await;
    wire.fails(request(0, WRITE_ZEROES, 3, 0, 512), EPERM).await;
    wire.is_alive().await;
}

#[tokio::test]
async fn a_request_that_is_not_aligned_to_the_minimum_block_size_is_einval() {
    let flags = TransmissionFlags::SEND_TRIM | TransmissionFlags::SEND_FLUSH;
    let mut wire = disk_with(flags, 512).simple().await;
    wire.fails(request(0, READ, 1, 1, 512), EINVAL).await;
    wire.fails(request(0, READ, 2, 512, 511), EINVAL).await;
    wire.fails(request(0, TRIM, 3, 256, 512), EINVAL).await;
    wire.fails([&request(0, WRITE, 4, 0, 4)[..], b"data"].concat(), EINVAL).await;
    wire.is_alive().await;
}

#[tokio::test]
async fn a_request_longer_than_the_maximum_block_size_is_einval_and_no_disconnect() {
    let harness = Harness::of(Arc::new(MemoryExport::new("disk", 1 << 40)));
    let mut wire = harness.simple().await;
    let too_long = (64 << 20) + 1;
    wire.fails(request(0, READ, 1, 0, too_long), EINVAL).await;
    wire.send(request(0, WRITE, 2, 0, too_long)).await;
    wire.send(vec![7; usize::try_from(too_long).unwrap()]).await;
    assert_eq!(wire.failure().await, Failure { error: EINVAL, cookie: 2 });
    // Commands without a payload may be of any length.
    for command in [TRIM, WRITE_ZEROES, CACHE] {
        wire.send(request(0, command, 3, 1, u32::MAX)).await;
        wire.expect(simple_reply(0, 3)).await;
    }
}

#[tokio::test]
async fn a_length_of_0_does_nothing_and_does_not_disconnect() {
    let mut wire = Harness::disk().simple().await;
    for command in [READ, WRITE, TRIM, WRITE_ZEROES, CACHE] {
        wire.send(request(0, command, 1, MIB, 0)).await;
        wire.expect(simple_reply(0, 1)).await;
    }
}

#[tokio::test]
async fn length_and_offset_of_a_flush_must_be_zero() {
    let mut wire = Harness::disk().simple().await;
    wire.fails(request(0, FLUSH, 1, 0, 1), EINVAL).await;
    wire.fails(request(0, FLUSH, 1, 1, 0), EINVAL).await;
    wire.is_alive().await;
}

//= Request types: it MUST ensure that the data reads back as zero
//= Command flags: The server MUST support the use of this flag if it advertises
//# `NBD_FLAG_SEND_WRITE_ZEROES`.
#[tokio::test]
async fn write_zeroes_must_read_back_as_zero_and_no_hole_must_be_supported() {
    let mut wire = Harness::disk().simple().await;
    for (cookie, flags) in [(1, 0), (2, NO_HOLE), (3, FAST_ZERO), (4, NO_HOLE | FAST_ZERO | FUA)] {
        write(&mut wire, cookie, 100, b"data").await;
        wire.send(request(flags, WRITE_ZEROES, cookie, 101, 2)).await;
        wire.expect(simple_reply(0, cookie)).await;
        wire.send(request(0, READ, cookie, 100, 4)).await;
        wire.expect([&simple_reply(0, cookie)[..], b"d\0\0a"].concat()).await;
    }
}

#[tokio::test]
async fn a_command_that_the_export_fails_leaves_the_connection_up() {
    let export = ScriptedExport::new(MemoryExport::new("disk", MIB), Script::Fail(Error::Io));
    let mut wire = Harness::of(export).simple().await;
    wire.fails(request(0, READ, 1, 0, 512), EIO).await;
    wire.fails([&request(0, WRITE, 2, 0, 4)[..], b"data"].concat(), EIO).await;
    wire.fails(request(0, FLUSH, 3, 0, 0), EIO).await;
    wire.fails(request(0, TRIM, 4, 0, 512), EIO).await;
    wire.fails(request(0, 0xff, 5, 0, 0), EINVAL).await;
}

/// "The allowed values for the error field have been restricted to set of possibilities."
#[tokio::test]
async fn a_value_that_is_not_defined_goes_out_as_eio() {
    for value in [0, 2, 121, u32::MAX] {
        let script = Script::Fail(Error::Unknown(value));
        let export = ScriptedExport::new(MemoryExport::new("disk", MIB), script);
        let mut wire = Harness::of(export).simple().await;
        wire.fails(request(0, READ, 1, 0, 512), EIO).await;
        wire.fails([&request(0, WRITE, 2, 0, 4)[..], b"data"].concat(), EIO).await;
        wire.fails(request(FAST_ZERO, WRITE_ZEROES, 3, 0, 512), EIO).await;
    }
}

//= Request types: then the server MUST NOT fail with `NBD_ENOTSUP`
#[tokio::test]
async fn enotsup_is_kept_for_fast_zero() {
    let export = ScriptedExport::new(MemoryExport::new("disk", MIB), Script::Fail(Error::NotSup));
    let mut wire = Harness::of(export).simple().await;
    wire.fails(request(FAST_ZERO, WRITE_ZEROES, 1, 0, 512), ENOTSUP).await;
    wire.fails(request(0, WRITE_ZEROES, 2, 0, 512), EINVAL).await;
    wire.fails(request(0, READ, 3, 0, 512), EINVAL).await;
}

#[tokio::test]
async fn an_export_that_panics_or_reads_too_little_is_eio() {
    for script in [Script::Panic, Script::BreakContract] {
        let export = ScriptedExport::new(MemoryExport::new("disk", MIB), script);
        let mut wire = Harness::of(export).simple().await;
        wire.fails(request(0, READ, 1, 0, 512), EIO).await;
        wire.fails(request(0, READ, 2, 512, 512), EIO).await;
    }
}

//= Request types: A client MUST NOT send anything to the server after sending an `NBD_CMD_DISC` command.
#[tokio::test]
async fn there_is_no_reply_to_disc() {
    let mut wire = Harness::disk().simple().await;
    wire.send(request(0, DISC, 1, 0, 0)).await;
    wire.expect_closed().await;
}

#[tokio::test]
async fn bytes_that_are_no_request_end_the_connection() {
    let mut wire = Harness::disk().simple().await;
    wire.send(b"\x12\x56\x09\x53 the magic of before Linux 2.1.116").await;
    wire.expect_closed().await;
}

//= Request types: A client MUST NOT send anything to the server after sending an `NBD_CMD_DISC` command.
#[tokio::test]
async fn what_follows_disc_is_not_read() {
    let export = ScriptedExport::new(MemoryExport::new("disk", MIB), Script::Pass);
    let mut wire = Harness::of(Arc::clone(&export) as _).simple().await;
    let write = [&request(0, WRITE, 2, 0, 4)[..], b"data"].concat();
    wire.send([request(0, DISC, 1, 0, 0), write, b"and no request at all".to_vec()].concat()).await;
    wire.expect_closed().await;
    assert_eq!(export.started(), 0);
}

//= Transmission: the server MUST use the same value for cookie as was sent by the client in the
//# corresponding request, treating the cookie as an opaque field
/// "Clients SHOULD use a cookie that is distinct from all other currently pending transactions, but MAY reuse cookies that
/// are no longer in flight": a server need not care.
#[tokio::test]
async fn cookies_may_be_used_again_even_in_flight() {
    let mut wire = Harness::disk().simple().await;
    for _ in 0..3 {
        write(&mut wire, 7, 0, b"data").await;
    }
    wire.send([request(0, READ, 7, 0, 4), request(0, READ, 7, 0, 4)].concat()).await;
    for _ in 0..2 {
        wire.expect([&simple_reply(0, 7)[..], b"data"].concat()).await;
    }
}

//= Ordering of messages and writes: MUST be written to non-volatile storage prior to replying to that
//# `NBD_CMD_FLUSH`
//= Transmission flags: the effects of `NBD_CMD_FLUSH` and `NBD_CMD_FLAG_FUA` MUST be visible across all
//# connections
/// `NBD_FLAG_CAN_MULTI_CONN`: "the effects of NBD_CMD_FLUSH and NBD_CMD_FLAG_FUA MUST be visible across all connections".
#[tokio::test]
async fn what_was_answered_on_one_connection_is_flushed_and_seen_on_another() {
    let export = ScriptedExport::new(MemoryExport::new("disk", MIB), Script::Pass);
    let harness = Harness::of(Arc::clone(&export) as _);
    let (mut one, mut other) = (harness.simple().await, harness.simple().await);
    write(&mut one, 1, 512, b"data").await;
    other.is_alive().await;
    assert_eq!(export.durable.load(Ordering::SeqCst), 1);
    other.send(request(0, READ, 2, 512, 4)).await;
    other.expect([&simple_reply(0, 2)[..], b"data"].concat()).await;
}

#[tokio::test]
async fn cache_is_answered_without_data() {
    let mut wire = Harness::disk().simple().await;
    wire.send(request(0, CACHE, 1, 512, 1024)).await;
    wire.expect(simple_reply(0, 1)).await;
    wire.is_alive().await;
}

#[tokio::test]
async fn resize_was_never_part_of_the_specification_and_is_einval() {
    let mut wire = Harness::disk().simple().await;
    wire.fails(request(0, 8, 1, 1 << 21, 0), EINVAL).await;
    wire.is_alive().await;
}
