//! Restarts: after a crash, a failure or a close; and what each has to find.

use crate::checks;
use crate::copies::Ahead;
use crate::faults::{names_a_file, rot};
use crate::setup::EXTEND;
use crate::world::{Boundary, Shared, Space, World, is_above};
use bytes::Bytes;
use polybolt::disk::Disk;
use polybolt::disk::sim::{Fault, ReadFault, Survive};
use polybolt::model::{Mark, StoredRows};
use polybolt::run::ManualClock;
use polybolt::{Engine, Error, Keyspace, RangeRequest, Runtime, Span, SpanEnd};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Restarts after a stop, as often as it takes, and compares.
pub(crate) fn recover(shared: &Shared, first: Option<Survive>) {
    let mut world = shared.borrow_mut();
    let world = &mut *world;
    world.take_answers();
    world.let_go();
    let mut survive = first.unwrap_or_else(|| world.survive());
    let mut tries = 0;
    loop {
        world.coverage.add("kill, then power cut", u64::from(world.killed && survive != Survive::All));
        world.killed = survive == Survive::All;
        world.say(|| format!("restart, {survive:?}, stopped at {}", world.disk.last_call()));
        world.disk.heal();
        world.count_faults();
        world.coverage.add("faults that fired", 1);
        (world.disk, world.counted) = (world.disk.after_crash(survive), 0);
        world.rot_newest_slot();
        tries += 1;
        if tries < 6 && !world.damaged {
            world.plan_faults_of_recovery();
        }
        match world.open() {
            Ok(()) => break,
            Err(error) if world.disk.crashed() => {
                world.say(|| format!("stopped again: {error}"));
                world.coverage.add("crashes in recovery", 1);
                survive = world.survive();
            }
            Err(error) => {
                let fired = world.disk.fired();
                assert!(!fired.is_empty() || world.damaged, "it does not open: {error}");
                if world.damaged {
                    assert!(names_a_file(&error), "{error}");
                    world.coverage.add("damage reported", 1);
                    world.ended = true;
                    return;
                }
                world.say(|| format!("does not open: {error}"));
                world.coverage.add("opens that failed", 1);
                world.disk.set_capacity(None);
                survive = Survive::All;
            }
        }
    }
    world.opened(false);
}

/// Closes and opens.
pub(crate) fn reopen(shared: &Shared) {
    shared.borrow_mut().quiesce();
    if shared.borrow().is_broken() {
        return;
    }
    if !shared.borrow_mut().reopen() {
        recover(shared, Some(Survive::All));
    }
}

/// What a power cut now would leave: nothing that is acknowledged or shown may be missing.
pub(crate) fn fork(shared: &Shared) {
    let mut world = shared.borrow_mut();
    let world = &mut *world;
    world.take_answers();
    if world.is_broken() {
        return;
    }
    let survive = if world.rng.one_in(2) { Survive::Nothing } else { Survive::Mix(world.rng.next_u64()) };
    let disk = world.disk.after_crash(survive);
    disk.set_capacity(None);
    let rot = world.setup.rot && world.rng.one_in(2) && rot(&disk, &mut world.rng);
    world.say(|| format!("a fork, {survive:?}, rot {rot}"));
    let clock = Arc::new(ManualClock::default());
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let engine = Engine::open_with("/data/store", world.setup.options.clone(), Runtime { disk, clock, threads: false })
        .unwrap_or_else(|error| panic!("a fork does not open: {error}"));
    let clean = engine.report().clean;
    world.say(|| format!("{:?}", engine.report()));
    assert!(!rot || engine.report().other_slot.is_some(), "a rotten slot was used");
    let before = std::mem::replace(&mut world.rotted, rot);
    for space in &world.spaces {
        let ks = engine.keyspace(&space.name).expect("a keyspace that was created is there");
        world.boundary_of(space, &ks, clean, false).unwrap_or_else(|why| panic!("a fork: {why}"));
    }
    world.rotted = before;
    world.coverage.add("newest slot rotted", u64::from(rot));
    engine.verify(&mut |_| ()).unwrap_or_else(|error| panic!("a fork: {error}"));
    world.coverage.add("forks", 1);
}
impl World {
    fn survive(&mut self) -> Survive {
        match self.rng.below(4) {
            0 => Survive::Nothing,
            1 => Survive::All,
            _ => Survive::Mix(self.rng.next_u64()),
        }
    }

    /// The process is gone: so is all that it held.
    fn let_go(&mut self) {
        for space in &mut self.spaces {
            if let Some(Ahead { model, history, .. }) = space.ahead.take() {
                space.model = model;
                space.boundaries.push(Boundary { mark: space.model.mark(), history: Some(history) });
            }
            space.line.clear();
            space.waiting.clear();
            space.watches.clear();
            space.streams.clear();
            space.ks = None;
        }
        self.jobs = None;
        self.engine = None;
    }

    /// Closes and opens; false if it does not open and has to be tried again.
    fn reopen(&mut self) -> bool {
        let world = self;
        world.coverage.add("clean reopens", 1);
        world.spaces.iter_mut().for_each(|space| {
            space.watches.clear();
            space.streams.clear();
        });
        let engine = world.engine.take().expect("the engine is open");
        if let Err(error) = engine.clone().close() {
            world.engine = Some(engine);
            let allowed = world.disk.crashed() || !world.disk.fired().is_empty() || world.damaged;
            assert!(allowed, "it does not close: {error}");
            world.say(|| format!("does not close: {error}"));
            if world.disk.fired().iter().any(|fired| fired.full) {
                world.disk.set_capacity(None);
            }
            world.disk.stop();
            return true;
        }
        drop(engine);
        for space in &mut world.spaces {
            space.acknowledged = space.boundaries.len() - 1;
            space.ks = None;
        }
        world.jobs = None;
        world.killed = false;
        world.closed = true;
        let limited = world.was_limited;
        world.disk.heal();
        world.rot_newest_slot();
        if let Err(error) = world.open() {
            if world.damaged {
                assert!(names_a_file(&error), "{error}");
                world.coverage.add("damage reported", 1);
                world.ended = true;
                return true;
            }
            assert!(limited || world.disk.crashed() || !world.disk.fired().is_empty(), "it does not open: {error}");
            world.disk.set_capacity(None);
            return false;
        }
        world.opened(true);
        true
    }

    /// In some seeds and at some restarts.
    fn rot_newest_slot(&mut self) {
        if self.setup.rot && !self.damaged && self.rng.one_in(3) && rot(&self.disk, &mut self.rng) {
            self.rotted = true;
            self.say(|| "the newest slot rots".to_owned());
            self.coverage.add("newest slot rotted", 1);
        }
    }

    fn plan_faults_of_recovery(&mut self) {
        if self.rng.one_in(4) {
            self.disk.crash_at(1 + self.rng.below(40));
        }
        if self.setup.eio && self.rng.one_in(6) {
            self.disk.fail_at(1 + self.rng.below(40), 1 + self.rng.below(3), Fault::Eio);
        }
        if self.setup.eio && self.rng.one_in(8) {
            self.disk.fail_reads(1 + self.rng.below(60), 1 + self.rng.below(3), ReadFault::Eio);
        }
    }

    /// The engine was opened: which boundary is it at?
    fn opened(&mut self, clean_close: bool) {
        // Reads of the comparison are ours.
        self.disk.heal();
        let report = self.engine().report().clone();
        self.say(|| format!("{report:?}"));
        assert!(!clean_close || report.clean || self.damaged || self.rotted, "closed, and not clean");
        self.coverage.add("opened on a full disk", u64::from(self.disk.is_limited()));
        self.coverage.add("torn groups", u64::from(report.dropped.is_some()));
        self.coverage.add("slot fallbacks", u64::from(report.other_slot.is_some()));
        self.coverage.add("groups replayed", report.groups);
        self.coverage.add("spanning groups replayed", report.spanning_groups);
        self.coverage.add("Volatile emptied", report.emptied);
        self.coverage.add("opens", 1);
        self.was_limited = false;
        self.disk.set_capacity(None);
        for name in self.engine().keyspaces() {
            if !self.spaces.iter().any(|space| space.name == name) {
                drop(self.engine().drop_keyspace(&name));
            }
        }
        if self.disk.crashed() {
            return;
        }
        for at in 0..self.spaces.len() {
            let ks = self.engine().keyspace(&self.spaces[at].name).expect("a keyspace that was created is there");
            let found = self.boundary_of(&self.spaces[at], &ks, report.clean, self.damaged);
            let boundary = match found {
                Ok(boundary) => boundary,
                Err(why) if self.damaged && why.starts_with("unreadable") => {
                    self.coverage.add("damage reported", 1);
                    self.ended = true;
                    return;
                }
                Err(why) => panic!("{}: {why}", self.spaces[at].name),
            };
            self.say(|| {
                format!(
                    "{} is at boundary {boundary} of {}",
                    self.spaces[at].name,
                    self.spaces[at].boundaries.len() - 1
                )
            });
            self.adopt(at, ks, boundary, report.clean);
        }
        (self.rotted, self.closed) = (false, false);
        self.disk_is_ours();
        for at in 0..self.spaces.len() {
            self.apply_again(at);
        }
        self.settle();
    }

    /// Crashes and faults planned for the opening that did not come are forgotten half of the time.
    fn disk_is_ours(&mut self) {
        if self.killed && !self.damaged && self.rng.one_in(2) {
            self.disk.crash_at(self.disk.calls() + 1 + self.rng.below(12));
        }
    }

    /// The model goes where the keyspace is.
    fn adopt(&mut self, at: usize, ks: Keyspace, boundary: usize, clean: bool) {
        let now = polybolt::run::Clock::monotonic(&self.clock);
        let (reserves, sync, replayed) = (self.setup.reserves(), self.setup.is_sync(), self.setup.is_replayed());
        if replayed {
            ks.promote(EXTEND);
        }
        let space = &mut self.spaces[at];
        let mark = space.boundaries[boundary].mark.clone();
        space.model.rewind(&mark);
        let revision = ks.revision();
        if !clean || reserves && revision > mark.main {
            if revision > mark.main {
                let took_reserve = self.damaged && !clean && sync;
                let fresh = revision > space.ever_shown || took_reserve;
                assert!(fresh, "{revision} was shown before, with another state");
                self.coverage.add("floors set", 1);
                space.model.now.main = revision;
                if !sync && !clean {
                    space.model.now.floors.fill(revision);
                }
            }
            if reserves && self.setup.volatile {
                space.model.empty_volatile(revision);
            }
        }
        space.boundaries = vec![Boundary { mark: space.model.mark(), history: Some(ks.history_hash()) }];
        space.acknowledged = 0;
        let checkpoints = self.setup.options.lease_checkpoint_interval.is_some();
        let known = std::mem::take(&mut space.deadlines);
        space.shown = revision;
        (space.shown_compacted, space.shown_floors) = (ks.compact_revision(), ks.probe().floors_shown);
        space.ever_shown = space.ever_shown.max(revision);
        for (id, ttl) in &space.model.now.leases {
            let whole = now + EXTEND + Duration::from_secs(ttl.cast_unsigned());
            let left = ks.lease_time_to_live(*id, false).map_or(0, |lease| lease.remaining_ttl);
            let used = checkpoints && left < *ttl + 1;
            self.coverage.add("lease checkpoints used", u64::from(used));
            assert!(checkpoints || left == *ttl + 1, "lease {id} of {ttl} s has {left} after a restart");
            // Never before its last renewal allows, if that was not taken back by a crash.
            let earliest = known.get(id).copied().filter(|_| clean).unwrap_or(now + EXTEND);
            space.deadlines.insert(*id, if checkpoints { earliest.min(whole) } else { whole });
        }
        space.by_deadline = ks.leases();
        space.ks = Some(ks);
        if !self.damaged {
            checks::leases_and_tables(self, at);
            checks::rows(self, at);
        }
    }

    /// The log above applies again what is missing (R3).
    fn apply_again(&mut self, at: usize) {
        if !self.setup.is_replayed() || self.damaged {
            return;
        }
        let space = &self.spaces[at];
        let from = space.model.now.applied_index;
        assert!(from >= space.log_floor, "the log may have forgotten what comes after index {from}");
        self.catch_up(at);
    }

    /// Which boundary a keyspace that was just opened is at: the newest that fits.
    fn boundary_of(&self, space: &Space, ks: &Keyspace, clean: bool, damaged: bool) -> Result<usize, String> {
        let revision = ks.revision();
        let newest = space.boundaries.last().map_or(0, |boundary| boundary.mark.main);
        // Without a clean stop, and where a Volatile shard could not be written before it.
        let loses = self.setup.volatile && (!clean || revision > newest);
        let found = Found::look(space, ks, loses)?;
        let mut low = space.acknowledged;
        if self.setup.is_sync() && !damaged {
            let shown = |boundary: &&Boundary| {
                let Mark { main, compacted, floors, .. } = &boundary.mark;
                *main >= space.shown && *compacted >= space.shown_compacted && is_above(floors, &space.shown_floors)
            };
            low = low.max(space.boundaries.iter().position(|boundary| shown(&boundary)).unwrap_or(usize::MAX));
        }
        if damaged && !clean || self.rotted && !self.setup.is_sync() && !self.closed {
            // In batch durability what the newest slot alone had goes with it.
            low = 0;
        }
        // Under Sync a reserve may be in the last group alone, which damage takes with all that it had (R11).
        let took_reserve = damaged && !clean && self.setup.is_sync();
        if self.setup.reserves() && revision < space.ever_shown && !took_reserve {
            return Err(format!("revision {revision} after {} was shown", space.ever_shown));
        }
        let mut nearest = String::new();
        for at in (low..space.boundaries.len()).rev() {
            let Boundary { mark, history } = &space.boundaries[at];
            let jumps = self.setup.reserves() && (!clean || loses);
            let why = if jumps && revision < mark.main || !jumps && revision != mark.main {
                format!("revision {revision}, expected {}", mark.main)
            } else if (found.compacted, found.index) != (mark.compacted, mark.applied_index) {
                format!("compacted {} at index {}, expected {mark:?}", found.compacted, found.index)
            } else if !is_above(&found.floors, &mark.floors) || !jumps && found.floors != mark.floors {
                format!("floors {:?}, expected {mark:?}", found.floors)
            } else if found.leases != mark.leases || found.tables != mark.tables {
                format!("{:?} {:?}, expected {mark:?}", found.leases, found.tables)
            } else if history.is_some_and(|history| history != found.history) {
                "the history hash differs".to_owned()
            } else {
                let mut expected = space.model.at(mark.main);
                expected.retain(|key, _| !(loses && space.model.is_volatile(key)));
                if found.live == expected {
                    // What was put and deleted again shows in the rows alone.
                    let rows = if damaged { BTreeMap::new() } else { space.model.rows_of(mark) };
                    let mut kept = rows.iter().filter(|((shard, ..), (_, stays))| {
                        *stays && !(loses && space.model.is_volatile_shard(*shard))
                    });
                    let Some((row, _)) = kept.find(|(row, _)| !found.rows.contains_key(row)) else { return Ok(at) };
                    nearest = format!("{nearest}\n  boundary {at}: row {row:?} is gone");
                    continue;
                }
                let differs = |(key, kv): (&Bytes, &polybolt::KeyValue)| {
                    (found.live.get(key) != Some(kv)).then(|| format!("{:?}, expected {kv:?}", found.live.get(key)))
                };
                let lost = expected.iter().find_map(differs);
                let more = found.live.iter().find(|(key, _)| !expected.contains_key(*key));
                format!("at {}: {lost:?} {more:?}", mark.main)
            };
            if nearest.len() < 1500 {
                nearest = format!("{nearest}\n  boundary {at}: {}", why.chars().take(400).collect::<String>());
            }
        }
        let count = space.boundaries.len() - 1;
        Err(format!("it is at no boundary from {low} to {count} (clean {clean}):{nearest}"))
    }
}

/// What a keyspace shows right after it was opened.
struct Found {
    compacted: i64,
    floors: Vec<i64>,
    index: u64,
    history: u128,
    leases: BTreeMap<i64, i64>,
    tables: BTreeMap<(String, Bytes), Bytes>,
    live: polybolt::model::State,
    rows: StoredRows,
}

impl Found {
    fn look(space: &Space, ks: &Keyspace, loses: bool) -> Result<Found, String> {
        let unreadable = |error: Error| match error {
            Error::Storage(error) => format!("unreadable: {error}"),
            error => format!("refused: {error}"),
        };
        let leases = ks.leases().into_iter().filter_map(|id| Some((id, ks.lease_time_to_live(id, false)?.granted_ttl)));
        let mut tables = BTreeMap::new();
        for table in ["users", "roles"] {
            for (key, value) in ks.table_list(table).map_err(unreadable)? {
                tables.insert((table.to_owned(), key), value);
            }
        }
        let everything = RangeRequest::new(Span { key: Bytes::from_static(b"\0"), end: SpanEnd::Open });
        let kvs = ks.range(&everything).map_err(unreadable)?.kvs;
        if let Some(kv) = kvs.iter().find(|kv| loses && space.model.is_volatile(&kv.key)) {
            return Err(format!("{kv:?} of a Volatile shard came through an unclean stop"));
        }
        Ok(Found {
            compacted: ks.compact_revision(),
            floors: ks.probe().floors,
            index: ks.applied_index(),
            history: ks.history_hash(),
            leases: leases.collect(),
            tables,
            live: kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect(),
            rows: ks.stored_rows().map_err(unreadable)?,
        })
    }
}
