//! The incremental stream: what differs between two snapshots of a volume, as a file or a pipe carries it.
//!
//! `header | extents, in ascending order | end`. The header has the envelope of an object. Each part ends
//! with the checksum of all bytes of the stream before it, so no part can be lost, repeated or taken from
//! another stream. Must not know where the bytes come from or what is done with them. Invariants: the decoder
//! is total, and returns a part only after its checksum. It holds no more than one part and what was pushed
//! last.

use std::fmt;

use bytes::{Bytes, BytesMut};
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

use super::codec::{Checksum, DecodeError, Decoder, Encoder, Kind, invalid};
use super::geometry::{Geometry, SECTOR_BYTES};
use super::keys::{ObjectId, Slot};
use super::snapshot::Snapshot;

/// Limit on the length of a header in bytes.
pub const MAX_HEADER_BYTES: usize = 1024;
/// Limit on the data of one extent in bytes.
pub const MAX_DATA_BYTES: u32 = 1 << 20;

/// Length in bytes of a header up to and including its length.
const HEADER_START: usize = Encoder::PROLOGUE_BYTES + 4;
/// Length in bytes of a data extent before its data: kind, offset, length.
const DATA_START: usize = 1 + 8 + 4;
/// Length in bytes of a zero extent without its checksum: kind, offset, length.
const ZERO_BYTES: usize = 1 + 8 + 8;
/// Length in bytes of the end up to and including its flag: kind, three counts, flag.
const END_START: usize = 1 + 3 * 8 + 1;

/// What the name of a snapshot begins with that says which content a copy has.
const COPY: &str = "copy-of-";
/// What the name of a snapshot begins with that says that a stream is being applied.
const BEGUN: &str = "receiving-";

const DATA: u8 = 1;
const ZERO: u8 = 2;
const END: u8 = 3;

/// The SHA-256 of the whole content of a disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; Digest::BYTES]);

impl Digest {
    /// Length of a digest in bytes.
    pub const BYTES: usize = 32;

    fn encode_optional(digest: Option<&Self>, to: &mut Encoder) {
        to.u8(u8::from(digest.is_some()));
        if let Some(digest) = digest {
            to.raw(&digest.0);
        }
    }

    fn decode_optional(from: &mut Decoder<'_>) -> Result<Option<Self>, DecodeError> {
        match from.bool("digest")? {
            true => Ok(Some(Self(from.array()?))),
            false => Ok(None),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A snapshot that a stream leads from or to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Id of the snapshot's root. It is unique only in one history of the volume: if a bucket is restored to
    /// an earlier moment, the volume goes on with ids that it has had before.
    pub root: ObjectId,
    /// Checksum of the root, by which roots of two histories differ if their maps do.
    pub root_checksum: Checksum,
    /// The last commit that it contains.
    pub commit: Slot,
    /// Size of the disk in bytes.
    pub size_bytes: u64,
    /// Name and time of the snapshot.
    pub snapshot: Snapshot,
}

impl State {
    /// An id that no root has.
    const NO_ROOT: ObjectId = ObjectId { epoch: 0, k: 0 };

    /// Returns what stands for any content as the base of a stream that has all of `result`.
    #[must_use]
    pub fn anything(result: &Self) -> Self {
        Self {
            root: Self::NO_ROOT,
            root_checksum: Checksum::default(),
            commit: Slot::START,
            size_bytes: result.size_bytes,
            snapshot: Snapshot { name: result.snapshot.name.clone(), taken_at_seconds: 0 },
        }
    }

    fn encode(&self, to: &mut Encoder) {
        self.root.encode(to);
        to.raw(&self.root_checksum.0);
        self.commit.encode(to);
        to.u64(self.size_bytes);
        self.snapshot.encode(to);
    }

    fn decode(geometry: Geometry, from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let (root, root_checksum) = (ObjectId::decode(from)?, from.checksum()?);
        let (commit, size_bytes) = (Slot::decode(from)?, from.u64()?);
        geometry.check_size(size_bytes).map_err(|error| invalid("size", error.to_string()))?;
        Ok(Self { root, root_checksum, commit, size_bytes, snapshot: Snapshot::decode(from)? })
    }

    /// Returns what stands for the content of the snapshot: the checksum of everything that is known of it.
    /// Two snapshots of one history never have the same. Two of different histories of a volume have the same
    /// only if they have the same name, were taken in the same second after the same commits, and their maps
    /// agree in all numbers.
    #[must_use]
    pub fn checksum(&self) -> Checksum {
        // Only the fields count, and not the envelope before them.
        let mut fields = Encoder::new(Kind::Stream, Uuid::nil(), 256);
        self.encode(&mut fields);
        Checksum::of(&fields.written()[Encoder::PROLOGUE_BYTES..])
    }

    /// Name of the snapshot of a copy that says that it has the content of this snapshot of `volume`.
    #[must_use]
    pub fn copy_name(&self, volume: Uuid) -> String {
        format!("{COPY}{}-{:?}", volume.simple(), self.checksum())
    }
}

/// The first part of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The volume that the snapshots are of.
    pub volume: Uuid,
    /// How that volume is divided into chunks. Another volume that takes the stream may differ.
    pub geometry: Geometry,
    /// What the stream leads from.
    pub base: State,
    /// What the stream leads to.
    pub result: State,
    /// Digest of the base, if it was computed.
    pub base_digest: Option<Digest>,
}

impl Header {
    /// Encodes the header.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::new(Kind::Stream, self.volume, 512);
        to.u32(0);
        to.u32(u32::try_from(self.geometry.chunk_bytes()).expect("at most 32 MiB"));
        self.base.encode(&mut to);
        self.result.encode(&mut to);
        Digest::encode_optional(self.base_digest.as_ref(), &mut to);
        let length = to.position() + Checksum::BYTES;
        let field = u32::try_from(length).expect("names are short").to_le_bytes();
        to.bytes()[Encoder::PROLOGUE_BYTES..HEADER_START].copy_from_slice(&field);
        to.finish()
    }

    /// Decodes a whole header.
    ///
    /// # Errors
    /// Returns an error if it is damaged, or if it is something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (volume, mut from) = Decoder::object(Kind::Stream, bytes)?;
        if from.length()? != bytes.len() {
            return Err(invalid("header", format!("has {} bytes, and says otherwise", bytes.len())));
        }
        let chunk_bytes = u64::from(from.u32()?);
        let geometry = Geometry::new(chunk_bytes).map_err(|e| invalid("chunk size", e.to_string()))?;
        let (base, result) = (State::decode(geometry, &mut from)?, State::decode(geometry, &mut from)?);
        let base_digest = Digest::decode_optional(&mut from)?;
        from.finish()?;
        Ok(Self { volume, geometry, base, result, base_digest })
    }

    /// Returns what identifies the stream: its checksum. Two exports of the same difference have the same.
    #[must_use]
    pub fn id(&self) -> Checksum {
        Checksum::at_end_of(&self.encode())
    }

    /// Name of the snapshot of a copy that says which content it has: that of the snapshot `of` of the
    /// stream's volume.
    #[must_use]
    pub fn copy_name(&self, of: &State) -> String {
        of.copy_name(self.volume)
    }

    /// Whether the stream has all of its result, so that it fits any content.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.base.root == State::NO_ROOT
    }

    /// Name of the snapshot of a copy that says that a stream is being applied to it.
    #[must_use]
    pub fn begun_name(&self) -> String {
        format!("{BEGUN}{:?}", self.id())
    }
}

/// Whether a snapshot says which content a copy had when it was taken.
#[must_use]
pub fn is_copy_name(name: &str) -> bool {
    copied_volume(name).is_some()
}

/// The volume whose content a copy had when a snapshot was taken, if the name of the snapshot says so.
#[must_use]
pub fn copied_volume(name: &str) -> Option<Uuid> {
    let (volume, checksum) = name.strip_prefix(COPY)?.split_once('-')?;
    if is_number(volume) && is_number(checksum) { Uuid::parse_str(volume).ok() } else { None }
}

/// Whether a snapshot says that some stream is being applied. Once another one was applied as a whole, it
/// says nothing any more.
#[must_use]
pub fn is_begun_name(name: &str) -> bool {
    name.strip_prefix(BEGUN).is_some_and(is_number)
}

/// Whether a part of a name is a number of 16 bytes.
fn is_number(digits: &str) -> bool {
    digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// What a stream has in total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Number of extents.
    pub extents: u64,
    /// Bytes of data in them.
    pub data_bytes: u64,
    /// Bytes of the disk that they make zeros.
    pub zero_bytes: u64,
}

/// A part of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The first part.
    Header(Box<Header>),
    /// A range of the disk that has these bytes now.
    Data {
        /// Offset of the first byte.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// A range of the disk that reads as zeros now.
    Zero {
        /// Offset of the first byte.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
    /// The last part. A stream without it was cut off.
    End {
        /// Digest of the result, if it was computed.
        result_digest: Option<Digest>,
    },
}

/// Where the next extent may begin and how far it may reach, and what came before it.
#[derive(Clone, Copy, Debug, Default)]
struct Extents {
    /// End of the last extent.
    at: u64,
    /// Size of the resulting disk.
    size_bytes: u64,
    totals: Totals,
}

impl Extents {
    /// Adds an extent, which must lie behind all others and within the disk.
    fn add(&mut self, offset: u64, length: u64) -> Result<(), DecodeError> {
        let end = offset.checked_add(length).filter(|end| *end <= self.size_bytes);
        let is_whole = offset.is_multiple_of(SECTOR_BYTES) && length.is_multiple_of(SECTOR_BYTES);
        match end {
            Some(end) if is_whole && length > 0 && offset >= self.at => {
                self.at = end;
                self.totals.extents += 1;
                Ok(())
            }
            _ => {
                let why = format!("{length} bytes at {offset} are out of order, beyond or no whole sectors");
                Err(invalid("extent", why))
            }
        }
    }

    fn add_data(&mut self, offset: u64, length: usize) -> Result<(), DecodeError> {
        if length > usize::try_from(MAX_DATA_BYTES).expect("a MiB") {
            return Err(invalid("data", format!("{length} bytes are more than {MAX_DATA_BYTES}")));
        }
        self.add(offset, length as u64)?;
        self.totals.data_bytes += length as u64;
        Ok(())
    }

    fn add_zeros(&mut self, offset: u64, length: u64) -> Result<(), DecodeError> {
        self.add(offset, length)?;
        self.totals.zero_bytes += length;
        Ok(())
    }
}

/// Encodes a stream, part by part.
pub struct StreamEncoder {
    sum: Xxh3,
    extents: Extents,
}

impl fmt::Debug for StreamEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamEncoder").field("extents", &self.extents).finish_non_exhaustive()
    }
}

impl StreamEncoder {
    /// Starts a stream. Returns its first bytes too.
    #[must_use]
    pub fn new(header: &Header) -> (Self, Vec<u8>) {
        let bytes = header.encode();
        let mut sum = Xxh3::new();
        sum.update(&bytes);
        let extents = Extents { size_bytes: header.result.size_bytes, ..Extents::default() };
        (Self { sum, extents }, bytes)
    }

    /// What the stream has so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.extents.totals
    }

    /// Appends an extent with these bytes to `to`.
    ///
    /// # Panics
    /// Panics if the extent is empty or too long, or does not lie behind all others and within the disk.
    pub fn data(&mut self, offset: u64, bytes: &[u8], to: &mut Vec<u8>) {
        let added = self.extents.add_data(offset, bytes.len());
        added.expect("extents are short, and in order");
        let start = to.len();
        to.push(DATA);
        to.extend_from_slice(&offset.to_le_bytes());
        to.extend_from_slice(&u32::try_from(bytes.len()).expect("at most a MiB").to_le_bytes());
        to.extend_from_slice(bytes);
        self.seal(start, to);
    }

    /// Appends an extent of zeros to `to`.
    ///
    /// # Panics
    /// Panics if the extent is empty, or does not lie behind all others and within the disk.
    pub fn zeros(&mut self, offset: u64, length: u64, to: &mut Vec<u8>) {
        self.extents.add_zeros(offset, length).expect("extents are in order");
        let start = to.len();
        to.push(ZERO);
        to.extend_from_slice(&offset.to_le_bytes());
        to.extend_from_slice(&length.to_le_bytes());
        self.seal(start, to);
    }

    /// Appends the end to `to`.
    pub fn end(mut self, result_digest: Option<Digest>, to: &mut Vec<u8>) {
        let Totals { extents, data_bytes, zero_bytes } = self.extents.totals;
        let start = to.len();
        to.push(END);
        for count in [extents, data_bytes, zero_bytes] {
            to.extend_from_slice(&count.to_le_bytes());
        }
        to.push(u8::from(result_digest.is_some()));
        to.extend(result_digest.iter().flat_map(|digest| digest.0));
        self.seal(start, to);
    }

    /// Appends the checksum of everything up to the end of `to`.
    fn seal(&mut self, start: usize, to: &mut Vec<u8>) {
        self.sum.update(&to[start..]);
        let checksum = self.sum.digest128().to_le_bytes();
        self.sum.update(&checksum);
        to.extend_from_slice(&checksum);
    }
}

/// What a decoder expects next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Header,
    Extent,
    Nothing,
}

/// Decodes a stream that comes in pieces of any length.
pub struct StreamDecoder {
    pushed: BytesMut,
    sum: Xxh3,
    next: Next,
    extents: Extents,
    /// Whether the extents must cover the whole disk.
    is_whole: bool,
}

impl Default for StreamDecoder {
    fn default() -> Self {
        let (pushed, sum, extents) = (BytesMut::new(), Xxh3::new(), Extents::default());
        Self { pushed, sum, next: Next::Header, extents, is_whole: false }
    }
}

impl fmt::Debug for StreamDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pushed, next, extents, .. } = self;
        let mut shown = f.debug_struct("StreamDecoder");
        shown.field("pushed", &pushed.len()).field("next", next).field("extents", extents);
        shown.finish_non_exhaustive()
    }
}

impl StreamDecoder {
    /// Passes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pushed.extend_from_slice(bytes);
    }

    /// What the parts so far have.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.extents.totals
    }

    /// Returns the next part, or `None` if it is not complete yet.
    ///
    /// # Errors
    /// Returns an error if the bytes are not those of a stream. No part follows then.
    pub fn next_part(&mut self) -> Result<Option<Part>, DecodeError> {
        let Some(length) = self.part_bytes()?.filter(|length| *length <= self.pushed.len()) else {
            return Ok(None);
        };
        let part = self.pushed.split_to(length).freeze();
        let body = part.slice(..length - Checksum::BYTES);
        self.sum.update(&body);
        if self.sum.digest128().to_le_bytes() != part[body.len()..] {
            return Err(DecodeError::Checksum);
        }
        self.sum.update(&part[body.len()..]);
        let decoded = match self.next {
            Next::Header => {
                let header = Header::decode(&part)?;
                self.extents.size_bytes = header.result.size_bytes;
                self.is_whole = header.is_whole();
                self.next = Next::Extent;
                Part::Header(Box::new(header))
            }
            Next::Extent | Next::Nothing => self.decode(&body)?,
        };
        Ok(Some(decoded))
    }

    /// Returns how long the next part is, as far as its first bytes are there.
    fn part_bytes(&self) -> Result<Option<usize>, DecodeError> {
        let mut from = Decoder::fields(&self.pushed);
        if self.next == Next::Header {
            if self.pushed.len() < HEADER_START {
                return Ok(None);
            }
            let (_, mut from) = Decoder::prologue(Kind::Stream, &self.pushed)?;
            let length = from.length()?;
            return match (HEADER_START + Checksum::BYTES..=MAX_HEADER_BYTES).contains(&length) {
                true => Ok(Some(length)),
                false => Err(invalid("header", format!("{length} bytes are too few or too many"))),
            };
        }
        if self.next == Next::Nothing && !self.pushed.is_empty() {
            return Err(DecodeError::Trailing(self.pushed.len()));
        }
        let Ok(kind) = from.u8() else { return Ok(None) };
        let body = match kind {
            DATA if self.pushed.len() < DATA_START => return Ok(None),
            DATA => {
                let _offset = from.u64()?;
                let length = from.u32()?;
                if length > MAX_DATA_BYTES {
                    return Err(invalid("data", format!("{length} bytes are more than {MAX_DATA_BYTES}")));
                }
                DATA_START + usize::try_from(length).expect("at most a MiB")
            }
            ZERO => ZERO_BYTES,
            END if self.pushed.len() < END_START => return Ok(None),
            END if self.pushed[END_START - 1] == 0 => END_START,
            END => END_START + Digest::BYTES,
            other => return Err(invalid("part", format!("kind {other} is unknown"))),
        };
        Ok(Some(body + Checksum::BYTES))
    }

    /// Decodes a part behind the header, whose checksum was verified.
    fn decode(&mut self, body: &Bytes) -> Result<Part, DecodeError> {
        let mut from = Decoder::fields(body);
        match from.u8()? {
            DATA => {
                let (offset, length) = (from.u64()?, from.length()?);
                self.check_gap(offset)?;
                self.extents.add_data(offset, length)?;
                Ok(Part::Data { offset, bytes: body.slice(DATA_START..DATA_START + length) })
            }
            ZERO => {
                let (offset, length) = (from.u64()?, from.u64()?);
                self.check_gap(offset)?;
                self.extents.add_zeros(offset, length)?;
                Ok(Part::Zero { offset, length })
            }
            _ => {
                self.check_gap(self.extents.size_bytes)?;
                let found = Totals { extents: from.u64()?, data_bytes: from.u64()?, zero_bytes: from.u64()? };
                if found != self.extents.totals {
                    let before = self.extents.totals;
                    return Err(invalid("totals", format!("{found:?} at the end of {before:?}")));
                }
                let result_digest = Digest::decode_optional(&mut from)?;
                from.finish()?;
                self.next = Next::Nothing;
                Ok(Part::End { result_digest })
            }
        }
    }

    /// Checks that a stream of everything leaves nothing out before an offset.
    fn check_gap(&self, offset: u64) -> Result<(), DecodeError> {
        if self.is_whole && offset > self.extents.at {
            return Err(invalid("extent", format!("nothing says what is at {}", self.extents.at)));
        }
        Ok(())
    }

    /// Checks that the stream is complete. Call it when no bytes follow.
    ///
    /// # Errors
    /// Returns an error if the stream was cut off before its end, or if bytes follow its end.
    pub fn check_end(&self) -> Result<(), DecodeError> {
        match (self.next, self.pushed.len()) {
            (Next::Nothing, 0) => Ok(()),
            (Next::Nothing, more) => Err(DecodeError::Trailing(more)),
            (Next::Header | Next::Extent, _) => Err(DecodeError::Truncated { missing: 1 }),
        }
    }
}
