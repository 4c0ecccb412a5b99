//! Mutants: deliberate faults that show whether the tests would find such a fault.
//!
//! Owns the list of mutants and the choice of the active one. A build with the feature `mutants` commits at
//! most one fault: the one that a test chose for its thread, or that the variable `MUTANT` chose for the
//! whole program. In every other build [`is`] is the constant `false`, and the compiler removes the code that
//! depends on it.
//!
//! Invariants: a mutant is a condition where a rule is kept. What it adds there is one statement or another
//! value, and nothing else in the code exists for its sake. No code that checks results knows about mutants.
//! tests/README.md lists what each mutant breaks and how soon the tests find it.

/// Declares the mutants together with the names that select them.
macro_rules! mutants {
    ($($(#[$doc:meta])+ $mutant:ident = $name:literal,)+) => {
        /// A deliberate fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant {
            $($(#[$doc])+ $mutant,)+
        }

        impl Mutant {
            /// All mutants, in the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$mutant,)+];

            /// The name that selects this mutant in `MUTANT` and in the test suites.
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
    /// Data counts as clean once a FLUSH of it has failed.
    CleanAfterFailure = "clean-after-failure",
    /// A wait that ends because the volume stopped returns success.
    StopIsSuccess = "stop-is-success",
    /// Closing releases the lease without committing.
    ClosedUncommitted = "closed-uncommitted",
    /// A slot that holds another gateway's record is treated as if it held ours.
    TakenSlotIgnored = "taken-slot-ignored",
    /// A record whose PUT was not answered is built again, without its content, for the same slot.
    SlotRecut = "slot-recut",
    /// A record is sent before the chunk objects that it references are durable.
    RecordBeforeChunks = "record-before-chunks",
    /// A record lists the zeros that belong below the chunks once more, after them.
    ZerosAfterChunks = "zeros-after-chunks",
    /// A read searches the commits in flight from the oldest to the newest.
    OldestCommitFirst = "oldest-commit-first",
    /// A checkpoint forgets the snapshot of the root that it replaces.
    SnapshotForgotten = "snapshot-forgotten",
    /// The root table does not say that a clone keeps a snapshot.
    PinLeftOut = "pin-left-out",
    /// A snapshot is deleted although clones keep it.
    PinIgnored = "pin-ignored",
    /// A clone counts as gone while its creator has not made its head yet.
    PinReleasedEarly = "pin-released-early",
    /// A clone counts as gone once the store has denied it once.
    GoneUnconfirmed = "gone-unconfirmed",
    /// A clone counts as one that needs no other volume, whatever its root says.
    UntiedUnread = "untied-unread",
    /// The origins leave the root of a clone although its snapshots need them.
    DetachedEarly = "detached-early",
    /// A map page counts as one that needs no other volume because another version of it needs none.
    OwnPageByNumber = "own-page-by-number",
    /// A volume whose root table cannot be read is deleted as if it had no clones.
    ClonesUnsearched = "clones-unsearched",
    /// The root of a clone references the map pages of its parent as if they were its own.
    OriginUntranslated = "origin-untranslated",
    /// A creator that comes too late deletes its volume, which was opened and renamed meanwhile.
    RenamedUnmade = "renamed-unmade",
    /// A comparison of two snapshots does not report what became zeros.
    DiffMissesZeros = "diff-misses-zeros",
    /// A comparison takes a chunk of a clone for unchanged if the slots of two commits of two volumes agree.
    DiffTrustsBirths = "diff-trusts-births",
    /// A commit that ends with a snapshot comes after it.
    SnapshotBeforeCommit = "snapshot-before-commit",
    /// Commits are added to a segment that ended with a snapshot.
    SegmentReopened = "segment-reopened",
    /// A checkpoint at a snapshot also folds the segment after it.
    SegmentsMixed = "segments-mixed",
    /// An opening ignores the snapshots in the journal.
    SnapshotUnreplayed = "snapshot-unreplayed",
    /// A snapshot is answered while its commit is on its way.
    SnapshotAnsweredEarly = "snapshot-answered-early",
    /// A snapshot may have the name of another.
    SnapshotNameUnchecked = "snapshot-name-unchecked",
    /// The objects of a deleted snapshot are garbage before the head references the table without it.
    SnapshotFreedEarly = "snapshot-freed-early",
    /// The current root counts as replaced when its snapshot is deleted.
    CurrentRootRetired = "current-root-retired",
    /// What a replaced root shares with its parent goes with it.
    ParentSkipped = "parent-skipped",
    /// A new size is answered while its commit is on its way.
    ResizeAnsweredEarly = "resize-answered-early",
    /// What is between the old and the new size is kept, and is there again when the volume grows.
    ResizeUnzeroed = "resize-unzeroed",
    /// An opening ignores the new sizes in the journal.
    ResizeUnreplayed = "resize-unreplayed",
    /// A checkpoint at a new size makes a root of the old size.
    ResizeUnfolded = "resize-unfolded",
    /// A write that waited while the volume became smaller is made beyond its new end.
    ShrinkOvertaken = "shrink-overtaken",
    /// A TRIM ignores the partial sectors at its two ends.
    TrimEdgeDropped = "trim-edge-dropped",
    /// A TRIM leaves the dirty blocks of its range in place, where they hide it.
    TrimLeavesBlocks = "trim-leaves-blocks",
    /// A commit may contain only half of a change.
    ChangeTorn = "change-torn",
    /// A partial write uses the sector that it read even if the sector has changed since.
    StaleSector = "stale-sector",
    /// Replay does not compare a record with the checksum of the record before it.
    PreviousUnchecked = "previous-unchecked",
    /// Replay continues past an empty slot.
    GapIgnored = "gap-ignored",
    /// Replay continues past a seal.
    SealPassed = "seal-passed",
    /// Replay reads only the log that contains the checkpoint.
    OneLogReplayed = "one-log-replayed",
    /// An opener does not seal the logs before its own.
    LogUnsealed = "log-unsealed",
    /// An opener does not notice that the volume is deleted while it replays.
    DeletionUnnoticed = "deletion-unnoticed",
    /// An opener serves without an opening record.
    OpeningUnproved = "opening-unproved",
    /// An opener whose bid for the epoch failed bids again on the newer head, but with the older checkpoint.
    StaleCheckpoint = "stale-checkpoint",
    /// The head is replaced unconditionally.
    HeadUnconditional = "head-unconditional",
    /// The head references a root that is not durable yet.
    HeadBeforeRoot = "head-before-root",
    /// A sweep continues without a root, even the current one, if the store once reports it missing.
    RootSkipped = "root-skipped",
    /// A single answer that an object does not exist is trusted.
    AbsenceBelieved = "absence-believed",
    /// A listing ends at its first empty page.
    EmptyPageEnds = "empty-page-ends",
    /// An object name is used for more than one object.
    NameReused = "name-reused",
    /// A fold includes data that is newer than its checkpoint.
    FoldsNewer = "folds-newer",
    /// A fold loses the last of several changes to a page.
    FoldEdgeLost = "fold-edge-lost",
    /// A fold treats a map page that a TRIM or a zeroing covers in part as covered in full.
    ZeroReachesTooFar = "zero-reaches-too-far",
    /// A fold treats a map page as all zeros although some of its chunks have data.
    ZerosSwallowData = "zeros-swallow-data",
    /// A fold treats a lost map page as zeros.
    LostMapPageIsZeros = "lost-map-page-is-zeros",
    /// Changes committed during a fold are dropped together with the folded ones.
    NewerDropped = "newer-dropped",
    /// A page of a rewritten chunk is cached under the name of its neighbour.
    NeighbourCached = "neighbour-cached",
    /// A block that a fold has put into a new object is found beside its place in the cache.
    MovedAstray = "moved-astray",
    /// A read asks the overlays of a map page from the oldest to the newest.
    OverlaysReversed = "overlays-reversed",
    /// A merge of two overlays loses some of the older one's runs.
    MergeDropsRun = "merge-drops-run",
    /// Where two merged overlays have the same block, the older one wins.
    MergeKeepsOlder = "merge-keeps-older",
    /// The count of a pack's frames in use is too low by one.
    LiveCountLow = "live-count-low",
    /// A chunk that was rewritten whole is cleared from the newest overlay only.
    OverlaysUncleared = "overlays-uncleared",
    /// A block that is moved from a mostly unused pack wins over a newer write of the same checkpoint.
    MoveWins = "move-wins",
    /// A root is published although a pack that it uses was never sent.
    PackUnsent = "pack-unsent",
    /// A pack is deleted with the first root that used it, although the next one uses it too.
    PackSharedDeleted = "pack-shared-deleted",
    /// An overlay is deleted with the first root that referenced it, although the next one references it too.
    OverlaySharedDeleted = "overlay-shared-deleted",
    /// A fold treats a block that a TRIM or a zeroing covers in part as covered in full.
    ZeroTakesBlock = "zero-takes-block",
    /// The tag of a block is valid in the place of its neighbour too.
    TagUnbound = "tag-unbound",
    /// What is cached of a page claims to have blocks that it does not have.
    BitmapLies = "bitmap-lies",
    /// The cache does not distinguish the successive objects of a chunk.
    CachedByOffset = "cached-by-offset",
    /// A fetch that failed returns zeros, which stay in the cache.
    FailureIsZeros = "failure-is-zeros",
    /// A missing object reads as zeros.
    MissingIsZeros = "missing-is-zeros",
    /// Fetched pages are not verified.
    TagUnchecked = "tag-unchecked",
    /// An object that arrives damaged three times counts as damaged at rest, even though no two reads agree.
    FlipsBelieved = "flips-believed",
    /// A fold writes zeros where it could not read, and does not mark them as lost.
    DamageForgotten = "damage-forgotten",
    /// A volume that stopped still serves reads.
    ReadsAfterStop = "reads-after-stop",
    /// Garbage is deleted without waiting for the grace period.
    GraceSkipped = "grace-skipped",
    /// The collector does not check that the epoch is still its own.
    DeletesUnasked = "deletes-unasked",
    /// A fold that a takeover ended deletes the objects that it made.
    CleansUpWhenFenced = "cleans-up-when-fenced",
    /// Deleting a root also deletes the objects that it shares with the next one.
    SharedDeleted = "shared-deleted",
    /// The sweep ignores that the journal references chunk objects.
    JournalForgotten = "journal-forgotten",
    /// What only a snapshot or a replaced root references counts as an orphan.
    KeptRootSkipped = "kept-root-skipped",
    /// Seals are deleted together with the records before them.
    SealsDeleted = "seals-deleted",
    /// The sweep treats objects of its own epoch as orphans.
    OwnEpochSwept = "own-epoch-swept",
    /// A volume that stops keeps its share of the dirty budget.
    BudgetKept = "budget-kept",
    /// The retry layer treats a PUT that was not answered as successful.
    TimeoutIsSuccess = "timeout-is-success",
    /// If an object could not be created because one exists, the existing one is assumed to be another's,
    /// without reading it.
    OwnSuccessUnknown = "own-success-unknown",
    /// The second PUT of a slow record is sent without its condition.
    HedgeUnconditional = "hedge-unconditional",
    /// The second PUT of a slow record counts as successful if its slot is taken, by whatever record.
    HedgeRefusedIsSuccess = "hedge-refused-is-success",
    /// The directory store does not sync the data that it writes to a file.
    FileUnsynced = "file-unsynced",
    /// The directory store does not sync a directory after it creates a name in it.
    DirectoryUnsynced = "directory-unsynced",
    /// All dirty data becomes one record, whatever its size.
    RecordUnbounded = "record-unbounded",
    /// A strict volume serves reads after its lease has expired.
    LeaseOutlived = "lease-outlived",
    /// A write does not wait for the dirty budget.
    DirtyUnbounded = "dirty-unbounded",
    /// A write does not wait when the journal is at its limit.
    JournalUnbounded = "journal-unbounded",
    /// The number of concurrent requests of a class is not limited.
    RequestsUnbounded = "requests-unbounded",
    /// A requested checkpoint is not waited for.
    CheckpointUnawaited = "checkpoint-unawaited",
    /// A refusal by the store is an error after a few attempts, even when disks are in use.
    RefusalIsFinal = "refusal-is-final",
    /// A volume handed on with unreferenced chunks is reported as swept.
    SupersededUnreported = "superseded-unreported",
    /// A deletion frees the name even if it is bound to another volume.
    UnboundBlindly = "unbound-blindly",
    /// A name is bound unconditionally, whatever it is bound to now.
    BoundUnconditionally = "bound-unconditionally",
    /// A deletion by id leaves a free name unchanged, so that a creator can still bind it.
    FreeNameKept = "free-name-kept",
    /// A deletion trusts a single answer that the name it must free does not exist.
    NameDenied = "name-denied",
    /// A renaming frees the old name before the new one is bound.
    OldNameFirst = "old-name-first",
    /// A renaming binds the new name without recording it in the head first.
    RenameUnrecorded = "rename-unrecorded",
    /// An opener does not finish a renaming that was cut short.
    RenameUnfinished = "rename-unfinished",
    /// A renaming frees the old name although it was bound anew since the head was updated.
    OldNameLookedUpLate = "old-name-looked-up-late",
    /// A deleted volume is in use again before its name is bound.
    LiveBeforeNamed = "live-before-named",
    /// The journal of a volume that is kept is sealed, as if the volume were deleted for good.
    SealedAside = "sealed-aside",
    /// A gateway counts the time of a kept volume that another gateway has counted.
    CountedTwice = "counted-twice",
    /// A deletion removes the identity first, although it is the object by which volumes are found.
    IdentityFirst = "identity-first",
    /// A listing fails if one of the volumes cannot be looked up.
    BrokenEndsListing = "broken-ends-listing",
    /// The server answers FLUSH without asking the export.
    FlushNotPassedOn = "flush-not-passed-on",
    /// The server does not pass FUA on.
    FuaNotPassedOn = "fua-not-passed-on",
    /// The server answers a failed READ with zeros.
    FailedReadIsZeros = "failed-read-is-zeros",
    /// The server sends two replies to each other's requests.
    RepliesCrossed = "replies-crossed",
}

impl Mutant {
    /// Mutants that only the loss of a machine (power failure) can reveal.
    pub const UNSYNCED: &[Self] = &[Self::FileUnsynced, Self::DirectoryUnsynced];
}

#[cfg(feature = "mutants")]
mod choice {
    use std::cell::Cell;
    use std::sync::OnceLock;

    use super::Mutant;

    /// Environment variable with the name of the fault for every thread that did not choose one itself.
    const VARIABLE: &str = "MUTANT";

    thread_local! {
        static CHOSEN: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Sets the fault that this thread commits from now on; `None` for no fault.
    pub fn choose(mutant: Option<Mutant>) {
        CHOSEN.set(mutant);
    }

    /// Returns the mutant that the environment variable selects. Panics on an unknown name, because a test
    /// with it would test nothing.
    fn of_the_program() -> Option<Mutant> {
        static CHOSEN: OnceLock<Option<Mutant>> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let name = std::env::var(VARIABLE).ok()?;
            let named = Mutant::ALL.iter().find(|mutant| mutant.name() == name);
            Some(*named.unwrap_or_else(|| panic!("{VARIABLE} names no mutant: {name}")))
        })
    }

    /// Whether this thread commits the fault `mutant`.
    #[must_use]
    pub fn is(mutant: Mutant) -> bool {
        CHOSEN.get().or_else(of_the_program) == Some(mutant)
    }
}

#[cfg(feature = "mutants")]
pub use choice::{choose, is};

/// Whether this thread commits a fault: always `false`, since this build has no mutants.
#[cfg(not(feature = "mutants"))]
#[inline]
#[must_use]
pub const fn is(_: Mutant) -> bool {
    false
}
