//! Makes the incremental stream of two snapshots of a volume, or a stream that has all of a snapshot.
//!
//! Owns what is read and in which order it is sent. Must not know where the bytes go. Invariant: at most
//! `PIECES_AHEAD` pieces are in memory, each of at most [`MAX_DATA_BYTES`] bytes.

use std::fmt;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;

use crate::volume::diff::{Change, Diff, Side};
use crate::volume::error::{DiffError, Error};
use crate::volume::format::geometry::BLOCK_LEN;
use crate::volume::format::stream::{Digest, Header, MAX_DATA_BYTES, State, StreamEncoder, Totals};
use crate::volume::read::Segment;
use crate::volume::snapshot::SnapshotDisk;
use crate::volume::state::piece::is_zero;

/// Number of pieces that are read concurrently.
const PIECES_AHEAD: usize = 16;

/// A piece of a change, and what it reads as.
type Piece = (Change, Vec<Segment>);

/// A stream that is being made.
pub struct Sender {
    after: Arc<SnapshotDisk>,
    diff: Diff,
    /// What is left of the change that is being divided into pieces.
    rest: Option<Change>,
    reading: FuturesOrdered<BoxFuture<'static, Result<Piece, Error>>>,
    /// End of what was encoded, if the stream has everything. Then what no change lists is sent as zeros.
    whole_to: Option<u64>,
    encoder: StreamEncoder,
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Sender");
        shown.field("diff", &self.diff).field("encoder", &self.encoder).finish_non_exhaustive()
    }
}

impl Sender {
    /// Starts the stream that leads from one snapshot of a volume to another one, either of which may be the
    /// older. Returns its first bytes too.
    ///
    /// # Errors
    /// If the snapshots are not of one volume.
    pub fn begin(
        before: &Arc<SnapshotDisk>,
        after: &Arc<SnapshotDisk>,
        base_digest: Option<Digest>,
    ) -> Result<(Self, Vec<u8>), DiffError> {
        if before.keys() != after.keys() {
            return Err(DiffError::Unrelated);
        }
        let diff = Diff::between(Side::of_snapshot(before), Side::of_snapshot(after))?;
        let header = Header {
            volume: after.keys().volume(),
            geometry: after.root().geometry,
            base: state(before),
            result: state(after),
            base_digest,
        };
        Ok(Self::of(after, diff, &header, None))
    }

    /// Starts a stream that has all of a snapshot, zeros included. Returns its first bytes too.
    #[must_use]
    pub fn whole(disk: &Arc<SnapshotDisk>) -> (Self, Vec<u8>) {
        let result = state(disk);
        let header = Header {
            volume: disk.keys().volume(),
            geometry: disk.root().geometry,
            base: State::anything(&result),
            result,
            base_digest: None,
        };
        Self::of(disk, Diff::of_all(Side::of_snapshot(disk)), &header, Some(0))
    }

    fn of(after: &Arc<SnapshotDisk>, diff: Diff, header: &Header, whole_to: Option<u64>) -> (Self, Vec<u8>) {
        let (encoder, bytes) = StreamEncoder::new(header);
        let (after, reading) = (Arc::clone(after), FuturesOrdered::new());
        (Self { after, diff, rest: None, reading, whole_to, encoder }, bytes)
    }

    /// What the stream has so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.encoder.totals()
    }

    /// How far the disk has been compared, in bytes from its start.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.diff.position()
    }

    /// Returns the next bytes of the stream, or `None` if only its end is left.
    ///
    /// # Errors
    /// If the snapshots cannot be compared or the second one cannot be read.
    pub async fn next_bytes(&mut self) -> Result<Option<Vec<u8>>, Error> {
        while self.reading.len() < PIECES_AHEAD
            && let Some(piece) = self.next_piece().await?
        {
            self.reading.push_back(Box::pin(read(Arc::clone(&self.after), piece)));
        }
        let Some(read) = self.reading.next().await else {
            let mut bytes = Vec::new();
            self.fill_to(self.after.size_bytes(), &mut bytes);
            return Ok(if bytes.is_empty() { None } else { Some(bytes) });
        };
        let (piece, segments) = read?;
        Ok(Some(self.encode(&piece, &segments)))
    }

    /// Ends the stream. Returns its last bytes.
    #[must_use]
    pub fn end(self, result_digest: Option<Digest>) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encoder.end(result_digest, &mut bytes);
        bytes
    }

    /// Returns the next piece. Zeros are one piece, however long.
    async fn next_piece(&mut self) -> Result<Option<Change>, Error> {
        let change = match self.rest.take() {
            Some(change) => Some(change),
            None => self.diff.next_change().await?,
        };
        let Some(Change { range, zero: false }) = change else { return Ok(change) };
        // Pieces end where those of all other changes do.
        let most = u64::from(MAX_DATA_BYTES);
        let end = range.end.min(range.start - range.start % most + most);
        if end < range.end {
            self.rest = Some(Change { range: end..range.end, zero: false });
        }
        Ok(Some(Change { range: range.start..end, zero: false }))
    }

    fn encode(&mut self, piece: &Change, segments: &[Segment]) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.fill_to(piece.range.start, &mut bytes);
        self.whole_to = self.whole_to.map(|_| piece.range.end);
        let (mut at, mut data) = (piece.range.start, Vec::new());
        if piece.zero {
            self.encoder.zeros(at, piece.range.end - at, &mut bytes);
        }
        for segment in segments {
            match segment {
                Segment::Data(more) => data.extend_from_slice(more),
                Segment::Zero(length) => {
                    at = self.encode_data(at, &mut data, &mut bytes);
                    self.encoder.zeros(at, *length, &mut bytes);
                    at += length;
                }
            }
        }
        self.encode_data(at, &mut data, &mut bytes);
        bytes
    }

    /// Encodes zeros up to an offset, if the stream has everything.
    fn fill_to(&mut self, end: u64, to: &mut Vec<u8>) {
        let Some(at) = self.whole_to else { return };
        if at < end {
            self.encoder.zeros(at, end - at, to);
            self.whole_to = Some(end);
        }
    }

    /// Encodes data that begins at `at`, if there is any. Returns its end. Stored pages have zeros too, so
    /// blocks of zeros are encoded as zeros.
    fn encode_data(&mut self, at: u64, data: &mut Vec<u8>, to: &mut Vec<u8>) -> u64 {
        let data = std::mem::take(data);
        let blocks: Vec<&[u8]> = data.chunks(BLOCK_LEN).collect();
        let mut from = 0;
        for run in blocks.chunk_by(|one, next| is_zero(one) == is_zero(next)) {
            let end = from + run.iter().map(|block| block.len()).sum::<usize>();
            match is_zero(run[0]) {
                true => self.encoder.zeros(at + from as u64, (end - from) as u64, to),
                false => self.encoder.data(at + from as u64, &data[from..end], to),
            }
            from = end;
        }
        at + data.len() as u64
    }
}

/// Name of the snapshot of a copy that says that it has the content of this snapshot.
#[must_use]
pub fn copy_name(disk: &SnapshotDisk) -> String {
    state(disk).copy_name(disk.keys().volume())
}

/// How a header describes a snapshot.
fn state(disk: &SnapshotDisk) -> State {
    let root = disk.root();
    State {
        root: root.id,
        root_checksum: disk.root_checksum(),
        commit: root.commit,
        size_bytes: root.size_bytes,
        snapshot: disk.snapshot().clone(),
    }
}

async fn read(disk: Arc<SnapshotDisk>, piece: Change) -> Result<Piece, Error> {
    let segments = match piece.zero {
        true => Vec::new(),
        false => disk.read(piece.range.start, piece.range.end - piece.range.start).await?,
    };
    Ok((piece, segments))
}
