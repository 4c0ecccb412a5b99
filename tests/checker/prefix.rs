//! Whether a recovered image is the state after some prefix of an epoch's commits, and late enough a one.
//!
//! Commits are prefixes of the order in which changes were applied, of which only this is known: a change that was
//! answered before another was issued came before it. The changes that the image must hold are
//!
//! 1. those that a durable answer covers: answered before the last answered FLUSH was issued, FUA changes that were
//!    answered, and all that were answered before a closing that was;
//! 2. those whose content is seen in the image;
//! 3. those that were answered before one of the above was issued, since a prefix has no gaps.
//!
//! The image is right if it holds these and nothing else: a cell that none of them covers is as it was recovered
//! before; one that some cover holds a change that none of them surely follows; no content of one change stands
//! where another's must; and the either-or of changes that overlap in time is decided alike in all cells (else a
//! WRITE would be half there). Zeros have no stamp: a cell of zeros is explained by any change that zeroes it, one
//! that the image need not hold only if all other cells that it covers allow for it.

use std::collections::BTreeSet;

use super::cells::{BLOCK_CELLS, Id, TORN};
use super::history::{Change, Epoch, Moment, describe};

/// A cell and what is wrong with it.
struct Wrong {
    cell: u32,
    why: String,
}

/// Checks what was recovered after `epoch` ended, or would be if it ended now.
pub(crate) fn check(epoch: &Epoch, image: &[Id]) -> Result<(), String> {
    let mut held: BTreeSet<Id> = BTreeSet::new();
    for (cell, found) in (0..).zip(image) {
        if *found == TORN {
            return Err(format!("cell {cell} recovered as what nobody wrote"));
        }
        if *found != 0 && epoch.base[cell as usize] != *found {
            match epoch.change(*found) {
                Some(change) if change.covers(cell) && !change.zero => drop(held.insert(*found)),
                _ => {
                    let base = epoch.base[cell as usize];
                    return Err(format!(
                        "cell {cell} recovered as change {found} of another epoch; base {base}"
                    ));
                }
            }
        }
    }
    held.extend(epoch.changes.iter().filter(|change| change.durable).map(|change| change.id));
    loop {
        let wrong = match try_prefix(epoch, image, &held) {
            Ok(()) => return Ok(()),
            Err(wrong) => wrong,
        };
        // Another zero may explain it, if everything else allows for that.
        let candidate = epoch
            .touching(wrong.cell / BLOCK_CELLS)
            .filter(|change| change.zero && change.covers(wrong.cell) && !held.contains(&change.id))
            .find(|change| image[wrong.cell as usize] == 0 && fits(epoch, image, change));
        match candidate {
            Some(change) => drop(held.insert(change.id)),
            None => return Err(wrong.why),
        }
    }
}

/// Whether every cell that a zero covers may have been zeroed by it.
fn fits(epoch: &Epoch, image: &[Id], zero: &Change) -> bool {
    let mut cells = zero.cells.iter().cloned().flatten();
    cells.all(|cell| {
        let found = image[cell as usize];
        found == 0 || epoch.change(found).is_some_and(|change| !change.precedes(zero))
    })
}

/// Checks the image against the least prefix that holds `held`.
fn try_prefix(epoch: &Epoch, image: &[Id], held: &BTreeSet<Id>) -> Result<(), Wrong> {
    let issued = held.iter().filter_map(|id| epoch.change(*id)).map(|change| change.issued).max();
    let until: Moment = issued.unwrap_or(0).max(epoch.flushed).max(epoch.closed.unwrap_or(0));
    let is_in = |change: &Change| {
        held.contains(&change.id) || change.answered.is_some_and(|answered| answered < until)
    };
    let mut order: BTreeSet<(Id, Id)> = BTreeSet::new();
    let cells = u32::try_from(image.len()).expect("images are small");
    for block in 0..cells.div_ceil(BLOCK_CELLS) {
        let inside: Vec<&Change> = epoch.touching(block).filter(|change| is_in(change)).collect();
        for cell in block * BLOCK_CELLS..cells.min((block + 1) * BLOCK_CELLS) {
            let (found, base) = (image[cell as usize], epoch.base[cell as usize]);
            let mut covering = inside.iter().copied().filter(|change| change.covers(cell)).peekable();
            let told = |what: &str| {
                let inside = inside.iter().copied().filter(|change| change.covers(cell)).map(describe);
                let inside = inside.collect::<Vec<_>>().join(", ");
                let why = format!(
                    "cell {cell} {what}: recovered {found}, base {base}; the prefix answered before {until} has {inside}"
                );
                Wrong { cell, why }
            };
            if covering.peek().is_none() {
                if found != base {
                    return Err(told("changed without a change"));
                }
                continue;
            }
            let mut last = inside.iter().copied().filter(|change| {
                change.covers(cell)
                    && (if change.zero { found == 0 } else { found == change.id })
                    && !covering.clone().any(|other| change.precedes(other))
            });
            let (last, another) = (last.next(), last.next());
            let Some(last) = last else { return Err(told("lost a change")) };
            if another.is_some() {
                // Of several zeros, any may be the last one.
                continue;
            }
            for other in covering.filter(|other| other.id != last.id && !other.precedes(last)) {
                if order.insert((other.id, last.id)) && order.contains(&(last.id, other.id)) {
                    return Err(told("is decided unlike another cell of the same changes"));
                }
            }
        }
    }
    acyclic(epoch, &order).map_err(|why| Wrong { cell: 0, why })
}

/// Whether some order of all changes has those that were decided, and those that answers decide.
fn acyclic(epoch: &Epoch, order: &BTreeSet<(Id, Id)>) -> Result<(), String> {
    let mut left: BTreeSet<Id> = order.iter().flat_map(|(a, b)| [*a, *b]).collect();
    while !left.is_empty() {
        let change = |id: Id| epoch.change(id).expect("it was issued");
        let is_first = |id: Id| {
            !left.iter().any(|other| {
                *other != id && (order.contains(&(*other, id)) || change(*other).precedes(change(id)))
            })
        };
        let Some(first) = left.iter().copied().find(|id| is_first(*id)) else {
            let all: Vec<String> = left.iter().map(|id| describe(change(*id))).collect();
            return Err(format!("no order explains the image, of changes {}", all.join(", ")));
        };
        left.remove(&first);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::history::History;
    use super::*;

    /// A history of 64 cells with one epoch after the creation.
    fn history() -> History {
        let mut history = History::new(64);
        history.begin(1, Arc::new(vec![0; 64]));
        history
    }

    fn write(history: &mut History, cells: std::ops::Range<u32>) -> Id {
        let id = history.issue(1, false, |_| vec![cells]);
        history.answer(1, id, false);
        id
    }

    fn image(parts: &[(std::ops::Range<u32>, Id)]) -> Vec<Id> {
        let mut image = vec![0; 64];
        for (cells, id) in parts {
            image[cells.start as usize..cells.end as usize].fill(*id);
        }
        image
    }

    #[test]
    fn any_prefix_is_right_and_nothing_else() {
        let mut history = history();
        let (a, b) = (write(&mut history, 0..8), write(&mut history, 4..12));
        let epoch = &history.epochs[&1];
        check(epoch, &image(&[])).unwrap();
        check(epoch, &image(&[(0..8, a)])).unwrap();
        check(epoch, &image(&[(0..8, a), (4..12, b)])).unwrap();
        check(epoch, &image(&[(4..12, b)])).expect_err("a gap");
        check(epoch, &image(&[(0..4, a)])).expect_err("half a write");
        check(epoch, &image(&[(4..12, b), (0..8, a)])).expect_err("the wrong order");
        check(epoch, &image(&[(0..8, 99)])).expect_err("of another epoch");
    }

    #[test]
    fn what_a_flush_covers_must_be_there() {
        let mut history = history();
        let a = write(&mut history, 0..8);
        let issued = history.tick();
        let b = write(&mut history, 8..16);
        history.flush_answered(1, issued);
        let epoch = &history.epochs[&1];
        check(epoch, &image(&[])).expect_err("lost");
        check(epoch, &image(&[(0..8, a)])).unwrap();
        check(epoch, &image(&[(0..8, a), (8..16, b)])).unwrap();
    }

    #[test]
    fn changes_at_one_time_may_go_either_way_but_whole() {
        let mut history = history();
        let a = history.issue(1, false, |_| std::iter::once(0..8).collect());
        let b = history.issue(1, false, |_| std::iter::once(0..8).collect());
        history.answer(1, a, false);
        history.answer(1, b, false);
        let issued = history.tick();
        history.flush_answered(1, issued);
        let epoch = &history.epochs[&1];
        check(epoch, &image(&[(0..8, a)])).unwrap();
        check(epoch, &image(&[(0..8, b)])).unwrap();
        check(epoch, &image(&[(0..4, a), (4..8, b)])).expect_err("torn");
    }

    #[test]
    fn zeros_are_explained_by_a_trim_only_where_all_of_it_fits() {
        let mut history = history();
        let a = write(&mut history, 0..16);
        let issued = history.tick();
        history.flush_answered(1, issued);
        let trim = history.issue(1, true, |_| std::iter::once(0..8).collect());
        let epoch = &history.epochs[&1];
        check(epoch, &image(&[(0..16, a)])).unwrap();
        check(epoch, &image(&[(8..16, a)])).unwrap();
        check(epoch, &image(&[(4..16, a)])).expect_err("half a trim");
        check(epoch, &image(&[(12..16, a)])).expect_err("more than the trim");
        assert!(trim > a);
    }
}
