//! Leases: who expires when, and which keys go with whom.
//!
//! A pure data structure: time is an argument, and what has to be written is the caller's to write.
//! Deadlines are kept in a heap whose stale entries are passed over, so that granting, renewing and
//! expiring cost O(log n). Deadlines and attachments are not persisted: a restart extends leases
//! (LSE-14), and attachments follow from the newest version of each key (IDX-6).

use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::time::Duration;

/// The longest time to live, in seconds (LSE-2).
pub(crate) const TTL_MAX: i64 = 9_000_000_000;

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) ttl: i64,
    /// None while not primary: never.
    pub(crate) deadline: Option<Duration>,
    pub(crate) keys: BTreeSet<Bytes>,
}

/// All leases of a keyspace.
#[derive(Debug, Default)]
pub(crate) struct Lessor {
    leases: HashMap<i64, Lease>,
    of_key: HashMap<Bytes, i64>,
    due: BinaryHeap<Reverse<(Duration, i64)>>,
    primary: bool,
}

impl Lessor {
    /// True if a lease of that id exists, past its deadline or not.
    pub(crate) fn exists(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }

    /// Adds a lease. Requires: the id is free and the time to live effective.
    pub(crate) fn grant(&mut self, id: i64, ttl: i64, now: Duration) {
        self.leases.insert(id, Lease { ttl, deadline: None, keys: BTreeSet::new() });
        if self.primary {
            self.renew(id, now, Duration::ZERO);
        }
    }

    /// Takes a lease out; its keys are detached.
    pub(crate) fn revoke(&mut self, id: i64) {
        if let Some(lease) = self.leases.remove(&id) {
            for key in lease.keys {
                self.of_key.remove(&key);
            }
        }
    }

    /// The keys of a lease, ascending.
    pub(crate) fn keys(&self, id: i64) -> Vec<Bytes> {
        self.leases.get(&id).map(|lease| lease.keys.iter().cloned().collect()).unwrap_or_default()
    }

    /// Starts the time to live anew; None if there is no such lease, or it is past its deadline (an
    /// expired lease never comes back to life, LSE-7).
    pub(crate) fn keep_alive(&mut self, id: i64, now: Duration) -> Option<i64> {
        let lease = self.leases.get(&id)?;
        if lease.deadline.is_some_and(|deadline| deadline <= now) {
            return None;
        }
        let ttl = lease.ttl;
        self.renew(id, now, Duration::ZERO);
        Some(ttl)
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

    /// Becomes the one that expires leases; each gets its whole time to live and `extend` (LSE-14).
    pub(crate) fn promote(&mut self, now: Duration, extend: Duration) {
        self.primary = true;
        let mut ids: Vec<i64> = self.leases.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            self.renew(id, now, extend);
        }
    }

    /// Stops expiring leases: no lease has a deadline.
    pub(crate) fn demote(&mut self) {
        self.primary = false;
        self.due.clear();
        self.leases.values_mut().for_each(|lease| lease.deadline = None);
    }

    /// Attaches a key to a lease, and to no other; 0 detaches it (PUT-7).
    pub(crate) fn attach(&mut self, key: &Bytes, lease: i64) {
        let before = self.lease_of(key);
        if before == lease {
            return;
        }
        if before != 0 {
            self.of_key.remove(key);
            if let Some(old) = self.leases.get_mut(&before) {
                old.keys.remove(key);
            }
        }
        // A key may name a lease that no longer exists (LSE-15): then it is attached to none.
        if lease != 0
            && let Some(new) = self.leases.get_mut(&lease)
        {
            new.keys.insert(key.clone());
            self.of_key.insert(key.clone(), lease);
        }
    }

    /// The lease a key is attached to, or 0.
    pub(crate) fn lease_of(&self, key: &[u8]) -> i64 {
        self.of_key.get(key).copied().unwrap_or(0)
    }

    fn renew(&mut self, id: i64, now: Duration, extend: Duration) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        let ttl = Duration::from_secs(lease.ttl.max(0).cast_unsigned());
        let deadline = now.saturating_add(extend).saturating_add(ttl);
        lease.deadline = Some(deadline);
        self.due.push(Reverse((deadline, id)));
        if self.due.len() > 64 + 4 * self.leases.len() {
            let leases = &self.leases;
            self.due.retain(|Reverse((at, id))| leases.get(id).is_some_and(|lease| lease.deadline == Some(*at)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(lessor.keep_alive(1, secs(8)), Some(10));
        assert_eq!(lessor.due(secs(12), 10), [2]);
        assert_eq!(lessor.due(secs(12), 10), [2], "still due until it is revoked");
        assert_eq!(lessor.keep_alive(2, secs(12)), None, "LSE-7");
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
        assert_eq!(lessor.keys(1), [a.clone(), b.clone()]);
        lessor.attach(&a, 2);
        assert_eq!((lessor.keys(1), lessor.keys(2)), (vec![b.clone()], vec![a.clone()]));
        lessor.attach(&a, 99);
        assert_eq!(lessor.lease_of(&a), 0);
        lessor.revoke(1);
        assert_eq!(lessor.lease_of(&b), 0);
    }
}
