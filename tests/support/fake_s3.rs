//! A TCP server that reads HTTP requests and answers each with bytes from the test, however wrong.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::config::Credentials;
use cairn::store::S3Options;
use cairn::task::Tasks;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use super::process::within;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// The path and the query.
    pub(crate) target: String,
    /// The headers, with names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

/// What the server sends in response.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// Sends these bytes. The connection then serves the next request.
    Whole(Vec<u8>),
    /// Sends these bytes, then closes the connection.
    Close(Vec<u8>),
    /// Sends these bytes and then nothing more. The connection stays open.
    Stall(Vec<u8>),
}

/// Formats a well-formed response with these headers and this body.
pub(crate) fn answer(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = head(status, headers, body.len());
    bytes.extend_from_slice(body);
    bytes
}

/// Formats the head of a response that announces a body of `length` bytes.
pub(crate) fn head(status: &str, headers: &[(&str, &str)], length: usize) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.into_bytes()
}

/// Formats an error in the format of S3.
pub(crate) fn error(status: &str, code: &str) -> Vec<u8> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>as the test has it\
         </Message><RequestId>1</RequestId></Error>"
    );
    answer(status, &[("Content-Type", "application/xml")], body.as_bytes())
}

/// The server. Dropping it stops it.
pub(crate) struct FakeS3 {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    /// Number of requests so far.
    answered: watch::Receiver<usize>,
    _tasks: Arc<Tasks>,
}

impl FakeS3 {
    pub(crate) async fn start(reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(None, reply).await
    }

    /// Starts the server with TLS.
    pub(crate) async fn start_tls(
        config: Arc<ServerConfig>,
        reply: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::serve(Some(TlsAcceptor::from(config)), reply).await
    }

    async fn serve(
        tls: Option<TlsAcceptor>,
        reply: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("there is a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let tasks = Arc::new(Tasks::new());
        let (count, answered) = watch::channel(0);
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::new(Seen { requests: Arc::clone(&requests), count });
        let (reply, connections) = (Arc::new(reply), tasks.child());
        tasks.spawn_until_cancelled(async move {
            loop {
                let (socket, _) = listener.accept().await.expect("a listener accepts");
                let (seen, reply, tls) = (Arc::clone(&seen), Arc::clone(&reply), tls.clone());
                connections.spawn_until_cancelled(async move {
                    let Some(tls) = tls else { return serve(socket, &seen, &*reply).await };
                    // A client that does not trust the server has closed the connection.
                    if let Ok(socket) = tls.accept(socket).await {
                        serve(socket, &seen, &*reply).await;
                    }
                });
            }
        });
        Self { port, requests, answered, _tasks: tasks }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns every request so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().clone()
    }

    /// Waits until the requests so far satisfy a condition.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&[Request]) -> bool) {
        let mut answered = self.answered.clone();
        let reached = answered.wait_for(|_| wanted(&self.requests.lock()));
        within(what, reached).await.expect("the server lives as long as this");
    }

    /// Returns how to reach the server. The timeouts are short, because some tests wait for one.
    pub(crate) fn options(&self) -> S3Options {
        S3Options {
            endpoint: Some(format!("http://127.0.0.1:{}", self.port)),
            region: Some("us-east-1".into()),
            credentials: Some(Credentials::new("user", "secret", None, None, "test")),
            path_style: true,
            request_timeout: Duration::from_millis(500),
            stall_timeout: Duration::from_millis(250),
            ..S3Options::default()
        }
    }
}

/// The requests so far, and who is notified.
struct Seen {
    requests: Arc<Mutex<Vec<Request>>>,
    count: watch::Sender<usize>,
}

impl Seen {
    fn note(&self, request: Request) {
        self.requests.lock().push(request);
        self.count.send_modify(|count| *count += 1);
    }
}

/// Serves one connection until the client closes it.
async fn serve(
    mut socket: impl AsyncRead + AsyncWrite + Unpin,
    seen: &Seen,
    reply: &(impl Fn(&Request) -> Reply + Sync),
) {
    let mut buffer = Vec::new();
    while let Some(request) = read(&mut socket, &mut buffer).await {
        let reply = reply(&request);
        seen.note(request);
        let (Reply::Whole(bytes) | Reply::Close(bytes) | Reply::Stall(bytes)) = &reply;
        // A client that gave up has closed the connection.
        if socket.write_all(bytes).await.is_err() || socket.flush().await.is_err() {
            return;
        }
        match reply {
            Reply::Whole(_) => {}
            Reply::Close(_) => return,
            Reply::Stall(_) => std::future::pending().await,
        }
    }
}

async fn read(socket: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<Request> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if socket.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer[..end].to_vec()).expect("a request's head is text");
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().expect("a number"));
    while buffer.len() < end + length {
        if socket.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = buffer[end..end + length].to_vec();
    buffer.drain(..end + length);
    Some(Request { method, target, headers, body })
}
