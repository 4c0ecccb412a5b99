//! HTTP/1.1 as far as the admin server's own clients need it: one request over a connection, and the whole
//! answer.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    /// The status; none where it is not HTTP.
    pub(super) status: Option<u16>,
    /// The body, as text.
    pub(super) body: String,
}

/// Sends a request, which must ask for the connection's end, and reads what comes until then, `maximum_bytes`
/// at most.
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
