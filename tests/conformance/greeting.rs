//! "Newstyle negotiation", "Fixed newstyle negotiation", "Oldstyle negotiation", `NBD_OPT_EXPORT_NAME`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use cairn::server::{Export, ExportDescription, Exports, Greeting, ListEntry, OpenError, Options};

use crate::support::memory_export::{MemoryExport, MemoryExports};
use crate::support::wire::*;

/// What a full-featured disk of 1 MiB says after EXPORT_NAME without structured replies: size, and flags HAS_FLAGS,
/// SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN, SEND_CACHE, SEND_FAST_ZERO.
const DISK_INFO: &[u8] = b"\x00\x00\x00\x00\x00\x10\x00\x00\x0d\x6d";

//= Handshake flags: MUST be set by servers that support the fixed newstyle protocol
//= Handshake flags: The server MUST NOT set any other flags
#[tokio::test]
async fn the_server_announces_fixed_newstyle_and_no_zeroes() {
    let mut wire = Harness::disk().connect();
    wire.expect(b"NBDMAGICIHAVEOPT\x00\x03").await;
}

//= Client flags: the server MUST drop the TCP connection if the client sets an unknown flag
#[tokio::test]
async fn the_server_must_drop_the_connection_if_the_client_sets_an_unknown_flag() {
    let mut wire = Harness::disk().connect();
    wire.greet(0x8000_0003).await;
    wire.expect_closed().await;
}

#[tokio::test]
async fn an_option_must_begin_with_ihaveopt() {
    let mut wire = Harness::disk().options().await;
    wire.send(b"GET / HTTP/1.1\r\n").await;
    wire.expect_closed().await;
}

//= Client flags: If set, the server MUST NOT send the 124 bytes of zeroes when the client ends negotiation
//# with `NBD_OPT_EXPORT_NAME`.
#[tokio::test]
async fn export_name_is_answered_with_size_flags_and_124_zeroes() {
    let mut wire = Harness::disk().connect();
    wire.greet(1).await;
    wire.send(option(EXPORT_NAME, b"disk")).await;
    wire.expect([DISK_INFO, &[0; 124]].concat()).await;
    wire.is_alive().await;
}

//= Client flags: If set, the server MUST NOT send the 124 bytes of zeroes when the client ends negotiation
//# with `NBD_OPT_EXPORT_NAME`.
#[tokio::test]
async fn the_zeroes_must_not_be_sent_if_no_zeroes_was_negotiated() {
    let mut wire = Harness::disk().connect();
    wire.greet(3).await;
    wire.send(option(EXPORT_NAME, b"disk")).await;
    wire.expect(DISK_INFO).await;
    wire.is_alive().await;
}

#[tokio::test]
async fn the_empty_name_stands_for_the_default_export() {
    let mut wire = Harness::disk().options().await;
    wire.send(option(EXPORT_NAME, b"")).await;
    wire.expect(DISK_INFO).await;
}

//= Newstyle negotiation: If the server is unwilling to allow the export, it MUST terminate the session.
#[tokio::test]
async fn export_name_of_an_export_that_does_not_exist_must_terminate_the_session() {
    let mut wire = Harness::disk().options().await;
    wire.send(option(EXPORT_NAME, b"nothing")).await;
    wire.expect_closed().await;
}

//= Conventions: MUST be no longer than 4096 bytes
#[tokio::test]
async fn a_name_must_be_no_longer_than_4096_bytes() {
    let mut wire = Harness::disk().options().await;
    wire.send(&option(EXPORT_NAME, &[b'a'; 4097])[..16]).await;
    wire.expect_closed().await;
}

#[tokio::test]
async fn a_client_without_fixed_newstyle_can_choose_an_export() {
    let mut wire = Harness::disk().connect();
    wire.greet(0).await;
    wire.send(option(EXPORT_NAME, b"disk")).await;
    wire.expect([DISK_INFO, &[0; 124]].concat()).await;
    wire.is_alive().await;
}

//= Option types: A server which wishes to use any other option MUST support fixed newstyle.
#[tokio::test]
async fn export_name_is_the_only_valid_option_without_fixed_newstyle() {
    let mut wire = Harness::disk().connect();
    wire.greet(0).await;
    wire.send(option(LIST, b"")).await;
    wire.expect_closed().await;
}

//= Handshake flags: The server MUST NOT set any of these flags during oldstyle negotiation.
#[tokio::test]
async fn oldstyle_is_size_flags_and_124_zeroes_and_no_handshake_flags() {
    let mut wire = Harness::disk().connect_with(Greeting::Oldstyle { export: "disk".to_owned() });
    wire.expect(b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53").await;
    wire.expect(b"\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x0d\x6d").await;
    wire.expect([0; 124]).await;
    wire.is_alive().await;
}

#[tokio::test]
async fn oldstyle_without_its_export_is_closed() {
    let mut wire = Harness::disk().connect_with(Greeting::Oldstyle { export: "gone".to_owned() });
    wire.expect_closed().await;
}

#[tokio::test]
async fn bytes_may_come_one_at_a_time() {
    let mut wire = Harness::disk().connect();
    wire.expect(b"NBDMAGICIHAVEOPT\x00\x03").await;
    let stream =
        [b"\x00\x00\x00\x03", &option(99, b"abc")[..], &option(GO, &info_request("disk", &[]))].concat();
    for byte in stream {
        wire.send([byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(wire.option_reply().await.reply, REP_ERR_UNSUP);
    while wire.option_reply().await.reply != REP_ACK {}
    for byte in request(0, FLUSH, 7, 0, 0) {
        wire.send([byte]).await;
        tokio::task::yield_now().await;
    }
    wire.expect(simple_reply(0, 7)).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_speak_is_closed_at_the_handshake_timeout() {
    let harness = Harness::disk();
    let mut silent = harness.connect();
    silent.expect(b"NBDMAGICIHAVEOPT\x00\x03").await;
    let mut half_way = harness.options().await;
    half_way.send(b"IHAVE").await;
    silent.expect_closed().await;
    half_way.expect_closed().await;
    let mut in_transmission = harness.simple().await;
    tokio::time::advance(Options::default().handshake_timeout * 10).await;
    in_transmission.is_alive().await;
}

/// Exports that count what is asked of them.
struct Counting(MemoryExports, Arc<AtomicUsize>);

#[async_trait]
impl Exports for Counting {
    async fn list(&self) -> Result<Vec<ListEntry>, OpenError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.list().await
    }

    async fn describe(&self, name: &str) -> Result<ExportDescription, OpenError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.describe(name).await
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn Export>, OpenError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.open(name).await
    }
}

#[tokio::test]
async fn nothing_is_asked_of_the_exports_for_a_client_that_has_not_sent_an_option() {
    let asked = Arc::new(AtomicUsize::new(0));
    let exports = MemoryExports::new(vec![Arc::new(MemoryExport::new("disk", 1 << 20))]);
    let harness = Harness::new(Counting(exports, Arc::clone(&asked)), Options::default());
    let mut wire = harness.options().await;
    wire.haggle(99, b"", REP_ERR_UNSUP).await;
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    wire.go("disk").await;
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}
