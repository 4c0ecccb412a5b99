//! The bytes of objects: every frame by its tag, and everything else of a chunk object, a pack or a record.
//!
//! Must not know what references an object. Invariants: an object is read in pieces of bounded length. Bytes
//! count as damaged only after several readings of them are identical.

use std::ops::Range;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::context::{Context, Owned, Stop};
use super::report::Trouble;
use super::suspects::{Loss, Part, Suspects};
use crate::store::{self, ByteRange, Store};
use crate::volume::format::codec::{Checksum, Encoder, Kind};
use crate::volume::format::frame::{FRAME_BYTES, FRAME_LEN, Place};
use crate::volume::format::geometry::{BLOCKS_PER_PAGE, BlockIndex, ChunkIndex};
use crate::volume::format::keys::ObjectId;
use crate::volume::format::page_set::PageSet;
use crate::volume::format::record::{Change, Record};
use crate::volume::format::sealing::Sealing;
use crate::volume::store_exact::{CheckedError, Doubt, Verdict, damaged_on_the_way, get_referenced};

/// Number of frames that are read by one request: about 1 MiB.
const FRAMES_AT_ONCE: usize = 256;
/// Length in bytes of the parts in which the data of a record is read, except that a change is read whole.
const RECORD_PART_BYTES: u64 = 1 << 20;

/// The bytes of an object that are not what was written.
#[derive(Debug)]
pub(super) struct Bad {
    pub(super) loss: Loss,
    /// Ranges of bytes of the object, in ascending order.
    pub(super) bytes: Vec<Range<u64>>,
}

/// What an object must contain, apart from the payloads of its frames.
pub(super) struct Expected {
    /// All bytes before the first frame.
    header: Vec<u8>,
    place: Place,
    /// The number under which each frame has its tag.
    numbers: Vec<u64>,
    /// All bytes between the last frame and the checksum of the object.
    tail: Vec<u8>,
}

impl Expected {
    /// The chunk object `id` of a volume.
    pub(super) fn chunk(
        sealing: Sealing,
        index: ChunkIndex,
        id: ObjectId,
        pages_per_chunk: u16,
        stored: &PageSet,
    ) -> Self {
        let mut to = Encoder::new(Kind::Chunk, sealing.volume(), 128);
        to.u32(index.0);
        id.encode(&mut to);
        to.u16(pages_per_chunk);
        to.u8(0);
        to.u8(0);
        stored.encode(pages_per_chunk, &mut to);
        let per_page = u64::from(BLOCKS_PER_PAGE);
        let numbers = stored.iter().flat_map(|page| {
            let first = u64::from(page.first_block());
            first..first + per_page
        });
        let place = Place::chunk(sealing, index.0, id);
        Self { header: to.written().to_vec(), place, numbers: numbers.collect(), tail: Vec::new() }
    }

    /// The pack `id` of a volume, which has these blocks.
    pub(super) fn pack(sealing: Sealing, id: ObjectId, blocks: &[BlockIndex]) -> Self {
        let mut to = Encoder::new(Kind::Pack, sealing.volume(), 64);
        id.encode(&mut to);
        to.u8(0);
        to.u8(0);
        to.len(blocks.len());
        let place = Place::pack(sealing, id);
        let mut tail: Vec<u8> = blocks.iter().flat_map(|block| block.0.to_le_bytes()).collect();
        let tag = place.tag(u64::MAX, &tail);
        tail.extend_from_slice(&tag.0);
        Self {
            header: to.written().to_vec(),
            place,
            numbers: blocks.iter().map(|block| block.0).collect(),
            tail,
        }
    }

    /// Offset in the object of a frame; of the tail, if there is none with this number.
    fn offset(&self, frame: usize) -> u64 {
        self.header.len() as u64 + frame as u64 * FRAME_BYTES
    }

    /// Length of the object in bytes.
    fn object_bytes(&self) -> u64 {
        self.offset(self.numbers.len()) + self.tail.len() as u64 + Checksum::BYTES as u64
    }

    /// The pieces in which the object is read: the frames of each, and its range of bytes.
    fn pieces(&self) -> Vec<(Range<usize>, Range<u64>)> {
        let count = self.numbers.len();
        let starts = (0..count.max(1)).step_by(FRAMES_AT_ONCE);
        let pieces = starts.map(|first| {
            let last = (first + FRAMES_AT_ONCE).min(count);
            let start = if first == 0 { 0 } else { self.offset(first) };
            let end = if last == count { self.object_bytes() } else { self.offset(last) };
            (first..last, start..end)
        });
        pieces.collect()
    }

    /// Returns what is wrong with a piece. `hash` has seen the bytes before it, or is `None` if something was
    /// wrong with them.
    fn bad(
        &self,
        frames: Range<usize>,
        range: &Range<u64>,
        bytes: &[u8],
        hash: Option<&Xxh3>,
    ) -> Vec<Range<u64>> {
        let mut bad = Vec::new();
        let at = |offset: u64| usize::try_from(offset - range.start).expect("within a piece");
        if range.start == 0 && bytes[..self.header.len()] != self.header {
            bad.push(0..self.header.len() as u64);
        }
        let first = at(self.offset(frames.start));
        for (frame, stored) in frames.clone().zip(bytes[first..].chunks(FRAME_LEN)) {
            if self.place.open(self.numbers[frame], stored).is_none() {
                bad.push(self.offset(frame)..self.offset(frame) + FRAME_BYTES);
            }
        }
        if frames.end == self.numbers.len() {
            let (tail, end) = (self.offset(frames.end), self.object_bytes() - Checksum::BYTES as u64);
            if bytes[at(tail)..at(end)] != self.tail {
                bad.push(tail..end);
            }
            let sum = hash.map(|hash| {
                let mut hash = hash.clone();
                hash.update(&bytes[..at(end)]);
                hash.digest128().to_le_bytes()
            });
            if bad.is_empty() && sum.is_some_and(|sum| bytes[at(end)..] != sum) {
                bad.push(end..self.object_bytes());
            }
        }
        bad
    }
}

/// Reads a part of an object until it passes its check, or until it certainly does not. Returns the part and
/// what is wrong with it.
async fn read_part<T>(
    store: &dyn Store,
    key: &str,
    range: &Range<u64>,
    check: impl Fn(&[u8]) -> Vec<T>,
) -> Result<(Bytes, Vec<T>), CheckedError> {
    let mut doubt = Doubt::default();
    let wanted = ByteRange::Bounded { offset: range.start, length: range.end - range.start };
    loop {
        let body = get_referenced(store, key, wanted).await.map_err(CheckedError::Store)?.body;
        let bad = check(&body);
        if bad.is_empty() {
            return Ok((body, bad));
        }
        match doubt.note(key, &body) {
            Verdict::Again => {}
            Verdict::AtRest => return Ok((body, bad)),
            Verdict::OnTheWay => return Err(CheckedError::Store(damaged_on_the_way(key))),
        }
    }
}

/// Verifies every byte of a chunk object or a pack. Returns `None` if all of them are what was written.
pub(super) async fn verify(
    store: &dyn Store,
    key: &str,
    expected: &Expected,
) -> Result<Option<Bad>, CheckedError> {
    let mut hash = Some(Xxh3::new());
    let mut bad: Vec<Range<u64>> = Vec::new();
    for (frames, range) in expected.pieces() {
        let check = |bytes: &[u8]| expected.bad(frames.clone(), &range, bytes, hash.as_ref());
        match read_part(store, key, &range, check).await {
            Ok((_, wrong)) if !wrong.is_empty() => {
                bad.extend(wrong);
                hash = None;
            }
            Ok((bytes, _)) => {
                if let Some(hash) = &mut hash {
                    hash.update(&bytes);
                }
            }
            Err(CheckedError::Store(store::Error::CutShort { size_bytes, .. })) => {
                return verify_start(store, key, expected, size_bytes, bad).await.map(Some);
            }
            Err(error) => return Err(error),
        }
    }
    Ok((!bad.is_empty()).then(|| Bad { loss: Loss::damaged(described(expected, &bad)), bytes: bad }))
}

/// Verifies the frames of an object that was cut short at `size_bytes`, from the piece in which it ends.
async fn verify_start(
    store: &dyn Store,
    key: &str,
    expected: &Expected,
    size_bytes: u64,
    mut bad: Vec<Range<u64>>,
) -> Result<Bad, CheckedError> {
    let within = |frames: &Range<usize>| frames.clone().take_while(|f| expected.offset(f + 1) <= size_bytes);
    let cut = expected.pieces().into_iter().find(|(_, range)| range.end > size_bytes);
    if let Some((frames, _)) = cut
        && let Some(last) = within(&frames).last()
    {
        let range = expected.offset(frames.start)..expected.offset(last + 1);
        let frames = frames.start..last + 1;
        let check = |bytes: &[u8]| {
            let stored = frames.clone().zip(bytes.chunks(FRAME_LEN));
            let wrong =
                stored.filter(|(f, stored)| expected.place.open(expected.numbers[*f], stored).is_none());
            wrong.map(|(f, _)| expected.offset(f)..expected.offset(f + 1)).collect()
        };
        bad.extend(read_part(store, key, &range, check).await?.1);
    }
    bad.push(size_bytes..u64::MAX);
    Ok(Bad { loss: too_short(size_bytes, expected.object_bytes()), bytes: bad })
}

/// The loss of the end of an object.
pub(super) fn too_short(size_bytes: u64, expected_bytes: u64) -> Loss {
    Loss { trouble: Trouble::TooShort, why: format!("it has {size_bytes} bytes of {expected_bytes}") }
}

fn described(expected: &Expected, bad: &[Range<u64>]) -> String {
    let (first, end) = (expected.offset(0), expected.offset(expected.numbers.len()));
    let is_frame = |range: &&Range<u64>| range.start >= first && range.start < end;
    let frames = bad.iter().filter(is_frame).count();
    match bad.iter().find(is_frame) {
        Some(range) => {
            let number = (range.start - first) / FRAME_BYTES;
            format!("{frames} of {} frames fail their check, the first is {number}", expected.numbers.len())
        }
        None => "bytes outside its frames are not what was written".to_owned(),
    }
}

/// Verifies the data of a record of `size_bytes`, whose table was verified. Returns `None` if all of it is
/// what was written.
pub(super) async fn verify_record(
    context: &Context<'_>,
    record: &Record,
    size_bytes: u64,
) -> Result<Option<Bad>, CheckedError> {
    let (sealing, key) = (context.keys.sealing(), context.keys.record(record.slot));
    let place = Place::record(sealing, record.slot);
    let data: Vec<(u64, Range<u64>, Checksum)> = (0_u64..)
        .zip(&record.changes)
        .filter_map(|(number, change)| match change {
            Change::Data { at, length, tag, .. } => Some((number, *at..at + u64::from(*length), *tag)),
            _ => None,
        })
        .collect();
    // The bytes before the data are read again for the checksum of the object.
    let table = size_bytes - record.data_bytes - Checksum::BYTES as u64;
    let mut hash = Xxh3::new();
    let mut bad: Vec<Range<u64>> = Vec::new();
    let check = |bytes: &[u8]| match Record::decode_table(sealing, record.slot, bytes) {
        Ok(_) => Vec::new(),
        Err(_) => std::iter::once(0..table).collect(),
    };
    let (bytes, wrong) = read_part(context.store(), &key, &(0..table), check).await?;
    hash.update(&bytes);
    bad.extend(wrong);
    let mut from = 0;
    while from < data.len() {
        let start = data[from].1.start;
        let count = data[from..].iter().take_while(|(_, range, _)| range.end <= start + RECORD_PART_BYTES);
        let to = from + count.count().max(1);
        let changes = &data[from..to];
        let part = start..changes[changes.len() - 1].1.end;
        let check = |bytes: &[u8]| {
            let at = |offset: u64| usize::try_from(offset - part.start).expect("within a part");
            let is_bad = |(number, range, tag): &&(u64, Range<u64>, Checksum)| {
                place.tag(*number, &bytes[at(range.start)..at(range.end)]) != *tag
            };
            changes.iter().filter(is_bad).map(|(_, range, _)| range.clone()).collect()
        };
        let (bytes, wrong) = read_part(context.store(), &key, &part, check).await?;
        hash.update(&bytes);
        bad.extend(wrong);
        from = to;
    }
    if !bad.is_empty() {
        let why = format!("the data of {} of {} changes fails its check", bad.len(), data.len());
        return Ok(Some(Bad { loss: Loss::damaged(why), bytes: bad }));
    }
    let sum = hash.digest128().to_le_bytes();
    let end = size_bytes - Checksum::BYTES as u64..size_bytes;
    let check = |bytes: &[u8]| if bytes == sum { Vec::new() } else { vec![end.clone()] };
    let (_, bad) = read_part(context.store(), &key, &end, check).await?;
    let why = "its checksum is not that of its bytes, although its data is what was written";
    Ok((!bad.is_empty()).then(|| Bad { loss: Loss::damaged(why), bytes: bad }))
}

/// Notes what is wrong with the bytes of an object. Returns whether nothing is.
pub(super) async fn note(
    context: &Context<'_>,
    object: impl Into<Owned>,
    read: Result<Option<Bad>, CheckedError>,
    suspects: &mut Suspects,
) -> Result<bool, Stop> {
    let object = object.into();
    match context.unless_replaced(object, read).await? {
        Ok(None) => return Ok(true),
        Ok(Some(bad)) => {
            context.confirm(object).await?;
            context.note(suspects, object, bad.loss, Part::Bytes(bad.bytes));
        }
        Err(loss) => context.note(suspects, object, loss, Part::Whole),
    }
    Ok(false)
}
