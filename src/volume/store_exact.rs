//! Creating an object whose name is bound to its bytes, whatever becomes of the answers, and reading one that
//! must be there and whose bytes must pass a check.
//!
//! Invariant: no single answer of the store is believed if a false one would cost data. Damage is believed
//! where three readings in a row are alike, absence where the store says so again and again over a time, and
//! lists no such object.

use std::time::Duration;

use bytes::Bytes;

use super::error::{self, OpenError};
use super::format::codec::DecodeError;
use crate::mutant::{self, Mutant};
use crate::store::error::cause;
use crate::store::{ByteRange, Condition, ETag, Error, Object, Pages, Store};

/// Readings in a row that must be alike to be believed when they are not what they should be: two of a small
/// object may be damaged alike by chance.
const ALIKE: u32 = 3;
/// Readings after which none is tried any more although not enough of them agree.
const MOST_READINGS: u32 = 10;

/// Pauses between the answers that an object does not exist, until a read believes them: 1.5 s together. A
/// lagging replica or a proxy's error page has passed by then.
const ABSENT: &[Duration] = &[ms(50), ms(100), ms(200), ms(400), ms(750)];
/// The same for a checkpoint, which marks what is lost for good: 15 s together.
const ABSENT_FOR_GOOD: &[Duration] = &[ms(1000), ms(2000), ms(4000), ms(8000)];

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// What stands under the name now.
#[derive(Debug)]
pub(super) enum Placed {
    /// Exactly our bytes, be it by this request or by an earlier one whose answer was lost.
    Ours,
    /// Something else.
    Other(Bytes),
    /// Something else, of so many bytes, which are more than are read at once.
    Larger(u64),
}

/// Creates the object if nothing stands there, and says what does.
///
/// An object that vanishes between the two requests was deleted by someone who could only do so after reading
/// it: the creation is tried again.
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
                // Bytes that were damaged on the way must not pass for another's.
                let object = agreed(store, key, object).await?;
                return Ok(if object.body == *bytes { Placed::Ours } else { Placed::Other(object.body) });
            }
            Err(Error::TooLarge { size_bytes, .. }) => return Ok(Placed::Larger(size_bytes)),
            Err(Error::NotFound { .. }) => contradictions.pause(key).await?,
            Err(error) => return Err(error),
        }
    }
}

/// Pause after the first answer that contradicts the one before; doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Answers that contradict the one before until the store is no longer believed: with the pauses, some 20 s.
const MOST_CONTRADICTIONS: u32 = 10;

/// Answers of a store of which each contradicts the one before: an object that stands when it is to be
/// created, and does not when it is read. Passes where it was deleted in between, or where a replica lags.
#[derive(Debug, Default)]
pub(super) struct Contradictions(u32);

impl Contradictions {
    /// Waits a while before the store is asked again.
    ///
    /// # Errors
    /// If it has contradicted itself for too long: nothing is known of the object then.
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

/// Reads an object again until enough readings in a row agree.
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

/// How often the same was read in a row.
#[derive(Debug, Default)]
struct Readings {
    last: Bytes,
    alike: u32,
}

impl Readings {
    /// Notes a reading, and says how many in a row, with this one, were like it.
    fn alike(&mut self, reading: &Bytes) -> u32 {
        self.alike = if self.last == *reading { self.alike + 1 } else { 1 };
        self.last = reading.clone();
        self.alike
    }
}

/// Tells damage at rest, which reads alike again and again, from damage on the way: what is lost on the way
/// is not lost.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    alike: Readings,
    readings: u32,
}

/// What a reading that failed its check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing yet: read again.
    Again,
    /// The object is not what was written.
    AtRest,
    /// The readings differ: nothing is known of the object.
    OnTheWay,
}

impl Doubt {
    /// Notes a reading that failed its check.
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

/// The error of a request whose answers are damaged on the way.
pub(super) fn damaged_on_the_way(key: &str) -> Error {
    let why = format!("each of {MOST_READINGS} readings fails its check, no {ALIKE} in a row alike");
    Error::Transient { key: key.to_owned(), source: cause(why) }
}

/// Tells an object that is gone from one whose existence a single answer denies.
#[derive(Debug, Default)]
pub(super) struct Absence {
    answers: usize,
}

impl Absence {
    /// Notes the answer that an object does not exist although something references it; waits, and says
    /// whether to ask again. If not, the object is gone.
    ///
    /// # Errors
    /// If the store cannot be asked for a listing, or lists the object.
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
        let mut pages = Pages::new(store, key);
        while let Some(entries) = pages.next().await? {
            if entries.iter().any(|entry| entry.key == key) {
                let source = cause("the store lists the object, and says that it does not exist");
                return Err(Error::Transient { key: key.to_owned(), source });
            }
        }
        Ok(false)
    }
}

/// Reads an object that something references, or a range of it.
///
/// # Errors
/// [`Error::NotFound`] only if the object is gone; else those of the store.
pub(super) async fn get_referenced(store: &dyn Store, key: &str, range: ByteRange) -> Result<Object, Error> {
    let mut absence = Absence::default();
    loop {
        match store.get(key, range).await {
            Err(Error::NotFound { .. }) if absence.ask_again(store, key).await? => {}
            answer => return answer,
        }
    }
}

/// Makes sure that an object which a read took for gone is so for good, before anything permanent is
/// concluded from it.
///
/// # Errors
/// If it is there after all, or the store does not say.
pub(super) async fn confirm_gone(store: &dyn Store, key: &str) -> Result<(), Error> {
    let mut absence = Absence::default();
    loop {
        match store.get(key, ByteRange::Bounded { offset: 0, length: 1 }).await {
            Err(Error::NotFound { .. }) => {
                if !absence.ask_again_after(ABSENT_FOR_GOOD, store, key).await? {
                    return Ok(());
                }
            }
            Ok(_) | Err(Error::Truncated { .. } | Error::CutShort { .. }) => {
                let source = cause("the object was not found at first, and exists after all");
                return Err(Error::Transient { key: key.to_owned(), source });
            }
            Err(error) => return Err(error),
        }
    }
}

/// Why an object could not be had.
#[derive(Debug)]
pub(super) enum CheckedError {
    /// The store did not give it.
    Store(Error),
    /// It is not what was written.
    Damaged(DecodeError),
}

impl CheckedError {
    /// The error of an open volume that references the object, by the object's key.
    pub(super) fn referenced(self, key: String) -> error::Error {
        match self {
            Self::Store(Error::NotFound { key }) => error::Error::lost(key),
            Self::Store(error) => error::Error::Store(error),
            Self::Damaged(error) => error::Error::damaged(key, error.to_string()),
        }
    }

    /// The error of whoever opens, creates or deletes a volume, by the object's key.
    pub(super) fn unopened(self, key: &str) -> OpenError {
        match self {
            Self::Store(error) => error.into(),
            Self::Damaged(source) => OpenError::Damaged { key: key.to_owned(), source },
        }
    }
}

/// Fetches and decodes an object that something references, and again while that may be for damage on the way
/// or for a false answer that it does not exist.
pub(super) async fn fetch_checked<T>(
    store: &dyn Store,
    key: &str,
    decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
) -> Result<(T, ETag), CheckedError> {
    checked(|| get_referenced(store, key, ByteRange::Full), key, decode).await
}

/// Fetches and decodes an object that may well be absent; its absence is believed at once, so nothing that
/// costs data may be concluded from it.
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

    /// It paused nowhere, so that it sent requests as fast as the store answered, for ever.
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
