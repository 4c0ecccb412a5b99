//! A disk of a pebibyte: a command for its whole length costs no more than on a small disk.

use cairn::client::{Client, Options, Uri};
use cairn::effect::Durability::Volatile;
use cairn::effect::{ZeroSpeed, Zeroing};
use rustix::process::Signal;
use tokio::time::Instant;

use super::memory::status_kib;
use crate::support::cairn::{Gateway, Setup, Store};

const PIB: u64 = 1 << 50;
/// Maximum number of requests to the store for all commands and the shutdown together.
const REQUESTS: usize = 100;
/// Maximum growth of resident memory, compared with an idle gateway, in KiB.
const MEMORY_KIB: u64 = 64 * 1024;

async fn connect(gateway: &Gateway) -> Client {
    let uri: Uri = gateway.uri("disk").parse().unwrap();
    Client::connect(&uri, &Options::default()).await.unwrap()
}

/// Returns whether the whole disk is a hole, and whether it is zero. A single extent must report it.
async fn whole(client: &Client) -> (bool, bool) {
    let extents = client.allocation(0, PIB).await.unwrap();
    assert_eq!(extents.len(), 1, "{extents:?}");
    assert_eq!(extents[0].length, PIB);
    (extents[0].status & 1 == 1, extents[0].status & 2 == 2)
}

#[tokio::test]
#[ignore = "needs MinIO"]
async fn whole_disk_commands_on_a_pebibyte_are_cheap() {
    let store = Store::minio().await;
    let proxy = store.proxy().await;
    let mut gateway = Setup::new(&store).through(&proxy).create("disk", "1PiB").tcp().start().await;
    let client = connect(&gateway).await;
    let idle = status_kib(gateway.process.id(), "VmRSS");
    proxy.forget();
    let begun = Instant::now();
    client.trim(0, PIB, Volatile).await.unwrap();
    client.write_zeroes(0, PIB, Zeroing::Deallocate, ZeroSpeed::Any, Volatile).await.unwrap();
    assert_eq!(whole(&client).await, (true, true));
    client.flush().await.unwrap();
    client.write_zeroes(0, PIB, Zeroing::Allocate, ZeroSpeed::Any, Volatile).await.unwrap();
    client.flush().await.unwrap();
    client.cache(0, PIB).await.unwrap();
    assert_eq!(whole(&client).await, (false, true));
    let peak = status_kib(gateway.process.id(), "VmHWM");
    client.disconnect().await;
    gateway.process.signal(Signal::TERM);
    assert!(gateway.process.exit().await.success(), "{}", gateway.process.output());
    let (took, requests) = (begun.elapsed(), proxy.requests());
    println!(
        "measured: whole-disk commands on 1 PiB and SIGTERM: {took:?}, {} requests, {} KiB above {idle} KiB",
        requests.len(),
        peak.saturating_sub(idle)
    );
    assert!(requests.len() < REQUESTS, "{} requests: {requests:#?}", requests.len());
    assert!(peak < idle + MEMORY_KIB, "{peak} KiB at the peak, {idle} KiB at rest");

    // The zeros were folded into the map, and are found there.
    let gateway = Setup::new(&store).through(&proxy).create("disk", "1PiB").tcp().start().await;
    let client = connect(&gateway).await;
    proxy.forget();
    client.cache(0, PIB).await.unwrap();
    assert_eq!(whole(&client).await, (false, true));
    assert!(client.read(PIB - 4096, 4096).await.unwrap().iter().all(|byte| *byte == 0));
    assert_eq!(proxy.count(|request| request.gets("/map/")), 0, "no map page stands for zeros");
    client.disconnect().await;
    proxy.stop().await;
}
