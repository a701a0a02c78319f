//! One simulated machine: a disk, a clock, an engine whose jobs are stepped by hand, and a model of each of
//! its keyspaces. Everything is a function of the seed.
//!
//! Each write is followed until it was evaluated, and the model runs it then ([`World::settle`]); its answer
//! may come much later and is compared when it does. A *boundary* is a state of the model after a command: a
//! crash has to land on one, not before what was acknowledged or shown, not behind what was applied.

use crate::checks::{Stream, Watch};
use crate::coverage::Coverage;
use bytes::Bytes;
use polybolt::disk::Disk;
use polybolt::disk::sim::{SimDisk, is_crash};
use polybolt::model::{Answer, Mark, Model, is_pressed};
use polybolt::run::seeded::{Rng, Seeded, meanwhile};
use polybolt::run::{Clock, ManualClock};
use polybolt::{
    Applied, Command, Durability, Engine, Error, Face, Keyspace, Options, Refusal, Result, Routes, Runtime,
    ShardOptions, StorageError, StoreStats,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The shared world: pauses of a read reach it while the read runs.
pub(crate) type Shared = Rc<RefCell<World>>;

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
            compaction_batch_limit: 1 + rng.below(20) as usize,
            compaction_sleep_interval: Duration::from_millis(rng.below(6)),
            min_lease_ttl: 1,
            lease_extend: EXTEND,
            admission_timeout: Duration::from_secs(2 + rng.below(5)),
            pin_age_max: Duration::from_secs(1 + rng.below(20)),
            watch_buffer_bytes: rng.below(4000) as usize,
            reserve_ahead: 4 + rng.below(60),
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
        let shard = |at: usize| {
            let prefix = PREFIXES[at];
            let shard = ShardOptions { page_bytes: self.page_bytes, ..ShardOptions::new(format!("s{prefix}")) };
            let shard = shard.prefix(prefix);
            if self.volatile && prefix == VOLATILE { shard.volatile() } else { shard }
        };
        let rest = ShardOptions { page_bytes: self.page_bytes, ..ShardOptions::new("default") };
        Routes::new((0..self.shards - 1).map(shard).chain([rest]).collect()).expect("the routes are sound")
    }
}

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
    /// The newest revision that anybody saw, ever.
    pub(crate) ever_shown: i64,
    pub(crate) deadlines: BTreeMap<i64, Duration>,
    pub(crate) watches: Vec<Watch>,
    pub(crate) streams: Vec<Stream>,
    /// With a log above: what it holds, and the history hash after each entry.
    pub(crate) log: Vec<Command>,
    pub(crate) histories: BTreeMap<u64, u128>,
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
    pub(crate) ended: bool,
    pub(crate) stale: Vec<(std::path::PathBuf, u64, Vec<u8>)>,
    pub(crate) stats: StoreStats,
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
            ended: false,
            stale: Vec::new(),
            stats: StoreStats::default(),
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
                ever_shown: 1,
                deadlines: BTreeMap::new(),
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
        match self.rng.below(12) {
            0..=4 => return false,
            5..=8 => self.run_some(8),
            9 | 10 => {
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

    /// Who waits for room waits until there is some.
    fn relent(&mut self, tries: u64) {
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
                        space.deadlines.insert(lease.id, now + ttl);
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
        if !self.setup.is_replayed() {
            ran += self.follow_expiry(at, &ks, now);
        }
        let probe = ks.probe();
        let space = &mut self.spaces[at];
        let model = &space.model.now;
        assert_eq!(probe.applied, model.main, "the newest revision applied to {}", space.name);
        assert_eq!(probe.compacted, model.compacted, "the compacted revision of {}", space.name);
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
        let mut gone: Vec<(Duration, i64)> = Vec::new();
        for id in space.model.now.leases.keys().filter(|id| !alive.contains(id)) {
            let deadline = *space.deadlines.get(id).expect("a lease has a deadline");
            assert!(deadline <= now, "lease {id} went at {now:?}, its deadline is {deadline:?}");
            gone.push((deadline, *id));
        }
        gone.sort_unstable();
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
        space.ever_shown = space.ever_shown.max(visible);
        if self.setup.is_replayed() {
            space.log_floor = space.log_floor.max(ks.log_floor());
        }
    }

    fn check_pressed(&mut self, error: &Error, asked: &Asked) {
        match error {
            Error::Refused(Refusal::NoSpace) => {
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

    pub(crate) fn key(&mut self) -> Bytes {
        let prefix = PREFIXES[self.rng.below(PREFIXES.len() as u64) as usize];
        let long = if self.rng.one_in(24) { "k".repeat(300) } else { String::new() };
        format!("{prefix}{:02}{long}", self.rng.below(self.setup.keys)).into()
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

/// Runs `call` with the rest of the world at its pauses. Requires: nobody borrows the world.
pub(crate) fn among_others<T>(shared: &Shared, call: impl FnOnce() -> T) -> T {
    shared.borrow_mut().waits = 0;
    let world = Rc::clone(shared);
    meanwhile(Some(Box::new(move |at| world.borrow_mut().meanwhile(at))));
    let done = call();
    meanwhile(None);
    done
}
