//! Converts settings into each layer's options.
//!
//! Owns the mapping, and must not ask the store or the system. Invariant: every mistake that can be found
//! without asking them is found here, and reported with the name and source of the setting.

mod contradictions;
mod socket;
mod tls;

use std::path::PathBuf;
use std::time::Duration;

use super::listeners::Plan;
use super::size::Wanted;
use crate::admin::Token;
use crate::config::{self, Config};
use crate::gateway::Schedule;
use crate::server::{ListenAddress, SocketPermissions, Tls};
use crate::store::probe::{ProbeOptions, When};
use crate::store::retry::{Patience, RetryOptions};
use crate::store::{HedgeOptions, Location};
use crate::volume::format::geometry::Geometry;
use crate::volume::format::head::HolderName;
use crate::volume::format::keys::is_valid_name;
use crate::{server, store, volume};

/// How often to retry a request that the store refuses (credentials, permissions) while an operator is
/// watching: in commands, and in a gateway until it serves.
const REFUSALS: u32 = 3;

/// Time limit for a command that somebody waits for.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);

/// Where the admin socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SocketPlace {
    /// There is none.
    None,
    /// In the runtime directory of this user, at the first free path.
    Default,
    /// At this path.
    At(PathBuf),
}

/// The options of all layers.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) location: Location,
    pub(super) store: store::Options,
    pub(super) server: server::Options,
    pub(super) tls: Option<Tls>,
    pub(super) listeners: Plan,
    /// Unix socket where a successor gets the listening sockets.
    pub(super) handover: Option<PathBuf>,
    /// Whether this gateway ends by closing connections, so that clients reconnect, instead of refusing
    /// commands.
    pub(super) hang_up: bool,
    pub(super) volume: volume::Options,
    pub(super) clean_bytes: u64,
    pub(super) dirty_bytes: u64,
    /// Volumes to create if they do not exist, and to open at the start.
    pub(super) create: Vec<Wanted>,
    /// Volumes to open at the start.
    pub(super) open: Vec<String>,
    /// Whether to take over volumes whose leases have not expired.
    pub(super) takeover: bool,
    pub(super) chunk_bytes: u64,
    pub(super) maximum_open: usize,
    pub(super) idle_timeout: Duration,
    pub(super) catalogue_age: Duration,
    /// Time between two censuses of the store while nothing is written; `None` for no census.
    pub(super) census_interval: Option<Duration>,
    pub(super) close_timeout: Duration,
    /// Which snapshots to take, and how many to keep.
    pub(super) snapshots: Schedule,
    /// Address of the admin server; `None` for no admin server.
    pub(super) admin: Option<ListenAddress>,
    /// Whether it is an error if the admin server cannot listen there, because somebody asked for it.
    pub(super) admin_required: bool,
    pub(super) admin_token: Option<Token>,
    /// Whether everyone who can reach it may read the API without a token.
    pub(super) admin_read_without_token: bool,
    /// Where the admin socket is.
    pub(super) admin_socket: SocketPlace,
}

impl Options {
    /// Converts the settings.
    pub(super) fn of(config: &Config) -> Result<Self, config::Errors> {
        let mut errors = config::Errors::default();
        let location = config.store.url.parse().map_err(|e| config.refuse("store.url", e));
        let location = keep(location, &mut errors);
        let listeners = plan(config, &mut errors);
        let tls = keep(tls::of(config), &mut errors).flatten();
        let create: Vec<Wanted> = parse_each(config, "volumes.create", &config.volumes.create, &mut errors);
        let geometry = Geometry::new(config.volumes.chunk_size.0);
        let geometry = keep(geometry.map_err(|e| config.refuse("volumes.chunk_size", e)), &mut errors);
        check_names(config, &create, &mut errors);
        for Wanted { name, size_bytes } in &create {
            if let Some(Err(why)) = geometry.map(|g| g.check_size(*size_bytes)) {
                errors.0.push(config.refuse("volumes.create", format!("{name}: {why}")));
            }
        }
        errors.0.extend(check_endpoint(config).err());
        if config.lease.holder.len() > HolderName::MAX_BYTES {
            let why = format!("must not be longer than {} bytes", HolderName::MAX_BYTES);
            errors.0.push(config.refuse("lease.holder", why));
        }
        let admin = match config.admin.listen.as_str() {
            "none" => None,
            text => keep(
                text.parse().map_err(|e| config.refuse("admin.listen", format!("{e}, or none"))),
                &mut errors,
            ),
        };
        let snapshots = config.volumes.snapshots.parse().map_err(|e| config.refuse("volumes.snapshots", e));
        let snapshots = keep(snapshots, &mut errors).unwrap_or_default();
        let admin_token = keep(read_token(config), &mut errors).flatten();
        let admin_socket = match config.admin.socket.as_str() {
            "none" => SocketPlace::None,
            "" if config.admin.listen == "none" => SocketPlace::None,
            "" => SocketPlace::Default,
            path => SocketPlace::At(PathBuf::from(path)),
        };
        errors.0.extend(contradictions::of(config));
        match (location, geometry) {
            (Some(location), Some(geometry)) if errors.0.is_empty() => Ok(Self {
                location,
                store: store_options(config),
                server: server_options(config),
                tls,
                listeners,
                handover: given(&config.server.handover).map(PathBuf::from),
                hang_up: config.server.farewell == "hang-up",
                volume: volume_options(config),
                clean_bytes: config.cache.clean.0,
                dirty_bytes: config.cache.dirty.0,
                create,
                open: config.volumes.open.clone(),
                takeover: config.lease.takeover,
                chunk_bytes: geometry.chunk_bytes(),
                maximum_open: count(config.volumes.maximum),
                idle_timeout: config.volumes.idle_timeout,
                catalogue_age: config.volumes.catalogue_age,
                census_interval: config.store.census_interval,
                close_timeout: config.volumes.close_timeout,
                snapshots,
                admin,
                admin_required: config.is_given("admin.listen"),
                admin_token,
                admin_read_without_token: config.admin.read_without_token,
                admin_socket,
            }),
            _ => Err(errors),
        }
    }

    /// Replaces how the store is used by what other settings say, but not where it is.
    pub(super) fn with_store_of(mut self, config: &Config) -> Result<Self, config::Errors> {
        // Other sections do not count here, and a gateway may have set the rest of them elsewhere.
        let mut errors = config::Errors(contradictions::of(config));
        errors.0.retain(|error| match error {
            config::Error::Invalid { key, .. } => key.starts_with("store."),
            config::Error::File { .. } | config::Error::Unknown { .. } => true,
        });
        errors.0.extend(check_endpoint(config).err());
        if !errors.0.is_empty() {
            return Err(errors);
        }
        self.store = store_options(config);
        self.volume.store_deadline = config.store.deadline;
        self.volume.deletion_grace = config.store.deletion_grace;
        Ok(self)
    }

    /// Limits how long to wait for a store that does not answer, because somebody waits for the command.
    pub(super) fn impatient(mut self) -> Self {
        self.store.retry.write = Patience { deadline: Some(COMMAND_PATIENCE), refusals: Some(REFUSALS) };
        self
    }

    /// Returns the names of the volumes to open at the start, without duplicates.
    pub(super) fn configured(&self) -> Vec<String> {
        let mut names: Vec<String> = self.create.iter().map(|w| w.name.clone()).collect();
        names.extend(self.open.iter().cloned());
        names.sort();
        names.dedup();
        names
    }
}

fn check_endpoint(config: &Config) -> Result<(), config::Error> {
    match given(&config.store.endpoint).map(|text| store::s3::endpoint::parse(&text)) {
        Some(Err(why)) => Err(config.refuse("store.endpoint", why)),
        _ => Ok(()),
    }
}

/// Returns where to listen for NBD.
fn plan(config: &Config, errors: &mut config::Errors) -> Plan {
    let listen = parse_each(config, "server.listen", &config.server.listen, errors);
    if config.server.listen.is_empty() {
        errors.0.push(config.refuse("server.listen", "must contain at least one address"));
    }
    let oldstyle = parse_each(config, "server.oldstyle", &config.server.oldstyle, errors);
    let permissions = socket::permissions(config).unwrap_or_else(|refused| {
        errors.0.extend(refused);
        SocketPermissions::default()
    });
    Plan { listen, listen_given: config.is_given("server.listen"), oldstyle, permissions }
}

fn keep<T>(result: Result<T, config::Error>, errors: &mut config::Errors) -> Option<T> {
    result.map_err(|error| errors.0.push(error)).ok()
}

fn parse_each<T: std::str::FromStr<Err: std::fmt::Display>>(
    config: &Config,
    key: &'static str,
    texts: &[String],
    errors: &mut config::Errors,
) -> Vec<T> {
    texts.iter().filter_map(|text| keep(text.parse().map_err(|e| config.refuse(key, e)), errors)).collect()
}

fn check_names(config: &Config, create: &[Wanted], errors: &mut config::Errors) {
    let created = create.iter().map(|wanted| ("volumes.create", &wanted.name));
    let opened = config.volumes.open.iter().map(|name| ("volumes.open", name));
    for (key, name) in created.chain(opened).filter(|(_, name)| !is_valid_name(name)) {
        let why = volume::OpenError::BadName(name.clone());
        errors.0.push(config.refuse(key, why));
    }
    for (n, Wanted { name, .. }) in create.iter().enumerate() {
        if create[..n].iter().any(|other| other.name == *name) {
            errors.0.push(config.refuse("volumes.create", format!("{name:?} is listed twice")));
        }
    }
}

/// Reads the token of the admin server.
fn read_token(config: &Config) -> Result<Option<Token>, config::Error> {
    let Some(path) = given(&config.admin.token_file) else { return Ok(None) };
    let text = std::fs::read_to_string(path).map_err(|e| config.refuse("admin.token_file", e))?;
    text.parse().map(Some).map_err(|e| config.refuse("admin.token_file", e))
}

fn count(n: u32) -> usize {
    usize::try_from(n).expect("32 bits fit a usize")
}

fn given(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn store_options(config: &Config) -> store::Options {
    let of = &config.store;
    store::Options {
        s3: store::S3Options {
            endpoint: given(&of.endpoint),
            region: given(&of.region),
            path_style: of.path_style,
            sign_body: match of.sign_body.as_str() {
                "always" => store::SignBody::Always,
                "never" => store::SignBody::Never,
                _ => store::SignBody::Auto,
            },
            create_bucket: of.create_bucket,
            connect_timeout: of.connect_timeout,
            request_timeout: of.request_timeout,
            minimum_bytes_per_second: of.minimum_rate.0,
            stall_timeout: of.stall_timeout,
            ..store::S3Options::default()
        },
        concurrency: count(of.concurrency),
        retry: RetryOptions {
            base: of.retry_base,
            cap: of.retry_cap,
            read: Patience { deadline: of.read_deadline, refusals: Some(REFUSALS) },
            // A write is repeated until its outcome is known. Whoever waits for it has a deadline of their
            // own.
            write: Patience { deadline: None, refusals: Some(REFUSALS) },
            ..RetryOptions::default()
        },
        hedge: HedgeOptions { percent: of.hedge_percent, ..HedgeOptions::default() },
        probe: Some(ProbeOptions {
            when: if of.probe == "always" { When::Always } else { When::Once },
            ..ProbeOptions::default()
        }),
        ..store::Options::default()
    }
}

fn server_options(config: &Config) -> server::Options {
    let of = &config.server;
    server::Options {
        handshake_timeout: of.handshake_timeout,
        maximum_connections: count(of.connections),
        reserved_connections: count(of.connections_reserved),
        connections_per_address: count(of.connections_per_address),
        idle_timeout: of.idle_timeout,
        in_flight_requests: of.requests_in_flight,
        in_flight_bytes: u32::try_from(of.bytes_in_flight.0).unwrap_or(u32::MAX),
        total_in_flight_bytes: of.total_bytes_in_flight.0,
        stall_timeout: of.stall_timeout,
        drain_timeout: of.drain_timeout,
        ..server::Options::default()
    }
}

fn volume_options(config: &Config) -> volume::Options {
    let Config { store, cache, commit, journal, packs, lease, volumes, .. } = config;
    volume::Options {
        // Each volume has metrics of its own.
        metrics: None,
        holder_name: given(&lease.holder).unwrap_or_else(super::process::name),
        // After a restart, another process may have the same process id. In containers, all of them may.
        holder_is_stable: !lease.holder.is_empty(),
        commit_max_age: commit.max_age,
        commit_chunk_wait: commit.chunk_wait,
        commit_max_bytes: commit.max_bytes.0,
        commits_in_flight: count(commit.in_flight),
        store_deadline: store.deadline,
        journal_max_bytes: journal.max_bytes.0,
        journal_max_records: u64::from(journal.max_records),
        journal_max_age: journal.max_age,
        fold_bytes: journal.fold_bytes.0,
        pack_bytes: packs.max_bytes.0,
        consolidate_percent: u64::from(packs.consolidate_percent),
        relocate_percent: u64::from(packs.rewrite_percent),
        background_percent: u64::from(packs.background_percent),
        lease_ttl: lease.ttl,
        lease_strict: lease.strict,
        head_interval: lease.head_interval,
        deletion_grace: store.deletion_grace,
        undelete: volumes.undelete,
        record_reads: volumes.record_reads,
        read_ahead_bytes: cache.read_ahead.0,
        get_bytes: cache.fetch.0,
        ..volume::Options::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Options, config::Errors> {
        let pairs = pairs.iter().map(|(name, value)| (name.into(), value.into()));
        Options::of(&config::load(None, pairs, []).unwrap())
    }

    /// The defaults of the settings equal the defaults of the layers.
    #[test]
    fn defaults_agree_with_those_of_the_layers() {
        let options = of(&[]).unwrap();
        assert_eq!(options.location, Location::Directory("./cairn-data".into()));
        assert_eq!(format!("{:?}", options.store), format!("{:?}", store::Options::default()));
        let server = server::Options { drain_timeout: options.server.drain_timeout, ..Default::default() };
        assert_eq!(options.server, server);
        let holder_name = options.volume.holder_name.clone();
        assert!(holder_name.ends_with(&format!("/{}", std::process::id())), "{holder_name}");
        let volume = volume::Options { holder_name, ..Default::default() };
        assert_eq!(format!("{:?}", options.volume), format!("{volume:?}"));
        assert!(options.configured().is_empty());
    }

    #[test]
    fn values_that_a_layer_refuses_are_reported_with_their_setting() {
        for (name, value, parts) in [
            ("CAIRN_STORE__URL", "http://x", "store.url = \"http://x\": |s3://bucket/prefix"),
            ("CAIRN_SERVER__LISTEN", "127.0.0.1:1,nowhere", "server.listen = |\"nowhere\"|unix:PATH"),
            ("CAIRN_SERVER__LISTEN", "", "server.listen = \"\": |at least one"),
            ("CAIRN_SERVER__OLDSTYLE", "127.0.0.1:1", "server.oldstyle = |ADDRESS=EXPORT"),
            ("CAIRN_SERVER__OLDSTYLE", "here=disk", "server.oldstyle = |\"here\"|unix:PATH"),
            ("CAIRN_VOLUMES__CREATE", "disk", "volumes.create = \"disk\": |NAME=SIZE"),
            ("CAIRN_VOLUMES__CREATE", "disk=1G", "volumes.create = |1GiB for|1GB for"),
            ("CAIRN_VOLUMES__CREATE", "a/b=1GiB", "volumes.create = |not a volume name"),
            ("CAIRN_VOLUMES__CREATE", "a=1000", "volumes.create = |multiple of 512"),
            ("CAIRN_VOLUMES__CREATE", "a=1GiB,a=2GiB", "volumes.create = |listed twice"),
            ("CAIRN_VOLUMES__OPEN", ".x", "volumes.open = |not a volume name"),
            ("CAIRN_VOLUMES__SNAPSHOTS", "hourly", "volumes.snapshots = \"hourly\": |hourly:N"),
            ("CAIRN_VOLUMES__SNAPSHOTS", "daily:0", "volumes.snapshots = |leave daily out"),
            ("CAIRN_VOLUMES__CHUNK_SIZE", "3MiB", "volumes.chunk_size = \"3MiB\"|power of two"),
            ("CAIRN_ADMIN__LISTEN", "nowhere", "admin.listen = \"nowhere\": |unix:PATH, or none"),
            ("CAIRN_ADMIN__TOKEN_FILE", "/no/such", "admin.token_file = \"/no/such\": |No such file"),
            ("CAIRN_ADMIN__TOKEN_FILE", "/dev/null", "admin.token_file = |at least 16"),
            ("CAIRN_SERVER__SOCKET_MODE", "rw-rw----", "server.socket_mode = \"rw-rw----\": |octal|0660"),
            ("CAIRN_SERVER__SOCKET_MODE", "1660", "server.socket_mode = |octal"),
            ("CAIRN_SERVER__SOCKET_MODE", "0066", "server.socket_mode = |owner"),
            ("CAIRN_SERVER__SOCKET_GROUP", "no-such-group", "server.socket_group = |/etc/group"),
            ("CAIRN_SERVER__SOCKET_GROUP", "4294967295", "server.socket_group = |/etc/group"),
            ("CAIRN_STORE__ENDPOINT", "minio:9000", "store.endpoint = \"minio:9000\"|http://minio:9000 or"),
            ("CAIRN_LEASE__HOLDER", &"x".repeat(201), "lease.holder = |longer than 200 bytes"),
            ("CAIRN_STORE__RETRY_BASE", "10s", "store.retry_base = \"10s\"|store.retry_cap"),
        ] {
            let message = of(&[(name, value)]).unwrap_err().to_string();
            for part in parts.split('|').chain([name]) {
                assert!(message.contains(part), "no {part} in: {message}");
            }
        }
    }

    /// The default name of a gateway does not identify it after a restart.
    #[test]
    fn only_a_configured_holder_name_is_recognised_after_a_restart() {
        assert!(!of(&[]).unwrap().volume.holder_is_stable);
        let named = of(&[("CAIRN_LEASE__HOLDER", "disks/cairn-a-0")]).unwrap().volume;
        assert_eq!((named.holder_name.as_str(), named.holder_is_stable), ("disks/cairn-a-0", true));
    }

    #[test]
    fn configured_volumes_are_those_to_create_and_those_to_open() {
        let options =
            of(&[("CAIRN_VOLUMES__CREATE", "b=1GiB,c=512"), ("CAIRN_VOLUMES__OPEN", "a,b")]).unwrap();
        assert_eq!(options.configured(), ["a", "b", "c"]);
        assert_eq!(options.create[1], Wanted { name: "c".to_owned(), size_bytes: 512 });
    }
}
