//! The history of what clients were told, and the content of each cell that it allows.
//!
//! Each event takes the next moment of one clock, so that "answered before it was issued" is a comparison.
//! Each epoch has its own history: the image that its opener recovered, the changes that clients issued to
//! it, and the flushes that it answered. It must not know the inside of a volume. It assumes no order of
//! changes except that of answers and issues: changes that overlap in time may have been applied in either
//! order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::cells::{BLOCK_CELLS, Id, TORN};

/// A point in the time of a run. Every event has its own.
pub(crate) type Moment = u64;

/// The content of every cell, as the change that wrote it.
pub(crate) type Image = Arc<Vec<Id>>;

/// A change that a client issued.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// Id of the change, which its stamps contain.
    pub(crate) id: Id,
    /// Ranges of cells that it covers, sorted.
    pub(crate) cells: Vec<Range<u32>>,
    /// Whether it zeroes the cells instead of stamping them.
    pub(crate) zero: bool,
    /// When it was issued.
    pub(crate) issued: Moment,
    /// When it was answered with success. A change that failed or was never answered may or may not be
    /// applied.
    pub(crate) answered: Option<Moment>,
    /// Whether its answer promised that it is durable (FUA).
    pub(crate) durable: bool,
}

impl Change {
    /// Whether the change covers a cell.
    pub(crate) fn covers(&self, cell: u32) -> bool {
        self.cells.iter().any(|cells| cells.contains(&cell))
    }

    /// Whether the change was answered before another one was issued.
    pub(crate) fn precedes(&self, other: &Self) -> bool {
        self.answered.is_some_and(|answered| answered < other.issued)
    }
}

/// The history of one epoch.
#[derive(Debug)]
pub(crate) struct Epoch {
    /// The image that its opener recovered.
    pub(crate) base: Image,
    /// Changes issued in this epoch, in order of issue.
    pub(crate) changes: Vec<Change>,
    /// Positions in `changes` by the block of cells that they touch, in order of issue.
    by_block: BTreeMap<u32, Vec<usize>>,
    /// When the last of the successful flushes was issued; 0 if there is none.
    pub(crate) flushed: Moment,
    /// When its closing was answered with success, if it was.
    pub(crate) closed: Option<Moment>,
}

impl Epoch {
    /// Creates an epoch that begins with this content.
    pub(crate) fn new(base: Image) -> Self {
        Self { base, changes: Vec::new(), by_block: BTreeMap::new(), flushed: 0, closed: None }
    }

    fn add(&mut self, change: Change) {
        let position = self.changes.len();
        for cells in &change.cells {
            for block in cells.start / BLOCK_CELLS..=(cells.end - 1) / BLOCK_CELLS {
                self.by_block.entry(block).or_default().push(position);
            }
        }
        self.changes.push(change);
    }

    /// Returns the history that an instant between `from` and `until` ended, and that a FLUSH at `from` made
    /// durable: what was answered before `from` came before that instant, and what was issued after `until`
    /// did not.
    pub(crate) fn between(&self, from: Moment, until: Moment) -> Self {
        let mut part = Self { flushed: from, ..Self::new(Arc::clone(&self.base)) };
        let issued = self.changes.iter().take_while(|change| change.issued < until);
        issued.for_each(|change| part.add(Change { durable: false, ..change.clone() }));
        part
    }

    /// Returns a change by its id.
    pub(crate) fn change(&self, id: Id) -> Option<&Change> {
        self.changes.binary_search_by_key(&id, |change| change.id).ok().map(|at| &self.changes[at])
    }

    /// Returns the changes that touch a block of cells, in order of issue.
    pub(crate) fn touching(&self, block: u32) -> impl Iterator<Item = &Change> + Clone {
        self.by_block.get(&block).into_iter().flatten().map(|at| &self.changes[*at])
    }

    /// Returns for each change, by its position, whether `is_in` accepts it.
    pub(crate) fn which(&self, is_in: impl Fn(&Change) -> bool) -> Vec<bool> {
        self.changes.iter().map(is_in).collect()
    }

    /// Returns the changes among `which` that touch a block of cells, in order of issue. Leaves out changes
    /// that certainly came before another one that covers the whole block, because nothing of them can be
    /// visible in it.
    pub(crate) fn seen_in(&self, block: Range<u32>, which: &[bool]) -> Vec<&Change> {
        let positions = self.by_block.get(&(block.start / BLOCK_CELLS)).into_iter().flatten();
        let mut found: Vec<&Change> =
            positions.filter(|at| which[**at]).map(|at| &self.changes[*at]).collect();
        let covers_all = |change: &&&Change| {
            change.cells.iter().any(|cells| cells.start <= block.start && block.end <= cells.end)
        };
        if let Some(last) = found.iter().rev().find(covers_all).copied() {
            found.retain(|change| !change.precedes(last));
        }
        found
    }

    /// Checks the content that a read found in the cells starting at `first`.
    pub(crate) fn check_reads(&self, first: u32, found: &[Id], issued: Moment) -> Result<(), String> {
        let end = first + u32::try_from(found.len()).expect("reads are short");
        let mut start = first;
        while start < end {
            let block = start / BLOCK_CELLS;
            let cells = start..end.min((block + 1) * BLOCK_CELLS);
            start = cells.end;
            let touching: Vec<&Change> = self.touching(block).collect();
            let content = |cell: u32| (found[(cell - first) as usize], self.base[cell as usize]);
            for cell in unlike(&touching, cells, content) {
                self.check_read(cell, found[(cell - first) as usize], issued)?;
            }
        }
        Ok(())
    }

    /// Checks the content that a read found in a cell.
    ///
    /// A change is past if another change of the cell was issued after its answer, and was itself answered
    /// before the read was issued. A read returns the content of a change that is not past, or the base if no
    /// change was answered before the read was issued.
    pub(crate) fn check_read(&self, cell: u32, found: Id, issued: Moment) -> Result<(), String> {
        if found == TORN {
            return Err(format!("cell {cell} holds what nobody wrote"));
        }
        let covering = self.touching(cell / BLOCK_CELLS).filter(|change| change.covers(cell));
        let settled = covering.clone().filter(|change| change.answered.is_some_and(|at| at < issued));
        let newest = settled.map(|change| change.issued).max();
        let is_past = |change: &Change| match (change.answered, newest) {
            (Some(answered), Some(newest)) => answered < newest,
            _ => false,
        };
        let base_stands = newest.is_none() && self.base[cell as usize] == found;
        let allowed =
            |change: &Change| (if change.zero { found == 0 } else { found == change.id }) && !is_past(change);
        if base_stands || covering.clone().any(allowed) {
            return Ok(());
        }
        let known: Vec<String> = covering.map(describe).collect();
        let base = self.base[cell as usize];
        Err(format!(
            "cell {cell} reads as change {found}, issued at {issued}; base {base}, changes {}",
            known.join(", ")
        ))
    }
}

/// Returns the cells, among some in one block, that differ from the cell before, either in their content or
/// in the changes that cover them.
pub(crate) fn unlike<C: PartialEq>(
    touching: &[&Change],
    cells: Range<u32>,
    content: impl Fn(u32) -> C,
) -> impl Iterator<Item = u32> {
    let mut differs = 1_u64;
    for ends in touching.iter().flat_map(|change| &change.cells).flat_map(|part| [part.start, part.end]) {
        if cells.contains(&ends) {
            differs |= 1 << (ends - cells.start);
        }
    }
    for cell in cells.start + 1..cells.end {
        differs |= u64::from(content(cell) != content(cell - 1)) << (cell - cells.start);
    }
    cells.clone().filter(move |cell| differs >> (cell - cells.start) & 1 == 1)
}

/// Describes a change for a report.
pub(crate) fn describe(change: &Change) -> String {
    let kind = if change.zero { "zero " } else { "" };
    let end = change.answered.map_or("?".to_owned(), |at| at.to_string());
    format!("{kind}{}@{}..{end}", change.id, change.issued)
}

/// The history of all epochs of a volume.
#[derive(Debug)]
pub(crate) struct History {
    now: Moment,
    next_id: Id,
    /// The epochs, by number.
    pub(crate) epochs: BTreeMap<u32, Epoch>,
    /// Each opening: the epoch that came before, the one that began, and what it recovered.
    pub(crate) openings: Vec<(u32, u32, Image)>,
}

impl History {
    /// Creates the history of a new volume: all zeros, as epoch 0.
    pub(crate) fn new(cells: u32) -> Self {
        let base = Arc::new(vec![0; cells as usize]);
        Self { now: 1, next_id: 1, epochs: BTreeMap::from([(0, Epoch::new(base))]), openings: Vec::new() }
    }

    /// Advances the clock and returns the new moment.
    pub(crate) fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    /// Returns the number of the newest epoch.
    pub(crate) fn newest(&self) -> u32 {
        *self.epochs.last_key_value().expect("epoch 0 stays").0
    }

    /// Records an opening that proved what it recovered.
    pub(crate) fn begin(&mut self, epoch: u32, image: Image) {
        let before = self.newest();
        self.openings.push((before, epoch, Arc::clone(&image)));
        self.epochs.insert(epoch, Epoch::new(image));
    }

    fn epoch(&mut self, epoch: u32) -> &mut Epoch {
        self.epochs.get_mut(&epoch).expect("commands come after the opening")
    }

    /// Records that a client issues a change, and returns its id.
    pub(crate) fn issue(&mut self, epoch: u32, zero: bool, cells: impl FnOnce(Id) -> Vec<Range<u32>>) -> Id {
        let (id, issued) = (self.next_id, self.tick());
        self.next_id += 1;
        let cells = cells(id);
        self.epoch(epoch).add(Change { id, cells, zero, issued, answered: None, durable: false });
        id
    }

    /// Records that a change was answered with success.
    pub(crate) fn answer(&mut self, epoch: u32, id: Id, durable: bool) {
        let now = self.tick();
        let changes = &mut self.epoch(epoch).changes;
        let at = changes.binary_search_by_key(&id, |change| change.id).expect("it was issued");
        changes[at].answered = Some(now);
        changes[at].durable = durable;
        if durable {
            let issued = changes[at].issued;
            self.flush_answered(epoch, issued);
        }
    }

    /// Records that a flush issued at `issued` was answered with success.
    pub(crate) fn flush_answered(&mut self, epoch: u32, issued: Moment) {
        let epoch = self.epoch(epoch);
        epoch.flushed = epoch.flushed.max(issued);
    }

    /// Records that a closing was answered with success.
    pub(crate) fn close_answered(&mut self, epoch: u32) {
        let now = self.tick();
        self.epoch(epoch).closed.get_or_insert(now);
    }
}
