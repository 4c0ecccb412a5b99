//! HTTP/1.1 for a relay: where the head and the body of a message end. It interprets nothing else.

use std::io::{Error, ErrorKind, Result};

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Maximum size of a head in bytes. Those of S3 are far smaller.
const HEAD_BYTES: usize = 64 * 1024;

/// Damage that the relay does to a body.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Damage {
    /// Only the first half is forwarded.
    Short,
    /// One bit in the middle is flipped.
    Flip,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Body {
    Length(u64),
    Chunked,
}

/// The head of a request or response.
#[derive(Debug)]
pub(crate) struct Head {
    bytes: Vec<u8>,
    body: Body,
}

impl Head {
    fn parse(bytes: Vec<u8>) -> Result<Self> {
        let text = std::str::from_utf8(&bytes).map_err(|_| malformed("a head is text"))?;
        let mut body = Body::Length(0);
        for line in text.lines().skip(1) {
            let Some((name, value)) = line.split_once(':') else { continue };
            if name.eq_ignore_ascii_case("content-length") && body != Body::Chunked {
                body = Body::Length(value.trim().parse().map_err(|_| malformed("a length is a number"))?);
            }
            if name.eq_ignore_ascii_case("transfer-encoding") && value.trim().eq_ignore_ascii_case("chunked")
            {
                body = Body::Chunked;
            }
        }
        Ok(Self { body, bytes })
    }

    /// Returns the head as it arrived, including the empty line.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns a word of the first line.
    pub(crate) fn word(&self, index: usize) -> String {
        let line = self.bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
        String::from_utf8_lossy(line).split(' ').nth(index).unwrap_or_default().to_owned()
    }

    /// Returns the target without its first component, which is the bucket. Keys of tests need no
    /// percent-decoding except for `/`.
    pub(crate) fn key(&self) -> String {
        let target = self.word(1).replace("%2F", "/");
        target.trim_start_matches('/').split_once('/').map(|(_, key)| key.to_owned()).unwrap_or_default()
    }
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

/// One side of a relayed connection.
pub(crate) struct Peer {
    stream: BufReader<TcpStream>,
}

impl Peer {
    pub(crate) fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::with_capacity(256 * 1024, stream) })
    }

    /// Reads the next head. `None` if the peer has closed the connection between two messages.
    pub(crate) async fn head(&mut self) -> Result<Option<Head>> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            let start = bytes.len();
            self.line(&mut bytes).await?;
            if bytes.len() == start {
                return if bytes.is_empty() {
                    Ok(None)
                } else {
                    Err(malformed("a head ends in an empty line"))
                };
            }
        }
        Head::parse(bytes).map(Some)
    }

    /// Reads the response to `request`. Interim responses are skipped, and responses that have no body by
    /// definition have none.
    pub(crate) async fn answer(&mut self, request: &Head) -> Result<Option<Head>> {
        loop {
            let Some(mut head) = self.head().await? else { return Ok(None) };
            let status = head.word(1);
            if status.starts_with('1') {
                continue;
            }
            if request.word(0) == "HEAD" || status == "204" || status == "304" {
                head.body = Body::Length(0);
            }
            return Ok(Some(head));
        }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(bytes).await
    }

    /// Forwards the body that follows `head`. Returns its length.
    pub(crate) async fn forward_body(
        &mut self,
        head: &Head,
        to: &mut Self,
        damage: Option<Damage>,
    ) -> Result<u64> {
        match head.body {
            Body::Length(length) => self.forward(length, Some(to), damage).await,
            Body::Chunked => {
                let mut total = 0;
                loop {
                    let mut line = Vec::new();
                    self.line(&mut line).await?;
                    to.write(&line).await?;
                    let digits = String::from_utf8_lossy(&line);
                    let digits = digits.split(';').next().unwrap_or_default().trim();
                    let size = u64::from_str_radix(digits, 16)
                        .map_err(|_| malformed("a chunk begins with its size"))?;
                    if size == 0 {
                        break;
                    }
                    total += self.forward(size, Some(to), damage).await?;
                    self.forward(2, Some(to), None).await?;
                }
                // Trailers, up to the empty line.
                loop {
                    let mut line = Vec::new();
                    self.line(&mut line).await?;
                    to.write(&line).await?;
                    if line.len() <= 2 {
                        return Ok(total);
                    }
                }
            }
        }
    }

    /// Reads and drops the body that follows `head`.
    pub(crate) async fn discard_body(&mut self, head: &Head) -> Result<()> {
        match head.body {
            Body::Length(length) => self.forward(length, None, None).await.map(drop),
            Body::Chunked => Err(malformed("only bodies with a length can be discarded")),
        }
    }

    async fn forward(
        &mut self,
        length: u64,
        mut to: Option<&mut Self>,
        damage: Option<Damage>,
    ) -> Result<u64> {
        let mut buffer = vec![0; 256 * 1024];
        let (mut done, middle) = (0, length / 2);
        while done < length {
            let until = if damage == Some(Damage::Short) && done < middle { middle } else { length };
            let most = usize::try_from(until - done).unwrap_or(usize::MAX).min(buffer.len());
            let count = self.stream.read(&mut buffer[..most]).await?;
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let end = done + u64::try_from(count).expect("a usize fits");
            if damage == Some(Damage::Flip) && (done..end).contains(&middle) {
                buffer[usize::try_from(middle - done).expect("within the buffer")] ^= 1;
            }
            if !(damage == Some(Damage::Short) && done >= middle)
                && let Some(to) = to.as_mut()
            {
                to.write(&buffer[..count]).await?;
            }
            done = end;
        }
        Ok(length)
    }

    /// Appends a line with its end, or nothing at the end of the stream.
    async fn line(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
        loop {
            match self.stream.read_u8().await {
                Ok(byte) => bytes.push(byte),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
            if bytes.last() == Some(&b'\n') {
                return Ok(());
            }
            if bytes.len() > HEAD_BYTES {
                return Err(malformed("a head is short"));
            }
        }
    }
}
