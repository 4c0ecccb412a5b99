//! The table of settings: every key with its type, default, allowed range and meaning.
//!
//! The one place where they are named: the structs, the reading of them and the reference come from it.

use std::time::Duration;

use super::error::Errors;
use super::kind::{Any, Bound, Kind};
use super::layers::{Layers, Sources};
use super::size::Size;

/// A setting as it is documented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Section of the file.
    pub section: &'static str,
    /// Key within the section.
    pub key: &'static str,
    /// Type.
    pub kind: &'static str,
    /// Default, as it is written; may be empty.
    pub default: String,
    /// Allowed values; empty if the type says it all.
    pub range: String,
    /// What it does.
    pub meaning: String,
}

macro_rules! settings {
    ($($(#[doc = $about:literal])+ $section:ident: $Section:ident {
        $($(#[doc = $meaning:literal])+ $key:ident: $Kind:ty = $default:expr, $bound:expr;)+
    })+) => {
        /// Every setting, resolved. Made by [`super::load`].
        #[derive(Clone, Debug)]
        pub struct Config {
            $($(#[doc = $about])+ pub $section: $Section,)+
            pub(super) sources: Sources,
        }

        $($(#[doc = $about])+
        #[derive(Clone, Debug)]
        pub struct $Section {
            $($(#[doc = $meaning])+ pub $key: $Kind,)+
        })+

        /// Every setting, in the order of the reference.
        #[must_use]
        pub fn reference() -> Vec<Setting> {
            vec![$($(Setting {
                section: stringify!($section),
                key: stringify!($key),
                kind: <$Kind as Kind>::NAME,
                default: <$Kind as Kind>::show(&$default),
                range: Bound::<$Kind>::show(&$bound),
                meaning: [$($meaning.trim()),+].join(" "),
            }),+),+]
        }

        impl Config {
            /// Reads every setting; those that are not there take their default.
            pub(super) fn read(layers: &Layers) -> Result<Self, Errors> {
                let mut errors = Errors::default();
                let mut sources = Sources::default();
                $(let $section = $Section {
                    $($key: layers.read(
                        concat!(stringify!($section), ".", stringify!($key)),
                        $default,
                        &$bound,
                        &mut sources,
                        &mut errors,
                    ),)+
                };)+
                errors.into_result(Self { $($section,)+ sources })
            }
        }
    };
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn milliseconds(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn mib(n: u64) -> Size {
    Size(n << 20)
}

const DAY: Duration = seconds(86_400);

settings! {
    /// The object store.
    store: Store {
        /// Where the volumes are: `file:///path`, `file://./path` or `s3://bucket/prefix`.
        url: String = "file://./cairn-data".to_owned(), Any;
        /// URL of the S3 service, with `http://` or `https://`; without it the AWS SDK's standard chain
        /// decides (`AWS_ENDPOINT_URL`, profile).
        endpoint: String = String::new(), Any;
        /// Region of the bucket; without it the AWS SDK's standard chain decides.
        region: String = String::new(), Any;
        /// Name the bucket in the path and not in the host's name, as MinIO needs it.
        path_style: bool = false, Any;
        /// Make the bucket at the start where it is absent.
        create_bucket: bool = false, Any;
        /// When a start races the store, to see whether it heeds conditions: `once`, until the object
        /// `probe/passed` says that it passed, or `always`.
        probe: String = "once".to_owned(), &["once", "always"][..];
        /// Requests to the store at a time, for reads, for commits and for their chunks each; background work
        /// gets a quarter as many.
        concurrency: u32 = 64, 1..=4096;
        /// Time to connect to the S3 service.
        connect_timeout: Duration = seconds(5), milliseconds(100)..=seconds(300);
        /// Time for one attempt at a request, without that for its body.
        request_timeout: Duration = seconds(10), milliseconds(100)..=seconds(600);
        /// Time for which a body may stand still.
        stall_timeout: Duration = seconds(5), milliseconds(100)..=seconds(600);
        /// Slowest rate per second at which a body may move.
        minimum_rate: Size = mib(1), Size(1024)..=Size(1 << 40);
        /// How long a write or flush waits for the store before it fails; its data is kept and sent on.
        deadline: Option<Duration> = None, seconds(1)..=DAY;
        /// How long a read waits for the store before it fails.
        read_deadline: Option<Duration> = Some(seconds(60)), seconds(1)..=DAY;
        /// Longest pause before the first retry; doubles with each further one.
        retry_base: Duration = milliseconds(100), milliseconds(1)..=seconds(60);
        /// Longest pause between two attempts.
        retry_cap: Duration = seconds(5), milliseconds(1)..=seconds(600);
        /// How long objects that nothing names any more are kept.
        deletion_grace: Duration = seconds(3600), seconds(0)..=seconds(30 * 86_400);
        /// How often all objects are counted while nothing is written; else one LIST a minute.
        census_interval: Option<Duration> = Some(seconds(3600)), seconds(60)..=seconds(30 * 86_400);
    }

    /// The NBD server.
    server: Server {
        /// Where to listen: `ADDRESS:PORT` or `unix:PATH`, several at once.
        listen: Vec<String> = vec!["127.0.0.1:10809".to_owned()], Any;
        /// Where to serve clients that know oldstyle only: `ADDRESS=EXPORT`, several at once; all get that
        /// export.
        oldstyle: Vec<String> = Vec::new(), Any;
        /// How long a client may take for its part of the handshake.
        handshake_timeout: Duration = seconds(10), milliseconds(100)..=seconds(600);
        /// Connections at a time; further ones are closed at once.
        connections: u32 = 1024, 1..=65_536;
        /// Of these, connections that are kept for Unix sockets, so that clients over TCP lock out nobody on
        /// this machine; at most half of them are.
        connections_reserved: u32 = 16, 0..=65_536;
        /// Connections at a time from one address of TCP; the addresses of an IPv6 network of 64 bits count
        /// as one.
        connections_per_address: u32 = 512, 1..=65_536;
        /// How long a connection may rest without a command before it is closed; by default for ever, since a
        /// machine may have nothing to read or write for days.
        idle_timeout: Option<Duration> = None, seconds(1)..=seconds(30 * 86_400);
        /// Requests of one connection that are not yet answered.
        requests_in_flight: u32 = 256, 1..=65_536;
        /// Payload of such requests and their replies, of one connection.
        bytes_in_flight: Size = mib(64), mib(64)..=Size(2 << 30);
        /// Payload of such requests and their replies, of all connections together. Half of it is shared out
        /// among `server.connections`, so that each has some of its own; the other half is for those that
        /// come first.
        total_bytes_in_flight: Size = mib(256), mib(128)..=Size(1 << 40);
        /// How long a client may stop within a request, or stop reading replies, before its connection is
        /// closed.
        stall_timeout: Duration = seconds(60), milliseconds(100)..=seconds(3600);
        /// How long commands in flight are waited for on SIGTERM, and clients to leave whose volume was taken
        /// over.
        drain_timeout: Duration = seconds(10), seconds(0)..=seconds(3600);
        /// What clients get for commands after SIGTERM: `refuse`, an error that says why, or `hang-up`,
        /// nothing, so that one that connects again sends them to the successor.
        farewell: String = "refuse".to_owned(), &["refuse", "hang-up"][..];
        /// Unix socket where a successor gets the listening sockets, and where one that starts looks for a
        /// predecessor.
        handover: String = String::new(), Any;
    }

    /// Encryption, and who may use which export.
    tls: Tls {
        /// Whether clients may use TLS, or must.
        mode: String = "off".to_owned(), &["off", "allowed", "required"][..];
        /// PEM file with the server's certificate, and those between it and its authority.
        certificate: String = String::new(), Any;
        /// PEM file with the key of the certificate.
        key: String = String::new(), Any;
        /// PEM file with the authorities of clients; if given, every client that uses TLS must have a
        /// certificate of theirs.
        client_authorities: String = String::new(), Any;
        /// `EXPORT=SUBJECT`, such as `disk=O=Example, CN=vm-1`: an export that is named here is for these
        /// subjects alone.
        subjects: Vec<String> = Vec::new(), Any;
    }

    /// Memory.
    cache: Cache {
        /// Clean pages kept in memory, of all volumes together.
        clean: Size = mib(256), mib(1)..=Size(1 << 50);
        /// Written data that the store does not hold yet, of all volumes together; at the bound writes are
        /// slowed.
        dirty: Size = mib(128), mib(1)..=Size(1 << 40);
        /// Read ahead of a sequential reader; 0 for none.
        read_ahead: Size = mib(8), Size(0)..=Size(1 << 30);
        /// Largest single GET where pages lie side by side.
        fetch: Size = mib(1), Size(65_536)..=mib(32);
    }

    /// When written data is made durable without a FLUSH.
    commit: Commit {
        /// Written data is committed when it is older.
        max_age: Duration = seconds(5), milliseconds(10)..=DAY;
        /// How much longer that may wait for a chunk that is filling in sequence.
        chunk_wait: Duration = seconds(3), seconds(0)..=seconds(3600);
        /// Largest record of the journal; only a command that alone needs more makes a larger one, of less
        /// than two chunks.
        max_bytes: Size = mib(16), mib(1)..=mib(256);
        /// Commits on their way to the store at a time.
        in_flight: u32 = 8, 1..=64;
    }

    /// When the journal is folded into a checkpoint.
    journal: Journal {
        /// The journal is folded from this size on. Writes wait before it passes twice this size.
        max_bytes: Size = mib(256), mib(1)..=Size(64 << 30);
        /// The journal is folded from so many records on. Writes wait before it passes twice as many.
        max_records: u32 = 4096, 1..=1_048_576;
        /// Greatest age of its oldest record.
        max_age: Duration = seconds(300), seconds(1)..=seconds(30 * 86_400);
        /// Chunks that a fold holds in memory at once.
        fold_bytes: Size = mib(32), mib(1)..=Size(16 << 30);
    }

    /// Who may write a volume.
    lease: Lease {
        /// How long a gateway that fell silent keeps others waiting.
        ttl: Duration = seconds(30), seconds(1)..=DAY;
        /// Least time between two updates of a volume's head.
        head_interval: Duration = seconds(1), milliseconds(10)..=seconds(60);
        /// Take volumes from whoever holds them, without waiting to see whether that gateway lives. Meant for
        /// one start by hand: gateways that are restarted with it take a volume from each other again and
        /// again.
        takeover: bool = false, Any;
        /// Stop a volume whose lease is over because it could not be renewed; else reads and writes go on,
        /// and FLUSH waits.
        strict: bool = false, Any;
        /// Name of this gateway in the lease, at most 200 bytes. Give it a name that it keeps across restarts
        /// and that no other gateway has: then it does not wait for a lease that it left itself. By default
        /// host name and process id, for which it waits.
        holder: String = String::new(), Any;
    }

    /// Which volumes are served.
    volumes: Volumes {
        /// `NAME=SIZE` of volumes to make where they are absent and to open at the start.
        create: Vec<String> = Vec::new(), Any;
        /// Names of volumes to open at the start; they must be there.
        open: Vec<String> = Vec::new(), Any;
        /// Chunk size of volumes that are made; a power of two.
        chunk_size: Size = mib(4), Size(65_536)..=mib(32);
        /// A volume opened for a client is closed when no client has used it for so long.
        idle_timeout: Duration = seconds(60), seconds(0)..=DAY;
        /// Volumes open at a time.
        maximum: u32 = 256, 1..=65_536;
        /// How old the list of volumes that clients see may be.
        catalogue_age: Duration = seconds(5), seconds(0)..=seconds(3600);
        /// How long closing the volumes may take on SIGTERM: commit, checkpoint, release of the lease.
        close_timeout: Duration = seconds(60), seconds(1)..=DAY;
    }

    /// The admin server: metrics, health and volumes over HTTP.
    admin: Admin {
        /// Where it listens: `ADDRESS:PORT`, `unix:PATH` or `none`. Where the default is taken, none.
        listen: String = "127.0.0.1:9180".to_owned(), Any;
        /// Unix socket for the gateway's own user alone (mode 0600), where all of the API is served without a
        /// token: a path, or `none`. By default `admin.sock` in `/run/cairn` for root, in
        /// `$XDG_RUNTIME_DIR/cairn` for others; further gateways have `admin-2.sock` and so on; none where
        /// `admin.listen` is `none`.
        socket: String = String::new(), Any;
        /// File with the bearer token for all but metrics and health at `admin.listen`; without it nothing is
        /// changed there, and only this machine reads more than those.
        token_file: String = String::new(), Any;
    }

    /// The log, on standard error.
    log: Log {
        /// What is logged; directives such as `info,cairn::store=debug` too.
        level: String = "info".to_owned(), Any;
        /// For people or for machines.
        format: String = "human".to_owned(), &["human", "json"][..];
    }
}
