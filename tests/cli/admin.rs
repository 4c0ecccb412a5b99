//! Who may do what with a running gateway: its own user at the admin socket, and other users of this machine.

use std::net::TcpStream;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::{TempDir, tempdir};

use super::{Gateway, Run, cairn, fail, refuse, run, succeed};

/// The id of a user other than root.
const NOBODY: u32 = 65_534;

/// Creates a directory for a user who is not root. If the test runs as root, that is another user.
fn home() -> TempDir {
    let at = tempdir().expect("a directory");
    give(at.path());
    at
}

fn give(path: &Path) {
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("root gives away");
    }
}

/// A command that runs the program as such a user, with this runtime directory and without any setting for
/// the admin socket.
fn unprivileged(at: &Path, runtime: Option<&Path>, line: &str) -> Command {
    let mut command = cairn(at, line);
    command.env_remove("CAIRN_ADMIN__LISTEN").env_remove("CAIRN_ADMIN__SOCKET").env_remove("XDG_RUNTIME_DIR");
    if let Some(runtime) = runtime {
        command.env("XDG_RUNTIME_DIR", runtime);
    }
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Creates a runtime directory with this mode.
fn runtime(at: &Path, mode: u32) -> PathBuf {
    let path = at.join("runtime");
    std::fs::DirBuilder::new().mode(0o700).create(&path).expect("a directory");
    give(&path);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("it is ours");
    path
}

/// Starts a gateway with an admin server on TCP. Returns the address of that server.
fn started(command: Command) -> (Gateway, String) {
    let mut gateway = Gateway::start(command);
    loop {
        let last = gateway.lines.last().expect("it has said that it listens");
        let url =
            last.strip_prefix("metrics and health: http://").and_then(|url| url.strip_suffix("/metrics"));
        if let Some(address) = url.map(str::to_owned) {
            return (gateway, address);
        }
        assert!(gateway.read_line(), "{:?}", gateway.lines);
    }
}

/// Sends a request over a stream. Returns the status and the whole response.
fn ask(mut stream: impl std::io::Read + std::io::Write, line: &str, headers: &str) -> (u16, String) {
    write!(stream, "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n")
        .expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no HTTP: {answer}")), answer)
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).mode() & 0o777
}

const SERVE: &str = "serve --listen 127.0.0.1:0 --admin 127.0.0.1:0";

#[test]
fn each_gateway_of_a_user_has_an_admin_socket_by_default() {
    let at = home();
    let runtime = runtime(at.path(), 0o700);
    let start = |store: &str| {
        let line = format!("{SERVE} --store file://./{store} --create disk=1MiB");
        started(unprivileged(at.path(), Some(&runtime), &line)).0
    };
    let (mut first, mut second) = (start("first"), start("second"));
    let sockets = ["admin.sock", "admin-2.sock"].map(|name| runtime.join("cairn").join(name));
    for (gateway, socket) in [&mut first, &mut second].into_iter().zip(&sockets) {
        assert!(gateway.read_line());
        let line = format!("admin socket: cairn volume list --gateway={}", socket.display());
        assert_eq!(gateway.lines.last(), Some(&line));
    }
    assert_eq!(mode(&runtime.join("cairn")), 0o700);
    for socket in &sockets {
        assert_eq!(mode(socket), 0o600, "{}", socket.display());
    }
    let list = |line: &str| {
        let said = run(unprivileged(at.path(), Some(&runtime), line));
        assert_eq!(said.code, Some(0), "{}", said.err);
        said.out
    };
    list("volume create --gateway mine 1MiB");
    let of_second = format!("--gateway={}", sockets[1].display());
    list(&format!("volume create {of_second} yours 1MiB"));
    assert!(list("volume list --gateway").contains("mine"));
    assert!(list(&format!("volume list {of_second}")).contains("yours"));
    // The socket that a killed gateway leaves behind is used again.
    first.signal(Signal::KILL);
    assert!(!first.end().0.success());
    assert!(sockets[0].exists());
    let third = start("third");
    list("volume create --gateway hers 1MiB");
    assert!(at.path().join("third/name/hers").exists());
    third.terminate();
    second.terminate();
    assert!(sockets.iter().all(|socket| !socket.exists()), "the sockets go with their gateways");
}

/// As in a container: the address is not a loopback address, and the operator lets everybody read.
#[test]
fn a_setting_decides_who_reads_beyond_loopback() {
    for (reads, status) in [("false", 403), ("true", 200)] {
        let at = home();
        let line = "serve --listen 127.0.0.1:0 --admin 0.0.0.0:0 --create disk=1MiB";
        let mut command = unprivileged(at.path(), None, line);
        command.env("CAIRN_ADMIN__READ_WITHOUT_TOKEN", reads);
        let (gateway, address) = started(command);
        let address = address.replace("0.0.0.0", "127.0.0.1");
        let asked = |line: &str| ask(TcpStream::connect(&address).expect("it accepts"), line, "");
        let (found, answer) = asked("GET /api/v1/volumes");
        assert_eq!((found, answer.contains("\"disk\"")), (status, status == 200), "{answer}");
        assert_eq!(asked("POST /api/v1/volumes/disk/flush").0, 403);
        let log = gateway.terminate().err;
        assert_eq!(log.contains("only metrics and health"), status == 403, "{log}");
    }
}

/// Without a directory for the socket, or in one where another user could put a socket, disks are served all
/// the same.
#[test]
fn without_an_admin_socket_it_serves_and_says_what_does_not_work() {
    for (mode, why) in
        [(None, "XDG_RUNTIME_DIR"), (Some(0o500), "Permission denied"), (Some(0o777), "not safe")]
    {
        let at = home();
        let runtime = mode.map(|mode| runtime(at.path(), mode));
        let line = format!("{SERVE} --create disk=1MiB");
        let (gateway, _) = started(unprivileged(at.path(), runtime.as_deref(), &line));
        let Run { out, err: log, .. } = gateway.terminate();
        assert!(!out.contains("--gateway"), "{mode:?}: {out}");
        for part in ["no admin socket", "admin.token_file", "admin.socket", why] {
            assert!(log.contains(part), "{mode:?}: no {part} in: {log}");
        }
        assert!(log.contains("is read-only"), "{log}");
    }
}

#[test]
fn users_of_this_machine_can_read_and_only_the_gateways_user_can_change() {
    let at = tempdir().unwrap();
    let socket = at.path().join("private/admin.sock");
    succeed(at.path(), "volume create idle 1MiB");
    let mut serve = cairn(at.path(), &format!("{SERVE} --create disk=1MiB"));
    serve.env("CAIRN_ADMIN__SOCKET", &socket);
    let (mut gateway, address) = started(serve);
    let tcp = |line: &str| ask(TcpStream::connect(&address).expect("it accepts"), line, "");
    for read in ["/", "/metrics", "/health/ready", "/api/v1/volumes", "/api/v1/volumes/idle"] {
        assert_eq!(tcp(&format!("GET {read}")).0, 200, "{read}");
    }
    for change in [
        "DELETE /api/v1/volumes/idle",
        "DELETE /api/v1/volumes/idle?takeover=true",
        "POST /api/v1/volumes/disk/flush",
        "POST /api/v1/volumes/disk/checkpoint",
        "POST /api/v1/drain",
    ] {
        let (status, answer) = tcp(change);
        assert!(status == 403 && answer.contains("admin.socket"), "{change}: {answer}");
    }
    assert!(at.path().join("cairn-data/name/idle").exists());
    assert_eq!((mode(&socket), mode(&at.path().join("private"))), (0o600, 0o700));
    let unix = |line: &str| ask(UnixStream::connect(&socket).expect("it accepts"), line, "").0;
    assert_eq!(unix("DELETE /api/v1/volumes/idle"), 204);
    assert_eq!(unix("POST /api/v1/volumes/disk/flush"), 204);
    assert_eq!(unix("POST /api/v1/drain"), 202);
    let (status, run) = gateway.end();
    assert!(status.success(), "{}", run.err);
}

/// A Unix socket at `admin.listen` has the same mode. With a token it requires that token, because it may be
/// behind a proxy.
#[test]
fn only_its_user_can_use_an_admin_server_at_a_unix_socket() {
    let at = tempdir().unwrap();
    let (socket, token) = (at.path().join("admin.sock"), at.path().join("token"));
    std::fs::write(&token, "correct-horse-battery\n").unwrap();
    let line = format!("serve --listen 127.0.0.1:0 --create disk=1MiB --admin unix:{}", socket.display());
    let unix = |headers: &str| {
        let stream = UnixStream::connect(&socket).expect("it accepts");
        ask(stream, "POST /api/v1/volumes/disk/flush", headers).0
    };
    let gateway = Gateway::start(cairn(at.path(), &line));
    assert_eq!((mode(&socket), unix("")), (0o600, 204));
    gateway.terminate();
    let mut serve = cairn(at.path(), &line);
    serve.env("CAIRN_ADMIN__TOKEN_FILE", &token);
    let gateway = Gateway::start(serve);
    assert_eq!(mode(&socket), 0o600);
    assert_eq!((unix(""), unix("Authorization: bearer correct-horse-battery\r\n")), (401, 204));
    gateway.terminate();
}

/// An open volume is deleted neither by its own gateway nor by a command beside it. The program prints the
/// message of the gateway.
#[test]
fn volume_commands_reach_a_gateway_over_its_admin_socket() {
    let at = tempdir().unwrap();
    let at = at.path();
    let socket = at.join("admin.sock");
    let mut serve = cairn(at, "serve --listen 127.0.0.1:0 --create disk=1MiB");
    serve.env("CAIRN_ADMIN__SOCKET", &socket);
    let gateway = Gateway::start(serve);
    let by = format!("--gateway={}", socket.display());
    let made = succeed(at, &format!("volume create {by} more 2MiB --chunk-size 64KiB --json"));
    let made: serde_json::Value = serde_json::from_str(&made).expect("--json prints JSON");
    assert_eq!((&made["size_bytes"], &made["chunk_bytes"]), (&2_097_152.into(), &65_536.into()));
    for line in ["volume list", "volume list --json", "volume info disk", "volume info more --json"] {
        let (by_gateway, in_store) = (succeed(at, &format!("{line} {by}")), succeed(at, line));
        assert_eq!(by_gateway, in_store, "{line}");
    }
    assert!(fail(at, &format!("volume delete disk {by}"), 1).contains("disk is open in this gateway"));
    assert!(
        fail(at, &format!("volume delete disk {by} --takeover"), 1).contains("disk is open in this gateway")
    );
    assert!(fail(at, "volume delete disk", 1).contains("in use by"), "the store's lease is respected");
    assert!(fail(at, &format!("volume info none {by}"), 1).contains("no volume named \"none\""));
    assert!(fail(at, &format!("volume info a/b {by}"), 2).contains("not a volume name"));
    assert!(fail(at, &format!("volume create {by} bad 513"), 2).contains("512"));
    assert_eq!(succeed(at, &format!("volume delete more {by}")), "deleted more\n");
    assert!(fail(at, "volume info more", 1).contains("no volume named \"more\""));
    // The setting also determines the path.
    let mut list = cairn(at, "volume list --gateway");
    list.env("CAIRN_ADMIN__SOCKET", &socket);
    let Run { code, out, err } = run(list);
    assert!(code == Some(0) && out.contains("disk"), "{out}{err}");
    gateway.terminate();
    let gone = fail(at, &format!("volume list {by}"), 1);
    assert!(gone.contains("gateway at unix:") && gone.contains("No such file"), "{gone}");
}

#[test]
fn a_requested_admin_socket_that_cannot_be_opened_is_an_error() {
    let at = tempdir().unwrap();
    let open = at.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
    for (socket, why) in [(open.join("s"), "not safe"), (at.path().join("a/b/s"), "No such file")] {
        let mut serve = cairn(at.path(), "serve --listen 127.0.0.1:0 --create disk=1MiB");
        serve.env("CAIRN_ADMIN__SOCKET", &socket);
        let error = refuse(serve, 1);
        assert!(error.contains("admin.socket") && error.contains(why), "{error}");
    }
    assert!(!at.path().join("cairn-data").exists(), "no volume was made");
}
