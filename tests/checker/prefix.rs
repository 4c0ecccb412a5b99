//! Checks that a recovered image is the state after a prefix of an epoch's commits, and that the prefix is
//! long enough.
//!
//! Commits are prefixes of the order in which changes were applied. All that is known of this order is that a
//! change that was answered before another was issued came before it. The image must contain these changes:
//!
//! 1. changes that a durable answer covers: those answered before the last answered FLUSH was issued, FUA
//!    changes that were answered, and all that were answered before an answered closing;
//! 2. changes whose content is visible in the image;
//! 3. changes that were answered before one of the above was issued, since a prefix has no gaps.
//!
//! The image is right if it contains these changes and nothing else. A cell that none of them covers has the
//! content that was recovered before. A cell that some cover has the content of one that none of them
//! certainly follows. No content of one change appears where another's must. For changes that overlap in
//! time, the order is the same in all cells (otherwise half a WRITE would be visible). Zeros have no stamp: a
//! cell of zeros is explained by any change that zeroes it, and a zeroing that the image need not contain
//! explains it only if all other cells that it covers allow it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::cells::{BLOCK_CELLS, Id, TORN};
use super::history::{Change, Epoch, Moment, describe, unlike};

/// A contradiction, and the cells that show it.
struct Wrong {
    cells: Vec<u32>,
    why: String,
    /// The prefix contains all changes answered before this moment.
    until: Moment,
}

/// Pairs of changes of which the first comes before the second, with the cell that decided it.
type Order = BTreeMap<(Id, Id), u32>;

/// Limit on the zeroings that are tried before an image counts as wrong.
const TRIES: u32 = 10_000;

/// Checks the image that was recovered after `epoch` ended, or that would be if it ended now.
pub(crate) fn check(epoch: &Epoch, image: &[Id]) -> Result<(), String> {
    let mut held: BTreeSet<Id> = BTreeSet::new();
    for (cell, found) in (0..).zip(image) {
        if *found == 0 {
            continue;
        }
        if *found == TORN {
            return Err(format!("cell {cell} recovered as what nobody wrote"));
        }
        if epoch.base[cell as usize] != *found {
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
    explain(epoch, image, &mut held, &BTreeSet::new(), &mut TRIES.clone()).map_err(|wrong| wrong.why)
}

/// Checks the image against a prefix that contains `held`, any zeroings needed to explain the rest, and none
/// of `without`.
///
/// Zeroings are tried in order of issue, since early ones require fewer other changes. A zeroing that leaves
/// the contradiction as it was is not needed. One that was tried together with all that it required need not
/// be tried again.
fn explain(
    epoch: &Epoch,
    image: &[Id],
    held: &mut BTreeSet<Id>,
    without: &BTreeSet<Id>,
    tries: &mut u32,
) -> Result<(), Wrong> {
    let Err(wrong) = try_prefix(epoch, image, held) else { return Ok(()) };
    let is_there = |change: &Change| {
        held.contains(&change.id) || change.answered.is_some_and(|answered| answered < wrong.until)
    };
    // It must not be in the prefix yet, and must be able to be the last change of the cell.
    let may_help = |cell: u32, zero: &Change| {
        !is_there(zero)
            && !without.contains(&zero.id)
            && !epoch
                .touching(cell / BLOCK_CELLS)
                .any(|other| other.covers(cell) && is_there(other) && zero.precedes(other))
    };
    let zeros = wrong.cells.iter().copied().filter(|cell| image[*cell as usize] == 0);
    let candidates: BTreeMap<Moment, &Change> = zeros
        .flat_map(|cell| epoch.touching(cell / BLOCK_CELLS).map(move |change| (cell, change)))
        .filter(|(cell, change)| change.zero && change.covers(*cell) && may_help(*cell, change))
        .map(|(_, change)| (change.issued, change))
        .collect();
    let mut without = without.clone();
    for candidate in candidates.into_values().filter(|change| fits(epoch, image, change)) {
        if *tries == 0 {
            break;
        }
        *tries -= 1;
        held.insert(candidate.id);
        match explain(epoch, image, held, &without, tries) {
            Ok(()) => return Ok(()),
            Err(_) => drop(held.remove(&candidate.id)),
        }
        without.insert(candidate.id);
    }
    Err(wrong)
}

/// Whether every cell that a zeroing covers may have been zeroed by it.
fn fits(epoch: &Epoch, image: &[Id], zero: &Change) -> bool {
    let mut cells = zero.cells.iter().cloned().flatten();
    cells.all(|cell| {
        let found = image[cell as usize];
        found == 0 || epoch.change(found).is_some_and(|change| !change.precedes(zero))
    })
}

/// Checks the image against the smallest prefix that contains `held`.
fn try_prefix(epoch: &Epoch, image: &[Id], held: &BTreeSet<Id>) -> Result<(), Wrong> {
    let issued = held.iter().filter_map(|id| epoch.change(*id)).map(|change| change.issued).max();
    let until: Moment = issued.unwrap_or(0).max(epoch.flushed).max(epoch.closed.unwrap_or(0));
    let which = epoch.which(|change| {
        change.answered.is_some_and(|answered| answered < until) || held.contains(&change.id)
    });
    let mut order = Order::new();
    let cells = u32::try_from(image.len()).expect("images are small");
    for block in 0..cells.div_ceil(BLOCK_CELLS) {
        let block = block * BLOCK_CELLS..cells.min((block + 1) * BLOCK_CELLS);
        let inside = epoch.seen_in(block.clone(), &which);
        let content = |cell: u32| (image[cell as usize], epoch.base[cell as usize]);
        for cell in unlike(&inside, block, content) {
            let (found, base) = (image[cell as usize], epoch.base[cell as usize]);
            let mut covering = inside.iter().copied().filter(|change| change.covers(cell)).peekable();
            let told = |what: &str| {
                let inside = inside.iter().copied().filter(|change| change.covers(cell)).map(describe);
                let inside = inside.collect::<Vec<_>>().join(", ");
                let why = format!(
                    "cell {cell} {what}: recovered {found}, base {base}; the prefix answered before {until} has {inside}"
                );
                Wrong { cells: vec![cell], why, until }
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
                // If there are several zeroings, any may be the last one.
                continue;
            }
            for other in covering.filter(|other| other.id != last.id && !other.precedes(last)) {
                order.entry((other.id, last.id)).or_insert(cell);
                if let Some(unlike) = order.get(&(last.id, other.id)) {
                    let mut wrong = told("is decided unlike another cell of the same changes");
                    wrong.cells.push(*unlike);
                    return Err(wrong);
                }
            }
        }
    }
    acyclic(epoch, &order).map_err(|(cells, why)| Wrong { cells, why, until })
}

/// Whether an order of all changes exists that agrees with the decided pairs and with the answers.
fn acyclic(epoch: &Epoch, order: &Order) -> Result<(), (Vec<u32>, String)> {
    let change = |id: Id| epoch.change(id).expect("it was issued");
    let is_before = |a: Id, b: Id| a != b && (order.contains_key(&(a, b)) || change(a).precedes(change(b)));
    let mut left: BTreeSet<Id> = order.keys().flat_map(|(a, b)| [*a, *b]).collect();
    while !left.is_empty() {
        let is_first = |id: Id| !left.iter().any(|other| is_before(*other, id));
        let Some(first) = left.iter().copied().find(|id| is_first(*id)) else {
            let circle = circle(&left, order, is_before);
            let all: Vec<String> = circle.iter().map(|id| describe(change(*id))).collect();
            let why = format!("no order explains the image, of changes {}", all.join(", "));
            let steps = circle.iter().zip(circle.iter().cycle().skip(1));
            let cells = steps.filter_map(|(a, b)| order.get(&(*a, *b))).copied().collect();
            return Err((cells, why));
        };
        left.remove(&first);
    }
    Ok(())
}

/// Returns a cycle of changes each of which comes before the next: the shortest, or one of three. Answers
/// alone never make one.
fn circle(left: &BTreeSet<Id>, order: &Order, is_before: impl Fn(Id, Id) -> bool) -> Vec<Id> {
    let mut shortest: Vec<Id> = Vec::new();
    for (from, to) in order.keys().copied().filter(|(a, b)| left.contains(a) && left.contains(b)) {
        // Searches from `to` until `from` is reached, breadth first.
        let mut steps = BTreeMap::from([(to, to)]);
        let mut queue = VecDeque::from([to]);
        while !steps.contains_key(&from)
            && let Some(id) = queue.pop_front()
        {
            for next in left.iter().copied().filter(|next| is_before(id, *next)) {
                steps.entry(next).or_insert_with(|| {
                    queue.push_back(next);
                    id
                });
            }
        }
        if !steps.contains_key(&from) {
            continue;
        }
        let mut path = vec![from];
        while let Some(id) = path.last().copied().filter(|id| *id != to) {
            path.push(steps[&id]);
        }
        path.reverse();
        if shortest.is_empty() || path.len() < shortest.len() {
            shortest = path;
        }
        if shortest.len() <= 3 {
            break;
        }
    }
    shortest
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
    fn a_zero_that_need_not_be_there_may_undo_a_circle() {
        let mut history = history();
        let early = history.issue(1, true, |_| std::iter::once(0..16).collect());
        let a = write(&mut history, 8..16);
        let b = write(&mut history, 0..4);
        history.answer(1, early, false);
        let issued = history.tick();
        history.flush_answered(1, issued);
        // Zeros in place of `b`: `early` came before `a`, and `a` before `b`.
        check(&history.epochs[&1], &image(&[(8..16, a)])).expect_err("no order explains it");
        let bait = history.issue(1, true, |_| std::iter::once(4..8).collect());
        check(&history.epochs[&1], &image(&[(8..16, a)])).expect_err("that zero is elsewhere");
        let late = history.issue(1, true, |_| std::iter::once(0..4).collect());
        check(&history.epochs[&1], &image(&[(8..16, a)])).unwrap();
        check(&history.epochs[&1], &image(&[(0..2, b), (8..16, a)])).expect_err("half a trim");
        assert!(bait < late);
    }

    #[test]
    fn an_instant_has_what_was_answered_before_and_nothing_that_was_issued_after() {
        let mut history = history();
        let a = write(&mut history, 0..8);
        let at_one_time = history.issue(1, false, |_| std::iter::once(8..16).collect());
        let from = history.tick();
        let b = write(&mut history, 16..24);
        let until = history.tick();
        history.answer(1, at_one_time, true);
        let c = write(&mut history, 24..32);
        let issued = history.tick();
        history.flush_answered(1, issued);
        let epoch = history.epochs[&1].between(from, until);
        check(&epoch, &image(&[(0..8, a)])).unwrap();
        check(&epoch, &image(&[(0..8, a), (8..16, at_one_time)])).unwrap();
        check(&epoch, &image(&[(0..8, a), (16..24, b)])).unwrap();
        check(&epoch, &image(&[(0..8, a), (8..16, at_one_time), (16..24, b)])).unwrap();
        check(&epoch, &image(&[(8..16, at_one_time)])).expect_err("answered before it");
        check(&epoch, &image(&[(0..8, a), (24..32, c)])).expect_err("issued after it");
        check(&epoch, &image(&[(0..8, a), (8..12, at_one_time)])).expect_err("half a write");
    }

    #[test]
    fn nothing_of_what_another_change_covers_comes_back() {
        let mut history = history();
        let (a, all) = (write(&mut history, 8..16), write(&mut history, 0..64));
        let at_one_time = history.issue(1, false, |_| std::iter::once(32..48).collect());
        let later = write(&mut history, 40..44);
        let epoch = &history.epochs[&1];
        check(epoch, &image(&[(0..64, all)])).unwrap();
        check(epoch, &image(&[(0..64, all), (40..44, later)])).unwrap();
        check(epoch, &image(&[(0..64, all), (32..48, at_one_time), (40..44, later)])).unwrap();
        check(epoch, &image(&[(0..64, all), (8..16, a)])).expect_err("written over before");
        check(epoch, &image(&[(0..64, all), (8..9, a), (40..44, later)])).expect_err("written over before");
        check(epoch, &image(&[(0..63, all)])).expect_err("half a write");
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
    fn a_later_trim_may_explain_what_an_earlier_one_seems_to() {
        let mut history = history();
        let earlier = history.issue(1, true, |_| std::iter::once(0..32).collect());
        let a = write(&mut history, 8..24);
        let later = history.issue(1, true, |_| std::iter::once(0..16).collect());
        let epoch = &history.epochs[&1];
        check(epoch, &image(&[(16..24, a)])).unwrap();
        check(epoch, &image(&[(8..12, a), (16..24, a)])).expect_err("half a trim");
        assert!(earlier < later);
    }

    #[test]
    fn the_zero_that_explains_is_found_among_thousands_that_cannot() {
        let mut history = history();
        for _ in 0..2 * TRIES {
            let zero = history.issue(1, true, |_| std::iter::once(0..8).collect());
            history.answer(1, zero, false);
        }
        let a = write(&mut history, 0..16);
        let issued = history.tick();
        history.flush_answered(1, issued);
        check(&history.epochs[&1], &image(&[(8..16, a)])).expect_err("all of them came before");
        history.issue(1, true, |_| std::iter::once(0..8).collect());
        check(&history.epochs[&1], &image(&[(8..16, a)])).unwrap();
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
