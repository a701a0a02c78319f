//! Leases: who expires when, and which keys go with whom.
//!
//! A pure data structure: time is an argument, and what has to be written is the caller's to write.
//! Deadlines are kept in a heap whose stale entries are passed over, so that granting, renewing and
//! expiring cost O(log n). Deadlines and attachments are not persisted: a restart extends leases
//! (LSE-14), and attachments follow from the newest version of each key (IDX-6).
//!
//! With an interval for checkpoints a long lease's remaining time is due to be recorded once in each
//! interval (LSE-16). From when that is reported until a renewal has taken it back, a renewal has to be
//! recorded too: else a restart would end a renewed lease after what remained before.

use crate::leased::LeasedKeys;
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

/// The longest time to live, in seconds (LSE-2).
pub(crate) const TTL_MAX: i64 = 9_000_000_000;

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) ttl: i64,
    /// None while not primary: never.
    pub(crate) deadline: Option<Duration>,
    /// Seconds that the last checkpoint has left it, 0 if there is none since its last renewal.
    remaining: i64,
    /// When its next checkpoint is due.
    checkpoint: Option<Duration>,
    /// True while a checkpoint is on its way.
    checkpointing: bool,
}

/// What a renewal came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// It has its whole time to live again: that many seconds.
    Renewed(i64),
    /// Not before its checkpoint is taken back.
    Checkpointed,
    /// There is no such lease, or it is past its deadline: an expired one never comes back to life (LSE-7).
    Gone,
}

/// From this many leases on their deadlines are spread at a promotion,
const SPREAD_FROM: usize = 1000;
/// so that this many at most are due in any second (LSE-14).
const DUE_PER_SECOND: usize = 750;

/// All leases of a keyspace.
#[derive(Debug, Default)]
pub(crate) struct Lessor {
    leases: HashMap<i64, Lease>,
    keys: LeasedKeys,
    due: BinaryHeap<Reverse<(Duration, i64)>>,
    checkpoints: BinaryHeap<Reverse<(Duration, i64)>>,
    /// None for no checkpoints.
    checkpoint_interval: Option<Duration>,
    primary: bool,
}

impl Lessor {
    /// Without leases.
    pub(crate) fn new(checkpoint_interval: Option<Duration>) -> Self {
        Lessor { checkpoint_interval, ..Lessor::default() }
    }

    /// True if a lease of that id exists, past its deadline or not.
    pub(crate) fn exists(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// True if it is the one that expires leases.
    pub(crate) fn is_primary(&self) -> bool {
        self.primary
    }

    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }

    /// Adds a lease. Requires: the id is free and the time to live effective.
    pub(crate) fn grant(&mut self, id: i64, ttl: i64, now: Duration) {
        self.load(id, ttl, 0);
        if self.primary {
            self.renew(id, now);
        }
    }

    /// Adds a lease as stored.
    pub(crate) fn load(&mut self, id: i64, ttl: i64, remaining: i64) {
        let lease = Lease { ttl, deadline: None, remaining, checkpoint: None, checkpointing: false };
        self.leases.insert(id, lease);
    }

    /// Takes a lease out; its keys are detached.
    pub(crate) fn revoke(&mut self, id: i64) {
        if self.leases.remove(&id).is_some() {
            self.keys.detach_all(id);
        }
    }

    /// The keys of a lease, in no order.
    pub(crate) fn keys(&self, id: i64) -> Vec<Bytes> {
        self.keys.keys(id)
    }

    /// Starts the time to live anew.
    pub(crate) fn keep_alive(&mut self, id: i64, now: Duration) -> Renewal {
        match self.leases.get(&id) {
            Some(lease) if lease.deadline.is_none_or(|deadline| deadline > now) => {
                if lease.remaining > 0 || lease.checkpointing {
                    return Renewal::Checkpointed;
                }
                let ttl = lease.ttl;
                self.renew(id, now);
                Renewal::Renewed(ttl)
            }
            _ => Renewal::Gone,
        }
    }

    /// Up to `max` leases whose remaining seconds are due to be recorded, and these; none while not primary.
    /// They stay due until they are recorded, and are not renewed meanwhile.
    pub(crate) fn due_checkpoints(&mut self, now: Duration, max: usize) -> Vec<(i64, i64)> {
        let mut due = Vec::new();
        let mut entries = Vec::new();
        while let Some(Reverse((at, id))) = self.checkpoints.peek().copied()
            && at <= now
            && due.len() < max
        {
            self.checkpoints.pop();
            let Some(lease) = self.leases.get_mut(&id).filter(|lease| lease.checkpoint == Some(at)) else { continue };
            let Some(left) = lease.deadline.and_then(|deadline| deadline.checked_sub(now)) else { continue };
            let remaining = whole_seconds(left);
            if remaining == 0 || remaining >= lease.ttl {
                // Past its deadline, or promoted lately: nothing to tell.
                self.schedule_checkpoint(id, now);
                continue;
            }
            lease.checkpointing = true;
            entries.push(Reverse((at, id)));
            due.push((id, remaining));
        }
        self.checkpoints.extend(entries);
        due
    }

    /// When the next checkpoint may be due.
    pub(crate) fn next_checkpoint(&self) -> Option<Duration> {
        self.checkpoints.peek().map(|Reverse((at, _))| *at)
    }

    /// Recorded: so much remains; 0 is that it was taken back.
    pub(crate) fn checkpointed(&mut self, id: i64, remaining: i64, now: Duration) {
        if let Some(lease) = self.leases.get_mut(&id) {
            (lease.remaining, lease.checkpointing) = (remaining, false);
            self.schedule_checkpoint(id, now);
        }
    }

    /// What was granted to it, in seconds.
    pub(crate) fn ttl(&self, id: i64) -> Option<i64> {
        self.leases.get(&id).map(|lease| lease.ttl)
    }

    /// True if the lease is past its deadline and waits for its revoke.
    pub(crate) fn is_expired(&self, id: i64, now: Duration) -> bool {
        self.leases.get(&id).and_then(|lease| lease.deadline).is_some_and(|deadline| deadline <= now)
    }

    /// Granted and remaining seconds.
    pub(crate) fn time_to_live(&self, id: i64, now: Duration) -> Option<(i64, i64)> {
        let lease = self.leases.get(&id)?;
        let remaining = match lease.deadline {
            None => lease.ttl,
            Some(deadline) if deadline >= now => (deadline - now).as_secs().cast_signed(),
            Some(deadline) => -((now - deadline).as_secs().cast_signed()),
        };
        Some((lease.ttl, remaining))
    }

    /// Ids by remaining time, ascending (LSE-10).
    pub(crate) fn list(&self) -> Vec<i64> {
        let mut all: Vec<_> = self.leases.iter().map(|(id, lease)| (lease.deadline, *id)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, id)| id).collect()
    }

    /// Up to `max` leases past their deadline, longest past first; none while not primary.
    pub(crate) fn due(&mut self, now: Duration, max: usize) -> Vec<i64> {
        let mut due = Vec::new();
        while let Some(Reverse((deadline, id))) = self.due.peek().copied()
            && deadline <= now
            && due.len() < max
        {
            self.due.pop();
            if self.leases.get(&id).is_some_and(|lease| lease.deadline == Some(deadline)) {
                due.push(id);
            }
        }
        // Not revoked yet: they stay due.
        for id in &due {
            if let Some(deadline) = self.leases.get(id).and_then(|lease| lease.deadline) {
                self.due.push(Reverse((deadline, *id)));
            }
        }
        due
    }

    /// When the next lease may be due.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.due.peek().map(|Reverse((deadline, _))| *deadline)
    }

    /// Becomes the one that expires leases: each gets `extend` and what its last checkpoint has left it, or
    /// its whole time to live. Where they are many their deadlines are spread (LSE-14).
    pub(crate) fn promote(&mut self, now: Duration, extend: Duration) {
        self.primary = true;
        let deadline = |lease: &Lease| {
            let left = if lease.remaining > 0 { lease.remaining } else { lease.ttl };
            now.saturating_add(extend).saturating_add(Duration::from_secs(left.max(0).cast_unsigned()))
        };
        let mut all: Vec<(Duration, i64)> = self.leases.iter().map(|(id, lease)| (deadline(lease), *id)).collect();
        all.sort_unstable();
        if all.len() >= SPREAD_FROM {
            for at in DUE_PER_SECOND..all.len() {
                let earliest = all[at - DUE_PER_SECOND].0.saturating_add(Duration::from_secs(1));
                all[at].0 = all[at].0.max(earliest);
            }
        }
        for (deadline, id) in all {
            self.set_deadline(id, deadline, now);
        }
    }

    /// Stops expiring leases: no lease has a deadline.
    pub(crate) fn demote(&mut self) {
        self.primary = false;
        self.due.clear();
        self.checkpoints.clear();
        for lease in self.leases.values_mut() {
            (lease.deadline, lease.checkpoint, lease.checkpointing) = (None, None, false);
        }
    }

    /// Attaches a key to a lease, and to no other; 0 detaches it (PUT-7).
    pub(crate) fn attach(&mut self, key: &[u8], lease: i64) {
        // A key may name a lease that no longer exists (LSE-15): then it is attached to none.
        self.keys.attach(key, if self.exists(lease) { lease } else { 0 });
    }

    fn renew(&mut self, id: i64, now: Duration) {
        let ttl = self.ttl(id).unwrap_or(0).max(0).cast_unsigned();
        self.set_deadline(id, now.saturating_add(Duration::from_secs(ttl)), now);
    }

    fn set_deadline(&mut self, id: i64, deadline: Duration, now: Duration) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        lease.deadline = Some(deadline);
        self.due.push(Reverse((deadline, id)));
        if self.due.len() > 64 + 4 * self.leases.len() {
            let leases = &self.leases;
            self.due.retain(|Reverse((at, id))| leases.get(id).is_some_and(|lease| lease.deadline == Some(*at)));
        }
        self.schedule_checkpoint(id, now);
    }

    /// A checkpoint in an interval's time, if the lease lives longer.
    fn schedule_checkpoint(&mut self, id: i64, now: Duration) {
        let Some(interval) = self.checkpoint_interval else { return };
        let Some(lease) = self.leases.get_mut(&id) else { return };
        let at = now.saturating_add(interval);
        lease.checkpoint = lease.deadline.filter(|deadline| *deadline > at).map(|_| at);
        if lease.checkpoint.is_none() {
            return;
        }
        self.checkpoints.push(Reverse((at, id)));
        if self.checkpoints.len() > 64 + 4 * self.leases.len() {
            let leases = &self.leases;
            let current = |at: &Duration, id: &i64| leases.get(id).is_some_and(|lease| lease.checkpoint == Some(*at));
            self.checkpoints.retain(|Reverse((at, id))| current(at, id));
        }
    }
}

/// Seconds, a begun one whole.
fn whole_seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX).saturating_add(i64::from(time.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn leases_expire_in_order_and_renewed_ones_later() {
        let mut lessor = Lessor::default();
        lessor.promote(secs(0), secs(0));
        lessor.grant(1, 10, secs(0));
        lessor.grant(2, 5, secs(0));
        lessor.grant(-3, 20, secs(0));
        assert_eq!(lessor.list(), [2, 1, -3]);
        assert_eq!(lessor.due(secs(4), 10), [0i64; 0]);
        assert_eq!(lessor.keep_alive(1, secs(8)), Renewal::Renewed(10));
        assert_eq!(lessor.due(secs(12), 10), [2]);
        assert_eq!(lessor.due(secs(12), 10), [2], "still due until it is revoked");
        assert_eq!(lessor.keep_alive(2, secs(12)), Renewal::Gone, "LSE-7");
        lessor.revoke(2);
        assert_eq!(lessor.due(secs(18), 10), [1]);
        assert_eq!(lessor.time_to_live(-3, secs(1)), Some((20, 19)));
        assert_eq!(lessor.time_to_live(1, secs(20)), Some((10, -2)));
        lessor.demote();
        assert_eq!(lessor.due(secs(100), 10), [0i64; 0]);
        lessor.promote(secs(100), secs(1));
        assert_eq!(lessor.time_to_live(1, secs(100)), Some((10, 11)), "LSE-14");
    }

    #[test]
    fn a_key_has_one_lease() {
        let mut lessor = Lessor::default();
        lessor.grant(1, 10, secs(0));
        lessor.grant(2, 10, secs(0));
        let (a, b) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
        lessor.attach(&b, 1);
        lessor.attach(&a, 1);
        assert_eq!(BTreeSet::from_iter(lessor.keys(1)), BTreeSet::from([a.clone(), b.clone()]));
        lessor.attach(&a, 2);
        assert_eq!((lessor.keys(1), lessor.keys(2)), (vec![b.clone()], vec![a.clone()]));
        lessor.attach(&a, 99);
        assert_eq!(lessor.keys.lease_of(&a), 0);
        lessor.revoke(1);
        assert_eq!(lessor.keys.lease_of(&b), 0);
    }

    #[test]
    fn many_leases_are_spread_at_a_promotion_lse_14() {
        for count in [999, 1000, 5000] {
            let mut lessor = Lessor::default();
            // A tenth of them lives longer.
            let ttl = |id: i64| if id % 10 == 0 { 62 } else { 60 };
            (1..=count).for_each(|id| lessor.grant(id, ttl(id), secs(0)));
            lessor.promote(secs(100), secs(1));
            let mut deadlines: Vec<Duration> = (1..=count).map(|id| lessor.leases[&id].deadline.unwrap()).collect();
            for (id, deadline) in (1..=count).zip(&deadlines) {
                assert!(*deadline >= secs(101 + ttl(id).cast_unsigned()), "none ends before its time");
            }
            deadlines.sort_unstable();
            let in_a_second =
                |from: &Duration| deadlines.iter().filter(|at| (*from..*from + secs(1)).contains(at)).count();
            let most = deadlines.iter().map(in_a_second).max().unwrap();
            assert_eq!(most, if count < 1000 { 900 } else { 750 });
            let last = 163 + count.cast_unsigned() / 750;
            assert!(*deadlines.last().unwrap() <= secs(last), "nor much later than it has to");
        }
    }

    #[test]
    fn long_leases_are_checkpointed_once_an_interval_lse_16() {
        let mut lessor = Lessor::new(Some(secs(300)));
        lessor.promote(secs(0), secs(0));
        lessor.grant(1, 1000, secs(0));
        lessor.grant(2, 300, secs(0));
        lessor.grant(3, 1000, secs(100));
        assert_eq!(lessor.due_checkpoints(secs(299), 10), []);
        assert_eq!(lessor.due_checkpoints(secs(301), 10), [(1, 699)], "not the one that lives an interval");
        assert_eq!(lessor.due_checkpoints(secs(302), 10), [(1, 698)], "due until it is recorded");
        assert_eq!(lessor.keep_alive(1, secs(302)), Renewal::Checkpointed, "on its way");
        lessor.checkpointed(1, 698, secs(302));
        assert_eq!(lessor.due_checkpoints(secs(420), 10), [(3, 680)]);
        assert_eq!(lessor.due_checkpoints(secs(601), 1), [(3, 499)], "as many as asked for");
        assert_eq!(lessor.keep_alive(1, secs(602)), Renewal::Checkpointed);
        lessor.checkpointed(1, 0, secs(602));
        assert_eq!(lessor.keep_alive(1, secs(602)), Renewal::Renewed(1000));
        lessor.checkpointed(3, 500, secs(602));
        lessor.demote();
        assert_eq!(lessor.due_checkpoints(secs(5000), 10), []);
        lessor.promote(secs(5000), secs(1));
        assert_eq!(lessor.time_to_live(3, secs(5000)), Some((1000, 501)), "what the checkpoint left");
        assert_eq!(lessor.time_to_live(1, secs(5000)), Some((1000, 1001)), "renewed since");
    }
}
