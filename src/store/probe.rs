//! The start-up probe: checks that the store honours the conditions on which all data safety depends.
//!
//! Owns the checks and their verdict, and must not know volumes. Some stores ignore `If-None-Match` or
//! `If-Match`. Others honour them for one writer, but let several concurrent writers succeed. Either would
//! lose data without an error, so Cairn refuses such stores. The probe runs below [`Retry`](super::Retry),
//! because a retried PUT cannot distinguish its own success from that of another writer. Invariant: a store
//! passes only if every condition was observed to hold.
//!
//! A store that passed is recorded in the store itself ([`RECORD`]). Later starts only check that it still
//! refuses what it must, and that each operation is permitted. This takes [`CHECKS`] requests instead of
//! about 190.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::time::Instant;

use super::passed::{Passed, RECORD};
use super::{ByteRange, Condition, ETag, Error, MAXIMUM_DELETE_KEYS, Pages, Store};

/// Prefix of all keys of probes.
pub const PREFIX: &str = "probe/";
/// Number of requests of a start that finds the record of a passed probe, if the listing has one page.
pub const CHECKS: usize = 6;
/// An ETag that no object has. It looks like an ETag of S3, because some stores parse it.
const NO_ETAG: &str = "\"00000000000000000000000000000000\"";

/// When to probe in full a store that has already passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// Only if no record says that it passed.
    #[default]
    Once,
    /// At every start.
    Always,
}

/// What distinguishes one probe from others.
#[derive(Clone, Debug)]
pub struct Occasion<'a> {
    /// Part of every key of this probe, so that several probes can run at the same time. Consists of key
    /// characters.
    pub nonce: &'a str,
    /// What is probed: the service, bucket and prefix, or the directory.
    pub against: &'a str,
    /// The time in seconds since 1970.
    pub now_seconds: u64,
}

/// How to probe.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// Number of writers that race for one key.
    pub racers: usize,
    /// Number of races for creating and of races for updating.
    pub rounds: u32,
    /// Time limit of the whole probe, including the wait for a store that does not answer.
    pub deadline: Duration,
    /// Pause between two attempts if the store does not answer.
    pub pause: Duration,
    /// When to probe in full a store that has already passed.
    pub when: When,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self {
            racers: 8,
            rounds: 10,
            deadline: Duration::from_secs(60),
            pause: Duration::from_millis(500),
            when: When::Once,
        }
    }
}

/// Why a store cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProbeError {
    /// The store does not honour a condition.
    #[error("this store cannot keep data safe: {0}")]
    Unsafe(Violation),
    /// The store refuses a request that Cairn needs: credentials, permissions, or the bucket are wrong.
    #[error("the store refuses a request that Cairn needs ({needs}): {source}")]
    Refused {
        /// The request or permission that is needed.
        needs: &'static str,
        /// The answer of the store.
        #[source]
        source: Error,
    },
    /// The store cannot be reached as configured.
    #[error("{0}")]
    Misconfigured(#[source] Error),
    /// The store did not answer in time.
    #[error("the store did not answer within {} s; the last error was: {last}", deadline.as_secs())]
    Unreachable {
        /// The time limit of the probe.
        deadline: Duration,
        /// The last error.
        #[source]
        last: Error,
    },
    /// The store is too slow: the probe did not finish within this time.
    #[error("the store is too slow: the probe did not finish within {} s", .0.as_secs())]
    Slow(Duration),
}

/// What a store does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A PUT with `If-None-Match: *` replaced an object.
    #[error("it ignores If-None-Match: a PUT with `If-None-Match: *` replaced an existing object")]
    IgnoresIfNoneMatch,
    /// A PUT with an old ETag in `If-Match` replaced an object.
    #[error("it ignores If-Match: a PUT with an old ETag in `If-Match` replaced a newer object")]
    IgnoresIfMatch,
    /// A PUT with `If-Match` created an object.
    #[error("it ignores If-Match: a PUT with `If-Match` created an object that did not exist")]
    CreatesOnIfMatch,
    /// A PUT with `If-None-Match: *` failed although the object did not exist.
    #[error("it refuses every PUT with `If-None-Match: *`, even if the object does not exist")]
    RefusesIfNoneMatch,
    /// A PUT with the right ETag in `If-Match` failed.
    #[error("it refuses every PUT with `If-Match`, even with the right ETag")]
    RefusesIfMatch,
    /// Several writers that created the same key all succeeded.
    #[error("it let {winners} of {racers} racing PUTs with `If-None-Match: *` on one key succeed")]
    SeveralCreators {
        /// Number of writers.
        racers: usize,
        /// Number of writers that succeeded.
        winners: usize,
    },
    /// Several writers that updated the same version all succeeded.
    #[error("it let {winners} of {racers} racing PUTs with the same ETag in `If-Match` succeed")]
    SeveralUpdaters {
        /// Number of writers.
        racers: usize,
        /// Number of writers that succeeded.
        winners: usize,
    },
    /// A GET after a successful PUT returned something else.
    #[error("a GET after a successful PUT returned different bytes")]
    StaleRead,
    /// A LIST omitted an existing key, or returned a deleted one.
    #[error("a LIST did not return exactly the existing keys")]
    StaleList,
}

/// Number of consecutive wrong reads after which the store is blamed, and not the network.
const WRONG_READINGS: u32 = 3;

/// Why a step did not complete.
enum Stop {
    Failed(ProbeError),
    /// There was no definite answer. The step can be repeated under another key.
    Unclear(Error),
    /// A read returned wrong data. Either the store holds it, or it was damaged in transit.
    Misread(Violation),
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Self {
        Self::Failed(ProbeError::Unsafe(violation))
    }
}

/// Classifies an error that says nothing about conditions.
fn stop(needs: &'static str, source: Error) -> Stop {
    match source {
        Error::Unreachable { .. } => Stop::Failed(ProbeError::Misconfigured(source)),
        Error::Denied { .. } | Error::Rejected { .. } => Stop::Failed(ProbeError::Refused { needs, source }),
        other => Stop::Unclear(other),
    }
}

/// Probes a store in full, or checks it briefly if a record says that it passed.
///
/// # Errors
/// If the store must not be used.
pub async fn ensure(
    store: &dyn Store,
    options: &ProbeOptions,
    occasion: &Occasion<'_>,
) -> Result<(), ProbeError> {
    let mut probe = Probe::new(store, options, occasion.nonce);
    if options.when == When::Once
        && let Found::Known = probe.step(Step::Recall(occasion.against)).await?
    {
        return Ok(());
    }
    let outcome = probe.run().await;
    probe.clean().await;
    outcome?;
    tracing::info!(against = occasion.against, "the store passed the probe");
    remember(store, options, occasion).await;
    Ok(())
}

/// Probes a store in full. `nonce` distinguishes its keys from those of other probes and consists of key
/// characters.
///
/// # Errors
/// If the store must not be used.
pub async fn probe(store: &dyn Store, options: &ProbeOptions, nonce: &str) -> Result<(), ProbeError> {
    let mut probe = Probe::new(store, options, nonce);
    let outcome = probe.run().await;
    probe.clean().await;
    outcome
}

/// Records in the store that it passed. If this fails, the next start probes it in full again.
async fn remember(store: &dyn Store, options: &ProbeOptions, occasion: &Occasion<'_>) {
    let passed = Passed::now(occasion.against, occasion.now_seconds);
    let put = store.put(RECORD, passed.encode(), Condition::Always);
    match tokio::time::timeout(options.deadline, put).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "cannot record that the store passed the probe"),
        Err(_) => tracing::warn!("cannot record in time that the store passed the probe"),
    }
}

/// What a step found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// The store behaves correctly.
    Known,
    /// No record says that the store passed.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    /// Checks the record for this location, and that the store still refuses what it must.
    Recall(&'a str),
    Sequence,
    RaceToCreate,
    RaceToUpdate,
    Listing,
}

struct Probe<'a> {
    store: &'a dyn Store,
    options: &'a ProbeOptions,
    root: String,
    /// All keys that were used. They are deleted at the end.
    keys: Vec<String>,
    /// The keys below which the listing step put objects.
    listed: Vec<String>,
    ends: Instant,
}

/// Returns the keys that the listing step puts below `key`.
fn listed_below(key: &str) -> [String; 3] {
    ["a", "b", "c"].map(|name| format!("{key}/{name}"))
}

fn body(text: impl std::fmt::Display) -> Bytes {
    Bytes::from(text.to_string())
}

impl<'a> Probe<'a> {
    fn new(store: &'a dyn Store, options: &'a ProbeOptions, nonce: &str) -> Self {
        Self {
            store,
            options,
            root: format!("{PREFIX}{nonce}/"),
            keys: Vec::new(),
            listed: Vec::new(),
            ends: Instant::now() + options.deadline,
        }
    }

    async fn run(&mut self) -> Result<(), ProbeError> {
        self.step(Step::Sequence).await?;
        for _ in 0..self.options.rounds {
            self.step(Step::RaceToCreate).await?;
            self.step(Step::RaceToUpdate).await?;
        }
        self.step(Step::Listing).await.map(drop)
    }

    /// Attempts a step, each time under a new key, until it completes or the time limit is reached.
    async fn step(&mut self, step: Step<'_>) -> Result<Found, ProbeError> {
        let (mut last, mut wrong_readings) = (None, 0);
        loop {
            let key = format!("{}{}", self.root, self.keys.len());
            self.keys.push(key.clone());
            if matches!(step, Step::Listing) {
                self.listed.push(key.clone());
            }
            match self.in_time(self.attempt(step, &key)).await {
                None => return Err(self.late(last)),
                Some(Ok(found)) => return Ok(found),
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
                    tracing::warn!(%violation, "the probe read unexpected data, trying again");
                }
            }
            if self.in_time(tokio::time::sleep(self.options.pause)).await.is_none() {
                return Err(self.late(last));
            }
        }
    }

    async fn attempt(&self, step: Step<'_>, key: &str) -> Result<Found, Stop> {
        let passed = match step {
            Step::Recall(against) => return self.recall(key, against).await,
            Step::Sequence => self.sequence(key).await,
            Step::RaceToCreate => self.race_to_create(key).await,
            Step::RaceToUpdate => self.race_to_update(key).await,
            Step::Listing => self.listing(key).await,
        };
        passed.map(|()| Found::Known)
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

    /// Sends a PUT that must fail because its condition does not hold.
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

    async fn must_be_absent(&self, key: &str) -> Result<(), Stop> {
        match self.store.get(key, ByteRange::Full).await {
            Err(Error::NotFound { .. }) => Ok(()),
            Ok(_) => Err(Stop::Misread(Violation::StaleRead)),
            Err(error) => Err(stop("GET of a key that does not exist, which also needs ListBucket", error)),
        }
    }

    /// Looks for the record, then checks in [`CHECKS`] requests that conditions are honoured and every
    /// operation is permitted.
    ///
    /// The PUTs that must fail carry the bytes of the record, so that a store that executes them does no
    /// harm.
    async fn recall(&self, key: &str, against: &str) -> Result<Found, Stop> {
        let record = match self.store.get(RECORD, ByteRange::Full).await {
            Ok(record) => record.body,
            Err(Error::NotFound { .. }) => return Ok(Found::Unknown),
            Err(error) => return Err(stop("GET", error)),
        };
        if !Passed::says_so(&record, against) {
            return Ok(Found::Unknown);
        }
        self.must_be_absent(key).await?;
        let put = |condition| self.store.put(RECORD, record.clone(), condition);
        match put(Condition::IfAbsent).await {
            Err(Error::PreconditionFailed { .. }) => {}
            // Somebody may have deleted the record just now, in order to have the store probed in full.
            Ok(_) => return Err(Stop::Misread(Violation::IgnoresIfNoneMatch)),
            Err(error) => return Err(stop("PUT with If-None-Match", error)),
        }
        match put(Condition::IfMatch(ETag(NO_ETAG.into()))).await {
            Err(Error::PreconditionFailed { .. } | Error::NotFound { .. }) => {}
            Ok(_) => return Err(Violation::IgnoresIfMatch.into()),
            Err(error) => return Err(stop("PUT with If-Match", error)),
        }
        let (mut pages, mut listed) = (Pages::new(self.store, RECORD), false);
        while let Some(entries) = pages.next().await.map_err(|error| stop("LIST", error))? {
            listed |= entries.iter().any(|entry| entry.key == RECORD);
        }
        if !listed {
            return Err(Stop::Misread(Violation::StaleList));
        }
        self.store.delete(&[key.to_owned()]).await.map_err(|error| stop("DELETE", error))?;
        Ok(Found::Known)
    }

    /// Checks with one writer that each condition succeeds when it holds, and fails when it does not.
    async fn sequence(&self, key: &str) -> Result<(), Stop> {
        let (create, update) = ("PUT with If-None-Match", "PUT with If-Match");
        self.must_be_absent(key).await?;
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

    /// Runs a race. Returns the winner's ETag if exactly one writer was told that it had succeeded.
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
                // A writer that lost must not have written anything. A writer without an answer may have won.
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

    /// Checks that a listing contains exactly the existing keys.
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

    /// Deletes the objects of the probe. If the store does not answer, they remain; they are small and have
    /// their own prefix.
    async fn clean(&self) {
        let mut keys = self.keys.clone();
        keys.extend(self.listed.iter().flat_map(|key| listed_below(key)));
        for some in keys.chunks(MAXIMUM_DELETE_KEYS) {
            let deleted = tokio::time::timeout(self.options.deadline, self.store.delete(some)).await;
            if !matches!(deleted, Ok(Ok(()))) {
                tracing::warn!(prefix = self.root, "cannot delete the keys of the probe");
            }
        }
    }
}
