//! What is written, in which order, and what has to be there then.

use crate::dataset::{self, Data, Numbers, Values};
use crate::peer::Row;

/// One operation; keys by their number.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// A put of the value of a number.
    Put(usize, u64),
    /// A delete of a key that is there.
    Delete(usize),
    /// A compare-and-put; of every tenth the expected revision is one too low.
    Compare(usize, u64, bool),
}

impl Step {
    /// The number of its key.
    pub fn key(self) -> usize {
        match self {
            Step::Put(key, _) | Step::Delete(key) | Step::Compare(key, ..) => key,
        }
    }

    /// The number of the value that it puts if it succeeds.
    pub fn value(self) -> Option<u64> {
        match self {
            Step::Put(_, value) | Step::Compare(_, value, _) => Some(value),
            Step::Delete(_) => None,
        }
    }
}

/// Parts of the plan, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Every key once, scattered.
    Load,
    /// Half as many overwrites, at random.
    Overwrite,
    /// A twentieth of the keys goes, as many come. What was there before is the older revision of row 9.
    Churn,
    /// A fifth as many compare-and-puts, of a fiftieth of the keys.
    Compare,
}

/// All phases in order.
pub const PHASES: [Phase; 4] = [Phase::Load, Phase::Overwrite, Phase::Churn, Phase::Compare];

/// The plan for a number of keys.
#[derive(Debug)]
pub struct Plan {
    /// How many are loaded.
    pub keys: usize,
    /// All keys, those that come later too.
    pub names: Vec<String>,
    /// Where values come from.
    pub values: Values,
}

impl Plan {
    /// The same for the same number.
    pub fn new(keys: usize, data: Data) -> Self {
        Plan { keys, names: dataset::keys(keys + keys / 20), values: Values::like(data) }
    }

    /// A key by its number.
    pub fn key(&self, number: usize) -> &[u8] {
        self.names[number].as_bytes()
    }

    /// The operations of a phase.
    pub fn steps(&self, phase: Phase) -> Box<dyn Iterator<Item = Step>> {
        let keys = self.keys;
        let number = move |part: usize, at: usize| (part * keys + at) as u64;
        let mut numbers = Numbers::new(phase as u64 + 1);
        match phase {
            Phase::Load => {
                Box::new(dataset::scattered(keys).zip(0..).map(move |(key, at)| Step::Put(key, number(0, at))))
            }
            Phase::Overwrite => Box::new((0..keys / 2).map(move |at| Step::Put(numbers.below(keys), number(1, at)))),
            Phase::Churn => {
                let gone = dataset::scattered(keys).take(keys / 20).enumerate();
                Box::new(gone.flat_map(move |(at, gone)| [Step::Delete(gone), Step::Put(keys + at, number(2, at))]))
            }
            Phase::Compare => {
                let hot: Vec<usize> = dataset::scattered(keys).skip(keys / 20).take(keys / 50).collect();
                let step = move |at| Step::Compare(hot[numbers.below(hot.len())], number(3, at), at % 10 == 9);
                Box::new((0..keys / 5).map(step))
            }
        }
    }

    /// Bytes of the keys and values that are loaded.
    pub fn loaded_bytes(&self) -> u64 {
        self.steps(Phase::Load)
            .map(|step| self.key(step.key()).len() + step.value().map_or(0, |value| self.values.of(value).len()))
            .sum::<usize>() as u64
    }

    /// The first revision of what came after the load.
    pub fn first_after_load(&self) -> u64 {
        self.keys as u64 + 2
    }

    /// The last revision before the churn.
    pub fn older(&self) -> u64 {
        (self.keys + self.keys / 2) as u64 + 1
    }
}

/// A version that has to be there; version 0 is none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Version {
    /// Where this life began.
    pub created: u64,
    /// Its revision.
    pub modified: u64,
    /// Puts since.
    pub version: u64,
    /// The number of its value.
    pub value: u64,
}

/// What has to be there.
#[derive(Debug, Clone)]
pub struct Model {
    /// By the key's number.
    pub cells: Vec<Version>,
    /// The current revision.
    pub revision: u64,
}

impl Model {
    /// Of an empty store.
    pub fn new(plan: &Plan) -> Self {
        Model { cells: vec![Version::default(); plan.names.len()], revision: 1 }
    }

    /// The revision that a compare-and-put expects.
    pub fn expected(&self, key: usize, stale: bool) -> u64 {
        self.cells[key].modified - u64::from(stale)
    }

    /// Does a step; false if it changes nothing.
    pub fn apply(&mut self, step: Step) -> bool {
        let (key, value) = match step {
            Step::Compare(_, _, true) => return false,
            Step::Put(key, value) | Step::Compare(key, value, false) => (key, Some(value)),
            Step::Delete(key) => (key, None),
        };
        self.revision += 1;
        let cell = &mut self.cells[key];
        *cell = match value {
            None => Version { modified: self.revision, ..Version::default() },
            Some(value) => Version {
                created: if cell.version == 0 { self.revision } else { cell.created },
                modified: self.revision,
                version: cell.version + 1,
                value,
            },
        };
        true
    }

    /// A key's row as it has to be shown.
    pub fn row<'a>(&self, plan: &'a Plan, key: usize) -> Row<'a> {
        let Version { created, modified, version, value } = self.cells[key];
        let value = if version == 0 { &[] } else { plan.values.of(value) };
        Row { key: plan.key(key), created, modified, version, value }
    }

    /// The live keys that begin with `prefix`, in order.
    pub fn live(&self, plan: &Plan, prefix: &str) -> Vec<usize> {
        let live = |key: &usize| self.cells[*key].version > 0 && plan.names[*key].starts_with(prefix);
        let mut keys: Vec<usize> = (0..plan.names.len()).filter(live).collect();
        keys.sort_unstable_by_key(|key| &plan.names[*key]);
        keys
    }
}

/// A cheap number of rows in their order, taken while they are measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fold {
    /// How many.
    pub rows: u64,
    hash: u64,
}

fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(bytes.len() as u64, |word| u64::from_le_bytes(*word))
}

fn last_word(bytes: &[u8]) -> u64 {
    bytes.last_chunk().map_or(bytes.len() as u64, |word| u64::from_le_bytes(*word))
}

impl Fold {
    /// Takes a row in: its numbers, both ends of its value, the end of its key.
    pub fn add(&mut self, row: &Row<'_>) {
        self.rows += 1;
        let numbers = row.modified ^ row.created.rotate_left(24) ^ row.version.rotate_left(48);
        let bytes = word(row.value) ^ last_word(row.value).rotate_left(32) ^ last_word(row.key);
        self.hash = (self.hash.rotate_left(5) ^ numbers ^ bytes).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// What a list of these keys has to give.
    pub fn of(plan: &Plan, model: &Model, keys: &[usize]) -> Fold {
        let mut fold = Fold::default();
        keys.iter().for_each(|key| fold.add(&model.row(plan, *key)));
        fold
    }
}
