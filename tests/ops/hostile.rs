//! Clients of the admin server that mean no good: what they keep is bounded, and others are served.

use std::sync::Arc;
use std::time::Duration;

use cairn::admin::{Access, Admin, Gateway, Options};
use cairn::metrics::Metrics;
use cairn::server::{ListenAddress, Listener};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::client::Client;
use super::house::House;
use crate::support::process::within;

const CONNECTIONS: usize = 8;
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// An admin server on loopback that takes few connections, and waits for ever unless told otherwise.
async fn server(options: Options) -> (Admin, Client, String) {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let access = Access::at(listener.address(), None);
    let gateway = House::new() as Arc<dyn Gateway>;
    let admin = Admin::start(listener, Metrics::new(), gateway, access, options);
    let ListenAddress::Tcp(address) = admin.address().clone() else { panic!("not TCP") };
    let client = Client::of(admin.address());
    (admin, client, address)
}

fn patient() -> Options {
    Options {
        maximum_connections: CONNECTIONS,
        header_timeout: NEVER,
        body_timeout: NEVER,
        ..Options::default()
    }
}

/// A connection on which that was sent.
async fn sent(address: &str, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may have answered and closed before all of it was taken.
    drop(stream.write_all(text.as_bytes()).await);
    stream
}

/// What comes until the server closes; an error is an end like any other.
async fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    let read = async {
        let mut part = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut part).await {
            answer.extend_from_slice(&part[..length]);
        }
    };
    within("the server closes", read).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn is_live(client: &Client) {
    assert_eq!(client.send("GET", "/health/live", &[], None).await.status, 200);
}

#[tokio::test]
async fn whoever_keeps_connections_open_keeps_nobody_out() {
    let (_admin, client, address) = server(patient()).await;
    let mut kept = Vec::new();
    for n in 0..20 * CONNECTIONS {
        // Silent; within a head; within a body.
        let texts = [
            "",
            "GET /metrics HTT",
            "POST /api/v1/volumes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
        ];
        kept.push(sent(&address, texts[n % 3]).await);
    }
    is_live(&client).await;
    // The first of them made room.
    let first = kept.swap_remove(0);
    assert_eq!(rest(first).await, "");
    is_live(&client).await;
}

#[tokio::test]
async fn who_does_not_read_what_it_asked_for_keeps_nobody_out() {
    let (_admin, client, address) = server(patient()).await;
    let ask = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut deaf = Vec::new();
    for _ in 0..2 * CONNECTIONS {
        let stream = TcpStream::connect(&address).await.unwrap();
        // Until the server takes no more: it does not read on while its answers are not taken.
        while let Ok(1..) = stream.try_write(ask.as_bytes()) {
            tokio::task::yield_now().await;
        }
        deaf.push(stream);
    }
    is_live(&client).await;
}

#[tokio::test]
async fn a_head_or_a_body_that_does_not_end_is_cut_off() {
    let (_admin, client, address) = server(patient()).await;
    let long = "x".repeat(100);
    let heads = [
        format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", long.repeat(10_000)),
        format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", long.repeat(10_000)),
        format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(100_000)),
    ];
    for head in heads {
        let answer = rest(sent(&address, &head).await).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let post = "POST /api/v1/volumes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n";
    let announced = format!("{post}Content-Length: 1000000000\r\n\r\n{}", long.repeat(1000));
    let chunk = format!("{:x}\r\n{long}\r\n", long.len());
    let endless = format!("{post}Transfer-Encoding: chunked\r\n\r\n{}", chunk.repeat(1000));
    for body in [announced, endless] {
        let answer = rest(sent(&address, &body).await).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
    is_live(&client).await;
}

#[tokio::test]
async fn a_head_or_a_body_that_takes_too_long_is_given_up() {
    let soon = Duration::from_millis(50);
    let (_admin, _, address) =
        server(Options { header_timeout: soon, body_timeout: soon, ..patient() }).await;
    for text in ["", "GET /metrics HTT", "GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        let answer = rest(sent(&address, text).await).await;
        assert_eq!(answer.ends_with("live\n"), text.ends_with("\r\n\r\n"), "{text}: {answer}");
    }
    let body = "POST /api/v1/volumes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{";
    let answer = rest(sent(&address, body).await).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}
