//! HTTP/1.1 for the clients of the admin server: one request per connection, and its whole response.
//!
//! Owns the framing of a response, and must not know what is requested. Invariant: it never reads more than
//! the given number of bytes.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The response to a request.
#[derive(Debug)]
pub(super) struct Answer {
    /// The status code; `None` if the response is not HTTP.
    pub(super) status: Option<u16>,
    /// The body as text.
    pub(super) body: String,
}

/// Sends a request, which must ask the server to close the connection, and reads the response until then, but
/// at most `maximum_bytes`.
pub(super) async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
    maximum_bytes: u64,
) -> std::io::Result<Answer> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(maximum_bytes).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = match head.split_whitespace().collect::<Vec<_>>()[..] {
        [version, status, ..] if version.starts_with("HTTP/") => status.parse().ok(),
        _ => None,
    };
    Ok(Answer { status, body: body.to_owned() })
}
