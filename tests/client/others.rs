//! The client against nbdkit, QEMU and the reference server.

use std::path::PathBuf;

use bytes::Bytes;
use cairn::client::{self, Client, Error, Options, Uri};
use cairn::effect::Durability::{Durable, Volatile};
use cairn::effect::{ZeroSpeed, Zeroing};
use cairn::protocol::negotiate_client::HandshakeError;
use cairn::protocol::{HeaderStyle, OptionCode, TransmissionFlags};

use crate::support::process::{Process, command, free_port, listens_at, until};

const SIZE: u64 = 1 << 20;

/// A server of another program, on a Unix socket in a directory of its own.
pub(super) struct Server {
    _process: Process,
    directory: tempfile::TempDir,
}

impl Server {
    /// Starts a server whose arguments may name `{socket}` and `{image}`, a file of zeros of 1 MiB.
    async fn start(line: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::File::create(path("image")).unwrap().set_len(SIZE).unwrap();
        let fill = |word: &&str| {
            let image = word.replace("{image}", path("image").to_str().unwrap());
            image.replace("{socket}", path("socket").to_str().unwrap())
        };
        let process = Process::spawn(line[0], &mut command(line.iter().map(fill)));
        listens_at(&path("socket")).await;
        Self { _process: process, directory }
    }

    pub(super) async fn nbdkit(arguments: &[&str]) -> Self {
        let line = ["nbdkit", "--foreground", "--exit-with-parent", "--unix", "{socket}"];
        Self::start(&[&line, arguments].concat()).await
    }

    pub(super) async fn qemu(arguments: &[&str]) -> Self {
        let line = ["qemu-nbd", "--persistent", "--shared=4", "--format=raw", "--socket={socket}", "{image}"];
        Self::start(&[&line, arguments].concat()).await
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    pub(super) fn uri(&self, export: &str) -> Uri {
        format!("nbd+unix:///{export}?socket={}", self.socket().display()).parse().unwrap()
    }

    async fn connect(&self) -> Client {
        Client::connect(&self.uri(""), &Options::default()).await.unwrap()
    }
}

/// What every disk of zeros of 1 MiB can do, however old its server.
async fn write_and_read(client: &Client) {
    assert_eq!(client.size_bytes(), SIZE);
    assert!(client.flags().contains(TransmissionFlags::HAS_FLAGS));
    client.write(1000, Bytes::from_static(b"some data"), Volatile).await.unwrap();
    let large = Bytes::from(vec![0x5a; 300_000]);
    client.write(100_000, large.clone(), Volatile).await.unwrap();
    assert_eq!(client.read(998, 13).await.unwrap(), &b"\0\0some data\0\0"[..]);
    assert_eq!(client.read(100_000, 300_000).await.unwrap(), large);
}

/// All that a disk of zeros of 1 MiB should be able to do.
pub(super) async fn exercise(client: &Client) {
    write_and_read(client).await;
    client.flush().await.unwrap();
    client.write_zeroes(1002, 3, Zeroing::Deallocate, ZeroSpeed::Any, Volatile).await.unwrap();
    assert_eq!(client.read(1000, 9).await.unwrap(), &b"so\0\0\0data"[..]);
    client.trim(131_072, 65_536, Volatile).await.unwrap();
    let reads = (0..16_u64).map(|i| client.read(i * 65_536, 65_536));
    let parts = futures::future::try_join_all(reads).await.unwrap();
    assert_eq!(parts.concat().len(), usize::try_from(SIZE).unwrap());
    if client.contexts().is_empty() {
        return;
    }
    let extents = client.allocation(0, SIZE).await.unwrap();
    assert!(extents.iter().map(|extent| extent.length).sum::<u64>() <= SIZE);
    assert!(!extents[0].allocation().contains(cairn::protocol::AllocationFlags::ZERO));
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn nbdkit_with_structured_replies() {
    let server = Server::nbdkit(&["memory", "1M"]).await;
    let client = server.connect().await;
    assert_eq!(client.headers(), HeaderStyle::Structured);
    assert_eq!(client.contexts().len(), 1);
    exercise(&client).await;
    client.disconnect().await;
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn nbdkit_with_simple_replies() {
    let server = Server::nbdkit(&["--no-sr", "memory", "1M"]).await;
    let client = server.connect().await;
    assert_eq!(client.headers(), HeaderStyle::Simple);
    exercise(&client).await;
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn nbdkit_with_oldstyle() {
    let server = Server::nbdkit(&["--oldstyle", "memory", "1M"]).await;
    // It offers FLUSH, and refuses every one with EINVAL where the handshake was oldstyle.
    write_and_read(&server.connect().await).await;
    let listed = client::list(&server.uri(""), &Options::default()).await;
    assert!(matches!(listed, Err(Error::Handshake(HandshakeError::TooOld(OptionCode::List)))), "{listed:?}");
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn nbdkit_without_fixed_newstyle_is_asked_by_export_name() {
    for mask in ["0", "2"] {
        let server = Server::nbdkit(&["--mask-handshake", mask, "memory", "1M"]).await;
        exercise(&server.connect().await).await;
    }
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn nbdkit_fails_commands_and_the_connection_stands() {
    let server =
        Server::nbdkit(&["--filter=error", "memory", "1M", "error-pread=ENOSPC", "error-pread-rate=100%"])
            .await;
    let client = server.connect().await;
    for _ in 0..2 {
        let failed = client.read(0, 512).await;
        assert!(
            matches!(failed, Err(Error::Command { error: cairn::protocol::Error::NoSpc, .. })),
            "{failed:?}"
        );
        client.write(0, Bytes::from_static(b"data"), Volatile).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn nbdkit_lists_and_describes() {
    let names = ["exportname=a", "exportname=b", "exportname-list=explicit"];
    let server = Server::nbdkit(&[&["--filter=exportname", "memory", "1M"], &names[..]].concat()).await;
    let listed = client::list(&server.uri(""), &Options::default()).await.unwrap();
    let names: Vec<_> = listed.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let (export, contexts) = client::info(&server.uri("a"), &Options::default()).await.unwrap();
    assert_eq!((export.disk.size_bytes, contexts.len()), (SIZE, 1));
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn qemu_as_far_as_it_goes() {
    let server = Server::qemu(&["--export-name=disk", "--description=a test"]).await;
    let options = Options::default();
    let client = Client::connect(&server.uri("disk"), &options).await.unwrap();
    assert!(client.headers() >= HeaderStyle::Structured);
    assert_eq!(client.export().description.as_str(), "a test");
    exercise(&client).await;
    let again = client.reconnect().await.unwrap();
    assert_eq!(again.read(1000, 2).await.unwrap(), &b"so"[..]);
    let listed = client::list(&server.uri(""), &options).await.unwrap();
    assert_eq!((listed[0].name.as_str(), listed[0].description.as_str()), ("disk", "a test"));
    let unknown = Client::connect(&server.uri("nothing"), &options).await;
    assert!(matches!(unknown, Err(Error::Handshake(HandshakeError::Refused { .. }))), "{unknown:?}");
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_read_only_export_of_qemu() {
    let server = Server::qemu(&["--read-only"]).await;
    let client = server.connect().await;
    assert!(client.flags().contains(TransmissionFlags::READ_ONLY));
    let refused = client.write(0, Bytes::from_static(b"data"), Volatile).await;
    assert!(matches!(refused, Err(Error::NotAllowed(_))), "{refused:?}");
}

/// Whether a socket listens at a port of this machine. With `-d`, nbd-server ends after a connection that only looks.
fn listens(port: u16) -> bool {
    let listening = format!("0100007F:{port:04X} 00000000:0000 0A");
    std::fs::read_to_string("/proc/net/tcp").unwrap().contains(&listening)
}

#[tokio::test]
#[ignore = "needs nbd-server"]
async fn the_reference_server() {
    let directory = tempfile::tempdir().unwrap();
    let (image, config) = (directory.path().join("image"), directory.path().join("config"));
    std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
    let port = free_port();
    let text = format!(
        "[generic]\nlistenaddr = 127.0.0.1\nport = {port}\nallowlist = true\n\
         [disk]\nexportname = {}\nflush = true\nfua = true\ntrim = true\n",
        image.display()
    );
    std::fs::write(&config, text).unwrap();
    let line = ["nbd-server", "-d", "-C", config.to_str().unwrap()];
    let _process = Process::spawn("nbd-server", &mut command(line));
    until("nbd-server listens", || listens(port)).await;
    let uri: Uri = format!("nbd://127.0.0.1:{port}/disk").parse().unwrap();
    let listed = client::list(&uri, &Options::default()).await.unwrap();
    assert_eq!(listed[0].name.as_str(), "disk");
    let client = Client::connect(&uri, &Options::default()).await.unwrap();
    assert_eq!(client.size_bytes(), SIZE);
    client.write(1000, Bytes::from_static(b"some data"), Durable).await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(client.read(998, 13).await.unwrap(), &b"\0\0some data\0\0"[..]);
    client.disconnect().await;
}
