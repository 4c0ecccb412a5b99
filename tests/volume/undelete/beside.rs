//! What others do meanwhile: they bring a volume back while it is deleted for good or looked for, and delete it
//! while it is being renamed. And what is found of a deleted volume by its id and by its name.

use super::*;

/// A deletion of a kept volume hangs at any request, and somebody brings the volume back. It stays, unless it
/// was gone before.
#[tokio::test(start_paused = true)]
async fn what_is_brought_back_meanwhile_is_not_deleted_as_a_kept_volume() {
    let mut stayed = 0;
    for operation in [Operation::Get, Operation::Put] {
        for nth in 0.. {
            let (bench, id) = filled().await;
            set_aside(&bench, "disk").await.unwrap();
            let gate = Gate::new();
            bench.fault.add(Rule::new(Action::Hold(gate.clone())).on(operation).skip(nth));
            let (deleter, options, beside) = (env(&bench), bench.options.clone(), bench.beside());
            let mut late = pin!(catalog::delete_kept(&deleter, &options, id));
            if let Some(ended) = hung(&mut late, &gate).await {
                ended.unwrap();
                assert!(nth > 0, "a deletion has some of these requests: {operation:?}");
                break;
            }
            let is_back = match undelete(&beside, id, None).await {
                Ok(_) => true,
                Err(OpenError::NotDeleted(_)) => false,
                Err(error) => panic!("{operation:?} {nth}: {error}"),
            };
            gate.release();
            let ended = late.await;
            if is_back {
                stayed += 1;
                assert!(matches!(ended, Err(OpenError::NotDeleted(_))), "{operation:?} {nth}: {ended:?}");
                assert_eq!(live(&beside).await, owned("disk", id), "{operation:?} {nth}");
                holds(&beside, "disk").await;
            } else {
                ended.unwrap();
                only_free_names(&beside);
            }
        }
    }
    assert!(stayed > 1, "{stayed} volumes were brought back in time");
}

/// A deletion by id has read that the volume is kept, and somebody brings it back.
#[tokio::test(start_paused = true)]
async fn a_deletion_by_id_that_found_a_kept_volume_takes_none_in_use() {
    let (bench, id) = filled().await;
    set_aside(&bench, "disk").await.unwrap();
    let gate = bench.fault.hold(Operation::Put, "/head");
    let (deleter, options, beside) = (env(&bench), bench.options.clone(), bench.beside());
    let back = async {
        gate.reached(1).await;
        undelete(&beside, id, None).await.unwrap();
        gate.release();
    };
    let (deleted, ()) = tokio::join!(catalog::delete_by_id(&deleter, &options, id, true), back);
    assert!(matches!(deleted, Err(OpenError::NotDeleted(_))), "{deleted:?}");
    assert_eq!(live(&beside).await, owned("disk", id));
    holds(&beside, "disk").await;
}

#[tokio::test(start_paused = true)]
async fn only_a_kept_volume_is_deleted_as_such() {
    let (bench, id) = filled().await;
    let delete = async || catalog::delete_kept(&env(&bench), &bench.options, id).await;
    let refused = delete().await;
    assert!(matches!(refused, Err(OpenError::NotDeleted(_))), "it is in use: {refused:?}");
    holds(&bench, "disk").await;
    set_aside(&bench, "disk").await.unwrap();
    // It is cut short once the head says that the volume is being deleted, and a second call finishes it.
    bench.fault.add(Rule::new(Action::FailBefore(Failure::Rejected)).on(Operation::Delete));
    delete().await.expect_err("it is cut short");
    bench.fault.clear();
    assert_eq!(head(&bench, id).state, VolumeState::Deleting);
    delete().await.unwrap();
    only_free_names(&bench);
    let refused = delete().await;
    assert!(matches!(refused, Err(OpenError::NotDeleted(_))), "it is gone: {refused:?}");
}

/// A search for volumes without a name hangs at any request while somebody brings a volume back under the name
/// that it had. Whoever deletes what is listed must not meet it.
#[tokio::test(start_paused = true)]
async fn what_is_brought_back_meanwhile_is_not_listed_as_having_no_name() {
    for nth in 0.. {
        let (bench, id) = filled().await;
        set_aside(&bench, "disk").await.unwrap();
        let gate = Gate::new();
        bench.fault.add(Rule::new(Action::Hold(gate.clone())).on(Operation::Get).skip(nth));
        let (lister, beside) = (env(&bench), bench.beside());
        let mut late = pin!(catalog::unnamed(&lister));
        if let Some(listed) = hung(&mut late, &gate).await {
            assert!(listed.unwrap().is_empty() && nth > 3, "it reads the head before and after the name");
            break;
        }
        undelete(&beside, id, None).await.unwrap();
        gate.release();
        assert_eq!(late.await.unwrap().len(), 0, "{nth}");
        assert_eq!(live(&beside).await, owned("disk", id));
    }
}

/// Somebody brings a volume back and deletes it again, again and again, between any two readings of the head.
/// When it is in use at last, nobody can say that it has no name.
#[tokio::test(start_paused = true)]
async fn what_changes_all_the_time_is_not_listed_as_having_no_name() {
    const CHANGES: u32 = 4;
    let (bench, id) = filled().await;
    set_aside(&bench, "disk").await.unwrap();
    let gates: Vec<Gate> = (1..=CHANGES).map(|_| Gate::new()).collect();
    for (nth, gate) in (1..).zip(&gates) {
        let reading = Rule::new(Action::Hold(gate.clone())).on(Operation::Get).containing("/head");
        bench.fault.add(reading.skip(nth).times(1));
    }
    let (lister, beside) = (env(&bench), bench.beside());
    let meanwhile = async {
        for (nth, gate) in (1..).zip(&gates) {
            gate.reached(1).await;
            undelete(&beside, id, None).await.unwrap();
            // Its name is free whenever that is looked up.
            if nth < CHANGES {
                set_aside(&beside, "disk").await.unwrap();
            }
            gate.release();
        }
        std::future::pending::<()>().await;
    };
    let listed = tokio::select! {
        listed = catalog::unnamed(&lister) => listed.unwrap(),
        () = meanwhile => unreachable!("it waits for the listing"),
    };
    assert_eq!(gates.iter().map(Gate::count).sum::<u64>(), u64::from(CHANGES), "it looks that often");
    assert_eq!(listed.len(), 0);
    assert_eq!(live(&beside).await, owned("disk", id));
}

/// A renaming is cut short at any request for a name. Whoever then deletes the volume by a name that it has
/// finds it under that name, and brings it back under that name.
#[tokio::test(start_paused = true)]
async fn a_volume_is_kept_under_the_name_by_which_it_was_deleted() {
    let mut both = 0;
    for effect in [Action::FailBefore(Failure::Rejected), Action::FailAfter(Failure::Rejected)] {
        for (requests, name) in (0..).flat_map(|requests| ["disk", "new"].map(|name| (requests, name))) {
            let (bench, id) = filled().await;
            bench.fault.add(Rule::new(effect.clone()).prefix("name/").skip(requests).times(1));
            let rest = Rule::new(Action::FailBefore(Failure::Rejected)).prefix("name/");
            bench.fault.add(rest.skip(requests + 1));
            let renamed = catalog::rename(&env(&bench), &bench.options, "disk", "new", false).await;
            bench.fault.clear();
            if bound(&bench, name).await == Some(id) {
                both += usize::from(catalog::list(&env(&bench)).await.unwrap().len() == 2);
                set_aside(&bench, name).await.unwrap();
                assert_eq!(kept(&bench).await, owned(name, id), "{requests}");
                assert_eq!(catalog::list(&env(&bench)).await.unwrap(), Vec::<String>::new(), "{requests}");
                assert_eq!(undelete(&bench, id, None).await.unwrap().name, name, "{requests}");
                assert_eq!(live(&bench).await, owned(name, id), "{requests}");
                recorded(&bench).await;
                holds(&bench, name).await;
                delete_for_good(&bench, id).await;
                only_free_names(&bench);
            }
            if renamed.is_ok() && name == "new" {
                break;
            }
        }
    }
    assert!(both > 1, "it was never cut short between the two names");
}

/// A volume whose root is damaged may have sound snapshots. It is brought back, and the answer says what is
/// wrong with it.
#[tokio::test(start_paused = true)]
async fn a_damaged_volume_is_brought_back_and_reported() {
    for damages in [false, true] {
        let (bench, id) = filled().await;
        set_aside(&bench, "disk").await.unwrap();
        let key = Keys::new(id).root(head(&bench, id).root);
        let mut body = bench.memory.remove(&key).expect("it has a root").to_vec();
        if damages {
            body[40] ^= 1;
            bench.memory.insert(&key, body.into());
        }
        match undelete(&bench, id, None).await.expect_err("it cannot be described") {
            OpenError::Damaged { .. } => assert!(damages),
            OpenError::Incomplete { key: missing } => assert!(!damages && missing == key, "{missing}"),
            error => panic!("{error}"),
        }
        assert_eq!(head(&bench, id).state, VolumeState::Live);
        assert_eq!(bound(&bench, "disk").await, Some(id));
        assert_eq!(kept(&bench).await, []);
    }
}

/// Whoever gives the id does not wait for a look at each volume of the store. A name may look like an id.
#[tokio::test(start_paused = true)]
async fn a_deleted_volume_is_found_by_its_id_without_a_listing() {
    const LIKE_AN_ID: &str = "6f9619ff-8b86-4011-b42d-00c04fc964ff";
    let (bench, id) = filled().await;
    set_aside(&bench, "disk").await.unwrap();
    for name in [LIKE_AN_ID, "other"] {
        create(&bench, name).await.unwrap();
        set_aside(&bench, name).await.unwrap();
    }
    let by = async |text: &str| catalog::undelete_by(&env(&bench), text, None).await;
    bench.memory.reset_tallies();
    assert_eq!(by(&id.to_string()).await.unwrap().name, "disk");
    assert_eq!(bench.memory.tally(Operation::List, |_| true).requests, 0);
    let others =
        bench.memory.tally(Operation::Get, |key| key.ends_with("/head") && !key.contains(&id.to_string()));
    assert_eq!(others.requests, 0);
    for name in ["other", LIKE_AN_ID] {
        assert_eq!(by(name).await.unwrap().name, name);
    }
    for unknown in ["none", LIKE_AN_ID, &id.to_string()] {
        let error = by(unknown).await.expect_err("it is not kept");
        assert!(matches!(&error, OpenError::NotDeleted(text) if text == unknown), "{error}");
    }
}
