//! An HTTP/1.1 client for one request a connection, over TCP or a Unix socket.

use cairn::server::ListenAddress;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use crate::support::process::within;

/// A server to ask.
pub(super) struct Client {
    address: ListenAddress,
    host: String,
}

/// What it answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").expect("an answer has a head");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
        let headers = lines.map(|line| line.split_once(": ").expect("a header has a value"));
        Self {
            status: status.parse().expect("a status is a number"),
            headers: headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect(),
            body: body.to_owned(),
        }
    }

    /// The value of a header that must be there.
    pub(super) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(header, _)| header == name);
        &found.unwrap_or_else(|| panic!("no {name} in {self:?}")).1
    }

    /// The body as JSON; null where there is none.
    pub(super) fn json(&self) -> Value {
        if self.body.is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Client {
    /// A client of a server that listens there, on this machine.
    pub(super) fn of(address: &ListenAddress) -> Self {
        let address = match address {
            ListenAddress::Tcp(address) => ListenAddress::Tcp(address.replace("0.0.0.0", "127.0.0.1")),
            ListenAddress::Unix(path) => ListenAddress::Unix(path.clone()),
        };
        let host = match &address {
            ListenAddress::Tcp(address) => address.clone(),
            ListenAddress::Unix(_) => "localhost".to_owned(),
        };
        Self { address, host }
    }

    /// The same server by another name.
    pub(super) fn named(&self, host: &str) -> Self {
        Self { address: self.address.clone(), host: host.to_owned() }
    }

    /// Sends a request and waits for the whole answer.
    pub(super) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Answer {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.host);
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        if !body.is_empty() {
            request
                .push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        request.push_str(&body);
        let text = match &self.address {
            ListenAddress::Tcp(address) => exchange(TcpStream::connect(address).await, &request).await,
            ListenAddress::Unix(path) => exchange(UnixStream::connect(path).await, &request).await,
        };
        Answer::parse(&text)
    }
}

impl Client {
    /// The whole answer to a GET, as it came.
    pub(super) async fn fetch(&self, path: &str, header: &str) -> Vec<u8> {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{header}\r\n\r\n", self.host);
        match &self.address {
            ListenAddress::Tcp(address) => raw(TcpStream::connect(address).await, &request).await,
            ListenAddress::Unix(path) => raw(UnixStream::connect(path).await, &request).await,
        }
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(stream: std::io::Result<S>, request: &str) -> String {
    String::from_utf8(raw(stream, request).await).expect("text")
}

async fn raw<S: AsyncRead + AsyncWrite + Unpin>(stream: std::io::Result<S>, request: &str) -> Vec<u8> {
    let mut stream = stream.expect("the server listens");
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        stream.read_to_end(&mut answer).await
    };
    within(request, exchange).await.expect("the server answers");
    answer
}
