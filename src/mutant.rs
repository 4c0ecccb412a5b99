//! Deliberate faults, which show that the tests would find such faults.
//!
//! Only a build with the feature `mutants` can commit one, and only the one that was chosen, by a test for
//! its thread or by the variable `MUTANT` for a program; in every other build [`is`] is the constant `false`,
//! and what hangs on it is not in the program. A mutant changes what Cairn does at one place; nothing that
//! checks knows of it. tests/README.md says what each breaks and how soon that is found.

/// Declares the mutants, with the names by which they are chosen.
macro_rules! mutants {
    ($($(#[$doc:meta])+ $mutant:ident = $name:literal,)+) => {
        /// A deliberate fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant {
            $($(#[$doc])+ $mutant,)+
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$mutant,)+];

            /// What it is called.
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
    /// A commit is answered when it is durable, whether or not those before it are.
    AnsweredOutOfOrder = "answered-out-of-order",
    /// Data is forgotten once a FLUSH of it has failed.
    CleanAfterFailure = "clean-after-failure",
    /// A wait that ends because the volume stopped is taken for success.
    StopIsSuccess = "stop-is-success",
    /// Closing releases the lease without committing.
    ClosedUncommitted = "closed-uncommitted",
    /// A slot that another's record has taken is taken for ours.
    TakenSlotIgnored = "taken-slot-ignored",
    /// A record without an answer is made anew for the same slot.
    SlotRecut = "slot-recut",
    /// A record is sent before the chunk objects that it names are durable.
    RecordBeforeChunks = "record-before-chunks",
    /// A record lists the chunks before the zeros that lie below them.
    ZerosAfterChunks = "zeros-after-chunks",
    /// Of the commits on their way, a read asks the oldest first.
    OldestCommitFirst = "oldest-commit-first",
    /// The parts of sectors at the ends of a TRIM are left alone.
    TrimEdgeDropped = "trim-edge-dropped",
    /// A TRIM leaves dirty blocks above it.
    TrimLeavesBlocks = "trim-leaves-blocks",
    /// A commit may be cut between the two halves of a change.
    ChangeTorn = "change-torn",
    /// A sector that was read for a write in part is used although it has changed since.
    StaleSector = "stale-sector",
    /// Replay does not compare a record with the checksum of the one before it.
    PreviousUnchecked = "previous-unchecked",
    /// Replay goes on behind a free slot.
    GapIgnored = "gap-ignored",
    /// Replay goes on behind a seal.
    SealPassed = "seal-passed",
    /// Replay reads only the log of the checkpoint.
    OneLogReplayed = "one-log-replayed",
    /// An opener does not seal the logs before its own.
    LogUnsealed = "log-unsealed",
    /// An opener does not notice that the volume is deleted while it replays.
    DeletionUnnoticed = "deletion-unnoticed",
    /// An opener serves without an opening record.
    OpeningUnproved = "opening-unproved",
    /// An opener whose bid failed bids again for the newer head, with the checkpoint of the older.
    StaleCheckpoint = "stale-checkpoint",
    /// The head is replaced whatever stands there.
    HeadUnconditional = "head-unconditional",
    /// The head names a root that is not durable yet.
    HeadBeforeRoot = "head-before-root",
    /// A sweep goes on without a root, be it the current one, that the store denies once.
    RootSkipped = "root-skipped",
    /// One answer that an object does not exist is believed.
    AbsenceBelieved = "absence-believed",
    /// A listing ends at its first empty page.
    EmptyPageEnds = "empty-page-ends",
    /// Fewer names are used than objects are made.
    NameReused = "name-reused",
    /// A fold takes data that is newer than its checkpoint.
    FoldsNewer = "folds-newer",
    /// A fold loses the last of several changes of a page.
    FoldEdgeLost = "fold-edge-lost",
    /// A fold takes a map page that a TRIM or a zeroing covers in part for one that it covers whole.
    ZeroReachesTooFar = "zero-reaches-too-far",
    /// A fold takes a map page for zeros throughout although some of its chunks have data.
    ZerosSwallowData = "zeros-swallow-data",
    /// A fold takes a map page that was lost for zeros.
    LostMapPageIsZeros = "lost-map-page-is-zeros",
    /// What was committed during a fold is dropped with what was folded.
    NewerDropped = "newer-dropped",
    /// The page of an older chunk object is cached under the newer one's name.
    OldPageCached = "old-page-cached",
    /// The cache does not tell a chunk's objects apart.
    CachedByOffset = "cached-by-offset",
    /// A fetch that failed gives zeros, which stay in the cache.
    FailureIsZeros = "failure-is-zeros",
    /// An object that is gone reads as zeros.
    MissingIsZeros = "missing-is-zeros",
    /// Fetched pages are not verified.
    TagUnchecked = "tag-unchecked",
    /// What arrives damaged three times counts as damaged at rest, though no two readings are alike.
    FlipsBelieved = "flips-believed",
    /// A fold writes zeros where it could not read, and does not mark them.
    DamageForgotten = "damage-forgotten",
    /// A volume that stopped still serves reads.
    ReadsAfterStop = "reads-after-stop",
    /// Nothing waits for the grace before it is deleted.
    GraceSkipped = "grace-skipped",
    /// The collector does not look whether the epoch is still its own.
    DeletesUnasked = "deletes-unasked",
    /// A fold that a takeover ended deletes what it has made.
    CleansUpWhenFenced = "cleans-up-when-fenced",
    /// Deleting a root does not spare what the next one shares with it.
    SharedDeleted = "shared-deleted",
    /// The sweep does not know which chunk objects the journal names.
    JournalForgotten = "journal-forgotten",
    /// Seals are deleted with the records before them.
    SealsDeleted = "seals-deleted",
    /// The sweep takes the objects of its own epoch for orphans.
    OwnEpochSwept = "own-epoch-swept",
    /// A volume that stops keeps its share of the dirty budget.
    BudgetKept = "budget-kept",
    /// The retries take a PUT without an answer for done.
    TimeoutIsSuccess = "timeout-is-success",
    /// An object that could not be created because one stands there is taken for another's, unread.
    OwnSuccessUnknown = "own-success-unknown",
    /// The store in a directory does not sync what it writes into a file.
    FileUnsynced = "file-unsynced",
    /// The store in a directory does not sync the directory that it gives a name in.
    DirectoryUnsynced = "directory-unsynced",
    /// What is dirty becomes one record, however much it is.
    RecordUnbounded = "record-unbounded",
    /// A strict volume serves reads after its lease is over.
    LeaseOutlived = "lease-outlived",
    /// A write does not wait for the dirty budget.
    DirtyUnbounded = "dirty-unbounded",
    /// A write does not wait although the journal is at its bound.
    JournalUnbounded = "journal-unbounded",
    /// Any number of requests of a class are sent at a time.
    RequestsUnbounded = "requests-unbounded",
    /// A checkpoint that was asked for is not waited for.
    CheckpointUnawaited = "checkpoint-unawaited",
    /// Once disks are in use, a refusal is an error after a few attempts all the same.
    RefusalIsFinal = "refusal-is-final",
    /// A volume that is handed on with chunks that nothing references is said to be swept.
    SupersededUnreported = "superseded-unreported",
    /// A deletion takes the name also from another volume.
    UnboundBlindly = "unbound-blindly",
    /// A name is bound whatever stands under it.
    BoundUnconditionally = "bound-unconditionally",
    /// A deletion by id leaves a free name as it is, so that a creator can still bind it.
    FreeNameKept = "free-name-kept",
    /// A deletion believes one answer that nothing exists under the name that it is to free.
    NameDenied = "name-denied",
    /// A deletion removes the identity, by which a volume is found, before all else.
    IdentityFirst = "identity-first",
    /// A listing fails if one of the volumes cannot be looked up.
    BrokenEndsListing = "broken-ends-listing",
    /// The server answers FLUSH without asking the export.
    FlushNotPassedOn = "flush-not-passed-on",
    /// The server does not pass FUA on.
    FuaNotPassedOn = "fua-not-passed-on",
    /// The server answers a READ that failed with zeros.
    FailedReadIsZeros = "failed-read-is-zeros",
    /// The server mixes up who gets which of two replies.
    RepliesCrossed = "replies-crossed",
}

impl Mutant {
    /// Those that nothing shows but the loss of a machine.
    pub const UNSYNCED: &[Self] = &[Self::FileUnsynced, Self::DirectoryUnsynced];
}

#[cfg(feature = "mutants")]
mod choice {
    use std::cell::Cell;
    use std::sync::OnceLock;

    use super::Mutant;

    /// Names the fault that every thread of a program commits which chose none by itself.
    const VARIABLE: &str = "MUTANT";

    thread_local! {
        static CHOSEN: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Makes this thread commit a fault, or none, from now on.
    pub fn choose(mutant: Option<Mutant>) {
        CHOSEN.set(mutant);
    }

    /// What the environment says. A name that is none is a test that would test nothing.
    fn of_the_program() -> Option<Mutant> {
        static CHOSEN: OnceLock<Option<Mutant>> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let name = std::env::var(VARIABLE).ok()?;
            let named = Mutant::ALL.iter().find(|mutant| mutant.name() == name);
            Some(*named.unwrap_or_else(|| panic!("{VARIABLE} names no mutant: {name}")))
        })
    }

    /// Whether this thread is to commit a fault.
    #[must_use]
    pub fn is(mutant: Mutant) -> bool {
        CHOSEN.get().or_else(of_the_program) == Some(mutant)
    }
}

#[cfg(feature = "mutants")]
pub use choice::{choose, is};

/// Whether a fault is to be committed: never, in this build.
#[cfg(not(feature = "mutants"))]
#[inline]
#[must_use]
pub const fn is(_: Mutant) -> bool {
    false
}
