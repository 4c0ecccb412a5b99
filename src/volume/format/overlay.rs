//! Overlays: where changed blocks of a map page are stored. Each is an immutable, sorted list of runs.
//!
//! Must not know which chunks an overlay applies to, nor what lies below it. Invariants: runs are in
//! ascending order and do not overlap. A run lies within one chunk. Encoding a decoded overlay results in the
//! same bytes.

use std::collections::BTreeMap;
use std::ops::Range;

use uuid::Uuid;

use super::codec::{DecodeError, Decoder, Encoder, Kind, invalid};
use super::geometry::{BLOCKS_PER_PAGE, Geometry, MAX_PAGES_PER_CHUNK, PageIndex};
use super::keys::ObjectId;
use super::root::{MAX_ORIGINS, decode_origins, encode_origins};
use super::sealing::Sealing;

/// Limit on the blocks of one run.
pub const MAX_RUN_BLOCKS: u32 = 64;
/// Limit on the packs that one overlay references.
pub const MAX_PACKS: usize = ZEROED as usize;

const ZEROED: u16 = 65_534;
const HOLE: u16 = 65_535;
const PACK_REF_BYTES: usize = 2 + ObjectId::BYTES;

/// Where the blocks of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// In successive frames of a pack.
    Frame {
        /// Index of the pack in the overlay's list.
        pack: u16,
        /// Number of the frame of the first block.
        frame: u16,
    },
    /// Nowhere: they read as zeros.
    Zero {
        /// Whether they are unallocated.
        hole: bool,
    },
}

impl Target {
    /// Returns the target of the block `by` blocks later in the same run.
    ///
    /// # Panics
    /// Panics if no run is that long.
    #[must_use]
    pub fn advanced(self, by: u32) -> Self {
        match self {
            Self::Frame { pack, frame } => {
                Self::Frame { pack, frame: frame + u16::try_from(by).expect("less than 64") }
            }
            zero => zero,
        }
    }
}

/// Successive blocks of a map page, and where they are. Stored as in the object, in 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run(u64);

impl Run {
    /// Creates a run of blocks, which are counted from the start of the map page.
    ///
    /// # Panics
    /// Panics if there are not 1 to 64 blocks, or if one is beyond 2^26.
    #[must_use]
    pub fn new(blocks: Range<u32>, target: Target) -> Self {
        let (first, count) = (blocks.start, blocks.end.saturating_sub(blocks.start));
        assert!((1..=MAX_RUN_BLOCKS).contains(&count) && first < 1 << 26, "a run is short, and in its page");
        let (pack, frame) = match target {
            Target::Frame { pack, frame } => (pack, frame),
            Target::Zero { hole: false } => (ZEROED, 0),
            Target::Zero { hole: true } => (HOLE, 0),
        };
        let place = u64::from(first) << 6 | u64::from(count - 1);
        Self(place << 32 | u64::from(pack) << 16 | u64::from(frame))
    }

    /// The first block, counted from the start of the map page.
    #[must_use]
    pub fn first(self) -> u32 {
        u32::try_from(self.0 >> 38).expect("26 bits")
    }

    /// Number of blocks.
    #[must_use]
    pub fn count(self) -> u32 {
        u32::try_from(self.0 >> 32 & 0x3f).expect("six bits") + 1
    }

    /// The blocks of the map page that the run covers.
    #[must_use]
    pub fn range(self) -> Range<u32> {
        self.first()..self.first() + self.count()
    }

    /// Where the blocks are.
    #[must_use]
    pub fn target(self) -> Target {
        let pack = u16::try_from(self.0 >> 16 & 0xffff).expect("16 bits");
        match pack {
            HOLE => Target::Zero { hole: true },
            ZEROED => Target::Zero { hole: false },
            pack => Target::Frame { pack, frame: u16::try_from(self.0 & 0xffff).expect("16 bits") },
        }
    }

    fn check(self, geometry: Geometry, packs: usize) -> Result<(), DecodeError> {
        let blocks = u32::try_from(geometry.blocks_per_chunk()).expect("at most 8,192");
        let Range { start, end } = self.range();
        if end > geometry.map_page_blocks() || start / blocks != (end - 1) / blocks {
            return Err(invalid("run", format!("blocks {start} to {end} are not within one chunk")));
        }
        match self.target() {
            Target::Frame { pack, frame } => {
                if usize::from(pack) >= packs {
                    return Err(invalid("run", format!("pack {pack} is beyond the {packs} packs")));
                }
                if u32::from(frame) + self.count() > super::pack::MAX_FRAMES {
                    return Err(invalid("run", format!("frame {frame} is beyond a pack")));
                }
            }
            Target::Zero { .. } if self.0 & 0xffff != 0 => {
                return Err(invalid("run", "zeros have a frame"));
            }
            Target::Zero { .. } => {}
        }
        Ok(())
    }
}

/// A pack that an overlay references.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackRef {
    /// The owner of the pack: 0 for the volume that owns the overlay, otherwise an index into the overlay's
    /// origins, counted from 1.
    pub origin: u16,
    /// Id of the pack.
    pub id: ObjectId,
}

/// Where changed blocks of one map page are stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    origins: Vec<Uuid>,
    packs: Vec<PackRef>,
    runs: Vec<Run>,
}

impl Overlay {
    /// The other volumes whose packs the overlay references.
    #[must_use]
    pub fn origins(&self) -> &[Uuid] {
        &self.origins
    }

    /// The packs that the overlay references.
    #[must_use]
    pub fn packs(&self) -> &[PackRef] {
        &self.packs
    }

    /// All runs, in order.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Returns the owner and the id of a pack. `owner` is the volume that owns the overlay.
    #[must_use]
    pub fn pack(&self, owner: Uuid, pack: u16) -> (Uuid, ObjectId) {
        let PackRef { origin, id } = self.packs[usize::from(pack)];
        match origin {
            0 => (owner, id),
            other => (self.origins[usize::from(other) - 1], id),
        }
    }

    /// Returns the parts of a range of blocks that the overlay locates, in order, each with the target of its
    /// first block.
    pub fn overlaps(&self, range: Range<u32>) -> impl Iterator<Item = (Range<u32>, Target)> + '_ {
        let first = self.runs.partition_point(|run| run.range().end <= range.start);
        let end = range.end;
        self.runs[first..].iter().take_while(move |run| run.first() < end).map(move |run| {
            let part = run.first().max(range.start)..run.range().end.min(range.end);
            let by = part.start - run.first();
            (part, run.target().advanced(by))
        })
    }

    /// Memory that the overlay takes, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.runs.capacity() * size_of::<Run>()
            + self.packs.capacity() * size_of::<PackRef>()
            + self.origins.len() * 16
    }

    /// Length in bytes of the encoded runs, without the envelope of an object.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        4 + 16 * self.origins.len() + 4 + PACK_REF_BYTES * self.packs.len() + 4 + 8 * self.runs.len()
    }

    /// Appends the runs, with the packs and origins that they refer to.
    pub(super) fn encode_runs(&self, to: &mut Encoder) {
        encode_origins(&self.origins, to);
        to.len(self.packs.len());
        for pack in &self.packs {
            to.u16(pack.origin);
            pack.id.encode(to);
        }
        to.len(self.runs.len());
        for run in &self.runs {
            to.u64(run.0);
        }
    }

    /// Reads runs, which must end where the input does.
    pub(super) fn decode_runs(geometry: Geometry, mut from: Decoder<'_>) -> Result<Self, DecodeError> {
        let origins = decode_origins(&mut from)?;
        let count = from.count(PACK_REF_BYTES)?;
        if count > MAX_PACKS {
            return Err(invalid("packs", format!("{count} are more than {MAX_PACKS}")));
        }
        let mut packs = Vec::with_capacity(count);
        for _ in 0..count {
            let origin = from.u16()?;
            if usize::from(origin) > origins.len() {
                return Err(invalid("origin", format!("{origin} is beyond the {} origins", origins.len())));
            }
            packs.push(PackRef { origin, id: ObjectId::decode(&mut from)? });
        }
        let mut sorted = packs.clone();
        sorted.sort_unstable();
        if let Some([pack, _]) = sorted.array_windows().find(|[a, b]| a == b) {
            return Err(invalid("packs", format!("{pack:?} is listed twice")));
        }
        drop(sorted);
        let count = from.count(8)?;
        if count == 0 {
            return Err(invalid("runs", "there are none"));
        }
        let mut runs = Vec::with_capacity(count);
        let mut least = 0;
        for _ in 0..count {
            let run = Run(from.u64()?);
            if run.first() < least {
                return Err(invalid("run", format!("block {} is out of order", run.first())));
            }
            run.check(geometry, packs.len())?;
            least = run.range().end;
            runs.push(run);
        }
        from.finish()?;
        Ok(Self { origins, packs, runs })
    }

    /// Encodes the object with the id `id`, an overlay of map page `page`.
    #[must_use]
    pub fn encode(&self, sealing: Sealing, page: u32, id: ObjectId) -> Vec<u8> {
        let mut to = Encoder::new(Kind::Overlay, sealing.volume(), 64 + self.encoded_bytes());
        to.u32(page);
        id.encode(&mut to);
        self.encode_runs(&mut to);
        to.finish()
    }

    /// Decodes the object with the id `id`, which must be an overlay of map page `page`.
    ///
    /// # Errors
    /// Returns an error if the object is damaged, or is another object.
    pub fn decode(
        sealing: Sealing,
        page: u32,
        id: ObjectId,
        geometry: Geometry,
        bytes: &[u8],
    ) -> Result<Self, DecodeError> {
        let mut from = Decoder::object_of(Kind::Overlay, sealing.volume(), bytes)?;
        let found = (from.u32()?, ObjectId::decode(&mut from)?);
        if found != (page, id) {
            return Err(invalid("overlay", format!("is {found:?}, not {:?}", (page, id))));
        }
        Self::decode_runs(geometry, from)
    }
}

/// Which blocks of one chunk some overlays locate, and which they zero.
#[derive(Debug)]
pub(super) struct Located {
    /// The first block of the chunk, counted from the start of the map page.
    start: u32,
    /// One bit for each block that is in a frame of a pack.
    frames: [u64; LOCATED_WORDS],
    /// One bit for each block that is in a frame or is zeros.
    all: [u64; LOCATED_WORDS],
}

const LOCATED_WORDS: usize = MAX_PAGES_PER_CHUNK as usize * BLOCKS_PER_PAGE as usize / 64;

impl Located {
    /// What these overlays locate of the chunk with the index `slot` in the map page. The last overlay is the
    /// newest.
    pub(super) fn new<'a>(
        geometry: Geometry,
        slot: u16,
        overlays: impl IntoIterator<Item = &'a Overlay>,
    ) -> Self {
        let blocks = u32::try_from(geometry.blocks_per_chunk()).expect("at most 8,192");
        let start = u32::from(slot) * blocks;
        let mut located = Self { start, frames: [0; LOCATED_WORDS], all: [0; LOCATED_WORDS] };
        for overlay in overlays {
            for (range, target) in overlay.overlaps(start..start + blocks) {
                range.for_each(|block| located.insert(block, target));
            }
        }
        located
    }

    fn insert(&mut self, block: u32, target: Target) {
        let block = usize::try_from(block - self.start).expect("at most 8,191");
        let (word, bit) = (block / 64, 1 << (block % 64));
        self.all[word] |= bit;
        match target {
            Target::Frame { .. } => self.frames[word] |= bit,
            Target::Zero { .. } => self.frames[word] &= !bit,
        }
    }

    /// The number of blocks that are located or zeroed.
    pub(super) fn count(&self) -> u32 {
        self.all.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether a block of a page is in a frame.
    pub(super) fn has_frame_of(&self, PageIndex(page): PageIndex) -> bool {
        self.frames[usize::from(page / 4)] >> (page % 4 * 16) & 0xffff != 0
    }
}

/// Builds an overlay of a volume from runs in ascending order.
#[derive(Debug)]
pub struct OverlayBuilder {
    volume: Uuid,
    blocks_per_chunk: u32,
    overlay: Overlay,
    packs: BTreeMap<(Uuid, ObjectId), u16>,
}

impl OverlayBuilder {
    /// Starts an overlay that `volume` owns.
    #[must_use]
    pub fn new(volume: Uuid, geometry: Geometry) -> Self {
        let blocks_per_chunk = u32::try_from(geometry.blocks_per_chunk()).expect("at most 8,192");
        Self { volume, blocks_per_chunk, overlay: Overlay::default(), packs: BTreeMap::new() }
    }

    /// Appends blocks that are in successive frames of a pack. They must lie behind all others.
    ///
    /// # Panics
    /// Panics if there are more packs or origins than an overlay may have.
    pub fn frames(&mut self, blocks: Range<u32>, owner: Uuid, pack: ObjectId, frame: u16) {
        let pack = match self.packs.get(&(owner, pack)) {
            Some(number) => *number,
            None => {
                let number = u16::try_from(self.overlay.packs.len()).expect("at most 65,534");
                assert!(usize::from(number) < MAX_PACKS, "an overlay has at most {MAX_PACKS} packs");
                let origin = self.origin(owner);
                self.overlay.packs.push(PackRef { origin, id: pack });
                self.packs.insert((owner, pack), number);
                number
            }
        };
        self.push(blocks, Target::Frame { pack, frame });
    }

    /// Appends blocks that read as zeros. They must lie behind all others.
    pub fn zeros(&mut self, blocks: Range<u32>, hole: bool) {
        self.push(blocks, Target::Zero { hole });
    }

    fn origin(&mut self, owner: Uuid) -> u16 {
        if owner == self.volume {
            return 0;
        }
        let origins = &mut self.overlay.origins;
        let place = origins.iter().position(|origin| *origin == owner).unwrap_or_else(|| {
            assert!(origins.len() < MAX_ORIGINS, "an overlay has at most {MAX_ORIGINS} origins");
            origins.push(owner);
            origins.len() - 1
        });
        u16::try_from(place + 1).expect("at most 1,024")
    }

    /// Appends blocks, joined to the last run if they continue it, and cut where a run must end.
    fn push(&mut self, blocks: Range<u32>, target: Target) {
        let (mut at, mut target) = (blocks.start, target);
        if let Some(last) = self.overlay.runs.last().copied() {
            assert!(last.range().end <= at, "block {at} is not behind the others");
            let joins = last.range().end == at
                && at % self.blocks_per_chunk != 0
                && last.count() < MAX_RUN_BLOCKS
                && last.target().advanced_or_same(last.count()) == Some(target);
            if joins {
                let room =
                    (MAX_RUN_BLOCKS - last.count()).min(self.blocks_per_chunk - at % self.blocks_per_chunk);
                let count = room.min(blocks.end - at);
                let longer = Run::new(last.first()..at + count, last.target());
                *self.overlay.runs.last_mut().expect("just seen") = longer;
                (at, target) = (at + count, target.advanced(count));
            }
        }
        while at < blocks.end {
            let chunk_end = (at / self.blocks_per_chunk + 1) * self.blocks_per_chunk;
            let end = blocks.end.min(chunk_end).min(at + MAX_RUN_BLOCKS);
            self.overlay.runs.push(Run::new(at..end, target));
            (at, target) = (end, target.advanced(end - at));
        }
    }

    /// Whether nothing was appended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.overlay.runs.is_empty()
    }

    /// Completes the overlay.
    #[must_use]
    pub fn finish(mut self) -> Overlay {
        self.overlay.runs.shrink_to_fit();
        self.overlay.packs.shrink_to_fit();
        self.overlay
    }
}

impl Target {
    /// The target of the block `by` blocks later, or `None` if the frames of a pack end before it.
    fn advanced_or_same(self, by: u32) -> Option<Self> {
        match self {
            Self::Frame { pack, frame } => {
                let frame = u16::try_from(u32::from(frame) + by).ok()?;
                Some(Self::Frame { pack, frame })
            }
            zero => Some(zero),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry::new(1 << 20).expect("a chunk size")
    }

    #[test]
    fn blocks_are_joined_to_runs_and_cut_at_chunks() {
        let volume = Uuid::from_u128(1);
        let mut builder = OverlayBuilder::new(volume, geometry());
        let (a, b) = (ObjectId { epoch: 1, k: 1 }, ObjectId { epoch: 1, k: 2 });
        builder.frames(3..4, volume, a, 0);
        builder.frames(4..5, volume, a, 1);
        builder.frames(5..6, volume, b, 2);
        builder.zeros(250..260, true);
        builder.zeros(260..270, false);
        builder.frames(300..400, Uuid::from_u128(9), a, 7);
        let overlay = builder.finish();
        let runs: Vec<_> = overlay.runs().iter().map(|run| (run.range(), run.target())).collect();
        let frame = |pack, frame| Target::Frame { pack, frame };
        assert_eq!(
            runs,
            [
                (3..5, frame(0, 0)),
                (5..6, frame(1, 2)),
                (250..256, Target::Zero { hole: true }),
                (256..260, Target::Zero { hole: true }),
                (260..270, Target::Zero { hole: false }),
                (300..364, frame(2, 7)),
                (364..400, frame(2, 71)),
            ]
        );
        assert_eq!(overlay.pack(volume, 1), (volume, b));
        assert_eq!(overlay.pack(volume, 2), (Uuid::from_u128(9), a));
        let found: Vec<_> = overlay.overlaps(4..258).collect();
        assert_eq!(found.len(), 4);
        assert_eq!(found[0], (4..5, frame(0, 1)));
        assert_eq!(found[3], (256..258, Target::Zero { hole: true }));
        let id = ObjectId { epoch: 2, k: 3 };
        let bytes = overlay.encode(Sealing::new(volume), 5, id);
        assert_eq!(bytes.len(), 26 + 16 + overlay.encoded_bytes() + 16);
        assert_eq!(Overlay::decode(Sealing::new(volume), 5, id, geometry(), &bytes).unwrap(), overlay);
        Overlay::decode(Sealing::new(volume), 6, id, geometry(), &bytes).expect_err("another map page");
        let larger = Geometry::new(64 << 10).expect("a chunk size");
        Overlay::decode(Sealing::new(volume), 5, id, larger, &bytes)
            .expect_err("runs cross chunks of 16 blocks");
    }
}
