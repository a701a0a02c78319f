//! What is put once the plan is done: as often as a row likes, by as many callers, and yet every get can be checked.
//!
//! A key that the plan left alive gets the value of its own number, whoever puts it and how often.

use crate::peer::{Got, MvccPeer, Pair, Result, Row, Session, Span};
use crate::plan::{Model, PHASES, Plan};

/// Numbers of these values begin here.
const FIRST: u64 = 1 << 40;

/// The keys that the plan leaves, and what they may be now.
#[derive(Debug)]
pub struct Later {
    /// The plan.
    pub plan: Plan,
    newest: Model,
    live: Vec<usize>,
}

/// The number of the value that a key gets.
pub fn value_of(key: usize) -> u64 {
    FIRST + key as u64
}

impl Later {
    /// After a plan.
    pub fn new(plan: Plan) -> Self {
        let mut newest = Model::new(&plan);
        for step in PHASES.into_iter().flat_map(|phase| plan.steps(phase)) {
            newest.apply(step);
        }
        let live = newest.live(&plan, "");
        Later { plan, newest, live }
    }

    /// How many keys there are.
    pub fn keys(&self) -> usize {
        self.live.len()
    }

    /// One of them.
    pub fn pair(&self, at: usize) -> Pair<'_> {
        let number = self.live[at];
        Pair { key: self.plan.key(number), value: self.plan.values.of(value_of(number)) }
    }

    /// Puts one.
    pub fn put(&self, at: usize, session: &mut dyn Session) -> Result<u64> {
        let Pair { key, value } = self.pair(at);
        session.put(key, value)
    }

    /// Gets one: it has to be as the plan left it, or as it is put here.
    pub fn get(&self, at: usize, peer: &dyn MvccPeer) -> Result<Got> {
        let key = self.plan.key(self.live[at]);
        let got = peer.get(key)?.ok_or("a key is not there")?;
        let Got { created, modified, version, .. } = got;
        let right = self.is_right(at, &Row { key, created, modified, version, value: &got.value });
        if right { Ok(got) } else { Err("a get answers wrong".into()) }
    }

    /// True if a row is this key's, as the plan left it or as it is put here.
    pub fn is_right(&self, at: usize, row: &Row<'_>) -> bool {
        let expected = self.newest.row(&self.plan, self.live[at]);
        let value = if row.modified <= self.newest.revision {
            (row.modified, row.version) == (expected.modified, expected.version) && same(row.value, expected.value)
        } else {
            row.version > expected.version && same(row.value, self.pair(at).value)
        };
        value && (row.created, row.key) == (expected.created, expected.key)
    }

    /// The first of the keys in a span, and the one behind its last.
    pub fn within(&self, span: Span<'_>) -> std::ops::Range<usize> {
        let before = |bound: &[u8]| self.live.partition_point(|key| self.plan.key(*key) < bound);
        before(span.start)..before(span.end)
    }
}

/// The length and both ends: to compare all of it would be what is measured.
pub fn same(is: &[u8], expected: &[u8]) -> bool {
    is.len() == expected.len()
        && is.first_chunk::<8>() == expected.first_chunk::<8>()
        && is.last_chunk::<8>() == expected.last_chunk::<8>()
}
