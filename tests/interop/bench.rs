//! `cairn bench store` on MinIO: which requests it sends, and that it leaves nothing behind.

use cairn::metrics::Metrics;
use cairn::store::{self, Location, Pages};
use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Command;

use crate::support::cairn::program;
use crate::support::minio::Minio;
use crate::support::process::{Process, run};
use crate::support::proxy::{Action, Gate, Proxy};

const URL: &str = "s3://disks/bench";

/// MinIO with an empty bucket, and a proxy in front of it.
struct Bucket {
    minio: Minio,
    store: store::Classes,
    proxy: Proxy,
}

impl Bucket {
    async fn new() -> Self {
        let minio = Minio::start().await;
        let location: Location = URL.parse().expect("a bucket and a prefix");
        let options = store::Options { s3: minio.options(), probe: None, ..store::Options::default() };
        let drawn = store::open::Drawn { seed: 1, nonce: "bench".to_owned(), now_seconds: 0 };
        let opened = store::open(&location, &options, Metrics::new().store(), &drawn).await;
        let proxy = Proxy::start(minio.port()).await;
        Self { minio, store: opened.expect("MinIO serves").store, proxy }
    }

    /// A command that measures the bucket through the proxy.
    fn bench(&self, arguments: &str) -> Command {
        let mut bench = program();
        bench.args(["bench", "store", URL]).args(arguments.split(' ')).envs(self.minio.env());
        bench.env("AWS_ENDPOINT_URL", self.proxy.endpoint()).env("CAIRN_STORE__PATH_STYLE", "true");
        bench
    }

    /// Returns the keys of all objects.
    async fn keys(&self) -> Vec<String> {
        let mut pages = Pages::new(&self.store.reads, "");
        let mut keys = Vec::new();
        while let Some(entries) = pages.next().await.expect("MinIO lists") {
            keys.extend(entries.into_iter().map(|entry| entry.key));
        }
        keys
    }

    /// Starts a measurement whose PUTs wait at a gate, and waits until one of them is there.
    async fn held(&self) -> (Process, Gate) {
        let gate = Gate::new();
        let held = gate.clone();
        self.proxy.rule(move |request| match request.puts("/bench-") {
            true => Action::HoldAnswer(held.clone()),
            false => Action::Pass,
        });
        let mut bench = self.bench("--size 4KiB --concurrency 2 --seconds 600");
        let process = Process::spawn("cairn bench", &mut bench);
        gate.reached().await;
        (process, gate)
    }
}

#[tokio::test]
#[ignore = "needs MinIO"]
async fn a_bucket_is_measured_and_left_as_it_was() {
    let bucket = Bucket::new().await;
    let mut bench = bucket.bench("--size 64KiB --concurrency 8 --bytes 2MiB --seconds 60 --json");
    let json: Value = serde_json::from_str(&run(&mut bench).await).expect("JSON");
    let requests = ["put", "get", "get_range"].map(|name| json[name]["requests"].as_u64().expect("a number"));
    assert_eq!(requests, [32, 32, 512]);
    let sent = bucket.proxy.requests();
    let puts: Vec<_> = sent.iter().filter(|request| request.method == "PUT").collect();
    assert!(puts.iter().all(|put| put.puts("bench/probe/bench-") && put.status == Some(200)), "{puts:?}");
    assert_eq!(puts.len(), 32);
    let received = |bytes| {
        let of = sent.iter().filter(|request| request.gets("/bench-") && request.received == bytes);
        of.count()
    };
    assert_eq!((received(65_536), received(4_096)), (32, 512));
    let absent = sent.iter().filter(|request| request.status == Some(404)).count();
    assert_eq!(absent, 8, "each connection is used before the measurement");
    assert_eq!(bucket.keys().await, Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs MinIO"]
async fn an_interrupted_measurement_waits_for_its_puts_and_deletes_them() {
    let bucket = Bucket::new().await;
    let (mut process, gate) = bucket.held().await;
    process.signal(Signal::INT);
    gate.open();
    assert_eq!(process.exit().await.code(), Some(1));
    assert!(process.output().contains("stopped by SIGINT"), "{}", process.output());
    assert_eq!(bucket.keys().await, Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs MinIO"]
async fn a_second_signal_ends_it_at_once_and_it_names_what_may_be_left() {
    let bucket = Bucket::new().await;
    let (mut process, _gate) = bucket.held().await;
    process.signal(Signal::INT);
    process.signal(Signal::TERM);
    assert_eq!(process.exit().await.code(), Some(1));
    let said = process.output();
    assert!(said.contains("objects may be left below probe/bench-"), "{said}");
}

#[tokio::test]
#[ignore = "needs MinIO"]
async fn a_bucket_that_does_not_exist_is_not_created() {
    let bucket = Bucket::new().await;
    let mut bench = program();
    bench.args(["bench", "store", "s3://nowhere"]).envs(bucket.minio.env());
    bench.env("CAIRN_STORE__PATH_STYLE", "true").env("CAIRN_STORE__CREATE_BUCKET", "true");
    let done = crate::support::process::finish(&mut bench).await;
    assert_eq!(done.status.code(), Some(1), "{}", done.stderr);
    assert!(done.stderr.contains("The specified bucket does not exist"), "{}", done.stderr);
    assert!(!done.stderr.contains("may be left"), "nothing was written: {}", done.stderr);
}
