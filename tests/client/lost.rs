//! Servers that stand still, or whose machine is gone: nobody waits for ever, and who moves is waited for.

use std::time::Duration;

use bytes::Bytes;
use cairn::client::{Broken, Client, Error, Options, Uri};
use cairn::effect::Durability::Volatile;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};

use super::violations::{options, pipe, welcome};
use crate::support::process::until;
use crate::support::wire::*;

const LIMIT: Duration = Duration::from_secs(60);
const ALMOST: Duration = Duration::from_secs(59);

async fn impatient() -> (Wire, Client) {
    let (mut server, stream) = pipe();
    let options = Options { stall_timeout: Some(LIMIT), ..options() };
    let (client, ()) = tokio::join!(Client::connect_over(stream, "disk", &options), welcome(&mut server));
    (server, client.unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stands_still_is_given_up() {
    let (mut server, client) = impatient().await;
    // It owed nothing until now.
    sleep(10 * LIMIT).await;
    let asked = Instant::now();
    let (one, other) = tokio::join!(client.read(0, 8), client.flush());
    for failed in [one.map(drop), other] {
        assert!(matches!(failed, Err(Error::Broken(Broken::Stalled(LIMIT)))), "{failed:?}");
    }
    assert_eq!(asked.elapsed(), LIMIT);
    assert!(matches!(client.read(0, 8).await, Err(Error::Broken(Broken::Stalled(LIMIT)))));
    // Nobody would take a DISC; to say so takes no time.
    client.disconnect().await;
    assert_eq!(asked.elapsed(), LIMIT);
    server.expect(request(0, READ, 1, 0, 8)).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_sends_a_byte_now_and_then_is_waited_for() {
    let (mut server, client) = impatient().await;
    let begun = Instant::now();
    let slow = async {
        server.expect(request(0, READ, 1, 0, 8)).await;
        for byte in chunk(1, 1, 1, b"\0\0\0\0\0\0\0\x0001234567") {
            sleep(ALMOST).await;
            server.send([byte]).await;
        }
    };
    let (read, ()) = tokio::join!(client.read(0, 8), slow);
    assert_eq!(read.unwrap(), &b"01234567"[..]);
    assert!(begun.elapsed() > 20 * LIMIT, "{:?}", begun.elapsed());
    // And between commands there is nothing to wait for.
    sleep(10 * LIMIT).await;
    let (read, ()) = tokio::join!(client.read(0, 8), async {
        server.expect(request(0, READ, 2, 0, 8)).await;
        sleep(ALMOST).await;
        server.send(chunk(1, 1, 2, b"\0\0\0\0\0\0\0\x0076543210")).await;
    });
    assert_eq!(read.unwrap(), &b"76543210"[..]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_a_little_now_and_then_is_waited_for() {
    const PART: usize = 1 << 16;
    // What lies in the pipe cannot be seen to move.
    let (ours, theirs) = tokio::io::duplex(PART);
    let mut server = Wire::over(theirs);
    let patient = Options { stall_timeout: Some(LIMIT), ..options() };
    let (client, ()) = tokio::join!(Client::connect_over(ours, "disk", &patient), welcome(&mut server));
    let client = client.unwrap();
    let slow = async {
        server.expect(request(0, WRITE, 1, 0, 1 << 20)).await;
        for _ in 0..(1 << 20) / PART {
            sleep(ALMOST).await;
            assert!(server.read(PART).await == [7; PART]);
        }
        server.send(chunk(1, 0, 1, b"")).await;
    };
    let (written, ()) = tokio::join!(client.write(0, Bytes::from(vec![7; 1 << 20]), Volatile), slow);
    written.unwrap();
}

/// "The client MAY issue a soft disconnect at any time, but SHOULD wait until there are no inflight requests first."
#[tokio::test(start_paused = true)]
async fn disc_waits_a_moment_for_requests_in_flight() {
    let (mut server, client) = impatient().await;
    // Nobody waits for this answer any more.
    assert!(timeout(Duration::from_millis(1), client.read(0, 8)).await.is_err());
    let serve = async {
        server.expect(request(0, READ, 1, 0, 8)).await;
        assert!(timeout(Duration::from_secs(1), server.read(1)).await.is_err(), "DISC before the answer");
        server.send(chunk(1, 1, 1, b"\0\0\0\0\0\0\0\x0001234567")).await;
        server.expect(request(0, DISC, 0, 0, 0)).await;
        drop(server);
    };
    tokio::join!(client.disconnect(), serve);
}

#[tokio::test(start_paused = true)]
async fn disc_does_not_wait_for_ever() {
    let (mut server, client) = impatient().await;
    assert!(timeout(Duration::from_millis(1), client.read(0, 8)).await.is_err());
    let serve = async {
        server.expect(request(0, READ, 1, 0, 8)).await;
        server.expect(request(0, DISC, 0, 0, 0)).await;
        drop(server);
    };
    let begun = Instant::now();
    tokio::join!(client.disconnect(), serve);
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
}

/// The timer of a TCP connection, as `/proc/net/tcp` has it ("tr"): 02 is that of keepalive.
fn timer(local: u16, remote: u16) -> Option<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let is_ours = |row: &Vec<&str>| {
        row.get(1).is_some_and(|it| it.ends_with(&format!(":{local:04X}")))
            && row.get(2).is_some_and(|it| it.ends_with(&format!(":{remote:04X}")))
    };
    rows.find(is_ours).map(|row| row[5].split(':').next().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn the_system_asks_whether_the_machine_of_a_silent_server_is_still_there() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let uri: Uri = format!("nbd://127.0.0.1:{port}/disk").parse().unwrap();
    let serve = async {
        let (stream, peer) = listener.accept().await.unwrap();
        let mut server = Wire::over(stream);
        welcome(&mut server).await;
        (server, peer)
    };
    let options = options();
    let (client, (_server, peer)) = tokio::join!(Client::connect(&uri, &options), serve);
    let client = client.unwrap();
    assert_eq!(client.peer().map(|peer| peer.port()), Some(port));
    until("keepalive waits for its time", || timer(peer.port(), port).as_deref() == Some("02")).await;
}
