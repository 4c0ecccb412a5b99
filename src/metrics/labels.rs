//! The values of labels. They are closed sets, which limits the number of time series.
//!
//! Must not know the layers that use them. Invariant: [`Label::ALL`] is in order of declaration, so the
//! discriminant of a value is its index.

/// A closed set of label values.
pub trait Label: Copy + Ord + 'static {
    /// All values, in order of declaration.
    const ALL: &'static [Self];
    /// The value as it appears in the text format.
    fn as_str(self) -> &'static str;
    /// Index of the value in [`Label::ALL`].
    fn index(self) -> usize;
}

/// Declares a label and its values.
macro_rules! label {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $value:ident = $text:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$doc])* $value,)*
        }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$value),*];
            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)*
                }
            }
            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// An NBD command.
    Command {
        /// READ: read a range.
        Read = "read",
        /// WRITE: write a range.
        Write = "write",
        /// FLUSH: make completed writes durable.
        Flush = "flush",
        /// TRIM: discard a range.
        Trim = "trim",
        /// WRITE_ZEROES: make a range read as zeros.
        WriteZeroes = "write_zeroes",
        /// CACHE: prefetch a range.
        Cache = "cache",
        /// BLOCK_STATUS: report the allocation of a range.
        BlockStatus = "block_status",
        /// RESIZE or an unknown command.
        Other = "other",
    }
}

label! {
    /// An error value of the transmission phase.
    Errno {
        /// EPERM: operation not permitted.
        Perm = "eperm",
        /// EIO: input/output error.
        Io = "eio",
        /// ENOMEM: cannot allocate memory.
        NoMem = "enomem",
        /// EINVAL: invalid argument.
        Inval = "einval",
        /// ENOSPC: no space left on device.
        NoSpc = "enospc",
        /// EOVERFLOW: value too large.
        Overflow = "eoverflow",
        /// ENOTSUP: operation not supported.
        NotSup = "enotsup",
        /// ESHUTDOWN: the server is shutting down, or the volume was taken over.
        Shutdown = "eshutdown",
        /// Any other value.
        Other = "other",
    }
}

label! {
    /// Where the data of a READ came from, from fast to slow.
    ReadSource {
        /// Changes in memory that are not folded yet.
        Dirty = "dirty",
        /// Clean pages in memory, or holes, which need no data.
        Memory = "memory",
        /// The page cache on local disk.
        Disk = "disk",
        /// The object store.
        Store = "store",
    }
}

label! {
    /// The direction in which a client made no progress.
    Direction {
        /// The client stopped sending a request or its payload.
        Requests = "requests",
        /// The client stopped reading replies.
        Replies = "replies",
    }
}

label! {
    /// The kind of an object that was written.
    ObjectKind {
        /// A commit record or a seal.
        Journal = "journal",
        /// A chunk of the disk.
        Chunk = "chunk",
        /// A pack, which holds changed blocks of many chunks.
        Pack = "pack",
        /// A page of the map, or an overlay.
        Map = "map",
        /// A root or a root table.
        Root = "root",
        /// The head of the volume.
        Head = "head",
        /// An identity, a name, or anything else.
        Other = "other",
    }
}

label! {
    /// Whether stored blocks are in use.
    Share {
        /// A read can return them.
        Live = "live",
        /// Newer blocks have replaced them.
        Garbage = "garbage",
    }
}

label! {
    /// The kind of work that a checkpoint does in addition to what clients wrote.
    Work {
        /// Chunks are rewritten whole, because many of their blocks lie in packs.
        Consolidate = "consolidate",
        /// Blocks are moved, because most of their pack is no longer in use.
        Relocate = "relocate",
        /// Chunks of a clone are rewritten as its own, because other volumes store them.
        Adopt = "adopt",
    }
}

label! {
    /// A cache of clean pages.
    Tier {
        /// The cache in memory.
        Memory = "memory",
        /// The cache on local disk.
        Disk = "disk",
    }
}

label! {
    /// What happened to bytes that were read ahead.
    ReadAhead {
        /// A READ used them.
        Used = "used",
        /// They were dropped without being used.
        Wasted = "wasted",
    }
}

label! {
    /// How a checkpoint ended.
    FoldResult {
        /// The checkpoint was published.
        Done = "done",
        /// The checkpoint was abandoned; a later one does its work.
        Failed = "failed",
    }
}

label! {
    /// The transport of a connection.
    Transport {
        /// TCP without TLS.
        Tcp = "tcp",
        /// TLS over any kind of stream.
        Tls = "tls",
        /// A Unix socket, or any other stream that is local to this machine.
        Unix = "unix",
    }
}

label! {
    /// Why a connection ended before transmission.
    HandshakeFailure {
        /// The client sent ABORT.
        Aborted = "aborted",
        /// The client took too long.
        Timeout = "timeout",
        /// The client violated the protocol.
        Protocol = "protocol",
        /// The client disconnected, or the connection failed.
        Disconnected = "disconnected",
        /// The export was not available.
        Export = "export",
        /// The TLS handshake failed, or TLS was refused.
        Tls = "tls",
        /// The limit on connections was reached.
        Limit = "limit",
    }
}

label! {
    /// Why a log line was not written.
    LogLoss {
        /// The buffer was full because earlier lines were not written in time.
        Full = "full",
        /// Writing failed, for example because of a full disk or a closed pipe.
        Failed = "failed",
        /// Too many similar lines were logged.
        Similar = "similar",
    }
}

label! {
    /// An operation of the store.
    StoreOperation {
        /// Read an object.
        Get = "get",
        /// Write an object.
        Put = "put",
        /// Delete an object.
        Delete = "delete",
        /// List objects.
        List = "list",
    }
}

label! {
    /// A class of requests to the store. Each class has its own limit on concurrent requests.
    StoreClass {
        /// Reads by clients, and every request that has no other class.
        Reads = "reads",
        /// Writes of journal records and of the head.
        Journal = "journal",
        /// Uploads of chunk objects that a record will reference.
        Uploads = "uploads",
        /// Reads that bring data into the cache because a client asked for it.
        Ahead = "ahead",
        /// Background work: folding, sweeping, deleting and counting.
        Bulk = "bulk",
    }
}

label! {
    /// What became of the second request to the store that a slow one deserved.
    HedgeResult {
        /// Its answer was used.
        Won = "won",
        /// The answer of the first request was used, or nobody waited for an answer any more.
        Lost = "lost",
        /// It was not sent, because the budget was spent, the class was at its limit, or requests had just
        /// failed.
        Denied = "denied",
    }
}

label! {
    /// How a request to the store ended.
    StoreOutcome {
        /// The request succeeded.
        Ok = "ok",
        /// The object does not exist.
        NotFound = "not_found",
        /// The condition of the request was not met.
        PreconditionFailed = "precondition_failed",
        /// The response body was incomplete.
        Truncated = "truncated",
        /// The store asked for fewer requests.
        Throttled = "throttled",
        /// The store did not answer in time.
        Timeout = "timeout",
        /// The connection failed, or the store reported a server error.
        Transient = "transient",
        /// The store denied access.
        Denied = "denied",
        /// The store rejected the request as invalid.
        Rejected = "rejected",
        /// The caller cancelled the request.
        Cancelled = "cancelled",
    }
}
