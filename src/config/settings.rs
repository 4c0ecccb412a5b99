//! The table of settings: every key with its type, default, allowed range and description.
//!
//! Owns all settings: the structs, the code that reads them and the reference are generated from this table.
//! It must not know where values come from. Invariant: every default is within its range.

use std::time::Duration;

use super::error::Errors;
use super::kind::{Any, Bound, Kind};
use super::layers::{Layers, Sources};
use super::size::Size;

/// The documentation of one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Section of the file.
    pub section: &'static str,
    /// Key within the section.
    pub key: &'static str,
    /// Name of the type.
    pub kind: &'static str,
    /// The default as it is written. May be empty.
    pub default: String,
    /// The allowed values. Empty if the type alone determines them.
    pub range: String,
    /// The description of the setting.
    pub meaning: String,
}

macro_rules! settings {
    ($($(#[doc = $about:literal])+ $section:ident: $Section:ident {
        $($(#[doc = $meaning:literal])+ $key:ident: $Kind:ty = $default:expr, $bound:expr;)+
    })+) => {
        /// All settings with their values. [`super::load`] creates it.
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

        /// Returns all settings, in the order of the reference.
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
            /// Reads every setting. A setting that no source sets gets its default.
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
        /// Where the volumes are stored: `file:///path`, `file://./path` or `s3://bucket/prefix`.
        url: String = "file://./cairn-data".to_owned(), Any;
        /// URL of the S3 service, starting with `http://` or `https://`. If empty, the AWS SDK's standard
        /// chain decides (`AWS_ENDPOINT_URL`, profile).
        endpoint: String = String::new(), Any;
        /// Region of the bucket. If empty, the AWS SDK's standard chain decides.
        region: String = String::new(), Any;
        /// Put the bucket's name in the path of the URL instead of the host name. MinIO needs this.
        path_style: bool = false, Any;
        /// Whether signatures of PUTs cover the bodies, by a SHA-256: `auto` (not over TLS, nor to this
        /// machine), `always` or `never`. Each PUT carries a CRC-32 in any case.
        sign_body: String = "auto".to_owned(), &["auto", "always", "never"][..];
        /// Create the bucket at the start if it does not exist.
        create_bucket: bool = false, Any;
        /// When a start races concurrent PUTs against the store, to check that it honours conditions: `once`,
        /// until the object `probe/passed` records that it passed, or `always`.
        probe: String = "once".to_owned(), &["once", "always"][..];
        /// Largest number of concurrent requests to the store for each of three classes: reads, commits, and
        /// the chunks of commits. Background work may use a quarter of that number.
        concurrency: u32 = 64, 1..=4096;
        /// How long connecting to the S3 service may take.
        connect_timeout: Duration = seconds(5), milliseconds(100)..=seconds(300);
        /// How long one attempt at a request may take, not counting the transfer of its body.
        request_timeout: Duration = seconds(10), milliseconds(100)..=seconds(600);
        /// How long the transfer of a body may stall.
        stall_timeout: Duration = seconds(5), milliseconds(100)..=seconds(600);
        /// Lowest acceptable transfer rate of a body, per second.
        minimum_rate: Size = mib(1), Size(1024)..=Size(1 << 40);
        /// How long a write or a flush waits for the store before it fails. Its data is kept, and Cairn keeps
        /// sending it.
        deadline: Option<Duration> = None, seconds(1)..=DAY;
        /// How long a client's read waits for the store before it fails.
        read_deadline: Option<Duration> = Some(seconds(60)), seconds(1)..=DAY;
        /// Longest pause before the first retry. It doubles with each further retry.
        retry_base: Duration = milliseconds(100), milliseconds(1)..=seconds(60);
        /// Longest pause between two attempts.
        retry_cap: Duration = seconds(5), milliseconds(1)..=seconds(600);
        /// Limit on second requests to a bucket, in percent: a GET for a reader or the PUT of a commit that
        /// takes unusually long is sent again, and the first answer counts. 0 disables this.
        hedge_percent: u32 = 5, 0..=50;
        /// How long objects are kept after nothing references them any more.
        deletion_grace: Duration = seconds(3600), seconds(0)..=seconds(30 * 86_400);
        /// How often all objects are counted and names looked up while nothing is written. Never more than
        /// one LIST a minute on average.
        census_interval: Option<Duration> = Some(seconds(3600)), seconds(60)..=seconds(30 * 86_400);
    }

    /// The NBD server.
    server: Server {
        /// Addresses to listen on: `ADDRESS:PORT` or `unix:PATH`. Several are allowed.
        listen: Vec<String> = vec!["127.0.0.1:10809".to_owned()], Any;
        /// Permissions of the Unix sockets in `server.listen` and `server.oldstyle`, in octal, such as
        /// `0660`. Write permission lets a user connect. If empty, the umask decides.
        socket_mode: String = String::new(), Any;
        /// Group of these sockets: a number, or a name in `/etc/group`. If empty, the system chooses it.
        socket_group: String = String::new(), Any;
        /// Addresses for clients that only know oldstyle negotiation: `ADDRESS=EXPORT`. Several are allowed.
        /// Every client of such an address gets that export.
        oldstyle: Vec<String> = Vec::new(), Any;
        /// How long a client may take to complete the handshake.
        handshake_timeout: Duration = seconds(10), milliseconds(100)..=seconds(600);
        /// Largest number of open connections. Further connections are closed at once.
        connections: u32 = 1024, 1..=65_536;
        /// How many of `server.connections` are reserved for Unix sockets, so that TCP clients cannot lock
        /// out clients on this machine. At most half of all connections are reserved.
        connections_reserved: u32 = 16, 0..=65_536;
        /// Largest number of open connections from one TCP address. The addresses of an IPv6 /64 network
        /// count as one.
        connections_per_address: u32 = 512, 1..=65_536;
        /// How long a connection may stay without a command before it is closed. The default is never,
        /// because an idle machine may not use its disk for days.
        idle_timeout: Option<Duration> = None, seconds(1)..=seconds(30 * 86_400);
        /// Largest number of unanswered requests of one connection.
        requests_in_flight: u32 = 256, 1..=65_536;
        /// Largest total payload of the unanswered requests, and their replies, of one connection.
        bytes_in_flight: Size = mib(64), mib(64)..=Size(2 << 30);
        /// Largest total payload of the unanswered requests, and their replies, of all connections. Half of
        /// it is divided equally among `server.connections`, so that each connection has a share of its own.
        /// The other half is first come, first served.
        total_bytes_in_flight: Size = mib(256), mib(128)..=Size(1 << 40);
        /// How long a client may stop in the middle of a request, or stop reading replies, before its
        /// connection is closed.
        stall_timeout: Duration = seconds(60), milliseconds(100)..=seconds(3600);
        /// After SIGTERM: how long the gateway waits for commands in flight. After a takeover: how long it
        /// waits for the clients of the lost volumes to leave.
        drain_timeout: Duration = seconds(10), seconds(0)..=seconds(3600);
        /// How commands are answered after SIGTERM: `refuse` returns an error that gives the reason;
        /// `hang-up` closes the connection without an answer, so that a client that reconnects repeats them
        /// at the successor.
        farewell: String = "refuse".to_owned(), &["refuse", "hang-up"][..];
        /// Unix socket over which a running gateway passes its listening sockets to its successor. A gateway
        /// that starts looks for a predecessor there.
        handover: String = String::new(), Any;
    }

    /// Encryption, and who may use which export.
    tls: Tls {
        /// Whether clients may use TLS, or must use it.
        mode: String = "off".to_owned(), &["off", "allowed", "required"][..];
        /// PEM file with the server's certificate and any intermediate certificates.
        certificate: String = String::new(), Any;
        /// PEM file with the private key of the certificate.
        key: String = String::new(), Any;
        /// PEM file with the certificate authorities of clients. If set, every client that uses TLS must
        /// present a certificate signed by one of them.
        client_authorities: String = String::new(), Any;
        /// `EXPORT=SUBJECT`, such as `disk=O=Example, CN=vm-1`. Only clients with a listed certificate
        /// subject may use an export that is listed here, and its snapshots.
        subjects: Vec<String> = Vec::new(), Any;
    }

    /// Memory.
    cache: Cache {
        /// Memory for clean pages and the indexes that locate data, for all volumes together.
        clean: Size = mib(256), mib(1)..=Size(1 << 50);
        /// Memory for written data that the store does not hold yet, for all volumes together. At this limit
        /// writes slow down.
        dirty: Size = mib(128), mib(1)..=Size(1 << 40);
        /// How far to read ahead of a sequential reader. 0 disables read-ahead.
        read_ahead: Size = mib(16), Size(0)..=Size(1 << 30);
        /// Largest single GET for adjacent pages.
        fetch: Size = mib(4), Size(65_536)..=mib(32);
    }

    /// When written data is made durable without a FLUSH.
    commit: Commit {
        /// Age at which written data is committed without a FLUSH.
        max_age: Duration = seconds(5), milliseconds(10)..=DAY;
        /// How much longer such a commit may wait for a chunk that is being filled sequentially.
        chunk_wait: Duration = seconds(3), seconds(0)..=seconds(3600);
        /// Largest journal record. Only a single command that needs more produces a larger one, and that
        /// holds less than two chunks of data.
        max_bytes: Size = mib(16), mib(1)..=mib(256);
        /// Largest number of commits that are in flight to the store at the same time.
        in_flight: u32 = 8, 1..=64;
    }

    /// When the journal is folded into a checkpoint.
    journal: Journal {
        /// Size at which the journal is folded into a checkpoint. Writes wait before it exceeds twice this
        /// size.
        max_bytes: Size = mib(256), mib(1)..=Size(64 << 30);
        /// Number of records at which the journal is folded. Writes wait before it exceeds twice this number.
        max_records: u32 = 4096, 1..=1_048_576;
        /// Age of the oldest record at which the journal is folded.
        max_age: Duration = seconds(300), seconds(1)..=seconds(30 * 86_400);
        /// Memory for chunks while a checkpoint is made.
        fold_bytes: Size = mib(32), mib(1)..=Size(16 << 30);
    }

    /// Where small changes are stored, and how much is rewritten to keep space and reads in order.
    packs: Packs {
        /// Size of a pack: an object with changed blocks of any chunks.
        max_bytes: Size = mib(16), Size(64 << 10)..=mib(192);
        /// Share of a chunk, in percent, that lies in packs when the chunk is rewritten as one object.
        consolidate_percent: u32 = 50, 1..=100;
        /// Share of a pack, in percent, that is still in use when its blocks are moved to another pack.
        rewrite_percent: u32 = 30, 0..=90;
        /// Bytes that checkpoints rewrite, in percent of the bytes that clients write. It is exceeded when
        /// garbage would take too much space.
        background_percent: u32 = 125, 0..=1000;
    }

    /// Who may write a volume.
    lease: Lease {
        /// How long a gateway that stops renewing its lease keeps other gateways waiting.
        ttl: Duration = seconds(30), seconds(1)..=DAY;
        /// Time between two updates of a volume's head object, on average. Up to four may follow each other
        /// at once.
        head_interval: Duration = seconds(1), milliseconds(10)..=seconds(60);
        /// Take volumes over without waiting to see whether their holder is still alive. Use it by hand, for
        /// one start: gateways that are restarted with it take a volume from each other again and again.
        takeover: bool = false, Any;
        /// Stop a volume when its lease expires because it could not be renewed. Otherwise reads and writes
        /// continue, and FLUSH waits.
        strict: bool = false, Any;
        /// Name of this gateway in the lease, at most 200 bytes. Choose a name that stays the same across
        /// restarts and that no other gateway uses: then a restarted gateway does not wait for its own old
        /// lease. The default is host name and process id, and a lease with such a name is always waited for.
        holder: String = String::new(), Any;
    }

    /// Which volumes are served.
    volumes: Volumes {
        /// `NAME=SIZE` of volumes to open at the start, and to create first if they do not exist.
        create: Vec<String> = Vec::new(), Any;
        /// Names of volumes to open at the start. They must exist.
        open: Vec<String> = Vec::new(), Any;
        /// Chunk size of new volumes, a power of two.
        chunk_size: Size = mib(4), Size(65_536)..=mib(32);
        /// How long a volume that was opened for a client stays open after its last client has left.
        idle_timeout: Duration = seconds(60), seconds(0)..=DAY;
        /// For how long after a volume was opened the blocks that its clients read are recorded, so that the
        /// next opening loads them at once. 0 disables recording, and loading at an opening.
        record_reads: Duration = seconds(0), seconds(0)..=seconds(3600);
        /// Largest number of open volumes, together with open snapshots.
        maximum: u32 = 256, 1..=65_536;
        /// How old the list of volumes that clients see may be.
        catalogue_age: Duration = seconds(5), seconds(0)..=seconds(3600);
        /// Snapshots to take of each volume that this gateway has open, and how many of each kind to keep,
        /// such as `hourly:24 daily:7 weekly:4 monthly:12`. Empty for none.
        snapshots: String = String::new(), Any;
        /// How long a deleted volume is kept, so that `cairn volume undelete` can bring it back. Gateways
        /// count the time while they run, and delete the volume for good when it is over. 0 does that at
        /// once.
        undelete: Duration = DAY, seconds(0)..=seconds(30 * 86_400);
        /// How long closing the volumes may take after SIGTERM: commit, checkpoint, release of the lease.
        close_timeout: Duration = seconds(60), seconds(1)..=DAY;
    }

    /// The admin server: metrics, health and volumes over HTTP.
    admin: Admin {
        /// Address of the admin server: `ADDRESS:PORT`, `unix:PATH` or `none`. If this setting is left at its
        /// default and the address is in use, the gateway runs without it.
        listen: String = "127.0.0.1:9180".to_owned(), Any;
        /// Path of the admin socket, or `none`: a Unix socket of mode 0600 for the user who runs the gateway,
        /// which serves the whole API without a token. The default is `admin.sock` in `/run/cairn` for root
        /// and in `$XDG_RUNTIME_DIR/cairn` for other users; further gateways use `admin-2.sock` and so on.
        /// The default is `none` if `admin.listen` is `none`.
        socket: String = String::new(), Any;
        /// File with the bearer token for everything but metrics and health at `admin.listen`. Without a
        /// token nothing can be changed there, and only clients on this machine can read more than metrics
        /// and health.
        token_file: String = String::new(), Any;
        /// Let everyone who can reach `admin.listen` see the status page and read the API without a token,
        /// also from other machines. Changes still require the token.
        read_without_token: bool = false, Any;
    }

    /// The log, on standard error.
    log: Log {
        /// What is logged: a level, or directives such as `info,cairn::store=debug`.
        level: String = "info".to_owned(), Any;
        /// `human` for people, `json` for machines.
        format: String = "human".to_owned(), &["human", "json"][..];
    }
}
