//! The contract of every store: one test body runs with memory, a directory and MinIO.

use std::sync::Arc;

use bytes::Bytes;
use cairn::store::{
    ByteRange, Condition, ETag, Entry, Error, ListFrom, Listing, LocalStore, MemoryStore, Object, Pages,
    S3Store, Store,
};
use futures::future::{join_all, try_join_all};

use crate::support::minio::Minio;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_in_memory_fulfils_the_contract() {
    contract(Arc::new(MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_lists_in_no_order_fulfils_the_contract() {
    contract(Arc::new(MemoryStore::unsorted(100))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_in_a_directory_fulfils_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    contract(Arc::new(LocalStore::open(directory.path()).await.unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MinIO"]
async fn a_store_in_a_bucket_fulfils_the_contract_with_and_without_a_prefix() {
    let minio = Minio::start().await;
    contract(Arc::new(S3Store::open("with-prefix", "some/where", minio.options()).await.unwrap())).await;
    contract(Arc::new(S3Store::open("without", "", minio.options()).await.unwrap())).await;
}

async fn contract(store: Arc<dyn Store>) {
    let store = &*store;
    conditions_are_heeded(store).await;
    equal_bytes_may_have_equal_versions_and_others_do_not(store).await;
    ranges_are_exact(store).await;
    an_empty_object_is_an_object(store).await;
    a_large_object_comes_back_whole(store).await;
    deleting_is_for_present_and_absent_alike(store).await;
    keys_may_be_odd(store).await;
    what_is_no_key_is_refused(store).await;
    listings_begin_behind_a_key(store).await;
    listings_come_in_pages(store).await;
    of_racing_writers_one_wins(store).await;
    a_reader_sees_one_object_or_the_other(store).await;
}

async fn put(store: &dyn Store, key: &str, body: &str, condition: Condition) -> Result<ETag, Error> {
    store.put(key, Bytes::from(body.to_owned()), condition).await
}

async fn full(store: &dyn Store, key: &str) -> Result<Object, Error> {
    store.get(key, ByteRange::Full).await
}

async fn range(store: &dyn Store, key: &str, offset: u64, length: u64) -> Result<Object, Error> {
    store.get(key, ByteRange::Bounded { offset, length }).await
}

/// Lists all entries, page by page.
async fn all(store: &dyn Store, prefix: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut pages = Pages::new(store, prefix);
    while let Some(page) = pages.next().await.expect("the store lists") {
        entries.extend(page);
    }
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    entries
}

async fn conditions_are_heeded(store: &dyn Store) {
    let key = "conditions/key";
    assert!(matches!(full(store, key).await, Err(Error::NotFound { .. })));
    let nothing = ETag("\"0123456789abcdef0123456789abcdef\"".into());
    let missing = put(store, key, "x", Condition::IfMatch(nothing)).await.unwrap_err();
    assert!(missing.is_definite(), "{missing}");
    assert!(matches!(full(store, key).await, Err(Error::NotFound { .. })));

    let first = put(store, key, "first", Condition::IfAbsent).await.unwrap();
    let again = put(store, key, "again", Condition::IfAbsent).await.unwrap_err();
    assert!(matches!(again, Error::PreconditionFailed { .. }), "{again}");
    let object = full(store, key).await.unwrap();
    assert_eq!((&object.body[..], &object.etag), (&b"first"[..], &first));

    let second = put(store, key, "second", Condition::IfMatch(first.clone())).await.unwrap();
    let stale = put(store, key, "stale", Condition::IfMatch(first)).await.unwrap_err();
    assert!(matches!(stale, Error::PreconditionFailed { .. }), "{stale}");
    let object = full(store, key).await.unwrap();
    assert_eq!((&object.body[..], &object.etag), (&b"second"[..], &second));
    assert_eq!(range(store, key, 1, 2).await.unwrap().etag, second);

    let third = put(store, key, "third", Condition::Always).await.unwrap();
    let stale = put(store, key, "stale", Condition::IfMatch(second)).await.unwrap_err();
    assert!(matches!(stale, Error::PreconditionFailed { .. }), "{stale}");
    assert_eq!(full(store, key).await.unwrap().body, "third");

    store.delete(&[key.to_owned()]).await.unwrap();
    let gone = put(store, key, "gone", Condition::IfMatch(third)).await.unwrap_err();
    assert!(gone.is_definite(), "{gone}");
    put(store, key, "anew", Condition::IfAbsent).await.unwrap();
    assert_eq!(full(store, key).await.unwrap().body, "anew");
}

async fn equal_bytes_may_have_equal_versions_and_others_do_not(store: &dyn Store) {
    let key = "versions/key";
    let mut etag = put(store, key, "version 0", Condition::IfAbsent).await.unwrap();
    for round in 1..30 {
        let body = format!("version {round}");
        let next = put(store, key, &body, Condition::IfMatch(etag.clone())).await.unwrap();
        assert_ne!(next, etag, "the same length, at once");
        etag = next;
    }
    let same = put(store, key, "version 29", Condition::IfMatch(etag)).await.unwrap();
    assert_eq!(full(store, key).await.unwrap().etag, same);
}

async fn ranges_are_exact(store: &dyn Store) {
    let (key, text) = ("ranges/key", "0123456789");
    put(store, key, text, Condition::Always).await.unwrap();
    for (offset, length, expected) in
        [(0, 1, "0"), (0, 10, text), (3, 4, "3456"), (9, 1, "9"), (1, 9, "123456789")]
    {
        assert_eq!(range(store, key, offset, length).await.unwrap().body, expected);
    }
    for (offset, length) in [(0, 11), (9, 2), (10, 1), (11, 1), (5, 1 << 40), (1 << 40, 5), (u64::MAX, 2)] {
        let error = range(store, key, offset, length).await.unwrap_err();
        let Error::Truncated { wanted, got, .. } = error else { panic!("{offset}+{length}: {error}") };
        assert_eq!(wanted, length);
        assert!(got < wanted, "{offset}+{length}: {got}");
    }
    assert!(matches!(range(store, "ranges/absent", 0, 1).await, Err(Error::NotFound { .. })));
}

async fn an_empty_object_is_an_object(store: &dyn Store) {
    let key = "empty/key";
    let etag = put(store, key, "", Condition::IfAbsent).await.unwrap();
    assert!(matches!(put(store, key, "", Condition::IfAbsent).await, Err(Error::PreconditionFailed { .. })));
    let object = full(store, key).await.unwrap();
    assert_eq!((object.body.len(), &object.etag), (0, &etag));
    assert!(matches!(range(store, key, 0, 1).await, Err(Error::Truncated { wanted: 1, got: 0, .. })));
    assert_eq!(all(store, "empty/").await, [Entry { key: key.into(), size_bytes: 0 }]);
    put(store, key, "no more", Condition::IfMatch(etag)).await.unwrap();
}

async fn a_large_object_comes_back_whole(store: &dyn Store) {
    // The period of the content is not a power of two, so that a misplaced part is noticed.
    let period: Vec<u8> = (0..=250).collect();
    let body = Bytes::from(period.repeat((17 << 20) / 251 + 1)).slice(..17 << 20);
    store.put("large/key", body.clone(), Condition::IfAbsent).await.unwrap();
    assert!(full(store, "large/key").await.unwrap().body == body, "all of it");
    let offset = (9 << 20) + 17;
    let part = range(store, "large/key", offset, 5 << 20).await.unwrap().body;
    assert!(part == body.slice((9 << 20) + 17..(14 << 20) + 17), "5 MiB of it");
    assert_eq!(all(store, "large/").await, [Entry { key: "large/key".into(), size_bytes: 17 << 20 }]);
    store.delete(&["large/key".into()]).await.unwrap();
}

async fn deleting_is_for_present_and_absent_alike(store: &dyn Store) {
    store.delete(&[]).await.unwrap();
    store.delete(&["deletes/absent".into(), "deletes/nowhere/at/all".into()]).await.unwrap();
    for key in ["deletes/a", "deletes/b/c", "deletes/d"] {
        put(store, key, "x", Condition::Always).await.unwrap();
    }
    let keys = ["deletes/a", "deletes/absent", "deletes/b/c"].map(str::to_owned);
    store.delete(&keys).await.unwrap();
    assert!(matches!(full(store, "deletes/a").await, Err(Error::NotFound { .. })));
    assert!(matches!(full(store, "deletes/b/c").await, Err(Error::NotFound { .. })));
    assert_eq!(all(store, "deletes/").await, [Entry { key: "deletes/d".into(), size_bytes: 1 }]);
    put(store, "deletes/b/c", "anew", Condition::IfAbsent).await.unwrap();
}

async fn keys_may_be_odd(store: &dyn Store) {
    let long = format!("odd/{}", "x".repeat(200));
    let deep = format!("odd/{}z", "y/".repeat(40));
    let keys =
        ["odd/.hidden", "odd/...", "odd/-", "odd/_", "odd/a..b", "odd/A", "odd/a", "odd/0.tmp", &long, &deep];
    for key in keys {
        put(store, key, key, Condition::IfAbsent).await.unwrap();
    }
    for key in keys {
        assert_eq!(full(store, key).await.unwrap().body, key);
    }
    let listed: Vec<_> = all(store, "odd/").await.into_iter().map(|entry| entry.key).collect();
    let mut expected = keys.map(str::to_owned);
    expected.sort();
    assert_eq!(listed, expected);
}

async fn what_is_no_key_is_refused(store: &dyn Store) {
    for key in ["", "/a", "a/", "a//b", "a/../b", ".", "a b", "é", "a\\b", "a\nb", "~tmp/x"] {
        let refusals = [
            full(store, key).await.map(drop),
            put(store, key, "x", Condition::Always).await.map(drop),
            store.delete(&[key.to_owned()]).await,
        ];
        for refusal in refusals {
            assert!(matches!(refusal, Err(Error::Rejected { .. })), "{key:?}: {refusal:?}");
        }
    }
    assert!(matches!(store.list("../", &ListFrom::Start).await, Err(Error::Rejected { .. })));
}

async fn listings_begin_behind_a_key(store: &dyn Store) {
    // In order: - is before . is before / is before 0 is before A is before _ is before a.
    let keys = ["l/A", "l/_", "l/a-b", "l/a.b", "l/a/b", "l/a/c/d", "l/a/c0", "l/a0", "l/ab", "l/b"];
    for key in keys.iter().rev() {
        put(store, key, &"x".repeat(key.len()), Condition::IfAbsent).await.unwrap();
    }
    put(store, "k", "x", Condition::IfAbsent).await.unwrap();
    put(store, "lz", "x", Condition::IfAbsent).await.unwrap();
    let entry = |key: &str| Entry { key: key.to_owned(), size_bytes: key.len() as u64 };
    for (prefix, after, expected) in [
        ("l/", None, &keys[..]),
        ("l/a", None, &keys[2..9]),
        ("l/a/", None, &keys[4..7]),
        ("l/a/c", None, &keys[5..7]),
        ("l/a/c/d", None, &keys[5..6]),
        ("l/a/c/d/", None, &[]),
        ("l/nothing", None, &[]),
        ("nothing/at/all", None, &[]),
        ("l/", Some("l/a.b"), &keys[4..]),
        ("l/", Some("l/a/b"), &keys[5..]),
        ("l/", Some("l/a/bb"), &keys[5..]),
        ("l/", Some("l/a/c"), &keys[5..]),
        ("l/", Some("l/a/c/d"), &keys[6..]),
        ("l/", Some("l/a"), &keys[2..]),
        ("l/", Some("a"), &keys[..]),
        ("l/", Some("l/b"), &[]),
        ("l/", Some("z"), &[]),
        ("l/a/", Some("l/a-b"), &keys[4..7]),
    ] {
        let mut pages =
            after.map_or_else(|| Pages::new(store, prefix), |key| Pages::after(store, prefix, key));
        let mut listed = Vec::new();
        while let Some(page) = pages.next().await.unwrap() {
            listed.extend(page);
        }
        listed.sort_by(|a, b| a.key.cmp(&b.key));
        let expected: Vec<Entry> = expected.iter().map(|key| entry(key)).collect();
        assert_eq!(listed, expected, "{prefix} after {after:?}");
    }
}

async fn listings_come_in_pages(store: &dyn Store) {
    let keys: Vec<String> = (0..1100).map(|n| format!("pages/{}/{n:04}", n / 300)).collect();
    for some in keys.chunks(32) {
        try_join_all(some.iter().map(|key| put(store, key, "x", Condition::IfAbsent))).await.unwrap();
    }
    let first = store.list("pages/", &ListFrom::Start).await.unwrap();
    assert!(first.next.is_some() && first.entries.len() < keys.len());
    let listed: Vec<_> = all(store, "pages/").await.into_iter().map(|entry| entry.key).collect();
    assert_eq!(listed, keys);
    store.delete(&keys[..1000]).await.unwrap();
    let left: Vec<_> = all(store, "pages/").await.into_iter().map(|entry| entry.key).collect();
    assert_eq!(left, keys[1000..]);
    store.delete(&keys[1000..]).await.unwrap();
    assert_eq!(store.list("pages/", &ListFrom::Start).await.unwrap(), Listing::default());
}

async fn of_racing_writers_one_wins(store: &dyn Store) {
    for round in 0..10 {
        let key = format!("races/{round}");
        let race = async |condition: Condition| {
            let puts = (0..8).map(|racer| {
                let (key, condition) = (&key, condition.clone());
                async move { put(store, key, &format!("racer {racer}"), condition).await }
            });
            let mut winner = None;
            for (racer, answer) in join_all(puts).await.into_iter().enumerate() {
                match answer {
                    Ok(etag) => assert!(winner.replace((racer, etag)).is_none(), "more than one winner"),
                    Err(Error::PreconditionFailed { .. } | Error::Transient { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            let (racer, etag) = winner.expect("one wins");
            let object = full(store, &key).await.unwrap();
            assert_eq!((object.body, &object.etag), (format!("racer {racer}").into(), &etag));
            etag
        };
        let created = race(Condition::IfAbsent).await;
        let start = put(store, &key, "start", Condition::IfMatch(created)).await.unwrap();
        race(Condition::IfMatch(start)).await;
    }
}

async fn a_reader_sees_one_object_or_the_other(store: &dyn Store) {
    let key = "torn/key";
    let bodies = [b'a', b'b'].map(|byte| Bytes::from(vec![byte; 300_000]));
    store.put(key, bodies[0].clone(), Condition::Always).await.unwrap();
    let write = async {
        for round in 0..40 {
            store.put(key, bodies[round % 2].clone(), Condition::Always).await.unwrap();
        }
    };
    let read = async {
        for _ in 0..40 {
            let seen = full(store, key).await.unwrap().body;
            assert!(bodies.contains(&seen), "{} bytes", seen.len());
        }
    };
    tokio::join!(write, read);
}
