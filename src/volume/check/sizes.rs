//! The length of an object against the length that follows from what references it.
//!
//! Must not know what the object contains. Invariant: no single listing is believed if it shows another
//! length than the right one.

use super::context::{Context, Owned, Stop};
use super::frames::too_short;
use super::suspects::{Loss, Part, Suspects};
use crate::store::{Error, Pages, Store};

/// How many listings of one object in a row must show the same length.
const LISTINGS: u32 = 3;

/// Whether an object has the right length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// It has, or it is not listed at all.
    Right,
    /// It has not, which was noted.
    Wrong,
}

/// Lists an object, and notes it if it does not have `expected` bytes.
pub(super) async fn check(
    context: &Context<'_>,
    object: impl Into<Owned>,
    expected: u64,
    suspects: &mut Suspects,
) -> Result<Fit, Stop> {
    let object = object.into();
    let key = context.key_of(object);
    let mut last = None;
    for _ in 0..LISTINGS {
        let found = listed_bytes(context.store(), &key).await?;
        if found.is_none_or(|found| found == expected) || last.is_some_and(|last| Some(last) != found) {
            return Ok(Fit::Right);
        }
        last = found;
    }
    let Some(found) = last else { return Ok(Fit::Right) };
    context.confirm(object).await?;
    if found < expected {
        let cut = Part::Bytes(std::iter::once(found..u64::MAX).collect());
        context.note(suspects, object, too_short(found, expected), cut);
    } else {
        let why = format!("it has {found} bytes, more than the {expected} that were written");
        context.note(suspects, object, Loss::damaged(why), Part::Unread);
    }
    Ok(Fit::Wrong)
}

async fn listed_bytes(store: &dyn Store, key: &str) -> Result<Option<u64>, Error> {
    let mut pages = Pages::new(store, key);
    let mut found = None;
    while let Some(entries) = pages.next().await? {
        found = found.or(entries.iter().find(|entry| entry.key == key).map(|entry| entry.size_bytes));
    }
    Ok(found)
}
