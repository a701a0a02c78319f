//! The sweep: taking out what compaction left behind, a bounded step at a time.
//!
//! The compacted revision, and the floor of a shard of which less history is kept, are durable and visible before
//! anything goes. Revisions are taken out of one shard's index first, up to [`TAKEN_MAX`], and their rows then out of
//! its tree in the order in which they lie there, at most `batch_limit` a step, as removals in the tree's buffer: so a
//! checkpoint rewrites few leaves, and each of them once for all that goes out of it. A leaf of which too little is dead
//! stays as it is ([`crate::linger`]). The removals need no record, since a restart finds what is superseded again. Rows
//! that a tombstone hides go before it, so no crash brings one back.

use crate::core::{Core, Gate, Going, Half, Pass, Round, Shard, Sweep};
use crate::error::Result;
use crate::hash;
use crate::linger::{Average, Scale, Weighed, hash_of};
use crate::pace::{CompactionPace, Progress, Speed};
use crate::row;
use bytes::Bytes;
use polybolt_engine::defect::{Defect, is_on};
use polybolt_engine::store::TreeStats;
use polybolt_engine::sync::atomic::Ordering;
use polybolt_engine::{AdmitError, Cost, Position};
use polybolt_index::{Revision, Swept};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Revisions that are taken out of an index before their rows go; each was as long in there.
const TAKEN_MAX: usize = 1 << 20;
/// Those that are taken under one lock of an index, and those that go at once.
const TAKEN_AT_ONCE: usize = 128;
const REMOVED_AT_ONCE: usize = 64;
/// How soon a sweep that a pin has held back looks again.
const PINNED_INTERVAL: Duration = Duration::from_millis(100);
/// Rows of leaves that go before a checkpoint, when they lingered.
const RECLAIMED_MAX: usize = 1024;
/// How often one looks whether what lingers is wanted.
const TIGHT_INTERVAL: Duration = Duration::from_secs(1);
/// How soon one looks again that found no room in the buffers.
const SHORT_INTERVAL: Duration = Duration::from_millis(5);

impl Core {
    /// True if a sweep has something to do.
    pub(crate) fn wants_sweep(&self) -> bool {
        let sweep = self.sweep.lock();
        !sweep.taken.is_empty() || self.is_behind(&sweep) || self.is_to_reclaim()
    }

    /// True if something lingers that is wanted now.
    fn is_to_reclaim(&self) -> bool {
        self.lingering() > 0 && self.is_tight()
    }

    /// True if there is a compacted revision or a shard's floor that no whole round was for.
    fn is_behind(&self, sweep: &Sweep) -> bool {
        sweep.done < self.publisher.compacted() || sweep.raised_done < self.publisher.raised()
    }

    /// When the sweep goes on, if it has something to do.
    pub(crate) fn sweep_at(&self, now: Duration) -> Option<Duration> {
        if self.wants_sweep() {
            return Some(self.sweep.lock().not_before.max(now));
        }
        // Nobody tells that space has become short.
        (self.lingering() > 0).then_some(now + TIGHT_INTERVAL)
    }

    /// One step of the sweep; how long the next is to wait.
    pub(crate) fn sweep_step(&self, now: Duration) -> Result<Duration> {
        let mut sweep = self.sweep.lock();
        let compacted = self.publisher.compacted();
        if self.dropped.load(Ordering::Acquire) {
            return Ok(Duration::ZERO);
        }
        if self.is_to_reclaim() {
            self.reclaim_some(&mut sweep, now)?;
        }
        if sweep.taken.is_empty() && !self.is_behind(&sweep) {
            return Ok(Duration::ZERO);
        }
        if !sweep.begun {
            // One that comes meanwhile has a round of its own too: this one may be past some of its shards.
            self.begin_round(&mut sweep, compacted);
            (sweep.since, sweep.speed) = (now, Speed::default());
            self.counters.swept_before.store(self.counters.swept.load(Ordering::Relaxed), Ordering::Relaxed);
            self.counters.sweep_began.store(millis(now).max(1), Ordering::Relaxed);
        }
        let pace = self.paces.of(sweep.next_shard);
        if let Some(pass) = &mut sweep.hashing {
            if pass.step(self, pace.batch_limit.max(1))? {
                sweep.hashed = Some(pass.hash());
                sweep.hashing = None;
            }
            return Ok(pace.sleep_interval);
        }
        self.beside.sweeps(true);
        let began = sweep.since;
        sweep.speed.look(&pace, &self.beside, now, || Progress { began, left: self.garbage() });
        if self.is_to_read_keys(&sweep) {
            let (shard, most) = (sweep.next_shard, sweep.speed.step(&pace));
            let view = self.store.view(self.shards[shard].tree)?;
            let mut read = 0;
            while read < most && sweep.lingering[shard].read_some(&view, REMOVED_AT_ONCE.min(most - read)) {
                read += REMOVED_AT_ONCE.min(most - read);
            }
            return Ok(sweep.speed.pause(&pace, read, 0));
        }
        let before = sweep.taken.len();
        if !sweep.complete {
            let most = sweep.speed.take(&pace, TAKEN_AT_ONCE);
            self.take(&mut sweep, now, most);
        }
        let taken = sweep.taken.len() - before;
        let removed = if sweep.complete { self.remove(&mut sweep, now, &pace)? } else { 0 };
        if sweep.complete && sweep.is_through() {
            self.next_half(&mut sweep, now);
        }
        let left = sweep.taken.len() - sweep.gone + sweep.going.new;
        self.counters.taken.store(left as u64, Ordering::Relaxed);
        Ok(sweep.speed.pause(&pace, removed, taken))
    }

    /// True if tombstones are to be taken, and it is not known what they hide of what lingers.
    fn is_to_read_keys(&self, sweep: &Sweep) -> bool {
        sweep.half == Half::Tombstones
            && sweep.taken.is_empty()
            && sweep.lingering[sweep.next_shard].has_unread()
            && sweep.upto.is_some_and(|upto| self.shards[sweep.next_shard].keys.read().has_garbage(upto))
    }

    /// Takes up to `most` revisions out of the index.
    fn take(&self, sweep: &mut Sweep, now: Duration, most: usize) {
        let upto = *sweep.upto.get_or_insert_with(|| {
            // A compaction that came meanwhile overtakes this one, but for a hash of what this one leaves (HSH-6); shards
            // that had their turn have it again in its own round.
            let newest = if self.options.remember_hashes { sweep.round } else { self.publisher.compacted() };
            // The pins come last: a reader pins first and looks at the floor after.
            let floor = self.floor_of(sweep.next_shard).max(0).cast_unsigned();
            let own = self.publisher.own_floor(sweep.next_shard);
            let oldest = self.pins.oldest(now, floor.saturating_sub(self.options.pin_revisions_max));
            let oldest = oldest.unwrap_or(u64::MAX);
            let round = newest.max(own).max(0).cast_unsigned();
            sweep.held |= oldest < round;
            round.min(oldest)
        });
        let (shard, taken, buried) = (&self.shards[sweep.next_shard], &mut sweep.taken, &mut sweep.buried);
        let full = taken.len().saturating_add(most).min(TAKEN_MAX);
        let before = taken.len();
        let mut swept = Swept::More;
        while swept == Swept::More && taken.len() < full {
            let budget = (full - taken.len()).min(TAKEN_AT_ONCE);
            let begun = self.clock.monotonic();
            swept = match sweep.half {
                Half::Superseded => shard.keys.sweep_superseded(upto, budget, taken),
                Half::Tombstones => {
                    // In order: the last is the newest.
                    let mut bury = |at, key: &[u8]| _ = buried.insert(hash_of(key), at);
                    shard.keys.sweep_tombstones(upto, budget, taken, &mut bury)
                }
            };
            self.counters.index_steps.add(self.clock.monotonic().saturating_sub(begun));
        }
        taken[before..].sort_unstable();
        sweep.last = swept == Swept::Done;
        if is_on(Defect::DropTombstoneFirst) && sweep.last && sweep.half == Half::Superseded {
            (sweep.half, sweep.last) = (Half::Tombstones, false);
        }
        if sweep.last || sweep.taken.len() >= TAKEN_MAX {
            sweep.complete = true;
            if !is_on(Defect::LetHiddenLinger) {
                let lingering = &sweep.lingering[sweep.next_shard];
                let is_empty = self.shards[sweep.next_shard].keys.read().stats().revisions == 0;
                // In a shard of which nothing is left nothing lingers.
                let hidden = if is_empty { lingering.first(usize::MAX) } else { lingering.hidden_by(&sweep.buried) };
                sweep.taken.extend(&hidden);
                sweep.hidden.extend(hidden);
            }
            // Mostly runs that are sorted already.
            sweep.taken.sort();
            if is_on(Defect::DropTombstoneFirst) {
                sweep.taken.reverse();
            }
        }
    }

    /// Takes a step's rows out of the tree; how many, with those that stay.
    fn remove(&self, sweep: &mut Sweep, now: Duration, pace: &CompactionPace) -> Result<usize> {
        let shard = sweep.next_shard;
        let (most, mut done) = (sweep.speed.step(pace), 0);
        while done < most && !sweep.is_through() {
            if sweep.going.rows.is_empty() {
                done += self.weigh_some(sweep)?;
                continue;
            }
            let going = &mut sweep.going.rows;
            let part: Vec<_> = going.range(..going.len().min(REMOVED_AT_ONCE).min(most - done)).copied().collect();
            if !self.remove_rows(shard, &part)? {
                sweep.not_before = now + SHORT_INTERVAL;
                break;
            }
            sweep.going.rows.drain(..part.len());
            sweep.lingering[shard].remove(&part);
            let new = sweep.going.new.min(part.len());
            sweep.going.new -= new;
            self.counters.swept.fetch_add(new as u64, Ordering::Relaxed);
            done += part.len();
        }
        self.count_lingering(sweep, shard);
        Ok(done)
    }

    /// Weighs the next rows that were taken, all those of a leaf at once; how many stay.
    fn weigh_some(&self, sweep: &mut Sweep) -> Result<usize> {
        let mut weighed = self.weigh(sweep)?;
        // What a tombstone hides is before it, also of what lingered.
        weighed.goes.sort_unstable();
        weighed.goes.dedup();
        let stay = sweep.lingering[sweep.next_shard].settle(&weighed);
        // Those were counted when they began to linger.
        let weighed_now = &sweep.taken[sweep.gone..sweep.gone + weighed.count];
        let before = weighed_now.iter().filter(|at| sweep.hidden.contains(at)).count();
        self.counters.swept.fetch_add(stay as u64, Ordering::Relaxed);
        sweep.gone += weighed.count;
        sweep.going = Going { rows: weighed.goes.into(), new: weighed.count.saturating_sub(before + stay) };
        Ok(stay)
    }

    /// What becomes of the next rows that were taken.
    fn weigh(&self, sweep: &Sweep) -> Result<Weighed> {
        let dead = &sweep.taken[sweep.gone..];
        let is_empty = self.shards[sweep.next_shard].keys.read().stats().revisions == 0;
        let is_short = is_empty || self.is_tight() || self.store.is_disk_full();
        let percent = if is_short { 0 } else { self.options.reclaim_percent };
        let part = if is_on(Defect::DropTombstoneFirst) { 1 } else { REMOVED_AT_ONCE };
        let all = || Weighed::all(dead[..part.min(dead.len())].to_vec());
        if percent == 0 || is_on(Defect::DropTombstoneFirst) {
            return Ok(all());
        }
        let tree = self.shards[sweep.next_shard].tree;
        let TreeStats { in_use, entries, page_bytes, extents, .. } = self.store.tree_stats(tree)?;
        // Where all leaves are alike half of what a leaf may have lingers in all: those that get it go one by one.
        let bytes_max = in_use / 150 * u64::from(percent);
        let row_bytes = in_use.checked_div(entries).and_then(|bytes| u32::try_from(bytes.max(1)).ok());
        let average = row_bytes.filter(|_| extents == Some(0));
        let average = average.map(|row_bytes| Average { row_bytes, leaf_bytes: page_bytes });
        let scale = Scale { percent, bytes_max, hidden: &sweep.hidden, enough: REMOVED_AT_ONCE, average };
        let weighed = sweep.lingering[sweep.next_shard].weigh(&self.store.view(tree)?, dead, scale);
        Ok(weighed.unwrap_or_else(all))
    }

    /// Takes ascending rows out of a shard's tree, all at once; false if there is no room for that now. Writers do not
    /// wait for it: neither the state nor any key that is found changes.
    fn remove_rows(&self, shard: usize, rows: &[Revision]) -> Result<bool> {
        let edits = rows.len() as u64;
        let edit_bytes = edits * row::ROW_KEY_BYTES as u64;
        let cost = Cost { edit_bytes, edits, frees_space: true, ..Cost::default() };
        let admission = match self.store.admit(cost) {
            Ok(admission) => admission,
            Err(AdmitError::Short(_)) => return Ok(false),
            Err(AdmitError::Refused(error)) => return Err(error.into()),
        };
        let keys: Vec<u8> = rows.iter().flat_map(|at| row::row_key(*at)).collect();
        let all = Bytes::from(keys);
        let keys = (0..rows.len()).map(|at| all.slice(at * row::ROW_KEY_BYTES..(at + 1) * row::ROW_KEY_BYTES));
        let keys = keys.collect();
        let begun = self.clock.monotonic();
        let done = self.store.remove(admission, self.id, self.shards[shard].tree, keys);
        self.counters.tree_steps.add(self.clock.monotonic().saturating_sub(begun));
        Ok(done)
    }

    /// Takes some of what lingers out, a bounded part before each checkpoint: leaves are written before the old ones are
    /// free.
    fn reclaim_some(&self, sweep: &mut Sweep, now: Duration) -> Result<()> {
        let Some(shard) = sweep.lingering.iter().position(|lingering| lingering.len() > 0) else { return Ok(()) };
        let checkpoints = self.store.stats().checkpoints;
        if sweep.reclaimed.0 != checkpoints {
            sweep.reclaimed = (checkpoints, 0);
        }
        if sweep.reclaimed.1 >= RECLAIMED_MAX || !self.reclaim_of(sweep, shard)? {
            sweep.not_before = now + PINNED_INTERVAL;
        }
        sweep.reclaimed.1 += REMOVED_AT_ONCE;
        Ok(())
    }

    /// Takes some of what lingers in a shard out; false if there is no room for that now.
    fn reclaim_of(&self, sweep: &mut Sweep, shard: usize) -> Result<bool> {
        let Some(lingering) = sweep.lingering.get(shard) else { return Ok(true) };
        let rows = lingering.first(REMOVED_AT_ONCE);
        self.reclaim_rows(sweep, shard, &rows)
    }

    fn reclaim_rows(&self, sweep: &mut Sweep, shard: usize, rows: &[Revision]) -> Result<bool> {
        let room = self.remove_rows(shard, rows)?;
        if room {
            sweep.lingering[shard].remove(rows);
        }
        self.count_lingering(sweep, shard);
        Ok(room)
    }

    /// Bytes of what lingers in a shard between two rows, both included.
    pub(crate) fn lingering_bytes(&self, shard: usize, rows: RangeInclusive<Revision>) -> u64 {
        self.sweep.lock().lingering.get(shard).map_or(0, |lingering| lingering.bytes_of(rows))
    }

    /// Takes what lingers in a shard before a row out, whatever else goes on; how many. From the first on each time: what
    /// began to linger meanwhile may be hidden by a tombstone that comes next.
    pub(crate) fn reclaim_before(&self, shard: usize, to: Revision) -> Result<u64> {
        let mut taken = 0;
        loop {
            let mut sweep = self.sweep.lock();
            let Some(lingering) = sweep.lingering.get(shard).filter(|_| !self.is_over()) else { return Ok(taken) };
            let rows = lingering.first_before(to, REMOVED_AT_ONCE);
            if rows.is_empty() {
                return Ok(taken);
            }
            let room = self.reclaim_rows(&mut sweep, shard, &rows)?;
            drop(sweep);
            if room {
                taken += rows.len() as u64;
            } else {
                self.store.flush().wait()?;
            }
        }
    }

    /// True if it was dropped or replaced.
    pub(crate) fn is_over(&self) -> bool {
        self.dropped.load(Ordering::Acquire) || matches!(self.writer.lock().gate, Gate::Replaced(_))
    }

    fn count_lingering(&self, sweep: &Sweep, shard: usize) {
        self.shards[shard].lingering.store(sweep.lingering[shard].len(), Ordering::Relaxed);
    }

    /// Goes on with what comes after all that was taken is gone.
    fn next_half(&self, sweep: &mut Sweep, now: Duration) {
        (sweep.complete, sweep.gone) = (false, 0);
        sweep.taken.clear();
        (sweep.buried, sweep.hidden) = Default::default();
        if !sweep.last {
            return;
        }
        match sweep.half {
            Half::Superseded => sweep.half = Half::Tombstones,
            Half::Tombstones => {
                (sweep.half, sweep.upto) = (Half::Superseded, None);
                sweep.taken.shrink_to(0);
                sweep.next_shard += 1;
                if sweep.next_shard == self.shards.len() {
                    self.end_round(sweep, now);
                }
            }
        }
    }

    /// How long the sweep under way will take for so many more revisions, if it goes on as it has.
    pub(crate) fn time_for(&self, left: u64) -> Option<Duration> {
        let began = self.counters.sweep_began.load(Ordering::Relaxed);
        let before = self.counters.swept_before.load(Ordering::Relaxed);
        // A round may begin in between.
        let gone = self.counters.swept.load(Ordering::Relaxed).saturating_sub(before);
        let took = millis(self.clock.monotonic()).saturating_sub(began);
        let millis = (u128::from(took) * u128::from(left)).checked_div(u128::from(gone))?;
        (began > 0).then(|| Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)))
    }

    /// About how many revisions compactions and floors have left behind and the sweep has not taken out yet.
    pub(crate) fn garbage(&self) -> u64 {
        let of_shard = |(at, shard): (usize, &Shard)| {
            let floor = self.floor_of(at).max(0).cast_unsigned();
            shard.keys.read().garbage(floor)
        };
        let indexed: usize = self.shards.iter().enumerate().map(of_shard).sum();
        indexed as u64 + self.counters.taken.load(Ordering::Relaxed)
    }

    /// A round up to the compacted revision; one for each compaction if hashes are remembered, but for
    /// those that came before the last one was over (HSH-6).
    fn begin_round(&self, sweep: &mut Sweep, compacted: i64) {
        (sweep.begun, sweep.round, sweep.held) = (true, compacted, false);
        sweep.lingering.resize_with(self.shards.len(), Default::default);
        sweep.raised = self.publisher.raised();
        let mut rounds = self.rounds.lock();
        if let Some(Round { at, before, was_over }) = rounds.front().copied().filter(|round| round.at <= compacted) {
            rounds.pop_front();
            sweep.round = at;
            if at > 0 && was_over {
                let pass = Pass::new(self, at.cast_unsigned(), before);
                // Of a shard that has forgotten more, what is left is not what others have.
                sweep.hashing = pass.is_of_all(self, before).then_some(pass);
            }
        }
    }

    /// Ends the round: all shards had their turn.
    fn end_round(&self, sweep: &mut Sweep, now: Duration) {
        (sweep.next_shard, sweep.begun) = (0, false);
        self.beside.sweeps(false);
        self.counters.sweep_began.store(0, Ordering::Relaxed);
        if let Some(hash) = sweep.hashed.take() {
            hash::remember(self, hash);
        }
        // Nobody waits for what a read still pins.
        self.swept.advance(Position(sweep.round.max(0).cast_unsigned()));
        if sweep.held {
            // Looked for again: the pin may be gone.
            sweep.not_before = now + PINNED_INTERVAL;
            return;
        }
        (sweep.done, sweep.raised_done) = (sweep.round, sweep.raised);
        self.counters.sweeps.add(self.clock.monotonic().saturating_sub(sweep.since));
        self.counters.sweep_ended.store(self.clock.wall().as_secs(), Ordering::Relaxed);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Engine, Runtime};
    use crate::keyspace::Keyspace;
    use crate::options::Options;
    use crate::request::{DeleteRequest, PutRequest, Span};
    use crate::routes::Routes;
    use polybolt_engine::disk::Disk;
    use polybolt_engine::disk::sim::SimDisk;
    use polybolt_engine::run::ManualClock;
    use polybolt_engine::run::seeded::{Rng, Seeded};
    use std::sync::Arc;

    const KEYS: u64 = 3000;

    /// All keys put once and then, in a random order, again.
    fn overwritten(pace: CompactionPace) -> (Keyspace, Engine, Seeded, ManualClock) {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        let clock = ManualClock::default();
        let checkpoint_interval = Duration::from_millis(20);
        let options = Options { compaction_pace: pace, checkpoint_interval, ..Options::default() };
        let runtime = Runtime { disk, clock: Arc::new(clock.clone()), threads: false };
        let engine = Engine::open_with("/data", options, runtime).expect("it opens");
        let mut jobs = Seeded::new(engine.take_jobs(), clock.clone(), 1);
        let routes = Routes::parse("low=a,high=m").expect("routes");
        let ks = engine.create_keyspace("ks", routes).expect("it is new");
        let mut keys: Vec<u64> = (0..KEYS).collect();
        for _ in 0..2 {
            for key in &keys {
                let name = format!("{}{key}", if key % 2 == 0 { "a" } else { "m" });
                drop(ks.put(PutRequest::new(name, vec![1; 300])));
            }
            let mut rng = Rng::new(7);
            for at in (1..keys.len()).rev() {
                keys.swap(at, rng.below(at as u64 + 1) as usize);
            }
            pass(&mut jobs, Duration::from_secs(1));
        }
        (ks, engine, jobs, clock)
    }

    fn pass(jobs: &mut Seeded, time: Duration) {
        for _ in 0..time.as_millis() {
            jobs.advance(Duration::from_millis(1));
            assert!(jobs.run_until_idle(100_000), "there is always something to do");
        }
    }

    #[test]
    fn a_sweep_in_many_checkpoints_writes_each_leaf_about_once() {
        let pace = CompactionPace { batch_limit: 10, sleep_interval: Duration::from_millis(2), ..Default::default() };
        let (ks, engine, mut jobs, _) = overwritten(pace);
        let before = engine.stats();
        drop(ks.compact(ks.revision(), true));
        pass(&mut jobs, Duration::from_secs(5));
        let (after, stats) = (engine.stats(), ks.stats());
        assert_eq!((stats.swept, stats.sweep_left, stats.sweep_time_left), (KEYS, 0, None));
        assert_eq!(ks.core().sweep.lock().taken.capacity(), 0, "memory is given back");
        let checkpoints = after.checkpoints - before.checkpoints;
        assert!(checkpoints > 30, "{checkpoints}");
        // Half of all rows went, in the order of keys, not of rows. Branches and the leaf between two checkpoints
        // are written more than once.
        let (written, held) = (after.page_bytes - before.page_bytes, 2 * KEYS * 350);
        assert!(written < 2 * held, "{written} bytes for {held} in {checkpoints} checkpoints");
    }

    #[test]
    fn a_pace_is_changed_while_a_sweep_goes_on_and_progress_is_shown() {
        let still = CompactionPace {
            batch_limit: 100,
            sleep_interval: Duration::from_secs(1000),
            budget_percent: None,
            deadline: None,
        };
        let (ks, _engine, mut jobs, _) =
            overwritten(CompactionPace { sleep_interval: Duration::from_millis(10), ..still });
        assert!(ks.set_compaction_pace(Some("none"), still).is_err());
        ks.set_compaction_pace(Some("high"), still).expect("there is such a shard");
        drop(ks.compact(ks.revision(), true));
        pass(&mut jobs, Duration::from_millis(50));
        let stats = ks.stats();
        assert_eq!(stats.swept + stats.sweep_left, KEYS);
        assert!(stats.sweep_time_left.is_some_and(|left| left > Duration::from_millis(100)), "{stats:?}");
        pass(&mut jobs, Duration::from_secs(5));
        assert_eq!(ks.stats().swept, KEYS / 2 + 100, "a step of the shard that stands still");
        assert_eq!(ks.stats().sweep_left, KEYS / 2 - 100);
        ks.set_compaction_pace(None, CompactionPace::default()).expect("all shards");
        // The pause that had begun is cut short.
        pass(&mut jobs, Duration::from_secs(2));
        assert_eq!((ks.stats().swept, ks.stats().sweep_left), (KEYS, 0));
    }

    #[test]
    fn an_engine_has_one_pace_for_all_keyspaces_also_those_to_come() {
        let (ks, engine, _, _) = overwritten(CompactionPace::default());
        let slow = CompactionPace { batch_limit: 7, ..CompactionPace::default() };
        ks.set_compaction_pace(Some("high"), CompactionPace { batch_limit: 3, ..slow }).expect("there is such a shard");
        assert_eq!(ks.compaction_pace("high").expect("there is such a shard").batch_limit, 3);
        engine.set_compaction_pace(slow);
        let later = engine.create_keyspace("later", Routes::single()).expect("it is new");
        for (ks, shard) in [(&ks, "low"), (&ks, "high"), (&later, "default")] {
            assert_eq!(ks.compaction_pace(shard).expect("there is such a shard"), slow, "{shard}");
        }
        assert!(ks.compaction_pace("none").is_err());
    }

    #[test]
    fn a_newer_compaction_overtakes_and_handles_tell_how_far_they_are() {
        let pace = CompactionPace {
            batch_limit: 100,
            sleep_interval: Duration::from_millis(10),
            budget_percent: None,
            deadline: None,
        };
        let (ks, _engine, mut jobs, _) = overwritten(pace);
        let half = i64::try_from(KEYS).expect("it is small") + 1;
        // A thousand keys are superseded at that revision, about half of them in each shard.
        let watch = ks.compact(half + 1000, false).watch();
        pass(&mut jobs, Duration::from_millis(25));
        let before = watch.progress();
        assert!(!before.is_swept && (1..1000).contains(&before.removed) && before.left > 0, "{before:?}");
        let second = ks.compact(ks.revision(), false);
        assert_eq!((second.progress().removed, ks.stats().swept), (0, before.removed), "since it was asked for");
        // Of the second shard, which was to come, all goes that the second compaction left behind.
        for _ in 0..1000 {
            if watch.progress().is_swept {
                break;
            }
            pass(&mut jobs, Duration::from_millis(1));
        }
        let (first_now, second_now) = (watch.progress(), second.progress());
        assert!(first_now.is_swept && !second_now.is_swept, "{first_now:?} {second_now:?}");
        assert!(first_now.removed > KEYS / 2, "{first_now:?}");
        pass(&mut jobs, Duration::from_secs(1));
        let done = second.progress();
        assert_eq!((done.is_swept, done.left, done.time_left), (true, 0, None));
        assert_eq!((done.removed, watch.progress().removed), (KEYS - before.removed, KEYS));
    }

    /// Else a defragmentation between two steps could take the tombstone and leave what it hides to a crash (R9).
    #[test]
    fn what_a_tombstone_hides_lingers_until_it_is_gone() {
        let slow = CompactionPace { batch_limit: 1, budget_percent: None, ..CompactionPace::default() };
        let fast = CompactionPace { batch_limit: 10_000, sleep_interval: Duration::from_millis(1), ..slow };
        let (ks, _engine, mut jobs, _) = overwritten(fast);
        let name = |key: u64| format!("{}{key}", if key.is_multiple_of(2) { "a" } else { "m" });
        drop(ks.compact(ks.revision(), true));
        pass(&mut jobs, Duration::from_secs(2));
        // A few of what is left of each leaf linger, and then all of those keys are deleted.
        let keys: Vec<u64> = (0..KEYS).step_by(40).collect();
        let puts: Vec<_> = keys.iter().map(|key| ks.put(PutRequest::new(name(*key), vec![2; 300]))).collect();
        pass(&mut jobs, Duration::from_secs(1));
        puts.into_iter().for_each(|put| drop(put.wait().expect("it is there")));
        drop(ks.compact(ks.revision(), true));
        pass(&mut jobs, Duration::from_secs(2));
        assert!(ks.stats().lingering > 20, "{:?}", ks.stats());
        for key in &keys {
            drop(ks.delete_range(DeleteRequest { span: Span::key(name(*key)), prev_kv: false }));
        }
        drop(ks.put(PutRequest::new("a", "1")));
        pass(&mut jobs, Duration::from_secs(1));
        ks.set_compaction_pace(None, slow).expect("all shards");
        drop(ks.compact(ks.revision(), true));
        let mut seen = 0;
        let core = Arc::clone(&ks.core());
        for _ in 0..20_000 {
            jobs.advance(Duration::from_millis(1));
            jobs.run_until_idle(100_000);
            let sweep = core.sweep.lock();
            for at in sweep.going.rows.iter().filter(|at| sweep.hidden.contains(at)) {
                assert!(sweep.lingering[sweep.next_shard].contains(*at), "{at:?}");
                seen += 1;
            }
        }
        assert!(seen > 0);
        assert_eq!((ks.stats().sweep_left, core.sweep.lock().hidden.len()), (0, 0), "{:?}", ks.stats());
    }

    #[test]
    fn a_deadline_is_kept_whoever_notices() {
        // A thousandth of it in a pause: a second at full speed, three at the slowest.
        let pace = CompactionPace { batch_limit: KEYS as usize / 100, ..CompactionPace::default() };
        for (deadline, at_least) in [(None, 0), (Some(Duration::from_millis(1500)), KEYS)] {
            let (ks, _engine, mut jobs, _) = overwritten(CompactionPace { deadline, ..pace });
            let core = Arc::clone(&ks.core());
            let calls = |micros| (0..200).for_each(|_| core.beside.add_read(Duration::from_micros(micros)));
            calls(10);
            drop(ks.compact(ks.revision(), true));
            pass(&mut jobs, Duration::from_millis(5));
            for _ in 0..16 {
                calls(1000);
                pass(&mut jobs, Duration::from_millis(100));
            }
            let swept = ks.stats().swept;
            assert!(swept >= at_least && (deadline.is_some() || swept < KEYS * 2 / 3), "{swept}, {deadline:?}");
        }
    }
}
