//! Deliberate defects, to prove that the simulator finds them.
//!
//! Each names a mistake that would be easy to make; the code it would be made in asks [`is_on`]. Without
//! the feature `sim` the answer is a constant and nothing is left of it.

use std::sync::atomic::{AtomicU8, Ordering};

static ACTIVE: AtomicU8 = AtomicU8::new(u8::MAX);

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Defect {
    /// A journal group is not synced.
    SkipSync,
    /// A group is published when it is written, not when it is synced.
    PublishBeforeDurable,
    /// A record is sealed before the index and the hub have its changes.
    SealBeforeIndex,
    /// An answer without changes does not wait for what it was computed from.
    AnswerFailedCompareAtOnce,
    /// Pages that the older manifest slot reaches are taken again.
    ReusePageTooEarly,
    /// Opening commits to one slot only, and the pages of the other one are taken.
    ReusePageOfOlderSlotAfterReopen,
    /// A commit leaves the last tree of its cut out.
    ForgetShardInManifest,
    /// A journal group is replayed twice.
    ReplayGroupTwice,
    /// Segments that only the older slot needs are used again.
    RecycleByNewerSlotOnly,
    /// Opening begins no session: neither writes what it replayed nor commits.
    NoNewSession,
    /// Opening commits to pages that it did not sync.
    ExposeReplayedUnsynced,
    /// After an unclean stop a keyspace goes on below what it had reserved.
    LoseReserve,
    /// The sweep removes tombstones before the rows that they hide.
    DropTombstoneFirst,
    /// Rows that a tombstone hides linger when it goes.
    LetHiddenLinger,
    /// What lingered and is on its way out of the tree is not known to linger any more.
    ForgetWhatGoes,
    /// A count looks at what is applied.
    CountAtApplied,
    /// A reader takes its views before it loads the visible revision.
    ViewBeforeVisible,
    /// A reader compares with the floor first and pins after.
    PinAfterCheck,
    /// A get without a pin does not look at the floor again.
    TrustUnpinned,
    /// What is deleted stays in the hash index.
    LeaveDeletedHashed,
    /// So does what is overwritten.
    LeaveOverwrittenHashed,
    /// Whoever waits for room keeps the writer: nobody else moves the line.
    WaitInsideWriter,
    /// A Volatile tree that cannot be written fails the checkpoint.
    VolatileErrorFailsCheckpoint,
    /// Pages that a view may look at are given up.
    CutTailUnderView,
    /// A checkpoint commits to pages that it did not sync.
    CommitBeforeSync,
    /// A new journal segment's directory entry is not synced.
    SkipDirectorySync,
    /// Replay leaves leases and tables out.
    ForgetMetaInReplay,
    /// Replay leaves the floor of a shard as it was.
    ForgetFloorInReplay,
    /// A slow watcher goes on behind what did not fit.
    SkipLaggingEvents,
    /// A checksum is not looked at.
    TrustPages,
    /// A change of routes leaves out what was deleted meanwhile: a prefix is brought back over old rows.
    BringBackOverOldRows,
}

/// Every defect.
pub const ALL: [Defect; 31] = [
    Defect::SkipSync,
    Defect::PublishBeforeDurable,
    Defect::SealBeforeIndex,
    Defect::AnswerFailedCompareAtOnce,
    Defect::ReusePageTooEarly,
    Defect::ReusePageOfOlderSlotAfterReopen,
    Defect::ForgetShardInManifest,
    Defect::ReplayGroupTwice,
    Defect::RecycleByNewerSlotOnly,
    Defect::NoNewSession,
    Defect::ExposeReplayedUnsynced,
    Defect::LoseReserve,
    Defect::DropTombstoneFirst,
    Defect::LetHiddenLinger,
    Defect::ForgetWhatGoes,
    Defect::CountAtApplied,
    Defect::ViewBeforeVisible,
    Defect::PinAfterCheck,
    Defect::TrustUnpinned,
    Defect::LeaveDeletedHashed,
    Defect::LeaveOverwrittenHashed,
    Defect::WaitInsideWriter,
    Defect::VolatileErrorFailsCheckpoint,
    Defect::CutTailUnderView,
    Defect::CommitBeforeSync,
    Defect::SkipDirectorySync,
    Defect::ForgetMetaInReplay,
    Defect::ForgetFloorInReplay,
    Defect::SkipLaggingEvents,
    Defect::TrustPages,
    Defect::BringBackOverOldRows,
];

/// Switches one defect on in the whole process, and every other off.
#[cfg(any(test, feature = "sim"))]
pub fn switch(defect: Option<Defect>) {
    ACTIVE.store(defect.map_or(u8::MAX, |defect| defect as u8), Ordering::SeqCst);
}

/// True if the defect is switched on.
#[inline(always)]
pub fn is_on(defect: Defect) -> bool {
    cfg!(any(test, feature = "sim")) && ACTIVE.load(Ordering::Relaxed) == defect as u8
}
