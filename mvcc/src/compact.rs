//! The sweep: taking out what compaction left behind, a bounded step at a time.
//!
//! The compacted revision is durable and visible before anything goes. A step takes at most
//! `compaction_batch_limit` revisions out of one shard's index and hands their rows to the tree's
//! buffer as removals; these need no record, since a restart finds what is superseded again. Rows
//! that a tombstone hides go before it (`polybolt_index::sweep`), so no crash brings one back.

use crate::core::{Core, Gate, Pass, Round, Sweep};
use crate::error::Result;
use crate::hash;
use crate::record;
use bytes::Bytes;
use polybolt_engine::defect::{Defect, is_on};
use polybolt_engine::sync::atomic::Ordering;
use polybolt_engine::{AdmitError, Batch, Cost, Edit, Position, TreeEdit};
use polybolt_index::Swept;
use std::time::Duration;

/// How soon a sweep that a pin has held back looks again.
const PINNED_INTERVAL: Duration = Duration::from_millis(100);
/// How soon one looks again that found no room in the buffers.
const SHORT_INTERVAL: Duration = Duration::from_millis(5);

impl Core {
    /// True if a sweep has something to do.
    pub(crate) fn wants_sweep(&self) -> bool {
        let sweep = self.sweep.lock();
        !sweep.left.is_empty() || sweep.done < self.publisher.compacted()
    }

    /// When the sweep goes on, if it has something to do.
    pub(crate) fn sweep_at(&self, now: Duration) -> Option<Duration> {
        self.wants_sweep().then(|| self.sweep.lock().not_before.max(now))
    }

    /// One step of the sweep; true if more may be left.
    pub(crate) fn sweep_step(&self, now: Duration) -> Result<bool> {
        let mut sweep = self.sweep.lock();
        let compacted = self.publisher.compacted();
        if self.dropped.load(Ordering::Acquire) || (sweep.left.is_empty() && sweep.done >= compacted) {
            return Ok(false);
        }
        if !sweep.begun {
            // A compaction that comes meanwhile is for the next round: this one may be past its shards.
            self.begin_round(&mut sweep, compacted);
            sweep.since = now;
        }
        if let Some(pass) = &mut sweep.hashing {
            if pass.step(self, self.options.compaction_batch_limit.max(1))? {
                sweep.hashed = Some(pass.hash());
                sweep.hashing = None;
            }
            return Ok(true);
        }
        // After the compacted revision: a reader pins first and looks at the floor after.
        let oldest = {
            let lowest = compacted.max(0).cast_unsigned().saturating_sub(self.options.pin_revisions_max);
            self.pins.oldest(now, lowest).unwrap_or(u64::MAX)
        };
        let round = sweep.round.max(0).cast_unsigned();
        if sweep.left.is_empty() {
            let upto = round.min(oldest);
            sweep.held |= upto < round;
            let shard = &self.shards[sweep.next_shard];
            let mut removed = Vec::new();
            let begun = self.clock.monotonic();
            let swept = shard.index.write().sweep(upto, self.options.compaction_batch_limit.max(1), &mut removed);
            self.counters.index_steps.add(self.clock.monotonic().saturating_sub(begun));
            if is_on(Defect::DropTombstoneFirst) {
                // The last goes first.
                sweep.left.extend(removed.chunks(1).map(|part| (shard.tree, part.to_vec())));
            } else if !removed.is_empty() {
                sweep.left.push((shard.tree, removed));
            }
            if swept == Swept::Done {
                sweep.next_shard += 1;
            }
            if sweep.left.is_empty() {
                return Ok(self.end_round(&mut sweep, now));
            }
        }
        let Some((tree, removed)) = sweep.left.last() else {
            return Ok(true);
        };
        let edits: Vec<TreeEdit> = removed
            .iter()
            .map(|at| TreeEdit { tree: *tree, key: Bytes::copy_from_slice(&record::row_key(*at)), edit: Edit::Remove })
            .collect();
        let count = edits.len() as u64;
        let edit_bytes = count * record::ROW_KEY_BYTES as u64;
        let cost = Cost { edit_bytes, edits: count, frees_space: true, ..Cost::default() };
        let admission = match self.store.admit(cost) {
            Ok(admission) => admission,
            Err(AdmitError::Short(_)) => {
                sweep.not_before = now + SHORT_INTERVAL;
                return Ok(true);
            }
            Err(AdmitError::Refused(error)) => return Err(error.into()),
        };
        let writer = self.writer.lock();
        if matches!(writer.gate, Gate::Replaced(_)) {
            return Ok(false);
        }
        let begun = self.clock.monotonic();
        let mut batch = Batch { edits, ..Batch::new(self.id) };
        writer.state.encode_into(&mut batch.state);
        self.store.apply(admission, &mut batch);
        drop(writer);
        self.counters.tree_steps.add(self.clock.monotonic().saturating_sub(begun));
        self.counters.swept.fetch_add(count, Ordering::Relaxed);
        sweep.left.pop();
        Ok(self.end_round(&mut sweep, now))
    }

    /// A round up to the compacted revision; one for each compaction if hashes are remembered, but for
    /// those that came before the last one was over (HSH-6).
    fn begin_round(&self, sweep: &mut Sweep, compacted: i64) {
        (sweep.begun, sweep.round, sweep.held) = (true, compacted, false);
        let mut rounds = self.rounds.lock();
        if let Some(Round { at, before, was_over }) = rounds.front().copied().filter(|round| round.at <= compacted) {
            rounds.pop_front();
            sweep.round = at;
            if at > 0 && was_over {
                sweep.hashing = Some(Pass::new(self, at.cast_unsigned(), before));
            }
        }
    }

    /// Ends the round if all shards had their turn; true if there may be more to do.
    fn end_round(&self, sweep: &mut Sweep, now: Duration) -> bool {
        if sweep.next_shard < self.shards.len() {
            return true;
        }
        (sweep.next_shard, sweep.begun) = (0, false);
        if let Some(hash) = sweep.hashed.take() {
            hash::remember(self, hash);
        }
        // Nobody waits for what a read still pins.
        self.swept.advance(Position(sweep.round.max(0).cast_unsigned()));
        if sweep.held {
            // Looked for again: the pin may be gone.
            sweep.not_before = now + PINNED_INTERVAL;
            return true;
        }
        sweep.done = sweep.round;
        self.counters.sweeps.add(self.clock.monotonic().saturating_sub(sweep.since));
        self.counters.sweep_ended.store(self.clock.wall().as_secs(), Ordering::Relaxed);
        sweep.done < self.publisher.compacted()
    }
}
