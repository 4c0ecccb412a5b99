//! Clients that come and go, and clients that connect and send nothing. Others do not notice them, and they
//! leave nothing behind.

use std::os::fd::AsFd as _;
use std::time::Duration;

use cairn::client::{Client, Options, Uri};
use cairn::task::Tasks;
use futures::{StreamExt as _, stream};
use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::support::cairn::{Gateway, Setup, Store};
use crate::support::process::{command, free_port, run, until, within};
use crate::support::wire::*;

/// Returns everything that a client sends from its flags to a WRITE. A client may leave after any part of it.
fn conversation() -> Vec<u8> {
    [
        &b"\x00\x00\x00\x03"[..],
        &option(STRUCTURED_REPLY, b""),
        &option(SET_META_CONTEXT, &meta_context("disk", &["base:allocation"])),
        &option(GO, &info_request("disk", &[1, 3])),
        &request(0, READ, 1, 0, 4096),
        &request(0, WRITE, 2, 8192, 8),
        b"payload",
    ]
    .concat()
}

/// Connects, sends a part, may wait for a reply, and leaves cleanly or by a reset.
async fn come_and_go(port: u16, number: usize, said: &[u8]) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the gateway accepts");
    let cut = number % (said.len() + 1);
    let mut greeting = [0; 18];
    // The gateway may be at its limit and close the connection at once.
    let greeted = number.is_multiple_of(2) || stream.read_exact(&mut greeting).await.is_ok();
    if greeted && stream.write_all(&said[..cut]).await.is_ok() && number.is_multiple_of(3) {
        // Reads what has arrived by now, without waiting.
        drop(stream.try_read(&mut [0; 4096]));
    }
    if number.is_multiple_of(5) {
        set_socket_linger(stream.as_fd(), Some(Duration::ZERO)).expect("a socket that is ours");
    }
}

async fn storm(port: u16, connections: usize) {
    let said = conversation();
    let said = &said;
    stream::iter(0..connections).for_each_concurrent(64, |number| come_and_go(port, number, said)).await;
}

fn descriptors(gateway: &Gateway) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", gateway.process.id())).expect("it runs").count()
}

fn resident_kib(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel reports it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Counts the descriptors of a gateway that has no client.
async fn at_rest(gateway: &Gateway, metrics: &str) -> usize {
    loop {
        let found = run(&mut command(["curl", "--silent", "--fail", metrics])).await;
        if found.contains("cairn_connections{transport=\"tcp\"} 0\n") {
            return descriptors(gateway);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs curl, libnbd"]
async fn ten_thousand_clients_that_leave_at_every_point_leave_nothing_behind() {
    let (store, admin) = (Store::directory(), free_port());
    let setup = Setup::new(&store).create("disk", "64MiB").tcp();
    let gateway = setup.env("CAIRN_ADMIN__LISTEN", &format!("127.0.0.1:{admin}")).start().await;
    let metrics = format!("http://127.0.0.1:{admin}/metrics");
    // Warm up once: buffers, threads, and what the volume opens.
    storm(gateway.port(), 1000).await;
    let before = within("no client is left", at_rest(&gateway, &metrics)).await;
    let memory = resident_kib(&gateway);
    storm(gateway.port(), 10_000).await;
    within("no client is left", at_rest(&gateway, &metrics)).await;
    // A socket is closed a moment after it was uncounted.
    until("no descriptor is left", || descriptors(&gateway) <= before).await;
    let grown = resident_kib(&gateway).saturating_sub(memory);
    println!("{grown} KiB more after 10,000 connections");
    assert!(grown < 8 << 10, "{grown} KiB more than before");
    assert_eq!(run(&mut command(["nbdinfo", "--size", &gateway.uri("disk")])).await.trim(), "67108864");
}

/// Connects and reads the greeting. Until then, a connection that the kernel dropped from a full queue looks
/// to its client like one that nobody answers.
async fn greeted(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the gateway accepts");
    let mut said = [0; 18];
    stream.read_exact(&mut said).await.expect("the gateway greets");
    assert_eq!(&said, b"NBDMAGICIHAVEOPT\x00\x03");
    stream
}

/// Sends nothing until the gateway closes the connection.
async fn say_nothing(mut stream: TcpStream) {
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.expect("the gateway closes");
    assert_eq!(said, b"");
}

/// Counts the commands of a working client while this many others send nothing until they are closed.
async fn done_beside(gateway: &Gateway, idle: usize) -> u64 {
    let uri: Uri = gateway.uri("disk").parse().unwrap();
    let client = Client::connect(&uri, &Options::default()).await.unwrap();
    let (tasks, stop) = (Tasks::new(), CancellationToken::new());
    let work = tasks.spawn({
        let stop = stop.clone();
        async move {
            let mut done = 0;
            while !stop.is_cancelled() {
                client.read(0, 4096).await.expect("a working client is served");
                done += 1;
            }
            done
        }
    });
    let port = gateway.port();
    let silence = async {
        let silent: Vec<_> =
            stream::iter(0..idle).map(|_| greeted(port)).buffer_unordered(32).collect().await;
        stream::iter(silent).for_each_concurrent(None, say_nothing).await;
    };
    within("the silent are closed", silence).await;
    stop.cancel();
    within("the working client ends", work).await.expect("it does not panic")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_silent_clients_are_closed_and_a_working_one_keeps_its_speed() {
    let store = Store::directory();
    let setup = Setup::new(&store).create("disk", "64MiB").tcp();
    let setup = setup.env("CAIRN_SERVER__HANDSHAKE_TIMEOUT", "5s");
    // All clients have the same address.
    let gateway = setup.env("CAIRN_SERVER__CONNECTIONS_PER_ADDRESS", "1024").start().await;
    // One silent client lasts as long as a thousand do.
    let alone = done_beside(&gateway, 1).await;
    // By now the gateway has opened what it keeps open. The descriptor of the last client is about to be
    // closed.
    let before = descriptors(&gateway);
    let beside = done_beside(&gateway, 1000).await;
    println!("{alone} reads beside 1 silent client, {beside} beside 1,000");
    assert!(beside > alone / 4, "{alone} reads beside 1 silent client, {beside} beside 1,000");
    until("no descriptor is left", || descriptors(&gateway) <= before).await;
}
