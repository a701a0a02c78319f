//! How an engine is opened.

pub use crate::pace::CompactionPace;
pub use polybolt_engine::Durability;
use std::time::Duration;

/// Who re-creates revisions after a crash in `Batch` durability (R3), and who decides on expiry (S4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Face {
    /// Nobody above: the engine never uses a revision twice that anybody saw, and expires leases itself.
    #[default]
    Standalone,
    /// A log above re-applies from the applied index: nothing is reserved or skipped, and the engine
    /// does nothing by itself that another replica could see.
    Replayed,
}

/// Options of an [`crate::Engine`].
#[derive(Debug, Clone)]
pub struct Options {
    /// When a write counts as durable.
    pub durability: Durability,
    /// Standalone or replayed.
    pub face: Face,
    /// Bytes that write buffers may hold before a checkpoint, all keyspaces together. Default 64 MiB.
    pub buffer_bytes: u64,
    /// Bytes of one journal segment. Default 16 MiB.
    pub segment_bytes: u64,
    /// The most bytes of journal on disk. Default 256 MiB.
    pub journal_bytes: u64,
    /// The longest time between checkpoints while something waits for one. Default 5 s.
    pub checkpoint_interval: Duration,
    /// Bytes kept allocated so that a full disk can be emptied through the engine. Default 16 MiB; 0 is none.
    pub space_reserve_bytes: u64,
    /// Read tree files through mappings (default) or with pread and a bounded cache of this many bytes.
    pub read_cache_bytes: Option<u64>,
    /// The most tree files kept open at once. Default 256.
    pub open_files_max: usize,
    /// How fast what compactions leave behind is taken out.
    pub compaction_pace: CompactionPace,
    /// A leaf is written without its dead rows once they take so many percent of what it holds, or dead rows two thirds of
    /// that of the whole shard, or the quota is nearly used up; 0 is at once. Default 20.
    pub reclaim_percent: u8,
    /// Hash what a compaction is about to forget, and answer `hash_kv` of the last ten compacted revisions
    /// with it (HSH-6). Reads every row once more at each compaction. Default false.
    pub remember_hashes: bool,
    /// A shard that has had so many live keys has a hash index beside the ordered one, for gets of what is newest: 9 to 12
    /// bytes for each of many keys, 112 KiB at least. The put that begins it hashes them all. `u64::MAX` is never.
    /// Default 4096.
    pub hash_index_from: u64,
    /// The most operations in a txn. Default 128.
    pub max_txn_ops: usize,
    /// The largest request, at most 256 MiB. Default 1.5 MiB.
    pub max_request_bytes: u64,
    /// The quota on file bytes, None for no quota. Default None.
    pub quota_bytes: Option<u64>,
    /// The shortest time to live of a lease, in seconds. Default 2.
    pub min_lease_ttl: i64,
    /// How much a lease is extended when its primary changes or restarts (LSE-14). Default 1 s.
    pub lease_extend: Duration,
    /// How often the remaining time of leases that live longer is recorded, so that a restart or a promotion
    /// extends them by less (LSE-16). None (default) is never.
    pub lease_checkpoint_interval: Option<Duration>,
    /// The longest a write waits for room before it is refused. Default 5 s.
    pub admission_timeout: Duration,
    /// The longest a pinned read holds compaction back. Default 10 min.
    pub pin_age_max: Duration,
    /// The most revisions that a pinned read holds compaction back by; each costs its row, and about 24 bytes of
    /// memory. Default 10 million.
    pub pin_revisions_max: u64,
    /// Bytes of events a slow watcher may keep alive before it falls back to history. Default 1 MiB.
    pub watch_buffer_bytes: usize,
    /// Bytes of tree files that the scrub reads in a second, to find damage that nobody has met yet; 0 is no
    /// scrub. Default 4 MiB.
    pub scrub_bytes_per_second: u64,
    /// Bytes of pages that the vacuum moves in a second from the end of a file to where there is room, so that the
    /// file can be made shorter; it slows down while writes need the buffers. 0 is no vacuum but
    /// [`crate::Keyspace::defragment`]. Default 8 MiB.
    pub vacuum_bytes_per_second: u64,
    /// About what it moves in one step. Default 512 KiB.
    pub vacuum_step_bytes: u64,
    /// It takes up a file of which more than so much is free, and leaves half of that. Default 20.
    pub vacuum_free_percent: u8,
    /// And no file of which less than so many bytes are free, but one that is empty. Default 4 MiB.
    pub vacuum_free_bytes_min: u64,
    /// About how many bytes [`crate::Keyspace::defragment`] writes in a second, so that others wait less; 0 is as fast as it can
    /// be. Default 32 MiB.
    pub defragment_bytes_per_second: u64,
    /// Bytes of rows that a change of routes copies in a second, so that others wait less; 0 is as fast as it can be. What
    /// was written meanwhile is copied faster and faster, and all of it if it would take more than a third of `pin_age_max`.
    /// Default 32 MiB.
    pub reshard_bytes_per_second: u64,
    /// Revisions reserved ahead, durably, where a restart may not use one twice that somebody saw and that
    /// is not there any more (R3, R4). Default 100,000.
    pub reserve_ahead: u64,
    /// Open without writing anything.
    pub read_only: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            durability: Durability::Sync,
            face: Face::Standalone,
            buffer_bytes: 64 << 20,
            segment_bytes: 16 << 20,
            journal_bytes: 256 << 20,
            checkpoint_interval: Duration::from_secs(5),
            space_reserve_bytes: 16 << 20,
            read_cache_bytes: None,
            open_files_max: 256,
            compaction_pace: CompactionPace::default(),
            reclaim_percent: 20,
            remember_hashes: false,
            hash_index_from: 4096,
            max_txn_ops: 128,
            max_request_bytes: 1_572_864,
            quota_bytes: None,
            min_lease_ttl: 2,
            lease_extend: Duration::from_secs(1),
            lease_checkpoint_interval: None,
            admission_timeout: Duration::from_secs(5),
            pin_age_max: Duration::from_secs(600),
            pin_revisions_max: 10_000_000,
            watch_buffer_bytes: 1 << 20,
            scrub_bytes_per_second: 4 << 20,
            vacuum_bytes_per_second: 8 << 20,
            vacuum_step_bytes: 512 << 10,
            vacuum_free_percent: 20,
            vacuum_free_bytes_min: 4 << 20,
            defragment_bytes_per_second: 32 << 20,
            reshard_bytes_per_second: 32 << 20,
            reserve_ahead: 100_000,
            read_only: false,
        }
    }
}
