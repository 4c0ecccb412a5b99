//! The definition of every metric: name, type, unit, help, labels and buckets.
//!
//! No other file contains the name of a metric. Must not know what is counted where. Invariant: names are
//! distinct, and [`ALL`] contains every metric that Cairn exports.

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A value that only grows.
    Counter,
    /// A value that can rise and fall.
    Gauge,
    /// Observations counted in buckets.
    Histogram,
}

impl Kind {
    /// The name of the type in the text format.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The definition of a metric, as it is documented.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Definition {
    /// Name in the text format. For a histogram, the name without `_bucket`, `_sum` and `_count`.
    pub name: &'static str,
    /// Type of the metric.
    pub kind: Kind,
    /// Unit: `bytes`, `seconds`, or the name of what is counted.
    pub unit: &'static str,
    /// Description in one sentence.
    pub help: &'static str,
    /// Names of the labels.
    pub labels: &'static [&'static str],
    /// Upper bounds of the buckets of a histogram; empty for other types.
    pub buckets: &'static [f64],
}

/// Buckets from a hit in memory (50 µs) to a struggling store (60 s). Object stores usually answer in 5 to
/// 200 ms.
const LATENCY: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64,
    1.28, 2.5, 5.0, 10.0, 30.0, 60.0,
];
/// Buckets for the duration of a fold in seconds. A fold moves up to a whole journal of data.
const FOLD: &[f64] = &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];
/// Buckets for the number of FLUSH commands that one commit answers.
const GROUP: &[f64] = &[0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

const fn counter(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Definition {
    Definition { name, kind: Kind::Counter, unit, help, labels, buckets: &[] }
}

const fn gauge(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Definition {
    Definition { name, kind: Kind::Gauge, unit, help, labels, buckets: &[] }
}

const fn histogram(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    buckets: &'static [f64],
    help: &'static str,
) -> Definition {
    Definition { name, kind: Kind::Histogram, unit, help, labels, buckets }
}

/// Declares each definition as a constant, and [`ALL`] as the list of them.
macro_rules! definitions {
    ($($constant:ident = $definition:expr;)*) => {
        $(pub(super) const $constant: Definition = $definition;)*
        /// All metrics, including those of the process collector.
        pub const ALL: &[Definition] = &[$($constant),*];
    };
}

definitions! {
    BUILD_INFO = gauge("cairn_build_info", "builds", &["version"],
        "Always 1; the label is the version of Cairn.");

    CONNECTIONS = gauge("cairn_connections", "connections", &["transport"], "Open NBD connections.");
    CONNECTIONS_TOTAL = counter("cairn_connections_total", "connections", &["transport"],
        "NBD connections accepted.");
    HANDSHAKE_FAILURES = counter("cairn_handshake_failures_total", "connections", &["transport", "reason"],
        "NBD connections that ended before transmission began, by reason.");
    CONNECTIONS_STALLED = counter("cairn_connections_stalled_total", "connections", &["direction"],
        "NBD connections closed because their client stopped within a request, or stopped reading replies.");
    SERVER_REQUESTS_IN_FLIGHT = gauge("cairn_server_requests_in_flight", "requests", &[],
        "NBD requests read from a connection but not yet answered.");
    SERVER_BYTES_IN_FLIGHT = gauge("cairn_server_bytes_in_flight", "bytes", &[],
        "Payload bytes held for unanswered NBD requests.");

    LOG_LINES_LOST = counter("cairn_log_lines_lost_total", "lines", &["reason"],
        "Log lines that were not written, by reason.");

    REQUESTS = counter("cairn_requests_total", "requests", &["volume", "command"],
        "NBD commands answered with success.");
    REQUEST_BYTES = counter("cairn_request_bytes_total", "bytes", &["volume", "command"],
        "Bytes covered by NBD commands that were answered with success.");
    REQUEST_ERRORS = counter("cairn_request_errors_total", "requests", &["volume", "command", "errno"],
        "NBD commands answered with an error.");
    REQUESTS_IN_FLIGHT = gauge("cairn_requests_in_flight", "requests", &["volume"],
        "NBD commands that the volume is processing.");
    READ_DURATION = histogram("cairn_read_duration_seconds", "seconds", &["volume", "source"], LATENCY,
        "Time to answer a READ, by the slowest source that served a part of it.");
    WRITE_DURATION = histogram("cairn_write_duration_seconds", "seconds", &["volume"], LATENCY,
        "Time to answer a WRITE, TRIM or WRITE_ZEROES.");
    FLUSH_DURATION = histogram("cairn_flush_duration_seconds", "seconds", &["volume"], LATENCY,
        "Time to answer a FLUSH, or the flush of a command with FUA.");

    VOLUME_CLIENTS = gauge("cairn_volume_clients", "connections", &["volume"],
        "NBD connections that use the volume.");
    STORED_BYTES = gauge("cairn_stored_bytes", "bytes", &["volume"],
        "Bytes of all objects of the volume, open or closed, in the store at the last census.");
    CENSUS_TIME = gauge("cairn_census_timestamp_seconds", "seconds", &[],
        "Time at which the last census of the store ended, in seconds since 1970; 0 before the first.");
    SIZE_BYTES = gauge("cairn_volume_size_bytes", "bytes", &["volume"], "Size of the disk.");
    DIRTY_BYTES = gauge("cairn_dirty_bytes", "bytes", &["volume"],
        "Changed bytes that are not part of any commit yet.");
    UNCOMMITTED_BYTES = gauge("cairn_uncommitted_bytes", "bytes", &["volume"],
        "Changed bytes that are not durable in the store: dirty, or in a commit that is still in flight.");
    UNCOMMITTED_AGE = gauge("cairn_oldest_uncommitted_age_seconds", "seconds", &["volume"],
        "Age of the oldest write that is not durable in the store; 0 if there is none.");

    WRITE_THROTTLED = counter("cairn_write_throttled_seconds_total", "seconds", &["volume"],
        "Time that writes waited because dirty bytes, commits in flight or the journal reached a bound.");

    COMMITS = counter("cairn_commits_total", "commits", &["volume"], "Commit records made durable.");
    COMMIT_BYTES = counter("cairn_commit_bytes_total", "bytes", &["volume"],
        "Bytes of commit records made durable.");
    COMMITS_IN_FLIGHT = gauge("cairn_commits_in_flight", "commits", &["volume"],
        "Commit records that have been cut but are not durable yet.");
    COMMIT_GROUP = histogram("cairn_commit_group_size", "requests", &["volume"], GROUP,
        "FLUSH and FUA commands that one commit answered.");
    COMMIT_DURATION = histogram("cairn_commit_duration_seconds", "seconds", &["volume"], LATENCY,
        "Time from the cut of a commit until it is durable.");
    FOLDS = counter("cairn_folds_total", "folds", &["volume", "result"], "Checkpoints finished, by result.");
    FOLD_DURATION = histogram("cairn_fold_duration_seconds", "seconds", &["volume"], FOLD,
        "Time to make a checkpoint.");
    CHECKPOINT_TIME = gauge("cairn_checkpoint_timestamp_seconds", "seconds", &["volume"],
        "Time of the last checkpoint since the opening, in seconds since 1970; 0 if there was none.");
    JOURNAL_BYTES = gauge("cairn_journal_bytes", "bytes", &["volume"],
        "Bytes of commit records that are not yet folded.");
    JOURNAL_RECORDS = gauge("cairn_journal_records", "records", &["volume"],
        "Commit records that are not yet folded.");
    PUT_BYTES = counter("cairn_put_bytes_total", "bytes", &["volume", "kind"],
        "Bytes of objects uploaded for the volume, by kind of object.");

    DATA_BYTES = gauge("cairn_data_bytes", "bytes", &["volume", "share"],
        "Bytes of blocks in the volume's own chunk objects and packs as of the last checkpoint, by whether \
         they are in use.");
    OVERLAID_BYTES = gauge("cairn_overlaid_bytes", "bytes", &["volume"],
        "Bytes of the disk that overlays of the volume's own map pages locate in packs or zero, as of the \
         last checkpoint.");
    PACKS = gauge("cairn_packs", "packs", &["volume"],
        "Packs of the volume itself that are in use as of the last checkpoint.");
    BACKGROUND_BYTES = counter("cairn_background_bytes_total", "bytes", &["volume", "work"],
        "Bytes that checkpoints rewrote in addition to what clients wrote, by kind of work.");
    FLATTEN_REMAINING = gauge("cairn_flatten_remaining_bytes", "bytes", &["volume"],
        "Bytes that the running flattening of a clone has yet to rewrite, at most; 0 if none is running.");

    SNAPSHOTS = gauge("cairn_snapshots", "snapshots", &["volume"], "Snapshots of the volume.");
    SNAPSHOT_TIME = gauge("cairn_snapshot_timestamp_seconds", "seconds", &["volume"],
        "Time at which the last snapshot was taken, in seconds since 1970; 0 if there is none.");
    SNAPSHOT_FAILURES = counter("cairn_snapshot_failures_total", "failures", &["volume"],
        "Snapshots of the schedule that could not be taken or deleted when they were due.");

    CACHE_HITS = counter("cairn_cache_hits_total", "pages", &["volume", "tier"], "Pages found in a cache.");
    CACHE_MISSES = counter("cairn_cache_misses_total", "pages", &["volume", "tier"],
        "Pages not found in a cache.");
    CACHE_EVICTIONS = counter("cairn_cache_evictions_total", "pages", &["volume", "tier"],
        "Pages evicted from a cache to make room.");
    CACHE_BYTES = gauge("cairn_cache_bytes", "bytes", &["volume", "tier"], "Bytes that a cache holds.");
    READ_AHEAD = counter("cairn_read_ahead_bytes_total", "bytes", &["volume", "result"],
        "Bytes read ahead of a sequential reader, by whether they were used or evicted without being used.");

    WARMED = counter("cairn_warmed_bytes_total", "bytes", &["volume"],
        "Bytes loaded into the cache because an earlier opening read them first, or on request.");
    WARM_REQUESTS = counter("cairn_warm_requests_total", "requests", &["volume"],
        "GETs that loaded these bytes.");

    LEASE_REMAINING = gauge("cairn_lease_remaining_seconds", "seconds", &["volume"],
        "Time until the lease expires unless it is renewed; 0 once it has expired.");
    LEASE_TTL = gauge("cairn_lease_ttl_seconds", "seconds", &["volume"],
        "How long the lease is valid after a renewal; 0 while no lease is held.");
    FENCED = gauge("cairn_fenced", "volumes", &["volume"],
        "1 once another gateway has taken the volume over, otherwise 0.");

    STORE_REQUESTS = counter("cairn_store_requests_total", "requests", &["operation", "outcome"],
        "Requests to the store. Each attempt counts.");
    STORE_RETRIES = counter("cairn_store_retries_total", "requests", &["operation"],
        "Requests to the store that retry a failed one.");
    STORE_HEDGES = counter("cairn_store_hedges_total", "requests", &["operation", "result"],
        "Second requests for slow ones to the store: answered first, sent in vain, or not sent.");
    STORE_BYTES = counter("cairn_store_bytes_total", "bytes", &["operation"],
        "Bytes transferred in the bodies of successful requests.");
    STORE_DURATION = histogram("cairn_store_request_duration_seconds", "seconds", &["operation"], LATENCY,
        "Time of a request to the store, for each attempt.");
    STORE_IN_FLIGHT = gauge("cairn_store_requests_in_flight", "requests", &["operation"],
        "Requests that the store has not answered yet.");
    STORE_WAITING = gauge("cairn_store_requests_waiting", "requests", &["class"],
        "Requests that wait because the limit on concurrent requests of their class is reached.");
    STORE_FAILING = gauge("cairn_store_failing_seconds", "seconds", &[],
        "Time since requests to the store began to fail, with no success since; 0 while they succeed.");

    LIMIT_DIRTY = gauge("cairn_limit_dirty_bytes", "bytes", &[],
        "Bound on changed bytes in memory, of all volumes together (cache.dirty).");
    LIMIT_CLEAN = gauge("cairn_limit_clean_cache_bytes", "bytes", &[],
        "Bound on the cache of clean pages, of all volumes together (cache.clean).");
    LIMIT_CONNECTIONS = gauge("cairn_limit_connections", "connections", &[],
        "Bound on NBD connections (server.connections).");
    LIMIT_VOLUMES = gauge("cairn_limit_open_volumes", "volumes", &[],
        "Bound on volumes that are open at the same time (volumes.maximum).");
    LIMIT_STORE_REQUESTS = gauge("cairn_limit_store_requests", "requests", &[],
        "Bound on concurrent requests to the store, in each class (store.concurrency).");
    LIMIT_JOURNAL_BYTES = gauge("cairn_limit_journal_bytes", "bytes", &[],
        "Size at which a journal is folded (journal.max_bytes); writers wait before it reaches twice that.");
    LIMIT_JOURNAL_RECORDS = gauge("cairn_limit_journal_records", "records", &[],
        "Records at which a journal is folded (journal.max_records); writers wait before twice that many.");
    LIMIT_LEASE = gauge("cairn_limit_lease_seconds", "seconds", &[],
        "Configured duration of a lease (lease.ttl).");
    LIMIT_COMMIT_AGE = gauge("cairn_limit_commit_age_seconds", "seconds", &[],
        "Age at which changes are committed without a FLUSH (commit.max_age).");
    SNAPSHOT_INTERVAL = gauge("cairn_snapshot_interval_seconds", "seconds", &[],
        "Shortest period of the schedule of snapshots (volumes.snapshots); 0 without a schedule.");
    RELOAD_SUCCESSFUL = gauge("cairn_reload_successful", "reloads", &[],
        "1 if the last reload applied its settings and all configured volumes are open, otherwise 0.");
    RELOAD_TIME = gauge("cairn_reload_timestamp_seconds", "seconds", &[],
        "Time at which the settings were last read, in seconds since 1970.");
    CERTIFICATE_EXPIRY = gauge("cairn_tls_certificate_expiry_timestamp_seconds", "seconds", &[],
        "Time at which the server's certificate expires, in seconds since 1970; absent without TLS.");

    PROCESS_CPU = counter("process_cpu_seconds_total", "seconds", &[],
        "Total user and system CPU time spent in seconds.");
    PROCESS_OPEN_FDS = gauge("process_open_fds", "descriptors", &[], "Number of open file descriptors.");
    PROCESS_MAX_FDS = gauge("process_max_fds", "descriptors", &[],
        "Maximum number of open file descriptors.");
    PROCESS_VIRTUAL = gauge("process_virtual_memory_bytes", "bytes", &[], "Virtual memory size in bytes.");
    PROCESS_RESIDENT = gauge("process_resident_memory_bytes", "bytes", &[], "Resident memory size in bytes.");
    PROCESS_START = gauge("process_start_time_seconds", "seconds", &[],
        "Start time of the process since unix epoch in seconds.");
    PROCESS_THREADS = gauge("process_threads", "threads", &[], "Number of OS threads in the process.");
}
