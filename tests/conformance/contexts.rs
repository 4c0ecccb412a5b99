//! "Metadata querying" with several contexts, which the specification leaves to the server: how they are listed,
//! selected and answered.

use std::sync::Arc;

use crate::support::marked_export::{FAILS, MarkedExport, NOTHING};
use crate::support::memory_export::MemoryExport;
use crate::support::wire::*;

const DONE: u16 = 1;

/// A disk of 1 MiB with these contexts.
fn marked<'a>(contexts: impl IntoIterator<Item = &'a str>) -> Harness {
    Harness::of(Arc::new(MarkedExport::new(MemoryExport::new("disk", 1 << 20), contexts)))
}

/// A disk with two contexts.
fn with_two() -> Harness {
    marked(["x-test:below-512", "x-test:below-8192"])
}

async fn haggling(harness: &Harness, headers: u32) -> Wire {
    let mut wire = harness.options().await;
    wire.haggle(headers, b"", REP_ACK).await;
    wire
}

/// The data of all replies to an option.
async fn told(wire: &mut Wire, code: u32, queries: &[&str]) -> Vec<Vec<u8>> {
    let replies = wire.replies_to(code, &meta_context("disk", queries)).await;
    assert!(replies.iter().all(|reply| reply.reply == REP_META_CONTEXT), "{replies:?}");
    replies.into_iter().map(|reply| reply.data).collect()
}

//= Option types: If one or more queries are sent, then the server MUST return those metadata contexts that are
//# available to the client to select on the given export with `NBD_OPT_SET_META_CONTEXT`, and which match one or
//# more of the queries given.
//= Option types: If zero queries are sent, then the server MUST return all the metadata contexts that are
//# available to the client to select on the given export.
#[tokio::test]
async fn a_list_has_the_contexts_that_match_in_the_order_of_the_export() {
    let mut wire = haggling(&with_two(), STRUCTURED_REPLY).await;
    let base: &[u8] = b"\0\0\0\0base:allocation";
    let (small, large): (&[u8], &[u8]) = (b"\0\0\0\0x-test:below-512", b"\0\0\0\0x-test:below-8192");
    for (queries, expected) in [
        (&[][..], &[base, small, large][..]),
        (&["x-test:"][..], &[small, large][..]),
        (&["x-test:below-8192", "base:"][..], &[base, large][..]),
        (&["x-test:below-8192", "x-test:"][..], &[small, large][..]),
        (&["x-test:below", "x-test:below-", "x-:", "x-test:none"][..], &[][..]),
    ] {
        assert_eq!(told(&mut wire, LIST_META_CONTEXT, queries).await, expected, "{queries:?}");
    }
}

//= Option types: one for each selected metadata context, each with a unique metadata context ID
//= Metadata querying: the server MUST respond with one structured reply chunk of type
//# `NBD_REPLY_TYPE_BLOCK_STATUS` per metadata context selected during negotiation
#[tokio::test]
async fn each_selected_context_has_its_id_and_its_chunk() {
    let mut wire = haggling(&with_two(), STRUCTURED_REPLY).await;
    let queries = ["x-test:below-8192", "x-test:none", "base:allocation", "x-test:below-512"];
    let expected: [&[u8]; 3] =
        [b"\0\0\0\x01base:allocation", b"\0\0\0\x02x-test:below-512", b"\0\0\0\x03x-test:below-8192"];
    assert_eq!(told(&mut wire, SET_META_CONTEXT, &queries).await, expected);
    wire.go("disk").await;
    wire.send(request(0, BLOCK_STATUS, 7, 0, 16_384)).await;
    wire.expect(chunk(0, 5, 7, b"\0\0\0\x01\0\0\x40\0\0\0\0\x03")).await;
    wire.expect(chunk(0, 5, 7, b"\0\0\0\x02\0\0\x02\0\0\0\0\x01\0\0\x3e\0\0\0\0\0")).await;
    wire.expect(chunk(DONE, 5, 7, b"\0\0\0\x03\0\0\x20\0\0\0\0\x01\0\0\x20\0\0\0\0\0")).await;
    // The first extent of each begins where the request does, and is the only one.
    wire.send(request(REQ_ONE, BLOCK_STATUS, 8, 256, 1024)).await;
    wire.expect(chunk(0, 5, 8, b"\0\0\0\x01\0\0\x04\0\0\0\0\x03")).await;
    wire.expect(chunk(0, 5, 8, b"\0\0\0\x02\0\0\x01\0\0\0\0\x01")).await;
    wire.expect(chunk(DONE, 5, 8, b"\0\0\0\x03\0\0\x04\0\0\0\0\x01")).await;
}

#[tokio::test]
async fn a_context_can_be_selected_without_that_of_the_specification() {
    let mut wire = haggling(&with_two(), EXTENDED_HEADERS).await;
    let expected: [&[u8]; 1] = [b"\0\0\0\x01x-test:below-8192"];
    assert_eq!(told(&mut wire, SET_META_CONTEXT, &["x-test:below-8192"]).await, expected);
    wire.go("disk").await;
    wire.send(extended_request(0, BLOCK_STATUS, 7, 4096, 8192)).await;
    let extents = b"\0\0\0\x01\0\0\0\x02\
        \0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\0";
    wire.expect(extended_chunk(DONE, 6, 7, 4096, extents)).await;
}

/// With extended headers, a request names the contexts that it wants.
#[tokio::test]
async fn a_request_may_be_for_some_of_the_selected_contexts() {
    let mut wire = haggling(&with_two(), EXTENDED_HEADERS).await;
    told(&mut wire, SET_META_CONTEXT, &["base:allocation", "x-test:below-512", "x-test:below-8192"]).await;
    wire.go("disk").await;
    let asks = |cookie: u64, ids: &[u32]| {
        let mut payload = 512_u64.to_be_bytes().to_vec();
        ids.iter().for_each(|id| payload.extend(id.to_be_bytes()));
        let length = u64::try_from(payload.len()).unwrap();
        [extended_request(PAYLOAD_LEN, BLOCK_STATUS, cookie, 0, length), payload].concat()
    };
    let extent = |id: u8, status: u8| {
        [&[0, 0, 0, id, 0, 0, 0, 1][..], &512_u64.to_be_bytes(), &[0, 0, 0, 0, 0, 0, 0, status]].concat()
    };
    wire.send(asks(1, &[2])).await;
    wire.expect(extended_chunk(DONE, 6, 1, 0, &extent(2, 1))).await;
    wire.send(asks(2, &[3, 1])).await;
    wire.expect(extended_chunk(0, 6, 2, 0, &extent(1, 3))).await;
    wire.expect(extended_chunk(DONE, 6, 2, 0, &extent(3, 1))).await;
    for ids in [&[][..], &[4], &[1, 4], &[2, 2]] {
        wire.fails(asks(3, ids), EINVAL).await;
    }
}

//= Option types: The server MAY return `NBD_REP_ERR_TOO_BIG` if a request seeks to select too many contexts.
#[tokio::test]
async fn more_than_16_contexts_are_refused_and_none_is_selected() {
    let names: Vec<String> = (1..=20).map(|n| format!("x-test:below-{}", 512 * n)).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let harness = marked(all.iter().copied());
    let mut wire = haggling(&harness, STRUCTURED_REPLY).await;
    assert_eq!(told(&mut wire, LIST_META_CONTEXT, &[]).await.len(), 21);
    wire.haggle(SET_META_CONTEXT, &meta_context("disk", &all[..17]), REP_ERR_TOO_BIG).await;
    let with_base = [&all[..16], &["base:allocation"]].concat();
    wire.haggle(SET_META_CONTEXT, &meta_context("disk", &with_base), REP_ERR_TOO_BIG).await;
    wire.go("disk").await;
    wire.fails(request(0, BLOCK_STATUS, 1, 0, 512), EINVAL).await;

    // Queries that select nothing do not count.
    let mut wire = haggling(&harness, STRUCTURED_REPLY).await;
    let queries = [&all[..16], &["base:", "x-test:none", "x-test:"]].concat();
    assert_eq!(told(&mut wire, SET_META_CONTEXT, &queries).await.len(), 16);
    wire.go("disk").await;
    wire.send(request(0, BLOCK_STATUS, 1, 0, 512)).await;
    for id in 1..=16_u8 {
        let flags = u16::from(id == 16);
        wire.expect(chunk(flags, 5, 1, &[0, 0, 0, id, 0, 0, 2, 0, 0, 0, 0, 1])).await;
    }
}

/// A status that cannot be found out is an error, never 0. The connection goes on.
#[tokio::test]
async fn a_command_fails_if_one_of_its_contexts_does() {
    for context in [FAILS, NOTHING] {
        let harness = marked([context, "x-test:below-512"]);
        let mut wire = haggling(&harness, STRUCTURED_REPLY).await;
        told(&mut wire, SET_META_CONTEXT, &["base:allocation", context, "x-test:below-512"]).await;
        wire.go("disk").await;
        wire.fails(request(0, BLOCK_STATUS, 1, 0, 512), EIO).await;
        wire.is_alive().await;
    }
}
