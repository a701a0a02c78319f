//! Crashes, failing and full disks, damage; and what a restart has to find.

use crate::checks;
use crate::world::{Boundary, EXTEND, Shared, Space, World, among_others};
use bytes::Bytes;
use polybolt::disk::Disk;
use polybolt::disk::sim::{Fault, ReadFault, SimDisk, Survive};
use polybolt::model::StoredRows;
use polybolt::run::ManualClock;
use polybolt::{Engine, Error, Keyspace, PutRequest, RangeRequest, Refusal, Runtime, Span, SpanEnd, StorageError};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const UNIT: u64 = 4096;

/// Decides, after each operation, whether the engine has to be opened again.
pub(crate) fn after(shared: &Shared) {
    let (crashed, failed) = {
        let world = shared.borrow();
        if world.ended {
            return;
        }
        (world.disk.crashed(), world.engine().failure())
    };
    if crashed {
        recover(shared, None);
    } else if let Some(failure) = failed {
        failing(shared, &failure);
    }
}

/// The engine takes no more writes: there is a reason, it says so, and it still reads.
fn failing(shared: &Shared, failure: &StorageError) {
    {
        let mut world = shared.borrow_mut();
        let world = &mut *world;
        let volatile = world.volatile_files();
        let fired = world.disk.fired();
        let fatal = fired.iter().any(|fired| !volatile.contains(&fired.path) && fired.told);
        assert!(fatal || world.damaged, "{failure}, but only {fired:?} failed");
        world.say(|| format!("poisoned: {failure}"));
        world.coverage.add("EIO poison", u64::from(!world.damaged));
        let ks = world.spaces[0].ks.clone().expect("the keyspace is open");
        let late = ks.put(PutRequest::new("late", "1")).outcome();
        assert!(matches!(late, Some(Err(Error::Storage(_)))), "a write after a failure: {late:?}");
        world.take_answers();
    }
    if !shared.borrow().damaged {
        for at in 0..spaces(shared) {
            let everything = RangeRequest::new(Span { key: Bytes::from_static(b"\0"), end: SpanEnd::Open });
            checks::compare_range(shared, at, &everything, true);
        }
    }
    if shared.borrow().damaged {
        shared.borrow_mut().ended = true;
        return;
    }
    recover(shared, None);
}

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
        world.disk = world.disk.after_crash(survive);
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
    world.say(|| format!("a fork, {survive:?}"));
    let clock = Arc::new(ManualClock::default());
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let engine = Engine::open_with("/data/store", world.setup.options.clone(), Runtime { disk, clock, threads: false })
        .unwrap_or_else(|error| panic!("a fork does not open: {error}"));
    let clean = engine.report().clean;
    world.say(|| format!("{:?}", engine.report()));
    for space in &world.spaces {
        let ks = engine.keyspace(&space.name).expect("a keyspace that was created is there");
        world.boundary_of(space, &ks, clean, false).unwrap_or_else(|why| panic!("a fork: {why}"));
    }
    engine.verify(&mut |_| ()).unwrap_or_else(|error| panic!("a fork: {error}"));
    world.coverage.add("forks", 1);
}

fn spaces(shared: &Shared) -> usize {
    shared.borrow().spaces.len()
}

/// True if the error says which file (or stream, or state) is damaged.
fn names_a_file(error: &Error) -> bool {
    match error {
        Error::Storage(StorageError::Corrupt { file, .. } | StorageError::Unsupported { file, .. }) => {
            !file.as_os_str().is_empty()
        }
        Error::Storage(StorageError::NotAStore { .. }) => true,
        Error::Storage(StorageError::Poisoned { cause }) => cause.contains("is damaged") || cause.contains("supports"),
        _ => false,
    }
}

impl World {
    fn volatile_files(&self) -> Vec<PathBuf> {
        self.spaces.iter().filter_map(|space| space.ks.as_ref()).flat_map(Keyspace::volatile_files).collect()
    }

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
        let limited = world.was_limited;
        world.disk.heal();
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
        assert!(!clean_close || report.clean || self.damaged, "closed, and not clean");
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
                assert!(revision > space.ever_shown, "{revision} was shown before, with another state");
                self.coverage.add("floors set", 1);
                space.model.now.main = revision;
                if !sync && !clean {
                    space.model.floors.fill(revision);
                }
            }
            if reserves && self.setup.volatile {
                space.model.empty_volatile(revision);
            }
        }
        space.boundaries = vec![Boundary { mark: space.model.mark(), history: Some(ks.history_hash()) }];
        space.acknowledged = 0;
        space.shown = revision;
        space.shown_compacted = ks.compact_revision();
        space.ever_shown = space.ever_shown.max(revision);
        let deadline = |ttl: &i64| now + EXTEND + Duration::from_secs(ttl.cast_unsigned());
        space.deadlines = space.model.now.leases.iter().map(|(id, ttl)| (*id, deadline(ttl))).collect();
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
        for index in from + 1..=space.log.len() as u64 {
            if self.is_broken() {
                return;
            }
            self.ask_at(at, index);
            self.run_some(3);
        }
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
                boundary.mark.main >= space.shown && boundary.mark.compacted >= space.shown_compacted
            };
            low = low.max(space.boundaries.iter().position(|boundary| shown(&boundary)).unwrap_or(usize::MAX));
        }
        if damaged && !clean {
            low = 0;
        }
        if self.setup.reserves() && revision < space.ever_shown {
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

    /// A fault that will come.
    pub(crate) fn plan_fault(&mut self) {
        let next = self.disk.calls() + 1 + self.rng.below(30);
        match self.rng.below(4) {
            0 | 1 => {
                let times = if self.rng.one_in(3) { u64::MAX } else { 1 + self.rng.below(3) };
                self.disk.fail_at(next, times, Fault::Eio);
                self.say(|| format!("EIO at call {next}"));
            }
            2 => {
                let fault = if self.rng.one_in(2) { ReadFault::Eio } else { ReadFault::Short };
                self.disk.fail_reads(self.disk.reads() + 1 + self.rng.below(20), 1 + self.rng.below(4), fault);
                self.say(|| format!("{fault:?} reads"));
            }
            _ => {
                self.disk.fail_at(next, 1 + self.rng.below(3), Fault::Enospc);
                self.was_limited = true;
                self.say(|| format!("ENOSPC at call {next}"));
            }
        }
    }

    /// The disk fills up, or has room again.
    pub(crate) fn plan_room(&mut self) {
        if self.was_limited && self.rng.one_in(2) {
            self.disk.set_capacity(None);
            self.say(|| "room again".to_owned());
        } else {
            let room = self.rng.below(60_000);
            self.disk.set_capacity(Some(self.disk.used() + room));
            self.was_limited = true;
            self.say(|| format!("{room} bytes of room"));
        }
    }

    /// Remembers a unit, to put it back later.
    pub(crate) fn remember_unit(&mut self) {
        if let Some((path, at)) = self.any_unit() {
            let bytes = self.disk.peek(&path, at, UNIT as usize).expect("the unit is there");
            self.stale.push((path, at, bytes));
        }
    }

    fn any_unit(&mut self) -> Option<(PathBuf, u64)> {
        let files: Vec<_> = self.disk.files().into_iter().filter(|(_, len)| *len >= UNIT).collect();
        let (path, len) = files.get(self.rng.below(files.len() as u64) as usize)?.clone();
        Some((path, self.rng.below(len / UNIT) * UNIT))
    }

    /// Changes bytes behind the engine's back.
    fn damage(&mut self) {
        self.damaged = true;
        self.disk.heal();
        self.disk.set_capacity(None);
        self.disk.crash_on("MANIFEST", u64::MAX);
        self.disk.crash_at(u64::MAX);
        match self.rng.below(4) {
            0 if !self.stale.is_empty() => {
                let pick = self.rng.below(self.stale.len() as u64) as usize;
                let (path, at, bytes) = self.stale.swap_remove(pick);
                self.say(|| format!("a stale unit {path:?} {at}"));
                self.disk.poke(&path, at, &bytes);
            }
            1 => {
                let (Some((from, at)), Some((to, place))) = (self.any_unit(), self.any_unit()) else { return };
                let bytes = self.disk.peek(&from, at, UNIT as usize).expect("the unit is there");
                self.say(|| format!("a misdirected unit {from:?} {at} in {to:?} {place}"));
                self.disk.poke(&to, place, &bytes);
            }
            _ => {
                let files: Vec<_> = self.disk.files().into_iter().filter(|(_, len)| *len > 0).collect();
                for _ in 0..1 + self.rng.below(3) {
                    let (path, len) = &files[self.rng.below(files.len() as u64) as usize];
                    let at = self.rng.below(*len);
                    self.say(|| format!("a flipped bit {path:?} {at}"));
                    self.disk.flip_bit(path, at, self.rng.below(8) as u8);
                }
            }
        }
    }
}

/// Damage, and everything read before and after a restart: right, or an error that names it.
pub(crate) fn damage(shared: &Shared) {
    shared.borrow_mut().quiesce();
    if shared.borrow().is_broken() {
        return;
    }
    shared.borrow_mut().damage();
    shared.borrow_mut().coverage.add("damage done", 1);
    for at in 0..spaces(shared) {
        for _ in 0..4 {
            checks::read(shared, at);
        }
        checks::hash(shared, at);
    }
    if let Err(error) = shared.borrow().engine().verify(&mut |_| ()) {
        assert!(names_a_file(&error), "{error}");
    }
    let clean = shared.borrow_mut().rng.one_in(2);
    if clean && !shared.borrow().is_broken() {
        reopen(shared);
        if shared.borrow().disk.crashed() {
            recover(shared, Some(Survive::All));
        }
    } else {
        recover(shared, Some(Survive::All));
    }
    if !shared.borrow().ended {
        for at in 0..spaces(shared) {
            for _ in 0..6 {
                checks::read(shared, at);
            }
        }
        if let Err(error) = shared.borrow().engine().verify(&mut |_| ()) {
            assert!(names_a_file(&error), "{error}");
        }
    }
    shared.borrow_mut().ended = true;
}

/// What a keyspace shows right after it was opened.
struct Found {
    compacted: i64,
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
            index: ks.applied_index(),
            history: ks.history_hash(),
            leases: leases.collect(),
            tables,
            live: kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect(),
            rows: ks.stored_rows().map_err(unreadable)?,
        })
    }
}

/// A snapshot taken while the world goes on, restored beside it and compared.
pub(crate) fn snapshot(shared: &Shared, at: usize) {
    let (ks, engine, now) = {
        let world = shared.borrow();
        let space = &world.spaces[at];
        (space.ks.clone().expect("the keyspace is open"), world.engine().clone(), space.model.now.clone())
    };
    let taken = among_others(shared, || -> polybolt::Result<(i64, Vec<u8>)> {
        let mut snapshot = ks.snapshot()?;
        let mut stream = Vec::new();
        for frame in snapshot.by_ref() {
            stream.extend_from_slice(&frame?);
        }
        Ok((snapshot.revision(), stream))
    });
    let failed = |error: Error| {
        let world = shared.borrow();
        match error {
            Error::Storage(error) | Error::Unknown(error) => assert!(world.allows(&error), "{error}"),
            Error::Refused(Refusal::Compacted { .. }) => {}
            Error::Refused(Refusal::NoSpace) if world.was_limited => {}
            error => panic!("a snapshot: {error}"),
        }
    };
    let (revision, stream) = match taken {
        Ok(taken) => taken,
        Err(error) => return failed(error),
    };
    if shared.borrow().is_broken() {
        return;
    }
    let copy = match among_others(shared, || engine.restore("copy", None, &stream[..], &mut |_| ())) {
        Ok(copy) => copy,
        Err(error) => return failed(error),
    };
    {
        let mut world = shared.borrow_mut();
        let world = &mut *world;
        assert_eq!(revision, now.main, "a snapshot is of what was applied when it began");
        let everything = RangeRequest { revision, ..RangeRequest::new(Span::prefix("")) };
        match copy.range(&everything) {
            Ok(found) => {
                let expected = world.spaces[at].model.range(&everything, revision, found.revision);
                checks::same_range(&found, &expected, "the copy");
            }
            Err(Error::Storage(error)) => assert!(world.allows(&error), "{error}"),
            Err(error) => panic!("the copy at {revision}: {error}"),
        }
        let mut leases = copy.leases();
        leases.sort_unstable();
        assert_eq!(leases, now.leases.keys().copied().collect::<Vec<_>>());
        world.coverage.add("snapshots restored", 1);
    }
    drop(copy);
    if let Err(error) = engine.drop_keyspace("copy") {
        failed(error);
    }
}

/// Files are moved together at their fronts and cut.
pub(crate) fn vacuum(shared: &Shared, at: usize) {
    let ks = shared.borrow().spaces[at].ks.clone().expect("the keyspace is open");
    let size = |disk: &SimDisk| {
        disk.files()
            .iter()
            .filter(|(path, _)| path.extension().is_some_and(|tree| tree == "tree"))
            .map(|(_, len)| len)
            .sum::<u64>()
    };
    let before = size(&shared.borrow().disk);
    let done = among_others(shared, || ks.defragment());
    let mut world = shared.borrow_mut();
    let world = &mut *world;
    match done {
        Ok(()) => {
            let after = size(&world.disk);
            world.coverage.add("vacuum cut a file", u64::from(after < before));
        }
        Err(Error::Storage(error)) => assert!(world.allows(&error), "vacuum: {error}"),
        Err(error) => panic!("vacuum: {error}"),
    }
}
