//! The rules of etcd that a restart has to keep, held at a crash at every disk call, in each durability:
//!
//! - REV-14: the revision never goes back, even with the newest rows erased
//! - CMP-7: the compacted revision is durable before it is acknowledged
//! - CMP-8: a sweep that a crash cut short is finished after it, to the last row
//! - LSE-15: leases stay, and their keys are those whose newest row names them
//! - IDX-6, IDX-7, IDX-8: index, versions, create revisions and counts are as before
//!
//! A fixed list of requests runs once to its end, and what is true after each of them is noted. After a
//! crash one of these states has to be there, none older than what was acknowledged. Counters make sure that
//! the cases which matter have happened.
#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use polybolt::disk::Disk;
use polybolt::disk::sim::{SimDisk, Survive, is_crash};
use polybolt::run::ManualClock;
use polybolt::run::seeded::Seeded;
use polybolt::{
    DeleteRequest, Durability, Engine, Error, Face, KeyValue, Keyspace, Op, Options, PutRequest, RangeRequest, Result,
    Routes, Runtime, Span, TxnRequest,
};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

#[derive(Debug, Clone, Copy)]
struct Setup {
    durability: Durability,
    face: Face,
    volatile: bool,
}

const BATCH: Durability = Durability::Batch { interval: Duration::from_millis(20), limit: 5 };

impl Setup {
    /// Reads below its floor are refused after a crash, and the revision jumps.
    fn reserves(self) -> bool {
        self.face == Face::Standalone && (self.durability == BATCH || self.volatile)
    }
}

const STEPS: usize = 22;
/// Keys here lie in the shard that is Volatile where one is.
const VOLATILE: &str = "m";

type Answer = Pin<Box<dyn Future<Output = Result<()>>>>;

/// The nth request; each changes something.
fn request(ks: &Keyspace, n: usize) -> Answer {
    let put =
        |key: &str, lease| Op::Put(PutRequest { lease, ..PutRequest::new(key.to_owned(), vec![b'v'; 20 + 40 * n]) });
    let delete = |span| Op::Delete(DeleteRequest { span, prev_kv: false });
    let txn = |success| -> Answer {
        let pending = ks.txn(TxnRequest { success, ..TxnRequest::default() });
        Box::pin(async { pending.await.map(drop) })
    };
    let compact = |back| -> Answer {
        let pending = ks.compact(ks.revision() - back, false);
        Box::pin(async { pending.await.map(drop) })
    };
    let lease = |id| -> Answer {
        let pending = ks.lease_grant(id, 1_000_000);
        Box::pin(async { pending.await.map(drop) })
    };
    match n {
        0 => lease(1),
        1 => lease(-2),
        2 => txn(vec![put("a1", 1), put("x1", 1)]),
        3 => txn(vec![put("a2", 1)]),
        // From one lease to the other, and to none.
        4 => txn(vec![put("a1", -2)]),
        5 => txn(vec![put("x1", 0)]),
        6 => txn(vec![put("a3", 1), put("x3", 1), put("a4", -2)]),
        // Its keys go with it, the one that went over stays.
        7 => {
            let pending = ks.lease_revoke(1);
            Box::pin(async { pending.await.map(drop) })
        }
        8 => txn(vec![put("a1", -2), put("x9", 0)]),
        9 => compact(1),
        10 => txn(vec![put("a3", 0)]),
        11 => txn(vec![delete(Span::key("a4"))]),
        // A tombstone at exactly the compacted revision stays.
        12 => compact(0),
        13 => txn(vec![put("a5", -2), put("a1", 0)]),
        14 => compact(0),
        15 => txn(vec![put("x1", 0), put("x2", -2)]),
        16 => lease(3),
        // The end of every key, and of all that is left of them.
        17 => txn(vec![delete(Span::prefix(""))]),
        18 => compact(0),
        19 => txn(vec![put("m1", 0)]),
        20 => compact(0),
        21 => lease(4),
        _ => unreachable!(),
    }
}

/// What is true between two requests, and after a crash there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    compacted: i64,
    /// Not where it jumps.
    revision: Option<i64>,
    /// Keys with versions and create revisions, now and at every revision that is not forgotten.
    now: Vec<KeyValue>,
    before: Vec<(i64, Vec<KeyValue>)>,
    /// Live keys of each durable shard.
    counts: Vec<u64>,
    leases: Vec<(i64, Vec<Bytes>)>,
}

/// Keys outside of the Volatile shard at a revision.
fn kvs(ks: &Keyspace, setup: Setup, revision: i64) -> Result<Vec<KeyValue>> {
    let request = |span| RangeRequest { revision, ..RangeRequest::new(span) };
    if !setup.volatile {
        return Ok(ks.range(&request(Span::prefix("")))?.kvs);
    }
    let mut kvs = ks.range(&request(Span::range("a", VOLATILE)))?.kvs;
    kvs.extend(ks.range(&request(Span::from_key("n")))?.kvs);
    Ok(kvs)
}

fn facts(ks: &Keyspace, setup: Setup) -> Facts {
    let revision = ks.revision();
    let shards = ks.status().shards;
    let durable = shards.iter().filter(|shard| shard.durability != "volatile");
    let mut leases: Vec<_> = ks.leases();
    leases.sort_unstable();
    let keys = |id| ks.lease_time_to_live(id, true).unwrap().keys;
    let all = if setup.reserves() { 0 } else { revision };
    Facts {
        compacted: ks.compact_revision(),
        revision: (!setup.reserves()).then_some(revision),
        now: kvs(ks, setup, 0).unwrap(),
        before: (ks.compact_revision().max(1)..all).map(|at| (at, kvs(ks, setup, at).unwrap())).collect(),
        counts: durable.map(|shard| shard.keys).collect(),
        leases: leases.into_iter().map(|id| (id, keys(id))).collect(),
    }
}

/// Rows of durable shards.
fn rows(ks: &Keyspace) -> u64 {
    ks.status().shards.iter().filter(|shard| shard.durability != "volatile").map(|shard| shard.revisions).sum()
}

struct Driven {
    engine: Engine,
    jobs: Seeded,
}

fn open(disk: &SimDisk, setup: Setup, seed: u64) -> Result<Driven> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let clock = ManualClock::default();
    let options = Options {
        durability: setup.durability,
        face: setup.face,
        buffer_bytes: 60_000,
        segment_bytes: 8192,
        journal_bytes: 48 << 10,
        checkpoint_interval: Duration::from_millis(20),
        space_reserve_bytes: 8192,
        compaction_pace: polybolt::CompactionPace {
            batch_limit: 1,
            sleep_interval: Duration::from_millis(8),
            ..Default::default()
        },
        admission_timeout: Duration::from_secs(3600),
        reclaim_percent: 0,
        ..Options::default()
    };
    let runtime = Runtime { disk, clock: Arc::new(clock.clone()), threads: false };
    let engine = Engine::open_with("/data/store", options, runtime)?;
    let jobs = Seeded::new(engine.take_jobs(), clock, seed);
    Ok(Driven { engine, jobs })
}

impl Driven {
    /// Steps jobs until the answer is there; None once the disk has stopped.
    fn finish(&mut self, work: impl Future<Output = Result<()>>) -> Option<()> {
        let mut work = pin!(work);
        for _ in 0..100_000 {
            match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(())) => return Some(()),
                Poll::Ready(Err(Error::Storage(error) | Error::Unknown(error))) => {
                    assert!(is_crash(&error), "{error}");
                    return None;
                }
                Poll::Ready(Err(error)) => panic!("{error}"),
                Poll::Pending if self.jobs.step_one() => {}
                Poll::Pending => self.jobs.advance(Duration::from_millis(5)),
            }
        }
        panic!("no answer came");
    }

    /// Lets sweeps and checkpoints come to their ends.
    fn settle(&mut self) {
        for _ in 0..60 {
            self.jobs.run_until_idle(3000);
            self.jobs.advance(Duration::from_millis(11));
        }
    }
}

/// What was promised when the disk stopped.
#[derive(Debug, Default, Clone, Copy)]
struct Promised {
    /// Requests acknowledged, and begun.
    acknowledged: usize,
    begun: usize,
    /// Those that are durable: all of the acknowledged under `Sync`, those before a compaction under `Batch`.
    durable: usize,
    shown: i64,
    compacted: i64,
}

/// One run up to the `crash`th call. `each` sees the keyspace before all and after each request.
fn run_to(crash: u64, setup: Setup, each: &mut dyn FnMut(&mut Driven, &Keyspace)) -> (SimDisk, Promised, bool) {
    let disk = SimDisk::new(31);
    disk.create_dir("/data".as_ref()).unwrap();
    disk.crash_at(crash);
    let mut promised = Promised { compacted: -1, ..Promised::default() };
    let mut made = false;
    let mut run = || -> Option<()> {
        let mut driven = open(&disk, setup, 31).ok()?;
        let routes = if setup.volatile { "low=a,mid:volatile=m" } else { "low=a,mid=m" };
        let ks = driven.engine.create_keyspace("ks", Routes::parse(routes).unwrap()).ok()?;
        made = true;
        each(&mut driven, &ks);
        for n in 0..STEPS {
            promised.begun = n + 1;
            let answer = request(&ks, n);
            driven.finish(answer)?;
            promised.acknowledged = n + 1;
            let compacted = ks.compact_revision() > promised.compacted;
            if setup.durability == Durability::Sync || compacted {
                promised.durable = n + 1;
            }
            promised.compacted = ks.compact_revision();
            promised.shown = ks.revision();
            each(&mut driven, &ks);
            driven.jobs.run_some(5);
            driven.jobs.advance(Duration::from_millis(4));
        }
        // What was swept last is in the files before it is closed, too.
        for _ in 0..3 {
            driven.settle();
        }
        drop(ks);
        driven.engine.close().ok()
    };
    run();
    (disk, promised, made)
}

#[derive(Debug, Default)]
struct Seen {
    recoveries: u64,
    /// Sweeps that the crash cut short.
    unfinished_sweeps: u64,
    /// Every row of the newest revision had gone.
    newest_rows_erased: u64,
    /// And every row there ever was.
    no_rows_left: u64,
    /// The newest row is a tombstone at exactly the compacted revision.
    tombstone_at_compacted: u64,
    compacted_acknowledged: u64,
    leases_with_keys: u64,
    overwritten_in_history: u64,
}

fn check_rev_14(ks: &Keyspace, setup: Setup, promised: Promised, found: &Facts, seen: &mut Seen) {
    let shown = if setup.durability == Durability::Sync || setup.reserves() { promised.shown } else { 0 };
    assert!(ks.revision() >= shown.max(ks.compact_revision()), "REV-14: {} after {shown}", ks.revision());
    let newest = found.now.iter().map(|kv| kv.mod_revision).max().unwrap_or(0);
    seen.newest_rows_erased += u64::from(rows(ks) == 0 || (newest < shown && newest > 0));
    seen.no_rows_left += u64::from(rows(ks) == 0 && shown > 1);
    seen.tombstone_at_compacted += u64::from(newest < found.compacted && rows(ks) > 0);
}

fn check_cmp_7(found: &Facts, promised: Promised, seen: &mut Seen) {
    let acknowledged = promised.compacted;
    assert!(found.compacted >= acknowledged, "CMP-7: {} after {acknowledged} was acknowledged", found.compacted);
    seen.compacted_acknowledged += u64::from(acknowledged > 0);
}

fn check_cmp_8(driven: &mut Driven, ks: &Keyspace, survivors: u64, seen: &mut Seen) {
    let left = rows(ks);
    assert!(left >= survivors, "CMP-8: {left} rows, {survivors} survive any sweep");
    seen.unfinished_sweeps += u64::from(left > survivors);
    driven.settle();
    assert_eq!(rows(ks), survivors, "CMP-8: what should go went");
}

fn check_lse_15(found: &Facts, seen: &mut Seen) {
    for (id, keys) in &found.leases {
        let named: Vec<Bytes> = found.now.iter().filter(|kv| kv.lease == *id).map(|kv| kv.key.clone()).collect();
        assert_eq!(*keys, named, "LSE-15: the keys of {id} are those whose newest row names it (IDX-6)");
        seen.leases_with_keys += u64::from(!keys.is_empty());
    }
}

fn check_idx_6_7_8(ks: &Keyspace, found: &Facts, seen: &mut Seen) {
    let live: u64 = found.counts.iter().sum();
    assert_eq!(live, found.now.len() as u64, "IDX-8");
    seen.overwritten_in_history += u64::from(found.now.iter().any(|kv| kv.version > 1));
    assert!(found.now.iter().all(|kv| kv.create_revision <= kv.mod_revision && kv.mod_revision <= ks.revision()));
}

fn check_restart(disk: &SimDisk, setup: Setup, promised: Promised, truth: &[(Facts, u64)], seen: &mut Seen) {
    let mut driven = open(disk, setup, 5).unwrap_or_else(|error| panic!("a crash must not keep it shut: {error}"));
    let ks = driven.engine.keyspace("ks").unwrap();
    seen.recoveries += 1;
    let found = facts(&ks, setup);
    // IDX-6, IDX-7: the whole of it is that of one moment, after what was acknowledged durably.
    let at = (promised.durable..=promised.begun).rev().find(|at| truth[*at].0 == found);
    let at = at.unwrap_or_else(|| panic!("at no moment of {promised:?} was it like this: {found:#?}"));
    check_rev_14(&ks, setup, promised, &found, seen);
    check_cmp_7(&found, promised, seen);
    check_lse_15(&found, seen);
    check_idx_6_7_8(&ks, &found, seen);
    // Below a floor that the stop has set nothing can be read any more: all but what is live goes (R4).
    let is_below = ks.floors()[0] > found.compacted.max(0);
    let survivors = if is_below { found.now.len() as u64 } else { truth[at].1 };
    check_cmp_8(&mut driven, &ks, survivors, seen);
    assert_eq!(facts(&ks, setup), found, "a sweep changes nothing that anybody sees");
    let (revision, hash) = (ks.revision(), ks.hash_kv(0).unwrap().hash);
    driven.engine.verify(&mut |_| ()).unwrap();
    drop(ks);
    driven.engine.close().unwrap();
    let driven = open(disk, setup, 6).unwrap();
    let ks = driven.engine.keyspace("ks").unwrap();
    assert_eq!((facts(&ks, setup), ks.revision(), rows(&ks)), (found, revision, survivors), "nor another restart");
    assert_eq!(ks.hash_kv(0).unwrap().hash, hash);
}

fn every_call(setup: Setup) {
    // What is true after each request, and how many rows a whole sweep leaves.
    let mut truth: Vec<(Facts, u64)> = Vec::new();
    let (whole, promised, _) = run_to(u64::MAX, setup, &mut |driven, ks| {
        driven.settle();
        truth.push((facts(ks, setup), rows(ks)));
    });
    assert_eq!((promised.acknowledged, truth.len()), (STEPS, STEPS + 1));
    // But for the one that a crash takes back.
    let same = truth.windows(2).filter(|pair| pair[0].0 == pair[1].0).count();
    assert_eq!(same, usize::from(setup.volatile), "each request changes something");
    drop(whole);
    let calls = run_to(u64::MAX, setup, &mut |_, _| ()).0.calls();
    let mut seen = Seen::default();
    for call in 1..=calls {
        let (disk, promised, made) = run_to(call, setup, &mut |_, _| ());
        if !made {
            continue;
        }
        eprintln!("{setup:?}, call {call} ({}), {promised:?}", disk.last_call());
        for survive in [Survive::Nothing, Survive::All].into_iter().chain((0..3).map(Survive::Mix)) {
            check_restart(&disk.after_crash(survive), setup, promised, &truth, &mut seen);
        }
    }
    println!("{setup:?}: {seen:?}");
    assert!(seen.unfinished_sweeps > 0 && seen.compacted_acknowledged > 0, "{seen:?}");
    assert!(seen.leases_with_keys > 0 && seen.overwritten_in_history > 0, "{seen:?}");
    assert!(seen.tombstone_at_compacted > 0 && seen.newest_rows_erased > 0, "{seen:?}");
    assert!(seen.no_rows_left > 0 || !setup.volatile, "{seen:?}");
}

#[test]
fn restarts_keep_the_rules_with_sync_rev_14_cmp_7_cmp_8_lse_15_idx_6() {
    every_call(Setup { durability: Durability::Sync, face: Face::Standalone, volatile: false });
}

#[test]
fn restarts_keep_the_rules_with_standalone_batch_rev_14_cmp_7_cmp_8_lse_15_idx_6() {
    every_call(Setup { durability: BATCH, face: Face::Standalone, volatile: false });
}

#[test]
fn restarts_keep_the_rules_with_replayed_batch_rev_14_cmp_7_cmp_8_lse_15_idx_6() {
    every_call(Setup { durability: BATCH, face: Face::Replayed, volatile: false });
}

/// The Volatile shard has the newest rows: with it all rows there are go.
#[test]
fn restarts_keep_the_rules_with_a_volatile_shard_rev_14_cmp_7_cmp_8_lse_15_idx_6() {
    every_call(Setup { durability: Durability::Sync, face: Face::Standalone, volatile: true });
}

/// Found by the above: under `Sync` the sweep looked for work before the compaction was visible, and not again.
#[test]
fn a_compaction_is_swept_though_nobody_waits_for_it_cmp_10() {
    for durability in [Durability::Sync, BATCH] {
        let setup = Setup { durability, face: Face::Standalone, volatile: false };
        let disk = SimDisk::new(4);
        disk.create_dir("/data".as_ref()).unwrap();
        let mut driven = open(&disk, setup, 4).unwrap();
        let ks = driven.engine.create_keyspace("ks", Routes::single()).unwrap();
        for n in 0..20 {
            let put = ks.put(PutRequest::new("k", n.to_string()));
            driven.finish(async { put.await.map(drop) }).unwrap();
        }
        drop(ks.compact(ks.revision(), false));
        driven.settle();
        assert_eq!((ks.compact_revision(), rows(&ks)), (ks.revision(), 1), "{durability:?}");
    }
}
