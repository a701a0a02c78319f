//! The model follows the engine: each command is run by the model when the engine has evaluated it, and its
//! answer is compared when it comes.

use crate::world::{Asked, Boundary, Space, Waiting, World, is_above};
use polybolt::model::is_pressed;
use polybolt::run::Clock;
use polybolt::{Applied, Command, Error, Keyspace, Refusal, Result};
use std::time::Duration;

impl World {
    /// Lets the model run what the engine has evaluated since, in the same order.
    pub(crate) fn settle(&mut self) {
        for at in 0..self.spaces.len() {
            self.settle_space(at);
        }
    }

    fn settle_space(&mut self, at: usize) {
        let now = self.clock.monotonic();
        let Some(ks) = self.spaces[at].ks.clone() else { return };
        let mut ran = 0;
        while let Some(outcome) = self.spaces[at].line.front().and_then(Asked::outcome) {
            let asked = self.spaces[at].line.pop_front().expect("front() just saw it");
            let pressed = outcome.as_ref().err().filter(|error| is_pressed(error)).cloned();
            let expected = match pressed {
                Some(error) => {
                    self.check_pressed(&error, &asked);
                    if let Some(index) = asked.index {
                        // Its frontend gives the entry up, and history is another one from here on.
                        self.spaces[at].histories.split_off(&index);
                        self.spaces[at].log[index as usize - 1] = Command::Nothing;
                    }
                    None
                }
                None => {
                    let space = &mut self.spaces[at];
                    let before = space.model.mark();
                    let expected = space.model.apply(&asked.command, asked.index);
                    if asked.index.is_none() {
                        assert_eq!(outcome.is_ok(), expected.is_ok(), "{asked:?} was {outcome:?}, not {expected:?}");
                    }
                    if let (Ok(Applied::Lease(lease)), Command::LeaseGrant { .. }) = (&expected, &asked.command) {
                        let ttl = Duration::from_secs(lease.ttl.cast_unsigned());
                        space.deadlines.insert(lease.id, space.settled + ttl);
                    }
                    if expected.is_ok() && matches!(asked.command, Command::CompactShard { .. }) {
                        self.coverage.add("shards compacted", 1);
                    }
                    ran += 1;
                    let changed = before != space.model.now;
                    if changed {
                        space.boundaries.push(Boundary { mark: space.model.mark(), history: None });
                    }
                    Some(expected)
                }
            };
            let space = &mut self.spaces[at];
            let boundary = space.boundaries.len() - 1;
            space.waiting.push(Waiting { asked, expected, boundary });
        }
        self.spaces[at].settled = now;
        if !self.setup.is_replayed() {
            ran += self.follow_expiry(at, &ks, now);
        }
        let probe = ks.probe();
        let space = &mut self.spaces[at];
        let model = &space.model.now;
        assert_eq!(probe.applied, model.main, "the newest revision applied to {}", space.name);
        assert_eq!(probe.compacted, model.compacted, "the compacted revision of {}", space.name);
        assert_eq!(probe.floors, model.floors, "the floors of {}", space.name);
        if ran == 1 {
            let last = space.boundaries.last_mut().expect("there is a first boundary");
            last.history = Some(probe.history);
        }
        if self.setup.is_replayed() && ran == 1 {
            let known = *space.histories.entry(model.applied_index).or_insert(probe.history);
            assert_eq!(known, probe.history, "the history at index {}, applied again", model.applied_index);
        }
        self.note_shown(at);
    }

    /// Leases that the engine has revoked by itself, longest past first.
    fn follow_expiry(&mut self, at: usize, ks: &Keyspace, now: Duration) -> usize {
        let space = &mut self.spaces[at];
        if space.model.now.leases.is_empty() {
            return 0;
        }
        let alive = ks.leases();
        let before = std::mem::replace(&mut space.by_deadline, alive.clone());
        let mut gone: Vec<(Duration, i64)> = Vec::new();
        for id in space.model.now.leases.keys().filter(|id| !alive.contains(id)) {
            let deadline = *space.deadlines.get(id).expect("a lease has a deadline");
            assert!(deadline <= now, "lease {id} went at {now:?}, its deadline is {deadline:?}");
            gone.push((deadline, *id));
        }
        gone.sort_unstable();
        if self.setup.options.lease_checkpoint_interval.is_some() {
            // Of deadlines only the earliest that may be is known.
            gone.sort_by_key(|(_, id)| before.iter().position(|known| known == id));
        }
        for (_, id) in &gone {
            space.model.apply(&Command::LeaseRevoke(*id), None).expect("the lease is there");
            space.boundaries.push(Boundary { mark: space.model.mark(), history: None });
        }
        self.coverage.add("leases expired", gone.len() as u64);
        gone.len()
    }

    /// What anybody can see now has to survive.
    fn note_shown(&mut self, at: usize) {
        let space = &mut self.spaces[at];
        let Some(ks) = &space.ks else { return };
        let (visible, compacted) = (ks.revision(), ks.compact_revision());
        assert!(visible >= space.shown, "the revision went back from {} to {visible}", space.shown);
        assert!(visible <= space.model.now.main, "{visible} is visible and not applied");
        assert!(compacted >= space.shown_compacted && compacted <= space.model.now.compacted);
        (space.shown, space.shown_compacted) = (visible, compacted);
        let floors = ks.probe().floors_shown;
        assert!(is_above(&floors, &space.shown_floors) && is_above(&space.model.now.floors, &floors));
        space.shown_floors = floors;
        space.ever_shown = space.ever_shown.max(visible);
        if self.setup.is_replayed() {
            space.log_floor = space.log_floor.max(ks.log_floor());
        }
    }

    fn check_pressed(&mut self, error: &Error, asked: &Asked) {
        match error {
            Error::Refused(Refusal::DiskFull) => {
                self.coverage.add("ENOSPC at admission", 1);
                let full = self.was_limited || self.disk.fired().iter().any(|fired| fired.full);
                assert!(full, "{asked:?}: no space on a disk with room");
            }
            Error::Refused(Refusal::TooManyRequests) => {
                self.coverage.add("refused for want of room", 1);
                let waited = self.clock.monotonic() - asked.at;
                assert!(waited > self.setup.options.admission_timeout, "{asked:?} was refused after {waited:?}");
            }
            Error::Storage(error) => {
                let volatile = self.spaces.iter().filter_map(|space| space.ks.as_ref());
                let volatile = volatile.flat_map(Keyspace::volatile_files).collect::<Vec<_>>();
                let fired = self.disk.fired();
                let ok = self.allows(error) || fired.iter().any(|fired| volatile.contains(&fired.path));
                assert!(ok, "{asked:?}: {error}");
            }
            error => panic!("{asked:?}: {error}"),
        }
    }

    /// Compares the answers that have come.
    pub(crate) fn take_answers(&mut self) {
        for at in 0..self.spaces.len() {
            let mut waiting = std::mem::take(&mut self.spaces[at].waiting);
            let mut come = Vec::new();
            waiting.retain_mut(|waiting| {
                let given = waiting.asked.given.take().or_else(|| waiting.asked.answer.poll());
                match given {
                    Some(given) => {
                        let asked = format!("{:?} {:?}", waiting.asked.command, waiting.asked.index);
                        let durable = self.setup.is_sync() || waiting.asked.physical && given.is_ok();
                        come.push((
                            given,
                            waiting.expected.take(),
                            waiting.boundary.min(if durable { usize::MAX } else { 0 }),
                            asked,
                        ));
                        false
                    }
                    None => true,
                }
            });
            self.spaces[at].waiting.append(&mut waiting);
            for (given, expected, boundary, asked) in come {
                self.compare(at, given, expected, boundary, &asked);
            }
        }
        self.settle();
    }

    fn compare(
        &mut self,
        at: usize,
        given: Result<Applied>,
        expected: Option<Result<Applied, Refusal>>,
        boundary: usize,
        asked: &str,
    ) {
        let answered = match (&given, &expected) {
            (Ok(given), Some(Ok(expected))) => {
                assert_eq!(given, expected, "the answer to {asked}");
                true
            }
            (Err(Error::Refused(given)), Some(Err(expected))) => {
                assert_eq!(given, expected, "the refusal of {asked}");
                true
            }
            (Err(Error::Storage(error) | Error::Unknown(error)), _) => {
                assert!(expected.is_none() || self.allows(error), "{asked}: {error}");
                false
            }
            // It says nothing of the state.
            (Err(_), None) => false,
            _ => panic!("{asked} was answered with {given:?}, expected {expected:?}"),
        };
        let space = &mut self.spaces[at];
        if answered {
            space.acknowledged = space.acknowledged.max(boundary);
        }
    }

    /// Runs until every request was evaluated and answered, as far as that can be.
    pub(crate) fn quiesce(&mut self) {
        for tries in 0.. {
            self.take_answers();
            let busy = self.spaces.iter().any(|space| !space.line.is_empty() || !space.waiting.is_empty());
            if self.is_broken() || !busy {
                return;
            }
            if tries >= 60_000 {
                let waits = |space: &Space| format!("{:?} {:?}", space.line.front(), space.waiting.first());
                let waits: Vec<String> = self.spaces.iter().map(waits).collect();
                panic!("an answer never comes: {waits:?} {:?} {:?}", self.jobs, self.engine().stats());
            }
            self.relent(tries);
            self.step();
        }
    }
}

impl Asked {
    /// What became of it, if it was evaluated.
    fn outcome(&self) -> Option<Result<()>> {
        match &self.given {
            Some(Ok(_)) => Some(Ok(())),
            Some(Err(error)) => Some(Err(error.clone())),
            None => self.answer.outcome(),
        }
    }
}
