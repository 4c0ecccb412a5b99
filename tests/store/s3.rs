//! S3 when something goes wrong: each response of a server, or its absence, becomes an error that tells the
//! caller what to do.

use bytes::Bytes;
use cairn::metrics::StoreOutcome;
use cairn::store::{
    ByteRange, Condition, ETag, Entry, Error, ListFrom, Listing, PageToken, Pages, S3Options, S3Store,
    SignBody, Store,
};

use crate::support::fake_s3::{FakeS3, Reply, Request, answer, error, head};

const ETAG: (&str, &str) = ("ETag", "\"9b2cf535f27731c974343645a3985328\"");

async fn served(reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (FakeS3, S3Store) {
    let server = FakeS3::start(reply).await;
    let store = S3Store::open("disks", "at", server.options()).await.expect("opening sends nothing");
    (server, store)
}

async fn full(reply: Reply) -> Result<Bytes, Error> {
    let (_server, store) = served(move |_| reply.clone()).await;
    store.get("key", ByteRange::Full).await.map(|object| object.body)
}

async fn ranged(reply: Reply) -> Result<Bytes, Error> {
    let (_server, store) = served(move |_| reply.clone()).await;
    store.get("key", ByteRange::Bounded { offset: 4, length: 4 }).await.map(|object| object.body)
}

#[tokio::test]
async fn a_body_that_ends_early_is_truncated() {
    let mut cut = head("200 OK", &[ETAG], 8);
    cut.extend_from_slice(b"only");
    let error = full(Reply::Close(cut)).await.unwrap_err();
    assert!(matches!(error, Error::Truncated { wanted: 8, got: 4, .. }), "{error}");

    let mut cut = head("206 Partial Content", &[ETAG, ("Content-Range", "bytes 4-7/8")], 4);
    cut.extend_from_slice(b"4");
    let error = ranged(Reply::Close(cut)).await.unwrap_err();
    assert!(matches!(error, Error::Truncated { wanted: 4, got: 1, .. }), "{error}");
}

#[tokio::test]
async fn a_range_beyond_the_object_is_truncated() {
    let short = answer("206 Partial Content", &[ETAG, ("Content-Range", "bytes 4-5/6")], b"45");
    let error = ranged(Reply::Whole(short)).await.unwrap_err();
    assert!(matches!(error, Error::Truncated { wanted: 4, got: 2, .. }), "{error}");
    let error = ranged(Reply::Whole(error_416())).await.unwrap_err();
    assert!(matches!(error, Error::Truncated { wanted: 4, got: 0, .. }), "{error}");
}

fn error_416() -> Vec<u8> {
    error("416 Requested Range Not Satisfiable", "InvalidRange")
}

#[tokio::test]
async fn a_range_other_than_the_requested_one_is_refused() {
    let right = ("Content-Range", "bytes 4-7/8");
    let body = ranged(Reply::Whole(answer("206 Partial Content", &[ETAG, right], b"4567"))).await.unwrap();
    assert_eq!(body, "4567");
    for wrong in [
        answer("200 OK", &[ETAG], b"01234567"),
        answer("206 Partial Content", &[ETAG, ("Content-Range", "bytes 0-3/8")], b"0123"),
        answer("206 Partial Content", &[ETAG, right], b"45678"),
        answer("206 Partial Content", &[right], b"4567"),
    ] {
        let error = ranged(Reply::Whole(wrong)).await.unwrap_err();
        assert!(matches!(error, Error::Rejected { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_flipped_bit_in_a_checksummed_body_is_an_error() {
    // CRC-32 of "123456789" is cbf43926 (the check value of CRC-32/ISO-HDLC), here in base64.
    let checksum = ("x-amz-checksum-crc32", "y/Q5Jg==");
    let body = full(Reply::Whole(answer("200 OK", &[ETAG, checksum], b"123456789"))).await.unwrap();
    assert_eq!(body, "123456789");
    let error = full(Reply::Whole(answer("200 OK", &[ETAG, checksum], b"123456788"))).await.unwrap_err();
    assert!(matches!(error, Error::Transient { .. }), "{error}");
}

#[tokio::test]
async fn silence_is_a_timeout() {
    let mut stalled = head("200 OK", &[ETAG], 8);
    stalled.extend_from_slice(b"only");
    for reply in
        [Reply::Stall(stalled), Reply::Stall(Vec::new()), Reply::Stall(b"HTTP/1.1 200 OK\r\n".to_vec())]
    {
        let error = full(reply).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    }
    let (_server, store) = served(|_| Reply::Stall(Vec::new())).await;
    let error = store.put("key", Bytes::from_static(b"x"), Condition::Always).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }) && error.effect_unknown(), "{error}");
}

#[tokio::test]
async fn a_closed_or_refused_connection_leaves_the_effect_unknown() {
    let (server, store) = served(|_| Reply::Close(Vec::new())).await;
    let error = store.put("key", Bytes::from_static(b"x"), Condition::IfAbsent).await.unwrap_err();
    assert!(matches!(error, Error::Transient { .. }) && error.effect_unknown(), "{error}");
    assert_eq!(server.requests().len(), 1, "nobody but the caller sends it again");
}

/// An incomplete error response means nothing: neither that an object does not exist, nor that a request is
/// refused for good.
#[tokio::test]
async fn an_incomplete_error_response_is_retried() {
    for (status, code) in [
        ("404 Not Found", "NoSuchKey"),
        ("412 Precondition Failed", "PreconditionFailed"),
        ("403 Forbidden", "RequestTimeTooSkewed"),
        ("400 Bad Request", "RequestTimeout"),
    ] {
        let whole = error(status, code);
        let body = whole.windows(4).position(|four| four == b"\r\n\r\n").expect("a head ends") + 4;
        for end in [body, body + 1, whole.len() - 20, whole.len() - 1] {
            let cut = whole[..end].to_vec();
            let (_server, store) = served(move |_| Reply::Close(cut.clone())).await;
            let got = store.get("key", ByteRange::Full).await.unwrap_err();
            assert!(matches!(got, Error::Transient { .. }), "{status}, {end} bytes: {got}");
            let put = store.put("key", Bytes::from_static(b"x"), Condition::IfAbsent).await.unwrap_err();
            assert!(matches!(put, Error::Transient { .. }), "{status}, {end} bytes: {put}");
        }
    }
}

#[tokio::test]
async fn an_endpoint_that_is_not_a_url_is_named() {
    let server = FakeS3::start(|_| Reply::Close(Vec::new())).await;
    for endpoint in ["minio:9000", "ftp://minio", "minio", "http://", "http://user:secret@minio"] {
        let options = S3Options { endpoint: Some(endpoint.into()), ..server.options() };
        let error = S3Store::open("disks", "", options).await.unwrap_err();
        assert!(
            matches!(error, Error::Rejected { .. }) && error.to_string().contains("s3://disks"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn each_response_to_a_put_has_its_meaning() {
    use StoreOutcome as Is;
    for (status, code, condition, expected) in [
        ("412 Precondition Failed", "PreconditionFailed", Condition::IfAbsent, Is::PreconditionFailed),
        ("409 Conflict", "ConditionalRequestConflict", Condition::IfAbsent, Is::Transient),
        ("404 Not Found", "NoSuchKey", Condition::IfMatch(ETag("\"e\"".into())), Is::PreconditionFailed),
        ("404 Not Found", "NoSuchBucket", Condition::IfMatch(ETag("\"e\"".into())), Is::Rejected),
        ("404 Not Found", "NoSuchBucket", Condition::IfAbsent, Is::Rejected),
        ("403 Forbidden", "AccessDenied", Condition::IfAbsent, Is::Denied),
        ("400 Bad Request", "InvalidArgument", Condition::Always, Is::Rejected),
        ("501 Not Implemented", "NotImplemented", Condition::IfAbsent, Is::Rejected),
        ("429 Too Many Requests", "TooManyRequests", Condition::IfAbsent, Is::Throttled),
        ("503 Slow Down", "SlowDown", Condition::IfAbsent, Is::Throttled),
        ("500 Internal Server Error", "InternalError", Condition::IfAbsent, Is::Transient),
        ("502 Bad Gateway", "", Condition::IfAbsent, Is::Transient),
    ] {
        let (server, store) = served(move |_| Reply::Whole(error(status, code))).await;
        let error = store.put("key", Bytes::from_static(b"x"), condition).await.unwrap_err();
        assert_eq!(error.outcome(), expected, "{status} {code}: {error}");
        assert_eq!(server.requests().len(), 1, "{status} {code}");
        if expected == Is::Rejected {
            assert!(error.to_string().contains(code), "{error}");
        }
    }
}

#[tokio::test]
async fn only_an_answer_of_the_store_itself_means_that_an_object_does_not_exist() {
    let missing = full(Reply::Whole(error("404 Not Found", "NoSuchKey"))).await.unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    for other in [error("404 Not Found", "NoSuchBucket"), answer("404 Not Found", &[], b"<html>nginx</html>")]
    {
        let error = full(Reply::Whole(other)).await.unwrap_err();
        assert!(matches!(error, Error::Rejected { .. }), "{error}");
    }
}

/// `printf 123456789 | sha256sum`.
const SHA256: &str = "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225";

#[tokio::test]
async fn a_body_is_signed_unless_nobody_else_can_change_it() {
    let unsigned = "UNSIGNED-PAYLOAD";
    for (sign_body, expected) in [
        // Where the requests go is known only after the first one.
        (SignBody::Auto, [SHA256, unsigned, unsigned]),
        (SignBody::Always, [SHA256; 3]),
        (SignBody::Never, [unsigned; 3]),
    ] {
        let server = FakeS3::start(|_| Reply::Whole(answer("200 OK", &[ETAG], b""))).await;
        let options = S3Options { sign_body, ..server.options() };
        let store = S3Store::open("disks", "at", options).await.unwrap();
        for _ in 0..3 {
            store.put("key", Bytes::from_static(b"123456789"), Condition::Always).await.unwrap();
        }
        let requests = server.requests();
        let header = |n: usize, name: &str| requests[n].headers.get(name).map(String::as_str);
        assert_eq!([0, 1, 2].map(|n| header(n, "x-amz-content-sha256")), expected.map(Some), "{sign_body:?}");
        assert_eq!([0, 1, 2].map(|n| header(n, "x-amz-checksum-crc32")), [Some("y/Q5Jg=="); 3]);
    }
}

#[tokio::test]
async fn a_put_carries_its_condition_its_length_and_checksums() {
    let server = FakeS3::start(|_| Reply::Whole(answer("200 OK", &[ETAG], b""))).await;
    let options = S3Options { sign_body: SignBody::Always, ..server.options() };
    let store = S3Store::open("disks", "at", options).await.unwrap();
    let body = Bytes::from_static(b"123456789");
    let etag = store.put("a/key", body.clone(), Condition::IfAbsent).await.unwrap();
    assert_eq!(&*etag.0, ETAG.1);
    store.put("a/key", body.clone(), Condition::IfMatch(etag)).await.unwrap();
    store.put("a/key", body.clone(), Condition::Always).await.unwrap();
    let requests = server.requests();
    let header = |n: usize, name: &str| requests[n].headers.get(name).map(String::as_str);
    for (n, request) in requests.iter().enumerate() {
        assert_eq!((request.method.as_str(), &request.body), ("PUT", &body.to_vec()));
        assert_eq!(request.target.split('?').next(), Some("/disks/at/a/key"));
        assert_eq!(header(n, "content-length"), Some("9"));
        assert_eq!(header(n, "x-amz-checksum-crc32"), Some("y/Q5Jg=="));
        assert_eq!(header(n, "x-amz-content-sha256"), Some(SHA256));
        assert_eq!((header(n, "expect"), header(n, "content-encoding")), (None, None));
    }
    let conditions = [0, 1, 2].map(|n| (header(n, "if-none-match"), header(n, "if-match")));
    assert_eq!(conditions, [(Some("*"), None), (None, Some(ETAG.1)), (None, None)]);
}

#[tokio::test]
async fn the_result_of_each_deleted_key_is_checked() {
    let deleted = |errors: &str| {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<DeleteResult \
             xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{errors}</DeleteResult>"
        );
        Reply::Whole(answer("200 OK", &[("Content-Type", "application/xml")], body.as_bytes()))
    };
    let error = |key: &str, code: &str| {
        format!("<Error><Key>at/{key}</Key><Code>{code}</Code><Message>said</Message></Error>")
    };
    let keys = ["a".to_owned(), "b".to_owned()];
    for (errors, expected) in [
        (String::new(), None),
        (error("a", "NoSuchKey"), None),
        (error("a", "NoSuchKey") + &error("b", "AccessDenied"), Some(StoreOutcome::Denied)),
        (error("b", "InternalError"), Some(StoreOutcome::Transient)),
        (error("b", "SlowDown"), Some(StoreOutcome::Throttled)),
    ] {
        let reply = deleted(&errors);
        let (_server, store) = served(move |_| reply.clone()).await;
        let answer = store.delete(&keys).await;
        assert_eq!(answer.as_ref().err().map(Error::outcome), expected, "{errors}");
        assert!(answer.err().is_none_or(|error| error.key() == "b"), "{errors}");
    }
}

fn listing(keys: &[&str], next: Option<&str>) -> Reply {
    let more = next.is_some();
    let token = next.map(|token| format!("<NextContinuationToken>{token}</NextContinuationToken>"));
    truncated(keys, more, &token.unwrap_or_default())
}

fn truncated(keys: &[&str], more: bool, token: &str) -> Reply {
    let contents: String = keys
        .iter()
        .map(|key| format!("<Contents><Key>{key}</Key><ETag>&quot;e&quot;</ETag><Size>3</Size></Contents>"))
        .collect();
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult \
         xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>disks</Name><KeyCount>{}</KeyCount>\
         <IsTruncated>{more}</IsTruncated>{token}{contents}</ListBucketResult>",
        keys.len()
    );
    Reply::Whole(answer("200 OK", &[("Content-Type", "application/xml")], body.as_bytes()))
}

/// Returns the parameters in the query of a request.
fn parameters(request: &Request) -> Vec<&str> {
    request.target.split(['?', '&']).skip(1).collect()
}

/// Lists every key below `prefix`, in the order of the store.
async fn listed(store: &S3Store, prefix: &str) -> Result<Vec<String>, Error> {
    let mut keys = Vec::new();
    let mut pages = Pages::new(store, prefix);
    while let Some(entries) = pages.next().await? {
        keys.extend(entries.into_iter().map(|entry| entry.key));
    }
    Ok(keys)
}

#[tokio::test]
async fn a_listing_skips_foreign_keys_and_continues_after_them() {
    let (server, store) = served(|request| {
        if request.target.contains("continuation-token=more%2F1") {
            listing(&["at/!c", "at/d"], None)
        } else {
            listing(&["at/!a", "at/!b"], Some("more/1"))
        }
    })
    .await;
    let first = store.list("", &ListFrom::Start).await.unwrap();
    let next = PageToken("more/1".into());
    assert_eq!(first, Listing { entries: Vec::new(), next: Some(next.clone()) });
    let second = store.list("", &ListFrom::Page(next)).await.unwrap();
    assert_eq!(second, Listing { entries: vec![Entry { key: "d".into(), size_bytes: 3 }], next: None });
    assert_eq!(server.requests().len(), 2);
}

/// Pages that are empty, tiny or unordered, as S3 directory buckets and some other stores send them.
#[tokio::test]
async fn a_listing_continues_after_empty_pages_and_accepts_keys_in_any_order() {
    let pages = |request: &Request| {
        let page = |n: u32| parameters(request).contains(&format!("continuation-token=t{n}").as_str());
        match () {
            () if page(1) => listing(&["at/e", "at/b"], Some("t2")),
            () if page(2) => listing(&[], Some("t3")),
            () if page(3) => listing(&["at/d"], Some("t4")),
            () if page(4) => listing(&[], None),
            () => listing(&[], Some("t1")),
        }
    };
    let (server, store) = served(pages).await;
    assert_eq!(listed(&store, "").await.unwrap(), ["e", "b", "d"]);
    assert_eq!(server.requests().len(), 5);
    let mut behind = Pages::after(&store, "", "c");
    let mut keys = Vec::new();
    while let Some(entries) = behind.next().await.unwrap() {
        keys.extend(entries.into_iter().map(|entry| entry.key));
    }
    assert_eq!(keys, ["e", "d"], "a store that begins at the beginning shows nothing up to the key");
}

#[tokio::test]
async fn a_listing_without_progress_is_an_error_and_not_a_loop() {
    let (_server, store) = served(|_| listing(&["at/b"], Some("same"))).await;
    let error = listed(&store, "").await.unwrap_err();
    assert!(matches!(error, Error::Rejected { .. }), "{error}");
    let (_server, store) = served(|_| truncated(&["at/b"], true, "")).await;
    let error = listed(&store, "").await.unwrap_err();
    assert!(matches!(error, Error::Transient { .. }), "{error}");
}

/// Directory buckets refuse StartAfter, and prefixes that do not end in `/`.
#[tokio::test]
async fn a_directory_bucket_is_listed_by_whole_segments_and_never_after_a_key() {
    let server = FakeS3::start(|_| listing(&["at/v/ab", "at/v/b", "at/v/ac"], None)).await;
    let mut options = server.options();
    options.path_style = true;
    let store = S3Store::open("disks--use1-az4--x-s3", "at", options).await.unwrap();
    let mut pages = Pages::after(&store, "v/a", "v/ab");
    let mut keys = Vec::new();
    while let Some(entries) = pages.next().await.unwrap() {
        keys.extend(entries.into_iter().map(|entry| entry.key));
    }
    assert_eq!(keys, ["v/ac"]);
    let asked = server.requests();
    let lists: Vec<_> = asked.iter().map(parameters).filter(|all| all.contains(&"list-type=2")).collect();
    assert!(!lists.is_empty(), "{asked:?}");
    assert!(lists.iter().all(|all| all.contains(&"prefix=at%2Fv%2F")), "{asked:?}");
    assert!(asked.iter().all(|request| !request.target.contains("start-after")), "{asked:?}");
}
