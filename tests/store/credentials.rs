//! Credentials that rotate while disks are in use. Every source that can change is read again on SIGHUP, and
//! when the store refuses the current credentials. The tests run the program itself, because the environment
//! belongs to a process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use cairn::client::{Client, Options, Uri};
use cairn::effect::Durability::Volatile;
use parking_lot::Mutex;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::cairn::{Gateway, Setup};
use crate::support::fake_bucket::{FakeBucket, access_key};
use crate::support::fake_s3::{FakeS3, Reply, Request, answer, error};
use crate::support::process::within;

const PAGE: usize = 65_536;

/// A bucket that knows one access key, and a directory with the files from which a gateway reads its own.
struct Bench {
    bucket: FakeBucket,
    directory: TempDir,
    env: Vec<(String, String)>,
}

impl Bench {
    async fn new() -> Self {
        let bucket = FakeBucket::start().await;
        bucket.know_only("OLD");
        let directory = tempfile::tempdir().unwrap();
        let mut bench = Self { env: Vec::new(), bucket, directory };
        let endpoint = bench.bucket.endpoint();
        bench.set("AWS_ENDPOINT_URL_S3", &endpoint);
        bench.set("AWS_REGION", "us-east-1");
        bench.set("AWS_EC2_METADATA_DISABLED", "true");
        bench.set("CAIRN_STORE__PATH_STYLE", "true");
        bench.set("CAIRN_ADMIN__LISTEN", "none");
        // Nothing from the environment of the tests.
        for name in ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"] {
            let path = bench.path("none").display().to_string();
            bench.set(name, &path);
        }
        bench
    }

    fn set(&mut self, name: &str, value: &str) {
        self.env.retain(|(other, _)| other != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        // Replaced atomically, as programs that rotate credentials do.
        let (path, new) = (self.path(name), self.path("new"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &path).unwrap();
        path
    }

    async fn gateway(&self) -> Gateway {
        let env = self.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        Setup::at("s3://disks/at", env).create("disk", "64MiB").takeover().tcp().start().await
    }

    /// Writes with the old key, makes the bucket accept only the new one, and writes again. Everything must
    /// exist after the gateway was killed.
    async fn survives(self, rotate: impl FnOnce(&Self)) {
        let mut gateway = self.gateway().await;
        let disk = connect(&gateway).await;
        write(&disk, 0).await;
        within("a flush with the old key", disk.flush()).await.unwrap();
        write(&disk, 1).await;
        self.bucket.know_only("NEW");
        rotate(&self);
        within("a flush with the new key", disk.flush()).await.unwrap();
        gateway.process.kill().await;
        let next = self.gateway().await;
        let disk = connect(&next).await;
        for page in 0..2 {
            assert_eq!(read(&disk, page).await.unwrap(), pattern(page), "page {page}");
        }
    }
}

async fn connect(gateway: &Gateway) -> Client {
    let uri: Uri = gateway.uri("disk").parse().unwrap();
    within("a connection", Client::connect(&uri, &Options::default())).await.unwrap()
}

fn pattern(page: u8) -> Bytes {
    vec![page + 1; PAGE].into()
}

fn offset(page: u8) -> u64 {
    u64::from(page) * u64::try_from(PAGE).unwrap()
}

async fn write(disk: &Client, page: u8) {
    disk.write(offset(page), pattern(page), Volatile).await.unwrap();
}

async fn read(disk: &Client, page: u8) -> Result<Bytes, cairn::client::Error> {
    within("a read", disk.read(offset(page), u32::try_from(PAGE).unwrap())).await
}

fn profile(key: &str) -> String {
    format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")
}

fn is_refused_put(request: &Request) -> bool {
    request.method == "PUT" && access_key(request) == Some("OLD")
}

fn json(key: &str) -> String {
    format!(
        "{{\"Version\": 1, \"AccessKeyId\": \"{key}\", \"SecretAccessKey\": \"secret\", \"Token\": \"token\", \
         \"SessionToken\": \"token\", \"Expiration\": \"2099-01-01T00:00:00Z\"}}"
    )
}

/// Creates a bench whose gateways read their key from a profile file.
async fn with_profile() -> Bench {
    let mut bench = Bench::new().await;
    let path = bench.file("credentials", &profile("OLD"));
    bench.set("AWS_SHARED_CREDENTIALS_FILE", &path.display().to_string());
    bench
}

#[tokio::test]
async fn a_replaced_profile_is_read_again_when_the_store_refuses_its_key() {
    for (status, code) in [
        ("403 Forbidden", "InvalidAccessKeyId"),
        ("403 Forbidden", "SignatureDoesNotMatch"),
        ("403 Forbidden", "AccessDenied"),
        ("400 Bad Request", "ExpiredToken"),
    ] {
        let bench = with_profile().await;
        bench.bucket.refuse_with(status, code);
        bench.survives(|bench| drop(bench.file("credentials", &profile("NEW")))).await;
    }
}

#[tokio::test]
async fn unflushed_data_is_durable_after_sigterm_with_the_new_key() {
    let bench = with_profile().await;
    let mut gateway = bench.gateway().await;
    let disk = connect(&gateway).await;
    write(&disk, 0).await;
    bench.bucket.know_only("NEW");
    bench.file("credentials", &profile("NEW"));
    gateway.process.signal(Signal::TERM);
    assert!(gateway.process.exit().await.success(), "{}", gateway.process.output());
    let next = bench.gateway().await;
    assert_eq!(read(&connect(&next).await, 0).await.unwrap(), pattern(0));
}

#[tokio::test]
async fn a_refused_flush_continues_after_sighup() {
    let bench = with_profile().await;
    let mut gateway = bench.gateway().await;
    let disk = connect(&gateway).await;
    write(&disk, 0).await;
    bench.bucket.know_only("NEW");
    let before = bench.bucket.server.requests().iter().filter(|request| is_refused_put(request)).count();
    let flush = disk.flush();
    tokio::pin!(flush);
    // The second refusal comes after the chain was read again without a new key.
    let refused = bench.bucket.server.until("refused PUTs", |requests| {
        requests.iter().filter(|request| is_refused_put(request)).count() >= before + 2
    });
    tokio::select! {
        biased;
        answer = &mut flush => panic!("nothing is durable: {answer:?}"),
        () = refused => {}
    }
    bench.file("credentials", &profile("NEW"));
    gateway.process.signal(Signal::HUP);
    within("the flush", flush).await.unwrap();
    gateway.process.signal(Signal::TERM);
    assert!(gateway.process.exit().await.success(), "{}", gateway.process.output());
}

#[tokio::test]
async fn a_web_identity_is_exchanged_again_when_the_store_refuses_its_credentials() {
    let sts = FakeS3::start(|request| {
        let form: Vec<(String, String)> = url::form_urlencoded::parse(&request.body).into_owned().collect();
        let token = form.iter().find(|(name, _)| name == "WebIdentityToken");
        let key = token.map_or("NONE", |(_, token)| token.trim());
        let body = format!(
            "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{key}</AccessKeyId>\
             <SecretAccessKey>secret</SecretAccessKey><SessionToken>token</SessionToken>\
             <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
             </AssumeRoleWithWebIdentityResponse>"
        );
        Reply::Whole(answer("200 OK", &[("Content-Type", "text/xml")], body.as_bytes()))
    })
    .await;
    let mut bench = Bench::new().await;
    let path = bench.file("token", "OLD");
    bench.set("AWS_WEB_IDENTITY_TOKEN_FILE", &path.display().to_string());
    bench.set("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/disks");
    bench.set("AWS_ENDPOINT_URL_STS", &format!("http://127.0.0.1:{}", sts.port()));
    bench.survives(|bench| drop(bench.file("token", "NEW"))).await;
}

#[tokio::test]
async fn a_container_endpoint_is_queried_again_when_the_store_refuses_its_credentials() {
    let key = Arc::new(Mutex::new("OLD"));
    let given = Arc::clone(&key);
    let container = FakeS3::start(move |request| {
        if request.headers.get("authorization").map(String::as_str) != Some("a-pod") {
            return Reply::Whole(error("401 Unauthorized", "Unauthorized"));
        }
        let headers = [("Content-Type", "application/json")];
        Reply::Whole(answer("200 OK", &headers, json(*given.lock()).as_bytes()))
    })
    .await;
    let mut bench = Bench::new().await;
    let token = bench.file("token", "a-pod");
    let uri = format!("http://127.0.0.1:{}/v1/credentials", container.port());
    bench.set("AWS_CONTAINER_CREDENTIALS_FULL_URI", &uri);
    bench.set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token.display().to_string());
    bench.survives(|_| *key.lock() = "NEW").await;
}

/// Creates a profile whose credentials come from a program. The program records each run in the file `runs`.
fn credential_process(bench: &mut Bench) -> PathBuf {
    let runs = bench.path("runs");
    let output = bench.file("output.json", &json("OLD"));
    // Only the shell is used, because a machine may have no other program.
    let script =
        format!("echo run >> {}\nread -r line < {}\necho \"$line\"\n", runs.display(), output.display());
    let script = bench.file("script.sh", &script);
    let config = format!("[default]\ncredential_process = /bin/sh {}\n", script.display());
    let config = bench.file("config", &config);
    bench.set("AWS_CONFIG_FILE", &config.display().to_string());
    runs
}

#[tokio::test]
async fn a_credential_process_runs_again_when_the_store_refuses_its_credentials() {
    let mut bench = Bench::new().await;
    credential_process(&mut bench);
    bench.survives(|bench| drop(bench.file("output.json", &json("NEW")))).await;
}

fn runs(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap().lines().count()
}

/// However many requests are refused, the chain is rebuilt once in ten seconds.
#[tokio::test]
async fn refusals_renew_the_credentials_at_a_bounded_rate() {
    let mut bench = Bench::new().await;
    let path = credential_process(&mut bench);
    let mut gateway = bench.gateway().await;
    let disk = connect(&gateway).await;
    for page in 0..32 {
        write(&disk, page).await;
    }
    within("a flush", disk.flush()).await.unwrap();
    gateway.process.kill().await;
    let gateway = bench.gateway().await;
    let disk = connect(&gateway).await;
    let (begun, before) = (Instant::now(), runs(&path));
    bench.bucket.know_only("NEW");
    let reads = futures::future::join_all((0..32).map(|page| read(&disk, page)));
    tokio::pin!(reads);
    let from = bench.bucket.server.requests().len();
    let refused = bench.bucket.server.until("refused GETs", |requests| requests.len() >= from + 200);
    tokio::select! {
        biased;
        answers = &mut reads => panic!("nothing can be read: {answers:?}"),
        () = refused => {}
    }
    let most = 1 + usize::try_from(begun.elapsed().as_secs()).unwrap() / 10;
    let (ran, output) = (runs(&path) - before, gateway.process.output());
    assert!((1..=most).contains(&ran), "{ran} runs, {most} at most: {output}");
    bench.file("output.json", &json("NEW"));
    for (page, answer) in (0..).zip(within("the reads", reads).await) {
        assert_eq!(answer.unwrap(), pattern(page), "page {page}");
    }
}

/// Reads wait for the permissions to come back, as they do when the store is unavailable.
#[tokio::test]
async fn a_cold_read_waits_while_it_is_forbidden() {
    let bench = with_profile().await;
    let mut gateway = bench.gateway().await;
    let disk = connect(&gateway).await;
    write(&disk, 0).await;
    within("a flush", disk.flush()).await.unwrap();
    gateway.process.kill().await;
    let gateway = bench.gateway().await;
    let disk = connect(&gateway).await;
    bench.bucket.rule(|request| {
        let forbidden = request.method == "GET" && request.target.contains("/journal/");
        forbidden.then(|| Reply::Whole(error("403 Forbidden", "AccessDenied")))
    });
    let from = bench.bucket.server.requests().len();
    let read = read(&disk, 0);
    tokio::pin!(read);
    let forbidden = bench.bucket.server.until("forbidden GETs", |requests| {
        requests[from..].iter().filter(|request| request.target.contains("/journal/")).count() >= 6
    });
    tokio::select! {
        biased;
        answer = &mut read => panic!("it cannot be read: {answer:?}"),
        () = forbidden => {}
    }
    bench.bucket.no_rule();
    assert_eq!(read.await.unwrap(), pattern(0));
}
