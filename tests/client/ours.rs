//! The client against our server, over a pipe in memory, with every kind of headers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn::client::ExtentLimit;
use cairn::client::{Broken, Client, Error, Options, Segment};
use cairn::effect::Durability::{Durable, Volatile};
use cairn::effect::{ZeroSpeed, Zeroing};
use cairn::protocol::negotiate_client::{ClientTls, HandshakeError};
use cairn::protocol::{Error as CommandError, HeaderStyle, OptionError, TransmissionFlags};
use cairn::server::{Export as _, ExportDescription, Options as ServerOptions};

use crate::support::memory_export::{MemoryExport, MemoryExports};
use crate::support::scripted_export::{Script, ScriptedExport};
use crate::support::wire::Harness;

const MIB: u64 = 1 << 20;

fn options(headers: HeaderStyle) -> Options {
    Options {
        structured_replies: headers != HeaderStyle::Simple,
        extended_headers: headers == HeaderStyle::Extended,
        ..Options::default()
    }
}

async fn connect(harness: &Harness, headers: HeaderStyle) -> Client {
    let stream = harness.connect().into_stream();
    let client = Client::connect_over(stream, "disk", &options(headers)).await.unwrap();
    assert_eq!(client.headers(), headers);
    client
}

const ALL: [HeaderStyle; 3] = [HeaderStyle::Simple, HeaderStyle::Structured, HeaderStyle::Extended];

#[tokio::test]
async fn what_is_written_is_read() {
    for headers in ALL {
        let harness = Harness::disk();
        let client = connect(&harness, headers).await;
        assert_eq!((client.size_bytes(), client.export().name.as_str()), (MIB, "disk"));
        client.write(4095, Bytes::from_static(b"across"), Durable).await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(client.read(4093, 10).await.unwrap(), &b"\0\0across\0\0"[..]);
        client.write_zeroes(4096, 2, Zeroing::Allocate, ZeroSpeed::Fast, Volatile).await.unwrap();
        client.trim(4098, 1, Volatile).await.unwrap();
        client.cache(0, MIB).await.unwrap();
        assert_eq!(client.read(4095, 6).await.unwrap(), &b"a\0\0\0ss"[..]);
        assert_eq!(client.read(MIB, 0).await.unwrap(), &b""[..]);
        client.disconnect().await;
        harness.tasks.join().await;
    }
}

#[tokio::test]
async fn holes_and_allocation_are_told() {
    for headers in [HeaderStyle::Structured, HeaderStyle::Extended] {
        let client = connect(&Harness::disk(), headers).await;
        client.write(8192, Bytes::from(vec![7; 4096]), Volatile).await.unwrap();
        let segments = client.read_segments(0, 16_384).await.unwrap();
        assert_eq!(
            segments,
            [Segment::Hole(8192), Segment::Data(Bytes::from(vec![7; 4096])), Segment::Hole(4096)]
        );
        let allocation = client.allocation(0, MIB).await.unwrap();
        let found: Vec<_> = allocation.iter().map(|extent| (extent.length, extent.status)).collect();
        assert_eq!(found, [(8192, 3), (4096, 0), (MIB - 12_288, 3)]);
        let one = client.block_status(0, MIB, ExtentLimit::One).await.unwrap();
        assert_eq!(one[0].extents.len(), 1);
    }
}

#[tokio::test]
async fn simple_replies_have_no_allocation() {
    let client = connect(&Harness::disk(), HeaderStyle::Simple).await;
    assert!(client.contexts().is_empty());
    assert!(matches!(client.allocation(0, MIB).await, Err(Error::NotAllowed(_))));
}

#[tokio::test]
async fn many_commands_are_out_at_a_time_and_find_their_answers() {
    for headers in ALL {
        let export = ScriptedExport::new(MemoryExport::new("disk", MIB), Script::Hold);
        let harness = Harness::of(Arc::clone(&export) as _);
        let client = Arc::new(connect(&harness, headers).await);
        let held = harness.tasks.spawn({
            let client = Arc::clone(&client);
            async move { client.read(0, 1).await }
        });
        export.wait_started(1).await;
        let writes = (1_u8..200).map(|i| {
            let (client, offset) = (Arc::clone(&client), u64::from(i) * 1000);
            async move { client.write(offset, Bytes::from(vec![i; 1000]), Volatile).await }
        });
        futures::future::try_join_all(writes).await.unwrap();
        let reads = (1_u8..200).map(|i| {
            let (client, offset) = (Arc::clone(&client), u64::from(i) * 1000);
            async move { (i, client.read(offset, 1000).await.unwrap()) }
        });
        for (i, read) in futures::future::join_all(reads).await {
            assert_eq!(read, vec![i; 1000]);
        }
        assert!(!held.is_finished());
        export.release(1);
        assert_eq!(held.await.unwrap().unwrap(), &b"\0"[..]);
    }
}

#[tokio::test]
async fn a_command_that_fails_leaves_the_connection_up() {
    for headers in ALL {
        let export = ScriptedExport::new(MemoryExport::new("disk", MIB), Script::Fail(CommandError::NoSpc));
        let client = connect(&Harness::of(export), headers).await;
        for _ in 0..3 {
            let failed = client.read(0, 512).await.unwrap_err();
            let Error::Command { error, message } = failed else { panic!("{failed:?}") };
            assert_eq!(error, CommandError::NoSpc);
            assert_eq!(message.is_empty(), headers == HeaderStyle::Simple, "{message}");
        }
        assert!(client.broken().is_none());
    }
}

#[tokio::test]
async fn after_eshutdown_nothing_more_is_sent() {
    let export = ScriptedExport::new(MemoryExport::new("disk", MIB), Script::Fail(CommandError::Shutdown));
    let client = connect(&Harness::of(Arc::clone(&export) as _), HeaderStyle::Structured).await;
    let failed = client.read(0, 512).await;
    assert!(matches!(failed, Err(Error::Command { error: CommandError::Shutdown, .. })), "{failed:?}");
    assert!(matches!(client.read(0, 512).await, Err(Error::Broken(Broken::ByServer))));
    assert_eq!(export.started(), 1);
}

#[tokio::test]
async fn a_server_that_goes_away_fails_what_is_out() {
    let export = ScriptedExport::new(MemoryExport::new("disk", MIB), Script::Hold);
    let impatient = ServerOptions { drain_timeout: Duration::ZERO, ..ServerOptions::default() };
    let harness = Harness::new(MemoryExports::new(vec![Arc::clone(&export) as _]), impatient);
    let client = connect(&harness, HeaderStyle::Extended).await;
    let lost = async {
        export.wait_started(1).await;
        harness.server.drain().await;
    };
    let (read, ()) = tokio::join!(client.read(0, 512), lost);
    assert!(matches!(read, Err(Error::Broken(_))), "{read:?}");
    assert!(client.broken().is_some());
}

//= Transmission flags: The client MUST NOT use a feature documented as 'exposed' by a flag unless that flag
//# was set.
#[tokio::test]
async fn what_the_server_has_not_offered_is_not_sent() {
    let description = MemoryExport::new("disk", MIB).description();
    let disk = MemoryExport::described(ExportDescription {
        flags: TransmissionFlags::READ_ONLY | TransmissionFlags::SEND_TRIM,
        minimum_block_bytes: 512,
        maximum_block_bytes: 65_536,
        ..description
    });
    let export = ScriptedExport::new(disk, Script::Pass);
    let client = connect(&Harness::of(Arc::clone(&export) as _), HeaderStyle::Extended).await;
    let refused = [
        client.flush().await,
        client.trim(0, 512, Volatile).await,
        client.write(0, Bytes::from(vec![0; 512]), Volatile).await,
        client.write_zeroes(0, 512, Zeroing::Deallocate, ZeroSpeed::Any, Volatile).await,
        client.cache(0, 512).await,
        client.read(0, 66_048).await.map(drop),
        client.read(1, 512).await.map(drop),
        client.read(512, 1).await.map(drop),
        client.read(MIB, 512).await.map(drop),
        client.read(u64::MAX - 511, 512).await.map(drop),
    ];
    for refused in refused {
        assert!(matches!(refused, Err(Error::NotAllowed(_))), "{refused:?}");
    }
    assert_eq!(export.started(), 0);
    client.read(512, 512).await.unwrap();
}

#[tokio::test]
async fn an_export_that_does_not_exist_is_refused() {
    let harness = Harness::disk();
    let stream = harness.connect().into_stream();
    let refused = Client::connect_over(stream, "nothing", &Options::default()).await.unwrap_err();
    let Error::Handshake(HandshakeError::Refused { refusal, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(refusal.error, OptionError::Unknown);
}

#[tokio::test]
async fn required_tls_is_not_done_without() {
    let harness = Harness::disk();
    let options = Options { tls: ClientTls::Required, ..Options::default() };
    let refused = Client::connect_over(harness.connect().into_stream(), "disk", &options).await.unwrap_err();
    assert!(matches!(refused, Error::Handshake(HandshakeError::Refused { .. })), "{refused:?}");
    let options = Options { tls: ClientTls::Opportunistic, ..options };
    let client = Client::connect_over(harness.connect().into_stream(), "disk", &options).await.unwrap();
    client.flush().await.unwrap();
}
