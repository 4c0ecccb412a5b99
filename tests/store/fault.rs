//! Fault injection: rules have the documented effect, and the same seed gives the same faults.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn::store::fault::{Action, Failure, Gate, Rule};
use cairn::store::{ByteRange, Condition, Error, Fault, ListFrom, MemoryStore, Operation, Store};
use futures::FutureExt;
use tokio::time::Instant;

fn faulty(seed: u64) -> (MemoryStore, Fault) {
    let memory = MemoryStore::new();
    (memory.clone(), Fault::new(Arc::new(memory), seed))
}

async fn put(store: &dyn Store, key: &str) -> Result<(), Error> {
    store.put(key, Bytes::from(key.to_owned()), Condition::IfAbsent).await.map(drop)
}

async fn get(store: &dyn Store, key: &str) -> Result<Bytes, Error> {
    store.get(key, ByteRange::Full).await.map(|object| object.body)
}

#[tokio::test]
async fn a_failure_before_a_request_prevents_its_effect_and_one_after_it_does_not() {
    let (memory, fault) = faulty(0);
    let before = fault.add(Rule::new(Action::FailBefore(Failure::Transient)).on(Operation::Put));
    assert!(matches!(put(&fault, "a").await, Err(Error::Transient { .. })));
    assert!(memory.objects().is_empty());
    fault.remove(before);
    fault.add(Rule::new(Action::FailAfter(Failure::Timeout)).on(Operation::Put));
    assert!(matches!(put(&fault, "a").await, Err(Error::Timeout { .. })));
    assert_eq!(memory.objects().into_keys().collect::<Vec<_>>(), ["a"]);
    fault.clear();
    assert!(matches!(put(&fault, "a").await, Err(Error::PreconditionFailed { .. })));
}

#[tokio::test]
async fn a_rule_applies_to_its_operation_keys_and_count() {
    let (_, fault) = faulty(0);
    let rule =
        Rule::new(Action::FailBefore(Failure::Throttled)).on(Operation::Put).prefix("v/").containing("/j/");
    fault.add(rule.skip(1).times(2));
    let mut failed = Vec::new();
    for key in ["v/j/1", "v/j/2", "v/c/1", "w/j/1", "v/j/3", "v/j/4"] {
        if put(&fault, key).await.is_err() {
            failed.push(key);
        }
    }
    assert_eq!(failed, ["v/j/2", "v/j/3"]);
    fault.list("v/j/", &ListFrom::Start).await.unwrap();
}

#[tokio::test]
async fn the_same_seed_gives_the_same_faults() {
    async fn outcomes(seed: u64) -> Vec<bool> {
        let (_, fault) = faulty(seed);
        fault.add(Rule::new(Action::FailBefore(Failure::Transient)).probability(0.5));
        let mut outcomes = Vec::new();
        for n in 0..64 {
            outcomes.push(put(&fault, &n.to_string()).await.is_ok());
        }
        outcomes
    }
    assert_eq!(outcomes(7).await, outcomes(7).await);
    assert_ne!(outcomes(7).await, outcomes(8).await);
}

#[tokio::test]
async fn a_gate_holds_a_request_before_or_after_its_effect() {
    for (make, effect) in [(Action::Hold as fn(Gate) -> Action, false), (Action::HoldAnswer, true)] {
        let (memory, fault) = faulty(0);
        let gate = Gate::new();
        fault.add(Rule::new(make(gate.clone())).on(Operation::Put).containing("held"));
        let mut held = Box::pin(put(&fault, "held"));
        assert!((&mut held).now_or_never().is_none());
        gate.reached(1).await;
        assert_eq!(memory.objects().contains_key("held"), effect);
        put(&fault, "free").await.unwrap();
        assert!(gate.reached(2).now_or_never().is_none());
        gate.release();
        held.await.unwrap();
        assert!(memory.objects().contains_key("held"));
    }
}

#[tokio::test]
async fn a_late_request_takes_effect_after_its_caller_gave_up() {
    let (memory, fault) = faulty(0);
    fault.add(Rule::new(Action::Late(Failure::Timeout, 2)).on(Operation::Put).times(1));
    assert!(matches!(put(&fault, "a").await, Err(Error::Timeout { .. })));
    assert!(matches!(get(&fault, "a").await, Err(Error::NotFound { .. })));
    assert_eq!(fault.late(), 1);
    assert_eq!(get(&fault, "a").await.unwrap(), "a", "it came with the second request");
    assert_eq!(fault.late(), 0);

    fault.add(Rule::new(Action::Late(Failure::Timeout, u32::MAX)).times(2));
    fault.delete(&["a".to_owned()]).await.unwrap_err();
    put(&fault, "b").await.unwrap_err();
    put(&fault, "c").await.unwrap();
    assert_eq!(memory.objects().into_keys().collect::<Vec<_>>(), ["a", "c"]);
    fault.deliver().await;
    assert_eq!(memory.objects().into_keys().collect::<Vec<_>>(), ["b", "c"]);
}

#[tokio::test]
async fn a_late_request_whose_condition_no_longer_holds_has_no_effect() {
    let (memory, fault) = faulty(0);
    fault.add(Rule::new(Action::Late(Failure::Timeout, u32::MAX)).times(1));
    fault.put("slot", Bytes::from_static(b"stalled"), Condition::IfAbsent).await.unwrap_err();
    fault.put("slot", Bytes::from_static(b"seal"), Condition::IfAbsent).await.unwrap();
    fault.deliver().await;
    assert_eq!(memory.objects()["slot"], "seal");
}

#[tokio::test]
async fn damage_is_one_bit_or_a_short_body() {
    let (memory, fault) = faulty(0);
    let body = Bytes::from(vec![0u8; 1000]);
    memory.insert("a", body.clone());
    let flip = fault.add(Rule::new(Action::FlipBit));
    let damaged = get(&fault, "a").await.unwrap();
    assert_eq!(damaged.len(), 1000);
    assert_eq!(damaged.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    fault.remove(flip);
    assert_eq!(get(&fault, "a").await.unwrap(), body, "the object itself is whole");
    fault.add(Rule::new(Action::Short));
    assert!(matches!(get(&fault, "a").await, Err(Error::Truncated { wanted: 1000, got: 500, .. })));
}

#[tokio::test(start_paused = true)]
async fn delays_come_before_the_effect_or_before_the_answer() {
    let (memory, fault) = faulty(0);
    let second = Duration::from_secs(1);
    let delay = fault.add(Rule::new(Action::Delay(second, 2 * second)));
    let begun = Instant::now();
    put(&fault, "a").await.unwrap();
    assert!((second..=2 * second).contains(&begun.elapsed()));
    let mut dropped = Box::pin(put(&fault, "b"));
    assert!((&mut dropped).now_or_never().is_none());
    drop(dropped);
    assert!(!memory.objects().contains_key("b"));
    fault.remove(delay);
    fault.add(Rule::new(Action::DelayAnswer(second, second)));
    let mut dropped = Box::pin(put(&fault, "c"));
    assert!((&mut dropped).now_or_never().is_none());
    drop(dropped);
    assert!(memory.objects().contains_key("c"));
}
