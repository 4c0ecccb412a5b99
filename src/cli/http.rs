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
///
/// # Errors
/// If the connection fails, or if the server closes it without an answer. The server may have done what was
/// requested nevertheless.
pub(super) async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
    maximum_bytes: u64,
) -> std::io::Result<Answer> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(maximum_bytes).read_to_end(&mut answer).await?;
    if answer.is_empty() {
        let why = "the connection was closed without an answer";
        return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, why));
    }
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = match head.split_whitespace().collect::<Vec<_>>()[..] {
        [version, status, ..] if version.starts_with("HTTP/") => status.parse().ok(),
        _ => None,
    };
    Ok(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client gets from a server that sends `answer` and closes the connection.
    async fn asked(answer: &[u8]) -> std::io::Result<Answer> {
        let (client, mut server) = tokio::io::duplex(4096);
        let exchanged = exchange(client, "GET / HTTP/1.1\r\n\r\n", 4096);
        let served = async move {
            let mut request = [0; 18];
            server.read_exact(&mut request).await.expect("the whole request arrives");
            server.write_all(answer).await.expect("the client reads");
        };
        tokio::join!(exchanged, served).0
    }

    #[tokio::test]
    async fn a_server_that_dies_is_told_from_one_that_does_not_speak_http() {
        let error = asked(b"").await.expect_err("there is no answer");
        assert_eq!(error.to_string(), "the connection was closed without an answer");
        assert_eq!(asked(b"SSH-2.0-OpenSSH\r\n").await.expect("an answer").status, None);
        let answer = asked(b"HTTP/1.1 404 Not Found\r\n\r\nnone").await.expect("an answer");
        assert_eq!((answer.status, answer.body.as_str()), (Some(404), "none"));
    }
}
