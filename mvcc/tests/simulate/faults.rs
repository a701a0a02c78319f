//! Crashes, failing and full disks, damage; and what a restart has to find.

use crate::checks;
use crate::restart::{recover, reopen};
use crate::world::{Shared, World};
use bytes::Bytes;
use polybolt::disk::sim::{Fault, Fired, ReadFault, SimDisk, Survive};
use polybolt::run::seeded::Rng;
use polybolt::{Error, Keyspace, Place, PutRequest, RangeRequest, Span, SpanEnd, StorageError};
use polybolt_engine::manifest::{SLOT_NAMES, Slots};
use std::path::{Path, PathBuf};
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
fn spaces(shared: &Shared) -> usize {
    shared.borrow().spaces.len()
}

/// True if the error says which file (or stream, or state) is damaged.
pub(crate) fn names_a_file(error: &Error) -> bool {
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
    pub(crate) fn volatile_files(&self) -> Vec<PathBuf> {
        self.spaces.iter().filter_map(|space| space.ks.as_ref()).flat_map(Keyspace::volatile_files).collect()
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

    /// Counts faults that fired since it did so last.
    pub(crate) fn count_faults(&mut self) {
        let fired = self.disk.fired();
        for fault in &fired[self.counted..] {
            self.coverage.add("faults that fired", 1);
            self.coverage.add(name_of(fault), 1);
        }
        self.counted = fired.len();
    }

    /// Changes bytes behind the engine's back.
    fn damage(&mut self) {
        self.damaged = true;
        self.coverage.add("faults that fired", 1);
        self.disk.heal();
        self.disk.set_capacity(None);
        self.disk.crash_on("MANIFEST", u64::MAX);
        self.disk.crash_at(u64::MAX);
        match self.rng.below(4) {
            0 if !self.stale.is_empty() => {
                let pick = self.rng.below(self.stale.len() as u64) as usize;
                let (path, at, bytes) = self.stale.swap_remove(pick);
                self.say(|| format!("a stale unit {path:?} {at}"));
                self.coverage.add("stale units", 1);
                self.disk.poke(&path, at, &bytes);
            }
            1 => {
                let (Some((from, at)), Some((to, place))) = (self.any_unit(), self.any_unit()) else { return };
                let bytes = self.disk.peek(&from, at, UNIT as usize).expect("the unit is there");
                self.coverage.add("misdirected units", 1);
                self.say(|| format!("a misdirected unit {from:?} {at} in {to:?} {place}"));
                self.disk.poke(&to, place, &bytes);
            }
            _ => {
                let files: Vec<_> = self.disk.files().into_iter().filter(|(_, len)| *len > 0).collect();
                for _ in 0..1 + self.rng.below(3) {
                    let (path, len) = &files[self.rng.below(files.len() as u64) as usize];
                    let at = self.rng.below(*len);
                    self.coverage.add("flipped bits", 1);
                    self.say(|| format!("a flipped bit {path:?} {at}"));
                    self.disk.flip_bit(path, at, self.rng.below(8) as u8);
                }
            }
        }
    }
}

/// By what a fault that fired is counted.
fn name_of(fired: &Fired) -> &'static str {
    match (fired.op, fired.full, fired.told) {
        (_, true, true) => "ENOSPC of one call",
        (_, true, false) => "ENOSPC of a full disk",
        ("read", ..) if fired.short => "short reads",
        ("read", ..) => "EIO of a read",
        ("write", ..) => "EIO of a write",
        ("sync", ..) => "EIO of a sync",
        ("preallocate", ..) => "EIO of a preallocation",
        _ => "EIO of a file's making, renaming or end",
    }
}

/// Flips a bit of the newest slot of the manifest, if the other is whole too: nothing that was durable may be
/// lost by that, for the journal goes back to the older slot, and no page that it names is used again.
pub(crate) fn rot(disk: &SimDisk, rng: &mut Rng) -> bool {
    let dir = Path::new("/data/store");
    let slots = [0, 1].map(|slot| Slots::read(disk, dir, slot));
    let [Ok(a), Ok(b)] = slots else { return false };
    let (slot, newest) = if a.sequence > b.sequence { (0, a) } else { (1, b) };
    // Another format is refused by its name, whatever the other slot has.
    let outside_the_version = (0..8).chain(12..newest.encode().len() as u64);
    let at = outside_the_version.clone().nth(rng.below(outside_the_version.count() as u64) as usize);
    disk.flip_bit(&dir.join(SLOT_NAMES[slot]), at.expect("below their count"), rng.below(8) as u8)
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
    let verified = shared.borrow().engine().verify(&mut |_| ());
    if let Err(error) = verified {
        assert!(names_a_file(&error), "{error}");
        scrub_finds(shared, &error);
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

/// What was found in a file of a tree is found by the scrub too, unless it was written anew meanwhile.
fn scrub_finds(shared: &Shared, error: &Error) {
    let Error::Storage(StorageError::Corrupt { file, place: Place::Unit(_), .. }) = error else { return };
    if shared.borrow().setup.options.scrub_bytes_per_second == 0 {
        return;
    }
    let mut world = shared.borrow_mut();
    let world = &mut *world;
    let rounds = world.engine().stats().scrub_rounds + 2;
    for _ in 0..20_000 {
        if world.engine().stats().scrub_rounds >= rounds {
            break;
        }
        if !world.jobs.as_mut().is_some_and(polybolt::run::seeded::Seeded::step_one) {
            // The next round begins an hour after the last one.
            world.clock.advance(Duration::from_secs(600));
        }
    }
    let engine = world.engine();
    assert!(engine.stats().scrub_rounds >= rounds, "the scrub does not get on: {:?}", engine.stats());
    let found = engine.scrubbed().damage.iter().any(|finding| finding.file == *file);
    let again = engine.verify(&mut |_| ());
    let still = matches!(again, Err(Error::Storage(StorageError::Corrupt { file: again, .. })) if again == *file);
    assert!(found || !still, "the scrub does not find that {error}");
    world.coverage.add("damage found by the scrub", u64::from(found));
}
