//! `cairn health`: queries the admin server of a gateway, for containers without another HTTP client.
//!
//! Owns the verdict on the response, and must not know the gateway. Invariant: only status 200 is healthy.

use std::time::Duration;

use tokio::net::TcpStream;
use url::Url;

use super::error::Error;
use super::http::{Answer, exchange};
use crate::config::without_user;

/// How long the response may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum size of a response in bytes.
const ANSWER_BYTES: u64 = 64 << 10;

/// Succeeds if the response has status 200. Otherwise the error contains the response.
pub(super) async fn ask(url: &Url) -> Result<(), Error> {
    let failed = |why: String| Error::Unhealthy { url: without_user(url.as_str()), why };
    let answer = match tokio::time::timeout(PATIENCE, get(url)).await {
        Ok(answer) => answer.map_err(|e| failed(e.to_string()))?,
        Err(_) => return Err(failed(format!("no answer within {PATIENCE:?}"))),
    };
    match answer.status {
        Some(200) => Ok(()),
        Some(status) => Err(failed(format!("{status}: {}", answer.body.trim()))),
        None => Err(failed("the answer is not HTTP".to_owned())),
    }
}

async fn get(url: &Url) -> std::io::Result<Answer> {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or(80);
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    let path = url.path();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
    exchange(stream, &request, ANSWER_BYTES).await
}

/// Parses the URL of an admin server.
pub(super) fn parse(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|e| e.to_string())?;
    if url.scheme() == "http" && url.has_host() {
        Ok(url)
    } else {
        Err("write http://HOST:PORT/PATH".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::task::Tasks;

    /// Queries a server that sends this response.
    async fn asked(answer: &'static str) -> Result<(), Error> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = parse(&format!("http://{}/health/ready", listener.local_addr().unwrap())).unwrap();
        let tasks = Tasks::new();
        let served = tasks.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 512];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(request[..length].to_vec()).unwrap()
        });
        let result = ask(&url).await;
        assert!(served.await.unwrap().starts_with("GET /health/ready HTTP/1.1\r\nHost: 127.0.0.1:"));
        result
    }

    #[tokio::test]
    async fn only_status_200_is_healthy() {
        asked("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        let error = asked("HTTP/1.1 503 Service Unavailable\r\n\r\nstarting\n").await.unwrap_err();
        assert!(error.to_string().ends_with("503: starting"), "{error}");
        assert!(asked("SSH-2.0-x\r\n").await.is_err());
        assert!(asked("").await.is_err());
    }

    #[test]
    fn a_url_is_http_with_a_host() {
        for bad in ["", "127.0.0.1:9180", "https://x/", "unix:/x", "http://"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
