//! Tests of the admin server over TCP, with requests as bytes.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

struct Stub {
    obstacles: Vec<String>,
}

#[async_trait]
impl Gateway for Stub {
    async fn obstacles(&self) -> Vec<String> {
        self.obstacles.clone()
    }

    async fn volumes(&self) -> Result<Vec<VolumeReport>, String> {
        if self.obstacles.is_empty() { Ok(Vec::new()) } else { Err("the store is away".to_owned()) }
    }
}

struct Fixture {
    admin: Admin,
    address: String,
}

async fn start(obstacles: &[&str], access: Access) -> Fixture {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.address().to_string();
    let stub = Stub { obstacles: obstacles.iter().map(|&o| o.to_owned()).collect() };
    Fixture { admin: Admin::start(listener, Metrics::new(), Arc::new(stub), access), address }
}

impl Fixture {
    /// Sends a request with a header line more; gives the status and all that came.
    async fn get(&self, path: &str, line: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: cairn\r\nConnection: close\r\n{line}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        (text.split(' ').nth(1).unwrap().parse().unwrap(), text)
    }
}

#[tokio::test]
async fn metrics_and_health_need_no_token() {
    let of = start(&[], Access::Token("secret".to_owned())).await;
    let (status, text) = of.get("/metrics", "").await;
    assert_eq!(status, 200);
    assert!(text.contains("content-type: text/plain; version=0.0.4"), "{text}");
    assert!(text.contains("\ncairn_build_info{version=\""), "{text}");
    assert_eq!(of.get("/health/live", "").await.0, 200);
    assert_eq!(of.get("/health/ready", "").await.0, 200);
    assert_eq!(of.get("/elsewhere", "").await.0, 404);
    of.admin.stop().await;
}

#[tokio::test]
async fn what_is_not_ready_says_why_and_lives() {
    let of = start(&["volume \"a\" is not open", "the store is away"], Access::Open).await;
    let (status, text) = of.get("/health/ready", "").await;
    assert_eq!(status, 503);
    assert!(text.ends_with("volume \"a\" is not open\nthe store is away\n"), "{text}");
    assert_eq!(of.get("/health/live", "").await.0, 200);
    let (status, text) = of.get("/api/v1/volumes", "").await;
    assert_eq!(status, 503);
    assert!(text.ends_with(r#"{"error":"the store is away"}"#), "{text}");
    of.admin.stop().await;
}

#[tokio::test]
async fn the_api_asks_for_the_token() {
    let of = start(&[], Access::Token("secret".to_owned())).await;
    for line in
        ["", "Authorization: Bearer wrong!\r\n", "Authorization: secret\r\n", "Authorization: Bearer \r\n"]
    {
        let (status, text) = of.get("/api/v1/volumes", line).await;
        assert_eq!(status, 401, "{line}");
        assert!(text.contains("www-authenticate: Bearer"), "{text}");
    }
    let (status, text) = of.get("/api/v1/volumes", "Authorization: Bearer secret\r\n").await;
    assert_eq!(status, 200);
    assert!(text.ends_with(r#"{"volumes":[]}"#), "{text}");
    of.admin.stop().await;
}

#[tokio::test]
async fn without_a_token_only_this_machine_may() {
    let at = |text: &str, token: Option<&str>| Access::at(&text.parse().unwrap(), token.map(str::to_owned));
    assert_eq!(at("127.0.0.1:9180", None), Access::Open);
    assert_eq!(at("[::1]:9180", None), Access::Open);
    assert_eq!(at("unix:/run/admin.sock", None), Access::Open);
    assert_eq!(at("0.0.0.0:9180", None), Access::Closed);
    assert_eq!(at("10.0.0.1:9180", None), Access::Closed);
    assert_eq!(at("127.0.0.1:9180", Some("x")), Access::Token("x".to_owned()));
    let of = start(&[], Access::Closed).await;
    let (status, text) = of.get("/api/v1/volumes", "Authorization: Bearer x\r\n").await;
    assert_eq!(status, 403);
    assert!(text.contains("admin.token_file"), "{text}");
    of.admin.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_cut_off() {
    let of = start(&[], Access::Open).await;
    let mut stream = TcpStream::connect(&of.address).await.unwrap();
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(600), stream.read(&mut byte)).await;
    assert_eq!(read.expect("it is cut off in time").unwrap_or(0), 0);
    of.admin.stop().await;
}
