//! Connections that rest in great number over TCP: who comes over a Unix socket or from another address is served.

use std::net::SocketAddr;
use std::sync::Arc;

use cairn::metrics::Metrics;
use cairn::server::{Greeting, ListenAddress, Listener, Options, Server};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use crate::support::memory_export::{MemoryExport, MemoryExports};
use crate::support::process::until;
use crate::support::wire::*;

const CROWD: usize = 1024;

/// A connection from one of this machine's addresses.
async fn connect_from(address: &str, server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
    socket.connect(server).await.unwrap()
}

async fn is_served(mut wire: Wire) {
    wire.greet(3).await;
    wire.go("disk").await;
    wire.is_alive().await;
}

#[tokio::test]
async fn resting_connections_lock_out_neither_unix_sockets_nor_other_addresses() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("nbd.sock");
    let exports = MemoryExports::new(vec![Arc::new(MemoryExport::new("disk", 1 << 20))]);
    let metrics = Metrics::new();
    let server = Server::new(Arc::new(exports), Options::default(), metrics.server());
    let tcp = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let ListenAddress::Tcp(address) = server.listen(tcp, Greeting::Newstyle) else { panic!("not TCP") };
    let address: SocketAddr = address.parse().unwrap();
    let unix = Listener::bind(&ListenAddress::Unix(path.clone())).await.unwrap();
    server.listen(unix, Greeting::Newstyle);

    // In transmission, where a client may rest for ever.
    let mut crowd = Vec::new();
    let mut refused = 0;
    for _ in 0..CROWD {
        let mut wire = Wire::over(connect_from("127.0.0.1", address).await);
        if refused > 0 || server.connections().len() >= Options::default().connections_per_address {
            refused += 1;
        } else {
            wire.greet(3).await;
            wire.go("disk").await;
        }
        crowd.push(wire);
    }
    let limit = format!("cairn_handshake_failures_total{{reason=\"limit\",transport=\"tcp\"}} {refused}\n");
    until("the rest of the crowd is refused", || metrics.render().contains(&limit)).await;
    assert_eq!(refused, CROWD - Options::default().connections_per_address);

    is_served(Wire::over(UnixStream::connect(&path).await.unwrap())).await;
    is_served(Wire::over(connect_from("127.0.0.2", address).await)).await;

    // Many addresses together leave what is kept for Unix sockets, too.
    let mut others = Vec::new();
    while server.free_connections() > Options::default().reserved_connections {
        let mut wire = Wire::over(connect_from("127.0.0.3", address).await);
        wire.greet(3).await;
        wire.go("disk").await;
        others.push(wire);
    }
    assert!(Wire::over(connect_from("127.0.0.4", address).await).is_dropped().await);
    is_served(Wire::over(UnixStream::connect(&path).await.unwrap())).await;
    drop((crowd, others));
    until("all places are given back", || server.free_connections() == CROWD).await;
}
