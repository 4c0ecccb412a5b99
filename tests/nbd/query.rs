//! `cairn nbd size`, `list` and `info`, with servers of other programs.

use serde_json::Value;
use tokio::net::TcpListener;

use crate::support::certificates::Authority;
use crate::support::files::noise;
use crate::support::process::{Process, command, free_port, run};
use crate::support::wire::{LIST, REP_ERR_POLICY, Wire, option};

use super::{Files, Other, Served, ends_with};

/// Starts a server of another program on its own TCP port.
async fn at_port(line: &[&str]) -> (Process, String) {
    let port = free_port().to_string();
    let words = line.iter().map(|word| word.replace("{port}", &port)).collect::<Vec<_>>();
    let process = Process::spawn(line[0], &mut command(words));
    let listening = || std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_ok();
    crate::support::process::until("it listens", listening).await;
    (process, port)
}

const NBDKIT: [&str; 5] =
    ["nbdkit", "--foreground", "--exit-with-parent", "--ipaddr=127.0.0.1", "--port={port}"];

#[tokio::test]
#[ignore = "needs QEMU, nbdkit"]
async fn size_is_a_number() {
    for kind in [&["--newstyle"][..], &["--oldstyle"], &["--mask-handshake=0"]] {
        let (_server, port) = at_port(&[&NBDKIT[..], kind, &["memory", "123456789"]].concat()).await;
        assert_eq!(ends_with(0, &["size", "127.0.0.1", &port]).await.stdout, "123456789\n", "{kind:?}");
    }
    let files = Files::new();
    let image = files.sparse("image", 3 << 20);
    let (_server, port) =
        at_port(&["qemu-nbd", "-t", "-f", "raw", "-b", "127.0.0.1", "-p", "{port}", "-x", "disk", &image])
            .await;
    assert_eq!(ends_with(0, &["size", "127.0.0.1", &port, "--export", "disk"]).await.stdout, "3145728\n");
    let unknown = ends_with(1, &["size", "127.0.0.1", &port, "--export", "other"]).await;
    assert!(unknown.stdout.is_empty() && unknown.stderr.contains("other"), "{unknown:?}");
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn list_prints_names() {
    let names = ["exportname=b", "exportname=a", "exportname-list=explicit"];
    let line = [&NBDKIT[..], &["--filter=exportname", "memory", "1M"], &names].concat();
    let (_server, port) = at_port(&line).await;
    assert_eq!(ends_with(0, &["list", "127.0.0.1", &port]).await.stdout, "b\na\n");
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn the_exit_status_of_list_says_why_there_is_no_list() {
    // Oldstyle has no LIST.
    let (_server, port) = at_port(&[&NBDKIT[..], &["--oldstyle", "memory", "1M"]].concat()).await;
    assert!(ends_with(1, &["list", "127.0.0.1", &port]).await.stderr.contains("cannot list"));
    // The policy of this server forbids LIST.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let forbids = async {
        let mut server = Wire::over(listener.accept().await.unwrap().0);
        server.send(b"NBDMAGICIHAVEOPT\x00\x03").await;
        server.expect(b"\x00\x00\x00\x03").await;
        server.expect(option(LIST, b"")).await;
        let reply = [&LIST.to_be_bytes()[..], &REP_ERR_POLICY.to_be_bytes(), b"\x00\x00\x00\x02no"].concat();
        server.send([b"\x00\x03\xe8\x89\x04\x55\x65\xa9", &reply[..]].concat()).await;
    };
    let words = ["list", "127.0.0.1", &port];
    let (asked, ()) = tokio::join!(ends_with(2, &words), forbids);
    assert!(asked.stderr.contains("no"), "{asked:?}");
    // There is no server at all.
    drop(listener);
    ends_with(3, &["list", "127.0.0.1", &port]).await;
}

#[tokio::test]
#[ignore = "needs QEMU, nbdkit"]
async fn every_query_works_by_uri_socket_and_tls() {
    let (files, authority) = (Files::new(), Authority::new());
    let pair = authority.server();
    let both = [std::fs::read(&pair.certificate).unwrap(), std::fs::read(&pair.key).unwrap()].concat();
    let (image, pem) = (files.sparse("image", 1 << 20), files.write("both.pem", &both));
    std::fs::copy(authority.certificate(), files.path("ca-cert.pem")).unwrap();
    let encrypted = Served::encrypted(&["serve", &image, "--certfile", &pem, "--exportname", "disk"]).await;
    let over_tls = encrypted.uri.replace("127.0.0.1", "localhost");
    let over_tls = format!("{over_tls}?tls-certificates={}", files.text(""));
    let server = Other::qemu(&["--export-name=disk", &image]).await;
    let by_socket = server.uri("disk");
    for uri in [
        over_tls.replace("nbds://", "NBDS://"),
        over_tls,
        by_socket.replace("nbd+unix://", "NBD+Unix://"),
        by_socket,
    ] {
        assert_eq!(ends_with(0, &["size", &uri]).await.stdout, "1048576\n", "{uri}");
        assert_eq!(ends_with(0, &["list", &uri]).await.stdout, "disk\n", "{uri}");
        assert!(ends_with(0, &["info", &uri]).await.stdout.contains("size: 1048576"), "{uri}");
    }
    let socket = server.uri("");
    assert_eq!(ends_with(0, &["size", &socket, "--export", "disk"]).await.stdout, "1048576\n");
    // Every query also accepts a host and a port, as in older versions.
    let (_server, port) = at_port(&[&NBDKIT[..], &["memory", "1M"]].concat()).await;
    assert!(ends_with(0, &["info", "127.0.0.1", &port]).await.stdout.contains("size: 1048576"));
}

#[tokio::test]
async fn an_incomplete_server_name_is_a_usage_error() {
    for words in [
        &["size", "host"][..],
        &["list", "host"],
        &["info", "host"],
        &["list", "-"],
        &["size", "nbd://host", "10809"],
        &["size", "nbd://host/disk", "--export", "other"],
        &["list", "http://host"],
    ] {
        ends_with(2, words).await;
    }
}

#[tokio::test]
#[ignore = "needs QEMU, libnbd"]
async fn info_shows_what_the_server_reports() {
    let files = Files::new();
    let image = files.sparse("image", 1 << 20);
    let server = Other::qemu(&["--export-name=disk", "--description=a test", "--read-only", &image]).await;
    let text = ends_with(0, &["info", &server.uri("disk")]).await.stdout;
    for line in [
        "export: \"disk\"",
        "description: a test",
        "size: 1048576 (1.0 MiB)",
        "read-only: yes",
        "contexts: base:allocation",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line:?} in {text}");
    }
    let json = ends_with(0, &["info", "--json", &server.uri("disk")]).await.stdout;
    let (ours, theirs): (Value, Value) = (
        serde_json::from_str(&json).unwrap(),
        serde_json::from_str(&run(&mut command(["nbdinfo", "--json", &server.uri("disk")])).await).unwrap(),
    );
    let theirs = &theirs["exports"][0];
    for (ours, theirs) in [
        (&ours["export"], &theirs["export-name"]),
        (&ours["size"], &theirs["export-size"]),
        (&ours["read_only"], &theirs["is_read_only"]),
        (&ours["block_size"]["minimum"], &theirs["block_size_minimum"]),
        (&ours["block_size"]["preferred"], &theirs["block_size_preferred"]),
        (&ours["block_size"]["maximum"], &theirs["block_size_maximum"]),
        (&ours["contexts"], &theirs["contexts"]),
    ] {
        assert_eq!(ours, theirs, "{json}");
    }
    assert!(ours.get("map").is_none());
}

#[tokio::test]
#[ignore = "needs QEMU, libnbd"]
async fn the_map_equals_that_of_nbdinfo() {
    let files = Files::new();
    let image = files.sparse("image", 8 << 20);
    let file = std::fs::File::options().write(true).open(&image).unwrap();
    for at in [1 << 20, 5 << 20] {
        std::os::unix::fs::FileExt::write_all_at(&file, &noise(5, 300_000), at).unwrap();
    }
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let table = |text: &str| text.lines().map(words).collect::<Vec<_>>();
    let (theirs, ours) = (Other::qemu(&[&image]).await, Served::start(&["serve", &image]).await);
    for uri in [theirs.uri(""), ours.uri.clone()] {
        let expected = run(&mut command(["nbdinfo", "--map", &uri])).await;
        let found = ends_with(0, &["info", "--map", &uri]).await.stdout;
        assert_eq!(table(&found), table(&expected), "{uri}");
        let json = ends_with(0, &["info", "--map", "--json", &uri]).await.stdout;
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["map"].as_array().unwrap().len(), table(&expected).len());
    }
}

#[tokio::test]
async fn an_invalid_uri_is_a_usage_error() {
    for bad in ["disk", "http://host/disk", "nbd://host/?colour=red"] {
        ends_with(2, &["info", bad]).await;
    }
    let nobody = ends_with(1, &["info", "nbd+unix:///?socket=/none"]).await;
    assert!(nobody.stderr.contains("/none"), "{nobody:?}");
}
