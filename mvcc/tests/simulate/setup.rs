//! What a seed drew: options, shards, which faults may come.

use polybolt::run::seeded::Rng;
use polybolt::{CompactionPace, Durability, Face, Options, Routes, ShardOptions};
use std::time::Duration;

/// The first bytes of keys; each but the last has a shard of its own if there are enough.
pub(crate) const PREFIXES: [&str; 5] = ["a", "c", "e", "g", "x"];
/// The Volatile shard, if there is one.
pub(crate) const VOLATILE: &str = "c";
/// How long a lease is extended at a reopen.
pub(crate) const EXTEND: Duration = Duration::from_secs(1);

/// What a seed drew.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) options: Options,
    pub(crate) shards: usize,
    pub(crate) volatile: bool,
    pub(crate) keyspaces: usize,
    pub(crate) page_bytes: usize,
    /// The largest value in units of a fourth of a page.
    pub(crate) values: u64,
    pub(crate) keys: u64,
    /// Which faults may come.
    pub(crate) eio: bool,
    pub(crate) full: bool,
    pub(crate) damage: bool,
    /// Newest slots of the manifest rot: the other one and the journal have to do.
    pub(crate) rot: bool,
    /// Operations.
    pub(crate) operations: u64,
}

impl Setup {
    pub(crate) fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed.wrapping_mul(0x9e37_79b9) ^ 0x5157);
        let durability = match rng.below(5) {
            0 | 1 => Durability::Batch { interval: Duration::from_millis(5 + rng.below(60)), limit: 1 + rng.below(12) },
            _ => Durability::Sync,
        };
        let face = if rng.one_in(3) { Face::Replayed } else { Face::Standalone };
        let segment_bytes = 2048 << rng.below(4);
        // Of its own: what else a seed draws stays as it was before there was a vacuum.
        let mut vacuum = Rng::new(seed ^ 0x7661);
        let options = Options {
            durability,
            face,
            buffer_bytes: 6_000 + rng.below(60_000),
            segment_bytes,
            journal_bytes: segment_bytes * (2 + rng.below(6)),
            checkpoint_interval: Duration::from_millis(5 + rng.below(100)),
            space_reserve_bytes: rng.below(3) * 24 * 1024,
            read_cache_bytes: if rng.one_in(2) { None } else { Some(rng.below(5) * 6000) },
            open_files_max: 1 + rng.below(12) as usize,
            compaction_pace: CompactionPace {
                batch_limit: 1 + rng.below(20) as usize,
                sleep_interval: Duration::from_millis(rng.below(6)),
                budget_percent: if rng.one_in(3) { None } else { Some(rng.below(30) as u32) },
                deadline: if rng.one_in(2) { None } else { Some(Duration::from_millis(rng.below(50))) },
            },
            min_lease_ttl: 1,
            lease_extend: EXTEND,
            admission_timeout: Duration::from_secs(2 + rng.below(5)),
            pin_age_max: Duration::from_secs(1 + rng.below(20)),
            watch_buffer_bytes: rng.below(4000) as usize,
            reserve_ahead: 4 + rng.below(60),
            scrub_bytes_per_second: [0, 64 << 10, 4 << 20][rng.below(3) as usize],
            lease_checkpoint_interval: rng.one_in(3).then(|| Duration::from_secs(1 + rng.below(4))),
            vacuum_bytes_per_second: [0, 64 << 10, 8 << 20][vacuum.below(3) as usize],
            vacuum_step_bytes: 1 + vacuum.below(40_000),
            vacuum_free_percent: 5 + vacuum.below(40) as u8,
            vacuum_free_bytes_min: 4096 * vacuum.below(6),
            reclaim_percent: [0, 20, 60][vacuum.below(3) as usize],
            hash_index_from: [0, 3, 8, u64::MAX][vacuum.below(4) as usize],
            defragment_bytes_per_second: [0, 1 << 20, 64 << 20][vacuum.below(3) as usize],
            reshard_bytes_per_second: [0, 64 << 10, 32 << 20][vacuum.below(3) as usize],
            ..Options::default()
        };
        Setup {
            seed,
            options,
            shards: 3 + rng.below(3) as usize,
            volatile: face == Face::Standalone && rng.one_in(3),
            keyspaces: 1 + rng.below(2) as usize,
            page_bytes: 4096 << rng.below(2),
            values: 1 + rng.below(3) * rng.below(4),
            keys: 3 + rng.below(12),
            eio: rng.one_in(2),
            full: rng.one_in(3),
            damage: rng.one_in(3),
            rot: rng.one_in(3),
            operations: 200 + rng.below(60),
        }
    }

    pub(crate) fn is_sync(&self) -> bool {
        self.options.durability == Durability::Sync
    }

    pub(crate) fn is_replayed(&self) -> bool {
        self.options.face == Face::Replayed
    }

    /// True if revisions are reserved ahead (R3, R4).
    pub(crate) fn reserves(&self) -> bool {
        !self.is_replayed() && (!self.is_sync() || self.volatile)
    }

    pub(crate) fn routes(&self) -> Routes {
        self.routes_of(self.page_bytes)
    }

    /// The same with pages of another size.
    pub(crate) fn routes_of(&self, page_bytes: usize) -> Routes {
        let shard = |at: usize| {
            let prefix = PREFIXES[at];
            let shard = ShardOptions { page_bytes, ..ShardOptions::new(format!("s{prefix}")) };
            let shard = shard.prefix(prefix);
            if self.volatile && prefix == VOLATILE { shard.volatile() } else { shard }
        };
        let rest = ShardOptions { page_bytes, ..ShardOptions::new("default") };
        Routes::new((0..self.shards - 1).map(shard).chain([rest]).collect()).expect("the routes are sound")
    }
}
