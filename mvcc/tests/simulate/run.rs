//! One seed from its beginning to its end.

use crate::checks;
use crate::copies;
use crate::coverage::Coverage;
use crate::faults;
use crate::restart;
use crate::setup::Setup;
use crate::world::{Shared, World};
use polybolt::run::seeded::{Rng, meanwhile};
use polybolt::{Command, Engine, Refusal};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// A broken promise.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) seed: u64,
    pub(crate) operation: u64,
    pub(crate) what: String,
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps panics of the calling threads for [`run`]'s reports instead of printing them.
pub(crate) fn keep_panics() {
    std::panic::set_hook(Box::new(|info| {
        let at = info.location().map(ToString::to_string).unwrap_or_default();
        let text = info.payload().downcast_ref::<String>().cloned();
        let text = text.or_else(|| info.payload().downcast_ref::<&str>().map(ToString::to_string));
        PANIC.with(|kept| *kept.borrow_mut() = format!("{} ({at})", text.unwrap_or_default()));
    }));
}

/// Operations are of kinds below this.
pub(crate) const KINDS: u64 = 1012;

/// Given operations, for fuzzers: the kind of each, its keyspace, and what the rest of it is drawn from.
/// Panics where a promise is broken.
#[expect(dead_code, reason = "the fuzz target has this file too")]
pub(crate) fn run_given(setup: Setup, operations: impl IntoIterator<Item = (u64, usize, u64)>) {
    let shared: Shared = Rc::new(RefCell::new(World::new(setup, false)));
    begin(&shared);
    for (operation, (kind, at, draws)) in (0..).zip(operations) {
        if shared.borrow().ended {
            break;
        }
        {
            let mut world = shared.borrow_mut();
            let world = &mut *world;
            world.operation = operation;
            world.rng = Rng::new(draws);
            world.take_answers();
        }
        let keyspaces = shared.borrow().setup.keyspaces;
        perform(&shared, operation, kind % KINDS, at % keyspaces);
        faults::after(&shared);
    }
    if !shared.borrow().ended {
        finish(&shared);
    }
    // What waits in it refers to it.
    meanwhile(None);
}

/// Runs a seed; operations in `skip` are left out.
pub(crate) fn run(seed: u64, skip: &BTreeSet<u64>, trace: bool) -> Result<Coverage, Violation> {
    let shared: Shared = Rc::new(RefCell::new(World::new(Setup::draw(seed), trace)));
    let outcome = catch_unwind(AssertUnwindSafe(|| run_world(&shared, skip)));
    meanwhile(None);
    // Whatever panicked may have left it borrowed.
    let operation = shared.try_borrow().map_or(0, |world| world.operation);
    match outcome {
        Ok(()) => Ok(shared.borrow().coverage.clone()),
        Err(_) => {
            let what = PANIC.with(|kept| kept.borrow().clone());
            // Its parts may be in the middle of something: nothing of it is dropped.
            std::mem::forget(shared);
            Err(Violation { seed, operation, what })
        }
    }
}

fn begin(shared: &Shared) -> u64 {
    let mut world = shared.borrow_mut();
    let world = &mut *world;
    world.say(|| format!("{:?}", world.setup));
    world.open().expect("a new store opens");
    world.create_keyspaces();
    world.setup.operations
}

fn run_world(shared: &Shared, skip: &BTreeSet<u64>) {
    let operations = begin(shared);
    for operation in 0..operations {
        if shared.borrow().ended {
            break;
        }
        if skip.contains(&operation) {
            continue;
        }
        {
            let mut world = shared.borrow_mut();
            let world = &mut *world;
            world.operation = operation;
            world.rng = Rng::new(world.setup.seed.wrapping_mul(1_000_003) ^ operation.wrapping_mul(0x9e37));
        }
        step(shared, operation);
        faults::after(shared);
        count(shared);
    }
    if !shared.borrow().ended {
        finish(shared);
    }
    let mut world = shared.borrow_mut();
    let world = &mut *world;
    world.count_faults();
    // What a seed is, for whoever counts seeds.
    let (faults, opens) = (world.coverage.get("faults that fired"), world.coverage.get("opens"));
    let is_whole = world.operation >= 199 && world.setup.shards >= 3 && faults > 0 && (opens > 0 || world.damaged);
    assert!(is_whole || !skip.is_empty(), "too little of a seed: {faults} faults, {opens} opens");
}

/// One operation, and some of what goes on in the background.
fn step(shared: &Shared, operation: u64) {
    let (kind, at) = {
        let mut world = shared.borrow_mut();
        let world = &mut *world;
        world.run_some(5);
        if world.rng.one_in(5) {
            let by = world.rng.below(60);
            world.clock.advance(Duration::from_millis(by));
        }
        world.take_answers();
        (world.rng.below(KINDS), world.rng.below(world.setup.keyspaces as u64) as usize)
    };
    perform(shared, operation, kind, at);
}

/// An operation of a kind, on a keyspace; the rest of it is drawn.
fn perform(shared: &Shared, operation: u64, kind: u64, at: usize) {
    shared.borrow().say(|| format!("operation of kind {kind}"));
    if shared.borrow().is_broken() {
        return;
    }
    match kind {
        0..=409 => shared.borrow_mut().write(at),
        410..=439 => {
            let mut world = shared.borrow_mut();
            let world = &mut *world;
            for _ in 0..2 + world.rng.below(6) {
                world.write(at);
            }
        }
        440..=559 => checks::read(shared, at),
        560..=589 => checks::read_txn(shared, at),
        590..=639 => checks::stream(shared, at),
        640..=679 => checks::watch(shared, at),
        680..=709 => checks::drain(shared, at, false),
        710..=729 => checks::hash(shared, at),
        730..=744 => keep_alive(shared, at),
        745..=769 => checks::quiet(shared),
        770..=789 => restart::fork(shared),
        790..=814 => pass_time(shared),
        815..=834 => compact(shared, at),
        835..=841 => copies::snapshot(shared, at),
        842..=851 => copies::vacuum(shared, at),
        852..=854 => extra_keyspace(shared),
        855..=857 if !shared.borrow().setup.is_replayed() => extra_keyspace(shared),
        855..=865 if shared.borrow().setup.is_replayed() => copies::install(shared, at),
        858..=885 => {
            let mut world = shared.borrow_mut();
            let world = &mut *world;
            if world.rng.one_in(3) {
                // Between the slots of the manifest most is at stake.
                world.disk.crash_on("MANIFEST", 1 + world.rng.below(6));
                return;
            }
            let call = world.disk.calls() + 1 + world.rng.below(40);
            world.say(|| format!("crash at call {call}"));
            world.disk.crash_at(call);
        }
        886..=899 => shared.borrow().disk.stop(),
        900..=914 => restart::reopen(shared),
        915..=934 if shared.borrow().setup.eio => shared.borrow_mut().plan_fault(),
        935..=959 if shared.borrow().setup.full => shared.borrow_mut().plan_room(),
        960..=974 if shared.borrow().setup.damage => shared.borrow_mut().remember_unit(),
        975..=999 if shared.borrow().setup.damage && operation >= 200 => faults::damage(shared),
        1000..=1011 => copies::reshard(shared, at),
        _ => {
            // A caller that does not wait.
            let mut world = shared.borrow_mut();
            let world = &mut *world;
            world.run_some(30);
        }
    }
}

fn keep_alive(shared: &Shared, at: usize) {
    let mut world = shared.borrow_mut();
    let world = &mut *world;
    let now = polybolt::run::Clock::monotonic(&world.clock);
    let id = 1 + world.rng.below(6).cast_signed();
    let space = &mut world.spaces[at];
    let ks = space.ks.clone().expect("the keyspace is open");
    let mut left = ks.lease_keep_alive(id);
    let answer = Pin::new(&mut left).poll(&mut Context::from_waker(Waker::noop()));
    match (answer, space.model.now.leases.get(&id), space.deadlines.get_mut(&id)) {
        (Poll::Ready(Ok(left)), Some(ttl), Some(deadline)) if *deadline > now => {
            assert_eq!(left, *ttl, "a lease kept alive");
            *deadline = now + Duration::from_secs(ttl.cast_unsigned());
        }
        (Poll::Ready(Ok(left)), None, _) => assert_eq!(left, 0, "no lease"),
        // Its frontend takes the checkpoint back first.
        (Poll::Ready(Err(polybolt::Error::Refused(Refusal::LeaseCheckpointed))), _, _) => {
            assert!(world.setup.is_replayed());
            world.ask(at, Command::LeaseCheckpoint(vec![(id, 0)]), false);
        }
        // Past its deadline, or it has to be written first that its time begins anew.
        _ => {}
    }
    if world.setup.is_replayed() {
        for id in ks.due_leases(4) {
            assert!(world.spaces[at].deadlines[&id] <= now);
            world.ask(at, Command::LeaseRevoke(id), false);
        }
        let due = ks.due_lease_checkpoints();
        if !due.is_empty() {
            world.ask(at, Command::LeaseCheckpoint(due), false);
        }
    }
}

fn pass_time(shared: &Shared) {
    let mut world = shared.borrow_mut();
    let world = &mut *world;
    let most = [300, 3_000, 12_000, 40_000][world.rng.below(4) as usize];
    let by = Duration::from_millis(world.rng.below(most));
    world.say(|| format!("{by:?} pass"));
    world.clock.advance(by);
    world.run_some(40);
}

/// A compaction whose answer waits until it is through.
fn compact(shared: &Shared, at: usize) {
    let mut world = shared.borrow_mut();
    let world = &mut *world;
    let revision = world.spaces[at].model.now.main - world.rng.below(10).cast_signed();
    world.say(|| format!("physical compaction to {revision}"));
    world.ask(at, Command::Compact(revision), true);
}

/// A keyspace that comes and goes.
fn extra_keyspace(shared: &Shared) {
    let world = shared.borrow();
    let engine: &Engine = world.engine();
    let failed = |error: polybolt::Error| match error {
        polybolt::Error::Storage(error) => assert!(world.allows(&error), "{error}"),
        polybolt::Error::Refused(Refusal::KeyspaceExists { .. }) => {}
        error => panic!("a keyspace: {error}"),
    };
    match engine.create_keyspace("extra", world.setup.routes()) {
        Ok(_) => {}
        Err(error) => failed(error),
    }
    if world.is_broken() || !engine.keyspaces().contains(&"extra".to_owned()) {
        return;
    }
    if let Err(error) = engine.drop_keyspace("extra") {
        failed(error);
    }
}

fn count(shared: &Shared) {
    let mut world = shared.borrow_mut();
    let world = &mut *world;
    let Some(stats) = world.engine.as_ref().map(Engine::stats) else { return };
    let before = std::mem::replace(&mut world.stats, stats.clone());
    let grown = |now: u64, before: u64| if now >= before { now - before } else { now };
    world.count_faults();
    world.coverage.add("checkpoints", grown(stats.checkpoints, before.checkpoints));
    world.coverage.add("recycled segments", grown(stats.segments_recycled, before.segments_recycled));
    world.coverage.add("reused pages", grown(stats.units_reused, before.units_reused));
    world.coverage.add("ENOSPC in a checkpoint", grown(stats.no_space, before.no_space));
    world.coverage.add("leaves rewritten by compaction", grown(stats.leaves_cleaned, before.leaves_cleaned));
    world.coverage.add("scrub rounds", grown(stats.scrub_rounds, before.scrub_rounds));
    world.coverage.add("rounds of the background vacuum", grown(stats.vacuum_rounds, before.vacuum_rounds));
    world.coverage.add("files cut by it", grown(stats.vacuum_cuts, before.vacuum_cuts));
    let fired = world.disk.fired();
    for finding in world.engine().scrubbed().damage {
        let failed = fired.iter().any(|fired| fired.op == "read" && fired.path == finding.file);
        assert!(failed || world.damaged, "the scrub found what is not damaged: {finding:?}");
    }
}

/// At least one fault, one clean reopen, and everything as it has to be.
fn finish(shared: &Shared) {
    {
        let mut world = shared.borrow_mut();
        let world = &mut *world;
        world.operation = world.setup.operations;
        world.disk.heal();
        world.disk.set_capacity(None);
        let by = world.setup.options.admission_timeout + Duration::from_secs(1);
        world.clock.advance(by);
    }
    shared.borrow_mut().count_faults();
    if shared.borrow().coverage.get("faults that fired") == 0 {
        shared.borrow().disk.stop();
        faults::after(shared);
    }
    // A crash that was planned may still come.
    for _ in 0..20 {
        shared.borrow().disk.heal();
        checks::quiet(shared);
        if !shared.borrow().is_broken() {
            restart::reopen(shared);
        }
        if shared.borrow().ended {
            return;
        }
        if shared.borrow().is_broken() {
            faults::after(shared);
            continue;
        }
        checks::quiet(shared);
        if !shared.borrow().is_broken() {
            return;
        }
        faults::after(shared);
    }
    panic!("it never comes to rest");
}
