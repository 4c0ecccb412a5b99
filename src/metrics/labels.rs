//! The values that labels take: closed sets, so that the number of time series is bounded.
//!
//! Knows nothing of the layers that use them. Invariant: `ALL` is in order of declaration, so that a value's
//! discriminant is its index.

/// A closed set of label values.
pub trait Label: Copy + Ord + 'static {
    /// All of them, in order of declaration.
    const ALL: &'static [Self];
    /// The value in the text format.
    fn as_str(self) -> &'static str;
    /// Its place in [`Label::ALL`].
    fn index(self) -> usize;
}

/// Declares a label's values.
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
        /// READ.
        Read = "read",
        /// WRITE.
        Write = "write",
        /// FLUSH.
        Flush = "flush",
        /// TRIM.
        Trim = "trim",
        /// WRITE_ZEROES.
        WriteZeroes = "write_zeroes",
        /// CACHE.
        Cache = "cache",
        /// BLOCK_STATUS.
        BlockStatus = "block_status",
        /// RESIZE, or one that is not known.
        Other = "other",
    }
}

label! {
    /// An error of the transmission phase.
    Errno {
        /// Operation not permitted.
        Perm = "eperm",
        /// Input/output error.
        Io = "eio",
        /// Cannot allocate memory.
        NoMem = "enomem",
        /// Invalid argument.
        Inval = "einval",
        /// No space left on device.
        NoSpc = "enospc",
        /// Value too large.
        Overflow = "eoverflow",
        /// Operation not supported.
        NotSup = "enotsup",
        /// The server is being shut down, or the volume was taken over.
        Shutdown = "eshutdown",
        /// Any other.
        Other = "other",
    }
}

label! {
    /// Where a READ was served, from fast to slow.
    ReadSource {
        /// Changes that are not yet folded, in memory.
        Dirty = "dirty",
        /// Clean pages in memory, or no data at all (holes).
        Memory = "memory",
        /// The page cache on local disk.
        Disk = "disk",
        /// The object store.
        Store = "store",
    }
}

label! {
    /// What a client stood still in.
    Direction {
        /// Sending a request or its payload.
        Requests = "requests",
        /// Reading replies.
        Replies = "replies",
    }
}

label! {
    /// What an object that was put is.
    ObjectKind {
        /// A commit record or a seal.
        Journal = "journal",
        /// A chunk.
        Chunk = "chunk",
        /// A pack.
        Pack = "pack",
        /// A map page.
        Map = "map",
        /// A root or root table.
        Root = "root",
        /// The head.
        Head = "head",
        /// Identity, name, anything else.
        Other = "other",
    }
}

label! {
    /// A cache of clean pages.
    Tier {
        /// In memory.
        Memory = "memory",
        /// On local disk.
        Disk = "disk",
    }
}

label! {
    /// What became of bytes that were read ahead.
    ReadAhead {
        /// A READ asked for them.
        Used = "used",
        /// They were dropped unread.
        Wasted = "wasted",
    }
}

label! {
    /// How a checkpoint ended.
    FoldResult {
        /// Published.
        Done = "done",
        /// Given up; a later one does the work.
        Failed = "failed",
    }
}

label! {
    /// How a client is connected.
    Transport {
        /// TCP.
        Tcp = "tcp",
        /// TCP with TLS.
        Tls = "tls",
        /// A Unix socket.
        Unix = "unix",
    }
}

label! {
    /// Why a handshake ended before transmission.
    HandshakeFailure {
        /// The client asked to end it.
        Aborted = "aborted",
        /// The client took too long.
        Timeout = "timeout",
        /// The client broke the protocol.
        Protocol = "protocol",
        /// The client closed the connection, or it broke.
        Disconnected = "disconnected",
        /// The export could not be had.
        Export = "export",
        /// TLS failed or was refused.
        Tls = "tls",
        /// The bound on connections was reached.
        Limit = "limit",
    }
}

label! {
    /// Why a line of the log was not written.
    LogLoss {
        /// The lines before it were not taken, and there was no room for more.
        Full = "full",
        /// It could not be written: a full disk, a closed pipe.
        Failed = "failed",
        /// Too many like it came.
        Similar = "similar",
    }
}

label! {
    /// A request to the store.
    StoreOperation {
        /// Read.
        Get = "get",
        /// Write.
        Put = "put",
        /// Delete.
        Delete = "delete",
        /// List.
        List = "list",
    }
}

label! {
    /// A class of requests to the store, each with a bound of its own.
    StoreClass {
        /// Reads of clients, and all that has no class of its own.
        Reads = "reads",
        /// Records of the journal and the head.
        Journal = "journal",
        /// Chunk objects that a record will name.
        Uploads = "uploads",
        /// What clients asked to have brought into the cache.
        Ahead = "ahead",
        /// Folding, sweeping, deleting and counting.
        Bulk = "bulk",
    }
}

label! {
    /// How a request to the store ended.
    StoreOutcome {
        /// Success.
        Ok = "ok",
        /// No such object.
        NotFound = "not_found",
        /// A condition did not hold.
        PreconditionFailed = "precondition_failed",
        /// A body was cut short.
        Truncated = "truncated",
        /// The store asked to slow down.
        Throttled = "throttled",
        /// No answer in time.
        Timeout = "timeout",
        /// Connection trouble or a server error.
        Transient = "transient",
        /// Access denied.
        Denied = "denied",
        /// The store refused the request as wrong.
        Rejected = "rejected",
        /// The caller gave it up.
        Cancelled = "cancelled",
    }
}
