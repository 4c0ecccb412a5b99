//! `cairn serve`: how it starts, what it refuses, and how it ends.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustix::process::Signal;
use tempfile::tempdir;

use super::{Gateway, cairn, connection, fail, refuse, succeed};
use crate::support::process::Process;

#[test]
fn every_command_has_help() {
    let at = tempdir().unwrap();
    for (line, parts) in [
        ("--help", vec!["serve", "volume"]),
        (
            "serve --help",
            vec![
                "--config",
                "--store",
                "--listen",
                "--create",
                "--takeover",
                "--admin",
                "file://./cairn-data",
            ],
        ),
        ("volume --help", vec!["create", "list", "info", "delete"]),
        ("volume create --help", vec!["<NAME>", "<SIZE>", "--chunk-size", "--store", "--json"]),
        (
            "volume delete --help",
            vec!["[NAME]", "--id", "--deleted", "--now", "--takeover", "--store", "--gateway"],
        ),
        ("volume undelete --help", vec!["<NAME|ID>", "--as", "--json", "--store", "--gateway"]),
        ("volume list --help", vec!["--unnamed", "--json", "--store"]),
        ("--version", vec![env!("CARGO_PKG_VERSION")]),
    ] {
        let help = succeed(at.path(), line);
        for part in parts {
            assert!(help.contains(part), "{line}: no {part} in: {help}");
        }
    }
}

#[test]
fn an_invalid_command_line_exits_with_2() {
    let at = tempdir().unwrap();
    for line in
        ["", "serv", "serve --lisen x", "serve --listen", "volume", "volume drop x", "volume create x"]
    {
        assert!(fail(at.path(), line, 2).contains("help"), "{line}");
    }
}

#[test]
fn wrong_settings_are_reported_before_anything_is_created() {
    let at = tempdir().unwrap();
    for (line, parts) in [
        ("serve --listen nowhere", ["server.listen", "\"nowhere\"", "flag --listen", "unix:PATH"]),
        ("serve --create disk", ["volumes.create", "\"disk\"", "flag --create", "NAME=SIZE"]),
        ("serve --create disk=1T", ["volumes.create", "1TiB for", "flag --create", "1TB for"]),
        ("serve --create /=1TiB", ["volumes.create", "\"/\"", "flag --create", "volume name"]),
        ("serve --store ftp://x", ["store.url", "ftp://x", "flag --store", "file:///path"]),
        ("serve --config none.toml", ["none.toml", "No such file", "", ""]),
    ] {
        let error = fail(at.path(), line, 2);
        for part in parts {
            assert!(error.contains(part), "{line}: no {part} in: {error}");
        }
    }
    let mut serve = cairn(at.path(), "serve");
    serve.env("CAIRN_LOG__LEVEL", "cairn=loud");
    assert!(refuse(serve, 2).contains("log.level"));
    assert_eq!(std::fs::read_dir(at.path()).unwrap().count(), 0);
}

#[test]
fn it_creates_a_volume_once_and_then_opens_it() {
    let at = tempdir().unwrap();
    let line = "serve --listen 127.0.0.1:0 --create disk=64MiB";
    let first = Gateway::start(cairn(at.path(), line)).terminate();
    assert!(first.err.contains("created"), "{}", first.err);
    let second = Gateway::start(cairn(at.path(), line)).terminate();
    assert!(!second.err.contains("created"), "{}", second.err);
    let error = fail(at.path(), "serve --listen 127.0.0.1:0 --create disk=65MiB", 1);
    for part in ["\"disk\"", "67108864", "68157440"] {
        assert!(error.contains(part), "no {part} in: {error}");
    }
}

#[test]
fn it_says_where_it_listens_and_what_to_type_next() {
    let at = tempdir().unwrap();
    let socket = at.path().join("nbd.sock");
    let line = format!("serve --listen 127.0.0.1:0 --listen unix:{} --create disk=1MiB", socket.display());
    let mut gateway = Gateway::start(cairn(at.path(), &line));
    while !gateway.lines.last().is_some_and(|line| line.contains("nbd-client")) {
        assert!(gateway.read_line(), "{:?}", gateway.lines);
    }
    assert!(gateway.lines[0].starts_with("listening on nbd://127.0.0.1:"), "{:?}", gateway.lines);
    let unix = format!("listening on nbd+unix:///?socket={}", socket.display());
    assert_eq!(gateway.lines[1], unix);
    let port = gateway.lines[0].rsplit(':').next().expect("a port").to_owned();
    TcpStream::connect(format!("127.0.0.1:{port}")).expect("it accepts");
    std::os::unix::net::UnixStream::connect(&socket).expect("it accepts");
    for part in ["nbdinfo 'nbd://", "nbdcopy ", "qemu-system-x86_64 ", "nbd-client -N disk 127.0.0.1 "] {
        assert!(gateway.lines.iter().any(|line| line.contains(part)), "no {part} in {:?}", gateway.lines);
    }
    gateway.terminate();
    assert!(!socket.exists());
}

#[test]
fn an_address_in_use_is_an_error() {
    let at = tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error = fail(at.path(), &format!("serve --listen {address} --create disk=1MiB"), 1);
    assert!(error.contains(&address) && error.contains("in use"), "{error}");
    assert_eq!(std::fs::read_dir(at.path()).unwrap().count(), 0, "no volume was made");
}

#[test]
fn a_missing_volume_that_must_exist_is_an_error() {
    let at = tempdir().unwrap();
    succeed(at.path(), "volume create other 1MiB");
    let mut serve = cairn(at.path(), "serve --listen 127.0.0.1:0");
    serve.env("CAIRN_VOLUMES__OPEN", "disk");
    let error = refuse(serve, 1);
    assert!(error.contains("no volume named \"disk\""), "{error}");
}

#[test]
fn both_signals_end_it_cleanly_and_its_successor_does_not_wait() {
    let at = tempdir().unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let mut serve = cairn(at.path(), "serve --listen 127.0.0.1:0 --create disk=1MiB");
        serve.env("CAIRN_LEASE__TTL", "1day").env("CAIRN_LOG__FORMAT", "json");
        let mut gateway = Gateway::start(serve);
        gateway.signal(signal);
        let (status, run) = gateway.end();
        assert!(status.success(), "{status}: {}", run.err);
        for line in run.err.lines() {
            let entry: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            assert!(entry["message"].is_string() && entry["level"].is_string(), "{line}");
        }
        assert!(run.err.contains("released its lease"), "{}", run.err);
    }
}

#[test]
fn a_takeover_ends_the_gateway_that_lost_its_only_volume() {
    let at = tempdir().unwrap();
    let line = "serve --listen 127.0.0.1:0 --create disk=1MiB";
    let mut first = cairn(at.path(), line);
    first.env("CAIRN_LEASE__TTL", "3s");
    let mut first = Gateway::start(first);
    let second = Gateway::start(cairn(at.path(), &format!("{line} --takeover")));
    let (status, run) = first.end();
    assert_eq!(status.code(), Some(10), "{}", run.err);
    assert!(run.err.contains("taken over") || run.err.contains("fenced"), "{}", run.err);
    second.terminate();
}

/// Both gateways are restarted whenever they exit, as supervisors do. Neither takes the volume from the
/// other, and the one that left a lease does not have to wait for it.
#[test]
fn gateways_in_restart_loops_take_no_volume_from_each_other() {
    let at = tempdir().unwrap();
    let named = |holder: &str, more: &str| {
        let mut serve = cairn(at.path(), &format!("serve --listen 127.0.0.1:0 --create disk=1MiB{more}"));
        serve.env("CAIRN_LEASE__TTL", "3s").env("CAIRN_LEASE__HOLDER", holder);
        serve
    };
    let epoch = || {
        let info = succeed(at.path(), "volume info disk --json");
        serde_json::from_str::<serde_json::Value>(&info).unwrap()["epoch"].as_u64().unwrap()
    };
    let mut first = Gateway::start(named("site/a", ""));
    for round in 1..=3 {
        assert_eq!(epoch(), round);
        let error = refuse(named("site/b", ""), 1);
        assert!(error.contains("in use by site/a"), "{error}");
        drop(first);
        first = Gateway::start(named("site/a", ""));
        first.wait_for_log("the lease is our own from before");
        assert!(!first.log.contains("waiting"), "{}", first.log);
    }
    let second = Gateway::start(named("site/b", " --takeover"));
    let (status, run) = first.end();
    assert_eq!(status.code(), Some(10), "{}", run.err);
    for _ in 0..2 {
        let error = refuse(named("site/a", ""), 1);
        assert!(error.contains("in use by site/b"), "{error}");
    }
    assert_eq!(epoch(), 5, "four starts of the first, one of the second");
    second.terminate();
}

/// The store first closes connections, and then accepts them without ever responding.
#[tokio::test]
async fn it_waits_for_a_store_that_does_not_answer_yet_until_a_signal_ends_it() {
    let at = tempdir().unwrap();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut serve = cairn(at.path(), "serve --listen 127.0.0.1:0 --store s3://disks --create disk=1MiB");
    serve.env("AWS_ACCESS_KEY_ID", "x").env("AWS_SECRET_ACCESS_KEY", "x").env("AWS_REGION", "us-east-1");
    serve.env("AWS_ENDPOINT_URL", format!("http://{}", silent.local_addr().unwrap()));
    serve.env("CAIRN_STORE__CREATE_BUCKET", "true");
    let mut gateway = Process::spawn("cairn serve", &mut serve.into());
    for _ in 0..3 {
        drop(connection(&silent, &mut gateway).await);
    }
    let _asked = connection(&silent, &mut gateway).await;
    gateway.signal(Signal::TERM);
    let (status, said) = (gateway.exit().await, gateway.output());
    assert!(status.success(), "{status}: {said}");
    assert!(!said.lines().any(|line| line.starts_with("listening on ")), "{said}");
}

/// Starts a gateway on a store that prevents the release of the lease: a directory is in the place of the
/// head.
fn gateway_that_cannot_close(at: &Path, close_timeout: &str) -> Gateway {
    let mut serve = cairn(at, "serve --listen 127.0.0.1:0 --create disk=1MiB");
    serve.env("CAIRN_VOLUMES__CLOSE_TIMEOUT", close_timeout).env("CAIRN_LEASE__TTL", "1day");
    let gateway = Gateway::start(serve);
    let volumes: Vec<_> = std::fs::read_dir(at.join("cairn-data/volume")).unwrap().collect();
    let [Ok(volume)] = &volumes[..] else { panic!("{volumes:?}") };
    let head = volume.path().join("head");
    std::fs::remove_file(&head).unwrap();
    std::fs::create_dir(&head).unwrap();
    gateway
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let at = tempdir().unwrap();
    let mut gateway = gateway_that_cannot_close(at.path(), "1day");
    gateway.signal(Signal::TERM);
    gateway.wait_for_log("SIGTERM: ");
    gateway.signal(Signal::INT);
    let (status, run) = gateway.end();
    assert_eq!(status.code(), Some(1), "{}", run.err);
    assert!(run.err.contains("second SIGINT: "), "{}", run.err);
}

#[test]
fn volumes_that_are_not_closed_in_time_are_reported() {
    let at = tempdir().unwrap();
    let mut gateway = gateway_that_cannot_close(at.path(), "1s");
    gateway.signal(Signal::TERM);
    let (status, run) = gateway.end();
    assert_eq!(status.code(), Some(1), "{}", run.err);
    assert!(run.err.contains("not closed cleanly: disk"), "{}", run.err);
}

/// Returns the body of the response to a GET, which must have this status.
fn get(address: &str, path: &str, status: u16) -> String {
    let mut stream = TcpStream::connect(address).expect("it accepts");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
    text.split_once("\r\n\r\n").expect("it has a head").1.to_owned()
}

#[test]
fn metrics_health_and_volumes_over_http() {
    let at = tempdir().unwrap();
    let line = "serve --listen 127.0.0.1:0 --admin 127.0.0.1:0 --create disk=1MiB";
    let mut gateway = Gateway::start(cairn(at.path(), line));
    while !gateway.lines.last().is_some_and(|line| line.starts_with("metrics and health: ")) {
        assert!(gateway.read_line(), "{:?}", gateway.lines);
    }
    let last = gateway.lines.last().expect("there is one");
    let address = last.split("http://").nth(1).and_then(|url| url.strip_suffix("/metrics")).expect("a URL");
    get(address, "/health/live", 200);
    let ready: serde_json::Value = serde_json::from_str(&get(address, "/health/ready", 200)).unwrap();
    assert_eq!(ready["ready"], true);
    succeed(at.path(), &format!("health http://{address}/health/ready"));
    assert!(fail(at.path(), &format!("health http://{address}/nowhere"), 1).contains("404"));
    assert!(get(address, "/metrics", 200).contains("\ncairn_volume_size_bytes{volume=\"disk\"} 1048576\n"));
    let volumes: serde_json::Value = serde_json::from_str(&get(address, "/api/v1/volumes", 200)).unwrap();
    let [disk] = &volumes.as_array().unwrap()[..] else { panic!("{volumes}") };
    assert_eq!((&disk["name"], &disk["size_bytes"]), (&"disk".into(), &1_048_576.into()));
    assert_eq!((&disk["open"]["state"], &disk["open"]["clients"]), (&"serving".into(), &0.into()));
    gateway.terminate();
}

/// A day of the calendar: year, month, day.
type Day = (i32, u8, u8);

/// Writes a key and its chain to a PEM file: a certificate and its authority, which expire on these days.
fn write_chain(path: &Path, certificate: Day, authority: Day) {
    let params = |(year, month, day): Day| {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, month, day);
        params
    };
    let mut issuer = params(authority);
    issuer.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(issuer, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let signed = params(certificate).signed_by(&key, &issuer).unwrap();
    std::fs::write(path, signed.pem() + &issuer.pem() + &key.serialize_pem()).unwrap();
}

/// The alert about a certificate needs the first expiry in the chain, of the files as they were last read.
#[test]
fn the_expiry_of_the_certificate_is_a_metric_that_follows_a_renewal() {
    let at = tempdir().unwrap();
    let (pem, config) = (at.path().join("pem"), at.path().join("cairn.toml"));
    let settings = |tls: &str| std::fs::write(&config, format!("[volumes]\ncreate = [\"disk=1MiB\"]\n{tls}"));
    write_chain(&pem, (2040, 1, 2), (2041, 3, 4));
    settings(&format!("[tls]\nmode = \"allowed\"\ncertificate = {pem:?}\nkey = {pem:?}\n")).unwrap();
    let line = "serve --listen 127.0.0.1:0 --admin 127.0.0.1:0 --config cairn.toml";
    let mut gateway = Gateway::start(cairn(at.path(), line));
    while !gateway.lines.last().is_some_and(|line| line.starts_with("metrics and health: ")) {
        assert!(gateway.read_line(), "{:?}", gateway.lines);
    }
    let last = gateway.lines.last().expect("there is one");
    let url = last.split("http://").nth(1).and_then(|url| url.strip_suffix("/metrics"));
    let address = url.expect("a URL").to_owned();
    let expiry = || {
        let text = get(&address, "/metrics", 200);
        let name = "cairn_tls_certificate_expiry_timestamp_seconds ";
        text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned)
    };
    let reload = |gateway: &mut Gateway| {
        gateway.log.clear();
        gateway.signal(Signal::HUP);
        gateway.wait_for_log("settings reloaded: ");
    };
    // 2 January 2040, in seconds since 1970.
    assert_eq!(expiry().as_deref(), Some("2209075200"));
    write_chain(&pem, (2040, 1, 2), (2039, 6, 1));
    assert_eq!(expiry().as_deref(), Some("2209075200"), "the old certificate is still in use");
    reload(&mut gateway);
    assert_eq!(expiry().as_deref(), Some("2190499200"), "1 June 2039, when the authority expires");
    settings("").unwrap();
    reload(&mut gateway);
    assert_eq!(expiry(), None, "without TLS");
    gateway.terminate();
}

#[test]
fn a_requested_admin_address_in_use_is_an_error() {
    let at = tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error =
        fail(at.path(), &format!("serve --listen 127.0.0.1:0 --admin {address} --create disk=1MiB"), 1);
    assert!(error.contains(&address) && error.contains("in use"), "{error}");
}

/// Regardless of other arguments, standard output carries the bytes of a client, and the addresses are
/// logged.
#[test]
fn standard_output_carries_only_the_clients_bytes() {
    let at = tempdir().unwrap();
    let line = "serve --stdio --listen 127.0.0.1:0 --admin 127.0.0.1:0 --create disk=1MiB";
    let mut serve = cairn(at.path(), line);
    serve.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = serve.spawn().expect("it starts");
    let mut out = child.stdout.take().expect("it is piped");
    let mut greeting = [0; 18];
    out.read_exact(&mut greeting).expect("it greets");
    // NBDMAGIC, IHAVEOPT, and the flags for fixed newstyle and no zeroes.
    assert_eq!(greeting, *b"NBDMAGICIHAVEOPT\0\x03", "{:?}", String::from_utf8_lossy(&greeting));
    drop(child.stdin.take());
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).expect("it ends");
    assert_eq!(rest, b"", "{:?}", String::from_utf8_lossy(&rest));
    let mut log = String::new();
    child.stderr.take().expect("it is piped").read_to_string(&mut log).expect("it logs UTF-8");
    assert!(child.wait().expect("it is our child").success(), "{log}");
    assert!(log.contains("listening on nbd://127.0.0.1:"), "{log}");
}

/// One of two settings would be ignored, or would reject every client. This is reported before anything is
/// opened.
#[test]
fn contradictory_settings_are_a_usage_error() {
    let at = tempdir().unwrap();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let pem = at.path().join("pem");
    std::fs::write(&pem, pair.cert.pem() + &pair.signing_key.serialize_pem()).unwrap();
    let pem = pem.to_str().unwrap();
    let tls = [("TLS__CERTIFICATE", pem), ("TLS__KEY", pem)];
    for (variables, names) in [
        (
            [("TLS__MODE", "required"), ("SERVER__OLDSTYLE", "127.0.0.1:0=disk")],
            ["server.oldstyle", "tls.mode"],
        ),
        ([("TLS__MODE", "off"), ("TLS__SUBJECTS", "disk=CN=vm")], ["tls.subjects", "tls.mode"]),
        ([("LEASE__TTL", "1s"), ("LEASE__HEAD_INTERVAL", "1m")], ["lease.head_interval", "lease.ttl"]),
    ] {
        let mut serve = cairn(at.path(), "serve --listen 127.0.0.1:0 --create disk=1MiB");
        for (name, value) in variables.iter().chain(&tls) {
            serve.env(format!("CAIRN_{name}"), value);
        }
        let error = refuse(serve, 2);
        assert!(names.iter().all(|name| error.contains(name)), "{error}");
    }
    assert!(!at.path().join("cairn-data").exists(), "no volume was made");
}
