//! Mutants: deliberate faults that show whether the tests find such faults.
//!
//! Owns the list of mutants and the choice of one, and must not know what they break. Only a build with the
//! feature `mutants` contains them. A test chooses a mutant for its thread, and the variable `MUTANT` chooses
//! one for a whole program. In every other build, [`is`] is the constant `false`, so the compiler removes the
//! code behind it. A mutant changes the behaviour of Cairn in one place, and no check knows about it.
//! Invariant: at most one mutant is active in a thread. tests/README.md says what each one breaks and how
//! soon the tests find it.

/// Declares the mutants and the names by which they are chosen.
macro_rules! mutants {
    ($($(#[$doc:meta])+ $mutant:ident = $name:literal,)+) => {
        /// A deliberate fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant {
            $($(#[$doc])+ $mutant,)+
        }

        impl Mutant {
            /// All mutants.
            pub const ALL: &[Self] = &[$(Self::$mutant,)+];

            /// Returns the name by which the mutant is chosen.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$mutant => $name,)+ }
            }
        }
    };
}

mutants! {
    /// A FLUSH is answered before its commit is durable.
    FlushAnsweredEarly = "flush-answered-early",
    /// A FLUSH of several commits is answered when the first of them is durable.
    FlushAnsweredByFirst = "flush-answered-by-first",
    /// A commit is answered when it is durable, even if earlier commits are not.
    AnsweredOutOfOrder = "answered-out-of-order",
    /// Data is dropped after a FLUSH of it has failed.
    CleanAfterFailure = "clean-after-failure",
    /// A wait that ends because the volume has stopped counts as success.
    StopIsSuccess = "stop-is-success",
    /// Closing releases the lease without committing.
    ClosedUncommitted = "closed-uncommitted",
    /// A slot that another writer's record occupies is treated as our own.
    TakenSlotIgnored = "taken-slot-ignored",
    /// A record without an answer is rebuilt with other content for the same slot.
    SlotRecut = "slot-recut",
    /// A record is sent before the chunk objects that it references are durable.
    RecordBeforeChunks = "record-before-chunks",
    /// A record lists the chunks before the zeros that lie below them.
    ZerosAfterChunks = "zeros-after-chunks",
    /// A read searches the commits in flight from the oldest to the newest.
    OldestCommitFirst = "oldest-commit-first",
    /// A TRIM skips the partial sectors at its ends.
    TrimEdgeDropped = "trim-edge-dropped",
    /// A TRIM does not remove the dirty blocks above it.
    TrimLeavesBlocks = "trim-leaves-blocks",
    /// A commit may be split between the two halves of a change.
    ChangeTorn = "change-torn",
    /// A sector that was read for a partial write is used even if it has changed since.
    StaleSector = "stale-sector",
    /// Replay does not compare a record with the checksum of the previous record.
    PreviousUnchecked = "previous-unchecked",
    /// Replay continues after a free slot.
    GapIgnored = "gap-ignored",
    /// Replay continues after a seal.
    SealPassed = "seal-passed",
    /// Replay only reads the log of the checkpoint.
    OneLogReplayed = "one-log-replayed",
    /// An opener does not seal the logs before its own log.
    LogUnsealed = "log-unsealed",
    /// An opener does not notice that the volume is deleted during replay.
    DeletionUnnoticed = "deletion-unnoticed",
    /// An opener serves without an opening record.
    OpeningUnproved = "opening-unproved",
    /// An opener whose bid failed bids again for the newer head, but with the older checkpoint.
    StaleCheckpoint = "stale-checkpoint",
    /// The head is replaced regardless of its current version.
    HeadUnconditional = "head-unconditional",
    /// The head references a root that is not durable yet.
    HeadBeforeRoot = "head-before-root",
    /// A sweep continues without a root, even the current one, if the store reports once that it does not
    /// exist.
    RootSkipped = "root-skipped",
    /// A single answer that an object does not exist is trusted.
    AbsenceBelieved = "absence-believed",
    /// A listing ends at its first empty page.
    EmptyPageEnds = "empty-page-ends",
    /// Fewer names are used than objects are created.
    NameReused = "name-reused",
    /// A fold includes data that is newer than its checkpoint.
    FoldsNewer = "folds-newer",
    /// A fold loses the last of several changes to a page.
    FoldEdgeLost = "fold-edge-lost",
    /// A fold treats a map page that a TRIM or zeroing covers in part as one that it covers whole.
    ZeroReachesTooFar = "zero-reaches-too-far",
    /// A fold treats a map page as all zeros although some of its chunks contain data.
    ZerosSwallowData = "zeros-swallow-data",
    /// A fold treats a lost map page as zeros.
    LostMapPageIsZeros = "lost-map-page-is-zeros",
    /// After a fold, data that was committed meanwhile is dropped together with the folded data.
    NewerDropped = "newer-dropped",
    /// A page of an older chunk object is cached under the name of the newer one.
    OldPageCached = "old-page-cached",
    /// The cache does not distinguish the objects of one chunk.
    CachedByOffset = "cached-by-offset",
    /// A failed fetch returns zeros, which stay in the cache.
    FailureIsZeros = "failure-is-zeros",
    /// A missing object reads as zeros.
    MissingIsZeros = "missing-is-zeros",
    /// Fetched pages are not verified.
    TagUnchecked = "tag-unchecked",
    /// Data that arrives damaged three times counts as damaged at rest, even if no two reads are alike.
    FlipsBelieved = "flips-believed",
    /// A fold writes zeros where it could not read, without marking them as damaged.
    DamageForgotten = "damage-forgotten",
    /// A stopped volume still serves reads.
    ReadsAfterStop = "reads-after-stop",
    /// Objects are deleted without waiting for the grace period.
    GraceSkipped = "grace-skipped",
    /// The collector does not check that the epoch is still its own.
    DeletesUnasked = "deletes-unasked",
    /// A fold that a takeover ended deletes the objects that it created.
    CleansUpWhenFenced = "cleans-up-when-fenced",
    /// Deleting a root also deletes what the next root shares with it.
    SharedDeleted = "shared-deleted",
    /// The sweep does not know which chunk objects the journal references.
    JournalForgotten = "journal-forgotten",
    /// Seals are deleted together with the records before them.
    SealsDeleted = "seals-deleted",
    /// The sweep treats the objects of its own epoch as orphans.
    OwnEpochSwept = "own-epoch-swept",
    /// A stopped volume keeps its share of the dirty budget.
    BudgetKept = "budget-kept",
    /// A retry treats a PUT without an answer as done.
    TimeoutIsSuccess = "timeout-is-success",
    /// If an object could not be created because it exists, it counts as another writer's, without being
    /// read.
    OwnSuccessUnknown = "own-success-unknown",
    /// The directory store does not sync the content of a new file.
    FileUnsynced = "file-unsynced",
    /// The directory store does not sync the directory that contains a new name.
    DirectoryUnsynced = "directory-unsynced",
    /// All dirty data becomes one record, however large.
    RecordUnbounded = "record-unbounded",
    /// A strict volume serves reads after its lease has expired.
    LeaseOutlived = "lease-outlived",
    /// A write does not wait for the dirty budget.
    DirtyUnbounded = "dirty-unbounded",
    /// A write does not wait although the journal has reached its limit.
    JournalUnbounded = "journal-unbounded",
    /// The number of concurrent requests of a class is not limited.
    RequestsUnbounded = "requests-unbounded",
    /// A requested checkpoint is not waited for.
    CheckpointUnawaited = "checkpoint-unawaited",
    /// A refusal is an error after a few attempts, even when disks are in use.
    RefusalIsFinal = "refusal-is-final",
    /// A volume that is handed over with unreferenced chunks is reported as swept.
    SupersededUnreported = "superseded-unreported",
    /// A deletion removes the name even if it refers to another volume.
    UnboundBlindly = "unbound-blindly",
    /// A name is bound regardless of what exists under it.
    BoundUnconditionally = "bound-unconditionally",
    /// A deletion by id leaves a free name unchanged, so that a creator can still bind it.
    FreeNameKept = "free-name-kept",
    /// A deletion trusts a single answer that the name to be freed does not exist.
    NameDenied = "name-denied",
    /// A deletion removes the identity, by which a volume is found, before everything else.
    IdentityFirst = "identity-first",
    /// A listing fails if one of its volumes cannot be looked up.
    BrokenEndsListing = "broken-ends-listing",
    /// The server answers FLUSH without asking the export.
    FlushNotPassedOn = "flush-not-passed-on",
    /// The server does not pass FUA to the export.
    FuaNotPassedOn = "fua-not-passed-on",
    /// The server answers a failed READ with zeros.
    FailedReadIsZeros = "failed-read-is-zeros",
    /// The server swaps the recipients of two replies.
    RepliesCrossed = "replies-crossed",
}

impl Mutant {
    /// The mutants that only show when a machine loses power.
    pub const UNSYNCED: &[Self] = &[Self::FileUnsynced, Self::DirectoryUnsynced];
}

#[cfg(feature = "mutants")]
mod choice {
    use std::cell::Cell;
    use std::sync::OnceLock;

    use super::Mutant;

    /// The variable that chooses a mutant for all threads that have not chosen one themselves.
    const VARIABLE: &str = "MUTANT";

    thread_local! {
        static CHOSEN: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Activates a mutant in this thread, or none.
    pub fn choose(mutant: Option<Mutant>) {
        CHOSEN.set(mutant);
    }

    /// Returns the mutant that the environment chooses. An unknown name is a panic, because the test would
    /// test nothing.
    fn of_the_program() -> Option<Mutant> {
        static CHOSEN: OnceLock<Option<Mutant>> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let name = std::env::var(VARIABLE).ok()?;
            let named = Mutant::ALL.iter().find(|mutant| mutant.name() == name);
            Some(*named.unwrap_or_else(|| panic!("{VARIABLE} names no mutant: {name}")))
        })
    }

    /// Returns whether this mutant is active in this thread.
    #[must_use]
    pub fn is(mutant: Mutant) -> bool {
        CHOSEN.get().or_else(of_the_program) == Some(mutant)
    }
}

#[cfg(feature = "mutants")]
pub use choice::{choose, is};

/// Returns whether a mutant is active: never, in this build.
#[cfg(not(feature = "mutants"))]
#[inline]
#[must_use]
pub const fn is(_: Mutant) -> bool {
    false
}
