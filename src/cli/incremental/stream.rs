//! The stream that an import or a backup applies, part by part.
//!
//! Owns where its bytes come from: a file, standard input, or a sender in this process. It must not know what
//! is done with the parts. Invariant: wherever the bytes come from, a part is returned only after its
//! checksum was verified, and the stream is complete only after its end.

use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;

use crate::cli::endpoint::Endpoint;
use crate::cli::error::{Error, NbdError};
use crate::cli::output;
use crate::task::Tasks;
use crate::volume::format::codec::DecodeError;
use crate::volume::format::stream::{Digest, Header, Part, StreamDecoder, Totals};
use crate::volume::incremental::send::Sender;

/// Bytes of the stream that are read at a time.
const READ_BYTES: usize = 1 << 20;

/// A stream that is read or made.
pub(super) struct Stream {
    /// What it is called in messages.
    name: String,
    origin: Origin,
    decoder: StreamDecoder,
}

/// Where the bytes come from.
enum Origin {
    Read(Reader),
    Made(Box<Made>),
}

/// A file or standard input.
struct Reader {
    /// The file, unless it is standard input.
    file: Option<Arc<File>>,
    work: Tasks,
}

/// A stream that is made while it is applied.
struct Made {
    /// What makes it, until the end was passed.
    sender: Option<Sender>,
    /// The snapshot that the stream leads from, in messages; `None` if it has everything.
    from: Option<String>,
    /// The snapshot that it leads to.
    to: String,
    /// Digest of the result, for the end of the stream.
    result_digest: Option<Digest>,
}

impl Stream {
    /// Opens a file or standard input.
    pub(super) fn open(source: &Endpoint) -> Result<Self, Error> {
        let file = match (source, source.path()) {
            (Endpoint::Standard, _) => None,
            (_, Some(path)) => {
                let opened = File::open(path);
                let failed = |source| NbdError::File { path: path.to_owned(), source };
                Some(Arc::new(opened.map_err(failed)?))
            }
            (_, None) => {
                let why = format!("--onto reads a file or standard input, and not {source}");
                return Err(Error::Mistake(why));
            }
        };
        let origin = Origin::Read(Reader { file, work: Tasks::new() });
        Ok(Self { name: source.to_string(), origin, decoder: StreamDecoder::default() })
    }

    /// Takes what a sender makes, which has returned its first bytes already. `from` and `to` are the
    /// snapshots that the stream leads from and to, in messages; one that has everything leads from none.
    pub(super) fn made(
        (sender, first): (Sender, Vec<u8>),
        from: Option<String>,
        to: String,
        result_digest: Option<Digest>,
    ) -> Self {
        let mut decoder = StreamDecoder::default();
        decoder.push(&first);
        let name = to.clone();
        let origin = Origin::Made(Box::new(Made { sender: Some(sender), from, to, result_digest }));
        Self { name, origin, decoder }
    }

    /// Returns the first part.
    pub(super) async fn header(&mut self) -> Result<Header, Error> {
        match self.next_part().await? {
            Some(Part::Header(header)) => Ok(*header),
            _ => Err(self.cut_off()),
        }
    }

    /// Returns the next part, or `None` where the stream ends.
    pub(super) async fn next_part(&mut self) -> Result<Option<Part>, Error> {
        loop {
            let part = self.decoder.next_part();
            if let Some(part) = part.map_err(|error| self.broken(error))? {
                return Ok(Some(part));
            }
            let bytes = self.more().await?;
            if bytes.is_empty() {
                return Ok(None);
            }
            self.decoder.push(&bytes);
        }
    }

    /// Checks that nothing follows the end.
    pub(super) async fn check_end(&mut self) -> Result<(), Error> {
        let bytes = self.more().await?;
        self.decoder.push(&bytes);
        self.decoder.check_end().map_err(|error| self.broken(error))
    }

    /// What the parts so far have.
    pub(super) fn totals(&self) -> Totals {
        self.decoder.totals()
    }

    /// The error of a stream that ends too early.
    pub(super) fn cut_off(&self) -> Error {
        self.broken(DecodeError::Truncated { missing: 1 })
    }

    fn broken(&self, source: DecodeError) -> Error {
        Error::Stream { name: self.name.clone(), source }
    }

    /// Returns the next bytes; none at the end.
    async fn more(&mut self) -> Result<Vec<u8>, Error> {
        match &mut self.origin {
            Origin::Read(reader) => reader.more().await,
            Origin::Made(made) => made.more().await,
        }
    }
}

impl Reader {
    async fn more(&self) -> Result<Vec<u8>, Error> {
        let file = self.file.clone();
        let read = move || match file {
            None => output::take(READ_BYTES),
            Some(file) => {
                let mut bytes = Vec::with_capacity(READ_BYTES);
                (&*file).take(READ_BYTES as u64).read_to_end(&mut bytes)?;
                Ok(bytes)
            }
        };
        let read = self.work.spawn_blocking(read).await.expect("the work does not panic");
        read.map_err(|source| Error::System { what: "cannot read the stream", source })
    }
}

impl Made {
    /// After an error, nothing follows, so the stream has no end.
    async fn more(&mut self) -> Result<Vec<u8>, Error> {
        let Some(mut sender) = self.sender.take() else { return Ok(Vec::new()) };
        match sender.next_bytes().await {
            Ok(Some(bytes)) => {
                self.sender = Some(sender);
                Ok(bytes)
            }
            Ok(None) => Ok(sender.end(self.result_digest)),
            Err(error) => Err(match (self.from.clone(), self.to.clone()) {
                (Some(from), to) => Error::Compare { from, to, source: error.into() },
                (None, of) => Error::Snapshot { of, source: error.into() },
            }),
        }
    }
}
