//! What a vacuum reads, moves and cuts, on a simulated disk.

use super::*;
use crate::batch::{Batch, Replay, Replayed, SpaceInfo, SpaceSpec, TreeClass, TreeEdit, TreeSpec};
use crate::core::VacuumOptions;
use crate::disk::Disk;
use crate::disk::os::OsDisk;
use crate::disk::sim::SimDisk;
use crate::error::Error;
use crate::ids::TreeId;
use crate::run::ManualClock;
use crate::run::seeded::{Seeded, meanwhile};
use crate::run::threads::others_ran;
use crate::store::{Runtime, Store, StoreOptions};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

struct Nothing;

impl Replay for Nothing {
    fn replay(&mut self, _: &SpaceInfo, state: &[u8], _: &[u8]) -> Result<Replayed, Error> {
        Ok(Replayed { edits: Vec::new(), state: Bytes::copy_from_slice(state) })
    }

    fn settled(&mut self, _: &SpaceInfo, _: &[u8], _: bool) -> Result<Option<Bytes>, Error> {
        Ok(None)
    }
}

struct Driven {
    store: Store,
    jobs: Rc<RefCell<Seeded>>,
    clock: ManualClock,
    info: SpaceInfo,
}

/// A store of one tree, without a vacuum if `rate` is 0.
fn open(disk: &SimDisk, rate: u64, class: TreeClass) -> Driven {
    disk.create_dir("/data".as_ref()).unwrap();
    let vacuum =
        VacuumOptions { bytes_per_second: rate, step_bytes: 32 << 10, free_percent: 20, free_bytes_min: 64 << 10 };
    let checkpoint_interval = Duration::from_millis(20);
    let options =
        StoreOptions { vacuum, checkpoint_interval, space_reserve_bytes: 0, ..StoreOptions::new("/data/store") };
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let store = Store::open(shared, options, Runtime::Manual, &mut Nothing).unwrap();
    let tree = TreeSpec { page_bytes: 4096, class, ..TreeSpec::new("t") };
    let spec = SpaceSpec { name: "space".into(), config: Bytes::new(), state: Bytes::new(), trees: vec![tree] };
    let info = store.create_space(spec).unwrap();
    let clock = ManualClock::default();
    let jobs = Rc::new(RefCell::new(Seeded::new(store.take_jobs(), clock.clone(), 1)));
    Driven { store, jobs, clock, info }
}

impl Driven {
    fn tree(&self) -> TreeId {
        self.info.trees[0].id
    }

    fn edit(&self, edits: impl Iterator<Item = (u32, Option<usize>)>) {
        self.edit_of(edits, 0);
    }

    /// Edits that take so many bytes of the buffers.
    fn edit_of(&self, edits: impl Iterator<Item = (u32, Option<usize>)>, edit_bytes: u64) {
        let edits = edits.map(|(key, len)| TreeEdit {
            tree: self.tree(),
            key: Bytes::copy_from_slice(&key.to_be_bytes()),
            edit: len.map_or(Edit::Remove, |len| Edit::Put { head: Bytes::new(), body: vec![key as u8; len].into() }),
        });
        let mut batch = Batch { edits: edits.collect(), ..Batch::new(self.info.id) };
        let admission = self.store.admit(Cost { edit_bytes, ..Cost::default() }).unwrap();
        self.store.apply(admission, &mut batch);
        self.block(|| self.store.flush().wait().unwrap());
    }

    fn block<T>(&self, call: impl FnOnce() -> T) -> T {
        let (jobs, clock) = (Rc::clone(&self.jobs), self.clock.clone());
        meanwhile(Some(Box::new(move |at| {
            if at == "wait" && !jobs.borrow_mut().step_one() {
                clock.advance(Duration::from_millis(5));
            }
            at == "wait"
        })));
        let done = call();
        meanwhile(None);
        done
    }

    fn pass(&self, millis: u64) {
        for _ in 0..millis / 5 {
            assert!(self.jobs.borrow_mut().run_until_idle(10_000), "there is always something to do");
            self.clock.advance(Duration::from_millis(5));
        }
    }

    fn size(&self) -> u64 {
        self.store.tree_stats(self.tree()).unwrap().size
    }

    fn check(&self, keys: impl Iterator<Item = u32>) {
        let mut found = Vec::new();
        self.store
            .scan(self.tree(), &mut |key, _, _| {
                found.push(u32::from_be_bytes(key.try_into().unwrap()));
                Ok(())
            })
            .unwrap();
        assert_eq!(found, keys.collect::<Vec<_>>());
        self.store.verify(&mut |_, _| ()).unwrap();
    }
}

fn all_rounds(core: &Core, tree: &Tree, target: u32, limit: u64) -> (Vec<Bytes>, u64, u64) {
    let (mut keys, mut read, mut rounds, mut from) = (Vec::new(), 0, 0, Vec::new());
    loop {
        let round = collect(tree, target, &from, limit).unwrap();
        keys.extend(round.entries.iter().map(|(key, _)| key.clone()));
        (read, rounds) = (read + round.read, rounds + 1);
        assert!(core.poison.check().is_ok() && rounds < 10_000);
        match round.next {
            Some(next) => from = next,
            None => return (keys, read, rounds),
        }
    }
}

#[test]
fn only_leaves_that_move_are_read() {
    let disk = SimDisk::new(1);
    let driven = open(&disk, 0, TreeClass::Durable);
    for part in 0..20 {
        driven.edit((part * 500..part * 500 + 500).map(|key| (key, Some(100))));
    }
    let (core, tree) = (driven.store.core(), driven.store.core().catalog.tree(driven.tree()).unwrap());
    let end = tree.room.lock().free.end();
    let (keys, read, _) = all_rounds(core, &tree, end - 10, u64::MAX);
    assert!((1..=10).contains(&keys.len()), "{keys:?}");
    assert!(read < 20 * 4096, "{read} bytes are read of {end} units");
    // In small rounds the same.
    let (some, in_parts, rounds) = all_rounds(core, &tree, end / 2, 8192);
    let (once, whole, _) = all_rounds(core, &tree, end / 2, u64::MAX);
    assert!(once.iter().all(|key| some.contains(key)) && once.len() as u32 > end / 3);
    assert!(rounds > 50 && in_parts < 3 * whole + rounds * 3 * 4096, "{in_parts} in {rounds} rounds, {whole} at once");
    // Where bodies lie behind leaves, all are read, and the extents that are behind are moved.
    driven.edit((0..10).map(|key| (key * 900, Some(20_000))));
    let end = tree.room.lock().free.end();
    let (keys, read, _) = all_rounds(core, &tree, end - 50, u64::MAX);
    assert!(keys.len() >= 5 && read > u64::from(end) * 4096 / 3, "{} keys, {read}", keys.len());
    let (parts, _, _) = all_rounds(core, &tree, end - 50, 1);
    assert!(keys.iter().all(|key| parts.contains(key)));
    driven.edit((0..10).map(|key| (key * 900, Some(10))));
    let end = tree.room.lock().free.end();
    let (_, read, _) = all_rounds(core, &tree, end - 5, u64::MAX);
    assert!(read < 40 * 4096, "no extent is left, and {read} bytes are read");
}

#[test]
fn a_file_of_which_much_is_free_becomes_shorter_by_itself() {
    for (class, rate) in [(TreeClass::Durable, 1 << 20), (TreeClass::Volatile, 1 << 20), (TreeClass::Durable, 0)] {
        let disk = SimDisk::new(2);
        let driven = open(&disk, rate, class);
        let bodies = |key: u32| if key.is_multiple_of(50) { 9000 } else { 300 };
        for part in 0..10 {
            driven.edit((part * 200..part * 200 + 200).map(|key| (key, Some(bodies(key)))));
        }
        let full = driven.size();
        // The front half goes.
        driven.edit((0..1000).map(|key| (key, None)));
        driven.pass(4_000);
        if rate == 0 {
            assert!(driven.size() >= full, "nobody was asked");
            let left = driven.block(|| driven.store.vacuum(driven.info.id, driven.tree(), &mut ())).unwrap();
            let stats = driven.store.tree_stats(driven.tree()).unwrap();
            assert!(left == stats.size && stats.in_use * 11 > stats.size * 10, "{stats:?}");
        } else {
            let stats = driven.store.tree_stats(driven.tree()).unwrap();
            assert!(stats.in_use * 10 >= stats.size * 8 && stats.size * 10 < full * 7, "{stats:?} of {full}");
            let moved = driven.store.stats();
            assert!(moved.vacuum_rounds > 5 && moved.vacuum_moved_bytes < full && moved.vacuum_cut_bytes > full / 4);
            // It comes to rest.
            let checkpoints = driven.store.checkpoints();
            driven.pass(10_000);
            assert_eq!(driven.store.checkpoints(), checkpoints);
        }
        driven.check(1000..2000);
        assert_eq!(driven.store.stats().buffered_bytes, 0);
    }
}

/// Leaves of which a part went are full again, and those that were full are left alone.
#[test]
fn leaves_that_hold_little_are_packed_together() {
    let disk = SimDisk::new(2);
    let driven = open(&disk, 0, TreeClass::Durable);
    let body = |key: u32| if key < 3000 { 100 } else { 120 };
    for part in 0..20 {
        driven.edit((part * 200..part * 200 + 200).map(|key| (key, Some(body(key)))));
    }
    // A third of what is in each leaf of the first half goes, one leaf at a time, so that nothing is packed by that.
    let key_of_leaf = |leaf: u32| leaf * 30..leaf * 30 + 10;
    for leaf in 0..66 {
        driven.edit(key_of_leaf(leaf).map(|key| (key, None)));
    }
    let stats = || driven.store.tree_stats(driven.tree()).unwrap();
    let (before, written) = (stats(), driven.store.stats().page_bytes);
    driven.block(|| driven.store.vacuum(driven.info.id, driven.tree(), &mut ())).unwrap();
    let after = stats();
    let rows: u64 = (0..4000).filter(|key| *key >= 1980 || key % 30 >= 10).map(|key| body(key) as u64 + 16).sum();
    assert!(before.in_use * 10 > rows * 12, "{before:?} for {rows}");
    assert!(
        after.in_use * 100 < rows * 109 && after.size * 100 < rows * 112,
        "{after:?} for {rows}, before {before:?}"
    );
    // About what the first half takes, and the end of the file once.
    let written = driven.store.stats().page_bytes - written;
    assert!(written < before.in_use, "{written} of {}", before.in_use);
    driven.check((0..4000).filter(|key| *key >= 1980 || key % 30 >= 10));
    // There is nothing left to do.
    let written = driven.store.stats().page_bytes;
    driven.block(|| driven.store.vacuum(driven.info.id, driven.tree(), &mut ())).unwrap();
    assert!(driven.store.stats().page_bytes - written < 20 * 4096);
}

/// What somebody is about to take out counts as gone, and it is asked for all of it.
#[test]
fn what_is_to_go_is_packed_for() {
    struct Half(Vec<Option<Vec<u8>>>, u64);
    impl VacuumUser for Half {
        fn goes(&self, _: &[u8], _: &[u8]) -> u64 {
            2000
        }
        fn take_out(&mut self, next: Option<&[u8]>) -> Result<u64, Error> {
            self.0.push(next.map(<[u8]>::to_vec));
            Ok(0)
        }
        fn wrote(&mut self, bytes: u64) {
            self.1 += bytes;
        }
        fn gave_back(&mut self, _: u64) {}
    }
    let disk = SimDisk::new(2);
    let driven = open(&disk, 0, TreeClass::Durable);
    driven.edit((0..20_000).map(|key| (key, Some(100))));
    let written = || driven.store.stats().page_bytes;
    let before = written();
    driven.block(|| driven.store.vacuum(driven.info.id, driven.tree(), &mut ())).unwrap();
    assert!(written() - before < 20 * 4096, "it is full");
    let (before, mut half) = (written(), Half(Vec::new(), 0));
    driven.block(|| driven.store.vacuum(driven.info.id, driven.tree(), &mut half)).unwrap();
    assert!(written() - before > 1 << 20 && half.1 > 1 << 20, "{} {}", written() - before, half.1);
    assert!(half.0.len() > 1 && half.0.is_sorted_by_key(|next| next.clone().unwrap_or(vec![255; 5])), "{:?}", half.0);
    assert_eq!(half.0.last(), Some(&None));
}

/// The rest of a tail that is given back piece by piece stays known as free: whoever stops in between loses nothing.
#[test]
fn a_tail_is_given_back_a_piece_at_a_time() {
    let disk = SimDisk::new(2);
    let driven = open(&disk, 0, TreeClass::Durable);
    driven.edit((0..2000).map(|key| (key, Some(300))));
    let core = driven.store.core();
    let (space, tree) = (core.catalog.space(driven.info.id).unwrap(), core.catalog.tree(driven.tree()).unwrap());
    // To low places.
    tree.room.lock().vacuums = 1;
    driven.edit((10..2000).map(|key| (key, None)));
    for len in 10..14 {
        driven.edit((0..10).map(|key| (key, Some(len))));
    }
    let (mut pieces, mut before) = (0, driven.size());
    loop {
        let ends = cut(core, &space, &tree).unwrap().unwrap();
        let stats = driven.store.tree_stats(driven.tree()).unwrap();
        assert_eq!((driven.size(), stats.size), (u64::from(ends.end) * 4096, driven.size()));
        assert!(before - driven.size() <= PIECE_BYTES);
        (pieces, before) = (pieces + 1, driven.size());
        if !ends.more {
            break;
        }
    }
    assert!(pieces > 5 && driven.size() < 200_000, "{pieces} pieces, {}", driven.size());
    driven.check(0..10);
}

#[test]
fn an_emptied_file_shrinks_to_its_header() {
    for class in [TreeClass::Durable, TreeClass::Volatile] {
        let disk = SimDisk::new(3);
        let driven = open(&disk, 1 << 20, class);
        driven.edit((0..20).map(|key| (key, Some(100))));
        driven.edit((0..20).map(|key| (key, None)));
        assert!(driven.size() > 4096);
        driven.pass(3_000);
        assert_eq!(driven.size(), 4096);
        let is_tree = |path: &std::path::Path| path.extension().is_some_and(|name| name == "tree");
        let lengths: Vec<u64> = disk.files().iter().filter(|(path, _)| is_tree(path)).map(|(_, len)| *len).collect();
        assert_eq!(lengths, [4096], "{class:?}");
        driven.edit((5..9).map(|key| (key, Some(100))));
        driven.check(5..9);
    }
}

#[test]
fn a_long_read_keeps_its_pages_and_a_full_disk_comes_first() {
    let disk = SimDisk::new(4);
    let driven = open(&disk, 1 << 20, TreeClass::Durable);
    for part in 0..10 {
        driven.edit((part * 200..part * 200 + 200).map(|key| (key, Some(300))));
    }
    let full = driven.size();
    let view = driven.store.view(driven.tree()).unwrap();
    driven.edit((0..1500).map(|key| (key, None)));
    driven.pass(3_000);
    assert!(driven.size() >= full / 2, "its pages lie there");
    let mut read = 0;
    view.ascend(std::ops::Bound::Unbounded, &mut |_, _, body| {
        assert_eq!(body.load()?.len(), 300);
        read += 1;
        Ok(true)
    })
    .unwrap();
    // What was removed since shows: its buffer is the view's.
    assert_eq!(read, 500);
    drop(view);
    driven.store.core().full.store(true, Ordering::Release);
    let rounds = driven.store.stats().vacuum_rounds;
    driven.jobs.borrow_mut().run_until_idle(100);
    assert_eq!(driven.store.stats().vacuum_rounds, rounds);
    driven.store.core().signal.raise();
    driven.pass(70_000);
    assert!(driven.size() < full / 2, "the disk is not full any more, and nobody reads");
    driven.check(1500..2000);
}

/// A compaction that goes over a file writes most of its leaves anew: they would be moved for nothing.
#[test]
fn a_file_that_holds_less_and_less_is_waited_for() {
    let disk = SimDisk::new(5);
    let driven = open(&disk, 1 << 20, TreeClass::Durable);
    for part in 0..10 {
        driven.edit((part * 200..part * 200 + 200).map(|key| (key, Some(300))));
    }
    let full = driven.size();
    let mut taken_up = 0;
    for part in 0..16 {
        driven.edit((part * 75..part * 75 + 75).map(|key| (key, None)));
        driven.pass(500);
        taken_up += driven.store.core().catalog.tree(driven.tree()).unwrap().room.lock().is_moved as u32;
    }
    assert!(taken_up > 5 && driven.store.stats().vacuum_moved_bytes == 0, "{taken_up}, {:?}", driven.store.stats());
    driven.pass(4_000);
    assert!(driven.store.stats().vacuum_moved_bytes > 0 && driven.size() * 2 < full);
    driven.check(1200..2000);
}

/// Where much is always free it never ended, and asked for checkpoints and made them take the lowest holes, each a
/// write of its own: on a disk where a write takes its time a third of the puts was left.
#[test]
fn it_stands_still_while_writers_wait_for_the_disk() {
    let driven = open(&SimDisk::new(6), 1 << 20, TreeClass::Durable);
    driven.edit((0..4000).map(|key| (key, Some(300))));
    let tree = driven.store.core().catalog.tree(driven.tree()).unwrap();
    let is_moved = || tree.room.lock().is_moved;
    let wait = || driven.store.core().was_short.store(true, Ordering::Relaxed);
    wait();
    driven.edit((0..4000).filter(|key| key % 48 < 36).map(|key| (key, None)));
    let (full, before) = (driven.size(), driven.store.stats());
    for _ in 0..10 {
        wait();
        driven.pass(1_000);
    }
    let after = driven.store.stats();
    assert_eq!((after.vacuum_rounds, after.checkpoints, is_moved()), (0, before.checkpoints, false));
    let mut moved = 0;
    while moved < 3 {
        driven.pass(50);
        moved += u32::from(is_moved());
    }
    assert_eq!(driven.size(), full);
    // In the middle of it.
    wait();
    driven.pass(1_100);
    assert!(!is_moved());
    let rounds = driven.store.stats().vacuum_rounds;
    driven.pass(1_000);
    assert_eq!(driven.store.stats().vacuum_rounds, rounds);
    driven.pass(20_000);
    assert!(driven.size() < full / 2 && !is_moved());
    driven.check((0..4000).filter(|key| key % 48 >= 36));
}

/// A file that a space leaves behind: its name goes at once, its blocks a piece at a time, and not while it is read.
#[test]
fn a_large_file_of_a_dropped_space_is_given_back_in_pieces() {
    assert!(steps_of_a_removal(1 << 20) >= 500 * 20_480 / PIECE_BYTES);
    // Without a vacuum nobody would.
    assert_eq!(steps_of_a_removal(0), 0);
}

fn steps_of_a_removal(rate: u64) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let vacuum = VacuumOptions { bytes_per_second: rate, ..VacuumOptions::default() };
    let options = StoreOptions { vacuum, space_reserve_bytes: 0, ..StoreOptions::new(dir.path().join("store")) };
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::new());
    let store = Store::open(disk, options, Runtime::Manual, &mut Nothing).unwrap();
    let spec = SpaceSpec {
        name: "space".into(),
        config: Bytes::new(),
        state: Bytes::new(),
        trees: vec![TreeSpec::new("large"), TreeSpec::new("small")],
    };
    let info = store.create_space(spec).unwrap();
    let clock = ManualClock::default();
    let mut jobs = Seeded::new(store.take_jobs(), clock.clone(), 1);
    let put = |tree: usize, key: u32, len: usize| TreeEdit {
        tree: info.trees[tree].id,
        key: Bytes::copy_from_slice(&key.to_be_bytes()),
        edit: Edit::Put { head: Bytes::new(), body: vec![7; len].into() },
    };
    let edits = (0..500).map(|key| put(0, key, 20_000)).chain([put(1, 1, 10)]).collect();
    let mut batch = Batch { edits, ..Batch::new(info.id) };
    let admission = store.admit(Cost { edit_bytes: 1 << 20, ..Cost::default() }).unwrap();
    store.apply(admission, &mut batch);
    let flush = store.flush();
    while !flush.is_reached() {
        if !jobs.step_one() {
            jobs.advance(Duration::from_millis(20));
        }
    }
    let key = 3u32.to_be_bytes();
    let view = store.view(info.trees[0].id).unwrap();
    // Within a read of it, which has the file and its mapping.
    view.show(&key, true, |_| {
        store.drop_space(info.id).unwrap();
        let trees = std::fs::read_dir(dir.path().join("store")).unwrap();
        assert!(
            trees.map(|entry| entry.unwrap().path()).all(|path| path.extension().is_none_or(|tree| tree != "tree"))
        );
        let left = store.core().removed.lock().len();
        assert_eq!(left, usize::from(rate > 0), "the small one is gone");
        if left == 0 {
            return;
        }
        let shortening = &mut removed::Shortening::default();
        let now = Duration::from_secs(9);
        assert!(shortening.step(store.core(), now).unwrap() > now);
        assert!(!store.core().removed.lock()[0].is_gone());
    })
    .unwrap();
    let (mut steps, mut now) = (0, Duration::from_secs(10));
    let mut shortening = removed::Shortening::default();
    while let Some(next) = shortening.step(store.core(), now) {
        assert!(next > now, "it pauses");
        (steps, now) = (steps + 1, next);
    }
    assert!(store.core().removed.lock().is_empty());
    steps
}

/// Of little it does not pay, and several processors would be taken at once.
#[test]
fn a_checkpoint_of_little_lets_others_run() {
    let disk = SimDisk::new(1);
    let driven = open(&disk, 0, TreeClass::Durable);
    let mut before = (0, 0);
    let mut since = || {
        let now = (disk.synced_side_by_side(), others_ran());
        let since = (now.0 - before.0, now.1 - before.1);
        before = now;
        since
    };
    since();
    driven.edit((0..200).map(|key| (key, Some(600))));
    let (side_by_side, breaths) = since();
    assert!(side_by_side == 0 && (3..8).contains(&breaths), "{breaths} for 34 pages");
    driven.edit((0..1000).map(|key| (key, Some(3000))));
    assert_eq!(since(), (0, 64), "not for ever");
    driven.edit((2000..12_000).map(|key| (key, Some(1))));
    assert_eq!(since(), (1, 0), "many entries");
    driven.edit_of((0..200).map(|key| (key, Some(3000))), 16 << 20);
    assert_eq!(since(), (1, 0), "many bytes");
    driven.edit((0..200).map(|key| (key, None)));
    assert_eq!(since().0, 0);
}
