//! The start-up probe: does the store heed the conditions on which everything rests?
//!
//! Some stores ignore `If-None-Match` or `If-Match`; others heed them in sequence and let several racing writers win.
//! Both would lose data without an error, so they are refused. Runs below [`Retry`](super::Retry), since a retried PUT
//! cannot tell its own success from another's. Invariant: a store passes only if every condition was seen to hold.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::time::Instant;

use super::{ByteRange, Condition, ETag, Error, Pages, Store};

/// What all keys of probes begin with.
pub const PREFIX: &str = "probe/";

/// How to probe.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// Writers that race for one key.
    pub racers: usize,
    /// Races, each for creating and for updating.
    pub rounds: u32,
    /// Time for all of it, waiting for a store that does not answer included.
    pub deadline: Duration,
    /// Time between two tries where the store did not answer.
    pub pause: Duration,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self { racers: 8, rounds: 10, deadline: Duration::from_secs(60), pause: Duration::from_millis(500) }
    }
}

/// Why a store cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProbeError {
    /// It does not heed a condition.
    #[error("this store cannot keep data safe: {0}")]
    Unsafe(Violation),
    /// It refuses what Cairn must be able to do: credentials, permissions, or the bucket.
    #[error("the store refuses a request that Cairn needs ({needs}): {source}")]
    Refused {
        /// What was asked for.
        needs: &'static str,
        /// Cause.
        #[source]
        source: Error,
    },
    /// It did not answer in time.
    #[error("the store did not answer in {} s, the last time: {last}", deadline.as_secs())]
    Unreachable {
        /// Time given.
        deadline: Duration,
        /// The last failure.
        #[source]
        last: Error,
    },
    /// It is too slow to be probed in time.
    #[error("the store is too slow: the probe did not end in {} s", .0.as_secs())]
    Slow(Duration),
}

/// What a store does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A PUT with `If-None-Match: *` replaced an object.
    #[error("it ignores If-None-Match: a PUT with `If-None-Match: *` replaced an object that stood")]
    IgnoresIfNoneMatch,
    /// A PUT with an old ETag in `If-Match` replaced an object.
    #[error("it ignores If-Match: a PUT with an old ETag in `If-Match` replaced a newer object")]
    IgnoresIfMatch,
    /// A PUT with `If-Match` created an object.
    #[error("it ignores If-Match: a PUT with `If-Match` created an object where none stood")]
    CreatesOnIfMatch,
    /// A PUT with `If-None-Match: *` failed where nothing stood.
    #[error("it refuses every PUT with `If-None-Match: *`, where nothing stands too")]
    RefusesIfNoneMatch,
    /// A PUT with the right ETag in `If-Match` failed.
    #[error("it refuses every PUT with `If-Match`, with the right ETag too")]
    RefusesIfMatch,
    /// Several creators of one key were told that they had won.
    #[error("of {racers} racing PUTs with `If-None-Match: *` on one key it let {winners} win")]
    SeveralCreators {
        /// Writers.
        racers: usize,
        /// Those that won.
        winners: usize,
    },
    /// Several updaters of one version were told that they had won.
    #[error("of {racers} racing PUTs with the same ETag in `If-Match` it let {winners} win")]
    SeveralUpdaters {
        /// Writers.
        racers: usize,
        /// Those that won.
        winners: usize,
    },
    /// After a PUT was answered, a GET gave something else.
    #[error("a GET after an answered PUT gave other bytes than the PUT's")]
    StaleRead,
    /// An object's key was missing in a LIST, or a deleted one was there.
    #[error("a LIST did not give exactly the keys that stand")]
    StaleList,
}

/// How often in a row what was read must be wrong before the store is blamed, and not the way to it.
const WRONG_READINGS: u32 = 3;

/// Why a step did not end.
enum Stop {
    Failed(ProbeError),
    /// No definite answer; the step may be tried again under other keys.
    Unclear(Error),
    /// What was read is wrong: so the store has it, or it was damaged on its way.
    Misread(Violation),
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Self {
        Self::Failed(ProbeError::Unsafe(violation))
    }
}

/// An error that says nothing of conditions.
fn stop(needs: &'static str, source: Error) -> Stop {
    match source {
        Error::Denied { .. } | Error::Rejected { .. } => Stop::Failed(ProbeError::Refused { needs, source }),
        other => Stop::Unclear(other),
    }
}

/// Probes a store; `nonce`, of key characters, sets its keys apart.
///
/// # Errors
/// Where the store must not be used.
pub async fn probe(store: &dyn Store, options: &ProbeOptions, nonce: &str) -> Result<(), ProbeError> {
    let mut probe = Probe {
        store,
        options,
        root: format!("{PREFIX}{nonce}/"),
        keys: Vec::new(),
        listed: Vec::new(),
        ends: Instant::now() + options.deadline,
    };
    let outcome = probe.run().await;
    probe.clean().await;
    outcome
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Sequence,
    RaceToCreate,
    RaceToUpdate,
    Listing,
}

struct Probe<'a> {
    store: &'a dyn Store,
    options: &'a ProbeOptions,
    root: String,
    /// All that were used, to be deleted.
    keys: Vec<String>,
    /// Those below which keys were put, to be listed.
    listed: Vec<String>,
    ends: Instant,
}

/// What is put below a key, to be listed.
fn listed_below(key: &str) -> [String; 3] {
    ["a", "b", "c"].map(|name| format!("{key}/{name}"))
}

fn body(text: impl std::fmt::Display) -> Bytes {
    Bytes::from(text.to_string())
}

impl Probe<'_> {
    async fn run(&mut self) -> Result<(), ProbeError> {
        self.step(Step::Sequence).await?;
        for _ in 0..self.options.rounds {
            self.step(Step::RaceToCreate).await?;
            self.step(Step::RaceToUpdate).await?;
        }
        self.step(Step::Listing).await
    }

    /// Tries a step, each time under a fresh key, until it ends or the time does.
    async fn step(&mut self, step: Step) -> Result<(), ProbeError> {
        let (mut last, mut wrong_readings) = (None, 0);
        loop {
            let key = format!("{}{}", self.root, self.keys.len());
            self.keys.push(key.clone());
            if matches!(step, Step::Listing) {
                self.listed.push(key.clone());
            }
            match self.in_time(self.attempt(step, &key)).await {
                None => return Err(self.late(last)),
                Some(Ok(())) => return Ok(()),
                Some(Err(Stop::Failed(error))) => return Err(error),
                Some(Err(Stop::Unclear(error))) => {
                    tracing::warn!(%error, "the store did not answer the probe, trying again");
                    last = Some(error);
                }
                Some(Err(Stop::Misread(violation))) => {
                    wrong_readings += 1;
                    if wrong_readings == WRONG_READINGS {
                        return Err(ProbeError::Unsafe(violation));
                    }
                    tracing::warn!(%violation, "the probe read what it should not, trying again");
                }
            }
            if self.in_time(tokio::time::sleep(self.options.pause)).await.is_none() {
                return Err(self.late(last));
            }
        }
    }

    async fn attempt(&self, step: Step, key: &str) -> Result<(), Stop> {
        match step {
            Step::Sequence => self.sequence(key).await,
            Step::RaceToCreate => self.race_to_create(key).await,
            Step::RaceToUpdate => self.race_to_update(key).await,
            Step::Listing => self.listing(key).await,
        }
    }

    async fn in_time<F: Future>(&self, future: F) -> Option<F::Output> {
        tokio::time::timeout_at(self.ends, future).await.ok()
    }

    fn late(&self, last: Option<Error>) -> ProbeError {
        let deadline = self.options.deadline;
        match last {
            Some(last) => ProbeError::Unreachable { deadline, last },
            None => ProbeError::Slow(deadline),
        }
    }

    async fn put(&self, key: &str, text: &str, condition: Condition) -> Result<ETag, Error> {
        self.store.put(key, body(text), condition).await
    }

    /// What must fail because its condition does not hold.
    async fn must_fail(
        &self,
        key: &str,
        condition: Condition,
        needs: &'static str,
        otherwise: Violation,
    ) -> Result<(), Stop> {
        match self.put(key, "must fail", condition).await {
            Ok(_) => Err(otherwise.into()),
            Err(Error::PreconditionFailed { .. } | Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(stop(needs, error)),
        }
    }

    async fn must_read(&self, key: &str, wanted: &[u8]) -> Result<(), Stop> {
        match self.store.get(key, ByteRange::Full).await {
            Ok(object) if object.body == wanted => Ok(()),
            Ok(_) | Err(Error::NotFound { .. }) => Err(Stop::Misread(Violation::StaleRead)),
            Err(error) => Err(stop("GET", error)),
        }
    }

    /// One writer: each condition where it holds, and where it does not.
    async fn sequence(&self, key: &str) -> Result<(), Stop> {
        let (create, update) = ("PUT with If-None-Match", "PUT with If-Match");
        match self.store.get(key, ByteRange::Full).await {
            Err(Error::NotFound { .. }) => {}
            Ok(_) => return Err(Stop::Misread(Violation::StaleRead)),
            Err(error) => return Err(stop("GET of an absent key, which needs ListBucket too", error)),
        }
        let first = match self.put(key, "first", Condition::IfAbsent).await {
            Ok(etag) => etag,
            Err(Error::PreconditionFailed { .. }) => return Err(Violation::RefusesIfNoneMatch.into()),
            Err(error) => return Err(stop(create, error)),
        };
        self.must_fail(key, Condition::IfAbsent, create, Violation::IgnoresIfNoneMatch).await?;
        self.must_read(key, b"first").await?;
        let refused = |error| match error {
            Error::PreconditionFailed { .. } | Error::NotFound { .. } => Violation::RefusesIfMatch.into(),
            error => stop(update, error),
        };
        self.put(key, "second", Condition::IfMatch(first.clone())).await.map_err(refused)?;
        self.must_fail(key, Condition::IfMatch(first.clone()), update, Violation::IgnoresIfMatch).await?;
        self.must_read(key, b"second").await?;
        self.store.delete(&[key.to_owned()]).await.map_err(|error| stop("DELETE", error))?;
        self.must_fail(key, Condition::IfMatch(first), update, Violation::CreatesOnIfMatch).await
    }

    /// Who won, and whether all the others were told that they had lost.
    async fn race(
        &self,
        key: &str,
        condition: &Condition,
        needs: &'static str,
        several: impl Fn(usize, usize) -> Violation,
        refuses: Violation,
    ) -> Result<ETag, Stop> {
        let racers = self.options.racers;
        let puts = (0..racers).map(|racer| {
            let put = self.store.put(key, body(format_args!("racer {racer}")), condition.clone());
            async move { (racer, put.await) }
        });
        let mut winners = Vec::new();
        let mut unclear = None;
        for (racer, answer) in join_all(puts).await {
            match answer {
                Ok(etag) => winners.push((racer, etag)),
                Err(Error::PreconditionFailed { .. } | Error::NotFound { .. }) => {}
                Err(error) => unclear = Some(error),
            }
        }
        match (winners.pop(), winners.len()) {
            (Some((racer, etag)), 0) => {
                // One that lost must not have written all the same; one without an answer may have won.
                if unclear.is_none() {
                    self.must_read(key, format!("racer {racer}").as_bytes()).await?;
                }
                Ok(etag)
            }
            (Some(_), others) => Err(several(racers, others + 1).into()),
            (None, _) => match unclear {
                Some(error) => Err(stop(needs, error)),
                None => Err(refuses.into()),
            },
        }
    }

    async fn race_to_create(&self, key: &str) -> Result<(), Stop> {
        let several = |racers, winners| Violation::SeveralCreators { racers, winners };
        let needs = "PUT with If-None-Match";
        let refuses = Violation::RefusesIfNoneMatch;
        self.race(key, &Condition::IfAbsent, needs, several, refuses).await.map(drop)
    }

    async fn race_to_update(&self, key: &str) -> Result<(), Stop> {
        let several = |racers, winners| Violation::SeveralUpdaters { racers, winners };
        let put = self.put(key, "start", Condition::Always).await;
        let start = put.map_err(|error| stop("PUT", error))?;
        let (needs, refuses) = ("PUT with If-Match", Violation::RefusesIfMatch);
        self.race(key, &Condition::IfMatch(start), needs, several, refuses).await.map(drop)
    }

    /// What stands, and only that, is listed.
    async fn listing(&self, key: &str) -> Result<(), Stop> {
        let keys = listed_below(key);
        for key in &keys {
            self.put(key, "listed", Condition::Always).await.map_err(|error| stop("PUT", error))?;
        }
        let deleted = &keys[1..2];
        self.store.delete(deleted).await.map_err(|error| stop("DELETE", error))?;
        let mut listed = Vec::new();
        let below = format!("{key}/");
        let mut pages = Pages::new(self.store, &below);
        while let Some(entries) = pages.next().await.map_err(|error| stop("LIST", error))? {
            listed.extend(entries.into_iter().map(|entry| entry.key));
        }
        listed.sort_unstable();
        let stands = listed == [keys[0].as_str(), keys[2].as_str()];
        self.store.delete(&keys).await.map_err(|error| stop("DELETE", error))?;
        if stands { Ok(()) } else { Err(Stop::Misread(Violation::StaleList)) }
    }

    /// Deletes what the probe put. A store that does not answer keeps it: it is small, and under its own prefix.
    async fn clean(&self) {
        let mut keys = self.keys.clone();
        keys.extend(self.listed.iter().flat_map(|key| listed_below(key)));
        for some in keys.chunks(1000) {
            let deleted = tokio::time::timeout(self.options.deadline, self.store.delete(some)).await;
            if !matches!(deleted, Ok(Ok(()))) {
                tracing::warn!(prefix = self.root, "could not delete the keys of the probe");
            }
        }
    }
}
