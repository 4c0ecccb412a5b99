//! Clients that announce a large request, send most of it and stop. What they hold is bounded, others are
//! served, and everything is released in the end.

use cairn::client::{Client, Options, Uri};
use cairn::effect::Durability::Volatile;
use cairn::task::Tasks;
use futures::{StreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::support::cairn::{Gateway, Setup, Store};
use crate::support::process::{command, free_port, run, until, within};
use crate::support::wire::*;

const CLIENTS: usize = 40;
const MIB: usize = 1 << 20;

/// Returns a field of the gateway's process status, such as `VmHWM`, in MiB.
fn status_mib(gateway: &Gateway, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the kernel reports it");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().expect("a number of KiB")
        / 1024
}

/// Announces a WRITE of 64 MiB, sends 60 MiB of it, and waits until the gateway closes the connection.
async fn write_most_and_stop(port: u16) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the gateway accepts");
    let said = [
        &b"\0\0\0\x03"[..],
        &option(GO, &info_request("disk", &[])),
        &request(0, WRITE, 1, 0, u32::try_from(64 * MIB).expect("32 bits")),
    ];
    stream.write_all(&said.concat()).await.expect("the gateway reads");
    let payload = vec![7; MIB];
    for _ in 0..60 {
        // The request waits for its turn and is then read on. On a busy machine the connection may be closed
        // in between.
        if stream.write_all(&payload).await.is_err() {
            return;
        }
    }
    // The end is a reset if the gateway has not read all our bytes.
    drop(stream.read_to_end(&mut Vec::new()).await);
}

/// Writes, reads and flushes until `stop`. Returns how often.
async fn work(client: Client, stop: CancellationToken) -> u64 {
    let data = bytes::Bytes::from(vec![9; 64 << 10]);
    let mut done = 0;
    while !stop.is_cancelled() {
        client.write(128 << 20, data.clone(), Volatile).await.expect("a working client is served");
        assert_eq!(client.read(128 << 20, 64 << 10).await.expect("a working client is served"), data);
        client.flush().await.expect("a working client is served");
        done += 1;
    }
    done
}

/// Waits until the gateway has counted all clients that stopped, and holds no memory for anybody.
async fn all_is_given_back(admin: u16) {
    let stalled = format!("cairn_connections_stalled_total{{direction=\"requests\"}} {CLIENTS}\n");
    let url = format!("http://127.0.0.1:{admin}/metrics");
    loop {
        let measured = run(&mut command(["curl", "--silent", "--fail", &url])).await;
        if measured.contains(&stalled) && measured.contains("cairn_server_bytes_in_flight 0\n") {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs curl"]
async fn forty_half_sent_writes_of_64_mib_stay_within_the_bound_and_a_working_client_is_served() {
    let (store, admin) = (Store::directory(), free_port());
    let setup = Setup::new(&store).create("disk", "256MiB").tcp();
    let setup = setup.env("CAIRN_ADMIN__LISTEN", &format!("127.0.0.1:{admin}"));
    // The data of the working client must not fill the cache, so that the test measures what connections
    // hold.
    let setup = setup.env("CAIRN_CACHE__CLEAN", "1MiB").env("CAIRN_JOURNAL__MAX_BYTES", "16MiB");
    let gateway = setup.env("CAIRN_SERVER__STALL_TIMEOUT", "1s").start().await;
    let uri: Uri = gateway.uri("disk").parse().unwrap();
    let client = Client::connect(&uri, &Options::default()).await.unwrap();
    let (tasks, stop) = (Tasks::new(), CancellationToken::new());
    let working = tasks.spawn(work(client, stop.clone()));
    let port = gateway.port();
    let stopped = stream::iter(0..CLIENTS).for_each_concurrent(None, |_| write_most_and_stop(port));
    within("those who stopped are closed", stopped).await;
    stop.cancel();
    let done = within("the working client ends", working).await.expect("it does not panic");
    let peak = status_mib(&gateway, "VmHWM");
    println!("VmHWM {peak} MiB, {done} rounds of a working client meanwhile");
    // 256 MiB in flight, and what the gateway uses otherwise. Without the limit it was 2.4 GB.
    assert!(peak < 320, "{peak} MiB of memory at the peak");
    assert!(done > 40, "{done} rounds of a working client");
    within("all is given back", all_is_given_back(admin)).await;
    until("memory is given back", || status_mib(&gateway, "VmRSS") < 100).await;
}
