//! One simulated machine: a disk, a clock, an engine whose jobs are stepped by hand, and a model of each of
//! its keyspaces. Everything is a function of the seed.
//!
//! Each write is followed until it was evaluated, and the model runs it then ([`World::settle`]); its answer
//! may come much later and is compared when it does. A *boundary* is a state of the model after a command: a
//! crash has to land on one, not before what was acknowledged or shown, not behind what was applied.

use crate::checks::{Stream, Watch};
use crate::copies::Ahead;
use crate::coverage::Coverage;
use crate::setup::{EXTEND, PREFIXES, Setup};
use bytes::Bytes;
use polybolt::disk::Disk;
use polybolt::disk::sim::{SimDisk, is_crash};
use polybolt::model::{Answer, Mark, Model};
use polybolt::run::seeded::{Rng, Seeded, meanwhile};
use polybolt::run::{Clock, ManualClock};
use polybolt::{Applied, Command, Engine, Keyspace, Refusal, Result, Runtime, StorageError, StoreStats};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The shared world: pauses of a read reach it while the read runs.
pub(crate) type Shared = Rc<RefCell<World>>;

/// A command on its way.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) command: Command,
    pub(crate) index: Option<u64>,
    pub(crate) answer: Answer,
    pub(crate) at: Duration,
    /// The answer came before the model had run it.
    pub(crate) given: Option<Result<Applied>>,
    /// Answered once all before it is in the files.
    pub(crate) physical: bool,
}

/// A command that was evaluated and whose answer is still to come.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) asked: Asked,
    /// None: it was not run, for want of room or because the disk failed.
    pub(crate) expected: Option<Result<Applied, Refusal>>,
    /// The newest boundary it was computed from.
    pub(crate) boundary: usize,
}

/// The model after a command.
#[derive(Debug, Clone)]
pub(crate) struct Boundary {
    pub(crate) mark: Mark,
    /// The engine's history hash then, where it was looked at.
    pub(crate) history: Option<u128>,
}

/// A keyspace and what is known of it.
pub(crate) struct Space {
    pub(crate) name: String,
    pub(crate) ks: Option<Keyspace>,
    pub(crate) model: Model,
    pub(crate) boundaries: Vec<Boundary>,
    pub(crate) line: VecDeque<Asked>,
    pub(crate) waiting: Vec<Waiting>,
    /// The newest boundary that must survive.
    pub(crate) acknowledged: usize,
    /// The newest revision and compacted revision that anybody saw since the last open.
    pub(crate) shown: i64,
    pub(crate) shown_compacted: i64,
    /// The same of the floors of its shards.
    pub(crate) shown_floors: Vec<i64>,
    /// The newest revision that anybody saw, ever.
    pub(crate) ever_shown: i64,
    /// When leases end, or not before when: with checkpoints of leases, and of those that were granted since the model
    /// followed last.
    pub(crate) deadlines: BTreeMap<i64, Duration>,
    /// When it followed last.
    pub(crate) settled: Duration,
    /// Leases in the order in which they end, as the engine had it last.
    pub(crate) by_deadline: Vec<i64>,
    pub(crate) watches: Vec<Watch>,
    pub(crate) streams: Vec<Stream>,
    /// With a log above: what it holds, and the history hash after each entry.
    pub(crate) log: Vec<Command>,
    pub(crate) histories: BTreeMap<u64, u128>,
    /// A snapshot whose install did not end: a restart finds what was before it or this.
    pub(crate) ahead: Option<Ahead>,
    /// What the log's older end may forget.
    pub(crate) log_floor: u64,
}

pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) disk: SimDisk,
    pub(crate) clock: ManualClock,
    pub(crate) engine: Option<Engine>,
    pub(crate) jobs: Option<Seeded>,
    pub(crate) spaces: Vec<Space>,
    pub(crate) rng: Rng,
    pub(crate) operation: u64,
    pub(crate) coverage: Coverage,
    pub(crate) trace: bool,
    pub(crate) opens: u64,
    /// Bytes on disk were changed behind the engine's back: damage may be reported.
    pub(crate) damaged: bool,
    /// The disk has or had a limit since the engine was opened.
    pub(crate) was_limited: bool,
    /// A kill was the last crash: what it left was never synced.
    pub(crate) killed: bool,
    pub(crate) waits: u64,
    /// The newest slot of the manifest rotted before the engine was opened.
    pub(crate) rotted: bool,
    /// The engine was closed and not opened since.
    pub(crate) closed: bool,
    pub(crate) ended: bool,
    pub(crate) stale: Vec<(std::path::PathBuf, u64, Vec<u8>)>,
    pub(crate) stats: StoreStats,
    /// How many of the faults that fired on this disk are counted.
    pub(crate) counted: usize,
}

impl World {
    pub(crate) fn new(setup: Setup, trace: bool) -> Self {
        let disk = SimDisk::new(setup.seed);
        disk.create_dir("/data".as_ref()).expect("a new disk works");
        World {
            disk,
            clock: ManualClock::default(),
            engine: None,
            jobs: None,
            spaces: Vec::new(),
            rng: Rng::new(setup.seed),
            operation: 0,
            coverage: Coverage::default(),
            trace,
            opens: 0,
            damaged: false,
            was_limited: false,
            killed: false,
            waits: 0,
            rotted: false,
            closed: false,
            ended: false,
            stale: Vec::new(),
            stats: StoreStats::default(),
            counted: 0,
            setup,
        }
    }

    pub(crate) fn say(&self, text: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>4} {:>9.3?} {}", self.operation, self.clock.monotonic(), text());
        }
    }

    /// Opens the engine on the disk as it is.
    pub(crate) fn open(&mut self) -> Result<()> {
        self.opens += 1;
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let runtime = Runtime { disk, clock: Arc::new(self.clock.clone()), threads: false };
        let engine = Engine::open_with("/data/store", self.setup.options.clone(), runtime)?;
        self.jobs = Some(Seeded::new(engine.take_jobs(), self.clock.clone(), self.setup.seed ^ self.opens));
        self.engine = Some(engine);
        Ok(())
    }

    /// Creates the keyspaces of a new engine.
    pub(crate) fn create_keyspaces(&mut self) {
        for at in 0..self.setup.keyspaces {
            let name = format!("ks{at}");
            let ks = self.engine().create_keyspace(&name, self.setup.routes()).expect("a keyspace is created");
            if self.setup.is_replayed() {
                ks.promote(EXTEND);
            }
            let model = Model::new(self.setup.routes(), 128, self.setup.options.min_lease_ttl);
            let first = Boundary { mark: model.mark(), history: Some(0) };
            self.spaces.push(Space {
                name,
                ks: Some(ks),
                model,
                boundaries: vec![first],
                line: VecDeque::new(),
                waiting: Vec::new(),
                acknowledged: 0,
                shown: 1,
                shown_compacted: -1,
                shown_floors: Vec::new(),
                ever_shown: 1,
                deadlines: BTreeMap::new(),
                settled: Duration::ZERO,
                by_deadline: Vec::new(),
                ahead: None,
                watches: Vec::new(),
                streams: Vec::new(),
                log: Vec::new(),
                histories: BTreeMap::new(),
                log_floor: 0,
            });
        }
    }

    pub(crate) fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("the engine is open")
    }

    /// Why nothing more is written, if so.
    pub(crate) fn is_broken(&self) -> bool {
        self.disk.crashed() || self.engine.as_ref().is_some_and(|engine| engine.failure().is_some())
    }

    /// True if an error of the storage may be given now.
    pub(crate) fn allows(&self, error: &StorageError) -> bool {
        let fired = self.disk.fired();
        let by_fault = match error {
            StorageError::Io { path, .. } => fired.iter().any(|fired| fired.path == *path),
            StorageError::Corrupt { file, .. } => {
                self.damaged || fired.iter().any(|fired| fired.path == *file && fired.op == "read")
            }
            StorageError::NoSpace { .. } => self.was_limited || fired.iter().any(|fired| fired.full),
            _ => false,
        };
        by_fault || is_crash(error) || self.is_broken() || self.damaged
    }

    /// Steps one job, or lets some time pass. The model follows.
    pub(crate) fn step(&mut self) -> bool {
        let stepped = self.jobs.as_mut().is_some_and(Seeded::step_one);
        self.waits += 1;
        // Time passes too while somebody has always something to do.
        if !stepped || self.waits.is_multiple_of(16) {
            self.clock.advance(Duration::from_millis(5));
        }
        self.settle();
        stepped
    }

    /// Steps jobs at most so many times.
    pub(crate) fn run_some(&mut self, most: u64) {
        for _ in 0..self.rng.below(most + 1) {
            if self.is_broken() || !self.jobs.as_mut().is_some_and(Seeded::step_one) {
                return;
            }
            self.settle();
        }
    }

    /// What runs at a pause of a read, or while a call waits.
    fn meanwhile(&mut self, at: &'static str) -> bool {
        if at == "wait" {
            if self.waits == 59_990 {
                self.say(|| format!("{:?} {:?}", self.jobs, self.engine().stats()));
            }
            assert!(self.waits < 60_000, "a call waits for ever");
            self.relent(self.waits);
            self.step();
            return true;
        }
        match self.rng.below(24) {
            0..=9 => return false,
            10..=16 => self.run_some(8),
            17 | 18 => self.bustle(),
            19..=21 => {
                let space = self.rng.below(self.spaces.len() as u64) as usize;
                self.write(space);
                self.run_some(12);
            }
            _ => {
                let space = self.rng.below(self.spaces.len() as u64) as usize;
                let revision = self.spaces[space].model.now.main - self.rng.below(2).cast_signed();
                self.ask(space, Command::Compact(revision), false);
                self.run_some(60);
            }
        }
        true
    }

    /// Writes and checkpoints, one after the other: what a reader stands on is replaced more than once.
    fn bustle(&mut self) {
        let interval = self.setup.options.checkpoint_interval;
        for _ in 0..1 + self.rng.below(5) {
            for _ in 0..1 + self.rng.below(3) {
                let space = self.rng.below(self.spaces.len() as u64) as usize;
                self.write(space);
            }
            self.clock.advance(interval + Duration::from_millis(1));
            self.run_some(60);
        }
    }

    /// Who waits for room waits until there is some.
    pub(crate) fn relent(&mut self, tries: u64) {
        if tries == 4000 {
            self.disk.set_capacity(None);
            self.disk.heal();
        }
    }

    /// Hands a command in.
    pub(crate) fn ask(&mut self, at: usize, command: Command, physical: bool) {
        if self.is_broken() {
            return;
        }
        let now = self.clock.monotonic();
        let replayed = self.setup.is_replayed();
        let space = &mut self.spaces[at];
        let ks = space.ks.clone().expect("the keyspace is open");
        if replayed {
            space.log.push(command);
            let index = space.log.len() as u64;
            return self.ask_at(at, index);
        }
        let answer = match (physical, &command) {
            (true, Command::Compact(revision)) => ks.submit_physical(*revision),
            _ => ks.submit(&command, None),
        };
        space.line.push_back(Asked { command, index: None, answer, at: now, given: None, physical });
        self.settle();
    }

    /// Hands in an entry of the log.
    pub(crate) fn ask_at(&mut self, at: usize, index: u64) {
        let space = &mut self.spaces[at];
        let ks = space.ks.as_ref().expect("the keyspace is open");
        let command = space.log[index as usize - 1].clone();
        let answer = ks.submit(&command, Some(index));
        let at = self.clock.monotonic();
        space.line.push_back(Asked { command, index: Some(index), answer, at, given: None, physical: false });
        self.settle();
    }

    pub(crate) fn key(&mut self) -> Bytes {
        let prefix = PREFIXES[self.rng.below(PREFIXES.len() as u64) as usize];
        let long = if self.rng.one_in(24) { "k".repeat(300) } else { String::new() };
        format!("{prefix}{:02}{long}", self.rng.below(self.setup.keys)).into()
    }
}

/// True if none of `floors` is below what it was.
pub(crate) fn is_above(floors: &[i64], before: &[i64]) -> bool {
    floors.iter().zip(before).all(|(floor, before)| floor >= before)
}

/// Runs `call` with the rest of the world at its pauses. Requires: nobody borrows the world.
pub(crate) fn among_others<T>(shared: &Shared, call: impl FnOnce() -> T) -> T {
    shared.borrow_mut().waits = 0;
    let world = Rc::clone(shared);
    meanwhile(Some(Box::new(move |at| world.borrow_mut().meanwhile(at))));
    let done = call();
    meanwhile(None);
    done
}
