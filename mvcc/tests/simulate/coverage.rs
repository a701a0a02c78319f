//! What a campaign has met: counters of each seed, and the share of seeds in which each is above zero.

use std::collections::BTreeMap;

/// Every counter that has to be above zero in at least 1 % of the seeds of a campaign.
pub(crate) const WANTED: [&str; 39] = [
    "torn groups",
    "slot fallbacks",
    "recycled segments",
    "reused pages",
    "leaves rewritten by compaction",
    "rows that linger",
    "floors set",
    "shards compacted",
    "pins revoked",
    "ENOSPC at admission",
    "ENOSPC in a checkpoint",
    "kill, then power cut",
    "crashes in recovery",
    "Volatile emptied",
    "EIO poison",
    "vacuum cut a file",
    "rounds of the background vacuum",
    "files cut by it",
    "snapshots restored",
    "damage reported",
    "newest slot rotted",
    "snapshots installed",
    "crashes in an install",
    "lease checkpoints used",
    "scrub rounds",
    "damage found by the scrub",
    "opened on a full disk",
    "routes changed",
    "crashes in a change of routes",
    "EIO of a read",
    "EIO of a write",
    "EIO of a sync",
    "EIO of a file's making, renaming or end",
    "ENOSPC of one call",
    "ENOSPC of a full disk",
    "short reads",
    "stale units",
    "misdirected units",
    "flipped bits",
];

/// Counters of one seed.
#[derive(Debug, Default, Clone)]
pub(crate) struct Coverage(BTreeMap<&'static str, u64>);

impl Coverage {
    pub(crate) fn add(&mut self, what: &'static str, times: u64) {
        if times > 0 {
            *self.0.entry(what).or_default() += times;
        }
    }

    pub(crate) fn get(&self, what: &'static str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }
}

/// Counters of many seeds: in how many each was above zero, and their sums.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) seeds: u64,
    counters: BTreeMap<&'static str, (u64, u64)>,
}

impl Table {
    pub(crate) fn take(&mut self, coverage: &Coverage) {
        self.seeds += 1;
        for (what, times) in &coverage.0 {
            let (seeds, sum) = self.counters.entry(what).or_default();
            *seeds += 1;
            *sum += times;
        }
    }

    /// Those of [`WANTED`] that were met in fewer than 1 % of the seeds.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let seeds = |what: &&str| self.counters.get(*what).map_or(0, |(seeds, _)| *seeds);
        WANTED.iter().copied().filter(|what| seeds(what) * 100 < self.seeds).collect()
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:<42} {:>8} {:>12}", "met", "% seeds", "times")?;
        for (what, (seeds, sum)) in &self.counters {
            let share = *seeds as f64 * 100.0 / self.seeds.max(1) as f64;
            let mark = if WANTED.contains(what) { "*" } else { " " };
            writeln!(f, "{mark}{what:<41} {share:>7.1} {sum:>13}")?;
        }
        Ok(())
    }
}
