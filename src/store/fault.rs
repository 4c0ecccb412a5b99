//! Fault injection: a decorator that fails, delays, holds, loses and damages requests. Tests set its rules at
//! run time.
//!
//! Owns the rules and the requests that are late, and must not know what a request is for. It is
//! deterministic: it depends only on the clock of `tokio::time` and on its seed. Invariant: a request that no
//! rule matches passes through unchanged.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;

use super::error::cause;
use super::{ByteRange, Condition, ETag, Error, ListFrom, Listing, Object, Operation, Store};

/// Maximum number of late PUTs and DELETEs. At the limit, the oldest one takes effect before another is
/// postponed.
const MAX_LATE_REQUESTS: usize = 1024;

/// The error that the caller of a failed request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Returns [`Error::Timeout`].
    Timeout,
    /// Returns [`Error::Transient`].
    Transient,
    /// Returns [`Error::Throttled`].
    Throttled,
    /// Returns [`Error::Denied`].
    Denied,
    /// Returns [`Error::Rejected`].
    Rejected,
    /// Returns [`Error::NotFound`].
    NotFound,
    /// Returns [`Error::PreconditionFailed`].
    PreconditionFailed,
}

impl Failure {
    fn error(self, key: &str) -> Error {
        let key = key.to_owned();
        match self {
            Self::Timeout => Error::Timeout { key, after_ms: 10_000 },
            Self::Transient => Error::Transient { key, source: cause("injected") },
            Self::Throttled => Error::Throttled { key, source: cause("injected") },
            Self::Denied => Error::Denied { key, source: cause("injected") },
            Self::Rejected => Error::Rejected { key, source: cause("injected") },
            Self::NotFound => Error::NotFound { key },
            Self::PreconditionFailed => Error::PreconditionFailed { key },
        }
    }
}

/// What a rule does to a request.
#[derive(Clone, Debug)]
pub enum Action {
    /// The request fails and has no effect.
    FailBefore(Failure),
    /// The request takes effect, but its answer is lost.
    FailAfter(Failure),
    /// The caller gets the failure at once. The request reaches the store only after this many further
    /// requests, or at [`Fault::deliver`], and takes effect then if its condition holds. A GET or LIST only
    /// fails.
    Late(Failure, u32),
    /// The request waits for a random time between the two bounds before it takes effect.
    Delay(Duration, Duration),
    /// The answer waits for a random time between the two bounds.
    DelayAnswer(Duration, Duration),
    /// The request waits at a gate before it takes effect.
    Hold(Gate),
    /// The answer waits at a gate.
    HoldAnswer(Gate),
    /// One random bit of the body of a GET is flipped.
    FlipBit,
    /// The body of a GET ends early, which fails with [`Error::Truncated`].
    Short,
}

/// An [`Action`] and the requests to which it applies. If several rules match a request, all of them apply,
/// in the order in which they were added.
#[derive(Clone, Debug)]
pub struct Rule {
    action: Action,
    operation: Option<Operation>,
    prefix: String,
    containing: String,
    skip: u32,
    times: Option<u32>,
    probability: f64,
}

impl Rule {
    /// Applies the action to every request.
    #[must_use]
    pub fn new(action: Action) -> Self {
        Self {
            action,
            operation: None,
            prefix: String::new(),
            containing: String::new(),
            skip: 0,
            times: None,
            probability: 1.0,
        }
    }

    /// Restricts the rule to one operation.
    #[must_use]
    pub fn on(self, operation: Operation) -> Self {
        Self { operation: Some(operation), ..self }
    }

    /// Restricts the rule to keys that begin with `prefix`. For a LIST, the prefix of the listing counts as
    /// its key.
    #[must_use]
    pub fn prefix(self, prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..self }
    }

    /// Restricts the rule to keys that contain `part`. For a LIST, the prefix of the listing counts as its
    /// key.
    #[must_use]
    pub fn containing(self, part: &str) -> Self {
        Self { containing: part.to_owned(), ..self }
    }

    /// Exempts the first `requests` matching requests.
    #[must_use]
    pub fn skip(self, requests: u32) -> Self {
        Self { skip: requests, ..self }
    }

    /// Restricts the rule to `requests` requests.
    #[must_use]
    pub fn times(self, requests: u32) -> Self {
        Self { times: Some(requests), ..self }
    }

    /// Restricts the rule to a random share of the matching requests, between 0 and 1.
    #[must_use]
    pub fn probability(self, share: f64) -> Self {
        Self { probability: share.clamp(0.0, 1.0), ..self }
    }

    fn matches(&self, operation: Operation, keys: &[String]) -> bool {
        self.operation.is_none_or(|wanted| wanted == operation)
            && keys.iter().any(|key| key.starts_with(&self.prefix) && key.contains(&self.containing))
    }

    /// Decides whether the rule applies to a matching request, and counts the request.
    fn applies(&mut self, random: &mut SmallRng) -> bool {
        if !random.random_bool(self.probability) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        match &mut self.times {
            Some(0) => false,
            Some(times) => {
                *times -= 1;
                true
            }
            None => true,
        }
    }
}

/// A point at which requests are held until a test releases them. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    reached: watch::Sender<u64>,
    open: watch::Sender<bool>,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// Creates a closed gate.
    #[must_use]
    pub fn new() -> Self {
        Self { reached: watch::Sender::new(0), open: watch::Sender::new(false) }
    }

    /// Waits until this many requests have reached the gate since it was created.
    pub async fn reached(&self, requests: u64) {
        let waited = self.reached.subscribe().wait_for(|reached| *reached >= requests).await.map(drop);
        waited.expect("the gate holds the sender");
    }

    /// Returns how many requests have reached the gate.
    #[must_use]
    pub fn count(&self) -> u64 {
        *self.reached.borrow()
    }

    /// Releases all requests that are held, and lets all later ones pass.
    pub fn release(&self) {
        self.open.send_replace(true);
    }

    async fn pass(&self) {
        self.reached.send_modify(|reached| *reached += 1);
        let waited = self.open.subscribe().wait_for(|open| *open).await.map(drop);
        waited.expect("the gate holds the sender");
    }
}

/// Identifies a rule that was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleId(u64);

/// A PUT or DELETE that has failed for its caller and is still to reach the store.
#[derive(Debug)]
enum LateRequest {
    Put(String, Bytes, Condition),
    Delete(Vec<String>),
}

#[derive(Debug)]
struct State {
    random: SmallRng,
    rules: Vec<(RuleId, Rule)>,
    added: u64,
    late: VecDeque<(u32, LateRequest)>,
}

/// The decorator. Clones share their rules and their late requests.
#[derive(Clone)]
pub struct Fault {
    inner: Arc<dyn Store>,
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// What the rules require for one request.
#[derive(Debug, Default)]
struct Plan {
    before: Vec<Wait>,
    fail_before: Option<Failure>,
    late: Option<(Failure, u32)>,
    after: Vec<Wait>,
    fail_after: Option<Failure>,
    flip: bool,
    short: bool,
}

#[derive(Debug)]
enum Wait {
    Time(Duration),
    Gate(Gate),
}

async fn wait(waits: &[Wait]) {
    for wait in waits {
        match wait {
            Wait::Time(time) => tokio::time::sleep(*time).await,
            Wait::Gate(gate) => gate.pass().await,
        }
    }
}

impl Fault {
    /// Creates a decorator without rules, which lets everything pass. Random choices depend on `seed`.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, seed: u64) -> Self {
        let state = State {
            random: SmallRng::seed_from_u64(seed),
            rules: Vec::new(),
            added: 0,
            late: VecDeque::new(),
        };
        Self { inner, state: Arc::new(Mutex::new(state)) }
    }

    /// Adds a rule for requests that begin from now on.
    pub fn add(&self, rule: Rule) -> RuleId {
        let mut state = self.state.lock();
        state.added += 1;
        let id = RuleId(state.added);
        state.rules.push((id, rule));
        id
    }

    /// Removes a rule. The requests that it holds stay held.
    pub fn remove(&self, id: RuleId) {
        self.state.lock().rules.retain(|(other, _)| *other != id);
    }

    /// Removes all rules. Requests that are held stay held, and late requests stay late.
    pub fn clear(&self) {
        self.state.lock().rules.clear();
    }

    /// Adds a rule that holds requests of one operation whose key contains `part`. Returns the gate.
    #[must_use]
    pub fn hold(&self, operation: Operation, part: &str) -> Gate {
        let gate = Gate::new();
        let rule = Rule::new(Action::Hold(gate.clone())).on(operation).containing(part);
        self.add(rule);
        gate
    }

    /// Returns how many requests are late: they failed for their callers and are still to take effect.
    #[must_use]
    pub fn late(&self) -> usize {
        self.state.lock().late.len()
    }

    /// Lets every late request take effect now, in the order in which they were sent.
    pub async fn deliver(&self) {
        loop {
            let next = self.state.lock().late.pop_front();
            let Some((_, request)) = next else { return };
            self.arrive(request).await;
        }
    }

    /// Sends a late request to the store. Nobody receives its answer.
    async fn arrive(&self, request: LateRequest) {
        match request {
            LateRequest::Put(key, body, condition) => drop(self.inner.put(&key, body, condition).await),
            LateRequest::Delete(keys) => drop(self.inner.delete(&keys).await),
        }
    }

    /// Counts one more request, and lets the late requests that are due take effect.
    async fn deliver_due(&self) {
        let due = {
            let mut state = self.state.lock();
            let (due, rest) = std::mem::take(&mut state.late)
                .into_iter()
                .map(|(requests, late)| (requests.saturating_sub(1), late))
                .partition::<Vec<_>, _>(|(requests, _)| *requests == 0);
            state.late = rest.into();
            due
        };
        for (_, request) in due {
            self.arrive(request).await;
        }
    }

    async fn postpone(&self, requests: u32, request: LateRequest) {
        let oldest = {
            let mut state = self.state.lock();
            let full = state.late.len() >= MAX_LATE_REQUESTS;
            let oldest = if full { state.late.pop_front() } else { None };
            state.late.push_back((requests, request));
            oldest
        };
        if let Some((_, request)) = oldest {
            self.arrive(request).await;
        }
    }

    fn plan(&self, operation: Operation, keys: &[String]) -> Plan {
        let State { random, rules, .. } = &mut *self.state.lock();
        let mut plan = Plan::default();
        for (_, rule) in rules {
            if !rule.matches(operation, keys) || !rule.applies(random) {
                continue;
            }
            match &rule.action {
                Action::FailBefore(failure) => plan.fail_before = Some(*failure),
                Action::FailAfter(failure) => plan.fail_after = Some(*failure),
                Action::Late(failure, requests) => plan.late = Some((*failure, *requests)),
                Action::Delay(from, to) => plan.before.push(Wait::Time(random.random_range(*from..=*to))),
                Action::DelayAnswer(from, to) => {
                    plan.after.push(Wait::Time(random.random_range(*from..=*to)));
                }
                Action::Hold(gate) => plan.before.push(Wait::Gate(gate.clone())),
                Action::HoldAnswer(gate) => plan.after.push(Wait::Gate(gate.clone())),
                Action::FlipBit => plan.flip = true,
                Action::Short => plan.short = true,
            }
        }
        plan
    }

    /// Does everything that precedes the effect: delivers late requests that are due, waits, and fails if a
    /// rule says so.
    async fn begin(&self, operation: Operation, keys: &[String]) -> Result<Plan, Error> {
        self.deliver_due().await;
        let plan = self.plan(operation, keys);
        wait(&plan.before).await;
        let key = keys.first().map_or("", String::as_str);
        plan.fail_before.map_or(Ok(plan), |failure| Err(failure.error(key)))
    }

    fn flip(&self, body: &Bytes) -> Bytes {
        let mut damaged = BytesMut::from(&body[..]);
        if !damaged.is_empty() {
            let mut state = self.state.lock();
            let byte = state.random.random_range(0..damaged.len());
            damaged[byte] ^= 1u8 << state.random.random_range(0..8u32);
        }
        damaged.freeze()
    }
}

/// Does everything that follows the effect: waits, and loses the answer if a rule says so.
async fn finish<T>(plan: &Plan, key: &str, answer: Result<T, Error>) -> Result<T, Error> {
    wait(&plan.after).await;
    match plan.fail_after {
        Some(failure) => Err(failure.error(key)),
        None => answer,
    }
}

#[async_trait]
impl Store for Fault {
    async fn get(&self, key: &str, range: ByteRange) -> Result<Object, Error> {
        let plan = self.begin(Operation::Get, &[key.to_owned()]).await?;
        if let Some((failure, _)) = plan.late {
            return Err(failure.error(key));
        }
        let answer = self.inner.get(key, range).await;
        let object = finish(&plan, key, answer).await?;
        if plan.short {
            let wanted = u64::try_from(object.body.len()).expect("a length fits in 64 bits");
            return Err(Error::Truncated { key: key.to_owned(), wanted, got: wanted / 2 });
        }
        let body = if plan.flip { self.flip(&object.body) } else { object.body };
        Ok(Object { body, etag: object.etag })
    }

    async fn put(&self, key: &str, body: Bytes, condition: Condition) -> Result<ETag, Error> {
        let plan = self.begin(Operation::Put, &[key.to_owned()]).await?;
        if let Some((failure, requests)) = plan.late {
            self.postpone(requests, LateRequest::Put(key.to_owned(), body, condition)).await;
            return Err(failure.error(key));
        }
        let answer = self.inner.put(key, body, condition).await;
        finish(&plan, key, answer).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        let plan = self.begin(Operation::Delete, keys).await?;
        let key = keys.first().map_or("", String::as_str);
        if let Some((failure, requests)) = plan.late {
            self.postpone(requests, LateRequest::Delete(keys.to_vec())).await;
            return Err(failure.error(key));
        }
        let answer = self.inner.delete(keys).await;
        finish(&plan, key, answer).await
    }

    async fn list(&self, prefix: &str, from: &ListFrom) -> Result<Listing, Error> {
        let plan = self.begin(Operation::List, &[prefix.to_owned()]).await?;
        if let Some((failure, _)) = plan.late {
            return Err(failure.error(prefix));
        }
        let answer = self.inner.list(prefix, from).await;
        finish(&plan, prefix, answer).await
    }
}
