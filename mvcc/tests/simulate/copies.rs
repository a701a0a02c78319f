//! Snapshots, restored beside their keyspace or installed into it, and the vacuum.

use crate::checks;
use crate::setup::EXTEND;
use crate::world::{Boundary, Shared, World, among_others};
use polybolt::disk::Disk;
use polybolt::disk::sim::SimDisk;
use polybolt::model::Model;
use polybolt::run::seeded::{Seeded, meanwhile};
use polybolt::run::{Clock, ManualClock};
use polybolt::{Command, Engine, Entry, Error, Keyspace, Older, Options, RangeRequest, Refusal, Result, Runtime, Span};
use std::sync::Arc;
use std::time::Duration;

fn stream_of(ks: &Keyspace) -> Result<(i64, Vec<u8>)> {
    let mut snapshot = ks.snapshot()?;
    let mut stream = Vec::new();
    for frame in snapshot.by_ref() {
        stream.extend_from_slice(&frame?);
    }
    Ok((snapshot.revision(), stream))
}

/// A snapshot taken while the world goes on, restored beside it and compared.
pub(crate) fn snapshot(shared: &Shared, at: usize) {
    let (ks, engine, now) = {
        let world = shared.borrow();
        let space = &world.spaces[at];
        (space.ks.clone().expect("the keyspace is open"), world.engine().clone(), space.model.now.clone())
    };
    let taken = among_others(shared, || stream_of(&ks));
    let failed = |error: Error| refused(&shared.borrow(), error);
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
    {
        let mut world = shared.borrow_mut();
        let world = &mut *world;
        if world.rng.one_in(2) {
            // In the middle of a sweep, in which some rows linger and others are on their way out.
            let revision = world.spaces[at].model.now.main;
            world.ask(at, Command::Compact(revision), false);
            world.run_some(60);
        }
        if world.rng.one_in(3) {
            let call = world.disk.calls() + 1 + world.rng.below(40);
            world.disk.crash_at(call);
        }
    }
    if shared.borrow().is_broken() {
        return;
    }
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

/// A snapshot may fail for want of room or of a disk.
fn refused(world: &World, error: Error) {
    match error {
        Error::Storage(error) | Error::Unknown(error) => assert!(world.allows(&error), "a snapshot: {error}"),
        Error::Refused(Refusal::Compacted { .. }) => {}
        Error::Refused(Refusal::DiskFull) if world.was_limited => {}
        error => panic!("a snapshot: {error}"),
    }
}

/// A replica that has applied more of the log: its snapshot, and what it holds.
pub(crate) struct Ahead {
    stream: Vec<u8>,
    pub(crate) model: Model,
    pub(crate) history: u128,
}

/// A snapshot of a replica that is ahead takes the place of what a keyspace holds.
pub(crate) fn install(shared: &Shared, at: usize) {
    let Some(ahead) = ahead(shared, at) else { return };
    let (engine, name, began) = {
        let mut world = shared.borrow_mut();
        let world = &mut *world;
        if world.rng.one_in(2) {
            let call = world.disk.calls() + 1 + world.rng.below(60);
            world.disk.crash_at(call);
        }
        world.say(|| format!("a snapshot of revision {} is installed", ahead.model.now.main));
        (world.engine().clone(), world.spaces[at].name.clone(), world.clock.monotonic())
    };
    let done = among_others(shared, || engine.install(&name, &ahead.stream[..], Older::Refuse)?.wait());
    let mut world = shared.borrow_mut();
    let world = &mut *world;
    world.say(|| format!("{done:?}"));
    match done {
        Ok(revision) => {
            assert_eq!(revision, ahead.model.now.main, "what was installed");
            world.coverage.add("snapshots installed", 1);
            world.take_over(at, ahead, began);
        }
        Err(error) => {
            refused(world, error);
            if world.is_broken() {
                world.coverage.add("crashes in an install", u64::from(world.disk.crashed()));
                world.spaces[at].ahead = Some(ahead);
            } else {
                // It catches up by its log.
                world.catch_up(at);
            }
        }
    }
}

/// Routes that give each shard the same keys and pages of another size: all is copied, and nobody may notice.
pub(crate) fn reshard(shared: &Shared, at: usize) {
    let (engine, name, ks, to) = {
        let mut world = shared.borrow_mut();
        let world = &mut *world;
        if world.rng.one_in(2) {
            let call = world.disk.calls() + 1 + world.rng.below(80);
            world.disk.crash_at(call);
        }
        let ks = world.spaces[at].ks.clone().expect("the keyspace is open");
        let page_bytes = 4096 * 8192 / ks.routes().shards()[0].page_bytes;
        world.say(|| format!("pages of {page_bytes} bytes for {:?}", world.spaces[at].name));
        (world.engine().clone(), world.spaces[at].name.clone(), ks, world.setup.routes_of(page_bytes))
    };
    let done = among_others(shared, || engine.reshard(&name, to.clone(), |_| ())?.wait());
    let mut world = shared.borrow_mut();
    let world = &mut *world;
    world.say(|| format!("{done:?}"));
    match done {
        Ok(()) => {
            assert_eq!(*ks.routes(), to);
            world.coverage.add("routes changed", 1);
        }
        Err(error) => {
            refused(world, error);
            world.coverage.add("crashes in a change of routes", u64::from(world.disk.crashed()));
        }
    }
}

/// Brings a copy of a keyspace further than the keyspace is.
fn ahead(shared: &Shared, at: usize) -> Option<Ahead> {
    let ks = shared.borrow().spaces[at].ks.clone().expect("the keyspace is open");
    let taken = among_others(shared, || stream_of(&ks));
    shared.borrow_mut().quiesce();
    let mut world = shared.borrow_mut();
    let world = &mut *world;
    let stream = match taken {
        Ok((_, stream)) => stream,
        Err(error) => {
            refused(world, error);
            return None;
        }
    };
    if world.is_broken() {
        return None;
    }
    for _ in 0..1 + world.rng.below(8) {
        let command = world.command(at);
        world.say(|| format!("entry {command:?}").chars().take(300).collect());
        world.spaces[at].log.push(command);
    }
    let space = &world.spaces[at];
    let mut model = space.model.clone();
    let entry = |index: u64| Entry { index, command: space.log[index as usize - 1].clone() };
    let last = space.log.len() as u64;
    for index in model.now.applied_index + 1..=last {
        drop(model.apply(&space.log[index as usize - 1], Some(index)));
    }
    let disk = SimDisk::new(world.setup.seed ^ world.operation);
    disk.create_dir("/data".as_ref()).expect("a new disk works");
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let clock = ManualClock::default();
    let theirs = &world.setup.options;
    let options = Options {
        durability: theirs.durability,
        face: theirs.face,
        min_lease_ttl: theirs.min_lease_ttl,
        ..Options::default()
    };
    let runtime = Runtime { disk, clock: Arc::new(clock.clone()), threads: false };
    let engine = Engine::open_with("/data/store", options, runtime).expect("a new store opens");
    let mut jobs = Seeded::new(engine.take_jobs(), clock.clone(), world.setup.seed);
    meanwhile(Some(Box::new(move |at| {
        let waits = at == "wait";
        if waits && !jobs.step_one() {
            clock.advance(Duration::from_millis(5));
        }
        waits
    })));
    let peer = engine.restore("peer", None, &stream[..], &mut |_| ()).expect("a snapshot is restored");
    let from = peer.applied_index() + 1;
    peer.apply((from..=last).map(entry).collect()).wait().expect("entries are applied");
    assert_eq!((peer.revision(), peer.applied_index()), (model.now.main, last), "a replica that is ahead");
    let (_, stream) = stream_of(&peer).expect("a snapshot is taken");
    let history = peer.history_hash();
    meanwhile(None);
    Some(Ahead { stream, model, history })
}

impl World {
    /// The model of what was installed is the keyspace's now.
    fn take_over(&mut self, at: usize, ahead: Ahead, began: Duration) {
        let checkpoints = self.setup.options.lease_checkpoint_interval.is_some();
        let space = &mut self.spaces[at];
        space.model = ahead.model;
        space.boundaries.push(Boundary { mark: space.model.mark(), history: Some(ahead.history) });
        space.acknowledged = space.boundaries.len() - 1;
        let ttl = |ttl: &i64| if checkpoints { 0 } else { ttl.cast_unsigned() };
        let deadline = |left: &i64| began + EXTEND + Duration::from_secs(ttl(left));
        space.deadlines = space.model.now.leases.iter().map(|(id, left)| (*id, deadline(left))).collect();
        self.settle();
    }

    /// Applies what of the log is missing.
    pub(crate) fn catch_up(&mut self, at: usize) {
        let from = self.spaces[at].model.now.applied_index + 1;
        for index in from..=self.spaces[at].log.len() as u64 {
            if self.is_broken() {
                return;
            }
            self.ask_at(at, index);
            self.run_some(3);
        }
    }
}
