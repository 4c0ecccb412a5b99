//! Clients that leave: at every byte of what a client says, nothing of theirs goes on.

use crate::support::wire::*;

/// From the client's flags to a WRITE of which the last byte is missing.
fn conversation(headers: u32) -> Vec<u8> {
    let contexts = meta_context("disk", &["base:allocation"]);
    let requests = if headers == EXTENDED_HEADERS {
        [extended_request(0, READ, 1, 0, 4096), extended_request(PAYLOAD_LEN, WRITE, 2, 0, 4)].concat()
    } else {
        [request(0, READ, 1, 0, 4096), request(0, WRITE, 2, 0, 4)].concat()
    };
    let go = option(GO, &info_request("disk", &[1, 3]));
    let start =
        [b"\x00\x00\x00\x03", &option(headers, b"")[..], &option(SET_META_CONTEXT, &contexts)].concat();
    [&start[..], &option(LIST, b""), &option(99, b"unknown"), &go, &requests, b"dat"].concat()
}

/// All that goes on in this runtime, which is this test's alone.
fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

#[tokio::test]
async fn whoever_leaves_at_whatever_byte_leaves_no_task_and_no_connection_behind() {
    let harness = Harness::disk();
    let (before, free) = (tasks(), harness.server.free_connections());
    for headers in [STRUCTURED_REPLY, EXTENDED_HEADERS] {
        let said = conversation(headers);
        for cut in 0..=said.len() {
            let mut wire = harness.connect();
            wire.send(&said[..cut]).await;
        }
    }
    while tasks() > before {
        tokio::task::yield_now().await;
    }
    assert_eq!(harness.server.free_connections(), free);
    assert!(harness.server.connections().is_empty());
    harness.simple().await.is_alive().await;
}
