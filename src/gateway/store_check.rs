//! Whether the store answers, as readiness checks ask.
//!
//! Owns the request that finds out, and must not know what the store contains or who asks. The request is a
//! GET of the probe's record: it needs the same service, bucket, credentials and permission as the reads of
//! clients, and costs a twelfth of a LIST. Invariants: concurrent checks share one request, and there is at
//! most one request in each `age`. A failed check is not remembered. No conclusion is drawn from a record
//! that is missing: somebody may have deleted it, and to say so the store must answer.

use std::sync::Arc;
use std::time::Duration;

use super::facts::Facts;
use crate::store::passed::RECORD;
use crate::store::{ByteRange, Error, Store};

/// Finds out whether the store answers.
#[derive(Debug)]
pub(crate) struct StoreCheck {
    store: Arc<dyn Store>,
    /// Contains an entry while the last answer is recent enough.
    answered: Facts<()>,
}

impl StoreCheck {
    /// Creates a check whose answers count for `age`.
    pub(crate) fn new(store: Arc<dyn Store>, age: Duration) -> Self {
        Self { store, answered: Facts::new(1, Some(age)) }
    }

    /// Succeeds if the store answered a read within the last `age`, or answers one now.
    pub(crate) async fn run(&self) -> Result<(), Arc<Error>> {
        let read = async {
            match self.store.get(RECORD, ByteRange::Full).await {
                Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        };
        self.answered.try_get_with((0, String::new()), read).await
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::store::fault::{Action, Failure, Rule};
    use crate::store::{Fault, MemoryStore, Operation};

    const HOUR: Duration = Duration::from_secs(3600);

    fn check(age: Duration) -> (StoreCheck, Fault, MemoryStore) {
        let memory = MemoryStore::new();
        memory.insert(RECORD, Bytes::from_static(b"{}"));
        let fault = Fault::new(Arc::new(memory.clone()), 0);
        (StoreCheck::new(Arc::new(fault.clone()), age), fault, memory)
    }

    /// Returns the number of GET, LIST and all other requests so far.
    fn requests(memory: &MemoryStore) -> [u64; 3] {
        let of = |operation| memory.tally(operation, |_| true).requests;
        [of(Operation::Get), of(Operation::List), of(Operation::Put) + of(Operation::Delete)]
    }

    #[tokio::test]
    async fn a_check_is_one_get_and_an_answer_counts_for_a_while() {
        for (age, gets) in [(Duration::ZERO, 20), (HOUR, 1)] {
            let (check, _, memory) = check(age);
            for _ in 0..20 {
                check.run().await.unwrap();
            }
            assert_eq!(requests(&memory), [gets, 0, 0], "{age:?}");
        }
    }

    #[tokio::test]
    async fn concurrent_checks_share_one_get() {
        let (check, fault, memory) = check(HOUR);
        let gate = fault.hold(Operation::Get, RECORD);
        let checks = futures::future::join_all((0..20).map(|_| check.run()));
        let (checked, ()) = tokio::join!(checks, async {
            gate.reached(1).await;
            gate.release();
        });
        assert!(checked.into_iter().all(|answer| answer.is_ok()));
        assert_eq!(requests(&memory), [1, 0, 0]);
    }

    #[tokio::test]
    async fn a_store_without_the_record_answers_too() {
        let (check, _, memory) = check(HOUR);
        memory.remove(RECORD).unwrap();
        check.run().await.unwrap();
    }

    #[tokio::test]
    async fn a_failed_check_says_why_and_is_not_remembered() {
        let (check, fault, memory) = check(HOUR);
        for failure in [Failure::Denied, Failure::Rejected, Failure::Transient] {
            fault.add(Rule::new(Action::FailBefore(failure)).on(Operation::Get).times(1));
            check.run().await.unwrap_err();
        }
        check.run().await.unwrap();
        assert_eq!(requests(&memory), [1, 0, 0], "the failed ones did not reach the store");
    }
}
