//! An S3 bucket in memory. It accepts requests that are signed with a known access key, and implements
//! conditions, ranges, listings and deletions as S3 does. A test can refuse any request with an error in the
//! format of S3. Signatures are not verified.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_rustls::rustls::ServerConfig;

use super::fake_s3::{FakeS3, Reply, Request, answer, error};

/// Name of the bucket.
pub(crate) const BUCKET: &str = "disks";

type Rule = Box<dyn Fn(&Request) -> Option<Reply> + Send + Sync>;

#[derive(Default)]
struct State {
    /// Body and version by key.
    objects: BTreeMap<String, (Vec<u8>, u64)>,
    versions: u64,
    /// The known access keys; `None` accepts any.
    known: Option<BTreeSet<String>>,
    /// The response to other access keys.
    refusal: Option<Reply>,
    rule: Option<Rule>,
}

/// The bucket. Dropping it stops the server.
pub(crate) struct FakeBucket {
    pub(crate) server: FakeS3,
    state: Arc<Mutex<State>>,
}

impl FakeBucket {
    pub(crate) async fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let served = Arc::clone(&state);
        let server = FakeS3::start(move |request| served.lock().reply(request)).await;
        Self { server, state }
    }

    /// Starts the bucket with TLS.
    pub(crate) async fn start_tls(config: Arc<ServerConfig>) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let served = Arc::clone(&state);
        let server = FakeS3::start_tls(config, move |request| served.lock().reply(request)).await;
        Self { server, state }
    }

    /// Refuses requests that are signed with any other access key.
    pub(crate) fn know_only(&self, access_key: &str) {
        self.state.lock().known = Some([access_key.to_owned()].into());
    }

    /// Sets the response to unknown access keys. By default, it says that the access key does not exist.
    pub(crate) fn refuse_with(&self, status: &str, code: &str) {
        self.state.lock().refusal = Some(Reply::Whole(error(status, code)));
    }

    /// Sets a rule. If it returns a response, that is sent.
    pub(crate) fn rule(&self, rule: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) {
        self.state.lock().rule = Some(Box::new(rule));
    }

    /// Removes the rule, so that the bucket behaves like S3 again.
    pub(crate) fn no_rule(&self) {
        self.state.lock().rule = None;
    }

    /// Returns the keys of the existing objects.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.state.lock().objects.keys().cloned().collect()
    }

    /// Returns the URL of the endpoint.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.server.port())
    }
}

/// Returns the access key that signed a request.
pub(crate) fn access_key(request: &Request) -> Option<&str> {
    let signed = request.headers.get("authorization")?;
    signed.split_once("Credential=")?.1.split('/').next()
}

fn empty(status: &str, headers: &[(&str, &str)]) -> Reply {
    Reply::Whole(answer(status, headers, b""))
}

fn xml(text: &str) -> Reply {
    let head = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
    Reply::Whole(answer(
        "200 OK",
        &[("Content-Type", "application/xml")],
        (head.to_owned() + text).as_bytes(),
    ))
}

fn etag(version: u64) -> String {
    format!("\"{version:032x}\"")
}

impl State {
    fn reply(&mut self, request: &Request) -> Reply {
        if let Some(reply) = self.rule.as_ref().and_then(|rule| rule(request)) {
            return reply;
        }
        let Some(access_key) = access_key(request) else {
            return Reply::Whole(error("403 Forbidden", "AccessDenied"));
        };
        if self.known.as_ref().is_some_and(|known| !known.contains(access_key)) {
            let unknown = || Reply::Whole(error("403 Forbidden", "InvalidAccessKeyId"));
            return self.refusal.clone().unwrap_or_else(unknown);
        }
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        let query: BTreeMap<_, _> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let Some(path) = path.strip_prefix(&format!("/{BUCKET}")) else {
            return Reply::Whole(error("404 Not Found", "NoSuchBucket"));
        };
        let key = path.trim_start_matches('/');
        match (request.method.as_str(), key) {
            ("GET", "") => self.list(&query),
            ("HEAD", "") => empty("200 OK", &[]),
            ("POST", "") if query.contains_key("delete") => self.delete(request),
            ("GET", key) => self.get(key, request),
            ("PUT", key) => self.put(key, request),
            _ => Reply::Whole(error("501 Not Implemented", "NotImplemented")),
        }
    }

    fn get(&self, key: &str, request: &Request) -> Reply {
        let Some((body, version)) = self.objects.get(key) else {
            return Reply::Whole(error("404 Not Found", "NoSuchKey"));
        };
        let etag = etag(*version);
        let Some(range) = request.headers.get("range") else {
            return Reply::Whole(answer("200 OK", &[("ETag", &etag)], body));
        };
        let (first, last) =
            range.strip_prefix("bytes=").and_then(|range| range.split_once('-')).expect("a range");
        let (first, last): (usize, usize) =
            (first.parse().expect("a number"), last.parse().expect("a number"));
        if first >= body.len() {
            return Reply::Whole(error("416 Requested Range Not Satisfiable", "InvalidRange"));
        }
        let last = last.min(body.len() - 1);
        let range = format!("bytes {first}-{last}/{}", body.len());
        let headers = [("ETag", etag.as_str()), ("Content-Range", range.as_str())];
        Reply::Whole(answer("206 Partial Content", &headers, &body[first..=last]))
    }

    fn put(&mut self, key: &str, request: &Request) -> Reply {
        let stands = self.objects.get(key).map(|(_, version)| etag(*version));
        let failed = || Reply::Whole(error("412 Precondition Failed", "PreconditionFailed"));
        if request.headers.contains_key("if-none-match") && stands.is_some() {
            return failed();
        }
        match (request.headers.get("if-match"), &stands) {
            (Some(_), None) => return Reply::Whole(error("404 Not Found", "NoSuchKey")),
            (Some(wanted), Some(stands)) if wanted != stands => return failed(),
            _ => {}
        }
        self.versions += 1;
        self.objects.insert(key.to_owned(), (request.body.clone(), self.versions));
        empty("200 OK", &[("ETag", &etag(self.versions))])
    }

    fn delete(&mut self, request: &Request) -> Reply {
        let text = String::from_utf8(request.body.clone()).expect("XML is text");
        for key in text.split("<Key>").skip(1) {
            self.objects.remove(key.split('<').next().expect("a key ends"));
        }
        xml("<DeleteResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"></DeleteResult>")
    }

    /// Lists everything in one page.
    fn list(&self, query: &BTreeMap<String, String>) -> Reply {
        let of = |name: &str| query.get(name).map_or("", String::as_str);
        let (prefix, after) = (of("prefix"), of("start-after"));
        let listed = self.objects.iter().filter(|(key, _)| key.starts_with(prefix) && key.as_str() > after);
        let contents: String = listed
            .map(|(key, (body, version))| {
                let (etag, size) = (etag(*version).replace('"', "&quot;"), body.len());
                format!("<Contents><Key>{key}</Key><ETag>{etag}</ETag><Size>{size}</Size></Contents>")
            })
            .collect();
        xml(&format!(
            "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>{BUCKET}</Name>\
             <IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        ))
    }
}
