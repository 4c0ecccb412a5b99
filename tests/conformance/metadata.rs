//! "Metadata querying": LIST_META_CONTEXT, SET_META_CONTEXT and BLOCK_STATUS.

use crate::support::memory_export::MemoryExport;
use crate::support::scripted_export::{Script, ScriptedExport};
use crate::support::wire::*;

async fn structured_options(harness: &Harness) -> Wire {
    let mut wire = harness.options().await;
    wire.haggle(STRUCTURED_REPLY, b"", REP_ACK).await;
    wire
}

/// Payload of a BLOCK_STATUS chunk of context 1.
fn status(descriptors: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = 1_u32.to_be_bytes().to_vec();
    for (length, flags) in descriptors {
        payload.extend(length.to_be_bytes());
        payload.extend(flags.to_be_bytes());
    }
    payload
}

//= Option types: This option MUST NOT be requested unless structured replies or extended headers have been
//# negotiated first.
#[tokio::test]
async fn contexts_need_structured_replies() {
    let mut wire = Harness::disk().options().await;
    wire.haggle(SET_META_CONTEXT, &meta_context("disk", &["base:allocation"]), REP_ERR_INVALID).await;
    wire.haggle(LIST_META_CONTEXT, &meta_context("disk", &[]), REP_ERR_INVALID).await;
    wire.go("disk").await;
}

//= Option types: If zero queries are sent, then the server MUST return all the metadata contexts that are
//# available to the client to select on the given export.
//= The `base:` metadata namespace: MUST support this as a wildcard during `NBD_OPT_LIST_META_CONTEXT`
#[tokio::test]
async fn listing_without_queries_must_return_all_contexts_and_with_base_those_of_base() {
    let mut wire = structured_options(&Harness::disk()).await;
    for queries in [&[][..], &["base:"], &["base:allocation"], &["x-other:a", "base:"]] {
        let replies = wire.replies_to(LIST_META_CONTEXT, &meta_context("disk", queries)).await;
        assert_eq!(replies.len(), 1, "{queries:?}");
        assert_eq!(replies[0].reply, REP_META_CONTEXT);
        assert_eq!(replies[0].data, b"\x00\x00\x00\x00base:allocation");
    }
}

//= Option types: the server MUST ignore query strings belonging to an unknown namespace
//= The `base:` metadata namespace: If a `[leaf-name]` requested by the client is not recognized, the server
//# MUST ignore it rather than report an error.
#[tokio::test]
async fn the_server_must_ignore_queries_of_unknown_namespaces_and_leaves() {
    let mut wire = structured_options(&Harness::disk()).await;
    for option in [LIST_META_CONTEXT, SET_META_CONTEXT] {
        let replies = wire.replies_to(option, &meta_context("disk", &["qemu:", "base:unheard-of"])).await;
        assert_eq!(replies, []);
    }
}

//= Option types: If zero queries are sent, the server MUST select no metadata contexts.
//= The `base:` metadata namespace: the server MUST ignore this form during `NBD_OPT_SET_META_CONTEXT`
#[tokio::test]
async fn the_wildcard_and_no_query_must_select_nothing() {
    let mut wire = structured_options(&Harness::disk()).await;
    for queries in [&[][..], &["base:"]] {
        assert_eq!(wire.replies_to(SET_META_CONTEXT, &meta_context("disk", queries)).await, []);
    }
}

#[tokio::test]
async fn malformed_queries_get_err_invalid_and_the_stream_stays_in_step() {
    let mut wire = structured_options(&Harness::disk()).await;
    let beyond_the_end = [&meta_context("disk", &[])[..8], b"\x00\x00\x00\x01\x00\x00\x00\x10base:"].concat();
    let trailing = [&meta_context("disk", &[])[..], b"x"].concat();
    for data in [&b""[..], &beyond_the_end, &trailing, &meta_context("disk", &["allocation"])] {
        wire.haggle(SET_META_CONTEXT, data, REP_ERR_INVALID).await;
        wire.haggle(LIST_META_CONTEXT, data, REP_ERR_INVALID).await;
    }
    wire.go("disk").await;
}

#[tokio::test]
async fn contexts_of_an_export_that_does_not_exist_are_err_unknown() {
    let mut wire = structured_options(&Harness::disk()).await;
    wire.haggle(LIST_META_CONTEXT, &meta_context("nothing", &[]), REP_ERR_UNKNOWN).await;
    wire.haggle(SET_META_CONTEXT, &meta_context("nothing", &["base:allocation"]), REP_ERR_UNKNOWN).await;
}

//= Request types: A client MUST NOT send `NBD_CMD_BLOCK_STATUS` unless within the negotiation phase it sent
//# `NBD_OPT_SET_META_CONTEXT` at least once
#[tokio::test]
async fn block_status_without_a_selected_context_is_einval() {
    let harness = Harness::disk();
    let mut simple = harness.simple().await;
    simple.fails(request(0, BLOCK_STATUS, 1, 0, 512), EINVAL).await;
    let mut structured = structured_options(&harness).await;
    structured.go("disk").await;
    structured.fails(request(0, BLOCK_STATUS, 1, 0, 512), EINVAL).await;
    structured.is_alive().await;
}

//= Metadata querying: used the same export name for the subsequent `NBD_OPT_GO` (or `NBD_OPT_EXPORT_NAME`)
#[tokio::test]
async fn contexts_hold_only_for_the_export_they_were_set_for() {
    let mut wire = structured_options(&Harness::disk()).await;
    wire.replies_to(SET_META_CONTEXT, &meta_context("disk", &["base:allocation"])).await;
    wire.go("").await;
    wire.fails(request(0, BLOCK_STATUS, 1, 0, 512), EINVAL).await;
}

//= Option types: replaces all previously-set metadata contexts (including when this command fails)
#[tokio::test]
async fn setting_contexts_replaces_those_set_before_even_when_it_fails() {
    let harness = Harness::disk();
    let failing = [
        meta_context("nothing", &["base:allocation"]),
        meta_context("disk", &["no colon"]),
        vec![0; 1 << 20],
    ];
    for data in failing {
        let mut wire = structured_options(&harness).await;
        wire.replies_to(SET_META_CONTEXT, &meta_context("disk", &["base:allocation"])).await;
        wire.send(option(SET_META_CONTEXT, &data)).await;
        assert!(wire.option_reply().await.reply > 0x8000_0000);
        wire.go("disk").await;
        wire.fails(request(0, BLOCK_STATUS, 1, 0, 512), EINVAL).await;
    }
}

//= Request types: the server MUST return at least one status descriptor
#[tokio::test]
async fn block_status_tells_data_from_holes() {
    let mut wire = Harness::disk().structured().await;
    wire.fails(request(0, BLOCK_STATUS, 1, 1 << 20, 1), EINVAL).await;
    wire.send([&request(0, WRITE, 2, 8192, 4)[..], b"data"].concat()).await;
    wire.expect(simple_reply(0, 2)).await;
    wire.send(request(0, BLOCK_STATUS, 3, 0, 1 << 20)).await;
    let extents = [(8192, 3), (4096, 0), ((1 << 20) - 12_288, 3)];
    wire.expect(chunk(1, 5, 3, &status(&extents))).await;
}

//= Command flags: If this flag is present, the server MUST NOT send metadata on more than one extent in the
//# reply.
//= Structured reply types: that descriptor MUST NOT exceed the *length* of the original request
#[tokio::test]
async fn req_one_must_be_answered_with_one_extent_no_longer_than_the_request() {
    let mut wire = Harness::disk().structured().await;
    wire.send([&request(0, WRITE, 2, 8192, 4)[..], b"data"].concat()).await;
    wire.expect(simple_reply(0, 2)).await;
    wire.send(request(REQ_ONE, BLOCK_STATUS, 3, 4096, 512)).await;
    wire.expect(chunk(1, 5, 3, &status(&[(512, 3)]))).await;
    wire.send(request(REQ_ONE, BLOCK_STATUS, 4, 4096, 65_536)).await;
    wire.expect(chunk(1, 5, 4, &status(&[(4096, 3)]))).await;
}

#[tokio::test]
async fn an_extent_of_more_than_32_bits_is_cut_or_ends_with_the_request() {
    let disk = MemoryExport::new("disk", 1 << 50);
    let harness = Harness::of(ScriptedExport::new(disk, Script::LongExtent(1 << 40)));
    let mut wire = harness.structured().await;
    wire.send(request(0, BLOCK_STATUS, 1, 0, 4096)).await;
    wire.expect(chunk(1, 5, 1, &status(&[(0xffff_0000, 3)]))).await;
    wire.send(request(REQ_ONE, BLOCK_STATUS, 2, 0, 4096)).await;
    wire.expect(chunk(1, 5, 2, &status(&[(4096, 3)]))).await;
}

#[tokio::test]
async fn an_export_that_tells_nothing_is_eio() {
    let disk = MemoryExport::new("disk", 1 << 20);
    let mut wire = Harness::of(ScriptedExport::new(disk, Script::BreakContract)).structured().await;
    wire.fails(request(0, BLOCK_STATUS, 1, 0, 4096), EIO).await;
}

#[tokio::test]
async fn block_status_past_the_end_is_einval() {
    let harness = Harness::disk();
    let mut wire = harness.structured().await;
    for (offset, length) in [(1 << 20, 512), ((1 << 20) - 512, 1024), (u64::MAX - 511, 512), (0, u32::MAX)] {
        wire.fails(request(0, BLOCK_STATUS, 1, offset, length), EINVAL).await;
    }
    let mut wire = harness.extended().await;
    for (offset, length) in [(1 << 20, 512), (0, u64::MAX), (u64::MAX, u64::MAX)] {
        wire.fails(extended_request(0, BLOCK_STATUS, 1, offset, length), EINVAL).await;
    }
}

//= Request types: a status length of 0; the behavior of a server on such a request is unspecified although
//# the server SHOULD NOT disconnect
#[tokio::test]
async fn block_status_of_no_bytes_is_einval_and_no_disconnect() {
    let mut wire = Harness::disk().structured().await;
    wire.fails(request(0, BLOCK_STATUS, 1, 0, 0), EINVAL).await;
    wire.is_alive().await;
}

//= Option types: replaces all previously-set metadata contexts (including when this command fails)
/// LIST_META_CONTEXT asks; it is SET_META_CONTEXT that selects.
#[tokio::test]
async fn listing_contexts_selects_none_and_takes_none_back() {
    let harness = Harness::disk();
    let mut wire = structured_options(&harness).await;
    wire.replies_to(LIST_META_CONTEXT, &meta_context("disk", &["base:allocation"])).await;
    wire.go("disk").await;
    wire.fails(request(0, BLOCK_STATUS, 1, 0, 512), EINVAL).await;

    let mut wire = structured_options(&harness).await;
    wire.replies_to(SET_META_CONTEXT, &meta_context("disk", &["base:allocation"])).await;
    assert_eq!(wire.replies_to(LIST_META_CONTEXT, &meta_context("disk", &["x-none:"])).await, []);
    wire.go("disk").await;
    wire.send(request(0, BLOCK_STATUS, 1, 0, 512)).await;
    wire.expect(chunk(1, 5, 1, &status(&[(512, 3)]))).await;
}

//= Option types: The metadata context ID in these replies is reserved and SHOULD be set to zero; clients
//# MUST disregard it.
#[tokio::test]
async fn ids_of_listed_contexts_are_zero() {
    let harness = Harness::disk();
    let mut wire = structured_options(&harness).await;
    let listed = wire.replies_to(LIST_META_CONTEXT, &meta_context("disk", &[])).await;
    assert_eq!(listed[0].data, b"\0\0\0\0base:allocation");
}

/// A context that is asked for twice, or by several queries, is one.
#[tokio::test]
async fn a_context_that_is_asked_for_twice_is_selected_once() {
    let harness = Harness::disk();
    let mut wire = structured_options(&harness).await;
    let twice = meta_context("disk", &["base:allocation", "x-other:", "base:allocation"]);
    assert_eq!(wire.replies_to(SET_META_CONTEXT, &twice).await.len(), 1);
}
