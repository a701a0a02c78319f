//! Making the files of a keyspace as short as they can be, now, while others go on.
//!
//! Shard by shard, a bounded part at a time: what lingers goes, leaves that hold little are packed together in the same
//! checkpoint, and then the end of the file moves to where there is room. At a pace, so that others wait less.

use crate::core::Core;
use crate::error::{Error, Refusal, Result};
use crate::row;
use polybolt_engine::Error as EngineError;
use polybolt_engine::run::{Pacer, Signal, pause};
use polybolt_engine::store::VacuumUser;
use polybolt_engine::sync::atomic::Ordering;
use polybolt_index::Revision;
use std::sync::Arc;
use std::time::Duration;

/// So often one looks whether a wait is to end early.
const REST_MAX: Duration = Duration::from_millis(50);
const LAST: Revision = Revision { main: u64::MAX, sub: u32::MAX };

pub(crate) fn defragment(core: &Arc<Core>) -> Result<()> {
    core.check_open()?;
    if core.defragmenting.swap(true, Ordering::AcqRel) {
        let why = format!("{:?} is being defragmented already", core.name);
        return Err(Refusal::Invalid { why }.into());
    }
    let _end = End(core);
    let pacer = Pacer::new(core.options.defragment_bytes_per_second);
    let shards = core.shards.iter().enumerate().map(|(at, shard)| (Some(at), shard.tree));
    for (shard, tree) in shards.chain([(None, core.meta)]) {
        core.store.vacuum(core.id, tree, &mut User { core, shard, pacer: &pacer })?;
    }
    Ok(())
}

/// Lets the next one begin.
struct End<'a>(&'a Core);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.defragmenting.store(false, Ordering::Release);
    }
}

/// Who has a tree vacuumed.
struct User<'a> {
    core: &'a Core,
    /// None is the metadata.
    shard: Option<usize>,
    pacer: &'a Pacer,
}

impl VacuumUser for User<'_> {
    fn goes(&self, first: &[u8], last: &[u8]) -> u64 {
        let rows = row::row_revision(first).ok().zip(row::row_revision(last).ok());
        self.shard.zip(rows).map_or(0, |(shard, (first, last))| self.core.lingering_bytes(shard, first..=last))
    }

    fn take_out(&mut self, next: Option<&[u8]>) -> Result<u64, EngineError> {
        let Some(shard) = self.shard else { return Ok(0) };
        let to = next.and_then(|next| row::row_revision(next).ok()).unwrap_or(LAST);
        self.core.reclaim_before(shard, to).map_err(|error| match error {
            Error::Storage(error) | Error::Unknown(error) => error,
            Error::Refused(refusal) => EngineError::invalid(refusal.to_string()),
        })
    }

    fn wrote(&mut self, bytes: u64) {
        self.rest_after(bytes);
    }

    fn gave_back(&mut self, bytes: u64) {
        // Less than to write them: 64 MiB a second.
        self.rest_after(bytes / 2);
    }
}

impl User<'_> {
    fn rest_after(&self, bytes: u64) {
        let core = self.core;
        let Some(at) = self.pacer.after(core.clock.monotonic(), bytes) else { return };
        while let Some(left) = at.checked_sub(core.clock.monotonic()).filter(|left| !left.is_zero()) {
            if core.check_open().is_err() || core.is_over() {
                return;
            }
            if !pause("wait") {
                if !core.threads {
                    // Whoever steps the jobs has no other thread for this.
                    return;
                }
                Signal::default().wait(Some(left.min(REST_MAX)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::{Engine, Runtime};
    use crate::options::Options;
    use crate::request::PutRequest;
    use crate::routes::Routes;
    use polybolt_engine::disk::sim::SimDisk;
    use polybolt_engine::run::seeded::{Seeded, meanwhile};
    use polybolt_engine::run::{Clock, ManualClock};
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::time::Duration;

    /// Leaves that lost a part are full again; that takes the time that it is given, and there is one at a time.
    #[test]
    fn it_packs_leaves_at_its_pace() {
        const KEYS: u64 = 3000;
        let clock = ManualClock::default();
        let options = Options {
            defragment_bytes_per_second: 1 << 20,
            vacuum_bytes_per_second: 0,
            reclaim_percent: 100,
            ..Options::default()
        };
        let runtime = Runtime { disk: Arc::new(SimDisk::new(1)), clock: Arc::new(clock.clone()), threads: false };
        let engine = Engine::open_with("/data", options, runtime).expect("it opens");
        let jobs = Rc::new(RefCell::new(Seeded::new(engine.take_jobs(), clock.clone(), 1)));
        let ks = engine.create_keyspace("ks", Routes::single()).expect("it is new");
        let put = |key: u64| drop(ks.put(PutRequest::new(format!("key-{key:05}"), vec![1; 500])));
        let pass = || {
            for _ in 0..2000 {
                jobs.borrow_mut().advance(Duration::from_millis(5));
                jobs.borrow_mut().run_until_idle(10_000);
            }
        };
        (0..KEYS).for_each(put);
        pass();
        (0..KEYS).filter(|key| key % 4 == 1).for_each(put);
        pass();
        drop(ks.compact(ks.revision(), false));
        pass();
        let live = KEYS * 509;
        assert!(
            ks.stats().lingering > KEYS / 8 && ks.status().size > live * 5 / 4,
            "{:?} {:?}",
            ks.stats(),
            ks.status()
        );
        let begun = clock.monotonic();
        let (step, other) = (Rc::clone(&jobs), ks.clone());
        let refused = Rc::new(RefCell::new(0));
        let seen = Rc::clone(&refused);
        meanwhile(Some(Box::new(move |at| {
            if at != "wait" {
                return false;
            }
            if let Err(error) = other.defragment() {
                assert!(error.to_string().contains("already"), "{error}");
                *seen.borrow_mut() += 1;
            }
            if !step.borrow_mut().step_one() {
                step.borrow_mut().advance(Duration::from_millis(5));
            }
            true
        })));
        ks.defragment().expect("it works");
        let (size, took) = (ks.status().size, clock.monotonic() - begun);
        ks.defragment().expect("it may again");
        meanwhile(None);
        assert!(*refused.borrow() > 10);
        assert!(ks.stats().lingering == 0 && size * 100 < live * 112, "{size} of {live}");
        // A quarter of a second may be made up for.
        assert!(took > Duration::from_millis(1000), "{took:?} for {size}");
        engine.verify(&mut |_| ()).expect("it is sound");
    }
}
