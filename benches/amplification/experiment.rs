//! The experiments: which disks are prepared, what is written to them, and in which phases they are measured.
//!
//! Owns the sizes of the table at full size. Must not know how anything is measured.

/// Size of a block, in which everything is written.
pub(crate) const BLOCK_BYTES: u64 = 4096;
/// Size of a page, the smallest part of the bases that are written to sparse disks.
pub(crate) const PAGE_BLOCKS: u64 = 16;
/// The default size of a chunk, which all disks have.
pub(crate) const CHUNK_BYTES: u64 = 4 << 20;
/// Bytes of a disk that one map page covers: 4,096 chunks.
pub(crate) const MAP_PAGE_BYTES: u64 = 4096 * CHUNK_BYTES;
/// Number of random writes between two flushes.
pub(crate) const FLUSH_EVERY: u64 = 256;
/// Number of blocks of the hot set of row 8.
pub(crate) const HOT_BLOCKS: u64 = 50_000;
/// Number of map pages that the random writes of row 9 on the disk of 1 TiB touch.
pub(crate) const TOUCHED_MAP_PAGES: u64 = 4;

const GIB: u64 = 1 << 30;
/// Writes to each of the map pages of row 9. Of so many random blocks, some 100,800 are distinct.
const WRITES_PER_MAP_PAGE: u64 = 102_000;

/// What a disk holds before the random writes begin. It is written in the order of the disk, then folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// Nothing.
    Empty,
    /// Every block.
    Full,
    /// The first page of every chunk: each chunk exists, and 1 of its 64 pages is allocated.
    FirstPages,
    /// The pages that contain the blocks of the hot set.
    HotPages,
}

/// The blocks that are written after the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Random blocks of the whole disk.
    Uniform,
    /// 90% of the blocks are in a tenth of the disk: in extents of 1 MiB that are scattered over it.
    Skewed,
    /// All blocks in order, 1 MiB at a time, with one flush at the end.
    Sequential,
    /// Every second block of the hot set.
    HotHalf,
    /// Random blocks of [`TOUCHED_MAP_PAGES`] map pages, by turns.
    FewMapPages,
}

/// A step of an experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Creates the disk and writes its base.
    Fill,
    /// Writes the load, and waits until the background work is done.
    Overwrite,
    /// Reads random blocks with an empty cache.
    Cold,
    /// Opens the disk with a store that is 20 ms away.
    Open,
    /// Reads the hot set twice.
    Hot,
    /// Reads the freshly written disk in order.
    ReadFresh,
    /// Reads the disk in order after the random writes.
    ReadOverwritten,
    /// Brings the data back into the order of the disk.
    Consolidate,
    /// Reads the disk in order after that.
    ReadConsolidated,
}

/// A phase, and the rows that it serves besides row 10, which all of them serve.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) phase: Phase,
    pub(crate) rows: &'static [&'static str],
}

/// A disk and what is done with it.
#[derive(Debug)]
pub(crate) struct Experiment {
    pub(crate) name: &'static str,
    pub(crate) disk_bytes: u64,
    pub(crate) base: Base,
    pub(crate) load: Load,
    pub(crate) written_bytes: u64,
    pub(crate) steps: &'static [Step],
}

const fn step(phase: Phase, rows: &'static [&'static str]) -> Step {
    Step { phase, rows }
}

/// All experiments, in the order in which they run.
pub(crate) const EXPERIMENTS: &[Experiment] = &[
    Experiment {
        name: "uniform",
        disk_bytes: 8 * GIB,
        base: Base::Full,
        load: Load::Uniform,
        written_bytes: 2 * GIB,
        steps: &[
            step(Phase::Fill, &[]),
            step(Phase::ReadFresh, &["11"]),
            step(Phase::Overwrite, &["1", "5", "6"]),
            step(Phase::Cold, &["7"]),
            step(Phase::Open, &["9"]),
            step(Phase::ReadOverwritten, &["11"]),
            step(Phase::Consolidate, &[]),
            step(Phase::ReadConsolidated, &["11"]),
        ],
    },
    Experiment {
        name: "steady",
        disk_bytes: 8 * GIB,
        base: Base::Full,
        load: Load::Uniform,
        written_bytes: 16 * GIB,
        steps: &[step(Phase::Fill, &[]), step(Phase::Overwrite, &["1b", "5"])],
    },
    Experiment {
        name: "wide",
        disk_bytes: 64 * GIB,
        base: Base::FirstPages,
        load: Load::Uniform,
        written_bytes: 8 * GIB,
        steps: &[step(Phase::Fill, &[]), step(Phase::Overwrite, &["2", "5"])],
    },
    Experiment {
        name: "skewed",
        disk_bytes: 64 * GIB,
        base: Base::FirstPages,
        load: Load::Skewed,
        written_bytes: 8 * GIB,
        steps: &[step(Phase::Fill, &[]), step(Phase::Overwrite, &["3", "5"])],
    },
    Experiment {
        name: "sequential",
        disk_bytes: GIB,
        base: Base::Empty,
        load: Load::Sequential,
        written_bytes: GIB,
        steps: &[step(Phase::Fill, &[]), step(Phase::Overwrite, &["4"])],
    },
    Experiment {
        name: "hot",
        disk_bytes: 64 * GIB,
        base: Base::HotPages,
        load: Load::HotHalf,
        written_bytes: HOT_BLOCKS / 2 * BLOCK_BYTES,
        steps: &[step(Phase::Fill, &[]), step(Phase::Overwrite, &[]), step(Phase::Hot, &["8"])],
    },
    Experiment {
        name: "terabyte",
        disk_bytes: 1024 * GIB,
        base: Base::Empty,
        load: Load::FewMapPages,
        written_bytes: TOUCHED_MAP_PAGES * WRITES_PER_MAP_PAGE * BLOCK_BYTES,
        steps: &[step(Phase::Fill, &[]), step(Phase::Overwrite, &[]), step(Phase::Open, &["9"])],
    },
];

impl Phase {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::Overwrite => "overwrite",
            Self::Cold => "cold",
            Self::Open => "open",
            Self::Hot => "hot",
            Self::ReadFresh => "read-fresh",
            Self::ReadOverwritten => "read-overwritten",
            Self::Consolidate => "consolidate",
            Self::ReadConsolidated => "read-consolidated",
        }
    }

    /// Whether later phases need what this one leaves behind.
    fn prepares(self) -> bool {
        matches!(self, Self::Fill | Self::Overwrite | Self::Consolidate)
    }
}

impl Step {
    fn serves(&self, wanted: &[&str]) -> bool {
        wanted.iter().any(|row| *row == "10" || self.rows.contains(row))
    }
}

impl Experiment {
    /// The phases to run for the wanted rows: those that serve them, and those that prepare these.
    pub(crate) fn phases_for(&self, wanted: &[&str]) -> Vec<Phase> {
        let last = self.steps.iter().rposition(|step| step.serves(wanted));
        let steps = &self.steps[..last.map_or(0, |last| last + 1)];
        let needed = steps.iter().filter(|step| step.phase.prepares() || step.serves(wanted));
        needed.map(|step| step.phase).collect()
    }

    /// Finds an experiment and one of its phases by `experiment/phase`.
    pub(crate) fn find(name: &str) -> Option<(&'static Self, Phase)> {
        let (experiment, phase) = name.split_once('/')?;
        let experiment = EXPERIMENTS.iter().find(|known| known.name == experiment)?;
        let step = experiment.steps.iter().find(|step| step.phase.name() == phase)?;
        Some((experiment, step.phase))
    }
}
