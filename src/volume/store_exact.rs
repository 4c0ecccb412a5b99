//! Creates objects whose key determines their bytes, even if answers of the store are lost, and reads objects
//! that must exist and whose bytes must pass a check.
//!
//! Must not know what the objects mean. Invariant: no single answer of the store is believed if a false
//! answer would cost data. Damage is believed when three readings in a row are identical. Absence is believed
//! when the store has reported it repeatedly over a period of time and does not list the object.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::error::{self, OpenError};
use super::format::codec::DecodeError;
use crate::mutant::{self, Mutant};
use crate::store::error::cause;
use crate::store::{ByteRange, Condition, ETag, Error, Object, Pages, Store};

/// How many identical readings in a row are believed although they fail their check. Two are not enough: two
/// readings of a small object may be damaged in the same way by chance.
const ALIKE: u32 = 3;
/// Limit on the readings of one object if not enough of them agree.
const MOST_READINGS: u32 = 10;

/// Pauses after each answer that an object does not exist, before a read believes it: 1.5 s in total. By then
/// a replica has caught up, and the error page of a proxy is gone.
const ABSENT: &[Duration] = &[ms(50), ms(100), ms(200), ms(400), ms(750)];
/// The same pauses for a checkpoint, which records a loss for good: 15 s in total.
const ABSENT_FOR_GOOD: &[Duration] = &[ms(1000), ms(2000), ms(4000), ms(8000)];

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// What exists under a key after an attempt to create it.
#[derive(Debug)]
pub(super) enum Placed {
    /// Exactly our bytes, written by this request or by an earlier one whose answer was lost.
    Ours,
    /// Other bytes, which are returned.
    Other(Bytes),
    /// A different object that is too large to be read whole. Contains its size in bytes.
    Larger(u64),
}

/// Creates an object unless one exists, and returns what exists under the key afterwards.
///
/// If the store refuses the creation and then does not find the object, then another party deleted it between
/// the two requests, and could do so only after reading it. The creation is then tried again.
pub(super) async fn create_exact(store: &dyn Store, key: &str, bytes: &Bytes) -> Result<Placed, Error> {
    let mut contradictions = Contradictions::default();
    loop {
        match store.put(key, bytes.clone(), Condition::IfAbsent).await {
            Ok(_) => return Ok(Placed::Ours),
            Err(Error::PreconditionFailed { .. }) if mutant::is(Mutant::OwnSuccessUnknown) => {
                return Ok(Placed::Other(Bytes::new()));
            }
            Err(Error::PreconditionFailed { .. }) => {}
            Err(error) => return Err(error),
        }
        match store.get(key, ByteRange::Full).await {
            Ok(object) if object.body == *bytes => return Ok(Placed::Ours),
            Ok(object) => {
                // Bytes that were damaged in transit must not be mistaken for another writer's.
                let object = agreed(store, key, object).await?;
                return Ok(if object.body == *bytes { Placed::Ours } else { Placed::Other(object.body) });
            }
            Err(Error::TooLarge { size_bytes, .. }) => return Ok(Placed::Larger(size_bytes)),
            Err(Error::NotFound { .. }) => contradictions.pause(key).await?,
            Err(error) => return Err(error),
        }
    }
}

/// Half of the first pause after a contradiction. Each further pause is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Contradictions in a row after which the store is no longer believed: after about 20 s of pauses.
const MOST_CONTRADICTIONS: u32 = 10;

/// Counts answers of the store that contradict each other: the object exists when it is to be created, but
/// not when it is read. This passes if the object was deleted in between, or if a replica lags behind.
#[derive(Debug, Default)]
pub(super) struct Contradictions(u32);

impl Contradictions {
    /// Waits before the store is asked again. Each call waits twice as long as the one before.
    ///
    /// # Errors
    /// Returns an error if the store has contradicted itself for too long. Nothing is known about the object
    /// then.
    pub(super) async fn pause(&mut self, key: &str) -> Result<(), Error> {
        self.0 += 1;
        if self.0 == MOST_CONTRADICTIONS {
            let why = format!("the store contradicts itself, {MOST_CONTRADICTIONS} times in a row");
            return Err(Error::Transient { key: key.to_owned(), source: cause(why) });
        }
        tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(self.0)).await;
        Ok(())
    }
}

/// Reads an object again until enough readings in a row are identical.
pub(super) async fn agreed(store: &dyn Store, key: &str, first: Object) -> Result<Object, Error> {
    let mut readings = Readings::default();
    let mut last = first;
    for _ in 0..MOST_READINGS {
        if readings.alike(&last.body) == ALIKE {
            return Ok(last);
        }
        last = get_referenced(store, key, ByteRange::Full).await?;
    }
    Err(damaged_on_the_way(key))
}

/// Counts identical readings in a row.
#[derive(Debug, Default)]
struct Readings {
    last: Bytes,
    alike: u32,
}

impl Readings {
    /// Records a reading. Returns how many readings in a row, including this one, are identical.
    fn alike(&mut self, reading: &Bytes) -> u32 {
        self.alike = if self.last == *reading { self.alike + 1 } else { 1 };
        self.last = reading.clone();
        self.alike
    }
}

/// Distinguishes damage at rest, where every reading is identical, from damage in transit. An object that is
/// only damaged in transit is not lost.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    alike: Readings,
    readings: u32,
}

/// What a reading that failed its check proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing yet: read the object again.
    Again,
    /// The object at rest is not what was written.
    AtRest,
    /// The readings differ, so nothing is known about the object.
    OnTheWay,
}

impl Doubt {
    /// Records a reading that failed its check.
    pub(super) fn note(&mut self, key: &str, reading: &Bytes) -> Verdict {
        self.readings += 1;
        let alike = self.alike.alike(reading);
        let believed = if mutant::is(Mutant::FlipsBelieved) { self.readings } else { alike };
        if believed == ALIKE {
            return Verdict::AtRest;
        }
        if self.readings == MOST_READINGS {
            return Verdict::OnTheWay;
        }
        tracing::warn!(%key, reading = self.readings, "what was fetched fails its check, fetching again");
        Verdict::Again
    }
}

/// The error of a request whose answers are damaged in transit.
pub(super) fn damaged_on_the_way(key: &str) -> Error {
    let why = format!("each of {MOST_READINGS} readings fails its check, no {ALIKE} in a row alike");
    Error::Transient { key: key.to_owned(), source: cause(why) }
}

/// Distinguishes an object that is gone from one whose existence the store denies once by mistake.
#[derive(Debug, Default)]
pub(super) struct Absence {
    answers: usize,
}

impl Absence {
    /// Records an answer that an object does not exist although something references it. Waits and returns
    /// whether to ask again. If it returns `false`, the object is gone.
    ///
    /// # Errors
    /// Returns an error if the listing fails, or if it contains the object.
    pub(super) async fn ask_again(&mut self, store: &dyn Store, key: &str) -> Result<bool, Error> {
        self.ask_again_after(ABSENT, store, key).await
    }

    async fn ask_again_after(
        &mut self,
        pauses: &[Duration],
        store: &dyn Store,
        key: &str,
    ) -> Result<bool, Error> {
        if mutant::is(Mutant::AbsenceBelieved) {
            return Ok(false);
        }
        if let Some(pause) = pauses.get(self.answers) {
            self.answers += 1;
            tracing::warn!(%key, answer = self.answers,
                "the store denies an object that must exist, asking again");
            tokio::time::sleep(*pause).await;
            return Ok(true);
        }
        if is_listed(store, key).await? {
            let source = cause("the store lists the object, and says that it does not exist");
            return Err(Error::Transient { key: key.to_owned(), source });
        }
        Ok(false)
    }
}

/// Reads an object that something references, or a range of it.
///
/// # Errors
/// Returns [`Error::NotFound`] only if the object is gone. Returns other errors of the store as they are.
pub(super) async fn get_referenced(store: &dyn Store, key: &str, range: ByteRange) -> Result<Object, Error> {
    let mut absence = Absence::default();
    loop {
        match store.get(key, range).await {
            Err(Error::NotFound { .. }) if absence.ask_again(store, key).await? => {}
            answer => return answer,
        }
    }
}

/// Confirms that an object which a read reported as gone is gone for good. This must come before anything
/// permanent is concluded from its absence.
///
/// # Errors
/// Returns an error if the object exists after all, or if the store does not answer.
pub(super) async fn confirm_gone(store: &dyn Store, key: &str) -> Result<(), Error> {
    let mut absence = Absence::default();
    loop {
        if !is_absent(store, key).await? {
            let source = cause("the object was not found at first, and exists after all");
            return Err(Error::Transient { key: key.to_owned(), source });
        }
        if !absence.ask_again_after(ABSENT_FOR_GOOD, store, key).await? {
            return Ok(());
        }
    }
}

/// Whether the store says that an object does not exist. A single answer proves nothing.
///
/// # Errors
/// If the store does not answer.
pub(super) async fn is_absent(store: &dyn Store, key: &str) -> Result<bool, Error> {
    match store.get(key, ByteRange::Bounded { offset: 0, length: 1 }).await {
        Err(Error::NotFound { .. }) => Ok(true),
        Ok(_) | Err(Error::Truncated { .. } | Error::CutShort { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// As [`confirm_gone`], for many things of which each exists while one of its objects does, and which the
/// store has denied once. Returns those that are gone. All of them are asked for between two pauses, so the
/// pauses do not add up. At most `concurrent` requests are in flight.
///
/// # Errors
/// If the store does not answer.
pub(super) async fn all_gone<T>(
    store: &dyn Store,
    mut things: Vec<(T, Vec<String>)>,
    concurrent: usize,
) -> Result<Vec<T>, Error> {
    for pause in ABSENT_FOR_GOOD {
        if things.is_empty() {
            break;
        }
        tokio::time::sleep(*pause).await;
        let looks = stream::iter(things).map(|(thing, keys)| async move {
            for key in &keys {
                if !is_absent(store, key).await? {
                    return Ok::<_, Error>(None);
                }
            }
            Ok(Some((thing, keys)))
        });
        let absent: Vec<Option<(T, Vec<String>)>> = looks.buffered(concurrent).try_collect().await?;
        things = absent.into_iter().flatten().collect();
    }
    let listings = stream::iter(things).map(|(thing, keys)| async move {
        for key in &keys {
            if is_listed(store, key).await? {
                return Ok::<_, Error>(None);
            }
        }
        Ok(Some(thing))
    });
    let gone: Vec<Option<T>> = listings.buffered(concurrent).try_collect().await?;
    Ok(gone.into_iter().flatten().collect())
}

/// Whether a listing has an object.
async fn is_listed(store: &dyn Store, key: &str) -> Result<bool, Error> {
    let mut pages = Pages::new(store, key);
    while let Some(entries) = pages.next().await? {
        if entries.iter().any(|entry| entry.key == key) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Why an object could not be read.
#[derive(Debug)]
pub(super) enum CheckedError {
    /// The store returned an error.
    Store(Error),
    /// The object is not what was written.
    Damaged(DecodeError),
}

impl CheckedError {
    /// Converts to the error of an open volume that references the object. `key` is the key of the object.
    pub(super) fn referenced(self, key: String) -> error::Error {
        match self {
            Self::Store(Error::NotFound { key }) => error::Error::lost(key),
            Self::Store(error) => error::Error::Store(error),
            Self::Damaged(error) => error::Error::damaged(key, error.to_string()),
        }
    }

    /// Converts to the error of an attempt to open, create or delete a volume. `key` is the
    /// key of the object.
    pub(super) fn unopened(self, key: &str) -> OpenError {
        match self {
            Self::Store(error) => error.into(),
            Self::Damaged(source) => OpenError::Damaged { key: key.to_owned(), source },
        }
    }
}

/// Fetches and decodes an object that something references. Fetches it again while the failure may be due to
/// damage in transit, or to a false answer that the object does not exist.
pub(super) async fn fetch_checked<T>(
    store: &dyn Store,
    key: &str,
    decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
) -> Result<(T, ETag), CheckedError> {
    checked(|| get_referenced(store, key, ByteRange::Full), key, decode).await
}

/// As [`fetch_checked`], for a part of an object. The part must pass its check alone.
pub(super) async fn fetch_part_checked<T>(
    store: &dyn Store,
    key: &str,
    range: ByteRange,
    decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
) -> Result<T, CheckedError> {
    let get = || async {
        match get_referenced(store, key, range).await {
            // An object that is too short is damaged, like one with wrong bytes.
            Err(Error::CutShort { .. }) => Ok(Object { body: Bytes::new(), etag: ETag("".into()) }),
            answer => answer,
        }
    };
    checked(get, key, decode).await.map(|(part, _)| part)
}

/// Fetches and decodes an object that may be absent. A single answer that it is absent is believed, so the
/// caller must conclude nothing from the absence that would cost data.
pub(super) async fn fetch_if_present<T>(
    store: &dyn Store,
    key: &str,
    decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
) -> Result<(T, ETag), CheckedError> {
    checked(|| store.get(key, ByteRange::Full), key, decode).await
}

async fn checked<T, F: Future<Output = Result<Object, Error>>>(
    get: impl Fn() -> F,
    key: &str,
    decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
) -> Result<(T, ETag), CheckedError> {
    let mut doubt = Doubt::default();
    loop {
        let object = get().await.map_err(CheckedError::Store)?;
        let error = match decode(&object.body) {
            Ok(value) => return Ok((value, object.etag)),
            Err(error) => error,
        };
        match doubt.note(key, &object.body) {
            Verdict::Again => {}
            Verdict::AtRest => return Err(CheckedError::Damaged(error)),
            Verdict::OnTheWay => return Err(CheckedError::Store(damaged_on_the_way(key))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fault::{Action, Fault, Rule};
    use crate::store::{MemoryStore, Operation};

    fn verdicts(readings: &[&'static str]) -> Vec<Verdict> {
        let mut doubt = Doubt::default();
        readings.iter().map(|reading| doubt.note("object", &Bytes::from_static(reading.as_bytes()))).collect()
    }

    #[test]
    fn damage_is_at_rest_where_three_readings_in_a_row_are_alike() {
        use Verdict::{Again, AtRest, OnTheWay};
        assert_eq!(verdicts(&["a", "a", "a"]), [Again, Again, AtRest]);
        assert_eq!(verdicts(&["", "", ""]), [Again, Again, AtRest]);
        assert_eq!(verdicts(&["a", "a", "b", "a", "a", "a"]), [Again, Again, Again, Again, Again, AtRest]);
        assert_eq!(verdicts(&["a", "b", "a", "b", "a", "b", "a", "b", "a", "b"])[8..], [Again, OnTheWay]);
        assert_eq!(verdicts(&["a", "a", "b", "b", "a", "a", "b", "b", "b"])[7..], [Again, AtRest]);
    }

    /// Without pauses, the store would receive requests as fast as it answers them, for ever.
    #[tokio::test(start_paused = true)]
    async fn a_store_that_contradicts_itself_is_asked_ever_more_seldom_and_given_up() {
        let memory = MemoryStore::new();
        memory.insert("object", Bytes::from_static(b"another's"));
        let fault = Fault::new(std::sync::Arc::new(memory.clone()), 1);
        let rule = Rule::new(Action::FailBefore(crate::store::fault::Failure::NotFound)).on(Operation::Get);
        let passing = fault.add(rule.clone().times(3));
        let begun = tokio::time::Instant::now();
        let placed = create_exact(&fault, "object", &Bytes::from_static(b"ours")).await.unwrap();
        assert!(matches!(placed, Placed::Other(found) if found == "another's"));
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        fault.remove(passing);
        fault.add(rule);
        memory.reset_tallies();
        let begun = tokio::time::Instant::now();
        let error =
            create_exact(&fault, "object", &Bytes::from_static(b"ours")).await.expect_err("it gives up");
        assert!(error.to_string().contains("contradicts itself"), "{error}");
        assert!(matches!(error, Error::Transient { .. }), "whoever must know asks again later");
        let asked = memory.tally(Operation::Put, |_| true).requests;
        assert_eq!(asked, u64::from(MOST_CONTRADICTIONS));
        let took = begun.elapsed();
        assert!((Duration::from_secs(15)..Duration::from_secs(30)).contains(&took), "{took:?}");
    }

    #[tokio::test]
    async fn readings_are_repeated_until_three_in_a_row_agree() {
        let memory = MemoryStore::new();
        memory.insert("object", Bytes::from_static(b"what stands there"));
        let fault = Fault::new(std::sync::Arc::new(memory.clone()), 1);
        let first = fault.get("object", ByteRange::Full).await.unwrap();
        fault.add(Rule::new(Action::FlipBit).on(Operation::Get).times(2));
        memory.reset_tallies();
        let found = agreed(&fault, "object", first).await.unwrap();
        assert_eq!(found.body, "what stands there");
        assert_eq!(memory.tally(Operation::Get, |_| true).requests, 5, "two damaged, three alike");
    }
}
